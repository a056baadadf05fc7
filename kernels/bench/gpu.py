"""Check and time every kernel on one GPU: `just gpu`, or `python kernels/bench/gpu.py [--minutes 8] [--json]`.

Each check compares values and gradients with float64 on the CPU; each timing stands beside plain torch on the same
card. They run one by one in a child process. A step that raises is recorded; one that kills the process, leaves the
GPU in an error or takes too long is recorded as well, and a fresh child goes on with the next. Results are written
after each step, whole or not at all, and a run that was cut off goes on with what is missing. `--device cpu` does the
same at small sizes, to try this program itself.
Exit code 0: all steps passed; 1: some failed or were left out; 2: there is no GPU.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_checks import checks
from provenance import REPORTS, machine, write

ROOT = Path(__file__).resolve().parents[2]
BROKEN = 77  # exit code of a child whose GPU is in an error: the next step needs a fresh process
START = 120.0  # seconds in which a child must begin


def main() -> int:
    """The parent: supervise, keep, report."""
    options = arguments()
    if options.child:
        return child(options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        return refuse("no GPU is found: this needs an NVIDIA card that torch can use, or --device cpu", options.json)
    begun = time.monotonic()
    names = [check.name for check in checks(options.device)]
    out = options.out or (REPORTS / "gpu.json" if options.device == "cuda" else None)
    about = hardware(options.device)
    done = {name: entry for name, entry in kept(out, about).items() if name in names}
    results = {"machine": about, "complete": False, "steps": done}
    if done:
        print(f"{len(done)} steps of this code on this hardware are kept in {out}; the others follow", file=sys.stderr)
    command = [sys.executable, "-X", "faulthandler", __file__, "--child", "--device", options.device]
    for name, entry in supervise(
        [name for name in names if name not in done], command, begun + 60 * options.minutes, options.limit
    ):
        results["steps"][name] = entry
        print(f"{'ok  ' if entry['ok'] else 'FAIL'} {name}: {summary(entry)}", file=sys.stderr, flush=True)
        if out:
            write(out, results)
    results["seconds"] = round(time.monotonic() - begun, 1)
    left = [name for name in names if name not in results["steps"]]
    failed = [name for name, entry in results["steps"].items() if not entry["ok"]]
    results |= {"complete": not left, "left_out": left, "failed": failed}
    if out:
        write(out, results)
    told = f"{len(names) - len(left) - len(failed)} passed, {len(failed)} failed, {len(left)} left out"
    print(told, f"in {results['seconds']} s" + (f"; kept in {out}" if out else ""), file=sys.stderr)
    if options.json:
        print(json.dumps(results))
    return 1 if left or failed else 0


def kept(out: Path | None, about: dict) -> dict[str, dict]:
    """The steps that passed in an earlier run of the same code on the same hardware, which need not be done again."""
    try:
        earlier = json.loads(out.read_text()) if out else {}
    except (OSError, ValueError):
        return {}
    alike = all(
        earlier.get("machine", {}).get(name) == about[name] for name in ("gpu", "kernels", "versions", "device")
    )
    return {name: entry for name, entry in earlier.get("steps", {}).items() if alike and entry.get("ok")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything; what is left then is left out")
    parser.add_argument("--limit", type=float, default=75.0, help="seconds for one step")
    parser.add_argument(
        "--out", type=Path, help="where to keep the results; by default gpu.json of the reports, or nowhere for the CPU"
    )
    parser.add_argument("--json", action="store_true", help="the results to stdout, as one JSON value")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def refuse(sentence: str, as_json: bool) -> int:
    """Tell why nothing was started."""
    if as_json:
        print(json.dumps({"error": sentence}))
    print(sentence, file=sys.stderr)
    return 2


def supervise(names: list[str], command: list[str], until: float, limit: float) -> Iterator[tuple[str, dict]]:
    """The entry of each step as it ends; steps are left out after `until` (by time.monotonic).

    `command` reads a JSON list of names from stdin, and writes {"start": name} and {"name", "ok", ...} to stdout, one
    a line. Each round gives at least one entry, or ends.
    """
    waiting = list(names)
    while waiting and time.monotonic() < until:
        ended = 0
        for name, entry in one_child(waiting, command, until, limit):
            ended += 1
            waiting.remove(name)
            yield name, entry
        if not ended:
            return


def one_child(names: list[str], command: list[str], until: float, limit: float) -> Iterator[tuple[str, dict]]:
    """The entries of one child, the last of which may tell how it died."""
    lines: queue.Queue[str | None] = queue.Queue()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )
        try:
            threading.Thread(target=forward, args=(process.stdout, lines), daemon=True).start()
            send(process, names)
            current, killed, deadline = None, None, time.monotonic() + START
            while True:
                try:
                    line = lines.get(timeout=max(0.0, min(deadline, until) - time.monotonic()))
                except queue.Empty:
                    killed = "the time for everything was up" if time.monotonic() >= until else "the step took too long"
                    break
                if line is None:
                    break
                message = json.loads(line)
                current = message.get("start")
                deadline = time.monotonic() + (limit if current else START)
                if current is None:
                    yield message.pop("name"), message
        finally:
            stop(process)
        code = process.wait()
        if current is None and code not in (0, BROKEN):
            current = names[0] if killed is None and names else None  # it died before its first step
        if current is not None and current in names:
            said.seek(0)
            why = killed or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
            yield current, {"ok": False, "died": why, "stderr": portable(said.read())[-2000:]}


def send(process: subprocess.Popen, names: list[str]) -> None:
    """Give the child its steps; one that is dead already reads none."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(names))
        process.stdin.close()


def forward(stream, lines: queue.Queue) -> None:
    """Lines of a child as they come, then None."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def stop(process: subprocess.Popen) -> None:
    """End a child and what it started, if it has not ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def child(device: str) -> int:
    """Do the steps named on stdin, one after the other, and tell of each on stdout; all else goes to stderr."""
    wanted = set(json.load(sys.stdin))
    tell = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.backends.cuda.matmul.allow_tf32 = False
    for check in checks(device):
        if check.name not in wanted:
            continue
        print(json.dumps({"start": check.name}), file=tell)
        entry, healthy = step(check, device)
        print(json.dumps({"name": check.name, **entry}), file=tell)
        if not healthy:
            return BROKEN
    return 0


def step(check, device: str) -> tuple[dict, bool]:
    """The entry of one step, and whether the GPU is still fit for the next."""
    begun, healthy = time.perf_counter(), True
    try:
        entry = check.run()
        entry["ok"] = all(error <= entry["tolerance"] for error in entry.get("errors", {}).values())
    except Exception as error:
        entry = {
            "ok": False,
            "raised": portable(f"{type(error).__name__}: {error}")[:1000],
            "trace": portable(traceback.format_exc())[-2000:],
        }
    if device == "cuda":
        try:
            torch.cuda.synchronize()
            entry["peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        except RuntimeError as error:
            entry |= {"ok": False, "gpu": str(error)[:300]}
            healthy = False
    return {**entry, "seconds": round(time.perf_counter() - begun, 2)}, healthy


def summary(entry: dict) -> str:
    """One line of what a step gave."""
    if "died" in entry or "raised" in entry:
        return entry.get("died") or entry["raised"].splitlines()[0]
    if "errors" in entry:
        return f"largest error {max(entry['errors'].values()):.1e} (at most {entry['tolerance']:.0e})"
    ratio = f", torch takes {entry['ratio']:.2f} times as long" if "ratio" in entry else ""
    ratio += f", {entry['of_limit']:.1f} times the limit" if "of_limit" in entry else ""
    return f"{entry['ours']['best_ms']:.2f} ms{ratio}"


def portable(text: str) -> str:
    """Text that is kept, without the folders of this machine: below the workspace, Python's and the user's."""
    folders = {str(ROOT): "", sys.prefix: "python", sys.base_prefix: "python", str(Path.home()): "~"}
    for folder, name in sorted(folders.items(), key=lambda one: -len(one[0])):
        text = text.replace(f"{folder}/", f"{name}/" if name else "")
    return text


def hardware(device: str) -> dict:
    """What the figures hang on: `provenance.machine`, and the GPU with its memory, driver and CUDA."""
    about = {**machine(("torch", "pykeops", "keopscore", "numpy")), "device": device, "cuda": torch.version.cuda}
    about["driver"] = about["gpu_memory_mb"] = None
    if device == "cuda":
        about["gpu_memory_mb"] = torch.cuda.get_device_properties(0).total_memory // 2**20
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            about["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[0]
    return about


if __name__ == "__main__":
    sys.exit(main())
