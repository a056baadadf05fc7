"""Where the workspace's folders are, whatever the working directory of the process.

papermill runs in the shell's directory, JupyterLab and nbval in the notebook's: nothing may hang on it.
"""

import os
from pathlib import Path

from vlws.errors import InputError


def root() -> Path:
    """The workspace: `$VLWS_ROOT`, or the checkout that holds this package and a `notebooks/` folder."""
    given = os.environ.get("VLWS_ROOT")
    path = Path(given).expanduser().resolve() if given else Path(__file__).resolve().parents[1]
    if not (path / "notebooks").is_dir():
        raise InputError(f"{path} is no vlws workspace (it has no notebooks/ folder); set VLWS_ROOT to a checkout.")
    return path


def notebooks() -> Path:
    """`notebooks/`: the registry of chapters."""
    return root() / "notebooks"


def runs() -> Path:
    """`runs/`, or `$VLWS_RUNS`: one folder a run."""
    return Path(os.environ.get("VLWS_RUNS") or root() / "runs").expanduser().resolve()


def cache() -> Path:
    """`.cache/`, or `$VLWS_CACHE`: experiment cells and features, keyed by what made them; always safe to delete."""
    return Path(os.environ.get("VLWS_CACHE") or root() / ".cache").expanduser().resolve()


def reports() -> Path:
    """`reports/`: template, committed results, and the site."""
    return root() / "reports"
