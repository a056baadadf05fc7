"""The runs as tables, one row a dict: what `vlws runs --sql` queries, and the CSV files in each run's folder."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlws.files import write_atomically
from vlws.lab import records

Row = dict[str, Any]

TEXT, NUMBER, WHOLE = "VARCHAR", "DOUBLE", "BIGINT"
OF_RUN = {"run_id": TEXT, "chapter": TEXT}
COLUMNS: dict[str, dict[str, str]] = {  # table -> column -> type of DuckDB; times are UTC
    "runs": dict.fromkeys(("run_id", "chapter", "slug", "title", "preset", "status"), TEXT)
    | {"rc": WHOLE, "key": TEXT, "params": "JSON", "overrides": "VARCHAR[]", "git": "JSON", "env": "JSON"}
    | {"started": "TIMESTAMP", "ended": "TIMESTAMP", "wall_s": NUMBER, "peak_rss_mb": NUMBER}
    | {"first_error": "JSON", "folder": TEXT},
    "measures": dict.fromkeys(("run_id", "id", "says", "where", "metric", "unit"), TEXT)
    | {"paper": NUMBER, "direction": TEXT, "threshold": NUMBER, "tolerance": NUMBER, "value": NUMBER}
    | {"low": NUMBER, "high": NUMBER, "p": NUMBER, "n_seeds": WHOLE, "n_replicates": WHOLE}
    | dict.fromkeys(("verdict", "why", "preset", "per", "by_construction", "reported"), TEXT)
    | {"values": "DOUBLE[]"},
    "gates": OF_RUN
    | dict.fromkeys(("name", "says", "metric", "direction"), TEXT)
    | {"threshold": NUMBER, "value": NUMBER, "passed": "BOOLEAN"},
    "arms": OF_RUN | {"experiment": TEXT, "arm": TEXT, "seed": WHOLE, "metric": TEXT, "value": NUMBER},
    "metrics": OF_RUN | {"experiment": TEXT, "arm": TEXT, "seed": WHOLE, "training": WHOLE}
    | {"label": TEXT, "step": WHOLE, "loss": NUMBER, "lr": NUMBER},
    "results": OF_RUN | {"name": TEXT, "metric": TEXT, "unit": TEXT, "value": NUMBER, "low": NUMBER, "high": NUMBER}
    | {"n": WHOLE, "of": TEXT},
}  # fmt: skip
CSV = ("arms", "metrics", "results")


def rows_of(record: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Table -> the rows that one run gives it; a run's record has its `folder`."""
    run = {"run_id": record["run_id"], "chapter": record["chapter"]}
    return {
        "runs": [dict(record)],
        "measures": [run | measure for measure in records.measures(record)],
        "gates": [run | gate for gate in records.kept(record, "gates.json")],
        "arms": [run | row for row in _arms(records.kept(record, "arms.json"))],
        "metrics": [run | row for row in _metrics(Path(record["folder"]) / "metrics.jsonl")],
        "results": [run | result for result in records.kept(record, "results.json")],
    }


def tables(kept: Iterable[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """Table -> the rows of all these runs."""
    found: dict[str, list[Row]] = {name: [] for name in COLUMNS}
    for record in kept:
        for name, rows in rows_of(record).items():
            found[name] += rows
    return found


def columns(table: str, rows: Iterable[Row]) -> dict[str, str]:
    """Column -> type: those of COLUMNS, and for metrics what else a training wrote down."""
    known = COLUMNS[table]
    if table != "metrics":
        return known
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name in row.keys() - known.keys():
            values.setdefault(name, []).append(row[name])
    kinds = {name: NUMBER if all(_is_number(v) for v in given) else "JSON" for name, given in sorted(values.items())}
    return known | kinds


def write_csv(record: Mapping[str, Any]) -> None:
    """arms.csv, metrics.csv and results.csv into the run's folder, those that have rows. Raises OSError."""
    found = rows_of(record)
    for table in CSV:
        if found[table]:
            path = Path(record["folder"], f"{table}.csv")
            write_atomically(path, as_csv(list(columns(table, found[table])), found[table]).encode())


def as_csv(head: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV; what is missing, none or no number is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, head, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if _is_nan(value) else value for name, value in row.items()} for row in rows)
    return out.getvalue()


def _arms(grids: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    for grid in grids:
        for arm, metrics in grid["arms"].items():
            for metric, values in metrics.items():
                for seed, value in zip(grid["seeds"], values, strict=False):
                    yield {"experiment": grid["name"], "arm": arm, "seed": seed, "metric": metric, "value": value}


def _metrics(path: Path) -> Iterator[Row]:
    """The lines of a metrics.jsonl; one that a killed process left half-written is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_nan(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
