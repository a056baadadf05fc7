"""How a command reads its arguments and writes what it found."""

import json
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from vlws.errors import InputError

NARROWEST = 8  # of a column that is made narrower


def pairs(given: Iterable[str] | None) -> dict[str, str]:
    """NAME=VALUE arguments as a mapping; InputError for one of another form or given twice."""
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise InputError(f"-p {text!r} is no NAME=VALUE.")
        if name.strip() in found:
            raise InputError(f"-p {name.strip()} is given twice.")
        found[name.strip()] = value
    return found


def say(line: str) -> None:
    """A line on stderr, above the progress bars."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


class Progress:
    """A progress bar on stderr, which is called with what is done and with all there is.

    What is there at its first call was done before, and counts in no rate.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.bar: Any = None
        self.began, self.before, self.done = 0.0, 0, 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=total, initial=done, unit=f" {self.unit}", file=sys.stderr)
            self.began, self.before = time.perf_counter(), done
        self.done = done
        self.bar.update(done - self.bar.n)

    def rate(self) -> float | None:
        """What was done a second since the first call; None where nothing was."""
        new = self.done - self.before
        return round(new / (time.perf_counter() - self.began), 1) if new else None


def answer(as_json: bool, value: Any, text: str) -> None:
    """What a command found, as one JSON value or as text."""
    print(as_json_text(value) if as_json else text)


def as_json_text(value: Any) -> str:
    """A value as JSON that every reader takes: nan and inf are null, times ISO 8601, what else JSON lacks is text."""
    plain = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
    return json.dumps(finite(value), ensure_ascii=plain, default=_as_plain, allow_nan=False)


def finite(value: Any) -> Any:
    """A value of dicts, lists and scalars with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(name): finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    return value


def _as_plain(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def width() -> int | None:
    """Columns of the terminal, or $COLUMNS; None where a file or a program reads, which want whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], fit: int | None = None) -> str:
    """Rows under a head, each column as wide as its widest cell, or narrower where `fit` columns hold no more.

    Cells that are wider than their column go on in the next line: nothing is cut off.

    Example:
        >>> print(aligned(["id", "says"], [["1", "a long sentence"]], fit=12))
        id  says
        1   a long
            sentence
    """
    table = [[" ".join(str(cell).split()) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    while fit and sum(widths) + 2 * (len(widths) - 1) > fit and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in table:
        cells = [
            textwrap.wrap(cell, max(1, size), break_on_hyphens=False) or [""]
            for cell, size in zip(row, widths, strict=True)
        ]
        for line in range(max(map(len, cells), default=0)):
            parts = [cell[line] if line < len(cell) else "" for cell in cells]
            lines.append("  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip())
    return "\n".join(lines)


def with_interval(found: Mapping[str, Any] | None) -> str:
    """ "0.152 [0.100, 0.202]" of value, low and high; a dash where nothing was measured."""
    from vlws.display import number

    if found is None or found["value"] is None:
        return "–"
    low, high = found.get("low"), found.get("high")
    return number(found["value"]) + ("" if low is None or high is None else f" [{number(low)}, {number(high)}]")
