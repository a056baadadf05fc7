"""One training loop on accelerate: mixed precision, resume, progress bar, metrics.jsonl; and a schedule."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import trange

from vlws import training_log
from vlws.errors import InputError
from vlws.files import write_atomically

Model = TypeVar("Model", bound=nn.Module)


class Diverged(RuntimeError):
    """The loss was no longer finite; says at which step, and which checkpoint is still good.

    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> fit(model, lambda m, x: m(x).sum() * float("nan"), lambda step: torch.ones(1, 1), 5, optimizer, device="cpu")
    Traceback (most recent call last):
        ...
    vlws.train.Diverged: train: the loss was nan at step 1 of 5; nothing was saved; try a smaller lr.
    """


def fit(
    model: Model,
    loss_fn: Callable[[Model, Any], torch.Tensor],
    batch: Callable[[int], Any],
    steps: int,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    out: Path | None = None,
    clip: float | None = None,
    precision: str = "no",
    device: str = "auto",
    save_every: int = 250,
    log_every: int = 25,
    label: str = "train",
) -> list[dict[str, float]]:
    """Train `model` in place for `steps` steps; leave it in eval mode on its device.

    Args:
        loss_fn: (model, batch) -> scalar loss; augmentation that draws from torch's generators is resumed exactly.
        batch: step -> batch (nested tensors, moved to the device). A function of the step alone, so that a run
            killed at any step goes on as if nothing had happened; `epochs` makes one of indices.
        out: folder of `checkpoint.pt` and `metrics.jsonl`; a run found there is continued, a finished one returned
            at once. Name it after all that determines the run. None: nothing is kept.
        clip: largest norm of the gradient.
        precision: "no", "fp16" or "bf16". device: "auto" or "cpu".
        label: of the progress bar; an empty one shows none (many small fits in parallel).

    Returns:
        One record every `log_every` steps and for the last: step (1-based), mean loss since the last one, lr. A run
        keeps them too, in its metrics.jsonl (`vlws.training_log`).

    Raises:
        Diverged: a loss that is not finite; weights in `out` are those of the last checkpoint.
        InputError: no steps, an unknown precision, or a checkpoint of another model.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(64, 3)
    >>> model, batch = nn.Linear(3, 1), epochs(n=64, batch_size=16, seed=0)
    >>> log = fit(
    ...     model,
    ...     lambda model, rows: ((model(x[rows]) - x[rows].sum(1, keepdim=True)) ** 2).mean(),
    ...     batch,
    ...     steps=50,
    ...     optimizer=torch.optim.Adam(model.parameters(), lr=0.1),
    ...     device="cpu",
    ...     label="",
    ... )
    >>> [record["step"] for record in log], log[-1]["loss"] < 0.1 * log[0]["loss"]
    ([25, 50], True)
    """
    _check_settings(steps, precision)
    AcceleratorState._reset_state(reset_partial_state=True)  # else the first fit of a process decides for all
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    bare = accelerator.unwrap_model(model)
    start, history = _resume(out, bare, optimizer, scheduler)
    if start > steps:
        raise InputError(f"The checkpoint in {out} is of a run of {start} steps, more than the {steps} asked for.")
    model.train()
    sums = count = 0.0
    bar = trange(start, steps, initial=start, total=steps, desc=label, leave=False, mininterval=0.5, disable=not label)
    for step in bar:
        optimizer.zero_grad()
        with accelerator.autocast():
            loss = loss_fn(model, send_to_device(batch(step), accelerator.device))
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(f"{label}: the loss was {value} at step {step + 1} of {steps}", out)
        accelerator.backward(loss)
        if clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        sums, count = sums + value, count + 1
        last = step + 1 == steps
        if last or (step + 1) % log_every == 0:
            history.append({"step": step + 1, "loss": sums / count, "lr": optimizer.param_groups[0]["lr"]})
            bar.set_postfix(loss=f"{sums / count:.4f}")
            sums = count = 0.0
            if out is not None:
                _log(out, history)
        if out is not None and (last or (step + 1) % save_every == 0):
            _save(out, step + 1, history, bare, optimizer, scheduler)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    training_log.report(history, label)
    return history


def epochs(n: int, batch_size: int, seed: int) -> Callable[[int], torch.Tensor]:
    """step -> "batch_size" int64 indices below n: a fresh permutation each epoch, the incomplete batch dropped.

    >>> batch = epochs(n=5, batch_size=2, seed=0)
    >>> batch(0).shape, len(set(torch.cat([batch(0), batch(1)]).tolist()))  # two steps an epoch, no index twice
    (torch.Size([2]), 4)
    >>> bool((batch(7) == batch(7)).all())  # a function of the step alone
    True
    """
    per_epoch = n // batch_size
    if per_epoch < 1:
        raise InputError(f"{n} items do not fill one batch of {batch_size}; give more items or a smaller batch.")
    order: dict[int, torch.Tensor] = {}

    def batch(step: int) -> torch.Tensor:
        epoch, at = divmod(step, per_epoch)
        if epoch not in order:
            order.clear()
            order[epoch] = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        return order[epoch][at * batch_size : (at + 1) * batch_size]

    return batch


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up over the first `warmup` (a share) of the steps, then a cosine that reaches 0 after the last.

    The first step already has a rate above 0 (1/n of the full one, over n warm-up steps), unlike
    `transformers.get_cosine_schedule_with_warmup`, whose first step has rate 0 and changes nothing.

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler, rates = warmup_cosine(optimizer, steps=4, warmup=0.5), []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
    ...     optimizer.step()
    ...     scheduler.step()
    >>> rates, round(optimizer.param_groups[0]["lr"], 2)
    ([0.5, 1.0, 1.0, 0.5], 0.0)
    """
    first = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))

    return LambdaLR(optimizer, factor)


def _check_settings(steps: int, precision: str) -> None:
    if steps < 1:
        raise InputError(f"steps={steps}: training takes 1 step or more.")
    if precision not in ("no", "fp16", "bf16"):
        raise InputError(f"precision={precision!r}: accepted are no, fp16 and bf16.")


def _diverged(what: str, out: Path | None) -> Diverged:
    saved = out is not None and (out / "checkpoint.pt").exists()
    kept = f"the checkpoint in {out} is good" if saved else "nothing was saved"
    return Diverged(f"{what}; {kept}; try a smaller lr.")


def _log(out: Path, history: list[dict[str, float]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history).encode())


def _save(out: Path, step: int, history: list, model: nn.Module, optimizer: Any, scheduler: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    generators = [torch.get_rng_state()] + (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
    states = [part.state_dict() if part is not None else None for part in (model, optimizer, scheduler)]
    buffer = io.BytesIO()
    torch.save({"step": step, "history": history, "states": states, "generators": generators}, buffer)
    write_atomically(out / "checkpoint.pt", buffer.getvalue())


def _resume(out: Path | None, model: nn.Module, optimizer: Any, scheduler: Any) -> tuple[int, list]:
    """(steps done, history) of the checkpoint in `out`, or (0, [])."""
    if out is None or not (out / "checkpoint.pt").exists():
        return 0, []
    found = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    for part, state in zip((model, optimizer, scheduler), found["states"], strict=True):
        try:
            if part is not None:
                part.load_state_dict(state)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"The checkpoint in {out} is of another model or optimizer; delete it to start anew."
            ) from error
    torch.set_rng_state(found["generators"][0])
    if torch.cuda.is_available() and len(found["generators"]) > 1:
        torch.cuda.set_rng_state_all(found["generators"][1:])
    return found["step"], found["history"]
