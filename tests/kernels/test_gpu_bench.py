"""`kernels/bench/gpu.py` without a GPU: refused, tried on the CPU, and a child that dies is followed by another."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "kernels" / "bench"
CHILD = """
import json, os, signal, sys
for name in json.load(sys.stdin):
    print(json.dumps({"start": name}), flush=True)
    if name == "dies":
        os.kill(os.getpid(), signal.SIGFPE)
    if name == "hangs":
        signal.pause()
    print(json.dumps({"name": name, "ok": True}), flush=True)
    if name == "breaks":
        sys.exit(77)
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCH)
    import gpu

    return gpu


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, BENCH / "gpu.py", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_and_2() -> None:
    done = run("--json")
    assert done.returncode == 2
    assert "no GPU is found" in json.loads(done.stdout)["error"]
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_same_steps_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("--device", "cpu", "--json", "--out", str(out))
    results = json.loads(done.stdout)
    assert results["failed"] == [], done.stderr
    assert done.returncode == 0, done.stderr
    assert results["complete"]
    assert results == json.loads(out.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    assert {"cpu", "gpu", "driver", "cuda", "versions", "kernels"} <= set(results["machine"])
    steps = results["steps"]
    for name in ("gak", "soft_dtw", "dtw"):
        for form in ("ragged", "symmetric", "table", "modality", "degenerate"):
            errors = steps[f"check {name} {form} 8x6 D2 float32"]["errors"]
            assert "value" in errors
            assert any("gradient" in key for key in errors)
    assert all(steps[f"time {name} N12 L8 D2"]["ratio"] > 0 for name in ("gak", "soft_dtw", "dtw"))


def test_a_child_that_dies_hangs_or_breaks_is_followed_by_another(gpu) -> None:
    names = ["one", "dies", "two", "hangs", "three", "breaks", "four"]
    entries = dict(gpu.supervise(names, [sys.executable, "-c", CHILD], time.monotonic() + 60, limit=2.0))
    assert list(entries) == names
    assert [name for name, entry in entries.items() if not entry["ok"]] == ["dies", "hangs"]
    assert entries["dies"]["died"] == "killed by SIGFPE"
    assert "too long" in entries["hangs"]["died"]


def test_a_child_that_never_begins_ends_the_run_with_its_words(gpu) -> None:
    code = "import sys; sys.stdin.read(); sys.exit('no such thing')"
    entries = dict(gpu.supervise(["one", "two"], [sys.executable, "-c", code], time.monotonic() + 60, limit=2.0))
    assert [entry["died"] for entry in entries.values()] == ["exit code 1"] * 2
    assert "no such thing" in entries["one"]["stderr"]


def test_no_folder_of_this_machine_is_kept(gpu) -> None:
    code = f"import sys; sys.stdin.read(); sys.exit('{gpu.ROOT}/kernels/x.py of {sys.prefix}/lib, {gpu.Path.home()}/y')"
    entries = dict(gpu.supervise(["one"], [sys.executable, "-c", code], time.monotonic() + 60, limit=2.0))
    assert entries["one"]["stderr"].strip() == "kernels/x.py of python/lib, ~/y"

    def failing():
        raise OSError(f"{gpu.ROOT}/kernels/x.py")

    from gpu_checks import Check

    entry, _ = gpu.step(Check("x", failing), "cpu")
    assert entry["raised"] == "OSError: kernels/x.py"
    assert str(gpu.ROOT) not in entry["trace"]


def test_steps_of_the_same_code_and_hardware_are_not_done_again(gpu, tmp_path) -> None:
    about = {"gpu": "a card", "kernels": "hash", "versions": {"torch": "2"}, "device": "cuda"}
    file, steps = tmp_path / "gpu.json", {"good": {"ok": True}, "bad": {"ok": False}}
    assert gpu.kept(file, about) == gpu.kept(None, about) == {}
    file.write_text(json.dumps({"machine": about, "steps": steps}))
    assert gpu.kept(file, about) == {"good": {"ok": True}}
    for changed in ({"kernels": "other"}, {"gpu": "another card"}):
        assert gpu.kept(file, about | changed) == {}
    file.write_text('{"machine": ')
    assert gpu.kept(file, about) == {}


def test_time_that_is_up_leaves_steps_out(gpu) -> None:
    command = [sys.executable, "-c", CHILD]
    assert list(gpu.supervise(["one"], command, time.monotonic() - 1, limit=2.0)) == []


def test_a_wrong_value_fails_the_step(gpu) -> None:
    from gpu_checks import Check, off

    assert off(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    entry, healthy = gpu.step(Check("x", lambda: {"errors": {"value": 1e-3}, "tolerance": 1e-4}), "cpu")
    assert not entry["ok"]
    assert healthy
    entry, _ = gpu.step(Check("x", lambda: 1 / 0), "cpu")
    assert entry["raised"].startswith("ZeroDivisionError")
