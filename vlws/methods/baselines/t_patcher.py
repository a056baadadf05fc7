"""T-Patcher: key-value pairs added to the last layer, trained by three losses (Huang et al. 2023, arXiv:2301.09785).

    l = l_edit + a l_act + m l_mem

l_act lets a patch fire at the edit, l_mem keeps it silent at questions of others (a memory of past queries, from the
training role). The intrinsic half of UniKE is this without l_act and l_mem, in more layers than one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vlws.data.mmedit import EditCase
from vlws.models.adapter import IGNORED, Adapter, Batch
from vlws.models.editing import EditedModel, Images, encode, step_loss
from vlws.models.memory import AddedPairs, layer_parts
from vlws.models.upper import lower_states, upper_logits


@dataclass(frozen=True)
class TPatcherConfig:
    """pairs: added to the last layer; activation, memory: a and m above; lr, steps of Adam; stop in nats.

    >>> TPatcherConfig(activation=0.1, memory=1.0).pairs
    10
    """

    pairs: int = 10
    activation: float = 0.0
    memory: float = 0.0
    lr: float = 1e-2
    steps: int = 10
    stop: float = 0.05
    seed: int = 0


class TPatcher:
    """The editor. `others`: cases whose edits are questions at which patches are to stay silent.

    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> from vlws.models.families import load_mllm
    >>> others = edit_cases.imagined(facts.make_world(seed=0), "training", n=2, seed=0)
    >>> editor = TPatcher(load_mllm("blip2-emoji", "cpu"), TPatcherConfig(memory=1.0, steps=2), others)
    >>> edited = editor.edit(["who is it?"], [[]], ["mira"])
    >>> with editor.reading() as read:
    ...     _ = edited.answer(["who is it?"], [[]], max_new_tokens=1)
    >>> editor.silent.shape[1] == read[0].shape[-1] == editor.adapter.hidden_size
    True
    """

    def __init__(self, adapter: Adapter, config: TPatcherConfig | None = None, others: Sequence[EditCase] = ()) -> None:
        self.adapter, self.config = adapter, config or TPatcherConfig()
        self.layer = adapter.num_layers - 1
        self.parts = layer_parts(adapter.layers[self.layer])
        self.silent = self._queries([case.edit for case in others])

    def _queries(self, questions) -> Tensor:
        """What enters the last feed-forward network at the answers of questions, "token dim"."""
        if not questions:
            return torch.zeros(0, self.adapter.hidden_size, device=self.adapter.device)
        batch = encode(
            self.adapter, [q.text for q in questions], [q.images for q in questions], [q.answer for q in questions]
        )
        with self.reading() as read, torch.no_grad():
            self.adapter.run(batch)
        return read[0].reshape(*batch.input_ids.shape, -1)[_told_at(batch)]

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """What enters the feed-forward network, each time that it runs."""
        read: list[Tensor] = []
        hook = self.parts.ffn_in.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        try:
            yield read
        finally:
            hook.remove()

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> "Patched":
        """e independent edits, trained in one batch and each as if alone."""
        return Patched(self, len(prompts)).edit(prompts, images, targets)


class Patched(EditedModel):
    """Models with patches in their last layer.

    >>> from vlws.models.families import load_mllm
    >>> editor = TPatcher(load_mllm("blip2-emoji", "cpu"), TPatcherConfig(pairs=4, steps=2))
    >>> edited = Patched(editor, edits=1).edit(["who is it?"], [[]], ["mira"])
    >>> edited.blocks[0].keys.shape, edited.added()
    (torch.Size([1, 96, 4]), 1160)
    >>> edited.rollback()
    >>> edited.blocks
    []
    """

    def __init__(self, method: TPatcher, edits: int) -> None:
        super().__init__(method.adapter, edits)
        self.method = method
        self.blocks: list[AddedPairs] = []

    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        """Pairs for one edit more, trained by the three losses; an edit below `stop` stays as it is."""
        method, config, adapter = self.method, self.method.config, self.adapter
        batch = encode(adapter, prompts, images, targets)
        generator = torch.Generator().manual_seed(config.seed + len(self.blocks))
        size = (self.edits, adapter.hidden_size, config.pairs)
        pairs = AddedPairs(*size, method.parts.activation, method.parts.gated, generator).to(adapter.device)
        self.blocks.append(pairs)
        parameters = list(pairs.parameters())
        optimizer = torch.optim.Adam(parameters, lr=config.lr)
        with torch.no_grad():
            states = lower_states(adapter, method.layer, batch)
        everyone = torch.arange(self.edits, device=adapter.device)
        for _ in range(config.steps):
            with self.running(batch, everyone), method.reading() as read:
                logits = upper_logits(adapter, method.layer, states, states["hidden"])
            loss = step_loss(logits, cast(Tensor, batch.labels))
            done = loss.detach() < config.stop
            if done.all():
                break
            loss = loss + self._patch_losses(pairs, read[0].reshape(*batch.input_ids.shape, -1), batch)
            before = [p.detach()[done].clone() for p in parameters]
            for p, gradient in zip(parameters, torch.autograd.grad(loss.sum(), parameters), strict=True):
                p.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for p, kept in zip(parameters, before, strict=True):
                    p[done] = kept

    def _patch_losses(self, pairs: AddedPairs, q: Tensor, batch: Batch) -> Tensor:
        """a l_act + m l_mem, "edit": exp(-largest weight) at each answer's token; the mean weight at silent queries."""
        config, silent = self.method.config, self.method.silent
        everyone = torch.arange(self.edits, device=q.device)
        told = _told_at(batch)
        fires = pairs.weights(q, everyone).amax(-1)  # edit len
        loss = config.activation * (torch.exp(-fires) * told).sum(1) / told.sum(1)
        if config.memory and len(silent):
            at_others = pairs.weights(silent.expand(self.edits, -1, -1), everyone)  # edit token pair
            loss = loss + config.memory * at_others.clamp(min=0).mean((1, 2))
        return loss

    def forget(self, edits: int) -> None:
        """The pairs of the last edits go."""
        del self.blocks[-edits:]

    def added(self) -> int:
        """Numbers of the pairs."""
        return sum(p.numel() for pairs in self.blocks for p in pairs.parameters()) // self.edits

    @contextmanager
    def running(self, batch: Batch, edit: Tensor) -> Iterator[None]:
        """Hooks on the last feed-forward network that add every pair's output."""
        parts, kept = self.method.parts, {}

        def asked(module: nn.Module, args: tuple) -> None:
            kept["q"] = args[0].reshape(len(edit), -1, args[0].shape[-1])

        def recalled(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            for pairs in self.blocks:
                output = output + pairs(kept["q"], edit).reshape(output.shape).to(output.dtype)
            return output

        hooks = [parts.ffn_in.register_forward_pre_hook(asked), parts.ffn_out.register_forward_hook(recalled)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _told_at(batch: Batch) -> Tensor:
    """ "row len" bool: positions whose logits tell a token of the answer."""
    labels = cast(Tensor, batch.labels)
    return torch.cat([labels[:, 1:] != IGNORED, torch.zeros_like(labels[:, :1], dtype=torch.bool)], 1)
