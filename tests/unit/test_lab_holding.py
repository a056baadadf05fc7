"""One holder per name, whoever tries, and whatever becomes of it."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vlws.lab import holding

HOLDER = """
import sys
from pathlib import Path
from vlws.lab import holding
print(holding.take(Path(sys.argv[1]), "k") is not None, flush=True)
sys.stdin.read()
"""


def elsewhere(path, age=0.0):
    """A hold as another machine leaves it, last touched some seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"where": "node7", "host": "node7", "pid": 1, "token": "theirs"}))
    os.utime(path, (time.time() - age,) * 2)


def test_one_of_many_has_a_name_and_the_next_once_it_is_let_go(tmp_path):
    together = threading.Barrier(8)

    def attempt(_):
        together.wait(20)
        return holding.take(tmp_path / "held", "k", driver="d")

    with ThreadPoolExecutor(8) as pool:
        (first,) = [hold for hold in pool.map(attempt, range(8)) if hold]
    told = holding.holder(tmp_path / "held", "k")
    assert (told["pid"], told["driver"], told["token"]) == (os.getpid(), "d", first.token)
    first.release()
    assert holding.holder(tmp_path / "held", "k") is None
    with holding.take(tmp_path / "held", "k"):
        assert holding.take(tmp_path / "held", "k") is None
    assert not list((tmp_path / "held").iterdir())


def test_what_a_killed_process_held_is_taken_over_at_once(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline().strip() == "True"
        assert holding.take(tmp_path, "k") is None
        child.kill()
        child.wait()
        assert holding.holder(tmp_path, "k") is None
        with holding.take(tmp_path, "k") as hold:
            assert holding.holder(tmp_path, "k")["token"] == hold.token
    assert not list(tmp_path.iterdir())


def test_another_machine_is_dead_once_it_has_been_silent_for_the_stated_time(tmp_path):
    elsewhere(tmp_path / "k", holding.STALE - 20)
    assert holding.take(tmp_path, "k") is None
    assert holding.holder(tmp_path, "k")["host"] == "node7"
    elsewhere(tmp_path / "k", holding.STALE + 20)
    assert holding.holder(tmp_path, "k") is None
    together = threading.Barrier(8)

    def attempt(_):
        together.wait(20)
        return holding.take(tmp_path, "k")

    with ThreadPoolExecutor(8) as pool:
        (only,) = [hold for hold in pool.map(attempt, range(8)) if hold]
    only.release()


def test_what_another_has_taken_over_meanwhile_is_not_taken_from_it(tmp_path, monkeypatch):
    elsewhere(tmp_path / "k", 1000)
    real, others = holding._take_over, []

    def late(path, dead, me):
        monkeypatch.setattr(holding, "_take_over", real)
        others.append(holding.take(tmp_path, "k"))
        return real(path, dead, me)

    monkeypatch.setattr(holding, "_take_over", late)
    assert holding.take(tmp_path, "k") is None
    assert holding.holder(tmp_path, "k")["token"] == others[0].token
    others[0].release()


def test_a_broken_hold_counts_by_its_age(tmp_path):
    (tmp_path / "k").write_text("{")
    assert holding.take(tmp_path, "k") is None
    os.utime(tmp_path / "k", (0, 0))
    holding.take(tmp_path, "k").release()


def test_one_who_died_while_taking_over_is_in_nobodys_way(tmp_path):
    elsewhere(tmp_path / "k", 1000)
    mark = tmp_path / "k.theirs.over"
    mark.touch()
    assert holding.take(tmp_path, "k") is None  # the other may still be about to
    os.utime(mark, (0, 0))
    assert holding.take(tmp_path, "k") is None  # which clears the way
    holding.take(tmp_path, "k").release()


def test_the_holder_is_seen_to_live_and_learns_that_it_was_taken_for_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "BEAT", 0.02)
    hold = holding.take(tmp_path, "k")
    os.utime(tmp_path / "k", (0, 0))
    deadline = time.monotonic() + 20
    while (tmp_path / "k").stat().st_mtime < 1:
        assert time.monotonic() < deadline, "no beat"
        time.sleep(0.01)
    assert not hold.lost.is_set()
    elsewhere(tmp_path / "k")
    assert hold.lost.wait(20)
    hold.release()
    assert json.loads((tmp_path / "k").read_text())["token"] == "theirs"  # which is not let go by us


def test_a_disk_that_is_full_holds_nothing(tmp_path, monkeypatch):
    real = holding.open if hasattr(holding, "open") else open

    def full(path, mode="r"):
        file = real(path, mode)
        if "x" not in mode:
            return file
        file.close()
        raise_on_write = real(path, "r+b")

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                raise_on_write.close()

            def write(self, _):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        return Full()

    monkeypatch.setattr(holding, "open", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        holding.take(tmp_path, "k")
    assert not list(tmp_path.iterdir())
