"""The panel of JupyterLab as a reader meets it: the form, a run, its claims, and a notebook that stays as committed."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]
NAME = "06_tiny.ipynb"
CELLS = (
    """preset: str = "cpu"  # which values these are
seeds: int = 3  # repetitions [at least 1]
effect: float = 0.5  # what is measured [above 0]
wait: bool = False  # go on until it is cancelled""",
    "import time\nwhile wait: time.sleep(0.1)",
    "print('made in Lab')",
    "import numpy as np\nfrom vlws import claims\nchapter = claims.open_chapter('06', preset=preset)",
    "chapter.measure('06.C1', effect + np.arange(seeds) / 100)",
)
CLAIM = """chapter: "06"
claims:
  - {id: 06.C1, says: "It rises.", where: abstract, metric: rise, unit: u, direction: greater, threshold: 0.1}
"""


@pytest.fixture
def notebook(workspace) -> Path:
    """A chapter as committed: two of its cells have outputs that no kernel gave, and nothing was measured."""
    code = [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(CELLS)]
    code[0].metadata["tags"] = ["parameters"]
    for n in (1, 2):
        code[n].outputs, code[n].execution_count = [new_output("stream", text="as committed\n")], n + 1
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = new_notebook(cells=code, metadata={"kernelspec": kernel, "vlws": {"title": "A tiny chapter"}})
    nbformat.write(book, workspace / "notebooks" / NAME)
    (workspace / "notebooks" / "claims" / "06_tiny.yaml").write_text(CLAIM)
    (workspace / "notebooks" / "presets.yml").write_text('"06": {test: {seeds: 2}}')
    return workspace / "notebooks" / NAME


@pytest.fixture
def page(browser, jupyterlab, notebook, tmp_path):
    """The chapter opened in `vlws lab`; exceptions and errors of scripts fail the test at its end."""
    faults = []
    python = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels")])
    with jupyterlab(tmp_path / "lab", "-m", "vlws.lab.cli", "lab", PYTHONPATH=python) as address:
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        page = context.new_page()
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.on("pageerror", lambda error: faults.append(f"exception: {error}"))
        page.on("console", lambda said: faults.append(said.text) if is_fault(said) else None)
        open_chapter(page, address)
        yield page
        context.close()
    assert faults == []


def is_fault(said) -> bool:
    """Whether a line of the console is an error; that a value was refused is told there too."""
    return said.type == "error" and "400 (Bad Request)" not in said.text


def open_chapter(page: Page, address: str) -> None:
    page.goto(f"{address}/lab/tree/{NAME}")
    page.locator(".jp-NotebookPanel-toolbar").wait_for()
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()  # connected: what runs before that is lost


def save(page: Page) -> None:
    with page.expect_response(lambda r: r.request.method == "PUT" and NAME in r.url):
        page.locator(".jp-Notebook").press("Control+s")


def cell(page: Page, number: int):
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number)


def test_a_chapter_is_run_from_its_panel(page, notebook):
    panel = page.get_by_role("region", name="Chapter")
    expect(panel.get_by_role("heading", level=2)).to_have_text("06 A tiny chapter")
    expect(panel.get_by_role("listitem")).to_contain_text("06.C1· not measuredIt rises.")
    refuse_a_value(panel)
    cancel_a_run(panel)
    finish_a_run(panel)
    with page.expect_popup() as opened:
        panel.get_by_role("link", name="Page of this run").click()
    expect(opened.value.get_by_role("heading", level=1)).to_contain_text("A tiny chapter")
    opened.value.close()
    panel.get_by_role("button", name="Run", exact=True).click()
    expect(panel).to_contain_text("Nothing has changed since this run at preset cpu; it was not run again.")
    records = [json.loads(path.read_text()) for path in (notebook.parents[1] / "runs" / "06_tiny").glob("*/run.json")]
    assert sorted((record["status"], record["preset"]) for record in records) == [("cancelled", "test"), ("ok", "cpu")]

    assert not re.search("null|undefined|NaN", panel.inner_text())
    page.locator(".jp-DirListing-item", has_text="presets.yml").dblclick()
    expect(panel).to_have_text("presets.yml is no chapter; the chapters are notebooks/NN_name.ipynb.")
    page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab", has_text=NAME).click()
    expect(panel.get_by_role("listitem")).to_contain_text("✓ supported")
    for width in (1200, 420):
        page.set_viewport_size({"width": width, "height": 900})
        assert panel.evaluate("node => node.scrollWidth <= node.clientWidth")


def refuse_a_value(panel) -> None:
    """One sentence, at the field that it speaks of."""
    panel.get_by_label("Run this chapter at preset").select_option("test")
    expect(panel).to_contain_text("Replaces seeds=2.")
    panel.get_by_text("3 parameters").click()
    expect(panel.get_by_label("seeds int")).to_have_value("2")
    effect = panel.get_by_label("effect float")
    expect(effect).to_have_accessible_description("what is measured; accepts above 0")
    effect.fill("-1")
    effect.press("Enter")
    expect(panel.get_by_role("alert")).to_have_text("effect=-1.0 is outside what it accepts: above 0.")
    expect(effect).to_be_focused()
    expect(effect).to_have_attribute("aria-invalid", "true")
    panel.get_by_role("button", name="effect is changed; reset it to 0.5").press("Enter")
    expect(effect).to_have_value("0.5")
    expect(panel.get_by_role("alert")).to_have_count(0)


def cancel_a_run(panel) -> None:
    """By the keyboard: one button takes the place, and the focus, of the other."""
    panel.get_by_label("wait bool").select_option("true")
    start, stop = (panel.get_by_role("button", name=name, exact=True) for name in ("Run", "Cancel"))
    start.press("Enter")
    expect(panel).to_contain_text(re.compile(r"Running at preset test: \d of 6 cells, \d+ s"))
    expect(panel.get_by_role("progressbar", name="Cells done")).to_have_attribute("max", "6")
    expect(stop).to_be_focused()
    stop.press("Enter")
    said = re.compile("^Cancelled at preset test after .*; what had finished is kept for the next run.$")
    expect(panel.get_by_role("status")).to_have_text(said)
    expect(start).to_be_focused()
    expect(panel.get_by_role("listitem")).to_contain_text("not measured")


def finish_a_run(panel) -> None:
    """At the notebook's own values, so that it counts."""
    panel.get_by_label("Run this chapter at preset").select_option("cpu")
    panel.get_by_label("wait bool").select_option("false")
    expect(panel.locator("summary")).to_have_text("3 parameters")
    panel.get_by_role("button", name="Run", exact=True).click()
    expect(panel.get_by_role("status")).to_have_text(re.compile("^Finished at preset cpu after"))
    claim = panel.get_by_role("listitem")
    expect(claim).to_contain_text("✓ supported")
    expect(claim).to_contain_text("0.510 [0.485, 0.535] u, wanted above 0.100preset cpu, 3 seeds")


def test_a_cell_that_is_run_leaves_the_committed_notebook_as_it_is(page, notebook):
    before, written = notebook.read_bytes(), notebook.stat().st_mtime_ns
    panel = page.get_by_role("region", name="Chapter")
    expect(cell(page, 2)).to_contain_text("as committed")
    cell(page, 2).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    output = cell(page, 2).locator(".jp-OutputArea-output")
    expect(output).to_have_text("made in Lab")
    save(page)
    assert (notebook.read_bytes(), notebook.stat().st_mtime_ns) == (before, written)
    expect(panel).to_contain_text("1 cell shows what you executed; it is kept in .cache/lab/06_tiny.json.")

    page.reload()
    expect(output).to_have_text("made in Lab")
    expect(cell(page, 1)).to_contain_text("as committed")
    panel.get_by_role("button", name="Show as committed").click()
    expect(output).to_have_text("as committed")
    expect(panel.get_by_role("heading", name="Your outputs")).to_have_count(0)
    assert notebook.read_bytes() == before

    cell(page, 1).locator(".cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.type("  # edited")
    save(page)
    now = nbformat.reads(before.decode(), 4)
    now.cells[1].source += "  # edited"
    assert notebook.read_text() == nbformat.writes(now) + "\n"
