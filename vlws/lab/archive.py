"""An archive of `vlws pack`, which may come from anywhere: refused, checked, and unpacked.

Nothing is written before all of it was looked at: names that stay within the folder, no links, declared sizes within
LIMIT, every member listed in ro-crate-metadata.json with its sha256, and nothing missing.
"""

import hashlib
import json
import os
import shlex
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import records, seal, verify
from vlws.lab.checks import OK, Check, of_evidence, outputs, told
from vlws.lab.pack import METADATA
from vlws.lab.seal import Evidence

LIMIT = 2_000_000_000  # bytes of all members, as declared
MEMBERS = 50_000


def verify_archive(path: Path) -> dict[str, Any]:
    """The checks of an archive, as `verify.verify` gives them: its hashes, then each run, result and page within."""
    with tempfile.TemporaryDirectory(prefix="vlws-") as folder:
        with _opened(path) as archive:
            hashes = _checked(path.name, archive)
            _write(archive, Path(folder))
        fine = f"{len(hashes)} members have the sha256 that {METADATA} lists"
        runs, checks = _within(Path(folder))
        return verify.summary(str(path), "archive", runs, [Check("members", OK, fine), *checks])


def verify_folder(path: Path) -> dict[str, Any]:
    """The checks of an archive that was unpacked: its files against the metadata, then each run, result and page."""
    listed = _listed(path.name, (path / METADATA).read_bytes())
    wrong = [_wrong(path, name) for name, sha in listed.items() if _hash(path / name) != sha]
    runs, checks = _within(path)
    members = told("members", wrong, f"{len(listed)} members have the sha256 that {METADATA} lists")
    return verify.summary(str(path), "unpacked archive", runs, [*members, *checks])


def _hash(path: Path) -> str:
    return seal.sha256(path.read_bytes()) if path.is_file() else ""


def _wrong(folder: Path, name: str) -> str:
    return f"{name} is {'not as it was packed' if (folder / name).is_file() else 'missing'}"


def unpack(path: Path, folder: Path) -> dict[str, Any]:
    """Check an archive and write it as a folder; of code that is kept as differences, all of it.

    Returns what `verify_archive` does, with `folder`, and in `again` the commands within the folder. Raises InputError
    where the folder holds something, or the archive is refused; then nothing is written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something; give a new or an empty folder.")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder.absolute().parent} is no folder.")
    done = verify_archive(path)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.absolute().parent))
    try:
        made.chmod(0o755)
        with _opened(path) as archive:
            _checked(path.name, archive)
            _write(archive, made)
        where = _complete(made)
        if folder.exists():
            folder.rmdir()
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    places = {run: shlex.quote(str(folder / where.get(run, "code"))) for run in done["again"]}
    again = [f"cd {place} && ./just run {run.removeprefix('vlws run ')}" for run, place in places.items()]
    return done | {"folder": str(folder), "again": again}


# --- refused ----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; InputError for what is none, and for a member that cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is no zip archive that can be read: {error}.") from None
    except FileNotFoundError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _checked(name: str, archive: zipfile.ZipFile) -> dict[str, str]:
    """Member -> sha256 of an archive whose members are all as its metadata lists them; else InputError."""
    infos = archive.infolist()
    declared = sum(info.file_size for info in infos)
    if declared > LIMIT or len(infos) > MEMBERS:
        raise InputError(
            f"{name} declares {declared:,} bytes in {len(infos):,} members; "
            f"at most {LIMIT:,} in {MEMBERS:,} are unpacked."
        )
    for info in infos:
        _refuse_member(name, info)
    names = [info.filename for info in infos]
    if len(set(names)) < len(names):
        raise InputError(f"{name} holds a member twice.")
    if METADATA not in names:
        raise InputError(f"{name} is no archive of `vlws pack`: it has no {METADATA}.")
    listed = _listed(name, archive.read(METADATA))
    if missing := sorted({METADATA, *listed} ^ set(names)):
        raise InputError(f"{name}: {missing[0]} is {'not listed' if missing[0] in names else 'listed, and missing'}.")
    for member, wanted in listed.items():
        if _sha256(archive, member) != wanted:
            raise InputError(f"{name}: {member} has another sha256 than {METADATA} lists.")
    return listed


def _sha256(archive: zipfile.ZipFile, member: str) -> str:
    found = hashlib.sha256()
    with archive.open(member) as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _refuse_member(name: str, info: zipfile.ZipInfo) -> None:
    path = info.filename
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or ":" in parts[0] or {"", ".", ".."} & set(parts) or "\0" in path:
        raise InputError(f"{name} holds the path {path!r}, which could lead outside its folder.")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise InputError(f"{name}: {path} is a link or another thing that is no plain file.")


def _listed(name: str, data: bytes) -> dict[str, str]:
    """Member -> sha256, of the File entities of the metadata."""
    try:
        graph = json.loads(data)["@graph"]
        files = [one for one in graph if one["@type"] == "File"]
        return {unquote(one["@id"]): str(one["sha256"]) for one in files}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{name}: {METADATA} is no RO-Crate metadata that lists files with their sha256.") from None


def _write(archive: zipfile.ZipFile, folder: Path) -> None:
    """Every member as a file below a folder; `_checked` has been called."""
    for info in archive.infolist():
        target = folder.joinpath(*PurePosixPath(info.filename).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
        target.chmod(0o755 if (info.external_attr >> 16) & 0o100 else 0o644)


# --- checked ----------------------------------------------------------------------------------------------------------


def _within(folder: Path) -> tuple[list[Evidence], list[Check]]:
    """What is known of each run and result of an unpacked archive, and their checks."""
    runs: list[Evidence] = []
    checks: list[Check] = []
    for path in sorted(folder.glob("reports/results/*/*.json")):
        one = seal.of_result(seal.read_result(path))
        runs.append(one)
        checks += of_evidence(one)
    for path in sorted(folder.glob("runs/*/*/run.json")):
        one = _run(path)
        runs.append(one)
        found = [*of_evidence(one), *outputs(path.parent)]
        page = path.with_name("notebook.html")
        if page.is_file() and seal.ELEMENT.search(page.read_text(encoding="utf-8", errors="replace")):
            sealed = seal.unseal(page.name, page.read_bytes())
            found += [*verify.of_hashes(sealed), *verify.of_tables(sealed), *verify.same_as(sealed, one)]
        checks += [Check(c.check, c.result, c.said, one["run"].get("run_id")) for c in found]
    return runs, checks


def _run(path: Path) -> Evidence:
    record = read_json(path)
    if not records.is_record(record):
        raise InputError(f"{path.parent.name}/{path.name} is no record of a run.")
    return seal.of_run(record | {"folder": str(path.parent)})


def _complete(folder: Path) -> dict[str, str]:
    """Fill up the folders of code that hold differences alone; command -> the folder of the code that it is run in."""
    for path in sorted(folder.glob("code-*.json")):
        tree, listed = path.with_suffix(""), read_json(path)
        if not isinstance(listed, dict):
            raise InputError(f"{path.name} is no list of the files of a commit.")
        for name, wanted in listed.items():
            target, same = tree / name, folder / "code" / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{path.name} lists the path {name!r}, which leads outside its folder.")
            if not target.exists() and same.is_file() and seal.sha256(same.read_bytes()) == wanted:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(same, target)
    return _folders_of_code(read_json(folder / METADATA))


def _folders_of_code(metadata: Mapping[str, Any]) -> dict[str, str]:
    actions = [one for one in metadata["@graph"] if one["@type"] == "CreateAction"]
    try:
        return {str(one["description"]): one["instrument"]["@id"].rstrip("/") for one in actions}
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{METADATA} does not say with which code a run was made.") from None
