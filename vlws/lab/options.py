"""The arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]
One = Annotated[str | None, typer.Argument(help="A chapter by id, slug or name; none means all.", show_default=False)]
Chapters = Annotated[
    list[str] | None, typer.Argument(help="Chapters by id, slug or name; none means all.", show_default=False)
]
Preset = Annotated[
    str,
    typer.Option(help="cpu (the notebooks' literals), or of the chapter's in presets.yml: test, full, gpu, real."),
]
Params = Annotated[
    list[str] | None, typer.Option("-p", "--param", metavar="NAME=VALUE", help="A parameter; may be repeated.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "-j",
        "--jobs",
        help="How many notebooks at once, each with its share of the cores; one per two cores by default.",
    ),
]
Slots = Annotated[
    int | None,
    typer.Option(
        "-j", "--jobs", help="Processes at once, each with its share of the cores; by default all is done in this one."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Run again what has finished and has not changed.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds after which a run is stopped.", show_default=False)]
Parsl = Annotated[
    Path | None, typer.Option(help="A Python file with a parsl.Config: run on a cluster.", show_default=False)
]
