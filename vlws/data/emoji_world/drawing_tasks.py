"""What a model that reads and draws is asked about drawings: six tasks, each a text with pictures.

    caption     <image> what does it show ?                           -> a blue cat at the top left
    question    <image> which colour is it ?                          -> blue
    draw        draw a blue cat at the top left on teal stripes .     -> picture
    rebuild     <image> draw this on teal stripes .                   -> the picture itself
    edit        <image> this is on teal stripes . make it red .       -> picture
    subject     <image> draw this thing in red at the bottom left on grey checks .   -> picture

Tokens that tell what a picture means do not tell its ground: where a request needs it, the text names it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlws.data.emoji_world.drawings import CHANGES, QUESTIONS, Drawing, changed, everything, index, request
from vlws.errors import InputError

TELL = ("caption", "question")
DRAW = ("draw", "rebuild", "edit", "subject")


class Task(NamedTuple):
    """A text, the picture that stands at its `<image>` (an index into `drawings.everything()`; -1: none), and what is
    wanted: an answer, or a picture (-1: none). `about`: the attribute that is asked for or changed.

    >>> Task("question", "<image> what is it ?", 0, "cat", -1, "thing").answer
    'cat'
    """

    kind: str
    text: str
    picture: int
    answer: str
    target: int
    about: str = ""


def task(kind: str, drawing: Drawing, rng: np.random.Generator, about: str = "") -> Task:
    """A task about a drawing; `about` is drawn where it is not given.

    Of an edit and a subject the drawing is what comes out; the picture that goes in is drawn.

    >>> rng, drawing = np.random.default_rng(0), Drawing(0, 3, 0, 4, 1)
    >>> task("draw", drawing, rng).text
    'draw a blue cat at the top left on teal stripes .'
    >>> task("question", drawing, rng, "colour").answer
    'blue'
    >>> task("edit", drawing, rng, "colour").text
    '<image> this is on teal stripes . make it blue .'
    """
    here = index(drawing)
    if kind == "caption":
        return Task(kind, "<image> what does it show ?", here, drawing.caption(), -1)
    if kind == "question":
        about = about or tuple(QUESTIONS)[rng.integers(len(QUESTIONS))]
        return Task(kind, f"<image> {QUESTIONS[about]}", here, drawing.word(about), -1, about)
    if kind == "draw":
        return Task(kind, f"draw {drawing.caption()} on {drawing.ground()} .", -1, "", here)
    if kind == "rebuild":
        return Task(kind, f"<image> draw this on {drawing.ground()} .", here, "", here)
    if kind == "edit":
        about = about or tuple(CHANGES)[rng.integers(len(CHANGES))]
        old = changed(drawing, rng, about)
        return Task(kind, f"<image> this is on {old.ground()} . {request(drawing, about)}", index(old), "", here, about)
    if kind == "subject":
        shown = Drawing(drawing.thing, *(int(rng.integers(n)) for n in (5, 4, 6, 4)))
        rest = f"in {drawing.word('colour')} at the {drawing.word('place')} on {drawing.ground()}"
        return Task(kind, f"<image> draw this thing {rest} .", index(shown), "", here)
    raise InputError(f"There is no task {kind!r}; accepted are {', '.join((*TELL, *DRAW))}.")


def tasks(kinds: Sequence[str], pool: Sequence[int] | np.ndarray, n: int, rng: np.random.Generator) -> list[Task]:
    """n tasks, the kinds in turn, about drawings of a pool (indices).

    >>> [t.kind for t in tasks(("caption", "draw"), [0, 1, 2], 4, np.random.default_rng(0))]
    ['caption', 'draw', 'caption', 'draw']
    """
    known = everything()
    chosen = rng.choice(np.asarray(pool), n)
    return [task(kinds[k % len(kinds)], known[i], rng) for k, i in enumerate(chosen)]
