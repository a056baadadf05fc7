"""KeOps operations: `Align`, whose code `vlws_kernels.codegen` writes, and the formulas in which it is called.

A trap shapes this file: KeOps caches compiled formulas by their text, not by the code behind them. So a hash of the
generated code is one of the formula's parameters (`align_formula`).
"""

import functools
import hashlib

import torch
from keopscore.formulas.Operation import Operation
from keopscore.utils.code_gen_utils import c_array

from vlws_kernels.cells import largest_cost
from vlws_kernels.codegen import INDEX, align_code
from vlws_kernels.lanes import own_names
from vlws_kernels.shapes import is_wide
from vlws_kernels.slope_code import slope_code, slopes_size

__all__ = [
    "INDEX",
    "OPERATIONS",
    "Align",
    "align_code",
    "align_formula",
    "align_names",
    "largest_cost",
    "slope_formula",
    "slope_names",
    "slopes_size",
]

RULES = ("gak", "soft", "dtw")
COSTS = ("points", "table", "indexed")
# A register of this CPU. Compilers take wider vectors too, but keep them in memory: at 64 bytes on AVX2 it takes twice
# the time.
VECTOR_BYTES = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 16)


def align_names(rule: str, cost: str, dim: int) -> tuple[str, ...]:
    """The variables of an alignment, in the formula's order."""
    names = ("x",) if cost == "table" else ("x", "y")
    names += ("shifted_x", "shifted_y", "norm_x", "norm_y") if is_wide(cost, dim) else ()
    names += ("len_x", "len_y") if rule == "dtw" else ("len_x", "len_y", "scale")
    return names + (("task",) if cost == "indexed" else ())


class Align(Operation):
    """Align(x, y, len_x, len_y, scale, task | rule, cost, paired, n, m, dim, lanes, code): see the module's docstring.

    Variables (row by row of KeOps's data; `lanes` is the last, contiguous axis):
      cost "points": x "n dim" (or "n dim lanes" if paired), y "m dim lanes", and d is the squared Euclidean distance;
      cost "indexed": the same, but all of x, y, lengths and scales are parameters, of which KeOps passes the start on a
        CPU (only there), and `task` "4" tells the row of x, the block of y, and the row of the scales (in two numbers):
        one call does any set of pairs, and copies nothing;
      from dim WIDE on, both also take shifted_x and shifted_y, x and y less one common vector (of the same shapes), and
        their squared norms norm_x "n" and norm_y "m lanes"; 1 stands for the norm of what is padded;
      cost "table":  x is the table "n m lanes" of costs, and there is no y;
      len_x "1" (or "lanes" if paired) and len_y "lanes", true lengths from 1; scale "lanes", p in s = 2^-(p d).
    Output: "2 lanes", mantissa and exponent, or "lanes" for dtw. There is no DiffT: gradients are those of
    `vlws_kernels.autograd`, which need the table once and not the formula twice.
    """

    string_id = "Align"

    def __init__(self, *args):
        count = len(args) - 8
        super().__init__(*args[:count], params=args[count:])
        rule, cost, paired, n, m, dim, lanes, _ = self.params
        self.spec = (RULES[rule], COSTS[cost], bool(paired), n, m, dim, lanes)
        self.dim = lanes * (1 if RULES[rule] == "dtw" else 2)

    def Op(self, out: c_array, table: list, *args: c_array) -> str:
        return align_code(out.dtype, *self.spec, out.id, tuple(arg.id for arg in args))


def slope_names(rule: str, dim: int) -> tuple[str, ...]:
    """The variables of the slopes, in the formula's order."""
    return (*align_names(rule, "indexed", dim), "weight")


class AlignSlopes(Operation):
    """AlignSlopes(x, y, ..., task, weight | rule, n, m, dim, lanes, code): what the gradient of `Align` is made of.

    Variables as of `Align` with cost "indexed", with a scale for each pair; weight "lanes" has the place of the scale.
    Output: see `slope_code`.
    """

    string_id = "AlignSlopes"

    def __init__(self, *args):
        count = len(args) - 6
        super().__init__(*args[:count], params=args[count:])
        rule, n, m, dim, lanes, _ = self.params
        self.spec = (RULES[rule], "indexed", False, n, m, dim, lanes)
        self.dim = slopes_size(n, m, dim, lanes, is_wide("indexed", dim))

    def Op(self, out: c_array, table: list, *args: c_array) -> str:
        return slope_code(out.dtype, *self.spec, out.id, tuple(arg.id for arg in args))


@functools.cache
def slope_formula(rule: str, n: int, m: int, dim: int, lanes: int) -> str:
    """The KeOps formula of an `AlignSlopes`, its generated code's hash among its parameters."""
    names = slope_names(rule, dim)
    code = code_hash(slope_code, (rule, "indexed", False, n, m, dim, lanes), names)
    return f"AlignSlopes({','.join(names)},{','.join(map(str, (RULES.index(rule), n, m, dim, lanes, code)))})"


@functools.cache
def align_formula(rule: str, cost: str, paired: bool, n: int, m: int, dim: int, lanes: int) -> str:
    """The KeOps formula of an `Align`, its generated code's hash among its parameters."""
    spec = (rule, cost, paired, n, m, dim, lanes)
    names = align_names(rule, cost, dim)
    numbers = (RULES.index(rule), COSTS.index(cost), int(paired), n, m, dim, lanes, code_hash(align_code, spec, names))
    return f"Align({','.join(names)},{','.join(map(str, numbers))})"


def code_hash(generator, spec: tuple, names: tuple[str, ...]) -> int:
    """A hash of the code that `generator` writes; the counters in fresh names are taken out of it."""
    with own_names():
        code = "".join(generator(dtype, *spec, "out", names) for dtype in ("float", "double"))
    return int(hashlib.sha256(code.encode()).hexdigest()[:12], 16)


OPERATIONS = (Align, AlignSlopes)
