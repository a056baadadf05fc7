"""What a run leaves: its record, its measures, where it ran; and whether it still stands."""

import hashlib
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from vlws import mime, paths
from vlws.errors import InputError
from vlws.files import read_json, write_json
from vlws.lab import executors, holding
from vlws.lab.chapters import Chapter, chapter, read_values
from vlws.lab.launch import versions
from vlws.lab.parameters import PRESETS

SCHEMA = 1
PACKAGE = Path(__file__).resolve().parents[1]
KILLED = {"cell": None, "ename": "Killed", "evalue": "the process that ran it was killed"}


def key(chapter: Chapter, params: Mapping[str, Any]) -> str:
    """Hash of all that a run is made of.

    The notebook's code, its parameters, our modules that it reaches, the data that ships with them, the shipped models
    that it names, results that it may read, its claims, the pins of what computes (`fingerprint.VERSIONS`: a package
    that another chapter needs makes no result stale), and the files that `data` and `backbone` name.
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


def parts(chapter: Chapter) -> dict[str, str]:
    """What a chapter is made of, part for part: its cells, modules, files and pins, each with a hash."""
    from vlws import fingerprint

    found = {"its cells": json.dumps(chapter.code).encode()}
    found |= {module: fingerprint.module_source(module) for module in _modules(chapter.code)}
    found |= {_named(file): file.read_bytes() for file in _files(chapter.slug, chapter.code, chapter.backbones)}
    found["constraints.txt"] = "".join(_pins(fingerprint.VERSIONS)).encode()
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in found.items()}


@cache
def _made_of(slug: str, code: tuple[str, ...], backbones: tuple[str, ...]) -> str:
    from vlws import fingerprint

    h = hashlib.sha256()
    for module in _modules(code):
        h.update(module.encode())
        h.update(fingerprint.module_source(module))
    for file in _files(slug, code, backbones):
        h.update(file.name.encode())
        h.update(file.read_bytes())
    h.update("".join(_pins(fingerprint.VERSIONS)).encode())
    return h.hexdigest()


def _modules(code: tuple[str, ...]) -> list[str]:
    """Our modules that the cells of a notebook reach."""
    from vlws import fingerprint

    return sorted(fingerprint.reached({name for cell in code for name in fingerprint.imported(cell)}))


def _files(slug: str, code: tuple[str, ...], backbones: tuple[str, ...]) -> list[Path]:
    """The files beside code that a chapter is made of: shipped data and models, results it may read, its claims."""
    folders = {
        PACKAGE.parent.joinpath(*module.split(".")[:-1], "assets") for module in _modules(code) if module.count(".")
    }
    models = PACKAGE / "models" / "assets"
    if models in folders:  # of the shipped models, those that the chapter names
        folders = folders - {models} | {models / name for name in backbones}
    results = paths.reports() / "results" / slug
    files = [file for folder in folders for file in folder.rglob("*") if "__pycache__" not in file.parts]
    files += [file for file in results.glob("*") if file.stem not in PRESETS]
    files += [paths.notebooks() / "claims" / f"{slug}.yaml"]
    return sorted(file for file in files if file.is_file())


def data_hashes(chapter: Chapter) -> dict[str, str]:
    """File, relative to the workspace -> sha256, of the shipped data, models and claims that a chapter is made of."""
    files = _files(chapter.slug, chapter.code, chapter.backbones)
    return {_named(file): _sha256(file, file.stat().st_mtime_ns) for file in files}


def _named(file: Path) -> str:
    """A file's path within the workspace or the package, so that no path of a machine is told."""
    base = paths.root() if file.is_relative_to(paths.root()) else PACKAGE.parent
    return file.relative_to(base).as_posix()


@cache
def _sha256(file: Path, changed: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def forget() -> None:
    """Look at code and data anew for the next key: for a process that lives longer than what it has read."""
    _made_of.cache_clear()


def _pins(packages: Sequence[str]) -> list[str]:
    """The lines of constraints.txt that pin some packages."""
    file = paths.root() / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line for line in lines if line.split("==")[0].strip().lower() in packages]


def records(slug: str | None = None) -> list[dict[str, Any]]:
    """The records of all runs, newest first, each with its `folder`.

    A run whose status is "running" though the process that ran it is gone counts as dead. A run.json that is no record
    (cut by a power failure, say) is left out, and told of on stderr.
    """
    found = []
    for path in paths.runs().glob(f"{slug or '*'}/*/run.json"):
        record = read_json(path)
        if not is_record(record):
            _tell_of(path)
            continue
        if record["status"] == "running" and not _alive(record):
            record |= {"status": "dead", "first_error": dict(KILLED)}
        found.append(record | {"folder": str(path.parent)})
    return sorted(found, key=lambda record: record["started"], reverse=True)


RECORD: dict[str, type | tuple[type, ...]] = {  # what every record has; what else there is may be missing
    **dict.fromkeys(("run_id", "chapter", "slug", "title", "preset", "status", "key", "started"), str),
    **{"params": dict, "overrides": list, "wall_s": (int, float, type(None)), "first_error": (dict, type(None))},
}


def is_record(value: Any) -> bool:
    """Whether a value is the record of a run, with all that every record has."""
    return isinstance(value, dict) and all(
        name in value and isinstance(value[name], kind) for name, kind in RECORD.items()
    )


@cache
def _tell_of(path: Path) -> None:
    """Say once that a file is left out."""
    print(f"{path} is left out: it is no record of a run.", file=sys.stderr)


def settle() -> None:
    """Write down which runs are dead whose process was killed, so that readers of the files see it too."""
    for record in records():
        path = Path(record["folder"]) / "run.json"
        if record["status"] == "dead" and (read_json(path) or {}).get("status") == "running":
            try:
                bury(record)
            except OSError:
                return  # a disk that takes no writes: the readers of `records` still see it


def is_stale(record: Mapping[str, Any]) -> bool:
    """Whether what a run was made of has changed since: its key is no longer the one it would get today."""
    try:
        now = chapter(record["slug"])
        return key(now, read_values(now, record["params"])) != record["key"]
    except InputError:
        return True


def _alive(record: Mapping[str, Any]) -> bool:
    """Whether a run still goes on; one of another machine does while its key is held."""
    if record.get("host") != socket.gethostname():
        return holding.holder(paths.runs() / holding.FOLDER, record["key"]) is not None
    return holding.process_lives(record)


def of_key(runs: Path, slug: str, key: str) -> list[dict[str, Any]]:
    """The records of a job in a folder of runs, newest first, as they stand there, each with its `folder`."""
    found = [(read_json(path), path) for path in (runs / slug).glob(f"*-{key[:8]}*/run.json")]
    mine = [record | {"folder": str(path.parent)} for record, path in found if is_record(record)]
    return sorted((one for one in mine if one["key"] == key), key=lambda one: one["started"], reverse=True)


def bury(record: Mapping[str, Any], error: Mapping[str, Any] | None = None, status: str = "dead") -> dict[str, Any]:
    """Write down that a run which says "running" has ended; the record. OSError."""
    changed = {**record, "status": status, "first_error": dict(error or KILLED)}
    write_json(Path(record["folder"]) / "run.json", {k: v for k, v in changed.items() if k != "folder"})
    return changed


def error_of(ename: str, evalue: str, cell: int | None = None) -> dict[str, Any]:
    return {"cell": cell, "ename": ename, "evalue": evalue}


def collect(executed: Mapping[str, Any], kind: str, *key: str) -> list[dict[str, Any]]:
    """What an executed notebook's outputs carry under a MIME type, one or a list each; of one key the last."""
    found: dict[tuple, dict[str, Any]] = {}
    for cell in executed["cells"]:
        for output in cell.get("outputs", []):
            carried = output.get("data", {}).get(kind)
            for value in carried if isinstance(carried, list) else [carried]:
                if isinstance(value, dict) and set(key) <= value.keys():
                    found[tuple(value[name] for name in key)] = _with_none(value) if kind == mime.ARMS else value
    return list(found.values())


def _with_none(grid: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's arms with None for nan and inf, which Jupyter's messages carry as the texts "nan" and "inf"."""

    def numbers(values: Sequence[Any]) -> list[float | None]:
        return [None if isinstance(value, str) or not math.isfinite(value) else value for value in values]

    arms = grid.get("arms", {}).items()
    return {**grid, "arms": {arm: {name: numbers(found) for name, found in of.items()} for arm, of in arms}}


def collect_measures(executed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measures that an executed notebook shows; of a claim measured twice, the last."""
    return collect(executed, mime.MEASURE, "id")


KEPT = {  # file of a run -> (MIME type, key ...) of the outputs that it holds
    "measures.json": (mime.MEASURE, "id"),
    "gates.json": (mime.GATE, "name"),
    "arms.json": (mime.ARMS, "name"),
    "results.json": (mime.RESULT, "metric", "of", "name"),
}


def keep_data(executed: Mapping[str, Any], folder: Path) -> None:
    """Write what the outputs of an executed notebook carry into the run's folder."""
    for file, (kind, *key) in KEPT.items():
        write_json(folder / file, collect(executed, kind, *key))


def kept(record: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """What a run kept in one of KEPT; nothing where the file is missing or broken."""
    found = read_json(Path(record["folder"]) / file)
    _, *key = KEPT[file]
    whole = isinstance(found, list)
    return [one for one in found if isinstance(one, dict) and set(key) <= one.keys()] if whole else []


def measures(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a run measured."""
    return kept(record, "measures.json")


def compute_seconds(record: Mapping[str, Any]) -> float | None:
    """Seconds that the cells of a run's experiments took, summed, also where they were read; None without one."""
    arms = kept(record, "arms.json")
    return round(sum(one["seconds"] for one in arms), 1) if arms else None


def first_error(executed: Mapping[str, Any], status: str, stderr: Path) -> dict[str, Any] | None:
    """Which cell (its execution count) raised what; for a run that ended otherwise, how."""
    if status == "cancelled":
        return error_of("Cancelled", "stopped by the user")
    if status == "timeout":
        return error_of("Timeout", "stopped at its time limit")
    for cell in executed["cells"]:
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                return error_of(output.get("ename", ""), output.get("evalue", ""), cell.get("execution_count"))
    if status == "dead":
        return error_of("DeadKernel", "the kernel was killed (is memory short?)")
    lines = [line.strip() for line in stderr.read_text(errors="replace").splitlines()] if stderr.exists() else []
    ename, _, evalue = next((line for line in reversed(lines) if line), "unknown: see stderr.log").partition(": ")
    return error_of(ename, evalue)


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
        **versions(),
        "platform": platform.platform(),
        "cpu": f"{_cpu_name()}, {executors.cores()} cores",
        "gpu": ", ".join(executors.gpu_names()) or None,
        "constraints": hashlib.sha256(pins.read_bytes()).hexdigest()[:12] if pins.exists() else None,
    }


def _cpu_name() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def at_start(job: executors.Job, folder: Path, began: float) -> dict[str, Any]:
    import psutil

    return {
        "schema": SCHEMA,
        "run_id": folder.name,
        **{name: job[name] for name in ("chapter", "slug", "title", "preset")},
        "status": "running",
        "rc": None,
        **{name: job[name] for name in ("key", "params", "overrides")},
        "axes": job.get("axes", []),
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
