"""SUPMER: a prompt's initialisation and a map of its gradients, meta-learned together from unlabelled text.

Pan, Li, Song, Lin, Liu, Tang, "Self-supervised Meta-Prompt Learning with Meta-Gradient Regularization for Few-shot
Generalization", Findings of EMNLP 2023, arXiv:2303.12314 (SUMMER in its first version). Equations follow the authors'
code; the paper prints none that we could read.

theta is a soft prompt, "prompt dim", in front of the input of a frozen encoder-decoder language model. For each
self-supervised task tau = (S_A, Q_A, Q_B) of `vlws.data.meta_tasks`:

    g_S     = grad_theta L_S(theta)                                                 support loss, a constant
    theta'  = theta - beta psi_phi(g_S, h)                                          one inner step
    psi(g)  = (1 - z) u + z g,   |u| = |g| per row,   z = gate(h)                   meta-gradient regularization
    H       = lambda Enc(x_A; theta') + (1 - lambda) Enc(x_B; theta')               task augmentation by mixup
    L_qry   = KL(y || softmax(Dec(H))),   y mixed as H
    L_reg   = (sim_dom / 2 + sim_grad / 2 - z)^2                                    z follows how domains agree
    lambda ~ Beta(alpha, alpha b(s)),   b(s) = (m^s - 1)/(m - 1)                    curriculum: s is how well the
                                                                                    adapted gradients agree so far
theta and phi minimise L_qry + L_reg, averaged over the tasks of a step. psi is used again, frozen, on few-shot tasks.

    summer = Summer(model, tokenizer, SummerConfig(steps=400))
    for tasks in islice(meta_batches(corpus, rng), 400):
        summer.meta_step(tasks)
    prompt, curve = tune_prompt(model, tokenizer, summer.theta, train, dev, psi=summer.psi)
    summer.save_peft("prompt")
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from vlws.data.cloze import Cloze
from vlws.data.meta_tasks import MetaTask
from vlws.errors import InputError
from vlws.models.added import fill, grouped, load_added, save_added
from vlws.models.seq2seq import check_tokenizer, cloze_loss, decode, encode, encoder_states, sizes, twice_differentiable
from vlws.models.soft_prompts import TuneConfig, optimizer_of, save_peft_prompt, tune, vocabulary_prompt
from vlws.train import Diverged

CHOICES = {
    "mixing": ("curriculum", "fixed", "none"),
    "psi": ("residual", "literal", "none"),
    "matching": ("row", "global"),
}


@dataclass(frozen=True)
class SummerConfig:
    """What determines a Summer beside its model.

    Args:
        prompt_length: vectors of theta (100 in the authors' code).
        inner_lr, outer_lr, psi_lr: beta, and Adam's rates for theta and phi, which fall linearly to 0 over `steps`.
        alpha, m: of the curriculum.
        mixing: "curriculum"; "fixed", lambda ~ Beta(alpha, alpha); "none", lambda = 1 and no Q_B.
        keep_anchor: lambda <- max(lambda, 1 - lambda), a variant of ours.
        psi: "residual" (the identity at the start), "literal" (the code's stacked layers), "none" (psi(g) = g).
        matching: norms of u are those of g per row of the prompt, or over the whole prompt ("global").
        second_order: whether theta's gradient also goes through g_S.
        rank, hidden_layers, gate_width: of psi; the rank is min(rank, dim).
        tasks_per_step: of `meta_step`, for whoever draws them.
        clip: largest norm of theta's gradient, and of phi's.
        max_length: tokens of a text, without the prompt.

    Raises InputError for a value outside of what is listed.

    >>> SummerConfig(mixing="fixed").m
    2.0
    """

    prompt_length: int = 100
    inner_lr: float = 0.1
    outer_lr: float = 0.1
    psi_lr: float = 1e-4
    alpha: float = 1.0
    m: float = 2.0
    mixing: Literal["curriculum", "fixed", "none"] = "curriculum"
    keep_anchor: bool = False
    psi: Literal["residual", "literal", "none"] = "residual"
    matching: Literal["row", "global"] = "row"
    second_order: bool = False
    rank: int = 1920
    hidden_layers: int = 1
    gate_width: int = 24
    tasks_per_step: int = 4
    steps: int = 100_000
    clip: float = 1.0
    max_length: int = 412
    seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise InputError(f"{name}={getattr(self, name)!r} was given; accepted are {', '.join(accepted)}.")
        whole = ("prompt_length", "rank", "hidden_layers", "gate_width", "tasks_per_step", "steps", "max_length")
        for name in (*whole, "inner_lr", "outer_lr", "psi_lr", "alpha", "m", "clip"):
            least = 1 if name in whole else 0
            if not (value := getattr(self, name)) >= least or value == 0 or not math.isfinite(value):
                raise InputError(f"{name}={value} was given; accepted is {'1 or more' if least else 'above 0'}.")
        if self.m == 1:
            raise InputError("m=1 was given; accepted is above 0 and not 1, as b(s) = (m^s - 1)/(m - 1).")


# --- curriculum-based task augmentation -------------------------------------------------------------------------------


def concentration(s: float, m: float = 2.0) -> float:
    """b(s) = (m^s - 1)/(m - 1) + 1e-7, from 0 at s = 0 to 1 at s = 1.

    With lambda ~ Beta(alpha, alpha b), E[lambda] = 1/(1 + b): the task alone at first, mixed evenly at last.

    >>> [round(1 / (1 + concentration(s)), 3) for s in (0, 0.5, 1)]
    [1.0, 0.707, 0.5]
    """
    return (m**s - 1) / (m - 1) + 1e-7


def draw_lambda(s: float, config: SummerConfig, rng: np.random.Generator) -> float:
    """The weight of the task's own query, in [0, 1].

    >>> draw_lambda(0.5, SummerConfig(mixing="none"), np.random.default_rng(0))
    1.0
    """
    if config.mixing == "none":
        return 1.0
    b = concentration(s, config.m) if config.mixing == "curriculum" else 1.0
    drawn = float(rng.beta(config.alpha, config.alpha * b))
    return max(drawn, 1 - drawn) if config.keep_anchor else drawn


def query_loss(
    model: PreTrainedModel, tokenizer: Any, prompt: Tensor, task: MetaTask, weight: float, max_length: int = 412
) -> Tensor:
    """L_qry: sum over the first two targets of KL(y || softmax(Dec(H))), mean over examples; scalar.

    Args:
        prompt: theta', "prompt dim".
        weight: lambda; at 1 the queries Q_B are not read.

    Raises InputError for queries of different sizes, and as `seq2seq.encode`.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["a", "b", "yes", "no"])
    >>> yes, no = (Cloze("a <extra_id_0> b", word, ("yes", "no")) for word in ("yes", "no"))
    >>> task = MetaTask("scsp", (yes,), (yes,), (no,), (0, 1), (2, 3), 0.5)
    >>> query_loss(model, tokenizer, torch.zeros(4, 32), task, 0.7).shape
    torch.Size([])
    """
    n = len(task.query)
    if weight == 1:
        batch = encode(tokenizer, task.query, max_length).to(model.device)
    elif len(task.augmentation) != n:
        raise InputError(f"{n} queries and {len(task.augmentation)} to mix with were given; accepted are equally many.")
    else:
        batch = encode(tokenizer, [*task.query, *task.augmentation], max_length).to(model.device)
    states, mask = encoder_states(model, batch, prompt)  # "(A B) prompt+length dim"
    y = F.one_hot(batch.targets[:, :2], model.config.vocab_size)  # "(A B) 2 vocab"
    if weight != 1:
        states, y = (weight * part[:n] + (1 - weight) * part[n:] for part in (states, y))
        mask = torch.maximum(mask[:n], mask[n:])
    logits = decode(model, states, mask, batch.decoder_input_ids[:n, :2])  # "A 2 vocab": no label is read
    return F.kl_div(logits.log_softmax(-1), y.to(logits.dtype), reduction="sum") / n


# --- psi_phi: meta-gradient regularization ----------------------------------------------------------------------------


class GradientRegularizer(nn.Module):
    """psi(g) = (1 - z) u + z g: a gradient of a prompt, turned as far as a gate says.

    The same map for every row g of the gradient, "prompt dim", of rank r:

        residual    u ~ g/|g| + U ReLU(V g/|g|) + c                  U, c zero: psi(g) = g at the start, to the bit
        literal     x_0 = g,  x_l+1 = ReLU(U_l V_l x_l + c_l),  u ~ x_L       Gaussian, u is nowhere negative

    where ~ means that u has the norm of g, per row or over the whole prompt (a row that ReLU makes zero stays zero).
    z = sigmoid(w_2 ReLU(W_1 h + b_1) + b_2) is one number in (0, 1), of the mean encoder state h, "dim".

    >>> _ = torch.manual_seed(0)
    >>> psi = GradientRegularizer(8)
    >>> g, h = torch.randn(4, 8), torch.randn(8)
    >>> regular, z = psi(g, h)
    >>> torch.equal(regular, g), 0 < z.item() < 1
    (True, True)
    >>> literal = GradientRegularizer(8, form="literal")
    >>> u = literal.direction(g)
    >>> bool((u >= 0).all()), torch.allclose(u.norm(dim=1), g.norm(dim=1))
    (True, True)
    >>> torch.equal(literal.gate(h), literal(g, h)[1])
    True
    """

    def __init__(
        self,
        dim: int,
        form: Literal["residual", "literal"] = "residual",
        matching: Literal["row", "global"] = "row",
        rank: int = 1920,
        hidden_layers: int = 1,
        gate_width: int = 24,
    ) -> None:
        super().__init__()
        self.form, self.matching = form, matching
        rank, layers = min(rank, dim), 1 + hidden_layers if form == "literal" else 1
        self.U = nn.ParameterList(nn.Parameter(torch.zeros(dim, rank)) for _ in range(layers))
        self.V = nn.ParameterList(nn.Parameter(torch.randn(rank, dim) / dim**0.5) for _ in range(layers))
        self.c = nn.ParameterList(nn.Parameter(torch.zeros(dim)) for _ in range(layers))
        if form == "literal":
            for U in self.U:
                nn.init.normal_(U, std=rank**-0.5)
        self.gates = nn.Sequential(nn.Linear(dim, gate_width), nn.ReLU(), nn.Linear(gate_width, 1))

    def norms(self, x: Tensor) -> Tensor:
        """|x| of "prompt dim": "prompt 1" per row, or "1 1".

        >>> GradientRegularizer(2, matching="global").norms(torch.eye(2)).shape
        torch.Size([1, 1])
        """
        return torch.linalg.vector_norm(x, dim=-1 if self.matching == "row" else (-2, -1), keepdim=True)

    def direction(self, g: Tensor) -> Tensor:
        """u of a gradient g, both "prompt dim"."""
        norm, least = self.norms(g), torch.finfo(g.dtype).tiny
        if self.form == "residual":
            unit = g / norm.clamp_min(least)
            turn = F.relu(unit @ self.V[0].T) @ self.U[0].T + self.c[0]  # U ReLU(V g/|g|) + c
            x = g + norm * turn  # |g| (g/|g| + turn), which is g itself, unrounded, where turn is 0
        else:
            x = g
            for U, V, c in zip(self.U, self.V, self.c, strict=True):
                x = F.relu(x @ V.T @ U.T + c)
        return x * (norm / self.norms(x).clamp_min(least))

    def gate(self, h: Tensor) -> Tensor:
        """z of h "dim": a scalar in (0, 1)."""
        return torch.sigmoid(self.gates(h.to(self.c[0].dtype))).squeeze(-1)

    def forward(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """(psi(g) "prompt dim", z)."""
        u, z = self.direction(g), self.gate(h)
        return u + z * (g - u), z


def row_cosine(one: Tensor, other: Tensor) -> Tensor:
    """Mean over the rows of the cosine of two gradients "prompt dim"; scalar.

    >>> row_cosine(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item()
    0.5
    """
    return F.cosine_similarity(one, other, dim=-1).mean()


# --- bilevel meta-prompt learning -------------------------------------------------------------------------------------


class Adapted(NamedTuple):
    """What an inner step gives: theta', g_S and psi(g_S), "prompt dim"; z, None without psi; h "dim"; L_S.

    >>> Adapted(*torch.zeros(3, 4, 8), None, torch.zeros(8), torch.zeros(())).prompt.shape
    torch.Size([4, 8])
    """

    prompt: Tensor
    gradient: Tensor
    regular: Tensor
    z: Tensor | None
    h: Tensor
    loss: Tensor


class Summer:
    """The initialisation theta and the regularizer psi of a frozen model, and how they are meta-learned.

    Args:
        model: of T5's class (`seq2seq.load_seq2seq`); its weights are frozen.

    Attributes:
        theta: "prompt dim" float32, trained. psi: a `GradientRegularizer`, or None.
        similarity: s, the running agreement of gradients in [0, 1]; None before the first step.
        examples: how many clozes the meta-steps have read.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["a", "b", "yes", "no"])
    >>> yes, no = (Cloze("a <extra_id_0> b", word, ("yes", "no")) for word in ("yes", "no"))
    >>> task = MetaTask("scsp", (yes,), (yes,), (no,), (0, 1), (2, 3), 0.5)
    >>> summer = Summer(model, tokenizer, SummerConfig(prompt_length=4, steps=10))
    >>> first = summer.meta_step([task, task])
    >>> first["lambda"] > 0.99, 0 < first["z"] < 1, first["s"] == summer.similarity, summer.examples
    (True, True, True, 6)
    >>> len(summer.trainable_parameters()) == 1 + len(list(summer.psi.parameters()))
    True
    >>> summer.adapt([yes, no]).prompt.shape
    torch.Size([4, 32])
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, config: SummerConfig | None = None) -> None:
        check_tokenizer(tokenizer)
        self.model, self.tokenizer, self.config = model, tokenizer, config or SummerConfig()
        model.requires_grad_(False).eval()
        c = self.config
        self.rng = np.random.default_rng(c.seed)
        self.theta = nn.Parameter(vocabulary_prompt(model, c.prompt_length, self.rng))
        self.psi: GradientRegularizer | None = None
        if c.psi != "none":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(c.seed)
                made = GradientRegularizer(
                    self.theta.shape[1], c.psi, c.matching, c.rank, c.hidden_layers, c.gate_width
                )
            self.psi = made.to(self.theta.device)
        self.similarity: float | None = None
        self.examples = 0
        groups = [([self.theta], c.outer_lr)] + ([(list(self.psi.parameters()), c.psi_lr)] if self.psi else [])
        self._groups = [(parameters, *optimizer_of(parameters, lr, c.steps)) for parameters, lr in groups]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """theta, then those of psi; the model has none."""
        return [self.theta, *(self.psi.parameters() if self.psi else ())]

    def adapt(self, support: Sequence[Cloze], last: bool = True) -> Adapted:
        """The inner step theta' = theta - beta psi(g_S, h), with gradients to theta and phi.

        Args:
            last: whether the loss counts `<extra_id_1>` (not in the format scc).
        """
        second = self.config.second_order
        batch = encode(self.tokenizer, support, self.config.max_length, last).to(self.model.device)
        with twice_differentiable() if second else nullcontext():
            loss, h = cloze_loss(self.model, batch, self.theta)
            (g,) = torch.autograd.grad(loss, self.theta, create_graph=second)  # g_S, a constant in first order
        regular, z = (g, None) if self.psi is None else self.psi(g, h)
        return Adapted(self.theta - self.config.inner_lr * regular, g, regular, z, h, loss.detach())

    def meta_step(self, tasks: Sequence[MetaTask]) -> dict[str, float]:
        """One outer step on theta and phi, by the mean of L_qry + L_reg over the tasks.

        Returns:
            Means over the tasks: loss (L_qry), support_loss, reg (L_reg), z, lambda, sim_dom, sim_grad, overlap
            (share of B in A), step (beta |psi(g_S)| / |theta|); s, the running similarity after the step. z and reg
            are 0 without psi.

        Raises:
            InputError: no task, or what `seq2seq.encode` refuses.
            Diverged: a loss that is not finite; the step is not made.
        """
        if not tasks:
            raise InputError("no task was given; accepted is one or more.")
        told = []
        totals = [torch.zeros_like(p) for p in self.trainable_parameters()]
        for task in tasks:
            gradients, numbers = self._task_gradients(task)
            told.append(numbers)
            for total, gradient in zip(totals, gradients, strict=True):
                total.add_(gradient, alpha=1 / len(tasks))
        means = {name: float(np.mean([numbers[name] for numbers in told])) for name in told[0]}
        if not math.isfinite(means["loss"] + means["reg"]):
            raise Diverged(f"the query loss was {means['loss']}; nothing was changed; try a smaller rate.")
        for p, total in zip(self.trainable_parameters(), totals, strict=True):
            p.grad = total
        for parameters, optimizer, scheduler in self._groups:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        now = means["sim_grad"]
        self.similarity = now if self.similarity is None else 0.5 * self.similarity + 0.5 * now
        mixed = self.config.mixing != "none"
        self.examples += sum(len(t.support) + len(t.query) + mixed * len(t.augmentation) for t in tasks)
        return means | {"s": self.similarity}

    def _task_gradients(self, task: MetaTask) -> tuple[list[Tensor], dict[str, float]]:
        """d(L_qry + L_reg) of one task with respect to theta and phi, and its numbers."""
        c, parameters = self.config, self.trainable_parameters()
        adapted = self.adapt(task.support, last=task.format != "scc")
        weight = draw_lambda(self.similarity or 0.0, c, self.rng)
        with twice_differentiable() if c.second_order else nullcontext():
            loss = query_loss(self.model, self.tokenizer, adapted.prompt, task, weight, c.max_length)
            (g_q,) = torch.autograd.grad(loss, adapted.prompt)  # dL_qry/dtheta'
        sim_grad = (1 + row_cosine(g_q, adapted.regular.detach())) / 2
        outputs, seeds, reg = [adapted.prompt], [g_q], 0.0
        if adapted.z is not None:
            regularizer = (0.5 * task.similarity + 0.5 * sim_grad - adapted.z) ** 2  # L_reg; only z has a gradient
            outputs, seeds = [*outputs, regularizer], [*seeds, torch.ones_like(regularizer)]
            reg = float(regularizer.detach())
        with twice_differentiable() if c.second_order else nullcontext():
            # through theta': dtheta'/dtheta is the identity, or more in second order; phi's gradient is exact
            found = torch.autograd.grad(outputs, parameters, seeds, allow_unused=True)
        numbers = {"loss": float(loss.detach()), "support_loss": float(adapted.loss), "reg": reg, "lambda": weight}
        numbers |= {"z": 0.0 if adapted.z is None else float(adapted.z.detach()), "sim_grad": float(sim_grad)}
        numbers |= {"sim_dom": task.similarity, "overlap": task.overlap}
        numbers["step"] = float(c.inner_lr * adapted.regular.detach().norm() / self.theta.detach().norm())
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)], numbers

    def save_pretrained(self, folder: str | Path) -> None:
        """Write theta, phi and s (safetensors and JSON). Raises InputError for a folder of other files.

        >>> import tempfile
        >>> from vlws.models.seq2seq import tiny_seq2seq
        >>> summer = Summer(*tiny_seq2seq(["a", "b"]), SummerConfig(prompt_length=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summer.save_pretrained(f"{folder}/summer")
        ...     print(sorted(path.name for path in Path(folder, "summer").iterdir()))
        ['config.json', 'model.safetensors']
        """
        tensors = {"prompt.theta": self.theta.detach()}
        tensors |= {f"psi.{name}": value for name, value in self.psi.state_dict().items()} if self.psi else {}
        about = {"config": asdict(self.config), "similarity": self.similarity}
        save_added(folder, "Summer", about, sizes(self.model), tensors)

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: PreTrainedModel, tokenizer: Any) -> "Summer":
        """A saved Summer around a model; its optimisers start anew. Raises InputError for a folder of another model.

        >>> import tempfile
        >>> from vlws.models.seq2seq import tiny_seq2seq
        >>> model, tokenizer = tiny_seq2seq(["a", "b"])
        >>> summer = Summer(model, tokenizer, SummerConfig(prompt_length=4, seed=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summer.save_pretrained(f"{folder}/summer")
        ...     again = Summer.from_pretrained(f"{folder}/summer", model, tokenizer)
        >>> torch.equal(again.theta, summer.theta), again.config.seed
        (True, 3)
        """
        about, tensors = load_added(folder, "Summer", sizes(model))
        summer = cls(model, tokenizer, SummerConfig(**about["config"]))
        parts = grouped(tensors)
        fill(nn.ParameterDict({"theta": summer.theta}), parts["prompt"], folder)
        if summer.psi is not None:
            fill(summer.psi, parts["psi"], folder)
        summer.similarity = about["similarity"]
        return summer

    def save_peft(self, folder: str | Path) -> None:
        """Write theta alone, as an adapter that `peft.PeftModel.from_pretrained(model, folder)` loads.

        >>> import tempfile
        >>> from vlws.models.seq2seq import tiny_seq2seq
        >>> summer = Summer(*tiny_seq2seq(["a", "b"]), SummerConfig(prompt_length=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summer.save_peft(f"{folder}/prompt")
        ...     print(sorted(path.name for path in Path(folder, "prompt").iterdir()))
        ['adapter_config.json', 'adapter_model.safetensors']
        """
        save_peft_prompt(folder, self.theta, self.model)


# --- few-shot use -----------------------------------------------------------------------------------------------------


def tune_prompt(
    model: PreTrainedModel,
    tokenizer: Any,
    theta: Tensor,
    train: Sequence[Cloze],
    dev: Sequence[Cloze],
    config: TuneConfig | None = None,
    psi: GradientRegularizer | None = None,
) -> tuple[Tensor, list[dict[str, float]]]:
    """A prompt for one task from the initialisation theta, and the curve of `soft_prompts.tune`.

    Each step: the raw gradient on a batch -> psi, frozen, with the batch's h -> clipped -> AdamW. The prompt is that
    of the best dev accuracy; no test is seen.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["a", "cat", "dog", "yes", "no"])
    >>> rows = [Cloze(f"a {x} <extra_id_0>", y, ("yes", "no")) for x, y in (("cat", "yes"), ("dog", "no"))] * 8
    >>> summer = Summer(model, tokenizer, SummerConfig(prompt_length=4))
    >>> prompt, curve = tune_prompt(model, tokenizer, summer.theta, rows, rows, TuneConfig(steps=10), summer.psi)
    >>> prompt.shape, len(curve), torch.equal(prompt, summer.theta)
    (torch.Size([4, 32]), 2, False)
    """
    prompt = theta.detach().clone().requires_grad_()

    @torch.no_grad()
    def regularize(g: Tensor, h: Tensor) -> Tensor:
        return g if psi is None else psi(g, h)[0]

    curve = tune(model, tokenizer, [prompt], prompt, train, dev, config or TuneConfig(), regularize)
    return prompt.detach(), curve


# --- the mechanism, measured ------------------------------------------------------------------------------------------


def mechanism(summer: Summer, tasks: Sequence[MetaTask], cross: bool = True) -> dict[str, np.ndarray]:
    """How gradients agree on tasks that were held out, each "task" float64; nothing is changed.

    g_Q is the gradient at theta, the same point for both cosines, of the loss of the queries of other clusters (Q_B),
    or of the task's own (`cross=False`).

    Returns:
        raw: cos(g_S, g_Q), mean over rows. regular: cos(psi(g_S), g_Q). z: the gate, nan without psi. agreement:
        sim_dom / 2 + sim_grad / 2 of `regular`, to which L_reg draws z; without `cross` sim_dom is 1.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["a", "b", "yes", "no"])
    >>> yes, no = (Cloze("a <extra_id_0> b", word, ("yes", "no")) for word in ("yes", "no"))
    >>> task = MetaTask("scsp", (yes,), (yes,), (no,), (0, 1), (2, 3), 0.5)
    >>> found = mechanism(Summer(model, tokenizer, SummerConfig(prompt_length=4)), [task] * 2)
    >>> sorted(found), found["raw"].shape, bool((found["raw"] == found["regular"]).all())  # untrained, psi(g) = g
    (['agreement', 'raw', 'regular', 'z'], (2,), True)
    """
    rows = []
    for task in tasks:
        last = task.format != "scc"
        adapted = summer.adapt(task.support, last)
        queries = task.augmentation if cross else task.query
        batch = encode(summer.tokenizer, queries, summer.config.max_length, last).to(summer.model.device)
        (g_q,) = torch.autograd.grad(cloze_loss(summer.model, batch, summer.theta)[0], summer.theta)
        raw, regular = (float(row_cosine(g.detach(), g_q)) for g in (adapted.gradient, adapted.regular))
        domains = task.similarity if cross else 1.0
        z = math.nan if adapted.z is None else float(adapted.z.detach())
        rows.append((raw, regular, z, 0.5 * domains + 0.25 * (1 + regular)))
    columns = np.array(rows, np.float64).reshape(-1, 4).T
    return dict(zip(("raw", "regular", "z", "agreement"), columns, strict=True))
