"""Pre-MLLM morph-tokens (Pan et al. 2024, section 3 and the release's Qformer.py): a picture as a few discrete codes.

ViT -> causal Q-Former, with slot attention, deconfounded -> head -> codebook

Self-attention over the queries is causal. As released, slot attention is not: its softmax runs over all queries, so
that with slot layers an early code depends, a little, on later queries.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlws.models.quantize import Codebook


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder, and which of its parts are there.

    `slot_layers`: Q-Former layers whose cross-attention lets queries compete for patches (the release: 3, 5, 7 of 12);
    `deconfound`: queries are adjusted by a dictionary of confounders there; `renormalise`: the adjustment is a mean
    over the dictionary. In the release the prior multiplies an attention that sums to 1 already, so that a dictionary
    of N rows under a uniform prior moves a query by 1/N of a row.

    >>> EncoderConfig(queries=4).codes
    64
    """

    side: int = 32
    patch: int = 4
    width: int = 64
    heads: int = 4
    vit_layers: int = 2
    layers: int = 2
    queries: int = 4
    codes: int = 64
    code_dim: int = 96
    confounders: int = 512
    confounder_dim: int = 16
    slot_layers: tuple[int, ...] = (1,)
    deconfound: bool = True
    renormalise: bool = False


class SlotAttention(nn.Module):
    """Cross-attention in which queries compete for patches (release, Qformer.py): softmax over QUERIES, then each
    query's weights are divided by their sum over patches plus 1.

    With a dictionary D, a query is first adjusted to average over confounders (backdoor adjustment):
    z = sum_n p_n softmax_n(q D^T / sqrt(d)) D_n, q' = q + z.

    >>> slots = SlotAttention(EncoderConfig(), torch.randn(8, 16))
    >>> found, weights = slots(torch.zeros(2, 4, 64), torch.zeros(2, 9, 64))
    >>> found.shape, weights.shape, slots.adjustment(torch.zeros(2, 4, 3, 16)).shape
    (torch.Size([2, 4, 64]), torch.Size([2, 4, 4, 9]), torch.Size([2, 4, 3, 16]))
    """

    dictionary: Tensor

    def __init__(self, config: EncoderConfig, dictionary: Tensor) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.register_buffer("dictionary", dictionary)
        if config.deconfound:
            self.to_head = nn.Linear(dictionary.shape[1], width // config.heads)
            self.prior = nn.Parameter(torch.zeros(len(dictionary)))  # uniform at the start

    def forward(self, x: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Queries "row query width", patches "row patch width" -> what they gather, weights "row head query patch"."""
        h = self.config.heads
        q, k, v = (
            rearrange(p(u), "b n (h d) -> b h n d", h=h) for p, u in ((self.q, x), (self.k, patches), (self.v, patches))
        )
        if self.config.deconfound:
            q = q + self.adjustment(q)
        weights = (einsum(q, k, "b h q d, b h p d -> b h q p") * q.shape[-1] ** -0.5).softmax(2)
        weights = weights / (weights.sum(3, keepdim=True) + 1)
        return self.out(rearrange(weights @ v, "b h q d -> b q (h d)")), weights

    def adjustment(self, q: Tensor) -> Tensor:
        """z for queries "row head query d": the mean confounder that each attends to, under the prior."""
        confounders, prior = self.to_head(self.dictionary), self.prior.softmax(0)
        weights = (q @ confounders.T * q.shape[-1] ** -0.5).softmax(-1) * prior
        if self.config.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights @ confounders


class QFormerLayer(nn.Module):
    """Causal self-attention over the queries, attention to patches, feed-forward network.

    >>> layer = QFormerLayer(EncoderConfig(), slots=True, dictionary=torch.randn(8, 16))
    >>> layer(torch.zeros(2, 4, 64), torch.zeros(2, 9, 64))[0].shape
    torch.Size([2, 4, 64])
    """

    def __init__(self, config: EncoderConfig, slots: bool, dictionary: Tensor) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.itself = nn.MultiheadAttention(width, heads, batch_first=True)
        self.slots = SlotAttention(config, dictionary) if slots else None
        self.cross = None if slots else nn.MultiheadAttention(width, heads, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Queries "row query width" after this layer, and their attention to patches "row head query patch"."""
        n = x.shape[1]
        later = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        u = self.norms[0](x)
        x = x + self.itself(u, u, u, attn_mask=later, need_weights=False)[0]
        if self.slots is not None:
            found, weights = self.slots(self.norms[1](x), patches)
        else:
            assert self.cross is not None
            found, weights = self.cross(self.norms[1](x), patches, patches, average_attn_weights=False)
        x = x + found
        return x + self.ffn(self.norms[2](x)), weights


class Encoded(NamedTuple):
    """Pre-MLLM tokens of pictures: `z` "row query dim" before the codebook, `codes` after it, `ids` "row query";
    `attention` "row head query patch" of the last layer; `loss` of the codebook.

    >>> encoder = MorphEncoder(EncoderConfig()).eval()
    >>> encoder(torch.zeros(2, 3, 32, 32)).ids.shape
    torch.Size([2, 4])
    """

    z: Tensor
    codes: Tensor
    ids: Tensor
    attention: Tensor
    loss: Tensor


class MorphEncoder(nn.Module):
    """Picture -> M: ViT, causal Q-Former, head, codebook.

    Args:
        dictionary: confounders "n dim", here the picture tokenizer's codes (in the release, too, n is their number).

    >>> encoder = MorphEncoder(EncoderConfig(slot_layers=(), deconfound=False)).eval()
    >>> encoder(torch.zeros(1, 3, 32, 32)).z.shape
    torch.Size([1, 4, 96])
    """

    def __init__(self, config: EncoderConfig, dictionary: Tensor | None = None) -> None:
        super().__init__()
        if dictionary is None:
            dictionary = torch.zeros(config.confounders, config.confounder_dim)
        config = replace(config, confounders=len(dictionary), confounder_dim=dictionary.shape[1])
        self.config, width = config, config.width
        vit = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=config.vit_layers,
            num_attention_heads=config.heads,
            image_size=config.side,
            patch_size=config.patch,
        )
        self.vit = CLIPVisionModel(vit)
        # at CLIP's own scale (0.02) of positions, codes told nothing of where a thing stands after 1,200 steps
        nn.init.normal_(self.vit.embeddings.position_embedding.weight, std=0.5)
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.layers = nn.ModuleList(
            QFormerLayer(config, k in config.slot_layers, dictionary) for k in range(config.layers)
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.code_dim))
        self.codebook = Codebook(config.codes, config.code_dim)

    def forward(self, pixel_values: Tensor) -> Encoded:
        """Pictures "row 3 side side" in [-1, 1]."""
        patches = self.vit(pixel_values=pixel_values).last_hidden_state[:, 1:]
        x = repeat(self.queries, "q w -> b q w", b=len(patches))
        for layer in self.layers:
            x, attention = layer(x, patches)
        z = self.head(x)
        found = self.codebook(z)
        return Encoded(z, found.codes, found.ids, attention, found.loss)


class Readout(nn.Module):
    """Stage 0: what the codes must tell, one classifier an attribute on all codes of a picture.

    >>> readout = Readout(4 * 96, {"thing": 12, "place": 4})
    >>> {name: tuple(scores.shape) for name, scores in readout(torch.zeros(2, 4, 96)).items()}
    {'thing': (2, 12), 'place': (2, 4)}
    >>> labels = {"thing": torch.tensor([0, 1]), "place": torch.tensor([3, 3])}
    >>> readout.loss(torch.zeros(2, 4, 96), labels).shape
    torch.Size([])
    """

    def __init__(self, dim: int, attributes: dict[str, int]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(dim, n) for name, n in attributes.items()})

    def forward(self, codes: Tensor) -> dict[str, Tensor]:
        """Codes "row query dim" -> scores "row value" of each attribute."""
        return {name: head(codes.flatten(1)) for name, head in self.heads.items()}

    def loss(self, codes: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """Sum of the attributes' cross-entropies."""
        return torch.stack([F.cross_entropy(scores, labels[name]) for name, scores in self(codes).items()]).sum()
