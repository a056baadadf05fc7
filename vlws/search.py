"""Exact search of an index, shard by shard: the memory it takes does not grow with the index.

A block of vectors at a time is multiplied with the queries in float32. Whatever can be among the best by that product,
with the largest error that it can have, is multiplied again in float64: the results are those of float64, and ties are
ordered by id, however the documents are cut into shards and blocks and however many threads search.

What 10^7 vectors take stands in reports/results/benchmarks/large.json. There is no approximate index.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlws.errors import InputError
from vlws.shards import Index, Shard

BLOCK = 2048  # vectors that are multiplied at once: quickest where they and their products lie in the cache
QUERIES = 256  # at once


class Hit(NamedTuple):
    """A document that was found, by its place in the index.

    >>> Hit(0.5, "owls.md", 0, 3).id
    'owls.md'
    """

    score: float
    id: str
    shard: int
    row: int


def search(index: Index, queries: Tensor, k: int, jobs: int = 1) -> list[list[Hit]]:
    """The `k` documents of the largest inner product with each of the queries "query dim", best first; exact.

    Args:
        k: an index of fewer documents gives all of them.
        jobs: threads that each search some of the shards.

    Raises:
        InputError: k or jobs below 1, queries of another dimension or that are not finite.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from vlws.shards import write_manifest, write_shard
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     records = [
    ...         write_shard(Path(folder, "shards", name), torch.tensor([vector]), [name], [name])
    ...         for name, vector in (("owl", [1.0, 0.0]), ("hen", [0.6, 0.8]))
    ...     ]
    ...     _ = write_manifest(Path(folder), {"dim": 2}, records)
    ...     (row,) = search(Index(folder), torch.tensor([[0.0, 1.0]]), 5)
    ...     [(hit.id, round(hit.score, 2)) for hit in row]
    [('hen', 0.8), ('owl', 0.0)]
    """
    check(index, queries, k, jobs)
    queries = queries.float().cpu()
    jobs = min(jobs, index.n_shards)
    threads = torch.get_num_threads()
    found: list[list[Hit]] = []
    try:
        torch.set_num_threads(1)  # a thread has shards of its own; more would share blocks that are too small for it
        with ThreadPoolExecutor(jobs) as pool:
            for some in queries.split(QUERIES):
                parts = pool.map(
                    lambda first, some=some: _search(index, range(first, index.n_shards, jobs), some, k), range(jobs)
                )
                found += [best(list(chain(*rows)), k) for rows in zip(*parts, strict=True)]
    finally:
        torch.set_num_threads(threads)
    return found


def check(index: Index, queries: Tensor, k: int, jobs: int) -> None:
    """Refuse what cannot be searched for.

    >>> check(None, torch.eye(2), 0, 1)
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: k=0 was given; accepted is 1 or more.
    """
    for name, value in (("k", k), ("jobs", jobs)):
        if value < 1:
            raise InputError(f"{name}={value} was given; accepted is 1 or more.")
    if queries.dim() != 2 or queries.shape[1] != index.dim:
        raise InputError(f"Queries of shape {tuple(queries.shape)} were given; accepted is (queries, {index.dim}).")
    if not bool(torch.isfinite(queries).all()):
        raise InputError("A query's vector is not finite; accepted are finite numbers.")


def best(hits: Sequence[Hit], k: int) -> list[Hit]:
    """The `k` hits of the largest scores, best first, ties by id.

    >>> [hit.id for hit in best([Hit(0.5, "b", 0, 1), Hit(0.5, "a", 9, 0), Hit(0.9, "c", 1, 1)], 2)]
    ['c', 'a']
    """
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]


def _search(index: Index, numbers: Sequence[int], queries: Tensor, k: int) -> list[list[Hit]]:
    """The best of some shards for each query."""
    found: list[list[Hit]] = [[] for _ in queries]
    finder = Finder(queries, k)
    for number in numbers:
        shard = index.shard(number)
        for start in range(0, len(shard), BLOCK):
            finder.look(found, shard, number, start)
    return found


class Finder:
    """Looks through blocks of vectors for what is among the `k` best of each of the queries "query dim" float32.

    >>> finder, found = Finder(torch.tensor([[1.0, 0.0]]), k=1), [[]]
    >>> shard = Shard(np.eye(2, dtype=np.float16), ["owl", "hen"], ["an owl", "a hen"], norm=1.0)
    >>> finder.look(found, shard, 0, start=0)
    >>> found
    [[Hit(score=1.0, id='owl', shard=0, row=0)]]
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        self.queries, self.k = queries, k
        self.exact = queries.double().numpy()
        # |error of a float32 inner product| <= dim 2^-24 / (1 - dim 2^-24) |query| |vector|, in any order of its sums
        dim = queries.shape[1] + 2
        self.error = queries.double().norm(dim=1).float() * (dim * 2.0**-24 / (1 - dim * 2.0**-24) * 1.01)
        self.least = torch.full((len(queries),), -torch.inf)  # the score of the k-th best so far
        self.block = torch.empty(BLOCK, queries.shape[1])
        self.products = torch.empty(len(queries) * BLOCK)

    def look(self, found: list[list[Hit]], shard: Shard, number: int, start: int) -> None:
        """Put the best of the BLOCK vectors of a shard from `start` on into `found`."""
        vectors = np.asarray(shard.vectors[start : start + BLOCK])
        block = self.block[: len(vectors)].copy_(torch.from_numpy(vectors))
        scores = torch.mm(
            self.queries, block.T, out=self.products[: len(self.queries) * len(block)].view(-1, len(block))
        )
        margin = 2 * self.error * shard.norm
        hit = (scores.amax(1) >= self.least - margin).nonzero()[:, 0]
        for query, row in zip(hit.tolist(), scores[hit], strict=True):
            least = self.least[query]
            if len(row) > self.k:
                least = torch.maximum(least, row.topk(self.k).values[-1])
            near = (row >= least - margin[query]).nonzero()[:, 0].numpy()
            exact = np.multiply(vectors[near], self.exact[query], dtype=np.float64).sum(1)
            places = near + start
            new = [
                Hit(score, shard.ids[place], number, place)
                for score, place in zip(exact.tolist(), places.tolist(), strict=True)
            ]
            found[query] = best([*found[query], *new], self.k)
            if len(found[query]) == self.k:
                self.least[query] = found[query][-1].score
