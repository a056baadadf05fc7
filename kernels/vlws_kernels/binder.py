"""KeOps's binder for one call on a CPU, without pybind11: a formula compiles in a second, not in ten.

Imported only after KeOps is set up (`engine.operations`).
"""

import ctypes
import os
from pathlib import Path

import pykeops.config
from keopscore.utils.misc_utils import KeOps_OS_Run
from pykeops.common.keops_io.LoadKeOps_cpp import LoadKeOps_cpp_class

SOURCE = """\
#include "{source}"
extern "C" int launch(long long nx, long long ny, int axis, void* out, void** args) {{
  return launch_keops_{tag}<{dtype}>(nx, ny, axis, ({dtype}*)out, ({dtype}**)args);
}}
"""


class PlainBinder(LoadKeOps_cpp_class):
    """Compiles what KeOps generated with a C function around it, and calls that; only without batches and ranges."""

    def init_phase1(self) -> None:
        """Compile the library where there is none; it stands under its name as a whole or not at all."""
        if self._library().exists():
            return
        source, part = (self._library().with_suffix(f".{os.getpid()}.{end}") for end in ("cpp", "so"))
        text = SOURCE.format(source=self.params.source_name, tag=self.params.tag, dtype=self.params.c_dtype)
        source.write_text(text, encoding="utf-8")
        keops = pykeops.config.pykeops_base
        KeOps_OS_Run(f"{keops.get_cxx_compiler()} {keops.get_cpp_flags()} {source} -o {part}")
        source.unlink()
        if part.exists():
            part.replace(self._library())

    def init_phase2(self) -> None:
        """Load the library; OSError where it could not be compiled."""
        self._launch = ctypes.CDLL(str(self._library())).launch
        self._launch.argtypes = [ctypes.c_longlong, ctypes.c_longlong, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def call_keops(self, nx: int, ny: int) -> None:
        """The reduction over the tensors that `genred` has noted."""
        args = (ctypes.c_void_p * len(self.args_ptr_new))(*self.args_ptr_new)
        self._launch(nx, ny, self.params.tagI, self.out_ptr, args)

    def _library(self) -> Path:
        return Path(pykeops.config.pykeops_base.get_build_folder()) / f"{self.params.tag}.so"
