"""Cells of an experiment on disk: arrays in KEY.npz, all else in KEY.json, which says that the cell is done."""

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlws.files import write_atomically


def write_cell(
    stem: Path, result: Any, arm: str, seed: int, began: float, log: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Arrays to stem.npz, then all else to stem.json, each whole or not at all; the JSON says that the cell is done.

    log: what its trainings reported (`vlws.training_log`).
    """
    if not isinstance(result, Mapping):
        raise TypeError(f"the cell returned {type(result).__name__}; it must return a dict")
    scalars: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for metric, value in result.items():
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        try:
            array = np.asarray(value)
        except ValueError:  # a ragged list
            array = np.asarray(None)
        if array.dtype.kind not in "biufcSU" or not isinstance(metric, str):
            raise TypeError(f"metric {metric!r} is {str(value)[:80]}; numbers, texts and arrays of them are kept")
        if array.ndim == 0 and array.dtype.kind in "biufU":
            scalars[metric] = array.item()
        else:
            arrays[metric] = array
    if arrays:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(stem.with_suffix(".npz"), buffer.getvalue())
    made = {"arm": arm, "seed": seed, "seconds": round(time.perf_counter() - began, 3)}
    order = list(result)
    record = {"made": made, "order": order, "scalars": scalars, "arrays": sorted(arrays)}
    text = json.dumps(record | ({"log": list(log)} if log else {}), indent=1)
    write_atomically(stem.with_suffix(".json"), text.encode())


def read_cell(stem: Path) -> dict[str, Any]:
    """What a cell returned, in its order."""
    record = json.loads(stem.with_suffix(".json").read_text())
    values = dict(record["scalars"])
    if record["arrays"]:
        with np.load(stem.with_suffix(".npz")) as stored:
            values |= {metric: stored[metric] for metric in record["arrays"]}
    return {metric: values[metric] for metric in record["order"]}


def seconds_of(stem: Path) -> float:
    """How long a cell took to compute."""
    return float(json.loads(stem.with_suffix(".json").read_text())["made"]["seconds"])


def log_of(stem: Path) -> list[dict[str, Any]]:
    """What a cell's trainings reported, each line with its arm and seed."""
    record = json.loads(stem.with_suffix(".json").read_text())
    made = {name: record["made"][name] for name in ("arm", "seed")}
    return [made | line for line in record.get("log", [])]
