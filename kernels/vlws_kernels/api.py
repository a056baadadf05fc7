"""Alignment kernels between batches of ragged sequences: GAK, soft-DTW, DTW, with gradients, and the alignments.

All take `x` "a len_x dim" and `y` "b len_y dim", float32 or float64, true lengths `len_x` "a" and `len_y` "b" (None:
all full), and return the "a b" matrix in the dtype of `x`. `y=None` compares `x` with itself and computes half of it.
What stands behind a sequence's true length never changes a value. The local cost d of two elements is the squared
Euclidean distance, or the modality-aware distance of `triple_distance` where `modality_x`, `modality_y` and `split` are
given, or a table `distance` "a b len_x len_y" of your own.

Sources: M. Cuturi, Fast global alignment kernels, ICML 2011 (GAK, the half-Gaussian local kernel); M. Cuturi and
M. Blondel, Soft-DTW, ICML 2017, equation 2 and algorithms 1 and 2; H. Sakoe and S. Chiba, 1978 (DTW).
"""

import torch
from torch import Tensor

from vlws_kernels import engine as engines
from vlws_kernels import torch_engine
from vlws_kernels.costs import squared_distance
from vlws_kernels.inputs import Problem
from vlws_kernels.public import public
from vlws_kernels.solve import self_kernels, solve


@public
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

    >>> x = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [9.0]]])  # two sequences of three numbers
    >>> gak(x).shape
    torch.Size([2, 2])
    >>> gak(x).diagonal().tolist()  # normalised: each is equal to itself
    [1.0, 1.0]
    >>> bool(gak(x, sigma=0.5)[0, 1] < gak(x, sigma=5.0)[0, 1])  # a wide kernel sees less of a difference
    True
    """
    problem = Problem(x, y, len_x, len_y, modality_x, modality_y, split, distance)
    sigma, engine = problem.per_pair(sigma, "sigma"), engines.choose(engine, x)
    if normalize and distance is not None:
        raise ValueError("normalize=True needs K(x,x) and K(y,y), which a table `distance` does not hold; pass False.")
    with engines.threads(problem.small):
        scale = 0.5 * sigma**-2
        log_k = solve(problem, engine, "gak", scale)
        if normalize:
            own = self_kernels(problem, engine, scale, log_k, 0)
            both = own + (own.T if problem.symmetric else self_kernels(problem, engine, scale, log_k, 1))
            log_k = torch.sub(log_k, both, alpha=0.5)
        return (log_k if log else log_k.exp()).to(problem.dtype)


@public
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

    >>> x, y = torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[[0.0], [0.0], [2.0]]])
    >>> dtw(x, y).item(), round(soft_dtw(x, y, gamma=0.01).item(), 2), round(soft_dtw(x, y, gamma=1.0).item(), 2)
    (1.0, 0.99, -0.46)
    >>> round(soft_dtw(torch.zeros(1, 3, 1)).exp().pow(-1).item())  # 13 alignments of three with three, all at no cost
    13
    """
    problem = Problem(x, y, len_x, len_y, modality_x, modality_y, split, distance)
    gamma, engine = problem.per_pair(gamma, "gamma"), engines.choose(engine, x)
    with engines.threads(problem.small):
        return (-gamma * solve(problem, engine, "soft", 1.0 / gamma)).to(problem.dtype)


@public
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

    >>> x = torch.tensor([[[0.0], [3.0], [3.0]]])
    >>> y = torch.tensor([[[0.0], [0.0], [3.0]], [[1.0], [4.0], [0.0]]])
    >>> dtw(x, y).tolist()  # the first differs in speed alone
    [[0.0, 11.0]]
    >>> dtw(x, y, len_y=torch.tensor([3, 2])).tolist()  # the second without its last element
    [[0.0, 3.0]]
    """
    problem = Problem(x, y, len_x, len_y, modality_x, modality_y, split, distance)
    engine = engines.choose(engine, x)
    with engines.threads(problem.small):
        scale = torch.ones(1, 1, dtype=torch.float64, device=x.device)
        return solve(problem, engine, "dtw", scale).to(problem.dtype)


@public
def expected_alignment(
    x: Tensor, y: Tensor, *, gamma: float | None = None, sigma: float | None = None, distance: Tensor | None = None
) -> Tensor:
    """Of one pair "n dim", "m dim": the probability "n m" that an alignment passes through each cell.

    Give `gamma` (soft-DTW) or `sigma` (GAK). It is the gradient of soft-DTW with respect to the cost table, which
    `distance` "n m" may replace. Computed in float64 on the device of `x`, returned in the dtype of `x`.

    >>> x, y = torch.tensor([[0.0], [5.0]]), torch.tensor([[0.0], [0.0], [5.0]])
    >>> expected_alignment(x, y, gamma=0.1).round(decimals=2).tolist()
    [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if (gamma is None) == (sigma is None):
        raise ValueError("give either gamma (soft-DTW) or sigma (GAK) for the expected alignment, and not both.")
    d, len_x, len_y = one_table(x, y, distance)
    rule, scale = ("soft", 1 / gamma) if sigma is None else ("gak", 0.5 / sigma**2)
    cost = torch_engine.negative_log(rule, d, torch.tensor([scale], dtype=torch.float64, device=x.device))
    return torch_engine.occupancy(rule, cost, len_x, len_y)[0].to(x.dtype)


@public
def alignment_path(x: Tensor, y: Tensor, *, distance: Tensor | None = None) -> Tensor:
    """Of one pair "n dim", "m dim": a best DTW alignment, "step 2", index pairs from (0, 0) to (n-1, m-1).

    >>> alignment_path(torch.tensor([[0.0], [5.0]]), torch.tensor([[0.0], [0.0], [5.0]])).tolist()
    [[0, 0], [0, 1], [1, 2]]
    """
    return torch_engine.occupancy("dtw", *one_table(x, y, distance))[0].nonzero()


def one_table(x: Tensor, y: Tensor, distance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The cost table "1 n m" of one pair in float64, and its two lengths "1", all on the device of `x`."""
    d = squared_distance(x.double(), y.double()) if distance is None else distance.to(x.device).double()
    len_x, len_y = (torch.tensor([size], device=x.device) for size in d.shape)
    return d[None], len_x, len_y
