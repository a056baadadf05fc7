"""A small real workspace, made once a session: notebooks that ran in a kernel, their claims, runs and evidence; and
servers of JupyterLab."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

MATHS = r"""## The method

With $z \in \mathbb{R}^{2B \times d}$ unit rows and $S = z z^\top / \tau$, the loss is

$$\mathcal{L}(M) = -\frac{\tau}{\tau_0} \sum_i \frac{1}{|P(i)|} \sum_{p \in P(i)} \left[ S_{ip} - \log \sum_{a \neq i} \exp S_{ia} \right].$$

| detector | idea |
|---|---|
| SSD | Mahalanobis distance |
"""  # noqa: E501

PARAMETERS = """preset: str = "cpu"  # cpu, gpu or full
seeds: int = 3  # seeds of each arm
backbone: str = ""  # a folder or a hub id
data: str = ""  # a folder of pictures
device: str = "auto"  # auto, cpu or cuda"""

MEASURES = """import sys
import numpy as np
import matplotlib.pyplot as plt
from tqdm import tqdm
from vlws import claims, plots
plots.use_style()
for _ in tqdm(range(3)): pass
print("a warning worth reading", file=sys.stderr)
chapter = claims.open_chapter("04", preset=preset)
chapter.claimed()
"""

CLAIMS = """
chapter: "04"
paper: {title: Guidance, authors: "Chen et al.", venue: TMM, url: "https://arxiv.org/abs/2310.02821"}
claims:
  - {id: 04.C1, says: "Text guidance beats the image-only baseline.", where: abstract,
     metric: "AUROC(CMG) - AUROC(SSD)", unit: AUROC, paper: 0.1681, direction: greater,
     threshold: 0.05, needs: {seeds: 3}}
  - {id: 04.C2, says: "Each part needs the other.", where: "section 4", metric: "AUROC(CMG) - max(parts)",
     unit: AUROC, paper: null, direction: greater, threshold: 0.05}
  - {id: 04.C3, says: "Language costs <5 % of the time.", where: "table 3", metric: "time ratio",
     unit: ratio, paper: 1.05, direction: within, threshold: 1.0, tolerance: 0.2, needs: {seeds: 9}}
"""


def _notebooks() -> dict[str, nbformat.NotebookNode]:
    parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    figure = """plots.forest({"image only": (.61, .58, .64), "CMG": (.78, .74, .81)}, threshold=.66, xlabel="AUROC");"""
    chapter = [
        new_markdown_cell(
            "# Guidance by language: $\\Delta$ AUROC\n\nChen et al., IEEE TMM 2024.\n\n## The idea\n\nText."
        ),
        parameters,
        new_code_cell(MEASURES),
        new_markdown_cell(MATHS),
        new_code_cell(figure),
        new_code_cell('import pandas as pd\npd.DataFrame({"arm": ["CMG", "SSD"], "auroc": [0.78, 0.61]})'),
        new_markdown_cell("## The claims"),
        new_code_cell('chapter.measure("04.C1", np.array([.12, .14, .13][:seeds]))'),
        new_code_cell(
            'chapter.measure("04.C2", np.array([.01, .02, .12][:seeds]))\nchapter.measure("04.C3", np.ones(seeds))'
        ),
        new_code_cell("chapter.verdicts()"),
        new_markdown_cell("## What this scale cannot show\n\nMuch."),
    ]
    failing = [
        new_markdown_cell("# A chapter that fails"),
        parameters,
        new_code_cell('print("so far, so good")'),
        new_code_cell('raise ValueError("the folder <data> holds no pictures")'),
        new_code_cell('print("never reached")'),
    ]
    plain = [
        new_markdown_cell("# Start here\n\nWhat this is."),
        new_code_cell('preset: str = "cpu"  # scale', metadata={"tags": ["parameters"]}),
        new_code_cell('print("hello from", preset)'),
    ]
    about = {
        "00_start": ("Start here", "", "How the workspace is used.", plain),
        "04_cmg": ("Guidance by language", "Chen et al., TMM 2024", "Text at training helps pictures.", chapter),
        "05_fails": ("A chapter that fails", "", "It raises in its third cell.", failing),
    }
    made = {}
    for slug, (title, paper, summary, cells) in about.items():
        book = new_notebook(cells=cells)
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book.metadata["vlws"] = {"title": title, "paper": paper, "summary": summary, "backbones": []}
        made[slug] = book
    return made


def _record(slug: str, stamp: str, status: str, **other) -> dict:
    return {
        "schema": 1,
        "run_id": f"{stamp}-0a1b2c3d",
        "chapter": slug[:2],
        "slug": slug,
        "title": slug,
        "preset": "cpu",
        "status": status,
        "rc": 0 if status == "ok" else 1,
        "key": "0" * 64,
        "params": {"preset": "cpu", "seeds": 3},
        "overrides": [],
        "git": {"sha": "0123456789abcdef", "dirty": False},
        "env": {"python": "3.11.2", "torch": "2.13.0", "cpu": "2 cores", "gpu": None},
        "started": f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T10:00:00+00:00",
        "ended": None,
        "wall_s": 65.2,
        "peak_rss_mb": 812.0,
        "first_error": None,
    } | other


@pytest.fixture(scope="session")
def workspace_source(tmp_path_factory) -> Path:
    """The workspace as made; `workspace` is a copy for one test."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "notebooks" / "claims").mkdir(parents=True)
    (root / "notebooks" / "claims" / "04_cmg.yaml").write_text(CLAIMS)
    before = os.environ.get("VLWS_ROOT")
    os.environ["VLWS_ROOT"] = str(root)
    try:
        for slug, book in _notebooks().items():
            try:
                NotebookClient(book, timeout=120, kernel_name="python3").execute()
            except CellExecutionError:
                assert slug == "05_fails"
            nbformat.write(book, root / "notebooks" / f"{slug}.ipynb")
    finally:
        os.environ.pop("VLWS_ROOT") if before is None else os.environ.update(VLWS_ROOT=before)
    error = {"cell": 3, "ename": "ValueError", "evalue": "the folder <data> holds no pictures"}
    records = [
        _record("04_cmg", "20261120T100000", "ok"),
        _record("04_cmg", "20261121T100000", "ok", overrides=["seeds"], params={"preset": "cpu", "seeds": 2}),
        _record("04_cmg", "20261121T110000", "cancelled", wall_s=None, peak_rss_mb=None),
        _record("05_fails", "20261121T120000", "failed", first_error=error),
    ]
    for record in records:
        folder = root / "runs" / record["slug"] / record["run_id"]
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record))
        shutil.copy(root / "notebooks" / f"{record['slug']}.ipynb", folder / "notebook.ipynb")
    kept = root / "reports" / "results" / "04_cmg"
    kept.mkdir(parents=True)
    from vlws.lab.records import collect_measures

    shown = collect_measures(nbformat.read(root / "notebooks" / "04_cmg.ipynb", 4))
    measures = [m | {"preset": "full", "n_seeds": 5} for m in shown]
    record = _record("04_cmg", "20261119T100000", "ok", preset="full", wall_s=4000.0)
    (kept / "full.json").write_text(json.dumps({"run": record, "measures": measures}))
    return root


@pytest.fixture
def workspace(workspace_source, tmp_path, monkeypatch) -> Path:
    """A workspace of one's own: VLWS_ROOT points to it, and its runs and cache are its own."""
    root = tmp_path / "workspace"
    shutil.copytree(workspace_source, root)
    monkeypatch.setenv("VLWS_ROOT", str(root))
    monkeypatch.delenv("VLWS_RUNS", raising=False)
    monkeypatch.delenv("VLWS_CACHE", raising=False)
    return root


# --- JupyterLab -------------------------------------------------------------------------------------------------------

SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # all cells in the page
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false"},  # no question over it
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}


@contextmanager
def _jupyterlab(folder: Path, *command: str, token: str = "", **env: str) -> Iterator[str]:
    """A JupyterLab that `python *command` starts, as its address; it ends with the block, and has two cores at most.

    folder: where it keeps what it writes beside notebooks.
    """
    for name, said in SETTINGS.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
    ]
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    server = subprocess.Popen(
        [sys.executable, *command, *options],
        env=os.environ | places | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if "is running at" in line:
                break
        else:
            raise AssertionError("JupyterLab did not start:\n" + "".join(said[-20:]))
        threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
        _await_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)  # its kernels and runs end with it
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _await_port(port: int, seconds: float = 60) -> None:
    """Until a server listens: JupyterLab says that it is running shortly before it does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def jupyterlab():
    """`jupyterlab(folder, *command, token="", **env)`: a JupyterLab of one's own; see `_jupyterlab`."""
    return _jupyterlab
