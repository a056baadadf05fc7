"""What SUPMER is compared with: prompts from elsewhere, prompts pre-trained without psi, and the whole model tuned.

    PT           a prompt tuned from random vectors, or from the vocabulary (Lester et al. 2021, arXiv:2104.08691)
    PPT          a prompt pre-trained on all formats at once (Gu et al. 2022, arXiv:2109.04332)
    Unified-PPT  the same, with every format worded as a multiple choice (same paper, section 3.3)
    MetaPT       first-order MAML on one format, clusters as tasks (Huang et al. 2022, arXiv:2205.12471)
    FT           all weights of the model tuned

All but FT leave the model as it is. PPT, Unified-PPT and MetaPT take the meta-tasks that SUPMER takes, count the
clozes that they read (`examples`), and `steps_within` gives each the same number of them.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlws.data.cloze import Cloze, Wording
from vlws.data.meta_tasks import MetaTask, as_choices
from vlws.errors import InputError
from vlws.models.seq2seq import check_tokenizer, cloze_loss, encode
from vlws.models.soft_prompts import TuneConfig, optimizer_of, random_prompt, tune, vocabulary_prompt
from vlws.train import Diverged

Curve = list[dict[str, float]]
Sets = tuple[Literal["support", "query", "augmentation"], ...]

# --- PT and FT: no pre-training ---------------------------------------------------------------------------------------


def prompt_tuning(
    model: PreTrainedModel,
    tokenizer: Any,
    train: Sequence[Cloze],
    dev: Sequence[Cloze],
    config: TuneConfig | None = None,
    start: Literal["vocabulary", "random"] | Tensor = "vocabulary",
    prompt_length: int = 100,
) -> tuple[Tensor, Curve]:
    """A prompt "prompt dim" tuned from a start, and the curve of `soft_prompts.tune`; raw gradients.

    Args:
        start: embeddings of random tokens, random vectors, or a prompt, which is not changed.

    Raises InputError for another start, and as `seq2seq.encode`.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["a", "cat", "dog", "yes", "no"])
    >>> rows = [Cloze(f"a {x} <extra_id_0>", y, ("yes", "no")) for x, y in (("cat", "yes"), ("dog", "no"))] * 8
    >>> prompt, curve = prompt_tuning(model, tokenizer, rows, rows, TuneConfig(steps=10), "random", prompt_length=4)
    >>> prompt.shape, len(curve)
    (torch.Size([4, 32]), 2)
    """
    config = config or TuneConfig()
    rng = np.random.default_rng(config.seed)
    if isinstance(start, Tensor):
        theta = start.detach().clone()
    elif start in ("vocabulary", "random"):
        theta = (vocabulary_prompt if start == "vocabulary" else random_prompt)(model, prompt_length, rng)
    else:
        raise InputError(f"start={start!r} was given; accepted are vocabulary, random or a prompt.")
    model.requires_grad_(False).eval()
    theta.requires_grad_()
    return theta, tune(model, tokenizer, [theta], theta, train, dev, config)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: Any,
    train: Sequence[Cloze],
    dev: Sequence[Cloze],
    config: TuneConfig | None = None,
) -> tuple[PreTrainedModel, Curve]:
    """A copy of the model with all weights tuned, and the curve; lr 1e-5, as in the authors' code, unless given.

    No dropout, as with the prompts. The copy is frozen again and in eval mode; the model stays as it is.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["a", "cat", "dog", "yes", "no"])
    >>> rows = [Cloze(f"a {x} <extra_id_0>", y, ("yes", "no")) for x, y in (("cat", "yes"), ("dog", "no"))] * 8
    >>> tuned, curve = fine_tune(model, tokenizer, rows, rows, TuneConfig(lr=1e-2, steps=20))
    >>> tuned is model, curve[-1]["dev_loss"] < curve[0]["dev_loss"]
    (False, True)
    """
    tuned = copy.deepcopy(model).requires_grad_(True).eval()
    curve = tune(tuned, tokenizer, list(tuned.parameters()), None, train, dev, config or TuneConfig(lr=1e-5))
    return tuned.requires_grad_(False), curve


# --- PPT, Unified-PPT and MetaPT: a prompt pre-trained on meta-tasks --------------------------------------------------


@dataclass(frozen=True)
class PretrainConfig:
    """How a prompt is pre-trained: Adam, whose rate falls linearly to 0 over `steps`, as SUPMER's.

    Args:
        inner_lr: of MetaPT's inner step.

    >>> PretrainConfig(steps=400).lr
    0.1
    """

    prompt_length: int = 100
    lr: float = 0.1
    inner_lr: float = 0.1
    steps: int = 100_000
    clip: float = 1.0
    max_length: int = 412
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.prompt_length, self.steps, self.max_length) < 1 or min(self.lr, self.inner_lr, self.clip) <= 0:
            raise InputError(
                f"prompt_length={self.prompt_length}, steps={self.steps}, lr={self.lr}, inner_lr={self.inner_lr} and "
                f"clip={self.clip} were given; accepted are whole numbers from 1 and rates above 0."
            )


class PPT:
    """Prompt pre-training: one loss over the clozes of all sets of the tasks, no inner step.

    Attributes:
        theta: "prompt dim" float32. examples: how many clozes were read.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["a", "b", "yes", "no"])
    >>> yes, no = (Cloze("a <extra_id_0> b", word, ("yes", "no")) for word in ("yes", "no"))
    >>> task = MetaTask("scsp", (yes,), (yes,), (no,), (0, 1), (2, 3), 0.5)
    >>> ppt = PPT(model, tokenizer, PretrainConfig(prompt_length=4, steps=10))
    >>> ppt.meta_step([task, task])["loss"] > 0, ppt.examples, ppt.theta.shape
    (True, 6, torch.Size([4, 32]))
    """

    sets: ClassVar[Sets] = ("support", "query", "augmentation")  # of a task, that are read

    def __init__(self, model: PreTrainedModel, tokenizer: Any, config: PretrainConfig | None = None) -> None:
        check_tokenizer(tokenizer)
        self.model, self.tokenizer, self.config = model, tokenizer, config or PretrainConfig()
        model.requires_grad_(False).eval()
        start = vocabulary_prompt(model, self.config.prompt_length, np.random.default_rng(self.config.seed))
        self.theta = nn.Parameter(start)
        self.optimizer, self.scheduler = optimizer_of([self.theta], self.config.lr, self.config.steps)
        self.examples = 0

    def meta_step(self, tasks: Sequence[MetaTask]) -> dict[str, float]:
        """One step on theta by some tasks; their mean loss. Raises Diverged where that is not finite."""
        if not tasks:
            raise InputError("no task was given; accepted is one or more.")
        found = [self.task_gradient(task) for task in tasks]
        loss = float(np.mean([loss for loss, _ in found]))
        if not math.isfinite(loss):
            raise Diverged(f"the loss was {loss}; nothing was changed; try a smaller rate.")
        self.theta.grad = torch.stack([gradient for _, gradient in found]).mean(0)
        torch.nn.utils.clip_grad_norm_([self.theta], self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.examples += sum(len(getattr(task, name)) for task in tasks for name in self.sets)
        return {"loss": loss}

    def task_gradient(self, task: MetaTask) -> tuple[float, Tensor]:
        """(loss, gradient "prompt dim") of one task.

        >>> from vlws.models.seq2seq import tiny_seq2seq
        >>> cloze = Cloze("a <extra_id_0> b", "yes", ("yes", "no"))
        >>> task = MetaTask("scsp", (cloze,), (cloze,), (cloze,), (0, 1), (2, 3), 0.5)
        >>> ppt = PPT(*tiny_seq2seq(["a", "b", "yes", "no"]), PretrainConfig(prompt_length=4))
        >>> ppt.task_gradient(task)[1].shape
        torch.Size([4, 32])
        """
        return self.gradient([cloze for name in self.sets for cloze in getattr(task, name)], self.theta, task)

    def gradient(self, clozes: Sequence[Cloze], prompt: Tensor, task: MetaTask) -> tuple[float, Tensor]:
        """(loss, its gradient "prompt dim") of clozes of a task at a prompt.

        >>> from vlws.models.seq2seq import tiny_seq2seq
        >>> cloze = Cloze("a <extra_id_0> b", "yes", ("yes", "no"))
        >>> task = MetaTask("scsp", (cloze,), (cloze,), (cloze,), (0, 1), (2, 3), 0.5)
        >>> ppt = PPT(*tiny_seq2seq(["a", "b", "yes", "no"]), PretrainConfig(prompt_length=4))
        >>> ppt.gradient([cloze], ppt.theta, task)[1].shape
        torch.Size([4, 32])
        """
        batch = encode(self.tokenizer, clozes, self.config.max_length, last=task.format != "scc")
        loss, _ = cloze_loss(self.model, batch.to(self.model.device), prompt)
        return float(loss.detach()), torch.autograd.grad(loss, prompt)[0]


class UnifiedPPT(PPT):
    """PPT with every format as a multiple choice, in the words of `wording`: the one that the tasks were made with.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> cloze = Cloze("a <extra_id_0> b", "yes", ("yes", "no"))
    >>> task = MetaTask("scsp", (cloze,), (cloze,), (cloze,), (0, 1), (2, 3), 0.5)
    >>> ppt = UnifiedPPT(*tiny_seq2seq(["a", "b", "A", "B"]), PretrainConfig(prompt_length=4))  # it answers A or B
    >>> ppt.task_gradient(task)[1].shape
    torch.Size([4, 32])
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        config: PretrainConfig | None = None,
        wording: Wording | None = None,
    ) -> None:
        super().__init__(model, tokenizer, config)
        self.wording = wording

    def task_gradient(self, task: MetaTask) -> tuple[float, Tensor]:
        """(loss, gradient "prompt dim") of one task, reworded."""
        return super().task_gradient(as_choices(task, self.wording))


class MetaPT(PPT):
    """First-order MAML on tasks of one format: the support moves the prompt, the query's gradient moves theta.

    Raises InputError, at a step, for a task of another format than the first one.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> cloze = Cloze("a <extra_id_0> b", "yes", ("yes", "no"))
    >>> task = MetaTask("scsp", (cloze,), (cloze,), (cloze,), (0, 1), (2, 3), 0.5)
    >>> meta = MetaPT(*tiny_seq2seq(["a", "b", "yes", "no"]), PretrainConfig(prompt_length=4))
    >>> meta.task_gradient(task)[1].shape, meta.meta_step([task])["loss"] > 0, meta.examples
    (torch.Size([4, 32]), True, 2)
    """

    sets: ClassVar[Sets] = ("support", "query")
    format: str | None = None

    def task_gradient(self, task: MetaTask) -> tuple[float, Tensor]:
        """(query loss after the inner step, its gradient "prompt dim")."""
        if self.format not in (None, task.format):
            raise InputError(f"a task of {task.format} was given after {self.format}; accepted is one format.")
        self.format = task.format
        _, inner = self.gradient(task.support, self.theta, task)
        adapted = (self.theta - self.config.inner_lr * inner).detach().requires_grad_()
        return self.gradient(task.query, adapted, task)


def steps_within(budget: int, tasks: Sequence[MetaTask], sets: Sets = PPT.sets) -> int:
    """How many outer steps on as many tasks as given read at most `budget` clozes of the sets, at least one.

    >>> cloze = Cloze("a <extra_id_0> b", "yes", ("yes", "no"))
    >>> task = MetaTask("scsp", (cloze,) * 16, (cloze,) * 16, (cloze,) * 16, (0, 1), (2, 3), 0.5)
    >>> steps_within(19_200, [task] * 4), steps_within(19_200, [task] * 4, MetaPT.sets)
    (100, 150)
    """
    each = sum(len(getattr(task, name)) for task in tasks for name in sets)
    if budget < each or each < 1:
        raise InputError(f"a budget of {budget} clozes was given; one step reads {each}, which is the least accepted.")
    return budget // each
