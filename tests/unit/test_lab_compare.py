"""Runs beside each other as data: what differs, what each measured, and which run a name means."""

import json
import subprocess
import sys

import pytest

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
