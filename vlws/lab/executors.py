"""The slots of this machine, in which jobs run. A job is a dict; what runs it, a function."""

import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

from vlws.errors import InputError

Job = dict[str, Any]
Submit = Callable[[Job], Future]


@contextmanager
def local(run: Callable[..., Any], jobs: int, slots: int | None) -> Iterator[Submit]:
    """A function that submits a job to one of `slots` places of this machine (None: one per two cores).

    There are at most as many places as `jobs`. A place is a share of the cores ($VLWS_WORKERS in the job's `env`: how
    many processes an experiment starts) and, where there are GPUs, one of them. Each call is `run(job, slot=0..,
    stop=event)` in a thread. At the end of the block `stop` is set, what is running is waited for, and what has not
    begun never does. InputError for fewer slots than one.
    """
    slots = max(1, cores() // 2) if slots is None else slots
    if slots < 1:
        raise InputError(f"jobs is {slots}; it must be at least 1.")
    slots = min(slots, max(1, jobs))
    devices = gpus()
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(slots):
        free.put(slot)
    stop = threading.Event()

    def call(job: Job) -> Any:
        slot = free.get()
        try:
            env = {"VLWS_WORKERS": os.environ.get("VLWS_WORKERS") or str(max(1, cores() // slots))}
            if slots > 1:
                env["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or env["VLWS_WORKERS"]
            if devices:
                env["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)] if slots > 1 else ",".join(devices)
            return run(job | {"env": env | job.get("env", {})}, slot=slot, stop=stop)
        finally:
            free.put(slot)

    pool = ThreadPoolExecutor(slots)
    try:
        yield lambda job: pool.submit(call, job)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def gpus() -> list[str]:
    """Names by which CUDA may be told of each GPU here: $CUDA_VISIBLE_DEVICES, or what nvidia-smi lists."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    return [str(number) for number in range(len(gpu_names()))]


@cache
def gpu_names() -> list[str]:
    """The GPUs of this machine by nvidia-smi; none where there is no such program."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in asked.stdout.splitlines() if line.strip()] if asked.returncode == 0 else []
