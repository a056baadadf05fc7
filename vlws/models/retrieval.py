"""Exact retrieval by embeddings, and its measures."""

import numpy as np
from torch import Tensor

from vlws.errors import InputError
from vlws_kernels import knn


def retrieve(queries: Tensor, keys: Tensor, k: int, exclude: np.ndarray | None = None) -> np.ndarray:
    """ "query k" int64: the nearest keys, best first, of unit rows; exact.

    exclude: "query e" keys left out (pictures that the query shows).

    >>> import torch
    >>> keys = torch.eye(3)
    >>> retrieve(torch.tensor([[0.9, 0.1, 0.0]]), keys, k=2).tolist()
    [[0, 1]]
    >>> retrieve(torch.tensor([[0.9, 0.1, 0.0]]), keys, k=2, exclude=np.array([[0]])).tolist()
    [[1, 2]]
    """
    e = 0 if exclude is None else exclude.shape[1]
    if not 1 <= k <= len(keys) - e:
        raise InputError(f"k={k} of {len(keys)} keys with {e} excluded: accepted is 1 to {len(keys) - e}.")
    found = knn(queries.contiguous(), keys.contiguous(), k + e)[1].cpu().numpy()
    if exclude is None:
        return found
    kept = [[j for j in row if j not in out][:k] for row, out in zip(found, map(set, exclude.tolist()), strict=True)]
    return np.array(kept)


def ranks(ranked: np.ndarray, target: np.ndarray) -> np.ndarray:
    """ "query" int64: the rank (0 is best) of the target in each row of `ranked` "query k", or k where it is absent.

    >>> ranks(np.array([[2, 0, 1], [0, 1, 2]]), target=np.array([0, 9])).tolist()  # second; absent
    [1, 3]
    """
    same = ranked == target[:, None]
    return np.where(same.any(1), same.argmax(1), ranked.shape[1])


def recall(rank: np.ndarray, k: int) -> float:
    """R@k: the share of queries whose target is among the first k; `rank` as of `ranks`, of at least k retrieved.

    >>> recall(np.array([0, 3, 5, 0]), k=5)
    0.75
    """
    return float((rank < k).mean())
