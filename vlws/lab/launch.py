"""The kernel of a run: `python -m vlws.lab.launch -f CONNECTION`, as the specification in `vlws.lab.kernel` says.

IPython's kernel without what a machine or a user has set up for interactive work (startup files, profiles, settings of
the whole system), which would change what a chapter prints, or stop it. First it writes down which versions it has, for
the run's record: it is this process that computes, not the one that started it.
"""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

VERSIONS = "versions.json"  # in the run's folder, until the record holds it
PACKAGES = ("torch", "transformers", "pykeops")


def versions() -> dict[str, str | None]:
    """The versions of Python and of what computes, without importing it; None for what is not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Run the kernel until it is told to stop."""
    if sys.path[0] == "" or Path(sys.path[0]) == Path.cwd():  # where no library is looked for, until it is loaded
        del sys.path[0]
    Path(os.environ["VLWS_RUN"], VERSIONS).write_text(json.dumps(versions()), encoding="utf-8")

    if asked := os.environ.get("VLWS_ONLY"):
        from vlws.lab import only

        only.install(asked)
    if asked := os.environ.get("VLWS_TUNE"):
        from vlws.lab import tuned

        tuned.install(asked)

    from ipykernel import kernelapp
    from IPython.core import application

    application.SYSTEM_CONFIG_DIRS.clear()
    application.ENV_CONFIG_DIRS.clear()
    kernelapp.launch_new_instance()


if __name__ == "__main__":
    main()
