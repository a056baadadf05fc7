"""The report: chapters as pages, an index with the table of claims, the runs; a folder that opens offline.

Links between pages are relative, so the folder can be moved, zipped or printed.
"""

import base64
import csv
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from vlws import paths
from vlws.errors import InputError
from vlws.lab import api_pages, compare, comparison_pages, evidence, forest, page, records, run_pages, seal
from vlws.lab.chapters import Chapter, chapters
from vlws.lab.describe import failure, hardware, overrides, sha, stale
from vlws.lab.evidence import COMMITTED, NOT_MEASURED, Row


@dataclass
class Shown:
    """A chapter with the notebook that its page shows, the run that made it (or none), and the rows of its claims."""

    chapter: Chapter
    notebook: NotebookNode
    record: dict[str, Any] | None
    rows: list[Row] = field(default_factory=list)

    @property
    def failed(self) -> str:
        return failure(self.record) if self.record else ""


# --- the site ---------------------------------------------------------------------------------------------------------


def build(out: Path | None = None, *, api: bool = False) -> Path:
    """Make the site (`reports/site` unless told otherwise) and return its index.html.

    A chapter's page shows its newest finished run at a preset's own values, ok or failed, or else the committed
    notebook. Runs with changed parameters or the reader's data, runs in which something that is shown was measured, and
    published results have pages of their own; so have sweeps and, with `api`, the library (pdoc, ten seconds once).
    The folder is made beside the old one and swapped in at the end.
    Raises InputError where `out` is a folder that holds something else.
    """
    site = Path(out) if out else paths.reports() / "site"
    _refuse_foreign(site)
    kept, stands = records.records(), evidence.standing()
    shown = [_shown(chapter, kept) for chapter in chapters()]
    rows = [row for one in shown for row in one.rows]
    site.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{site.name}-", dir=site.parent))
    try:
        made.chmod(0o755)
        slugs = ["", *(one.chapter.slug for one in shown), ""]
        for before, one, after in zip(slugs, shown, slugs[2:], strict=False):
            larger, preset = _larger(one)
            text = page.page(
                one.notebook,
                title=one.chapter.title,
                record=one.record,
                rows=[row for row in one.rows if row.anchor or row.verdict == NOT_MEASURED],
                carried=seal.of(one.record, one.chapter.path, one.notebook),
                home="index.html",
                previous=before,
                next=after,
                larger=larger,
                preset=preset,
            )
            (made / f"{one.chapter.slug}.html").write_text(text, encoding="utf-8")
        on_chapters = {one.record["run_id"] for one in shown if one.record}
        others = [r for r in run_pages.with_pages(kept, [*rows, *stands.values()]) if r["run_id"] not in on_chapters]
        written = run_pages.write_runs(others, made)
        run_pages.write_results(made)
        pages = {run_id: run_pages.run_page(run_id) for run_id in written}
        sweeps = comparison_pages.write_sweeps(kept, made, compare.sweep_table, pages)
        reference = api_pages.write_api(made) if api else ""
        _link(rows, shown, written)
        own = run_pages.own_runs(kept, written)
        index = _index(shown, rows, stands, own=own, sweeps=sweeps, reference=reference)
        (made / "index.html").write_text(index, encoding="utf-8")
        (made / "runs.html").write_text(_runs_page(shown, kept, written), encoding="utf-8")
        (made / "claims.json").write_text(json.dumps([asdict(r) for r in rows], indent=1), encoding="utf-8")
        (made / "claims.csv").write_text(_csv(rows), encoding="utf-8")
        _swap(made, site)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return site / "index.html"


def _shown(chapter: Chapter, kept: list[dict[str, Any]]) -> Shown:
    """The chapter with its newest run that can be shown (or its notebook as committed), and all that is known of it."""
    mine = [record for record in kept if record.get("slug") == chapter.slug]
    record, notebook = _to_show(mine) or (None, page.read_notebook(chapter.path))
    one = Shown(chapter, notebook, record)
    one.rows = _rows(one, kept)
    return one


def _to_show(kept: list[dict[str, Any]]) -> tuple[dict[str, Any], NotebookNode] | None:
    """The newest finished run at a preset's own values; changed runs have pages of their own."""
    for record in kept:
        if (
            record.get("status") in run_pages.FINISHED
            and record.get("preset") != "test"
            and not record.get("overrides")
        ):
            try:
                return record, page.read_notebook(Path(record["folder"]) / "notebook.ipynb")
            except InputError:  # killed before, or while, its notebook was written
                continue
    return None


def _rows(one: Shown, kept: list[dict[str, Any]]) -> list[Row]:
    """Each claim of the chapter with what stands of it at each scale, the largest first."""
    slug, kind = one.chapter.slug, "run" if one.record else "notebook"
    shown = evidence.rows_of(slug, records.collect_measures(one.notebook), one.record, kind, anchor=True)
    found = {(row.id, row.preset): row for row in evidence.best_of_scale(evidence.candidates(one.chapter, kept))}
    for row in shown:  # what the page shows stands in the table too, beside what counts in its place
        counted = found.get((row.id, row.preset))
        found[row.id, row.preset if counted is None or counted.source == row.source else "shown"] = row
    known = evidence.known_claims(one.chapter)
    why = "the run did not get there" if one.failed else ""
    measured = {id for id, _ in found}
    rows = [*found.values(), *(evidence.unmeasured(slug, c, why) for id, c in known.items() if id not in measured)]
    order = list(known)
    return sorted(rows, key=lambda r: (order.index(r.id) if r.id in order else len(order), -_scale(r.preset)))


def _larger(one: Shown) -> tuple[str, str]:
    """(page, preset) of the published results of a larger run; empty where there are none."""
    here = _scale(one.record["preset"] if one.record else "cpu")
    found = [r["run"].get("preset") or "full" for r in evidence.published() if r["slug"] == one.chapter.slug]
    best = max(found, key=_scale, default="")
    if not best or _scale(best) <= here:
        return "", ""
    return run_pages.result_page(one.chapter.slug, best), best


def _scale(preset: str) -> int:
    return evidence.SCALES.index(preset) if preset in evidence.SCALES else -1


def _link(rows: list[Row], shown: list[Shown], written: set[str]) -> None:
    """Say of each row on which page its figures stand."""
    for row in rows:
        if row.anchor or row.kind in ("notebook", ""):
            row.page = f"{row.slug}.html"
        elif row.source in written:
            row.page = run_pages.run_page(row.source)
        else:
            row.page = run_pages.result_page(row.slug, row.preset)
        row.page += f"#{row.id}" if row.kind and (row.anchor or row.kind != "notebook") else ""


def _index(shown: list[Shown], rows: list[Row], stands: dict[str, Row], **more: Any) -> str:
    """Each claim once, by the measure that stands, the other scales below it; headline counts are of these."""
    cards = [
        {
            "chapter": one.chapter,
            "picture": _picture(one.notebook),
            "failed": one.failed,
            "tally": evidence.tally(row for row in stands.values() if row.slug == one.chapter.slug),
            "source": _evidence_of(row for row in stands.values() if row.slug == one.chapter.slug),
            "claims": bool(one.rows),
        }
        for one in shown
    ]
    of_claim: dict[str, list[Row]] = {}
    for row in rows:
        of_claim.setdefault(row.id, []).append(row)
    claims = []
    for id, candidates in of_claim.items():
        known = stands.get(id)
        best = next(
            (r for r in candidates if known and (r.source, r.preset) == (known.source, known.preset)), candidates[0]
        )
        best.proof = known.proof if known else None
        claims.append((best, [row for row in candidates if row is not best]))
    best_rows = [best for best, _ in claims]
    return page.render(
        "index.html.j2",
        here="index",
        cards=cards,
        claims=claims,
        counts=evidence.tally(best_rows),
        **more,
        forests=forest.overview(best_rows),
    )


def _evidence_of(rows: Iterable[Row]) -> str:
    """ "verdicts of full, 2026-11-26 (12), cpu, committed notebook (4)": what a card's verdicts were measured in."""
    counted = Counter(
        f"{row.preset}, {row.when[:10] or COMMITTED}" for row in rows if row.kind and row.verdict != NOT_MEASURED
    )
    if len(counted) == 1:
        return next(iter(counted))
    return "; ".join(f"{what} ({n})" for what, n in counted.most_common())


def _runs_page(shown: list[Shown], known: list[dict[str, Any]], written: set[str]) -> str:
    pages = {one.record["run_id"]: f"{one.chapter.slug}.html" for one in shown if one.record}
    results = evidence.published()
    pages |= {
        r["run"]["run_id"]: run_pages.result_page(r["slug"], r["run"]["preset"])
        for r in results
        if r["run"].get("run_id")
    }
    pages |= {run_id: run_pages.run_page(run_id) for run_id in written}
    kept = {result["run"].get("run_id"): result["run"] for result in results}
    here = {record.get("run_id") for record in known}
    known = [*known, *(run for run_id, run in kept.items() if run_id not in here)]
    lines = [
        {name: record.get(name) for name in ("chapter", "title", "run_id", "status", "preset", "wall_s", "peak_rss_mb")}
        | {
            "page": pages.get(record.get("run_id")),
            "evidence": record.get("run_id") in kept,
            "stale": stale(record),
            "error": failure(record),
            "overrides": overrides(record),
            "started": record.get("started") or "",
            "hardware": hardware(record),
            "sha": sha(record),
        }
        for record in sorted(known, key=lambda r: r.get("started") or "", reverse=True)
    ]
    return page.render("runs.html.j2", here="runs", runs=lines)


def _picture(notebook: NotebookNode, width: int = 640) -> str:
    """The notebook's first picture as a small data address, or nothing."""
    from PIL import Image, UnidentifiedImageError

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if not (encoded := output.get("data", {}).get("image/png")):
                continue
            try:
                with Image.open(io.BytesIO(base64.b64decode(encoded))) as file:
                    picture = file.convert("RGBA")
            except (ValueError, UnidentifiedImageError):
                continue
            white = Image.new("RGBA", picture.size, "white")
            small = Image.alpha_composite(white, picture).convert("RGB")
            small.thumbnail((width, width))
            target = io.BytesIO()
            small.save(target, "WEBP", quality=85)
            return "data:image/webp;base64," + base64.b64encode(target.getvalue()).decode()
    return ""


def _csv(rows: list[Row]) -> str:
    target = io.StringIO()
    writer = csv.DictWriter(target, fieldnames=list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) | {"proof": (row.proof or {}).get("said")} for row in rows)
    return target.getvalue()


def _refuse_foreign(site: Path) -> None:
    if not site.exists() or (site.is_dir() and not any(site.iterdir())):
        return
    index = site / "index.html"
    if not index.is_file() or '<meta name="generator" content="vlws">' not in index.read_text("utf-8", "ignore")[:999]:
        raise InputError(f"{site} holds something that is no report; give a new or an empty folder.")


def _swap(made: Path, site: Path) -> None:
    """Put the new folder in the old one's place; the old one is there until the new one is whole."""
    old = site.with_name(f".{site.name}-old-{os.getpid()}")
    if site.exists():
        os.replace(site, old)
    try:
        os.replace(made, site)
    except BaseException:
        if old.exists():
            os.replace(old, site)
        raise
    shutil.rmtree(old, ignore_errors=True)
