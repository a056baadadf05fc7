import json
import os
import shutil
import subprocess
import sys

import pytest

from vlws.lab import cli, runner, terminal
from vlws.lab.commands import app

COMMANDS = ["claims", *(command.name or command.callback.__name__ for command in app.registered_commands)]
for group in app.registered_groups:
    COMMANDS += [f"{group.name} {c.name or c.callback.__name__}" for c in group.typer_instance.registered_commands]
COMMANDS.remove("claims show")  # is `claims`
CLAIM = """chapter: "01"
claims:
  - {id: "01.C1", says: "it rises", where: "abstract", metric: "rise", unit: "u", direction: greater, threshold: 0}
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "claims").mkdir(parents=True)
    (tmp_path / "notebooks" / "claims" / "01_a.yaml").write_text(CLAIM)
    cell = {"cell_type": "code", "source": "seeds: int = 3  # seeds", "metadata": {"tags": ["parameters"]}}
    said = {"vlws": {"title": "A", "paper": "P", "summary": "What it is.", "backbones": ["clip-emoji"]}}
    (tmp_path / "notebooks" / "01_a.ipynb").write_text(json.dumps({"cells": [cell], "metadata": said}))
    monkeypatch.setenv("VLWS_ROOT", str(tmp_path))
    monkeypatch.delenv("VLWS_RUNS", raising=False)
    return tmp_path


@pytest.fixture
def vlws(workspace, monkeypatch, capsys):
    """Call the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vlws", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_gives_an_example(vlws, command):
    code, out, _ = vlws(*command.split(), "--help")
    assert code == 0
    assert "Example" in out
    assert f"vlws {command.split()[0]}" in out
    assert "--json" in out


def test_list(vlws):
    code, out, _ = vlws("list", "--json")
    (chapter,) = json.loads(out)
    assert code == 0
    assert (chapter["id"], chapter["slug"], chapter["title"], chapter["newest"]) == ("01", "01_a", "A", None)
    assert chapter["parameters"] == [{"name": "seeds", "type": "int", "default": 3, "help": "seeds"}]
    assert "What it is." in vlws("list")[1]


def test_claims_without_runs(vlws):
    code, out, _ = vlws("claims", "--json")
    (claim,) = json.loads(out)
    assert code == 0
    assert (claim["id"], claim["verdict"], claim["value"]) == ("01.C1", None, None)
    assert "not measured" in vlws("claims")[1]


def test_claims_of_one_chapter(vlws, workspace):
    claims = workspace / "notebooks" / "claims"
    (claims / "02_b.yaml").write_text(CLAIM.replace("01", "02"))
    shutil.copy(workspace / "notebooks" / "01_a.ipynb", workspace / "notebooks" / "02_b.ipynb")
    for arguments, ids in [
        (["2", "--json"], ["02.C1"]),
        (["--json", "b"], ["02.C1"]),
        (["--json"], ["01.C1", "02.C1"]),
    ]:
        code, out, _ = vlws("claims", *arguments)
        assert code == 0
        assert [claim["id"] for claim in json.loads(out)] == ids
    assert "above 0.000 u" in vlws("claims", "01")[1]  # direction, threshold, unit


def test_lines_fit_the_terminal_and_nothing_is_cut(vlws, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    told = vlws("claims")[1]
    assert max(map(len, told.splitlines())) <= 70
    assert len(told.splitlines()) > 2
    assert "it rises" in told
    monkeypatch.delenv("COLUMNS")
    assert len(vlws("claims")[1].splitlines()) == 2  # a file or a program gets whole lines


def test_a_table_is_narrowed_by_its_widest_columns():
    told = terminal.aligned(["id", "says"], [["1", "a long sentence"], ["22", ""]], fit=12)
    assert told.splitlines() == ["id  says", "1   a long", "    sentence", "22"]


def test_without_the_extra_a_sentence_says_what_to_install(workspace, tmp_path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "vlws.lab.cli", "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "typer is not installed" in json.loads(done.stdout)["error"]
    assert "vlws[lab]" in json.loads(done.stdout)["error"]


def test_what_runs_chapters_is_looked_for_before_anything_runs(vlws, monkeypatch):
    monkeypatch.setattr(runner, "find_spec", lambda name: None if name == "papermill" else name)
    code, _, err = vlws("run", "01")
    assert code == 2
    assert err == "running a chapter needs papermill, not installed here; pip install 'vlws[lab]'.\n"


def test_bad_claims_are_refused_before_anything_runs(vlws, workspace):
    (workspace / "notebooks" / "claims" / "01_a.yaml").write_text(CLAIM.replace("greater", "up"))
    code, _, err = vlws("run", "01")
    assert code == 2
    assert "01_a.yaml: claim 01.C1: direction is 'up'; it is one of greater, less, within." in err
    assert not (workspace / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["runs", "--limit", "0"],
            "Invalid value for '--limit': Input should be greater than or equal to 1; see vlws runs --help.",
        ),
        (["list", "--jsn"], "No such option: --jsn (Possible options: --json); see vlws list --help."),
        (["frobnicate"], "No such command 'frobnicate'; see vlws --help."),
        (["doctor", "extra"], "Got unexpected extra argument(s) (extra); see vlws doctor --help."),
        (["verify"], "Missing argument 'target'; see vlws verify --help."),
    ],
)
def test_arguments_that_no_command_takes_are_one_sentence(vlws, arguments, sentence):
    code, out, err = vlws(*arguments)
    assert (code, out, err) == (2, "", sentence + "\n")
    code, out, _ = vlws(*arguments, "--json")
    assert (code, json.loads(out)) == (2, {"error": sentence})


def test_claims_take_a_claim_and_help_shows_what_they_take(vlws):
    assert [row["id"] for row in json.loads(vlws("claims", "01.C1", "--json")[1])] == ["01.C1"]
    code, out, _ = vlws("claims", "01.C9", "--json")
    assert (code, json.loads(out)["error"]) == (2, "no claim '01.C9'; there are 01.C1.")
    told = vlws("claims", "--help")[1]
    assert all(option in told for option in ("--graph", "--run", "--json", "vlws claims publish"))
    assert "--preset" in vlws("claims", "publish", "--help")[1]


def test_runs_and_sql(vlws):
    assert json.loads(vlws("runs", "--json")[1]) == []
    assert json.loads(vlws("runs", "--json", "--sql", "select count(*) as n from runs")[1]) == [{"n": 0}]


def test_data_info(vlws):
    code, out, _ = vlws("data", "info", "--json")
    assert code == 0
    assert all(set(row) == {"file", "bytes"} for row in json.loads(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "09"], "no chapter '09'"),
        (["run", "01", "-p", "sedes=3"], "did you mean seeds"),
        (["run", "01", "-p", "seeds"], "-p 'seeds' is no NAME=VALUE"),
        (["run", "01", "-p", "seeds=1", "-p", "seeds=2"], "-p seeds is given twice"),
        (["run", "01", "-p", "seeds=0"], "seeds=0 is outside what it accepts: at least 1"),
        (["run", "01", "--preset", "ful"], "did you mean full"),
        (["run", "01", "--jobs", "0"], "jobs is 0"),
        (["sweep", "01"], "a sweep needs values"),
        (["sweep", "01", "-p", "seeds=1,a"], "seeds='a' is no int"),
        (["runs", "--sql", "selec"], "DuckDB"),
        (["runs", "01", "--sql", "select 1"], "chapter '01' and --sql were given"),
        (["claims", "09"], "no chapter '09'"),
        (["claims", "publish", "01"], "has no finished run at preset 'full'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(vlws, workspace, arguments, message):
    code, out, err = vlws(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    code, out, _ = vlws(*arguments, "--json")
    assert code == 2
    assert message in json.loads(out)["error"]
    assert not (workspace / "runs").exists()


def test_a_workspace_without_notebooks_is_refused(vlws, workspace, monkeypatch):
    monkeypatch.setenv("VLWS_ROOT", str(workspace / "notebooks"))
    code, _, err = vlws("list")
    assert code == 2
    assert "is no vlws workspace" in err


def test_listing_loads_none_of_the_heavy_libraries(workspace):
    code = (
        "import sys; sys.argv = ['vlws', 'list']; from vlws.lab import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(*{'torch', 'numpy', 'pandas', 'nbconvert', 'papermill', 'duckdb', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout
