"""`kernels/bench/methods.py` at small sizes: every row is measured, and the file has the form that readers expect."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "kernels" / "bench"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "methods.json"
    command = [sys.executable, str(BENCH / "methods.py"), "--quick", "--threads", "1", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "threads of each side: 1" in done.stdout
    assert all(row["name"] in done.stdout for row in json.loads(path.read_text())["rows"].values())
    return path


def test_every_row_has_times_ratios_and_what_was_left_out(file: Path) -> None:
    results = json.loads(file.read_text())
    assert {"cpu", "cores", "versions", "threads", "kernels", "date"} <= set(results["machine"])
    rows = results["rows"].values()
    assert {row["group"] for row in rows} == {"query", "search", "step", "encode"}
    for row in rows:
        assert row["sizes"]
        assert row["peers"] or row["left_out"]
        for arm in (row["ours"], *row["peers"].values()):
            assert arm["seconds"] > 0
            assert arm["items_per_second"] == pytest.approx(arm["items"] / arm["seconds"])
        for peer in row["peers"].values():
            low, high = peer["ratio_quartiles"]
            assert 0 < low <= peer["ratio"] <= high
        assert row["error"] is None or row["error"] < 1e-5


def test_memory_of_each_search_is_that_of_a_process_alone(file: Path) -> None:
    (row,) = (row for row in json.loads(file.read_text())["rows"].values() if row["group"] == "search")
    arms = {row["name"]: row["ours"], **row["peers"]}
    assert {"ranking.top", "vlws_kernels.knn", "torch product+topk"} <= set(arms)
    assert "faiss IndexFlatIP" in arms or "faiss IndexFlatIP" in row["left_out"]
    vectors = row["sizes"]["documents"] * row["sizes"]["dim"] * 4 / 2**20  # MB
    for arm in arms.values():
        assert math.isnan(arm["held_mb"]) or arm["held_mb"] > 0.5 * vectors  # nan where there is no /proc
        assert "memory_mb" in arm


def test_rows_that_are_not_measured_anew_stay_in_a_file_of_this_machine(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import methods

    parser = methods.arguments()
    options = parser.parse_args(["--rows", "query", "search", "--threads", "1"])
    kept = methods.previous(file, options, parser)
    assert {row["group"] for row in kept["rows"].values()} == {"step", "encode"}
    assert methods.previous(tmp_path / "new.json", options, parser)["rows"] == {}
    assert methods.previous(file, parser.parse_args(["--threads", "1"]), parser)["rows"] == {}
    with pytest.raises(SystemExit):
        methods.previous(file, parser.parse_args(["--rows", "query", "--threads", "3"]), parser)
    assert "is of another machine" in capsys.readouterr().err
