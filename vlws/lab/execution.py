"""One run of a chapter: its folder, its process, its record."""

import itertools
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from vlws.files import read_json, write_json
from vlws.lab import executors, kernel, launch, records, tables

STATUS_OF_CODE = {0: "ok", 1: "failed"}  # any other exit code: dead


class Stop(Protocol):
    """What says whether a run is to end, such as a `threading.Event`."""

    def is_set(self) -> bool: ...


def execute(
    job: executors.Job, progress: Callable[[int, int], None] | None = None, stop: Stop | None = None
) -> dict[str, Any]:
    """One job: its folder, its process, its record (returned with `folder`); OSError where nothing can be written.

    `progress(n, total)` is called with the cells done, about once a second; once `stop` is set the run is cancelled.
    """
    began = time.time()
    folder = _new_folder(Path(job["folders"]["VLWS_RUNS"]) / job["slug"], job["key"], began)
    record = records.at_start(job, folder, began)
    if stop is not None and stop.is_set():
        return _ended(record, folder, "cancelled", None, began, 0.0)
    write_json(folder / "run.json", record)
    write_json(folder / "params.json", job["params"])
    write_json(folder / "job.json", {"notebook": job["notebook"], "out": str(folder), "params": job["injected"]})
    env = {"OMP_WAIT_POLICY": "passive"}  # idle OpenMP threads that spin take the cores of those that work
    env |= os.environ | job.get("env", {}) | job["folders"] | {"VLWS_RUN": str(folder), "PYTHONUNBUFFERED": "1"}
    status, peak = None, 0.0
    with open(folder / "stderr.log", "wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "vlws.lab.kernel", str(folder / "job.json")],
            stdin=subprocess.PIPE,  # its end tells the child to end: see vlws.lab.kernel
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            cwd=Path(job["notebook"]).parent,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
        )
        try:
            cells = (0, 1)
            while child.poll() is None:
                cells = _read_progress(child.stdout, cells)
                if progress:
                    progress(*cells)
                peak = max(peak, _rss_mb(child.pid))
                if stop is not None and stop.is_set():
                    status = "cancelled"
                elif job["timeout"] and time.time() - began > job["timeout"]:
                    status = "timeout"
                if status:
                    break
        except BaseException:
            _end(child)
            _ended(record, folder, "cancelled", child.returncode, began, peak)
            raise
        _end(child)
    code = child.returncode
    status = status or STATUS_OF_CODE.get(code, "dead")
    record = _ended(record, folder, status, code, began, peak)
    if status in ("ok", "failed", "dead", "timeout"):
        _export(folder)
    return record


def never_run(job: executors.Job, status: str, ename: str, evalue: str) -> dict[str, Any]:
    """The record of a job that no process could run, written as any other; OSError."""
    began = time.time()
    folder = _new_folder(Path(job["folders"]["VLWS_RUNS"]) / job["slug"], job["key"], began)
    record = records.at_start(job, folder, began)
    error = records.error_of(ename, evalue)
    record |= {"status": status, "ended": record["started"], "wall_s": 0.0, "first_error": error}
    write_json(folder / "run.json", record)
    return record | {"folder": str(folder)}


def _new_folder(runs: Path, key: str, began: float) -> Path:
    stamp = datetime.fromtimestamp(began, UTC).strftime("%Y%m%dT%H%M%S")
    for suffix in itertools.chain([""], (f".{n}" for n in itertools.count(2))):
        folder = runs / f"{stamp}-{key[:8]}{suffix}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise AssertionError("the counter does not end")


def _ended(record: dict, folder: Path, status: str, code: int | None, began: float, peak: float) -> dict[str, Any]:
    """Write what came of a run: measures first, the record last, so that a status "ok" means that all is there."""
    executed = read_json(folder / "notebook.ipynb") or {"cells": []}
    records.keep_data(executed, folder)
    (folder / "job.json").unlink(missing_ok=True)
    record["env"] |= read_json(folder / launch.VERSIONS) or {}
    (folder / launch.VERSIONS).unlink(missing_ok=True)
    now = time.time()
    record |= {
        "status": status,
        "rc": code,
        "ended": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "wall_s": round(now - began, 2),
        "peak_rss_mb": round(peak) if peak else None,
        "first_error": None if status == "ok" else records.first_error(executed, status, folder / "stderr.log"),
    }
    tables.write_csv(record | {"folder": str(folder)})
    write_json(folder / "run.json", record)
    return record | {"folder": str(folder)}


def _read_progress(pipe: Any, cells: tuple[int, int]) -> tuple[int, int]:
    """The newest "n/total" that the child has said within a second."""
    if select.select([pipe], [], [], 1.0)[0]:
        said = re.findall(rb"(\d+)/(\d+)", os.read(pipe.fileno(), 65536))
        if said:
            return int(said[-1][0]), int(said[-1][1])
        time.sleep(0.05)
    return cells


def _rss_mb(pid: int) -> float:
    import psutil

    total = 0
    try:
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        pass
    return total / 2**20


def _end(child: subprocess.Popen) -> None:
    """See that a child and all that it started are gone."""
    assert child.stdin is not None, "its stdin is a pipe"
    assert child.stdout is not None, "its stdout is a pipe"
    child.stdin.close()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        kernel.kill_children(child.pid)
        child.kill()
        child.wait()
    child.stdout.close()


def _export(folder: Path) -> None:
    """notebook.html beside the notebook; a run is what it is without it."""
    if not (folder / "notebook.ipynb").is_file():
        return
    from vlws.lab import page

    try:
        page.export(folder / "notebook.ipynb", folder / "notebook.html")
    except Exception as error:
        print(f"{folder.name}: no HTML ({type(error).__name__}: {error})", file=sys.stderr)
