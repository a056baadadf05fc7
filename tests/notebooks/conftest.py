"""Chapters by the real command, as a reader runs them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Ran = tuple[subprocess.CompletedProcess[str], dict, str]


BEGAN = time.monotonic()


def pytest_addoption(parser):
    told = "begin no notebook at its literals after so many minutes; those whose last commit is newest come first"
    parser.addoption("--minutes", type=float, default=None, help=told)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--minutes", None) is not None:
        items.sort(key=_turn)


def _turn(item) -> tuple[bool, int]:
    """Comparisons before the runs with a parameter changed, each by how new the notebook is."""
    of_registry = "literals" in item.keywords
    return "changed" in item.name, -_committed(item.callspec.params["path"]) if of_registry else 0


def _committed(path: Path) -> int:
    """When a notebook was last committed, seconds since 1970; now, where it was not."""
    asked = ["git", "-C", str(path.parent), "log", "-1", "--format=%ct", "--", path.name]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return int(told or time.time())


@pytest.fixture(autouse=True)
def within_the_minutes(request):
    minutes = request.config.getoption("--minutes", None)
    if minutes is not None and "literals" in request.keywords and time.monotonic() - BEGAN > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes are over; `just nbval` runs every notebook")


@pytest.fixture
def run(tmp_path) -> Callable[..., Ran]:
    """`run(chapter, "name=value", ...)` -> the process, its run's record and its notebook's text ("" if none)."""

    def vlws_run(chapter: str, *parameters: str) -> Ran:
        command = [str(Path(sys.executable).with_name("vlws")), "run", chapter]
        for parameter in parameters:
            command += ["-p", parameter]
        env = os.environ | {"VLWS_CACHE": str(tmp_path / "cache"), "VLWS_RUNS": str(tmp_path / "runs")}
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        found = list((tmp_path / "runs").glob("*/*/run.json"))
        record = json.loads(found[0].read_text()) if found else {}
        return result, record, found[0].with_name("notebook.ipynb").read_text() if found else ""

    return vlws_run


@pytest.fixture
def refuse(run) -> Callable[..., None]:
    """`refuse(chapter, "name=value", told, small)`: with that in place of `small`'s own, one sentence and no result."""

    def check(chapter: str, parameter: str, told: str, small: list[str]) -> None:
        others = [other for other in small if other.split("=")[0] != parameter.split("=")[0]]
        result, record, _ = run(chapter, parameter, *others)
        assert result.returncode in (1, 2)
        assert told in result.stderr
        assert not record or record["status"] == "failed"

    return check
