"""What trainings report: the losses of an experiment's cell are kept with the cell, and a run's stand in its folder.

A line is one record of `vlws.train.fit` with where it comes from: experiment, arm, seed, training (1, 2, ... within the
cell), label, step, loss, lr. A run has them as metrics.jsonl, also of cells that it read from the cache.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Line = dict[str, Any]

_collecting: list[list[Line]] = []  # the trainings of the cell that is computing; empty outside one


@contextmanager
def collected() -> Iterator[list[Line]]:
    """Collect what trainings report within the block, rather than write it to the run's folder."""
    lines: list[Line] = []
    _collecting.append(lines)
    try:
        yield lines
    finally:
        _collecting.pop()


def report(history: Sequence[Mapping[str, float]], label: str = "") -> None:
    """Take the records of one training that has ended. Raises OSError where the run's folder takes no writes."""
    known = _collecting[-1] if _collecting else []
    training = 1 + max((line["training"] for line in known), default=0)
    lines = [{"training": training, "label": label, **record} for record in history]
    if _collecting:
        known.extend(lines)
    else:
        write(lines)


def write(lines: Sequence[Line]) -> None:
    """Append lines to metrics.jsonl of the run that this process belongs to, if it does. Raises OSError."""
    run = os.environ.get("VLWS_RUN")
    if run and lines:
        with open(Path(run, "metrics.jsonl"), "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
