"""Where jobs run: slots of this machine, or a cluster through Parsl. A job is a dict; what runs it, a function."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from functools import cache
from pathlib import Path
from typing import Any

from vlws.errors import InputError

Job = dict[str, Any]
Result = dict[str, Any]


def local(run: Callable[..., Result], jobs: Sequence[Job], slots: int | None) -> Iterator[Result]:
    """Run jobs in `slots` places of this machine (None: one per two cores) and yield what each gave, as they end.

    A place is a share of the cores ($VLWS_WORKERS in the job's `env`: how many processes an experiment starts) and,
    where there are GPUs, one of them. Each call is `run(job, slot=0.., stop=event)` in a thread; `stop` is set when
    this generator is interrupted or closed, and what is running is waited for.
    """
    slots = max(1, cores() // 2) if slots is None else slots
    if slots < 1:
        raise InputError(f"jobs is {slots}; it must be at least 1.")
    slots = min(slots, max(1, len(jobs)))
    devices = gpus()
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(slots):
        free.put(slot)
    stop = threading.Event()

    def call(job: Job) -> Result:
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
        pending: set[Future] = {pool.submit(call, job) for job in jobs}
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def parsl(run: Callable[..., Result], jobs: Sequence[Job], config: Path) -> Iterator[Result]:
    """Run jobs through Parsl and yield what each gave, as they end.

    `config`: a Python file that defines `config`, a `parsl.Config` (its providers reach Slurm, PBS, Kubernetes and the
    machine itself); the nodes must see this workspace under the same path. Raises InputError where Parsl is not
    installed or the file holds no `config`.
    """
    try:
        import parsl as library
    except ImportError:
        raise InputError("--parsl needs Parsl, which is not installed; pip install 'vlws[cluster]'.") from None
    if not config.is_file():
        raise InputError(f"no Parsl configuration at {config}; give a Python file that defines `config`.")
    scope: dict[str, Any] = {}
    exec(compile(config.read_text(encoding="utf-8"), str(config), "exec"), scope)
    if not isinstance(scope.get("config"), library.Config):
        raise InputError(f"{config} does not define `config` as a parsl.Config.")
    # Parsl finds its own programs by PATH, which names the environment's only where that is active
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with library.load(scope["config"]):
        app = library.python_app(run)
        for future in as_completed([app(job) for job in jobs]):
            yield future.result()


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
