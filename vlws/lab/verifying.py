"""The commands that check what is written: `vlws verify`. They need no torch."""

from typing import Annotated, Any

import typer

from vlws.lab.options import Json
from vlws.lab.terminal import aligned, answer, width


def verify_command(
    target: Annotated[
        str,
        typer.Argument(help="A page (.html), a published result (.json), a run id, or NN@preset.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Check a page, a run or a result: its numbers are computed again, and held against all that is here.

    One line per check: ok, differs (what and where), or cannot be re-derived (why). Exit code 1 where something
    differs.

    Examples: vlws verify reports/site/04_cmg.html; vlws verify 04@full; vlws verify reports/results/04_cmg/full.json
    """
    from vlws.lab import verify

    found = verify.verify(target)
    answer(as_json, found, _verified(found))
    if not found["ok"]:
        raise typer.Exit(1)


def _verified(found: dict[str, Any]) -> str:
    rows = [[one["result"], one["check"], one["said"]] for one in found["checks"]]
    counted = [sum(row[0] == word for row in rows) for word in ("ok", "differs", "cannot be re-derived")]
    said = f"{found['kind']}: {counted[0]} ok, {counted[1]} differ, {counted[2]} cannot be re-derived"
    again = [f"the experiment again: {command}" for command in found["again"]]
    return "\n".join([aligned(["", "check", "what was found"], rows, width()), "", said, *again])
