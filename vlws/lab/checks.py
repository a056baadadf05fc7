"""What a run, a result or a page says, held against what it was made from: each check is one line.

A check ends in one of three words. OK: computed again, or compared, and the same. DIFFERS: it says what and where.
UNKNOWN, "cannot be re-derived": what is needed is not here, and it says why; that is no fault of the result.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vlws import paths, verdicts
from vlws.cells import read_cell
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import evidence, records, seal
from vlws.lab.arms import arms_of
from vlws.lab.chapters import chapter
from vlws.lab.seal import Evidence

OK, DIFFERS, UNKNOWN = "ok", "differs", "cannot be re-derived"
TOLERANCE = 1e-9  # relative; another version of scipy may give another last digit
MOST = 8  # differences of one kind that are told one by one
BROKEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # what another form of data raises


@dataclass(frozen=True)
class Check:
    """One line of `vlws verify`: what was looked at, how it came out, and what that means in words."""

    check: str
    result: str
    said: str
    run_id: str | None = None


def told(name: str, differences: Iterable[str], fine: str) -> list[Check]:
    """A check of many parts: a line for each difference (at most MOST), or one that says that all is well.

    Where data of another form end the search, that is a difference too.
    """
    found = []
    try:
        for one in differences:
            found.append(one)
    except BROKEN as error:
        found.append(_broken(error))
    lines = [Check(name, DIFFERS, one) for one in found[:MOST]]
    more = [Check(name, DIFFERS, f"{len(found) - MOST} differences more")] if len(found) > MOST else []
    return [*lines, *more] or [Check(name, OK, fine)]


def _broken(error: Exception) -> str:
    return f"it has another form ({type(error).__name__}: {' '.join(str(error).split())})"


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers up to TOLERANCE."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (one, other))
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-12) if numbers else bool(one == other)


def differing(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two values of dicts, lists and scalars differ: "values[2] is 0.3, there 0.4"."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            yield from differing(one.get(name), other.get(name), f"{where}.{name}" if where else str(name))
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differing(a, b, f"{where}[{place}]")
    elif not same(one, other):
        yield f"{where} is {_short(one)}, there {_short(other)}"


def _short(value: Any) -> str:
    text = f"a list of {len(value)}" if isinstance(value, list | tuple) else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def of_evidence(one: Evidence, read_from: Path | None = None) -> list[Check]:
    """All checks of what is known of one run, each with the run's id.

    read_from: the folder or the file that it was read from, with which it is not compared.
    """
    steps: dict[str, Callable[[Evidence], list[Check]]] = {
        "hashes": _files,
        "intervals and verdicts": _verdicts,
        "gates": _gates,
        "record": partial(_here, read_from=read_from),
        "measures from arms": _arms,
        "arms": _cells,
        "code": _code,
        "data": _data,
    }
    checks = []
    for name, step in steps.items():
        try:
            checks += step(one)
        except BROKEN as error:
            checks.append(Check(name, DIFFERS, _broken(error)))
    return [Check(c.check, c.result, c.said, one["run"].get("run_id")) for c in checks]


# --- within the evidence ----------------------------------------------------------------------------------------------


def _files(one: Evidence) -> list[Check]:
    """What is carried, against the hashes that are carried with it."""
    parts = [file for file in records.KEPT if file in one["sha256"]]
    wrong = [
        file for file in parts if seal.sha256(seal.as_file(one[file.removesuffix(".json")])) != one["sha256"][file]
    ]
    fine = f"{', '.join(parts)} have the sha256 that stands beside them"
    return told("hashes", (f"{file} has another sha256 than the one beside it" for file in wrong), fine)


def _verdicts(one: Evidence) -> list[Check]:
    """Every interval, p value and verdict, computed again from the value of each seed."""

    def differences() -> Iterator[str]:
        for m in one["measures"]:
            try:
                again = verdicts.recompute(m)
                yield from (
                    f"{m['id']}: {name} is {m.get(name)!r}, its values say {value!r}"
                    for name, value in again.items()
                    if not same(m.get(name), value)
                )
            except BROKEN as error:
                yield f"{m.get('id')}: {_broken(error)}"

    n = len(one["measures"])
    return told("intervals and verdicts", differences(), f"{n} measures computed again from the value of each seed")


def _gates(one: Evidence) -> list[Check]:
    """Gates from their values, and no claim judged whose gate failed."""

    def differences() -> Iterator[str]:
        passed = {}
        for gate in one["gates"]:
            try:
                value = float(np.mean(gate["values"]))
                passed[gate["name"]] = verdicts.gate_passed(gate | {"value": value})
                if not same(value, gate["value"]) or passed[gate["name"]] != gate["passed"]:
                    yield f"gate {gate['name']}: {gate['value']!r}, passed {gate['passed']}; its values say {value!r}"
            except BROKEN as error:
                yield f"gate {gate.get('name')}: {_broken(error)}"
        for m in one["measures"]:
            failed = [name for name in m.get("gates") or () if not passed.get(name, False)]
            if failed and m.get("verdict") != verdicts.NOT_AT_THIS_SCALE:
                yield f"{m.get('id')}: it is judged, although the gate {failed[0]} failed or is missing"

    return told("gates", differences(), f"{len(one['gates'])} gates computed again")


# --- against this workspace -------------------------------------------------------------------------------------------


def _here(one: Evidence, read_from: Path | None) -> list[Check]:
    """The record and what was measured, against the run's folder and the published result of that run."""
    slug, run_id = one["run"]["slug"], one["run"].get("run_id")
    try:
        paths.root()
    except InputError:
        return [Check("record", UNKNOWN, "there is no workspace here that could hold the run")]
    if run_id is None:
        return _against("record", one, _committed(slug), f"the committed notebook notebooks/{slug}.ipynb")
    checks = []
    for record in records.records(slug):
        if record["run_id"] == run_id:
            folder = Path(record["folder"])
            if folder != read_from:
                checks += _against("record", one, seal.of_run(record), f"the run's folder runs/{slug}/{run_id}")
            checks += outputs(folder)
    for result in evidence.published(slug):
        preset = str(result["run"].get("preset"))
        if result["run"].get("run_id") == run_id and seal.result_file(slug, preset) != read_from:
            where = f"reports/results/{slug}/{preset}.json"
            checks += _against("published result", one, seal.of_result(result), where)
    why = f"no other copy of the run {run_id} is here, in runs/ or among the published results"
    return checks or [Check("record", UNKNOWN, why)]


def _committed(slug: str) -> Evidence | None:
    path = paths.notebooks() / f"{slug}.ipynb"
    executed = read_json(path)
    return seal.of_notebook(path, executed) if isinstance(executed, dict) and "cells" in executed else None


def _against(name: str, one: Evidence, there: Evidence | None, where: str) -> list[Check]:
    if there is None:
        return [Check(name, UNKNOWN, f"{where} is not here")]
    parts = ["run", "measures", "gates", "arms", "results"]
    if not there["results"]:  # a published result keeps none
        parts.remove("results")
    book = "notebook.ipynb"  # a published result keeps none
    mine, theirs = ({part: _by_name(it[part]) for part in parts} for it in (one, there))
    if book in one["sha256"] and book in there["sha256"]:
        mine[book], theirs[book] = one["sha256"][book], there["sha256"][book]
    return told(name, (f"{line} ({where})" for line in differing(mine, theirs)), f"the same as {where}")


def _by_name(part: Any) -> Any:
    """A list as a mapping by the ids of what it holds, and a record with the names alone of files of a machine."""
    if isinstance(part, list):
        return {str(one.get("id") or one.get("name")): one for one in part}
    own = {name: Path(str(part.get("params", {}).get(name) or "")).name for name in ("data", "backbone")}
    known = {name: value for name, value in part.items() if name not in seal.NOT_SHARED}
    return known | {"params": part["params"] | {k: v for k, v in own.items() if v}} if "params" in part else known


def outputs(folder: Path) -> list[Check]:
    """The files of a run against the outputs of its executed notebook."""
    executed = read_json(folder / "notebook.ipynb")
    if not isinstance(executed, dict) or "cells" not in executed:
        return [Check("notebook", UNKNOWN, "the run has no executed notebook")]
    lines: list[str] = []
    for file, kind in records.KEPT.items():
        there = {str(place): one for place, one in enumerate(records.collect(executed, *kind))}
        mine = {str(place): one for place, one in enumerate(read_json(folder / file) or [])}
        lines += [f"{file}: {line} (the outputs of notebook.ipynb)" for line in differing(mine, there)]
    return told("notebook", lines, "the outputs of notebook.ipynb hold the same measures, gates and arms")


def _arms(one: Evidence) -> list[Check]:
    """How many measures are an arm's numbers, or the difference of two arms', seed by seed."""
    measures = [m for m in one["measures"] if m.get("values")]
    told_by = [any(arm["how"] == "equal" for arm in arms_of(m, one["arms"])) for m in measures]
    n, rest = sum(told_by), len(told_by) - sum(told_by)
    fine = f"{n} measures have the numbers of an arm, or of the difference of two"
    why = f"of {rest} measures it is not recorded which arms' numbers the notebook computed them from"
    checks = (Check("measures from arms", OK, fine), Check("measures from arms", UNKNOWN, why))
    return [check for check, some in zip(checks, (n, rest), strict=True) if some]


def _cells(one: Evidence) -> list[Check]:
    """The numbers of every arm and seed against the cells of the experiment that the cache still has."""
    checks = []
    for grid in one["arms"]:
        name = f"arms of {grid.get('name')}"
        if not has_cache():
            checks.append(Check(name, UNKNOWN, "there is no workspace here, and so no cache"))
            continue
        try:
            checks += _grid(name, grid)
        except BROKEN as error:
            checks.append(Check(name, DIFFERS, _broken(error)))
    return checks


def _grid(name: str, grid: Mapping[str, Any]) -> list[Check]:
    kept = cells_of(grid["name"])
    lines, fine, absent = [], 0, 0
    for arm, metrics in grid["arms"].items():
        for place, seed in enumerate(grid["seeds"]):
            wanted = {metric: values[place] for metric, values in metrics.items()}
            cell = nearest_cell(kept.get((arm, seed), ()), wanted)
            if cell is None:
                absent += 1
                continue
            values = scalars(cell)
            wrong = [metric for metric in wanted if not same(wanted[metric], values[metric])]
            fine += not wrong
            lines += [
                f"{arm}, seed {seed}: {metric} is {wanted[metric]!r}, its cell {cell.stem} says {values[metric]!r}"
                for metric in wrong
            ]
    total = fine + absent + len({line.split(":")[0] for line in lines})
    checks = (
        told(name, lines, f"{fine} of {total} cells are in the cache, with the same numbers") if fine or lines else []
    )
    if absent:
        why = f"{absent} of {total} cells are not in the cache of this machine (deleted, or made elsewhere)"
        checks.append(Check(name, UNKNOWN, why))
    return checks


def has_cache() -> bool:
    try:
        paths.cache()
        return True
    except InputError:
        return False


def cells_of(name: str) -> dict[tuple[str, int], list[Path]]:
    """(arm, seed) -> the cells that the cache has of an experiment, whatever code made them."""
    found: dict[tuple[str, int], list[Path]] = {}
    folder = paths.cache() / "experiment" / name
    if folder.parent.parent != paths.cache():  # a name that leads elsewhere
        return found
    for path in sorted(folder.glob("*.json")):
        made = (read_json(path) or {}).get("made") or {}
        found.setdefault((made.get("arm", ""), made.get("seed", -1)), []).append(path)
    return found


def nearest_cell(candidates: Sequence[Path], wanted: Mapping[str, Any]) -> Path | None:
    """The cell with the most of these numbers; None where none has at least half of them: it is of another run."""
    best, most = None, 0
    for path in candidates:
        values = scalars(path)
        if values.keys() >= wanted.keys():
            n = sum(same(wanted[metric], values[metric]) for metric in wanted)
            best, most = (path, n) if n > most else (best, most)
    return best if 2 * most >= len(wanted) else None


def scalars(path: Path) -> dict[str, float | None]:
    """Metric -> the number that `experiment.Grid.scalars` makes of it: arrays by their mean, None for nan and inf."""
    try:
        cell = {metric: np.asarray(value) for metric, value in read_cell(path.with_suffix("")).items()}
    except (OSError, ValueError, KeyError):  # a cell without its arrays
        return {}
    means = {metric: float(v.mean()) for metric, v in cell.items() if v.size and v.dtype.kind in "biuf"}
    return {metric: value if math.isfinite(value) else None for metric, value in means.items()}


def _code(one: Evidence) -> list[Check]:
    """Whether the code, data and pins at hand are those that the run was made of."""
    run = one["run"]
    if not records.is_record(run):
        return [Check("code", UNKNOWN, "no key of the code is kept with it")]
    try:
        chapter(run["slug"])
    except InputError:
        return [Check("code", UNKNOWN, f"the chapter {run['slug']} is not here")]
    if find_spec("vlws_kernels") is None:
        return [Check("code", UNKNOWN, "vlws_kernels is not found; put kernels/ of the checkout on PYTHONPATH too")]
    if records.is_stale(run):
        why = "code, data, pins or parameters are not those of the run (it is stale); run it again, or take its commit"
        return [Check("code", UNKNOWN, f"{why} {((run.get('git') or {}).get('sha') or 'unknown')[:12]}")]
    return [Check("code", OK, f"code, data, pins and parameters at hand give the run's key {run['key'][:12]}")]


def _data(one: Evidence) -> list[Check]:
    """The files of shipped data, models and claims, by their hashes."""
    if one["data"] is None:
        return [Check("data", UNKNOWN, "hashes of its data are not kept with it")]
    try:
        now = records.data_hashes(chapter(one["run"]["slug"]))
    except InputError:
        return [Check("data", UNKNOWN, f"the chapter {one['run']['slug']} is not here")]
    changed = [file for file, hash in one["data"].items() if now.get(file, hash) != hash]
    gone = [file for file in one["data"] if file not in now]
    if gone:
        return [Check("data", UNKNOWN, f"{len(gone)} files are not here, such as {gone[0]}")]
    if changed and (not records.is_record(one["run"]) or records.is_stale(one["run"])):
        return [Check("data", UNKNOWN, f"{changed[0]} has changed since (the run is stale)")]
    return told("data", (f"{file} has another sha256" for file in changed), f"{len(now)} files have the same sha256")
