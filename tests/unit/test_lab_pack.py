"""An archive holds what its runs were made from, says so as RO-Crate, and is believed only as far as it checks."""

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest

from vlws.errors import InputError
from vlws.files import read_json, write_json
from vlws.lab import archive, cli, evidence, pack, page, records

HERE = Path(__file__).parents[2]


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", root, *who, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def run_id(measured) -> str:
    """A run in a checkout, published, whose code is committed."""
    (measured / ".gitignore").write_text("runs/\n.cache/\n")
    (measured / "just").write_text("#!/bin/sh\n")
    (measured / "just").chmod(0o755)
    (measured / "a file, with a name.txt").write_text("words\n")
    evidence.publish("04", "cpu")
    (folder,) = (measured / "runs" / "04_cmg").iterdir()
    (folder / "stderr.log").write_text(f"{measured}\n")
    git(measured, "init", "-q")
    git(measured, "add", "-A")
    git(measured, "commit", "-q", "-m", "all")
    record = read_json(folder / "run.json") | {"git": records.git_state()}
    write_json(folder / "run.json", record)
    evidence.publish("04", "cpu")
    return folder.name


@pytest.fixture
def packed(run_id, tmp_path) -> Path:
    pack.pack([run_id], tmp_path / "a.zip")
    return tmp_path / "a.zip"


def graph(path: Path) -> dict[str, dict]:
    with zipfile.ZipFile(path) as file:
        return {one["@id"]: one for one in json.loads(file.read(pack.METADATA))["@graph"]}


def differing(found: dict) -> list[str]:
    return [one["said"] for one in found["checks"] if one["result"] == "differs"]


def rewritten(path: Path, change) -> Path:
    """The archive with its members (name -> bytes) changed, and the metadata's hashes made again."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    files = {name: pack.Member(data) for name, data in members.items() if name != pack.METADATA}
    metadata = json.loads(members[pack.METADATA])
    for one in metadata["@graph"]:
        if one["@type"] == "File" and unquote(one["@id"]) in files:
            one["sha256"] = files[unquote(one["@id"])].sha256
    with zipfile.ZipFile(path, "w") as file:
        for name, data in (members | {pack.METADATA: json.dumps(metadata).encode()}).items():
            file.writestr(name, data)
    return path


# --- what it holds ----------------------------------------------------------------------------------------------------


def test_it_holds_results_runs_code_and_environment(packed, run_id):
    with zipfile.ZipFile(packed) as file:
        names = file.namelist()
        assert json.loads(file.read("environment.json"))[run_id]["python"] == "3.11.7"
    of_run = [f"runs/04_cmg/{run_id}/{name}" for name in ("run.json", "measures.json", "gates.json", "notebook.ipynb")]
    code = ["code/notebooks/04_cmg.ipynb", "code/notebooks/claims/04_cmg.yaml", "code/constraints.txt"]
    assert {*of_run, *code, "reports/results/04_cmg/cpu.json", "code/a file, with a name.txt"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if name.endswith(".log") or ".git/" in name or ".cache" in name]


def test_the_same_input_gives_the_same_bytes(packed, run_id, tmp_path):
    os.utime(tmp_path / "workspace" / "constraints.txt", (1, 1))
    done = pack.pack([run_id], tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == packed.read_bytes()
    assert done["sha256"] == pack.Member(packed.read_bytes()).sha256


def test_the_metadata_is_an_ro_crate(packed, run_id):
    with zipfile.ZipFile(packed) as file:
        metadata = json.loads(file.read(pack.METADATA))
        names = set(file.namelist())
    entities = graph(packed)
    assert metadata["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    assert len(entities) == len(metadata["@graph"]), "each @id once"
    about = entities[pack.METADATA]
    assert (about["conformsTo"], about["about"]) == ({"@id": "https://w3id.org/ro/crate/1.1"}, {"@id": "./"})
    root = entities["./"]
    assert {"name", "description", "datePublished", "license", "hasPart"} <= root.keys()
    assert root["@type"] == "Dataset"
    assert root["datePublished"] == "2026-01-01"
    files = {unquote(id) for id, one in entities.items() if one["@type"] == "File"}
    assert files == names - {pack.METADATA}
    parts = {unquote(part["@id"]) for id in ("./", "code/") for part in entities[id]["hasPart"]}
    assert parts - {"code/"} == files, "every file is a part of the root or of the code"
    action = entities[f"#{run_id}"]
    assert action["@type"] == "CreateAction"
    assert action["description"] == "vlws run 04"
    assert action["instrument"] == {"@id": "code/"}
    references = [value for one in metadata["@graph"] for value in one.values() if isinstance(value, dict | list)]
    flat = [ref for value in references for ref in (value if isinstance(value, list) else [value])]
    known = {*entities, "https://w3id.org/ro/crate/1.1"}
    assert {ref["@id"] for ref in flat if isinstance(ref, dict)} <= known, "no reference to what is not there"


def test_code_that_did_not_make_the_run_is_left_to_its_commit(run_id, measured, tmp_path):
    book = read_json(measured / "notebooks" / "04_cmg.ipynb")
    next(c for c in book["cells"] if c["cell_type"] == "code")["source"].append("\nmore: int = 1  # a parameter")
    write_json(measured / "notebooks" / "04_cmg.ipynb", book)
    pack.pack([run_id], tmp_path / "a.zip")
    sha = git(measured, "rev-parse", "HEAD").strip()
    folder = f"code-{sha[:12]}"
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        own = {name.removeprefix(f"{folder}/") for name in file.namelist() if name.startswith(f"{folder}/")}
        assert own == {"notebooks/04_cmg.ipynb", "reports/results/04_cmg/cpu.json"}, "what is not as in code/"
        assert b"more: int" in file.read("code/notebooks/04_cmg.ipynb")
    assert graph(tmp_path / "a.zip")[f"#{run_id}"]["instrument"] == {"@id": f"{folder}/"}
    found = archive.unpack(tmp_path / "a.zip", tmp_path / "out")
    tree = tmp_path / "out" / folder
    assert sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()) == sorted(
        git(measured, "ls-tree", "-r", "--name-only", "-z", "HEAD").split("\0")[:-1]
    )
    assert found["again"] == [f"cd {tree} && ./just run 04"]
    assert stat.S_IMODE((tree / "just").stat().st_mode) == 0o755


def test_what_cannot_be_packed_is_refused(run_id, measured, tmp_path):
    def refused(said, *arguments, **more):
        with pytest.raises(InputError, match=said):
            pack.pack(*arguments, **more)
        assert not (tmp_path / "a.zip").exists()

    refused("name the runs", [], tmp_path / "a.zip")
    refused("one of the two", [run_id], tmp_path / "a.zip", published=True)
    refused("does not end in .zip", [run_id], tmp_path / "a.tar")
    refused("is no folder", [run_id], tmp_path / "none" / "a.zip")
    refused("no run answers", ["20990101"], tmp_path / "a.zip")
    shutil.rmtree(measured / "runs")
    shutil.rmtree(measured / "reports")
    refused("and no run to pack", ["04@cpu"], tmp_path / "a.zip")
    shutil.rmtree(measured / ".git")
    refused("git ls-files: .*not a git repository", ["04@cpu"], tmp_path / "a.zip")


def test_published_results_are_packed_without_their_runs(run_id, measured, tmp_path):
    shutil.rmtree(measured / "runs")
    done = pack.pack([], tmp_path / "a.zip", published=True)
    assert done["runs"] == [run_id]
    assert differing(archive.verify_archive(tmp_path / "a.zip")) == []


# --- checked ----------------------------------------------------------------------------------------------------------


def test_an_unpacked_folder_is_verified(packed, tmp_path, monkeypatch, capsys):
    archive.unpack(packed, tmp_path / "out")

    def verified():
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["vlws", "verify", str(tmp_path / "out"), "--json"])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, json.loads(capsys.readouterr().out)

    code, told = verified()
    assert (code, told["kind"], told["ok"]) == (0, "unpacked archive", True)
    (tmp_path / "out" / "code" / "constraints.txt").write_text("torch==0\n")
    (tmp_path / "out" / "environment.json").unlink()
    code, told = verified()
    said = [check["said"] for check in told["checks"] if check["check"] == "members"]
    assert (code, sorted(said)) == (1, ["code/constraints.txt is not as it was packed", "environment.json is missing"])


def test_an_archive_is_verified_and_unpacked(packed, measured, run_id, tmp_path, monkeypatch, capsys):
    found = archive.verify_archive(packed)
    assert found["ok"]
    assert [one["check"] for one in found["checks"]].count("intervals and verdicts") == 2  # the result, and the run
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["vlws", "unpack", str(packed), str(tmp_path / "out"), "--json"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code in (0, None)
    told = json.loads(capsys.readouterr().out)
    assert told["again"] == [f"cd {tmp_path / 'out' / 'code'} && ./just run 04"]
    assert (tmp_path / "out" / "code" / "constraints.txt").read_text() == (measured / "constraints.txt").read_text()
    assert read_json(tmp_path / "out" / "runs" / "04_cmg" / run_id / "run.json")["run_id"] == run_id
    with pytest.raises(InputError, match="holds something; give a new or an empty folder"):
        archive.unpack(packed, tmp_path / "out")


def test_an_edited_member_is_found_though_its_hash_fits(packed, run_id):
    name = f"runs/04_cmg/{run_id}/measures.json"

    def change(members):
        measures = json.loads(members[name])
        measures[1]["values"][0] += 0.1
        members[name] = json.dumps(measures).encode()

    found = archive.verify_archive(rewritten(packed, change))
    assert not found["ok"]
    assert any("its values say" in said for said in differing(found))
    assert any("the outputs of notebook.ipynb" in said for said in differing(found))


def test_an_edited_page_in_an_archive_is_found(run_id, measured, tmp_path):
    folder = measured / "runs" / "04_cmg" / run_id
    page.export(folder / "notebook.ipynb", folder / "notebook.html")
    pack.pack([run_id], tmp_path / "a.zip")
    assert archive.verify_archive(tmp_path / "a.zip")["ok"]

    def change(members):
        name = f"runs/04_cmg/{run_id}/notebook.html"
        members[name] = members[name].replace(b'<span class="interval">[', b'<span class="interval">[-', 1)

    assert any(
        "the page shows" in said for said in differing(archive.verify_archive(rewritten(tmp_path / "a.zip", change)))
    )


# --- refused ----------------------------------------------------------------------------------------------------------


def written(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "a") as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("runs/link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


REFUSED = {
    "a path above": (
        lambda path: written(path, ("../evil", b"x")),
        r"holds the path '\.\./evil', which could lead outside",
    ),
    "a path above, within": (lambda path: written(path, ("code/../../evil", b"x")), "could lead outside"),
    "an absolute path": (lambda path: written(path, ("/tmp/evil", b"x")), "could lead outside"),
    "a path of Windows": (lambda path: written(path, ("C:/evil", b"x")), "could lead outside"),
    "a backslash": (lambda path: written(path, ("..\\evil", b"x")), "could lead outside"),
    "a folder": (lambda path: written(path, ("runs/empty/", b"")), "could lead outside"),
    "a link": (lambda path: written(path, (link(), b"/etc/passwd")), "is a link or another thing"),
    "a member that is not listed": (lambda path: written(path, ("more.txt", b"x")), "more.txt is not listed"),
    "a member that is missing": (
        lambda path: rewritten(path, lambda members: members.pop("environment.json")),
        "environment.json is listed, and missing",
    ),
    "no metadata": (lambda path: written(path.with_name("b.zip"), ("a.txt", b"x")), "it has no ro-crate-metadata.json"),
    "other metadata": (
        lambda path: written(path.with_name("b.zip"), (pack.METADATA, b'{"@graph": 3}')),
        "is no RO-Crate metadata",
    ),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_an_archive_that_may_do_harm_is_refused_and_nothing_written(packed, tmp_path, change, said):
    path = change(packed)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=said) as refused:
        archive.unpack(path, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before
    assert not Path("/tmp/evil").exists()


def test_a_member_with_another_hash_is_refused(packed, tmp_path):
    with zipfile.ZipFile(packed) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(packed, "w") as file:
        for name, data in members.items():
            file.writestr(name, data + b" " * (name == "code/just"))
    with pytest.raises(InputError, match=r"code/just has another sha256 than ro-crate-metadata\.json lists"):
        archive.unpack(packed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_member_twice_is_refused(packed):
    with pytest.warns(UserWarning, match="Duplicate name"):
        written(packed, ("code/just", b"x"))
    with pytest.raises(InputError, match="holds a member twice"):
        archive.verify_archive(packed)


def test_what_unpacks_to_too_much_is_refused(packed, monkeypatch):
    monkeypatch.setattr(archive, "LIMIT", 1000)
    with pytest.raises(InputError, match=r"declares [\d,]+ bytes in \d+ members; at most 1,000"):
        archive.verify_archive(packed)


def test_a_member_larger_than_it_declares_is_refused(tmp_path):
    path = written(tmp_path / "a.zip", (pack.METADATA, b"x" * 1000))
    data = path.read_bytes()
    size = (1000).to_bytes(4, "little")
    path.write_bytes(data.replace(size * 2, (1000).to_bytes(4, "little") + (10).to_bytes(4, "little")))
    with pytest.raises(InputError, match=r"no zip archive that can be read|no RO-Crate metadata"):
        archive.verify_archive(path)


@pytest.mark.parametrize("data", [b"", b"words", b"PK\x03\x04 and no more"])
def test_what_is_no_zip_is_refused(tmp_path, data):
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match="is no zip archive that can be read"):
        archive.verify_archive(tmp_path / "a.zip")


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        archive.verify_archive(tmp_path / "none.zip")


# --- elsewhere --------------------------------------------------------------------------------------------------------

WITHOUT = ["torch", "transformers", "sklearn", "pandas", "matplotlib", "jinja2", "nbformat", "nbconvert", "IPython"]
WITHOUT += ["joblib", "duckdb", "psutil", "tqdm", "PIL", "papermill", "pykeops", "keopscore"]
ASKED = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {WITHOUT}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from vlws.lab import cli
cli.main()
"""


def test_verify_needs_few_packages_and_no_workspace(packed, tmp_path):
    env = {"PYTHONPATH": str(HERE), "PATH": os.environ["PATH"], "VLWS_ROOT": str(tmp_path)}
    asked = subprocess.run(
        [sys.executable, "-c", ASKED, "verify", packed], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stderr
    assert "there is no workspace here" in asked.stdout
    assert ", 0 differ, " in asked.stdout
