"""What stands of each claim, and what is published of it: the one place that decides which result counts.

Precedence (`standing`): the largest scale; within it what is not stale; then a run of this workspace before a published
result before the committed notebook; then the newest. Runs with changed parameters and runs at preset `test` never
count. The terminal, the site and RESULTS.md all read it from here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlws import claims, paths, verdicts
from vlws.display import count, number
from vlws.errors import InputError
from vlws.files import read_json, write_atomically, write_json
from vlws.lab import proved, records
from vlws.lab.chapters import Chapter, chapter, chapters
from vlws.lab.describe import day, duration, hardware, sha, stale
from vlws.lab.parameters import PRESETS
from vlws.verdicts import JUDGED

SCHEMA = 2  # of a published result
NOT_MEASURED = "not measured"
MARKS = ("<!-- verdicts: written by vlws claims publish -->", "<!-- end of verdicts -->")  # in README.md
COMMITTED = "committed notebook"
SCALES = PRESETS[1:]  # from the smallest to the largest
SOURCES = ("notebook", "results", "run")  # from the last resort to the first choice


@dataclass
class Row:
    """One line of the table of claims: a claim, and one measure of it or none."""

    id: str
    chapter: str
    slug: str
    says: str
    where: str
    metric: str
    unit: str
    paper: float | None
    direction: str
    threshold: float
    tolerance: float | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    seeds: int = 0
    per: str = "seed"
    verdict: str = NOT_MEASURED
    holm: str = ""  # the verdict after Holm's correction over the claims that were measured with it
    why: str = ""
    remedy: str = ""  # what would decide an undecided claim, and what it costs
    preset: str = ""
    kind: str = ""  # run, results or notebook
    source: str = ""  # which run, or what stands in for one
    hardware: str = ""
    sha: str = ""
    when: str = ""  # ISO 8601, UTC
    stale: bool | None = None  # made with other code or data than today's; None where that cannot be known
    anchor: bool = False  # measured on the chapter's page
    page: str = ""  # of the site: where its figures stand
    proof: dict[str, Any] | None = None  # with further seeds, see `vlws.lab.proved`; it changes no verdict of a run

    @property
    def criterion(self) -> str:
        """What the interval must be for the claim to hold, in words."""
        return verdicts.criterion(asdict(self))

    def told(self) -> dict[str, Any]:
        """What a program is told of a claim: as the paper has it, what was measured, and the verdict."""
        names = ["id", "says", "where", "metric", "unit", "paper", "direction", "threshold", "tolerance"]
        names += ["value", "low", "high", "p", "verdict", "holm", "why", "remedy", "preset"]
        said = {name: getattr(self, name) for name in names} | {"n_seeds": self.seeds, "per": self.per}
        said |= {"criterion": self.criterion, "source": self.kind or None, "stale": self.stale}
        said |= {"proof": self.proof}
        said |= {"run_id": self.source if self.kind in ("run", "results") else None}
        return said | {"verdict": self.verdict if self.kind else None}


def rows_of(
    slug: str, measures: Sequence[dict[str, Any]], record: dict[str, Any] | None, kind: str, anchor: bool = False
) -> list[Row]:
    """The rows of measures that were made together; of their fields a row takes those that it has."""
    corrected = verdicts.holm_verdicts(measures)
    known = Row.__dataclass_fields__
    said = {"hardware": hardware(record or {}), "sha": sha(record or {}), "when": (record or {}).get("started") or ""}
    said |= {"source": (record or {}).get("run_id") or COMMITTED, "kind": kind}
    old = stale(record)
    return [
        Row(
            **{name: value for name, value in m.items() if name in known}
            | {
                "chapter": slug[:2],
                "slug": slug,
                "seeds": m.get("n_seeds") or 0,
                "holm": corrected[m["id"]] if m.get("p") is not None else "",
                "remedy": verdicts.remedy(m),
            }
            | {"stale": old, "anchor": anchor, **said}
        )
        for m in measures
    ]


# --- precedence -------------------------------------------------------------------------------------------------------


def rank(row: Row) -> tuple[int, bool, int, str]:
    """Of two measures of one claim the one with the higher rank stands."""
    scale = SCALES.index(row.preset) if row.preset in SCALES else -1
    return scale, not row.stale, SOURCES.index(row.kind), row.when


def standing(kept: Sequence[dict[str, Any]] | None = None, of: Sequence[Chapter] | None = None) -> dict[str, Row]:
    """claim id -> the measure that stands of it; a claim that was never measured has a row that says so.

    kept: the records of the runs that may count; all by default. of: the chapters that are asked for; all by default.
    """
    found: dict[str, Row] = {}
    kept = records.records() if kept is None else kept
    of = chapters() if of is None else of
    for one in of:
        for row in candidates(one, kept):
            if row.id not in found or rank(row) >= rank(found[row.id]):
                found[row.id] = row
    rows = {row.id: row for one in of for row in _in_order(one, found)}
    for id, proof in proved.standing().items():
        if id in rows:
            rows[id].proof = proof
            if _decided(proof):
                rows[id].remedy = ""
    return rows


def _decided(proof: Mapping[str, Any]) -> bool:
    return proof["verdict"] in (verdicts.SUPPORTED, verdicts.OPPOSED) and not proof["stale"]


def candidates(one: Chapter, kept: Iterable[dict[str, Any]]) -> list[Row]:
    """All measures of a chapter's claims that may count: of its notebook, its published results, its good runs."""
    rows = rows_of(one.slug, records.collect_measures(read_json(one.path) or {"cells": []}), None, "notebook")
    for result in published(one.slug):
        rows += rows_of(one.slug, result["measures"], result["run"], "results")
    for record in kept:
        if counts(record) and record["slug"] == one.slug:
            rows += rows_of(one.slug, records.measures(record), record, "run")
    return rows


def best_of_scale(rows: Iterable[Row]) -> list[Row]:
    """Of each claim, the measure that stands at each scale."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if (row.id, row.preset) not in found or rank(row) >= rank(found[row.id, row.preset]):
            found[row.id, row.preset] = row
    return list(found.values())


def counts(record: Mapping[str, Any]) -> bool:
    """Whether a run's measures may stand as evidence."""
    return record["status"] == "ok" and not record["overrides"] and record["preset"] in SCALES


def _in_order(one: Chapter, found: Mapping[str, Row]) -> list[Row]:
    """The rows of a chapter in the order of its claims file, those that were not measured among them."""
    known = known_claims(one)
    rows = [found.get(id) or unmeasured(one.slug, claim) for id, claim in known.items()]
    return rows + [row for id, row in found.items() if row.slug == one.slug and id not in known]


def known_claims(one: Chapter) -> dict[str, claims.Claim]:
    """The claims of a chapter's file; none where it has no file."""
    file = paths.notebooks() / "claims" / f"{one.slug}.yaml"
    return claims.load(file).claims if file.exists() else {}


def unmeasured(slug: str, claim: claims.Claim, why: str = "") -> Row:
    """The row of a claim that nothing was measured of."""
    known = Row.__dataclass_fields__
    stated = {name: value for name, value in asdict(claim).items() if name in known}
    return Row(chapter=slug[:2], slug=slug, why=why, **stated)


def tally(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """How many claims have which verdict, in the order of the verdicts."""
    found = Counter(row.verdict for row in rows)
    return [(word, found[word]) for word in (*verdicts.VERDICTS, NOT_MEASURED) if found[word]]


# --- published results ------------------------------------------------------------------------------------------------


def published(slug: str | None = None) -> list[dict[str, Any]]:
    """The committed results, `reports/results/NN_slug/<preset>.json`, of one chapter or of all.

    Each has slug, schema, run, measures, gates, arms, seconds (summed over the cells of its experiments) and code.
    """
    found = []
    for path in sorted((paths.reports() / "results").glob(f"{slug or '*'}/*.json")):
        result = read_json(path)
        if isinstance(result, dict) and isinstance(result.get("measures"), list):
            empty: dict[str, Any] = {"run": {}, "gates": [], "arms": [], "seconds": None, "code": {}}
            found.append(empty | result | {"slug": path.parent.name})
    return found


def publish(target: str, preset: str) -> Path:
    """Keep a chapter's newest good run at a preset, nothing overridden, as reports/results/NN_slug/<preset>.json.

    Raises InputError where there is none, or where it is stale.
    """
    one = chapter(target)
    good = [record for record in records.records(one.slug) if counts(record) and record["preset"] == preset]
    if not good:
        raise InputError(f"chapter {one.id} has no finished run at preset {preset!r} (without overrides) to publish.")
    record = dict(good[0])
    if records.is_stale(record):
        raise InputError(
            f"the newest {preset} run of chapter {one.id} is stale (its code or data has changed); run it again."
        )
    arms = records.kept(record, "arms.json")
    result = {
        "schema": SCHEMA,
        "measures": records.measures(record),
        "gates": records.kept(record, "gates.json"),
        "arms": [{name: value for name, value in grid.items() if name != "code"} for grid in arms],
        "seconds": records.compute_seconds(record),
        "code": {grid["name"]: grid["code"] for grid in arms},
    }
    for name in ("folder", "host", "pid", "pid_started"):
        record.pop(name, None)
    record["params"] = {k: Path(v).name if k in ("data", "backbone") and v else v for k, v in record["params"].items()}
    path = paths.reports() / "results" / one.slug / f"{preset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"run": record} | result)
    return path


def write_tables() -> list[Path]:
    """Remake what is written from published results: reports/RESULTS.md, and the table between README.md's marks."""
    made = {paths.reports() / "RESULTS.md": results_markdown()}
    readme = paths.root() / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if all(text.count(mark) == 1 for mark in MARKS):
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        made[readme] = f"{before}{MARKS[0]}\n{summary_markdown()}\n{MARKS[1]}{after}"
    for path, content in made.items():
        write_atomically(path, content.encode())
    return list(made)


def summary_markdown() -> str:
    """How many claims of each published chapter came out how, as a Markdown table."""
    lines = [f"| chapter | preset | {' | '.join(JUDGED)} | other |", f"|---|---|{'---|' * (len(JUDGED) + 1)}"]
    proofs = {id for id, proof in proved.standing(("results",)).items() if _decided(proof)}
    for result in published():
        rows = rows_of(result["slug"], result["measures"], result["run"], "results")
        verdict = Counter(row.verdict for row in rows)
        told = [str(verdict[name]) for name in JUDGED]
        since = sum(row.verdict == verdicts.UNDECIDED and row.id in proofs for row in rows)
        told[JUDGED.index(verdicts.UNDECIDED)] += f" ({since} proved since)" if since else ""
        rest = ", ".join(f"{n} {name}" for name, n in sorted(verdict.items()) if name not in JUDGED)
        slug = result["slug"]
        title = next((one.title for one in chapters() if one.slug == slug), slug)
        lines.append(f"| {slug[:2]} {title} | {result['run'].get('preset', '')} | {' | '.join(told)} | {rest} |")
    return "\n".join(lines)


def results_markdown() -> str:
    """`reports/RESULTS.md` as text, made from the published results and nothing else."""
    lines = ["# Results", "", "Generated from `reports/results/` by `vlws claims publish`; verdicts are computed.", ""]
    titles = {chapter.slug: chapter.title for chapter in chapters()}
    evidence = published()
    for result in evidence:
        slug, run = result["slug"], result["run"]
        lines += [f"## {slug[:2]} {titles.get(slug) or run.get('title') or slug}: {run.get('preset', '')}", ""]
        took = f"{duration(result['seconds'])} of computing" if result["seconds"] else ""
        told = [day(run.get("started")), duration(run.get("wall_s")), took, hardware(run), sha(run)]
        lines += [f"Run `{run.get('run_id', '')}`: {', '.join(f for f in told if f and f != '–')}.", ""]
        for gate in result["gates"]:
            word = "passed" if gate["passed"] else "failed"
            lines.append(f"- Gate {gate['name']}: {gate['says']} {verdicts.gate_reason(gate)}: {word}.")
        lines += [""] * bool(result["gates"])
        lines += ["| claim | | paper | wanted | measured (95 % interval) | over | verdict | after Holm |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        rows = rows_of(slug, result["measures"], run, "results")
        lines += [*map(_markdown_row, rows), "", *_undecided(rows, result["seconds"]), *_proofs(rows)]
    if not evidence:
        lines += ["No full run has been kept yet.", ""]
    return "\n".join(lines)


def _undecided(rows: Sequence[Row], seconds: float | None) -> list[str]:
    """A line of Markdown for each undecided claim: what would decide it, and what a seed costs."""
    each = [f"- {row.id}: {row.remedy}." for row in rows if row.remedy]
    repetitions = max((row.seeds for row in rows if row.per == "seed"), default=0)
    if not each:
        return []
    cost = (
        f" One seed of all arms takes {duration(seconds / repetitions)} of computing."
        if seconds and repetitions
        else ""
    )
    return [f"What would decide the undecided.{cost}", "", *each, ""]


def _proofs(rows: Sequence[Row]) -> list[str]:
    """A line of Markdown for each published proof of these claims."""
    known = {id: proof for id, proof in proved.standing(("results",)).items() if id in {row.id for row in rows}}
    if not known:
        return []
    head = "Proved with seeds added until the claim was decided (`vlws prove`; 95 % over all looks together):"
    return [head, "", *(f"- {id}, {proof['preset']}: {proof['said']}." for id, proof in known.items()), ""]


def _markdown_row(row: Row) -> str:
    measured = over = "–"
    if row.value is not None:
        interval = "" if row.low is None else f" [{number(row.low)}, {number(row.high)}]"
        measured, over = f"{number(row.value)}{interval} {row.unit}", count(row.seeds, row.per)
    cells = [row.id, f"{row.says} ({row.metric})", number(row.paper), row.criterion, measured, over]
    cells += [f"**{row.verdict}**", row.holm]
    return "| " + " | ".join(str(c).replace("|", r"\|").replace("\n", " ") for c in cells) + " |"
