"""The commands that look: chapters, claims, runs, and runs beside each other."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vlws.errors import InputError
from vlws.lab.options import Json, One, Preset
from vlws.lab.terminal import aligned, answer, width, with_interval


class _Claims(TyperGroup):
    """A group whose first argument may be a chapter rather than a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        chosen = next((arg for arg in args if not arg.startswith("-")), "")
        is_command = chosen in self.commands or "--help" in args
        return super().parse_args(ctx, args if is_command else ["show", *args])


claims_app = typer.Typer(
    cls=_Claims,
    rich_markup_mode=None,
    help="What the papers claim, what was measured (at the largest scale that there is), and the verdicts. "
    "Examples: vlws claims; vlws claims 04; vlws claims --json --graph 04.C2; vlws claims publish 04 --preset full",
)


def list_command(as_json: Json = False) -> None:
    """The chapters, their parameters, and how the newest run of each ended.

    Example: vlws list --json
    """
    from vlws.lab import records
    from vlws.lab.chapters import chapters, told

    newest: dict[str, dict] = {}
    for record in reversed(records.records()):
        newest[record["slug"]] = record
    rows = []
    for one in chapters():
        record = newest.get(one.slug)
        rows.append(
            {
                **told(one),
                "newest": {k: record[k] for k in ("run_id", "preset", "status", "started", "wall_s")}
                if record
                else None,
            }
        )
    lines = [[r["id"], r["slug"], (r["newest"] or {}).get("status", "not run"), r["summary"]] for r in rows]
    answer(as_json, rows, aligned(["", "chapter", "newest run", "what it is"], lines, width()))


@claims_app.command("show", hidden=True)
def claims(
    chapter: One = None,
    graph: Annotated[
        str | None,
        typer.Option(metavar="CLAIM", help="Where a claim's figure comes from, such as 04.C2.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """The claims of one chapter, or of all; or where the figure of one comes from.

    Examples: vlws claims 04; vlws claims --graph 04.C2
    """
    from vlws.display import number
    from vlws.lab import evidence
    from vlws.lab.chapters import chapter as find

    if graph is not None:
        from vlws.lab import claim_graph

        if chapter:
            raise InputError(f"chapter {chapter!r} and --graph {graph} were given; give one of them.")
        found = claim_graph.of_claim(graph)
        answer(as_json, found, claim_graph.as_text(found))
        return
    rows, lines = [], []
    slug = find(chapter).slug if chapter else None
    for row in evidence.standing().values():
        if slug not in (None, row.slug):
            continue
        told = row.told()
        rows.append(told)
        measured = with_interval(told) + ("" if row.value is None else f" {row.unit}")
        verdict = row.verdict + (" (stale)" if row.stale else "")
        verdict += f", after Holm {row.holm}" if row.holm and row.holm != row.verdict else ""
        verdict += f"; proved {row.proof['said']}" if row.proof else ""
        source = f"{row.preset}, {row.kind}" if row.kind else "–"
        wanted = f"{row.criterion} {row.unit}"
        lines.append([row.id, row.says, number(row.paper), wanted, measured, verdict, source])
    head = ["claim", "what is claimed", "paper", "wanted", "measured", "verdict", "preset, from"]
    answer(as_json, rows, aligned(head, lines, width()))


@claims_app.command()
def publish(
    chapter: Annotated[str, typer.Argument(help="A chapter by id, slug or name; or a claim, to keep its proof.")],
    preset: Preset = "full",
    as_json: Json = False,
) -> None:
    """Keep a chapter's newest good run at a preset under reports/results/; remake RESULTS.md and the README's table.

    Of a claim, keep its proof. Examples: vlws claims publish 04 --preset full; vlws claims publish 04.C3b
    """
    from vlws.lab import evidence, proved
    from vlws.lab.describe import shown

    is_claim = re.fullmatch(r"\d\d\.C\w+", chapter)
    path = proved.publish(chapter, preset) if is_claim else evidence.publish(chapter, preset)
    tables = evidence.write_tables()
    answer(as_json, {"published": str(path), "results": str(tables[0])}, ", ".join(map(shown, [path, *tables])))


def runs_command(
    chapter: One = None,
    sql: Annotated[
        str | None,
        typer.Option(help="A query by DuckDB over runs, measures, gates, arms, metrics, results.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """The runs, newest first; or a query over them.

    Example: vlws runs --sql "select chapter, count(*) from runs where status = 'ok' group by all"
    """
    from vlws.lab import query, records
    from vlws.lab.chapters import chapter as find
    from vlws.lab.describe import failure, label

    if sql is not None:
        if chapter:
            raise InputError(f"chapter {chapter!r} and --sql were given; write where chapter = '04' into the query.")
        columns, found = query.query(sql)
        rows = [dict(zip(columns, row, strict=True)) for row in found]
        lines = [["–" if v is None else str(v) for v in row] for row in found]
        answer(as_json, rows, aligned(columns, lines, width()))
        return
    newest = records.records(find(chapter).slug if chapter else None)[:limit]
    lines = [
        [
            r["run_id"],
            label(r),
            r["status"],
            "–" if r["wall_s"] is None else f"{r['wall_s']:.0f} s",
            failure(r)[:200],
        ]
        for r in newest
    ]
    answer(as_json, newest, aligned(["run", "chapter", "status", "time", "error"], lines, width()))


def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Run ids, their beginnings, or NN@preset, such as 04@full.")],
    page: Annotated[
        Path | None, typer.Option(help="Also write it as a page that opens offline.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """What differs between runs of a chapter: parameters, code, environment, and each measure side by side.

    Example: vlws compare 04@cpu 04@full; vlws compare 20261126T1015 20261126T1130 --page compared.html
    """
    from vlws.lab import compare

    kept = compare.find(runs)
    found = compare.compare(kept)
    if page:
        from vlws.files import write_atomically
        from vlws.lab import seal
        from vlws.lab.comparison_pages import compare_page

        text = seal.seal(compare_page(found), "comparison", [seal.of_found(record) for record in kept])
        write_atomically(page, text.encode())
    answer(as_json, found, _compared(found))


def _compared(found: dict[str, Any]) -> str:
    def measured(one: dict[str, Any] | None) -> str:
        return f"{with_interval(one)} {(one or {}).get('verdict') or ''}".strip()

    names = [chr(ord("A") + n) if n < 26 else str(n + 1) for n in range(len(found["runs"]))]
    told = [[n, r["run_id"], r["label"], r["status"]] for n, r in zip(names, found["runs"], strict=True)]
    parts = [aligned(["", "run", "chapter", "status"], told, width())]
    for part in ("parameters", "code", "environment"):
        lines = [[row["name"], *("–" if v is None else str(v)[:80] for v in row["values"])] for row in found[part]]
        parts.append(aligned([part, *names], lines, width()) if lines else f"{part}: the same")
    for part, key in (("measures", "id"), ("results", "name")):
        lines = [[f"{row[key]} ({row['unit']})", *map(measured, row["values"])] for row in found[part]]
        if lines:
            parts.append(aligned([part, *names], lines, width()))
    return "\n\n".join(parts)
