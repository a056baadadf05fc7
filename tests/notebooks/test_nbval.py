"""The pages that people read still hold: every notebook runs again, and what it prints is what stands in it.

Three layers over the registry. nbval runs each notebook at preset `test` and compares what does not hang on scale
(texts without their numbers); and, as `just nbval`, nbval runs each at its own literals and compares texts and measured
figures, and the runner runs each with one parameter changed and must show that the change reached the kernel. All
compute: their caches are empty at first.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import nbval_plugin
import pytest

from vlws import paths
from vlws.errors import InputError
from vlws.lab import chapters

HERE = Path(__file__).parent
REGISTRY = sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))
CHAPTERS = pytest.mark.parametrize("path", REGISTRY, ids=lambda path: path.stem)


def nbval(path: Path, cache: Path, sanitize: str = "sanitize.cfg", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a notebook under nbval in a process of its own; experiments are cached in `cache` only."""
    flags = [
        "--nbval",
        "--nbval-current-env",
        f"--nbval-sanitize-with={HERE / sanitize}",
        "--nbval-cell-timeout=900",
    ]
    plain = ["-p", "nbval_plugin", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "--color=no", "-q"]
    places = {"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "pytest", *flags, *plain, str(path)]
    env = os.environ | places | {"VLWS_CACHE": str(cache)} | env
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def at_preset(path: Path, preset: str, folder: Path) -> Path:
    """A copy of a notebook whose parameters are a preset's, in a cell of their own as papermill writes it."""
    one, book = chapters.chapter(path.stem), nbformat.read(path, 4)
    values = chapters.preset_values(one, preset) | {"preset": preset}
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    (at,) = [k for k, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])]
    book.cells.insert(at + 1, nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]}))
    nbformat.write(book, folder / path.name)
    return folder / path.name


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Empty at first, so that what runs computes."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@CHAPTERS
def test_every_cell_runs_at_preset_test(path, cache, tmp_path):
    result = nbval(at_preset(path, "test", tmp_path), cache, sanitize="sanitize_scale.cfg")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(path, 4).cells)
    assert f"{cells + 1} passed" in result.stdout


@pytest.mark.literals
@CHAPTERS
def test_what_stands_in_the_notebook_is_what_it_computes(path, tmp_path):
    result = nbval(path, tmp_path, VLWS_COMPARE_FIGURES="1")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(path, 4).cells)
    assert f"{cells} passed" in result.stdout


@pytest.mark.literals
@CHAPTERS
def test_a_changed_parameter_reaches_the_notebook(path, cache, tmp_path):
    change = another(chapters.chapter(path.stem))
    if change is None:
        pytest.skip("this notebook has no number among its parameters")
    check_changed_run(path.stem, *change, "test", VLWS_CACHE=str(cache), VLWS_RUNS=str(tmp_path))


def test_a_changed_parameter_reaches_a_small_notebook(workspace, tmp_path):
    places = {"VLWS_ROOT": str(workspace), "VLWS_CACHE": str(tmp_path / "cache"), "VLWS_RUNS": str(tmp_path / "runs")}
    check_changed_run("04_cmg", "seeds", 1, "cpu", **places)


def check_changed_run(slug: str, name: str, value: int | float, preset: str, **env: str) -> None:
    """Run a chapter with one parameter changed by the real command; record and notebook must show the change."""
    command = [str(Path(sys.executable).with_name("vlws")), "run", slug, "--preset", preset, "-p", f"{name}={value}"]
    result = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-6000:]
    (file,) = Path(env["VLWS_RUNS"]).glob("*/*/run.json")
    record = json.loads(file.read_text())
    assert (record["status"], record["overrides"], record["params"][name]) == ("ok", [name], value)
    ran = nbformat.read(file.parent / "notebook.ipynb", 4)
    (injected,) = [c.source for c in ran.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert re.search(rf"^{name} *= *{re.escape(repr(value))}$", injected, flags=re.M)
    measured = json.loads((file.parent / "measures.json").read_text())
    by_seed = [m for m in measured if m["value"] is not None and m["per"] == "seed"]
    assert name != "seeds" or all(m["n_seeds"] == value for m in by_seed)
    assert (file.parent / "notebook.html").is_file()


def another(chapter: chapters.Chapter) -> tuple[str, int | float] | None:
    """One parameter and a value that preset `test` does not give it: two seeds, or half of the first number."""
    values = {name: parameter.default for name, parameter in chapter.parameters.items()}
    values |= chapters.preset_values(chapter, "test")
    for name in sorted(values, key=lambda name: name != "seeds"):
        parameter, value = chapter.parameters[name], values[name]
        if parameter.type not in ("int", "float") or not value:
            continue
        changed = 2 if name == "seeds" else value // 2 if parameter.type == "int" else value / 2
        try:
            return name, parameter.read(changed)
        except InputError:
            continue
    return None


# --- the comparison itself, on small notebooks ------------------------------------------------------------------------


@pytest.fixture
def chapter(workspace, tmp_path):
    """A small chapter that ran, and a way to change it and hold it against nbval."""
    path = workspace / "notebooks" / "04_cmg.ipynb"

    def check(change=None, **options: str) -> subprocess.CompletedProcess[str]:
        if change:
            book = nbformat.read(path, 4)
            change(book)
            nbformat.write(book, path)
        return nbval(path, tmp_path / "cache", VLWS_ROOT=str(workspace), **options)

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


# --- the tolerance of figures -----------------------------------------------------------------------------------------

MEASURED = {"id": "04.C1", "value": 0.30, "low": 0.20, "high": 0.40}


@pytest.mark.parametrize(
    ("computed", "told"),
    [
        ({"value": 0.30}, ""),
        ({"value": 0.39}, ""),
        ({"value": 0.41}, "04.C1: 0.3 is committed, 0.41 was computed; the tolerance is 0.1"),
        ({"value": None}, "04.C1: 0.3 is committed, None was computed"),
    ],
)
def test_a_figure_may_move_within_its_own_interval(computed, told):
    assert nbval_plugin.drift(MEASURED, MEASURED | computed) == told


def test_without_an_interval_a_figure_must_be_the_same():
    exact = MEASURED | {"low": None, "high": None}
    assert nbval_plugin.drift(exact, exact | {"value": 0.30000001}) == ""
    assert "the tolerance is 1e-06" in nbval_plugin.drift(exact, exact | {"value": 0.3001})


def test_a_time_is_reported_and_not_compared():
    assert nbval_plugin.drift(MEASURED | {"reported": "a time"}, MEASURED | {"value": 9.0}) == ""


def test_a_gate_that_turns_and_a_measure_that_is_gone_are_told():
    def outputs(passed, *measures):
        gate = {"data": {nbval_plugin.GATE: {"name": "sees", "passed": passed}}}
        return [gate, *({"data": {nbval_plugin.MEASURE: m}} for m in measures)]

    told = list(filter(None, nbval_plugin.drifts(outputs(True, MEASURED), outputs(False))))
    assert told == ["gate sees: passed was True and is False", "04.C1: is committed and was not computed"]
    assert list(filter(None, nbval_plugin.drifts(outputs(True, MEASURED), outputs(True, MEASURED)))) == []


def test_a_drifting_figure_fails_where_figures_are_compared(chapter):
    def change(book):
        for output in _outputs(book):
            measure = output.get("data", {}).get(nbval_plugin.MEASURE)
            if measure and measure["low"] is not None:
                measure["value"] += 10 * (measure["high"] - measure["low"])

    result = chapter(change, VLWS_COMPARE_FIGURES="1")
    assert result.returncode == 1
    assert "is committed" in result.stdout


def test_texts_are_compared_without_their_numbers_at_another_scale(chapter):
    def change(book):
        for output in _outputs(book):
            if output.get("name") == "stdout":
                output.text = re.sub(r"(?<![\w.])\d+", "987", output.text)

    assert chapter(change, sanitize="sanitize_scale.cfg").returncode == 0
