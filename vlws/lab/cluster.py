"""Workers on a cluster, through Parsl: its providers reach Slurm, PBS, Kubernetes and the machine itself."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlws.errors import InputError
from vlws.lab import holding
from vlws.lab.executors import Job, Submit

ALIVE = "read done || kill -9 $@"  # what a shell does that reads from us: once we are gone, the interchanges end


@contextmanager
def parsl(run: Callable[[Job], Any], config: Path) -> Iterator[Submit]:
    """A function that submits a job, for `run(job)` on a worker, to the executors of a Parsl configuration.

    `config`: a Python file that defines `config`, a `parsl.Config`. An executor whose blocks have failed gets no more
    jobs; where all have, what is submitted ends in their error. At the end of the block the blocks are ended, also
    where this process is killed: then Parsl's interchange is ended too, and its workers leave when they miss it.
    InputError where Parsl is not installed, for a file that defines no `config`, and for one that Parsl cannot start.
    """
    loaded = read_config(config)
    import parsl as library

    # Parsl finds its own programs by PATH, which names the environment's only where that is active
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        with _unheard(signal.SIGINT):
            kernel = library.load(loaded)
    except Exception as error:
        _clear(library)
        raise InputError(f"Parsl cannot start what {config} configures: {_said(error)}") from None
    try:
        with _ended_with_us(kernel):
            yield _Executors(library, kernel, run).submit
    finally:
        kernel.cleanup()


def read_config(path: Path) -> Any:
    """The `parsl.Config` that a Python file defines as `config`; InputError."""
    try:
        import parsl as library
    except ImportError:
        raise InputError("--parsl needs Parsl, which is not installed; pip install 'vlws[cluster]'.") from None
    if not path.is_file():
        raise InputError(f"no Parsl configuration at {path}; give a Python file that defines `config`.")
    scope: dict[str, Any] = {"__file__": str(path.resolve()), "__name__": "config"}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), scope)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} is no Parsl configuration: {_said(error)}") from None
    if not isinstance(scope.get("config"), library.Config):
        raise InputError(f"{path} does not define `config` as a parsl.Config.")
    return scope["config"]


@contextmanager
def _unheard(number: int) -> Iterator[None]:
    """While it lasts a signal is ignored, and for good by the processes that are started: Ctrl-C is ours to answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


class _Executors:
    """The executors of a running Parsl: a job goes to that of those that are well which has the fewest."""

    def __init__(self, library: Any, kernel: Any, run: Callable[[Job], Any]) -> None:
        self.library, self.kernel, self.run = library, kernel, run
        self.labels = [label for label in kernel.executors if label != "_parsl_internal"]
        self.given: dict[Future, str] = {}

    def submit(self, job: Job) -> Future:
        executors = self.kernel.executors
        well = [label for label in self.labels if not getattr(executors[label], "bad_state_is_set", False)]
        busy = Counter(label for future, label in self.given.items() if not future.done())
        label = min(well or self.labels, key=lambda label: busy[label])
        future = self.library.python_app(self.run, data_flow_kernel=self.kernel, executors=[label])(job)
        self.given[future] = label
        return future


def is_lost(error: BaseException | None) -> bool:
    """Whether an error is of the infrastructure (a worker or its block is gone), and not of the function."""
    from parsl.errors import ParslError
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    return isinstance(error, ParslError | ManagerLost | WorkerLost)


def does_not_start(error: BaseException) -> bool:
    """Whether an error says that the blocks of an executor failed."""
    from parsl.executors.errors import BadStateException
    from parsl.jobs.errors import TooManyJobFailuresError

    return isinstance(error, BadStateException | TooManyJobFailuresError)


@contextmanager
def _ended_with_us(kernel: Any) -> Iterator[None]:
    """While it lasts: Parsl's interchanges, which outlive a process that is killed, do not outlive this one."""
    found = [getattr(executor, "interchange_proc", None) for executor in kernel.executors.values()]
    pids = [str(process.pid) for process in found if process is not None]
    # a session of its own: Ctrl-C in a terminal does not reach it
    shell = subprocess.Popen(
        ["/bin/sh", "-c", ALIVE, "sh", *pids], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        with suppress(OSError):
            shell.communicate(b"done\n")


def _clear(library: Any) -> None:
    """Forget what Parsl had begun to load."""
    with suppress(Exception):
        library.dfk().cleanup()
    with suppress(Exception):
        library.clear()


def _said(error: BaseException) -> str:
    """An error in one line, with the line of the file that it comes from."""
    told = " ".join(str(error).split()) or "nothing further was said"
    return f"{type(error).__name__}: {told}"


class Watch:
    """What the jobs of a sweep do, told as it changes: read from the holds and the cells on the shared file system."""

    EVERY = 60.0  # seconds, where nothing changes

    def __init__(self, folder: Path, name: Callable[[Job], str], say: Callable[[str], None], driver: str) -> None:
        self.folder, self.name, self.say, self.driver = folder, name, say, driver
        self.running: set[str] = set()
        self.said = time.monotonic()

    def look(self, pending: dict[str, Job], waiting: int, done: int) -> None:
        """Tell which of the submitted jobs, by key, have begun; once a minute how many wait, run and are done."""
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        found = pending.keys() & there
        running = {key for key in found if key in self.running or self._ours(holding.holder(self.folder, key))}
        for key in running - self.running:
            host = (holding.holder(self.folder, key) or {}).get("host", "a worker")
            self.say(f"{self.name(pending[key])}: started on {host}")
        self.running = running
        if time.monotonic() - self.said >= self.EVERY:
            self.said = time.monotonic()
            queued = len(pending) - len(running)
            elsewhere = f", {waiting} run elsewhere" if waiting else ""
            self.say(f"{done} done, {len(running)} run, {queued} wait{elsewhere}{self._cells(pending, running)}")

    def _ours(self, held: dict[str, Any] | None) -> bool:
        return held is not None and held.get("driver") == self.driver

    def _cells(self, pending: dict[str, Job], running: set[str]) -> str:
        """How far each run is, of the first few."""
        told = []
        for key in sorted(running)[:4]:
            with suppress(OSError):
                told.append(f"{self.name(pending[key])} {(self.folder / f'{key}.cells').read_text()} cells")
        return f"; {', '.join(told)}" if told else ""
