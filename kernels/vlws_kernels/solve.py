"""From a checked problem to its matrix of log kernels (or DTW costs): which engine, in which pieces."""

import torch
from torch import Tensor

from vlws_kernels import engine as engines
from vlws_kernels import keops, reference, wavefront
from vlws_kernels.autograd import POINTS, AlignOwn, AlignPoints, AlignTables
from vlws_kernels.costs import blocks, held, squared_distance, triple_distance
from vlws_kernels.inputs import Problem

COSTS = 1 / 2  # of the room on a GPU is for forming the costs


def solve(problem: Problem, engine: str, rule: str, scale: Tensor) -> Tensor:
    """log K (natural, float64) "a b" of the linear rules with scale 1/(2 sigma^2) or 1/gamma; costs of dtw."""
    a, b, n, m = problem.shape
    engine = engines.launchable(engine, rule, "points" if problem.on_points else "table", n, m, problem.x)
    if engine in POINTS and problem.on_points:
        if torch.is_grad_enabled() and (problem.x.requires_grad or problem.y.requires_grad):
            return AlignPoints.apply(engine, rule, problem, scale, problem.x, problem.y)
        return POINTS[engine](rule, problem, scale)
    if engine == "reference":
        d = cost_tables(problem, engine, slice(None), slice(None)).double()
        return reference.align(rule, d, problem.len_x, problem.len_y, scale.expand(a, b))
    pairs = _held(n, m, problem.device)
    parts = []
    for rows, columns in blocks(a, b, pairs):
        costs = cost_tables(problem, engine, rows, columns)
        parts.append(
            AlignTables.apply(
                rule,
                engine,
                costs.flatten(0, 1),
                problem.len_x[rows].repeat_interleave(costs.shape[1]),
                problem.len_y[columns].repeat(costs.shape[0]),
                scale.expand(a, b)[rows, columns].flatten(),
            )
        )
    return torch.cat(parts).view(a, b)


def _held(n: int, m: int, device: torch.device) -> int:
    """How many pairs with tables "n m" of costs are done at once."""
    return held(wavefront.numbers(n, m), COSTS, device) if device.type == "cuda" else held(n * m)


def cost_tables(problem: Problem, engine: str, rows: slice, columns: slice) -> Tensor:
    """The local costs "rows columns n m" of some pairs, differentiable; in float64 but for the generated kernels."""
    if problem.distance is not None:
        return problem.distance[rows, columns]
    x, y = problem.x[rows][:, None], problem.y[columns][None]
    if engine not in POINTS:
        x, y = x.double(), y.double()
    modality = problem.modality
    if modality is None:
        return squared_distance(x, y)
    return triple_distance(x, y, modality.x[rows][:, None], modality.y[columns][None], modality.split)


def self_kernels(problem: Problem, engine: str, scale: Tensor, log_k: Tensor, side: int) -> Tensor:
    """log K(x,x) "a 1" or "a b" (side 0), log K(y,y) "1 b" or "a b" (side 1), at the scale of each pair.

    `log_k` "a b" is what `solve` gave: its diagonal serves where x is compared with itself at one scale.
    """
    if problem.symmetric and scale.numel() == 1:
        own = log_k.diagonal()
        return own[:, None] if side == 0 else own[None]
    items, lengths = ((problem.x, problem.len_x), (problem.y, problem.len_y))[side]
    # The same item at the same scale is computed once: with a scale by lengths there are few of them.
    values, which = torch.unique(scale, return_inverse=True)
    item = torch.arange(len(items), device=problem.device)
    item = item[:, None] if side == 0 else item[None]
    codes, back = torch.unique(item * len(values) + which, return_inverse=True)
    index, scales = codes // len(values), values[codes % len(values)]
    length, wanted = items.shape[1], torch.is_grad_enabled() and items.requires_grad
    on_points = engine == "keops" and problem.modality is None and not items.is_cuda
    if on_points and (not wanted or keops.slopes_fit(items, length)):
        return AlignOwn.apply(items, lengths, index, scales)[back]
    engine = engines.launchable(engine, "gak", "table", length, length, items)
    step = _held(length, length, items.device)
    parts = [
        _own_tables(problem, engine, side, pick, some)
        for pick, some in zip(index.split(step), scales.split(step), strict=True)
    ]
    return torch.cat(parts)[back]


def _own_tables(problem: Problem, engine: str, side: int, pick: Tensor, scales: Tensor) -> Tensor:
    """log K "p" of the items `pick` "p" of one side with themselves, at the scales "p"."""
    items, lengths = ((problem.x, problem.len_x), (problem.y, problem.len_y))[side]
    rows = items[pick] if engine in POINTS else items[pick].double()
    if problem.modality is None:
        d = squared_distance(rows, rows)
    else:
        modality = (problem.modality.x, problem.modality.y)[side][pick]
        d = triple_distance(rows, rows, modality, modality, problem.modality.split)
    if engine == "reference":
        return reference.align("gak", d[:, None].double(), lengths[pick], None, scales[:, None], paired=True)
    return AlignTables.apply("gak", engine, d, lengths[pick], lengths[pick], scales)
