"""The command that opens JupyterLab on the notebooks, with the panel of the open chapter beside them."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from vlws import paths
from vlws.errors import InputError
from vlws.lab.describe import shown
from vlws.lab.options import Json
from vlws.lab.terminal import answer

FRONT_END = Path(__file__).parent / "labextensions"
ADDED = ("ServerApp.jpserver_extensions", "LabApp.extra_labextensions_path")  # of which there may be others
AGAIN = "jupyter nbconvert --to notebook --execute --inplace notebooks/NN_slug.ipynb"


def lab_command(context: typer.Context, as_json: Json = False) -> None:
    """Open JupyterLab on the notebooks, with a panel that runs the open chapter and shows its claims.

    Arguments go on to `jupyter lab`, and come before what is set here. What you execute is kept in .cache/lab; a
    committed chapter keeps the outputs that it has. With --json the command and the settings are told and nothing is
    started.
    Examples: vlws lab; vlws lab --no-browser --port 9000; vlws lab --json
    """
    if find_spec("jupyterlab") is None:
        raise InputError("JupyterLab is not installed here; pip install 'vlws[lab]'.")
    kept = shown(paths.cache() / "lab")
    said = (
        f"What you execute in Lab is kept in {kept}; a committed chapter keeps the outputs that it has, and `{AGAIN}` "
        "makes them anew (CONTRIBUTING.md)."
    )
    settings = {
        "ServerApp.root_dir": str(paths.notebooks()),
        "ServerApp.contents_manager_class": "vlws.lab.contents.ChapterContents",
        "ServerApp.jpserver_extensions": "vlws.lab.panel=True",
        "LabApp.extra_labextensions_path": str(FRONT_END),
    }
    given = {argument.split("=")[0].replace("--notebook-dir", "--ServerApp.root_dir") for argument in context.args}
    settings = {name: value for name, value in settings.items() if f"--{name}" not in given or name in ADDED}
    options = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "jupyterlab", *options, *context.args]
    if as_json:
        answer(True, {"command": command, "settings": settings, "kept": kept, "said": said}, "")
        return
    print(said, file=sys.stderr, flush=True)
    os.execv(command[0], command)
