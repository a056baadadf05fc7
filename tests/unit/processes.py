"""Commands in processes of their own, which tests kill."""

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parents[2]


def command(*arguments):
    """Start `vlws`."""
    env = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE / 'kernels'}"}
    line = [sys.executable, "-m", "vlws.lab.cli", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def until(condition, what="it", seconds=120):
    """Wait for a condition, and fail where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def children(pid):
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def is_alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
