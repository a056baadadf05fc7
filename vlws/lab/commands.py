"""The commands that run something, and the application that holds them and those that look (`vlws.lab.looking`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vlws.errors import InputError
from vlws.lab import gramming, looking, opening, prompting, proving, retrieving, serving, tuning, verifying
from vlws.lab.options import Chapters, Force, Jobs, Json, Params, Parsl, Preset, Timeout
from vlws.lab.terminal import aligned, answer, pairs, say, width, with_interval

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Vision-language papers as notebooks that run: run chapters, sweep them, and see which claims hold.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The data that ships.")
app.command("list")(looking.list_command)


@app.command()
def run(
    chapters: Chapters = None,
    preset: Preset = "cpu",
    param: Params = None,
    jobs: Jobs = None,
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
    done = _run(planned, jobs, force, parsl)
    answer(as_json, done, _ran(done))
    _leave_as(done)


@app.command()
def edit(
    edits: Annotated[Path, typer.Argument(help="A JSON file of edits in MMEdit's form.")],
    backbone: Annotated[str, typer.Option(help="A LLaVA or BLIP-2: a folder, a hub id, or a shipped model.")],
    method: Annotated[str, typer.Option(help="unike, finetune, lora, t-patcher or ike.")] = "unike",
    images: Annotated[
        Path | None, typer.Option(help="The folder of the pictures; that of the file by default.", show_default=False)
    ] = None,
    prompt: Annotated[str, typer.Option(help="What stands around a question.")] = "Question: {} Short answer:",
    steps: Annotated[int, typer.Option(help="Of the training of each edit.")] = 40,
    lr: Annotated[float | None, typer.Option(help="Rate; the method's own by default.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Where UniKE's edits are written.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Make edits in a checkpoint, one after the other, score them after the last, and take them back.

    Example: vlws edit edits.json --backbone Salesforce/blip2-opt-2.7b --out edited
    """
    from vlws.edit import apply

    done = apply(
        edits, backbone, method=method, images=images, prompt=prompt, steps=steps, lr=lr, out=out, device=device
    )
    answer(as_json, done, _edited(done))


def _edited(done: dict[str, Any]) -> str:
    """What came of edits: each with what the model said before and says now, and the five scores."""
    rows = [[row["question"], row["target"], row["before"], row["after"]] for row in done["edits"]]
    scores = [
        [kind.replace("_", " "), f"{100 * done['scores'][f'{kind}/{metric}']:.1f}"]
        for kind, metric in (
            *((kind, "tokens") for kind in ("reliability", "text_generality", "image_generality")),
            *((kind, "agreement") for kind in ("text_locality", "image_locality")),
        )
    ]
    told = [aligned(["question", "target", "before", "after"], rows, width()), ""]
    told += [aligned([f"{len(rows)} edits by {done['method']}", "points"], scores, width()), ""]
    if done["already"]:
        told.append(f"{done['already']} targets were the model's answer before any edit.")
    told.append(f"taken back, and the model is as it was: {done['rolled_back']}")
    return "\n".join([*told, *([f"edits written: {done['out']}"] if done["out"] else [])])


@app.command()
def draw(
    texts: Annotated[list[str], typer.Argument(help="Requests, or questions with --ask.", show_default=False)],
    backbone: Annotated[str, typer.Option(help="Shipped, or a folder of MorphTokens.save_pretrained.")] = "morph-emoji",
    image: Annotated[
        list[Path] | None,
        typer.Option(help="A picture for each <image> in the texts, in order; may be repeated.", show_default=False),
    ] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Take pictures of any size.")] = False,
    ask: Annotated[bool, typer.Option("--ask", help="Answer in words instead of drawing.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the PNGs.")] = Path("drawings"),
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens at random, by --seed.")] = False,
    seed: Annotated[int, typer.Option(help="Of --sample.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Draw pictures from text (and pictures), each a PNG; or answer questions about pictures.

    Examples: vlws draw "draw a blue cat at the top left on teal stripes .";
    vlws draw "<image> this is on teal stripes . make it green ." --image drawings/0.png --out edited;
    vlws draw "<image> what is it ?" --image edited/0.png --ask
    """
    from vlws.draw import draw as paint

    done = paint(
        texts,
        backbone,
        images=image or (),
        resize=resize,
        ask=ask,
        out=out,
        sample=sample,
        seed=seed,
        device=device,
    )
    rows = (
        [[r["text"], r["answer"]] for r in done["answers"]] if ask else [[r["text"], r["file"]] for r in done["drawn"]]
    )
    answer(as_json, done, aligned(["text", "answer" if ask else "drawn"], rows, width()))


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
    jobs: Jobs = None,
    force: Force = False,
    timeout: Timeout = None,
    parsl: Parsl = None,
    as_json: Json = False,
) -> None:
    """Run a chapter over every combination of values, and end in a table of parameter against metric.

    Started again, it goes on where it was.

    Examples: vlws sweep 04 -p lr=1e-3,1e-4 -p seeds=3:6 --jobs 2; vlws sweep 04 --grid grid.yaml
    """
    from vlws.lab import runner
    from vlws.lab.chapters import chapter as find
    from vlws.lab.chapters import grid_values, read_grid
    from vlws.lab.compare import sweep_table

    texts = (read_grid(grid) if grid else {}) | pairs(param)
    if not texts:
        raise InputError("a sweep needs values: -p name=1,2,3 or --grid file.yaml.")
    axes = grid_values(find(chapter), texts)
    planned = runner.plan([chapter], preset, grid=axes, timeout=timeout)
    done = _run(planned, jobs, force, parsl)
    table = sweep_table(done, list(axes))
    told = [
        record | {"axes": row["axes"], "values": row["values"]} for record, row in zip(done, table["rows"], strict=True)
    ]
    answer(as_json, told, _swept(table))
    _leave_as(done)


def _run(planned: Sequence[dict[str, Any]], jobs: int | None, force: bool, parsl: Path | None) -> list[dict[str, Any]]:
    """The records of the jobs, in their order, each with how many claims got which verdict."""
    from vlws.lab import records, runner

    done = []
    for record in runner.run(planned, slots=jobs, force=force, parsl=parsl, say=say):
        verdicts = [measure["verdict"] for measure in records.measures(record)]
        done.append(record | {"verdicts": {word: verdicts.count(word) for word in dict.fromkeys(verdicts)}})
    order = {job["key"]: place for place, job in enumerate(planned)}
    return sorted(done, key=lambda record: order[record["key"]])


def _leave_as(done: Sequence[dict[str, Any]]) -> None:
    if any(record["status"] != "ok" for record in done):
        raise typer.Exit(1)


def _ran(done: Sequence[dict[str, Any]]) -> str:
    from vlws.lab.describe import label
    from vlws.lab.run_pages import told

    rows = [
        [
            label(r),
            r["status"] + (" (before)" if r.get("skipped") else ""),
            f"{r['wall_s']:.0f} s",
            ", ".join(f"{n} {word}" for word, n in r["verdicts"].items()) or "–",
        ]
        for r in done
    ]
    return "\n".join([aligned(["chapter", "status", "time", "claims"], rows, width()), *(told(r) for r in done)])


def _swept(table: dict[str, Any]) -> str:
    """Parameter against metric: one row per run."""
    names = [metric["name"] for metric in table["metrics"]]
    head = [*table["axes"], "status", *(f"{m['name']} {m['unit'] or ''}".strip() for m in table["metrics"])]
    rows = [
        [*map(str, row["axes"].values()), row["status"], *(with_interval(row["values"].get(name)) for name in names)]
        for row in table["rows"]
    ]
    return aligned(head, rows, width())


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
    index = site.build(out, api=True)
    answer(as_json, {"index": str(index)}, shown(Path(index).resolve()))


@data_app.command("info")
def data_info(as_json: Json = False) -> None:
    """The data that ships with the package: files and sizes.

    Example: vlws data info
    """
    package = Path(__file__).parents[1]
    folders = [package / "data" / name / "assets" for name in ("emoji_world", "wordnet")] + [
        package / "models" / "assets"
    ]
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
    from vlws.data.wordnet import build as words

    target = out or build.ASSETS
    words.check_source()  # before any work
    build.build(target)
    written = words.build(out or words.ASSETS)
    answer(as_json, {"out": str(target), "wordnet": str(written)}, f"{target}\n{written}")


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
    answer(as_json, checks, aligned(["", "what", "found", "without it"], lines, width()))
    if not all(check["present"] for check in checks if check["needed"]):
        raise typer.Exit(1)


app.add_typer(looking.claims_app, name="claims")
app.command("runs")(looking.runs_command)
app.command("compare")(looking.compare_command)
app.command("prove")(proving.prove_command)
app.command("tune")(tuning.tune_command)
app.command("index")(retrieving.index_command)
app.command("retrieve")(retrieving.retrieve_command)
app.command("gram")(gramming.gram_command)
app.command("prompt")(prompting.prompt_command)
app.command("verify")(verifying.verify_command)
app.command("pack")(verifying.pack_command)
app.command("unpack")(verifying.unpack_command)
app.command("mcp")(serving.mcp_command)
app.command("lab", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(opening.lab_command)
app.add_typer(data_app, name="data")
