"""Sweeps on two real executors of Parsl on this machine: workers, managers and drivers that are killed, full disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from processes import until

pytest.importorskip("parsl", reason="Parsl is not installed (extra `cluster`)")

from vlws.errors import InputError
from vlws.lab import attempts, cluster, holding, records, runner

PARAMETERS = 'preset: str = "cpu"  # preset\nseeds: int = 3  # seeds\nlr: float = 1.0e-3  # learning rate'
CLAIMS = 'chapter: "01"\nclaims: []\n'
# begins, tells so, waits for a file `go` where one is to wait, and tells that it has ended
WORK = """
import os, time
from pathlib import Path
place = Path(os.environ["VLWS_ROOT"], "marks")
with open(place / f"began-{lr}", "a") as file:
    file.write(f"{os.getpid()}\\n")
while (place / f"wait-{lr}").exists():
    time.sleep(0.05)
with open(place / f"ended-{lr}", "a") as file:
    file.write("x")
"""
CONFIG = """
from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

def executor(label, **provider):
    return HighThroughputExecutor(
        label=label, address="127.0.0.1", max_workers_per_node=1, cores_per_worker=0.1, heartbeat_period=1,
        heartbeat_threshold=5, encrypted=False,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1, **provider),
    )

config = Config(executors=[{executors}], run_dir={folder!r}, strategy="none")
"""


@pytest.fixture
def workspace(empty_workspace, tmp_path):
    (tmp_path / "marks").mkdir()
    code = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(WORK)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=code, metadata=metadata), tmp_path / "notebooks" / "01_works.ipynb")
    (tmp_path / "notebooks" / "claims" / "01_works.yaml").write_text(CLAIMS)
    yield tmp_path
    try:
        until(lambda: not processes_of(tmp_path), "the end of Parsl and of all runs", 30)
    finally:
        for process in processes_of(tmp_path):
            print("left:", process.pid, process.cmdline())
            process.kill()


def configured(root: Path, *executors: str) -> str:
    path = root / "config.py"
    executors = executors or ('executor("a")', 'executor("b")')
    path.write_text(CONFIG.format(executors=", ".join(executors), folder=str(root / "parsl")))
    return str(path)


def processes_of(root: Path) -> list[psutil.Process]:
    """All processes that work for a workspace: drivers, Parsl's, workers, kernels."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("VLWS_ROOT") == str(root) and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if mine and process.pid != os.getpid():
            found.append(process)
    return found


def managers(root: Path) -> list[psutil.Process]:
    """Parsl's pools of workers, each the parent of its workers."""
    return [p for p in processes_of(root) if "process_worker_pool.py" in " ".join(p.cmdline()) and p.children()]


def marks(root: Path, kind: str) -> dict[str, str]:
    return {path.name.partition("-")[2]: path.read_text() for path in (root / "marks").glob(f"{kind}-*")}


def hold_up(root: Path, *rates: str) -> None:
    for lr in rates:
        (root / "marks" / f"wait-{lr}").touch()


def let_go(root: Path, *rates: str) -> None:
    for lr in rates:
        (root / "marks" / f"wait-{lr}").unlink(missing_ok=True)


def sweep(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vlws.lab.cli", "sweep", "01", *arguments, "--json"]


def started(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(sweep(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ended(driver: subprocess.Popen, code: int = 0):
    """The JSON of a driver that has ended, and what it said."""
    out, err = driver.communicate(timeout=150)
    assert driver.returncode == code, err
    assert "Traceback" not in err
    return json.loads(out), err


def statuses(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in records.records("01_works"):
        found.setdefault(str(record["params"]["lr"]), []).append(record["status"])
    return found


def test_a_worker_and_then_a_whole_pool_are_killed_and_nothing_is_lost_or_done_twice(workspace):
    config = configured(workspace)
    hold_up(workspace, "0.1", "0.2")
    driver = started("-p", "lr=0.1,0.2,0.3,0.4", "--parsl", config)
    until(lambda: len(marks(workspace, "began")) == 2, "two runs")
    pools = {pool.pid: pool for pool in managers(workspace)}
    busy = {}  # rate -> the pool that runs it
    for lr in ("0.1", "0.2"):
        kernel = psutil.Process(int(marks(workspace, "began")[lr]))
        busy[lr] = next(pool for pool in (pools.get(p.pid) for p in kernel.parents()) if pool)
    worker = next(p for p in psutil.Process(int(marks(workspace, "began")["0.1"])).parents() if p.ppid() in pools)
    worker.kill()
    until(lambda: len(marks(workspace, "began")["0.1"].split()) == 2, "the run that was lost with its worker, again")
    busy["0.2"].kill()  # its worker goes on with the run: what was done there is taken, and not done again
    let_go(workspace, "0.1", "0.2")
    rows, said = ended(driver)
    assert [(row["axes"]["lr"], row["status"]) for row in rows] == [(lr, "ok") for lr in (0.1, 0.2, 0.3, 0.4)]
    assert marks(workspace, "ended") == dict.fromkeys(("0.1", "0.2", "0.3", "0.4"), "x")
    assert statuses(workspace)["0.1"] == ["ok", "dead"]
    assert "its worker was lost (WorkerLost" in said
    assert "started on" in said
    assert not list((workspace / "runs" / holding.FOLDER).iterdir())


@pytest.mark.cluster
def test_a_chapter_whose_own_process_is_killed_is_dead_and_is_not_tried_again_until_asked(workspace):
    config = configured(workspace, 'executor("a")')
    hold_up(workspace, "0.1")
    driver = started("-p", "lr=0.1,0.2", "--parsl", config)
    until(lambda: "0.1" in marks(workspace, "began"), "the run")
    os.kill(int(marks(workspace, "began")["0.1"]), signal.SIGKILL)
    rows, _ = ended(driver, code=1)
    assert [row["status"] for row in rows] == ["dead", "ok"]
    assert rows[0]["first_error"]["ename"] == "DeadKernel"
    let_go(workspace, "0.1")
    rows, _ = ended(started("-p", "lr=0.1,0.2"))  # the same jobs, in places of this machine
    assert [(row["status"], row.get("skipped")) for row in rows] == [("ok", None), ("ok", True)]
    assert marks(workspace, "ended") == {"0.1": "x", "0.2": "x"}


def test_of_two_sweeps_at_once_each_takes_what_the_other_runs(workspace):
    config = configured(workspace, 'executor("a")')
    hold_up(workspace, "0.1")
    first = started("-p", "lr=0.1,0.2", "--parsl", config)
    until(lambda: "0.1" in marks(workspace, "began"), "the first")
    second = started("-p", "lr=0.1,0.3", "--jobs", "1")
    until(lambda: marks(workspace, "ended").get("0.3"), "what the second has for itself")
    third = started("-p", "lr=0.1", "--jobs", "1")  # is interrupted while it waits
    assert "waiting for its record" in third.stderr.readline() + third.stderr.readline()
    third.send_signal(signal.SIGINT)
    out, _ = third.communicate(timeout=60)
    assert (third.returncode, "interrupted" in out) == (130, True)
    let_go(workspace, "0.1")
    rows, _ = ended(first)
    others, said = ended(second)
    assert others[0]["run_id"] == rows[0]["run_id"]
    assert (others[0]["skipped"], others[1]["status"]) == (True, "ok")
    assert f"process {records.records()[-1]['pid']} on" in said
    assert marks(workspace, "ended") == dict.fromkeys(("0.1", "0.2", "0.3"), "x")
    assert all(len(pids.split()) == 1 for pids in marks(workspace, "began").values())


@pytest.mark.cluster
def test_ctrl_c_ends_the_blocks_and_records_what_ran_as_cancelled(workspace):
    config = configured(workspace)
    hold_up(workspace, "0.1", "0.2")
    driver = started("-p", "lr=0.1,0.2,0.3", "--parsl", config, start_new_session=True)
    until(lambda: len(marks(workspace, "began")) == 2, "two runs")
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: Parsl's interchange gets it too
    told, _ = ended(driver, code=130)
    assert told["error"].startswith("interrupted")
    assert not processes_of(workspace)
    stored = [json.loads(path.read_text())["status"] for path in workspace.glob("runs/01_works/*/run.json")]
    assert stored == ["cancelled", "cancelled"]


@pytest.mark.cluster
def test_after_kill_9_of_the_driver_nothing_stays_and_the_same_command_goes_on(workspace):
    config = configured(workspace)
    hold_up(workspace, "0.2")
    driver = started("-p", "lr=0.1,0.2,0.3", "--parsl", config)
    until(lambda: {"0.1", "0.3"} <= set(marks(workspace, "ended")), "two runs")
    until(lambda: statuses(workspace).get("0.1") == statuses(workspace).get("0.3") == ["ok"], "their records")
    until(lambda: "0.2" in marks(workspace, "began"), "the third")
    driver.kill()
    driver.communicate()
    until(lambda: not processes_of(workspace), "the end of Parsl and of all runs", 60)
    assert statuses(workspace)["0.2"][0] in ("cancelled", "dead")
    let_go(workspace, "0.2")
    rows, _ = ended(started("-p", "lr=0.1,0.2,0.3", "--parsl", config))
    assert [(row["status"], row.get("skipped")) for row in rows] == [("ok", True), ("ok", None), ("ok", True)]
    assert marks(workspace, "ended") == dict.fromkeys(("0.1", "0.2", "0.3"), "x")


def test_a_full_disk_is_one_sentence_and_what_was_done_is_kept(workspace):
    config = configured(workspace, 'executor("a")')
    (workspace / "runs").mkdir()
    code = new_code_cell("if lr > 0.1:\n    print('x' * 300_000)")
    path = workspace / "notebooks" / "01_works.ipynb"
    book = nbformat.read(path, 4)
    book.cells.append(code)
    nbformat.write(book, path)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", workspace / "runs"], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a file system of its own")
    try:
        told, _ = ended(started("-p", "lr=0.1,0.2", "--parsl", config), code=1)
        assert "No space left on device" in told["error"]
        assert statuses(workspace)["0.1"] == ["ok"]
        assert "ok" not in statuses(workspace).get("0.2", [])
        subprocess.run(["mount", "-o", "remount,size=8m", workspace / "runs"], check=True)
        rows, _ = ended(started("-p", "lr=0.1,0.2", "--parsl", config))
        assert [(row["status"], row.get("skipped")) for row in rows] == [("ok", True), ("ok", None)]
        assert marks(workspace, "ended")["0.1"] == "x"
    finally:
        until(lambda: not processes_of(workspace), "the end of all processes", 30)
        subprocess.run(["umount", "-l", workspace / "runs"], check=True)


@pytest.mark.cluster
def test_a_worker_with_other_code_refuses_in_one_sentence(workspace):
    here = Path(cluster.__file__).parents[2]
    other = workspace / "other"
    shutil.copytree(here / "vlws", other / "vlws", copy_function=os.symlink, ignore=shutil.ignore_patterns("*.pyc"))
    changed = other / "vlws" / "claims.py"
    text = changed.read_text()
    changed.unlink()
    changed.write_text(f"{text}\nCHANGED = 1\n")
    path = workspace / "notebooks" / "01_works.ipynb"
    book = nbformat.read(path, 4)
    book.cells.insert(1, new_code_cell("from vlws import claims"))
    nbformat.write(book, path)
    config = configured(workspace, f'executor("a", worker_init="export PYTHONPATH={other}:$PYTHONPATH")')
    rows, said = ended(started("-p", "lr=0.1", "--parsl", config), code=1)
    assert rows[0]["first_error"]["ename"] == "Refused"
    assert rows[0]["first_error"]["evalue"].endswith("vlws.claims differs; they must have the same.")
    assert "tried again (2 of 2)" in said
    assert marks(workspace, "began") == {}


def test_what_a_worker_lacks_is_named(workspace, monkeypatch):
    (job,) = runner.plan(["01"])
    job |= {"made_by": job["key"], "driver": "driver-1", "needs": attempts.needs(job)}
    with holding.take(workspace / "runs" / holding.FOLDER, "driver-1"):
        assert attempts.unfit(job) == ""
        versions = job["needs"]["versions"]
        for name, value, said in [
            ("torch", "0.1", f"has {versions['torch']} of torch, and the command 0.1; they must have the same."),
            ("python", "3.99.1", "of python, and the command 3.99; they must have the same."),
            ("pykeops", None, "of pykeops, and the command none; they must have the same."),
        ]:
            assert attempts.unfit(job | {"needs": job["needs"] | {"versions": versions | {name: value}}}).endswith(said)
        assert attempts.unfit(job | {"made_by": "0"}).startswith("has other files in `data` or `backbone`")
        absent = str(workspace / "away" / "01_works.ipynb")
        assert "does not see" in attempts.unfit(job | {"notebook": absent})
    assert f"does not see {workspace / 'runs'};" in attempts.unfit(job)  # the driver's name is not there
    monkeypatch.setattr(attempts, "unfit", lambda job: "sees nothing")
    assert attempts.on_worker(job).refused.endswith("sees nothing")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('no project given')", r"is no Parsl configuration: RuntimeError: no project given"),
        ("config = (", r"is no Parsl configuration: SyntaxError: "),
        ("import no_such_module_of_mine", r"is no Parsl configuration: ModuleNotFoundError: "),
        ("raise SystemExit", r"is no Parsl configuration: SystemExit: nothing further was said"),
        ("config = 1", r"does not define `config` as a parsl.Config"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_sentence(workspace, text, said):
    (workspace / "config.py").write_text(text)
    with pytest.raises(InputError, match=said):
        list(runner.run(runner.plan(["01"]), parsl=workspace / "config.py"))
    with pytest.raises(InputError, match="no Parsl configuration at"):
        list(runner.run(runner.plan(["01"]), parsl=workspace / "absent.py"))
    assert not (workspace / "runs").exists()


def test_two_executors_of_one_name_cannot_start(workspace):
    config = configured(workspace, 'executor("a")', 'executor("a")')
    with pytest.raises(InputError, match="is no Parsl configuration: ConfigurationError: "):
        list(runner.run(runner.plan(["01"]), parsl=Path(config)))


@pytest.mark.cluster
def test_blocks_that_do_not_start_are_bad_input(workspace):
    config = configured(workspace, 'executor("a", worker_init="echo no such partition >&2; exit 3")')
    told, _ = ended(started("-p", "lr=0.1", "--parsl", config), code=2)
    assert told["error"].startswith("the blocks of Parsl do not start: ")
    assert "no such partition" in told["error"]
    assert marks(workspace, "began") == {}
