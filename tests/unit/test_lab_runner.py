"""Runs of small real notebooks in real kernels: every trap of papermill, and every way to be stopped."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from processes import until

from vlws.errors import InputError
from vlws.lab import chapters, evidence, query, records, runner, tables

PARAMETERS = 'preset: str = "cpu"  # preset\nseeds: int = 3  # seeds\nlr: float = 1.0e-3  # learning rate'
CLAIM = """chapter: "{id}"
claims:
  - id: "{id}.C1"
    says: "it rises"
    where: "abstract"
    metric: "rise"
    unit: "u"
    direction: greater
    threshold: 0
"""
HONEST = [
    "import os\nprint(os.getcwd(), type(lr).__name__, lr)",
    "from vlws import claims\nchapter = claims.open_chapter('01', preset=preset)\n"
    "chapter.measure('01.C1', [lr * (1 + 0.01 * k) for k in range(-(seeds // 2), seeds - seeds // 2)])",
]
SLOW = "from pathlib import Path\nimport os, time\nPath(os.environ['VLWS_RUN'], 'reached').touch()\ntime.sleep(120)"


def write_notebook(root: Path, slug: str, *cells: str) -> None:
    code = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "vlws": {"title": slug},
    }
    nbformat.write(new_notebook(cells=code, metadata=metadata), root / "notebooks" / f"{slug}.ipynb")
    (root / "notebooks" / "claims" / f"{slug}.yaml").write_text(CLAIM.format(id=slug[:2]))


@pytest.fixture
def workspace(empty_workspace):
    return empty_workspace


def vlws(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vlws.lab.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def started(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vlws.lab.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def processes_of(root: Path) -> list[psutil.Process]:
    """The processes that work for a workspace: children, kernels, their workers."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("VLWS_RUNS", "").startswith(str(root)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


# --- a run that goes well ---


def test_what_stands_of_a_claim_is_the_run_then_the_results_then_the_notebook(good):
    _, record = good
    path = Path(record["folder"], "run.json")
    text = path.read_text()
    assert evidence.standing()["01.C1"].verdict == "not measured"  # the run has overrides
    path.write_text(json.dumps(json.loads(text) | {"overrides": []}))
    assert evidence.standing()["01.C1"].kind == "run"
    published = evidence.publish("01", "cpu")
    path.write_text(text)
    row = evidence.standing()["01.C1"]
    assert (row.value, row.kind, row.source) == (1e-4, "results", record["run_id"])
    shutil.rmtree(published.parent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run, by the command line from another directory, with a value that YAML 1.1 takes for text."""
    root = tmp_path_factory.mktemp("workspace") / "it's {odd}"  # papermill formats paths, SQL quotes them
    (root / "notebooks" / "claims").mkdir(parents=True)
    write_notebook(root, "01_good", *HONEST)
    env = {k: v for k, v in os.environ.items() if not k.startswith("VLWS_")} | {"VLWS_ROOT": str(root)}
    done = vlws("run", "1", "-p", "lr=1e-4", "--json", cwd="/", env=env)
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)[0], done.stderr


@pytest.fixture
def good(finished, monkeypatch):
    root, record, _ = finished
    monkeypatch.setenv("VLWS_ROOT", str(root))
    return root, record


def test_the_record_holds_what_the_contract_names(good):
    _, record = good
    stored = json.loads(Path(record["folder"], "run.json").read_text())
    keys = "schema run_id chapter slug title preset status rc key params overrides axes git env started ended wall_s"
    assert list(stored)[:19] == [*keys.split(), "peak_rss_mb", "first_error"]
    assert (stored["status"], stored["rc"], stored["first_error"]) == ("ok", 0, None)
    assert stored["params"] == {"preset": "cpu", "seeds": 3, "lr": 1e-4}
    assert stored["overrides"] == ["lr"]
    assert stored["run_id"].endswith(stored["key"][:8])
    assert set(stored["env"]) == set(
        ["python", "torch", "transformers", "pykeops", "platform", "cpu", "gpu", "constraints"]
    )
    assert stored["peak_rss_mb"] > 20
    files = {path.name for path in Path(record["folder"]).iterdir()}
    assert files >= {"run.json", "params.json", "measures.json", "notebook.ipynb", "notebook.html"}
    assert files >= {"stdout.log", "stderr.log"}
    assert not [name for name in files if name.endswith(".tmp") or name == "job.json"]


def test_a_text_that_yaml_does_not_take_for_a_number_reaches_the_notebook_as_one_and_cwd_is_the_notebooks(good):
    root, record = good
    assert Path(record["folder"], "stdout.log").read_text().strip() == f"{root / 'notebooks'} float 0.0001"


def test_measures_are_collected_and_counted(good):
    _, record = good
    (measure,) = json.loads(Path(record["folder"], "measures.json").read_text())
    assert (measure["id"], measure["value"], measure["verdict"], measure["n_seeds"]) == ("01.C1", 1e-4, "supported", 3)
    assert record["verdicts"] == {"supported": 1}


def test_a_measure_is_shown_once_and_its_text_holds_no_number(good):
    _, record = good
    cells = json.loads(Path(record["folder"], "notebook.ipynb").read_text())["cells"]
    (output,) = cells[-1]["outputs"]  # measure() shows it; as the cell's last line it is not shown again
    assert "".join(output["data"]["text/plain"]) == "01.C1: rise"
    assert "✓ supported" in "".join(output["data"]["text/html"])


def test_stderr_says_where_the_output_went(finished):
    _, record, stderr = finished
    assert "01_good lr=0.0001: ok in" in stderr
    assert f"runs/01_good/{record['run_id']}" in stderr


def test_a_finished_key_is_skipped_until_what_made_it_changes(good):
    root, record = good
    (job,) = runner.plan(["01"], given={"lr": "0.0001"})
    assert job["key"] == record["key"]
    (again,) = runner.run([job])
    assert (again["skipped"], again["run_id"]) == (True, record["run_id"])
    assert not records.is_stale(record)
    assert runner.plan(["01"], given={"lr": "0.0002"})[0]["key"] != record["key"]
    assert runner.plan(["01"])[0]["overrides"] == []

    def changed(path: Path, old: str, new: str) -> bool:
        text = path.read_text()
        path.write_text(text.replace(old, new))
        records._made_of.cache_clear()
        stale = records.is_stale(record)
        path.write_text(text)
        records._made_of.cache_clear()
        return stale

    assert changed(root / "notebooks" / "01_good.ipynb", "os.getcwd()", "os.getpid()")
    assert changed(root / "notebooks" / "claims" / "01_good.yaml", "threshold: 0", "threshold: 1")
    assert not changed(root / "notebooks" / "01_good.ipynb", '"outputs": []', '"outputs":  []')
    (root / "constraints.txt").write_text("numpy==1.0")
    records._made_of.cache_clear()
    assert records.is_stale(record)
    (root / "constraints.txt").write_text("bm25s==1.0")  # computes nothing here
    records._made_of.cache_clear()
    assert not records.is_stale(record)
    (root / "constraints.txt").unlink()
    records._made_of.cache_clear()
    assert not records.is_stale(record)


def test_code_of_ours_is_part_of_the_key(workspace):
    write_notebook(workspace, "01_a", "from vlws import claims")
    write_notebook(workspace, "02_b", "import math")
    a, b = chapters.chapters()
    with_library, without = (records._made_of("x", one.code, ()) for one in (a, b))
    assert with_library != without


def test_of_the_shipped_models_those_that_a_chapter_names_are_part_of_its_key(workspace):
    write_notebook(workspace, "01_good", "from vlws.models.clip import load_clip")
    one = chapters.chapter("01")
    keys = {records.key(replace(one, backbones=names), {}) for names in [(), ("clip-emoji",), ("no-such-model",)]}
    assert len(keys) == 2


def test_a_data_folder_is_part_of_the_key(workspace):
    root = workspace / "pictures"
    root.mkdir()
    write_notebook(workspace, "01_a", "1")
    one = chapters.chapter("01")
    before = records.key(one, {"data": str(root)})
    (root / "new.png").write_bytes(b"x")
    assert records.key(one, {"data": str(root)}) != before


def test_sql_reads_the_files(good):
    columns, rows = query.query(
        "select r.status, m.id, m.value, params->>'lr' from runs r join measures m using (run_id)"
    )
    assert columns[:3] == ["status", "id", "value"]
    assert rows == [("ok", "01.C1", 1e-4, "0.0001")]


def test_publishing_wants_a_run_without_overrides(good):
    with pytest.raises(InputError, match="chapter 01 has no finished run at preset 'full'"):
        evidence.publish("01", "full")


def test_published_evidence_names_no_machine(good):
    root, record = good
    path = Path(record["folder"], "run.json")
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"overrides": []}))
    kept = evidence.publish("01", "cpu")
    published = json.loads(kept.read_text())
    path.write_text(text)
    shutil.rmtree(kept.parent)
    assert published["run"]["run_id"] == record["run_id"]
    assert [m["id"] for m in published["measures"]] == ["01.C1"]
    assert str(root) not in json.dumps(published)
    assert not {"host", "pid", "folder"} & set(published["run"])


def test_without_runs_queries_are_empty(workspace):
    for table in tables.COLUMNS:
        assert query.query(f"select count(*) from {table}")[1] == [(0,)]
    assert records.records() == []


# --- whatever the machine and the user have set up ---

PICTURE = """
import sys
print(sys.executable)
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()
"""
SURPRISE = "print('surprise')"


@pytest.fixture
def set_up(tmp_path, monkeypatch):
    """A machine with another Python's kernel, a backend without pictures, and settings for interactive work."""
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3 (site)", "language": "python"}
    for place in ("site", "user"):
        folder = tmp_path / place / "kernels" / "python3"
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(spec))
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text(SURPRISE)
    config = "c.InteractiveShell.pdb = True\nc.InteractiveShellApp.exec_lines = [\"print('surprise')\"]\n"
    (startup.parent / "ipython_kernel_config.py").write_text(config)
    (tmp_path / "startup.py").write_text(SURPRISE)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: Agg\n")
    for name, value in {
        "JUPYTER_PATH": "site",
        "JUPYTER_DATA_DIR": "user",
        "IPYTHONDIR": "ipython",
        "PYTHONSTARTUP": "startup.py",
        "MATPLOTLIBRC": "matplotlibrc",
    }.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("MPLBACKEND", "Agg")


def test_a_chapter_runs_in_this_python_with_pictures_and_without_surprises(workspace, set_up):
    write_notebook(workspace, "01_shows", PICTURE)
    (record,) = runner.run(runner.plan(["01"]))
    assert (record["status"], record["first_error"]) == ("ok", None)
    folder = Path(record["folder"])
    cells = json.loads((folder / "notebook.ipynb").read_text())["cells"]
    assert Path(folder, "stdout.log").read_text().splitlines()[0] == sys.executable
    assert "surprise" not in Path(folder, "stdout.log").read_text()
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", [])) == 1


def test_a_cell_that_raises_starts_no_debugger(workspace, set_up):
    write_notebook(workspace, "01_raises", "1 / 0")
    (record,) = runner.run(runner.plan(["01"]))
    assert record["first_error"]["ename"] == "ZeroDivisionError"
    assert "ipdb" not in Path(record["folder"], "notebook.ipynb").read_text()


def test_a_notebook_that_was_saved_with_another_kernel_runs_in_this_python(workspace):
    write_notebook(workspace, "01_other", "import sys\nprint(sys.executable)")
    path = workspace / "notebooks" / "01_other.ipynb"
    path.write_text(path.read_text().replace('"name": "python3"', '"name": "conda-env-research-py"'))
    (record,) = runner.run(runner.plan(["01"]))
    assert Path(record["folder"], "stdout.log").read_text().strip() == sys.executable


def test_the_record_has_the_versions_of_the_process_that_computed(workspace, monkeypatch):
    write_notebook(workspace, "01_good", "1")
    shadow = workspace / "site" / "pykeops-0.0.1.dist-info"  # comes first on the kernel's path, not on ours
    shadow.mkdir(parents=True)
    (shadow / "METADATA").write_text("Metadata-Version: 2.1\nName: pykeops\nVersion: 0.0.1\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(shadow.parent), os.environ.get("PYTHONPATH", "")]))
    (record,) = runner.run(runner.plan(["01"]))
    assert record["env"]["pykeops"] == "0.0.1"
    assert not Path(record["folder"], "versions.json").exists()


# --- runs that do not ---


def test_the_status_comes_from_the_exit_code_and_one_failure_stops_no_other(workspace, capfd):
    write_notebook(workspace, "01_good", "print('fine')")
    write_notebook(workspace, "02_raises", "1 / 0", "print('never')")
    write_notebook(workspace, "03_killed", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "print('never')")
    write_notebook(workspace, "04_leaves", "import sys\nsys.exit()", "print('never')")
    write_notebook(
        workspace, "05_refuses", "from vlws.errors import InputError\nraise InputError('the folder is empty.')"
    )
    lines = []
    by_slug = {r["slug"]: r for r in runner.run(runner.plan(), slots=2, say=lines.append)}
    assert {slug: r["status"] for slug, r in by_slug.items()} == {
        "01_good": "ok",
        "02_raises": "failed",
        "03_killed": "dead",  # though papermill leaves a notebook in which every cell is "completed"
        "04_leaves": "failed",  # papermill takes sys.exit() for a good end
        "05_refuses": "failed",
    }
    assert by_slug["02_raises"]["first_error"] == {
        "cell": 2,
        "ename": "ZeroDivisionError",
        "evalue": "division by zero",
    }
    assert by_slug["03_killed"]["first_error"]["ename"] == "DeadKernel"
    assert by_slug["04_leaves"]["first_error"]["ename"] == "SystemExit"
    assert by_slug["05_refuses"]["first_error"]["evalue"] == "the folder is empty."
    assert any("/5] 02_raises: failed (ZeroDivisionError: division by zero) in" in line for line in lines)
    assert not processes_of(workspace)


def test_a_run_is_stopped_at_its_time_limit(workspace):
    write_notebook(workspace, "01_slow", SLOW)
    (record,) = runner.run(runner.plan(["01"], timeout=4))
    assert (record["status"], record["first_error"]["ename"]) == ("timeout", "Timeout")
    assert not processes_of(workspace)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_cancelled_and_leaves_no_process(workspace, sign):
    write_notebook(workspace, "01_slow", SLOW)
    child = started("run", "01", "--json")
    until(lambda: list(workspace.glob("runs/*/*/reached")), "the cell")
    child.send_signal(sign)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 130
    assert json.loads(out)["error"].startswith("interrupted")
    assert "Traceback" not in err
    (record,) = records.records()
    assert record["status"] == "cancelled"
    assert json.loads(Path(record["folder"], "run.json").read_text())["status"] == "cancelled"
    until(lambda: not processes_of(workspace), "the end of all processes", 10)


GRID = """
import os, time
from pathlib import Path
from vlws import experiment

def cell(arm, seed):
    Path(os.environ["VLWS_CACHE"], f"began-{seed}").touch()
    if seed == 2 and not Path(os.environ["VLWS_CACHE"], "go").exists():
        time.sleep(120)
    return {"v": seed}

values = experiment.grid(cell, ["a"], seeds, name="t", workers=2)["a"]["v"]
print(values)
"""


def test_kill_9_half_way_loses_nothing_and_is_not_believed(workspace):
    write_notebook(workspace, "01_grid", GRID)
    child = started("run", "01")
    cache = workspace / ".cache"
    until(lambda: (cache / "began-2").exists() and len(list(cache.glob("experiment/t/[!.]*.json"))) == 2, "two cells")
    child.kill()
    child.communicate(timeout=300)
    until(lambda: not processes_of(workspace), "the end of all processes", 10)
    (record,) = records.records()
    assert json.loads(Path(record["folder"], "run.json").read_text())["status"] == "running"
    assert (record["status"], record["first_error"]["ename"]) == ("dead", "Killed")
    assert query.query("select status from runs")[1] == [("dead",)]
    for mark in cache.glob("began-*"):
        mark.unlink()
    (cache / "go").touch()
    done = vlws("run", "01", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["status"] == "ok"
    assert [mark.name for mark in cache.glob("began-*")] == ["began-2"]  # only the cell that was in hand ran again


def test_a_folder_that_takes_no_writes_is_one_sentence(workspace, monkeypatch):
    write_notebook(workspace, "01_good", "1")
    blocked = workspace / "file"
    blocked.touch()
    monkeypatch.setenv("VLWS_RUNS", str(blocked / "runs"))  # permissions would not stop root
    done = vlws("run", "01")
    assert done.returncode == 1
    assert "Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_read_only_folder_is_one_sentence(workspace, monkeypatch):
    write_notebook(workspace, "01_good", "1")
    folder = workspace / "mounted"
    with mounted(folder, "ro"):
        monkeypatch.setenv("VLWS_RUNS", str(folder / "runs"))
        done = vlws("run", "01", "--json")
    assert done.returncode == 1
    assert "Read-only file system" in json.loads(done.stdout)["error"]
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_sentence_and_no_result(workspace, monkeypatch):
    write_notebook(workspace, "01_good", "print('x' * 200_000)")
    folder = workspace / "mounted"
    with mounted(folder, "size=64k"):
        monkeypatch.setenv("VLWS_RUNS", str(folder / "runs"))
        done = vlws("run", "01")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert [r["status"] for r in records.records() if r["status"] == "ok"] == []
        assert not list(folder.rglob("*.tmp"))


class mounted:
    """A tmpfs of its own at a folder; skips the test where this user may not mount."""

    def __init__(self, folder: Path, options: str) -> None:
        self.folder, self.options = folder, options

    def __enter__(self) -> None:
        self.folder.mkdir()
        asked = None
        if shutil.which("mount"):
            asked = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", self.folder], capture_output=True
            )
        if asked is None or asked.returncode:
            pytest.skip("this user may not mount a file system of its own")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)


def test_a_limit_on_file_size_is_one_sentence_and_no_result(workspace):
    write_notebook(workspace, "01_good", "print('x' * 200_000)")
    limit = 64 * 1024
    done = vlws("run", "01", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 1
    assert "File too large" in done.stderr
    (record,) = records.records()
    assert record["status"] == "failed"


def test_without_a_bar_a_run_says_once_a_minute_how_far_it_is():
    now, lines = [0.0], []
    progress = runner.progress_lines("04_cmg", lines.append, lambda: now[0])
    for seconds, cells in [(1.0, 1), (59.0, 2), (60.5, 3), (61.0, 3), (125.0, 5)]:
        now[0] = seconds
        progress(cells, 12)
    assert lines == ["04_cmg: started", "04_cmg: 3/12 cells, 1 min 00 s", "04_cmg: 5/12 cells, 2 min 05 s"]


def test_a_sweep_ends_in_its_table(workspace):
    write_notebook(workspace, "01_good", *HONEST)
    done = vlws("sweep", "01", "-p", "lr=0.1,0.2", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["axes"] for row in rows] == [{"lr": 0.1}, {"lr": 0.2}]
    assert [round(row["values"]["01.C1"]["value"], 6) for row in rows] == [0.1, 0.2]
    again = vlws("sweep", "01", "-p", "lr=0.1,0.2")
    assert [line.split()[:3] for line in again.stdout.splitlines()[:3]] == [
        ["lr", "status", "01.C1"],
        ["0.1", "ok", "0.100"],
        ["0.2", "ok", "0.200"],
    ]


# --- on a cluster ---

PARSL = """
from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

config = Config(
    executors=[HighThroughputExecutor(label="here", max_workers_per_node=2, provider=LocalProvider(max_blocks=1))],
    run_dir={folder!r},
)
"""


@pytest.mark.cluster
def test_parsl_runs_the_same_jobs_to_the_same_records(workspace):
    pytest.importorskip("parsl", reason="Parsl is not installed (extra `cluster`)")
    write_notebook(workspace, "01_good", *HONEST)
    write_notebook(workspace, "02_raises", "1 / 0")
    config = workspace / "config.py"
    config.write_text(PARSL.format(folder=str(workspace / "parsl")))
    by_slug = {r["slug"]: r for r in runner.run(runner.plan(), parsl=config)}
    assert {slug: r["status"] for slug, r in by_slug.items()} == {"01_good": "ok", "02_raises": "failed"}
    assert records.measures(by_slug["01_good"])[0]["value"] == 1e-3
    assert by_slug["01_good"]["pid"] != os.getpid()


# --- what is asked for ---


def test_everything_is_checked_before_anything_runs(workspace):
    write_notebook(workspace, "01_a", "1")
    write_notebook(workspace, "02_b", "1")
    for arguments, message in [
        ((["01"], "cpu", {"sedes": "1"}), "did you mean seeds"),
        ((["01", "09"], "cpu"), "no chapter '09'"),
        (((), "cpu", {"sedes": "1"}), "did you mean seeds"),
        ((["01"], "huge"), "no preset 'huge'"),
        ((["01"], "cpu", {"lr": "x"}), "no float"),
        ((["01"], "cpu", {}, None, 0), "timeout is 0"),
    ]:
        with pytest.raises(InputError, match=message):
            runner.plan(*arguments)
    with pytest.raises(InputError, match="jobs is 0"):
        list(runner.run(runner.plan(["01"]), slots=0))
    with pytest.raises(InputError, match=r"needs Parsl|no Parsl configuration"):
        list(runner.run(runner.plan(["01"]), parsl=workspace / "absent.py"))
    assert not (workspace / "runs").exists()


def test_a_plan_is_every_combination_once(workspace):
    write_notebook(workspace, "01_a", "1")
    write_notebook(workspace, "02_b", "1")
    (workspace / "notebooks" / "presets.yml").write_text('"01": {full: {seeds: 5}}')
    assert [job["slug"] for job in runner.plan()] == ["01_a", "02_b"]
    (job,) = runner.plan(["01", "01_a"], "full")
    assert job["params"] == {"preset": "full", "seeds": 5, "lr": 1e-3}
    assert job["injected"] == {"preset": "full", "seeds": 5}
    assert job["overrides"] == []
    assert runner.plan(["01"], given={"preset": "full"})[0]["key"] == job["key"]
    jobs = runner.plan(["01"], grid={"lr": [0.1, 0.2, 0.1], "seeds": [1, 2]})
    assert [(j["params"]["lr"], j["params"]["seeds"]) for j in jobs] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert all(j["overrides"] == ["lr", "seeds"] for j in jobs)


def test_no_chapters_are_refused(workspace):
    with pytest.raises(InputError, match="there are no chapters"):
        runner.plan()
