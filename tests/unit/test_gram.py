"""A matrix by blocks is that of one call, whatever the blocks; bad input is refused; a kill loses one block a slot."""

import contextlib
import json
import os
import re
import signal

import numpy as np
import psutil
import pytest
import torch
from processes import children, command, is_alive, until

import vlws_kernels as vk
from vlws.errors import InputError
from vlws.gram import compute_block, gram
from vlws.lab import slots


def made(folder, lengths, dim=3, dtype=np.float32, seed=0):
    """Sequences of these lengths as files of a folder, and padded."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    sequences = [rng.normal(size=(length, dim)).astype(dtype) for length in lengths]
    for k, one in enumerate(sequences):
        np.save(folder / f"{k:04}.npy", one)
    padded = torch.zeros(len(lengths), max(lengths), dim, dtype=torch.from_numpy(sequences[0]).dtype)
    for row, one in zip(padded, sequences, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    return padded, torch.tensor(lengths)


def mirrored(matrix):
    return (matrix.triu() + matrix.triu(1).T).numpy()


LENGTHS = [5, 3, 8, 1, 7, 2, 6, 8, 4, 3, 5]


@pytest.mark.parametrize("block", [1, 2, 4, 11, 100])
@pytest.mark.parametrize(
    ("kernel", "given"), [("gak", {"sigma": 1.5}), ("soft_dtw", {"gamma": 0.5}), ("dtw", {})], ids=lambda x: str(x)
)
def test_blocks_give_what_one_call_gives(tmp_path, kernel, given, block):
    x, len_x = made(tmp_path / "x", LENGTHS)
    done = gram(tmp_path / "x", tmp_path / "out", kernel=kernel, block=block, **given)
    found = np.load(tmp_path / "out" / "gram.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, mirrored(getattr(vk, kernel)(x, x, len_x, len_x, **given)))
    np.testing.assert_allclose(found, getattr(vk, kernel)(x, len_x=len_x, **given).numpy(), rtol=1e-6, atol=1e-6)
    rows = -(-11 // block)
    assert done["blocks"] == rows * (rows + 1) // 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "gram.npy", "manifest.json"]


def test_rows_and_columns_may_differ_and_doubles_stay_doubles(tmp_path):
    x, len_x = made(tmp_path / "x", LENGTHS, dtype=np.float64)
    y, len_y = made(tmp_path / "y", [2, 9, 4], dtype=np.float64, seed=1)
    gram(tmp_path / "x", tmp_path / "out", sigma=2.0, other=tmp_path / "y", block=2)
    found = np.load(tmp_path / "out" / "gram.npy")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, vk.gak(x, y, len_x, len_y, sigma=2.0).numpy())


def test_a_file_of_values_and_lengths_gives_the_same(tmp_path):
    x, _ = made(tmp_path / "x", LENGTHS)
    values = np.concatenate([one[:length].numpy() for one, length in zip(x, LENGTHS, strict=True)])
    for save, name in ((np.savez, "plain.npz"), (np.savez_compressed, "small.npz")):
        save(tmp_path / name, values=values, lengths=np.array(LENGTHS))
        gram(tmp_path / name, tmp_path / f"out-{name}", sigma=1.0, block=4)
    gram(tmp_path / "x", tmp_path / "out", sigma=1.0, block=4)
    wanted = np.load(tmp_path / "out" / "gram.npy")
    for name in ("plain.npz", "small.npz"):
        np.testing.assert_array_equal(np.load(tmp_path / f"out-{name}" / "gram.npy"), wanted)


def test_many_dimensions_agree_within_the_rounding_of_an_inner_product(tmp_path):
    x, len_x = made(tmp_path / "x", LENGTHS, dim=64)  # from dim 32 on, distances come from products of a block
    gram(tmp_path / "x", tmp_path / "out", sigma=8.0, block=3)
    wanted = vk.gak(x.double(), len_x=len_x, sigma=8.0).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out" / "gram.npy"), wanted, rtol=2e-5)


def test_what_is_there_is_not_computed_again(tmp_path):
    made(tmp_path / "x", LENGTHS)
    first = gram(tmp_path / "x", tmp_path / "out", sigma=1.0, block=4)
    assert first["reused"] == 0
    again = gram(tmp_path / "x", tmp_path / "out", sigma=1.0, block=4, run=None)
    assert (again["reused"], again["sha256"]) == (6, first["sha256"])


def interrupted(tmp_path, after):
    """A run that ends after so many blocks."""

    def run(function, jobs):
        for job in jobs[:after]:
            yield function(job)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gram(tmp_path / "x", tmp_path / "out", sigma=1.0, block=4, run=run)


def test_a_block_that_is_cut_short_is_not_believed(tmp_path):
    x, len_x = made(tmp_path / "x", LENGTHS)
    interrupted(tmp_path, after=3)
    assert not (tmp_path / "out" / "gram.npy").exists()
    block = tmp_path / "out" / "blocks" / "0-1.npy"
    block.write_bytes(block.read_bytes()[:-4])
    assert gram(tmp_path / "x", tmp_path / "out", sigma=1.0, block=4)["reused"] == 2
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "gram.npy"), mirrored(vk.gak(x, x, len_x, len_x)))


def refused(*sentences):
    return pytest.raises(InputError, match=".*".join(map(re.escape, sentences)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sigma": 0.0}, "gak needs sigma, a number above 0; 0.0 was given"),
        ({"sigma": -1.0}, "gak needs sigma, a number above 0; -1.0 was given"),
        ({"sigma": float("nan")}, "gak needs sigma, a number above 0; nan was given"),
        ({}, "gak needs sigma, a number above 0; none was given"),
        ({"kernel": "dtw", "sigma": 1.0}, "dtw was given sigma=1.0, which it does not take"),
        ({"kernel": "rbf"}, "kernel='rbf' was given; accepted are gak, soft_dtw, dtw"),
        ({"sigma": 1.0, "block": 0}, "block=0 was given; accepted is 1 or more"),
    ],
)
def test_parameters_are_refused(tmp_path, given, told):
    made(tmp_path / "x", [2, 3])
    with refused(told):
        gram(tmp_path / "x", tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_sequences_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nowhere", tmp_path / "empty"):
        with refused("holds no sequence", "accepted is a folder of .npy files"):
            gram(source, tmp_path / "out", sigma=1.0)
    made(tmp_path / "x", [2, 3])
    np.save(tmp_path / "x" / "0001.npy", np.zeros((3, 2), np.float32))
    with refused("0000.npy has dim 3 and", "0001.npy dim 2; accepted is one dim"):
        gram(tmp_path / "x", tmp_path / "out", sigma=1.0)
    np.save(tmp_path / "x" / "0001.npy", np.zeros((3, 2, 2), np.float32))
    with refused("0001.npy is float32 of shape (3, 2, 2); accepted is"):
        gram(tmp_path / "x", tmp_path / "out", sigma=1.0)
    (tmp_path / "x" / "0001.npy").write_text("no array")
    with refused("0001.npy is no .npy file of numbers"):
        gram(tmp_path / "x", tmp_path / "out", sigma=1.0)
    np.save(tmp_path / "x" / "0001.npy", np.zeros((0, 3), np.float32))
    with refused("x holds no sequence, or one of no element"):
        gram(tmp_path / "x", tmp_path / "out", sigma=1.0)
    np.save(tmp_path / "x" / "0001.npy", np.full((2, 3), np.nan, np.float32))
    with refused("0001.npy holds NaN or infinite numbers"):
        gram(tmp_path / "x", tmp_path / "out", sigma=1.0)
    np.savez(tmp_path / "a.npz", values=np.zeros((5, 2)), lengths=np.array([2, 2]))
    with refused("a.npz has values of shape (5, 2) float64 and 2 lengths that come to 4"):
        gram(tmp_path / "a.npz", tmp_path / "out", sigma=1.0)
    np.savez(tmp_path / "a.npz", rows=np.zeros((5, 2)))
    with refused("a.npz has no values and lengths"):
        gram(tmp_path / "a.npz", tmp_path / "out", sigma=1.0)
    made(tmp_path / "y", [2], dim=2)
    made(tmp_path / "z", [2, 3])
    with refused("The sequences of rows and columns have dim 3 float32 and dim 2 float32"):
        gram(tmp_path / "z", tmp_path / "new", sigma=1.0, other=tmp_path / "y")


def test_a_folder_of_something_else_is_refused(tmp_path, monkeypatch):
    made(tmp_path / "x", LENGTHS)
    with refused("x holds 0000.npy; accepted is a new or empty folder, or one of the same matrix"):
        gram(tmp_path / "x", tmp_path / "x", sigma=1.0)
    with refused("0000.npy is a file; `out` is a folder"):
        gram(tmp_path / "x", tmp_path / "x" / "0000.npy", sigma=1.0)
    interrupted(tmp_path, after=1)
    with refused("out holds a matrix with sigma 1.0, and 2.0 was given; accepted is the same, or a new folder"):
        gram(tmp_path / "x", tmp_path / "out", sigma=2.0, block=4)
    gram(tmp_path / "x", tmp_path / "out", sigma=1.0, block=4)
    np.save(tmp_path / "x" / "0000.npy", np.zeros((2, 3), np.float32))
    with refused("out holds a matrix with sources"):
        gram(tmp_path / "x", tmp_path / "out", sigma=1.0, block=4)
    (tmp_path / "out" / "gram.npy").write_bytes(b"changed")
    np.save(tmp_path / "x" / "0000.npy", np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
    with refused("gram.npy has changed since it was written; delete it to make it anew"):
        gram(tmp_path / "x", tmp_path / "out", sigma=1.0, block=4)
    monkeypatch.setattr("vlws.gram.shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with refused("The matrix and its blocks take 0.0 GB, and", "has 0.0 free"):
        gram(tmp_path / "x", tmp_path / "new", sigma=1.0)


@pytest.mark.parametrize("who", ["driver", "slot"])
def test_a_command_that_is_killed_goes_on(tmp_path, who):
    """SIGKILL, half way, of the process that was started or of one of its slots."""
    lengths = [40] * 400
    x, len_x = made(tmp_path / "x", lengths, dim=8)
    blocks = tmp_path / "out" / "blocks"
    given = ("gram", tmp_path / "x", "--out", tmp_path / "out", "--sigma", 3, "--block", 20, "--jobs", 2, "--json")
    process = command(*given)
    until(lambda: len(list(blocks.glob("*-*.npy"))) >= 10 or process.poll() is not None)
    running = children(process.pid)
    assert len(running) == 2
    os.kill(process.pid if who == "driver" else running[0], signal.SIGKILL)
    told, _ = process.communicate(timeout=60)
    if who == "slot":
        assert process.returncode == 1
        assert json.loads(told)["error"].startswith("a slot ended with code -9 before its job was done")
    until(lambda: not any(map(is_alive, running)))  # nothing outlives its driver
    whole = len(list(blocks.glob("*-*.npy")))
    assert 10 <= whole < 210
    process = command(*given)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(told)["reused"] == whole
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "gram.npy"), mirrored(vk.gak(x, x, len_x, len_x, 3.0)))


CONFIG = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

provider = LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1)
config = Config(
    executors=[HighThroughputExecutor(
        label="vlws", max_workers_per_node=2, cores_per_worker=0.1, provider=provider, address="127.0.0.1",
        heartbeat_period=1, heartbeat_threshold=5, encrypted=False,
    )],
    run_dir={run_dir!r},
    strategy="none",
)
"""


def workers_of(mark):
    """The workers of Parsl whose environment holds a mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "process_worker_pool.py" in " ".join(process.cmdline()) and process.environ().get("VLWS_RUNS") == mark:
                found += [child for child in process.children() if child.environ().get("VLWS_RUNS") == mark]
    return found


def test_blocks_over_parsl_survive_a_worker_that_is_killed(tmp_path, monkeypatch):
    pytest.importorskip("parsl")
    monkeypatch.setenv("VLWS_RUNS", str(tmp_path / "runs"))
    x, len_x = made(tmp_path / "x", [40] * 300, dim=8)
    (tmp_path / "cluster.py").write_text(CONFIG.format(run_dir=str(tmp_path / "parsl")))
    blocks = tmp_path / "out" / "blocks"
    given = ("gram", tmp_path / "x", "--out", tmp_path / "out", "--sigma", 3, "--block", 20, "--json")
    process = command(*given, "--parsl", tmp_path / "cluster.py")
    until(lambda: len(list(blocks.glob("*-*.npy"))) >= 5 or process.poll() is not None)
    victims = [one for one in workers_of(str(tmp_path / "runs")) if one.is_running()]
    victims[0].kill()
    assert len(list(blocks.glob("*-*.npy"))) < 120  # half way
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(told)["reused"] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "gram.npy"), mirrored(vk.gak(x, x, len_x, len_x, 3.0)))
    until(lambda: not workers_of(str(tmp_path / "runs")))


def test_slots_say_what_went_wrong(tmp_path):
    """Bad input in a slot is bad input of the command."""
    with refused("jobs is 0; it must be at least 1"):
        slots.over(0)
    with refused("no Parsl configuration at", "cluster.py; give a Python file that defines `config`"):
        slots.over(None, tmp_path / "cluster.py")
    made(tmp_path / "x", LENGTHS)
    job = {"kernel": "dtw", "folder": str(tmp_path / "nowhere"), "row": 0, "column": 0, "block": 4, "n": 4, "m": 4}
    with pytest.raises(OSError, match="No such file or directory"):
        list(slots.over(1)(compute_block, [job]))


def test_the_command(tmp_path, vlws):
    made(tmp_path / "x", LENGTHS)
    given = ("gram", str(tmp_path / "x"), "--out", str(tmp_path / "out"), "--kernel", "dtw", "--block", "4")
    code, told = vlws(*given)
    assert code == 0
    assert f"dtw of 11 x 11 sequences in 6 blocks: {tmp_path / 'out'}/gram.npy" in told
    assert "6 of the blocks were there." in vlws(*given)[1]
    code, told = vlws("gram", str(tmp_path / "x"), "--out", str(tmp_path / "new"), "--sigma", "0", "--json")
    assert (code, json.loads(told.splitlines()[0])) == (
        2,
        {"error": "gak needs sigma, a number above 0; 0.0 was given."},
    )
