"""Time and peak memory of every kernel against its peers, in one run: `python kernels/bench/run.py [--quick]`.

Each row is one call on float32 input, warm: the best of some repetitions after one that compiles (KeOps) or jits
(numba), which is reported apart. A peer that would take longer than `--limit` seconds is run on fewer items, and its
time is scaled with the number of pairs and marked ~. Memory is what the process's peak grows by during a call; a
peer's own worker processes are not in it. Rows are written as they are measured; a run that was stopped goes on.
"""

import argparse
import ctypes
import datetime
import functools
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import vlws_kernels as vk
from vlws_kernels import engine as engines

sys.path.insert(0, str(Path(__file__).parent))
import peers

REPEATED = 1.0  # seconds: a longer call is warm after those on fewer items, and is timed once

RESULTS = Path(__file__).resolve().parents[2] / "reports" / "results" / "08_kernels" / "bench.json"


@dataclass(frozen=True)
class Case:
    """One row: our call and the peers' calls, each a function of the first `n` items."""

    op: str
    n: int
    length: int  # 0 where items are points
    dim: int
    ours: Callable[[int], object]
    peers: dict[str, Callable[[int], object]]
    error: Callable[[], float]
    target: float  # the time of the fastest peer over ours that the design asks for
    power: int = 2  # the time grows with n to this power

    @property
    def key(self) -> str:
        return f"{self.op} N={self.n} L={self.length} D={self.dim}"


def alignment_cases(sizes: list[int], lengths: list[int], dims: list[int]) -> list[Case]:
    cases = []
    for length in lengths:
        for dim in dims:
            for n in sizes:
                x = torch.randn(n, length, dim, generator=torch.Generator().manual_seed(n + length + dim))
                sigma = (2 * dim * length) ** 0.5  # the usual choice: the elements' distance times sqrt(length)
                few = torch.cat([x[:8], x[-8:]])
                target = 10.0 if length <= 32 else 3.0

                gak = functools.partial(vk.gak, sigma=sigma)
                soft_dtw = functools.partial(vk.soft_dtw, gamma=1.0)
                shape = {"n": n, "length": length, "dim": dim}
                cases += [
                    Case(
                        "gak",
                        **shape,
                        ours=lambda k, x=x, gak=gak: gak(x[:k]),
                        peers={
                            "tslearn": lambda k, x=x, s=sigma: peers.tslearn_gak(x[:k], s),
                            "tslearn n_jobs=-1": lambda k, x=x, s=sigma: peers.tslearn_gak_all_cores(x[:k], s),
                            "torch": lambda k, x=x, s=sigma: peers.torch_gak(x[:k], s),
                        },
                        error=functools.partial(error, gak, few, 0.0),
                        target=target,
                    ),
                    Case(
                        "soft_dtw",
                        **shape,
                        ours=lambda k, x=x: vk.soft_dtw(x[:k], gamma=1.0),
                        peers={
                            "tslearn": lambda k, x=x: peers.tslearn_soft_dtw(x[:k], 1.0),
                            "aeon": lambda k, x=x: peers.aeon_soft_dtw(x[:k], 1.0),
                            "torch": lambda k, x=x: peers.torch_soft_dtw(x[:k], 1.0),
                        },
                        error=functools.partial(error, soft_dtw, few, 1.0),
                        target=target,
                    ),
                    Case(
                        "dtw",
                        **shape,
                        ours=lambda k, x=x: vk.dtw(x[:k]),
                        peers={
                            "aeon": lambda k, x=x: peers.aeon_dtw(x[:k]),
                            "dtaidistance": lambda k, x=x: peers.dtaidistance_dtw(x[:k]),
                        },
                        error=functools.partial(error, vk.dtw, few, 1.0),
                        target=1.0,
                    ),
                ]
    return cases


def sugar_case(n: int = 96, longest: int = 48, dim: int = 64) -> Case:
    """GAK labels of one batch of ragged slices, normalised, each pair with a sigma of its own that grows with lengths.

    tslearn knows one sigma only and does less: it takes K(x, x) once an item, we at every pair's sigma.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, longest + 1, (n,), generator=generator)
    x = torch.randn(n, longest, dim, generator=generator)

    def sigma(k: int) -> Tensor:
        return (2 * dim) ** 0.5 * ((lengths[:k, None] + lengths[:k]) / 2).sqrt()

    def labels(k: int, x: Tensor = x, engine: str | None = None) -> Tensor:
        return vk.gak(x[:k], None, lengths[:k], sigma=sigma(k), engine=engine)

    def missed() -> float:
        truth = labels(16, x.double(), "torch")
        return float(((labels(16).double() - truth).abs() / truth).max())

    return Case(
        "sugar_gak",
        n=n,
        length=longest,
        dim=dim,
        ours=labels,
        peers={"tslearn": lambda k: peers.tslearn_ragged_gak(x[:k], lengths[:k], float(sigma(k).mean()))},
        error=missed,
        target=10.0,
    )


def error(call: Callable, x: Tensor, floor: float) -> float:
    """Largest error relative to float64; `floor`: the size of the terms, where a value may be 0 by cancellation."""
    ours, truth = call(x).double(), call(x.double(), engine="torch")
    return float(((ours - truth).abs() / truth.abs().clamp_min(floor)).max())


def reduction_cases(sizes: list[int], dims: list[int]) -> list[Case]:
    cases = []
    for dim in dims:
        for n in sizes:
            generator = torch.Generator().manual_seed(n + dim)
            x, y = (torch.randn(n, dim, generator=generator) for _ in range(2))
            u, v = (torch.nn.functional.normalize(z) for z in (x, y))
            codes = y[:512]
            tokens = max(1, n // 32)
            q, d = x[: tokens * 32].view(tokens, 32, dim), y[: tokens * 32].view(tokens, 32, dim)
            shape, target = {"n": n, "length": 0, "dim": dim}, 1 / 1.5

            def missed(k: int, x: Tensor = x) -> float:
                """The share of neighbours that are not those of float64."""
                some = x[:256]
                ours, truth = vk.knn(some, x, k)[1], vk.knn(some.double(), x.double(), k, engine="reference")[1]
                return float((ours != truth).double().mean())

            max_sim, info_nce = vk.max_sim, functools.partial(vk.info_nce, temperature=0.07)
            mmd = functools.partial(vk.mmd, sigma=1.0, unbiased=False)

            cases += [
                Case(
                    "knn",
                    **shape,
                    ours=lambda k, x=x: vk.knn(x[:k], x[:k], 10),
                    peers={
                        "sklearn brute": lambda k, x=x: peers.sklearn_knn(x[:k], 10),
                        "torch.cdist+topk": lambda k, x=x: peers.torch_knn(x[:k], 10),
                    },
                    error=lambda missed=missed: missed(10),
                    target=target,
                ),
                Case(
                    "nearest_code",
                    **shape,
                    ours=lambda k, x=x, codes=codes: vk.nearest_code(x[:k], codes),
                    peers={"torch.cdist+argmin": lambda k, x=x, codes=codes: peers.torch_nearest_code(x[:k], codes)},
                    error=lambda missed=missed: missed(1),
                    target=target,
                    power=1,
                ),
                Case(
                    "kmeans",
                    **shape,
                    ours=lambda k, x=x: vk.kmeans(x[:k], 16, iterations=10, tolerance=0.0),
                    peers={"sklearn": lambda k, x=x: peers.sklearn_kmeans(x[:k], 16, 10)},
                    error=lambda: float("nan"),
                    target=target,
                    power=1,
                ),
                Case(
                    "max_sim",
                    **shape,
                    ours=lambda k, q=q, d=d: vk.max_sim(q[: max(1, k // 32)], d[: max(1, k // 32)]),
                    peers={
                        "torch.einsum": lambda k, q=q, d=d: peers.torch_max_sim(
                            q[: max(1, k // 32)], d[: max(1, k // 32)]
                        )
                    },
                    error=functools.partial(relative_error, q[:4], d[:4], max_sim),
                    target=target,
                ),
                Case(
                    "info_nce",
                    **shape,
                    ours=lambda k, u=u, v=v: vk.info_nce(u[:k], v[:k], 0.07),
                    peers={"torch": lambda k, u=u, v=v: peers.torch_info_nce(u[:k], v[:k], 0.07)},
                    error=functools.partial(relative_error, u[:1024], v[:1024], info_nce),
                    target=target,
                ),
                Case(
                    "mmd",
                    **shape,
                    ours=lambda k, u=u, v=v: vk.mmd(u[:k], v[:k], 1.0, unbiased=False),
                    peers={"torch.cdist": lambda k, u=u, v=v: peers.torch_mmd(u[:k], v[:k], 1.0)},
                    error=functools.partial(relative_error, u[:1024], v[:1024] + 1, mmd),
                    target=target,
                ),
            ]
    return cases


def relative_error(u: Tensor, v: Tensor, call: Callable) -> float:
    ours, truth = call(u, v).double(), call(u.double(), v.double())
    return float((ours - truth).abs().max() / truth.abs().max())


def measured(call: Callable[[int], object], n: int, power: int, limit: float) -> dict:
    """Seconds and growth of the peak memory (MB) of `call(n)`, or of fewer items and scaled (`on`)."""
    on = min(n, 64)
    call(on)  # compiles or jits
    best, memory = _weighed(call, on)
    while on < n and best < limit:
        expected = best * (min(n, 4 * on) / on) ** power
        if expected > limit:
            break
        on = min(n, 4 * on)
        best, memory = _weighed(call, on)
    until = time.perf_counter() + 0.6
    for _ in range(1000 if best < REPEATED else 0):
        if time.perf_counter() > until:
            break
        best = min(best, _seconds(call, on))
    return {"seconds": best * (n / on) ** power, "memory_mb": round(memory, 1), "on": on}


def _seconds(call: Callable[[int], object], n: int) -> float:
    start = time.perf_counter()
    call(n)
    return time.perf_counter() - start


def _weighed(call: Callable[[int], object], n: int) -> tuple[float, float]:
    """Seconds of one call, and by how many MB the process's peak grew."""
    _reset_peak()
    before = _status("VmRSS")
    seconds = _seconds(call, n)
    return seconds, max(0.0, _status("VmHWM") - before)


def _reset_peak() -> None:
    """Give freed memory back to the system and forget the process's peak (Linux)."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    """A line of /proc/self/status in MB; nan where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":")), float("nan"))


def row(case: Case, limit: float) -> dict:
    first = _seconds(case.ours, min(case.n, 64))
    ours = measured(case.ours, case.n, case.power, float("inf"))
    others = {name: measured(call, case.n, case.power, limit) for name, call in case.peers.items()}
    fastest = min(others, key=lambda name: others[name]["seconds"])
    return {
        "kernels": code_hash(),
        "op": case.op,
        "n": case.n,
        "length": case.length,
        "dim": case.dim,
        "ours": ours,
        "first_call_seconds": round(first, 3),
        "peers": others,
        "fastest": fastest,
        "ratio": others[fastest]["seconds"] / ours["seconds"],
        "target": case.target,
        "error": case.error(),
    }


def machine() -> dict:
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    packages = ("torch", "pykeops", "tslearn", "aeon", "dtaidistance", "scikit-learn", "numba", "numpy")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "cxxflags": engines.CXXFLAGS,
        "kernels": code_hash(),
        "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def code_hash() -> str:
    """Of what is timed: rows of other code are not gone on with."""
    files = sorted(Path(vk.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def write(path: Path, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(unfinished, path)


def table(rows: list[dict]) -> str:
    head = f"{'op':13}{'N':>6}{'L':>5}{'D':>5}{'ours':>11}{'MB':>7}{'first':>8}{'ratio':>8}{'target':>8}"
    head += f"  {'error':>8}  peers"
    lines = [head, "-" * len(head)]
    for r in rows:
        others = ", ".join(
            f"{name} {'~' if p['on'] < r['n'] else ''}{_time(p['seconds'])} {p['memory_mb']:.0f} MB"
            for name, p in r["peers"].items()
        )
        lines.append(
            f"{r['op']:13}{r['n']:>6}{r['length'] or '':>5}{r['dim']:>5}{_time(r['ours']['seconds']):>11}"
            f"{r['ours']['memory_mb']:>7.0f}{r['first_call_seconds']:>7.1f}s{r['ratio']:>8.2f}{r['target']:>8.2f}"
            f"  {r['error']:>8.1e}  {others}{'' if r['ratio'] >= r['target'] else '   < target'}"
        )
    return "\n".join([*lines, "ratio: the fastest peer's time over ours; ~: scaled from fewer items"])


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows, under a minute; printed, not kept")
    parser.add_argument("--json", type=Path, help=f"where to keep the rows (full run: {RESULTS.name} of the reports)")
    parser.add_argument(
        "--limit", type=float, default=3.0, help="seconds after which a peer is scaled from fewer items"
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        help="measure the rows anew whose key (as 'gak N=64 L=8 D=2') contains TEXT, in a file "
        "that this machine has completed; the others stay, and each row tells the hash of the code behind it",
    )
    options = parser.parse_args()
    if "OMP_WAIT_POLICY" not in os.environ:  # OpenMP reads it when torch loads it: start again. Spinning threads would
        # make every parallel call, ours and the peers', wait for whatever else the machine does.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_WAIT_POLICY": "passive"})
    if options.quick:
        cases = [*alignment_cases([64, 256], [32], [16]), *reduction_cases([1024], [16]), sugar_case()]
        limit, path = min(options.limit, 1.0), options.json
    else:
        cases = alignment_cases([64, 256, 1024], [8, 32, 128], [2, 16, 256])
        cases += [*reduction_cases([1024, 4096, 16384], [2, 16, 256]), sugar_case()]
        limit, path = options.limit, options.json or RESULTS
    cases.sort(key=lambda case: case.op)

    results = {"machine": machine(), "complete": False, "rows": {}}
    if path and path.exists():  # a stopped run of this code on this machine goes on; a complete one is made anew
        kept = json.loads(path.read_text())
        same = {**kept["machine"], "load": 0, "date": 0} == {**results["machine"], "load": 0, "date": 0}
        results = kept if same and not kept["complete"] else results
        for old in kept["rows"].values():
            old.setdefault("kernels", kept["machine"]["kernels"])
    if options.only:
        fixed = ("cpu", "cores", "gpu", "versions", "cxxflags")
        if not (path and path.exists() and kept["complete"]) or any(kept["machine"][k] != machine()[k] for k in fixed):
            parser.error("--only needs a complete file of this machine and these versions: run the whole bench first.")
        results = kept
    with torch.no_grad():
        for case in tqdm(cases, desc="bench", unit="row", file=sys.stderr):
            if case.key not in results["rows"] or (options.only and options.only in case.key):
                results["rows"][case.key] = row(case, limit)
                if path:
                    write(path, results)
    results["complete"] = True
    print(table([results["rows"][case.key] for case in cases]))
    codes = [r["kernels"] for r in results["rows"].values()]
    print(
        "rows by the hash of the kernels' code:",
        ", ".join(f"{code} {codes.count(code)}" for code in sorted(set(codes))),
    )
    if path:
        write(path, results)
        print(f"kept in {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
