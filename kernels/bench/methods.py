"""Time of retrieval and prompt methods against their peers, in one run: `python kernels/bench/methods.py [--quick]`.

Each row times our call and its peers' calls one after the other, round after round, after two rounds that warm up.
Figures are medians over the rounds, with quartiles. A ratio is the peer's time over ours in the same round: below 1
ours takes longer. Memory of a search is measured in a process of its own for each: what it holds, and what its peak
grows by during a call. All sides run on the same number of threads. Rows are written as they are measured.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from measure import timed
from method_cases import GROUPS, Arm, Case
from provenance import REPORTS, machine, write

import vlws

RESULTS = REPORTS.parent / "benchmarks" / "methods.json"
PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "faiss-cpu", "sentence-transformers")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")  # rayon: tokenizers
LEAST, MOST = 7, 200  # rounds
SECONDS = 3.0  # of an arm, after which no more rounds than the least are made


def rounds(arms: dict[str, Arm], least: int, most: int) -> dict[str, np.ndarray]:
    """Seconds of a step of each arm, "round"; arms take turns, and in each round another one is the first."""
    for arm in [*arms.values()] * 2:
        arm.call()
    names = list(arms)
    found: dict[str, list[float]] = {name: [] for name in names}
    until = time.perf_counter() + SECONDS * len(names)
    for k in range(most):
        if k >= least and time.perf_counter() > until:
            break
        first = k % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(timed(arms[name].call) / arms[name].steps)
    return {name: np.array(values) for name, values in found.items()}


def row(case: Case, quick: bool) -> dict:
    arms = {case.name: case.ours, **case.peers}
    seconds = rounds(arms, *((2, 2) if quick else (LEAST, MOST)))
    made = {}
    for name, arm in arms.items():
        median, quartiles = spread(seconds[name])
        made[name] = {"seconds": median, "seconds_quartiles": quartiles, "items_per_second": arm.items / median}
        made[name]["items"] = arm.items
        if name in case.peers:
            made[name]["ratio"], made[name]["ratio_quartiles"] = spread(seconds[name] / seconds[case.name])
        if case.memory:
            made[name] |= in_a_process(name, *case.memory)
    return {
        "group": case.group,
        "name": case.name,
        "sizes": case.sizes,
        "items": case.items,
        "rounds": len(seconds[case.name]),
        "ours": made.pop(case.name),
        "peers": made,
        "left_out": case.left_out,
        "error": case.error() if case.error else None,
        "code": code_hash(),
        "load": os.getloadavg()[0],
    }


def spread(values: np.ndarray) -> tuple[float, list[float]]:
    """Median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return median, [low, high]


def in_a_process(search: str, documents: int, queries: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).with_name("search.py")), search, str(documents), str(queries)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def code_hash() -> str:
    """The hash of vlws's Python files, the methods among them; that of the kernels' stands with the machine."""
    files = sorted(Path(vlws.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def installed(names: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def table(rows: list[dict]) -> str:
    head = f"{'ours':20}{'time':>10}{'items/s':>9}{'MB':>7}{'held':>7}  {'peer':22}{'time':>10}{'items/s':>9}{'MB':>7}"
    head += f"{'held':>7}{'ratio':>7}  quartiles"
    lines = [head, "-" * len(head)]
    for r in rows:
        lines.append(", ".join(f"{name} {value}" for name, value in r["sizes"].items()))
        lines[-1] += "" if r["error"] is None else f"; error {r['error']:.1e}"
        first = f"{r['name']:20}{_figures(r['ours'])}"
        for name, peer in r["peers"].items():
            low, high = peer["ratio_quartiles"]
            lines.append(f"{first}  {name:22}{_figures(peer)}{peer['ratio']:>7.2f}  {low:.2f} to {high:.2f}")
            first = " " * len(first)
        lines += [f"{first}  {name}: {why}" for name, why in r["left_out"].items()]
    told = "ratio: the peer's time over ours; MB: growth of the peak in a call; held: by the vectors or the index"
    return "\n".join([*lines, told])


def _figures(arm: dict) -> str:
    seconds, rate = arm["seconds"], arm["items_per_second"]
    shown = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"
    memory = "".join(f"{arm[name]:>7.0f}" if name in arm else " " * 7 for name in ("memory_mb", "held_mb"))
    return f"{shown:>10}{rate:>9,.0f}{memory}"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds; printed, not kept")
    parser.add_argument("--json", type=Path, help=f"where to keep the rows (full run: {RESULTS.name} of the reports)")
    parser.add_argument(
        "--rows", nargs="+", choices=GROUPS, help="measure these anew; the others stay in a file of this machine"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each side (default: torch's)")
    return parser


def previous(path: Path | None, options: argparse.Namespace, parser: argparse.ArgumentParser) -> dict:
    """The results to add to: with `--rows` those of a file of this machine, else none."""
    results = {"machine": {**machine(installed(PACKAGES)), "threads": options.threads}, "rows": {}}
    if options.rows and path and path.exists():
        kept = json.loads(path.read_text())
        fixed = ("cpu", "cores", "versions", "threads")
        if any(kept["machine"].get(k) != results["machine"][k] for k in fixed):
            parser.error(f"{path} is of another machine, versions or threads; run all rows, or name another --json.")
        results["rows"] = {key: r for key, r in kept["rows"].items() if r["group"] not in options.rows}
    return results


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    # libraries read these when they are loaded: start again
    wanted = {"OMP_WAIT_POLICY": "passive", **dict.fromkeys(THREADS, str(options.threads))}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    path = options.json or (None if options.quick else RESULTS)
    results = previous(path, options, parser)
    groups = options.rows or list(GROUPS)
    made = []
    for group in tqdm(groups, desc="bench", unit="group", file=sys.stderr):
        for case in GROUPS[group](options.quick):
            results["rows"][case.key] = row(case, options.quick)
            made.append(results["rows"][case.key])
            if path:
                write(path, results)
    print(table(made))
    print(f"threads of each side: {options.threads}")
    if path:
        print(f"kept in {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
