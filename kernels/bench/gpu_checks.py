"""What `gpu.py` does one by one: each kernel against float64 on the CPU, and timed against torch on the same device."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import peers
import torch
from torch import Tensor

import vlws_kernels as vk

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}  # of values and gradients, relative to max(1, |value|)
PARAMETER = {"gak": {"sigma": 0.7, "log": True}, "soft_dtw": {"gamma": 0.3}, "dtw": {}}
ALIGNMENTS = {"gak": vk.gak, "soft_dtw": vk.soft_dtw, "dtw": vk.dtw}
FORMS = ("ragged", "symmetric", "table", "modality", "degenerate")
SIZES = {  # a, b, n, m, dim; of cuda KeOps does the first, and the last two are those that it cannot launch
    "cpu": [(7, 5, 8, 6, 2)],
    "cuda": [(7, 5, 8, 6, 2), (6, 5, 30, 25, 16), (5, 4, 20, 20, 64), (3, 2, 600, 150, 2), (3, 2, 32, 32, 1536)],
}
MOST_CELLS = 2**34  # of all tables of a timing
PEER_CELLS = 2**30  # of all tables of a peer, which holds several at once
TIMED = {  # items, length, dim
    "cpu": [(12, 8, 2)],
    "cuda": [
        (n, length, dim)
        for n in (256, 1024, 4096)
        for length in (8, 32, 128, 512)
        for dim in (16, 256, 1536)
        if (n * length) ** 2 <= MOST_CELLS
    ],
}
OTHERS = {  # the same of soft-DTW and DTW, and of a gradient
    "cpu": [(12, 8, 2)],
    "cuda": [(256, 32, 16), (1024, 32, 256), (1024, 32, 1536), (1024, 128, 64), (256, 512, 16)],
}


@dataclass(frozen=True)
class Check:
    """One step: `run` gives `errors` (each at most `tolerance`), or milliseconds of ours and of the peer."""

    name: str
    run: Callable[[], dict]


def checks(device: str) -> list[Check]:
    """All steps on "cuda" or, at small sizes, on "cpu"; nothing touches the device before `run` is called."""
    return [*alignment_checks(device), *point_checks(device), *point_timings(device), *alignment_timings(device)]


def alignment_checks(device: str) -> list[Check]:
    """Values and gradients of the alignments, for each form of input."""
    found = []
    for sizes in SIZES[device]:
        shape = f"{sizes[2]}x{sizes[3]} D{sizes[4]}"
        for function in ALIGNMENTS:
            for form in FORMS if sizes == SIZES[device][0] else ("ragged",):
                run = functools.partial(alignment, device, function, form, sizes, torch.float32)
                found.append(Check(f"check {function} {form} {shape} float32", run))
        run = functools.partial(alignment, device, "soft_dtw", "ragged", sizes, torch.float64)
        found.append(Check(f"check soft_dtw ragged {shape} float64", run))
    for name in ("alignment_path", "expected_alignment"):
        found.append(Check(f"check {name}", functools.partial(one_pair, device, name)))
    return found


def alignment(device: str, function: str, form: str, sizes: tuple[int, ...], dtype: torch.dtype) -> dict:
    """Errors of values and gradients on `device` against float64 on the CPU."""
    a, b, n, m, dim = sizes
    x, len_x = sequences(1, a, n, dim)
    y, len_y = sequences(2, b, m, dim)
    options: dict = {**PARAMETER[function], "len_x": len_x, "len_y": len_y}
    if form == "degenerate":  # equal and near sequences, one far away, lengths of 1
        x[1], x[2], x[-1] = x[0], x[0] + 1e-3, x[-1] * 300
        len_x[:2] = 1
    elif form == "table":
        distance = torch.rand(a, b, n, m, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        options |= {"distance": distance} | ({"normalize": False} if function == "gak" else {})
    elif form == "modality":
        generator = torch.Generator().manual_seed(6)
        kinds = (torch.randint(2, size, generator=generator) for size in ((a, n), (b, m)))
        options |= dict(zip(("modality_x", "modality_y"), kinds, strict=True)) | {"split": dim // 2}
    elif form == "symmetric":
        del options["len_y"]
    inputs = {"x": x} if form == "symmetric" else {"x": x, "y": y}
    if form == "table":
        inputs["distance"] = options.pop("distance")

    def once(where: str, kind: torch.dtype, engine: str | None) -> dict[str, Tensor]:
        leaves = {key: value.to(where, dtype).to(kind).requires_grad_() for key, value in inputs.items()}
        value = ALIGNMENTS[function](**leaves, **options, engine=engine)
        weight = torch.rand(value.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(where)
        grads = torch.autograd.grad((value.double() * weight).sum(), list(leaves.values()), allow_unused=True)
        named = zip((f"gradient of {key}" for key in leaves), grads, strict=True)
        return {"value": value} | {key: grad for key, grad in named if grad is not None}

    got, want = once(device, dtype, None), once("cpu", torch.float64, "torch")
    return {"errors": {key: off(got[key], want[key]) for key in want}, "tolerance": TOLERANCE[dtype]}


def one_pair(device: str, name: str) -> dict:
    """The alignments of one pair on `device` against the CPU."""
    x, y = sequences(1, 1, 9, 3)[0][0].float(), sequences(2, 1, 7, 3)[0][0].float()
    call = {
        "alignment_path": vk.alignment_path,
        "expected_alignment": functools.partial(vk.expected_alignment, gamma=0.3),
    }
    got, want = (call[name](x.to(where), y.to(where)) for where in (device, "cpu"))
    return {"errors": {"value": off(got, want)}, "tolerance": 1e-5}


POINTS: dict[str, Callable] = {
    "knn": lambda x, y, engine: vk.knn(x, y, 5, engine=engine)[0],
    "nearest_code": lambda x, y, engine: vk.nearest_code(x, y, engine=engine)[0],
    "max_sim": lambda x, y, engine: vk.max_sim(
        x.view(-1, 8, x.shape[1]), y.view(-1, 5, x.shape[1]), torch.arange(len(x) // 8) % 8 + 1, engine=engine
    ),
    "info_nce": lambda x, y, engine: vk.info_nce(x, y[: len(x)], 0.2, engine=engine),
    "mmd": lambda x, y, engine: vk.mmd(x, y + 0.5, [1.0, 2.0], engine=engine),
    "kmeans": lambda x, y, engine: torch.tensor(vk.kmeans(x, 3, seed=1, engine=engine)[2]),
}


def point_checks(device: str) -> list[Check]:
    """Values and gradients of the reductions by KeOps (on a GPU) and by tiles."""
    return [
        Check(f"check {name} {engine} D{dim}", functools.partial(points, device, name, engine, dim))
        for name in POINTS
        for engine in (("torch",) if device == "cpu" else ("keops", "torch"))
        for dim in ((3,) if device == "cpu" else (3, 64, 384))
    ]


def points(device: str, name: str, engine: str, dim: int) -> dict:
    """Errors of one reduction in float32 on `device` against dense float64 on the CPU."""
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.randn(size, dim, generator=generator) / math.sqrt(dim) for size in (80, 120))

    def once(where: str, kind: torch.dtype, which: str) -> dict[str, Tensor]:
        leaves = [t.to(where, kind).requires_grad_() for t in (x, y)]
        value = POINTS[name](*leaves, which)
        if not value.requires_grad:
            return {"value": value}
        grads = torch.autograd.grad(value.double().square().sum(), leaves)
        return {"value": value, "gradient of x": grads[0], "gradient of y": grads[1]}

    got, want = once(device, torch.float32, engine), once("cpu", torch.float64, "reference")
    tolerance = 1e-3 if name == "kmeans" else TOLERANCE[torch.float32]
    return {"errors": {key: off(got[key], want[key]) for key in want}, "tolerance": tolerance}


def alignment_timings(device: str) -> list[Check]:
    """Milliseconds of the alignments, of torch as one would write it, and of what no kernel can do without."""
    found = []
    for n, length, dim in TIMED[device]:
        sigma = (2 * dim * length) ** 0.5
        ours, theirs = functools.partial(vk.gak, sigma=sigma), functools.partial(peers.torch_gak, sigma=sigma)
        found.append(timing(device, "gak", ours, theirs, n, length, dim))
    for n, length, dim in OTHERS[device]:
        gamma = (dim * length) ** 0.5
        soft, peer = functools.partial(vk.soft_dtw, gamma=gamma), functools.partial(peers.torch_soft_dtw, gamma=gamma)
        found.append(timing(device, "soft_dtw", soft, peer, n, length, dim))
        found.append(timing(device, "dtw", vk.dtw, peers.torch_dtw, n, length, dim))
        both = functools.partial(backward, gamma=gamma)
        found.append(timing(device, "soft_dtw and gradient", both, None, n, length, dim))
    return found


def timing(device: str, name: str, ours: Callable, theirs: Callable | None, n: int, length: int, dim: int) -> Check:
    """One row: ours, the peer where its tables fit, and the limit."""

    def run() -> dict:
        x = normal(device, n, length, dim)
        peer = theirs if (n * length) ** 2 <= PEER_CELLS else None
        seen = compare(device, ours, peer, lambda: x)
        if device == "cuda":
            seen["limit"] = timed(device, functools.partial(limit, x))
            seen["of_limit"] = seen["ours"]["best_ms"] / seen["limit"]["best_ms"]
        return seen

    return Check(f"time {name} N{n} L{length} D{dim}", run)


def limit(x: Tensor) -> None:
    """The inner products of half the pairs of x "n length dim", and one reading of them."""
    rows = x.flatten(0, 1)
    step = max(1, 2**30 // len(rows))
    for start in range(0, len(rows) // 2, step):
        (rows[start : min(start + step, len(rows) // 2)] @ rows.T).sum()


def point_timings(device: str) -> list[Check]:
    """The reductions on points; max_sim on 32 tokens an item."""
    n, k, tokens = (256, 8, 8) if device == "cpu" else (16384, 64, 32)
    pairs: dict[str, tuple[Callable, Callable]] = {
        "knn": (lambda x: vk.knn(x, x, 10), lambda x: peers.torch_knn(x, 10)),
        "nearest_code": (lambda x: vk.nearest_code(x, x[:k]), lambda x: peers.torch_nearest_code(x, x[:k])),
        "kmeans": (
            lambda x: vk.kmeans(x, k, iterations=10, tolerance=0.0),
            lambda x: peers.torch_kmeans(x, k, 10),
        ),
        "max_sim": (
            lambda x: vk.max_sim(*[x[: n // 2].view(-1, tokens, x.shape[1])] * 2),
            lambda x: peers.torch_max_sim(*[x[: n // 2].view(-1, tokens, x.shape[1])] * 2),
        ),
        "info_nce": (lambda x: vk.info_nce(x, x.flip(0), 0.2), lambda x: peers.torch_info_nce(x, x.flip(0), 0.2)),
        "mmd": (
            lambda x: vk.mmd(x[: n // 2], x[n // 2 :], 8.0, unbiased=False),
            lambda x: peers.torch_mmd(x[: n // 2], x[n // 2 :], 8.0),
        ),
    }
    return [
        Check(
            f"time {name} N{n} D{dim}",
            functools.partial(compare, device, ours, theirs, functools.partial(normal, device, n, dim)),
        )
        for name, (ours, theirs) in pairs.items()
        for dim in ((16,) if device == "cpu" else (16, 64, 384))
    ]


def backward(x: Tensor, gamma: float) -> None:
    """One value and gradient of soft-DTW."""
    x = x.clone().requires_grad_()
    vk.soft_dtw(x, gamma=gamma).sum().backward()


def compare(device: str, ours: Callable, theirs: Callable | None, data: Callable[[], Tensor]) -> dict:
    """Milliseconds of two calls on the same data, and theirs over ours."""
    x = data()
    seen = {"ours": timed(device, functools.partial(ours, x))}
    if theirs is not None:
        seen["torch"] = timed(device, functools.partial(theirs, x))
        seen["ratio"] = seen["torch"]["best_ms"] / seen["ours"]["best_ms"]
    return seen


def timed(device: str, call: Callable[[], object], seconds: float = 0.5, most: int = 20) -> dict:
    """Milliseconds of the first call (with compilation) and of the best of some more."""
    times: list[float] = []
    while len(times) < 2 or (len(times) <= most and sum(times[1:]) < seconds and times[0] < 20):
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return {"first_ms": 1e3 * times[0], "best_ms": 1e3 * min(times[1:]), "runs": len(times) - 1}


def off(got: Tensor, want: Tensor) -> float:
    """The largest error relative to max(1, |want|); infinite where `got` is not finite."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    if got.shape != want.shape or not bool(got.isfinite().all()):
        return math.inf
    return float(((got - want).abs() / want.abs().clamp_min(1)).max())


def sequences(seed: int, a: int, n: int, dim: int) -> tuple[Tensor, Tensor]:
    """Random walks "a n dim" (float64 of float32 numbers) and their lengths "a"."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(a, n, dim, generator=generator).cumsum(1) / math.sqrt(n * dim)
    return x.double(), torch.randint(max(1, n // 2), n + 1, (a,), generator=generator)


def normal(device: str, *shape: int) -> Tensor:
    """Seeded normal numbers on `device`."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)
