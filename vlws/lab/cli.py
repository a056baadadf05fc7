"""The command line. With --json a command writes one JSON value to stdout and nothing else; progress goes to stderr.

Exit codes: 0 done, 1 a run failed (or a disk did), 2 bad input, 130 interrupted.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vlws.errors import InputError
from vlws.lab.terminal import aligned, answer, as_json_text, pairs, say

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Vision-language papers as notebooks that run: run chapters, sweep them, and see which claims hold.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The data that ships.")
claims_app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(data_app, name="data")
app.add_typer(claims_app, name="claims")

Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]
Chapters = Annotated[
    list[str] | None, typer.Argument(help="Chapters by id, slug or name; none means all.", show_default=False)
]
Preset = Annotated[str, typer.Option(help="cpu (the notebooks' literals), test, full, gpu or real.")]
Params = Annotated[
    list[str] | None, typer.Option("-p", "--param", metavar="NAME=VALUE", help="A parameter; may be repeated.")
]
Jobs = Annotated[int, typer.Option("-j", "--jobs", help="How many notebooks at once; each has its share of the cores.")]
Force = Annotated[bool, typer.Option("--force", help="Run again what has finished and has not changed.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds after which a run is stopped.", show_default=False)]
Parsl = Annotated[
    Path | None, typer.Option(help="A Python file with a parsl.Config: run on a cluster.", show_default=False)
]


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """The chapters, their parameters, and how the newest run of each ended.

    Example: vlws list --json
    """
    from vlws.lab import records
    from vlws.lab.chapters import chapters

    newest: dict[str, dict] = {}
    for record in reversed(records.records()):
        newest[record["slug"]] = record
    rows = []
    for one in chapters():
        record = newest.get(one.slug)
        rows.append(
            {
                **{name: getattr(one, name) for name in ("id", "slug", "title", "paper", "summary", "backbones")},
                "parameters": [
                    {"name": p.name, "type": p.type, "default": p.default, "help": p.help}
                    for p in one.parameters.values()
                ],
                "newest": {k: record[k] for k in ("run_id", "preset", "status", "started", "wall_s")}
                if record
                else None,
            }
        )
    lines = [[r["id"], r["slug"], (r["newest"] or {}).get("status", "not run"), r["summary"]] for r in rows]
    answer(as_json, rows, aligned(["", "chapter", "newest run", "what it is"], lines))


@app.command()
def run(
    chapters: Chapters = None,
    preset: Preset = "cpu",
    param: Params = None,
    jobs: Jobs = 1,
    force: Force = False,
    timeout: Timeout = None,
    parsl: Parsl = None,
    as_json: Json = False,
) -> None:
    """Run chapters, each in a process of its own; what has finished and has not changed is skipped.

    Examples: vlws run; vlws run 04 -p lr=1e-4 -p seeds=5; vlws run 04 08 --preset full --jobs 2
    """
    from vlws.lab import runner

    planned = runner.plan(chapters or (), preset, pairs(param), timeout=timeout)
    _run(planned, jobs, force, parsl, as_json)


@app.command()
def sweep(
    chapter: Annotated[str, typer.Argument(help="A chapter by id, slug or name.")],
    param: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", metavar="NAME=VALUES", help="1,2,3 or 0:5 (0 to 4); may be repeated."),
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="A YAML file: parameter -> value, list, or 0:5.", show_default=False)
    ] = None,
    preset: Preset = "cpu",
    jobs: Jobs = 1,
    force: Force = False,
    timeout: Timeout = None,
    parsl: Parsl = None,
    as_json: Json = False,
) -> None:
    """Run a chapter over every combination of values; started again, it goes on where it was.

    Examples: vlws sweep 04 -p lr=1e-3,1e-4 -p seeds=3:6 --jobs 2; vlws sweep 04 --grid grid.yaml
    """
    from vlws.lab import runner
    from vlws.lab.chapters import chapter as find
    from vlws.lab.chapters import grid_values, read_grid

    texts = (read_grid(grid) if grid else {}) | pairs(param)
    if not texts:
        raise InputError("a sweep needs values: -p name=1,2,3 or --grid file.yaml.")
    planned = runner.plan([chapter], preset, grid=grid_values(find(chapter), texts), timeout=timeout)
    _run(planned, jobs, force, parsl, as_json)


def _run(planned: Sequence[dict[str, Any]], jobs: int, force: bool, parsl: Path | None, as_json: bool) -> None:
    from vlws.lab import records, runner
    from vlws.lab.describe import label

    done = []
    for record in runner.run(planned, slots=jobs, force=force, parsl=parsl, say=say):
        found = records.measures(record)
        verdicts = [m["verdict"] for m in found]
        done.append(record | {"verdicts": {word: verdicts.count(word) for word in dict.fromkeys(verdicts)}})
    order = {job["key"]: place for place, job in enumerate(planned)}
    done.sort(key=lambda record: order[record["key"]])
    rows = [
        [
            label(r),
            r["status"] + (" (before)" if r.get("skipped") else ""),
            f"{r['wall_s']:.0f} s",
            ", ".join(f"{n} {word}" for word, n in r["verdicts"].items()) or "–",
        ]
        for r in done
    ]
    answer(as_json, done, aligned(["chapter", "status", "time", "claims"], rows))
    if any(record["status"] != "ok" for record in done):
        raise typer.Exit(1)


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option(help="Where to write; reports/site by default.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report, a folder of pages that open offline, from the newest runs.

    Example: vlws report && xdg-open reports/site/index.html
    """
    from vlws.lab import records, site
    from vlws.lab.describe import shown

    records.settle()
    index = site.build(out)
    answer(as_json, {"index": str(index)}, shown(Path(index).resolve()))


@claims_app.callback()
def claims(context: typer.Context, as_json: Json = False) -> None:
    """What the papers claim, what was measured (at the largest scale that there is), and the verdicts.

    Examples: vlws claims; vlws claims --json; vlws claims publish 04 --preset full
    """
    if context.invoked_subcommand:
        return
    from vlws.display import number
    from vlws.lab import evidence

    names = ["id", "says", "where", "metric", "unit", "paper", "direction", "threshold", "tolerance"]
    names += ["value", "low", "high", "p", "verdict", "holm", "why", "preset"]
    rows, lines = [], []
    for row in evidence.standing().values():
        told = {name: getattr(row, name) for name in names} | {"n_seeds": row.seeds, "per": row.per}
        told |= {"criterion": row.criterion, "source": row.kind or None, "stale": row.stale}
        told |= {"run_id": row.source if row.kind in ("run", "results") else None}
        rows.append(told | {"verdict": row.verdict if row.kind else None})
        interval = "" if row.low is None else f" [{number(row.low)}, {number(row.high)}]"
        measured = "–" if row.value is None else f"{number(row.value)}{interval} {row.unit}"
        verdict = row.verdict + (" (stale)" if row.stale else "")
        source = f"{row.preset}, {row.kind}" if row.kind else "–"
        lines.append([row.id, number(row.paper), row.criterion, measured, verdict, row.holm or "–", source, row.says])
    head = ["claim", "paper", "wanted", "measured", "verdict", "after Holm", "preset, from", "what is claimed"]
    answer(as_json, rows, aligned(head, lines))


@claims_app.command()
def publish(
    chapter: Annotated[str, typer.Argument(help="A chapter by id, slug or name.")],
    preset: Preset = "full",
    as_json: Json = False,
) -> None:
    """Keep a chapter's newest good run at a preset under reports/results/, and remake reports/RESULTS.md.

    Example: vlws claims publish 04 --preset full
    """
    from vlws import paths
    from vlws.files import write_atomically
    from vlws.lab import evidence
    from vlws.lab.describe import shown

    path = evidence.publish(chapter, preset)
    table = paths.reports() / "RESULTS.md"
    write_atomically(table, evidence.results_markdown().encode())
    answer(as_json, {"published": str(path), "results": str(table)}, f"{shown(path)}, {shown(table)}")


@app.command("runs")
def runs_command(
    chapter: Annotated[str | None, typer.Argument(help="Only of this chapter.", show_default=False)] = None,
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
    from vlws.lab.describe import label

    if sql is not None:
        columns, found = query.query(sql)
        rows = [dict(zip(columns, row, strict=True)) for row in found]
        answer(as_json, rows, aligned(columns, [["–" if v is None else str(v) for v in row] for row in found]))
        return
    from vlws.lab.chapters import chapter as find

    newest = records.records(find(chapter).slug if chapter else None)[:limit]
    lines = [
        [
            r["run_id"],
            label(r),
            r["status"],
            "–" if r["wall_s"] is None else f"{r['wall_s']:.0f} s",
            (r["first_error"] or {}).get("evalue", "")[:80],
        ]
        for r in newest
    ]
    answer(as_json, newest, aligned(["run", "chapter", "status", "time", "error"], lines))


@data_app.command("info")
def data_info(as_json: Json = False) -> None:
    """The data that ships with the package: files and sizes.

    Example: vlws data info
    """
    package = Path(__file__).parents[1]
    folders = [package / "data" / "emoji_world" / "assets", package / "models" / "assets"]
    rows: list[dict[str, Any]] = [
        {"file": str(file.relative_to(package)), "bytes": file.stat().st_size}
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
    lines = [[r["file"], f"{r['bytes'] / 1024:,.0f} KB"] for r in rows]
    answer(as_json, rows, aligned(["file", "size"], lines))


@data_app.command("build")
def data_build(
    out: Annotated[
        Path | None, typer.Option(help="Where to write; the package by default.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Remake the data from the Debian packages that it comes from.

    Example: vlws data build --out rebuilt
    """
    from vlws.data.emoji_world import build

    target = out or build.ASSETS
    build.build(target)
    answer(as_json, {"out": str(target)}, str(target))


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Also compile and run a KeOps formula.")] = False,
    as_json: Json = False,
) -> None:
    """What this machine has, and what is slower or missing without the rest.

    Example: vlws doctor --deep
    """
    from vlws.lab import doctor as library

    checks = library.checks(deep)
    lines = [[{True: "yes", False: "no"}[c["present"]], c["name"], c["found"], c["without"]] for c in checks]
    answer(as_json, checks, aligned(["", "what", "found", "without it"], lines))
    if not all(check["present"] for check in checks if check["needed"]):
        raise typer.Exit(1)


class _Interrupted(BaseException):
    """Ctrl-C, or a polite kill; not a KeyboardInterrupt, which typer answers in its own way."""


def _interrupt(*_: object) -> None:
    raise _Interrupted


def main() -> None:
    """The console script `vlws`."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except InputError as error:
        _leave(str(error), 2, as_json)
    except _Interrupted:
        _leave("interrupted; what had finished is kept, the same command goes on from there.", 130, as_json)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _leave(f"{error.strerror or error}{where}.", 1, as_json)


def _leave(sentence: str, code: int, as_json: bool) -> None:
    if as_json:
        print(as_json_text({"error": sentence}))
    else:
        print(sentence, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
