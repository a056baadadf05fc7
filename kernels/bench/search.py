"""Exact searches by inner product; the memory of one alone: `python kernels/bench/search.py NAME DOCUMENTS QUERIES`.

The memory of a search is that of a process that does nothing else, which is why this file imports little.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import peers
from measure import reset_peak, status, weighed

import vlws_kernels as vk
from vlws.models.ranking import top

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # queries, k -> scores or distances, indices

DIM, K = 384, 10  # of the vectors, and how many are found

SEARCHES: dict[str, Callable[[Tensor], Search]] = {  # of documents; what `vlws retrieve` does is the first
    "ranking.top": lambda documents: lambda queries, k: top(queries, documents, k),
    "vlws_kernels.knn": lambda documents: lambda queries, k: vk.knn(queries, documents, k),
    "torch product+topk": lambda documents: lambda queries, k: peers.torch_top(queries, documents, k),
    "faiss IndexFlatIP": peers.faiss_flat,
}
NEEDS = {"faiss IndexFlatIP": "faiss"}  # search -> module


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def searches(documents: Tensor) -> dict[str, Search]:
    """Those that can be made here."""
    return {name: make(documents) for name, make in SEARCHES.items() if is_installed(NEEDS.get(name, "torch"))}


def unit_vectors(n: int, seed: int = 0) -> Tensor:
    """ "n dim" float32 of length 1, made in place: inner products and Euclidean distances rank them alike."""
    made = torch.empty(n, DIM).normal_(generator=torch.Generator().manual_seed(seed))
    for block in made.split(2**14):
        block.div_(block.norm(dim=1, keepdim=True))
    return made


def memory(name: str, n: int, m: int) -> dict[str, float]:
    """MB that a search holds (vectors, or an index with its copy), and by how many the peak grows in a call."""
    queries = unit_vectors(m, seed=1)
    SEARCHES[name](unit_vectors(64))(queries, K)  # libraries are loaded, threads are started
    reset_peak()
    before = status("VmRSS")
    search = SEARCHES[name](unit_vectors(n))
    reset_peak()
    held = status("VmRSS") - before
    _, grown = weighed(partial(search, queries, K))
    return {"held_mb": round(held, 1), "memory_mb": round(grown, 1)}


if __name__ == "__main__":
    search, documents, queries = sys.argv[1:]
    print(json.dumps(memory(search, int(documents), int(queries))))
