"""What the public functions accept: tensors, true lengths, modalities and parameters checked, each in one sentence.

Lengths, modalities, sigma and gamma may lie on any device: they are moved to the device of `x`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CELL = 32  # dimensions whose distance takes as long as a cell's recursion
SMALL = 2**23  # cells times (CELL + dim), some 200 us of one thread: less is done on one
FLOATS = (torch.float32, torch.float64)


def true_lengths(x: Tensor, lengths: Tensor | None, name: str) -> Tensor:
    """`lengths` "a" (int64, on the device of `x` "a n dim"), each from 1 to n; None: all n."""
    if lengths is None:
        return torch.full((x.shape[0],), x.shape[1], device=x.device)
    lengths = torch.as_tensor(lengths, device=x.device)
    if lengths.shape != x.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"{name} has shape {tuple(lengths.shape)} and dtype {lengths.dtype}; it must be {x.shape[0]} integers."
        )
    if bool(((lengths < 1) | (lengths > x.shape[1])).any()):
        raise ValueError(f"{name} holds {int(lengths.min())} to {int(lengths.max())}; it must lie in 1..{x.shape[1]}.")
    return lengths.long()


def mask_padding(x: Tensor, lengths: Tensor | None, name: str) -> Tensor:
    """`x` "a n dim" with zeros behind the true lengths (None: all full); refuses what is not finite within them."""
    if lengths is not None and int(lengths.min()) < x.shape[1]:
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        x = torch.where(inside[..., None], x, 0)
    if not is_finite(x):
        raise ValueError(f"{name} holds NaN or infinite numbers within the true lengths; it must be finite.")
    return x


def is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite. A finite sum has finite terms only, and is quicker; an infinite one may have
    overflowed."""
    return math.isfinite(float(x.detach().sum())) or bool(x.detach().isfinite().all())


def check_floats(**tensors: Tensor) -> None:
    """Raise TypeError unless each is a torch tensor of float32 or float64."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} is {given}; it must be a torch tensor of float32 or float64.")


def check_points(**points: Tensor) -> None:
    """Raise unless all are finite "points dim" of one dim, float dtype and device."""
    for name, tensor in points.items():
        check_floats(**{name: tensor})
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be (points, dim), nothing empty.")
        if not is_finite(tensor):
            raise ValueError(f"{name} holds NaN or infinite numbers; it must be finite.")
    first, *rest = points.values()
    for other in rest:
        if other.shape[1] != first.shape[1] or other.dtype != first.dtype or other.device != first.device:
            raise ValueError(
                f"x is {tuple(first.shape)} {first.dtype} on {first.device} and y is {tuple(other.shape)} "
                f"{other.dtype} on {other.device}; dim, dtype and device must agree."
            )


def check_sequences(x: Tensor, y: Tensor) -> None:
    """Raise unless both are "sequences length dim" of one dim, float dtype and device, nothing empty."""
    for name, tensor in (("x", x), ("y", y)):
        check_floats(**{name: tensor})
        if tensor.dim() != 3 or 0 in tensor.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be (sequences, length, dim), nothing empty."
            )
    if x.dtype != y.dtype or x.device != y.device or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype} on {x.device} and y is {tuple(y.shape)} {y.dtype} on {y.device}; "
            "dtype, device and last dimension must agree."
        )


@dataclass(frozen=True)
class Modality:
    """The triple distance's input: modalities "a n" and "b m" (integers, on the device of x), and the split."""

    x: Tensor
    y: Tensor
    split: int


def check_modality(
    x: Tensor, y: Tensor, modality_x: Tensor | None, modality_y: Tensor | None, split: int | None
) -> Modality | None:
    """The modalities of all elements of `x` "a n dim" and `y` "b m dim"; None where none is given."""
    given = [value is not None for value in (modality_x, modality_y, split)]
    if not any(given):
        return None
    if not all(given):
        raise ValueError("the triple distance needs modality_x, modality_y and split together.")
    for name, modality, tensor in (("modality_x", modality_x, x), ("modality_y", modality_y, y)):
        if modality.shape != tensor.shape[:2]:
            raise ValueError(f"{name} has shape {tuple(modality.shape)}; it must be {tuple(tensor.shape[:2])}.")
    return Modality(modality_x.to(x.device), modality_y.to(x.device), split)


class Problem:
    """The checked input of one alignment call.

    `x` "a n dim" and `y` "b m dim" hold zeros behind the true lengths `len_x` "a" and `len_y` "b"; `symmetric` tells
    that the result equals its transpose. `modality` or `distance` "a b n m" may stand in place of squared distances.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        len_x: Tensor | None,
        len_y: Tensor | None,
        modality_x: Tensor | None,
        modality_y: Tensor | None,
        split: int | None,
        distance: Tensor | None,
    ) -> None:
        own = y is None and distance is None
        self.symmetric = own and len_y is None and modality_y is None
        y = x if y is None else y
        len_y = len_x if own and len_y is None else len_y
        modality_y = modality_x if own and modality_y is None else modality_y
        check_sequences(x, y)
        self.dtype, self.device = x.dtype, x.device
        self.full = len_x is None and len_y is None
        same = y is x and len_y is len_x
        self.len_x = true_lengths(x, len_x, "len_x")
        self.len_y = self.len_x if same else true_lengths(y, len_y, "len_y")
        self.x = mask_padding(x, None if len_x is None else self.len_x, "x")
        self.y = self.x if same else mask_padding(y, None if len_y is None else self.len_y, "y")
        self.shape = (x.shape[0], y.shape[0], x.shape[1], y.shape[1])
        self.modality = check_modality(x, y, modality_x, modality_y, split)
        if self.modality is not None and distance is not None:
            raise ValueError("give either modalities (the triple distance) or a table `distance`, not both.")
        if distance is not None and tuple(distance.shape) != self.shape:
            raise ValueError(
                f"distance has shape {tuple(distance.shape)}; it must be (a, b, len_x, len_y) = {self.shape}."
            )
        self.distance = None if distance is None else distance.to(x.device)

    @property
    def small(self) -> bool:
        """Whether one thread does it soonest."""
        cells = math.prod(self.shape) * (CELL + self.x.shape[-1])
        return cells <= SMALL * (2 if self.symmetric else 1)

    @property
    def on_points(self) -> bool:
        """Whether the local costs are squared Euclidean distances of the elements."""
        return self.distance is None and self.modality is None

    def per_pair(self, value: float | Tensor, name: str) -> Tensor:
        """`value` as a positive float64 tensor "a b" (or "1 1" for one number), on the device of x.

        All pairs are needed if it is not symmetric: `symmetric` is updated.
        """
        tensor = torch.as_tensor(value, dtype=torch.float64, device=self.device).detach()
        tensor = tensor.reshape((1,) * (2 - tensor.dim()) + tuple(tensor.shape))
        fits = tensor.dim() == 2 and all(s in (1, t) for s, t in zip(tensor.shape, self.shape, strict=False))
        if not fits:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must broadcast to {self.shape[:2]}.")
        least, most = (float(bound) for bound in (tensor.aminmax() if tensor.numel() > 1 else (tensor, tensor)))
        if not 0 < least <= most < math.inf:
            raise ValueError(f"{name} is {value if tensor.numel() == 1 else 'not all'} > 0 and finite; it must be.")
        self.symmetric = self.symmetric and (tensor.numel() == 1 or torch.equal(tensor, tensor.T))
        return tensor
