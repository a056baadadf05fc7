"""GAK, soft-DTW and DTW against enumeration, closed forms and the float64 reference, on every engine."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vlws_kernels as vk
from vlws_kernels import api, costs, inputs, reference
from vlws_kernels import engine as engines

ENGINES = [
    pytest.param("keops", marks=pytest.mark.skipif(engines.compiler() is None, reason="no C++ compiler")),
    "torch",
    "reference",
]
DTYPES = [torch.float32, torch.float64]


def series(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, :, None]


def ragged(seed: int, a: int, n: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(a, n, dim, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(1, n + 1, (a,), generator=generator)


def close(value: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None, unit: float = 1e-2) -> None:
    """Relative error below 1e-5 (float32) or 1e-10; `unit` is the size of the terms where a value may cross zero."""
    tolerance = tolerance or (1e-5 if value.dtype == torch.float32 else 1e-10)
    torch.testing.assert_close(value.double(), expected.double(), rtol=tolerance, atol=tolerance * unit)


@pytest.mark.parametrize("engine", ENGINES)
def test_values_of_the_literature(engine: str) -> None:
    """tslearn's documented values of GAK, normalised and not."""
    x = series(1, 2, 3)
    for y, sigma, normalised, plain in (
        (series(1, 2, 2, 3), 2.0, 0.8393, 15.358),
        (series(1, 2, 2, 3, 4), 1.0, 0.2734, 3.166),
    ):
        assert float(vk.gak(x, y, sigma=sigma, engine=engine)) == pytest.approx(normalised, abs=1e-4)
        assert float(vk.gak(x, y, sigma=sigma, normalize=False, engine=engine)) == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_items_count_alignments(engine: str) -> None:
    """With no distance at all every local kernel is 1, and K counts the alignments: Delannoy numbers."""
    x = torch.zeros(1, 8, 2, dtype=torch.float64)
    for length, delannoy in ((1, 1), (2, 3), (3, 13), (5, 321), (8, 48639)):
        lengths = torch.tensor([length])
        assert float(vk.gak(x, None, lengths, normalize=False, engine=engine)) == pytest.approx(delannoy, rel=1e-9)
    assert float(vk.gak(x, x, torch.tensor([3]), torch.tensor([4]), normalize=False, engine=engine)) == pytest.approx(
        25
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_over_enumerated_alignments(engine: str, dtype: torch.dtype) -> None:
    x, _ = ragged(0, 2, 4, 2, dtype)
    y, _ = ragged(1, 3, 3, 2, dtype)
    d = vk.squared_distance(x.double()[:, None], y.double()[None])
    s = torch.exp(-d / (2 * 1.3**2))
    for a in range(2):
        for b in range(3):
            expected = reference.path_sum((s / (2 - s))[a, b])
            close(vk.gak(x, y, sigma=1.3, normalize=False, engine=engine)[a, b], expected)
            expected = -0.7 * reference.path_sum(torch.exp(-d / 0.7)[a, b]).log()
            close(vk.soft_dtw(x, y, gamma=0.7, engine=engine)[a, b], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_slice_against_one(engine: str) -> None:
    """Two sequences of one element: K is the local kernel s/(2-s) itself."""
    x, y = series(0.3), series(1.1)
    s = math.exp(-(0.8**2) / (2 * 0.9**2))
    assert float(vk.gak(x, y, sigma=0.9, engine=engine)) == pytest.approx(s / (2 - s), rel=1e-9)


# Each rule, dtype, dim and bucket of lengths (8, 32, 128) compiles a formula, for seconds: tests share dim 2 and the
# lengths up to 8, and in float32 those from 33 to 128.
@pytest.mark.parametrize("engine", ENGINES[:2])
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((21, 7, 8, 2), torch.float32),
        ((21, 7, 8, 2), torch.float64),
        ((5, 34, 40, 2), torch.float32),
    ],
)
def test_ragged_against_the_reference(engine: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    a, n, m, dim = sizes
    x, len_x = ragged(2, a, n, dim, dtype)
    y, len_y = ragged(3, 19, m, dim, dtype)
    sigma = 0.8 * ((len_x[:, None] + len_y[None]) / 2).sqrt().to(dtype)
    for call in (
        lambda e: vk.gak(x, y, len_x, len_y, sigma, engine=e),
        lambda e: vk.gak(x, None, len_x, sigma=1.5, engine=e),
        lambda e: vk.gak(x, y, len_x, len_y, sigma, normalize=False, log=True, engine=e),
        lambda e: vk.soft_dtw(x, y, len_x, len_y, 0.5, engine=e),
        lambda e: vk.dtw(x, y, len_x, len_y, engine=e),
        lambda e: vk.dtw(x, None, len_x, engine=e),
    ):
        close(call(engine), call("reference"), unit=0.5)


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_one_side_longer(engine: str) -> None:
    """Tables that are not square, down to one row; GAK stands for soft-DTW, whose table is the same."""
    x, len_x = ragged(2, 37, 5, 2, torch.float32)
    y, len_y = ragged(3, 19, 40, 2, torch.float32)
    sigma = 0.8 * ((len_x[:, None] + len_y[None]) / 2).sqrt()
    for call in (
        lambda e: vk.gak(x, y, len_x, len_y, sigma, engine=e),
        lambda e: vk.gak(x[:, :1], y, None, len_y, 1.5, normalize=False, log=True, engine=e),
        lambda e: vk.dtw(x, y, len_x, len_y, engine=e),
        lambda e: vk.dtw(x[:, :1], y, None, len_y, engine=e),
    ):
        close(call(engine), call("reference"), unit=0.5)


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_normalisation_at_a_sigma_of_each_pair(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """sigma that is not symmetric, more of them than lanes, and items done in pieces."""
    x, len_x = ragged(21, 19, 8, 2, torch.float32)
    sigma = 1 + 2 * torch.rand(19, 19, generator=torch.Generator().manual_seed(0))
    expected = vk.gak(x, None, len_x, sigma=sigma, engine="reference")
    close(vk.gak(x, None, len_x, sigma=sigma, engine=engine), expected)
    close(vk.gak(x.clone().requires_grad_(), None, len_x, sigma=sigma, engine=engine).detach(), expected)
    monkeypatch.setattr(costs, "CHUNK", 1)
    close(vk.gak(x, None, len_x, sigma=sigma, engine=engine), expected)


@pytest.fixture(scope="module")
def degenerate() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Equal items, near ones, items far apart, lengths 1 against 64; and what the reference makes of them."""
    x, _ = ragged(4, 20, 64, 2, torch.float32)
    lengths = torch.where(torch.arange(20) % 2 == 0, 1, 64)
    x[3] = x[1]
    x[5] = x[1] + 1e-3
    x[6:9] += 40.0
    x[9:] *= 30.0
    exact = {f"gamma {g}": vk.soft_dtw(x.double(), None, lengths, gamma=g, engine="reference") for g in (1.0, 1e-3)}
    exact |= {f"sigma {s}": vk.gak(x.double(), None, lengths, sigma=s, engine="reference") for s in (0.5, 30.0)}
    return x, lengths, exact


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_degenerate_input(engine: str, degenerate) -> None:
    x, lengths, exact = degenerate
    for case, expected in exact.items():
        name, value = case.split()
        if name == "gamma":
            close(vk.soft_dtw(x, None, lengths, gamma=float(value), engine=engine), expected, unit=float(value))
        else:
            ours = vk.gak(x, None, lengths, sigma=float(value), engine=engine)
            close(ours, expected)
            close(ours.diagonal(), torch.ones(20))
    assert torch.equal(vk.dtw(x, None, lengths, engine=engine).diagonal(), torch.zeros(20))


def wide(case: str, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences "20 8 dim" for which |x|^2 + |y|^2 - 2xy is wrong: they lie near each other or far from the origin."""
    x, lengths = ragged(30, 20, 8, dim, torch.float32)
    x[3], x[4] = x[1], x[1] + 1e-3 * x[2]
    lengths[1:5] = 8
    if case == "far from the origin":
        x += 1e3
    elif case == "one far":
        x[0] += 1e4
    elif case == "two clusters":
        x[10:] += 1e3
    elif case == "small beside the mean":
        x[:10], x[10:] = 1e-3 * x[:10], x[10:] + 1e2
    elif case == "zeros":
        x[5:9] = 0
    return x, lengths


# From dim 32 on the costs are inner products, of x less its mean where that is large; near elements are compared anew.
@pytest.mark.parametrize(
    "case", ["near", "far from the origin", "one far", "two clusters", "small beside the mean", "zeros"]
)
@pytest.mark.parametrize("engine", ENGINES[:2])
def test_inner_products_lose_nothing(engine: str, case: str) -> None:
    for dim, dtype in ((32, torch.float64), (250, torch.float32)):
        x, lengths = wide(case, dim)
        x = x.to(dtype)
        expected = vk.dtw(x.double(), None, lengths, engine="reference")
        own = vk.dtw(x, None, lengths, engine=engine)
        close(own, expected, unit=1e-6)
        assert torch.equal(own.diagonal(), torch.zeros(20, dtype=dtype))
        assert float(own[1, 3]) == 0
        close(
            vk.dtw(x, x[:7, :5].clone(), lengths, lengths[:7].clamp_max(5), engine=engine),
            vk.dtw(x.double(), x[:7, :5].double(), lengths, lengths[:7].clamp_max(5), engine="reference"),
            unit=1e-6,
        )
    x, lengths = wide(case, 250)
    for sigma in (11.0, 22 * torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) + 3):
        close(
            vk.gak(x, None, lengths, sigma=sigma, engine=engine),
            vk.gak(x.double(), None, lengths, sigma=sigma, engine="reference"),
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_costs_beyond_the_range_of_integer_exponents(engine: str) -> None:
    """Costs of 1e9 gamma leave the operation's range; the log domain takes over and nothing is cut silently."""
    x, _ = ragged(5, 17, 8, 2, torch.float32)
    x[8:] *= 3e4
    close(vk.soft_dtw(x, gamma=0.5, engine=engine), vk.soft_dtw(x.double(), gamma=0.5, engine="reference"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["keops", "torch"]), st.floats(0.05, 50.0))
def test_padding_never_changes_a_value(seed: int, engine: str, sigma: float) -> None:
    if engine == "keops" and engines.compiler() is None:
        engine = "torch"
    x, len_x = ragged(seed, 6, 7, 2, torch.float32)
    y, len_y = ragged(seed + 1, 5, 6, 2, torch.float32)
    soiled_x, soiled_y = x.clone(), y.clone()
    for soiled, lengths in ((soiled_x, len_x), (soiled_y, len_y)):
        for item, length in zip(soiled, lengths, strict=True):
            item[length:] = float("nan")
    for call in (
        lambda x, y: vk.gak(x, y, len_x, len_y, sigma, engine=engine),
        lambda x, y: vk.soft_dtw(x, y, len_x, len_y, sigma, engine=engine),
        lambda x, y: vk.dtw(x, y, len_x, len_y, engine=engine),
    ):
        assert torch.equal(call(x, y), call(soiled_x, soiled_y))
    alone = vk.soft_dtw(x[:1, : len_x[0]], y[:1, : len_y[0]], gamma=sigma, engine=engine)
    close(alone[0, 0], vk.soft_dtw(x, y, len_x, len_y, sigma, engine=engine)[0, 0])


@pytest.mark.parametrize("engine", ENGINES)
def test_symmetry(engine: str) -> None:
    x, len_x = ragged(6, 23, 8, 2, torch.float32)
    for call in (vk.gak, vk.soft_dtw, vk.dtw):
        own = call(x, None, len_x, engine=engine)
        assert torch.equal(own, own.T)
        shorter = (len_x + 1) // 2  # the same sequences, but others of their lengths: nothing to mirror
        close(call(x, None, len_x, shorter, engine=engine), call(x, x.clone(), len_x, shorter, engine=engine))
        close(own, call(x, x.clone(), len_x, len_x, engine=engine))
    close(vk.gak(x, None, len_x, sigma=0.4, engine=engine).diagonal(), torch.ones(23))


def test_limits() -> None:
    """gamma -> 0 gives DTW; -log K at gamma 1 is the soft-DTW of the cost -log k."""
    x, _ = ragged(7, 4, 6, 2, torch.float64)
    close(vk.soft_dtw(x, gamma=1e-7), vk.dtw(x), 1e-4)
    d = vk.squared_distance(x[:, None], x[None])
    s = torch.exp(-d / 2)
    close(-vk.gak(x, normalize=False, log=True), vk.soft_dtw(x, x, gamma=1.0, distance=-(s / (2 - s)).log()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gak", "log_gak", "soft_dtw"])
def test_gradients(engine: str, name: str) -> None:
    x, len_x = ragged(8, 3, 4, 2, torch.float64)
    y, len_y = ragged(9, 2, 3, 2, torch.float64)
    sigma = 0.9 * ((len_x[:, None] + len_y[None]) / 2).sqrt()
    calls = {
        "gak": lambda x, y: vk.gak(x, y, len_x, len_y, sigma, engine=engine),
        "log_gak": lambda x, y: vk.gak(x, y, len_x, len_y, 1.2, normalize=False, log=True, engine=engine),
        "soft_dtw": lambda x, y: vk.soft_dtw(x, y, len_x, len_y, 0.6, engine=engine),
    }
    assert torch.autograd.gradcheck(calls[name], (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_own_pairs_and_tables(engine: str) -> None:
    x, len_x = ragged(10, 3, 4, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x: vk.gak(x, None, len_x, sigma=1.1, engine=engine), x.requires_grad_())
    table = (1 + torch.rand(2, 3, 4, 5, dtype=torch.float64)).requires_grad_()
    a, b = torch.zeros(2, 4, 1, dtype=torch.float64), torch.zeros(3, 5, 1, dtype=torch.float64)
    for call in (
        lambda d: vk.soft_dtw(a, b, gamma=0.8, distance=d, engine=engine),
        lambda d: vk.dtw(a, b, distance=d, engine=engine),
        lambda d: vk.gak(a, b, sigma=1.0, normalize=False, distance=d, engine=engine),
    ):
        assert torch.autograd.gradcheck(call, table)


def test_dtw_gradient_follows_one_best_path() -> None:
    x, _ = ragged(11, 2, 5, 2, torch.float64)
    y, _ = ragged(12, 3, 4, 2, torch.float64)
    assert torch.autograd.gradcheck(vk.dtw, (x.requires_grad_(), y.requires_grad_()))


def test_alignments() -> None:
    x, y = ragged(13, 1, 6, 2, torch.float64)[0][0], ragged(14, 1, 4, 2, torch.float64)[0][0]
    path = vk.alignment_path(x, y)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [5, 3]
    steps = path.diff(dim=0)
    assert bool(((steps >= 0) & (steps <= 1)).all())
    assert bool((steps.sum(1) >= 1).all())
    cost = vk.squared_distance(x, y)[path[:, 0], path[:, 1]].sum()
    close(cost, vk.dtw(x[None], y[None])[0, 0])
    soft = vk.expected_alignment(x, y, gamma=1e-4)
    assert soft.round().nonzero().tolist() == path.tolist()
    table = vk.squared_distance(x, y)[None, None].requires_grad_()
    vk.soft_dtw(x[None], y[None], gamma=0.7, distance=table).sum().backward()
    close(vk.expected_alignment(x, y, gamma=0.7), table.grad[0, 0])


@pytest.mark.parametrize("engine", ENGINES)
def test_triple_distance(engine: str) -> None:
    """Same modality: the first part; different: the second; and GAK over it equals GAK over its table."""
    x, len_x = ragged(15, 5, 4, 7, torch.float64)
    y, len_y = ragged(16, 6, 3, 7, torch.float64)
    kind_x, kind_y = torch.randint(0, 2, (5, 4)), torch.randint(0, 2, (6, 3))
    d = vk.triple_distance(x[:, None], y[None], kind_x[:, None], kind_y[None], 3)
    for a, b, i, j in ((0, 0, 0, 0), (1, 2, 3, 1), (4, 5, 2, 2), (3, 1, 1, 0)):
        part = slice(0, 3) if kind_x[a, i] == kind_y[b, j] else slice(3, 7)
        close(d[a, b, i, j], (x[a, i, part] - y[b, j, part]).square().sum())
    flags = {"modality_x": kind_x, "modality_y": kind_y, "split": 3}
    plain = vk.gak(x, y, len_x, len_y, 1.3, normalize=False, engine=engine, **flags)
    close(plain, vk.gak(x, y, len_x, len_y, 1.3, normalize=False, distance=d, engine="reference"))
    sigma = 0.7 * ((len_x[:, None] + len_y[None]) / 2).sqrt()
    close(
        vk.gak(x, y, len_x, len_y, sigma, engine=engine, **flags),
        vk.gak(x, y, len_x, len_y, sigma, engine="reference", **flags),
    )
    own = vk.gak(x, None, len_x, sigma=0.9, modality_x=kind_x, split=3, engine=engine)
    close(own.diagonal(), torch.ones(5))


def test_everything_goes_to_the_device_of_x() -> None:
    """Device "meta" stands for a GPU: an operation that mixes it with the CPU raises."""
    x = torch.randn(3, 4, 6)
    kind = torch.randint(0, 2, (3, 4))
    problem = inputs.Problem(x, None, torch.tensor([4, 3, 2]), None, kind.to(torch.int32), None, 3, None)
    assert problem.modality.x.device == problem.len_x.device == x.device
    far = x.to("meta")
    assert vk.triple_distance(far, far, kind, kind, 3).device.type == "meta"
    modality = inputs.check_modality(far, far, kind, kind, 3)
    assert modality.x.device.type == modality.y.device.type == "meta"
    assert api.one_table(far[0], far[1], torch.ones(4, 4))[0].device.type == "meta"
    assert {tensor.device.type for tensor in api.one_table(far[0], far[1], None)} == {"meta"}


def test_orthonormal_slices() -> None:
    """Five orthonormal slices, delta 0.7: order counts (swap .50, reversal .10, last doubled .77, one of five .004)."""
    eye = torch.eye(10, dtype=torch.float64)
    original = [0, 1, 2, 3, 4]
    variants = {
        (1, 0, 2, 3, 4): 0.50,
        (4, 3, 2, 1, 0): 0.10,
        (5, 6, 7, 8, 9): 0.06,
        (0, 1, 2, 3, 4, 4): 0.77,
        (0, 1, 2, 3): 0.45,
        (0,): 0.004,
    }
    for variant, expected in variants.items():
        sigma = 0.7 * math.sqrt((5 + len(variant)) / 2)
        value = float(vk.gak(eye[original][None], eye[list(variant)][None], sigma=sigma, engine="torch"))
        assert value == pytest.approx(expected, abs=0.006)


def test_length_decay_of_identical_content() -> None:
    """Normalised GAK of identical slices still falls with the lengths' difference."""
    x = torch.ones(1, 9, 2, dtype=torch.float64)
    for (n, m), expected in {
        (4, 5): 0.91,
        (8, 9): 0.95,
        (5, 9): 0.40,
        (1, 2): 0.58,
        (1, 5): 0.056,
        (1, 9): 0.002,
    }.items():
        value = float(vk.gak(x, x, torch.tensor([n]), torch.tensor([m]), engine="torch"))
        assert value == pytest.approx(expected, abs=0.006)


def test_long_sequences_neither_overflow_nor_vanish() -> None:
    """K of two long equal sequences is about 1e97; its logarithm and its normalised value stay exact in float32."""
    x = torch.zeros(2, 128, 2)
    x[1] += 0.01
    assert float(vk.gak(x, normalize=False, log=True)[0, 0]) == pytest.approx(
        float(vk.gak(x.double(), normalize=False, log=True, engine="reference")[0, 0]), rel=1e-6
    )
    close(vk.gak(x, sigma=1.0), vk.gak(x.double(), sigma=1.0, engine="reference"), 5e-5)


BAD = {
    "dtype": (TypeError, "float32 or float64", lambda x: vk.dtw(x.half())),
    "dims": (ValueError, "sequences, length, dim", lambda x: vk.dtw(x[0])),
    "other dim": (ValueError, "must agree", lambda x: vk.dtw(x, x[..., :1])),
    "length 0": (ValueError, "must lie in 1..4", lambda x: vk.dtw(x, None, torch.tensor([0, 4, 4]))),
    "length 5": (ValueError, "must lie in 1..4", lambda x: vk.dtw(x, None, torch.tensor([5, 4, 4]))),
    "lengths' shape": (ValueError, "3 integers", lambda x: vk.dtw(x, None, torch.tensor([4, 4]))),
    "lengths' dtype": (ValueError, "3 integers", lambda x: vk.dtw(x, None, torch.ones(3))),
    "nan": (ValueError, "must be finite", lambda x: vk.dtw(x / 0)),
    "sigma 0": (ValueError, "sigma is", lambda x: vk.gak(x, sigma=0.0)),
    "sigma's shape": (ValueError, "broadcast", lambda x: vk.gak(x, sigma=torch.ones(2, 3))),
    "gamma": (ValueError, "gamma is", lambda x: vk.soft_dtw(x, gamma=-1.0)),
    "engine": (ValueError, "engine is", lambda x: vk.dtw(x, engine="numpy")),
    "half the triple": (ValueError, "together", lambda x: vk.gak(x, split=1)),
    "split": (ValueError, "split is 2", lambda x: vk.gak(x, modality_x=torch.ones(3, 4), split=2)),
    "modality": (ValueError, "modality_x has shape", lambda x: vk.gak(x, modality_x=torch.ones(3), split=1)),
    "table": (ValueError, "distance has shape", lambda x: vk.dtw(x, x, distance=torch.ones(3, 3, 4, 5))),
    "table normalised": (ValueError, "normalize=True", lambda x: vk.gak(x, x, distance=torch.ones(3, 3, 4, 4))),
    "both": (
        ValueError,
        "not both",
        lambda x: vk.gak(
            x, x, modality_x=torch.ones(3, 4), modality_y=torch.ones(3, 4), split=1, distance=torch.ones(3, 3, 4, 4)
        ),
    ),
    "neither": (ValueError, "either gamma", lambda x: vk.expected_alignment(x[0], x[0])),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_sentence(case: str) -> None:
    error, words, call = BAD[case]
    with pytest.raises(error, match=words):
        call(torch.randn(3, 4, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu(dtype: torch.dtype) -> None:
    x, len_x = ragged(20, 21, 9, 3, dtype)
    for call in (vk.gak, vk.soft_dtw, vk.dtw):
        close(call(x.cuda(), None, len_x.cuda()).cpu(), call(x, None, len_x, engine="reference"))
