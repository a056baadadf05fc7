"""Runs that a server starts and does not wait for, within a budget of minutes where it has one.

Each is an ordinary run of the workspace, or a proof (`vlws.lab.prove`), which is several: `python -m
vlws.lab.background` executes one job in a process group of its own. That process reads its stdin: first the job; then,
one per line, the seconds that it may still take, told anew whenever a run of the same server starts or ends; the end of
stdin cancels the run. So no run outlives its server, however that ends: the run is recorded as cancelled, and the next
one goes on with its missing cells.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlws import paths
from vlws.errors import InputError
from vlws.lab import attempts, executors, guards, kernel, proved, records, runner
from vlws.lab import prove as proofs
from vlws.lab.chapters import chapter as find

GRACE = 20.0  # seconds that a cancelled run has to write its record before it is killed
KERNEL = "[IPKernelApp]"  # what the kernel itself says, not the notebook
TAIL = 4096  # bytes of stderr.log that the newest line of progress is looked for in


@dataclass
class Run:
    """One run that was asked for: its job, and the process that executes it (none where it had finished before).

    The job of a proof has `claim`, `seeds` and `ledger` in the place of a notebook's parameters.
    """

    handle: str
    job: dict[str, Any]
    began: float
    process: subprocess.Popen | None = None
    run_id: str | None = None  # once its folder is there
    cells: tuple[int, int] = (0, 0)
    limit: float | None = None  # seconds from its start after which it is stopped
    fault: str | None = None  # what kept the runner from writing a record, or ended a proof
    line: str = ""  # the newest that a proof has said
    state: str | None = None  # in which a proof has ended
    follower: threading.Thread | None = None  # reads what the process says, until it ends
    seconds: float | None = None  # that it took, once it has ended

    def elapsed(self) -> float:
        return time.monotonic() - self.began if self.seconds is None else self.seconds


class Runs:
    """The runs of one server: at most `at_once` at a time, and `minutes` in all (None: as long as they take).

    The time of a run counts from its start to its end, whatever cores it uses. Runs that go on at the same time share
    what is left: each may take an equal part of it.
    """

    def __init__(self, minutes: float | None, at_once: int = 1, allow_hub: bool = False) -> None:
        if minutes is not None and not 0 < minutes < math.inf:
            raise InputError(f"minutes is {minutes:g}; the budget must be above 0 minutes.")
        if at_once < 1:
            raise InputError(f"jobs is {at_once}; it must be at least 1.")
        self.budget = math.inf if minutes is None else 60 * minutes
        self.at_once, self.allow_hub = at_once, allow_hub
        self.known: dict[str, Run] = {}
        self.lock = threading.RLock()

    def start(self, chapter: str, preset: str, parameters: Mapping[str, Any], force: bool = False) -> Run:
        """Start a run and return at once; one that is going on or had finished with the same key is returned instead.

        Raises InputError for what the chapter does not accept, for a path outside the workspace, where `at_once` runs
        are going on, and where the budget is spent.
        """
        job = self._plan(chapter, preset, parameters)
        with self.lock:
            if not force and (done := runner.finished().get(job["key"])):
                return self._same(job) or self._known(job, run_id=done["run_id"])
            if force:
                job["since"] = datetime.now(UTC).isoformat(timespec="milliseconds")
            return self._begin(job)

    def prove(self, claim: str, preset: str | None = None, seeds: int = 24) -> Run:
        """Begin a proof, or go on with one, and return at once; one that has come to its end is returned as it is.

        Raises InputError as `start` does, and for what `vlws.lab.prove` does not accept.
        """
        records.forget()
        ledger, path = proofs.begin(claim, preset, seeds)
        named = {"chapter": ledger["slug"][:2], "slug": ledger["slug"], "preset": ledger["preset"], "seeds": seeds}
        key = f"{claim}.{ledger['preset']}"
        job = named | {"claim": claim, "ledger": str(path), "key": key, "timeout": self.budget}
        with self.lock:
            return self._same(job) or (self._known(job, state="ok") if proved.is_over(ledger) else self._begin(job))

    def _same(self, job: Mapping[str, Any]) -> Run | None:
        return next((run for run in self.going() if run.job["key"] == job["key"]), None)

    def _known(self, job: dict[str, Any], **ended: Any) -> Run:
        """A run that had finished before."""
        handle = f"run-{len(self.known) + 1}"
        self.known[handle] = Run(handle, job, time.monotonic(), seconds=0.0, **ended)
        return self.known[handle]

    def _begin(self, job: dict[str, Any]) -> Run:
        """Start the process of a job, unless one is going on with it."""
        if same := self._same(job):
            return same
        going = self.going()
        if len(going) >= self.at_once:
            names = ", ".join(f"{run.handle} ({run.job['slug']})" for run in going)
            raise InputError(
                f"this server runs at most {self.at_once} at once, now {names}; wait for one to end, or cancel one."
            )
        if self.left() <= 0:
            raise InputError(f"the budget of {self.budget / 60:g} minutes is spent; the server starts no further run.")
        run = Run(f"run-{len(self.known) + 1}", job, time.monotonic())
        run.process = self._process(job)
        run.follower = threading.Thread(target=self._follow, args=[run], daemon=True)
        self.known[run.handle] = run
        self._share()
        run.follower.start()
        return run

    def _plan(self, chapter: str, preset: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        one = find(chapter)
        if "preset" in parameters:
            raise InputError("preset stands among the parameters; give it as `preset`.")
        given = dict(parameters)
        for name in ("data", "backbone"):
            if isinstance(given.get(name), str):
                given[name] = guards.located(name, given[name], self.allow_hub)
        records.forget()
        (job,) = runner.plan([one.slug], preset, given, timeout=self.budget)
        return job

    def _process(self, job: Mapping[str, Any]) -> subprocess.Popen:
        env = dict(os.environ)
        env.setdefault("VLWS_WORKERS", str(max(1, executors.cores() // self.at_once)))
        if not self.allow_hub:
            env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "vlws.lab.background"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=paths.root(),
            text=True,
            start_new_session=True,  # a process group of its own
        )
        _tell(process, json.dumps(job))
        return process

    def _follow(self, run: Run) -> None:
        """Read what the process of a run says until it ends."""
        process = run.process
        assert process is not None, "a run that is followed has a process"
        assert process.stdout is not None, "its stdout is a pipe"
        for line in process.stdout:
            said = json.loads(line)
            run.cells, run.limit = tuple(said.get("cells", run.cells)), said.get("limit", run.limit)
            run.line, run.state = said.get("line", run.line), said.get("state")
            run.fault, run.run_id = said.get("fault"), said.get("run_id", run.run_id)
        process.wait()
        with self.lock:
            run.seconds = run.elapsed()
            self._share()

    def going(self) -> list[Run]:
        """The runs that go on."""
        return [run for run in list(self.known.values()) if run.seconds is None]

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return max(0.0, self.budget - sum(run.elapsed() for run in self.known.values()))

    def _share(self) -> None:
        """Tell the runs that go on how long each may still take."""
        going = self.going()
        for run in going:
            assert run.process is not None, "a run that goes on has a process"
            _tell(run.process, str(self.left() / len(going)))

    def get(self, handle: str) -> Run:
        """A run by its handle; InputError where there is none."""
        if handle not in self.known:
            started = ", ".join(self.known) or "none"
            raise InputError(f"no run {handle!r} of this server; give a run id, or one that it has started: {started}.")
        return self.known[handle]

    def record(self, run: Run) -> dict[str, Any] | None:
        """The record of a run, once its folder is there."""
        for record in guards.runs(run.job["slug"]):
            mine = run.process is not None and record.get("pid") == run.process.pid and record["key"] == run.job["key"]
            if record["run_id"] == run.run_id or (run.run_id is None and mine):
                run.run_id = record["run_id"]
                return record
        return None

    def cancel(self, handle: str) -> Run:
        """Stop a run and all that it started, and wait until it has ended; one that has ended stays as it is."""
        run = self.get(handle)
        self._end([run])
        return run

    def close(self) -> None:
        """Cancel all that goes on."""
        self._end(self.going())

    def _end(self, runs: Sequence[Run]) -> None:
        started = [(run.process, run.follower) for run in runs]
        for process, _ in started:
            if process is not None:
                _close(process)
        for process, follower in started:
            if process is not None and follower is not None:
                _wait_or_kill(process)
                follower.join()

    def state(self) -> dict[str, Any]:
        """The budget in minutes, and the handles of the runs that go on."""
        left = self.left()
        return {
            "minutes": round(self.budget / 60, 3),
            "left": round(left / 60, 3),
            "at_once": self.at_once,
            "running": [run.handle for run in self.going()],
        }


def newest_line(folder: Path) -> str:
    """The newest line that a run wrote to stderr: where an experiment's progress bar stands."""
    try:
        with open(folder / "stderr.log", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    return next((line for line in reversed(lines) if line and not line.startswith(KERNEL)), "")


def _tell(process: subprocess.Popen, line: str) -> None:
    assert process.stdin is not None, "its stdin is a pipe"
    with suppress(OSError, ValueError):  # it has ended, or was cancelled
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _close(process: subprocess.Popen) -> None:
    assert process.stdin is not None, "its stdin is a pipe"
    with suppress(OSError):
        process.stdin.close()


def _wait_or_kill(process: subprocess.Popen) -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        kernel.kill_children(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- the process of one run -------------------------------------------------------------------------------------------


def main() -> None:
    """Execute the job on stdin; cells done, and what kept a record from being written, go to stdout as JSON lines."""
    job = json.loads(sys.stdin.readline())
    job["began"], stop = time.time(), threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())

    def listen() -> None:
        for line in sys.stdin:
            job["timeout"] = time.time() - job["began"] + float(line)
        stop.set()

    def say(**said: Any) -> None:
        with suppress(OSError):  # the server is gone: stdin ends too
            print(json.dumps(said), flush=True)

    threading.Thread(target=listen, daemon=True).start()
    try:
        _prove(job, say, stop) if "claim" in job else _run(job, say, stop)
    except OSError as error:
        say(fault=f"{error.strerror or error} ({error.filename})")
    os._exit(0)  # the thread still reads stdin


def _run(job: dict[str, Any], say: Callable[..., None], stop: threading.Event) -> None:
    """Execute a run; while another process runs the same, it is waited for within the time that this run may take."""
    outcome = _attempted(job, stop, lambda n, total: say(cells=[n, total], limit=job["timeout"]))
    if outcome.fault:
        raise outcome.fault
    if outcome.record and outcome.record.get("skipped"):  # another process ran it meanwhile
        say(run_id=outcome.record["run_id"])


def _attempted(job: dict[str, Any], stop: threading.Event, progress: Callable[[int, int], None]) -> attempts.Outcome:
    """What came of the job; while another process runs it, it is waited for within the time that this run may take."""
    outcome = attempts.attempt(job, progress, stop)
    while outcome.held is not None and not stop.wait(1.0) and job["timeout"] > 0:
        waited = time.time() - job["began"]
        job |= {"began": job["began"] + waited, "timeout": job["timeout"] - waited}
        outcome = attempts.attempt(job, progress, stop)
    return outcome


def _prove(job: Mapping[str, Any], say: Callable[..., None], stop: threading.Event) -> None:
    """Go on with a proof until its end or until the time that the job may take, which may change, is over."""
    spent = threading.Event()

    def progress(n: int, total: int) -> None:
        say(cells=[n, total], limit=job["timeout"])
        if time.time() - job["began"] > job["timeout"]:
            spent.set()
            stop.set()

    done = proofs.prove(
        job["claim"],
        preset=job["preset"],
        seeds=job["seeds"],
        say=lambda line: say(line=line),
        progress=progress,
        stop=stop,
    )
    if not done["ended"]:
        say(state="ok")
    elif done["ended"] != proofs.CANCELLED:
        say(state="failed", fault=done["ended"])
    else:
        say(state="timeout" if spent.is_set() else "cancelled", fault=proofs.SPENT if spent.is_set() else done["ended"])


if __name__ == "__main__":
    main()
