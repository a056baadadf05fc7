"""Scenes: emoji composed on textured backgrounds, with exact ground truth.

A `Scene` is a small specification; `render` turns scenes into pictures. All arithmetic is on integers and all chance
comes from the raw words of PCG64, so a seed gives the same bytes on every machine, and the first k of n scenes do not
depend on n. An item never leaves its cell of the grid, so boxes, positions and counts are exact.

Its speed, on one core: python -m timeit -s "from vlws.data import scenes" "scenes.render(scenes.sample(1000, 0))"
(0.12 s for 1,000 pictures of 64 px where this was written).

Seeds: below 1,000,000 are for chapters and tests; corpora on which shipped backbones train use 1,000,000 and above.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from vlws.data.emoji_world import emoji
from vlws.errors import InputError

CANVAS = 64  # pixels; smaller pictures are means of its pixels
CORPUS_SEED = 1_000_000
CHUNK = 32  # scenes rendered at once: their planes stay in the processor's cache
ANGLES = tuple(range(-15, 16, 3))  # degrees, counter-clockwise
TINTS = {
    "natural": (0, 0, 0),
    "red": (255, 50, 50),
    "yellow": (255, 225, 40),
    "green": (50, 210, 80),
    "blue": (60, 110, 255),
    "purple": (185, 70, 235),
}
TINT_NAMES = tuple(TINTS)
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
    """A class of emoji: whole Unicode subgroups, less the names that are no example of it."""

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
    from the cell's; `angle` in degrees is one of ANGLES; `tint` indexes TINT_NAMES (0 = natural)."""

    emoji: int
    cell: int
    size: int
    angle: int = 0
    dy: int = 0
    dx: int = 0
    tint: int = 0


@dataclass(frozen=True, slots=True)
class Background:
    """A texture of the bank, cut at (dy, dx), between two colours (RGB), plus noise cut at (noise_dy, noise_dx)."""

    texture: int
    dy: int
    dx: int
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    noise_dy: int = 0
    noise_dx: int = 0


@dataclass(frozen=True, slots=True)
class Clutter:
    """A mosaic of saturated colours that fills one cell, belongs to no class and is named by no caption."""

    cell: int
    pattern: int


@dataclass(frozen=True, slots=True)
class Scene:
    """1 to 4 items in distinct cells of a grid x grid canvas, in the order of their cells."""

    items: tuple[Item, ...]
    background: Background
    grid: int = 2
    clutter: Clutter | None = None


@cache
def class_members() -> dict[str, tuple[int, ...]]:
    """Class name -> indices of its emoji in `emoji.load()`; none named by a colour, which a tint would belie."""
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
    """Emoji index -> class index (only emoji of the classes)."""
    return {i: k for k, members in enumerate(class_members().values()) for i in members}


@cache
def cell_bounds(grid: int, size: int = CANVAS) -> tuple[int, ...]:
    """The grid + 1 pixel borders of the cells along one axis of a size x size picture (size a multiple of 16)."""
    if size % 16 or not 1 <= grid <= 4:
        raise InputError(f"A grid of {grid} on {size} pixels has no exact cells: grid is 1-4, size a multiple of 16.")
    return tuple((16 * k + grid // 2) // grid * size // 16 for k in range(grid + 1))


def cell_slices(grid: int, cell: int, size: int = CANVAS) -> tuple[slice, slice]:
    """(rows, columns) of a cell of a size x size picture: `image[cell_slices(2, 3, 32)]` is the bottom right."""
    b, (row, column) = cell_bounds(grid, size), divmod(cell, grid)
    return slice(b[row], b[row + 1]), slice(b[column], b[column + 1])


# --- sampling ---------------------------------------------------------------------------------------------------


def draws(n: int, columns: int, seed: int) -> np.ndarray:
    """ "n columns" uint64 below 2^32: the chance of n scenes, one row a scene."""
    if n < 0 or seed < 0:
        raise InputError(f"n={n} scenes from seed={seed}: both must be 0 or more.")
    return np.random.PCG64(seed).random_raw(n * columns).reshape(n, columns) >> 32


def _below(word: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """Words below 2^32 -> integers below k, without division or rounding."""
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
    """
    pools = list(class_members().values()) if pools is None else [list(pool) for pool in pools]
    cells = len(POSITIONS.get(grid, ()))
    if not pools or not all(pools):
        raise InputError("A pool of emoji is empty; give lists of at least one index into emoji.load() each.")
    if not 1 <= items[0] <= items[1] <= min(4, cells - clutter):
        raise InputError(f"items={items} with clutter={clutter} does not fit a grid of {grid}: grid is 1-3, items 1-4.")
    words = draws(n, 52, seed)
    count = items[0] + _below(words[:, 0], items[1] - items[0] + 1)
    order = _permutation(words[:, 1 : 1 + cells], cells)
    which = _below(words[:, 48:52], len(pools))
    members = _below(words[:, 10:14], np.array([len(pool) for pool in pools])[which])
    table = np.zeros((len(pools), max(map(len, pools))), np.int64)
    for row, pool in zip(table, pools, strict=True):
        row[: len(pool)] = pool
    emojis = table[which, members]
    for k in range(1, 4):
        repeats = _below(words[:, 14 + k], 4) == 0
        emojis[repeats, k] = emojis[repeats, k - 1]
    tint = _below(words[:, 18:22], 2) * (1 + _below(words[:, 22:26], len(TINTS) - 1)) * tints
    size, angle, dy, dx = _poses(words[:, 26:42], grid)
    backgrounds = _backgrounds(words[:, 42:48], muted)
    pattern = _below(words[:, 9], _MOSAICS)
    columns = [column.tolist() for column in (emojis, order, size, angle, dy, dx, tint)]
    scenes = []
    for i in range(n):
        placed = [Item(*(column[i][k] for column in columns)) for k in range(int(count[i]))]
        mosaic = Clutter(int(order[i, count[i]]), int(pattern[i])) if clutter else None
        scenes.append(Scene(tuple(sorted(placed, key=lambda item: item.cell)), backgrounds[i], grid, mosaic))
    return scenes


def _permutation(words: np.ndarray, k: int) -> np.ndarray:
    """ "n k" words -> "n k" random permutations of range(k) (ties, 1 in 2^32, fall to the lower index)."""
    return np.argsort(words[:, :k], axis=1, kind="stable")


def _poses(words: np.ndarray, grid: int) -> tuple[np.ndarray, ...]:
    """ "n 4m" words -> size, angle, dy, dx, each "n m": the turned square stays inside the smallest cell."""
    size_word, angle_word, dy_word, dx_word = np.split(words, 4, axis=1)
    side = min(np.diff(cell_bounds(grid)))
    low, high = side * 5 // 8, side * 13 // 16
    size = low + _below(size_word, high - low + 1)
    at = _below(angle_word, len(ANGLES))
    extent = (size * _EXTENT[at] + 4095) // 4096
    room = (side - extent) // 2
    return size, np.array(ANGLES)[at], _below(dy_word, 2 * room + 1) - room, _below(dx_word, 2 * room + 1) - room


def _backgrounds(words: np.ndarray, muted: bool) -> list[Background]:
    """ "n 6" words -> n backgrounds of low contrast: two colours at most 40 apart in each channel."""
    byte = ((words[:, :, None] >> np.arange(0, 32, 8, dtype=np.uint64)) & np.uint64(255)).astype(np.int64)
    if muted:  # channels at most 8 from one grey
        grey = 64 + byte[:, 0, 3:] * 128 // 256
        low = grey + byte[:, 0, :3] * 17 // 256 - 8
        high = low + byte[:, 1, 3:] * 65 // 256 - 32
    else:
        low = 56 + byte[:, 0, :3] * 144 // 256
        high = low + byte[:, 1, :3] * 81 // 256 - 40
    cut = byte[:, 2:4, :2].reshape(-1, 4) // 4  # 0..63
    texture = _below(words[:, 4], _TEXTURES)
    rows = zip(texture.tolist(), cut.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Background(t, c[0], c[1], tuple(lo), tuple(hi), c[2], c[3]) for t, c, lo, hi in rows]


# --- edits ------------------------------------------------------------------------------------------------------

EDITS = ("modify", "recolour", "swap", "delete", "add")


@dataclass(frozen=True, slots=True)
class Edit:
    """An edited scene: pictures before and after differ inside `cells` and nowhere else."""

    kind: str
    scene: Scene
    cells: tuple[int, ...]


def possible_edits(scene: Scene) -> tuple[str, ...]:
    """Which of EDITS the scene allows: a swap needs two unlike items, a deletion two items, an addition a free cell."""
    kinds = ["modify", "recolour"]
    if len({(item.emoji, item.tint) for item in scene.items}) > 1:
        kinds.append("swap")
    if len(scene.items) > 1:
        kinds.append("delete")
    if _free_cells(scene):
        kinds.append("add")
    return tuple(kinds)


def edit(scene: Scene, kind: str, seed: int, pool: Sequence[int] | None = None) -> Edit:
    """One counterfactual edit, drawn from `seed`; new emoji come from `pool` (all members of CLASSES unless given).

    modify: another emoji, same pose and tint. recolour: another tint. swap: two different items change cells.
    delete: one item goes. add: a new item in a free cell.

    Raises:
        InputError: the scene does not allow the edit, or the pool holds no new emoji.
    """
    if kind not in possible_edits(scene):
        raise InputError(
            f"The edit {kind!r} is not possible here; this scene allows {', '.join(possible_edits(scene))}."
        )
    word = draws(1, 24, seed)
    which, other = (int(_below(word[0, k], len(scene.items))) for k in (0, 1))
    item = scene.items[which]
    present = {it.emoji for it in scene.items}
    fresh = [i for i in (sorted(class_of()) if pool is None else pool) if i not in present]
    if kind in ("modify", "add") and not fresh:
        raise InputError("The pool holds no emoji that the scene does not show already; give a larger one.")
    items, cells = list(scene.items), (item.cell,)
    if kind == "modify":
        items[which] = replace(item, emoji=int(fresh[_below(word[0, 2], len(fresh))]))
    elif kind == "recolour":
        items[which] = replace(item, tint=int((item.tint + 1 + _below(word[0, 3], len(TINTS) - 1)) % len(TINTS)))
    elif kind == "delete":
        del items[which]
    elif kind == "swap":
        turned = items[other:] + items[:other]
        pairs = [(a, b) for a in turned for b in turned if (a.emoji, a.tint) != (b.emoji, b.tint)]
        a, b = pairs[0]
        items = [it for it in items if it not in (a, b)] + [replace(a, cell=b.cell), replace(b, cell=a.cell)]
        cells = (a.cell, b.cell)
    else:
        free = _free_cells(scene)
        cell = free[int(_below(word[0, 4], len(free)))]
        pose = (int(column[0, 0]) for column in _poses(word[:, 5:9], scene.grid))
        items.append(Item(int(fresh[_below(word[0, 2], len(fresh))]), cell, *pose))
        cells = (cell,)
    return Edit(kind, replace(scene, items=tuple(sorted(items, key=lambda it: it.cell))), tuple(sorted(cells)))


def near_twin(scene: Scene, seed: int) -> Edit:
    """The nearest other scene: the same things in other places where two differ, else one thing in another colour."""
    return edit(scene, "swap" if "swap" in possible_edits(scene) else "recolour", seed)


def _free_cells(scene: Scene) -> list[int]:
    taken = {item.cell for item in scene.items} | ({scene.clutter.cell} if scene.clutter else set())
    return [cell for cell in range(scene.grid**2) if cell not in taken]


# --- rendering --------------------------------------------------------------------------------------------------

_TEXTURES = 32
_MOSAICS = 1 << 16
_ONE = 4096  # fixed point of sines
_COS = np.array([3956, 4006, 4046, 4074, 4090, 4096, 4090, 4074, 4046, 4006, 3956], np.int64)  # 4096 cos(ANGLES)
_SIN = np.array([-1060, -852, -641, -428, -214, 0, 214, 428, 641, 852, 1060], np.int64)  # 4096 sin(ANGLES)
_EXTENT = _COS + np.abs(_SIN)
_PAD = 2  # transparent pixels around a sprite
_SIDE = emoji.SIDE + 2 * _PAD
_LANES = np.uint32(0x00FF00FF)  # two 8-bit channels in one 32-bit word


def render(scenes: Sequence[Scene], size: int = CANVAS) -> np.ndarray:
    """Scenes -> pictures, "n size size 3" uint8 RGB; size is 64, 32 or 16 (means of 1, 4 or 16 canvas pixels)."""
    if size not in (64, 32, 16):
        raise InputError(f"Scenes are rendered at 64, 32 or 16 pixels, not {size}.")
    out = np.empty((len(scenes), size, size, 3), np.uint8)
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start : start + CHUNK]
        canvas = _paint_backgrounds(chunk)
        for i, scene in enumerate(chunk):
            if scene.clutter is not None:
                rows, columns = cell_slices(scene.grid, scene.clutter.cell)
                canvas[i, :, rows, columns] = _mosaic(
                    scene.clutter, rows.stop - rows.start, columns.stop - columns.start
                )
        for where, patches in _patches(chunk):
            under = np.stack([canvas[i, :, rows, columns] for i, _, rows, columns in where])
            over = patches[:, :3] + (under * (255 - patches[:, 3:]) + 127) // 255
            for (i, _, rows, columns), patch in zip(where, over, strict=True):
                canvas[i, :, rows, columns] = patch
        out[start : start + CHUNK] = _shrink(canvas, CANVAS // size).transpose(0, 2, 3, 1)
    return out


def boxes(scenes: Sequence[Scene]) -> list[np.ndarray]:
    """Per scene "items 4" int64: the tight (top, left, bottom, right) of each item, canvas pixels, ends exclusive."""
    found = [np.zeros((len(scene.items), 4), np.int64) for scene in scenes]
    for start in range(0, len(scenes), CHUNK):
        for where, patches in _patches(scenes[start : start + CHUNK]):
            for (i, k, rows, columns), patch in zip(where, patches, strict=True):
                ys, xs = np.nonzero(patch[3])
                box = (
                    ys.min() + rows.start,
                    xs.min() + columns.start,
                    ys.max() + 1 + rows.start,
                    xs.max() + 1 + columns.start,
                )
                found[start + i][k] = box
    return found


def _patches(scenes: Sequence[Scene]) -> Iterator[tuple[list[tuple[int, int, slice, slice]], np.ndarray]]:
    """Per patch side p: [(scene, item, rows, columns)] and "k 4 p p" uint16 premultiplied RGBA."""
    by_side: dict[int, list] = {}
    for i, scene in enumerate(scenes):
        side = min(np.diff(cell_bounds(scene.grid)).tolist())
        for k, item in enumerate(scene.items):
            rows, columns = cell_slices(scene.grid, item.cell)
            top, left = (rows.start + rows.stop - side) // 2, (columns.start + columns.stop - side) // 2
            where = (i, k, slice(top, top + side), slice(left, left + side))
            by_side.setdefault(side, []).append((where, item))
    for side, entries in by_side.items():
        yield [where for where, _ in entries], _sample_sprites([item for _, item in entries], side)


def _sample_sprites(items: Sequence[Item], side: int) -> np.ndarray:
    """k turned, scaled, tinted sprites -> "k 4 side side" uint16 premultiplied RGBA, bilinear in 8-bit fixed point."""
    table = np.array([(it.emoji, it.size, ANGLES.index(it.angle), it.dy, it.dx, it.tint) for it in items], np.int64)
    index, size, angle, dy, dx, tint = table.T[:, :, None, None]
    half = 2 * np.arange(side) - (side - 1)  # twice the distance from the centre
    v, u = half[:, None] - 2 * dy, half[None, :] - 2 * dx
    inverse = (emoji.SIDE * 256 + size // 2) // size  # sprite pixels a canvas pixel, 8 bits of fraction
    cos, sin = _COS[angle], _SIN[angle]
    centre = emoji.SIDE * 128 - 128
    x = ((cos * u - sin * v) * inverse // (2 * _ONE)) + centre
    y = ((sin * u + cos * v) * inverse // (2 * _ONE)) + centre
    x0, y0 = np.clip(x >> 8, -_PAD, emoji.SIDE), np.clip(y >> 8, -_PAD, emoji.SIDE)
    fx, fy = (x & 255).astype(np.uint32), (y & 255).astype(np.uint32)
    at = (index * _SIDE + y0 + _PAD) * _SIDE + x0 + _PAD
    sprites = _packed_sprites()
    corners = [sprites[at + offset] for offset in (0, 1, _SIDE, _SIDE + 1)]
    planes = np.empty((len(items), 4, side, side), np.uint16)
    for first in (0, 1):  # red and blue, then green and alpha: two channels at a time in one word
        a, b, c, d = ((corner >> np.uint32(8 * first)) & _LANES for corner in corners)
        both = _mix(_mix(a, b, fx), _mix(c, d, fx), fy)
        planes[:, first] = both & np.uint32(255)
        planes[:, first + 2] = both >> np.uint32(16)
    tinted = np.flatnonzero(tint)
    if tinted.size:
        planes[tinted] = _tint(planes[tinted], tint.ravel()[tinted])
    return planes


def _mix(a: np.ndarray, b: np.ndarray, f: np.ndarray) -> np.ndarray:
    """a (256 - f) / 256 + b f / 256 on both 8-bit lanes of 32-bit words."""
    return ((a * (np.uint32(256) - f) + b * f) >> np.uint32(8)) & _LANES


def _tint(rgba: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Three parts of the tint's colour at the sprite's own lightness (at least a quarter), one part of the sprite."""
    red, green, blue, alpha = (rgba[:, c] for c in range(4))
    light = (77 * red + 150 * green + 29 * blue) >> 8
    light = (3 * light + alpha) >> 2
    colour = np.array(list(TINTS.values()), np.uint16)[tint][:, :, None, None]
    out = rgba.copy()
    out[:, :3] = (3 * (light[:, None] * colour // 255) + rgba[:, :3]) >> 2
    return out


def _paint_backgrounds(scenes: Sequence[Scene]) -> np.ndarray:
    """ "n 3 64 64" uint16: low + (high - low) texture + noise of +-16."""
    textures, noise = _texture_bank()
    grounds = [scene.background for scene in scenes]
    weight = np.stack([textures[b.texture, b.dy : b.dy + CANVAS, b.dx : b.dx + CANVAS] for b in grounds])[:, None]
    grain = np.stack([noise[:, b.noise_dy : b.noise_dy + CANVAS, b.noise_dx : b.noise_dx + CANVAS] for b in grounds])
    low = np.array([b.low for b in grounds], np.uint16)[:, :, None, None] - np.uint16(16)
    high = np.array([b.high for b in grounds], np.uint16)[:, :, None, None] - np.uint16(16)
    return (low * (255 - weight) + high * weight) // np.uint16(255) + grain


def _mosaic(clutter: Clutter, height: int, width: int) -> np.ndarray:
    """ "3 height width" uint16: 4-pixel tiles, each channel one of 0, 85, 170, 255."""
    tiles = _noise_bytes()[clutter.pattern : clutter.pattern + 3 * (height // 4) * (width // 4)]
    levels = (tiles >> 6).astype(np.uint16) * np.uint16(85)
    return levels.reshape(3, height // 4, width // 4).repeat(4, 1).repeat(4, 2)


def _shrink(canvas: np.ndarray, factor: int) -> np.ndarray:
    """ "n c (h f) (w f)" -> "n c h w", rounded means."""
    if factor == 1:
        return canvas
    rows = sum(canvas[:, :, k::factor] for k in range(factor))
    total = sum(rows[:, :, :, k::factor] for k in range(factor))
    return (total + np.uint16(factor * factor // 2)) // np.uint16(factor * factor)


@cache
def _packed_sprites() -> np.ndarray:
    """All sprites, padded, premultiplied, flat, one uint32 a pixel (red in the lowest byte)."""
    sprites = emoji.load().sprites.astype(np.uint32)
    alpha = sprites[..., 3:]
    colour = (sprites[..., :3] * alpha + 127) // 255
    rgba = np.concatenate([colour, alpha], axis=-1)
    rgba = np.pad(rgba, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    return (rgba << np.array([0, 8, 16, 24], np.uint32)).sum(-1, dtype=np.uint32).ravel()


@cache
def _noise_bytes() -> np.ndarray:
    words = np.random.PCG64(2718).random_raw(_MOSAICS // 8 + 8 * 1024)
    return np.ascontiguousarray(words.astype("<u8")).view(np.uint8)


@cache
def _texture_bank() -> tuple[np.ndarray, np.ndarray]:
    """Textures "32 128 128" uint16 in 0..255 (clouds, fine clouds, stripes, checks) and noise "3 128 128" in 0..32."""
    side, words = 128, draws(_TEXTURES, 2048, 31415).astype(np.int64)
    y, x = np.mgrid[:side, :side]
    bank = []
    for t, row in enumerate(words):
        if t % 4 < 2:
            steps = (32, 16, 8) if t % 4 == 0 else (8, 4)
            layers = [_value_noise(row[k * 32 :], side, step) for k, step in enumerate(steps)]
            weights = (4, 2, 1)[: len(steps)]
            texture = sum(w * layer for w, layer in zip(weights, layers, strict=True)) // sum(weights)
        else:
            period, p, q = 8 + row[0] % 17, 1 + row[1] % 4, row[2] % 5
            a, b = (p * x + q * y) // 2, (q * x - p * y) // 2
            wave = [abs(axis % (2 * period) - period) * 255 // period for axis in (a, b)]
            texture = wave[0] if t % 4 == 2 else (wave[0] + wave[1]) // 2
        bank.append(texture)
    grain = _below(np.random.PCG64(1618).random_raw(3 * side * side) >> 32, 33).reshape(3, side, side)
    return np.array(bank, np.uint16), grain.astype(np.uint16)


def _value_noise(words: np.ndarray, side: int, step: int) -> np.ndarray:
    """ "side side" int64 in 0..255: a lattice of random bytes every `step` pixels, bilinear between."""
    n = side // step + 1
    lattice = np.resize(words[: min(len(words), n * n)], n * n).reshape(n, n) >> 24
    at, f = np.divmod(np.arange(side), step)
    rows = (lattice[at] * (step - f)[:, None] + lattice[at + 1] * f[:, None]) // step
    return (rows[:, at] * (step - f) + rows[:, at + 1] * f) // step
