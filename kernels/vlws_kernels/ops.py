"""KeOps operations: Python that writes C++ and CUDA for the alignment recursions.

`Align` fills the table of one sequence `x_i` against a block of `lanes` sequences `y_j`, one sequence a SIMD lane, so
that the recursion, serial within a pair, is vectorised across pairs. On a GPU a lane is a thread and `lanes` is 1; the
generated code is then plain scalar C.

    rule   cell (i, j) of the table                                  written for each pair
    gak    M = k (M[i-1,j] + M[i,j-1] + M[i-1,j-1]), k = s/(2-s)      log2 M[n,m] as mantissa and exponent
    soft   the same with k = s, s = 2^-(p d): soft-DTW is -log M      the same
    dtw    R = d + min(R[i-1,j], R[i,j-1], R[i-1,j-1])                R[n,m]

The sums run in the linear domain. Each value is a pair (mantissa, exponent) of floats, rescaled cell by cell, so that
nothing overflows or vanishes whatever the costs: one exponential a cell (an explicit polynomial), none in the
recursion, and no logarithm at all. The log domain would need two exponentials and a logarithm for each cell.

Costs of many dimensions are inner products, 4 x 4 cells at a time in registers, and differences where those cancel.

Two traps shape this code. KeOps passes an argument as an expression such as `(arg_0[0]+i*64)`: code that declares its
own `i` captures it, so every argument is bound to a fresh pointer before anything else is declared, and every name is
fresh. And KeOps caches compiled formulas by their text, not by the code behind them: a hash of the generated code is
one of the formula's parameters (`formula`).
"""

import functools
import hashlib
from collections.abc import Callable

import numpy as np
from keopscore.formulas.Operation import Operation
from keopscore.utils.code_gen_utils import c_array, new_c_varname

RULES = ("gak", "soft", "dtw")
COSTS = ("points", "table", "indexed")
STRIP = 4
WIDE = 32  # from this dim on, costs are formed as inner products, STRIP x COLUMNS at a time
COLUMNS = 4
NEAR = 0.25  # a cost below this share of |x|^2 + |y|^2 is formed from the differences
INDEX = 2**20  # an index that a float32 cannot hold comes as two numbers: index // INDEX and index % INDEX
VECTOR_BYTES = 64  # one AVX-512 register; GCC and Clang split it where registers are narrower


@functools.cache
def exp2_polynomial(degree: int) -> list[float]:
    """Coefficients, lowest first, of the Chebyshev interpolant of 2^f on [-1/2, 1/2]."""
    interpolant = np.polynomial.Chebyshev.interpolate(np.exp2, degree, domain=[-0.5, 0.5])
    return [float(c) for c in interpolant.convert(kind=np.polynomial.Polynomial).coef]


def is_wide(cost: str, dim: int) -> bool:
    """Whether the costs come from inner products."""
    return cost != "table" and dim >= WIDE


def align_names(rule: str, cost: str, dim: int) -> tuple[str, ...]:
    """The variables of an alignment, in the formula's order."""
    names = ("x",) if cost == "table" else ("x", "y")
    names += ("shifted_x", "shifted_y", "norm_x", "norm_y") if is_wide(cost, dim) else ()
    names += ("len_x", "len_y") if rule == "dtw" else ("len_x", "len_y", "scale")
    return names + (("task",) if cost == "indexed" else ())


def align_code(
    dtype: str,
    rule: str,
    cost: str,
    paired: bool,
    n: int,
    m: int,
    dim: int,
    lanes: int,
    out: str,
    args: tuple[str, ...],
) -> str:
    """C code of one alignment block; `args` are expressions of the variables of `align_names`."""
    real = {"float": np.float32, "double": np.float64}[dtype]
    integer = {"float": "int", "double": "long long"}[dtype]
    size, mantissa_bits = np.dtype(real).itemsize, np.finfo(real).nmant  # 23 or 52
    bias = np.finfo(real).maxexp - 1  # 127 or 1023
    strip = 1 if paired else min(STRIP, n)  # rows of the table that advance together
    linear = rule != "dtw"
    wide = is_wide(cost, dim)
    columns = COLUMNS if wide else 1

    def fresh(name: str, count: int = 0):
        return [new_c_varname(f"vk_{name}") for _ in range(count)] if count else new_c_varname(f"vk_{name}")

    V, U, B, M, E, corner = (fresh(name) for name in ("V", "U", "B", "M", "E", "corner"))
    px, py, lx, ly, ps, pt, result = (fresh(name) for name in ("x", "y", "lx", "ly", "p", "task", "out"))
    cx, cy, nx, ny = (fresh(name) for name in ("cx", "cy", "nx", "ny"))
    i, j, k, w, rows, cols = (fresh(name) for name in ("i", "j", "k", "w", "rows", "cols"))

    # Scalars and vectors of lanes are written alike; only the types, the constants and the bit casts differ.
    if lanes == 1:
        types = f"typedef {dtype} {V}; typedef {dtype} {U}; typedef {integer} {B};\n"
        types += f"union {V}_bits {{ {dtype} real; {integer} bits; }};\n"
    else:
        vector = f"vector_size({lanes * size})"
        types = f"typedef {dtype} {V} __attribute__(({vector}));\n"
        types += f"typedef {dtype} {U} __attribute__(({vector}, aligned({size}), may_alias));\n"
        types += f"typedef {integer} {B} __attribute__(({vector}));\n"

    def const(value: float) -> str:
        number = repr(float(value)) + ("f" if dtype == "float" else "")
        return number if lanes == 1 else f"({V}{{}} + {number})"

    def whole(value: int) -> str:
        number = f"{int(value)}" + ("" if dtype == "float" else "ll")
        return number if lanes == 1 else f"({B}{{}} + {number})"

    def bits(name: str, expr: str) -> str:
        """Declare the integer `name` with the bits of a real expression."""
        if lanes > 1:
            return f"{B} {name} = ({B})({expr});\n"
        cast = fresh("u")
        return f"union {V}_bits {cast}; {cast}.real = {expr}; {B} {name} = {cast}.bits;\n"

    def from_bits(name: str, expr: str) -> str:
        """Declare the real `name` whose bits are an integer expression."""
        if lanes > 1:
            return f"{V} {name} = ({V})({expr});\n"
        cast = fresh("u")
        return f"union {V}_bits {cast}; {cast}.bits = {expr}; {V} {name} = {cast}.real;\n"

    def larger(a: str, b: str) -> str:
        return f"(({a}) > ({b}) ? ({a}) : ({b}))"

    def smaller(a: str, b: str) -> str:
        return f"(({a}) < ({b}) ? ({a}) : ({b}))"

    def power_of_two(name: str, biased: str) -> str:
        """Declare `name` = 2^(biased - bias), and 0 where `biased` is not positive."""
        field = fresh("k")
        return f"{B} {field} = {biased};\n" + from_bits(name, f"{larger(field, whole(0))} << {mantissa_bits}")

    def load(pointer: str, index: str) -> str:
        return f"*(const {U}*)({pointer} + ({index})*{lanes})"

    costs, left, left_e = (fresh(name, strip) for name in ("d", "left", "lefte"))
    diag, diag_e, up, up_e, scale = (fresh(name) for name in ("diag", "diage", "up", "upe", "p"))

    def local_costs() -> str:
        """The costs between x_i, ..., x_(i+strip-1) and the lanes' y_j; y_j is loaded once for all of them."""
        if cost == "table":
            cells = (load(px, f"({i}+{r})*{m}+{j}") for r in range(strip))
            return "".join(
                f"{V} {name} = {cell};\n{name} = {larger(name, const(0))};\n"
                for name, cell in zip(costs, cells, strict=True)
            )
        y, difference = fresh("y"), fresh("u")
        code = "".join(f"{V} {name} = {const(0)};\n" for name in costs)
        code += f"for (int {k} = 0; {k} < {dim}; {k}++) {{\n"
        code += f"const {V} {y} = {load(py, f'{j}*{dim}+{k}')};\n"
        for r, name in enumerate(costs):
            at = f"({i}+{r})*{dim}+{k}"
            code += f"{{ const {V} {difference} = {load(px, at) if paired else f'{px}[{at}]'} - {y};\n"
            code += f"{name} = {name} + {difference} * {difference}; }}\n"
        return code + "}\n"

    block, far, column = fresh("block"), fresh("far"), fresh("c") if wide else j

    def block_costs() -> str:
        """The costs of STRIP x COLUMNS cells, |x|^2 + |y|^2 - 2 x.y, or of differences where that would cancel.

        Each number loaded serves a whole row or column of the block, and all sums stay in registers. Of x and y a
        common shift is taken away (`cx`, `cy`, squared norms `nx`, `ny`); differences are those of x and y themselves.
        """
        cells = [(r, c) for c in range(columns) for r in range(strip)]
        sums, y = dict(zip(cells, fresh("s", len(cells)), strict=True)), fresh("y", columns)
        term, norms, one = fresh("x"), fresh("n"), fresh("w")

        def loop(left_of: str, right_of: str, add: Callable[[str, str], str]) -> str:
            code = "".join(f"{V} {name} = {const(0)};\n" for name in sums.values())
            code += f"for (int {k} = 0; {k} < {dim}; {k}++) {{\n"
            for c, name in enumerate(y):
                code += f"const {V} {name} = {load(right_of, f'({j}+{c})*{dim}+{k}')};\n"
            for r in range(strip):
                code += f"{{ const {V} {term} = {const(0)} + {left_of}[({i}+{r})*{dim}+{k}];\n"
                code += "".join(f"{sums[r, c]} = {sums[r, c]} + {add(term, y[c])};\n" for c in range(columns))
                code += "}\n"
            return code + "}\n"

        code = f"{V} {block}[{len(cells)}];\n{B} {far} = {whole(-1)};\n{{\n"
        code += loop(cx, cy, lambda a, b: f"{a} * {b}")
        for place, (r, c) in enumerate(cells):
            code += f"{{ const {V} {norms} = {load(ny, f'{j}+{c}')} + {nx}[{i}+{r}];\n"
            code += f"{far} = {far} & ({sums[r, c]} < {const((1 - NEAR) / 2)} * {norms});\n"
            code += f"{block}[{place}] = {norms} - {const(2)} * {sums[r, c]}; }}\n"
        code += f"}}\nint {one} = 1;\n"
        code += f"for (int {w} = 0; {w} < {lanes}; {w}++) {one} &= ((const {integer}*)&{far})[{w}] != 0;\n"
        code += f"if (!{one}) {{\n" + loop(px, py, lambda a, b: f"({a} - {b}) * ({a} - {b})")
        return code + "".join(f"{block}[{place}] = {sums[cell]};\n" for place, cell in enumerate(cells)) + "}\n"

    def hard_cell(r: int) -> str:
        """Cell (i+r, j): `up` and `diag` hold its neighbours in the row before, left[r] the one in its own."""
        best = fresh("r")
        code = f"{V} {best} = {smaller(up, left[r])};\n{best} = {smaller(best, diag)};\n"
        return code + f"{diag} = {left[r]};\n{left[r]} = {best} + {costs[r]};\n{up} = {left[r]};\n"

    def linear_cell(r: int) -> str:
        t, sum_, near, f, g, s = (fresh(name) for name in ("t", "r", "k", "f", "g", "s"))
        # 2^-t = 2^-round(t) 2^f. Adding 1.5 2^23 (2^52) rounds to the nearest integer and leaves it in the low bits.
        magic = real(1.5 * 2.0**mantissa_bits)
        magic_bits = int(magic.view(f"i{size}"))
        code = f"{V} {t} = {costs[r]} * {scale};\n{t} = {smaller(t, const(largest_cost(dtype, n, m)))};\n"
        code += f"{V} {sum_} = {t} + {const(magic)};\n{V} {f} = ({sum_} - {const(magic)}) - {t};\n"
        code += bits(near, sum_)
        top, *rest = reversed(exp2_polynomial(6 if dtype == "float" else 12))
        code += f"{V} {g} = {const(top)};\n" + "".join(f"{g} = {g} * {f} + {const(c)};\n" for c in rest)
        if rule == "gak":  # k = s / (2 - s); its exponent is that of s
            code += power_of_two(s, f"{whole(bias + magic_bits)} - {near}")
            code += f"{g} = {g} / ({const(2)} - {g} * {s});\n"
        # The three neighbours, brought to the largest exponent and added.
        e, base, total, raw = (fresh(name) for name in ("e", "e", "m", "b"))
        code += f"{B} {e} = {larger(up_e, left_e[r])};\n{e} = {larger(e, diag_e)};\n"
        code += f"{B} {base} = {e} - {whole(bias)};\n"
        of_up, of_left, of_diag = fresh("s", 3)
        for name, exponent in ((of_up, up_e), (of_diag, diag_e), (of_left, left_e[r])):
            code += power_of_two(name, f"{exponent} - {base}")
        code += f"{V} {total} = {up} * {of_up} + {diag} * {of_diag} + {left[r]} * {of_left};\n"
        code += f"{total} = {total} * {g};\n{diag} = {left[r]};\n{diag_e} = {left_e[r]};\n"
        # Back to a mantissa in [1, 2) and an exponent.
        code += bits(raw, total)
        code += f"{left_e[r]} = ({base} + {whole(magic_bits)} - {near}) + ({raw} >> {mantissa_bits});\n"
        ones = whole(int(real(1).view(f"i{size}")))
        mantissa = fresh("m")
        code += from_bits(mantissa, f"({raw} & {whole((1 << mantissa_bits) - 1)}) | {ones}")
        return code + f"{left[r]} = {mantissa};\n{up} = {left[r]};\n{up_e} = {left_e[r]};\n"

    # Every argument is bound to a pointer of its own before any other name is declared.
    pointers = ((px,) if cost == "table" else (px, py)) + ((cx, cy, nx, ny) if wide else ())
    pointers += (lx, ly) + ((ps,) if linear else ())
    pointers += (pt,) if cost == "indexed" else ()
    code = f"{dtype}* {result} = {out};\n"
    code += "".join(f"const {dtype}* {name} = {arg};\n" for name, arg in zip(pointers, args, strict=True)) + types
    if cost == "indexed":
        code += f"{px} += (long long){pt}[0] * {n * dim};\n{lx} += (long long){pt}[0];\n"
        code += f"{py} += (long long){pt}[1] * {m * dim * lanes};\n{ly} += (long long){pt}[1] * {lanes};\n"
        if wide:
            code += f"{cx} += (long long){pt}[0] * {n * dim};\n{nx} += (long long){pt}[0] * {n};\n"
            code += f"{cy} += (long long){pt}[1] * {m * dim * lanes};\n{ny} += (long long){pt}[1] * {m * lanes};\n"
        code += f"{ps} += ((long long){pt}[2] * {INDEX} + (long long){pt}[3]) * {lanes};\n" if linear else ""
    lane_loop = f"for (int {w} = 0; {w} < {lanes}; {w}++)"
    code += f"int {rows} = 1, {cols} = 1;\n"
    code += (
        f"{lane_loop} {rows} = (int){lx}[{w if paired else 0}] > {rows} ? (int){lx}[{w if paired else 0}] : {rows};\n"
    )
    code += f"{lane_loop} {cols} = (int){ly}[{w}] > {cols} ? (int){ly}[{w}] : {cols};\n"

    # The border: nothing above and to the left but the start, one, before the first cell.
    zero, one = (const(1), const(1)) if linear else (const(1e37 if dtype == "float" else 1e300), const(0))
    no_e, one_e = whole(-(1 << 30) if dtype == "float" else -(1 << 60)), whole(0)
    code += f"{V} {M}[{m}];\n" + (f"{B} {E}[{m}];\nconst {V} {scale} = {load(ps, '0')};\n" if linear else "")
    code += f"for (int {j} = 0; {j} < {cols}; {j}++) {{ {M}[{j}] = {zero};"
    code += (f" {E}[{j}] = {no_e};" if linear else "") + " }\n"
    code += f"for (int {i} = 0; {i} < {rows}; {i} += {strip}) {{\n"
    code += f"{V} {', '.join(f'{name} = {zero}' for name in left)}, {corner} = {i} == 0 ? {one} : {zero};\n"
    if linear:
        code += f"{B} {', '.join(f'{name} = {no_e}' for name in left_e)}, {corner}e = {i} == 0 ? {one_e} : {no_e};\n"
    code += f"for (int {j} = 0; {j} < {cols}; {j} += {columns}) {{\n"
    if wide:
        code += block_costs()
        code += f"for (int {column} = {j}; {column} < {cols} && {column} < {j} + {columns}; {column}++) {{\n"
        code += "".join(f"{V} {name} = {block}[({column}-{j})*{strip}+{r}];\n" for r, name in enumerate(costs))
    else:
        code += local_costs()
    code += f"{V} {up} = {M}[{column}], {diag} = {corner};\n{corner} = {up};\n"
    if linear:
        code += f"{B} {up_e} = {E}[{column}], {diag_e} = {corner}e;\n{corner}e = {up_e};\n"
    for r in range(strip):
        code += f"{{\n{linear_cell(r) if linear else hard_cell(r)}}}\n"
        if r < strip - 1:  # the last row of x is kept, though it may be within a strip
            keep = f"{M}[{column}] = {up};" + (f" {E}[{column}] = {up_e};" if linear else "")
            code += f"if ({i} + {r + 1} == {rows}) {{ {keep} continue; }}\n"
    code += f"{M}[{column}] = {up};" + (f" {E}[{column}] = {up_e};" if linear else "") + "\n}\n"
    code += "}\n" if wide else ""
    # The lanes whose x ends here find their value where their y ends.
    at = f"((int){ly}[{w}]-1)*{lanes}+{w}"
    ends = f"if ((int){lx}[{w}] == {i} + 1) " if paired else ""
    code += f"if ({i} + {strip} >= {rows}) " if not paired else ""
    code += f"{lane_loop} {ends}{{\n{result}[{w}] = ((const {dtype}*){M})[{at}];\n"
    code += f"{result}[{lanes}+{w}] = ({dtype})((const {integer}*){E})[{at}];\n" if linear else ""
    return code + "}\n}\n"


def largest_cost(dtype: str, n: int, m: int) -> float:
    """The largest p d of a cell that the integer exponents hold along a whole path; larger ones are cut to it."""
    if dtype == "double":
        return float(2**50)
    return float(min(2**22, 2**29 // (n + m)))


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
    `vlws_kernels.alignment`, which need the table once and not the formula twice.
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


@functools.cache
def align_formula(rule: str, cost: str, paired: bool, n: int, m: int, dim: int, lanes: int) -> str:
    """The KeOps formula of an `Align`, its generated code's hash among its parameters."""
    spec = (rule, cost, paired, n, m, dim, lanes)
    names = align_names(rule, cost, dim)
    numbers = (RULES.index(rule), COSTS.index(cost), int(paired), n, m, dim, lanes, code_hash(align_code, spec, names))
    return f"Align({','.join(names)},{','.join(map(str, numbers))})"


def code_hash(generator, spec: tuple, names: tuple[str, ...]) -> int:
    """A hash of the code that `generator` writes; the counters in fresh names are taken out of it."""
    saved = dict(new_c_varname.dict_instances)
    new_c_varname.dict_instances.clear()
    try:
        code = "".join(generator(dtype, *spec, "out", names) for dtype in ("float", "double"))
    finally:
        new_c_varname.dict_instances.clear()
        new_c_varname.dict_instances.update(saved)
    return int(hashlib.sha256(code.encode()).hexdigest()[:12], 16)


OPERATIONS = (Align,)
