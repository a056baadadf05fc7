"""The wavefront's CUDA, run on the CPU (`emulation.py`), against the float64 reference; and what NVRTC makes of it."""

import io
import itertools
import math
import re

import emulation
import pytest
import torch

import vlws_kernels as vk
from vlws_kernels import costs, cuda, torch_engine, wavefront
from vlws_kernels import engine as engines
from vlws_kernels.inputs import Problem

pytestmark = pytest.mark.skipif(engines.compiler() is None, reason="no C++ compiler")
RULES = ("gak", "soft", "dtw")
SHAPES = {  # a, b, n, m, dim: what of the kernels each shape reaches
    "8 threads a pair": (5, 4, 7, 9, 3),
    "16 threads a pair, many dimensions": (3, 5, 12, 20, 70),
    "a warp a pair, one row each": (3, 2, 31, 40, 4),
    "two rows each": (2, 3, 33, 5, 4),
    "four rows each": (2, 2, 100, 9, 4),
    "eight rows each": (2, 2, 200, 30, 4),
    "strips": (3, 2, 600, 11, 2),
    "one element": (3, 3, 1, 1, 2),
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every alignment by the wavefront, its kernels emulated."""
    engines.operations()
    monkeypatch.setattr(cuda, "launch", emulation.launch)
    monkeypatch.setattr(engines, "launchable", lambda engine, *_: "wavefront" if engine == "keops" else engine)


def problem_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0, far: float = 0) -> Problem:
    """Random ragged sequences about a point that lies `far` from 0."""
    a, b, n, m, dim = shape
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*size, dim, generator=generator, dtype=dtype) + far for size in ((a, n), (b, m)))
    lengths = [torch.randint(1, size + 1, (count,), generator=generator) for count, size in ((a, n), (b, m))]
    for some, size in zip(lengths, (n, m), strict=True):
        some[0] = size
    return Problem(x, y, *lengths, None, None, None, None)


def scale_of(rule: str, problem: Problem) -> torch.Tensor:
    return problem.per_pair(1.0 if rule == "dtw" else 0.7 / problem.x.shape[-1], "scale")


def truth(rule: str, problem: Problem, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values "a b" and costs "a b n m" in float64."""
    d = (problem.x.double()[:, None, :, None] - problem.y.double()[None, :, None]).square().sum(-1)
    a, b, *_ = problem.shape
    pairs = problem.len_x.repeat_interleave(b), problem.len_y.repeat(a), scale.expand(a, b).flatten()
    return torch_engine.align_tables(rule, d.flatten(0, 1), *pairs).view(a, b), d


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(rule: str, shape: tuple[int, ...]) -> None:
    problem = problem_of(shape)
    scale = scale_of(rule, problem)
    expected, d = truth(rule, problem, scale)
    torch.testing.assert_close(wavefront.align_points(rule, problem, scale), expected, rtol=3e-6, atol=3e-5)

    (a, b, *_), grad = problem.shape, torch.randn(problem.shape[:2], generator=torch.Generator().manual_seed(1))
    pairs = problem.len_x.repeat_interleave(b), problem.len_y.repeat(a), scale.expand(a, b).flatten()
    slopes = torch_engine.cost_gradient(rule, d.flatten(0, 1), *pairs).view_as(d) * grad[..., None, None]
    x, y = problem.x.double(), problem.y.double()
    of_x = 2 * (x * slopes.sum((1, 3))[..., None] - torch.einsum("abnm,bmd->and", slopes, y))
    of_y = 2 * (y * slopes.sum((0, 2))[..., None] - torch.einsum("abnm,and->bmd", slopes, x))
    for found, wanted in zip(wavefront.point_gradients(rule, problem, scale, grad), (of_x, of_y), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("rule", RULES)
def test_double_precision(rule: str) -> None:
    problem = problem_of(SHAPES["two rows each"], torch.float64)
    scale = scale_of(rule, problem)
    expected, _ = truth(rule, problem, scale)
    torch.testing.assert_close(wavefront.align_points(rule, problem, scale), expected, rtol=1e-12, atol=1e-12)


def test_near_elements_far_from_zero() -> None:
    """Where |x|^2 + |y|^2 - 2 x.y would leave nothing of a distance, it is formed from the differences."""
    problem = problem_of((3, 4, 12, 9, 40), far=1000.0)
    near = Problem(problem.x, problem.x + 1e-2, problem.len_x, problem.len_x, None, None, None, None)
    for given in (problem, near):
        expected, _ = truth("soft", given, given.per_pair(1.0, "scale"))
        found = wavefront.align_points("soft", given, given.per_pair(1.0, "scale"))
        torch.testing.assert_close(found, expected, rtol=3e-6, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_of_nothing_and_beyond_all(dtype: torch.dtype) -> None:
    """From costs of 0 to such that the exponents cannot hold: those are done in the log domain, never cut silently."""
    zero = Problem(torch.zeros(2, 40, 3, dtype=dtype), None, None, None, None, None, None, None)
    count = wavefront.align_points("soft", zero, zero.per_pair(1.0, "scale"))
    torch.testing.assert_close(count, truth("soft", zero, zero.per_pair(1.0, "scale"))[0], rtol=1e-6, atol=0)
    for size in (1e2, 1e4, 1e6):
        problem = problem_of((2, 3, 40, 40, 2), dtype)
        far = Problem(problem.x * size, problem.y * size, None, None, None, None, None, None)
        expected, _ = truth("soft", far, far.per_pair(1.0, "scale"))
        found = wavefront.align_points("soft", far, far.per_pair(1.0, "scale"))
        torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-4)


@pytest.mark.parametrize("own_scale", [False, True])
def test_x_with_itself_in_chunks(own_scale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the pairs are computed, chunk by chunk, and the gradient is that of all."""
    problem = problem_of((7, 1, 10, 3, 4))
    lengths = problem.len_x.double()
    sigma = 2 + (lengths[:, None] * lengths).sqrt() / 5 if own_scale else 2.0
    monkeypatch.setattr(costs, "CHUNK", 3 * 7 * 10 * 10)
    found = {}
    for engine in ("keops", "reference"):
        x = problem.x.clone().requires_grad_()
        value = vk.gak(x, None, problem.len_x, sigma=sigma, engine=engine)
        value.mul(torch.arange(49.0).view(7, 7).cos()).sum().backward()
        found[engine] = value.detach(), x.grad
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["modalities", "table"])
def test_given_costs(rule: str, form: str) -> None:
    """Modality-aware distances and tables of the caller's, values and gradients."""
    problem = problem_of((3, 2, 9, 11, 6))
    generator = torch.Generator().manual_seed(3)
    found = {}
    for engine in ("keops", "reference"):
        x, y = (side.clone().requires_grad_() for side in (problem.x, problem.y))
        table = torch.rand(problem.shape, generator=generator.manual_seed(4)).requires_grad_()
        about = {"distance": table}
        if form == "modalities":
            kinds = [torch.randint(0, 2, side.shape[:2], generator=generator.manual_seed(5)) for side in (x, y)]
            about = {"modality_x": kinds[0], "modality_y": kinds[1], "split": 2}
        more = {"gak": {"sigma": 2.0, "normalize": form != "table"}, "soft": {"gamma": 0.7}, "dtw": {}}[rule]
        call = {"gak": vk.gak, "soft": vk.soft_dtw, "dtw": vk.dtw}[rule]
        value = call(x, y, problem.len_x, problem.len_y, **about, **more, engine=engine)
        (value * torch.tensor([[1.0, -2.0], [0.5, 3.0], [1.5, 1.0]])).sum().backward()
        found[engine] = (value.detach(), *((x.grad, y.grad) if form == "modalities" else (table.grad,)))
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6 * float(theirs.abs().max()))


def test_a_thread_that_leaves_its_warp_is_found() -> None:
    """The emulation sees what a GPU would hang on."""
    source = 'extern "C" __global__ void wave(int n) { if (threadIdx.x < 8) __shfl_up_sync(0xffffffffu, n, 1, 32); }'
    with pytest.raises(AssertionError, match="ended while others"):
        emulation.launch(source, "wave", 32, 32, [("int", 1)])


def test_three_products_of_ten_bits_are_as_exact_as_one_of_all() -> None:
    x, y = (torch.randn(40, 300, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    (x_high, x_rest), (y_high, y_rest) = wavefront.split_tf32(x), wavefront.split_tf32(y)
    assert torch.equal(x_high + x_rest, x)
    assert not int((x_high.view(torch.int32) & 8191).count_nonzero())
    exact = x.double() @ y.double().T
    three = (
        x_high.double() @ y_high.double().T + x_high.double() @ y_rest.double().T + x_rest.double() @ y_high.double().T
    )
    assert float((three - exact).abs().max()) < 3 * float((x @ y.T - exact).abs().max())
    assert float((x_high @ y_high.T - exact).abs().max()) > 100 * float((three - exact).abs().max())


# --- what NVRTC makes of it -------------------------------------------------------------------------------------------

FORMS = [
    (dtype, rule, part, dots, width, rows)
    for dtype, rule, part, dots in itertools.product(
        ("float", "double"), RULES, ("values", "tables", "slopes"), (True, False)
    )
    for width, rows in ((8, 1), (16, 1), (32, 1), (32, 2), (32, 4), (32, 8))
    if not (rule == "dtw" and part == "slopes")
]
REGISTERS = {"float": 208, "double": 255}  # of a thread


def resources(source: str, arch: str) -> tuple[int, int, int]:
    """Registers, bytes of stack, bytes of spills of the one kernel of a source, as ptxas counts them."""
    from cuda.core import Program, ProgramOptions

    said = io.StringIO()
    options = ProgramOptions(arch=arch, prec_div=False, ptxas_options="-v")
    assert len(Program(source, "c++", options).compile("cubin", logs=said).code) > 1000
    stack, stores, loads = map(
        int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", said.getvalue()).groups()
    )
    return int(re.search(r"Used (\d+) registers", said.getvalue())[1]), stack, stores + loads


needs_nvrtc = pytest.mark.skipif(cuda.missing() is not None, reason=f"{cuda.missing()}")


OTHERS = [pytest.param(arch, marks=pytest.mark.archs) for arch in ("sm_80", "sm_100")]  # half a minute each


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_90", *OTHERS])
def test_every_source_compiles_and_spills_nothing(arch: str) -> None:
    from vlws_kernels import wave_code

    sources = {form: wave_code.wave_kernel(*form).source for form in FORMS}
    sources |= {(dtype, "path"): wave_code.path_kernel(dtype, True, 32, 4).source for dtype in ("float", "double")}
    for form, source in sources.items():
        registers, stack, spilled = resources(source, arch)
        assert (stack, spilled) == (0, 0), form
        assert registers <= REGISTERS[form[0]], (form, registers)


@needs_nvrtc
def test_what_does_not_compile_says_so() -> None:
    with pytest.raises(Exception, match="not_a_type"):
        cuda.compiled('extern "C" __global__ void wave(not_a_type x) {}', "sm_90")


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *rest):
        if name.startswith("cuda.core"):
            raise ImportError("No module named 'cuda'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    cuda.missing.cache_clear()
    try:
        assert "pip install cuda-core cuda-bindings" in cuda.missing()
    finally:
        cuda.missing.cache_clear()


def test_shapes_reach_every_width_and_number_of_rows() -> None:
    from vlws_kernels import wave_code

    reached = {wave_code.shape_of(n) for n in range(1, 600)}
    assert reached == {(8, 1), (16, 1), *((32, rows) for rows in wave_code.ROWS)}
    assert all(math.prod(wave_code.shape_of(n)) >= n for n in range(1, 257))
