"""A search runs a chapter on seeds that are never reported, computes what its metric reads, goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from vlws import experiment, mime
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import chapters, evidence, records, space, tune, tuned

PARAMETERS = (
    'preset: str = "cpu"  # preset\nseeds: int = 2  # seeds\nx: float = 0.5  # where [0 to 4]\n'
    'n: int = 3  # of them [at least 1]\nkind: str = "plain"  # of them [plain or odd]\nslow: bool = False  # to wait\n'
    'path: str = ""  # a file\nsome: list[int] = [1, 2]  # numbers'
)
CELLS = [
    "import os, time\nfrom pathlib import Path\nfrom vlws import claims, experiment\n"
    "chapter = claims.open_chapter('01', preset=preset)",
    "def cell(arm, seed, *, x, n, kind, slow):\n"
    "    if x > 3.9:\n        raise ValueError('too far')\n"
    "    while slow and Path(os.environ['VLWS_ROOT'], 'wait').exists():\n        time.sleep(0.05)\n"
    "    base = 0.0 if arm == 'plain' else 4 - (x - 2) ** 2 - abs(n - 5) - (kind == 'odd')\n"
    "    return {'score': base + seed / 1e6, 'other': 1.0}",
    "made = experiment.grid(cell, ['plain'], seeds, name='01-made', workers=1, x=0.0, n=1, kind='plain', slow=False)\n"
    "given = {seed: made.cell('plain', seed)['score'] for seed in range(seeds)}",
    "results = experiment.grid(cell, ['mine', 'plain', 'left'], seeds, name='01-arms', workers=1, x=x, n=n,\n"
    "                          kind=kind, slow=slow)\nresults.keep()",
    "every = sum(results[arm]['score'] for arm in results.arms)\n"
    "chapter.measure('01.C1', results['mine']['score'] - results['plain']['score'])\n"
    "chapter.measure('01.C2', results['mine']['score'] - every)\n"
    "_ = chapter.measure('01.C3', results['mine']['score'])",
]
CLAIMS = """chapter: "01"
claims:
  - {id: "01.C1", says: "better", where: abstract, metric: mine − plain, unit: u, direction: greater, threshold: 0}
  - {id: "01.C2", says: "than all", where: abstract, metric: mine − every, unit: u, direction: less, threshold: 0}
  - {id: "01.C3", says: "as much", where: abstract, metric: mine, unit: u, direction: within, threshold: 3,
     tolerance: 1}
"""


@pytest.fixture
def workspace(empty_workspace, tmp_path):
    code = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, CELLS)]
    numbers = {"score": [0.0], "other": [1.0]}
    kept = {"name": "01-arms", "seeds": [0], "arms": dict.fromkeys(("mine", "plain", "left"), numbers), "seconds": 1.0}
    code[4].outputs = [new_output("display_data", {mime.ARMS: kept | {"code": "x"}})]  # as executed and committed
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=code, metadata=metadata), tmp_path / "notebooks" / "01_small.ipynb")
    (tmp_path / "notebooks" / "claims" / "01_small.yaml").write_text(CLAIMS)
    (tmp_path / "notebooks" / "presets.yml").write_text('"01": {test: {seeds: 1}}\n"02": {}\n')
    return tmp_path


def cells(root: Path, name: str) -> set[tuple[str, int]]:
    """(arm, seed) of every cell of an experiment in the cache."""
    found = [json.loads(path.read_text())["made"] for path in root.glob(f".cache/experiment/{name}/*.json")]
    return {(cell["arm"], cell["seed"]) for cell in found}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vlws.lab.cli", "tune", "01", *arguments, "--json"]


def until(condition, what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


def slow_runs(root: Path) -> list[dict]:
    """The records of trials that go on, but for those with which a search looks which arms it needs."""
    found = [read_json(path) for path in root.glob("runs/tuning/01_small/*/run.json")]
    return [one for one in found if one and one["status"] == "running" and one["params"]["slow"]]


def test_a_search_finds_the_best_on_seeds_that_are_not_reported_and_leaves_no_evidence(workspace):
    said = []
    asked = {"x": "0..4", "n": "3..6", "kind": "plain,odd", "slow": "false"}
    found = tune.tune("01", asked, "01.C1", trials=4, jobs=1, say=said.append)
    assert [trial["number"] for trial in sorted(found["trials"], key=lambda t: t["number"])] == list(range(4))
    first = next(trial for trial in found["trials"] if trial["number"] == 0)
    assert first["params"] == {"x": 0.5, "n": 3, "kind": "plain"}  # the chapter's own
    values = [trial["value"] for trial in found["trials"]]
    assert values == sorted(values, reverse=True)
    best = found["best"]["params"]
    expected = 4 - (best["x"] - 2) ** 2 - abs(best["n"] - 5) - (best["kind"] == "odd")
    assert found["best"]["value"] == pytest.approx(expected)
    assert set(found["importance"]) == {"x", "n", "kind"}
    assert (found["seeds"], found["ended"]) == ([1000, 1001], "")
    assert cells(workspace, "01-made") == {("plain", 1000), ("plain", 1001)}
    assert {seed for _, seed in cells(workspace, "01-arms")} == {1000, 1001}
    assert {arm for arm, seed in cells(workspace, "01-arms") if seed == 1001} == {"mine", "plain"}
    assert "arms that each trial computes: mine, plain" in said
    (record,) = [json.loads(p.read_text()) for p in workspace.glob(f"runs/{found['best']['run']}/run.json")]
    assert not evidence.counts(record)
    (kept,) = json.loads((workspace / "runs" / found["best"]["run"] / "arms.json").read_text())
    assert (kept["seeds"], sorted(kept["arms"])) == ([1000, 1001], ["mine", "plain"])
    assert records.records() == []
    assert evidence.standing()["01.C1"].verdict == "not measured"
    with pytest.raises(InputError, match="has no finished run"):
        evidence.publish("01", "cpu")
    runs = sorted(workspace.glob("runs/tuning/01_small/*/run.json"))
    again = tune.tune("01", asked, "01.C1", trials=4, jobs=1)
    assert again["trials"] == found["trials"]
    assert sorted(workspace.glob("runs/tuning/01_small/*/run.json")) == runs  # nothing was run again


@pytest.mark.cluster
def test_a_metric_that_reads_more_arms_than_it_names_is_computed_with_all(workspace):
    said = []
    found = tune.tune("01", {"x": "1,2"}, "01.C2", trials=1, jobs=1, say=said.append)
    assert "arms that each trial computes: all, since the metric reads others too" in said
    assert {arm for arm, _ in cells(workspace, "01-arms")} == {"mine", "plain", "left"}
    assert found["direction"] == "minimize"


@pytest.mark.cluster
def test_an_arm_and_a_claim_within_a_tolerance_and_a_trial_that_fails(workspace):
    found = tune.tune("01", {"x": "2,3.95", "n": "5"}, "mine:score", trials=3, jobs=1, seeds=1)
    assert found["best"]["value"] == pytest.approx(4.001)
    assert cells(workspace, "01-arms") == {("mine", 1000), ("plain", 1000), ("left", 1000)}  # all at preset test
    failed = [trial for trial in found["trials"] if trial["params"]["x"] == 3.95]
    assert all(t["state"] == "fail" and "CellFailed" in t["why"] and "too far" in t["why"] for t in failed)
    near = tune.tune("01", {"x": "1,2", "n": "5"}, "01.C3", trials=1, jobs=1, seeds=1)
    assert near["best"]["value"] == pytest.approx({1: 0.001, 2: 1.001}[near["best"]["params"]["x"]])


@pytest.mark.cluster
def test_two_searches_share_a_journal_and_one_that_is_killed_is_gone_on_with(workspace):
    (workspace / "wait").touch()
    arguments = ["--metric", "mine:score", "-p", "x=0..3", "-p", "slow=true", "--trials", "3", "--jobs", "1"]
    first = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: slow_runs(workspace), "a trial")
    first.kill()
    first.communicate()
    both = [
        subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    until(lambda: len(slow_runs(workspace)) == 2, "two trials at once")
    (workspace / "wait").unlink()
    told = []
    for one in both:
        out, err = one.communicate(timeout=150)
        assert one.returncode == 0, err
        told.append(json.loads(out))
    last = max(told, key=lambda found: len([t for t in found["trials"] if t["state"] == "complete"]))
    done = [trial for trial in last["trials"] if trial["state"] == "complete"]
    assert 3 <= len(done) <= 4  # two that ask at the same moment may both ask for the last
    statuses = [json.loads(p.read_text())["status"] for p in workspace.glob("runs/tuning/01_small/*/run.json")]
    assert statuses.count("dead") == 1  # the run that was killed; no other was cut off
    keys = [json.loads(p.read_text()) for p in workspace.glob("runs/tuning/01_small/*/run.json")]
    good = [record["key"] for record in keys if record["status"] == "ok"]
    assert len(good) == len(set(good))


@pytest.mark.cluster
def test_ctrl_c_and_minutes_that_are_over_leave_the_trial_to_the_next(workspace):
    (workspace / "wait").touch()
    asked = {"x": "1,2", "slow": "true"}
    found = tune.tune("01", asked, "mine:score", trials=2, minutes=0.12, jobs=1)
    assert (found["ended"], found["best"]) == (tune.SPENT, None)
    child = subprocess.Popen(
        command("--metric", "mine:score", "-p", "x=1,2", "-p", "slow=true", "--trials", "2", "--jobs", "1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: slow_runs(workspace), "a run")
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=100)
    assert json.loads(out)["error"].startswith("interrupted")
    (workspace / "wait").unlink()
    found = tune.tune("01", asked, "mine:score", trials=2, jobs=1)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sedes": "1..2"}, "has no parameter 'sedes' .did you mean seeds?"),
        ({"x": "0..9"}, "x=9.0 is outside what it accepts: 0 to 4"),
        ({"x": "a..b"}, "x='a' is no float"),
        ({"n": "0.5..2"}, "n='0.5' is no int"),
        ({"x": "3..1"}, "x='3..1' is no range: its first end must be below the second"),
        ({"x": "0..1:log"}, "a logarithmic range begins above 0"),
        ({"slow": "false..true"}, "is a range, and slow is bool"),
        ({"kind": "plain,strange"}, "kind='strange' is outside what it accepts"),
        ({"some": "[1,2],[3]"}, r"\[1, 2\] is a list; a search chooses numbers, texts and true or false"),
        ({"x": "1"}, "a search needs a parameter to choose"),
        ({"seeds": "1..3"}, "seeds is not for a search to choose"),
        ({"preset": "cpu", "x": "1,2"}, "preset is not for a search to choose"),
    ],
)
def test_a_space_that_the_chapter_does_not_accept_is_refused(workspace, asked, said):
    with pytest.raises(InputError, match=said):
        tune.tune("01", asked, "01.C1", trials=1)
    assert not (workspace / "runs").exists()


def test_what_else_is_refused(workspace):
    good = {"x": "1,2"}
    for change, said in [
        ({"metric": "01.C9"}, r"'01.C9' is no metric: give one of the claims 01.C1, 01.C2, 01.C3, or arm:metric"),
        ({"metric": "theirs:score"}, "chapter 01 has no arm 'theirs'; it has left, mine, plain"),
        ({"metric": "mine:auroc"}, "arm 'mine' has no metric 'auroc'; it has other, score"),
        ({"metric": "01.C1", "minimize": True}, "01.C1 says itself which way is better"),
        ({"trials": 0}, "trials is 0; a search needs at least 1"),
        ({"minutes": 0.0}, "minutes is 0; a search needs more than 0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"jobs": 0}, "jobs is 0; it must be at least 1"),
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"seeds": 0}, "seeds=0 is outside what it accepts"),
    ]:
        with pytest.raises(InputError, match=said):
            tune.tune("01", good, **({"metric": "01.C1", "trials": 1} | change))
    assert not (workspace / "runs").exists()


def test_the_journal_of_another_search_is_refused(workspace):
    journal = workspace / "mine.journal"
    one = chapters.chapter("01")

    def opened(asked, metric="01.C1", preset="cpu"):
        ranges, fixed = space.read_space(one, asked)
        tune.Search(one, ranges, fixed, space.read_target(one, metric, False), preset, None).open(journal)

    opened({"x": "0..4"})
    opened({"x": "0..4"})
    for arguments, said in [
        (({"x": "0..3"},), r"is the journal of another search: its ranges is .*high=4.0.* and now it is .*high=3.0"),
        (({"x": "0..4", "n": "5"},), "another search: its values is"),
        (({"x": "0..4"}, "mine:score"), "its metric is '01.C1', and now it is 'mine:score'; give another --journal"),
        (({"x": "0..4"}, "01.C1", "test"), "its preset is 'cpu', and now it is 'test'"),
    ]:
        with pytest.raises(InputError, match=said):
            opened(*arguments)
    path = workspace / "notebooks" / "01_small.ipynb"
    path.write_text(path.read_text().replace("- abs(n - 5)", "- abs(n - 6)"))
    one = chapters.chapter("01")
    with pytest.raises(InputError, match="its code is"):
        opened({"x": "0..4"})
    journal.write_text("not a journal\nat all\n")
    with pytest.raises(InputError, match=r"mine.journal is no journal of a search \("):
        opened({"x": "0..4"})


def test_seeds_that_may_be_reported_are_replaced_and_others_stay():
    assert [tuned.tuning_seed(seed) for seed in (0, 10, 999, 1000, 1003)] == [1000, 1010, 1999, 1000, 1003]
    assert tuned.kept_arms(["a", "b"], {"b", "c"}) == ["b"]
    assert tuned.kept_arms(["a", "b"], {"c"}) == ["a"]
    assert tuned.kept_arms(["a", "b"], set()) == ["a", "b"]


def test_a_grid_looks_as_it_was_asked_for(workspace):
    def cell(arm, seed, *, own):
        return {"seed": seed, "own": own}

    grid = tuned.grid_of(experiment.grid, {"b"}, {"named"})
    found = grid(cell, ["a", "b"], [0, 1], name="named", workers=1, by_seed={"own": {0: 7, 1: 8}})
    assert (found.arms, found.seeds) == (("a", "b"), (0, 1))
    assert found["a"]["seed"].tolist() == found["b"]["seed"].tolist() == [1000, 1001]
    assert found["b"]["own"].tolist() == [7, 8]
    assert list(found.scalars()) == ["b"]
    other = grid(cell, ["a", "b"], 2, name="other", workers=1, own=1)
    assert list(other.scalars()) == ["a", "b"]
    assert os.path.exists(workspace / ".cache")
