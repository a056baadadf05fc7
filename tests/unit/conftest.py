"""What every test of this folder has, and a workspace that some share."""

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    """Tables are as wide as their text, whatever another test or the caller has put into the environment."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models run fastest with one thread a process, and many times slower with two on a busy machine."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def empty_workspace(tmp_path, monkeypatch):
    """A workspace without chapters, whose runs and cache are its own."""
    (tmp_path / "notebooks" / "claims").mkdir(parents=True)
    monkeypatch.setenv("VLWS_ROOT", str(tmp_path))
    for name in ("VLWS_RUNS", "VLWS_CACHE", "VLWS_RUN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A workspace of chapter 04 with one run of it: the committed notebook as executed, its files, record and cells."""
    import json
    import shutil
    import time

    from vlws import cells
    from vlws.lab import chapters, records

    here = Path(__file__).parents[2]
    root = tmp_path / "workspace"
    (root / "notebooks" / "claims").mkdir(parents=True)
    shutil.copy(here / "constraints.txt", root)
    for name in ("04_cmg.ipynb", "claims/04_cmg.yaml"):
        shutil.copy(here / "notebooks" / name, root / "notebooks" / name)
    for name in ("VLWS_RUNS", "VLWS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLWS_ROOT", str(root))
    one = chapters.chapter("04")
    params = {name: parameter.default for name, parameter in one.parameters.items()}
    key = records.key(one, params)
    folder = root / "runs" / one.slug / f"20260101T000000-{key[:8]}"
    folder.mkdir(parents=True)
    shutil.copy(one.path, folder / "notebook.ipynb")
    records.keep_data(json.loads(one.path.read_text()), folder)
    record = {"schema": 1, "run_id": folder.name, "chapter": one.id, "slug": one.slug, "title": one.title}
    record |= {"preset": "cpu", "status": "ok", "rc": 0, "key": key, "params": params, "overrides": [], "axes": []}
    record |= {"git": {"sha": "0" * 40, "dirty": False}, "env": {"python": "3.11.7", "cpu": "C, 2 cores", "gpu": None}}
    record |= {"started": "2026-01-01T00:00:00.000+00:00", "ended": "2026-01-01T00:01:00.000+00:00", "wall_s": 60.0}
    record |= {"peak_rss_mb": 900, "first_error": None, "host": "a", "pid": 1, "pid_started": 1.0}
    (folder / "run.json").write_text(json.dumps(record))
    for grid in json.loads((folder / "arms.json").read_text()):
        of = root / ".cache" / "experiment" / grid["name"]
        of.mkdir(parents=True)
        for arm, metrics in grid["arms"].items():
            for place, seed in enumerate(grid["seeds"]):
                values = {metric: numbers[place] for metric, numbers in metrics.items()}
                cells.write_cell(of / f"{arm}-{seed}".replace(" ", "_"), values, arm, seed, time.perf_counter())
    return root


@pytest.fixture
def vlws(monkeypatch, capsys):
    """Call the command line in this process: (exit code, stdout and stderr)."""
    from vlws.lab import cli

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vlws", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out + captured.err

    return call
