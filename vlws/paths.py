"""Where the workspace's folders are, whatever the working directory of the process.

papermill runs in the shell's directory, JupyterLab and nbval in the notebook's: nothing may hang on it. Only a package
that is installed outside a checkout takes the checkout that the working directory lies in.
"""

import os
from pathlib import Path

from vlws.errors import InputError


def root() -> Path:
    """The workspace: `$VLWS_ROOT`; else the checkout that holds this package; else the one that we are in.

    A workspace has a `notebooks/` folder; above the working directory, where any project may have one, it is known by
    `notebooks/claims/`. Raises InputError where there is none.
    """
    given = os.environ.get("VLWS_ROOT")
    path = Path(given).expanduser().resolve() if given else Path(__file__).resolve().parents[1]
    if (path / "notebooks").is_dir():
        return path
    here = Path.cwd()
    around = [] if given else [folder for folder in (here, *here.parents) if (folder / "notebooks" / "claims").is_dir()]
    if around:
        return around[0]
    looked = "" if given else f", and {here} lies in none"
    raise InputError(
        f"{path} is no vlws workspace (it has no notebooks/ folder){looked}; set VLWS_ROOT to a checkout of vlws."
    )


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
