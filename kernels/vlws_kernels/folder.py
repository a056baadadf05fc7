"""The folder of compiled formulas: where it lies, and held by one process at a time while somebody compiles."""

import contextlib
import functools
import hashlib
import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


class CompileError(RuntimeError):
    """KeOps cannot compile a formula; the message tells why, or holds the compiler's words."""


def cache_folder() -> Path:
    """Where compiled formulas are kept: `$KEOPS_CACHE_FOLDER`, or `vlws_kernels` in the user's cache folder.

    Where that path holds a space or another character that a shell reads as its own, it is a link to that folder, in
    the system's folder for temporary files: KeOps does not quote the paths in its commands.
    """
    given = os.environ.get("KEOPS_CACHE_FOLDER")
    if given:
        return _shell_safe(Path(given))
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "vlws_kernels"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # a read-only home: compile for this login only
        folder = _temporary() / f"vlws_kernels-{os.getuid()}"
    return _shell_safe(folder)


def _temporary() -> Path:
    """The system's folder for temporary files, or /tmp where a shell would not take its name as it is."""
    folder = tempfile.gettempdir()
    return Path(folder if shlex.quote(folder) == folder else "/tmp")


@functools.cache
def _shell_safe(folder: Path) -> Path:
    """The folder, or a link to it whose path needs no quotes."""
    if shlex.quote(str(folder)) == str(folder):
        return folder
    folder = folder.absolute()
    link = _temporary() / f"vlws_kernels-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(folder, target_is_directory=True)
        if link.lstat().st_uid == os.getuid() and link.resolve() == folder.resolve():
            return link
    except OSError as error:
        raise CompileError(f"the folder of compiled kernels {folder} cannot be used ({error}).") from error
    return Path(tempfile.mkdtemp(prefix="vlws_kernels-", dir=_temporary()))  # someone else's stands there


@contextlib.contextmanager
def locked() -> Iterator[Path]:
    """Hold the cache folder alone among processes; a compilation that was killed before leaves nothing behind.

    KeOps takes a file's existence for its completeness. A marker stands while somebody compiles: who gets the lock and
    finds a marker removes the formulas written to since. Raises CompileError where nothing can be written there.
    """
    import fcntl

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise CompileError(f"the folder of compiled kernels {folder} cannot be used ({error}).") from error
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, also when the process dies
        marker = folder / "compiling"
        if marker.exists():
            since = marker.stat().st_mtime
            files = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
            tags = {_tag(path) for path in files if path.stat().st_mtime >= since}
            for path in files:
                if _tag(path) in tags:
                    path.unlink()
        marker.touch()
        os.utime(marker, (time.time() - 1.0,) * 2)
        yield folder
        marker.unlink()


def _tag(path: Path) -> str:
    """The hash by which KeOps names all files of one formula."""
    return path.name.removeprefix("pykeops_cpp_").split(".")[0]
