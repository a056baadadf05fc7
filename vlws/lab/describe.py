"""A run's record in words: how long, where, with what code, and what went wrong."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlws import paths
from vlws.lab import records


def day(iso: str | None) -> str:
    """2026-11-21 14:03 of an ISO 8601 time."""
    return (iso or "")[:16].replace("T", " ")


def duration(seconds: float | None) -> str:
    """42 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None or seconds == "":
        return "–"
    whole = round(float(seconds))
    if whole < 60:
        return f"{float(seconds):.1f} s" if float(seconds) < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def facts(record: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What a page says of the run that made it: (name, value), nothing empty."""
    if not record:
        return []
    status = record.get("status", "")
    found = [
        ("Run", record.get("run_id", "")),
        ("Status", "" if status == "running" else status),
        ("Scale", record.get("preset", "")),
        ("Changed", overrides(record)),
        ("Time", duration(record.get("wall_s")) if record.get("wall_s") else ""),
        ("Computing", duration(records.compute_seconds(record)) if "folder" in record else ""),
        ("Hardware", hardware(record)),
        ("Python", record.get("env", {}).get("python") or ""),
        ("PyTorch", record.get("env", {}).get("torch") or ""),
        ("Code", sha(record)),
    ]
    return [(name, str(value)) for name, value in found if value and value != "–"]


def failure(record: dict[str, Any]) -> str:
    """What went wrong in a run, in one line, or nothing."""
    if record.get("status") in ("ok", "running", None):
        return ""
    error = record.get("first_error") or {}
    what = f"{error['ename']}: {_without_colours(error.get('evalue') or '')}" if error.get("ename") else ""
    said = {"dead": "The kernel died.", "timeout": "It ran out of time.", "cancelled": "It was cancelled."}
    return clip(what or said.get(record["status"], "No error was recorded."), 400)


def hardware(record: dict[str, Any]) -> str:
    """The GPU, or else the CPU, that a run had."""
    env = record.get("env") or {}
    return env.get("gpu") or env.get("cpu") or ""


def sha(record: dict[str, Any]) -> str:
    """The commit of a run, short; a + where the checkout had changes."""
    git = record.get("git") or {}
    return (git.get("sha") or "")[:8] + ("+" if git.get("sha") and git.get("dirty") else "")


def stale(record: dict[str, Any] | None) -> bool | None:
    """Whether a run was made with other code or data than today's; None where that cannot be known."""
    return records.is_stale(record) if record and record.get("key") else None


def overrides(record: dict[str, Any]) -> str:
    """ "lr=0.1, seeds=5": the parameters that were changed."""
    return ", ".join(f"{name}={record.get('params', {}).get(name)}" for name in record.get("overrides") or [])


def clip(text: str, limit: int) -> str:
    """A text on one line, cut at `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _without_colours(text: str) -> str:
    """Text without the escape codes that colour it in a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def label(job: Mapping[str, Any]) -> str:
    """A job or a run in a few words: "04_cmg", "04_cmg full lr=0.1"."""
    preset = [] if job["preset"] == "cpu" else [job["preset"]]
    return " ".join([job["slug"], *preset, *(f"{name}={job['params'][name]}" for name in job["overrides"])])


def shown(folder: Path) -> str:
    """A path relative to the workspace where it lies within."""
    return str(folder.relative_to(paths.root()) if folder.is_relative_to(paths.root()) else folder)
