import importlib.util
import threading

import pytest

from vlws.errors import InputError
from vlws.lab import executors


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("VLWS_WORKERS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    executors.gpus.cache_clear()
    yield
    executors.gpus.cache_clear()


def test_slots_share_the_cores_and_run_at_once(monkeypatch):
    monkeypatch.setattr(executors, "cores", lambda: 8)
    meeting = threading.Barrier(2, timeout=20)

    def run(job, slot, stop):
        meeting.wait()  # both must be running for either to end
        return {"n": job["n"], "slot": slot, "env": job["env"]}

    results = list(executors.local(run, [{"n": n} for n in range(4)], slots=2))
    assert sorted(r["n"] for r in results) == [0, 1, 2, 3]
    assert {r["slot"] for r in results} == {0, 1}
    assert all((r["env"]["VLWS_WORKERS"], r["env"]["OMP_NUM_THREADS"]) == ("4", "4") for r in results)


def test_one_slot_has_all_cores_and_what_the_user_set_stands(monkeypatch):
    monkeypatch.setattr(executors, "cores", lambda: 8)
    run = lambda job, slot, stop: job["env"]  # noqa: E731
    assert next(executors.local(run, [{}], slots=3))["VLWS_WORKERS"] == "8"
    monkeypatch.setenv("VLWS_WORKERS", "3")
    assert next(executors.local(run, [{}], slots=1))["VLWS_WORKERS"] == "3"


def test_every_slot_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    meeting = threading.Barrier(2, timeout=20)

    def run(job, slot, stop):
        meeting.wait()
        return job["env"]

    seen = {r["CUDA_VISIBLE_DEVICES"] for r in executors.local(run, [{}, {}], slots=2)}
    assert seen == {"4", "7"}
    assert next(executors.local(lambda job, slot, stop: job["env"], [{}], slots=1))["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_leaving_early_stops_what_runs_and_starts_no_more():
    begun, stopped = [], []

    def run(job, slot, stop):
        begun.append(job["n"])
        if job["n"]:
            assert stop.wait(20)
            stopped.append(job["n"])
        return job

    results = executors.local(run, [{"n": n} for n in range(5)], slots=2)
    assert next(results)["n"] == 0
    results.close()
    assert sorted([0, *stopped]) == sorted(begun)
    assert len(begun) < 5


def test_parsl_says_what_is_missing(tmp_path):
    if importlib.util.find_spec("parsl") is None:
        with pytest.raises(InputError, match=r"pip install 'vlws\[cluster\]'"):
            list(executors.parsl(print, [{}], tmp_path / "config.py"))
        return
    with pytest.raises(InputError, match="no Parsl configuration at"):
        list(executors.parsl(print, [{}], tmp_path / "config.py"))
    (tmp_path / "config.py").write_text("config = 1")
    with pytest.raises(InputError, match=r"does not define `config` as a parsl.Config"):
        list(executors.parsl(print, [{}], tmp_path / "config.py"))
