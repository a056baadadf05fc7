"""A search of shards gives what float64 gives of one array, in the order of score and id, however it is cut."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import HERE

from vlws import search as module
from vlws.errors import InputError
from vlws.search import search
from vlws.shards import Index, write_manifest, write_shard


def written(folder, vectors, cuts, dtype="float32", ids=None):
    """An index of vectors, cut into shards at these places."""
    ids = ids or [f"d{k}" for k in range(len(vectors))]
    bounds = [0, *sorted(set(cuts)), len(vectors)]
    records = [
        write_shard(folder / "shards" / f"s{a}", vectors[a:b], ids[a:b], ids[a:b], dtype)
        for a, b in itertools.pairwise(bounds)
        if b > a
    ]
    write_manifest(folder, {"dim": vectors.shape[1], "dtype": dtype}, records)
    return Index(folder)


def reference(vectors, ids, queries, k):
    """(id, score) of the best k by float64, ties by id."""
    scores = np.array([[np.multiply(v, q, dtype=np.float64).sum() for v in vectors] for q in queries.double().numpy()])
    return [sorted(zip((-row).tolist(), ids, strict=True))[:k] for row in scores]


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_any_shards_blocks_and_threads_give_the_reference(tmp_path_factory, data):
    n, dim, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 45))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale = data.draw(st.sampled_from([1e-3, 1.0, 300.0]))
    vectors = rng.normal(scale=scale, size=(n, dim))
    if data.draw(st.booleans()):  # few different vectors: many ties
        vectors = vectors[rng.integers(0, 3, n) % n]
    if data.draw(st.booleans()):  # nearly the same ones, which float32 cannot tell apart
        vectors = vectors[:1] + rng.normal(scale=scale * 1e-7, size=(n, dim))
    dtype = data.draw(st.sampled_from(["float16", "float32"]))
    stored = vectors.astype(dtype)
    ids = [f"d{place}" for place in rng.permutation(n)]
    queries = torch.from_numpy(rng.normal(size=(data.draw(st.integers(1, 4)), dim)).astype(np.float32))
    cuts = data.draw(st.lists(st.integers(0, n), max_size=5))
    index = written(tmp_path_factory.mktemp("index"), stored, cuts, dtype, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", data.draw(st.integers(1, 50)))
        patch.setattr(module, "QUERIES", data.draw(st.integers(1, 5)))
        found = search(index, queries, k, data.draw(st.integers(1, 3)))
    assert [[(-hit.score, hit.id) for hit in row] for row in found] == reference(stored, ids, queries, k)
    for hit in found[0]:
        assert index.shard(hit.shard).ids[hit.row] == hit.id


def test_what_cannot_be_searched_is_refused(tmp_path):
    index = written(tmp_path, np.eye(3, dtype=np.float32), [1])
    for queries, k, jobs, told in (
        (torch.eye(3), 0, 1, "k=0 was given"),
        (torch.eye(3), 1, 0, "jobs=0 was given"),
        (torch.eye(2), 1, 1, "Queries of shape (2, 2) were given; accepted is (queries, 3)"),
        (torch.full((1, 3), torch.nan), 1, 1, "A query's vector is not finite"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            search(index, queries, k, jobs)
    assert [len(row) for row in search(index, torch.eye(3), 10)] == [3, 3, 3]  # k above n: all of them
    assert search(index, torch.empty(0, 3), 2) == []


def test_vectors_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(InputError, match="A vector is not finite as float16; accepted are finite numbers"):
        write_shard(tmp_path / "s", np.full((1, 2), 1e6, np.float32), ["a"], ["a"], "float16")
    assert not any(tmp_path.iterdir())


PEAK = """
import sys, json, torch
from pathlib import Path
from vlws.search import search
from vlws.shards import Index
index = Index(sys.argv[1])
search(index, torch.ones(8, index.dim), 10)
print(next(int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_index(tmp_path):
    """240 MB of vectors are searched in what 20 MB take, to 60 MB."""
    peaks = []
    rng = np.random.default_rng(0)
    for shards in (1, 12):
        folder = tmp_path / str(shards)
        records = []
        for k in range(shards):
            vectors = rng.random((20_000, 512), np.float32).astype(np.float16)
            ids = [f"{k}-{j}" for j in range(len(vectors))]
            records.append(write_shard(folder / "shards" / str(k), vectors, ids, ids, "float16"))
        write_manifest(folder, {"dim": 512, "dtype": "float16"}, records)
        line = [sys.executable, "-c", PEAK, str(folder)]
        env = {"PYTHONPATH": f"{HERE}:{HERE / 'kernels'}", "OMP_NUM_THREADS": "1"}
        peaks.append(json.loads(subprocess.run(line, check=True, capture_output=True, env=env, timeout=300).stdout))
    assert peaks[1] - peaks[0] < 60, peaks
