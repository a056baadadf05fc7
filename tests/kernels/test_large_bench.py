"""`kernels/bench/large.py` at small sizes: its rows have the form that readers expect; what is computed says how."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "kernels" / "bench"


def test_rows_are_measured_killed_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    command = [sys.executable, str(BENCH / "large.py"), "--quick", "--rows", "gram", "search", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    assert {"cpu", "cores", "versions", "date"} <= set(results["machine"])
    assert set(results["rows"]) == {"gram", "search"}
    killed = results["rows"]["gram"]["1024 sequences"]
    assert killed["killed"]["slots_ended"]
    assert killed["killed"]["is_no_matrix"]
    assert killed["said"]["reused"] == killed["killed"]["whole_blocks"] > 0
    for name in ("2000 vectors of dim 128", "20000 vectors of dim 384"):
        row = results["rows"]["search"][name]
        assert row["same"]
        assert row["peak_mb"] > 0
        assert all(row[f"{n} queries, {jobs} threads"]["cpu_s"] > 0 for n in (1, 64) for jobs in (1, 2))


def test_what_is_computed_follows_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import large

    def run(wall: float) -> dict:
        return {"wall_s": wall, "cpu_s": 24.0, "serial_s": 1.0, "work_s": 20.0}

    found = large.scaled({1: [run(23.0), run(22.0), run(60.0)], 2: [run(13.0)]})
    assert found["measured"] == {"wall_1_over_wall_2": 1.77, "cpu_2_over_cpu_1": 1.0}
    assert found["computed"]["start_s"] == 2.0  # 23 - 1 - 20
    assert found["computed"]["speedup"][2] == round(23 / 13, 2)
    assert found["computed"]["speedup_of_100_times"][4] == round(2003 / 503, 1)
    assert "work / s" in found["computed"]["formula"]
