"""Counterfactual pairs: a picture, the same picture with one thing edited, and the sentence of their difference.

The world of chapter 06. A picture of 48 px shows one large thing (the salient one) and some small ones, two unless
asked for more, each an emoji in one of five colours, no two of a kind, on a near-grey ground. An edit renders the
picture again with one thing changed: all pixels outside the union of its two masks stay as they are. In the paper
(Cheetor, arXiv:2308.04152, section 2.2) SAM finds the things, ChatGPT writes the edits and diffusion paints them; here
all three are exact. What the paper calls modify and swap are here recolour and replace, in the words of `edits`.

All randomness comes from `PCG64.random_raw`, as in `scenes`: a seed gives the same bytes on every machine, and the
first k of n pictures do not depend on n.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from vlws.data.emoji_world import emoji
from vlws.data.emoji_world.edits import DIFFERENCES, SINGLE_EDITS, apply, tell
from vlws.data.emoji_world.renderer import paint_backgrounds, sample_sprites
from vlws.data.emoji_world.scenes import COLOURS, Background, Item, backgrounds, below, draws, permutation
from vlws.errors import InputError

SIDE = 48  # pixels; nine cells of 16
CELL = 16
PAIR_KINDS = ("cat", "fish", "house", "star", "key", "bell", "hammer", "camera")  # CLDR names
BLOCKS = (0, 1, 3, 4)  # the cells where a large thing, two by two cells, can begin
CAPTION_PROMPT = "<image> describe the image."
DIFFERENCE_PROMPT = "<image><image> describe the difference."
CHUNK = 64


@dataclass(frozen=True, slots=True)
class PlacedThing:
    """`kind` indexes PAIR_KINDS, `colour` COLOURS; `cell` counts row by row (the first of four if `large`).

    `size` is the sprite's side in pixels; `dy, dx` move its centre.

    >>> thing = PlacedThing(kind=0, colour=COLOURS.index("blue"), cell=0, large=True, size=24)
    >>> thing.name, thing.words, thing.cells
    ('blue cat', ('blue', 'cat'), (0, 1, 3, 4))
    """

    kind: int
    colour: int
    cell: int
    large: bool
    size: int
    dy: int = 0
    dx: int = 0

    @property
    def name(self) -> str:
        """ "blue cat"."""
        return " ".join(self.words)

    @property
    def words(self) -> tuple[str, str]:
        """("blue", "cat")."""
        return COLOURS[self.colour], PAIR_KINDS[self.kind]

    @property
    def cells(self) -> tuple[int, ...]:
        """The cells that it covers."""
        return (self.cell, self.cell + 1, self.cell + 3, self.cell + 4) if self.large else (self.cell,)


@dataclass(frozen=True, slots=True)
class SalientScene:
    """The large thing first, then the small ones.

    >>> (scene,) = sample(1, seed=0)
    >>> scene.things[0].large, len(scene.things), len(scene.free_cells)  # four cells large, two of one cell
    (True, 3, 3)
    """

    things: tuple[PlacedThing, ...]
    background: Background

    @property
    def free_cells(self) -> tuple[int, ...]:
        """Cells that hold nothing."""
        taken = {cell for thing in self.things for cell in thing.cells}
        return tuple(cell for cell in range(9) if cell not in taken)


@dataclass(frozen=True, slots=True)
class Pair:
    """`edit` is one of SINGLE_EDITS; `before_thing` is None where a thing was added, `after_thing` where one went.

    >>> pair = edit(sample(1, seed=0)[0], target=1, seed=0, kind="recolour")
    >>> pair.salient, pair.sentence
    (False, 'the purple fish is now yellow')
    """

    before: SalientScene
    after: SalientScene
    edit: str
    before_thing: PlacedThing | None
    after_thing: PlacedThing | None

    @property
    def salient(self) -> bool:
        """Whether the large thing is what changed."""
        return (self.before_thing or self.after_thing).large

    @property
    def sentence(self) -> str:
        """The difference of the two pictures: the target of training and evaluation."""
        old, new = (thing and thing.words for thing in (self.before_thing, self.after_thing))
        return tell(DIFFERENCES, self.edit, old, new)


# --- sampling ---------------------------------------------------------------------------------------------------


def sample(n: int, seed: int, *, small: tuple[int, int] = (2, 2)) -> list[SalientScene]:
    """n pictures with one large thing and between small[0] and small[1] small ones.

    >>> [len(scene.things) for scene in sample(3, seed=0, small=(1, 1))]
    [2, 2, 2]
    """
    if not 1 <= small[0] <= small[1] <= 4:
        raise InputError(f"small={small}: a picture holds 1 to 4 small things beside the large one.")
    words = draws(n, 46, seed)
    count = small[0] + below(words[:, 0], small[1] - small[0] + 1)
    kind = permutation(words[:, 1:9], 8)
    block = below(words[:, 9], len(BLOCKS))
    order = permutation(words[:, 10:15], 5)
    colour = below(words[:, 15:20], len(COLOURS))
    size = np.concatenate([27 + below(words[:, 20:21], 5), 13 + below(words[:, 21:25], 3)], axis=1)
    room = (np.array([32, 16, 16, 16, 16]) - size) // 2
    dy, dx = (below(words[:, k : k + 5], 2 * room + 1) - room for k in (25, 30))
    grounds = backgrounds(words[:, 40:46], True)
    columns = [column.tolist() for column in (kind, colour, size, dy, dx)]
    pictures = []
    for i in range(n):
        first = BLOCKS[block[i]]
        rest = [cell for cell in range(9) if cell not in (first, first + 1, first + 3, first + 4)]
        cells = [first, *(rest[j] for j in order[i])]
        things = []
        for k in range(1 + int(count[i])):
            kind_k, colour_k, size_k, dy_k, dx_k = (column[i][k] for column in columns)
            things.append(PlacedThing(kind_k, colour_k, cells[k], k == 0, size_k, dy_k, dx_k))
        pictures.append(SalientScene(tuple(things), grounds[i]))
    return pictures


def possible_edits(picture: SalientScene, target: int) -> tuple[str, ...]:
    """The edits of thing `target`: the large thing stays; an addition (its target says only: background) needs room.

    >>> (scene,) = sample(1, seed=0)
    >>> possible_edits(scene, target=0)  # the large thing stays
    ('recolour', 'replace')
    """
    impossible = set()
    if picture.things[target].large or len(picture.things) < 3:
        impossible.add("delete")
    if picture.things[target].large or len(picture.things) > 3 or not picture.free_cells:
        impossible.add("add")
    return tuple(kind for kind in SINGLE_EDITS if kind not in impossible)


def edit(
    picture: SalientScene, target: int, seed: int, kind: str | None = None, cells: Sequence[int] | None = None
) -> Pair:
    """One edit of thing `target`, its kind drawn from those possible unless given.

    See `edits` for what each does; a replacement keeps colour and place. An added thing is small, stands in the
    background, in the first free one of `cells` where given (least attended first), else anywhere free.

    Raises:
        InputError: no such thing, or an edit that the picture does not allow.

    >>> (scene,) = sample(1, seed=0)
    >>> pair = edit(scene, target=0, seed=0, kind="recolour")
    >>> pair.before_thing.name, pair.after_thing.name, pair.sentence
    ('red house', 'green house', 'the red house is now green')
    """
    if not 0 <= target < len(picture.things):
        raise InputError(f"target={target}: the picture shows things 0 to {len(picture.things) - 1}.")
    allowed = possible_edits(picture, target)
    if kind is not None and kind not in allowed:
        raise InputError(f"The edit {kind!r} is not possible here; this thing allows {', '.join(allowed)}.")
    word = draws(1, 8, seed)[0]
    kind = kind or allowed[int(below(word[0], len(allowed)))]
    return _edited(picture, target, kind, word, cells)


def edits(
    pictures: Sequence[SalientScene],
    targets: Sequence[int],
    seed: int,
    cells: Sequence[Sequence[int]] | None = None,
) -> list[Pair]:
    """One edit per picture, of its thing `targets[i]`, kinds in equal parts of those possible; see `edit`.

    >>> pairs = edits(sample(4, seed=0), targets=[1, 1, 2, 2], seed=0)
    >>> len(pairs), {pair.edit for pair in pairs} <= set(SINGLE_EDITS)
    (4, True)
    """
    if len(pictures) != len(targets):
        raise InputError(f"{len(pictures)} pictures and {len(targets)} targets; give one target per picture.")
    pairs = []
    for i, (picture, row) in enumerate(zip(pictures, draws(len(pictures), 8, seed), strict=True)):
        target = int(targets[i])
        allowed = possible_edits(picture, target)
        kind = allowed[int(below(row[0], len(allowed)))]
        pairs.append(_edited(picture, target, kind, row, None if cells is None else cells[i]))
    return pairs


def _edited(picture: SalientScene, target: int, kind: str, word: np.ndarray, cells: Sequence[int] | None) -> Pair:
    old: PlacedThing | None = picture.things[target]
    present = {thing.kind for thing in picture.things}
    fresh = [k for k in range(len(PAIR_KINDS)) if k not in present]
    if kind == "recolour":
        new = replace(old, colour=int((old.colour + 1 + below(word[1], len(COLOURS) - 1)) % len(COLOURS)))
    elif kind == "replace":
        new = replace(old, kind=fresh[int(below(word[2], len(fresh)))])
    elif kind == "delete":
        new = None
    else:
        free = picture.free_cells
        cell = next(c for c in cells if c in free) if cells is not None else free[int(below(word[3], len(free)))]
        added, colour = fresh[int(below(word[2], len(fresh)))], int(below(word[1], len(COLOURS)))
        old, new = None, PlacedThing(added, colour, int(cell), False, 13 + int(below(word[4], 3)))
    return Pair(picture, replace(picture, things=apply(picture.things, [(old, new)])), kind, old, new)


# --- texts -----------------------------------------------------------------------------------------------


def caption(picture: SalientScene) -> str:
    """The caption: it names the large thing alone.

    >>> (scene,) = sample(1, seed=0)
    >>> caption(scene), scene.things[0].name
    ('a red house', 'red house')
    """
    return f"a {picture.things[0].name}"


def colour_question(thing: PlacedThing) -> tuple[str, str]:
    """(prompt, answer): the colour of a thing, which its kind alone names.

    >>> colour_question(sample(1, seed=0)[0].things[0])
    ('<image> what colour is the house?', 'red')
    """
    return f"<image> what colour is the {PAIR_KINDS[thing.kind]}?", COLOURS[thing.colour]


# --- rendering --------------------------------------------------------------------------------------------------


def render(pictures: Sequence[SalientScene]) -> np.ndarray:
    """Pictures -> "n 48 48 3" uint8 RGB.

    >>> render(sample(2, seed=0)).shape
    (2, 48, 48, 3)
    """
    out = np.empty((len(pictures), SIDE, SIDE, 3), np.uint8)
    for start in range(0, len(pictures), CHUNK):
        chunk = pictures[start : start + CHUNK]
        canvas = paint_backgrounds([picture.background for picture in chunk])[:, :, :SIDE, :SIDE].copy()
        for i, _, rows, columns, patch in _patches(chunk):
            under = canvas[i, :, rows, columns]
            canvas[i, :, rows, columns] = patch[:3] + (under * (255 - patch[3:]) + 127) // 255
        out[start : start + CHUNK] = canvas.transpose(0, 2, 3, 1)
    return out


def masks(pictures: Sequence[SalientScene]) -> list[np.ndarray]:
    """Per picture "things 48 48" bool: the pixels that each thing touches.

    >>> (found,) = masks(sample(1, seed=0))
    >>> found.shape, bool(found[0].sum() > found[1].sum())  # the large thing first
    ((3, 48, 48), True)
    """
    found = [np.zeros((len(picture.things), SIDE, SIDE), bool) for picture in pictures]
    for i, k, rows, columns, patch in _patches(pictures):
        found[i][k, rows, columns] = patch[3] > 0
    return found


def edit_mask(pair: Pair) -> np.ndarray:
    """ "48 48" bool: where the two pictures may differ, the thing's pixels before and after.

    >>> pair = edit(sample(1, seed=0)[0], target=0, seed=0, kind="recolour")
    >>> before, after = render([pair.before, pair.after])
    >>> bool((before == after).all(-1)[~edit_mask(pair)].all())  # outside of it nothing differs
    True
    """
    mask = np.zeros((SIDE, SIDE), bool)
    for thing in (pair.before_thing, pair.after_thing):
        if thing is not None:
            mask |= masks([SalientScene((thing,), pair.before.background)])[0][0]
    return mask


@cache
def _emoji() -> tuple[int, ...]:
    known = emoji.load()
    return tuple(known.index(name) for name in PAIR_KINDS)


def _patches(pictures: Sequence[SalientScene]):
    """(picture, thing, rows, columns, "4 side side" premultiplied RGBA) of every thing."""
    entries = [(i, k, thing) for i, picture in enumerate(pictures) for k, thing in enumerate(picture.things)]
    for large in (True, False):
        side = CELL * (2 if large else 1)
        chosen = [(i, k, thing) for i, k, thing in entries if thing.large == large]
        if not chosen:
            continue
        items = [Item(_emoji()[t.kind], t.cell, t.size, 0, t.dy, t.dx, 1 + t.colour) for _, _, t in chosen]
        for (i, k, thing), patch in zip(chosen, sample_sprites(items, side), strict=True):
            row, column = divmod(thing.cell, 3)
            rows, columns = slice(CELL * row, CELL * row + side), slice(CELL * column, CELL * column + side)
            yield i, k, rows, columns, patch
