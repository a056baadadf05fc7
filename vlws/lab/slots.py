"""Jobs in slots that keep their process: a function of a module of ours, called on one job after the other.

A slot of this machine is a process (`python -m vlws.lab.slots MODULE NAME`) that reads jobs from its stdin and answers
on its stdout, each a line of JSON: what it has loaded for one job it has for the next. It ends when its stdin is
closed, at once and whatever it does: nothing outlives the process that started it. Over Parsl
the workers call the function.
"""

import importlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, as_completed, wait
from functools import partial
from pathlib import Path
from typing import Any

from vlws.errors import InputError
from vlws.lab import cluster, executors
from vlws.lab.sweeping import AGAIN

Result = dict[str, Any]
Function = Callable[[executors.Job], Result]


def over(jobs: int | None, parsl: Path | None = None) -> Callable[[Function, Sequence[executors.Job]], Iterator[dict]]:
    """What calls a function on each of a list of jobs and yields the results as they come.

    `jobs` slots of this machine (None: this process, one job after the other), or Parsl by a configuration.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1.")
    if parsl is not None:
        cluster.read_config(parsl)  # before documents are read
        return partial(_on_cluster, config=parsl)
    return partial(_in_slots, slots=jobs) if jobs else map


def _on_cluster(function: Function, jobs: Sequence[executors.Job], config: Path) -> Iterator[Result]:
    """A job whose worker is lost is done again, `AGAIN` times; then OSError."""
    if not jobs:
        return
    with cluster.parsl(function, config) as submit:
        pending = {submit(job): (job, 0) for job in jobs}
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                job, tries = pending.pop(future)
                error = future.exception()
                if not cluster.is_lost(error):
                    yield future.result()
                elif tries < AGAIN:
                    pending[submit(job)] = (job, tries + 1)
                else:
                    name = type(error).__name__
                    raise OSError(f"workers were lost {tries + 1} times ({name}); the same command goes on from there")


def _in_slots(function: Function, jobs: Sequence[executors.Job], slots: int) -> Iterator[Result]:
    processes: dict[int, _Slot] = {}

    def run(job: executors.Job, slot: int, stop: threading.Event) -> Result:
        env = job.pop("env")
        if slot not in processes:
            processes[slot] = _Slot(function, env)
        return processes[slot].call(job, stop)

    if not jobs:
        return
    try:
        with executors.local(run, len(jobs), slots) as submit:
            for future in as_completed([submit(job) for job in jobs]):
                yield future.result()
    finally:
        for one in processes.values():
            one.end()


class _Slot:
    """A process that calls a function on job after job."""

    def __init__(self, function: Function, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vlws.lab.slots", function.__module__, function.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"} | os.environ | env,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the slot
        )
        self.answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None, "its stdout is a pipe"
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(b"")

    def call(self, job: executors.Job, stop: threading.Event) -> Result:
        """The result of a job; raises what the function raised, and OSError where the process was killed."""
        assert self.process.stdin is not None, "its stdin is a pipe"
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which its answer says
        while True:
            try:
                line = self.answers.get(timeout=0.5)
                break
            except queue.Empty:
                if stop.is_set():
                    self.end()
        if not line:
            self.answers.put(line)  # the next job of this slot, if one has begun, ends the same way
            code = self.process.wait()
            raise OSError(f"a slot ended with code {code} before its job was done; the same command goes on from there")
        answer = json.loads(line)
        if "input_error" in answer:
            raise InputError(answer["input_error"])
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        return answer["result"]

    def end(self) -> None:
        """End the process; what it was writing is not believed."""
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Answer the jobs of stdin, one line each."""
    function = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    out, sys.stdout = sys.stdout, sys.stderr  # nothing but answers may stand on stdout
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=[jobs], daemon=True).start()
    while True:
        job = json.loads(jobs.get())
        try:
            answer = {"result": function(job)}
        except InputError as error:
            answer = {"input_error": str(error)}
        except OSError as error:
            answer = {"os_error": [error.errno, error.strerror or str(error), error.filename and str(error.filename)]}
        print(json.dumps(answer), file=out, flush=True)


def _read(jobs: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
