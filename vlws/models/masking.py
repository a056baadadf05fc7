"""Pictures without one cell of a grid, and what CLIP makes of them."""

from collections.abc import Sequence

import numpy as np

from vlws.data.images import Picture, stack_images
from vlws.models.clip import ImageTextEncoder
from vlws.models.ssd import chunks


def grid_slices(height: int, width: int, grid: int) -> list[tuple[slice, slice]]:
    """The rows and columns of each of the g x g cells, row by row.

    >>> rows, columns = grid_slices(32, 48, grid=2)[3]  # the last of four
    >>> np.arange(32)[rows][0].item(), np.zeros((32, 48))[rows, columns].shape  # from row 16 on, 16 x 24 pixels
    (16, (16, 24))
    """
    rows, cols = np.linspace(0, height, grid + 1, dtype=int), np.linspace(0, width, grid + 1, dtype=int)
    return [(slice(rows[r], rows[r + 1]), slice(cols[c], cols[c + 1])) for r in range(grid) for c in range(grid)]


def drop_cells(images: np.ndarray, cells: np.ndarray, grid: int = 2) -> np.ndarray:
    """Pictures "n h w 3" without cell `cells[i]` (set to zero): x' of CMER. `cells`: int "n", counted row by row.

    >>> images = np.full((1, 32, 32, 3), 255, np.uint8)
    >>> dropped = drop_cells(images, np.array([0]))
    >>> dropped[0, 0, 0].tolist(), dropped[0, 16, 16].tolist(), float(dropped.mean() / 255)
    ([0, 0, 0], [255, 255, 255], 0.75)
    """
    kept = images.copy()
    for cell, (rows, cols) in enumerate(grid_slices(images.shape[1], images.shape[2], grid)):
        kept[np.asarray(cells) == cell, rows, cols] = 0
    return kept


def masked_embeddings(clip: ImageTextEncoder, images: np.ndarray | Sequence[Picture], grid: int = 2) -> np.ndarray:
    """CLIP embeddings "n g d" of each image without each of its g = grid**2 cells, unit rows float32.

    A part of the images is held in variants at a time. Raises InputError as `stack_images`.

    >>> from vlws.models.clip import load_clip
    >>> masked_embeddings(load_clip("clip-emoji", "cpu"), np.zeros((3, 32, 32, 3), np.uint8)).shape
    (3, 4, 64)
    """
    parts = []
    for part in chunks(stack_images(images)):
        variants = [clip.images(drop_cells(part, np.full(len(part), cell), grid)) for cell in range(grid**2)]
        parts.append(np.stack(variants, axis=1))
    return np.concatenate(parts)


def matching_scores(masked: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """a_k = 100 cos(image without cell k, text): "n g". The cell whose absence helps most is the irrelevant one.

    >>> matching_scores(np.eye(2)[None], np.array([[0.0, 1.0]])).tolist()
    [[0.0, 100.0]]
    """
    return 100 * np.einsum("n g d, n d -> n g", masked, texts)
