"""CUDA kernels on a CPU: the generated source compiled as C++, its threads run warp by warp, in step at every shuffle.

A warp's 32 threads are coroutines. Each goes on to its next shuffle and waits there until all have come; a thread that
ends while others wait, on which a GPU would hang or read nonsense, is an error.
"""

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vlws_kernels import engine as engines

C_TYPES = {"int": ctypes.c_int, "long long": ctypes.c_longlong, "float": ctypes.c_float, "double": ctypes.c_double}

PRELUDE = """
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
static struct { unsigned x, y, z; } threadIdx, blockIdx, blockDim;
static ucontext_t scheduler, threads[32];
static char* stacks[32];
static bool ended[32];
static unsigned rounds[32];
static unsigned long long slots[2][32];
static int now;

static unsigned long long exchange(unsigned long long value, int from) {
  const int phase = rounds[now]++ & 1, me = now;
  slots[phase][me] = value;
  swapcontext(&threads[me], &scheduler);
  return slots[phase][from];
}
template <class T> static T shuffle(T value, int from) {
  unsigned long long bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange(bits, from);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T> static T __shfl_up_sync(unsigned, T value, int by, int width) {
  const int lane = now % width;
  return shuffle(value, lane < by ? now : now - by);
}
template <class T> static T __shfl_xor_sync(unsigned, T value, int by) { return shuffle(value, now ^ by); }
static void __syncwarp() { exchange(0, now); }
"""

RUN = """
static void** given;
static void body() {{
  {name}({arguments});
  ended[now] = true;
  swapcontext(&threads[now], &scheduler);
}}
extern "C" int run(long long blocks, int block, void** arguments) {{
  given = arguments;
  for (int w = 0; w < 32; w++) if (!stacks[w]) stacks[w] = (char*)malloc(1 << 16);
  for (long long b = 0; b < blocks; b++) for (int warp = 0; warp < block / 32; warp++) {{
    for (int w = 0; w < 32; w++) {{
      ended[w] = false; rounds[w] = 0;
      getcontext(&threads[w]);
      threads[w].uc_stack.ss_sp = stacks[w]; threads[w].uc_stack.ss_size = 1 << 16; threads[w].uc_link = &scheduler;
      makecontext(&threads[w], body, 0);
    }}
    for (int left = 32; left;) {{
      int ending = 0;
      for (now = 0; now < 32; now++) {{
        threadIdx.x = warp * 32 + now; blockIdx.x = (unsigned)b; blockDim.x = block;
        swapcontext(&scheduler, &threads[now]);
        ending += ended[now];
      }}
      if (ending && ending < 32) return 1;
      left = 32 - ending;
    }}
  }}
  return 0;
}}
"""


def launch(source: str, name: str, threads: int, block: int, arguments: Sequence[tuple[str, Tensor | float]]) -> None:
    """What `vlws_kernels.cuda.launch` does, on the CPU and for tensors of the CPU."""
    values = [_as_argument(kind, value) for kind, value in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    run = _compiled(source, name, tuple(kind for kind, _ in arguments))
    assert run(ctypes.c_longlong(-(-threads // block)), ctypes.c_int(block), pointers) == 0, (
        "a thread ended while others of its warp waited for it"
    )


def _as_argument(kind: str, value: Tensor | float | None):
    if not kind.endswith("*"):
        return C_TYPES[kind](value)
    if value is None:
        return ctypes.c_void_p(None)
    itemsize = ctypes.sizeof(C_TYPES[kind.removeprefix("const ").rstrip("*")])
    assert value.device.type == "cpu"
    assert value.is_contiguous()
    assert value.element_size() == itemsize
    return ctypes.c_void_p(value.data_ptr())


@functools.cache
def _compiled(source: str, name: str, kinds: tuple[str, ...]):
    arguments = ", ".join(f"*({kind}*)given[{k}]" for k, kind in enumerate(kinds))
    text = PRELUDE + source + RUN.format(name=name, arguments=arguments)
    folder = Path(tempfile.mkdtemp(prefix="vlws-emulation-"))
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.cpp"
    file.write_text(text)
    command = [
        engines.compiler(),
        "-O1",
        "-fno-strict-aliasing",
        "-shared",
        "-fPIC",
        "-o",
        file.with_suffix(".so"),
        file,
    ]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(file.with_suffix(".so"))).run
