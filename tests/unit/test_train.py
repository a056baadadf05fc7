"""The training loop: learns, resumes to the same bytes, and stops where the loss is no number."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from vlws import train
from vlws.errors import InputError

STEPS = 40


def regression(steps: int = STEPS):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)


def batch(step: int) -> torch.Tensor:
    return torch.randn(32, 3, generator=torch.Generator().manual_seed(step))


def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(x)[:, 0], x.sum(1))


def fit(parts, steps=STEPS, batch=batch, **kwargs):
    model, optimizer, scheduler = parts
    return train.fit(model, loss_fn, batch, steps, optimizer, scheduler, device="cpu", log_every=5, **kwargs)


def test_it_learns_logs_and_leaves_the_model_in_eval_mode():
    parts = regression(300)
    history = fit(parts, steps=300, clip=1.0)
    assert [record["step"] for record in history] == list(range(5, 301, 5))
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert not parts[0].training


def test_the_loop_is_the_plain_loop():
    parts = regression()
    fit(parts)
    model, optimizer, scheduler = regression()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_fn(model, batch(step)).backward()
        optimizer.step()
        scheduler.step()
    for a, b in zip(parts[0].parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


class Stop(Exception):
    pass


def stops_at(limit: int):
    def interrupted(step: int) -> torch.Tensor:
        if step == limit:
            raise Stop
        return batch(step)

    return interrupted


@pytest.mark.parametrize("limit", [3, 10, 27, 39])
def test_interrupted_anywhere_it_goes_on_to_the_same_weights_and_log(tmp_path, limit):
    whole = regression()
    history = fit(whole, out=tmp_path / "whole", save_every=10)
    with pytest.raises(Stop):
        fit(regression(), out=tmp_path / "cut", save_every=10, batch=stops_at(limit))
    torch.manual_seed(limit)  # whatever a fresh process has done with the generator
    resumed = regression()
    assert fit(resumed, out=tmp_path / "cut", save_every=10) == history
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [record["step"] for record in history]


def test_killed_it_leaves_nothing_half_written(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys, torch
        from torch import nn
        from pathlib import Path
        from vlws import train
        model = nn.Linear(2, 1)
        def batch(step):
            if step == 25:
                os.kill(os.getpid(), signal.SIGKILL)
            return torch.ones(4, 2)
        train.fit(model, lambda m, x: m(x).square().mean(), batch, 50, torch.optim.SGD(model.parameters(), 0.01),
                  out=Path(sys.argv[1]), save_every=10, device="cpu")
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=os.environ, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 20
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint.pt", "metrics.jsonl"}


def test_a_finished_run_is_returned_without_a_step(tmp_path):
    first = regression()
    history = fit(first, out=tmp_path)
    again = regression()
    assert fit(again, out=tmp_path, batch=stops_at(0)) == history
    for a, b in zip(first[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_it_and_keeps_the_last_good_checkpoint(tmp_path, value):
    def poisoned(step: int) -> torch.Tensor:
        return torch.full((32, 3), value) if step == 17 else batch(step)

    with pytest.raises(train.Diverged, match=r"at step 18 of 40; the checkpoint in .* is good"):
        fit(regression(), out=tmp_path, save_every=10, batch=poisoned)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 10
    assert all(torch.isfinite(weight).all() for weight in kept["states"][0].values())


def test_divergence_without_a_folder_says_that_nothing_was_saved():
    with pytest.raises(train.Diverged, match="at step 1 of 40; nothing was saved"):
        fit(regression(), batch=lambda step: torch.full((32, 3), float("nan")))


def test_precision_may_differ_between_two_fits_of_one_process():
    seen = []

    def spying(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        seen.append((x @ x.T).dtype)
        return loss_fn(model, x)

    for precision in ("no", "bf16"):
        model, optimizer, _ = regression()
        train.fit(model, spying, batch, 2, optimizer, device="cpu", precision=precision)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert model.forward.__func__ is nn.Sequential.forward  # accelerate's wrapper is gone


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(regression(), out=tmp_path)
    other = nn.Linear(3, 1)
    with pytest.raises(InputError, match="is of another model or optimizer; delete it to start anew"):
        train.fit(other, loss_fn, batch, STEPS, torch.optim.Adam(other.parameters()), out=tmp_path, device="cpu")


def test_a_checkpoint_of_a_longer_run_is_refused(tmp_path):
    fit(regression(), out=tmp_path)
    with pytest.raises(InputError, match="is of a run of 40 steps, more than the 20 asked for"):
        fit(regression(20), steps=20, out=tmp_path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 0}, "steps=0: training takes 1 step or more"),
        ({"precision": "half"}, "precision='half': accepted are"),
    ],
)
def test_bad_settings_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        fit(regression(), **given)


@pytest.mark.parametrize(("steps", "warmup", "first"), [(64, 0.03, 2), (300, 0.1, 30), (8, 0.0, 1), (1, 0.1, 1)])
def test_the_rate_rises_in_a_line_and_falls_in_a_cosine(steps, warmup, first):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = train.warmup_cosine(optimizer, steps, warmup)
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rise = [2.0 * (step + 1) / first for step in range(first)]
    fall = [1 + math.cos(math.pi * (step - first) / max(1, steps - first)) for step in range(first, steps + 1)]
    assert rates == pytest.approx(rise + fall)
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(0 if steps > 1 else 2.0)


def test_epochs_visit_every_item_once_and_depend_on_the_step_alone():
    indices = train.epochs(50, 10, seed=3)
    first, second = (torch.cat([indices(step) for step in range(k, k + 5)]) for k in (0, 5))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()
    assert torch.equal(train.epochs(50, 10, seed=3)(7), indices(7))
    assert not torch.equal(train.epochs(50, 10, seed=4)(7), indices(7))


def test_epochs_of_less_than_a_batch_are_refused():
    with pytest.raises(InputError, match="7 items do not fill one batch of 8"):
        train.epochs(7, 8, seed=0)
