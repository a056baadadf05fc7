"""The reader's own data: figures and files that a run keeps, and cells that are left out."""

import pytest
from IPython.core.interactiveshell import InteractiveShell

from vlws import mime, own
from vlws.errors import InputError
from vlws.lab.records import KEPT, collect


@pytest.fixture
def shell():
    made = InteractiveShell.instance()
    yield made
    own.leave_out_experiment(False)
    InteractiveShell.clear_instance()


def test_marked_cells_do_nothing_until_they_are_wanted_again(shell, capsys):
    own.leave_out_experiment(True)
    own.leave_out_experiment(True)
    shell.run_cell("# experiment\nmarked = 1")
    shell.run_cell("other = 2  # experiment")
    assert "marked" not in shell.user_ns
    assert shell.user_ns["other"] == 2
    assert capsys.readouterr().out.count("left out") == 1
    own.leave_out_experiment(False)
    shell.run_cell("# experiment\nmarked = 1")
    assert shell.user_ns["marked"] == 1


def test_outside_of_ipython_nothing_happens():
    own.leave_out_experiment(True)


def test_results_of_two_metrics_are_kept_apart():
    shown = [own.results({"CMG": (0.9, 0.8, 1.0)}, metric=m, of="9 pictures", n=2) for m in ("AUROC", "AUPR")]
    outputs = [{"data": one._repr_mimebundle_()} for one in [*shown, shown[0]]]
    kind, *key = KEPT["results.json"]
    found = collect({"cells": [{"outputs": outputs}]}, kind, *key)
    assert kind == mime.RESULT
    assert [r["metric"] for r in found] == ["AUROC", "AUPR"]
    assert found[0] == {
        "name": "CMG", "metric": "AUROC", "unit": "", "value": 0.9, "low": 0.8, "high": 1.0, "n": 2, "of": "9 pictures",
    }  # fmt: skip


def test_a_result_without_an_interval_is_shown_as_such():
    assert "–" in own.results({"CMG": (0.9, None, None)}, metric="AUROC", of="9 pictures", n=1).html


@pytest.mark.parametrize("values", [(float("nan"), 0.1, 0.2), (None, 0.1, 0.2), (0.1, 0.0, float("inf"))])
def test_a_result_that_is_no_number_is_refused(values):
    with pytest.raises(InputError, match="must be finite"):
        own.results({"CMG": values}, metric="AUROC", of="9 pictures", n=1)


def test_files_go_through_a_cell_unchanged(tmp_path, monkeypatch):
    def save(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "a.bin").write_bytes(bytes(range(256)))

    monkeypatch.setenv("VLWS_RUN", str(tmp_path))
    cell = own.packed(save) | {"scores": 1.0}
    to = own.unpack(cell, own.file("detector"))
    assert to == tmp_path / "files" / "detector"
    assert (to / "deep" / "a.bin").read_bytes() == bytes(range(256))
    assert repr(own.files()) == "files: detector/deep/a.bin"


def test_a_notebook_outside_a_run_writes_below_the_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("VLWS_RUN", raising=False)
    monkeypatch.setenv("VLWS_RUNS", str(tmp_path))
    assert own.file("scores.csv") == tmp_path / "notebook" / "files" / "scores.csv"
