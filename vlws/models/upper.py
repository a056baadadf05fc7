"""The upper layers of a language model alone, so that what is frozen below is computed once for a whole training."""

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from vlws.errors import InputError
from vlws.models.adapter import IGNORED, Adapter, Batch

LOWER = ("hidden", "attention_mask", "positions")


def lower_states(adapter: Adapter, layer: int, batch: Batch) -> dict[str, Tensor]:
    """What the layers from `layer` on read: hidden "batch len hidden", attention_mask, positions "batch len".

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("llava-emoji", "cpu")
    >>> states = lower_states(adapter, 1, adapter.encode(["a red cat"], [[]]))
    >>> states["hidden"].shape[2] == adapter.hidden_size, states["positions"].tolist()
    (True, [[0, 1, 2, 3]])
    """
    return {
        "hidden": adapter.hidden(batch, layer),
        "attention_mask": batch.attention_mask,
        "positions": adapter.positions(batch),
    }


def check_cut(adapter: Adapter, layer: int, batch: Batch) -> None:
    """InputError unless the upper layers, run alone, give the model's own logits of a batch.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> check_cut(adapter, 1, adapter.encode(["a red cat"], [[]]))
    """
    states = lower_states(adapter, layer, batch)
    whole = cast(Tensor, adapter.run(batch).logits)
    if not torch.allclose(upper_logits(adapter, layer, states, states["hidden"]), whole, atol=1e-2, rtol=1e-2):
        raise InputError(
            f"{type(adapter.model).__name__} over {type(adapter.causal_lm).__name__} cannot be cut in two; train it "
            "through run()."
        )


def upper_logits(
    adapter: Adapter, layer: int, states: Mapping[str, Tensor], hidden: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Logits "sample len vocab" from what enters `layer`, "sample len hidden"; "kept vocab" with `keep`.

    Args:
        states: attention_mask and positions (`Adapter.positions`), "sample len".
        keep: "sample len-1" bool: the tokens, all but the last, whose logits are asked for.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("llava-emoji", "cpu")
    >>> batch = adapter.encode(["a red cat"], [[]])
    >>> with torch.no_grad():
    ...     states = lower_states(adapter, 1, batch)
    ...     logits = upper_logits(adapter, 1, states, states["hidden"])
    ...     print(torch.allclose(logits, adapter.run(batch).logits, atol=1e-5))
    True
    """
    out = upper_layers(adapter.decoder, layer)(
        inputs_embeds=hidden,
        attention_mask=states["attention_mask"],
        position_ids=states["positions"],
        use_cache=False,
    ).last_hidden_state
    return adapter.lm_head(out if keep is None else out[:, :-1][keep])


def upper_layers(decoder: PreTrainedModel, layer: int) -> PreTrainedModel:
    """The decoder from `layer` on, sharing all weights; it takes hidden states for embeddings.

    >>> from vlws.models.families import load_mllm
    >>> decoder = load_mllm("llava-emoji", "cpu").decoder
    >>> upper = upper_layers(decoder, 1)
    >>> len(decoder.layers) - len(upper.layers), upper.layers[0] is decoder.layers[1]
    (1, True)
    """
    upper = copy.copy(decoder)
    upper._modules = dict(decoder._modules)
    upper._modules["layers"] = cast(nn.ModuleList, decoder.layers)[layer:]
    if "embed_positions" in upper._modules:  # OPT adds learned positions in front of its layers
        upper._modules["embed_positions"] = _NoPositions()
    return upper


class _NoPositions(nn.Module):
    def forward(self, *args, **kwargs) -> Tensor:
        return torch.zeros(())


def joined_states(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """States of chunks of samples as one, padded to the longest.

    Lengths stand in dimension 1 (of `hidden`, `attention_mask`, `labels`, `positions`), those of an instruction
    (`qformer_...`) in dimension 2; of any other state all chunks have one shape.

    >>> short, long = {"hidden": torch.ones(1, 3, 8)}, {"hidden": torch.ones(2, 5, 8)}
    >>> joined_states([short, long])["hidden"].shape
    torch.Size([3, 5, 8])
    """
    return {name: _padded(name, [part[name] for part in parts]) for name in parts[0]}


def _padded(name: str, parts: list[Tensor]) -> Tensor:
    dim = 2 if name.startswith("qformer_") else 1 if name in (*LOWER, "labels") else None
    if dim is None:
        return torch.cat(parts)
    length = max(part.shape[dim] for part in parts)
    after = [[0, 0] * (part.ndim - 1 - dim) + [0, length - part.shape[dim]] for part in parts]
    value = IGNORED if name == "labels" else 0
    return torch.cat([F.pad(part, pad, value=value) for part, pad in zip(parts, after, strict=True)])
