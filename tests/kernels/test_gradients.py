"""Gradients of alignments by generated kernels on a CPU, against those of the torch engine in float64."""

import pytest
import torch

import vlws_kernels as vk
from vlws_kernels import engine as engines
from vlws_kernels import keops, torch_engine

pytestmark = pytest.mark.skipif(engines.compiler() is None, reason="no C++ compiler")


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own_widths(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    return 1 + torch.rand(len(x), len(x if y is None else y), generator=drawn(5))


RULES = {
    "gak": lambda x, y, len_x, len_y, **more: vk.gak(
        x, y, len_x, len_y, sigma=x.shape[-1] ** 0.5, normalize=False, log=True, **more
    ),
    "gak, normalised": lambda x, y, len_x, len_y, **more: vk.gak(
        x, y, len_x, len_y, sigma=x.shape[-1] ** 0.5, log=True, **more
    ),
    "gak, a sigma a pair": lambda x, y, len_x, len_y, **more: vk.gak(
        x, y, len_x, len_y, sigma=x.shape[-1] ** 0.5 * own_widths(x, y), **more
    ),
    "soft": lambda x, y, len_x, len_y, **more: vk.soft_dtw(x, y, len_x, len_y, gamma=0.7, **more),
    "dtw": vk.dtw,
}
SHAPES = {  # a, b (0: x with itself), n, m, dim, dtype
    "few dimensions": (5, 20, 7, 6, 3, torch.float32),
    "many dimensions": (6, 18, 20, 9, 40, torch.float32),
    "x with itself": (20, 0, 12, 0, 4, torch.float32),
    "x with itself, many dimensions": (19, 0, 9, 0, 40, torch.float32),
    "double": (4, 9, 12, 9, 5, torch.float64),
    "one element": (3, 2, 1, 1, 2, torch.float64),
}


def gradients(rule: str, x: torch.Tensor, y: torch.Tensor | None, lengths: tuple, engine: str) -> list[torch.Tensor]:
    leaves = [side.clone().requires_grad_() for side in (x, y) if side is not None]
    value = RULES[rule](leaves[0], leaves[1] if len(leaves) > 1 else None, *lengths, engine=engine)
    weight = torch.randn(value.shape, generator=drawn(9), dtype=torch.float64)
    return list(torch.autograd.grad((value.double() * weight).sum(), leaves))


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the torch engine for a gradient fails, if it was to be done by a kernel."""
    real = torch_engine.cost_gradient

    def cost_gradient(rule, d, *rest):
        assert expected, "the torch engine formed a gradient of the kernels"
        return real(rule, d, *rest)

    expected: list[bool] = []
    monkeypatch.setattr(torch_engine, "cost_gradient", cost_gradient)
    return expected


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernels_equal_float64(rule: str, shape: tuple, no_torch: list) -> None:
    a, b, n, m, dim, dtype = shape
    generator = drawn(0)
    x = torch.randn(a, n, dim, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(b, m, dim, generator=generator, dtype=torch.float64).to(dtype) if b else None
    lengths = (
        torch.randint(1, n + 1, (a,), generator=generator),
        (torch.randint(1, m + 1, (b,), generator=generator) if b else None),
    )
    ours = gradients(rule, x, y, lengths, "keops")
    no_torch.append(True)
    theirs = gradients(rule, x.double(), None if y is None else y.double(), lengths, "torch")
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            found.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("rule", ["gak", "soft", "dtw"])
@pytest.mark.parametrize("dim", [3, 40])
def test_registers_of_every_width(width: int, rule: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSE and NEON, AVX2, AVX-512: compilers take vectors of any width, on whatever CPU this is."""
    monkeypatch.setattr(engines.operations(), "VECTOR_BYTES", width)
    x, y = torch.randn(4, 7, dim, generator=drawn(6)), torch.randn(19, 6, dim, generator=drawn(7))
    assert keops.lanes_of(x) == width // 4
    lengths = torch.tensor([7, 1, 4, 6]), None
    value = RULES[rule](x, y, *lengths, engine="keops")
    expected = RULES[rule](x.double(), y.double(), *lengths, engine="reference")
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=2e-6)
    ours = gradients(rule, x, y, lengths, "keops")
    theirs = gradients(rule, x.double(), y.double(), lengths, "torch")
    for found, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=2e-6, atol=2e-6 * float(right.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_sequences_far_apart(dtype: torch.dtype, no_torch: list) -> None:
    """Most cells are passed with a probability that no float holds: such slopes are 0, the others as exact as ever."""
    x = 6 * torch.randn(3, 70, 3, generator=drawn(8), dtype=torch.float64)
    ours = gradients("soft", x.to(dtype), None, (None, None), "keops")[0]
    no_torch.append(True)
    theirs = gradients("soft", x.to(dtype).double(), None, (None, None), "torch")[0]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10  # theirs sums logarithms of thousands
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_many_dimensions_far_from_zero(no_torch: list) -> None:
    """The sums of S (x - y) are formed of x and y less their mean."""
    x = torch.randn(6, 9, 40, generator=drawn(1)) + 300
    ours = gradients("soft", x, None, (None, None), "keops")[0]
    no_torch.append(True)
    theirs = gradients("soft", x.double(), None, (None, None), "torch")[0]
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("why", ["costs", "stack"])
def test_what_kernels_cannot_do_is_done_in_float64(why: str, no_torch: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that exponents cannot hold; results that are larger than a stack."""
    no_torch.append(True)
    x = torch.randn(3, 8, 2, generator=drawn(2)) * (1e6 if why == "costs" else 1)
    monkeypatch.setattr(keops, "STACK_BYTES", 100 if why == "stack" else keops.STACK_BYTES)
    monkeypatch.setattr(keops, "slopes_of", lambda *_: pytest.fail("a kernel was launched"))
    ours = gradients("soft", x, None, (None, None), "keops")[0]
    theirs = gradients("soft", x.double(), None, (None, None), "torch")[0]
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


def test_blocks_are_done_in_chunks(no_torch: list, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 5, 3, generator=drawn(3))
    whole = gradients("gak", x, None, (None, None), "keops")[0]
    monkeypatch.setattr(keops, "CHUNK", 1)
    torch.testing.assert_close(gradients("gak", x, None, (None, None), "keops")[0], whole, rtol=1e-6, atol=1e-6)
