"""Pages of single runs and of published results: every figure of the report leads to what it was measured in."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vlws.display import number
from vlws.errors import InputError
from vlws.lab import claim_graph, evidence, page, records, seal
from vlws.lab.chapters import chapters
from vlws.lab.describe import facts, failure, label, shown
from vlws.lab.evidence import Row

FINISHED = ("ok", "failed", "dead", "timeout")  # the states of a run that has something to show
NEWEST = 6  # changed runs of a chapter that have a page; older ones stand in the table of runs
COPIED = 4_000_000  # bytes: a larger file of a run stays in its folder


def is_own(record: Mapping[str, Any]) -> bool:
    """Whether a run is the reader's: with changed parameters, their data or their checkpoint."""
    return bool(record.get("overrides"))


def run_page(run_id: str) -> str:
    """The file name of a run's page."""
    return f"run-{run_id}.html"


def result_page(slug: str, preset: str) -> str:
    """The file name of a published result's page."""
    return f"result-{slug}-{preset}.html"


def with_pages(kept: Sequence[dict[str, Any]], rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The runs that get a page: those that a row was measured in, and the newest changed ones of each chapter."""
    wanted = {row.source for row in rows if row.kind == "run"}
    own: dict[str, int] = {}
    chosen = []
    for record in kept:  # the newest first
        if record.get("status") not in FINISHED or not (Path(record["folder"]) / "notebook.ipynb").is_file():
            continue
        mine = is_own(record) and own.setdefault(record["slug"], 0) < NEWEST
        own[record["slug"]] = own.get(record["slug"], 0) + (mine and record["run_id"] not in wanted)
        if mine or record["run_id"] in wanted:
            chosen.append(record)
    return chosen


def write_runs(chosen: Iterable[dict[str, Any]], made: Path) -> set[str]:
    """Write the page of each run and the files that it kept for its reader; the ids of the runs that have one."""
    titles = {one.slug: one.title for one in chapters()}
    written = set()
    for record in chosen:
        try:
            notebook = page.read_notebook(Path(record["folder"]) / "notebook.ipynb")
        except InputError:  # killed while its notebook was written
            continue
        rows = evidence.rows_of(record["slug"], records.collect_measures(notebook), record, "run", anchor=True)
        title = titles.get(record["slug"], record.get("title") or record["slug"])
        links = {name: f"{record['run_id']}-{name.replace('/', '-')}" for name in page.small_files(record, COPIED)}
        for name, link in links.items():
            shutil.copyfile(Path(record["folder"]) / "files" / name, made / link)
        text = page.page(
            notebook,
            title=title,
            record=record,
            rows=rows,
            home="index.html",
            links=links,
            carried=seal.of_run(record),
        )
        (made / run_page(record["run_id"])).write_text(text, encoding="utf-8")
        written.add(record["run_id"])
    return written


def write_results(made: Path) -> None:
    """Write a page for each published result: its claims with the value of every seed, its arms, where it was made."""
    for result in evidence.published():
        slug, run = result["slug"], result["run"]
        text = page.render(
            "result.html.j2",
            here="result",
            slug=slug,
            title=run.get("title") or slug,
            run=run,
            facts=facts(run),
            rows=evidence.rows_of(slug, result["measures"], run, "results"),
            values={m["id"]: [number(v) for v in m.get("values") or ()] for m in result["measures"]},
            gates=result["gates"],
            arms=[arms_table(one) for one in result["arms"]],
        )
        carried = seal.of_result(result)
        text = text.replace("</main>", f"{claim_graph.figures(carried)}\n</main>", 1)
        text = seal.seal(text, "result", [carried])
        (made / result_page(slug, run.get("preset") or "full")).write_text(text, encoding="utf-8")


def arms_table(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What an experiment kept of its arms, as a table: means over the seeds, "–" where a seed has no finite number.

    >>> seeds = {"auroc": [0.8, 0.9], "by item": [None, None]}
    >>> arms_table({"name": "main", "seeds": [0, 1], "arms": {"CMER": seeds, "image only": {"auroc": [0.7, None]}}})
    {'name': 'main', 'seeds': 2, 'metrics': ['auroc'], 'rows': [('CMER', ['0.850']), ('image only', ['–'])]}
    """

    def mean(values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return fmean(numbers) if numbers and len(numbers) == len(values) else None

    means = {name: {metric: mean(values) for metric, values in arm.items()} for name, arm in kept["arms"].items()}
    metrics = list(
        dict.fromkeys(metric for arm in means.values() for metric, value in arm.items() if value is not None)
    )
    rows = [(name, [number(arm.get(metric)) for metric in metrics]) for name, arm in means.items()]
    return {"name": kept["name"], "seeds": len(kept["seeds"]), "metrics": metrics, "rows": rows}


def outcome(record: Mapping[str, Any], most: int = 3) -> list[str]:
    """What came of a run, in words: its figures on the reader's data; else its verdicts; else what went wrong.

    >>> outcome({"status": "failed", "folder": "/none", "first_error": {"ename": "InputError", "evalue": "No data."}})
    ['InputError: No data.']
    """
    if wrong := failure(dict(record)):
        return [wrong]
    results = records.kept(record, "results.json")
    if results:
        told = [
            f"{r['name']}: {r['metric']} {number(r['value'])}"
            + (f" [{number(r['low'])}, {number(r['high'])}]" if r["low"] is not None else "")
            for r in results[:most]
        ]
        return [*told, f"and {len(results) - most} figures more"] if len(results) > most else told
    tally = evidence.tally(evidence.rows_of(record["slug"], records.measures(record), None, "run"))
    return [", ".join(f"{n} {word}" for word, n in tally)] if tally else ["no claim was measured"]


def told(record: Mapping[str, Any]) -> str:
    """Where a run's page is, and what came of it where it was on the reader's data, for the end of a command."""
    page_of = shown(Path(record["folder"]) / "notebook.html")
    results = records.kept(record, "results.json")
    return f"{label(record)}: {'; '.join(outcome(record))}; {page_of}" if results else f"{label(record)}: {page_of}"


def own_runs(kept: Iterable[dict[str, Any]], written: set[str]) -> list[dict[str, Any]]:
    """What the index says of the reader's own runs, the newest first."""
    return [
        {
            "label": label(record),
            "page": run_page(record["run_id"]),
            "started": record["started"],
            "status": record["status"],
            "outcome": outcome(record),
        }
        for record in kept
        if is_own(record) and record["run_id"] in written
    ]
