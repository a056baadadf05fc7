"""What every method of knowledge editing has in common: edit, answer, take back.

    edited = editor.edit(["<image> who made this?"], [[picture]], ["mira"])
    edited.answer(["<image> whose work is this?"], [[picture]])
    edited.rollback()

Methods are scored by `vlws.models.editing_scores`, all by one code path.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.errors import InputError
from vlws.models.adapter import IGNORED, Adapter, Batch, ImageInput
from vlws.models.upper import lower_states, upper_logits

Images = Sequence[Sequence[ImageInput]]


NEW_FACT = "new fact: {question} {answer}. "  # a fact in the text before a question, as blip2-facts has met it


def fact_text(template: str, question: str, answer: str) -> str:
    """A fact as a text, without its picture.

    >>> fact_text(NEW_FACT, "<image> who made this?", "mira")
    'new fact: who made this? mira. '
    """
    return template.format(question=question.replace("<image>", "").strip(), answer=answer.strip())


class Told(NamedTuple):
    """Logits "row len vocab", labels "row len" (-100 but on answers), and the rows' mask "row len".

    >>> from vlws.models.families import load_mllm
    >>> told = Unedited(load_mllm("blip2-emoji", "cpu"), 1).logits(["what is this?"], [[]], ["a lion"])
    >>> told.logits.shape[:2] == told.labels.shape == told.mask.shape
    True
    """

    logits: Tensor
    labels: Tensor
    mask: Tensor


class EditedModel(ABC):
    """`edits` models side by side, each with edits of its own; row i of a batch is answered by the one `edit[i]` names.

    A further call of `edit` teaches each one fact more, in sequence. The base model is as it was outside of `running`.

    >>> from vlws.models.families import load_mllm
    >>> class InText(EditedModel):  # a method is what it does in these
    ...     def teach(self, prompts, images, targets): ...
    ...     def forget(self, edits): ...
    ...     def asked(self, prompts, images, edit):
    ...         return [fact_text(NEW_FACT, *self.taught[-1][i]) + p for i, p in zip(edit.tolist(), prompts)]
    >>> edited = InText(load_mllm("blip2-emoji", "cpu"), edits=2).edit(["who is it?"] * 2, [[], []], ["mira", "tom"])
    >>> edited.asked(["whose is it?"], [[]], edit=torch.tensor([1]))  # as the second model reads it
    ['new fact: who is it? tom. whose is it?']
    >>> len(edited.answer(["whose is it?"], [[]], max_new_tokens=2))
    1
    >>> edited.rollback()
    >>> edited.taught
    []
    """

    def __init__(self, adapter: Adapter, edits: int) -> None:
        self.adapter, self.edits = adapter, edits
        self.taught: list[list[tuple[str, str]]] = []  # of each call of `edit`: question and answer of each model

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> Self:
        """One edit more for each of the models.

        Raises:
            InputError: another number of edits than of models, an empty target, what `Adapter.encode` refuses.
        """
        if not len(prompts) == len(images) == len(targets) == self.edits:
            raise InputError(
                f"{len(prompts)} prompts, {len(images)} lists of pictures and {len(targets)} targets were given to "
                f"{self.edits} edited models; each takes one of each at a time."
            )
        if empty := [i for i, target in enumerate(targets) if not target.strip()]:
            raise InputError(f"The target of edit {empty[0]} is empty; accepted is an answer of a word or more.")
        self.teach(prompts, images, targets)
        self.taught.append(list(zip(prompts, targets, strict=True)))
        return self

    def rollback(self, edits: int = 1) -> None:
        """Take back the last edits. Raises InputError where there are fewer."""
        if not 1 <= edits <= len(self.taught):
            raise InputError(f"{edits} edits were to be taken back; there are {len(self.taught)}.")
        del self.taught[-edits:]
        self.forget(edits)

    @abstractmethod
    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        """What a method does in `edit`, after its checks."""

    @abstractmethod
    def forget(self, edits: int) -> None:
        """What a method does in `rollback`."""

    def running(self, batch: Batch, edit: Tensor) -> AbstractContextManager:
        """While open, the adapter's model is the edited one, for the rows of this batch.

        >>> from vlws.models.families import load_mllm
        >>> edited = Unedited(load_mllm("blip2-emoji", "cpu"), 1)
        >>> batch = encode(edited.adapter, ["what is this?"], [[]], ["a lion"])
        >>> with torch.no_grad(), edited.running(batch, torch.tensor([0])):
        ...     logits = edited.adapter.run(batch).logits
        >>> torch.equal(logits, edited.run(batch))
        True
        """
        return nullcontext()

    def asked(self, prompts: Sequence[str], images: Images, edit: Tensor) -> Sequence[str]:
        """The prompts as the model is to read them."""
        return prompts

    def added(self) -> int:
        """How many numbers a model holds beside the base's, on average.

        >>> from vlws.models.families import load_mllm
        >>> Unedited(load_mllm("blip2-emoji", "cpu"), 1).added()
        0
        """
        return 0

    @torch.no_grad()
    def logits(
        self, prompts: Sequence[str], images: Images, answers: Sequence[str], edit: Tensor | None = None
    ) -> Told:
        """Teacher-forced logits; row i is of the model `edit[i]`, of the first unless given.

        >>> from vlws.models.families import load_mllm
        >>> edited = Unedited(load_mllm("blip2-emoji", "cpu"), edits=2)
        >>> told = edited.logits(["what is this?"] * 2, [[], []], ["a lion", "a cat"], edit=torch.tensor([1, 0]))
        >>> step_loss(told.logits, told.labels).shape
        torch.Size([2])
        """
        edit = self._of(prompts, edit)
        batch = encode(self.adapter, self.asked(prompts, images, edit), images, answers)
        return Told(self.run(batch, edit), cast(Tensor, batch.labels), batch.attention_mask)

    @torch.no_grad()
    def run(self, batch: Batch, edit: Tensor | None = None) -> Tensor:
        """Logits "row len vocab" of a batch as `Adapter.encode` gives it.

        >>> from vlws.models.families import load_mllm
        >>> adapter = load_mllm("blip2-emoji", "cpu")
        >>> batch = encode(adapter, ["what is this?"], [[]], ["a lion"])
        >>> Unedited(adapter, 1).run(batch).shape == (*batch.input_ids.shape, len(adapter.tokenizer))
        True
        """
        batch = batch.to(self.adapter.device)
        with self.running(batch, self._of(batch.input_ids, edit)):
            return cast(Tensor, self.adapter.run(batch).logits)

    def answer(
        self, prompts: Sequence[str], images: Images, max_new_tokens: int = 16, edit: Tensor | None = None
    ) -> list[str]:
        """What the edited models say, greedily."""
        edit = self._of(prompts, edit)
        asked = self.asked(prompts, images, edit)
        batch = self.adapter.encode(asked, images, padding_side="left").to(self.adapter.device)
        with self.running(batch, edit):
            return [text.strip() for text in self.adapter.generate(batch, max_new_tokens)]

    def _of(self, prompts: Sequence[str] | Tensor, edit: Tensor | None) -> Tensor:
        given = torch.zeros(len(prompts), dtype=torch.long) if edit is None else edit
        if len(given) != len(prompts) or not 0 <= int(given.min()) <= int(given.max()) < self.edits:
            raise InputError(
                f"edit has {len(given)} numbers up to {int(given.max())} for {len(prompts)} prompts; accepted is one "
                f"of 0 to {self.edits - 1} for each."
            )
        return given.to(self.adapter.device)


class Unedited(EditedModel):
    """The base model, through the same door.

    >>> from vlws.models.families import load_mllm
    >>> edited = Unedited(load_mllm("blip2-emoji", "cpu"), 1)
    >>> before = edited.answer(["what is this?"], [[]], max_new_tokens=2)
    >>> edited.edit(["what is this?"], [[]], ["a lion"]).answer(["what is this?"], [[]], max_new_tokens=2) == before
    True
    """

    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        """Nothing."""
        return None

    def forget(self, edits: int) -> None:
        """Nothing."""
        return None


class Editor(Protocol):
    """A method, ready to edit copies of one base model.

    >>> from vlws.models.families import load_mllm
    >>> class Nothing:  # the least that is an editor
    ...     def __init__(self, adapter):
    ...         self.adapter = adapter
    ...     def edit(self, prompts, images, targets):
    ...         return Unedited(self.adapter, len(prompts)).edit(prompts, images, targets)
    >>> editor: Editor = Nothing(load_mllm("blip2-emoji", "cpu"))
    >>> editor.edit(["who is it?"] * 2, [[], []], ["mira", "tom"]).edits
    2
    """

    adapter: Adapter

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> EditedModel:
        """e independent edits, each as if alone."""
        ...


def encode(adapter: Adapter, prompts: Sequence[str], images: Images, answers: Sequence[str]) -> Batch:
    """Prompts with answers, a space before each answer, on the model's device.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> batch = encode(adapter, ["what is this?"], [[]], ["red"])
    >>> adapter.tokenizer.decode(batch.labels[batch.labels != IGNORED])
    ' red</s>'
    """
    return adapter.encode(prompts, images, answers=[f" {answer.strip()}" for answer in answers]).to(adapter.device)


# --- methods that change weights --------------------------------------------------------------------------------------


class ChangedWeights(EditedModel):
    """Edited models that differ from the base in the values of some parameters, put in while their rows run.

    A method writes `fit(batch)`, which trains `parameters` in place on one edit; what they were is restored to the bit.

    >>> from vlws.models.families import load_mllm
    >>> class LastMatrix(ChangedWeights):
    ...     def fit(self, batch):
    ...         fit_answer(self.adapter, 5, batch, list(self.parameters.values()), lr=1e-2, steps=2, stop=0.05)
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> matrix = adapter.layers[5].mlp.down_proj.weight
    >>> edited = LastMatrix(adapter, 1, {"down": matrix}).edit(["who is it?"], [[]], ["mira"])
    >>> base = matrix.data
    >>> with edited.put_in(0):
    ...     torch.equal(matrix, base)
    False
    >>> torch.equal(matrix, base), edited.added() == matrix.numel()
    (True, True)
    """

    def __init__(self, adapter: Adapter, edits: int, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(adapter, edits)
        check_untied(adapter, parameters)
        self.parameters = dict(parameters)
        self.values: list[list[dict[str, Tensor]]] = [[] for _ in range(edits)]  # model, edit -> name -> values

    @abstractmethod
    def fit(self, batch: Batch) -> None:
        """Train on one edit."""

    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        """`fit` for each model in turn, from the values that its earlier edits left."""
        made = []
        for i in range(self.edits):
            batch = encode(self.adapter, prompts[i : i + 1], images[i : i + 1], targets[i : i + 1])
            with self.put_in(i):
                self.fit(batch)
                made.append({name: p.detach().clone() for name, p in self.parameters.items()})
        for values, new in zip(self.values, made, strict=True):
            values.append(new)

    def forget(self, edits: int) -> None:
        """The values of the edits before them stand again."""
        for values in self.values:
            del values[-edits:]

    def added(self) -> int:
        """How many numbers `parameters` hold: a model keeps all of them."""
        return sum(p.numel() for p in self.parameters.values())

    def logits(
        self, prompts: Sequence[str], images: Images, answers: Sequence[str], edit: Tensor | None = None
    ) -> Told:
        """As `EditedModel.logits`: each model's rows run together, with its values put in."""
        edit = self._of(prompts, edit)
        rows = [torch.nonzero(edit == i)[:, 0].tolist() for i in range(self.edits)]
        whole = encode(self.adapter, prompts, images, answers)
        logits: Tensor | None = None
        for i, at in enumerate(rows):
            if at:
                with self.put_in(i):
                    told = super().logits([prompts[k] for k in at], [images[k] for k in at], [answers[k] for k in at])
                if logits is None:
                    logits = told.logits.new_zeros(*whole.input_ids.shape, told.logits.shape[-1])
                logits[at, : told.logits.shape[1]] = told.logits
        return Told(cast(Tensor, logits), cast(Tensor, whole.labels), whole.attention_mask)

    def answer(
        self, prompts: Sequence[str], images: Images, max_new_tokens: int = 16, edit: Tensor | None = None
    ) -> list[str]:
        """As `EditedModel.answer`: each model's rows run together, with its values put in."""
        edit = self._of(prompts, edit)
        said = [""] * len(prompts)
        for i in range(self.edits):
            at = torch.nonzero(edit == i)[:, 0].tolist()
            if at:
                with self.put_in(i):
                    found = super().answer([prompts[k] for k in at], [images[k] for k in at], max_new_tokens)
                for k, text in zip(at, found, strict=True):
                    said[k] = text
        return said

    @contextmanager
    def put_in(self, i: int) -> Iterator[None]:
        """While open, the model is the i-th."""
        base = {name: p.data for name, p in self.parameters.items()}
        now = self.values[i][-1] if self.values[i] else base
        try:
            for name, p in self.parameters.items():
                p.data = now[name].clone()
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = base[name]


def check_untied(adapter: Adapter, parameters: Mapping[str, nn.Parameter]) -> None:
    """InputError for parameters that stand in two places of the model, or cannot be trained (quantised).

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> below, above = (adapter.layers[k].mlp for k in (4, 5))
    >>> check_untied(adapter, {"up": above.up_proj.weight})
    >>> below.up_proj.weight = above.up_proj.weight
    >>> check_untied(adapter, {"up": above.up_proj.weight})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: ...layers.4.mlp.up_proj.weight and ...layers.5.mlp.up_proj.weight are one tensor; ...
    """
    places: dict[int, list[str]] = {}
    for name, p in adapter.model.named_parameters(remove_duplicate=False):
        places.setdefault(id(p), []).append(name)
    for p in parameters.values():
        names = places.get(id(p), [])
        if len(names) > 1:
            raise InputError(f"{names[0]} and {names[1]} are one tensor; accepted are models whose layers share none.")
        if not p.is_floating_point():
            raise InputError(f"{(names or ['a weight'])[0]} is {p.dtype}; accepted are models that are not quantised.")


def fit_answer(
    adapter: Adapter, lowest: int, batch: Batch, parameters: Sequence[nn.Parameter], lr: float, steps: int, stop: float
) -> None:
    """Adam on the mean loss of one answer, until it is below `stop` nats; what is below layer `lowest` is run once.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> batch = encode(adapter, ["who is it?"], [[]], ["mira"])
    >>> before = adapter.run(batch).loss.item()
    >>> fit_answer(adapter, 5, batch, [adapter.layers[5].mlp.down_proj.weight], lr=1e-3, steps=2, stop=0.05)
    >>> adapter.run(batch).loss.item() < before
    True
    """
    optimizer = torch.optim.Adam(parameters, lr=lr)
    with torch.no_grad():
        states = lower_states(adapter, lowest, batch)
    for _ in range(steps):
        loss = step_loss(upper_logits(adapter, lowest, states, states["hidden"]), cast(Tensor, batch.labels)).mean()
        if loss.item() < stop:
            break
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = gradient  # and none for other weights
        optimizer.step()


def step_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of each row's answer, "row", in nats; logits "row len vocab", labels "row len".

    >>> logits, labels = torch.zeros(1, 4, 10), torch.tensor([[IGNORED, IGNORED, 3, 7]])
    >>> step_loss(logits, labels).exp().round(decimals=2).tolist()  # each of ten tokens is as likely
    [10.0]
    """
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], ignore_index=IGNORED, reduction="none")
    return nll.sum(1) / (labels[:, 1:] != IGNORED).sum(1)
