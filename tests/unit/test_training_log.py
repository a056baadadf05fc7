import json

import torch
from torch import nn

from vlws import experiment, train, training_log


def cell(arm, seed, *, steps):
    for _ in range(2):
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train.fit(
            model,
            lambda m, x: m(x).square().mean(),
            lambda step: torch.ones(2, 1),
            steps,
            optimizer,
            label="",
            log_every=2,
        )
    return {"v": seed}


def written(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_losses_of_cells_stand_in_the_run_also_when_the_cells_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path / "cache"))
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        run.mkdir()
        monkeypatch.setenv("VLWS_RUN", str(run))
        experiment.grid(cell, ["a", "b"], [3], name="t", workers=1, steps=3)
    lines = written(runs[0])
    where = [(line["experiment"], line["arm"], line["seed"], line["training"], line["step"]) for line in lines]
    assert where == [("t", arm, 3, training, step) for arm in "ab" for training in (1, 2) for step in (2, 3)]
    assert all(line["loss"] >= 0 and line["lr"] == 0.1 for line in lines)
    assert written(runs[1]) == lines


def test_a_training_outside_of_cells_is_written_at_once_and_without_a_run_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("VLWS_RUN", str(tmp_path))
    training_log.report([{"step": 1, "loss": 0.5}], "mine")
    assert written(tmp_path) == [{"training": 1, "label": "mine", "step": 1, "loss": 0.5}]
    monkeypatch.delenv("VLWS_RUN")
    training_log.report([{"step": 2, "loss": 0.5}])
    assert len(written(tmp_path)) == 1
