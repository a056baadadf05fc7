"""What was learned about each paper: its claims sorted by verdict, read off the published results; nothing is typed."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlws import display, verdicts
from vlws.display import count, escape, muted, number
from vlws.lab import evidence, proved
from vlws.lab.chapters import chapters
from vlws.lab.describe import duration
from vlws.lab.evidence import SCALES, Row
from vlws.verdicts import BY_CONSTRUCTION, NOT_AT_THIS_SCALE, OPPOSED, SUPPORTED, UNDECIDED

GROUPS = {SUPPORTED: "Holds", OPPOSED: "Does not hold", UNDECIDED: "Open", NOT_AT_THIS_SCALE: "Out of reach here"}

# how a claim begins that says more of the one before it
GOES_ON = ("And ", "But ", "So ", "For ", "The same ", "There, ", "Also ")


def lessons() -> list[dict[str, Any]]:
    """Of each chapter with published results: slug, title, paper, preset, seconds, the rows of its largest result.

    `decided`: how many of the claims that are not by construction came out supported or opposed, of how many.
    """
    proofs = proved.standing(("results",))
    results = {one["slug"]: one for one in sorted(evidence.published(), key=lambda one: _scale(one["run"]))}
    found = []
    for one in chapters():
        if one.slug in results:
            result = results[one.slug]
            rows = evidence.rows_of(one.slug, result["measures"], result["run"], "results")
            for row in rows:
                row.proof = proofs.get(row.id)
            counted = [row for row in rows if row.verdict in GROUPS]
            decided = sum(row.verdict in (SUPPORTED, OPPOSED) for row in counted)
            found.append(
                {"slug": one.slug, "title": one.title, "paper": one.paper, "preset": result["run"].get("preset", "")}
                | {"seconds": result["seconds"], "decided": [decided, len(counted)], "rows": rows}
            )
    return found


def page() -> display.Shown:
    """What holds of each paper, what does not, and what would decide the rest, for chapter 00."""
    told = lessons()
    if not told:
        return display.Shown("<p><b>No full run has been kept yet.</b></p>", "what was learned")
    decided, counted = (sum(lesson["decided"][k] for lesson in told) for k in (0, 1))
    built_in = sum(row.verdict == BY_CONSTRUCTION for lesson in told for row in lesson["rows"])
    head = f"{decided} of {counted} claims are decided; {count(built_in, 'more claim')} the set-ups build in."
    parts, text = [f"<p><b>{escape(head)}</b></p>"], ["what was learned"]
    for lesson in told:
        parts.append(f"<h3>{escape(lesson['slug'][:2])} {escape(lesson['title'])}</h3>{muted(_about(lesson))}")
        for verdict, title in GROUPS.items():
            rows = [row for row in lesson["rows"] if row.verdict == verdict]
            if rows:
                items = "".join(f"<li>{_sentence(row, lesson)}</li>" for row in rows)
                parts.append(f"<p>{verdicts.badge(verdict, title)}</p><ul>{items}</ul>")
        text += [f"{lesson['slug']}: {row.id}" for row in lesson["rows"] if row.verdict in GROUPS]
    return display.Shown("".join(parts), "\n".join(text))


def _about(lesson: Mapping[str, Any]) -> str:
    decided, counted = lesson["decided"]
    cost = f", {duration(lesson['seconds'])} of computing" if lesson["seconds"] else ""
    return f"{lesson['paper']}. {decided} of {counted} decided at preset {lesson['preset']}{cost}."


def _sentence(row: Row, lesson: Mapping[str, Any]) -> str:
    """The claim; in a paler line what was measured, what was asked of it, and what would decide it."""
    shown, interval, unit = verdicts.figures(row)
    paper = "" if row.paper is None else f" (paper {number(row.paper)})"
    facts = [f"{row.metric}: {shown} {interval} {unit}{paper}" if row.value is not None else row.metric]
    facts.append(f"asked: {verdicts.wanted(row)}")
    if row.verdict == NOT_AT_THIS_SCALE:
        facts.append(row.why)
    if row.holm and row.holm != row.verdict:
        facts.append(f"after Holm's correction {row.holm}")
    if row.remedy:
        facts.append(row.remedy)
    if row.proof:
        facts.append(f"proved with further seeds: {row.proof['said']}")
    return f"<b>{escape(row.id)}</b> {escape(whole(row, lesson['rows']))}{muted('; '.join(facts))}"


def whole(row: Row, rows: Sequence[Row]) -> str:
    """What a claim says, behind the claim that it goes on from: "And keeps more." says nothing by itself."""
    first = next((r for r in rows if r.id == row.id.rstrip("abcdefghi")), row)
    return f"{first.says} {row.says}" if first is not row and row.says.startswith(GOES_ON) else row.says


def _scale(run: Mapping[str, Any]) -> int:
    return SCALES.index(run["preset"]) if run.get("preset") in SCALES else -1
