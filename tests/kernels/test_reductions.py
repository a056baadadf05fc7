"""Nearest neighbours, clustering, late interaction, contrastive loss and MMD against dense float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

import vlws_kernels as vk
from vlws_kernels import engine as engines
from vlws_kernels import neighbours, tiles

ENGINES = [
    pytest.param("keops", marks=pytest.mark.skipif(engines.compiler() is None, reason="no C++ compiler")),
    "torch",
    "reference",
]

# KeOps compiles each number of candidates, dim and dtype for seconds: tests of float64 share these, at dim 3.
K = 7
CANDIDATES = K + neighbours.SPARE


def points(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knn_is_sklearns(engine: str, dtype: torch.dtype) -> None:
    x, y = points(0, 70, 3, dtype=dtype) + 5, points(1, 90, 3, dtype=dtype) + 5
    expected = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(y.double().numpy()).kneighbors(x.double().numpy())
    distances, indices = vk.knn(x, y, K, engine=engine)
    assert indices.tolist() == expected[1].tolist()
    torch.testing.assert_close(distances.double(), torch.tensor(expected[0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_knn_far_from_the_origin(engine: str) -> None:
    """|x|^2 + |y|^2 - 2xy cancels to nothing here; the distances must not."""
    y = points(2, 50, 4, dtype=torch.float32) * 1e-2 + 1000
    distances, indices = vk.knn(y, y, 2, engine=engine)
    assert indices[:, 0].tolist() == list(range(50))
    assert float(distances[:, 0].max()) == 0.0
    exact = torch.cdist(y.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(1)
    torch.testing.assert_close(distances.double(), exact.values[:, :2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_neighbours_and_one(engine: str) -> None:
    x, y = points(3, 9, 3), points(4, CANDIDATES, 3)
    distances, indices = vk.knn(x, y, CANDIDATES, engine=engine)
    assert torch.equal(indices.sort(1).values, torch.arange(CANDIDATES).expand(9, CANDIDATES))
    assert bool((distances.diff(dim=1) >= 0).all())
    nearest, code = vk.nearest_code(x, y, engine=engine)
    assert torch.equal(code, indices[:, 0])
    torch.testing.assert_close(nearest, distances[:, 0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("m", [511, 512, 527, 3001])
@pytest.mark.parametrize("ties", [False, True])
def test_least_of_long_rows(m: int, ties: bool) -> None:
    """Rows long enough to be folded, just not, and with a rest; the least all in one column, and in the rest."""
    k = 8
    score = points(31, 40, m)
    score = score.round() if ties else score
    score[0, :: m // neighbours.FOLD] -= 10
    score[1, -12:] -= 10
    index = neighbours.least_indices(score, k)
    assert torch.equal(score.gather(1, index), score.topk(k, largest=False).values)
    assert all(len(set(row)) == k for row in index.tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30), st.integers(1, 6))
def test_tiles_do_not_matter(seed: int, n: int, m: int, dim: int) -> None:
    x, y = points(seed, n, dim), points(seed + 1, m, dim)

    def all_of_them() -> tuple:
        matching = vk.info_nce(x, points(seed + 2, n, dim), 0.1)
        return vk.knn(x, y, 1), vk.mmd(x, y, unbiased=False), vk.max_sim(x[None], y[:, None]), matching

    whole = all_of_them()
    tile, tiles.TILE = tiles.TILE, 7
    try:
        parts = all_of_them()
    finally:
        tiles.TILE = tile
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("engine", ENGINES)
def test_max_sim(engine: str) -> None:
    x, y = points(5, 6, 4, 3), points(6, 7, 9, 3)
    len_x, len_y = torch.tensor([4, 1, 2, 3, 4, 2]), torch.tensor([9, 1, 2, 3, 4, 5, 6])
    expected = torch.tensor(
        [[float((x[a, :n] @ y[b, :m].T).amax(1).sum()) for b, m in enumerate(len_y)] for a, n in enumerate(len_x)]
    ).double()
    torch.testing.assert_close(vk.max_sim(x, y, len_x, len_y, engine=engine), expected, rtol=1e-5, atol=1e-5)
    soiled = y.clone()
    soiled[1, 1:] = float("nan")
    torch.testing.assert_close(vk.max_sim(x, soiled, len_x, len_y, engine=engine), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_info_nce_is_two_cross_entropies(engine: str) -> None:
    x, y = (torch.nn.functional.normalize(points(seed, 12, 3)) for seed in (7, 8))
    logits, target = x @ y.T / 0.05, torch.arange(12)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(vk.info_nce(x, y, 0.05, engine=engine), expected)
    assert 0 <= float(vk.info_nce(x, x, 1e-3, engine=engine)) < 1e-5  # logits of 1000 do not overflow


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd(engine: str, unbiased: bool) -> None:
    x, y = points(9, 8, 3) + 50, points(10, 6, 3) + 50.5

    def mean(u: torch.Tensor, v: torch.Tensor, own: bool) -> torch.Tensor:
        d = (u[:, None] - v[None]).square().sum(-1)
        k = (torch.exp(-d / 2) + torch.exp(-d / 8)) / 2
        return (k.sum() - len(u)) / (len(u) * (len(u) - 1)) if own and unbiased else k.mean()

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    torch.testing.assert_close(vk.mmd(x, y, [1.0, 2.0], unbiased=unbiased, engine=engine), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients(engine: str) -> None:
    x, y = points(11, 5, 3).requires_grad_(), points(12, 5, 3).requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    others = points(16, CANDIDATES + 1, 3).requires_grad_()
    assert check(lambda x, y: vk.knn(x, y, K, engine=engine)[0], (x, others))
    assert check(lambda x, y, t: vk.info_nce(x, y, t, engine=engine), (x, y, temperature))
    assert check(lambda x, y: vk.mmd(x, y, [1.0, 2.0], engine=engine), (x, y))
    assert check(lambda x, y: vk.max_sim(x[None], y[None], engine=engine), (x, y))


def test_gradient_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 11)
    test_gradients("torch")


@pytest.mark.parametrize("engine", ENGINES)
def test_kmeans(engine: str) -> None:
    centres = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], dtype=torch.float64)
    x = (centres[:, None] + 0.3 * points(13, 3, 40, 3)).reshape(-1, 3)
    found, labels, inertia = vk.kmeans(x, 3, seed=1, engine=engine)
    expected = KMeans(3, n_init=5, random_state=0).fit(x.numpy())
    assert inertia == pytest.approx(expected.inertia_, rel=1e-6)
    assert [len(labels[i * 40 : i * 40 + 40].unique()) for i in range(3)] == [1, 1, 1]
    again = vk.kmeans(x, 3, seed=1, engine=engine)
    assert torch.equal(found, again[0])
    assert vk.kmeans(torch.ones(6, 2), 4)[2] == 0.0  # fewer distinct points than clusters


def test_start_of_kmeans_is_drawn_by_squared_distances() -> None:
    """Of points at 0, 1 and 3 the second centre comes with odds of 1 to 9, 1 to 4 and 9 to 4."""
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    counts = torch.zeros(3, 3)
    for seed in range(3000):
        first, second = neighbours.plus_plus_start(x, 2, torch.Generator().manual_seed(seed))[:, 0].tolist()
        counts[min(int(first), 2), min(int(second), 2)] += 1
    shares = counts / counts.sum(1, keepdim=True)
    expected = torch.tensor([[0, 0.1, 0.9], [0.2, 0, 0.8], [9 / 13, 4 / 13, 0]])
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.06)  # four standard deviations


def test_large_numbers_are_not_taken_for_infinite_ones() -> None:
    x = torch.full((3, 2), 3e38)
    assert vk.knn(x, x, 1)[0].tolist() == [[0.0], [0.0], [0.0]]


BAD = {
    "dtype": (TypeError, "float32 or float64", lambda x: vk.knn(x.long(), x, 1)),
    "dims": (ValueError, "must be .points, dim.", lambda x: vk.knn(x[0], x, 1)),
    "nan": (ValueError, "finite", lambda x: vk.knn(x / 0, x, 1)),
    "other dim": (ValueError, "must agree", lambda x: vk.knn(x, x[:, :1], 1)),
    "k": (ValueError, "k is 9", lambda x: vk.knn(x, x, 9)),
    "clusters": (ValueError, "k is 0", lambda x: vk.kmeans(x, 0)),
    "rows": (ValueError, "row i", lambda x: vk.info_nce(x, x[:2])),
    "temperature": (ValueError, "temperature is", lambda x: vk.info_nce(x, x, 0.0)),
    "sigma": (ValueError, "sigma is", lambda x: vk.mmd(x, x, [])),
    "one point": (ValueError, "needs 2 points", lambda x: vk.mmd(x[:1], x)),
    "tokens": (ValueError, "sequences, length, dim", lambda x: vk.max_sim(x, x)),
    "tokens' dim": (ValueError, "last dimension must agree", lambda x: vk.max_sim(x[None], x[None, :, :1])),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_sentence(case: str) -> None:
    error, words, call = BAD[case]
    with pytest.raises(error, match=words):
        call(torch.randn(4, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu() -> None:
    x, y = points(14, 70, 3, dtype=torch.float32), points(15, 90, 3, dtype=torch.float32)
    assert torch.equal(vk.knn(x.cuda(), y.cuda(), 5)[1].cpu(), vk.knn(x, y, 5, engine="reference")[1])
    for call in (vk.mmd, lambda x, y: vk.info_nce(x[:60], y[:60])):
        torch.testing.assert_close(call(x.cuda(), y.cuda()).cpu(), call(x, y), rtol=1e-4, atol=1e-6)
