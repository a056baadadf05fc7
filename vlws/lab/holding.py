"""Who works on what: one holder per name, on a file system that machines may share.

A hold is a file that only one process can create (O_EXCL, which NFS honours), that its holder touches every `BEAT`
seconds and removes at the end. A holder is dead when its process is gone, as far as this machine can see it, or when
the file was not touched for `STALE` seconds by the clock of the file system (those of two machines may differ). Then
another may take the hold over; a holder that was only asleep finds that out at its next beat (`Hold.lost`).
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from vlws.files import read_json, write_json

FOLDER = ".held"  # in the folder of the runs
BEAT = 15.0  # seconds
STALE = 120.0  # seconds; attributes of files on NFS may be 60 s old


class Hold:
    """What a process holds, until `release` (or the end of the `with` block)."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.token = path, token
        self.lost = threading.Event()  # set where another has taken it over
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True, name=f"hold {path.name[:12]}")
        self._heart.start()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # a file server that is away for a while
                if _told(self.path).get("token") != self.token:
                    self.lost.set()
                    return
                os.utime(self.path)

    def release(self) -> None:
        """Let go; where it was lost, what another holds stays."""
        self._ended.set()
        mark = _mark(self.path, self.token)
        with suppress(OSError):
            try:
                _create(mark, b"")  # none may take it over from here on
            except FileExistsError:
                return  # one is about to
            except OSError:
                mark = self.path  # a full disk
            if _told(self.path).get("token") == self.token:
                self.path.unlink()
            mark.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(folder: Path, name: str, **about: Any) -> Hold | None:
    """Hold a name, or None where a living process holds it; `about` is told to whoever asks for the holder. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    me = _myself() | {"token": secrets.token_hex(8), **about}
    try:
        _create(path, json.dumps(me).encode())
        return Hold(path, me["token"])
    except FileExistsError:
        found = _told(path)
        return None if _lives(path, found) else _take_over(path, found.get("token", ""), me)


def holder(folder: Path, name: str) -> dict[str, Any] | None:
    """Who holds a name: host, pid, token, and what it told about itself; None where nobody does, or a dead one."""
    path = folder / name
    found = _told(path)
    return {"host": "another machine", "pid": 0, "token": ""} | found if _lives(path, found) else None


def _told(path: Path) -> dict[str, Any]:
    """What a hold says; nothing where it is missing, broken, or just being written."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _lives(path: Path, found: Mapping[str, Any]) -> bool:
    """Whether the holder that was found lives; False where the hold is gone."""
    try:
        return process_lives(found) if found.get("where") == _where() else _age(path) < STALE
    except FileNotFoundError:
        return False


def _take_over(path: Path, dead: str, me: dict[str, Any]) -> Hold | None:
    """Take the hold of one that was found dead, if it still is its. Of several that try, the first that marks it."""
    mark = _mark(path, dead)
    try:
        _create(mark, b"")
    except FileExistsError:
        with suppress(FileNotFoundError):
            if _age(mark) > STALE:  # who marked it has died since
                mark.unlink()
        return None
    try:
        if not path.exists() or _told(path).get("token", "") != dead:
            return None
        write_json(path, me)
        return Hold(path, me["token"])
    finally:
        mark.unlink(missing_ok=True)


def _create(path: Path, content: bytes) -> None:
    """A file that was not there; FileExistsError where it was, OSError where the disk takes no more."""
    with open(path, "xb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _mark(path: Path, token: str) -> Path:
    return path.with_name(f"{path.name}.{token or 'broken'}.over")


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system where that takes a file to ask by."""
    touched = path.stat().st_mtime
    probe = path.with_name(f".now.{os.getpid()}-{threading.get_ident()}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    return now - touched


def _myself() -> dict[str, Any]:
    import psutil

    return {
        "where": _where(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
    }


def _where() -> str:
    """This machine and, in a container, its own numbering of processes."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def process_lives(found: Mapping[str, Any]) -> bool:
    """Whether the process `pid` of this machine, begun at `pid_started`, is there and no zombie."""
    import psutil

    try:
        process = psutil.Process(found["pid"])
        return abs(process.create_time() - found["pid_started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError):
        return False
