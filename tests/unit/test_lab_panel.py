"""The server behind JupyterLab's panel: `vlws lab` in a process of its own, asked over HTTP, with real runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest
import requests
from nbformat.v4 import new_code_cell, new_notebook

from vlws.errors import InputError
from vlws.lab import background, contents, opening

REPOSITORY = Path(__file__).parents[2]
TOKEN = "a token of these tests"
PARAMETERS = """preset: str = "cpu"  # preset
seeds: int = 3  # seeds
data: str = ""  # a folder
device: str = "auto"  # auto, cpu or cuda
lr: float = 1.0e-3  # learning rate [above 0]
names: list[str] = ["a", "b"]  # of the arms"""
MEASURE = """import numpy as np
from vlws import claims
print("<b>bold</b>")
claims.open_chapter("01", preset=preset).measure("01.C1", np.full(seeds, 0.5 + lr) + np.arange(seeds) / 100)"""
WAIT = """import os, time
from pathlib import Path
Path(os.environ["VLWS_RUN"], "reached").touch()
time.sleep(300)"""
CLAIM = """chapter: "{id}"
claims:
  - {{id: "{id}.C1", says: "it rises", where: "abstract", metric: "rise", unit: "u", direction: greater, threshold: 0}}
"""


def write_chapter(root: Path, slug: str, *cells: str) -> None:
    code = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    said = {"title": f"Chapter {slug}", "paper": "P", "summary": "What it is.", "backbones": []}
    book = new_notebook(cells=code, metadata={"kernelspec": kernel, "vlws": said})
    nbformat.write(book, root / "notebooks" / f"{slug}.ipynb")
    (root / "notebooks" / "claims" / f"{slug}.yaml").write_text(CLAIM.format(id=slug[:2]))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lab") / "workspace"
    (root / "notebooks" / "claims").mkdir(parents=True)
    write_chapter(root, "01_rises", MEASURE)
    write_chapter(root, "02_slow", WAIT)
    write_chapter(root, "03_broken", "1")
    nbformat.write(new_notebook(), root / "notebooks" / "03_broken.ipynb")
    write_chapter(root, "04_fails", 'raise ValueError("no pictures")')
    (root / "notebooks" / "presets.yml").write_text('"01": {test: {seeds: 2}}')
    (root / "notebooks" / "mine.ipynb").write_text("{}")
    return root


def environment(root: Path) -> dict[str, str]:
    folders = {"VLWS_ROOT": str(root), "VLWS_RUNS": str(root / "runs"), "VLWS_CACHE": str(root / ".cache")}
    return folders | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels")])}


@pytest.fixture(scope="module")
def address(root, jupyterlab):
    with jupyterlab(root.parent, "-m", "vlws.lab.cli", "lab", token=TOKEN, **environment(root)) as address:
        yield address


@pytest.fixture
def ask(address):
    """`ask(method, path, body)` -> (status, JSON), with the token."""

    def call(method: str, path: str, body=None) -> tuple[int, dict]:
        head = {"Authorization": f"token {TOKEN}"}
        answer = requests.request(method, f"{address}/vlws/{path}", json=body, headers=head, timeout=60)
        return answer.status_code, answer.json()

    return call


def asked(chapter: str, preset: str = "cpu", force: bool = False, **parameters) -> dict:
    return {"chapter": chapter, "preset": preset, "parameters": parameters, "force": force}


def until(found, what: str, seconds: float = 90):
    """What `found` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.1)
    return value


def ended(ask, handle: str) -> dict:
    def end():
        told = ask("GET", f"runs/{handle}")[1]
        return told["status"] not in ("starting", "running") and told

    return until(end, f"the end of {handle}")


def started(ask, *what, **parameters) -> dict:
    status, told = ask("POST", "runs", asked(*what, **parameters))
    assert status == 200, told
    return told


def reached(root: Path) -> None:
    until(lambda: list(root.glob("runs/02_slow/*/reached")), "the cell")


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_chapter_and_what_its_parameters_accept(ask):
    status, told = ask("GET", "chapter?path=01_rises.ipynb")
    assert status == 200
    chapter = told["chapter"]
    assert (chapter["id"], chapter["slug"], chapter["presets"]) == ("01", "01_rises", {"cpu": {}, "test": {"seeds": 2}})
    assert [one["name"] for one in chapter["parameters"]] == ["seeds", "data", "device", "lr", "names"]
    rate = next(one for one in chapter["parameters"] if one["name"] == "lr")
    assert rate == {
        "name": "lr",
        "type": "float",
        "default": 1e-3,
        "help": "learning rate [above 0]",
        "accepts": "above 0",
    }
    accepted = {one["name"]: one["accepts"] for one in chapter["parameters"]}
    assert accepted == {
        "seeds": "at least 1",
        "data": None,
        "device": "auto or cpu or cuda or cuda:N or mps",
        "lr": "above 0",
        "names": None,
    }
    assert told["outputs"] == {"cells": 0, "file": ".cache/lab/01_rises.json"}


@pytest.mark.parametrize(
    "path", ["mine.ipynb", "presets.yml", "claims/01_rises.yaml", "09_not_there.ipynb", "../AGENTS.md", "/etc/passwd"]
)
def test_other_files_are_no_chapters(ask, path):
    said = f"{path.split('/')[-1]} is no chapter; the chapters are notebooks/NN_name.ipynb."
    assert ask("GET", f"chapter?path={quote(path)}") == (200, {"chapter": None, "said": said})


def test_a_chapter_that_cannot_be_read_says_why(ask):
    said = "03_broken.ipynb has 0 cells tagged `parameters`; it must have one."
    assert ask("GET", "chapter?path=03_broken.ipynb") == (400, {"error": said})


def test_claims_of_a_chapter_that_does_not_exist(ask):
    status, said = ask("GET", "claims/09_none")
    assert status == 400
    assert said["error"].startswith("no chapter '09_none'")


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "chapter?path=01_rises.ipynb"),
        ("GET", "claims/01_rises"),
        ("DELETE", "outputs/01_rises"),
        ("POST", "runs"),
        ("GET", "runs/run-1"),
        ("DELETE", "runs/run-1"),
        ("GET", "pages/20260101T000000-aaaaaaaa"),
    ],
)
def test_nothing_is_told_without_the_token(address, method, path):
    for head in ({}, {"Authorization": "token wrong"}):
        answer = requests.request(method, f"{address}/vlws/{path}", headers=head, allow_redirects=False, timeout=60)
        assert answer.status_code in (302, 403)  # a page leads to the login
        assert "chapter" not in answer.text


def test_another_page_of_the_browser_cannot_start_a_run(address):
    browser = requests.Session()
    browser.get(f"{address}/lab", params={"token": TOKEN}, timeout=60).raise_for_status()
    assert browser.get(f"{address}/vlws/chapter?path=01_rises.ipynb", timeout=60).status_code == 200  # by its cookie
    answer = browser.post(f"{address}/vlws/runs", json=asked("02_slow"), timeout=60)
    assert answer.status_code == 403
    assert "_xsrf" in answer.text
    head = {"X-XSRFToken": browser.cookies["_xsrf"]}
    answer = browser.post(f"{address}/vlws/runs", json=asked("09"), headers=head, timeout=60)
    assert answer.json()["error"].startswith("no chapter '09'")


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (asked("01", lr="0"), "lr=0.0 is outside what it accepts: above 0."),
        (asked("01", seeds="many"), "seeds='many' is no int; seeds takes a whole number (seeds; the notebook has 3)."),
        (asked("01", device="gpu"), "device='gpu' is outside what it accepts: auto or cpu or cuda or cuda:N or mps."),
        (asked("01", learning="1"), "chapter 01 has no parameter 'learning'; it has preset, seeds, data, "),
        (asked("01", preset="tset"), "no preset 'tset' (did you mean test?)"),
        (asked("02", preset="full"), "chapter 02 has no preset 'full'; it has cpu."),
        (asked("09"), "no chapter '09'"),
        (asked("01", data="/etc"), "data='/etc' is neither shipped nor an existing path inside the workspace"),
        (asked("01", data="../../.."), "data='../../..' is neither shipped nor an existing path inside the workspace"),
        ({"chapter": "01"}, "a run is asked for as a JSON object of chapter (str), preset (str), parameters (dict)"),
        (asked("01") | {"more": 1}, "a run is asked for as a JSON object of chapter (str)"),
        ([1], "a run is asked for as a JSON object of chapter (str), preset (str), parameters (dict), force (bool)"),
        (None, "a run is asked for as a JSON object"),
    ],
    ids=str,
)
def test_what_is_refused(ask, root, body, said):
    before = sorted((root / "runs").glob("*/*"))
    status, told = ask("POST", "runs", body)
    assert (status, list(told)) == (400, ["error"])
    assert told["error"].startswith(said)
    assert told["error"].endswith(".")
    assert sorted((root / "runs").glob("*/*")) == before


def test_a_body_that_is_no_json(address):
    head = {"Authorization": f"token {TOKEN}"}
    answer = requests.post(f"{address}/vlws/runs", data="{", headers=head, timeout=60)
    assert (answer.status_code, answer.json()["message"]) == (400, "Invalid JSON in body of request")


def test_a_run_and_its_claims(ask, address, root):
    (claim,) = ask("GET", "claims/01_rises")[1]["claims"]
    assert (claim["id"], claim["verdict"], claim["sign"]) == ("01.C1", None, "·")
    handle = started(ask, "01_rises", lr="0.001")["handle"]  # a text, as the form has it; the value is the notebook's
    told = ended(ask, handle)
    assert (told["status"], told["skipped"], told["page"], told["error"]) == ("ok", False, True, "")
    assert told["counts"]
    assert told["cells"]["done"] == told["cells"]["total"] == 2
    record = json.loads((root / "runs" / "01_rises" / told["run_id"] / "run.json").read_text())
    assert (record["status"], record["preset"], record["overrides"]) == ("ok", "cpu", [])
    (claim,) = ask("GET", "claims/01_rises")[1]["claims"]
    assert (claim["verdict"], claim["sign"], claim["preset"], claim["stale"]) == ("supported", "✓", "cpu", False)
    assert claim["low"] < claim["value"] < claim["high"]
    assert ask("GET", "chapter?path=01_rises.ipynb")[1]["run"]["run_id"] == told["run_id"]

    again = started(ask, "01_rises")
    assert (again["skipped"], again["run_id"], again["status"]) == (True, told["run_id"], "ok")

    page = requests.get(
        f"{address}/vlws/pages/{told['run_id']}", headers={"Authorization": f"token {TOKEN}"}, timeout=60
    )
    assert page.status_code == 200
    assert "&lt;b&gt;bold&lt;/b&gt;" in page.text
    assert "sandbox allow-scripts allow-popups" in page.headers["Content-Security-Policy"]
    assert "allow-same-origin" not in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize("run_id", ["20260101T000000-aaaaaaaa", "..", "run.json"])
def test_a_page_that_is_not_there(address, root, run_id):
    head = {"Authorization": f"token {TOKEN}"}
    answer = requests.get(f"{address}/vlws/pages/{quote(run_id, safe='')}", headers=head, timeout=60)
    assert answer.status_code == 404


def test_a_page_outside_the_workspace_is_not_told(address, root, tmp_path):
    """A notebook could leave a link where its page belongs."""
    (tmp_path / "secret.html").write_text("secret")
    folder = root / "runs" / "01_rises" / "20260101T000000-bbbbbbbb"
    folder.mkdir(parents=True)
    record = {"schema": 1, "run_id": folder.name, "chapter": "01", "slug": "01_rises", "title": "t", "preset": "cpu"}
    record |= {"status": "ok", "key": "k", "params": {}, "overrides": [], "env": {}, "first_error": None}
    record |= {"started": "2026-01-01T00:00:00+00:00", "wall_s": 1.0}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "notebook.html").symlink_to(tmp_path / "secret.html")
    head = {"Authorization": f"token {TOKEN}"}
    answer = requests.get(f"{address}/vlws/pages/{folder.name}", headers=head, timeout=60)
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_a_failing_run_says_what_was_raised(ask):
    told = ended(ask, started(ask, "04_fails")["handle"])
    assert (told["status"], told["error"], told["page"]) == ("failed", "ValueError: no pictures", True)


def test_one_run_at_a_time_and_cancelled(ask, root):
    first = started(ask, "02_slow")
    reached(root)
    assert started(ask, "02_slow")["handle"] == first["handle"]  # asked for twice, runs once
    status, told = ask("POST", "runs", asked("01_rises", force=True))
    said = f"this server runs at most 1 at once, now {first['handle']} (02_slow); wait for one to end, or cancel one."
    assert (status, told["error"]) == (400, said)
    assert ask("GET", "chapter?path=01_rises.ipynb")[1]["others"] == ["02_slow at preset cpu"]
    status, told = ask("DELETE", f"runs/{first['handle']}")
    assert (status, told["status"]) == (200, "cancelled")
    (record,) = root.glob("runs/02_slow/*/run.json")
    assert json.loads(record.read_text())["status"] == "cancelled"
    assert ask("GET", "chapter?path=01_rises.ipynb")[1]["others"] == []


def test_a_run_that_was_never_started(ask):
    for method in ("GET", "DELETE"):
        status, told = ask(method, "runs/run-99")
        assert status == 400
        assert told["error"].startswith("no run 'run-99' of this server; give a run id, or one that it has started: ")


# --- outputs of the reader --------------------------------------------------------------------------------------------


def test_a_notebook_is_read_and_written_through_the_server(ask, address, root):
    """The whole way: what a browser sends is kept apart, told of, and forgotten."""
    file = root / "notebooks" / "01_rises.ipynb"
    before = file.read_bytes()
    head = {"Authorization": f"token {TOKEN}"}
    url = f"{address}/api/contents/01_rises.ipynb"
    model = requests.get(url, params={"type": "notebook"}, headers=head, timeout=60).json()
    for cell in model["content"]["cells"]:
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "made in Lab"}]
        cell["execution_count"] = 7
    requests.put(url, json=model, headers=head, timeout=60).raise_for_status()
    assert file.read_bytes() == before
    assert ask("GET", "chapter?path=01_rises.ipynb")[1]["outputs"]["cells"] == 2
    assert ask("DELETE", "outputs/01_rises") == (200, {"cells": 0, "file": ".cache/lab/01_rises.json"})
    shown = requests.get(url, headers=head, timeout=60).json()["content"]["cells"]
    assert [cell["outputs"] for cell in shown] == [[], []]
    assert ask("DELETE", "outputs/09_none")[0] == 400


def test_outputs_that_cannot_be_deleted(ask, root):
    folder = root / ".cache" / "lab" / "01_rises.json"
    folder.mkdir(parents=True)  # where the file belongs
    status, told = ask("DELETE", "outputs/01_rises")
    folder.rmdir()
    assert status == 400
    assert "01_rises.json" in told["error"]


# --- the server's end, and its start ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_runs_end_with_the_server(jupyterlab, root, tmp_path, kill):
    def state():
        return {json.loads(path.read_text())["status"] for path in (tmp_path / "runs").glob("*/*/run.json")}

    own = environment(root) | {"VLWS_RUNS": str(tmp_path / "runs"), "VLWS_CACHE": str(tmp_path / "cache")}
    with jupyterlab(tmp_path, "-m", "vlws.lab.cli", "lab", token=TOKEN, **own) as address:
        head = {"Authorization": f"token {TOKEN}"}
        requests.post(f"{address}/vlws/runs", json=asked("02_slow"), headers=head, timeout=60).raise_for_status()
        until(lambda: list(tmp_path.glob("runs/02_slow/*/reached")), "the cell")
        if kill:
            (info,) = (tmp_path / "runtime").glob("jpserver-*.json")
            os.kill(json.loads(info.read_text())["pid"], signal.SIGKILL)
    if kill:
        until(lambda: state() == {"cancelled"}, "the end of the run")
    assert state() == {"cancelled"}


def lab(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vlws.lab.cli", "lab", *arguments]
    return subprocess.run(command, env=os.environ | environment(root), capture_output=True, text=True, timeout=60)


def test_the_command_says_what_it_would_start(root):
    ran = lab(root, "--json", "--port", "9000", "--no-browser", "x y")
    told = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr, told["kept"]) == (0, "", ".cache/lab")
    assert told["command"][-4:] == ["--port", "9000", "--no-browser", "x y"]
    assert told["settings"]["ServerApp.root_dir"] == str(root / "notebooks")
    assert "nbconvert --to notebook --execute --inplace" in told["said"]


def test_the_command_passes_arguments_on_and_says_where_outputs_are_kept(root):
    """What is given comes before what is set: Jupyter refuses a setting that is given twice; extensions add up."""
    extension = "--ServerApp.jpserver_extensions=other=True"
    ran = lab(root, "--notebook-dir", str(root), extension, "--show-config-json")
    told = json.loads(ran.stdout)
    assert told["ServerApp"]["root_dir"] == str(root)
    assert told["ServerApp"]["jpserver_extensions"].items() >= {"vlws.lab.panel": True, "other": True}.items()
    assert told["ServerApp"]["contents_manager_class"] == "vlws.lab.contents.ChapterContents"
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("What you execute in Lab")]
    again = "jupyter nbconvert --to notebook --execute --inplace notebooks/NN_slug.ipynb"
    assert line == (
        "What you execute in Lab is kept in .cache/lab; a committed chapter keeps the outputs that it has, and "
        f"`{again}` makes them anew (CONTRIBUTING.md)."
    )


def test_without_jupyterlab(monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="JupyterLab is not installed here"):
        opening.lab_command(None)


def test_without_a_workspace(tmp_path):
    ran = lab(tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "is no vlws workspace" in ran.stderr


def test_runs_without_a_budget(root):
    runs = background.Runs(None)
    assert runs.left() == runs.budget == float("inf")
    for minutes in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InputError, match="the budget must be above 0 minutes"):
            background.Runs(minutes)


def test_the_front_end_is_what_the_package_ships():
    """What `vlws lab` tells JupyterLab of is a prebuilt extension whose files are there."""
    said = json.loads((opening.FRONT_END / "vlws" / "package.json").read_text())
    assert (opening.FRONT_END / "vlws" / said["jupyterlab"]["_build"]["load"]).is_file()
    assert (opening.FRONT_END / "vlws" / "static" / "panel.css").is_file()
    assert contents.own_file("01_a").parent.name == "lab"
