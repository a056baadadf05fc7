"""Nearest neighbours and clustering of points that never hold the n x m matrix of distances.

Points are "n dim", float32 or float64. Engines as in `vlws_kernels.reductions`.
"""

import torch
from torch import Tensor

from vlws_kernels import engine as engines
from vlws_kernels import tiles
from vlws_kernels.inputs import check_points
from vlws_kernels.public import public

SMALL = 2**18  # numbers of the points and scores of one k-means step: less is done on one thread
FOLD = 16  # lines that a row of the matrix is folded into where its least numbers are sought
LEAST_ROWS = 256  # of a tile, where there are as many: fewer are slow to multiply
SPARE = 4  # candidates beyond k that are compared exactly, since |x|^2 + |y|^2 - 2xy cancels


@public
def knn(x: Tensor, y: Tensor, k: int, *, engine: str | None = None) -> tuple[Tensor, Tensor]:
    """The `k` nearest `y` "m dim" of each `x` "n dim": Euclidean distances "n k", ascending, and indices "n k" (int64).

    Distances are those of the differences, exact for near points; they are differentiable in x and y.

    >>> distance, index = knn(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]), k=2)
    >>> distance.tolist(), index.tolist()
    ([[1.0, 5.0]], [[1, 0]])
    """
    check_points(x=x, y=y)
    if not 1 <= k <= len(y):
        raise ValueError(f"k is {k}; it must lie between 1 and the {len(y)} points of y.")
    engine = tiles.choose_engine(engine, x)
    with torch.no_grad():
        shift = y.mean(0)
        wide = min(len(y), k + SPARE)
        candidates = _NEAREST[engine](x - shift, y - shift, wide)
        exact = _distances(x, y, candidates)
        distances, order = exact.sort(dim=1, stable=True)
        distances, indices = distances[:, :k], candidates.gather(1, order[:, :k])
    wanted = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    return (_distances(x, y, indices) if wanted else distances), indices


@public
def nearest_code(x: Tensor, codes: Tensor, *, engine: str | None = None) -> tuple[Tensor, Tensor]:
    """The nearest of `codes` "m dim" to each `x` "n dim": Euclidean distance "n" and index "n" (int64).

    >>> distance, index = nearest_code(torch.tensor([[0.0], [7.0]]), torch.tensor([[1.0], [10.0]]))
    >>> distance.tolist(), index.tolist()
    ([1.0, 3.0], [0, 1])
    """
    check_points(x=x, codes=codes)
    with torch.no_grad():
        shift = codes.mean(0)
        index = _NEAREST[tiles.choose_engine(engine, x)](x - shift, codes - shift, 1)
    return _distances(x, codes, index)[:, 0], index[:, 0]


@public
def kmeans(
    x: Tensor, k: int, *, iterations: int = 100, tolerance: float = 1e-4, seed: int = 0, engine: str | None = None
) -> tuple[Tensor, Tensor, float]:
    """Lloyd's k-means from a k-means++ start (Arthur and Vassilvitskii 2007): centres "k dim", labels "n", inertia.

    Stops after `iterations` or when the centres move by less than `tolerance` times the data's standard deviation. A
    cluster that empties takes the point farthest from its centre. The same seed gives the same result.

    >>> centres, labels, inertia = kmeans(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), k=2)
    >>> sorted(centres[:, 0].tolist()), bool(labels[0] == labels[1]), inertia
    ([1.0, 11.0], True, 4.0)
    """
    check_points(x=x)
    if not 1 <= k <= len(x):
        raise ValueError(f"k is {k}; it must lie between 1 and the {len(x)} points of x.")
    x = x.detach()
    engine = tiles.choose_engine(engine, x)
    generator = torch.Generator().manual_seed(seed)
    with engines.threads(len(x) * (k + x.shape[1]) <= SMALL):
        x, mean = x - x.mean(0), x.mean(0)  # distances do not change, their rounding errors do
        centres = plus_plus_start(x, k, generator)
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


def _distances(x: Tensor, y: Tensor, indices: Tensor) -> Tensor:
    """Euclidean distances "n k" of each x to its own k rows of y, from the differences."""
    k, dim = indices.shape[1], x.shape[1]
    step = max(1, tiles.TILE // (k * dim))
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return torch.cat([(part[:, None] - y[pick]).norm(dim=-1) for part, pick in tiles.rows(step, x, indices)])
    distances = x.new_empty(indices.shape)
    held = x.new_empty(min(step, len(x)) * k, dim)  # one buffer: fresh memory costs more than the arithmetic
    for part, pick, out in tiles.rows(step, x.detach(), indices, distances):
        near = torch.index_select(y.detach(), 0, pick.flatten(), out=held[: len(part) * k])
        torch.linalg.vector_norm(near.view(len(part), k, dim).sub_(part[:, None]), dim=-1, out=out)
    return distances


def plus_plus_start(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The centres "k dim" of k-means++: each further point is drawn by its squared distance to the nearest so far."""
    chosen = torch.randint(len(x), (1,), generator=generator).to(x.device).repeat(k)
    draws = torch.rand(k, generator=generator, dtype=torch.float64).to(x.device)
    alike = torch.arange(1, len(x) + 1, device=x.device, dtype=torch.float64)  # where fewer points than k are distinct
    closest, held = torch.full_like(x[:, 0], torch.inf), torch.empty_like(x)
    for step in range(1, k):  # without waiting for a GPU
        away = torch.linalg.vector_norm(torch.sub(x, x[chosen[step - 1 : step]], out=held), dim=1)
        closest = torch.minimum(closest, away.square_())
        total = closest.cumsum(0, dtype=torch.float64)
        total = torch.where(total[-1] > 0, total, alike)
        place = torch.searchsorted(total, draws[step : step + 1] * total[-1], right=True)
        chosen[step : step + 1] = place.clamp_max_(len(x) - 1)
    return x[chosen]


def _nearest_torch(x: Tensor, y: Tensor, k: int) -> Tensor:
    """Indices "n k" by tiles of the matrix of |y|^2 / 2 - x.y; of many y the least are kept from tile to tile."""
    half = 0.5 * y.square().sum(1)
    room = tiles.TILE * (64 if x.is_cuda else 1)
    step = max(1, min(len(x), room // min(len(y), max(1, room // LEAST_ROWS))))
    nearest = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    columns = max(k, room // step)
    held = x.new_empty(step * min(columns, len(y)))
    for part, out in tiles.rows(step, x, nearest):
        best = held[:0]
        for start in range(0, len(y), columns):
            some, norms = y[start : start + columns], half[start : start + columns]
            score = held[: len(part) * len(some)].view(len(part), len(some))
            torch.addmm(norms, part, some.T, alpha=-1, out=score)
            index = score.argmin(1, keepdim=True) if k == 1 else least_indices(score, min(k, len(some)))
            least = score.gather(1, index)
            if start:
                least, index = torch.cat([best, least], 1), torch.cat([out, index + start], 1)
                kept = least.topk(k, largest=False).indices
                least, index = least.gather(1, kept), index.gather(1, kept)
            out.copy_(index)
            best = least
    return nearest


def least_indices(score: Tensor, k: int) -> Tensor:
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
