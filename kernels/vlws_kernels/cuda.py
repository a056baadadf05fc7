"""Kernels of our own on a GPU: compiled by NVRTC, loaded and launched by cuda-core, on torch's current stream."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

THREADS = 128  # of a block, in every kernel
SCALARS = {"int": np.int32, "long long": np.int64, "float": np.float32, "double": np.float64}


@functools.cache
def missing() -> str | None:
    """What is not there to compile and launch kernels with, as a part of a sentence; None where all is."""
    try:
        from cuda.core import Program, ProgramOptions

        Program("", "c++", ProgramOptions(arch="sm_80"))
    except ImportError as error:
        return f"cuda-core and cuda-bindings are not installed (pip install cuda-core cuda-bindings; {error})"
    except Exception as error:  # NVRTC missing, or of a CUDA that cuda-bindings does not know
        return f"NVRTC cannot be used ({type(error).__name__}: {error})"
    return None


@functools.cache
def compiled(source: str, arch: str):
    """The cubin of CUDA source for an architecture such as "sm_90", as cuda-core's ObjectCode. Needs no GPU."""
    from cuda.core import Program, ProgramOptions

    return Program(source, "c++", ProgramOptions(arch=arch, prec_div=False)).compile("cubin")


@functools.cache
def _kernel(source: str, name: str, device: int):
    major, minor = torch.cuda.get_device_capability(device)
    return compiled(source, f"sm_{major}{minor}").get_kernel(name)


def launch(source: str, name: str, threads: int, block: int, arguments: Sequence[tuple[str, Tensor | float]]) -> None:
    """Launch kernel `name` of CUDA `source` with at least `threads` threads, in blocks of `block`.

    `arguments`: the C type and the value of each; tensors, all on one device, go as pointers and None as a null one.
    The launch is put on torch's current stream of that device and is not waited for.
    """
    from cuda.core import Device, LaunchConfig
    from cuda.core import launch as launch_on

    device = next(value.device for _, value in arguments if isinstance(value, Tensor))
    with torch.cuda.device(device):
        Device(device.index).set_current()
        values = [_as_argument(kind, value) for kind, value in arguments]
        config = LaunchConfig(grid=-(-threads // block), block=block)
        launch_on(torch.cuda.current_stream(device), config, _kernel(source, name, device.index), *values)


def _as_argument(kind: str, value: Tensor | float | None):
    if value is None:
        return 0
    return value.data_ptr() if isinstance(value, Tensor) else SCALARS[kind](value)
