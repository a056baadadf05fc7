"""Cheetor: a frozen multimodal language model that looks at its pictures a second time, knowing what is asked.

Li, Pan, Ge, Gao, Ji, Zhang, Chua, Tang, Zhang, Zhuang, "Fine-tuning Multimodal LLMs to Follow Zero-shot Demonstrative
Instructions", ICLR 2024, arXiv:2308.04152 (first version: "Empowering Vision-Language Models to Follow Interleaved
Vision-Language Instructions"). The module is VPG-C there, "controllable knowledge re-injection" in the first version; a
VPG (visual prompt generator) is what turns a picture into tokens, such as BLIP-2's Q-Former.

With K queries of width d, a language model of width D and L layers, X_j the patch features of picture j (section 2.1):

    h       = hidden state of the last prompt token in front of layer L/2           what the model has understood
    g       = W_g h + b_g                                                            guidance, one for all pictures
    V'_j    = Qformer(Q + g, X_j)                                                    the second look, same frozen VPG
    V~_j    = V_j + W_o V'_j + b_o                                                   at the K tokens of picture j

Q, W_g, b_g, W_o and b_o are trained, nothing else. W_o starts at zero, so that the model starts as its backbone.

    cheetor = Cheetor(load_mllm("blip2-emoji"))
    differences = cheetor.states(prompts, pairs, answers)
    fit_cheetor(cheetor, [differences, cheetor.states(...captions...)], steps=500, batch_sizes=[32, 16])
    cheetor.answer(prompts, images)

All in front of layer L/2 is frozen and knows nothing of the new parameters. `states` computes it once for a set of
samples; training then runs the second look and the upper layers alone, with the same loss and gradients.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.errors import InputError
from vlws.models.adapter import IGNORED, Adapter, Batch
from vlws.models.families import Blip2Adapter, LlavaAdapter
from vlws.train import epochs, fit

LOOKS = ("vpg", "linear", "heuristic")


# --- the second look ----------------------------------------------------------------------------------------------


class SecondLook(nn.Module):
    """VPG-C: new queries Q, guidance W_g and re-injection W_o around a frozen Q-Former.

    The queries start as a copy of the pretrained ones (the paper says "new"; its code copies them). Both linear maps
    start at zero, weight and bias. `guided=False` is the ablation g = 0.
    """

    def __init__(self, mllm: Blip2Adapter, guided: bool = True) -> None:
        super().__init__()
        queries = mllm.model.query_tokens[0].detach().float()
        width = queries.shape[1]
        self.queries = nn.Parameter(queries.clone())
        self.guide = zeroed(nn.Linear(mllm.hidden_size, width)).requires_grad_(guided)
        self.inject = zeroed(nn.Linear(width, mllm.hidden_size))

    def conditional_queries(self, h: Tensor) -> Tensor:
        """h "image D" -> Q + g, "image K d"."""
        return self.queries + rearrange(self.guide(h.float()), "image d -> image 1 d")

    def forward(self, mllm: Blip2Adapter, h: Tensor, features: Tensor, batch: Batch | None = None) -> Tensor:
        """h "image D", features "image patch width" -> what is added at the image tokens, "image K D"."""
        return self.inject(
            mllm.qformer_outputs(
                features, self.conditional_queries(h), batch.extra if batch else None
            ).last_hidden_state.float()
        )


class LinearLook(nn.Module):
    """Linear-VPG (appendix C, equation 1), for models whose VPG is a projection of the patches: V' = (W_1 g) * (W_2 X).

    Guidance filters channels. W_o alone starts at zero: were W_g zero as well, no gradient would ever reach either.
    """

    def __init__(self, mllm: LlavaAdapter, guided: bool = True, width: int = 64) -> None:
        super().__init__()
        self.guide = nn.Linear(mllm.hidden_size, width).requires_grad_(guided)
        self.filter = nn.Linear(width, width)
        self.read = nn.Linear(mllm.model.model.multi_modal_projector.linear_1.in_features, width)
        self.inject = zeroed(nn.Linear(width, mllm.hidden_size))
        self.guided = guided

    def forward(self, mllm: LlavaAdapter, h: Tensor, features: Tensor, batch: Batch | None = None) -> Tensor:
        """h "image D", features "image patch width" -> "image patch D"."""
        g = self.filter(self.guide(h.float() if self.guided else torch.zeros_like(h).float()))
        return self.inject(rearrange(g, "image d -> image 1 d") * self.read(features.float()))


class HeuristicLook(nn.Module):
    """The paper's second row of table 4: a linear map of the K patches that the first look attends to least."""

    def __init__(self, mllm: Blip2Adapter, guided: bool = False) -> None:
        super().__init__()
        self.inject = zeroed(nn.Linear(mllm.model.config.vision_config.hidden_size, mllm.hidden_size))

    def forward(self, mllm: Blip2Adapter, h: Tensor, features: Tensor, batch: Batch | None = None) -> Tensor:
        """features "image 1+patch width", the class token first -> "image K D"."""
        with torch.no_grad():
            patches = 1 + attention_map(mllm, features, batch=batch).argsort(1)[:, : mllm.model.config.num_query_tokens]
        return self.inject(torch.take_along_dim(features, patches[..., None], 1).float())


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The same layer with weight and bias at zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


# --- around a frozen model ----------------------------------------------------------------------------------------


class Cheetor:
    """A frozen multimodal language model with a second look.

    Args:
        mllm: of `models.adapter`; with a Q-Former for `look` "vpg" and "heuristic", of LLaVA's kind for
            "linear". Its weights are frozen.
        layer: the second look is added in front of this layer, and guidance read there; L // 2 unless given.
        guided: False for the ablation g = 0.
        look: "vpg" (VPG-C), "linear" (Linear-VPG) or "heuristic" (least-attended patches, no guidance).

    Attributes:
        look: the module that holds all that is trained.
        fired: how often the second look has been added, for those who want to see that it happens once an answer.
    """

    def __init__(
        self,
        mllm: Adapter,
        *,
        layer: int | None = None,
        guided: bool = True,
        look: str = "vpg",
    ) -> None:
        if look not in LOOKS:
            raise InputError(f"look={look!r}: accepted are {', '.join(LOOKS)}.")
        if not isinstance(mllm, LlavaAdapter if look == "linear" else Blip2Adapter):
            part, example = ("projection of patches", "LLaVA") if look == "linear" else ("Q-Former", "BLIP-2")
            raise InputError(
                f"{type(mllm.model).__name__} has no {part}; the second look {look!r} needs one, as {example} has."
            )
        layer = mllm.num_layers // 2 if layer is None else layer
        if not 0 <= layer < mllm.num_layers:
            raise InputError(
                f"layer={layer}: the second look of {type(mllm.model).__name__} is added in front of one of its "
                f"layers 0 to {mllm.num_layers - 1}."
            )
        self.mllm, self.layer = mllm, layer
        mllm.model.requires_grad_(False).eval()
        kind = {"vpg": SecondLook, "linear": LinearLook, "heuristic": HeuristicLook}[look]
        self.look: nn.Module = kind(mllm, guided).to(mllm.device)
        self.fired = 0

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.look.parameters() if p.requires_grad]

    # --- as hooks on the whole model --------------------------------------------------------------------------------

    @contextmanager
    def looking_twice(self, batch: Batch) -> Iterator[None]:
        """Within, every forward pass of the model that sees the whole prompt of `batch` adds the second look.

        A pass over new tokens alone (the keys of the prompt are cached) adds nothing: the second look is in the cache.
        """
        features = self._features(batch)
        at = guidance_position(batch)

        def add(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            given = args[0] if args else kwargs["hidden_states"]
            if given.shape[1] < batch.input_ids.shape[1]:
                return args, kwargs
            self.fired += 1
            h = given[torch.arange(len(at), device=at.device), at]
            spans = batch.image_spans
            added = self.look(self.mllm, h[spans[:, 0]], features, batch)
            places = torch.cat([torch.arange(a, b, device=at.device) for _, a, b in spans.tolist()])
            rows = spans[:, 0].repeat_interleave(spans[:, 2] - spans[:, 1])
            hidden = given.index_put((rows, places), added.to(given.dtype).flatten(0, 1), accumulate=True)
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        hook = self.mllm.layers[self.layer].register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def run(self, batch: Batch, **options):
        """`Adapter.run` with the second look: logits, and the loss where the batch has answers."""
        with self.looking_twice(batch):
            return self.mllm.run(batch, **options)

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        """`Adapter.hidden` with the second look, "batch len D"."""
        with self.looking_twice(batch):
            return self.mllm.hidden(batch, layer)

    def generate(self, batch: Batch, max_new_tokens: int) -> list[str]:
        """Greedy, cached continuations of prompts that are padded on the left."""
        with torch.no_grad(), self.looking_twice(batch):
            return self.mllm.generate(batch, max_new_tokens)

    def answer(
        self, prompts: Sequence[str], images: Sequence[Sequence], max_new_tokens: int = 10, chunk: int = 256
    ) -> list[str]:
        """Greedy answers, stripped; each prompt marks its pictures by "<image>" (as `Adapter.encode` takes them)."""
        out: list[str] = []
        for start in range(0, len(prompts), chunk):
            chosen = slice(start, start + chunk)
            batch = self.mllm.encode(prompts[chosen], images[chosen], padding_side="left").to(self.mllm.device)
            out += [text.strip() for text in self.generate(batch, max_new_tokens)]
        return out

    def _features(self, batch: Batch) -> Tensor:
        missing = set(range(len(batch.input_ids))) - set(batch.image_spans[:, 0].tolist())
        if missing:
            raise InputError(f"Sample {min(missing)} has no picture; a second look needs at least one in each.")
        if batch.features is not None:
            return batch.features
        with torch.no_grad():
            return self.mllm.vision_features(batch)

    # --- the upper layers alone, for training -----------------------------------------------------------------------

    @torch.no_grad()
    def states(
        self, prompts: Sequence[str], images: Sequence[Sequence], answers: Sequence[str], chunk: int = 256
    ) -> dict[str, Tensor]:
        """All that training needs of samples with equally many pictures each; arguments as of `Adapter.encode`.

        Returns:
            hidden "sample len D" in front of the layer; h "sample D"; features "sample image patch width"; places
            "sample image token" where the pictures stand; attention_mask, labels, positions "sample len".

        Raises:
            InputError: a sample without pictures, an empty answer, samples with different numbers of pictures, or a
                model whose upper layers cannot run alone.
        """
        counts = {len(row) for row in images}
        if len(counts) != 1:
            raise InputError(f"The samples have {sorted(counts)} pictures; give those of equal number together.")
        parts = []
        for start in range(0, len(prompts), chunk):
            chosen = slice(start, start + chunk)
            batch = self.mllm.encode(prompts[chosen], images[chosen], answers=answers[chosen]).to(self.mllm.device)
            batch = replace(batch, pixel_values=None, features=self._features(batch))
            parts.append(self._states(batch, images=counts.copy().pop()))
            if not start and (batch.extra or not self._runs_alone(batch, parts[0])):
                raise InputError(
                    f"{type(self.mllm.model).__name__} over {type(self.mllm.causal_lm).__name__} cannot be cut in two; "
                    "train it through run()."
                )
        length = max(part["hidden"].shape[1] for part in parts)
        return {name: torch.cat([_padded(part, name, length) for part in parts]) for name in parts[0]}

    def _states(self, batch: Batch, images: int) -> dict[str, Tensor]:
        hidden, spans = self.mllm.hidden(batch, self.layer), batch.image_spans
        rows = torch.arange(len(hidden), device=hidden.device)
        tokens = torch.arange(int(spans[0, 2] - spans[0, 1]), device=hidden.device)
        return {
            "hidden": hidden,
            "h": hidden[rows, guidance_position(batch)],
            "features": rearrange(batch.features, "(sample image) patch d -> sample image patch d", image=images),
            "places": rearrange(spans[:, 1:2] + tokens, "(sample image) token -> sample image token", image=images),
            "attention_mask": batch.attention_mask,
            "labels": batch.labels,
            "positions": self.mllm.positions(batch),
        }

    def _runs_alone(self, batch: Batch, states: dict[str, Tensor]) -> bool:
        whole = self.mllm.run(batch).logits
        return torch.allclose(self._upper(states, states["hidden"]), whole, atol=1e-2, rtol=1e-2)

    def loss(self, states: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of the answers' tokens: the loss that `run` gives, from cached states."""
        hidden, places = states["hidden"], states["places"]
        h = states["h"].repeat_interleave(places.shape[1], 0)
        added = self.look(self.mllm, h, states["features"].flatten(0, 1))
        row = torch.arange(len(hidden), device=hidden.device)[:, None, None].expand_as(places)
        where = (row.flatten(), places.flatten())
        hidden = hidden.index_put(where, added.to(hidden.dtype).flatten(0, 1), accumulate=True)
        targets = states["labels"][:, 1:]
        answered = targets != IGNORED
        return F.cross_entropy(self._upper(states, hidden, answered).float(), targets[answered])

    def _upper(self, states: dict[str, Tensor], hidden: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits "sample len vocab" from what enters `self.layer`; "kept vocab" with `keep` "sample len-1"."""
        out = upper_layers(self.mllm.decoder, self.layer)(
            inputs_embeds=hidden,
            attention_mask=states["attention_mask"],
            position_ids=states["positions"],
            use_cache=False,
        ).last_hidden_state
        return self.mllm.lm_head(out if keep is None else out[:, :-1][keep])


def guidance_position(batch: Batch) -> Tensor:
    """ "batch" int64: the last token of each prompt, which is in front of the answer where there is one."""
    there = (
        batch.attention_mask.bool() if batch.labels is None else batch.attention_mask.bool() & (batch.labels == IGNORED)
    )
    return there.shape[1] - 1 - there.int().flip(1).argmax(1)


def upper_layers(decoder: nn.Module, layer: int) -> nn.Module:
    """The decoder from `layer` on, sharing all weights; it takes hidden states for embeddings."""
    upper = copy.copy(decoder)
    upper._modules = decoder._modules | {"layers": decoder.layers[layer:]}
    if "embed_positions" in upper._modules:  # OPT adds learned positions in front of its layers
        upper._modules |= {"embed_positions": _Nothing()}
    return upper


class _Nothing(nn.Module):
    def forward(self, *args, **kwargs) -> Tensor:
        return torch.zeros(())


def _padded(part: dict[str, Tensor], name: str, length: int) -> Tensor:
    value = part[name]
    if name not in ("hidden", "attention_mask", "labels", "positions"):
        return value
    missing = (0, 0, 0, length - value.shape[1]) if value.ndim == 3 else (0, length - value.shape[1])
    return F.pad(value, missing, value=IGNORED if name == "labels" else 0)


def fit_cheetor(
    cheetor: Cheetor,
    sets: Sequence[dict[str, Tensor]],
    steps: int,
    batch_sizes: Sequence[int],
    *,
    lr: float = 2e-3,
    guide_lr: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    seed: int = 0,
    out: Path | None = None,
    label: str = "second look",
) -> list[dict[str, float]]:
    """Train the second look: each step takes a batch of every set (`Cheetor.states`), and adds up their losses.

    AdamW with warm-up and cosine, as the paper. W_g may have its own rate, `guide_lr`: h is not normalised, so that a
    step moves g by up to |h|_1 times the rate, where it moves Q by the rate alone. `out` keeps checkpoints, from which
    an interrupted training goes on.

    Raises:
        Diverged: a loss that is not finite, with the step; the last checkpoint in `out` is good.
        InputError: a set with fewer samples than its batch.
    """
    if len(sets) != len(batch_sizes) or not sets:
        raise InputError(f"{len(sets)} sets of samples and {len(batch_sizes)} batch sizes; give one size a set.")
    order = [epochs(len(s["h"]), size, seed + k) for k, (s, size) in enumerate(zip(sets, batch_sizes, strict=True))]

    def batch(step: int) -> list[dict[str, Tensor]]:
        chosen = [pick(step) for pick in order]
        return [{name: value[at] for name, value in s.items()} for s, at in zip(sets, chosen, strict=True)]

    groups = [
        {"params": [p for name, p in cheetor.look.named_parameters() if p.requires_grad and of(name)], "lr": rate}
        for of, rate in (
            (lambda name: not name.startswith("guide."), lr),
            (lambda name: name.startswith("guide."), lr if guide_lr is None else guide_lr),
        )
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    first = max(1, round(warmup * steps))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / first)
            * (1.0 if step < first else 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first))))
        ),
    )
    return fit(
        cheetor.look,
        lambda look, parts: sum(cheetor.loss(part) for part in parts),
        batch,
        steps,
        optimizer,
        scheduler,
        out=out,
        clip=1.0,
        device="auto" if cheetor.mllm.device.type == "cuda" else "cpu",
        label=label,
    )


# --- where the VPG looks, and what it ignores ---------------------------------------------------------------------


@torch.no_grad()
def attention_map(
    mllm: Blip2Adapter, features: Tensor, queries: Tensor | None = None, batch: Batch | None = None
) -> Tensor:
    """Cross-attention of the Q-Former over the patches, "image patch", mean over layers, heads and queries.

    Rows sum to at most 1: the class token is left out. `queries` "image K d" or "1 K d"; the pretrained ones unless
    given.
    """
    qformer = mllm.model.qformer
    before = qformer.config._attn_implementation
    qformer.set_attn_implementation("eager")  # the fast kernels keep no weights
    try:
        queries = mllm.model.query_tokens if queries is None else queries
        maps = mllm.qformer_outputs(
            features, queries, batch.extra if batch else None, output_attentions=True
        ).cross_attentions
    finally:
        qformer.set_attn_implementation(before)
    return reduce(
        torch.stack([m for m in maps if m is not None]), "layer image head query patch -> image patch", "mean"
    )[:, 1:]


def significance(attention: Tensor | np.ndarray, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How much the VPG looks at each thing: the mean of the attention map inside its mask, bilinearly interpolated.

    attention: "image patch" over a square grid; masks: per image "thing height width" bool. Returns per image "thing".
    """
    attention = torch.as_tensor(attention).float()
    side = round(attention.shape[1] ** 0.5)
    grid = rearrange(attention, "image (h w) -> image 1 h w", h=side)
    fine = F.interpolate(grid, size=masks[0].shape[-2:], mode="bilinear", align_corners=False)[:, 0].numpy()
    return [(m * f).sum((1, 2)) / m.sum((1, 2)) for m, f in zip(masks, fine, strict=True)]


def least_attended(scores: Sequence[np.ndarray], ignored: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """(target "image", kept "image" bool): the thing of lowest significance, and whether it is ignored enough.

    "Significantly ignored" (section 2.2) has no threshold in the paper; here, below `ignored` times the mean.
    """
    targets = np.array([int(s.argmin()) for s in scores])
    return targets, np.array([s.min() < ignored * s.mean() for s in scores])
