"""LoRA on the last layers, tuned on the edit alone, by peft (Hu et al. 2022, arXiv:2106.09685).

EasyEdit's LoRA for multimodal models has r=8 and alpha=32 on the queries and values of all layers; here it stands on
the layers that UniKE edits, on their feed-forward networks too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from vlws.models.adapter import Adapter, Batch
from vlws.models.editing import ChangedWeights, Images, fit_answer
from vlws.models.memory import ffn_linears


@dataclass(frozen=True)
class LoraEditConfig:
    """layers: how many, from the last; r and alpha of LoRA; lr, steps of Adam; an edit is done below `stop` nats.

    >>> LoraEditConfig(layers=1, r=4)
    LoraEditConfig(layers=1, r=4, alpha=16, lr=0.01, steps=10, stop=0.05, seed=0)
    """

    layers: int = 2
    r: int = 8
    alpha: int = 16
    lr: float = 1e-2
    steps: int = 10
    stop: float = 0.05
    seed: int = 0


class LoraEditor:
    """The editor.

    >>> from vlws.models.families import load_mllm
    >>> editor = LoraEditor(load_mllm("blip2-emoji", "cpu"), LoraEditConfig(layers=1, r=4, steps=2))
    >>> edited = editor.edit(["who is it?"], [[]], ["mira"])
    >>> len(edited.places), len(edited.parameters)  # five matrices, A and B of each
    (5, 10)
    """

    def __init__(self, adapter: Adapter, config: LoraEditConfig | None = None) -> None:
        self.adapter, self.config = adapter, config or LoraEditConfig()

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> "LoraEdited":
        """e independent edits, one trained after the other."""
        return LoraEdited(self.adapter, self.config, len(prompts)).edit(prompts, images, targets)


class LoraEdited(ChangedWeights):
    """Models with a low-rank update each; peft's layers stand in the model only while it runs.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> edited = LoraEdited(adapter, LoraEditConfig(layers=1, steps=2), edits=1).edit(["who is it?"], [[]], ["mira"])
    >>> with edited.put_in(0):
    ...     print(isinstance(adapter.layers[-1].mlp.down_proj, LoraLayer))
    True
    >>> isinstance(adapter.layers[-1].mlp.down_proj, LoraLayer)
    False
    """

    def __init__(self, adapter: Adapter, config: LoraEditConfig, edits: int) -> None:
        self.config, self.lowest = config, adapter.num_layers - config.layers
        layers = list(adapter.layers)[self.lowest :]
        targets = [linear for layer in layers for linear in ffn_linears(layer).values()]
        targets += [getattr(layer.self_attn, name) for layer in layers for name in ("q_proj", "v_proj")]
        self.places = _wrapped(adapter.causal_lm, targets, config)
        tuned = {
            f"{i}.{name}": p
            for i, (_, _, wrapped, _) in enumerate(self.places)
            for name, p in wrapped.named_parameters()
            if "lora_" in name
        }
        super().__init__(adapter, edits, tuned)

    def fit(self, batch: Batch) -> None:
        """Adam on the answer's loss alone."""
        config = self.config
        fit_answer(
            self.adapter, self.lowest, batch, list(self.parameters.values()), config.lr, config.steps, config.stop
        )

    @contextmanager
    def put_in(self, i: int) -> Iterator[None]:
        """While open, peft's layers stand in the model, with the i-th update."""
        try:
            for parent, name, wrapped, _ in self.places:
                setattr(parent, name, wrapped)
            with super().put_in(i):
                yield
        finally:
            for parent, name, _, plain in self.places:
                setattr(parent, name, plain)


Place = tuple[nn.Module, str, nn.Module, nn.Module]  # parent, name in it, with LoRA, without


def _wrapped(model: nn.Module, targets: Sequence[nn.Module], config: LoraEditConfig) -> list[Place]:
    """peft's layers around the targets, taken out of the model again; flags of gradients stay as they were."""
    chosen = {id(target) for target in targets}
    names = [name for name, module in model.named_modules() if id(module) in chosen]
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        inject_adapter_in_model(LoraConfig(r=config.r, lora_alpha=config.alpha, target_modules=names), model)
    places: list[Place] = []
    for name in names:
        parent = model.get_submodule(name.rpartition(".")[0])
        wrapped = getattr(parent, name.rpartition(".")[2])
        plain = cast(LoraLayer, wrapped).get_base_layer()
        places.append((parent, name.rpartition(".")[2], wrapped, plain))
        setattr(parent, name.rpartition(".")[2], plain)
    for name, p in model.named_parameters():
        p.requires_grad_(flags[name])
    if hasattr(model, "peft_config"):
        del model.peft_config
    return places
