"""Time and peak memory of every kernel against its peers, in one run: `python kernels/bench/run.py [--quick]`.

Each row is one call on float32 input, warm: the best of some repetitions after one that compiles (KeOps) or jits
(numba), which is reported apart. A peer that would take longer than `--limit` seconds is run on fewer items, and its
time is scaled with the number of pairs and marked ~. Memory is what the process's peak grows by during a call; a
peer's own worker processes are not in it. Rows are written as they are measured; a run that was stopped goes on.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from cases import Case, alignment_cases, reduction_cases, sugar_case
from measure import timed, weighed
from provenance import REPORTS, code_hash, machine, write

REPEATED = 1.0  # seconds: a longer call is warm after those on fewer items, and is timed once

RESULTS = REPORTS / "bench.json"


def measured(call: Callable[[int], object], n: int, power: int, limit: float) -> dict:
    """Seconds and growth of the peak memory (MB) of `call(n)`, or of fewer items and scaled (`on`)."""
    on = min(n, 64)
    call(on)  # compiles or jits
    best, memory = weighed(partial(call, on))
    while on < n and best < limit:
        expected = best * (min(n, 4 * on) / on) ** power
        if expected > limit:
            break
        on = min(n, 4 * on)
        best, memory = weighed(partial(call, on))
    until = time.perf_counter() + 0.6
    for _ in range(1000 if best < REPEATED else 0):
        if time.perf_counter() > until:
            break
        best = min(best, timed(partial(call, on)))
    return {"seconds": best * (n / on) ** power, "memory_mb": round(memory, 1), "on": on}


def row(case: Case, limit: float) -> dict:
    first = timed(partial(case.ours, min(case.n, 64)))
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


def arguments() -> argparse.ArgumentParser:
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
    return parser


def previous(path: Path | None, options: argparse.Namespace, parser: argparse.ArgumentParser) -> dict:
    """The results to go on with: a stopped run's of this code and machine, with `--only` the complete ones, or none."""
    results = {"machine": machine(), "complete": False, "rows": {}}
    kept = json.loads(path.read_text()) if path and path.exists() else None
    if kept:  # a stopped run of this code on this machine goes on; a complete one is made anew
        same = {**kept["machine"], "load": 0, "date": 0} == {**results["machine"], "load": 0, "date": 0}
        results = kept if same and not kept["complete"] else results
        for old in kept["rows"].values():
            old.setdefault("kernels", kept["machine"]["kernels"])
    if options.only:
        fixed = ("cpu", "cores", "gpu", "versions", "cxxflags")
        if not (kept and kept["complete"]) or any(kept["machine"][k] != machine()[k] for k in fixed):
            parser.error("--only needs a complete file of this machine and these versions: run the whole bench first.")
        results = kept
    return results


def main() -> None:
    parser = arguments()
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

    results = previous(path, options, parser)
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
