"""What a GPU can launch, told from shapes alone, and the torch engine where it cannot; no GPU is needed."""

import warnings

import pytest
import torch

import vlws_kernels as vk
from vlws_kernels import cuda, shapes
from vlws_kernels import engine as engines

CUDA = torch.device("cuda")


def block_of_keops(shared: int) -> int:
    """Threads of a block, by the formula of KeOps's host code (keops_nvrtc.cpp), which then divides by it."""
    return min(192, 1024, 49152 // max(1, shared))


@pytest.mark.parametrize("cost", ["points", "table"])
@pytest.mark.parametrize("rule", ["gak", "soft", "dtw"])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_refused_is_exactly_what_has_no_block_or_too_much_local_memory(rule: str, cost: str, itemsize: int) -> None:
    seen = set()
    for n in (1, 8, 32, 33, 128, 129, 512, 600, 2000):
        for m in (1, 8, 9, 32, 128, 512, 600):
            for dim in (1, 2, 8, 16, 17, 31, 32, 48, 95, 96, 97, 191, 192, 193, 384, 1536):
                shared, local = shapes.cuda_bytes(rule, cost, n, m, dim, itemsize)
                fits = block_of_keops(shared) > 0 and local <= 512 * 1024
                assert (shapes.launch_refusal(rule, cost, n, m, dim, itemsize) is None) == fits
                seen.add(fits)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("n", "dim", "itemsize", "fits"),
    [  # shared memory of y_j: 4 (2 m dim + m + 1) bytes from dim 32 on, 4 (m dim + 1) below it
        (32, 16, 4, True),
        (32, 176, 4, True),
        (32, 192, 4, False),  # 49,284 bytes
        (32, 193, 4, False),
        (128, 32, 4, True),
        (128, 48, 4, False),
        (512, 16, 4, True),
        (512, 17, 4, False),  # padded to 32, and wide
        (600, 4, 4, True),  # padded to 2048: 32,772 bytes
        (600, 8, 4, False),
        (32, 96, 8, False),
        (32, 80, 8, True),
        (128, 16, 8, True),
    ],
)
def test_limit_of_shared_memory(n: int, dim: int, itemsize: int, fits: bool) -> None:
    assert (shapes.launch_refusal("soft", "points", n, n, dim, itemsize) is None) == fits


def test_limit_of_local_memory() -> None:
    assert shapes.launch_refusal("soft", "table", 128, 512, 1, 4) is None  # 271 KB
    assert "local memory" in shapes.launch_refusal("soft", "table", 512, 512, 1, 4)
    assert "64 KB of local memory" in shapes.launch_refusal("soft", "table", 128, 512, 1, 4, 64 * 1024)
    assert shapes.launch_refusal("soft", "points", 512, 8, 40, 4, 64 * 1024) is not None  # only x is long
    assert shapes.local_limit(80 * 2**30, 132 * 2048) == 40 * 2**30 // (132 * 2048)
    assert shapes.local_limit(10**15, 1024) == 512 * 1024


@pytest.mark.skipif(engines.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(("rule", "dim"), [("gak", 2), ("soft", 48), ("dtw", 40)])
def test_bytes_are_those_of_the_formula(rule: str, dim: int) -> None:
    """The variables that a GPU launch declares, counted from the operation itself."""
    ops, n, m = engines.operations(), 32, 8
    padded = shapes.bucket_dim(dim)
    sizes = {"": padded, "shifted_": padded, "norm_": 1}
    of_x = of_y = 0
    for name in ops.align_names(rule, "points", padded):
        prefix, side = ("", "x") if name == "scale" else (name[:-1], name[-1])
        size = 1 if name == "scale" or prefix == "len_" else sizes[prefix] * (n if side == "x" else m)
        of_x, of_y = (of_x + size, of_y) if side == "x" else (of_x, of_y + size)
    outputs, rows = (1, m) if rule == "dtw" else (2, 2 * m)
    assert shapes.cuda_bytes(rule, "points", n, m, dim, 4) == (4 * of_y, 4 * (of_x + 2 * rows + outputs))


class OnGpu:
    """What `launchable` asks of a tensor that lies on a GPU."""

    device = CUDA

    def __init__(self, dim: int) -> None:
        self.shape = (1, 1, dim)

    def element_size(self) -> int:
        return 4


def test_what_a_gpu_cannot_launch_is_done_by_torch_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "local_memory", lambda device: shapes.LOCAL_BYTES)
    monkeypatch.setattr(cuda, "missing", lambda: "cuda-core is not installed")
    engines.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert engines.launchable("keops", "gak", "points", 32, 32, OnGpu(64)) == "keops"
        assert engines.launchable("keops", "gak", "points", 32, 32, torch.ones(1, 1, 1536)) == "keops"  # on the CPU
        assert not seen
        for dim in (192, 1536):
            assert engines.launchable("keops", "gak", "points", 32, 32, OnGpu(dim)) == "torch"
        assert engines.launchable("keops", "gak", "table", 512, 512, OnGpu(8)) == "torch"
        assert engines.launchable("reference", "gak", "points", 512, 512, OnGpu(8)) == "reference"
    assert [str(warning.message).split(", and cuda-core is not installed, so")[0] for warning in seen] == [
        "vlws_kernels: on the GPU one sequence needs more than the 48 KB of shared memory of a block",
        "vlws_kernels: on the GPU one pair needs more than the 512 KB of local memory of a thread",
    ]


@pytest.mark.parametrize(("toolkit", "best"), [(True, "keops"), (False, "wavefront")])
def test_a_gpu_has_threads_alone_for_short_sequences(toolkit: bool, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where KeOps has its toolkit; all else is the wavefront's."""
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(engines, "keops_has_cuda", lambda: toolkit)
    monkeypatch.setattr(engines, "local_memory", lambda device: shapes.LOCAL_BYTES)
    assert engines.launchable("keops", "gak", "points", 16, 9, OnGpu(16)) == best
    assert engines.launchable("keops", "gak", "table", 16, 9, OnGpu(500)) == best
    assert engines.launchable("keops", "gak", "points", 16, 9, OnGpu(17)) == "wavefront"
    assert engines.launchable("keops", "soft", "points", 17, 9, OnGpu(2)) == "wavefront"
    assert engines.launchable("torch", "soft", "points", 17, 9, OnGpu(2)) == "torch"


@pytest.mark.parametrize("own", [True, False])
def test_each_launch_of_a_call_asks_first(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs and the items with themselves: where the answer is torch, KeOps is not reached."""
    asked = []

    def refuse(engine: str, rule: str, cost: str, n: int, m: int, x: torch.Tensor) -> str:
        asked.append((rule, cost, n, m))
        return "torch"

    monkeypatch.setattr(engines, "launchable", refuse)
    monkeypatch.setattr(engines, "choose", lambda engine, *tensors: "keops")
    monkeypatch.setattr(engines, "reduce", lambda *args, **options: pytest.fail("KeOps was launched"))
    x, y = torch.randn(3, 4, 2).requires_grad_(), torch.randn(2, 5, 2).requires_grad_()
    # On a CPU items with themselves are asked about where they are compared by modalities, on a GPU always.
    kinds = [torch.arange(side.shape[0] * side.shape[1]).view(side.shape[:2]) % 2 for side in (x, y)]
    about = {} if own else {"y": y, "modality_x": kinds[0], "modality_y": kinds[1], "split": 1}
    kernel = vk.gak(x, **about)
    kernel.sum().backward()
    tables = [("gak", "table", *size) for size in ((4, 5), (4, 4), (5, 5))]
    assert asked == ([("gak", "points", 4, 4)] if own else tables)
    monkeypatch.undo()
    torch.testing.assert_close(kernel, vk.gak(x, **about, engine="reference"))
