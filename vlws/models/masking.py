"""Pictures without one cell of a grid."""

import numpy as np


def grid_slices(height: int, width: int, grid: int) -> list[tuple[slice, slice]]:
    """The rows and columns of each of the g x g cells, row by row."""
    rows, cols = np.linspace(0, height, grid + 1, dtype=int), np.linspace(0, width, grid + 1, dtype=int)
    return [(slice(rows[r], rows[r + 1]), slice(cols[c], cols[c + 1])) for r in range(grid) for c in range(grid)]


def drop_cells(images: np.ndarray, cells: np.ndarray, grid: int = 2) -> np.ndarray:
    """Pictures "n h w 3" without cell `cells[i]` (set to zero): x' of CMER. `cells`: int "n", counted row by row."""
    kept = images.copy()
    for cell, (rows, cols) in enumerate(grid_slices(images.shape[1], images.shape[2], grid)):
        kept[np.asarray(cells) == cell, rows, cols] = 0
    return kept
