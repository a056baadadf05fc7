"""The pages that people read still hold: every notebook runs again, and what it prints is what stands in it.

Two layers over the registry: nbval runs each notebook at its own literals with an empty cache and compares the text of
its outputs; the runner then runs each with one parameter changed and must show that the change reached the kernel.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from vlws import paths
from vlws.errors import InputError
from vlws.lab import chapters

HERE = Path(__file__).parent
REGISTRY = sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))
CHAPTERS = pytest.mark.parametrize("path", REGISTRY, ids=lambda path: path.stem)


def nbval(path: Path, cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a notebook under nbval in a process of its own; experiments are cached in `cache` only."""
    flags = [
        "--nbval",
        "--nbval-current-env",
        f"--nbval-sanitize-with={HERE / 'sanitize.cfg'}",
        "--nbval-cell-timeout=600",
    ]
    plain = ["-p", "nbval_plugin", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "--color=no", "-q"]
    places = {"PYTHONPATH": str(HERE), "VLWS_CACHE": str(cache)}
    command = [sys.executable, "-m", "pytest", *flags, *plain, str(path)]
    return subprocess.run(command, env=os.environ | places | env, capture_output=True, text=True, check=False)


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Empty at first, so that the comparison computes; the changed runs after it may read what it left."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@CHAPTERS
def test_what_stands_in_the_notebook_is_what_it_prints(path, cache):
    result = nbval(path, cache)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(path, 4).cells)
    assert f"{cells} passed" in result.stdout


@pytest.mark.slow
@CHAPTERS
def test_a_changed_parameter_reaches_the_notebook(path, cache, tmp_path):
    change = cheaper(chapters.chapter(path.stem))
    if change is None:
        pytest.skip("this notebook has no number among its parameters")
    check_changed_run(path.stem, *change, VLWS_CACHE=str(cache), VLWS_RUNS=str(tmp_path))


def test_a_changed_parameter_reaches_a_small_notebook(workspace, tmp_path):
    places = {"VLWS_ROOT": str(workspace), "VLWS_CACHE": str(tmp_path / "cache"), "VLWS_RUNS": str(tmp_path / "runs")}
    check_changed_run("04_cmg", *cheaper(chapters.chapter("04")), **places)


def check_changed_run(slug: str, name: str, value: int | float, **env: str) -> None:
    """Run a chapter with one parameter changed by the real command; record and notebook must show the change."""
    command = [str(Path(sys.executable).with_name("vlws")), "run", slug, "-p", f"{name}={value}"]
    result = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-6000:]
    (file,) = Path(env["VLWS_RUNS"]).glob("*/*/run.json")
    record = json.loads(file.read_text())
    assert (record["status"], record["overrides"], record["params"][name]) == ("ok", [name], value)
    ran = nbformat.read(file.parent / "notebook.ipynb", 4)
    (injected,) = [c.source for c in ran.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert re.search(rf"^{name} *= *{re.escape(repr(value))}$", injected, flags=re.M)
    measured = json.loads((file.parent / "measures.json").read_text())
    assert name != "seeds" or all(m["n_seeds"] == value for m in measured if m["value"] is not None)
    assert (file.parent / "notebook.html").is_file()


def cheaper(chapter: chapters.Chapter) -> tuple[str, int | float] | None:
    """One parameter and a value that costs no more than its own: one seed, or half of the first number it accepts."""
    if "seeds" in chapter.parameters:
        return "seeds", 1
    for parameter in chapter.parameters.values():
        if parameter.type not in ("int", "float") or not parameter.default:
            continue
        half = parameter.default // 2 if parameter.type == "int" else parameter.default / 2
        try:
            return parameter.name, parameter.read(half)
        except InputError:
            continue
    return None


# --- the comparison itself, on small notebooks ------------------------------------------------------------------------


@pytest.fixture
def chapter(workspace, tmp_path):
    """A small chapter that ran, and a way to change it and hold it against nbval."""
    path = workspace / "notebooks" / "04_cmg.ipynb"

    def check(change=None) -> subprocess.CompletedProcess[str]:
        if change:
            book = nbformat.read(path, 4)
            change(book)
            nbformat.write(book, path)
        return nbval(path, tmp_path / "cache", VLWS_ROOT=str(workspace))

    return check


def _outputs(book):
    return [output for cell in book.cells for output in cell.get("outputs", [])]


def test_drifting_pictures_tables_measures_and_logs_pass(chapter):
    def change(book):
        for output in _outputs(book):
            for mime in ("image/png", "text/html", "text/markdown", "application/vnd.vlws.measure+json"):
                if mime in output.get("data", {}):
                    output.data[mime] = "another" if mime != "application/vnd.vlws.measure+json" else {"value": 7}
            if output.get("name") == "stderr":
                output.text = "another"

    result = chapter(change)
    assert result.returncode == 0, result.stdout
    assert "7 passed" in result.stdout


def test_a_drifting_text_fails(chapter):
    def change(book):
        texts = [output for output in _outputs(book) if "04.C1" in output.get("data", {}).get("text/plain", "")]
        texts[0].data["text/plain"] = texts[0].data["text/plain"].replace("beats", "loses to")

    result = chapter(change)
    assert result.returncode == 1
    assert "Cell outputs differ" in result.stdout


def test_a_cell_that_raises_fails(chapter):
    result = chapter(lambda book: book.cells[1].update(source=book.cells[1].source + "\n1 / 0"))
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stdout
