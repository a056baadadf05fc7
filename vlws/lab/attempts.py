"""One job of a sweep, on whichever machine: one process runs it at a time, and what came of it is told as a value."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlws.lab import execution, holding, records
from vlws.lab.chapters import chapter
from vlws.lab.executors import Job
from vlws.lab.launch import versions


@dataclass(frozen=True)
class Outcome:
    """What came of a job: just one of these is set."""

    record: dict[str, Any] | None = None  # of a run; `skipped` where it was made before, or by another process
    held: dict[str, Any] | None = None  # who runs it now
    fault: OSError | None = None  # what kept a record from being written
    refused: str = ""  # why this machine cannot run it
    lost: str = ""  # what became of the process that ran it


def attempt(
    job: Job, progress: Callable[[int, int], None] | None = None, stop: execution.Stop | None = None
) -> Outcome:
    """Run a job, unless a good run of its key is there by now or another process runs it."""
    folder = held_in(job)
    try:
        hold = holding.take(folder, job["key"], driver=job.get("driver"))
        if hold is None:
            return Outcome(held=holding.holder(folder, job["key"]) or {})
        with hold:
            if before := _before(job):
                return Outcome(record=before | {"skipped": True})
            return Outcome(record=execution.execute(job, progress, _Ends(job, hold, stop)))
    except OSError as error:
        return Outcome(fault=error)


def held_in(job: Job) -> Path:
    """The folder of the holds of a job's runs."""
    return Path(job["folders"]["VLWS_RUNS"]) / holding.FOLDER


def known(job: Job) -> list[dict[str, Any]]:
    """The records of a job, newest first."""
    return records.of_key(Path(job["folders"]["VLWS_RUNS"]), job["slug"], job["key"])


def _before(job: Job) -> dict[str, Any] | None:
    """The newest good run of a job that is held; one that says "running" has died, since nobody else may run it."""
    found = known(job)
    for record in found:
        if record["status"] == "running":
            records.bury(record)
    return next((r for r in found if r["status"] == "ok" and r["started"] >= job.get("since", "")), None)


class _Ends:
    """Whether a run is to end: it was told to, another has its key, or the process that asked for it is gone."""

    def __init__(self, job: Job, hold: holding.Hold, stop: execution.Stop | None) -> None:
        self.hold, self.stop = hold, stop
        self.folder, self.driver = held_in(job), job.get("driver")
        self.looked = time.monotonic()

    def is_set(self) -> bool:
        return self.hold.lost.is_set() or (self.stop is not None and self.stop.is_set()) or self._alone()

    def _alone(self) -> bool:
        if self.driver is None:
            return False
        if not (self.folder / self.driver).exists():
            return True
        if time.monotonic() - self.looked < holding.BEAT:
            return False
        self.looked = time.monotonic()
        return holding.holder(self.folder, self.driver) is None


# --- on a worker of a cluster -----------------------------------------------------------------------------------------


def on_worker(job: Job) -> Outcome:
    """What a worker calls: the job, where this machine has the same code, versions and files as the one that asks."""
    os.environ.update(job["folders"])
    if why := unfit(job):
        return Outcome(refused=f"{socket.gethostname()} {why}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)  # so that a run is recorded as cancelled where the block is ended
    cells = held_in(job) / f"{job['key']}.cells"

    told = (0, 0)

    def progress(n: int, total: int) -> None:
        nonlocal told
        if (n, total) != told:
            told = (n, total)
            with suppress(OSError):
                cells.write_text(f"{n}/{total}")

    pool = os.getppid()
    try:
        return attempt(job, progress)
    finally:
        with suppress(OSError):
            cells.unlink(missing_ok=True)
        if os.getppid() != pool:
            _clear_away()


def _clear_away() -> None:
    """End what a pool of workers that was killed under us has left in its process group: nobody else does."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            orphan = process.ppid() == os.getppid() and os.getpgid(process.pid) == os.getpgrp()
            if orphan and process.pid != os.getpid():
                process.terminate()


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def needs(job: Job) -> dict[str, Any]:
    """What a machine must have to run a job as this one would."""
    return {"versions": versions(), "parts": records.parts(chapter(job["slug"]))}


def unfit(job: Job) -> str:
    """Why this machine cannot run a job that `needs` was asked of; nothing where it can."""
    for path in (Path(job["notebook"]), held_in(job) / job["driver"]):
        if not path.exists():
            seen = path if path.suffix == ".ipynb" else path.parent.parent
            return f"does not see {seen}; workers must see the workspace under the same path as the command."
    wanted = job["needs"]
    if unlike := _unlike(_shortened(wanted["versions"]), _shortened(versions())):
        return f"has {unlike[2]} of {unlike[0]}, and the command {unlike[1]}; they must have the same."
    records.forget()
    one = chapter(job["slug"])
    if unlike := _unlike(wanted["parts"], records.parts(one)):
        return f"has other code or data than the command: {unlike[0]} differs; they must have the same."
    if records.key(one, job["params"]) != job["made_by"]:
        return "has other files in `data` or `backbone` than the command; they must have the same."
    return ""


def _shortened(found: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, that of Python without its last part."""
    return {**found, "python": found["python"].rpartition(".")[0]}


def _unlike(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first name that two mappings have different values of."""
    names = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    return (names[0], wanted.get(names[0]) or "none", found.get(names[0]) or "none") if names else None
