"""A page, a run or a published result, checked by what it says itself and by all that is here of what made it."""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlws import verdicts
from vlws.display import number
from vlws.errors import InputError
from vlws.lab import compare, evidence, proof_checks, seal
from vlws.lab.checks import DIFFERS, OK, UNKNOWN, Check, of_evidence, told
from vlws.lab.evidence import NOT_MEASURED, Row
from vlws.lab.seal import Evidence, Sealed

LARGEST = 200_000_000  # bytes of a page that is read


def verify(target: str) -> dict[str, Any]:
    """All checks of a page (.html), a published result or a proof (.json), or a run (what `vlws compare` takes).

    Returns {target, kind, ok, checks: [{check, result, said, run_id}], again}; ok: nothing differs. again: the command
    that makes the experiment again. Raises InputError where the target is none of these.
    """
    path = Path(target)
    suffix = path.suffix.lower()
    if suffix in (".html", ".htm"):
        return of_page(path)
    if suffix == ".json" or path.is_file():
        return of_result(path)
    return of_run(target)


def of_page(path: Path) -> dict[str, Any]:
    """The checks of a page: its hashes, its tables against what it carries, and that against all that is here."""
    sealed = seal.unseal(path.name, read_bytes(path))
    checks = [*of_hashes(sealed), *of_tables(sealed)]
    for one in sealed.runs:
        checks += of_evidence(one)
    return summary(str(path), f"page of a {sealed.kind}", sealed.runs, checks)


def of_result(path: Path) -> dict[str, Any]:
    """The checks of a published result, or of a proof."""
    read_bytes(path)
    if ledger := proof_checks.read(path):
        checks = proof_checks.of_ledger(ledger)
        return summary(str(path), "proof", [], checks) | {"again": [proof_checks.command_of(ledger)]}
    one = seal.of_result(seal.read_result(path))
    return summary(str(path), "published result", [one], of_evidence(one, path.resolve()))


def of_run(target: str) -> dict[str, Any]:
    """The checks of a run, and of the page in its folder."""
    (record,) = compare.find([target])
    one = seal.of_found(record)
    folder = Path(record["folder"]) if "folder" in record else None
    checks = of_evidence(one, folder or seal.result_file(record["slug"], record["preset"]))
    page = folder / "notebook.html" if folder else None
    if page and page.is_file():
        try:
            sealed = seal.unseal(page.name, page.read_bytes())
        except InputError as error:  # written by an older version
            checks.append(Check("page", UNKNOWN, str(error), record["run_id"]))
        else:
            shown = [*of_hashes(sealed), *of_tables(sealed), *same_as(sealed, one)]
            checks += [Check(c.check, c.result, c.said, record["run_id"]) for c in shown]
    return summary(target, "run", [one], checks)


def summary(target: str, kind: str, runs: Sequence[Evidence], checks: Sequence[Check]) -> dict[str, Any]:
    """What `verify` returns."""
    ok = not any(check.result == DIFFERS for check in checks)
    commands = dict.fromkeys(command_of(one["run"]) for one in runs)
    return {"target": target, "kind": kind, "ok": ok, "checks": list(map(asdict, checks)), "again": list(commands)}


def command_of(run: Mapping[str, Any]) -> str:
    """The command that makes a run again, with its preset and what was changed."""
    preset = str(run.get("preset") or "cpu")
    given = {name: (run.get("params") or {}).get(name) for name in run.get("overrides") or ()}
    changed = [f"-p {shlex.quote(f'{name}={value}')}" for name, value in given.items()]
    options = [] if preset == "cpu" else [f"--preset {shlex.quote(preset)}"]
    return " ".join(["vlws run", shlex.quote(run["slug"][:2]), *options, *changed])


def read_bytes(path: Path) -> bytes:
    """A file that may come from elsewhere; InputError where it cannot be read or is larger than any page."""
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes; at most {LARGEST:,} are read.")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


# --- what a page shows ------------------------------------------------------------------------------------------------


def of_hashes(sealed: Sealed) -> list[Check]:
    """Whether the page, its tables and what it carries are as they were written."""
    parts = {
        "page": (sealed.whole, "its text is as it was written", "its text is not as it was written"),
        "claims table": (sealed.table, "its sha256 fits", "its sha256 does not fit: a text or number was changed"),
        "carried record": (sealed.record, "its sha256 fits", "its sha256 does not fit: a part of it was changed"),
    }
    return [
        Check(name, OK if fits else DIFFERS, fine if fits else wrong) for name, (fits, fine, wrong) in parts.items()
    ]


def same_as(sealed: Sealed, one: Evidence) -> list[Check]:
    """What the page in a run's folder carries, against the folder."""
    mine, theirs = ([{k: v for k, v in e.items() if k != "data"} for e in some] for some in (sealed.runs, [one]))
    same = "notebook.html carries what the run's files hold"
    return told(
        "page's record", [] if mine == theirs else ["notebook.html carries something else than the files"], same
    )


def of_tables(sealed: Sealed) -> list[Check]:
    """Every text of the tables of figures, against the measures that the page carries."""
    if sealed.kind == "comparison":
        differences = _comparison(sealed)
    elif len(sealed.runs) == 1:
        differences = itertools.chain(_claims(sealed, sealed.runs[0]), _own(sealed, sealed.runs[0]))
    else:
        differences = iter([f"it carries {len(sealed.runs)} runs, a page of a {sealed.kind} one"])
    shown = sum(len(rows) for rows in sealed.tables.values())
    return told("shown figures", differences, f"{shown} rows show what the carried measures say")


def _claims(sealed: Sealed, one: Evidence) -> Iterator[str]:
    kind = "values" if sealed.kind == "result" else "verdicts"
    make = _values_row if kind == "values" else _verdicts_row
    rows = evidence.rows_of(one["run"]["slug"], one["measures"], None, "run")
    wanted = {row.id: make(row, one) for row in rows}
    shown = {row[0][0]: row for row in sealed.tables.get(kind, []) if row and row[0]}
    if len(shown) != len(sealed.tables.get(kind, [])):
        yield "a claim stands in the table twice, or a row has no claim"
    for id, row in wanted.items():
        if id not in shown:
            yield f"{id}: its row is missing"
            continue
        yield from _row(id, shown[id], row)
    for id, row in shown.items():
        if id not in wanted and NOT_MEASURED not in row[-1][0]:
            yield f"{id}: it is shown, and was not measured"


def _row(id: str, shown: list[list[str]], wanted: list[list[str]]) -> Iterator[str]:
    flat, right = [text for cell in shown for text in cell], [text for cell in wanted for text in cell]
    for a, b in zip(flat, right, strict=False):
        if a != b:
            yield f"{id}: the page shows {a!r}, what it carries says {b!r}"
    if len(flat) != len(right):
        yield f"{id}: the page shows {len(flat)} texts, what it carries says {len(right)}"


def _verdicts_row(row: Row, _: Evidence) -> list[list[str]]:
    """The texts of a claim's row in top.html.j2."""
    value, interval, unit = verdicts.figures(row)
    measured = ["–"] if row.value is None else [value, interval, f"{unit}; wanted {verdicts.wanted(row)}"]
    holm = [f"after Holm: {row.holm}"] * bool(row.holm and row.holm != row.verdict)
    return _plain([[row.id, row.says], measured, [_badge(row.verdict), *holm]])


def _values_row(row: Row, one: Evidence) -> list[list[str]]:
    """The texts of a claim's row in result.html.j2."""
    value, interval, unit = verdicts.figures(row)
    measured = ["–"] if row.value is None else [value, interval, unit]
    holm = [f"after Holm: {row.holm}"] * bool(row.holm and row.holm != row.verdict)
    says = [row.id, row.says, f"{row.metric}; wanted {verdicts.wanted(row)}"]
    values = next(m.get("values") or () for m in one["measures"] if m["id"] == row.id)
    seeds = "  ".join(number(v) for v in values)
    return _plain([says, measured, [_badge(row.verdict), *holm, row.why], [seeds]])


def _badge(word: str) -> str:
    return f"{verdicts.VERDICTS.get(word, ('·', ''))[0]} {word}"


def _plain(cells: list[list[str]]) -> list[list[str]]:
    """Cells as a page gives them back: no empty texts, and one space where there are several."""
    return [[" ".join(text.split()) for text in cell if text.split()] for cell in cells]


def _own(sealed: Sealed, one: Evidence) -> Iterator[str]:
    """The figures on the reader's data."""
    shown, results = sealed.tables.get("verdicts own", []), one["results"]
    if sealed.kind == "result":
        return
    if len(shown) != len(results):
        yield f"on your data: {len(shown)} rows are shown, {len(results)} results are carried"
    for row, result in zip(shown, results, strict=False):
        interval = "" if result["low"] is None else f"[{number(result['low'])}, {number(result['high'])}]"
        figures = [result["metric"], number(result["value"]), interval, result["unit"] or ""]
        yield from _row(result["name"], row, _plain([[result["name"], result["of"] or ""], figures]))


def _comparison(sealed: Sealed) -> Iterator[str]:
    """Each measure and each result of the runs that stand beside each other."""
    parts = ("measures", "arms", "results")
    found = compare.compare([one["run"] | {part: one[part] for part in parts} for one in sealed.runs])
    wanted = {one["name"]: one for one in found["results"]} | {one["id"]: one for one in found["measures"]}
    settings = {row["name"] for kind in ("parameters", "code", "environment") for row in found[kind]}
    shown = {row[0][0]: row for row in sealed.tables.get("beside", []) if row and row[0]}
    for name, one in wanted.items():
        if name not in shown:
            yield f"{name}: its row is missing"
            continue
        says = one.get("says") or one["metric"]
        cells = _plain([[name, says], *(_beside(value, one["unit"]) for value in one["values"])])
        yield from _row(name, [shown[name][0][:2], *shown[name][1:]], cells)
    yield from (f"{name}: it is shown, and was not measured" for name in shown if name not in {*wanted, *settings})


def _beside(value: Mapping[str, Any] | None, unit: str | None) -> list[str]:
    if value is None:
        return ["–"]
    shown, interval, known = verdicts.figures({**value, "unit": unit or ""})
    return [shown, interval, known, _badge(value["verdict"]) if value.get("verdict") else ""]
