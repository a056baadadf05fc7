"""A command as a process tree: seconds, CPU seconds, the largest memory of each process; killed on demand."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EVERY = 0.2  # seconds
SOURCES = Path(__file__).resolve().parents[2]


def vlws(*arguments: object) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "vlws.lab.cli", *map(str, arguments)]


def watched(command: Sequence[str], kill: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Run a command; where `kill()` becomes true, its first process alone is killed by SIGKILL.

    Gives wall_s, cpu_s (of it and of the processes that it waited for), driver_mb and slots_mb (the largest peak of its
    first process and of any that this started), returncode, stdout, and left: processes that outlived it, pids.
    """
    env = os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{SOURCES / 'kernels'}", "OMP_WAIT_POLICY": "passive"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for pid in tree(process.pid):
            peaks[pid] = max(peaks.get(pid, 0.0), peak_mb(pid))
        if kill and kill():
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(EVERY)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.stdout is not None, "it is a pipe"
    others = [pid for pid in peaks if pid != process.pid]
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "driver_mb": round(peaks.get(process.pid, 0.0)),
        "slots_mb": round(max((peaks[pid] for pid in others), default=0.0)),
        "returncode": process.returncode,
        "left": others,
        "stdout": process.stdout.read() if not kill else "",
    }


def ended(pids: Sequence[int], seconds: float = 20.0) -> bool:
    """Whether processes end within so many seconds."""
    until = time.perf_counter() + seconds
    while any(is_alive(pid) for pid in pids) and time.perf_counter() < until:
        time.sleep(EVERY)
    return not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def tree(pid: int) -> list[int]:
    """A process and all that it started (Linux)."""
    try:
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    except OSError:
        return [pid]
    return [pid, *(other for child in children for other in tree(int(child)))]


def peak_mb(pid: int) -> float:
    """VmHWM of a process in MB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
