"""The library's reference as pages of the report, made by pdoc from the docstrings."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path

from vlws import paths
from vlws.lab import page
from vlws.lab.describe import clip

MODULES = ("vlws", "vlws_kernels")
LEFT_OUT = ("vlws.lab", "vlws.data.emoji_world")  # the machinery, and the generators of toy data
TEMPLATES = page.TEMPLATE / "api"
SECONDS = 300  # beyond that pdoc hangs: it takes ten


def write_api(made: Path) -> str:
    """Write the reference below `api/` of the report's folder; the address of its first page, "" where there is none.

    There is none where pdoc is not installed or fails, which is told on stderr: the report is what it is without it.
    The pages are kept in the cache (`.cache/api/`) until the code, the template or pdoc changes, because pdoc imports
    all that it documents.
    """
    try:
        version = metadata.version("pdoc")
    except metadata.PackageNotFoundError:
        return ""
    kept = paths.cache() / "api" / _key(version)
    if not kept.is_dir() and (wrong := _make(kept)):
        print(f"the report has no API reference: {wrong}", file=sys.stderr)
        return ""
    shutil.copytree(kept, made / "api")
    return "api/index.html"


def _key(version: str) -> str:
    """Hash of what the pages are made of."""
    h = hashlib.sha256(repr((version, MODULES, LEFT_OUT)).encode())
    for folder in (*_folders(), TEMPLATES):
        for file in sorted(f for f in folder.rglob("*") if f.suffix in (".py", ".jinja2", ".css")):
            h.update(file.relative_to(folder).as_posix().encode() + b"\0")
            h.update(file.read_bytes())
    return h.hexdigest()[:16]


def _folders() -> list[Path]:
    """Where the documented packages lie; none is imported for it."""
    found = [util.find_spec(name) for name in MODULES]
    return [Path(spec.origin).parent for spec in found if spec is not None and spec.origin]


def _make(kept: Path) -> str:
    """Run pdoc in a process of its own; what went wrong, or nothing."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{kept.name}-", dir=kept.parent))
    excluded = [f"!{name}" for name in LEFT_OUT]
    command = [sys.executable, "-m", "pdoc", "--docformat", "google", "--no-show-source", "--no-include-undocumented"]
    command += ["--template-directory", str(TEMPLATES), "--output-directory", str(made), *MODULES, *excluded]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode or not (made / "index.html").is_file():
            return clip((done.stderr.strip().splitlines() or ["pdoc wrote no page"])[-1], 300)
        _without_folders(made)
        made.chmod(0o755)
        for old in kept.parent.glob("[!.]*"):
            shutil.rmtree(old, ignore_errors=True)
        os.replace(made, kept)
    except subprocess.TimeoutExpired:
        return f"pdoc took more than {SECONDS} s"
    except OSError as error:  # another process made the same pages, or the disk is full
        return "" if kept.is_dir() else str(error)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return ""


def _without_folders(made: Path) -> None:
    """Defaults that are paths, without where on this machine the packages lie."""
    for file in made.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        for folder in _folders():
            text = text.replace(f"{folder.parent}{os.sep}", "")
        file.write_text(text, encoding="utf-8")
