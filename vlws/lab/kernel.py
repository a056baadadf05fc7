"""One notebook in one process of its own: `python -m vlws.lab.kernel JOB.json`, as the runner starts it.

Executes with papermill in the notebook's folder and in this Python, whatever kernels, settings of Jupyter and IPython
and backends of matplotlib the machine and the user have. Writes the notebook's stdout to stdout.log beside the output
and the progress ("3/12") to its own stdout. The exit code says how it went, the notebook does not (of a killed kernel
papermill keeps a notebook that says "completed"): 0 every cell ran, 1 a cell raised or did not run, 138 the kernel
died. Ends, with its kernel and all that this started, when its stdin is closed: nothing outlives the process that ran
it.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

FAILED, DEAD = 1, 138
KERNEL = "python3"
INLINE = "module://matplotlib_inline.backend_inline"


def main() -> int:
    """Execute the job: notebook, out (the run folder), params (those that differ from the literals)."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="vlws-", ignore_cleanup_errors=True) as settings:
        threading.Thread(target=_end_with_parent, args=[settings], daemon=True).start()
        _isolate(Path(settings))
        return _execute(job)


def _isolate(settings: Path) -> None:
    """Leave nothing to the machine's and the user's settings: one kernel, this Python; inline pictures; no profiles."""
    spec = {
        "argv": [sys.executable, "-m", "vlws.lab.launch", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    folder = settings / "kernels" / KERNEL
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    (settings / "matplotlibrc").touch()  # an empty one: matplotlib's own values
    for name in ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT", "JUPYTER_PREFER_ENV_PATH"):
        os.environ.pop(name, None)
    jupyter = ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH", "JUPYTER_RUNTIME_DIR")
    os.environ |= dict.fromkeys((*jupyter, "IPYTHONDIR"), str(settings)) | {"JUPYTER_NO_CONFIG": "1"}
    os.environ |= {"MPLBACKEND": INLINE, "MATPLOTLIBRC": str(settings / "matplotlibrc")}


def _execute(job: dict[str, Any]) -> int:
    out = Path(job["out"])

    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    with open(out / "stdout.log", "w", encoding="utf-8") as log:
        try:
            notebook = papermill.execute_notebook(
                _literal(job["notebook"]),
                _literal(str(out / "notebook.ipynb")),
                parameters=job["params"],
                kernel_name=KERNEL,
                language="python",
                cwd=str(Path(job["notebook"]).parent),
                progress_bar={"file": sys.stdout, "bar_format": "{n_fmt}/{total_fmt}", "mininterval": 0, "miniters": 1},
                stdout_file=log,
                stderr_file=sys.stderr,
            )
        except PapermillExecutionError as error:
            print(f"{error.ename}: {error.evalue}", file=sys.stderr)
            return FAILED
        except DeadKernelError as error:
            print(f"DeadKernelError: {error}", file=sys.stderr)
            return DEAD
    waiting = [
        cell for cell in notebook.cells if cell.cell_type == "code" and cell.source and cell.execution_count is None
    ]
    if waiting:  # papermill takes sys.exit() in a cell for a good end
        print(f"SystemExit: {len(waiting)} cells were not run", file=sys.stderr)
        return FAILED
    return 0


def _literal(path: str) -> str:
    """A path that papermill, which formats paths with the parameters, leaves as it is."""
    return path.replace("{", "{{").replace("}", "}}")


def _end_with_parent(settings: str) -> None:
    sys.stdin.read()
    kill_children(os.getpid())
    shutil.rmtree(settings, ignore_errors=True)
    os._exit(DEAD)


def kill_children(pid: int) -> None:
    """Kill all that a process started, but for joblib's resource trackers, which clean up and end by themselves."""
    import psutil

    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for child in children:
        try:
            if not any("resource_tracker" in part for part in child.cmdline()):
                child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=3)


if __name__ == "__main__":
    sys.exit(main())
