import sys
import threading
import time

import pytest

from vlws.errors import InputError
from vlws.lab import cluster, executors


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("VLWS_WORKERS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    executors.gpus.cache_clear()
    yield
    executors.gpus.cache_clear()


def through(run, jobs, slots):
    """What each job gave, in the order in which they were submitted."""
    with executors.local(run, len(jobs), slots) as submit:
        return [future.result(20) for future in [submit(job) for job in jobs]]


def test_slots_share_the_cores_and_run_at_once(monkeypatch):
    monkeypatch.setattr(executors, "cores", lambda: 8)
    meeting = threading.Barrier(2, timeout=20)

    def run(job, slot, stop):
        meeting.wait()  # both must be running for either to end
        return {"n": job["n"], "slot": slot, "env": job["env"]}

    results = through(run, [{"n": n} for n in range(4)], 2)
    assert sorted(r["n"] for r in results) == [0, 1, 2, 3]
    assert {r["slot"] for r in results} == {0, 1}
    assert all((r["env"]["VLWS_WORKERS"], r["env"]["OMP_NUM_THREADS"]) == ("4", "4") for r in results)


def test_one_slot_has_all_cores_and_what_the_user_set_stands(monkeypatch):
    monkeypatch.setattr(executors, "cores", lambda: 8)
    run = lambda job, slot, stop: job["env"]  # noqa: E731
    assert through(run, [{}], 3)[0]["VLWS_WORKERS"] == "8"
    monkeypatch.setenv("VLWS_WORKERS", "3")
    assert through(run, [{}], 1)[0]["VLWS_WORKERS"] == "3"


def test_every_slot_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    meeting = threading.Barrier(2, timeout=20)

    def run(job, slot, stop):
        meeting.wait()
        return job["env"]

    seen = {r["CUDA_VISIBLE_DEVICES"] for r in through(run, [{}, {}], 2)}
    assert seen == {"4", "7"}
    assert through(lambda job, slot, stop: job["env"], [{}], 1)[0]["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_leaving_early_stops_what_runs_and_starts_no_more():
    begun, stopped = [], []

    def run(job, slot, stop):
        begun.append(job["n"])
        if job["n"]:
            assert stop.wait(20)
            stopped.append(job["n"])
        return job

    with executors.local(run, 5, 2) as submit:
        assert submit({"n": 0}).result(20)["n"] == 0
        others = [submit({"n": n}) for n in range(1, 5)]
        while len(begun) < 3:
            time.sleep(0.01)
    assert sorted(stopped) == sorted(begun)[1:] == [1, 2]
    assert [future.cancelled() for future in others] == [False, False, True, True]


def test_parsl_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "parsl", None)
    with pytest.raises(InputError, match=r"pip install 'vlws\[cluster\]'"):
        cluster.read_config(tmp_path / "config.py")
