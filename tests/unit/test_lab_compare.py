"""Runs beside each other as data: what differs, what each measured, and which run a name means."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vlws import stats
from vlws.errors import InputError
from vlws.lab import compare, records

ONE, OTHER = "20261120T100000-0a1b2c3d", "20261121T100000-0a1b2c3d"


@pytest.fixture
def two(workspace):
    """Two runs of chapter 04, of which the second has other seeds; each with a measure and results of two metrics."""
    for run_id, value in ((ONE, 0.1), (OTHER, 0.2)):
        folder = workspace / "runs" / "04_cmg" / run_id
        measure = {
            "id": "04.C1",
            "says": "s",
            "metric": "AUROC",
            "unit": "AUROC",
            "value": value,
            "low": 0.0,
            "high": 1.0,
        }
        (folder / "measures.json").write_text(json.dumps([measure | {"verdict": "undecided", "n_seeds": 3, "p": 0.5}]))
        found = [
            {"name": "CMG", "metric": metric, "unit": "", "value": value, "low": None, "high": None, "n": 3, "of": "x"}
            for metric in ("AUROC", "AUPR")
        ]
        (folder / "results.json").write_text(json.dumps(found))
    return compare.find([ONE, OTHER])


def test_what_differs_and_what_each_measured(two):
    found = compare.compare(two)
    assert {row["name"]: row["values"] for row in found["parameters"]} == {"seeds": [3, 2]}
    assert [[v["value"] for v in row["values"]] for row in found["measures"]] == [[0.1, 0.2]]
    assert {row["name"] for row in found["results"]} == {"CMG, AUROC", "CMG, AUPR"}
    json.dumps(found)


def measured(record, values, **more):
    """The record with a measure, a gate and, as a run of today, the same seeds as all others."""
    measure = {"id": "04.C1", "says": "s", "metric": "AUROC", "unit": "AUROC", "per": "seed", "gates": ["knows"]}
    measure |= {"values": values, "value": sum(values) / 3, "low": 0.0, "high": 1.0, "verdict": "undecided", "p": 0.5}
    measure |= {"direction": "greater", "threshold": 0.0, "tolerance": None, "paper": None, "where": "abstract"}
    gate = {"name": "knows", "says": "It knows.", "threshold": 0.5, "value": sum(values), "passed": sum(values) > 0.5}
    measure |= {"n_seeds": 3, "why": "why not", "preset": "cpu"}
    return record | {"measures": [measure | more], "gates": [gate], "params": {"seeds": 3}}


def test_changes_are_paired_seed_by_seed_and_gates_stand_beside_each_other(two):
    one, other = measured(two[0], [0.1, 0.2, 0.3]), measured(two[1], [0.2, 0.3, 0.5])
    found = compare.compare([one, other])
    first, then = found["measures"][0]["values"]
    assert first["change"] is None
    differences = stats.interval(np.array([0.1, 0.1, 0.2]))
    assert list(then["change"].values()) == pytest.approx(differences)
    assert (then["why"], then["holm"]) == ("why not", "undecided")
    assert [gate["passed"] for gate in found["gates"][0]["values"]] == [True, True]
    others = measured(two[1], [0.2, 0.3, 0.5]) | {"params": {"seeds": 3, "first_seed": 100}}
    assert compare.compare([one, others])["measures"][0]["values"][1]["change"] is None
    fewer = measured(two[1], [0.2, 0.3])
    assert compare.compare([one, fewer])["measures"][0]["values"][1]["change"] is None
    per_row = measured(two[1], [0.2, 0.3, 0.5], per="row")
    assert compare.compare([one, per_row])["measures"][0]["values"][1]["change"] is None


def test_the_claims_of_one_run_have_its_gates_and_its_remedy(two):
    (row,) = compare.claims_of(measured(two[0], [0.1, 0.2, 0.3]))
    assert (row["id"], row["source"], row["run_id"], row["verdict"]) == ("04.C1", "run", ONE, "undecided")
    assert [gate["name"] for gate in row["gates"]] == ["knows"]
    assert row["holm"] == "undecided"
    (published,) = compare.find(["04@full"])
    rows = compare.claims_of(published)
    assert {row["source"] for row in rows} == {"results"}
    assert all(gate["name"] for row in rows for gate in row["gates"])
    assert any(row["remedy"] for row in rows)


def test_a_sweep_has_a_row_a_run_and_the_parameters_that_differ(two):
    table = compare.sweep_table(two)
    assert table["axes"] == ["seeds"]
    assert [(row["axes"], row["values"]["04.C1"]["value"]) for row in table["rows"]] == [
        ({"seeds": 3}, 0.1), ({"seeds": 2}, 0.2),
    ]  # fmt: skip


def test_a_run_is_found_by_its_id_the_start_of_it_or_its_preset(two):
    assert compare.find([ONE[:8], "04@cpu"])[0]["run_id"] == ONE
    assert compare.find(["04@cpu"])[0]["run_id"] == ONE  # nothing else changed
    assert compare.find(["04@full"])[0]["preset"] == "full"  # published


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (["19990101"], "no run answers to '19990101'"),
        (["0a1b2c3d"], "runs answer to '0a1b2c3d'"),
        (["04@huge"], "no preset 'huge'"),
        (["04@gpu"], "no finished run and no published result"),
    ],
)
def test_a_name_that_means_no_run_is_refused(two, targets, told):
    with pytest.raises(InputError, match=told):
        compare.find(targets)


def test_one_run_and_runs_of_two_chapters_are_refused(two):
    with pytest.raises(InputError, match="1 run to compare; give two or more"):
        compare.compare(two[:1])
    other = next(record for record in records.records() if record["slug"] == "05_fails")
    with pytest.raises(InputError, match="runs of one chapter can be compared"):
        compare.compare([two[0], other])


def test_the_command_writes_a_page_too(two, tmp_path):
    page = tmp_path / "compared.html"
    told = subprocess.run(
        [sys.executable, "-m", "vlws.lab.cli", "compare", ONE, OTHER, "--page", str(page), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [run["run_id"] for run in json.loads(told.stdout)["runs"]] == [ONE, OTHER]
    assert "seeds" in page.read_text()
