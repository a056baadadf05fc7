"""Runs of chapters: plan, execute, record, publish, query.

A run is one chapter under papermill in a process of its own, and one folder, `runs/NN_slug/<utc>-<key8>/`. The process
that started it writes its run.json at the start and again at the end. All that the user gives is checked before any run
starts; the status comes from the exit code; a finished key is not run again.
"""

import hashlib
import itertools
import json
import os
import platform
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Event
from typing import Any

from vlws import paths
from vlws.errors import InputError
from vlws.files import read_json, write_json
from vlws.lab import executors
from vlws.lab.chapters import PRESETS, Chapter, chapter, chapters, preset_values, read_values

SCHEMA = 1
PACKAGE = Path(__file__).resolve().parents[1]
STATUS_OF_CODE = {0: "ok", 1: "failed"}  # any other exit code: dead


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
    combination of which is a job. Without targets a parameter counts where a chapter has it, and must be one of some.
    """
    given, grid = dict(given or {}), dict(grid or {})
    preset = given.pop("preset", preset)
    if timeout is not None and timeout <= 0:
        raise InputError(f"timeout is {timeout:g}; it must be above 0 seconds.")
    chosen = [chapter(target) for target in dict.fromkeys(targets)] or chapters()
    if not chosen:
        raise InputError(f"there are no chapters in {paths.notebooks()}.")
    folders = {"VLWS_ROOT": paths.root(), "VLWS_RUNS": paths.runs(), "VLWS_CACHE": paths.cache()}
    folders = {name: str(path) for name, path in folders.items()}
    jobs = []
    for one in chosen:
        everywhere = {name for other in chosen for name in other.parameters} if not targets else set()
        mine = {k: v for k, v in given.items() if k in one.parameters or k not in everywhere}
        axes = {k: v for k, v in grid.items() if k in one.parameters or k not in everywhere}
        literals = {name: parameter.default for name, parameter in one.parameters.items()}
        base = literals | preset_values(one, preset) | ({"preset": preset} if "preset" in literals else {})
        fixed = read_values(one, mine)
        for cell in itertools.product(*axes.values()):
            chosen_values = fixed | read_values(one, dict(zip(axes, cell, strict=True)))
            params = base | chosen_values
            jobs.append(
                {
                    "chapter": one.id,
                    "slug": one.slug,
                    "title": one.title,
                    "notebook": str(one.path),
                    "preset": preset,
                    "params": params,
                    "injected": {name: value for name, value in params.items() if value != literals[name]},
                    "overrides": sorted(name for name in chosen_values if params[name] != base[name]),
                    "key": key(one, params),
                    "timeout": timeout,
                    "folders": folders,
                }
            )
    return list({job["key"]: job for job in jobs}.values())


def key(chapter: Chapter, params: Mapping[str, Any]) -> str:
    """Hash of all that a run is made of.

    The notebook's code, its parameters, our modules that it reaches, the data that ships with them, the shipped models
    that it names, results that it may read, its claims, the pins, and the files that `data` and `backbone` name.
    """
    h = hashlib.sha256(json.dumps([SCHEMA, chapter.slug, sorted(params.items())]).encode())
    h.update(json.dumps(chapter.code).encode())
    h.update(_made_of(chapter.slug, chapter.code, chapter.backbones).encode())
    for name in ("data", "backbone"):
        path = Path(str(params.get(name) or ""))
        if path.is_absolute() and path.exists():
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    h.update(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}".encode())
    return h.hexdigest()


@cache
def _made_of(slug: str, code: tuple[str, ...], backbones: tuple[str, ...]) -> str:
    from vlws import fingerprint

    modules = sorted(fingerprint.reached({name for cell in code for name in fingerprint.imported(cell)}))
    h = hashlib.sha256()
    folders = set()
    for module in modules:
        h.update(module.encode())
        h.update(fingerprint.module_source(module))
        if module.count("."):
            folders.add(PACKAGE.parent.joinpath(*module.split(".")[:-1], "assets"))
    models = PACKAGE / "models" / "assets"
    if models in folders:  # of the shipped models, those that the chapter names
        folders = folders - {models} | {models / name for name in backbones}
    results = paths.reports() / "results" / slug
    files = [file for folder in folders for file in folder.rglob("*") if "__pycache__" not in file.parts]
    files += [file for file in results.glob("*") if file.stem not in PRESETS]
    files += [paths.notebooks() / "claims" / f"{slug}.yaml", paths.root() / "constraints.txt"]
    for file in sorted(files):
        if file.is_file():
            h.update(file.name.encode())
            h.update(file.read_bytes())
    return h.hexdigest()


# --- records ----------------------------------------------------------------------------------------------------------


def records(slug: str | None = None) -> list[dict[str, Any]]:
    """The records of all runs, newest first, each with its `folder`.

    A run whose status is "running" though the process that ran it is gone counts as dead.
    """
    found = []
    for path in paths.runs().glob(f"{slug or '*'}/*/run.json"):
        record = read_json(path)
        if isinstance(record, dict) and "status" in record:
            if record["status"] == "running" and not _alive(record):
                record |= {"status": "dead", "first_error": _error("Killed", "the process that ran it was killed")}
            found.append(record | {"folder": str(path.parent)})
    return sorted(found, key=lambda record: record.get("started") or "", reverse=True)


def settle() -> None:
    """Write down which runs are dead whose process was killed, so that readers of the files see it too."""
    for record in records():
        path = Path(record["folder"]) / "run.json"
        if record["status"] == "dead" and (read_json(path) or {}).get("status") == "running":
            try:
                write_json(path, {name: value for name, value in record.items() if name != "folder"})
            except OSError:
                return  # a disk that takes no writes: the readers of `records` still see it


def is_stale(record: Mapping[str, Any]) -> bool:
    """Whether what a run was made of has changed since: its key is no longer the one it would get today."""
    try:
        now = chapter(record["slug"])
        return key(now, read_values(now, record["params"])) != record["key"]
    except InputError:
        return True


def measures(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a run measured."""
    return read_json(Path(record["folder"]) / "measures.json") or []


def _alive(record: Mapping[str, Any]) -> bool:
    if record.get("host") != socket.gethostname():
        return True  # nothing is known of the processes of another machine
    import psutil

    try:
        process = psutil.Process(record["pid"])
        return abs(process.create_time() - record["pid_started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError):
        return False


def _error(ename: str, evalue: str, cell: int | None = None) -> dict[str, Any]:
    return {"cell": cell, "ename": ename, "evalue": evalue}


# --- running ----------------------------------------------------------------------------------------------------------


def run(
    jobs: Sequence[executors.Job],
    *,
    slots: int = 1,
    force: bool = False,
    parsl: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run jobs and yield the record of each as it ends; a failing one does not stop the others.

    A job whose key has a finished run yields that run's record with `skipped: True`, unless `force`. `say` gets a line
    for each.
    """
    say = say or (lambda line: None)
    settle()
    finished = {record["key"]: record for record in reversed(records()) if record["status"] == "ok" and not force}
    waiting = []
    for job in jobs:
        if done := finished.get(job["key"]):
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


def label(job: Mapping[str, Any]) -> str:
    """A job or a run in a few words: "04_cmg", "04_cmg full lr=0.1"."""
    preset = [] if job["preset"] == "cpu" else [job["preset"]]
    return " ".join([job["slug"], *preset, *(f"{name}={job['params'][name]}" for name in job["overrides"])])


def shown(folder: Path) -> str:
    """A path relative to the workspace where it lies within."""
    return str(folder.relative_to(paths.root()) if folder.is_relative_to(paths.root()) else folder)


def _with_bar(job: executors.Job, slot: int, stop: Event) -> dict[str, Any]:
    from tqdm import tqdm

    bar_format = "{desc}: {bar} {n_fmt}/{total_fmt} cells, {elapsed}"
    with tqdm(desc=label(job), total=1, position=slot, leave=False, disable=None, bar_format=bar_format) as bar:
        if bar.disable:
            tqdm.write(f"{label(job)}: started", file=sys.stderr)

        def progress(n: int, total: int) -> None:
            bar.total, bar.n = total, n
            bar.refresh()

        return execute(job, progress=progress, stop=stop)


def execute(
    job: executors.Job, progress: Callable[[int, int], None] | None = None, stop: Event | None = None
) -> dict[str, Any]:
    """One job: its folder, its process, its record (returned with `folder`); OSError where nothing can be written.

    `progress(n, total)` is called with the cells done, about once a second; setting `stop` cancels the run.
    """
    began = time.time()
    folder = _new_folder(Path(job["folders"]["VLWS_RUNS"]) / job["slug"], job["key"], began)
    record = _record_at_start(job, folder, began)
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


def _record_at_start(job: executors.Job, folder: Path, began: float) -> dict[str, Any]:
    import psutil

    return {
        "schema": SCHEMA,
        "run_id": folder.name,
        **{name: job[name] for name in ("chapter", "slug", "title", "preset")},
        "status": "running",
        "rc": None,
        **{name: job[name] for name in ("key", "params", "overrides")},
        "git": git_state(),
        "env": environment(),
        "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="milliseconds"),
        "ended": None,
        "wall_s": None,
        "peak_rss_mb": None,
        "first_error": None,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
    }


def _ended(record: dict, folder: Path, status: str, code: int | None, began: float, peak: float) -> dict[str, Any]:
    """Write what came of a run: measures first, the record last, so that a status "ok" means that all is there."""
    executed = read_json(folder / "notebook.ipynb") or {"cells": []}
    write_json(folder / "measures.json", collect_measures(executed))
    (folder / "job.json").unlink(missing_ok=True)
    now = time.time()
    record |= {
        "status": status,
        "rc": code,
        "ended": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "wall_s": round(now - began, 2),
        "peak_rss_mb": round(peak) if peak else None,
        "first_error": None if status == "ok" else first_error(executed, status, folder / "stderr.log"),
    }
    write_json(folder / "run.json", record)
    return record | {"folder": str(folder)}


def collect_measures(executed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measures that an executed notebook shows; of a claim measured twice, the last."""
    from vlws.claims import MIME

    found: dict[str, dict[str, Any]] = {}
    for cell in executed["cells"]:
        for output in cell.get("outputs", []):
            measure = output.get("data", {}).get(MIME)
            if isinstance(measure, dict) and "id" in measure:
                found[measure["id"]] = measure
    return list(found.values())


def first_error(executed: Mapping[str, Any], status: str, stderr: Path) -> dict[str, Any] | None:
    """Which cell (its execution count) raised what; for a run that ended otherwise, how."""
    if status == "cancelled":
        return _error("Cancelled", "stopped by the user")
    if status == "timeout":
        return _error("Timeout", "stopped at its time limit")
    for cell in executed["cells"]:
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                return _error(output.get("ename", ""), output.get("evalue", ""), cell.get("execution_count"))
    if status == "dead":
        return _error("DeadKernel", "the kernel was killed (is memory short?)")
    lines = [line.strip() for line in stderr.read_text(errors="replace").splitlines()] if stderr.exists() else []
    ename, _, evalue = next((line for line in reversed(lines) if line), "unknown: see stderr.log").partition(": ")
    return _error(ename, evalue)


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
    from vlws.lab import kernel as notebook

    child.stdin.close()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        notebook.kill_children(child.pid)
        child.kill()
        child.wait()
    child.stdout.close()


def _export(folder: Path) -> None:
    """notebook.html beside the notebook; a run is what it is without it."""
    if not (folder / "notebook.ipynb").is_file():
        return
    from vlws.lab import site as report

    try:
        report.export(folder / "notebook.ipynb", folder / "notebook.html")
    except Exception as error:
        print(f"{folder.name}: no HTML ({type(error).__name__}: {error})", file=sys.stderr)


# --- where it ran -----------------------------------------------------------------------------------------------------


def git_state() -> dict[str, Any] | None:
    """The commit of the workspace and whether tracked files differ from it; None where it is no git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            asked = subprocess.run(["git", "-C", str(paths.root()), *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return asked.stdout.strip() if asked.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    return {"sha": sha, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))} if sha else None


def environment() -> dict[str, Any]:
    """Versions, platform and hardware, without importing what is named."""
    pins = paths.root() / "constraints.txt"
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "transformers", "pykeops")},
        "platform": platform.platform(),
        "cpu": f"{_cpu_name()}, {executors.cores()} cores",
        "gpu": ", ".join(executors.gpu_names()) or None,
        "constraints": hashlib.sha256(pins.read_bytes()).hexdigest()[:12] if pins.exists() else None,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


# --- evidence ---------------------------------------------------------------------------------------------------------


def publish(target: str, preset: str) -> Path:
    """Copy a chapter's newest good run at a preset, nothing overridden, to reports/results/NN_slug/<preset>.json."""
    one = chapter(target)
    good = [r for r in records(one.slug) if r["status"] == "ok" and r["preset"] == preset and not r["overrides"]]
    if not good:
        raise InputError(f"chapter {one.id} has no finished run at preset {preset!r} (without overrides) to publish.")
    record = dict(good[0])
    found = measures(record)
    if is_stale(record):
        raise InputError(
            f"the newest {preset} run of chapter {one.id} is stale (its code or data has changed); run it again."
        )
    for name in ("folder", "host", "pid", "pid_started"):
        record.pop(name, None)
    record["params"] = {k: Path(v).name if k in ("data", "backbone") and v else v for k, v in record["params"].items()}
    target_path = paths.reports() / "results" / one.slug / f"{preset}.json"
    target_path.parent.mkdir(parents=True, exist_ok=True)
    write_json(target_path, {"run": record, "measures": found})
    return target_path


def standing() -> dict[str, tuple[dict[str, Any], str, dict[str, Any] | None]]:
    """The best that is known of each claim: id -> (measure, where from, record).

    From the newest good run without overrides ("run"), else from what was published ("results"), else from the outputs
    of the notebook as it stands ("notebook").
    """
    found: dict[str, tuple[dict[str, Any], str, dict[str, Any] | None]] = {}
    for one in chapters():
        for measure in collect_measures(read_json(one.path)):
            found[measure["id"]] = (measure, "notebook", None)
        for preset in PRESETS:
            result = read_json(paths.reports() / "results" / one.slug / f"{preset}.json") or {"measures": []}
            for measure in result["measures"]:
                found[measure["id"]] = (measure, "results", result["run"])
    for record in reversed(records()):
        if record["status"] == "ok" and not record["overrides"]:
            found |= {measure["id"]: (measure, "run", record) for measure in measures(record)}
    return found


def query(sql: str) -> tuple[list[str], list[tuple]]:
    """Columns and rows of a query by DuckDB over the files: tables runs, measures and metrics. Raises InputError."""
    import duckdb

    settle()
    connection = duckdb.connect()
    base = paths.runs()
    quoted = str(base).replace("'", "''")
    text, number, flag = "VARCHAR", "DOUBLE", "BIGINT"
    columns = {
        "runs": dict.fromkeys(("run_id", "chapter", "slug", "title", "preset", "status"), text)
        | {"rc": flag, "key": text, "params": "JSON", "overrides": "VARCHAR[]", "git": "JSON", "env": "JSON"}
        | {"started": "TIMESTAMPTZ", "ended": "TIMESTAMPTZ", "wall_s": number, "peak_rss_mb": number}
        | {"first_error": "JSON"},
        "measures": dict.fromkeys(("id", "says", "where", "metric", "unit"), text)
        | {"paper": number, "direction": text, "threshold": number, "tolerance": number, "value": number}
        | {"low": number, "high": number, "n_seeds": flag, "n_replicates": flag}
        | dict.fromkeys(("verdict", "why", "preset"), text),
    }
    run_id = "parse_path(filename)[-2] AS run_id"
    for table, types in columns.items():
        file = "run.json" if table == "runs" else "measures.json"
        listed = ", ".join(f"'{name}': '{kind}'" for name, kind in types.items())
        if any(base.glob(f"*/*/{file}")):
            extra = "" if table == "runs" else f", {run_id}"
            names = ", ".join(f'"{name}"' for name in types)
            source = f"read_json('{quoted}/*/*/{file}', columns={{{listed}}}, filename=true)"
            connection.execute(f"CREATE VIEW {table} AS SELECT {names}{extra} FROM {source}")
        else:
            more = "" if table == "runs" else ", run_id VARCHAR"
            fields = ", ".join(f'"{name}" {kind}' for name, kind in types.items())
            connection.execute(f"CREATE TABLE {table} ({fields}{more})")
    if any(path.stat().st_size for path in base.glob("*/*/metrics.jsonl")):
        options = "format='newline_delimited', union_by_name=true, ignore_errors=true, filename=true"
        source = f"read_json('{quoted}/*/*/metrics.jsonl', {options})"
        connection.execute(f"CREATE VIEW metrics AS SELECT * EXCLUDE (filename), {run_id} FROM {source}")
    else:
        connection.execute("CREATE TABLE metrics (run_id VARCHAR)")
    try:
        answer = connection.execute(sql)
        return [column[0] for column in answer.description or []], answer.fetchall()
    except duckdb.Error as error:
        raise InputError(f"DuckDB: {' '.join(str(error).split())}") from None
