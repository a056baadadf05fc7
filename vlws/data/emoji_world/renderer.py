"""The renderer: scenes to pictures, on integers alone, so that the bytes are the same on every machine.

Its speed, on one core (0.12 s for 1,000 pictures of 64 px where this was written):
python -m timeit -s "from vlws.data.emoji_world import renderer, scenes" "renderer.render(scenes.sample(1000, 0))"
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from vlws.data.emoji_world import emoji
from vlws.data.emoji_world.scenes import (
    ANGLES,
    CANVAS,
    COS,
    MOSAICS,
    SIN,
    TEXTURES,
    TINTS,
    Background,
    Clutter,
    Item,
    Scene,
    below,
    cell_bounds,
    cell_slices,
    draws,
)
from vlws.errors import InputError

CHUNK = 32  # scenes rendered at once: their planes stay in the processor's cache
_ONE = 4096  # fixed point of COS and SIN
_PAD = 2  # transparent pixels around a sprite
_PADDED_SIDE = emoji.SIDE + 2 * _PAD
_LANES = np.uint32(0x00FF00FF)  # two 8-bit channels in one 32-bit word


def render(scenes: Sequence[Scene], size: int = CANVAS) -> np.ndarray:
    """Scenes -> pictures, "n size size 3" uint8 RGB; size is 64, 32 or 16 (means of 1, 4 or 16 canvas pixels).

    >>> from vlws.data.emoji_world import scenes
    >>> pictures = render(scenes.sample(3, seed=0), size=32)
    >>> pictures.shape, pictures.dtype
    ((3, 32, 32, 3), dtype('uint8'))
    """
    if size not in (64, 32, 16):
        raise InputError(f"Scenes are rendered at 64, 32 or 16 pixels, not {size}.")
    out = np.empty((len(scenes), size, size, 3), np.uint8)
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start : start + CHUNK]
        canvas = paint_backgrounds([scene.background for scene in chunk])
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
        out[start : start + CHUNK] = shrink(canvas, CANVAS // size).transpose(0, 2, 3, 1)
    return out


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
        yield [where for where, _ in entries], sample_sprites([item for _, item in entries], side)


def sample_sprites(items: Sequence[Item], side: int) -> np.ndarray:
    """k turned, scaled, tinted sprites -> "k 4 side side" uint16 premultiplied RGBA, bilinear in 8-bit fixed point.

    >>> from vlws.data.emoji_world import scenes
    >>> sample_sprites([scenes.Item(emoji=0, cell=0, size=24)], 24).shape
    (1, 4, 24, 24)
    """
    table = np.array([(it.emoji, it.size, ANGLES.index(it.angle), it.dy, it.dx, it.tint) for it in items], np.int64)
    index, size, angle, dy, dx, tint = table.T[:, :, None, None]
    half = 2 * np.arange(side) - (side - 1)  # twice the distance from the centre
    v, u = half[:, None] - 2 * dy, half[None, :] - 2 * dx
    inverse = (emoji.SIDE * 256 + size // 2) // size  # sprite pixels per canvas pixel, 8 bits of fraction
    cos, sin = COS[angle], SIN[angle]
    centre = emoji.SIDE * 128 - 128
    x = ((cos * u - sin * v) * inverse // (2 * _ONE)) + centre
    y = ((sin * u + cos * v) * inverse // (2 * _ONE)) + centre
    x0, y0 = np.clip(x >> 8, -_PAD, emoji.SIDE), np.clip(y >> 8, -_PAD, emoji.SIDE)
    fx, fy = (x & 255).astype(np.uint32), (y & 255).astype(np.uint32)
    at = (index * _PADDED_SIDE + y0 + _PAD) * _PADDED_SIDE + x0 + _PAD
    sprites = _packed_sprites()
    corners = [sprites[at + offset] for offset in (0, 1, _PADDED_SIDE, _PADDED_SIDE + 1)]
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


def paint_backgrounds(grounds: Sequence[Background]) -> np.ndarray:
    """ "n 3 64 64" uint16: low + (high - low) texture + noise of +-16.

    >>> from vlws.data.emoji_world import scenes
    >>> paint_backgrounds([scene.background for scene in scenes.sample(2, seed=0)]).shape
    (2, 3, 64, 64)
    """
    textures, noise = _texture_bank()
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


def shrink(canvas: np.ndarray, factor: int) -> np.ndarray:
    """ "n c (h f) (w f)" -> "n c h w", rounded means.

    >>> shrink(np.array([[[[0, 2], [4, 6]]]], np.uint16), 2).tolist()
    [[[[3]]]]
    """
    if factor == 1:
        return canvas
    rows = sum(canvas[:, :, k::factor] for k in range(factor))
    total = sum(rows[:, :, :, k::factor] for k in range(factor))
    return (total + np.uint16(factor * factor // 2)) // np.uint16(factor * factor)


@cache
def _packed_sprites() -> np.ndarray:
    """All sprites, padded, premultiplied, flat, one uint32 per pixel (red in the lowest byte)."""
    sprites = emoji.load().sprites.astype(np.uint32)
    alpha = sprites[..., 3:]
    colour = (sprites[..., :3] * alpha + 127) // 255
    rgba = np.concatenate([colour, alpha], axis=-1)
    rgba = np.pad(rgba, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    return (rgba << np.array([0, 8, 16, 24], np.uint32)).sum(-1, dtype=np.uint32).ravel()


@cache
def _noise_bytes() -> np.ndarray:
    words = np.random.PCG64(2718).random_raw(MOSAICS // 8 + 8 * 1024)
    return np.ascontiguousarray(words.astype("<u8")).view(np.uint8)


@cache
def _texture_bank() -> tuple[np.ndarray, np.ndarray]:
    """Textures "32 128 128" uint16 in 0..255 (clouds, fine clouds, stripes, checks) and noise "3 128 128" in 0..32."""
    side, words = 128, draws(TEXTURES, 2048, 31415).astype(np.int64)
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
    grain = below(np.random.PCG64(1618).random_raw(3 * side * side) >> 32, 33).reshape(3, side, side)
    return np.array(bank, np.uint16), grain.astype(np.uint16)


def _value_noise(words: np.ndarray, side: int, step: int) -> np.ndarray:
    """ "side side" int64 in 0..255: a lattice of random bytes every `step` pixels, bilinear between."""
    n = side // step + 1
    lattice = np.resize(words[: min(len(words), n * n)], n * n).reshape(n, n) >> 24
    at, f = np.divmod(np.arange(side), step)
    rows = (lattice[at] * (step - f)[:, None] + lattice[at + 1] * f[:, None]) // step
    return (rows[:, at] * (step - f) + rows[:, at + 1] * f) // step
