"""Scenes: specifications of emoji on textured backgrounds, with exact ground truth.

A `Scene` is a small specification; `vlws.data.emoji_world.renderer.render` turns scenes into pictures. All arithmetic
is on integers and all randomness comes from `PCG64.random_raw`, so a seed gives the same bytes on every machine, and
the first k of n scenes do not depend on n. An item never leaves its cell of the grid, so positions and counts are
exact.

Seeds: below 1,000,000 are for chapters and tests; corpora on which shipped backbones train use 1,000,000 and above.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vlws.data.emoji_world import emoji
from vlws.errors import InputError

CANVAS = 64  # pixels; smaller pictures are means of its pixels
CORPUS_SEED = 1_000_000
ANGLES = tuple(range(-15, 16, 3))  # degrees, counter-clockwise
COS = np.array([3956, 4006, 4046, 4074, 4090, 4096, 4090, 4074, 4046, 4006, 3956], np.int64)  # 4096 cos(ANGLES)
SIN = np.array([-1060, -852, -641, -428, -214, 0, 214, 428, 641, 852, 1060], np.int64)  # 4096 sin(ANGLES)
EXTENT = COS + np.abs(SIN)  # 4096 times the side of the box around a turned square of side 1
TEXTURES = 32  # of the renderer's bank
MOSAICS = 1 << 16
TINTS = {
    "natural": (0, 0, 0),
    "red": (255, 50, 50),
    "yellow": (255, 225, 40),
    "green": (50, 210, 80),
    "blue": (60, 110, 255),
    "purple": (185, 70, 235),
}
TINT_NAMES = tuple(TINTS)
COLOURS = TINT_NAMES[1:]  # all but natural
POSITIONS = {
    1: ("middle",),
    2: ("top left", "top right", "bottom left", "bottom right"),
    3: (
        *("top left", "top centre", "top right"),
        *("middle left", "middle", "middle right"),
        *("bottom left", "bottom centre", "bottom right"),
    ),
}


@dataclass(frozen=True)
class SemanticClass:
    """A class of emoji: whole Unicode subgroups, less the names that are no example of it.

    >>> CLASSES["bird"].words[0], "animal-bird" in CLASSES["bird"].subgroups
    ('bird', True)
    """

    words: tuple[str, ...]  # how captions name the class; the first is its name
    subgroups: tuple[str, ...]
    without: tuple[str, ...] = ()


CLASSES: dict[str, SemanticClass] = {
    c.words[0]: c
    for c in (
        SemanticClass(("smiley", "emoticon"), ("face-smiling", "face-affection", "face-tongue")),
        SemanticClass(("mammal", "beast"), ("animal-mammal",), ("paw prints", "pig nose")),
        SemanticClass(("bird", "fowl"), ("animal-bird",), ("feather", "wing")),
        SemanticClass(("bug", "insect"), ("animal-bug",), ("microbe", "spider web")),
        SemanticClass(("flower", "bloom"), ("plant-flower",), ("rosette",)),
        SemanticClass(("fruit",), ("food-fruit",)),
        SemanticClass(("dish", "meal"), ("food-prepared",), ("salt", "canned food", "egg")),
        SemanticClass(
            ("vehicle",),
            ("transport-ground",),
            (
                *("bus stop", "station", "motorway", "railway track", "oil drum", "fuel pump", "wheel", "stop sign"),
                *("police car light", "horizontal traffic light", "vertical traffic light", "construction"),
                *("skateboard", "roller skate"),
            ),
        ),
        SemanticClass(("building",), ("place-building",), ("brick", "rock", "wood")),
        SemanticClass(("garment", "piece of clothing"), ("clothing",), ("gem stone", "lipstick", "prayer beads")),
    )
}
CLASS_NAMES = tuple(CLASSES)


# --- specifications ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One emoji. `cell` counts row by row; `size` is the sprite's side in canvas pixels; `dy, dx` move its centre
    from the cell's; `angle` in degrees is one of ANGLES; `tint` indexes TINT_NAMES (0 = natural).

    >>> item = Item(emoji=0, cell=3, size=24, tint=TINT_NAMES.index("red"))
    >>> TINT_NAMES[item.tint], item.angle
    ('red', 0)
    """

    emoji: int
    cell: int
    size: int
    angle: int = 0
    dy: int = 0
    dx: int = 0
    tint: int = 0


@dataclass(frozen=True, slots=True)
class Background:
    """A texture of the bank, cut at (dy, dx), between two colours (RGB), plus noise cut at (noise_dy, noise_dx).

    >>> Background(texture=0, dy=0, dx=0, low=(90, 90, 90), high=(120, 120, 120)).noise_dy
    0
    """

    texture: int
    dy: int
    dx: int
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    noise_dy: int = 0
    noise_dx: int = 0


@dataclass(frozen=True, slots=True)
class Clutter:
    """A mosaic of saturated colours that fills one cell, belongs to no class and is named by no caption.

    >>> (scene,) = sample(1, seed=0, items=(1, 1), clutter=True)
    >>> scene.clutter.cell != scene.items[0].cell
    True
    """

    cell: int
    pattern: int


@dataclass(frozen=True, slots=True)
class Scene:
    """1 to 4 items in distinct cells of a grid x grid canvas, in the order of their cells.

    >>> (scene,) = sample(1, seed=0, items=(2, 2))
    >>> len(scene.items), scene.grid, scene.items[0].cell < scene.items[1].cell
    (2, 2, True)
    """

    items: tuple[Item, ...]
    background: Background
    grid: int = 2
    clutter: Clutter | None = None


@cache
def class_members() -> dict[str, tuple[int, ...]]:
    """Class name -> indices of its emoji in `emoji.load()`; none named by a colour, which a tint would belie.

    >>> list(class_members()) == list(CLASS_NAMES), min(len(members) for members in class_members().values()) > 1
    (True, True)
    """
    known = emoji.load()
    return {
        name: tuple(
            int(i)
            for i in known.where(subgroup=c.subgroups)
            if known.names[i] not in c.without and not TINTS.keys() & known.names[i].split()
        )
        for name, c in CLASSES.items()
    }


@cache
def class_of() -> dict[int, int]:
    """Emoji index -> class index (only emoji of the classes).

    >>> first = class_members()[CLASS_NAMES[2]][0]
    >>> class_of()[first]
    2
    """
    return {i: k for k, members in enumerate(class_members().values()) for i in members}


@cache
def cell_bounds(grid: int, size: int = CANVAS) -> tuple[int, ...]:
    """The grid + 1 pixel borders of the cells along one axis of a size x size picture (size a multiple of 16).

    >>> cell_bounds(2), cell_bounds(2, size=32)
    ((0, 32, 64), (0, 16, 32))
    """
    if size % 16 or not 1 <= grid <= 4:
        raise InputError(f"A grid of {grid} on {size} pixels has no exact cells: grid is 1-4, size a multiple of 16.")
    return tuple((16 * k + grid // 2) // grid * size // 16 for k in range(grid + 1))


def cell_slices(grid: int, cell: int, size: int = CANVAS) -> tuple[slice, slice]:
    """(rows, columns) of a cell of a size x size picture: `image[cell_slices(2, 3, 32)]` is the bottom right.

    >>> rows, columns = cell_slices(2, 3, 32)
    >>> rows, columns
    (slice(16, 32, None), slice(16, 32, None))
    """
    b, (row, column) = cell_bounds(grid, size), divmod(cell, grid)
    return slice(b[row], b[row + 1]), slice(b[column], b[column + 1])


# --- sampling ---------------------------------------------------------------------------------------------------


def draws(n: int, columns: int, seed: int) -> np.ndarray:
    """ "n columns" uint64 below 2^32, uniform: one row of random words per scene.

    >>> draws(2, 3, seed=0).shape, bool((draws(2, 3, seed=0) == draws(5, 3, seed=0)[:2]).all())  # whatever n is
    ((2, 3), True)
    """
    if n < 0 or seed < 0:
        raise InputError(f"n={n} scenes from seed={seed}: both must be 0 or more.")
    return np.random.PCG64(seed).random_raw(n * columns).reshape(n, columns) >> 32


def below(word: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """Words below 2^32 -> integers below k, without division or rounding.

    >>> below(np.array([0, 2**31, 2**32 - 1], np.uint64), 10).tolist()
    [0, 5, 9]
    """
    return ((word * np.asarray(k, np.uint64)) >> np.uint64(32)).astype(np.int64)


def sample(
    n: int,
    seed: int,
    *,
    grid: int = 2,
    items: tuple[int, int] = (1, 4),
    pools: Sequence[Sequence[int]] | None = None,
    tints: bool = True,
    clutter: bool = False,
    muted: bool = False,
) -> list[Scene]:
    """n free scenes: between items[0] and items[1] emoji in random cells, one in four repeating the one before.

    Args:
        pools: lists of emoji indices; each list is equally likely, then each of its members. One list for each of
            CLASSES unless given.
        tints: half the items are tinted; False leaves all natural (for pools with emoji named by a colour).
        clutter: one more cell holds a mosaic.
        muted: backgrounds are near grey, so that colour speaks of the items.

    Raises:
        InputError: no pool or an empty one, or more items (and clutter) than cells.

    >>> scenes = sample(100, seed=0, items=(1, 2))
    >>> {len(scene.items) for scene in scenes} == {1, 2}, scenes == sample(100, seed=0, items=(1, 2))
    (True, True)
    """
    pools = list(class_members().values()) if pools is None else [list(pool) for pool in pools]
    cells = len(POSITIONS.get(grid, ()))
    if not pools or not all(pools):
        raise InputError("A pool of emoji is empty; give lists of at least one index into emoji.load() each.")
    if not 1 <= items[0] <= items[1] <= min(4, cells - clutter):
        raise InputError(f"items={items} with clutter={clutter} does not fit a grid of {grid}: grid is 1-3, items 1-4.")
    words = draws(n, 52, seed)
    count = items[0] + below(words[:, 0], items[1] - items[0] + 1)
    order = permutation(words[:, 1 : 1 + cells], cells)
    which = below(words[:, 48:52], len(pools))
    members = below(words[:, 10:14], np.array([len(pool) for pool in pools])[which])
    table = np.zeros((len(pools), max(map(len, pools))), np.int64)
    for row, pool in zip(table, pools, strict=True):
        row[: len(pool)] = pool
    emojis = table[which, members]
    for k in range(1, 4):
        repeats = below(words[:, 14 + k], 4) == 0
        emojis[repeats, k] = emojis[repeats, k - 1]
    tint = below(words[:, 18:22], 2) * (1 + below(words[:, 22:26], len(TINTS) - 1)) * tints
    size, angle, dy, dx = poses(words[:, 26:42], grid)
    grounds = backgrounds(words[:, 42:48], muted)
    pattern = below(words[:, 9], MOSAICS)
    columns = [column.tolist() for column in (emojis, order, size, angle, dy, dx, tint)]
    scenes = []
    for i in range(n):
        placed = [Item(*(column[i][k] for column in columns)) for k in range(int(count[i]))]
        mosaic = Clutter(int(order[i, count[i]]), int(pattern[i])) if clutter else None
        scenes.append(Scene(tuple(sorted(placed, key=lambda item: item.cell)), grounds[i], grid, mosaic))
    return scenes


def permutation(words: np.ndarray, k: int) -> np.ndarray:
    """ "n k" words -> "n k" random permutations of range(k) (ties, 1 in 2^32, fall to the lower index).

    >>> permutation(np.array([[30, 10, 20]], np.uint64), 3).tolist()
    [[1, 2, 0]]
    """
    return np.argsort(words[:, :k], axis=1, kind="stable")


def poses(words: np.ndarray, grid: int) -> tuple[np.ndarray, ...]:
    """ "n 4m" words -> size, angle, dy, dx, each "n m": the turned square stays inside the smallest cell.

    >>> size, angle, dy, dx = poses(draws(5, 4, seed=0), grid=2)
    >>> size.shape, bool((size < CANVAS // 2).all())  # inside a cell of 32 pixels
    ((5, 1), True)
    """
    size_word, angle_word, dy_word, dx_word = np.split(words, 4, axis=1)
    side = min(np.diff(cell_bounds(grid)))
    low, high = side * 5 // 8, side * 13 // 16
    size = low + below(size_word, high - low + 1)
    at = below(angle_word, len(ANGLES))
    extent = (size * EXTENT[at] + 4095) // 4096
    room = (side - extent) // 2
    return size, np.array(ANGLES)[at], below(dy_word, 2 * room + 1) - room, below(dx_word, 2 * room + 1) - room


def backgrounds(words: np.ndarray, muted: bool) -> list[Background]:
    """ "n 6" words -> n backgrounds of low contrast: two colours at most 40 apart in each channel.

    >>> (ground,) = backgrounds(draws(1, 6, seed=0), muted=False)
    >>> max(abs(high - low) for low, high in zip(ground.low, ground.high)) <= 40
    True
    """
    byte = ((words[:, :, None] >> np.arange(0, 32, 8, dtype=np.uint64)) & np.uint64(255)).astype(np.int64)
    if muted:  # channels at most 8 from one grey
        grey = 64 + byte[:, 0, 3:] * 128 // 256
        low = grey + byte[:, 0, :3] * 17 // 256 - 8
        high = low + byte[:, 1, 3:] * 65 // 256 - 32
    else:
        low = 56 + byte[:, 0, :3] * 144 // 256
        high = low + byte[:, 1, :3] * 81 // 256 - 40
    cut = byte[:, 2:4, :2].reshape(-1, 4) // 4  # 0..63
    texture = below(words[:, 4], TEXTURES)
    rows = zip(texture.tolist(), cut.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Background(t, c[0], c[1], tuple(lo), tuple(hi), c[2], c[3]) for t, c, lo, hi in rows]
