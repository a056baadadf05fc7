"""Runs of chapters: plan and execute.

A run is one chapter under papermill in a process of its own, and one folder, `runs/NN_slug/<utc>-<key8>/`. The process
that started it writes its run.json at the start and again at the end. All that the user gives is checked before any run
starts; the status comes from the exit code; a finished key is not run again.
"""

import itertools
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from vlws import paths
from vlws.errors import InputError
from vlws.files import read_json, write_json
from vlws.lab import evidence, executors, kernel, launch, records, tables
from vlws.lab.chapters import chapter, chapters, preset_values, presets, read_values
from vlws.lab.describe import duration, label, shown
from vlws.lab.inputs import check_inputs
from vlws.lab.records import key

STATUS_OF_CODE = {0: "ok", 1: "failed"}  # any other exit code: dead
LINE_EVERY = 60.0  # seconds
NEEDED = ("papermill", "ipykernel", "nbconvert", "psutil")  # of the extra `lab`, to run a chapter


# --- jobs -------------------------------------------------------------------------------------------------------------


def plan(
    targets: Sequence[str] = (),
    preset: str = "cpu",
    given: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    timeout: float | None = None,
) -> list[executors.Job]:
    """The jobs that a command asks for, all of them checked: one a chapter and a cell of the grid.

    targets: chapters by id, slug or name; none means all. given: values for parameters. grid: lists of values, every
    combination of which is a job. Without targets a parameter counts where a chapter has it, and must be one of some,
    and a chapter that has not the preset runs at cpu, its literals.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(f"running a chapter needs {', '.join(missing)}, not installed here; pip install 'vlws[lab]'.")
    given, grid = dict(given or {}), dict(grid or {})
    preset = given.pop("preset", preset)
    if timeout is not None and timeout <= 0:
        raise InputError(f"timeout is {timeout:g}; it must be above 0 seconds.")
    chosen = [chapter(target) for target in dict.fromkeys(targets)] or chapters()
    if not chosen:
        raise InputError(f"there are no chapters in {paths.notebooks()}.")
    places = {"VLWS_ROOT": paths.root(), "VLWS_RUNS": paths.runs(), "VLWS_CACHE": paths.cache()}
    folders = {name: str(path) for name, path in places.items()}
    jobs = []
    for one in chosen:
        evidence.known_claims(one)  # else a fault in the claims file would show after the experiment
        everywhere = {name for other in chosen for name in other.parameters} if not targets else set()
        mine = {k: v for k, v in given.items() if k in one.parameters or k not in everywhere}
        axes = {k: v for k, v in grid.items() if k in one.parameters or k not in everywhere}
        literals = {name: parameter.default for name, parameter in one.parameters.items()}
        of_preset = preset_values(one, its := preset if targets or preset in presets(one) else "cpu")
        base = literals | of_preset | ({"preset": its} if "preset" in literals else {})
        fixed = read_values(one, mine)
        check_inputs(one, base | fixed, axes)
        for cell in itertools.product(*axes.values()):
            chosen_values = fixed | read_values(one, dict(zip(axes, cell, strict=True)))
            params = base | chosen_values
            jobs.append(
                {
                    "chapter": one.id,
                    "slug": one.slug,
                    "title": one.title,
                    "notebook": str(one.path),
                    "preset": its,
                    "params": params,
                    "injected": {name: value for name, value in params.items() if value != literals[name]},
                    "axes": sorted(axes),
                    "overrides": sorted(name for name in chosen_values if params[name] != base[name]),
                    "key": key(one, params),
                    "timeout": timeout,
                    "folders": folders,
                }
            )
    return list({job["key"]: job for job in jobs}.values())


# --- running ----------------------------------------------------------------------------------------------------------


def run(
    jobs: Sequence[executors.Job],
    *,
    slots: int | None = None,
    force: bool = False,
    parsl: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run jobs and yield the record of each as it ends; a failing one does not stop the others.

    slots: how many at once on this machine; None is one per two cores, but not more than there are jobs. A job whose
    key has a finished run yields that run's record with `skipped: True`, unless `force`. `say` gets a line
    for each.
    """
    say = say or (lambda line: None)
    done_before = {} if force else finished()
    waiting = []
    for job in jobs:
        if done := done_before.get(job["key"]):
            say(f"{label(job)}: nothing has changed since {shown(Path(done['folder']))} (--force runs it again)")
            yield done | {"skipped": True}
        else:
            waiting.append(job)
    if not waiting:
        return
    results = executors.parsl(execute, waiting, parsl) if parsl else executors.local(_with_bar, waiting, slots)
    for number, record in enumerate(results, start=1):
        count = f"[{number}/{len(waiting)}] " if len(waiting) > 1 else ""
        why = f" ({record['first_error']['ename']}: {record['first_error']['evalue']})" if record["first_error"] else ""
        where = shown(Path(record["folder"]))
        say(f"{count}{label(record)}: {record['status']}{why} in {record['wall_s']:.0f} s, {where}")
        yield record


def finished() -> dict[str, dict[str, Any]]:
    """key -> the newest good run that has it, after `records.settle`."""
    records.settle()
    return {record["key"]: record for record in reversed(records.records()) if record["status"] == "ok"}


def _with_bar(job: executors.Job, slot: int, stop: Event) -> dict[str, Any]:
    from tqdm import tqdm

    bar_format = "{desc}: {bar} {n_fmt}/{total_fmt} cells, {elapsed}"
    with tqdm(desc=label(job), total=1, position=slot, leave=False, disable=None, bar_format=bar_format) as bar:
        line_a_minute = progress_lines(label(job), lambda line: tqdm.write(line, file=sys.stderr))

        def progress(n: int, total: int) -> None:
            bar.total, bar.n = total, n
            bar.refresh()

        return execute(job, progress=line_a_minute if bar.disable else progress, stop=stop)


def progress_lines(
    name: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """What says "started", and then how far a run is once a minute: for where no progress bar can be shown."""
    began = said = clock()
    say(f"{name}: started")

    def progress(n: int, total: int) -> None:
        nonlocal said
        if clock() - said >= LINE_EVERY:
            said = clock()
            say(f"{name}: {n}/{total} cells, {duration(said - began)}")

    return progress


def execute(
    job: executors.Job, progress: Callable[[int, int], None] | None = None, stop: Event | None = None
) -> dict[str, Any]:
    """One job: its folder, its process, its record (returned with `folder`); OSError where nothing can be written.

    `progress(n, total)` is called with the cells done, about once a second; setting `stop` cancels the run.
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
