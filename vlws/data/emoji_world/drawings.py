"""Drawings: one thing on a card, on a patterned ground, which a sentence tells whole; to read, draw and edit.

A drawing is five attributes: thing, colour and place are its *meaning*, which questions and captions are about; the
ground's shade and pattern are *detail*, which only a request to draw names. The five determine every pixel (no pose, no
noise is drawn), so that a picture that a model draws can be held against the one that was asked for. The card fills the
thing's cell: its pixels tell the thing and its colour alone, the others the ground alone.

`splits` is the same for all seeds: it keeps an eighth of all for tests, and every drawing of six pairs of thing and
colour, which no training shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from vlws.data.emoji_world import emoji, renderer
from vlws.data.emoji_world.scenes import COLOURS, POSITIONS, TINT_NAMES, Background, Item, Scene
from vlws.data.english import with_article
from vlws.errors import InputError

SIDE = 32  # pixels
THINGS = {  # what a text calls it -> its CLDR name
    "cat": "cat face",
    "duck": "duck",
    "butterfly": "butterfly",
    "fish": "tropical fish",
    "tree": "palm tree",
    "tulip": "tulip",
    "pear": "pear",
    "pizza": "pizza",
    "car": "automobile",
    "house": "house",
    "hat": "top hat",
    "dress": "dress",
}
SHADES = {  # the two colours of a ground: low and high
    "grey": ((70, 70, 78), (150, 150, 158)),
    "white": ((190, 190, 184), (238, 238, 232)),
    "brown": ((96, 60, 30), (168, 120, 74)),
    "pink": ((196, 130, 150), (240, 196, 210)),
    "teal": ((20, 88, 88), (90, 164, 160)),
    "navy": ((24, 30, 84), (86, 96, 164)),
}
PATTERNS = {"clouds": 0, "stripes": 2, "checks": 11, "bars": 10}  # -> a texture of the renderer's bank
PLACES = POSITIONS[2]
CARD = Background(0, 0, 0, (238, 238, 232), (238, 238, 232))


class Drawing(NamedTuple):
    """Indices into THINGS, COLOURS, PLACES, SHADES and PATTERNS.

    >>> drawing = Drawing(thing=0, colour=3, place=0, shade=4, pattern=1)
    >>> drawing.caption(), drawing.ground()
    ('a blue cat at the top left', 'teal stripes')
    """

    thing: int
    colour: int
    place: int
    shade: int
    pattern: int

    def word(self, attribute: str) -> str:
        """What a text calls one attribute.

        >>> Drawing(0, 3, 0, 4, 1).word("colour")
        'blue'
        """
        return WORDS[attribute][getattr(self, attribute)]

    def caption(self) -> str:
        """Its meaning, in words.

        >>> Drawing(2, 0, 3, 0, 0).caption()
        'a red butterfly at the bottom right'
        """
        return f"{with_article(self.word('colour'))} {self.word('thing')} at the {self.word('place')}"

    def ground(self) -> str:
        """Its detail, in words.

        >>> Drawing(2, 0, 3, 0, 0).ground()
        'grey clouds'
        """
        return f"{self.word('shade')} {self.word('pattern')}"


WORDS: dict[str, tuple[str, ...]] = dict(
    zip(Drawing._fields, (tuple(THINGS), COLOURS, PLACES, tuple(SHADES), tuple(PATTERNS)), strict=True)
)
MEANING, DETAIL = ("thing", "colour", "place"), ("shade", "pattern")
QUESTIONS = {"thing": "what is it ?", "colour": "which colour is it ?", "place": "where is it ?"}
CHANGES = {
    "thing": "turn it into {} .",
    "colour": "make it {} .",
    "place": "move it to the {} .",
    "shade": "put it on {} .",
}
CELL = SIDE // 2


@cache
def everything() -> tuple[Drawing, ...]:
    """All drawings, in the order of their attributes.

    >>> len(everything())
    5760
    """
    return tuple(Drawing(*(int(k) for k in at)) for at in np.ndindex(*map(len, WORDS.values())))


def index(drawing: Drawing) -> int:
    """Where a drawing stands in `everything()`.

    >>> index(everything()[1234])
    1234
    """
    return int(np.ravel_multi_index(drawing, tuple(map(len, WORDS.values()))))


@dataclass(frozen=True)
class Splits:
    """Indices of drawings: those that train, held-out ones of pairs that train, those of withheld pairs.

    >>> found = splits()
    >>> len(found.train), len(found.test), len(found.pairs)
    (4536, 648, 576)
    """

    train: np.ndarray
    test: np.ndarray
    pairs: np.ndarray


@cache
def splits() -> Splits:
    """The split that all seeds share, since the shipped tokenizers have trained on it.

    >>> thing_and_colour = {everything()[i][:2] for i in splits().pairs}
    >>> len(thing_and_colour), any(everything()[i][:2] in thing_and_colour for i in splits().train)
    (6, False)
    """
    withheld = {(2 * k, k % len(COLOURS)) for k in range(6)}
    is_pair = np.array([drawing[:2] in withheld for drawing in everything()])
    rest = np.random.Generator(np.random.PCG64(77)).permutation(np.flatnonzero(~is_pair))
    held = len(rest) // 8
    return Splits(np.sort(rest[held:]), np.sort(rest[:held]), np.flatnonzero(is_pair))


def render(drawings: Sequence[Drawing]) -> np.ndarray:
    """Pictures, "n 32 32 3" uint8 RGB.

    >>> render([Drawing(0, 0, 0, 0, 0)] * 2).shape
    (2, 32, 32, 3)
    """
    if not drawings:
        return np.empty((0, SIDE, SIDE, 3), np.uint8)
    grounds = renderer.render([Scene((), _ground(drawing)) for drawing in drawings], SIDE)
    things = renderer.render([Scene((_item(drawing),), CARD) for drawing in drawings], SIDE)
    return np.where(np.stack([cell(drawing) for drawing in drawings])[..., None], things, grounds)


def cell(drawing: Drawing) -> np.ndarray:
    """ "32 32" bool: the cell of its thing.

    >>> cell(Drawing(0, 0, 3, 0, 0))[16:, 16:].all(), int(cell(Drawing(0, 0, 3, 0, 0)).sum())
    (np.True_, 256)
    """
    where = np.zeros((2, 2), bool)
    where.ravel()[drawing.place] = True
    return where.repeat(CELL, 0).repeat(CELL, 1)


def _ground(drawing: Drawing) -> Background:
    return Background(PATTERNS[drawing.word("pattern")], 0, 0, *SHADES[drawing.word("shade")])


def _item(drawing: Drawing) -> Item:
    return Item(_sprites()[drawing.thing], drawing.place, 26, tint=TINT_NAMES.index(drawing.word("colour")))


@cache
def _sprites() -> tuple[int, ...]:
    known = emoji.load()
    return tuple(known.index(name) for name in THINGS.values())


def changed(drawing: Drawing, rng: np.random.Generator, attribute: str) -> Drawing:
    """Another value of one attribute; of the shade, another shade and another pattern.

    >>> changed(Drawing(0, 0, 0, 0, 0), np.random.default_rng(0), "place").place
    3
    """
    if attribute not in CHANGES:
        raise InputError(f"{attribute!r} cannot be edited; accepted are {', '.join(CHANGES)}.")
    fields = ("shade", "pattern") if attribute == "shade" else (attribute,)
    new = {f: _other(getattr(drawing, f), len(WORDS[f]), rng) for f in fields}
    return drawing._replace(**new)


def _other(old: int, n: int, rng: np.random.Generator) -> int:
    return int((old + 1 + rng.integers(n - 1)) % n)


def request(new: Drawing, attribute: str) -> str:
    """The sentence that asks for a change.

    >>> request(Drawing(1, 0, 0, 4, 1), "thing"), request(Drawing(1, 0, 0, 4, 1), "shade")
    ('turn it into a duck .', 'put it on teal stripes .')
    """
    said = {"thing": with_article(new.word("thing")), "shade": new.ground()}
    return CHANGES[attribute].format(said.get(attribute) or new.word(attribute))


def kept_pixels(old: Drawing, new: Drawing, attribute: str) -> np.ndarray:
    """ "32 32" bool: pixels that an edit must leave: those outside the cells that it changes, or of the thing's cell.

    >>> int(kept_pixels(Drawing(0, 0, 0, 0, 0), Drawing(0, 1, 0, 0, 0), "colour").sum())  # three cells of four
    768
    """
    mask = cell(old) | cell(new)
    return mask if attribute == "shade" else ~mask
