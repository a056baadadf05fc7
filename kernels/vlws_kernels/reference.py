"""Dense float64 references: the definitions, written to be read and not to be fast."""

import torch
from torch import Tensor


def align(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor | None, scale: Tensor, paired: bool = False) -> Tensor:
    """log K "a b" ("gak", "soft") or least cost ("dtw") of float64 cost tables `d` "a b n m", row by row.

    `scale` "a b" is 1/(2 sigma^2) or 1/gamma. `paired`: `d` is "p 1 n n", the second lengths are `len_x`, and the
    result is "p".
    """
    a, b, n, m = d.shape
    t = d * scale[..., None, None]
    if rule == "gak":
        t = t + torch.log(2 - torch.exp(-t))
    elif rule == "dtw":
        t = d
    nothing = torch.full((a, b), -torch.inf, dtype=d.dtype, device=d.device)
    table: dict[tuple[int, int], Tensor] = {(-1, -1): torch.zeros_like(nothing)}
    for i in range(n):
        for j in range(m):
            before = torch.stack([table.get(cell, nothing) for cell in ((i - 1, j), (i, j - 1), (i - 1, j - 1))])
            reached = before.amax(0) if rule == "dtw" else _logsumexp(before)
            table[i, j] = reached - t[:, :, i, j]
    values = torch.stack([torch.stack([table[i, j] for j in range(m)]) for i in range(n)])  # n m a b
    index_a, index_b = torch.arange(a)[:, None], torch.arange(b)[None]
    ends = (len_x[:, None] if paired else len_y[None]) - 1
    values = values[(len_x - 1)[:, None], ends, index_a, index_b]
    values = -values if rule == "dtw" else values
    return values[:, 0] if paired else values


def _logsumexp(values: Tensor) -> Tensor:
    """log sum exp over the first axis, with the gradient of minus infinity taken as 0."""
    shift = values.detach().amax(0)
    return shift + torch.log(torch.exp(values - shift).sum(0))


def path_sum(kernel: Tensor) -> Tensor:
    """The sum over all alignments of one table "n m" of local kernels of their products, by enumeration."""
    n, m = kernel.shape

    def onward(i: int, j: int) -> Tensor:
        if (i, j) == (n - 1, m - 1):
            return kernel[i, j]
        steps = [(i + 1, j), (i, j + 1), (i + 1, j + 1)]
        return kernel[i, j] * sum(onward(*step) for step in steps if step[0] < n and step[1] < m)

    return onward(0, 0)
