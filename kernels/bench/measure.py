"""Seconds of a call, and by how much it makes the process grow."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def weighed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call, and by how many MB the process's peak grew."""
    reset_peak()
    before = status("VmRSS")
    seconds = timed(call)
    return seconds, max(0.0, status("VmHWM") - before)


def reset_peak() -> None:
    """Give freed memory back to the system and forget the process's peak (Linux)."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def status(name: str) -> float:
    """A line of /proc/self/status in MB; nan where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":")), float("nan"))
