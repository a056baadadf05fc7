"""Local costs between the elements of two sequences, from differences: exact for near elements."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vlws_kernels.public import public

CHUNK = 2**22  # cells of a table held at once on a CPU, where tables are held
NUMBER = 8  # bytes of the largest number of a cell
INDEX = 2**31  # cells of one tensor on a GPU: some of torch's kernels count them in 32 bits


def held(size: int, share: float = 1, device: torch.device | None = None) -> int:
    """How many tables of `size` cells (or rows of tables) are held at once in `share` of the room.

    The room is CHUNK cells on a CPU, which holds at least one; on a GPU it is half of the free memory, and where one
    does not fit it raises torch.OutOfMemoryError.
    """
    if device is None or device.type != "cuda":
        return max(1, int(share * CHUNK) // size)
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = int(share * min(free // 2 // NUMBER, INDEX))
    if room < size:
        raise torch.OutOfMemoryError(
            f"{device} has {free / 2**30:.2f} GB free, half of which is used at once: too little for what one pair of "
            f"sequences needs, {size / share * NUMBER / 2**30:.2f} GB; give shorter sequences, or free memory."
        )
    return room // size


def blocks(a: int, b: int, pairs: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns that together are all pairs "a b", at most `pairs` at once: rows that are whole where one fits.

    >>> list(blocks(3, 4, pairs=9))
    [(slice(0, 2, None), slice(0, 4, None)), (slice(2, 3, None), slice(0, 4, None))]
    >>> list(blocks(1, 4, pairs=3))
    [(slice(0, 1, None), slice(0, 3, None)), (slice(0, 1, None), slice(3, 4, None))]
    """
    rows, columns = max(1, pairs // b), min(b, pairs)
    for start in range(0, a, rows):
        for first in range(0, b, columns):
            yield slice(start, min(start + rows, a)), slice(first, min(first + columns, b))


@public
def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances "... n m", from the differences: |x|^2 + |y|^2 - 2xy would cancel for near points.

    >>> squared_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [[25.0, 1.0]]
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


@public
def triple_distance(x: Tensor, y: Tensor, modality_x: Tensor, modality_y: Tensor, split: int) -> Tensor:
    """The modality-aware squared distance "... n m" between slices `x` "... n dim" and `y` "... m dim".

    Each slice is the concatenation of a uni-modal part (the first `split` numbers) and a cross-modal part. Two slices
    of one modality ("... n" and "... m", integers, on any device) are compared by the first part, of different ones by
    the second. Raises ValueError for a split that lies outside the slices.

    >>> x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]])  # one uni-modal number, two cross-modal ones
    >>> y = torch.zeros(1, 3)
    >>> triple_distance(x, y, torch.tensor([0, 1]), torch.tensor([0]), split=1).tolist()  # first of one modality
    [[1.0], [4.0]]
    """
    if not 0 < split < x.shape[-1]:
        raise ValueError(f"split is {split}; it must lie between 1 and {x.shape[-1] - 1}, inside the slices.")
    same = modality_x.to(x.device)[..., :, None] == modality_y.to(x.device)[..., None, :]
    return torch.where(
        same,
        squared_distance(x[..., :split], y[..., :split]),
        squared_distance(x[..., split:], y[..., split:]),
    )
