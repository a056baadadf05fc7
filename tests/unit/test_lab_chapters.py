import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papermill import inspect_notebook

from vlws.errors import InputError
from vlws.lab import chapters, parameters

ROOT = Path(__file__).parents[2]
CELL = """preset: str = "cpu"  # cpu, full or gpu
seeds: int = 3  # how many
lr: float = 1.0e-3  # learning rate [above 0]
gate: float = 0.5  # threshold [0 to 1]
half: bool = False  # half precision
optimizer: str = "adam"  # which [adam or sgd]
device: str = "auto"  # where
data: str = ""  # a folder
tag: str = "none"  # a rule of numbers says nothing of a text [at least 1]
backbone: str = ""  # a folder or a hub id
sizes: list[int] = [1, 2]  # sizes [at least 1]
"""


def notebook(cell=CELL, tags=("parameters",)):
    cells = [
        {"cell_type": "code", "source": cell, "metadata": {"tags": list(tags)}, "outputs": [], "execution_count": 1}
    ]
    return json.dumps({"cells": cells, "metadata": {"vlws": {"title": "T", "summary": "s"}}, "nbformat": 4})


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("VLWS_ROOT", str(tmp_path))
    (tmp_path / "notebooks" / "04_cmg.ipynb").write_text(notebook())
    (tmp_path / "notebooks" / "notes.ipynb").write_text("no chapter, and no JSON")
    return tmp_path


@pytest.fixture
def one(workspace):
    return chapters.chapter("04")


def test_the_folder_is_the_registry(workspace):
    assert [c.slug for c in chapters.chapters()] == ["04_cmg"]
    assert {chapters.chapter(name).id for name in ("04", "4", "cmg", "04_cmg", "04_cmg.ipynb")} == {"04"}
    with pytest.raises(InputError, match=r"no chapter '04_cgm' \(did you mean 04_cmg\?\); there are 04_cmg\."):
        chapters.chapter("04_cgm")


def test_parameters_have_types_defaults_and_help(one):
    lr = one.parameters["lr"]
    assert (lr.type, lr.default, lr.help) == ("float", 1e-3, "learning rate [above 0]")
    assert list(one.parameters) == [
        "preset",
        "seeds",
        "lr",
        "gate",
        "half",
        "optimizer",
        "device",
        "data",
        "tag",
        "backbone",
        "sizes",
    ]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-4", 1e-4),  # what YAML 1.1 takes for text
        ("lr", 1, 1.0),
        ("lr", "3", 3.0),
        ("seeds", "5", 5),
        ("seeds", 5, 5),
        ("half", "true", True),
        ("half", "no", False),
        ("half", False, False),
        ("optimizer", "sgd", "sgd"),
        ("device", "cuda:1", "cuda:1"),
        ("backbone", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("sizes", "3,4", [3, 4]),
        ("sizes", "[5]", [5]),
        ("sizes", [6], [6]),
        ("gate", "1", 1.0),
    ],
)
def test_values_become_the_declared_type(one, name, text, value):
    read = chapters.read_values(one, {name: text})[name]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sedes", "5", r"chapter 04 has no parameter 'sedes' \(did you mean seeds\?\); it has preset, seeds, lr"),
        ("lr", "fast", "lr='fast' is no float; lr takes a finite number"),
        ("lr", "nan", "no float"),
        ("lr", "0", "lr=0.0 is outside what it accepts: above 0"),
        ("lr", True, "no float"),
        ("lr", "", "no float"),
        ("gate", "1.5", "outside what it accepts: 0 to 1"),
        ("seeds", "0", "seeds=0 is outside what it accepts: at least 1"),
        ("seeds", "2.5", "seeds='2.5' is no int; seeds takes a whole number"),
        ("seeds", 3.0, "no int"),
        ("seeds", True, "no int"),
        ("half", "2", "true or false"),
        ("half", 1, "true or false"),
        ("optimizer", "lion", r"outside what it accepts: adam or sgd"),
        ("optimizer", 5, r"text, quoted"),
        ("device", "tpu", "outside what it accepts"),
        ("sizes", "1,x", "a list of int"),
        ("sizes", [0], "outside"),
        ("sizes", 3, "a list of int"),
        ("data", "./nowhere", "data='./nowhere' does not exist"),
        ("backbone", "/nowhere/at/all", "does not exist"),
    ],
)
def test_values_that_do_not_fit_are_refused_in_one_sentence(one, name, given, message):
    with pytest.raises(InputError, match=message) as error:
        chapters.read_values(one, {name: given})
    assert "\n" not in str(error.value)


def test_paths_are_those_of_the_users_directory(one, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    assert chapters.read_values(one, {"data": "pictures"}) == {"data": str(tmp_path / "pictures")}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_the_command_line(value):
    assert parameters.Parameter("x", "float", 0.0, "").read(repr(value)) == value


@given(st.integers())
def test_every_int_survives_the_command_line(value):
    assert parameters.Parameter("x", "int", 0, "").read(str(value)) == value


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("lr = 1", "'lr = 1' is no parameter; write `name: type = literal"),
        ("lr: float", "is no parameter"),
        ("lr: float = 1 / 3", "is computed"),
        ("lr: np.float32 = 1.0", "declares np.float32"),
        ('lr: float = "1e-3"', "declares float but holds '1e-3'"),
        ("seeds: int = 0", "seeds=0 is outside"),
        ("import os", "is no parameter"),
        ("lr: float =", "is not Python"),
    ],
)
def test_a_parameters_cell_holds_annotated_literals(cell, message):
    with pytest.raises(InputError, match=message):
        parameters.read_parameters(cell, "04_cmg.ipynb")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "04_cmg.ipynb is not a notebook"),
        ("half a noteb", "04_cmg.ipynb is not a notebook"),
        (notebook(tags=()), "0 cells tagged `parameters`"),
    ],
)
def test_a_broken_notebook_is_named(workspace, text, message):
    (workspace / "notebooks" / "04_cmg.ipynb").write_text(text)
    with pytest.raises(InputError, match=message):
        chapters.chapter("04")


def test_presets_replace_literals(workspace, one):
    presets = workspace / "notebooks" / "presets.yml"
    with pytest.raises(InputError, match="chapter 04 has no preset 'full'; it has cpu"):
        chapters.preset_values(one, "full")
    presets.write_text('"04": {full: {seeds: 5, lr: 1e-4}}')
    assert chapters.preset_values(one, "full") == {"seeds": 5, "lr": 1e-4}
    assert chapters.preset_values(one, "cpu") == {}
    for text, message in [
        ('"04": {full: {sedes: 5}}', r"presets.yml, 04, full: chapter 04 has no parameter 'sedes'"),
        ('"04": {cpu: {seeds: 5}}', "must not hold cpu"),
        ('"04": [', "presets.yml is not YAML"),
        ("- 1", "presets.yml must map"),
    ]:
        presets.write_text(text)
        with pytest.raises(InputError, match=message):
            chapters.preset_values(one, "cpu" if "cpu" in text else "full")
    presets.unlink()
    with pytest.raises(InputError, match=r"no preset 'ful' \(did you mean full\?\)"):
        chapters.preset_values(one, "ful")


def test_grids(one, workspace):
    grid = chapters.grid_values(one, {"lr": "1e-3,1e-4", "seeds": "2:5", "sizes": "[1,2],[3]", "half": [True, False]})
    assert grid == {"lr": [1e-3, 1e-4], "seeds": [2, 3, 4], "sizes": [[1, 2], [3]], "half": [True, False]}
    assert chapters.grid_values(one, {"backbone": "0:5"}) == {"backbone": ["0:5"]}
    for texts, message in [
        ({"lr": "1,,2"}, "holds no value"),
        ({"seeds": "5:5"}, "holds no value"),
        ({"lr": []}, "holds no value"),
        ({"seeds": "0:3"}, "seeds=0 is outside"),
        ({"rate": "1"}, "no parameter 'rate'"),
        ({"seeds": "1:200", "sizes": "1:200"}, "no list"),
        ({"seeds": "1:200", "lr": [float(x + 1) for x in range(100)]}, "more than 10000 cells"),
    ]:
        with pytest.raises(InputError, match=message):
            chapters.grid_values(one, texts)
    path = workspace / "grid.yaml"
    path.write_text("lr: [1e-3, 0.1]\nseeds: 2:4\n")
    assert chapters.grid_values(one, chapters.read_grid(path)) == {"lr": [1e-3, 0.1], "seeds": [2, 3]}
    for text, message in [("- 1", "must map parameters"), ("a: [", "is not YAML")]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            chapters.read_grid(path)
    with pytest.raises(InputError, match="cannot be read"):
        chapters.read_grid(workspace / "absent.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem)
def test_papermill_finds_every_parameter_with_its_type_and_help(path):
    source = next(
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    )
    ours = {p.name: (p.type, p.help) for p in parameters.read_parameters(source, path.name).values()}
    found = inspect_notebook(str(path)).values()
    assert {p["name"]: (p["inferred_type_name"], p["help"]) for p in found} == ours
