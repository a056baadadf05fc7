"""Reductions over all pairs of points that never hold the n x m matrix: nearest neighbours, late interaction,
contrastive loss, clustering, discrepancy.

Points are "n dim", float32 or float64. Two engines do the work in pieces: `keops` one pair at a time in registers, and
`torch` a tile of the matrix at a time through BLAS, which a general formula cannot beat on a CPU. With `engine=None`
the quicker is taken: tiles on a CPU, KeOps on a GPU. `reference` is dense float64. All but `kmeans` are
differentiable; the gradient recomputes tile by tile.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlws_kernels import engine as engines

TILE = 2**20  # numbers of the matrix held at once: a few megabytes stay in a CPU's cache
SMALL = 2**18  # numbers of the points and scores of one k-means step: less is done on one thread
FOLD = 16  # lines that a row of the matrix is folded into where its least numbers are sought
SPARE = 4  # candidates beyond k that are compared exactly, since |x|^2 + |y|^2 - 2xy cancels


def knn(x: Tensor, y: Tensor, k: int, *, engine: str | None = None) -> tuple[Tensor, Tensor]:
    """The `k` nearest `y` "m dim" of each `x` "n dim": Euclidean distances "n k", ascending, and indices "n k" (int64).

    Distances are those of the differences, exact for near points; they are differentiable in x and y.
    """
    _check_points(x=x, y=y)
    if not 1 <= k <= len(y):
        raise ValueError(f"k is {k}; it must lie between 1 and the {len(y)} points of y.")
    engine = _choose(engine, x)
    with torch.no_grad():
        shift = y.mean(0)
        wide = min(len(y), k + SPARE)
        candidates = _NEAREST[engine](x - shift, y - shift, wide)
        exact = _distances(x, y, candidates)
        distances, order = exact.sort(dim=1, stable=True)
        distances, indices = distances[:, :k], candidates.gather(1, order[:, :k])
    wanted = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    return (_distances(x, y, indices) if wanted else distances), indices


def nearest_code(x: Tensor, codes: Tensor, *, engine: str | None = None) -> tuple[Tensor, Tensor]:
    """The nearest of `codes` "m dim" to each `x` "n dim": Euclidean distance "n" and index "n" (int64)."""
    _check_points(x=x, codes=codes)
    with torch.no_grad():
        shift = codes.mean(0)
        index = _NEAREST[_choose(engine, x)](x - shift, codes - shift, 1)
    return _distances(x, codes, index)[:, 0], index[:, 0]


def kmeans(
    x: Tensor, k: int, *, iterations: int = 100, tolerance: float = 1e-4, seed: int = 0, engine: str | None = None
) -> tuple[Tensor, Tensor, float]:
    """Lloyd's k-means from a k-means++ start (Arthur and Vassilvitskii 2007): centres "k dim", labels "n", inertia.

    Stops after `iterations` or when the centres move by less than `tolerance` times the data's standard deviation. A
    cluster that empties takes the point farthest from its centre. The same seed gives the same result.
    """
    _check_points(x=x)
    if not 1 <= k <= len(x):
        raise ValueError(f"k is {k}; it must lie between 1 and the {len(x)} points of x.")
    x = x.detach()
    engine = _choose(engine, x)
    generator = torch.Generator().manual_seed(seed)
    with engines.threads(len(x) * (k + x.shape[1]) <= SMALL):
        x, mean = x - x.mean(0), x.mean(0)  # distances do not change, their rounding errors do
        centres = _start(x, k, generator)
        spread = float(torch.linalg.vector_norm(x)) / len(x) ** 0.5
        for _ in range(iterations):
            labels = _NEAREST[engine](x, centres, 1)[:, 0]
            counts = torch.bincount(labels, minlength=k)
            new = torch.zeros_like(centres).index_add_(0, labels, x).div_(counts[:, None])
            empty = int(counts.min()) == 0
            if empty:
                gone = (counts == 0).nonzero()[:, 0]
                new[gone] = x[_distances(x, centres, labels[:, None])[:, 0].topk(len(gone)).indices]
            moved = float(torch.linalg.vector_norm(new - centres))
            centres = new
            if moved <= tolerance * spread and not empty:
                break
        distances, labels = nearest_code(x, centres, engine=engine)
        return centres + mean, labels, float(distances.double().square().sum())


def max_sim(
    x: Tensor,
    y: Tensor,
    len_x: Tensor | None = None,
    len_y: Tensor | None = None,
    *,
    engine: str | None = None,
) -> Tensor:
    """Late interaction "a b" of token embeddings `x` "a n dim" and `y` "b m dim": sum over x of the best dot product.

    O. Khattab and M. Zaharia, ColBERT, SIGIR 2020, equation 3. Tokens behind the true lengths are left out.
    """
    from vlws_kernels.alignment import _lengths, _silence

    for name, tensor in (("x", x), ("y", y)):
        if tensor.dim() != 3 or 0 in tensor.shape or tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype}; it must be (items, tokens, dim) of floats."
            )
    if x.shape[-1] != y.shape[-1] or x.dtype != y.dtype:
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype} and y is {tuple(y.shape)} {y.dtype}; dim and dtype differ.")
    len_x, len_y = _lengths(x, len_x, "len_x"), _lengths(y, len_y, "len_y")
    x, y = _silence(x, len_x, "x"), _silence(y, len_y, "y")
    inside_x = torch.arange(x.shape[1], device=x.device) < len_x[:, None]
    outside_y = torch.arange(y.shape[1], device=y.device) >= len_y[:, None]
    full = not bool(outside_y.any())
    n, m = x.shape[1], y.shape[1]
    engine = _choose(engine, x)

    def dense(x: Tensor, y: Tensor, inside_x: Tensor, outside_y: Tensor) -> Tensor:
        dots = torch.mm(x.flatten(0, 1), y.flatten(0, 1).T).view(len(x), n, len(y), m)
        dots = dots if full else dots.masked_fill(outside_y, -torch.inf)
        return (dots.amax(-1) * inside_x[..., None]).sum(1)

    def tiled(x: Tensor, y: Tensor) -> Tensor:
        side = _side(x)
        columns = list(_rows(max(1, side // m), y, outside_y))
        return torch.cat(
            [
                torch.cat([_piece(dense, part, other, keep, hide) for other, hide in columns], 1)
                for part, keep in _rows(max(1, side // n), x, inside_x)
            ]
        )

    def keops(x: Tensor, y: Tensor) -> Tensor:
        dim = x.shape[-1]
        cut = (outside_y.to(x.dtype) * torch.finfo(x.dtype).min)[..., None]
        aliases = [f"x=Vi({dim})", f"y=Vj({dim})", "cut=Vj(1)"]
        best = engines.reduce("(x|y)+cut", aliases, x.reshape(1, -1, dim), y, cut, reduction="Max")
        return (best.view(len(y), len(x), n) * inside_x).sum(-1).T

    if engine == "reference":
        return dense(x.double(), y.double(), inside_x, outside_y).to(x.dtype)
    return tiled(x, y) if engine == "torch" else _Recomputed.apply(keops, tiled, x, y)


def info_nce(x: Tensor, y: Tensor, temperature: float | Tensor = 0.07, *, engine: str | None = None) -> Tensor:
    """Symmetric contrastive loss (scalar) of matching rows `x` "n dim" and `y` "n dim".

    The mean over both directions of -log softmax(x y^T / temperature) on the diagonal (van den Oord et al. 2018; CLIP,
    Radford et al. 2021, figure 3). Rows are used as given: normalise them first for cosine similarity.
    Differentiable in x, y and, if it is a tensor, the temperature.
    """
    _check_points(x=x, y=y)
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}; row i of one must match row i of the other.")
    temperature = torch.as_tensor(temperature, dtype=x.dtype, device=x.device)
    if temperature.dim() or not float(temperature.detach()) > 0:
        raise ValueError(f"temperature is {temperature}; it must be one number > 0.")
    engine = _choose(engine, x)

    def lines(x: Tensor, y: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        logits = (x * rate) @ y.T
        return logits.logsumexp(1), logits.logsumexp(0)

    def loss(rows: Tensor, columns: Tensor, x: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return 0.5 * (rows.mean() + columns.mean()) - (x * y).sum(1).mean() * rate

    def tiled(x: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        side = _side(x)
        rows, columns = x.new_full((len(x),), -torch.inf), y.new_full((len(y),), -torch.inf)
        rows, columns = list(rows.split(side)), list(columns.split(side))
        for i, part in enumerate(x.split(side)):
            for j, other in enumerate(y.split(side)):
                row, column = _piece(lines, part, other, rate)
                rows[i], columns[j] = torch.logaddexp(rows[i], row), torch.logaddexp(columns[j], column)
        return loss(torch.cat(rows), torch.cat(columns), x, y, rate)

    def keops(x: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        dim = x.shape[1]
        aliases = [f"x=Vi({dim})", f"y=Vj({dim})"]
        x_scaled, y_scaled = x * rate, y * rate
        rows, columns = (
            engines.reduce("(x|y)", aliases, one, other, reduction="LogSumExp")[:, 0]
            for one, other in ((x_scaled, y), (y_scaled, x))
        )
        return loss(rows, columns, x, y, rate)

    if engine == "reference":
        x64, y64, rate = x.double(), y.double(), 1 / temperature.double()
        return loss(*lines(x64, y64, rate), x64, y64, rate).to(x.dtype)
    rate = 1 / temperature
    return tiled(x, y, rate) if engine == "torch" else _Recomputed.apply(keops, tiled, x, y, rate)


def mmd(
    x: Tensor, y: Tensor, sigma: float | Sequence[float] = 1.0, *, unbiased: bool = True, engine: str | None = None
) -> Tensor:
    """Squared maximum mean discrepancy (scalar) of samples `x` "n dim" and `y` "m dim" under a Gaussian kernel.

    k(u, v) = exp(-|u-v|^2 / (2 sigma^2)), averaged over the widths if `sigma` holds several. `unbiased` leaves out
    the pairs of a point with itself (Gretton et al. 2012, equation 3, may be negative); else equation 5.
    """
    _check_points(x=x, y=y)
    widths = [float(s) for s in (sigma if isinstance(sigma, Sequence) else [sigma])]
    if not widths or not all(0 < s < float("inf") for s in widths):
        raise ValueError(f"sigma is {sigma}; it must be a number > 0, or several.")
    if unbiased and min(len(x), len(y)) < 2:
        raise ValueError(f"the unbiased estimate needs 2 points on each side; x has {len(x)} and y has {len(y)}.")
    rates = [0.5 / s**2 for s in widths]
    engine = _choose(engine, x)

    def dense(left: Tensor, right: Tensor) -> Tensor:
        """Sum (float64) of one tile; exponents stop short of the numbers below normal, which are slow."""
        d = (left @ right.T).clamp_min_(0)
        floor = math.log(torch.finfo(d.dtype).tiny)
        return sum(torch.exp_((d * -rate).clamp_min_(floor)).sum(dtype=torch.float64) for rate in rates) / len(rates)

    def tiled(x: Tensor, y: Tensor) -> Tensor:
        left, right = _factors(x, y)
        side = _side(x)
        if x is not y:
            return sum(_piece(dense, part, other) for part in left.split(side) for other in right.split(side))
        lefts, rights = left.split(side), right.split(side)  # the halves above and below the diagonal are the same
        return sum(
            (1 if i == j else 2) * _piece(dense, part, other)
            for i, part in enumerate(lefts)
            for j, other in enumerate(rights[i:], i)
        )

    def keops(x: Tensor, y: Tensor) -> Tensor:
        dim = x.shape[1]
        rate = torch.tensor(rates, dtype=x.dtype, device=x.device)
        formula = "Sum(Exp(-(rates*SqDist(x,y))))"
        aliases = [f"x=Vi({dim})", f"y=Vj({dim})", f"rates=Pm({len(rates)})"]
        return engines.reduce(formula, aliases, x, y, rate).sum(dtype=torch.float64) / len(rates)

    def total(x: Tensor, y: Tensor) -> Tensor:
        if engine == "reference":
            return dense(*_factors(x.double(), y.double()))
        return tiled(x, y) if engine == "torch" else _Recomputed.apply(keops, tiled, x, y)

    shift = torch.cat([x.detach(), y.detach()]).mean(0)  # distances do not change, their rounding errors do
    x, y = x - shift, y - shift
    n, m = len(x), len(y)
    own_x, own_y = total(x, x), total(y, y)
    if unbiased:
        own_x, own_y = (own_x - n) / (n * (n - 1)), (own_y - m) / (m * (m - 1))
    else:
        own_x, own_y = own_x / n**2, own_y / m**2
    return (own_x + own_y - 2 * total(x, y) / (n * m)).to(x.dtype)


def _check_points(**points: Tensor) -> None:
    for name, tensor in points.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, torch.float64):
            given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} is {given}; it must be a torch tensor of float32 or float64.")
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be (points, dim), nothing empty.")
        # A finite sum has finite terms only, and is quicker; an infinite one may have overflowed.
        if not bool(tensor.detach().sum().isfinite() or tensor.detach().isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinite numbers; it must be finite.")
    first, *rest = points.values()
    for other in rest:
        if other.shape[1] != first.shape[1] or other.dtype != first.dtype or other.device != first.device:
            raise ValueError(
                f"x is {tuple(first.shape)} {first.dtype} on {first.device} and y is {tuple(other.shape)} "
                f"{other.dtype} on {other.device}; dim, dtype and device must agree."
            )


def _choose(engine: str | None, x: Tensor) -> str:
    if engine is None and not x.is_cuda:
        return "torch"
    return engines.choose(engine, x)


def _side(x: Tensor) -> int:
    """Rows and columns of a square tile; a GPU wants few large ones."""
    return max(1, math.isqrt(64 * TILE if x.is_cuda else TILE))


def _rows(step: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(step) for tensor in tensors), strict=True)


def _piece(function: Callable, *tensors: Tensor):
    """One tile; where a gradient is wanted, its matrix is formed again in the backward pass instead of kept."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return checkpoint(function, *tensors, use_reentrant=False)
    return function(*tensors)


class _Recomputed(torch.autograd.Function):
    """`fast(*tensors)` forward; the gradient is that of `tiled(*tensors)`, the same function in torch."""

    @staticmethod
    def forward(ctx, fast: Callable, tiled: Callable, *tensors: Tensor) -> Tensor:
        ctx.tiled = tiled
        ctx.save_for_backward(*tensors)
        return fast(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_(want) for t, want in zip(ctx.saved_tensors, wanted, strict=True)]
            value = ctx.tiled(*tensors)
        grads = iter(torch.autograd.grad(value, [t for t in tensors if t.requires_grad], grad))
        return None, None, *(next(grads) if want else None for want in wanted)


def _factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices whose product left right^T is the squared distances: the norms ride along as two more columns."""
    one_x, one_y = x.new_ones(len(x), 1), y.new_ones(len(y), 1)
    left = torch.cat([-2 * x, x.square().sum(1, keepdim=True), one_x], 1)
    return left, torch.cat([y, one_y, y.square().sum(1, keepdim=True)], 1)


def _distances(x: Tensor, y: Tensor, indices: Tensor) -> Tensor:
    """Euclidean distances "n k" of each x to its own k rows of y, from the differences."""
    k, dim = indices.shape[1], x.shape[1]
    step = max(1, TILE // (k * dim))
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return torch.cat([(part[:, None] - y[pick]).norm(dim=-1) for part, pick in _rows(step, x, indices)])
    distances = x.new_empty(indices.shape)
    held = x.new_empty(min(step, len(x)) * k, dim)  # one buffer: fresh memory costs more than the arithmetic
    for part, pick, out in _rows(step, x.detach(), indices, distances):
        near = torch.index_select(y.detach(), 0, pick.flatten(), out=held[: len(part) * k])
        torch.linalg.vector_norm(near.view(len(part), k, dim).sub_(part[:, None]), dim=-1, out=out)
    return distances


def _start(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The centres "k dim" of k-means++: each further point is drawn by its squared distance to the nearest so far."""
    first = int(torch.randint(len(x), (1,), generator=generator))
    draws = torch.rand(k, generator=generator, dtype=torch.float64).to(x.device)
    chosen, closest, held = [first], torch.full_like(x[:, 0], torch.inf), torch.empty_like(x)
    for draw in draws[1:]:
        away = torch.linalg.vector_norm(torch.sub(x, x[chosen[-1]], out=held), dim=1)
        closest = torch.minimum(closest, away.square_())
        total = closest.cumsum(0, dtype=torch.float64)
        if not float(total[-1]) > 0:  # fewer distinct points than k
            total = torch.arange(1, len(x) + 1, device=x.device, dtype=torch.float64)
        chosen.append(min(int(torch.searchsorted(total, draw * total[-1], right=True)), len(x) - 1))
    return x[chosen]


def _nearest_torch(x: Tensor, y: Tensor, k: int) -> Tensor:
    half = 0.5 * y.square().sum(1)
    step = max(1, TILE // len(y))
    nearest = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    held = x.new_empty(min(step, len(x)), len(y))
    for part, out in _rows(step, x, nearest):
        score = torch.addmm(half, part, y.T, alpha=-1, out=held[: len(part)])
        out.copy_(score.argmin(1, keepdim=True) if k == 1 else _least(score, k))
    return nearest


def _least(score: Tensor, k: int) -> Tensor:
    """Indices "n k" of the k least of each row, ascending.

    A row is folded into FOLD lines: its k least lie in the k columns of the least minima (or in what the fold leaves
    over), and minima are far quicker to take than a sort of the whole row.
    """
    m = score.shape[1]
    width = m // FOLD
    if width < 4 * k:
        return score.topk(k, largest=False).indices
    folded = score[:, : FOLD * width].unflatten(1, (FOLD, width))
    columns = folded.amin(1).topk(k, largest=False, sorted=False).indices
    lines = torch.arange(0, FOLD * width, width, device=score.device)[:, None]
    rest = torch.arange(FOLD * width, m, device=score.device)
    index = torch.cat([(columns[:, None] + lines).flatten(1), rest.expand(len(score), -1)], 1)
    return index.gather(1, score.gather(1, index).topk(k, largest=False).indices)


def _nearest_keops(x: Tensor, y: Tensor, k: int) -> Tensor:
    aliases = [f"x=Vi({x.shape[1]})", f"y=Vj({y.shape[1]})"]
    return engines.reduce("SqDist(x,y)", aliases, x, y, reduction="ArgKMin", k=k).view(len(x), k)


def _nearest_reference(x: Tensor, y: Tensor, k: int) -> Tensor:
    return (
        torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False).indices
    )


_NEAREST = {"keops": _nearest_keops, "torch": _nearest_torch, "reference": _nearest_reference}
