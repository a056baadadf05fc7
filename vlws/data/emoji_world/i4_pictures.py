"""The pictures of the small I4: things in the cells of a grid, some with a word or a number written over them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from einops import rearrange

from vlws.data.emoji_world import emoji, renderer
from vlws.data.emoji_world.scenes import CANVAS, COLOURS, TINT_NAMES, Background, Item, Scene, cell_slices
from vlws.errors import InputError

SORTS: dict[str, tuple[str, tuple[str, ...]]] = {  # what Unicode's subgroups say a kind is
    "animal": ("animal-", ("cat", "fish", "rabbit", "owl")),
    "fruit": ("food-fruit", ("banana", "pineapple", "strawberry", "pear")),
    "vehicle": ("transport-", ("bus", "airplane", "rocket", "bicycle")),
    "tool": ("tool", ("hammer", "axe", "wrench", "ladder")),
    "garment": ("clothing", ("crown", "dress", "coat", "necktie")),
    "instrument": ("musical-instrument", ("guitar", "trumpet", "drum", "violin")),
}
I4_KINDS = (*(kind for _, kinds in SORTS.values() for kind in kinds), "house", "star", "key", "bell", "camera")
WRITTEN_WORDS = ("sun", "tea", "box", "map", "jam", "pen", "hat", "cup", "ink", "log", "net", "zoo")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True, slots=True)
class LabelledScene:
    """A scene, and what is written over it: (cell, text), centred from that cell to the right border.

    >>> ground = Background(texture=0, dy=0, dx=0, low=(90, 90, 90), high=(120, 120, 120))
    >>> LabelledScene(Scene((), ground), labels=((2, "tea"),)).labels
    ((2, 'tea'),)
    """

    scene: Scene
    labels: tuple[tuple[int, str], ...] = ()


class SampleRandom:
    """The randomness of one sample: random words, poses (by grid) and backgrounds, used up one by one.

    >>> ground = Background(texture=0, dy=0, dx=0, low=(90, 90, 90), high=(120, 120, 120))
    >>> c = SampleRandom([2**31] * 20, poses={2: [(24, 0, 0, 0)] * 4}, grounds=[ground] * 2)
    >>> c.below(10), c.pick(["a", "b"]), c.some(["a", "b", "c"], 2), c.shuffled([1, 2, 3])
    (5, 'b', ['b', 'c'], [2, 3, 1])
    >>> name_of(c.item("cat", "red", cell=0)), len(c.items(2))
    ('red cat', 2)
    >>> len(c.picture([]).scene.items), len(c.alone("cat", "red").scene.items)
    (0, 1)
    """

    def __init__(self, words: Sequence[int], poses: dict[int, Sequence], grounds: Sequence[Background]) -> None:
        self._words, self._grounds = iter(words), iter(grounds)
        self._poses = {grid: iter(rows) for grid, rows in poses.items()}

    def below(self, k: int) -> int:
        """An integer below k."""
        return next(self._words) * k >> 32

    def pick(self, options: Sequence):
        """One of the options."""
        return options[self.below(len(options))]

    def some(self, options: Sequence, k: int) -> list:
        """k different ones in random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(k)]

    def shuffled(self, options: Sequence) -> list:
        """All of the options in random order."""
        return self.some(options, len(options))

    def item(self, kind: str, colour: str, cell: int, grid: int = 2) -> Item:
        """A thing of a kind and a colour in a cell, in the next pose."""
        size, angle, dy, dx = next(self._poses[grid])
        return Item(emoji_index(kind), cell, size, angle, dy, dx, TINT_NAMES.index(colour))

    def items(self, k: int, cells: Sequence[int] = range(4), grid: int = 2) -> list[Item]:
        """k things of different kinds in different cells, in the order of the cells."""
        kinds, places = self.some(I4_KINDS, k), sorted(self.some(cells, k))
        return [self.item(kind, self.pick(COLOURS), cell, grid) for kind, cell in zip(kinds, places, strict=True)]

    def picture(self, items: Sequence[Item], grid: int = 2, labels: Sequence[tuple[int, str]] = ()) -> LabelledScene:
        """The items on the next background, with what is written over it."""
        return LabelledScene(Scene(in_cell_order(items), next(self._grounds), grid), tuple(labels))

    def alone(self, kind: str, colour: str, grid: int = 2, cell: int | None = None) -> LabelledScene:
        """A picture of one thing."""
        return self.picture([self.item(kind, colour, self.below(grid**2) if cell is None else cell, grid)], grid)


@cache
def emoji_index(kind: str) -> int:
    """The index into `emoji.load()` of one of I4_KINDS.

    >>> emoji.load().names[emoji_index("cat")]
    'cat'
    """
    return emoji.load().index(kind)


def kind_of(item: Item) -> str:
    """The kind of an item, one of I4_KINDS.

    >>> kind_of(Item(emoji_index("cat"), cell=0, size=24))
    'cat'
    """
    return emoji.load().names[item.emoji]


def colour_of(item: Item) -> str:
    """The colour of an item, one of COLOURS.

    >>> colour_of(Item(emoji_index("cat"), cell=0, size=24, tint=TINT_NAMES.index("red")))
    'red'
    """
    return TINT_NAMES[item.tint]


def name_of(item: Item) -> str:
    """ "red cat".

    >>> name_of(Item(emoji_index("cat"), cell=0, size=24, tint=TINT_NAMES.index("red")))
    'red cat'
    """
    return f"{colour_of(item)} {kind_of(item)}"


def in_cell_order(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items in the order of their cells.

    >>> cat = emoji_index("cat")
    >>> [item.cell for item in in_cell_order([Item(cat, cell=3, size=24), Item(cat, cell=0, size=24)])]
    [0, 3]
    """
    return tuple(sorted(items, key=lambda item: item.cell))


def showing(picture: LabelledScene, items: Sequence[Item]) -> LabelledScene:
    """The same ground with other things on it.

    >>> ground = Background(texture=0, dy=0, dx=0, low=(90, 90, 90), high=(120, 120, 120))
    >>> after = showing(LabelledScene(Scene((), ground)), [Item(emoji_index("cat"), cell=0, size=24)])
    >>> after.scene.background == ground, len(after.scene.items)
    (True, 1)
    """
    return replace(picture, scene=replace(picture.scene, items=in_cell_order(items)))


# --- rendering --------------------------------------------------------------------------------------------------

_SCALE = 3  # canvas pixels per dot
_GLYPHS = (  # rows of three dots, one octal digit per row
    *("25755", "65656", "34443", "65556", "74647", "74644", "34553", "55755", "72227", "11152", "55655", "44447"),
    *("57755", "65555", "25552", "65644", "25573", "65655", "34216", "72222", "55557", "55552", "55775", "55255"),
    *("55222", "71247"),
    *("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71111", "75757", "75717"),
)
FONT = dict(zip("abcdefghijklmnopqrstuvwxyz0123456789", _GLYPHS, strict=True))


@cache
def plate(text: str) -> np.ndarray:
    """A text as "height width" uint8, white on black: capitals of 5 x 3 dots of 3 pixels, with a margin.

    >>> plate("tea").dtype, plate("tea").shape[1] < plate("eleven").shape[1]
    (dtype('uint8'), True)
    """
    dots = np.zeros((5, 4 * len(text) - 1), np.uint8)
    for k, char in enumerate(text):
        for row, digit in enumerate(FONT[char]):
            dots[row, 4 * k : 4 * k + 3] = [255 * (int(digit) >> bit & 1) for bit in (2, 1, 0)]
    return np.pad(dots.repeat(_SCALE, 0).repeat(_SCALE, 1), 2)


def render(pictures: Sequence[LabelledScene], size: int = 64) -> np.ndarray:
    """Pictures -> "n size size 3" uint8 RGB; size is 64, 32 or 16.

    >>> ground = Background(texture=0, dy=0, dx=0, low=(90, 90, 90), high=(120, 120, 120))
    >>> render([LabelledScene(Scene((), ground), labels=((2, "tea"),))], size=32).shape
    (1, 32, 32, 3)
    """
    if not any(picture.labels for picture in pictures):
        return renderer.render([picture.scene for picture in pictures], size)
    canvas = renderer.render([picture.scene for picture in pictures])
    for image, picture in zip(canvas, pictures, strict=True):
        for cell, text in picture.labels:
            rows, columns = cell_slices(picture.scene.grid, cell)
            dots = plate(text)
            top = (rows.start + rows.stop - len(dots)) // 2
            left = (columns.start + CANVAS - dots.shape[1]) // 2
            image[top : top + len(dots), left : left + dots.shape[1]] = dots[..., None]
    if size not in (64, 32, 16):
        raise InputError(f"Pictures are rendered at 64, 32 or 16 pixels, not {size}.")
    small = renderer.shrink(rearrange(canvas.astype(np.uint16), "n h w c -> n c h w"), CANVAS // size)
    return rearrange(small, "n c h w -> n h w c").astype(np.uint8)
