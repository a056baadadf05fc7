"""The command that learns a soft prompt from a file of texts and labels."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vlws.errors import InputError
from vlws.lab.options import Json
from vlws.lab.terminal import aligned, answer, width


def prompt_command(
    data: Annotated[Path, typer.Argument(help="A CSV file with a column of texts and one of labels.")],
    backbone: Annotated[str, typer.Option(help="A model of T5's class: a folder or a hub id.")],
    init: Annotated[
        Path | None,
        typer.Option(
            help="A folder of Summer.save_pretrained, or vocabulary; by default the start in the backbone's folder, "
            "else vocabulary.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the training.")] = 200,
    k: Annotated[int, typer.Option("--k", help="Texts per class to train on, and as many to choose by.")] = 16,
    out: Annotated[
        Path | None, typer.Option(help="Where the prompt is written, as peft reads it.", show_default=False)
    ] = None,
    text: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    label: Annotated[str, typer.Option(help="The column of labels.")] = "label",
    word: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=WORD", help="The word that stands for a class; may be repeated."),
    ] = None,
    template: Annotated[str, typer.Option(help="What stands around a text.")] = "{text} It was <extra_id_0> .",
    lr: Annotated[float, typer.Option(help="Rate.")] = 0.1,
    length: Annotated[int, typer.Option(help="Vectors of a prompt without --init.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the split and the order of the texts.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Learn a soft prompt for a model of T5's class from a few texts per class; the model stays as it is.

    Example: vlws prompt reviews.csv --backbone google-t5/t5-base --word good=great --word bad=terrible --out prompt
    """
    from vlws.prompt import learn

    done = learn(
        data,
        backbone,
        init=None if init is None else str(init),
        steps=steps,
        k=k,
        out=out,
        text=text,
        label=label,
        words=_words(word),
        template=template,
        lr=lr,
        prompt_length=length,
        seed=seed,
        device=device,
    )
    answer(as_json, done, _learned(done))


def _words(given: list[str] | None) -> dict[str, str]:
    """CLASS=WORD options as a mapping; a class may have any name without "="."""
    found: dict[str, str] = {}
    for one in given or ():
        name, equals, word = (part.strip() for part in one.partition("="))
        if not equals or not name or not word:
            raise InputError(f"--word {one!r} is no CLASS=WORD.")
        if name in found:
            raise InputError(f"--word {name} is given twice.")
        found[name] = word
    return found


def _learned(done: dict[str, Any]) -> str:
    """What was learned: texts and accuracies of each part."""
    rows = [
        [name, str(done[name]["examples"]), f"{100 * done[name]['accuracy']:.1f}" if "accuracy" in done[name] else "–"]
        for name in ("train", "dev", "test")
    ]
    said = ", ".join(f"{name} as {word}" if name != word else name for name, word in done["classes"].items())
    told = [
        f"classes: {said}",
        "",
        aligned(["", "texts", "accuracy (points)"], rows, width()),
        "",
        f"dev before the first step: {100 * done['start']:.1f}; the prompt of step {done['best_step']} is kept",
    ]
    return "\n".join([*told, *([f"prompt written: {done['out']}"] if done["out"] else [])])
