"""Runs and published results as one archive, with all that they were made from: `vlws pack`.

    reports/results/NN_slug/PRESET.json    published results
    runs/NN_slug/RUN/...                   run records, measures, executed notebooks, pages
    code/...                               the tracked files of the checkout, with data and constraints.txt
    code-SHA/... and code-SHA.json         of a run that this code did not make: what its commit has other than `code/`,
                                           and file -> sha256 of that commit
    environment.json                       Python, packages and hardware of each run
    ro-crate-metadata.json                 RO-Crate 1.1: every file with its sha256, every run as an action

The same input gives the same bytes (with the same zlib).
"""

import hashlib
import io
import mimetypes
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vlws import paths
from vlws.errors import InputError
from vlws.files import write_atomically
from vlws.lab import compare, evidence, records, seal
from vlws.lab.verify import command_of

METADATA = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/crate/1.1"
LICENSE = "https://spdx.org/licenses/MIT"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every member: an archive holds no time of its making
LEFT_OUT = ("job.json", "stdout.log", "stderr.log")  # files of a run that tell of the machine


@dataclass
class Member:
    """A file of an archive."""

    data: bytes
    executable: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass
class Contents:
    """What goes into an archive: its files, and its runs, each with the code it was made with and its files."""

    members: dict[str, Member] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # run_id -> record, code (a folder), files
    trees: dict[str, str] = field(default_factory=dict)  # folder of code -> what it is, in words


def pack(targets: Sequence[str], out: Path, *, published: bool = False) -> dict[str, Any]:
    """Write runs (as `vlws compare` names them) or all published results as an archive, with their code.

    Returns {out, bytes, sha256, members, runs}. Raises InputError where nothing is named, where a run is not kept in a
    folder or as a result, and outside a git checkout, which alone knows the files that are code.
    """
    if bool(targets) == published:
        raise InputError("name the runs to pack, or give --published for all published results; one of the two.")
    if out.suffix != ".zip":
        raise InputError(f"{out} does not end in .zip.")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder.")
    code = _working_tree()
    contents = Contents({f"code/{name}": member for name, member in code.items()})
    contents.trees["code"] = _named(records.git_state())
    for record in [result["run"] for result in evidence.published()] if published else compare.find(targets):
        _add_run(contents, record, code)
    of_runs = {run_id: run["record"].get("env") or {} for run_id, run in contents.runs.items()}
    contents.members["environment.json"] = Member(seal.as_file(of_runs))
    contents.members[METADATA] = Member(seal.as_file(metadata(contents)))
    data = _zipped(contents.members)
    write_atomically(out, data)
    done = {"out": str(out), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return done | {"members": len(contents.members), "runs": list(contents.runs)}


def _zipped(members: Mapping[str, Member]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system = 3  # Unix, whose modes follow
            info.external_attr = (0o100755 if members[name].executable else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, members[name].data)
    return target.getvalue()


def _add_run(contents: Contents, record: Mapping[str, Any], code: Mapping[str, Member]) -> None:
    """The files of a run, its published result where there is one, and its code."""
    run_id, slug = record["run_id"], record["slug"]
    if not record.get("key"):
        raise InputError(f"{slug} at preset {record['preset']} is a notebook as committed, and no run to pack.")
    files: dict[str, Member] = {}
    for kept in records.records(slug):
        if kept["run_id"] == run_id:
            folder = Path(kept["folder"])
            for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in LEFT_OUT):
                files[f"runs/{slug}/{run_id}/{file.relative_to(folder).as_posix()}"] = Member(file.read_bytes())
    for result in evidence.published(slug):
        if result["run"].get("run_id") == run_id:
            file = seal.result_file(slug, result["run"]["preset"])
            files[f"reports/results/{slug}/{file.name}"] = Member(file.read_bytes())
    contents.members |= files
    where = "code" if not records.is_stale(record) else _add_commit(contents, record, code)
    contents.runs[run_id] = {"record": record, "code": where, "files": sorted(files)}


# --- code -------------------------------------------------------------------------------------------------------------


def _git(*arguments: str) -> bytes:
    asked = subprocess.run(["git", "-C", str(paths.root()), *arguments], capture_output=True)
    if asked.returncode:
        raise InputError(f"git {arguments[0]}: {asked.stderr.decode(errors='replace').strip().splitlines()[-1]}.")
    return asked.stdout


def _working_tree() -> dict[str, Member]:
    """The tracked files of the checkout as they are on disk; those that were deleted are left out."""
    found = {}
    for line in _git("ls-files", "-s", "-z").decode().split("\0")[:-1]:
        about, name = line.split("\t", 1)
        file = paths.root() / name
        if file.is_file() and not file.is_symlink():
            found[name] = Member(file.read_bytes(), about.startswith("100755"))
    return found


def _add_commit(contents: Contents, record: Mapping[str, Any], code: Mapping[str, Member]) -> str:
    """The code of a run's commit, as what differs from `code/` and a list of all; the folder that it is in."""
    git = record.get("git") or {}
    if not git.get("sha"):
        raise InputError(f"the code at hand did not make {record['run_id']}, and its commit is not recorded.")
    folder = f"code-{git['sha'][:12]}"
    if folder in contents.trees:
        return folder
    known = {_blob(member.data): name for name, member in code.items()}
    listed = {}
    for line in _git("ls-tree", "-r", "-z", git["sha"]).decode().split("\0")[:-1]:
        about, name = line.split("\t", 1)
        mode, kind, blob = about.split()
        if kind != "blob" or mode == "120000":
            continue
        if known.get(blob) == name:
            listed[name] = code[name].sha256
        else:
            member = Member(_git("cat-file", "blob", blob), mode == "100755")
            contents.members[f"{folder}/{name}"], listed[name] = member, member.sha256
    contents.members[f"{folder}.json"] = Member(seal.as_file(listed))
    contents.trees[folder] = _named(git)
    return folder


def _blob(data: bytes) -> str:
    """The name that git gives to a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _named(git: Mapping[str, Any] | None) -> str:
    sha = (git or {}).get("sha") or "unknown"
    return f"commit {sha}" + (", with changes" if (git or {}).get("dirty") else "")


# --- RO-Crate ---------------------------------------------------------------------------------------------------------


def metadata(contents: Contents) -> dict[str, Any]:
    """The archive's RO-Crate 1.1 metadata, as JSON-LD: root, files with hashes, folders of code, runs as actions."""
    ended = max((str(run["record"].get("ended") or "") for run in contents.runs.values()), default="")
    titles = "; ".join(f"{run['record']['slug']} at {run['record']['preset']}" for run in contents.runs.values())
    actions = [_action(run_id, run) for run_id, run in contents.runs.items()]
    inside = {folder: [n for n in contents.members if n.startswith(f"{folder}/")] for folder in contents.trees}
    in_code = {name for names in inside.values() for name in names}
    outside = [name for name in contents.members if name not in in_code]
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": "vlws: measured claims of vision-language papers",
        "description": f"Runs with their records, measures, notebooks and code: {titles}.",
        "datePublished": ended[:10] or "1980-01-01",
        "license": {"@id": LICENSE},
        "hasPart": [_ref(name) for name in [*sorted(outside), *(f"{folder}/" for folder in inside)]],
        "mentions": [{"@id": action["@id"]} for action in actions],
    }
    folders = [
        {
            "@id": f"{folder}/",
            "@type": ["Dataset", "SoftwareSourceCode"],
            "name": f"vlws, {contents.trees[folder]}",
            "programmingLanguage": "Python",
            "hasPart": [_ref(name) for name in sorted(names)],
        }
        for folder, names in inside.items()
    ]
    about = {"@id": METADATA, "@type": "CreativeWork", "conformsTo": {"@id": PROFILE}, "about": {"@id": "./"}}
    licence = {"@id": LICENSE, "@type": "CreativeWork", "name": "MIT License"}
    files = [_file(name, contents.members[name]) for name in sorted(contents.members)]
    context = [f"{PROFILE}/context", {"sha256": "https://schema.org/sha256"}]
    return {"@context": context, "@graph": [about, root, *folders, *actions, licence, *files]}


def _action(run_id: str, run: Mapping[str, Any]) -> dict[str, Any]:
    record = run["record"]
    found = {
        "@id": f"#{quote(run_id)}",
        "@type": "CreateAction",
        "name": f"{record['slug']} at preset {record['preset']}",
        "description": command_of(record),
        "instrument": {"@id": f"{run['code']}/"},
        "result": [_ref(name) for name in run["files"]],
        "startTime": record.get("started"),
        "endTime": record.get("ended"),
    }
    return {name: value for name, value in found.items() if value}


def _ref(name: str) -> dict[str, str]:
    return {"@id": quote(name)}


def _file(name: str, member: Member) -> dict[str, Any]:
    kind = "application/x-ipynb+json" if name.endswith(".ipynb") else mimetypes.guess_type(name)[0]
    found = {"@id": quote(name), "@type": "File", "name": name.rpartition("/")[2]}
    found |= {"contentSize": str(len(member.data)), "sha256": member.sha256}
    return found | ({"encodingFormat": kind} if kind else {})
