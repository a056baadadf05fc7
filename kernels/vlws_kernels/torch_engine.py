"""The torch engine: anti-diagonals in the log domain, float64; and the gradient of all engines but `reference`.

M. Cuturi and M. Blondel, Soft-DTW, ICML 2017, algorithms 1 (values) and 2 (gradient).
"""

import math

import torch
from torch import Tensor


def negative_log(rule: str, d: Tensor, scale: Tensor) -> Tensor:
    """-log of the local kernel of tables "p n m" (float64)."""
    if rule == "dtw":
        return d
    t = d * scale[:, None, None]
    return t + torch.log(2 - torch.exp(-t)) if rule == "gak" else t


def align_tables(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
    """log K "p" (or least costs of dtw), float64, of cost tables "p n m" with lengths and scales "p"."""
    cost = negative_log(rule, d.detach().double(), scale.double())
    start = torch.zeros_like(len_x)
    table = path_sums(cost, start, start, hard=rule == "dtw")
    values = table[torch.arange(len(d), device=d.device), len_x - 1, len_y - 1]
    return -values if rule == "dtw" else values


def path_sums(cost: Tensor, source_i: Tensor, source_j: Tensor, hard: bool) -> Tensor:
    """The table "p n m" of log path sums (`hard`: of minus the least cost) from each source cell, both ends included.

    It advances by anti-diagonals, whose cells do not depend on each other.
    """
    p, n, m = cost.shape
    device = cost.device
    i = torch.arange(n, device=device)
    log_zero = -math.inf
    table = cost.new_full((p, n, m), log_zero)
    before = cost.new_full((p, n + 1), log_zero)  # diagonal k-1, shifted by one: entry i+1 is row i
    before2 = before.clone()
    for k in range(n + m - 1):
        j = k - i
        inside = (j >= 0) & (j < m)
        rows, columns = i[inside], j[inside]
        source = torch.where((source_i[:, None] == rows) & (source_j[:, None] == columns), 0.0, log_zero)
        steps = (before[:, rows], before[:, rows + 1], before2[:, rows], source)  # (i-1,j), (i,j-1), (i-1,j-1)
        best = torch.stack(steps, -1)
        best = best.amax(-1) if hard else best.logsumexp(-1)
        now = before.new_full((p, n + 1), log_zero)
        now[:, rows + 1] = best - cost[:, rows, columns]
        table[:, rows, columns] = now[:, rows + 1]
        before, before2 = now, before
    return table


def occupancy(rule: str, cost: Tensor, len_x: Tensor, len_y: Tensor) -> Tensor:
    """Probability "p n m" that an alignment passes each cell (dtw: 1 on one best path), from -log kernels."""
    p, n, m = cost.shape
    zero = torch.zeros_like(len_x)
    forward = path_sums(cost, zero, zero, hard=rule == "dtw")
    item = torch.arange(p, device=cost.device)
    if rule != "dtw":
        flipped = cost.flip(1, 2)
        backward = path_sums(flipped, n - len_x, m - len_y, hard=False).flip(1, 2)
        total = forward[item, len_x - 1, len_y - 1][:, None, None]
        return torch.exp(forward + backward + cost - total)
    path = torch.zeros_like(cost)
    i, j = len_x - 1, len_y - 1
    for _ in range(n + m - 1):
        path[item, i, j] = 1.0
        moves = torch.stack(
            [
                torch.where((i > 0) & (j > 0), forward[item, (i - 1).clamp_min(0), (j - 1).clamp_min(0)], -math.inf),
                torch.where(i > 0, forward[item, (i - 1).clamp_min(0), j], -math.inf),
                torch.where(j > 0, forward[item, i, (j - 1).clamp_min(0)], -math.inf),
            ]
        ).argmax(0)  # at (0, 0) all are -inf: stay
        i, j = (i - (moves != 2).long()).clamp_min(0), (j - (moves != 1).long()).clamp_min(0)
    return path


def cost_gradient(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
    """The derivative "p n m" of the value by each local cost d (float64)."""
    scale = scale.double()
    passes = occupancy(rule, negative_log(rule, d, scale), len_x, len_y)
    if rule == "dtw":
        return passes
    rate = scale[:, None, None]
    if rule == "gak":  # d/dd of t + log(2 - e^-t) is 2 / (2 - e^-t)
        rate = rate * 2 / (2 - torch.exp(-d * rate))
    return -passes * rate
