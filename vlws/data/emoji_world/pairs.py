"""Image-text pairs over scenes, as chapters and corpora use them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlws.data.emoji_world import scenes
from vlws.data.emoji_world.captions import captions
from vlws.data.emoji_world.renderer import render
from vlws.errors import InputError


@dataclass(frozen=True, eq=False)
class Pairs:
    """n pictures of one object and one cluttered cell, with all that is true of them.

    Attributes:
        images: "n size size 3" uint8 RGB.
        captions: n texts that name the object, never the clutter.
        classes: "n" int64 into `scenes.CLASS_NAMES`.
        emoji: "n" int64 into `emoji.load()`.
        object_cell, clutter_cell: "n" int64, cells counted row by row; never equal.
        scenes: the specifications behind the pictures.
        grid: cells per side.

    >>> found = clutter_pairs(4, seed=0)
    >>> len(found.captions) == len(found.images) == len(found.scenes), found.grid
    (True, 2)
    >>> bool((found.object_cell != found.clutter_cell).all())
    True
    """

    images: np.ndarray
    captions: tuple[str, ...]
    classes: np.ndarray
    emoji: np.ndarray
    object_cell: np.ndarray
    clutter_cell: np.ndarray
    scenes: tuple[scenes.Scene, ...]
    grid: int

    def __len__(self) -> int:
        return len(self.images)


def clutter_pairs(
    n: int,
    seed: int,
    *,
    classes: Sequence[str] = scenes.CLASS_NAMES,
    size: int = 32,
    grid: int = 2,
    muted: bool = True,
) -> Pairs:
    """n pairs for anomaly detection by guidance: the classes equally likely, every emoji of a class too.

    One cell holds the object (natural colours), another a mosaic of saturated colours, the rest only background.
    Different seeds give disjoint pictures; the same seed gives the same first pictures whatever n is.

    Raises:
        InputError: an unknown class, no class, a grid that is not 2 or 3, a size that is not 16, 32 or 64.

    >>> found = clutter_pairs(50, seed=0, classes=("bird", "fruit"))
    >>> found.images.shape, sorted({scenes.CLASS_NAMES[k] for k in found.classes})
    ((50, 32, 32, 3), ['bird', 'fruit'])
    """
    unknown = [name for name in classes if name not in scenes.CLASSES]
    if unknown or not classes:
        given = f"There is no class {unknown[0]!r}" if unknown else "No class was given"
        raise InputError(f"{given}; the classes are {', '.join(scenes.CLASS_NAMES)}.")
    pools = [scenes.class_members()[name] for name in classes]
    found = scenes.sample(n, seed, grid=grid, items=(1, 1), pools=pools, tints=False, clutter=True, muted=muted)
    return pairs_of(found, seed, size)


def pairs_of(found: Sequence[scenes.Scene], seed: int, size: int = 32) -> Pairs:
    """Scenes of one object and one cluttered cell -> pictures, captions (drawn from `seed`) and truth.

    >>> found = clutter_pairs(4, seed=0)
    >>> bool((pairs_of(found.scenes, seed=1).images == found.images).all())  # other captions, the same pictures
    True
    """
    return Pairs(
        images=render(found, size),
        captions=tuple(captions(found, seed)),
        classes=np.array([scenes.class_of()[s.items[0].emoji] for s in found], np.int64),
        emoji=np.array([s.items[0].emoji for s in found], np.int64),
        object_cell=np.array([s.items[0].cell for s in found], np.int64),
        clutter_cell=np.array([s.clutter.cell for s in found], np.int64),
        scenes=tuple(found),
        grid=found[0].grid if found else 2,
    )
