"""The command `vlws tune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vlws.display import number
from vlws.lab.options import Json, Parsl, Preset
from vlws.lab.terminal import aligned, answer, pairs, say, width

SHOWN = 10  # trials in the table


def tune_command(
    chapter: Annotated[str, typer.Argument(help="A chapter by id, slug or name.")],
    metric: Annotated[str, typer.Option(help="What is to become best: a claim such as 04.C1, or arm:metric.")],
    param: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", metavar="NAME=RANGE", help="1e-4..1e-2:log, 3..8, a,b,c, or a value that stays."),
    ] = None,
    trials: Annotated[int, typer.Option(help="How many trials the journal is to hold.")] = 20,
    minutes: Annotated[float | None, typer.Option(help="At most, of this call.", show_default=False)] = None,
    preset: Preset = "cpu",
    seeds: Annotated[
        int | None, typer.Option(help="Of each trial, 1000 and on; the preset's number by default.", show_default=False)
    ] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Of arm:metric, less is better.")] = False,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", help="Trials at once; one per two cores by default.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="The file of the trials; in runs/tuning/ by default.", show_default=False)
    ] = None,
    parsl: Parsl = None,
    as_json: Json = False,
) -> None:
    """Search a chapter's parameters with Optuna, on seeds from 1000 up, which are never reported.

    Started again, or twice at once, it goes on with the same trials. What it finds is no evidence: run the chapter with
    the best values.

    Example: vlws tune 04 --metric 04.C1 -p lr=1e-4..1e-2:log -p components=3..8 --trials 20 --minutes 60
    """
    from vlws.lab.tune import tune

    done = tune(
        chapter,
        pairs(param),
        metric,
        trials=trials,
        minutes=minutes,
        preset=preset,
        seeds=seeds,
        minimize=minimize,
        jobs=jobs,
        parsl=parsl,
        journal=journal,
        say=say,
    )
    answer(as_json, done, told(done))
    if done["best"] is None and not done["ended"]:
        raise typer.Exit(1)


def told(done: dict[str, Any]) -> str:
    """The best trials, what each parameter matters, and how the best values are run."""
    names = list(done["ranges"])
    rows = [
        [
            str(trial["number"]),
            *(
                f"{value:.4g}" if isinstance(value := trial["params"].get(name), float) else str(value)
                for name in names
            ),
            number(trial["value"]) if trial["value"] is not None else trial["why"] or trial["state"],
            f"{trial['seconds']:.0f} s" if trial["seconds"] else "–",
        ]
        for trial in done["trials"][:SHOWN]
    ]
    ways = {"maximize": "the larger the better", "minimize": "the smaller the better"}
    lines = [
        f"{done['metric']} of {done['chapter']} at {done['preset']}, {ways[done['direction']]}; "
        f"{len(done['trials'])} trials on seeds {done['seeds'][0]} to {done['seeds'][-1]}",
        "",
        aligned(["trial", *names, done["metric"], "time"], rows, width()),
    ]
    if done["importance"]:
        shares = [f"{name} {100 * share:.0f} %" for name, share in done["importance"].items()]
        lines += ["", f"share of the variance: {', '.join(shares)}"]
    if done["best"]:
        values = " ".join(f"-p {name}={value}" for name, value in done["best"]["params"].items())
        lines += ["", f"best: vlws run {done['chapter'][:2]} --preset {done['preset']} {values}"]
    return "\n".join([*lines, *([done["ended"]] if done["ended"] else []), f"journal {done['journal']}"])
