"""A notebook in the real JupyterLab: opened in a browser, Run All Cells from the menu, every cell ends well."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest

from vlws import paths

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": '{"windowingMode": "none"}',  # all cells in the page
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": '{"fetchNews": "false"}',  # no question over it
    "@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": '{"autosave": false}',
}


@pytest.fixture
def lab(tmp_path):
    """`lab(folder, **env)` -> the address of a JupyterLab of its own, which ends with the test."""
    servers = []

    def start(folder: Path, **env: str) -> str:
        for name, text in SETTINGS.items():
            (tmp_path / "settings" / name).parent.mkdir(parents=True)
            (tmp_path / "settings" / name).write_text(text)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
        options = [
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={port}",
            "--ServerApp.port_retries=0",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={folder}",
            f"--LabApp.user_settings_dir={tmp_path / 'settings'}",
            f"--LabApp.workspaces_dir={tmp_path / 'workspaces'}",
        ]
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=os.environ | places | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        servers.append(server)
        said = []
        for line in server.stderr:
            said.append(line)
            if "is running at" in line:
                threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
                return f"http://127.0.0.1:{port}"
        raise AssertionError("JupyterLab did not start:\n" + "".join(said[-20:]))

    yield start
    for server in servers:
        server.terminate()
        try:
            server.wait(timeout=20)  # its kernels end with it
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


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
