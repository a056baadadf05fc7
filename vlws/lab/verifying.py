"""The commands that check what is written, and carry it elsewhere: verify, pack, unpack. They need no torch.

`verify` needs numpy, scipy, PyYAML and typer alone: it runs from the code of an archive, with nothing else installed.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from vlws.lab.options import Json
from vlws.lab.terminal import aligned, answer, width


def verify_command(
    target: Annotated[
        str,
        typer.Argument(help="A page (.html), a result or proof (.json), an archive (.zip), a run id, or NN@preset."),
    ],
    as_json: Json = False,
) -> None:
    """Check a page, a run, a result, a proof or an archive: its numbers computed again, and held against what is here.

    One line per check: ok, differs (what and where), or cannot be re-derived (why). Exit code 1 where something
    differs.

    Examples: vlws verify reports/site/04_cmg.html; vlws verify 04@full; vlws verify cmg.zip
    """
    from vlws.lab import archive, verify

    is_archive = target.lower().endswith(".zip")
    found = archive.verify_archive(Path(target)) if is_archive else verify.verify(target)
    answer(as_json, found, _verified(found))
    if not found["ok"]:
        raise typer.Exit(1)


def pack_command(
    out: Annotated[Path, typer.Option(help="The archive, FILE.zip.", show_default=False)],
    runs: Annotated[list[str] | None, typer.Argument(help="Run ids, or NN@preset.", show_default=False)] = None,
    published: Annotated[bool, typer.Option("--published", help="All published results.")] = False,
    as_json: Json = False,
) -> None:
    """Put runs with their results, notebooks, code, data and environment into one archive (an RO-Crate).

    Examples: vlws pack 04@full --out cmg.zip; vlws pack --published --out vlws-results.zip
    """
    from vlws.lab import pack

    done = pack.pack(runs or (), out, published=published)
    said = f"{done['out']}: {done['bytes'] / 1e6:.1f} MB, {done['members']} files, {len(done['runs'])} runs"
    answer(as_json, done, f"{said}\nsha256 {done['sha256']}")


def unpack_command(
    archive: Annotated[Path, typer.Argument(help="An archive of vlws pack.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Where to write; new, or empty.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Check an archive, write it as a folder, and say the command that makes each experiment again.

    Example: vlws unpack cmg.zip cmg
    """
    from vlws.lab.archive import unpack

    found = unpack(archive, folder)
    answer(as_json, found, f"{_verified(found)}\nwritten: {found['folder']}")
    if not found["ok"]:
        raise typer.Exit(1)


def _verified(found: dict[str, Any]) -> str:
    rows = [[one["result"], one["check"], one["said"]] for one in found["checks"]]
    counted = [sum(row[0] == word for row in rows) for word in ("ok", "differs", "cannot be re-derived")]
    said = f"{found['kind']}: {counted[0]} ok, {counted[1]} differ, {counted[2]} cannot be re-derived"
    again = [f"the experiment again: {command}" for command in found["again"]]
    return "\n".join([aligned(["", "check", "what was found"], rows, width()), "", said, *again])
