"""Reductions over all pairs of points that never hold the n x m matrix: late interaction, InfoNCE, MMD.

Points are "n dim", float32 or float64. Two engines do the work in pieces: `keops` one pair at a time in registers, and
`torch` a tile of the matrix at a time through BLAS, which a general formula cannot beat on a CPU. With `engine=None`
the quicker is taken: tiles, but for few dimensions on a GPU. `reference` is dense float64. All are differentiable; the
gradient recomputes tile by tile.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlws_kernels import engine as engines
from vlws_kernels import tiles
from vlws_kernels.inputs import check_points, check_sequences, mask_padding, true_lengths
from vlws_kernels.public import public


@public
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

    >>> query = torch.eye(2)[None]  # one query of two tokens
    >>> pages = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.5, 0.5]]])
    >>> max_sim(query, pages).tolist()
    [[2.0, 1.5]]
    """
    check_sequences(x, y)
    len_x, len_y = true_lengths(x, len_x, "len_x"), true_lengths(y, len_y, "len_y")
    x, y = mask_padding(x, len_x, "x"), mask_padding(y, len_y, "y")
    inside_x = torch.arange(x.shape[1], device=x.device) < len_x[:, None]
    outside_y = torch.arange(y.shape[1], device=y.device) >= len_y[:, None]
    full = not bool(outside_y.any())
    n, m = x.shape[1], y.shape[1]
    engine = tiles.choose_engine(engine, x)

    def dense(x: Tensor, y: Tensor, inside_x: Tensor, outside_y: Tensor) -> Tensor:
        dots = torch.mm(x.flatten(0, 1), y.flatten(0, 1).T).view(len(x), n, len(y), m)
        dots = dots if full else dots.masked_fill(outside_y, -torch.inf)
        return (dots.amax(-1) * inside_x[..., None]).sum(1)

    def tiled(x: Tensor, y: Tensor) -> Tensor:
        side = tiles.side(x)
        columns = list(tiles.rows(max(1, side // m), y, outside_y))
        return torch.cat(
            [
                torch.cat([tiles.piece(dense, part, other, keep, hide) for other, hide in columns], 1)
                for part, keep in tiles.rows(max(1, side // n), x, inside_x)
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
    return tiled(x, y) if engine == "torch" else tiles.Recomputed.apply(keops, tiled, x, y)


@public
def info_nce(x: Tensor, y: Tensor, temperature: float | Tensor = 0.07, *, engine: str | None = None) -> Tensor:
    """Symmetric contrastive loss (scalar) of matching rows `x` "n dim" and `y` "n dim".

    The mean over both directions of -log softmax(x y^T / temperature) on the diagonal (van den Oord et al. 2018; CLIP,
    Radford et al. 2021, figure 3). Rows are used as given: normalise them first for cosine similarity.
    Differentiable in x, y and, if it is a tensor, the temperature.

    >>> rows = torch.eye(3)
    >>> info_nce(rows, rows).item() < 1e-5, info_nce(rows, rows.roll(1, dims=0)).item() > 10
    (True, True)
    >>> round(info_nce(torch.zeros(3, 2), torch.zeros(3, 2)).item(), 4)  # chance: log 3
    1.0986
    """
    check_points(x=x, y=y)
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}; row i of one must match row i of the other.")
    temperature = torch.as_tensor(temperature, dtype=x.dtype, device=x.device)
    if temperature.dim() or not float(temperature.detach()) > 0:
        raise ValueError(f"temperature is {temperature}; it must be one number > 0.")
    engine = tiles.choose_engine(engine, x)

    def lines(x: Tensor, y: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        logits = (x * rate) @ y.T
        return logits.logsumexp(1), logits.logsumexp(0)

    def loss(rows: Tensor, columns: Tensor, x: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return 0.5 * (rows.mean() + columns.mean()) - (x * y).sum(1).mean() * rate

    def tiled(x: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        side = tiles.side(x)
        rows, columns = x.new_full((len(x),), -torch.inf), y.new_full((len(y),), -torch.inf)
        rows, columns = list(rows.split(side)), list(columns.split(side))
        for i, part in enumerate(x.split(side)):
            for j, other in enumerate(y.split(side)):
                row, column = tiles.piece(lines, part, other, rate)
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
    return tiled(x, y, rate) if engine == "torch" else tiles.Recomputed.apply(keops, tiled, x, y, rate)


@public
def mmd(
    x: Tensor, y: Tensor, sigma: float | Sequence[float] = 1.0, *, unbiased: bool = True, engine: str | None = None
) -> Tensor:
    """Squared maximum mean discrepancy (scalar) of samples `x` "n dim" and `y` "m dim" under a Gaussian kernel.

    k(u, v) = exp(-|u-v|^2 / (2 sigma^2)), averaged over the widths if `sigma` holds several. `unbiased` leaves out
    the pairs of a point with itself (Gretton et al. 2012, equation 3, may be negative); else equation 5.

    >>> x = torch.linspace(0, 1, 50)[:, None]
    >>> mmd(x, x + 3).item() > 0.5
    True
    >>> abs(mmd(x, x, unbiased=False).item()) < 1e-6
    True
    """
    check_points(x=x, y=y)
    widths = [float(s) for s in (sigma if isinstance(sigma, Sequence) else [sigma])]
    if not widths or not all(0 < s < float("inf") for s in widths):
        raise ValueError(f"sigma is {sigma}; it must be a number > 0, or several.")
    if unbiased and min(len(x), len(y)) < 2:
        raise ValueError(f"the unbiased estimate needs 2 points on each side; x has {len(x)} and y has {len(y)}.")
    rates = [0.5 / s**2 for s in widths]
    engine = tiles.choose_engine(engine or "torch", x)  # KeOps's sum of a whole line would round too often

    def dense(left: Tensor, right: Tensor) -> Tensor:
        """Sum (float64) of one tile; exponents stop short of the numbers below normal, which are slow."""
        d = (left @ right.T).clamp_min_(0)
        floor = math.log(torch.finfo(d.dtype).tiny)
        return sum(torch.exp_((d * -rate).clamp_min_(floor)).sum(dtype=torch.float64) for rate in rates) / len(rates)

    def tiled(x: Tensor, y: Tensor) -> Tensor:
        left, right = _factors(x, y)
        side = tiles.side(x)
        if x is not y:
            return sum(tiles.piece(dense, part, other) for part in left.split(side) for other in right.split(side))
        lefts, rights = left.split(side), right.split(side)  # the halves above and below the diagonal are the same
        return sum(
            (1 if i == j else 2) * tiles.piece(dense, part, other)
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
        return tiled(x, y) if engine == "torch" else tiles.Recomputed.apply(keops, tiled, x, y)

    shift = torch.cat([x.detach(), y.detach()]).mean(0)  # distances do not change, their rounding errors do
    x, y = x - shift, y - shift
    n, m = len(x), len(y)
    own_x, own_y = total(x, x), total(y, y)
    if unbiased:
        own_x, own_y = (own_x - n) / (n * (n - 1)), (own_y - m) / (m * (m - 1))
    else:
        own_x, own_y = own_x / n**2, own_y / m**2
    return (own_x + own_y - 2 * total(x, y) / (n * m)).to(x.dtype)


def _factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices whose product left right^T is the squared distances: the norms ride along as two more columns."""
    one_x, one_y = x.new_ones(len(x), 1), y.new_ones(len(y), 1)
    left = torch.cat([-2 * x, x.square().sum(1, keepdim=True), one_x], 1)
    return left, torch.cat([y, one_y, y.square().sum(1, keepdim=True)], 1)
