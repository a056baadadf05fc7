"""Which engine computes, and KeOps set up so that it is quiet, quick and safe to use from several processes.

Three engines: `keops` (C++ or CUDA generated from the formulas of `vlws_kernels.ops`; on a GPU also the wavefront, from
the same generator), `torch` (plain tensor code, for machines without a compiler) and `reference` (dense float64, for
tests). KeOps is imported on first use only.
"""

import contextlib
import ctypes.util
import functools
import io
import os
import shlex
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator

import torch

from vlws_kernels import cuda
from vlws_kernels.folder import CompileError, cache_folder, locked
from vlws_kernels.shapes import is_short, launch_refusal, local_limit

ENGINES = ("keops", "torch", "reference")

# KeOps compiles ISO C++11, where GCC does not fuse multiplications and additions unless told to. `-ffast-math` is left
# out on purpose: linked into a shared library it switches the whole process to flush denormal numbers to zero.
CXXFLAGS = "-march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math"

_ready: dict[tuple, Callable] = {}  # the formulas that this process has compiled or loaded
_given_up: list[str] = []  # why KeOps is not chosen any more, once it could not compile


def give_up(error: CompileError) -> None:
    """Choose KeOps no more in this process, unless it is asked for by name; warns once."""
    _given_up.append("KeOps cannot compile")
    warn_once(f"vlws_kernels: {error}\nso the slower 'torch' engine is used.")


def choose(engine: str | None, *tensors: torch.Tensor) -> str:
    """The engine to use: the one asked for, or `keops` where it can run on these tensors' device, else `torch`.

    Raises ValueError for an unknown name, and RuntimeError when `keops` is asked for and cannot run.
    """
    if engine not in (*ENGINES, None):
        raise ValueError(f"engine is {engine!r}; it must be one of 'keops', 'torch', 'reference', or None to choose.")
    if engine in ("torch", "reference"):
        return engine
    if engine is None and _given_up:
        return "torch"
    if tensors and tensors[0].is_cuda:
        if cuda.missing() is None or keops_has_cuda():
            return "keops"
        missing = f"{cuda.missing()}, and KeOps finds no CUDA toolkit (libcuda, libnvrtc and libcudart)"
    elif compiler() is not None:
        return "keops"
    else:
        missing = "no C++ compiler is found (g++ on the PATH, or named by CXX)"
    if engine == "keops":
        raise RuntimeError(f"engine 'keops' cannot run: {missing}; engine 'torch' can, more slowly.")
    warn_once(f"vlws_kernels: {missing}, so the slower 'torch' engine is used.")
    return "torch"


def launchable(engine: str, rule: str, cost: str, n: int, m: int, x: torch.Tensor) -> str:
    """`engine`; on a GPU, for `keops`, what does it best: KeOps's own kernel for short sequences, else `wavefront`.

    `cost` is "points" or "table", `n` and `m` are lengths. Where the wavefront cannot run, KeOps does what it would not
    die of (`shapes.launch_refusal`), and `torch` the rest, with one warning.
    """
    if engine != "keops" or x.device.type != "cuda":
        return engine
    missing = cuda.missing()
    if missing is None and not (keops_has_cuda() and is_short(cost, n, m, x.shape[-1])):
        return "wavefront"
    refusal = launch_refusal(rule, cost, n, m, x.shape[-1], x.element_size(), local_memory(x.device))
    if refusal is None:
        return engine
    warn_once(f"vlws_kernels: on the GPU {refusal}, and {missing}, so the slower 'torch' engine is used.")
    return "torch"


@functools.cache
def keops_has_cuda() -> bool:
    """Whether KeOps finds all that it needs of CUDA."""
    return bool(_keops().cuda_config.get_use_cuda())


@functools.cache
def local_memory(device: torch.device) -> int:
    """Bytes of local memory that each thread of a GPU may have."""
    card = torch.cuda.get_device_properties(device)
    return local_limit(card.total_memory, card.multi_processor_count * card.max_threads_per_multi_processor)


@functools.cache
def compiler() -> str | None:
    """The path of the C++ compiler that KeOps will call, or None."""
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("g++") or shutil.which("clang++")


@functools.cache
def warn_once(message: str) -> None:
    """Warn, once a process and message."""
    warnings.warn(message, RuntimeWarning, stacklevel=4)


@contextlib.contextmanager
def threads(small: bool) -> Iterator[None]:
    """Within, small work is done on one thread: to wake the others costs 6 to 50 us an operation (measured)."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1 if small else usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@contextlib.contextmanager
def _whole_toolkit() -> Iterator[None]:
    """Within, the CUDA driver is not found where libcudart is not: KeOps's import would raise TypeError for it."""
    find = ctypes.util.find_library

    def find_library(name: str) -> str | None:
        found = find(name)
        if name == "cuda" and found and find("nvrtc") and not find("cudart"):
            warn_once(
                "vlws_kernels: the CUDA driver and NVRTC are found but libcudart is not, so KeOps runs on the CPU only."
            )
            return None
        return found

    ctypes.util.find_library = find_library
    try:
        yield
    finally:
        ctypes.util.find_library = find


def _quote_paths(config) -> None:
    """KeOps's commands for a shell, with the paths of its headers quoted: its own folder, pybind11's and Python's."""
    import pybind11
    import pykeops.config
    from pykeops.common.keops_io import LoadKeOps_cpp

    # Link-time optimization of one file gains nothing, and takes a quarter of the compile time.
    flags = config.cpp_flags.replace(" -flto=auto", "")
    for path in (f"{config.base_dir_path}/include", config.bindings_source_dir):
        flags = flags.replace(f" -I{path} ", f" -I{shlex.quote(path)} ")
    config.cpp_flags = flags
    headers = dict.fromkeys([sysconfig.get_path("include"), sysconfig.get_path("platinclude"), pybind11.get_include()])
    includes = " ".join(f"-I{shlex.quote(path)}" for path in headers)
    pykeops.config.python_includes = LoadKeOps_cpp.python_includes = includes


@functools.cache
def _keops():
    """keopscore, imported once: silent, with our flags, our cache folder and our operations known to its formulas."""
    import atexit

    os.environ["KEOPS_CACHE_FOLDER"] = str(cache_folder())
    given = os.environ.get("CXXFLAGS")
    os.environ["CXXFLAGS"] = CXXFLAGS if given is None else given
    said = io.StringIO()
    try:
        with locked(), contextlib.redirect_stdout(said), _whole_toolkit():
            import keopscore
            import pykeops
            import pykeops.torch
            from keopscore.get_keops_dll import get_keops_dll
            from pykeops.common.keops_io import keops_binder

        _quote_paths(keopscore.config)
    finally:
        if given is None:
            del os.environ["CXXFLAGS"]
    pykeops.set_verbose(True)  # we capture what it says, and show it when something fails
    # KeOps pickles its tables of formulas at exit, without a lock; rebuilding them takes milliseconds, so we do that.
    for table in (get_keops_dll, *keops_binder.values()):
        atexit.unregister(table.save_cache)

    import keopscore.formulas

    from vlws_kernels import ops

    namespace = sys.modules["keopscore.formulas.GetReduction"]
    for operation in ops.OPERATIONS:
        setattr(namespace, operation.string_id, operation)
        setattr(keopscore.formulas, operation.string_id, operation)
    return keopscore


def operations():
    """The module `vlws_kernels.ops`; it imports KeOps, so it is reached only this way, after KeOps is set up."""
    _keops()
    from vlws_kernels import ops

    return ops


def reduce(
    formula: str,
    aliases: list[str],
    *args: torch.Tensor,
    reduction: str = "Sum",
    k: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """One KeOps reduction over `j`, result indexed by `i`; the first call of a formula compiles it (seconds).

    `formula` and `aliases` are KeOps's own strings. Raises CompileError, a RuntimeError with the compiler's words,
    when it cannot be compiled.
    """
    args = tuple(arg.contiguous() for arg in args)
    batched = max(arg.dim() for arg in args) > 2
    dtype, device = str(args[0].dtype).removeprefix("torch."), args[0].device
    key = (formula, tuple(aliases), reduction, k, dtype, device, batched)
    if key in _ready:
        return _ready[key](args, out)
    said = io.StringIO()
    _keops()
    with locked():
        try:
            with contextlib.redirect_stdout(said):
                _ready[key] = _bind(*key)
        except (ImportError, NameError, TypeError, ValueError, OSError) as error:
            raise CompileError(f"KeOps could not compile {formula}: {error}\n{said.getvalue()}") from error
    return _ready[key](args, out)


def _bind(
    formula: str,
    aliases: tuple[str, ...],
    reduction: str,
    k: int | None,
    dtype: str,
    device: torch.device,
    batched: bool,
) -> Callable[[tuple[torch.Tensor, ...], torch.Tensor | None], torch.Tensor]:
    """Compile a formula if need be, and return the call of its binary: what `Genred.__call__` does anew each time.

    Its ten layers cost more than a small alignment matrix does; gradients are ours.
    """
    from pykeops.common.keops_io import keops_binder
    from pykeops.common.operations import postprocess
    from pykeops.torch import Genred

    from vlws_kernels.binder import PlainBinder

    cuda = device.type == "cuda"
    plan = Genred(formula, list(aliases), reduction_op=reduction, axis=1, opt_arg=k, sum_scheme="direct_sum")
    flags = {**plan.optional_flags, "multVar_highdim": 0}
    index = (device.index or 0) if cuda else -1
    where = (int(cuda), 0, int(cuda), batched, index)
    load = keops_binder["nvrtc"] if cuda else keops_binder["cpp"] if batched else PlainBinder
    binder = load(*where, plan.formula, plan.aliases, plan.nargs, dtype, "torch", flags).import_module()

    first = {kind: next((k for k, alias in enumerate(aliases) if f"={kind}(" in alias), None) for kind in ("Vi", "Vj")}

    def call(args: tuple[torch.Tensor, ...], out: torch.Tensor | None) -> torch.Tensor:
        nx, ny = (1 if k is None else args[k].shape[-2] for k in first.values())
        batch = max(arg.dim() for arg in args) - 2
        out = binder.genred_pytorch(device, None, nx, ny, batch, out, *args)
        return postprocess(out, "torch", reduction, nx, k, dtype)

    return call
