"""The layers of a text encoder one by one: some of them alone, on states that were computed before."""

from typing import Any

import torch
from torch import Tensor, nn

from vlws.errors import InputError

ACCEPTED = "accepted are encoders of BERT's, MPNet's and T5's classes"


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of a BERT, an MPNet or a T5 encoder, in order.

    Raises:
        InputError: a model of another kind.

    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    >>> config = BertConfig(vocab_size=9, **sizes)
    >>> len(layers_of(BertModel(config)))
    3
    """
    encoder = getattr(model, "encoder", None)
    for name in ("layer", "block"):
        if isinstance(found := getattr(encoder, name, None), nn.ModuleList):
            return found
    raise InputError(f"The encoder is a {type(model).__name__}; {ACCEPTED}.")


def state_before(model: nn.Module, layer: int, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(what enters a layer, what the model ends in), each "row len dim", of one pass.

    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    >>> config = BertConfig(vocab_size=9, **sizes)
    >>> entering, last = state_before(BertModel(config), 1, input_ids=torch.ones(2, 5, dtype=torch.long))
    >>> entering.shape, last.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 5, 8]))
    """
    seen: list[Tensor] = []
    hook = layers_of(model)[layer].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        last = model(**inputs).last_hidden_state
    finally:
        hook.remove()
    return seen[0], last


def run_layers(model: nn.Module, layers: nn.ModuleList, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Run the last layers of an encoder, or copies of them, on what enters them: "row len dim" -> "row len dim".

    Args:
        model: whose layers they are, or were copied from; relative positions and a last norm are taken from it.
        layers: to run, in order; the last of them is (a copy of) the model's last.
        attention_mask: "row len", 1 for tokens.

    Raises:
        InputError: a model of another kind.

    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    >>> config = BertConfig(vocab_size=9, **sizes)
    >>> model, mask = BertModel(config).eval(), torch.ones(2, 5, dtype=torch.long)
    >>> entering, last = state_before(model, 1, input_ids=mask, attention_mask=mask)
    >>> torch.allclose(run_layers(model, layers_of(model)[1:], entering, mask), last, atol=1e-6)
    True
    """
    least = torch.finfo(hidden.dtype).min
    mask = (1.0 - attention_mask[:, None, None].to(hidden.dtype)) * least  # row 1 1 len, added to attention scores
    encoder: Any = model.encoder
    if hasattr(encoder, "block"):  # T5: the first layer of all holds the table of relative positions
        bias = encoder.block[0].layer[0].SelfAttention.compute_bias(hidden.shape[1], hidden.shape[1])
        for layer in layers:
            hidden = layer(hidden, mask, bias.to(hidden.device))[0]
        return encoder.final_layer_norm(hidden)
    extra = (encoder.compute_position_bias(hidden),) if hasattr(encoder, "compute_position_bias") else ()  # MPNet
    for layer in layers:
        found = layer(hidden, mask, *extra)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden
