"""The configurations of `examples/` load, and what they submit runs: all of Slurm's path but the scheduler itself."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytest.importorskip("parsl", reason="Parsl is not installed (extra `cluster`)")

from vlws.lab import cluster

EXAMPLES = Path(__file__).parents[2] / "examples"
PARAMETERS = 'preset: str = "cpu"  # preset\nseeds: int = 3  # seeds\nlr: float = 1.0e-3  # learning rate'
WORK = "import os\nprint(os.environ['JOBNAME'], os.environ.get('SLURM_JOB_ID'))"
# a scheduler of one node: it runs the script that it is given, at once, in a session of its own
SBATCH = """#!/bin/sh
id=$(($(ls {place} | grep -c pid) + 1))
cp "$1" {place}/script-$id
SLURM_JOB_ID=$id setsid bash "$1" > {place}/out-$id 2>&1 &
echo $! > {place}/pid-$id
echo "Submitted batch job $id"
"""
SQUEUE = """#!/bin/sh
for file in {place}/pid-*; do
    kill -0 $(cat $file) 2> /dev/null && echo "${{file##*-}} R"
done
exit 0
"""
SCANCEL = """#!/bin/bash
for id in "$@"; do kill -TERM -- -$(cat {place}/pid-$id); done
"""


@pytest.fixture
def workspace(empty_workspace, tmp_path):
    code = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(WORK)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=code, metadata=metadata), tmp_path / "notebooks" / "01_works.ipynb")
    (tmp_path / "notebooks" / "claims" / "01_works.yaml").write_text('chapter: "01"\nclaims: []\n')
    shutil.copytree(EXAMPLES, tmp_path / "examples")  # whose logs go into the runs beside it
    return tmp_path


@pytest.fixture
def slurm(workspace, monkeypatch):
    """Programs of Slurm's names first on PATH; the folder of what was submitted."""
    place, programs = workspace / "submitted", workspace / "programs"
    place.mkdir()
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "sacct": "#!/bin/sh\nexit 1\n"}.items():
        (programs / name).write_text(text.format(place=place))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return place


def swept(root: Path, example: str) -> list[dict]:
    command = [sys.executable, "-m", "vlws.lab.cli", "sweep", "01", "-p", "lr=0.1,0.2", "--json", "--parsl"]
    done = subprocess.run(
        [*command, str(root / "examples" / example)], capture_output=True, text=True, timeout=200, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def left(root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("VLWS_ROOT") == str(root):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def all_gone(root: Path) -> None:
    deadline = time.monotonic() + 30
    while left(root):
        assert time.monotonic() < deadline, [process.cmdline() for process in left(root)]
        time.sleep(0.1)


@pytest.mark.cluster
def test_slurm_gets_a_script_that_runs_the_workers(workspace, slurm):
    rows = swept(workspace, "slurm.py")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    said = [Path(row["folder"], "stdout.log").read_text().split() for row in rows]
    assert all(name.startswith("parsl.slurm.") and id.isdigit() for name, id in said)  # the run was in a job of Slurm
    script = (slurm / "script-1").read_text()
    for line in ("--partition=short", "--nodes=1", "--time=60", "--cpus-per-task=2"):
        assert f"#SBATCH {line}" in script
    assert f"export PATH={Path(sys.prefix, 'bin')}:$PATH" in script
    assert "process_worker_pool.py" in script
    assert (workspace / "runs" / "parsl").is_dir()
    assert {path.name for path in workspace.iterdir()} <= {
        *("notebooks", "examples", "runs", "submitted", "programs", ".cache")
    }
    all_gone(workspace)


@pytest.mark.cluster
def test_two_executors_of_this_machine_run_a_sweep(workspace):
    assert [row["status"] for row in swept(workspace, "local.py")] == ["ok", "ok"]
    all_gone(workspace)


def test_pbs_gets_what_it_is_to_get(workspace, monkeypatch):
    config = cluster.read_config(workspace / "examples" / "pbs.py")
    (executor,) = config.executors
    programs = workspace / "programs"
    programs.mkdir()
    (programs / "qsub").write_text(
        f'#!/bin/sh\necho "$@" > {workspace}/asked\nfor last; do :; done\ncp "$last" {workspace}/script\necho 7.here\n'
    )
    (programs / "qsub").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    executor.provider.script_dir = str(workspace)
    assert executor.provider.submit("echo the workers", 1) == "7.here"
    script = (workspace / "script").read_text()
    for line in ("-l walltime=01:00:00", "-l select=1:ncpus=2"):
        assert f"#PBS {line}" in script
    assert f"export PATH={Path(sys.prefix, 'bin')}:$PATH" in script
    assert "echo the workers" in script
    assert "-q workq" in (workspace / "asked").read_text()


def test_kubernetes_gets_a_pod_with_the_workspace(workspace, monkeypatch):
    kubernetes = pytest.importorskip("kubernetes", reason="the client of Kubernetes is not installed")
    monkeypatch.setattr(kubernetes.config, "load_kube_config", lambda: None)
    (executor,) = cluster.read_config(workspace / "examples" / "kubernetes.py").executors
    pods = []

    def created(namespace, body):
        pods.append((namespace, body))
        return body

    monkeypatch.setattr(executor.provider.kube_client, "create_namespaced_pod", created)
    executor.provider.submit("echo the workers", 1)
    ((namespace, pod),) = pods
    (container,) = pod.spec.containers
    assert (namespace, container.image) == ("default", "registry.example.org/vlws:latest")
    assert container.args[0] == "-c"
    assert "echo the workers" in container.args[1]
    assert (container.resources.limits["cpu"], container.resources.limits["memory"]) == ("2", "8Gi")
    (volume,) = pod.spec.volumes
    assert volume.persistent_volume_claim.claim_name == "vlws-workspace"
    assert container.volume_mounts[0].mount_path == str(workspace)


def test_every_example_says_how_it_is_used():
    for path in EXAMPLES.glob("*.py"):
        if path.name == "kubernetes.py":  # wants its client, and a cluster
            assert f"--parsl examples/{path.name}" in path.read_text()
        else:
            assert f"--parsl examples/{path.name}" in runpy.run_path(str(path))["__doc__"]
