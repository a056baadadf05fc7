"""How a command reads its arguments and writes what it found."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from vlws.errors import InputError


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


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, each column as wide as its widest cell."""
    table = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(lines)
