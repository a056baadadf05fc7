import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from vlws import experiment, fingerprint
from vlws.errors import InputError

# pytest's import mode gives this module a name under which no other process can import it: send its functions whole,
# as those of a notebook are
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("VLWS_ROOT", str(tmp_path))
    monkeypatch.delenv("VLWS_CACHE", raising=False)
    monkeypatch.delenv("VLWS_WORKERS", raising=False)
    return tmp_path


def draw(arm, seed, *, n=3, scale=1.0, log=None):
    """A cell that leaves a trace of having been computed."""
    import torch

    if log is not None:
        with open(log, "a") as trace:
            trace.write(f"{arm} {seed}\n")
    values = scale * torch.randn(n)
    return {"mean": values.mean(), "values": values, "list": [1, 2], "name": arm, "threads": torch.get_num_threads()}


def test_grid_pairs_arms_by_seed_and_keeps_shapes(tmp_path):
    grid = experiment.grid(draw, ["a", "b"], 3, name="t", workers=2, n=4)
    assert grid["a"]["mean"].shape == (3,)
    assert grid["a"]["values"].shape == (3, 4)
    assert grid["b"]["list"].shape == (3, 2)
    np.testing.assert_array_equal(grid["a"]["values"], grid["b"]["values"])  # the seed alone sets the generators
    assert len(np.unique(grid["a"]["mean"])) == 3
    assert (grid["a"]["threads"] == 1).all()
    table = grid.table()
    assert list(table.columns) == ["arm", "seed", "mean", "name", "threads"]
    assert list(table["arm"]) == ["a"] * 3 + ["b"] * 3
    assert "2 arms (a, b) x 3 seeds" in repr(grid)


def test_processes_and_one_process_give_the_same(tmp_path, monkeypatch):
    parallel = experiment.grid(draw, ["a"], 3, name="two", workers=2)
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path / "other"))
    alone = experiment.grid(draw, ["a"], 3, name="one", workers=1)
    np.testing.assert_array_equal(parallel["a"]["values"], alone["a"]["values"])


def test_a_finished_cell_is_read_not_run(tmp_path, capfd):
    log = tmp_path / "log"
    first = experiment.grid(draw, ["a"], 2, name="t", workers=1, log=log)
    more = experiment.grid(draw, ["b", "a"], [0, 1, 2], name="t", workers=1, log=log)
    assert sorted(log.read_text().splitlines()) == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]
    np.testing.assert_array_equal(more["a"]["values"][:2], first["a"]["values"])
    assert "4 of 6 cells computed, in .cache/experiment/t" in capfd.readouterr().err


def add(arm, seed, *, mine, offset=0.0, log=None):
    if log is not None:
        with open(log, "a") as trace:
            trace.write(f"{arm} {seed}\n")
    return {"sum": mine.sum() + offset, "items": mine > 1, "label": "x"}


def test_another_number_of_seeds_computes_only_the_new_cells(tmp_path):
    log, pictures = tmp_path / "log", {seed: np.arange(4.0) + seed for seed in range(4)}
    arms = {"a": {}, "b": {"offset": 1.0}}

    def run(seeds, given):
        return experiment.grid(add, arms, seeds, name="t", workers=1, by_seed={"mine": given}, log=log)

    assert run(2, pictures)["b"]["sum"].tolist() == [7, 11]
    assert run(4, pictures)["a"]["sum"].tolist() == [6, 10, 14, 18]
    assert len(log.read_text().splitlines()) == 8
    run(4, pictures | {3: np.zeros(4)})  # one seed's pictures changed: its cells alone are computed
    assert log.read_text().splitlines()[8:] == ["a 3", "b 3"]
    with pytest.raises(InputError, match=r"by_seed\['mine'\] has no value for seed 4; it has \[0, 1, 2, 3\]"):
        run(5, pictures)


def test_code_is_fingerprinted_without_importing_it():
    """KeOps, once imported, prints to stdout, where a command's JSON stands alone."""
    code = (
        "import sys; from vlws import fingerprint\n"
        "found = fingerprint.reached({'vlws_kernels.engine', 'vlws.methods.sugar'})\n"
        "assert {'vlws_kernels.keops', 'vlws.models.hub'} <= found\n"
        "print(*{'keopscore', 'pykeops', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_seconds_are_those_of_the_cells_also_when_they_are_read(tmp_path):
    first = experiment.grid(draw, ["a"], 2, name="t", workers=1)
    again = experiment.grid(draw, ["a"], 2, name="t", workers=1)
    made = [experiment.seconds_of(path.with_suffix("")) for path in (tmp_path / ".cache/experiment/t").glob("*.json")]
    assert first.seconds == again.seconds == pytest.approx(sum(made))
    assert first.code == again.code
    assert len(first.code) == 16


def test_kept_numbers_are_per_arm_and_seed():
    cells = {
        (arm, seed): {"x": seed + 0.5, "items": np.array([True, False]), "t": "text"} for arm in "ab" for seed in (0, 1)
    }
    cells["b", 1] |= {"items": np.array([True])}
    grid = experiment.Grid(("a", "b"), (0, 1), cells)
    assert grid.scalars() == {
        "a": {"x": [0.5, 1.5], "items": [0.5, 0.5]},
        "b": {"x": [0.5, 1.5], "items": [0.5, 1.0]},
    }


def test_bootstrap_pairs_arms_by_seed():
    rng = np.random.default_rng(0)
    items = {seed: rng.normal(size=50) for seed in (0, 1, 2)}
    cells = {("a", s): {"score": items[s]} for s in items} | {("b", s): {"score": items[s] + 1} for s in items}
    cells |= {("c", s): {"other": items[s]} for s in items}
    found = experiment.bootstrap(experiment.Grid(("a", "b", "c"), (0, 1, 2), cells), "score", n=40)
    assert found.keys() == {"a", "b"}
    assert found["a"].shape == (41, 3)
    np.testing.assert_allclose(found["b"] - found["a"], 1.0)
    np.testing.assert_allclose(found["a"][0], [v.mean() for v in items.values()])


def test_bootstrap_takes_labels_and_keeps_their_classes():
    from sklearn.metrics import roc_auc_score

    labels = np.array([0, 0, 0, 1])
    cells = {("a", s): {"score": np.array([0.1, 0.2, 0.3, 0.25])} for s in (0, 1)}
    found = experiment.bootstrap(experiment.Grid(("a",), (0, 1), cells), "score", roc_auc_score, labels=labels, n=20)
    assert found["a"][0].tolist() == pytest.approx([2 / 3, 2 / 3])


def test_arms_may_carry_arguments(tmp_path):
    grid = experiment.grid(draw, {"small": {}, "large": {"scale": 100.0}}, 2, name="t", workers=1)
    np.testing.assert_allclose(grid["large"]["values"], 100 * grid["small"]["values"], rtol=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(3), np.ones(3)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        ({"a": 1}, {"a": 2}),
        ([1, 2], [2, 1]),
        ([[1], 2], [1, [2]]),
        (1, 1.0),
        ("1", 1),
        ({1, 2}, {1, 3}),
        (Path("a"), Path("b")),
        (None, False),
    ],
)
def test_digest_tells_contents_apart(one, other):
    assert fingerprint.digest(one) != fingerprint.digest(other)
    assert fingerprint.digest(one) == fingerprint.digest(one)


def test_digest_knows_tensors_and_modules():
    import torch

    torch.manual_seed(0)
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint.digest(a) != fingerprint.digest(b)
    b.load_state_dict(a.state_dict())
    assert fingerprint.digest(a) == fingerprint.digest(b)
    assert fingerprint.digest(torch.zeros(2, dtype=torch.bfloat16)) != fingerprint.digest(torch.zeros(2))
    assert fingerprint.digest(torch.zeros(2)) == fingerprint.digest(torch.zeros(2).clone())


def test_digest_is_the_same_in_another_process():
    code = "from vlws import fingerprint; print(fingerprint.digest({'b': {3, 1}, 'a': [1.5, 'x', None]}))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": "7"}
    )
    assert out.stdout.strip() == fingerprint.digest({"b": {3, 1}, "a": [1.5, "x", None]})


# --- what makes a cell stale ---

PACKAGE = {
    "vlws_kernels/__init__.py": "",
    "vlws_kernels/deep.py": "FACTOR = 1\n",
    "vlws_kernels/top.py": "from . import deep\n\ndef value(seed):\n    return deep.FACTOR * seed\n",
    "cells.py": "from vlws_kernels import top\nOFFSET = 0\n\ndef helper(x):\n    return x\n\n"
    "def cell(arm, seed):\n    return {'v': helper(top.value(seed)) + OFFSET}\n",
}
RUN = "import sys; sys.path.insert(0, sys.argv[1]); from vlws import experiment, fingerprint; import cells; "
KEY = RUN + "print(fingerprint.code(cells.cell))"
GRID = RUN + "print(experiment.grid(cells.cell, ['a'], [1], name='t', workers=1)['a']['v'])"


@pytest.fixture
def package(tmp_path):
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def python(code, folder):
    return subprocess.run([sys.executable, "-B", "-c", code, folder], capture_output=True, text=True, check=True)


def test_changed_code_changes_the_key(package):
    keys = [python(KEY, package).stdout, python(KEY, package).stdout]
    assert keys[0] == keys[1]
    for file, old, new in [
        ("vlws_kernels/deep.py", "1", "5"),  # a module of ours, two imports away
        ("cells.py", "return x", "return 7 * x"),  # a helper beside the function
        ("cells.py", "OFFSET = 0", "OFFSET = 2"),  # a global that it reads
        ("cells.py", "'v': helper", "'v': -helper"),  # the function itself
    ]:
        text = (package / file).read_text()
        (package / file).write_text(text.replace(old, new))
        keys.append(python(KEY, package).stdout)
        (package / file).write_text(text)
    assert len(set(keys)) == 5


def test_kernels_count_by_the_version_of_their_values(package):
    """As torch does by its version: how they compute may change, and what was computed with them stays."""
    (package / "vlws_kernels/__init__.py").write_text("from vlws_kernels.top import value\n\nVALUES = 1\n")
    cells = "from vlws_kernels import value\n\ndef cell(arm, seed):\n    return value(seed)\n"
    (package / "cells.py").write_text(cells)
    keys = []
    for file, old, new in [("deep.py", "1", "1"), ("deep.py", "1", "5"), ("__init__.py", "= 1", "= 2")]:
        text = (package / "vlws_kernels" / file).read_text()
        (package / "vlws_kernels" / file).write_text(text.replace(old, new))
        keys.append(python(KEY, package).stdout)
    assert keys[0] == keys[1] != keys[2]


def test_docstrings_comments_and_formatting_keep_the_key(package):
    before = python(KEY, package).stdout
    for file, old, new in [
        ("vlws_kernels/deep.py", "FACTOR = 1", '"""A factor."""\n\nFACTOR  =  1  # of value'),
        ("vlws_kernels/top.py", "    return", '    """A value.\n\n    >>> value(2)\n    2\n    """\n    return'),
        ("cells.py", "    return {'v': ", '    """One cell."""\n    # all of it\n    return {"v": '),
    ]:
        text = (package / file).read_text()
        assert old in text
        (package / file).write_text(text.replace(old, new))
    assert python(KEY, package).stdout == before


ONE = "def f(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    "other",
    ['def f(x):\n    """Twice x."""\n    return 2*x', "def f(\n    x\n):\n    return (2 * x)  # twice", "\n" + ONE],
)
def test_what_computes_the_same_is_the_same(other):
    assert fingerprint.computes(other) == fingerprint.computes(ONE)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return 3 * x\n",
        "def f(x):\n    return 2.0 * x\n",
        "def f(x=None):\n    return 2 * x\n",
        "def f(x):\n    '' + 'no docstring'\n    return 2 * x\n",
        "def f(x):\n    x = 1\n    'no docstring'\n    return 2 * x\n",
        "async def f(x):\n    return 2 * x\n",
        "@cache\ndef f(x):\n    return 2 * x\n",
        "def f(x):\nreturn 2 * x\n",  # no Python: its text counts
    ],
)
def test_what_computes_otherwise_is_told_apart(other):
    assert fingerprint.computes(other) != fingerprint.computes(ONE)


@pytest.mark.parametrize(("one", "other"), [("x = None", "x = ''"), ("x = ()", "x = []"), ("x = 'a'", "x = b'a'")])
def test_empty_values_are_told_apart(one, other):
    assert fingerprint.computes(one) != fingerprint.computes(other)


def test_a_module_is_read_again_once_its_file_has_changed(package, monkeypatch):
    file = package / "vlws_kernels/deep.py"
    monkeypatch.setattr(fingerprint, "_file", lambda module: file)
    first = fingerprint.module_source("vlws_kernels.deep")
    file.write_text("# a comment\nFACTOR = 1\n")
    assert fingerprint.module_source("vlws_kernels.deep") == first
    file.write_text("FACTOR = 12\n")
    assert fingerprint.module_source("vlws_kernels.deep") != first
    file.write_text("FACTOR = \n")  # half written
    assert fingerprint.module_source("vlws_kernels.deep") == b"FACTOR = \n"


@pytest.mark.parametrize(
    "block",
    [
        "if x:\n    pass\nelse:\n    {}",
        "try:\n    {}\nexcept E:\n    pass",
        "try:\n    pass\nexcept E:\n    {}\nfinally:\n    pass",
        "match x:\n    case 1:\n        {}",
        "with x:\n    {}",
        "class A:\n    def f(self):\n        {}",
        "x = lambda: 1; {}",
    ],
)
def test_imports_are_found_wherever_they_stand(block):
    assert fingerprint.imported(block.format("from vlws import errors")) == {"vlws", "vlws.errors"}


def test_a_stale_cell_is_computed_again(package):
    assert python(GRID, package).stdout.strip() == "[1]"
    (package / "vlws_kernels/deep.py").write_text("FACTOR = 5")
    assert python(GRID, package).stdout.strip() == "[5]"


def test_every_module_that_a_library_function_reaches_counts():
    reached = fingerprint.reached({"vlws.claims"})
    assert {"vlws.claims", "vlws.paths", "vlws.errors"} <= reached
    importlib.import_module("vlws.claims")


# --- failures ---


def sometimes(arm, seed, *, mark):
    if arm == "bad" and seed == 1 and not mark.exists():
        raise ValueError("the loss is nan")
    return {"v": seed}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_cell_is_named_and_the_others_finish(tmp_path, workers):
    mark = tmp_path / "mark"
    with pytest.raises(experiment.CellFailed, match=r"arm 'bad', seed 1: ValueError: the loss is nan") as error:
        experiment.grid(sometimes, ["bad", "good"], 3, name="t", workers=workers, mark=mark)
    assert "in sometimes" in str(error.value)  # the traceback of the cell
    assert len(list((tmp_path / ".cache/experiment/t").glob("*.json"))) == 5
    mark.touch()
    assert list(experiment.grid(sometimes, ["bad", "good"], 3, name="t", workers=workers, mark=mark)["bad"]["v"]) == [
        0,
        1,
        2,
    ]


def refuse(arm, seed):
    raise InputError("the folder is empty.")


def test_bad_input_found_by_a_cell_stays_bad_input():
    with pytest.raises(InputError, match=r"^the folder is empty\.$"):
        experiment.grid(refuse, ["a"], 1, name="t", workers=1)


def vanish(arm, seed):
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"v": seed}


def test_a_lost_process_is_one_clear_error():
    with pytest.raises(experiment.CellFailed, match=r"a process of 't' was lost \(finished cells are kept\)"):
        experiment.grid(vanish, ["a"], 2, name="t", workers=2)


@pytest.mark.parametrize(
    ("arms", "seeds", "name", "message"),
    [
        ([], 3, "t", "at least one name"),
        ("abc", 3, "t", "at least one name"),
        ([1], 3, "t", "at least one name"),
        (["a"], 0, "t", "seeds is 0; it is a number of at least 1"),
        (["a"], -2, "t", "seeds is -2"),
        (["a"], [], "t", "seeds is"),
        (["a"], [1, 1], "t", "distinct"),
        (["a"], True, "t", "seeds is True"),
        (["a"], np.bool_(True), "t", "seeds is np.True_"),
        (["a"], [0, 1.5], "t", "seeds is"),
        (["a"], 1.5, "t", "seeds is 1.5"),
        (["a"], 1, "../t", "names a folder"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tmp_path, arms, seeds, name, message):
    with pytest.raises(InputError, match=message):
        experiment.grid(draw, arms, seeds, name=name)
    assert not (tmp_path / ".cache").exists()


def test_workers_below_one_are_refused():
    with pytest.raises(InputError, match="workers is 0"):
        experiment.grid(draw, ["a"], 1, name="t", workers=0)


@pytest.mark.parametrize("value", [{"a": 1}, None, object(), [[1], [1, 2]]])
def test_what_cannot_be_kept_is_refused(value):
    with pytest.raises(experiment.CellFailed, match="metric 'v'"):
        experiment.grid(lambda arm, seed: {"v": value}, ["a"], 1, name="t", workers=1)


def test_asking_for_what_is_not_there_says_what_is():
    grid = experiment.grid(lambda arm, seed: {"v": np.zeros(seed + 1)}, ["a"], 2, name="t", workers=1)
    with pytest.raises(InputError, match="no arm 'b'; the arms are a"):
        grid["b"]
    with pytest.raises(InputError, match="no metric 'w'; it has v"):
        grid["a"]["w"]
    with pytest.raises(InputError, match=r"differs in shape over seeds \(\(1,\), \(2,\)\)"):
        grid["a"]["v"]
    assert grid.cell("a", 1)["v"].shape == (2,)
    with pytest.raises(InputError, match="no cell"):
        grid.cell("a", 5)


KILLED = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from vlws import experiment

    def cell(arm, seed, log):
        with open(log, "a") as trace:
            trace.write(f"{seed}\\n")
        if seed >= 2 and not Path(log + ".go").exists():
            time.sleep(60)
        return {"v": seed}

    print(experiment.grid(cell, ["a"], 5, name="t", workers=2, log=sys.argv[1])["a"]["v"])
    """
)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_grid_goes_on_where_it_was(tmp_path, sign):
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(KILLED)
    child = subprocess.Popen([sys.executable, str(script), str(log)], start_new_session=True, stderr=subprocess.PIPE)
    folder = tmp_path / ".cache" / "experiment" / "t"
    deadline = time.monotonic() + 300
    while len(list(folder.glob("[!.]*.json"))) < 2:
        assert time.monotonic() < deadline, "no cell finished"
        time.sleep(0.05)
    os.killpg(child.pid, sign)  # as a terminal, or the runner, does it
    child.communicate(timeout=300)
    assert child.returncode != 0
    assert not list(folder.glob("*.tmp"))
    Path(f"{log}.go").touch()
    log.write_text("")
    done = subprocess.run(
        [sys.executable, str(script), str(log)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[0 1 2 3 4]"
    assert sorted(log.read_text().split()) == ["2", "3", "4"]


@pytest.mark.parametrize("seeds", [np.int64(2), np.arange(2), [np.int32(0), np.int32(1)]])
def test_seeds_of_numpy_are_seeds(seeds):
    found = experiment.grid(lambda arm, seed: {"value": float(seed)}, ["a"], seeds, name="numpy", workers=1)
    assert found.seeds == (0, 1)


@pytest.mark.parametrize("given", ["all", "0", "-1", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("VLWS_WORKERS", given)
    with pytest.raises(InputError, match=f"VLWS_WORKERS is '{given}'; it is a number of processes of at least 1"):
        experiment.grid(lambda arm, seed: {"value": 1.0}, ["a"], 1, name="workers")
