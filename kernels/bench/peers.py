"""What kernels and methods are measured against: the libraries people use, and plain torch as one would write it."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CELLS = 2**25  # cells of a cost table that the plain torch versions hold at once (128 MB of float32)


def tslearn_gak(x: Tensor, sigma: float) -> np.ndarray:
    from tslearn.metrics import cdist_gak

    return cdist_gak(x.numpy(), sigma=sigma)


def tslearn_gak_all_cores(x: Tensor, sigma: float) -> np.ndarray:
    from tslearn.metrics import cdist_gak

    return cdist_gak(x.numpy(), sigma=sigma, n_jobs=-1)


def tslearn_ragged_gak(x: Tensor, lengths: Tensor, sigma: float) -> np.ndarray:
    """One sigma for all pairs, as tslearn has no other: the same number of cells."""
    from tslearn.metrics import cdist_gak

    return cdist_gak([item[:length].numpy() for item, length in zip(x, lengths, strict=True)], sigma=sigma)


def tslearn_soft_dtw(x: Tensor, gamma: float) -> np.ndarray:
    from tslearn.metrics import cdist_soft_dtw

    return cdist_soft_dtw(x.numpy(), gamma=gamma, n_jobs=-1)


def aeon_soft_dtw(x: Tensor, gamma: float) -> np.ndarray:
    from aeon.distances import soft_dtw_pairwise_distance

    return soft_dtw_pairwise_distance(x.double().transpose(1, 2).numpy(), gamma=gamma, n_jobs=-1)


def aeon_dtw(x: Tensor) -> np.ndarray:
    from aeon.distances import dtw_pairwise_distance

    return dtw_pairwise_distance(x.double().transpose(1, 2).numpy(), n_jobs=-1)


def dtaidistance_dtw(x: Tensor) -> np.ndarray:
    from dtaidistance import dtw_ndim

    return dtw_ndim.distance_matrix_fast(x.double().numpy(), parallel=True) ** 2


def torch_gak(x: Tensor, sigma: float) -> Tensor:
    """Anti-diagonals, all pairs at once, float32; in the linear domain while the path counts fit it, else in logs."""
    n, length = x.shape[:2]
    linear = length <= 48  # the central Delannoy number of 48 is 1e36
    rows = []
    for part in x.split(max(1, CELLS // (n * length * length))):
        t = torch.cdist(part.flatten(0, 1), x.flatten(0, 1)).square_().mul_(0.5 / sigma**2)
        s = t.neg_().exp_()
        kernel = s / (2 - s)
        kernel = kernel if linear else kernel.log_()
        rows.append(_diagonals(kernel.view(len(part), length, n, length).transpose(1, 2).flatten(0, 1), linear))
    log_k = torch.cat(rows).view(n, n)
    log_k = log_k.log() if linear else log_k
    own = log_k.diagonal()
    return (log_k - 0.5 * (own[:, None] + own[None])).exp()


def torch_soft_dtw(x: Tensor, gamma: float) -> Tensor:
    n, length = x.shape[:2]
    rows = []
    for part in x.split(max(1, CELLS // (n * length * length))):
        cost = torch.cdist(part.flatten(0, 1), x.flatten(0, 1)).square_().mul_(-1 / gamma)
        rows.append(_diagonals(cost.view(len(part), length, n, length).transpose(1, 2).flatten(0, 1), False))
    return -gamma * torch.cat(rows).view(n, n)


def torch_dtw(x: Tensor) -> Tensor:
    n, length = x.shape[:2]
    rows = []
    for part in x.split(max(1, CELLS // (n * length * length))):
        cost = torch.cdist(part.flatten(0, 1), x.flatten(0, 1)).square_().neg_()
        cost = cost.view(len(part), length, n, length).transpose(1, 2).flatten(0, 1)
        rows.append(_diagonals(cost, False, hard=True))
    return -torch.cat(rows).view(n, n)


def _diagonals(kernel: Tensor, linear: bool, hard: bool = False) -> Tensor:
    """Path sums "p" of tables "p n n" (or of their logarithms; `hard`: their largest terms), by anti-diagonals."""
    p, n, _ = kernel.shape
    zero, one = (0.0, 1.0) if linear else (-math.inf, 0.0)
    # a row of a skewed table is an anti-diagonal: contiguous, so each step is a few passes over "n p"
    skewed = kernel.new_full((n, 2 * n - 1, p), zero)
    for i in range(n):
        skewed[i, i : i + n] = kernel[:, i].T
    before, before2 = kernel.new_full((n + 1, p), zero), kernel.new_full((n + 1, p), zero)
    join = torch.maximum if hard else torch.logaddexp
    for k in range(2 * n - 1):
        now = kernel.new_full((n + 1, p), zero)
        if linear:
            total = before[:-1] + before[1:] + before2[:-1]
            total[0] += one if k == 0 else 0.0
            torch.mul(total, skewed[:, k], out=now[1:])
        else:
            total = join(join(before[:-1], before[1:]), before2[:-1])
            if k == 0:
                total[0] = one
            torch.add(total, skewed[:, k], out=now[1:])
        before, before2 = now, before
    return before[-1]


def sklearn_knn(x: Tensor, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x.numpy()).kneighbors(x.numpy())[1]


def sklearn_auto_knn(x: Tensor, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, n_jobs=-1).fit(x.numpy()).kneighbors(x.numpy())[1]


def torch_knn(x: Tensor, k: int) -> Tensor:
    return torch.cdist(x, x).topk(k, largest=False).indices


def torch_nearest_code(x: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(x, codes).argmin(1)


def sklearn_kmeans(x: Tensor, k: int, iterations: int) -> float:
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KMeans(k, n_init=1, max_iter=iterations, tol=0.0, random_state=0).fit(x.numpy()).inertia_


def torch_kmeans(x: Tensor, k: int, iterations: int) -> Tensor:
    centres = x[:k].clone()
    for _ in range(iterations):
        labels = torch.cdist(x, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, labels, x)
        centres = sums / torch.bincount(labels, minlength=k).clamp_min(1)[:, None]
    return centres


def torch_max_sim(x: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("and,bmd->abnm", x, y).amax(-1).sum(-1)


def torch_info_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    logits, target = x @ y.T / temperature, torch.arange(len(x), device=x.device)
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def torch_mmd(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    def mean(u: Tensor, v: Tensor) -> Tensor:
        return torch.exp(torch.cdist(u, v).square_() * (-0.5 / sigma**2)).mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


# --- retrieval --------------------------------------------------------------------------------------------------------


def torch_top(queries: Tensor, documents: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return (queries @ documents.T).topk(k)


def faiss_flat(documents: Tensor) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """A search of an index, which holds a copy of the documents."""
    import faiss

    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents.numpy())

    def search(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, found = index.search(queries.numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(found)

    return search


def sentence_transformer(folder: Path, batch_size: int) -> Callable[[list[str]], Tensor]:
    """Vectors of texts by a checkpoint folder, in float32 on the CPU."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    return lambda texts: model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
