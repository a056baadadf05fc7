"""KeOps as we set it up: its traps pinned, its cache safe, and what happens without a compiler."""

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import vlws_kernels as vk
from vlws_kernels import engine as engines
from vlws_kernels import keops

needs_compiler = pytest.mark.skipif(engines.compiler() is None, reason="no C++ compiler")

ONE_CALL = """
    import torch, vlws_kernels as vk
    x = torch.arange(96.0).view(8, 6, 2).sin()
    print(vk.soft_dtw(x, gamma=0.3).double().sum().item())
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_compiler
def test_capture_trap() -> None:
    """KeOps 2.3's own SoftDTW_SqDist declares `i` and `j`, captures those of its arguments and is silently wrong.

    It reads memory that nobody wrote: what it returns differs from machine to machine, and may be NaN.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(5, 8, generator=generator), torch.rand(6, 8, generator=generator)
    theirs = engines.reduce(
        "SoftDTW_SqDist(x,y,gamma)", ["x=Vi(8)", "y=Pm(8)", "gamma=Pm(1)"], x, y[0], torch.tensor([0.5])
    )[:, 0]
    truth = vk.soft_dtw(x[..., None], y[:1, :, None], gamma=0.5, engine="reference")[:, 0]
    ours = vk.soft_dtw(x[..., None], y[:1, :, None], gamma=0.5, engine="keops")[:, 0]
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(theirs.double(), truth.double(), atol=0.1), (
        "KeOps has mended SoftDTW_SqDist: say so in kernels/README.md"
    )


@needs_compiler
def test_arguments_are_bound_before_anything_is_declared() -> None:
    """Our code survives arguments that are expressions in any of the names that KeOps uses."""
    ops = engines.operations()
    spec = ("float", "soft", "indexed", False, 8, 8, 2, 16)
    code = ops.align_code(
        *spec,
        "fout",
        ("(arg_0[0]+i*16)", "(arg_0[1]+j*256)", "(arg_0[2]+i)", "(arg_0[3]+j)", "(a+k)", "(arg_0[5]+i*4)"),
    )
    head, _, body = code.partition("typedef")
    assert head.count("(arg_0[") == 5
    assert "arg_0" not in body
    assert "(a+k)" not in body


@needs_compiler
def test_stale_cache_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the generated code changes, so does the formula's text, by which KeOps caches."""
    ops = engines.operations()
    from vlws_kernels import codegen, lanes

    spec = ("soft", "indexed", False, 8, 8, 2, 16)
    ops.align_formula.cache_clear()
    before = ops.align_formula(*spec)
    assert lanes.fresh("x")  # counters of fresh names must not matter
    ops.align_formula.cache_clear()
    assert ops.align_formula(*spec) == before
    monkeypatch.setattr(codegen, "STRIP", 2)
    ops.align_formula.cache_clear()
    changed = ops.align_formula(*spec)
    ops.align_formula.cache_clear()
    assert changed != before


FORMS = {
    ("float", "gak", "points", False, 8, 8, 2, 1): "2227ddd0e2d89a05",
    ("float", "soft", "indexed", False, 8, 8, 2, 16): "9ef6eb50bffa720c",
    ("float", "gak", "indexed", False, 32, 8, 48, 16): "bc326fa48f5e4eab",
    ("float", "dtw", "table", True, 8, 8, 2, 16): "f21a639f7db53b85",
    ("double", "gak", "table", True, 8, 8, 2, 1): "d48abfddd5932beb",
    ("double", "dtw", "points", False, 32, 8, 48, 1): "57ddd3db0ea3e4eb",
}


@needs_compiler
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_generated_code_is_the_known_one(form: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rearrangement of the generator must not change the code: it would invalidate compiled formulas and timings.

    Where the code is meant to change, take the new hashes and time the kernels anew. The polynomial's coefficients are
    replaced: their last bits hang on the machine's linear algebra.
    """
    ops = engines.operations()
    from vlws_kernels import cells, lanes

    monkeypatch.setattr(cells, "exp2_polynomial", lambda degree: [1 / (k + 1) for k in range(degree + 1)])
    monkeypatch.setattr(lanes.new_c_varname, "dict_instances", {})
    _, rule, cost, *_, dim, _ = form
    code = ops.align_code(*form, "out", ops.align_names(rule, cost, dim))
    assert hashlib.sha256(code.encode()).hexdigest()[:16] == FORMS[form]


@needs_compiler
@pytest.mark.parametrize(("rule", "dim"), [("dtw", 2), ("soft", 32)])
def test_scalar_code_is_that_of_the_lanes(rule: str, dim: int) -> None:
    """With one lane the code is plain scalar C, as CUDA needs it; compiled for the CPU it gives the same values."""
    x = torch.randn(7, 8, dim, generator=torch.Generator().manual_seed(1))
    full = torch.full((7,), 8)
    operands = keops.operands(x, full, None, dim == 32, 8, dim)
    variables = {f"{side}x": values for side, values in operands.items()}
    variables |= {f"{side}y": values[:1] for side, values in operands.items()}
    variables["scale"] = torch.full((7, 1), keops.LOG2E / 0.5)
    value = keops.align(rule, variables, 8, 8, dim, 1)
    value = value if rule == "dtw" else -0.5 * value
    expected = (
        vk.dtw(x, x[:1], engine="reference") if rule == "dtw" else vk.soft_dtw(x, x[:1], gamma=0.5, engine="reference")
    )
    torch.testing.assert_close(value.float(), expected, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    code = [sys.executable, "-c", textwrap.dedent(ONE_CALL)]
    environment = {**os.environ, "KEOPS_CACHE_FOLDER": str(tmp_path)}
    both = [
        subprocess.Popen(code, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert [err for _, err in said] == ["", ""]
    assert not list(tmp_path.glob("compiling"))
    assert not list(tmp_path.rglob("*.pkl")), "KeOps's unlocked pickles must not be written"

    # A compilation that was killed half way: what it left is neither believed nor in the way.
    library = next(tmp_path.rglob("*.so"))
    (tmp_path / "compiling").touch()
    library.write_bytes(library.read_bytes()[:1000])
    for path in tmp_path.rglob("*.nfo"):
        path.write_text("half")
    again = run(ONE_CALL, KEOPS_CACHE_FOLDER=str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert again.stdout == said[0][0]


@needs_compiler
def test_one_thread_and_two_agree() -> None:
    code = ONE_CALL.replace("    x =", "    vk.inputs.SMALL = 0\n    x =")  # else so small a call is done on one
    one, two = (run(code, OMP_NUM_THREADS=count) for count in ("1", "2"))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout == two.stdout != ""


def test_small_work_on_one_thread_leaves_the_number_of_threads() -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with engines.threads(small=False):
            assert torch.get_num_threads() == 2
        with engines.threads(small=True):
            assert torch.get_num_threads() == 1
        with pytest.raises(TypeError), engines.threads(small=True):
            len(None)
        assert torch.get_num_threads() == 2
        vk.soft_dtw(torch.zeros(2, 3, 1), engine="torch")
        vk.kmeans(torch.zeros(4, 2), 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)


def test_without_a_compiler(tmp_path: Path) -> None:
    """Torch takes over with one warning; asking for KeOps by name is refused in one sentence."""
    code = """
        import warnings, torch, vlws_kernels as vk
        x = torch.randn(3, 4, 2)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            vk.gak(x); vk.dtw(x); vk.soft_dtw(x)
            vk.knn(x[0], x[1], 2)
        print(len(seen), seen[0].message)
        try:
            vk.gak(x, engine="keops")
        except RuntimeError as error:
            print(error)
    """
    done = run(code, PATH=str(tmp_path), CXX="", KEOPS_CACHE_FOLDER=str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().splitlines()
    assert first.startswith("1 vlws_kernels: no C++ compiler")
    assert second.startswith("engine 'keops' cannot run: no C++ compiler")


@needs_compiler
def test_a_home_that_a_shell_would_not_take_as_it_is(tmp_path: Path) -> None:
    """KeOps does not quote the paths in its commands: it compiles through a link, and the files lie in the home."""
    code = """
        import os, vlws_kernels as vk
        x = __import__("torch").ones(2, 3, 2)
        print(vk.dtw(x, engine="keops").sum().item())
        print(vk.engine.cache_folder())
    """
    name = "Jane O'Hara (1)"
    (tmp_path / name).mkdir()
    done = run(code, HOME=str(tmp_path / name), XDG_CACHE_HOME="", KEOPS_CACHE_FOLDER="")
    assert (done.returncode, done.stderr) == (0, "")
    value, link = done.stdout.strip().splitlines()
    Path(link).unlink()
    assert value == "0.0"
    assert shlex.quote(link) == link
    assert list((tmp_path / name / ".cache" / "vlws_kernels").rglob("*.so"))


@needs_compiler
def test_packages_in_a_folder_that_a_shell_would_not_take_as_it_is(tmp_path: Path) -> None:
    for name in ("keopscore", "pykeops", "pybind11"):
        origin = Path(importlib.util.find_spec(name).origin).parent
        shutil.copytree(origin, tmp_path / "my packages" / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = f"{tmp_path / 'my packages'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = run(
        ONE_CALL + "    import keopscore; print(keopscore.__file__)", PYTHONPATH=path, KEOPS_CACHE_FOLDER=str(tmp_path)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "my packages" in done.stdout


@needs_compiler
@pytest.mark.parametrize("fault", ["compiler", "folder"])
def test_torch_takes_over_where_nothing_can_be_compiled(tmp_path: Path, fault: str) -> None:
    """One warning with the cause, then the values of torch; asked for by name, KeOps is refused."""
    code = """
        import warnings, torch, vlws_kernels as vk
        x = torch.arange(96.0).view(8, 6, 2).sin()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            same = torch.equal(vk.soft_dtw(x), vk.soft_dtw(x, engine="torch")), torch.equal(vk.dtw(x), vk.dtw(x))
        print(*same, len(seen), str(seen[0].message).splitlines()[0])
        try:
            vk.gak(x, engine="keops")
        except RuntimeError as error:
            print(type(error).__name__)
    """
    (tmp_path / "file").write_text("")
    (tmp_path / "g++").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    environment = {
        "compiler": {"CXX": str(tmp_path / "g++"), "KEOPS_CACHE_FOLDER": str(tmp_path / "cache")},
        "folder": {"KEOPS_CACHE_FOLDER": str(tmp_path / "file")},
    }
    done = run(code, **environment[fault])
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().splitlines()
    told = {"compiler": "KeOps could not compile", "folder": "the folder of compiled kernels"}[fault]
    assert first.startswith(f"True True 1 vlws_kernels: {told}")
    assert second == "CompileError"


@needs_compiler
def test_driver_without_libcudart(tmp_path: Path) -> None:
    """KeOps's import raises TypeError for it; calls on the CPU go on, and one sentence tells why no GPU is used."""
    code = """
        import ctypes.util, warnings, torch
        find = ctypes.util.find_library
        libm = find("m")
        fake = {"cuda": libm, "nvrtc": libm, "cudart": None}
        ctypes.util.find_library = lambda name: fake[name] if name in fake else find(name)
        import vlws_kernels as vk
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            print(vk.dtw(torch.ones(2, 3, 2), engine="keops").tolist())
        print(len(seen), seen[0].message)
    """
    done = run(code, KEOPS_CACHE_FOLDER=str(tmp_path))
    assert done.returncode == 0, done.stderr
    values, warning = done.stdout.strip().splitlines()
    assert values == "[[0.0, 0.0], [0.0, 0.0]]"
    assert warning.startswith("1 vlws_kernels: the CUDA driver and NVRTC are found but libcudart is not, so KeOps runs")


@needs_compiler
def test_compile_error_is_shown() -> None:
    with pytest.raises(RuntimeError, match="could not compile"):
        engines.reduce("Nonsense(x)", ["x=Vi(2)"], torch.ones(3, 2))


@needs_compiler  # without one there is a warning, which test_without_a_compiler reads
def test_importing_is_silent_and_leaves_the_environment() -> None:
    code = """
        import os
        before = dict(os.environ)
        import vlws_kernels, sys
        assert "keopscore" not in sys.modules
        vlws_kernels.dtw(__import__("torch").ones(2, 2, 2))
        after = dict(os.environ)
        after.pop("KEOPS_CACHE_FOLDER", None), before.pop("KEOPS_CACHE_FOLDER", None)
        assert before.get("CXXFLAGS") == after.get("CXXFLAGS"), after
    """
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
