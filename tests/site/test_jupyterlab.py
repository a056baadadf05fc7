"""A notebook in the real JupyterLab: opened in a browser, Run All Cells from the menu, every cell ends well."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest

from vlws import paths

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def lab(tmp_path, jupyterlab):
    """`lab(folder, **env)` -> the address of a JupyterLab of its own, which ends with the test."""
    with ExitStack() as servers:
        yield lambda folder, **env: servers.enter_context(
            jupyterlab(tmp_path, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", **env)
        )


def run_all(browser, address: str, notebook: Path, minutes: float) -> nbformat.NotebookNode:
    """Open a notebook in JupyterLab, run all its cells by the menu, save it, and return what was saved."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    try:
        page.set_default_timeout(60_000)
        page.goto(f"{address}/lab/tree/{notebook.name}")
        page.locator(".jp-NotebookPanel-toolbar").wait_for()
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()  # connected: what runs before that is lost
        page.locator(".lm-MenuBar-item", has_text="Run").click()
        page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
        cells = sum(cell.cell_type == "code" and bool(cell.source) for cell in nbformat.read(notebook, 4).cells)
        page.wait_for_function(
            """n => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
                .filter(prompt => /\\[\\d+\\]/.test(prompt.textContent)).length === n
              || document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')""",
            arg=cells,
            timeout=minutes * 60_000,
        )
        errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
        assert errors == []
        before = notebook.stat().st_mtime_ns
        with page.expect_response(lambda r: r.request.method == "PUT" and notebook.name in r.url):
            page.keyboard.press("Control+s")
        assert notebook.stat().st_mtime_ns > before
        return nbformat.read(notebook, 4)
    finally:
        page.close()


def emptied(source: Path, target: Path) -> Path:
    """A copy without outputs: what is in it afterwards was made by JupyterLab."""
    book = nbformat.read(source, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(book, target)
    return target


def test_a_chapter_runs_in_jupyterlab(browser, lab, workspace, tmp_path):
    (tmp_path / "opened").mkdir()
    notebook = emptied(workspace / "notebooks" / "04_cmg.ipynb", tmp_path / "opened" / "04_cmg.ipynb")
    ran = run_all(browser, lab(notebook.parent, VLWS_ROOT=str(workspace)), notebook, minutes=2)
    outputs = [output for cell in ran.cells for output in cell.get("outputs", [])]
    assert sum("application/vnd.vlws.measure+json" in output.get("data", {}) for output in outputs) == 3


def test_notebook_00_runs_in_jupyterlab(browser, lab, tmp_path):
    (source,) = paths.notebooks().glob("00_*.ipynb")
    (tmp_path / "opened").mkdir()
    notebook = emptied(source, tmp_path / "opened" / source.name)
    address = lab(notebook.parent, VLWS_ROOT=str(paths.root()), VLWS_CACHE=str(tmp_path / "cache"))
    ran = run_all(browser, address, notebook, minutes=5)
    assert any(
        output.get("data", {}).get("text/html") or output.get("text")
        for c in ran.cells
        for output in c.get("outputs", [])
    )
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
