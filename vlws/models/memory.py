"""Memories beside a decoder's layer, written and erased without touching its weights.

`AddedPairs`: key-value pairs beside the feed-forward network, which is itself a memory of key-value pairs (Geva et al.,
EMNLP 2021): FFN(q) = Act(q W_K + b_K) W_V + b_V. `Bank`: states of other texts, which the layer's own attention reads.
Layers of OPT's kind (fc1, activation, fc2) and of Llama's (a gated mlp) are known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vlws.errors import InputError
from vlws.models.adapter import IGNORED, Adapter, Batch, ImageInput
from vlws_kernels import knn


class LayerParts(NamedTuple):
    """What of a decoder's layer is read: its attention, the norm before it, and its feed-forward network.

    `ffn_in` is the module that the network's input q enters, `ffn_out` the one whose output is FFN(q); one and the same
    where the network is one module.

    >>> from vlws.models.families import load_mllm
    >>> parts = layer_parts(load_mllm("blip2-emoji", "cpu").layers[-1])  # of Llama's kind
    >>> type(parts.attention).__name__, parts.gated, parts.ffn_in is parts.ffn_out
    ('LlamaAttention', True, True)
    """

    attention: nn.Module
    norm: nn.Module
    ffn_in: nn.Module
    ffn_out: nn.Module
    activation: Callable[[Tensor], Tensor]
    gated: bool


def layer_parts(layer: nn.Module) -> LayerParts:
    """The parts of a layer. Raises InputError for a layer of another kind than OPT's and Llama's.

    >>> from vlws.models.families import load_mllm
    >>> layer_parts(load_mllm("blip2-emoji", "cpu").layers[0]).norm
    LlamaRMSNorm((96,), eps=1e-06)
    >>> layer_parts(nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: A layer is a Linear; accepted are layers with fc1 and fc2 (OPT), or a gated mlp (Llama).
    """
    if hasattr(layer, "fc1") and hasattr(layer, "self_attn_layer_norm"):
        if not getattr(layer, "do_layer_norm_before", True):
            raise InputError(
                "The layers normalise after their attention (OPT-350m); accepted are those that do before."
            )
        norm = layer.self_attn_layer_norm
        return LayerParts(layer.self_attn, norm, layer.fc1, layer.fc2, layer.activation_fn, gated=False)
    mlp = getattr(layer, "mlp", None)
    if mlp is not None and hasattr(mlp, "gate_proj") and hasattr(layer, "input_layernorm"):
        return LayerParts(layer.self_attn, layer.input_layernorm, mlp, mlp, mlp.act_fn, gated=True)
    raise InputError(
        f"A layer is a {type(layer).__name__}; accepted are layers with fc1 and fc2 (OPT), or a gated mlp (Llama)."
    )


def ffn_linears(layer: nn.Module) -> dict[str, nn.Linear]:
    """The matrices of a layer's feed-forward network, by name: fc1, fc2; or gate_proj, up_proj, down_proj.

    Raises InputError as `layer_parts` does, and for matrices of another class than nn.Linear (quantised ones).

    >>> from vlws.models.families import load_mllm
    >>> linears = ffn_linears(load_mllm("blip2-emoji", "cpu").layers[-1])
    >>> {name: tuple(linear.weight.shape) for name, linear in linears.items()}
    {'gate_proj': (256, 96), 'up_proj': (256, 96), 'down_proj': (96, 256)}
    """
    parts = layer_parts(layer)
    names = ("gate_proj", "up_proj", "down_proj") if parts.gated else ("fc1", "fc2")
    found = {name: getattr(parts.ffn_in if parts.gated else layer, name) for name in names}
    for name, linear in found.items():
        if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
            raise InputError(f"{name} is a {type(linear).__name__}; accepted are models that are not quantised.")
    return found


# --- key-value pairs beside the feed-forward network ------------------------------------------------------------------


class AddedPairs(nn.Module):
    """n key-value pairs for each of e independent edits: o_x = Act(q K + b), added to FFN(q): o_x (V + shift).

    A gated network (Llama) has o_x = Act(q K + b) * (q U + c). Values start at zero, so that nothing changes until they
    are trained; keys start small and at random, alike in all edits.

    Args:
        edits, dim, pairs: e, the width of the layer, n.
        gated, activation: of the layer's own network (`layer_parts`).
        generator: of the keys.

    >>> pairs = AddedPairs(edits=2, dim=8, pairs=3, activation=F.silu, gated=True)
    >>> q, edit = torch.randn(4, 5, 8), torch.tensor([0, 0, 1, 1])  # two rows of each edit
    >>> pairs.weights(q, edit).shape  # "row len pair"
    torch.Size([4, 5, 3])
    >>> bool((pairs(q, edit) == 0).all())  # untrained, they add nothing
    True
    """

    def __init__(
        self,
        edits: int,
        dim: int,
        pairs: int,
        activation: Callable[[Tensor], Tensor],
        gated: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()

        def small(edits: int, *shape: int) -> nn.Parameter:
            return nn.Parameter((0.02 * torch.randn(*shape, generator=generator)).repeat(edits, 1, 1))

        self.keys = small(edits, dim, pairs)
        self.bias = nn.Parameter(torch.zeros(edits, pairs))
        self.values = nn.Parameter(torch.zeros(edits, pairs, dim))
        self.up = small(edits, dim, pairs) if gated else None
        self.up_bias = nn.Parameter(torch.ones(edits, pairs)) if gated else None
        self.activation = activation

    def weights(self, q: Tensor, edit: Tensor) -> Tensor:
        """o_x "row len pair" of q "row len dim"; row i belongs to the edit `edit[i]`."""
        found = einsum(q, self.keys[edit], "row len dim, row dim pair -> row len pair") + self.bias[edit][:, None]
        found = self.activation(found)
        if self.up is not None and self.up_bias is not None:
            up = einsum(q, self.up[edit], "row len dim, row dim pair -> row len pair") + self.up_bias[edit][:, None]
            found = found * up
        return found

    def forward(self, q: Tensor, edit: Tensor, shift: Tensor | None = None) -> Tensor:
        """What is added to FFN(q), "row len dim"; `shift`, "dim" or "edit dim", is added to every value."""
        values = self.values if shift is None else self.values + shift[..., None, :]
        values = values[edit]
        return einsum(self.weights(q, edit), values, "row len pair, row pair dim -> row len dim")


# --- states that attention reads --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bank:
    """m states of a layer, each with the state by which it is found.

    sem: "m dim", at the last token of a question. pos: "m dim", at a token of its true answer. Of a question with
    several answer tokens, `sem` stands once for each.

    >>> bank = Bank(sem=torch.eye(3), pos=10 * torch.eye(3))
    >>> states, cosines = bank.search(torch.tensor([[0.0, 2.0, 0.0]]), k=1)
    >>> states.tolist(), cosines.tolist()
    ([[[0.0, 10.0, 0.0]]], [[1.0]])
    >>> len(bank + bank)
    6
    """

    sem: Tensor
    pos: Tensor

    def __len__(self) -> int:
        return len(self.sem)

    def __add__(self, other: "Bank") -> "Bank":
        return Bank(torch.cat([self.sem, other.sem]), torch.cat([self.pos, other.pos]))

    def search(self, query: Tensor, k: int, own: "Own | None" = None) -> tuple[Tensor, Tensor]:
        """The k rows of largest cosine(query, sem) for each query "row dim", the most similar first.

        own: rows that a single query may find beside the bank's, and that compete with them.
        Returns pos "row k dim" and the cosines "row k"; -inf where a query finds fewer than k rows.
        """
        found: list[Tensor] = []
        cosines: list[Tensor] = []
        if len(self):
            unit = F.normalize(self.sem.float(), dim=-1)
            _, at = knn(F.normalize(query.detach().float(), dim=-1), unit, min(k, len(self)))
            found.append(self.pos[at])
            cosines.append(F.cosine_similarity(query[:, None].float(), self.sem[at].float(), dim=-1))
        if own is not None:
            found.append(own.pos)
            cosine = F.cosine_similarity(query[:, None].float(), own.sem.float(), dim=-1)
            cosines.append(cosine.masked_fill(~own.real, -torch.inf))
        if not found:
            raise InputError("The memory is empty, and the edit has no row of its own; one of the two is needed.")
        cosine, order = torch.cat(cosines, 1).sort(dim=1, descending=True, stable=True)
        states = torch.cat(found, 1)
        return states.gather(1, order[:, :k, None].expand(-1, -1, states.shape[-1])), cosine[:, :k]


class Own(NamedTuple):
    """Rows that only one edit may find: sem, pos "edit n dim"; real "edit n" bool, False where an edit has fewer.

    >>> own = own_rows([Bank(torch.eye(2), torch.eye(2)), Bank(torch.ones(1, 2), torch.ones(1, 2))])
    >>> own.real.tolist()  # the second edit has one row
    [[True, True], [True, False]]
    >>> own.of(torch.tensor([1, 1, 0])).pos.shape  # three questions, two of the second edit
    torch.Size([3, 2, 2])
    """

    sem: Tensor
    pos: Tensor
    real: Tensor

    def of(self, edit: Tensor) -> "Own":
        """The rows of each row's edit."""
        return Own(*(part[edit] for part in self))

    def nearest(self, query: Tensor) -> Tensor:
        """The largest cosine of each query "row dim" to the rows that it may find, "row".

        >>> own = own_rows([Bank(torch.eye(2), torch.eye(2)), Bank(-torch.eye(2)[:1], torch.ones(1, 2))])
        >>> own.nearest(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))  # one query an edit; the second has one row
        tensor([ 0.8000, -0.6000])
        """
        cosine = F.cosine_similarity(query[:, None].float(), self.sem.float(), dim=-1)
        return cosine.masked_fill(~self.real, -torch.inf).amax(1)


def own_rows(banks: Sequence[Bank]) -> Own:
    """The rows of each edit, padded to the longest.

    >>> own = own_rows([Bank(torch.eye(2), torch.eye(2)), Bank(torch.ones(1, 2), torch.ones(1, 2))])
    >>> own.pos.tolist()
    [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]]
    """
    real = [torch.ones(len(bank), dtype=torch.bool, device=bank.sem.device) for bank in banks]
    return Own(
        *(pad_sequence(list(p), batch_first=True) for p in ([b.sem for b in banks], [b.pos for b in banks], real))
    )


def attend(parts: LayerParts, x: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's own attention from x to a memory, with its projections, without mask and without positions.

    Args:
        x: residual states "row len dim". memory: states of the same layer, "row k dim". Both are normalised here.
        bias: "row k", added to the logits.

    Returns "row len dim", as the layer's attention does.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> x, memory = torch.randn(2, 5, adapter.hidden_size), torch.randn(2, 40, adapter.hidden_size)
    >>> attend(layer_parts(adapter.layers[-1]), x, memory).shape == x.shape
    True
    """
    attention = parts.attention
    q, kv = parts.norm(x), parts.norm(memory)
    queries, keys, values = (
        rearrange(projection(of), "row len (head d) -> row head len d", d=attention.head_dim)
        for projection, of in ((attention.q_proj, q), (attention.k_proj, kv), (attention.v_proj, kv))
    )
    groups = queries.shape[1] // keys.shape[1]  # heads that share keys and values
    keys, values = (repeat(t, "row head k d -> row (head group) k d", group=groups) for t in (keys, values))
    logits = einsum(queries, keys, "row head len d, row head k d -> row head len k") * attention.head_dim**-0.5
    if bias is not None:
        logits = logits + bias[:, None, None]
    read = einsum(logits.softmax(-1), values, "row head len k, row head k d -> row head len d")
    out = attention.out_proj if hasattr(attention, "out_proj") else attention.o_proj
    return out(rearrange(read, "row head len d -> row len (head d)"))


# --- states of a model, and where its questions end -------------------------------------------------------------------


def layer_states(
    adapter: Adapter,
    layers: Sequence[int],
    prompts: Sequence[str],
    images: Sequence[Sequence[ImageInput]],
    answers: Sequence[str],
    chunk: int = 64,
) -> dict[int, list[Bank]]:
    """layer -> for each question its rows of a bank: the state of t_q, and of every token of the answer, the end's too.

    States are what enters the layer, from the unedited model.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> rows = layer_states(adapter, [4, 5], ["what is this?", "who is it?"], [[], []], [" a lion", " a cat"])
    >>> list(rows), len(rows[5]), rows[5][0].pos.shape
    ([4, 5], 2, torch.Size([7, 96]))
    """
    rows: dict[int, list[Bank]] = {layer: [] for layer in layers}
    for start in range(0, len(prompts), chunk):
        part = slice(start, start + chunk)
        batch = adapter.encode(prompts[part], images[part], answers=answers[part]).to(adapter.device)
        with torch.no_grad():
            states = cast(tuple, adapter.run(batch, output_hidden_states=True).hidden_states)
        answered = cast(Tensor, batch.labels) != IGNORED
        for i, last in enumerate(question_ends(batch).tolist()):
            for layer in layers:
                pos = states[layer][i][answered[i]]
                rows[layer].append(Bank(states[layer][i, last].expand_as(pos), pos))
    return rows


def question_states(
    adapter: Adapter, prompts: Sequence[str], images: Sequence[Sequence[ImageInput]], layer: int | None = None
) -> Tensor:
    """By what a question is found, "question dim" float32 of unit length: t_q in front of a layer, half way up.

    >>> from vlws.models.families import load_mllm
    >>> states = question_states(load_mllm("blip2-emoji", "cpu"), ["what is this?", "who is it?"], [[], []])
    >>> states.shape, states.norm(dim=1).round(decimals=3).tolist()
    (torch.Size([2, 96]), [1.0, 1.0])
    """
    at = adapter.num_layers // 2 if layer is None else layer
    if not prompts:
        return torch.zeros(0, adapter.hidden_size, device=adapter.device)
    found = layer_states(adapter, [at], prompts, images, [" ?"] * len(prompts))[at]
    return F.normalize(torch.stack([bank.sem[0] for bank in found]).float(), dim=-1)


def question_ends(batch: Batch) -> Tensor:
    """t_q "row": the last token before the answer; without answers, the last token.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> batch = adapter.encode(["what is this?", "what colour is the cat?"], [[], []], answers=[" a lion", " red"])
    >>> [adapter.tokenizer.decode(ids[end]) for ids, end in zip(batch.input_ids, question_ends(batch))]
    ['?', '?']
    """
    if batch.labels is not None:
        return (batch.labels != IGNORED).int().argmax(1) - 1
    places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    return (places * batch.attention_mask).argmax(1)


def value_matrix(layer: nn.Module) -> Tensor:
    """The layer's own W_V, "dim memory": one column a value.

    >>> from vlws.models.families import load_mllm
    >>> layer = load_mllm("blip2-emoji", "cpu").layers[-1]
    >>> torch.equal(value_matrix(layer), layer.mlp.down_proj.weight)
    True
    """
    out = layer_parts(layer).ffn_out
    return cast(Tensor, getattr(out, "down_proj", out).weight).detach().float()
