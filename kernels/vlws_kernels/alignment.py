"""Alignment kernels between batches of ragged sequences: GAK, soft-DTW, DTW, with gradients, and the alignments.

All take `x` "a len_x dim" and `y` "b len_y dim", float32 or float64, true lengths `len_x` "a" and `len_y` "b" (None:
all full), and return the "a b" matrix in the dtype of `x`. `y=None` compares `x` with itself and computes half of it.
What stands behind a sequence's true length never changes a value. The local cost d of two elements is the squared
Euclidean distance, or the modality-aware distance of `triple_distance` where `modality_x`, `modality_y` and `split` are
given, or a table `distance` "a b len_x len_y" of your own.

Sources: M. Cuturi, Fast global alignment kernels, ICML 2011 (GAK, the half-Gaussian local kernel); M. Cuturi and
M. Blondel, Soft-DTW, ICML 2017, equation 2 and algorithms 1 and 2; H. Sakoe and S. Chiba, 1978 (DTW).
"""

import functools
import math
import os

import torch
from torch import Tensor

from vlws_kernels import engine as engines
from vlws_kernels import reference

LOG2E = math.log2(math.e)
CHUNK = 2**22  # cells of a table held at once, where tables are held
CELL = 32  # dimensions whose distance takes as long as a cell's recursion
SMALL = 2**23  # cells times (CELL + dim), some 200 us of one thread: less is done on one


def gak(
    x: Tensor,
    y: Tensor | None = None,
    len_x: Tensor | None = None,
    len_y: Tensor | None = None,
    sigma: float | Tensor = 1.0,
    normalize: bool = True,
    *,
    log: bool = False,
    modality_x: Tensor | None = None,
    modality_y: Tensor | None = None,
    split: int | None = None,
    distance: Tensor | None = None,
    engine: str | None = None,
) -> Tensor:
    """Global alignment kernels "a b": the sum over all alignments of the product of local kernels k = s/(2-s).

    s = exp(-d / (2 sigma^2)), so that -log k = d/(2 sigma^2) + log(2 - s). `sigma` is a number or a tensor that
    broadcasts to "a b", in the unit of the elements; no gradient passes to it.
    `normalize` divides by sqrt(K(x,x) K(y,y)), both taken with the sigma of the pair; without it K grows like the
    Delannoy numbers. With the squared Euclidean distance and one sigma the result lies in (0, 1]; with a sigma of its
    own for each pair, or with the triple distance, that is no longer assured: clamp where it matters.
    `log` returns the natural logarithm, which neither overflows nor vanishes. A table `distance` has no K(x,x): it
    needs `normalize=False`. Raises ValueError or TypeError for input that does not fit.
    """
    problem = _Problem(x, y, len_x, len_y, modality_x, modality_y, split, distance, engine)
    sigma = problem.per_pair(sigma, "sigma")
    if normalize and distance is not None:
        raise ValueError("normalize=True needs K(x,x) and K(y,y), which a table `distance` does not hold; pass False.")
    with engines.threads(problem.small):
        scale = 0.5 * sigma**-2
        log_k = problem.solve("gak", scale)
        if normalize:
            own = problem.self_kernels(scale, log_k, 0)
            both = own + (own.T if problem.symmetric else problem.self_kernels(scale, log_k, 1))
            log_k = torch.sub(log_k, both, alpha=0.5)
        return (log_k if log else log_k.exp()).to(problem.dtype)


def soft_dtw(
    x: Tensor,
    y: Tensor | None = None,
    len_x: Tensor | None = None,
    len_y: Tensor | None = None,
    gamma: float = 1.0,
    *,
    modality_x: Tensor | None = None,
    modality_y: Tensor | None = None,
    split: int | None = None,
    distance: Tensor | None = None,
    engine: str | None = None,
) -> Tensor:
    """Soft-DTW discrepancies "a b": -gamma log of the sum over alignments of exp(-cost/gamma); may be negative.

    `gamma` > 0 has the unit of the costs (squared, for the squared Euclidean distance); gamma -> 0 gives DTW.
    """
    problem = _Problem(x, y, len_x, len_y, modality_x, modality_y, split, distance, engine)
    gamma = problem.per_pair(gamma, "gamma")
    with engines.threads(problem.small):
        return (-gamma * problem.solve("soft", 1.0 / gamma)).to(problem.dtype)


def dtw(
    x: Tensor,
    y: Tensor | None = None,
    len_x: Tensor | None = None,
    len_y: Tensor | None = None,
    *,
    modality_x: Tensor | None = None,
    modality_y: Tensor | None = None,
    split: int | None = None,
    distance: Tensor | None = None,
    engine: str | None = None,
) -> Tensor:
    """Dynamic time warping costs "a b": the least sum of local costs (squared distances; no root is taken).

    The gradient is that of one best alignment (a subgradient where there are several).
    """
    problem = _Problem(x, y, len_x, len_y, modality_x, modality_y, split, distance, engine)
    with engines.threads(problem.small):
        return problem.solve("dtw", torch.ones(1, 1, dtype=torch.float64, device=x.device)).to(problem.dtype)


def triple_distance(x: Tensor, y: Tensor, modality_x: Tensor, modality_y: Tensor, split: int) -> Tensor:
    """The modality-aware squared distance "... n m" between slices `x` "... n dim" and `y` "... m dim".

    Each slice is the concatenation of a uni-modal part (the first `split` numbers) and a cross-modal part. Two slices
    of one modality ("... n" and "... m", integers) are compared by the first part, of different ones by the second.
    """
    if not 0 < split < x.shape[-1]:
        raise ValueError(f"split is {split}; it must lie between 1 and {x.shape[-1] - 1}, inside the slices.")
    same = modality_x[..., :, None] == modality_y[..., None, :]
    return torch.where(
        same,
        squared_distance(x[..., :split], y[..., :split]),
        squared_distance(x[..., split:], y[..., split:]),
    )


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances "... n m", from the differences: |x|^2 + |y|^2 - 2xy would cancel for near points."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def expected_alignment(
    x: Tensor, y: Tensor, *, gamma: float | None = None, sigma: float | None = None, distance: Tensor | None = None
) -> Tensor:
    """Of one pair "n dim", "m dim": the probability "n m" that an alignment passes through each cell.

    Give `gamma` (soft-DTW) or `sigma` (GAK). It is the gradient of soft-DTW with respect to the cost table.
    """
    if (gamma is None) == (sigma is None):
        raise ValueError("give either gamma (soft-DTW) or sigma (GAK) for the expected alignment, and not both.")
    d = (squared_distance(x.double(), y.double()) if distance is None else distance.double())[None]
    rule, scale = ("soft", 1 / gamma) if sigma is None else ("gak", 0.5 / sigma**2)
    cost = _negative_log(rule, d, torch.tensor([scale], dtype=torch.float64))
    return _passing(rule, cost, *(torch.tensor([size]) for size in d.shape[1:]))[0].to(x.dtype)


def alignment_path(x: Tensor, y: Tensor, *, distance: Tensor | None = None) -> Tensor:
    """Of one pair "n dim", "m dim": a best DTW alignment, "step 2", index pairs from (0, 0) to (n-1, m-1)."""
    d = (squared_distance(x.double(), y.double()) if distance is None else distance.double())[None]
    return _passing("dtw", d, *(torch.tensor([size]) for size in d.shape[1:]))[0].nonzero()


class _Problem:
    """The checked input of one call, and the engines that fill its matrix of log kernels (or DTW costs)."""

    def __init__(self, x, y, len_x, len_y, modality_x, modality_y, split, distance, engine) -> None:
        own = y is None and distance is None
        self.symmetric = own and len_y is None and modality_y is None
        y = x if y is None else y
        len_y = len_x if own and len_y is None else len_y
        modality_y = modality_x if own and modality_y is None else modality_y
        for name, tensor in (("x", x), ("y", y)):
            if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, torch.float64):
                given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name} is {given}; it must be a torch tensor of float32 or float64.")
            if tensor.dim() != 3 or 0 in tensor.shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; it must be (sequences, length, dim), nothing empty."
                )
        if x.dtype != y.dtype or x.device != y.device or x.shape[-1] != y.shape[-1]:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype} on {x.device} and y is {tuple(y.shape)} {y.dtype} on {y.device}; "
                "dtype, device and last dimension must agree."
            )
        self.dtype, self.device = x.dtype, x.device
        self.full = len_x is None and len_y is None
        same = y is x and len_y is len_x
        self.len_x = _lengths(x, len_x, "len_x")
        self.len_y = self.len_x if same else _lengths(y, len_y, "len_y")
        self.x = _silence(x, None if len_x is None else self.len_x, "x")
        self.y = self.x if same else _silence(y, None if len_y is None else self.len_y, "y")
        self.shape = (x.shape[0], y.shape[0], x.shape[1], y.shape[1])

        given = [value is not None for value in (modality_x, modality_y, split)]
        if any(given) and not all(given):
            raise ValueError("the triple distance needs modality_x, modality_y and split together.")
        self.modality = None
        if all(given):
            if distance is not None:
                raise ValueError("give either modalities (the triple distance) or a table `distance`, not both.")
            for name, modality, tensor in (("modality_x", modality_x, x), ("modality_y", modality_y, y)):
                if modality.shape != tensor.shape[:2]:
                    raise ValueError(f"{name} has shape {tuple(modality.shape)}; it must be {tuple(tensor.shape[:2])}.")
            self.modality = (modality_x, modality_y, split)
        if distance is not None and tuple(distance.shape) != self.shape:
            raise ValueError(
                f"distance has shape {tuple(distance.shape)}; it must be (a, b, len_x, len_y) = {self.shape}."
            )
        self.distance = distance
        self.engine = engines.choose(engine, x)
        self.small = math.prod(self.shape) * (CELL + x.shape[-1]) <= SMALL * (2 if self.symmetric else 1)

    def per_pair(self, value: float | Tensor, name: str) -> Tensor:
        """`value` as a positive tensor "a b" (or "1 1" for one number); all pairs are needed if not symmetric."""
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

    def tables(self, rows: slice) -> Tensor:
        """The local costs "rows b n m" of some rows, differentiable."""
        if self.distance is not None:
            return self.distance[rows]
        x, y = self.x[rows][:, None], self.y[None]
        if self.engine != "keops":
            x, y = x.double(), y.double()
        if self.modality is None:
            return squared_distance(x, y)
        modality_x, modality_y, split = self.modality
        return triple_distance(x, y, modality_x[rows][:, None], modality_y[None], split)

    def solve(self, rule: str, scale: Tensor) -> Tensor:
        """log K (natural, float64) "a b" of the linear rules with scale 1/(2 sigma^2) or 1/gamma; costs of dtw."""
        a, b, n, m = self.shape
        if self.engine == "keops" and self.distance is None and self.modality is None:
            if torch.is_grad_enabled() and (self.x.requires_grad or self.y.requires_grad):
                return _Points.apply(rule, self, scale, self.x, self.y)
            return _keops_points(rule, self, scale)
        if self.engine == "reference":
            d = self.tables(slice(None)).double()
            return reference.align(rule, d, self.len_x, self.len_y, scale.expand(a, b))
        step = max(1, CHUNK // (b * n * m))
        parts = []
        for start in range(0, a, step):
            rows = slice(start, min(start + step, a))
            parts.append(
                _Tables.apply(
                    rule,
                    self.engine,
                    self.tables(rows).flatten(0, 1),
                    self.len_x[rows].repeat_interleave(b),
                    self.len_y.repeat(rows.stop - start),
                    scale.expand(a, b)[rows].flatten(),
                )
            )
        return torch.cat(parts).view(a, b)

    def self_kernels(self, scale: Tensor, log_k: Tensor, side: int) -> Tensor:
        """log K(x,x) "a 1" or "a b" (side 0), log K(y,y) "1 b" or "a b" (side 1), at the scale of each pair."""
        if self.symmetric and scale.numel() == 1:
            own = log_k.diagonal()
            return own[:, None] if side == 0 else own[None]
        items, lengths = ((self.x, self.len_x), (self.y, self.len_y))[side]
        count = len(items)
        # The same item at the same scale is computed once: with a scale by lengths there are few of them.
        values, which = torch.unique(scale, return_inverse=True)
        item = torch.arange(count, device=self.device)
        item = item[:, None] if side == 0 else item[None]
        code = item * len(values) + which
        codes, back = torch.unique(code, return_inverse=True)
        index, scales = codes // len(values), values[codes % len(values)]
        wanted = torch.is_grad_enabled() and items.requires_grad
        if self.engine == "keops" and self.modality is None and not items.is_cuda and not wanted:
            return _keops_own(items.detach(), lengths, index, scales)[back]
        step = max(1, CHUNK // (items.shape[1] ** 2))
        parts = []
        for start in range(0, len(index), step):
            pick = index[start : start + step]
            rows = items[pick] if self.engine == "keops" else items[pick].double()
            if self.modality is None:
                d = squared_distance(rows, rows)
            else:
                modality = self.modality[side][pick]
                d = triple_distance(rows, rows, modality, modality, self.modality[2])
            if self.engine == "reference":
                part = reference.align(
                    "gak", d[:, None].double(), lengths[pick], None, scales[start : start + step, None], paired=True
                )
            else:
                part = _Tables.apply("gak", self.engine, d, lengths[pick], lengths[pick], scales[start : start + step])
            parts.append(part)
        return torch.cat(parts)[back]


class _Points(torch.autograd.Function):
    """KeOps over pairs of sequences; the distances are formed inside the operation."""

    @staticmethod
    def forward(ctx, rule: str, problem: _Problem, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
        values = _keops_points(rule, problem, scale)
        ctx.rule, ctx.problem, ctx.scale = rule, problem, scale
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        problem, (a, b, n, m) = ctx.problem, ctx.problem.shape
        x, y = problem.x.detach(), problem.y.detach()
        grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y, dtype=torch.float64)
        scale = ctx.scale.expand(a, b)
        step = max(1, CHUNK // 8 // (b * n * m))
        for start in range(0, a, step):
            rows = slice(start, min(start + step, a))
            with torch.enable_grad():
                part, other = x[rows].double().requires_grad_(), y.double().requires_grad_()
                table = squared_distance(part[:, None], other[None])
            slope = _slopes(
                ctx.rule,
                table.detach().flatten(0, 1),
                problem.len_x[rows].repeat_interleave(b),
                problem.len_y.repeat(len(part)),
                scale[rows].flatten(),
            )
            slope = slope.view_as(table) * grad[rows][..., None, None]
            into_x, into_y = torch.autograd.grad(table, (part, other), slope)
            grad_x[rows] += into_x
            grad_y += into_y
        return None, None, None, grad_x, grad_y.to(y.dtype)


class _Tables(torch.autograd.Function):
    """Values "p" of given cost tables "p n m", by KeOps or by plain torch; differentiable in the tables."""

    @staticmethod
    def forward(ctx, rule: str, engine: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(d, len_x, len_y, scale)
        if engine == "keops":
            return _keops_tables(rule, d, len_x, len_y, scale)
        return _torch_tables(rule, d, len_x, len_y, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        d, len_x, len_y, scale = ctx.saved_tensors
        slope = _slopes(ctx.rule, d.double(), len_x, len_y, scale) * grad[:, None, None]
        return None, None, slope.to(d.dtype), None, None, None


# ---- KeOps ----------------------------------------------------------------------------------------------------------


def _bucket(length: int) -> int:
    """8, 32, 128, 512, ...: each new shape would compile for seconds. What is padded is never computed."""
    return 8 * 4 ** max(0, math.ceil(math.log2(length / 8) / 2))


def _bucket_dim(dim: int) -> int:
    """2, 4, 8, 16, 32, 48, ..."""
    return max(2, 1 << (dim - 1).bit_length()) if dim <= 16 else -(-dim // 16) * 16


def _lanes(x: Tensor) -> int:
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


def _shift(*sequences: tuple[Tensor, Tensor]) -> Tensor | None:
    """The mean "dim" of all elements of (x, lengths), ..., where inner products would cancel for it; else None."""
    count = sum(int(lengths.sum()) for _, lengths in sequences)
    mean = sum(x.sum((0, 1)) for x, _ in sequences) / count
    square = sum(float(torch.linalg.vector_norm(x)) ** 2 for x, _ in sequences) / count
    return mean if float(torch.linalg.vector_norm(mean)) ** 2 > square / 16 else None


def _operands(x: Tensor, lengths: Tensor, shift: Tensor | None, wide: bool, n: int, dim: int) -> dict[str, Tensor]:
    """The variables of `ops.Align` for one side, by the prefix of their names, a row each item of `x` "a len dim"."""
    padded = _pad(x, n, dim).reshape(len(x), n * dim)
    operands = {"": padded, "len_": lengths.to(x.dtype)[:, None]}
    if wide:
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        if shift is not None:
            x = torch.where(inside[..., None], x - shift, 0)
            padded = _pad(x, n, dim).reshape(len(x), n * dim)
        norms = torch.where(inside, x.square().sum(-1), 1)
        norms = torch.nn.functional.pad(norms, (0, n - norms.shape[1]), value=1)
        operands |= {"shifted_": padded, "norm_": norms}
    return operands


def _align(rule: str, variables: dict[str, Tensor], n: int, m: int, dim: int, lanes: int) -> Tensor:
    """One call of `ops.Align` with its variables by name; with `task` all others are parameters."""
    ops, cost = engines.operations(), "indexed" if "task" in variables else "points"
    aliases, args = [], []
    for name in ops.align_names(rule, cost, dim):
        kind = "Pm" if cost == "indexed" and name != "task" else "Vj" if name.endswith("y") else "Vi"
        args.append(variables[name])
        aliases.append(f"{name}={kind}({args[-1].shape[-1]})")
    formula = ops.align_formula(rule, cost, False, n, m, dim, lanes)
    return _read(rule, engines.reduce(formula, aliases, *args), lanes)


def _keops_points(rule: str, problem: _Problem, scale: Tensor) -> Tensor:
    """One KeOps call over all blocks of `lanes` sequences y and all x (or those not after the block, if y is x)."""
    x, len_x, len_y = problem.x.detach(), problem.len_x, problem.len_y
    y = x if problem.y is problem.x else problem.y.detach()
    a, b, n, m = problem.shape
    dim = x.shape[-1]
    lanes = _lanes(x)
    n_pad, m_pad = _bucket(n), _bucket(m)
    dim_pad = _bucket_dim(dim)
    blocks = -(-b // lanes)
    b_pad = blocks * lanes

    # Sequences of like length share a block.
    ragged = not problem.full and (len_y.min() != len_y.max() or len_x.min() != len_x.max())
    order = len_y.argsort() if ragged else None
    x_order = order if problem.symmetric else None
    if x_order is not None:
        x, len_x = x[x_order], len_x[x_order]
    if order is not None:
        y, len_y = (x, len_x) if x_order is not None else (y[order], len_y[order])
    power = (scale * LOG2E).to(x.dtype)
    if power.numel() > 1:
        power = power.expand(a, b)
        power = power if x_order is None else power[x_order]
        power = power if order is None else power[:, order]
        power = _pad(power, b_pad).view(a, blocks, lanes).transpose(0, 1).contiguous()

    wide = engines.operations().is_wide("indexed", dim_pad)
    sides = ((x, len_x),) if y is x else ((x, len_x), (y, len_y))
    shift = _shift(*sides) if wide else None
    rows = _operands(x, len_x, shift, wide, n_pad, dim_pad)
    columns = rows if y is x and len_y is len_x else _operands(y, len_y, shift, wide, m_pad, dim_pad)
    columns = {
        side: _lanes_last(values, lanes, side in ("norm_", "len_"))
        for side, values in columns.items()
        if side != "shifted_" or shift is not None
    }
    if wide and shift is None:
        columns["shifted_"] = columns[""]
    if x.is_cuda:  # one launch: the blocks are a batch dimension
        variables = {f"{side}x": values[None] for side, values in rows.items()}
        variables |= {f"{side}y": values[:, None] for side, values in columns.items()}
        variables["scale"] = power if power.numel() > 1 else power.expand(1, a, 1)
        values = _align(rule, variables, n_pad, m_pad, dim_pad, lanes)
        values = values.view(blocks, a, lanes).transpose(0, 1).reshape(a, b_pad)[:, :b]
        if problem.symmetric:
            values = values.triu() + values.triu(1).T
    else:
        tasks, place = _tasks(a, blocks, lanes, problem.symmetric, power.numel() > 1, x.dtype)
        variables = {f"{side}x": values for side, values in rows.items()}
        variables |= {f"{side}y": values for side, values in columns.items()}
        variables["scale"] = power.reshape(-1, lanes) if power.numel() > 1 else power.expand(1, lanes)
        out = _align(rule, variables | {"task": tasks}, n_pad, m_pad, dim_pad, lanes)
        values = out.view(-1).index_select(0, place).view(a, b_pad)[:, :b]
    if order is not None:
        back = order.argsort()
        values = values[:, back] if x_order is None else values[back][:, back]
    if rule == "soft":
        values = _mend_soft(values, problem, scale, n_pad, m_pad)
    return values


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


def _keops_own(x: Tensor, lengths: Tensor, item: Tensor, scale: Tensor) -> Tensor:
    """log K(x,x) "p" of the items `item` "p" (ascending) of `x` at the scales "p"; a block is one item in all lanes."""
    lanes, dim = _lanes(x), x.shape[-1]
    n_pad, dim_pad = _bucket(x.shape[1]), _bucket_dim(dim)
    wide = engines.operations().is_wide("indexed", dim_pad)
    shift = _shift((x, lengths)) if wide else None
    values = []
    for items in torch.arange(len(x)).split(max(1, 4 * CHUNK // (n_pad * dim_pad * lanes))):
        inside = (item >= items[0]) & (item <= items[-1])
        own, power = item[inside] - items[0], scale[inside] * LOG2E
        count = torch.bincount(own, minlength=len(items))
        blocks = (count + lanes - 1) // lanes
        rank = torch.arange(len(own)) - (count.cumsum(0) - count)[own]
        block, lane = (blocks.cumsum(0) - blocks)[own] + rank // lanes, rank % lanes
        scales = x.new_ones(int(blocks.sum()), lanes)
        scales[block, lane] = power.to(x.dtype)
        row, place = torch.arange(len(items)).repeat_interleave(blocks), torch.arange(len(scales))
        index = engines.operations().INDEX
        tasks = torch.stack([row, row, place // index, place % index], 1).to(x.dtype)
        rows = _operands(x[items], lengths[items], shift, wide, n_pad, dim_pad)
        variables = {f"{side}x": of for side, of in rows.items()}
        variables |= {f"{side}y": of[..., None].expand(-1, -1, lanes).flatten(1) for side, of in rows.items()}
        variables |= {"scale": scales, "task": tasks}
        values.append(_align("gak", variables, n_pad, n_pad, dim_pad, lanes)[block, lane])
    return torch.cat(values)


def _keops_tables(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
    """KeOps over given tables "p n m", a lane a table."""
    p, n, m = d.shape
    lanes = _lanes(d)
    n_pad, m_pad, p_pad = _bucket(n), _bucket(m), -(-p // lanes) * lanes

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
            values[lost] = _torch_tables(rule, d[lost], len_x[lost], len_y[lost], scale[lost])
    return values


def _read(rule: str, out: Tensor, lanes: int) -> Tensor:
    """The operation's output "... (part lane)" as natural logarithms (or costs) "... lane" in float64."""
    if rule == "dtw":
        return out.double()
    return torch.add(out[..., :lanes].log(), out[..., lanes:].double(), alpha=math.log(2))


def _mend_soft(values: Tensor, problem: _Problem, scale: Tensor, n: int, m: int) -> Tensor:
    """Pairs whose costs left the operation's range (beyond millions of gamma) are done in the log domain instead."""
    dtype = "float" if problem.dtype == torch.float32 else "double"
    least = -engines.operations().largest_cost(dtype, n, m) / LOG2E
    if float(values.min()) > least:
        return values
    rows, columns = (values <= least).nonzero(as_tuple=True)
    step = max(1, CHUNK // (problem.shape[2] * problem.shape[3]))
    for start in range(0, len(rows), step):
        i, j = rows[start : start + step], columns[start : start + step]
        d = squared_distance(problem.x[i].detach().double(), problem.y[j].detach().double())
        values[i, j] = _torch_tables("soft", d, problem.len_x[i], problem.len_y[j], scale.expand(values.shape)[i, j])
    return values


# ---- torch: anti-diagonals in the log domain, float64 ---------------------------------------------------------------


def _negative_log(rule: str, d: Tensor, scale: Tensor) -> Tensor:
    """-log of the local kernel of tables "p n m" (float64)."""
    if rule == "dtw":
        return d
    t = d * scale[:, None, None]
    return t + torch.log(2 - torch.exp(-t)) if rule == "gak" else t


def _torch_tables(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
    cost = _negative_log(rule, d.detach().double(), scale.double())
    start = torch.zeros_like(len_x)
    table = _sweep(cost, start, start, hard=rule == "dtw")
    values = table[torch.arange(len(d), device=d.device), len_x - 1, len_y - 1]
    return -values if rule == "dtw" else values


def _sweep(cost: Tensor, source_i: Tensor, source_j: Tensor, hard: bool) -> Tensor:
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


def _passing(rule: str, cost: Tensor, len_x: Tensor, len_y: Tensor) -> Tensor:
    """Probability "p n m" that an alignment passes each cell (dtw: 1 on one best path), from -log kernels."""
    p, n, m = cost.shape
    zero = torch.zeros_like(len_x)
    forward = _sweep(cost, zero, zero, hard=rule == "dtw")
    item = torch.arange(p, device=cost.device)
    if rule != "dtw":
        flipped = cost.flip(1, 2)
        backward = _sweep(flipped, n - len_x, m - len_y, hard=False).flip(1, 2)
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


def _slopes(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
    """The derivative "p n m" of the value by each local cost d (float64)."""
    scale = scale.double()
    passing = _passing(rule, _negative_log(rule, d, scale), len_x, len_y)
    if rule == "dtw":
        return passing
    rate = scale[:, None, None]
    if rule == "gak":  # d/dd of t + log(2 - e^-t) is 2 / (2 - e^-t)
        rate = rate * 2 / (2 - torch.exp(-d * rate))
    return -passing * rate


# ---- input ----------------------------------------------------------------------------------------------------------


def _lengths(x: Tensor, lengths: Tensor | None, name: str) -> Tensor:
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


def _silence(x: Tensor, lengths: Tensor | None, name: str) -> Tensor:
    """`x` with zeros behind the true lengths (None: all full); refuses what is not finite within them."""
    if lengths is not None and int(lengths.min()) < x.shape[1]:
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        x = torch.where(inside[..., None], x, 0)
    # A finite sum has finite terms only, and is quicker; an infinite one may have overflowed.
    if not (math.isfinite(float(x.detach().sum())) or bool(x.detach().isfinite().all())):
        raise ValueError(f"{name} holds NaN or infinite numbers within the true lengths; it must be finite.")
    return x
