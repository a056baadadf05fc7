"""Chapters by the real command, as a reader runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Ran = tuple[subprocess.CompletedProcess[str], dict, str]


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
