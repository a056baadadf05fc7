"""What is committed as evidence says what its numbers say: verdicts, ids and the results table are recomputed."""

import dataclasses
import json

import pytest

from vlws import claims, paths
from vlws.files import read_json
from vlws.lab import chapters
from vlws.lab import runner as runs
from vlws.lab import site as report

SLUGS = [chapter.slug for chapter in chapters.chapters()]


def problems(measures: list[dict], chapter: claims.Chapter) -> list[str]:
    """What is wrong with measures, held against the claims file as it stands."""
    found = []
    fields = [field.name for field in dataclasses.fields(claims.Measure) if field.name != "shown_by"]
    for m in measures:
        claim = chapter.claims.get(m.get("id"))
        if set(m) != set(fields):
            found.append(f"{m.get('id')}: its fields are {sorted(m)}")
            continue
        if claim is None:
            found.append(f"{m['id']}: no such claim")
            continue
        for name in ("says", "where", "metric", "unit", "paper", "direction", "threshold", "tolerance"):
            if m[name] != getattr(claim, name):
                found.append(f"{m['id']}: {name} is {m[name]!r}, in the claims file {getattr(claim, name)!r}")
        seeds_short = m["n_seeds"] < max(2, claim.needs.get("seeds", 2)) or m["low"] is None
        unmet = m["why"] if m["verdict"] == claims.NOT_AT_THIS_SCALE and not seeds_short else ""
        word, _ = claims.verdict(claim, m["low"], m["high"], m["n_seeds"], unmet)
        if word != m["verdict"]:
            found.append(f"{m['id']}: the verdict is {m['verdict']!r}, its interval says {word!r}")
        if m["low"] is not None:
            slack = m["high"] - m["low"] + 1e-9  # an estimate that resampling biases may lie a little outside
            if not m["low"] - slack <= m["value"] <= m["high"] + slack:
                found.append(f"{m['id']}: the value lies far outside its interval")
    return found


@pytest.mark.parametrize("slug", SLUGS)
def test_the_notebook_as_committed_holds_every_claim_and_its_verdict(slug):
    path = paths.notebooks() / "claims" / f"{slug}.yaml"
    measures = runs.collect_measures(read_json(paths.notebooks() / f"{slug}.ipynb"))
    if not path.exists():
        assert measures == [], f"{slug} measures claims but has no claims file"
        return
    chapter = claims.load(path)
    assert problems(measures, chapter) == []
    assert {m["id"] for m in measures} == set(chapter.claims)


EVIDENCE = [path for path in sorted((paths.reports() / "results").glob("*/*.json")) if path.stem in chapters.PRESETS]


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_published_results_are_whole_and_their_verdicts_computed(path):
    evidence = json.loads(path.read_text())
    run = evidence["run"]
    assert (run["status"], run["slug"], run["preset"], run["overrides"]) == ("ok", path.parent.name, path.stem, [])
    assert not {"host", "pid", "folder"} & set(run)
    chapter = claims.load(paths.notebooks() / "claims" / f"{path.parent.name}.yaml")
    assert problems(evidence["measures"], chapter) == []
    assert {m["id"] for m in evidence["measures"]} == set(chapter.claims)


def test_the_results_table_is_made_from_the_results():
    table = paths.reports() / "RESULTS.md"
    assert EVIDENCE, "nothing is published under reports/results"
    assert table.read_text() == report.results_markdown()


# --- and the check itself can fail ---


@pytest.fixture
def chapter():
    claim = claims.Claim("04.C1", "s", "w", "m", "u", "greater", 0.05, paper=0.1, needs={"seeds": 3})
    return claims.Chapter("04", {}, {"04.C1": claim})


@pytest.fixture
def measure(chapter):
    return chapter.measure("04.C1", [0.2, 0.21, 0.19]).to_dict()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"verdict": "opposed"}, "its interval says 'supported'"),
        ({"low": 0.01}, "its interval says 'undecided'"),
        ({"threshold": 0.1}, "threshold is 0.1, in the claims file 0.05"),
        ({"paper": 0.2}, "paper is 0.2"),
        ({"id": "04.C7"}, "no such claim"),
        ({"value": 0.9}, "far outside its interval"),
        ({"n_seeds": 2}, "its interval says 'not at this scale'"),
        ({"verdict": "not at this scale", "why": "no GPU"}, None),
        ({"extra": 1}, "its fields are"),
    ],
)
def test_evidence_that_was_edited_is_found_out(chapter, measure, changed, problem):
    found = problems([measure | changed], chapter)
    assert (found == []) if problem is None else (problem in found[0])
