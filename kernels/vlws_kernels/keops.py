"""The KeOps engine: one call of `ops.Align` over all pairs of sequences, or over tables."""

import functools
import math
import os

import torch
from torch import Tensor

from vlws_kernels import engine as engines
from vlws_kernels import torch_engine
from vlws_kernels.costs import CHUNK, held, squared_distance
from vlws_kernels.inputs import Problem
from vlws_kernels.shapes import bucket_dim, bucket_length, is_wide

LOG2E = math.log2(math.e)
STACK_BYTES = 2**20  # of what one block results in: KeOps holds it twice on the stack of a thread


def lanes_of(x: Tensor) -> int:
    return 1 if x.is_cuda else engines.operations().VECTOR_BYTES // x.element_size()


def _pad(x: Tensor, *sizes: int) -> Tensor:
    """Zeros behind the last dimensions of `x`, up to `sizes`; None keeps a size."""
    amounts = [amount for size, now in zip(sizes[::-1], x.shape[::-1], strict=False) for amount in (0, size - now)]
    return torch.nn.functional.pad(x, amounts) if any(amounts) else x


def _lanes_last(values: Tensor, lanes: int, fill: float) -> Tensor:
    """`values` "b size" as "block (size lane)", the last block filled up."""
    blocks, size = -(-len(values) // lanes), values.shape[1]
    if len(values) < blocks * lanes:
        values = torch.nn.functional.pad(values, (0, 0, 0, blocks * lanes - len(values)), value=fill)
    return values.view(blocks, lanes, size).transpose(1, 2).reshape(blocks, size * lanes)


def shared_shift(*sequences: tuple[Tensor, Tensor]) -> Tensor | None:
    """The mean "dim" of all elements of (x, lengths), ..., where inner products would cancel for it; else None."""
    count = sum(int(lengths.sum()) for _, lengths in sequences)
    mean = sum(x.sum((0, 1)) for x, _ in sequences) / count
    square = sum(float(torch.linalg.vector_norm(x)) ** 2 for x, _ in sequences) / count
    return mean if float(torch.linalg.vector_norm(mean)) ** 2 > square / 16 else None


def operands(x: Tensor, lengths: Tensor, shift: Tensor | None, wide: bool, n: int, dim: int) -> dict[str, Tensor]:
    """The variables of `ops.Align` for one side, by the prefix of their names, a row each item of `x` "a len dim"."""
    padded = _pad(x, n, dim).reshape(len(x), n * dim)
    variables = {"": padded, "len_": lengths.to(x.dtype)[:, None]}
    if wide:
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        if shift is not None:
            x = torch.where(inside[..., None], x - shift, 0)
            padded = _pad(x, n, dim).reshape(len(x), n * dim)
        norms = torch.where(inside, x.square().sum(-1), 1)
        norms = torch.nn.functional.pad(norms, (0, n - norms.shape[1]), value=1)
        variables |= {"shifted_": padded, "norm_": norms}
    return variables


def align(rule: str, variables: dict[str, Tensor], n: int, m: int, dim: int, lanes: int) -> Tensor:
    """One call of `ops.Align` with its variables by name; with `task` all others are parameters."""
    ops, cost = engines.operations(), "indexed" if "task" in variables else "points"
    aliases, args = [], []
    for name in ops.align_names(rule, cost, dim):
        kind = "Pm" if cost == "indexed" and name != "task" else "Vj" if name.endswith("y") else "Vi"
        args.append(variables[name])
        aliases.append(f"{name}={kind}({args[-1].shape[-1]})")
    formula = ops.align_formula(rule, cost, False, n, m, dim, lanes)
    return _read(rule, engines.reduce(formula, aliases, *args), lanes)


def align_points(rule: str, problem: Problem, scale: Tensor) -> Tensor:
    """log K (or costs of dtw) "a b", float64, from squared Euclidean distances formed inside the operation.

    One KeOps call over all blocks of `lanes` sequences y and all x (or those not after the block, if y is x).
    """
    a, b, n, m = problem.shape
    lanes = lanes_of(problem.x)
    sizes = bucket_length(n), bucket_length(m), bucket_dim(problem.x.shape[-1])
    power = (scale * LOG2E).to(problem.dtype)
    sides, order, x_order = _in_order(problem)
    if power.numel() > 1:
        power = _in_blocks(power.expand(a, b), order, x_order, lanes)
    rows, columns = _both_sides(*sides, lanes, sizes)
    launch = _launch_batch if problem.x.is_cuda else _launch_tasks
    values = launch(rule, problem, rows, columns, power, sizes)
    if order is not None:
        back = order.argsort()
        values = values[:, back] if x_order is None else values[back][:, back]
    if rule == "soft":
        values = recompute_overflow(values, problem, scale)
    return values


def _in_order(problem: Problem) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor | None, Tensor | None]:
    """x, len_x, y, len_y with sequences y of like length beside each other, and the orders of y and of x (None: as is).

    Sequences of like length share a block.
    """
    x, len_x, len_y = problem.x.detach(), problem.len_x, problem.len_y
    y = x if problem.y is problem.x else problem.y.detach()
    ragged = not problem.full and (len_y.min() != len_y.max() or len_x.min() != len_x.max())
    order = len_y.argsort() if ragged else None
    x_order = order if problem.symmetric else None
    if x_order is not None:
        x, len_x = x[x_order], len_x[x_order]
    if order is not None:
        y, len_y = (x, len_x) if x_order is not None else (y[order], len_y[order])
    return (x, len_x, y, len_y), order, x_order


def _in_blocks(values: Tensor, order: Tensor | None, x_order: Tensor | None, lanes: int) -> Tensor:
    """Numbers of the pairs "a b", put in order, as "block a lane"; the last block is filled up with zeros."""
    a, b = values.shape
    values = values if x_order is None else values[x_order]
    values = values if order is None else values[:, order]
    blocks = -(-b // lanes)
    return _pad(values, blocks * lanes).view(a, blocks, lanes).transpose(0, 1).contiguous()


def point_gradients(rule: str, problem: Problem, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor] | None:
    """The gradients of x "a n dim" and y "b m dim" on a CPU, where that of the values is `grad` "a b".

    None where the tables of a block are larger than a thread's stack takes. Blocks are done in the order of y.
    """
    x, y, (a, b, n, m) = problem.x, problem.y, problem.shape
    lanes, dim = lanes_of(x), x.shape[-1]
    n_pad, m_pad, dim_pad = sizes = bucket_length(n), bucket_length(m), bucket_dim(dim)
    wide, size = is_wide("indexed", dim_pad), _slopes_size(x, m)
    if not slopes_fit(x, m) or (problem.symmetric and y is not x):
        return None
    sides, order, x_order = _in_order(problem)
    rows, columns = _both_sides(*sides, lanes, sizes)
    grad = grad.double() if rule == "dtw" else grad.double() * scale
    if problem.symmetric:  # a pair below the diagonal has the value of its mirror image
        place = torch.arange(a) if order is None else order.argsort()
        upper = place[:, None] <= place
        grad = torch.where(upper, grad + grad.T, 0)
        grad.diagonal().div_(2)
    weight = _in_blocks(grad.to(x.dtype) * (1 if wide else 2), order, x_order, lanes)
    power = _in_blocks((scale * LOG2E).to(x.dtype).expand(a, b), order, x_order, lanes)
    variables = {f"{side}x": values for side, values in rows.items()}
    variables |= {f"{side}y": values for side, values in columns.items()}
    variables |= {"scale": power.view(-1, lanes), "weight": weight.view(-1, lanes)}

    grad_x = x.new_zeros(a, n_pad, dim_pad)
    grad_y = x.new_zeros(weight.shape[0] * lanes, m_pad, dim_pad)
    blocks = torch.arange(weight.shape[0])
    for some in blocks.split(max(1, CHUNK // (a * size))):
        tasks, counts = _block_tasks(some, a, lanes, problem.symmetric, x.dtype)
        out = slopes_of(rule, variables | {"task": tasks}, sizes, lanes)
        for block, part in zip(some.tolist(), out.split(counts), strict=True):
            of_x, of_y = grad_x[: len(part)], grad_y[block * lanes : (block + 1) * lanes]
            if not wide:
                of_x += part[:, : n_pad * dim_pad].view_as(of_x)
                of_y += part[:, n_pad * dim_pad :].sum(0).view(m_pad, dim_pad, lanes).movedim(2, 0)
                continue
            slopes = part.view(len(part) * n_pad, m_pad * lanes)
            left = rows["shifted_"].view(a, n_pad, dim_pad)[: len(part)].flatten(0, 1)
            right = columns["shifted_"][block].view(m_pad, dim_pad, lanes).transpose(1, 2).flatten(0, 1)
            of_x += (2 * (left * slopes.sum(1)[:, None] - slopes @ right)).view_as(of_x)
            into_y = 2 * (right * slopes.sum(0)[:, None] - slopes.T @ left)
            of_y += into_y.view(m_pad, lanes, dim_pad).transpose(0, 1)
    if x_order is not None:
        grad_x = grad_x[x_order.argsort()]
    grad_y = grad_y[:b] if order is None else grad_y[:b][order.argsort()]
    return grad_x[:, :n, :dim], grad_y[:, :m, :dim]


def slopes_fit(x: Tensor, m: int) -> bool:
    """Whether a thread's stack takes the slopes of a block of `x` "a n dim" with sequences of length m, on a CPU."""
    return not x.is_cuda and _slopes_size(x, m) * x.element_size() <= STACK_BYTES


def _slopes_size(x: Tensor, m: int) -> int:
    n_pad, m_pad, dim_pad = bucket_length(x.shape[1]), bucket_length(m), bucket_dim(x.shape[2])
    return engines.operations().slopes_size(n_pad, m_pad, dim_pad, lanes_of(x), is_wide("indexed", dim_pad))


def _block_tasks(blocks: Tensor, a: int, lanes: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, list[int]]:
    """`task` "4" of some blocks, one after the other, and how many rows of x each has."""
    counts = [min(a, (block + 1) * lanes) if symmetric else a for block in blocks.tolist()]
    block = blocks.repeat_interleave(torch.tensor(counts))
    row = torch.cat([torch.arange(count) for count in counts])
    place, index = block * a + row, engines.operations().INDEX
    return torch.stack([row, block, place // index, place % index], 1).to(dtype), counts


def slopes_of(rule: str, variables: dict[str, Tensor], sizes: tuple[int, int, int], lanes: int) -> Tensor:
    """One call of `ops.AlignSlopes` with its variables by name."""
    ops = engines.operations()
    names = ops.slope_names(rule, sizes[2])
    args = [variables[name] for name in names]
    aliases = [
        f"{name}={'Vi' if name == 'task' else 'Pm'}({arg.shape[-1]})" for name, arg in zip(names, args, strict=True)
    ]
    return engines.reduce(ops.slope_formula(rule, *sizes, lanes), aliases, *args)


def _both_sides(
    x: Tensor, len_x: Tensor, y: Tensor, len_y: Tensor, lanes: int, sizes: tuple[int, int, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The variables of all x "a size" and of all blocks of y "block (size lane)", by the prefix of their names."""
    n, m, dim = sizes
    wide = is_wide("indexed", dim)
    sides = ((x, len_x),) if y is x else ((x, len_x), (y, len_y))
    shift = shared_shift(*sides) if wide else None
    rows = operands(x, len_x, shift, wide, n, dim)
    columns = rows if y is x and len_y is len_x else operands(y, len_y, shift, wide, m, dim)
    columns = {
        side: _lanes_last(values, lanes, side in ("norm_", "len_"))
        for side, values in columns.items()
        if side != "shifted_" or shift is not None
    }
    if wide and shift is None:
        columns["shifted_"] = columns[""]
    return rows, columns


def _launch_batch(
    rule: str, problem: Problem, rows: dict, columns: dict, power: Tensor, sizes: tuple[int, int, int]
) -> Tensor:
    """One launch on a GPU, where the blocks are a batch dimension: values "a b" in the order of the variables."""
    a, b = problem.shape[:2]
    lanes = lanes_of(problem.x)
    blocks = -(-b // lanes)
    variables = {f"{side}x": values[None] for side, values in rows.items()}
    variables |= {f"{side}y": values[:, None] for side, values in columns.items()}
    variables["scale"] = power if power.numel() > 1 else power.expand(1, a, 1)
    values = align(rule, variables, *sizes, lanes)
    values = values.view(blocks, a, lanes).transpose(0, 1).reshape(a, blocks * lanes)[:, :b]
    return values.triu() + values.triu(1).T if problem.symmetric else values


def _launch_tasks(
    rule: str, problem: Problem, rows: dict, columns: dict, power: Tensor, sizes: tuple[int, int, int]
) -> Tensor:
    """One call on a CPU over a list of tasks: values "a b" in the order of the variables."""
    a, b = problem.shape[:2]
    lanes = lanes_of(problem.x)
    blocks = -(-b // lanes)
    tasks, place = _tasks(a, blocks, lanes, problem.symmetric, power.numel() > 1, problem.dtype)
    variables = {f"{side}x": values for side, values in rows.items()}
    variables |= {f"{side}y": values for side, values in columns.items()}
    variables["scale"] = power.reshape(-1, lanes) if power.numel() > 1 else power.expand(1, lanes)
    out = align(rule, variables | {"task": tasks}, *sizes, lanes)
    return out.view(-1).index_select(0, place).view(a, blocks * lanes)[:, :b]


@functools.lru_cache(maxsize=4)
def _tasks(
    a: int, blocks: int, lanes: int, symmetric: bool, own_scale: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Row of x, block of y and row of the scales "task 4" of each alignment block, and where its results stand.

    The second is the place "(a b)" of each pair in the results "task lane", b filled up to whole blocks. If y is x,
    blocks that lie below the diagonal are left out, and pairs below it stand where their mirror images do. OpenMP gives
    each thread one run of tasks: they are dealt out, so that each run meets every length.
    """
    place = torch.arange(blocks * a)
    block, row = place // a, place % a
    if symmetric:
        needed = row < (block + 1) * lanes
        place, block, row = place[needed], block[needed], row[needed]
    deal = (torch.arange(len(place)) % (os.cpu_count() or 1)).argsort(stable=True)
    place, block, row = place[deal], block[deal], row[deal]
    scale = place if own_scale else torch.zeros_like(place)
    index = engines.operations().INDEX
    tasks = torch.stack([row, block, scale // index, scale % index], 1).to(dtype)

    task = torch.zeros(blocks * a, dtype=torch.int32 if blocks * a * lanes < 2**31 else torch.int64)
    task[place] = torch.arange(len(place), dtype=task.dtype)
    i, j = torch.arange(a)[:, None], torch.arange(blocks * lanes)
    i, j = (torch.minimum(i, j), torch.maximum(i, j).clamp_max(a - 1)) if symmetric else (i, j)
    return tasks, (task[j // lanes * a + i] * lanes + j % lanes).view(-1)


def align_tables(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
    """KeOps over given tables "p n m", a lane a table."""
    p, n, m = d.shape
    lanes = lanes_of(d)
    n_pad, m_pad, p_pad = bucket_length(n), bucket_length(m), -(-p // lanes) * lanes

    def blocks(values: Tensor) -> Tensor:
        fill = torch.nn.functional.pad(values, (0, p_pad - p), value=1).to(d.dtype)
        return fill.view(p_pad // lanes, lanes).contiguous()

    table = _pad(d.detach(), p_pad, n_pad, m_pad).view(p_pad // lanes, lanes, n_pad * m_pad)
    table = table.transpose(1, 2).reshape(p_pad // lanes, n_pad * m_pad * lanes)
    formula = engines.operations().align_formula(rule, "table", True, n_pad, m_pad, 0, lanes)
    aliases = [f"x=Vi({n_pad * m_pad * lanes})", f"len_x=Vi({lanes})", f"len_y=Vi({lanes})"]
    args = [table, blocks(len_x), blocks(len_y)]
    if rule != "dtw":
        aliases.append(f"scale=Vi({lanes})")
        args.append(blocks(scale * LOG2E))
    values = _read(rule, engines.reduce(formula, aliases, *args), lanes).reshape(p_pad)[:p]
    if rule == "soft":
        dtype = "float" if d.dtype == torch.float32 else "double"
        lost = values <= -engines.operations().largest_cost(dtype, n_pad, m_pad) / LOG2E
        if lost.any():
            values[lost] = torch_engine.align_tables(rule, d[lost], len_x[lost], len_y[lost], scale[lost])
    return values


def _read(rule: str, out: Tensor, lanes: int) -> Tensor:
    """The operation's output "... (part lane)" as natural logarithms (or costs) "... lane" in float64."""
    if rule == "dtw":
        return out.double()
    return torch.add(out[..., :lanes].log(), out[..., lanes:].double(), alpha=math.log(2))


def least_value(problem: Problem) -> float:
    """log K of the pairs from which on the exponents of a cell cannot hold the costs (beyond millions of gamma)."""
    dtype = "float" if problem.dtype == torch.float32 else "double"
    n, m = (bucket_length(length) for length in problem.shape[2:])
    return -engines.operations().largest_cost(dtype, n, m) / LOG2E


def recompute_overflow(values: Tensor, problem: Problem, scale: Tensor) -> Tensor:
    """Pairs whose costs left the operation's range are done in the log domain instead."""
    least = least_value(problem)
    if float(values.min()) > least:
        return values
    rows, columns = (values <= least).nonzero(as_tuple=True)
    step = held(problem.shape[2] * problem.shape[3])
    for start in range(0, len(rows), step):
        i, j = rows[start : start + step], columns[start : start + step]
        d = squared_distance(problem.x[i].detach().double(), problem.y[j].detach().double())
        values[i, j] = torch_engine.align_tables(
            "soft", d, problem.len_x[i], problem.len_y[j], scale.expand(values.shape)[i, j]
        )
    return values
