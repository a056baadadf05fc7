"""Pages of runs beside each other: what differs between some, and a metric against the parameters of a sweep.

The data are those of `vlws.lab.compare`: here they are only drawn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlws import verdicts
from vlws.lab import charts, page
from vlws.lab.describe import clip

Record = Mapping[str, Any]
FINISHED = ("ok", "failed", "dead", "timeout")  # the states of a run that belongs into a table of a sweep


def compare_page(found: Mapping[str, Any], pages: Mapping[str, str] | None = None, home: str = "") -> str:
    """The page of `vlws compare`, as HTML that loads nothing.

    found: what `compare.compare` returns. pages: run_id -> the address of its page, where it has one. home: the address
    of the report's index, where the page is a part of one.
    """
    differ = [(kind, found[kind]) for kind in ("parameters", "code", "environment") if found[kind]]
    rows = [_row(one, "name", found["runs"]) for one in found["results"]]
    claims = [_row(one, "id", found["runs"]) for one in found["measures"]]
    title = f"{found['slug']}: {len(found['runs'])} runs compared"
    return page.render(
        "compare.html.j2",
        here="compare",
        home=home,
        title=title,
        runs=found["runs"],
        pages=pages or {},
        differ=[
            (kind, [(one["name"], [_setting(kind, v) for v in one["values"]]) for one in some]) for kind, some in differ
        ],
        blocks=[(name, some) for name, some in (("On your data", rows), ("Claims of the chapter", claims)) if some],
    )


def _setting(kind: str, value: Any) -> str:
    """A hash of code by its first digits, anything else as it is."""
    return clip(_plain(value), 12 if kind == "code" else 80)


def _row(one: Mapping[str, Any], key: str, runs: Sequence[Record]) -> dict[str, Any]:
    """A metric with a cell for each run, and its intervals drawn beside each other."""
    places = [str(k + 1) for k in range(len(runs))]
    points = [(place, _interval(value)) for place, value in zip(places, one["values"], strict=True) if value]
    chart = charts.curves({"": points}, "run", one["metric"]) if len(points) > 1 else ""
    says = one.get("says") or one["metric"]
    return {"name": one[key], "says": says, "cells": [_cell(v, one["unit"]) for v in one["values"]], "chart": chart}


def sweep_page(
    table: Mapping[str, Any], title: str, pages: Mapping[str, str] | None = None, home: str = "index.html"
) -> str:
    """The page of a sweep, as HTML that loads nothing: each metric against the parameter, then all values.

    table: what `compare.sweep_table` returns. Of several parameters the one of most values is the axis, and each
    combination of the others a line. pages, home: as for `compare_page`.
    """
    axes, rows = table["axes"], table["rows"]
    axis = max(axes, key=lambda name: len({_plain(row["axes"][name]) for row in rows})) if axes else ""
    others = [name for name in axes if name != axis]
    names = list(dict.fromkeys(_combination(row, others) for row in rows))
    drawn = [(one, _curves(one, rows, axis, others)) for one in table["metrics"]] if axis else []
    return page.render(
        "sweep.html.j2",
        here="sweep",
        home=home,
        title=title,
        axes=axes,
        metrics=table["metrics"],
        charts=[(one, svg) for one, svg in drawn if svg],
        key=charts.key(names),
        rows=[
            {
                "page": (pages or {}).get(row["run_id"], ""),
                "run_id": row["run_id"],
                "status": row["status"],
                "axes": [_plain(row["axes"][name]) for name in axes],
                "cells": [_cell(row["values"].get(one["name"]), one["unit"]) for one in table["metrics"]],
            }
            for row in rows
        ],
    )


def _curves(metric: Mapping[str, Any], rows: Sequence[Record], axis: str, others: Sequence[str]) -> str:
    series: dict[str, list[tuple[Any, charts.Interval]]] = {_combination(row, others): [] for row in rows}
    for row in rows:
        if value := row["values"].get(metric["name"]):
            x = row["axes"][axis]
            series[_combination(row, others)].append((x if isinstance(x, int | float) else _plain(x), _interval(value)))
    return charts.curves(series, axis, f"{metric['name']}, {metric['metric']}")


def _combination(row: Record, others: Sequence[str]) -> str:
    return ", ".join(f"{name}={_plain(row['axes'][name])}" for name in others)


def _interval(value: Mapping[str, Any]) -> charts.Interval:
    return value["value"], value.get("low"), value.get("high")


def _cell(value: Mapping[str, Any] | None, unit: str | None) -> dict[str, str] | None:
    if value is None:
        return None
    shown, interval, known = verdicts.figures(
        {"value": value["value"], "low": value.get("low"), "high": value.get("high"), "unit": unit or ""}
    )
    return {"value": shown, "interval": interval, "unit": known, "verdict": value.get("verdict") or ""}


def _plain(value: Any) -> str:
    return "–" if value is None or value == "" else clip(f"{value:g}" if isinstance(value, float) else str(value), 80)


# --- the sweeps of a report -------------------------------------------------------------------------------------------


def sweeps(kept: Iterable[Record]) -> list[tuple[tuple[str, ...], list[Record]]]:
    """(parameters, runs) of each sweep: runs of one chapter and preset that differ in these parameters alone.

    The parameters are those of a `vlws sweep`, or those that two runs or more have changed. A run at the literals
    counts too, where it stands at a value of a sweep. Of two runs with the same values the newest counts.

    kept: records, newest first, as `records.records` gives them. The runs come in the order of their values.
    """
    finished = [record for record in kept if record.get("status") in FINISHED]
    asked = {(r["slug"], r["preset"], tuple(r["axes"])): True for r in finished if r.get("axes")}
    changed = [(r["slug"], r["preset"], tuple(sorted(r["overrides"]))) for r in finished if r.get("overrides")]
    found = []
    for slug, preset, axes in dict.fromkeys([*asked, *changed]):
        runs: dict[str, Record] = {}
        for record in finished:
            if (record["slug"], record["preset"]) != (slug, preset):
                continue
            mine = set(record.get("overrides") or ())
            if mine == set(axes) or ((slug, preset, axes) in asked and mine <= set(axes)):
                runs.setdefault(repr([record["params"].get(name) for name in axes]), record)
        if len(runs) > 1:
            found.append((axes, sorted(runs.values(), key=lambda record: _values(record, axes))))
    return found


def _values(record: Record, axes: Sequence[str]) -> list[tuple[bool, float, str]]:
    """The values of a run as something that can be ordered: numbers first."""
    found = [record["params"].get(name) for name in axes]
    return [(False, float(v), "") if isinstance(v, int | float) else (True, 0.0, str(v)) for v in found]


def write_sweeps(
    kept: Iterable[Record],
    made: Path,
    tabulate: Callable[[Sequence[Record], Sequence[str]], Mapping[str, Any]],
    pages: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Write a page for each sweep into the folder of the report.

    tabulate: `compare.sweep_table`. pages: run_id -> address. Returns [{label, page, runs}] for the list of sweeps.
    """
    found = []
    for axes, group in sweeps(kept):
        first = group[0]
        preset = "" if first["preset"] == "cpu" else f" at preset {first['preset']}"
        title = f"{first['slug']}{preset}: {', '.join(axes)}"
        name = f"sweep-{first['slug']}-{first['preset']}-{'-'.join(axes)}.html"
        (made / name).write_text(sweep_page(tabulate(group, axes), title, pages), encoding="utf-8")
        found.append({"label": title, "page": name, "runs": len(group)})
    return found
