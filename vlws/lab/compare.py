"""Runs beside each other: what differs between some, and what came of each in a sweep. Data only; drawn elsewhere."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vlws import stats, verdicts
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import evidence, records
from vlws.lab.chapters import Chapter, chapter, presets
from vlws.lab.describe import label
from vlws.lab.parameters import PRESETS

Record = Mapping[str, Any]

INTERVAL = ("value", "low", "high")
OF_MEASURE = (*INTERVAL, "p", "n_seeds", "verdict")
COMPARED = (*OF_MEASURE, "holm", "why", "change")
OF_GATE = ("value", "passed")
OF_RESULT = (*INTERVAL, "n", "of")


def compare(kept: Sequence[Record]) -> dict[str, Any]:
    """What differs between runs of one chapter, and what each measured.

    kept: records of runs, as `records.records` and `find` give them.

    Returns:
        chapter, slug; runs: [{run_id, label, status, preset, started, wall_s}]; parameters, code, environment: what
        differs, [{name, values}]; measures: [{id, says, metric, unit, values}], each value {value, low, high, p,
        n_seeds, verdict, holm, why, change} or None where that run has none; `change`: {value, low, high} of the
        difference to the first run, paired seed by seed, where both have the same seeds; gates: [{name, says,
        threshold, values}], each {value, passed}; results: [{name, metric, unit, values}], likewise with value, low,
        high, n, of. Every list `values` has one entry per run, in the order given.

    Raises:
        InputError: fewer than two runs, or runs of different chapters.
    """
    if len(kept) < 2:
        raise InputError(f"{len(kept)} run to compare; give two or more.")
    slugs = list(dict.fromkeys(record["slug"] for record in kept))
    if len(slugs) > 1:
        raise InputError(f"the runs are of the chapters {', '.join(slugs)}; runs of one chapter can be compared.")
    shown = ("run_id", "status", "preset", "started", "wall_s")
    return {
        "chapter": kept[0]["chapter"],
        "slug": slugs[0],
        "runs": [{name: record.get(name) for name in shown} | {"label": label(record)} for record in kept],
        "parameters": _differing([record["params"] for record in kept]),
        "code": _differing([_code(record) for record in kept]),
        "environment": _differing([record.get("env") or {} for record in kept]),
        "measures": _beside(_measured(kept), "id", ("says", "metric", "unit"), COMPARED),
        "gates": _beside([_of(record, "gates") for record in kept], "name", ("says", "threshold"), OF_GATE),
        "results": _beside([_of(record, "results") for record in kept], "name", ("metric", "unit"), OF_RESULT),
    }


def claims_of(record: Record) -> list[dict[str, Any]]:
    """What one run says of its claims: each as `vlws claims` tells it, and its gates."""
    measures, gates = _of(record, "measures"), _of(record, "gates")
    known = dict(record) if "key" in record else None  # the committed notebook has no record
    kind = "run" if "folder" in record else "results" if known else "notebook"
    rows = evidence.rows_of(record["slug"], measures, known, kind)
    asked = [m.get("gates") or () for m in measures]
    return [
        row.told() | {"gates": [gate for gate in gates if gate["name"] in names]}
        for row, names in zip(rows, asked, strict=True)
    ]


def _measured(kept: Sequence[Record]) -> list[list[dict[str, Any]]]:
    """The measures of each run, with the verdict after Holm's correction and the change to the first run."""
    found = []
    first = {m["id"]: m for m in _of(kept[0], "measures")}
    for record in kept:
        measures = _of(record, "measures")
        corrected = verdicts.holm_verdicts([m for m in measures if "verdict" in m])
        same = record is not kept[0] and _seeds(record) == _seeds(kept[0])
        found.append(
            [
                m | {"holm": corrected.get(m["id"]), "change": _change(first.get(m["id"]), m) if same else None}
                for m in measures
            ]
        )
    return found


def _seeds(record: Record) -> tuple[Any, ...]:
    return tuple(record["params"].get(name) for name in ("seeds", "first_seed"))


def _change(first: Mapping[str, Any] | None, then: Mapping[str, Any]) -> dict[str, float | None] | None:
    """The mean of the differences seed by seed and its 95 % interval over the seeds; None where they do not pair."""
    before = (first or {}).get("values")
    if not before or not then.get("values") or len(before) != len(then["values"]) or then.get("per") != "seed":
        return None
    differences = np.subtract(then["values"], before)
    return dict(zip(INTERVAL, stats.interval(differences), strict=True))


def sweep_table(kept: Sequence[Record], axes: Sequence[str] | None = None) -> dict[str, Any]:
    """Parameter against metric: one row per run of a chapter.

    axes: the parameters that were varied; by default those in which the runs differ, or else those that were changed.

    Returns:
        axes: names; metrics: [{name, kind ("measure" or "result"), metric, unit}]; rows: [{run_id, status, axes:
        {parameter: value}, values: {name: {value, low, high, p, n_seeds, verdict}}}] (a result has n and of instead
        of the last three; a metric that a run lacks is not in its `values`), in the order given.
    """
    varied = [row["name"] for row in _differing([record["params"] for record in kept])]
    changed = dict.fromkeys(name for record in kept for name in record["overrides"])
    chosen = list(axes if axes is not None else varied or changed)
    metrics: dict[str, dict[str, Any]] = {}
    rows = []
    for record in kept:
        values = {}
        for kind, key, fields in (("measure", "id", OF_MEASURE), ("result", "name", OF_RESULT)):
            for one in _of(record, f"{kind}s"):
                name = str(one[key])
                values[name] = {field: one.get(field) for field in fields}
                metrics.setdefault(name, {"name": name, "kind": kind, **{f: one.get(f) for f in ("metric", "unit")}})
        of_axes = {name: record["params"].get(name) for name in chosen}
        rows.append({"run_id": record["run_id"], "status": record["status"], "axes": of_axes, "values": values})
    return {"axes": chosen, "metrics": list(metrics.values()), "rows": rows}


def find(targets: Iterable[str], kept: Sequence[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The records that a user names: run ids, their folders, the start or the end of an id, or `NN@preset`.

    kept: the records that are looked through; all by default.

    `04@full` is the newest good run of chapter 04 at that preset with nothing else changed, else the published result,
    else (`04@cpu`) the committed notebook.

    Raises InputError where nothing or more than one run answers to a name.
    """
    kept = records.records() if kept is None else kept
    return [_at_preset(kept, *target.split("@", 1)) if "@" in target else _by_id(kept, target) for target in targets]


def _by_id(kept: Sequence[dict[str, Any]], target: str) -> dict[str, Any]:
    wanted = target.rstrip("/").rpartition("/")[2]
    exact = [record for record in kept if record["run_id"] == wanted]
    found = exact or [r for r in kept if wanted and (r["run_id"].startswith(wanted) or r["run_id"].endswith(wanted))]
    if len(found) != 1:
        which = f"{len(found)} runs answer to {target!r}" if found else f"no run answers to {target!r}"
        some = f" ({', '.join(record['run_id'] for record in found[:3])}, ...)" if found else ""
        raise InputError(
            f"{which}{some}; give a run id of `vlws runs`, the start of one, or NN@preset such as 04@full."
        )
    return found[0]


def _at_preset(kept: Sequence[dict[str, Any]], name: str, preset: str) -> dict[str, Any]:
    one = chapter(name)
    if preset not in PRESETS:
        raise InputError(f"no preset {preset!r} in {name}@{preset}; it has {', '.join(presets(one))}.")
    for record in kept:
        if (record["slug"], record["preset"], record["status"]) == (one.slug, preset, "ok") and not record["overrides"]:
            return record
    for result in evidence.published(one.slug):
        if result["run"].get("preset") == preset:
            arms = [grid | {"code": result["code"].get(grid["name"])} for grid in result["arms"]]
            return (
                result["run"] | {name: result[name] for name in ("measures", "gates")} | {"arms": arms, "results": []}
            )
    if preset == "cpu":
        return _committed(one)
    raise InputError(f"chapter {one.id} has no finished run and no published result at preset {preset!r}.")


def _committed(one: Chapter) -> dict[str, Any]:
    """The committed notebook, which is executed at its literals, as a record."""
    notebook = read_json(one.path)
    made = {name: getattr(one, name) for name in ("slug", "title")} | {"chapter": one.id, "preset": "cpu"}
    params = {name: parameter.default for name, parameter in one.parameters.items()}
    shown = {file.removesuffix(".json"): records.collect(notebook, *kind) for file, kind in records.KEPT.items()}
    return made | {"run_id": evidence.COMMITTED, "status": "ok", "params": params, "overrides": []} | shown


def _of(record: Record, what: str) -> list[dict[str, Any]]:
    """Measures, arms or results of a run: with the record of a published one, else in the run's folder.

    Results of one name and several metrics are told apart: "CMG, AUROC" and "CMG, AUPR".
    """
    found = record[what] if what in record else records.kept(record, f"{what}.json")
    names = [one["name"] for one in found] if what == "results" else []
    return (
        [one | {"name": f"{one['name']}, {one['metric']}"} if names.count(one["name"]) > 1 else one for one in found]
        if names
        else found
    )


def _code(record: Record) -> dict[str, Any]:
    git = record.get("git") or {}
    commit = git.get("sha") and git["sha"] + (" with changes" if git.get("dirty") else "")
    return {"commit": commit} | {f"experiment {one['name']}": one.get("code") for one in _of(record, "arms")}


def _differing(of_runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The names whose values are not the same in every run."""
    names = dict.fromkeys(name for one in of_runs for name in one)
    rows = [{"name": name, "values": [one.get(name) for one in of_runs]} for name in names]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def _beside(
    of_runs: Sequence[Sequence[Mapping[str, Any]]], key: str, said: Sequence[str], fields: Sequence[str]
) -> list[dict[str, Any]]:
    """What the runs have of each thing, matched by `key`, in natural order: 04.C2 before 04.C10."""
    by_key = [{str(one[key]): one for one in ones} for ones in of_runs]
    first: dict[str, Mapping[str, Any]] = {}
    for ones in by_key:
        first = ones | first
    return [
        {key: name, **{field: first[name].get(field) for field in said}}
        | {"values": [{f: ones[name].get(f) for f in fields} if name in ones else None for ones in by_key]}
        for name in sorted(first, key=lambda text: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", text)])
    ]
