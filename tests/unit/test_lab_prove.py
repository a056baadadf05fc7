"""A proof adds seeds, computes what its claim reads, stops as it said it would, and goes on where it was."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from vlws import paths
from vlws.errors import InputError
from vlws.lab import evidence, prove, proved, runner, verify

PARAMETERS = 'preset: str = "cpu"  # preset\nseeds: int = 3  # seeds\neffect: float = 0.0  # of mine'
CELLS = [
    "import numpy as np\nfrom vlws import claims, experiment\nchapter = claims.open_chapter('01', preset=preset)",
    "def cell(arm, seed, *, effect):\n"
    "    if effect < 0:\n"
    "        raise ValueError('no such effect')\n"
    "    rng = np.random.default_rng([seed, len(arm)])\n"
    "    return {'score': rng.normal(effect if arm == 'mine' else 0.0, 0.1)}",
    "results = experiment.grid(cell, ['mine', 'plain', 'left'], seeds, name='01-arms', workers=1, effect=effect)\n"
    "results.keep()",
    "chapter.gate('works', results['plain']['score'])\n"
    "every = np.stack([results[arm]['score'] for arm in results.arms])\n"
    "chapter.measure('01.C1', results['mine']['score'] - results['plain']['score'])\n"
    "chapter.measure('01.C2', results['mine']['score'] - every.mean(0))\n"
    "_ = chapter.measure('01.C3', [1.0, 1.0, 1.0])",
]
CLAIMS = """chapter: "01"
gates:
  works: {says: "It works.", metric: score, direction: greater, threshold: -5}
claims:
  - {id: "01.C1", says: "mine is better", where: abstract, metric: mine − plain, unit: u, direction: greater,
     threshold: 0.3, gates: [works]}
  - {id: "01.C2", says: "than all", where: abstract, metric: mine − the mean, unit: u, direction: greater,
     threshold: 0.3}
  - {id: "01.C3", says: "it is built", where: abstract, metric: one, unit: u, direction: greater, threshold: 0,
     by_construction: the set-up builds it in}
"""


@pytest.fixture
def workspace(empty_workspace, tmp_path):
    code = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, CELLS)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=code, metadata=metadata), tmp_path / "notebooks" / "01_small.ipynb")
    (tmp_path / "notebooks" / "claims" / "01_small.yaml").write_text(CLAIMS)
    (tmp_path / "notebooks" / "presets.yml").write_text(
        '"01":\n  full: {effect: 2.0}\n  gpu: {effect: 0.3}\n  real: {effect: -1.0}\n'
    )
    return tmp_path


@pytest.fixture
def executed(monkeypatch):
    """The jobs that are run, and each one's seeds."""
    seeds, execute = [], runner.execute

    def counted(job, *given, **options):
        seeds.append(job["params"]["seeds"])
        return execute(job, *given, **options)

    monkeypatch.setattr(runner, "execute", counted)
    return seeds


def cells(workspace):
    """(arm, seed) of every cell in the cache."""
    found = [json.loads(path.read_text())["made"] for path in workspace.glob(".cache/experiment/01-arms/*.json")]
    return sorted((cell["arm"], cell["seed"]) for cell in found)


def test_a_clear_claim_ends_at_the_first_look_and_computes_what_it_reads(workspace, executed):
    found = prove.prove("01.C1", preset="full", seeds=8)
    assert (found["verdict"], found["ended"]) == ("supported", "")
    assert [look["seeds"] for look in found["looks"]] == [3]
    kept = json.loads(Path(found["ledger"]).read_text())
    assert {name: kept[name] for name in kept} == {name: found[name] for name in kept}  # what is told is what is kept
    assert (kept["verdict"], kept["low"]) == ("supported", found["looks"][0]["low"])
    assert executed == [2, 3]  # all arms on two seeds, then what the claim names
    assert cells(workspace) == [
        *(("left", k) for k in (0, 1)),
        *((arm, k) for arm in ("mine", "plain") for k in range(3)),
    ]
    (look,) = found["looks"]
    assert look["cells"] == {"01-arms": {"arms": ["mine", "plain"], "seeds": 3}}
    assert [gate["name"] for gate in look["gates"]] == ["works"]
    assert len(look["gates"][0]["values"]) == 3
    assert prove.prove("01.C1", preset="full", seeds=8) == found
    assert executed == [2, 3]  # nothing is run again


def test_at_its_threshold_a_claim_stays_undecided_to_the_last_look(workspace, executed):
    said = []
    found = prove.prove("01.C1", preset="gpu", seeds=5, say=said.append)
    assert [look["verdict"] for look in found["looks"]] == ["undecided", "undecided"]
    assert executed == [2, 3, 5]
    assert any("3 of at most 5 seeds: undecided; the 97 % interval" in line for line in said)
    assert not list((workspace / "runs").glob("*/*/run.json"))  # no run that others would take for evidence
    with pytest.raises(InputError, match=r"begun with at most 5 seeds, and 8 were given.*go on with --seeds 5"):
        prove.prove("01.C1", preset="gpu", seeds=8)


def test_a_claim_that_reads_more_than_it_names_is_found_out(workspace, executed):
    said = []
    found = prove.prove("01.C2", preset="full", seeds=3, say=said.append)
    assert any("reads more arms than it names" in line for line in said)
    assert executed == [2, 3, 3]
    assert len(cells(workspace)) == 9
    assert found["looks"][0]["cells"]["01-arms"]["arms"] == ["left", "mine", "plain"]
    assert found["verdict"] == "supported"


def test_a_proof_goes_on_where_it_was_killed(workspace, monkeypatch):
    execute = runner.execute

    def killed(job, *given, **options):
        if job["params"]["seeds"] == 5:
            raise KeyboardInterrupt
        return execute(job, *given, **options)

    monkeypatch.setattr(runner, "execute", killed)
    with pytest.raises(KeyboardInterrupt):
        prove.prove("01.C1", preset="gpu", seeds=5)
    seeds = []
    monkeypatch.setattr(
        runner, "execute", lambda job, *given, **options: seeds.append(job["params"]["seeds"]) or execute(job)
    )
    found = prove.prove("01.C1", preset="gpu", seeds=5)
    assert seeds == [5]
    assert [look["seeds"] for look in found["looks"]] == [3, 5]


def test_a_proof_of_other_code_is_begun_anew_and_says_so(workspace):
    prove.prove("01.C1", preset="full", seeds=3)
    notebook = workspace / "notebooks" / "01_small.ipynb"
    notebook.write_text(notebook.read_text().replace("len(arm)", "len(arm) + 1"))
    done = vlws("prove", "01.C1", "--preset", "full", "--seeds", "3")
    assert "01.C1: an earlier proof of 1 look was of other code or data; a new one begins" in done.stderr


def test_a_budget_that_is_spent_is_said(workspace):
    found = prove.prove("01.C1", preset="full", seeds=3, minutes=1e-9)
    assert found["ended"] == prove.SPENT
    assert (found["looks"], found["verdict"]) == ([], None)


def vlws(*arguments):
    command = [sys.executable, "-m", "vlws.lab.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_tells_the_chain_of_evidence_and_a_run_that_failed(workspace):
    done = vlws("prove", "01.C1", "--preset", "full", "--seeds", "3")
    assert done.returncode == 0, done.stderr
    for part in (
        "supported: the 95 % interval of this look [",
        "gate works",
        "cells 01-arms: mine, plain x 3 seeds; code",
        "pins",
        "ledger",
    ):
        assert part in done.stdout
    failed = vlws("prove", "01.C1", "--preset", "real", "--json")
    assert failed.returncode == 1
    (told,) = json.loads(failed.stdout)
    assert "no such effect" in told["ended"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["01.C9"], "no chapter has a claim '01.C9'; there are 01.C1, 01.C2, 01.C3."),
        (["01.C3"], "01.C3 cannot be proved: it is by construction, and not judged."),
        (["01.C1", "--minutes", "0"], "minutes is 0; a proof needs more than 0."),
        (["01.C1", "--seeds", "2"], "seeds is 2; this claim needs at least 3."),
        (["01.C1", "--all"], "prove takes one or more claims, such as 04.C2, or --all: one of the two."),
        (["--all"], "--all needs --minutes, how long it may take."),
        (
            ["01.C1", "--preset", "test"],
            "preset is 'test', whose figures are no evidence; a proof takes cpu or a larger",
        ),
        (["01.C1", "--preset", "huge"], "no preset 'huge'; chapter 01 has cpu, full, gpu, real."),
    ],
)
def test_bad_input_is_one_sentence(workspace, arguments, sentence):
    done = vlws("prove", *arguments, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"].startswith(sentence)
    assert not (workspace / "runs").exists()


# --- kept -------------------------------------------------------------------------------------------------------------


def test_a_proof_stands_beside_the_verdict_is_published_and_grows_stale(workspace):
    assert evidence.standing()["01.C1"].proof is None
    with pytest.raises(InputError, match=r"^01\.C1 has no proof at preset 'full'; make one with `vlws prove 01\.C1"):
        proved.publish("01.C1", "full")
    prove.prove("01.C1", preset="full", seeds=8)
    row = evidence.standing()["01.C1"]
    assert (row.verdict, row.proof["verdict"], row.proof["source"]) == (evidence.NOT_MEASURED, "supported", "run")
    assert re.fullmatch(r"supported at 3 of at most 8 seeds, [\d.]+ \[[\d.]+, [\d.]+\]", row.proof["said"])
    assert row.told()["proof"]["at"] == [3, 5, 8]
    done = vlws("claims", "publish", "01.C1", "--json")
    assert done.returncode == 0, done.stderr
    kept = Path(json.loads(done.stdout)["published"])
    assert kept == workspace / "reports" / "results" / "proofs" / "01_small" / "01.C1.full.json"
    shutil.rmtree(workspace / "runs")
    assert evidence.standing()["01.C1"].proof == row.proof | {"source": "results"}
    assert prove.prove("01.C1", preset="full", seeds=8)["ledger"] == str(kept)  # what is published is not made again
    assert not (workspace / "runs").exists()
    assert "; proved supported at 3 of at most 8 seeds" in vlws("claims", "01").stdout.replace("\n", " ")
    notebook = workspace / "notebooks" / "01_small.ipynb"
    notebook.write_text(notebook.read_text().replace("len(arm)", "len(arm) + 1"))
    (told,) = [one for one in json.loads(vlws("claims", "--json", "01").stdout) if one["id"] == "01.C1"]
    assert told["proof"]["stale"] is True


def test_a_proof_that_has_not_ended_or_is_stale_is_not_published(workspace):
    prove.prove("01.C1", preset="gpu", seeds=5)
    path = proved.folder() / "01_small" / "01.C1.gpu.json"
    ledger = json.loads(path.read_text())
    path.write_text(json.dumps(ledger | {"looks": ledger["looks"][:1]}))
    with pytest.raises(InputError, match=r"^the proof of 01\.C1 has not come to its end; go on with `vlws prove"):
        proved.publish("01.C1", "gpu")
    path.write_text(json.dumps(ledger | {"key": "of yesterday"}))
    with pytest.raises(InputError, match=r"^the proof of 01\.C1 is stale \(code or data of its chapter has changed\)"):
        proved.publish("01.C1", "gpu")


@pytest.mark.parametrize("damage", [{"looks": [{}]}, {"slug": "09_none"}, {"preset": "huge"}, {"looks": 1}])
def test_a_ledger_that_cannot_be_read_stands_for_nothing(workspace, damage):
    prove.prove("01.C1", preset="full", seeds=3)
    (path,) = proved.folder().glob("*/01.C1.full.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert proved.standing() == {}


def test_the_largest_scale_stands_and_a_link_out_of_the_runs_does_not(workspace, tmp_path_factory):
    for preset in ("full", "gpu"):
        prove.prove("01.C1", preset=preset, seeds=3)
    assert proved.standing()["01.C1"]["preset"] == "gpu"
    outside = tmp_path_factory.mktemp("outside") / "x.json"
    path = proved.folder() / "01_small" / "01.C1.gpu.json"
    path.rename(outside)
    path.symlink_to(outside)
    assert proved.standing()["01.C1"]["preset"] == "full"


def edited(ledger, where, value):
    """A copy of a ledger with one field changed; `where` is its path."""
    copy = json.loads(json.dumps(ledger))
    *folder, name = where
    inner = copy
    for step in folder:
        inner = inner[step]
    inner[name] = value
    return copy


def test_a_ledger_that_was_edited_is_found_out(workspace):
    path = Path(prove.prove("01.C1", preset="gpu", seeds=5)["ledger"])
    whole = verify.verify(str(path))
    assert [check["result"] for check in whole["checks"]] == ["ok"] * 6
    assert (whole["kind"], whole["again"]) == ("proof", ["vlws prove 01.C1 --preset gpu --seeds 5"])
    ledger = json.loads(path.read_text())
    for where, value, check, said in (
        (("at",), [3, 4], "looks", "was to look at [3, 4]"),
        (("at",), [3, 6], "looks", "of these numbers the rule gives [3, 5, 6]"),
        (("levels", 0), 0.05, "looks", "the level at 3 seeds is 0.05"),
        (("looks", 0, "level"), 0.05, "looks", "was at level 0.05"),
        (("looks", 0, "verdict"), "supported", "looks", "it went on after 3 seeds"),
        (("looks", 1, "verdict"), "supported", "intervals and verdicts", "verdict is supported, the values say undec"),
        (("looks", 1, "measure", "values", 0), 9.0, "intervals and verdicts", "the values say"),
        (("looks", 1, "measure", "values"), [1.0, 2.0], "intervals and verdicts", "has 2 values"),
        (("low",), 0.31, "intervals and verdicts", "low is 0.31, that of the last look"),
        (("looks", 1, "measure", "threshold"), 0.1, "claim", "threshold is 0.1, in the claims file 0.3"),
        (("looks", 1, "gates", 0, "passed"), False, "gates", "passed True"),
        (("looks", 1, "gates"), 1, "gates", "it has another form (TypeError"),
        (("key",), "x", "code and data", "it is stale"),
        (("slug",), "09_none", "claim", "no chapter '09_none'"),
        (("claim",), "01.C9", "claim", "no chapter of this workspace has a claim '01.C9'"),
        (("looks", 1, "run"), "../../x", "run", "is not here"),
    ):
        path.write_text(json.dumps(edited(ledger, where, value)))
        lines = [c for c in verify.verify(str(path))["checks"] if c["check"] == check and c["result"] != "ok"]
        assert any(said in line["said"] for line in lines), (where, lines)
    measures = next(paths.runs().glob(f"{ledger['looks'][-1]['run']}/measures.json"))
    measures.write_text(measures.read_text().replace("0.", "1."))
    path.write_text(json.dumps(ledger))
    assert "has other values" in str(verify.verify(str(path))["checks"])
    path.write_text(json.dumps(ledger | {"looks": []}))
    with pytest.raises(InputError, match="is a proof that has not looked yet, or of another schema than 2"):
        verify.verify(str(path))
