"""MEND: a network turns the gradient of an edit into the edit (Mitchell et al. 2022a, arXiv:2110.11309).

The gradient of a linear layer's weights is a sum over tokens of outer products delta u^T. MEND maps each pair (u,
delta), of unit length, to another pair, by a residual network of one hidden layer that starts as the identity; an edit
adds

    dW = -a sum_t w_t delta'_t u'_t^T,   w_t = |delta_t| / sum_s |delta_s|

to each edited matrix, a learned. Trained over edits of other things by EasyEdit's multimodal loss (its defaults:
c_edit = c_image = 0.1, c_loc = 1): L_edit + L_image-generality, and KL divergence to the base on what must stay.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.data.mmedit import EditCase, Question
from vlws.errors import InputError
from vlws.models.adapter import IGNORED, Adapter, Batch
from vlws.models.editing import EditedModel, Images, encode, step_loss
from vlws.models.memory import ffn_linears
from vlws.models.upper import lower_states, upper_logits

Factors = dict[str, tuple[Tensor, Tensor]]  # matrix -> u' "edit token in", delta' "edit token out"


@dataclass(frozen=True)
class MENDConfig:
    """layers: how many, from the last; width of the network; its training; weights of the three losses.

    >>> MENDConfig(layers=1, steps=2).width
    64
    """

    layers: int = 2
    width: int = 64
    lr: float = 1e-3
    steps: int = 400
    batch_size: int = 16
    edit: float = 0.1
    image: float = 0.1
    locality: float = 1.0
    first: float = 0.1  # a, where training starts
    seed: int = 0


class GradientMap(nn.Module):
    """(u, delta) -> (u', delta'): both to unit length, then a residual network of one hidden layer, zero at first.

    >>> u, delta = torch.randn(2, 5, 8), torch.randn(2, 5, 4)  # two edits of five tokens
    >>> new_u, new_delta = GradientMap(size_in=8, size_out=4, width=16, first=0.1)(u, delta)
    >>> torch.equal(new_u, F.normalize(u, dim=-1))  # untrained, only lengths change
    True
    >>> new_delta.norm(dim=-1).sum(1).allclose(torch.tensor(0.1))
    True
    """

    def __init__(self, size_in: int, size_out: int, width: int, first: float) -> None:
        super().__init__()
        self.size_in = size_in
        self.down, self.up = nn.Linear(size_in + size_out, width), nn.Linear(width, size_in + size_out)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.rate = nn.Parameter(torch.tensor(first).log())

    def forward(self, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        length = delta.norm(dim=-1, keepdim=True)  # edit token 1
        x = torch.cat([F.normalize(u, dim=-1), F.normalize(delta, dim=-1)], -1)
        x = x + self.up(F.relu(self.down(x)))
        weight = length / length.sum(1, keepdim=True).clamp(min=1e-20)
        return x[..., : self.size_in], -self.rate.exp() * weight * x[..., self.size_in :]


class MEND:
    """The editor; its networks, `maps`, are trained once by `fit`, on cases of other things than are edited.

    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> from vlws.models.families import load_mllm
    >>> cases = edit_cases.imagined(facts.make_world(seed=0), "training", n=2, seed=0)
    >>> mend = MEND(load_mllm("blip2-emoji", "cpu"), MENDConfig(layers=1, steps=2)).fit(cases)
    >>> len(mend.losses), mend.edit(["who is it?"], [[]], ["mira"]).edits
    (2, 1)
    """

    def __init__(self, adapter: Adapter, config: MENDConfig | None = None) -> None:
        self.adapter, self.config = adapter, config or MENDConfig()
        self.lowest = adapter.num_layers - self.config.layers
        self.linears = {
            f"{k}-{name}": linear
            for k in range(self.lowest, adapter.num_layers)
            for name, linear in ffn_linears(adapter.layers[k]).items()
        }
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            width, first = self.config.width, self.config.first
            maps = {n: GradientMap(m.in_features, m.out_features, width, first) for n, m in self.linears.items()}
            self.maps = nn.ModuleDict(maps).to(adapter.device)
        self.maps.requires_grad_(False)

    # --- an edit --------------------------------------------------------------------------------------------------

    def factors(self, states: dict[str, Tensor], labels: Tensor) -> Factors:
        """u' and delta' of each edited matrix, from the gradient of each edit's own loss.

        >>> from vlws.models.families import load_mllm
        >>> mend = MEND(load_mllm("blip2-emoji", "cpu"), MENDConfig(layers=1))
        >>> batch = encode(mend.adapter, ["who is it?"], [[]], ["mira"])
        >>> found = mend.factors(lower_states(mend.adapter, mend.lowest, batch), batch.labels)
        >>> {name: (u.shape[-1], delta.shape[-1]) for name, (u, delta) in found.items()}
        {'5-gate_proj': (96, 256), '5-up_proj': (96, 256), '5-down_proj': (256, 96)}
        """
        read: dict[str, tuple[Tensor, Tensor]] = {}

        def reads(name: str, x: Tensor, y: Tensor) -> None:
            read[name] = (x, y)

        with self._hooked(reads), torch.enable_grad():
            hidden = states["hidden"].detach().requires_grad_()
            loss = step_loss(upper_logits(self.adapter, self.lowest, states, hidden), labels).sum()
        gradients = torch.autograd.grad(loss, [y for _, y in read.values()])
        edits = len(labels)
        return {
            name: self.maps[name](_rows(x.detach(), edits), _rows(gradient, edits))
            for (name, (x, _)), gradient in zip(read.items(), gradients, strict=True)
        }

    @contextmanager
    def applied(self, factors: Sequence[Factors], edit: Tensor) -> Iterator[None]:
        """While open, row i runs with the matrices of the edit `edit[i]`.

        >>> from vlws.models.families import load_mllm
        >>> mend = MEND(load_mllm("blip2-emoji", "cpu"), MENDConfig(layers=1))
        >>> batch = encode(mend.adapter, ["who is it?"], [[]], ["mira"])
        >>> found = mend.factors(lower_states(mend.adapter, mend.lowest, batch), batch.labels)
        >>> with torch.no_grad(), mend.applied([found], torch.tensor([0])):
        ...     edited = mend.adapter.run(batch).loss
        >>> bool(edited < mend.adapter.run(batch).loss)  # a step along the gradient
        True
        """

        def changed(name: str, x: Tensor, y: Tensor) -> Tensor:
            for one in factors:
                u, delta = (part[edit] for part in one[name])
                weight = einsum(_rows(x, len(edit)), u, "row len d, row token d -> row len token")
                y = y + einsum(weight, delta, "row len token, row token d -> row len d").reshape(y.shape)
            return y

        with self._hooked(changed):
            yield

    @contextmanager
    def _hooked(self, act: Callable[[str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
        hooks = [
            linear.register_forward_hook(lambda module, args, out, name=name: act(name, args[0], out))
            for name, linear in self.linears.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> "Mended":
        """e independent edits, one gradient each."""
        return Mended(self, len(prompts)).edit(prompts, images, targets)

    # --- training ---------------------------------------------------------------------------------------------------

    def fit(self, cases: Sequence[EditCase]) -> "MEND":
        """Train the networks. Raises InputError for no cases."""
        if not cases:
            raise InputError("MEND was given no cases to train its networks on; one is the least.")
        config, adapter = self.config, self.adapter
        kinds = ("edit", "text_generality", "image_generality", "text_locality", "image_locality")
        read = {kind: self._lower([getattr(case, kind) for case in cases]) for kind in kinds}
        self.maps.requires_grad_(True)
        optimizer = torch.optim.Adam(self.maps.parameters(), lr=config.lr)
        generator = torch.Generator().manual_seed(config.seed)
        self.losses: list[float] = []
        for _ in range(config.steps):
            at = torch.randperm(len(cases), generator=generator)[: config.batch_size].to(adapter.device)
            now = {kind: ({k: v[at] for k, v in states.items()}, labels[at]) for kind, (states, labels) in read.items()}
            with self.applied([self.factors(*now["edit"])], torch.arange(len(at), device=adapter.device)):
                told = {kind: upper_logits(adapter, self.lowest, s, s["hidden"]) for kind, (s, _) in now.items()}
            nll = {kind: step_loss(told[kind], now[kind][1]).mean() for kind in kinds[:3]}
            loss = config.edit * (nll["edit"] + nll["text_generality"]) + config.image * nll["image_generality"]
            loss = loss + config.locality * sum(self._moved(told[kind], *now[kind]) for kind in kinds[3:])
            optimizer.zero_grad()
            loss.backward(inputs=list(self.maps.parameters()))
            nn.utils.clip_grad_norm_(self.maps.parameters(), 1.0)
            optimizer.step()
            self.losses.append(float(loss.detach()))
        self.maps.requires_grad_(False)
        return self

    @torch.no_grad()
    def _lower(self, questions: Sequence[Question]) -> tuple[dict[str, Tensor], Tensor]:
        batch = encode(
            self.adapter, [q.text for q in questions], [q.images for q in questions], [q.answer for q in questions]
        )
        return lower_states(self.adapter, self.lowest, batch), cast(Tensor, batch.labels)

    def _moved(self, after: Tensor, states: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Mean KL(base || edited) at the answers, in nats."""
        with torch.no_grad():
            before = upper_logits(self.adapter, self.lowest, states, states["hidden"])
        told = labels[:, 1:] != IGNORED
        old, new = (logits[:, :-1][told].log_softmax(-1) for logits in (before, after))
        return (old.exp() * (old - new)).sum(-1).mean()


class Mended(EditedModel):
    """Models whose last matrices have what the network made of the gradient of each edit.

    >>> from vlws.models.families import load_mllm
    >>> mend = MEND(load_mllm("blip2-emoji", "cpu"), MENDConfig(layers=1))
    >>> edited = Mended(mend, edits=1).edit(["who is it?"], [[]], ["mira"]).edit(["where is it?"], [[]], ["oslo"])
    >>> len(edited.factors), edited.added() > 0
    (2, True)
    >>> edited.rollback(2)
    >>> edited.factors, edited.added()
    ([], 0)
    """

    def __init__(self, method: MEND, edits: int) -> None:
        super().__init__(method.adapter, edits)
        self.method = method
        self.factors: list[Factors] = []

    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        """The factors of each edit, of a model that has the edits before."""
        batch = encode(self.adapter, prompts, images, targets)
        everyone = torch.arange(self.edits, device=self.adapter.device)
        with torch.no_grad(), self.method.applied(self.factors, everyone):
            states = lower_states(self.adapter, self.method.lowest, batch)
        with self.method.applied(self.factors, everyone):
            self.factors.append(self.method.factors(states, cast(Tensor, batch.labels)))

    def forget(self, edits: int) -> None:
        """The factors of the last edits go."""
        del self.factors[-edits:]

    def added(self) -> int:
        """Numbers of the factors: a model keeps no matrix."""
        return sum(part.numel() for one in self.factors for pair in one.values() for part in pair) // self.edits

    def running(self, batch: Batch, edit: Tensor) -> AbstractContextManager[None]:
        """The matrices of each row's edits, by `MEND.applied`."""
        return self.method.applied(self.factors, edit)


def _rows(x: Tensor, rows: int) -> Tensor:
    """ "row len dim" of what some models flatten to "(row len) dim"."""
    return x.reshape(rows, -1, x.shape[-1])
