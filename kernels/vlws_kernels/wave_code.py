"""CUDA of the wavefront: some threads of a warp fill the table of one pair together, its rows dealt out among them.

Thread w has the rows w R, ..., w R + R - 1 of a strip and is one column behind thread w - 1, of whose last row it reads
a value each step (a shuffle). All of a table's state stands in registers. Rows beyond one strip (width x R) follow in
further strips; the last row of a strip goes through memory (`edge`).

Costs come as inner products `dots` "(a n) (b m)", with squared norms, so that d = |x|^2 + |y|^2 - 2 x.y; where that
would cancel, as the sum over the differences of x and y themselves. Without norms `dots` are the costs.

    part       what it writes, for pairs "a b" with true lengths
    values     `out` and `out_e` "a b": mantissa and exponent of M[n,m] (dtw: R[n,m] and nothing)
    tables     the same, and all of M as `mantissa` and `exponent` (dtw: R as `mantissa`), see `table_size`
    slopes     the derivative of the value by each cost, times `gain` "a b", in place of `dots`; of sums

The slopes are those of the expected alignment (Cuturi and Blondel 2017, algorithm 2), in the linear domain: the same
cells, from the last to the first, are the sums over what follows a cell. The slopes of dtw are those of one best path
(`path_kernel`), which one thread a pair walks back.

Threads of a warp stand in different rows, so that what they read at once lies far apart. Each takes some columns of its
rows at once, which lie together, and the tables are laid out by the step in which their cells are filled.
"""

import functools
from itertools import pairwise
from typing import NamedTuple

from vlws_kernels.cells import Cells, Local, Sum
from vlws_kernels.cuda import THREADS
from vlws_kernels.lanes import Lanes, fresh, larger, own_names, several

PARTS = ("values", "tables", "slopes")
WIDTHS = (8, 16, 32)  # threads that share a pair
ROWS = (1, 2, 4, 8)  # rows of a thread in one strip
AHEAD = 32  # bytes of a row that a thread reads at once: what memory gives
NEAR = 0.25  # a cost below this share of |x|^2 + |y|^2 is formed from the differences


def shape_of(length: int) -> tuple[int, int]:
    """How many threads share a pair, and how many rows each has, for tables of so many rows: one strip up to 256.

    >>> shape_of(8), shape_of(33), shape_of(2048)
    ((8, 1), (32, 2), (32, 8))
    """
    width = next((width for width in WIDTHS if width >= length), WIDTHS[-1])
    return width, next((rows for rows in ROWS if width * rows >= length), ROWS[-1])


def table_size(n: int, m: int, width: int, rows: int) -> int:
    """Cells of the table that is kept of a pair: "strip step row thread", of which a thread fills m of m + width - 1.

    >>> table_size(32, 32, 32, 1)
    2016
    """
    return -(-n // (width * rows)) * (m + width - 1) * rows * width


class Kernel(NamedTuple):
    """CUDA source, and the C type and the name of every argument."""

    source: str
    signature: tuple[tuple[str, str], ...]


@functools.cache
def wave_kernel(dtype: str, rule: str, part: str, dots: bool, width: int, rows: int) -> Kernel:
    """One kernel, `wave`: `width` threads share a pair, each with `rows` rows of a strip.

    `dots`: costs come as inner products. The same form has the same source, to the letter: it is compiled once.

    >>> kernel = wave_kernel("float", "gak", "values", True, 32, 1)
    >>> "__shfl_up_sync" in kernel.source, kernel.signature[0]
    (True, ('float*', 'dots'))
    """
    with own_names():
        writer = WaveWriter(dtype, rule, part, dots, width, rows)
        return Kernel(writer.code(), tuple(writer.signature()))


class WaveWriter(Cells):
    """Writes one kernel; the cells are those of every other alignment (`cells.py`), for one lane."""

    def __init__(self, dtype: str, rule: str, part: str, dots: bool, width: int, rows: int) -> None:
        self.rule, self.part, self.dots, self.width, self.rows = rule, part, dots, width, rows
        self.linear, self.reverse = rule != "dtw", part == "slopes"
        self.c = Lanes(dtype, 1)
        self.costs, self.left, self.left_e = (several(name, rows) for name in ("d", "left", "lefte"))
        self.diag, self.diag_e, self.up, self.up_e = (fresh(name) for name in ("diag", "diage", "up", "upe"))
        self.scale, self.most = "power", "most"
        columns = AHEAD // self.c.size // (1 if rows < ROWS[-1] else 2)
        self.ahead = [several("ahead", columns) for _ in range(rows)]

    def signature(self) -> list[tuple[str, str]]:
        """The C type and the name of every argument.

        Shapes: dots "(a n) (b m)"; mantissa, exponent "a b" of `table_size`; x "a n dim", y "b m dim", norm_x "a n",
        norm_y "b m"; len_x "a", len_y "b" (of given costs "a b"); gain, scale "a b" (one for all has the strides 0);
        edge, edge_e "a b m", of further strips; out, out_e "a b". `upper`: only pairs whose y does not stand before x.
        """
        T, whole = self.c.dtype, self.c.integer
        inputs = [(f"const {T}*", name) for name in ("norm_x", "norm_y", "x", "y")] if self.dots else []
        inputs = [(f"{T}*", "dots"), *inputs, ("const int*", "len_x"), ("const int*", "len_y")]
        inputs += [(f"const {T}*", "scale"), ("long long", "scale_a"), ("long long", "scale_b"), (T, "most")]
        edges = [(f"{T}*", "edge"), (f"{whole}*", "edge_e")]
        tables = [(f"{T}*", "mantissa"), (f"{whole}*", "exponent")] if self.part != "values" else []
        gain = [(f"const {T}*", "gain")] if self.reverse else []
        sizes = [("int", name) for name in ("a", "b", "n", "m", "dim", "upper")]
        return [*inputs, *edges, *tables, *gain, (f"{T}*", "out"), (f"{whole}*", "out_e"), *sizes]

    def code(self) -> str:
        """The whole kernel."""
        arguments = ", ".join(f"{kind} {name}" for kind, name in self.signature())
        code = f'extern "C" __global__ void __launch_bounds__({THREADS}, 1) wave({arguments}) {{\n{self.c.types()}'
        code += f"const int table = {table_size_code(self.width, self.rows)};\n" if self.part != "values" else ""
        return PRELUDE + code + self.place() + self.sweep() + (self.outside() if self.reverse else "") + "}\n"

    def place(self) -> str:
        """Which pair a thread works on, and where its data lies; a thread without one has a table of no cells."""
        T, back = self.c.dtype, self.reverse
        code = f"const int lane = threadIdx.x % {self.width};\n"
        code += f"const long long pair = ((long long)blockIdx.x * {THREADS} + threadIdx.x) / {self.width};\n"
        code += "const bool there = pair < (long long)a * b;\n"
        code += "const long long ia = there ? pair / b : 0, ib = there ? pair % b : 0, step = (long long)b * m;\n"
        code += "const bool needed = there && (!upper || ib >= ia);\n"
        code += (
            f"const int rows = needed ? len_x[ia] : 0, cols = needed ? len_y[{'ib' if self.dots else 'pair'}] : 0;\n"
        )
        code += f"const {T} power = scale[ia * scale_a + ib * scale_b];\n"
        corner = "ia * n * step + ib * m"
        first = f"{corner} + (rows - 1) * step + cols - 1" if back else corner
        code += f"const long long corner = {corner}, first = {first};\n"
        code += "edge += pair * m;" + (" edge_e += pair * m;" if self.linear else "") + "\n"
        if self.dots:
            code += f"norm_x += ia * n{' + rows - 1' * back}; norm_y += ib * m{' + cols - 1' * back};\n"
            code += f"x += (ia * n{' + rows - 1' * back}) * dim; y += (ib * m{' + cols - 1' * back}) * dim;\n"
        if back:
            code += f"const {T} weight = needed ? -gain[pair] / out[pair] : 0;\n"
            code += f"const {self.c.B} end_e = needed ? out_e[pair] : 0;\n"
        return code

    def sweep(self) -> str:
        """The strips, and in each the steps of the wavefront. Every thread of a warp takes part in every shuffle."""
        c, last, corner, strip = self.c, fresh("last"), fresh("corner"), self.width * self.rows
        zero, one, no_e, one_e = self.start()
        code = f"const int most_rows = longest(rows);\nfor (int top = 0; top < most_rows; top += {strip}) {{\n"
        code += f"const int mine = top + lane * {self.rows}, ahead = rows - top;\n"
        code += f"const int busy = ahead < {strip} ? (ahead + {self.rows - 1}) / {self.rows} : {self.width};\n"
        code += "".join(f"{c.V} {name} = {zero};\n" for name in self.left)
        code += f"{c.V} {last} = {zero}, {corner} = mine == 0 ? {one} : {zero};\n"
        if self.linear:
            code += "".join(f"{c.B} {name} = {no_e};\n" for name in self.left_e)
            code += f"{c.B} {last}e = {no_e}, {corner}e = mine == 0 ? {one_e} : {no_e};\n"
        if self.dots:
            sign = "-" if self.reverse else ""
            for r in range(self.rows):
                code += f"const {c.V} norm{r} = mine + {r} < rows ? norm_x[{sign}(mine + {r})] : 0;\n"
        code += "".join(f"{c.V} {name} = 0;\n" for names in self.ahead for name in names)
        code += "const int steps = longest(cols + busy - 1);\nfor (int t = 0; t < steps; t++) {\n"
        code += f"{c.V} {self.up} = __shfl_up_sync(0xffffffffu, {last}, 1, {self.width});\n"
        if self.linear:
            code += f"{c.B} {self.up_e} = __shfl_up_sync(0xffffffffu, {last}e, 1, {self.width});\n"
        code += "const int col = t - lane;\nif (col >= 0 && col < cols && lane < busy) {\n"
        code += f"if (lane == 0) {{ {self.up} = top ? edge[col] : {zero};"
        code += (f" {self.up_e} = top ? edge_e[col] : {no_e};" if self.linear else "") + " }\n"
        code += f"{c.V} {self.diag} = {corner};\n{corner} = {self.up};\n"
        if self.linear:
            code += f"{c.B} {self.diag_e} = {corner}e;\n{corner}e = {self.up_e};\n"
        code += self.look_ahead() + "".join(self.row(r) for r in range(self.rows))
        for names in self.ahead:
            code += "".join(f"{one} = {other}; " for one, other in pairwise(names)) + "\n"
        code += f"{last} = {self.up};" + (f" {last}e = {self.up_e};" if self.linear else "")
        code += f"\nif (lane == {self.width - 1} && ahead > {strip}) {{ edge[col] = {last};"
        code += (f" edge_e[col] = {last}e;" if self.linear else "") + " }\n}\n}\n__syncwarp();\n"
        if not self.reverse:
            code += f"if (ahead <= {strip} && busy == lane + 1) {{ out[pair] = {last};"
            code += (f" out_e[pair] = {last}e;" if self.linear else "") + " }\n"
        return code + "}\n"

    def row(self, r: int) -> str:
        """The cell of a thread's row `r` in this column, and what is kept of it."""
        c, d, sign = self.c, self.costs[r], "-" if self.reverse else ""
        code = f"if (mine + {r} < rows) {{\nconst long long at = first {sign or '+'} ((mine + {r}) * step + col);\n"
        code += f"{c.V} {d} = {self.ahead[r][0]};\n"
        if self.dots:
            k, u, both = fresh("k"), fresh("u"), fresh("n")
            code += f"const {c.V} {both} = norm{r} + norm_y[{sign}col];\n{d} = {both} - {c.const(2)} * {d};\n"
            code += f"if ({d} < {c.const(NEAR)} * {both}) {{\n{d} = 0;\n"
            code += f"#pragma unroll 1\nfor (int {k} = 0; {k} < dim; {k}++) {{ const {c.V} {u} = "
            code += f"x[{sign}(long long)(mine + {r}) * dim + {k}] - y[{sign}(long long)col * dim + {k}]; "
            code += f"{d} = {d} + {u} * {u}; }}\n}}\n"
        else:
            code += f"{d} = {larger(d, c.const(0))};\n"
        if self.linear:
            code += self.linear_cell(r, functools.partial(self.slope, r) if self.reverse else None)
        else:
            code += self.hard_cell(r)
        if self.part == "tables":
            code += f"const long long kept = pair * table + {self.kept(f'(mine + {r})', 'col')};\n"
            code += f"mantissa[kept] = {self.left[r]};" + (
                f" exponent[kept] = {self.left_e[r]};" if self.linear else ""
            )
        return code + "}\n"

    def look_ahead(self) -> str:
        """Every so many columns a thread reads the next of each row."""
        count, sign = len(self.ahead[0]), "-" if self.reverse else "+"
        code = f"if (col % {count} == 0) {{\n"
        for r, names in enumerate(self.ahead):
            for q, name in enumerate(names):
                at = f"first {sign} ((mine + {r}) * step + col + {q})"
                code += f"{name} = mine + {r} < rows && col + {q} < cols ? dots[{at}] : 0;\n"
        return code + "}\n"

    def kept(self, i: str, j: str) -> str:
        """Where the cell (i, j) of a pair's table is kept."""
        return kept_code(i, j, self.width, self.rows)

    def slope(self, r: int, local: Local, cell: Sum) -> str:
        """The derivative of log M[n,m] by this cost: before a cell stands `mantissa`, after it the sum."""
        c, part, share = self.c, fresh("s"), fresh("e")
        i, j = f"(rows - 1 - mine - {r})", "(cols - 1 - col)"
        code = f"const long long kept = pair * table + {self.kept(i, j)};\n"
        code += c.power_of_two(part, f"exponent[kept] + {cell.base} + {2 * c.bias} - end_e")
        rate = f" * ({c.const(1)} + {local.factor} * {local.power})" if self.rule == "gak" else ""
        return (
            f"{code}const {c.V} {share} = mantissa[kept] * {cell.total} * {part};\ndots[at] = weight * {share}{rate};\n"
        )

    def outside(self) -> str:
        """Zeros where the slopes have no cell."""
        code = f"if (there) for (int i = 0; i < n; i++) for (int j = lane; j < m; j += {self.width})\n"
        return code + "if (i >= rows || j >= cols) dots[corner + i * step + j] = 0;\n"


PRELUDE = """\
static __device__ __forceinline__ int longest(int value) {
  for (int away = 16; away; away >>= 1) {
    const int other = __shfl_xor_sync(0xffffffffu, value, away);
    value = other > value ? other : value;
  }
  return value;
}
"""


def table_size_code(width: int, rows: int) -> str:
    """`table_size` in C."""
    return f"(n + {width * rows - 1}) / {width * rows} * (m + {width - 1}) * {width * rows}"


def kept_code(i: str, j: str, width: int, rows: int) -> str:
    """Where the cell (i, j) of a pair's table is kept, in C."""
    strip = width * rows
    lane = f"({i} % {strip} / {rows})"
    return f"(({i} / {strip} * (m + {width - 1}) + {j} + {lane}) * {strip} + {i} % {rows} * {width} + {lane})"


@functools.cache
def path_kernel(dtype: str, dots: bool, width: int, rows: int) -> Kernel:
    """`path`: from the tables of dtw, `gain` "a b" on the cells of one best path, in `slopes` "(a n) (b m)" of zeros.

    A thread a pair walks from the last cell to the first; of equal ways it takes the diagonal one, then the one above.

    >>> path_kernel("float", True, 32, 1).signature[1]
    ('float*', 'slopes')
    """
    signature = ((f"const {dtype}*", "mantissa"), (f"{dtype}*", "slopes"), ("const int*", "len_x"))
    signature += (("const int*", "len_y"), (f"const {dtype}*", "gain"))
    signature += tuple(("int", name) for name in ("a", "b", "n", "m", "upper"))

    def kept(i: str, j: str) -> str:
        return kept_code(i, j, width, rows)

    arguments = ", ".join(f"{kind} {name}" for kind, name in signature)
    source = f"""\
extern "C" __global__ void __launch_bounds__({THREADS}) path({arguments}) {{
  const long long pair = (long long)blockIdx.x * {THREADS} + threadIdx.x;
  if (pair >= (long long)a * b) return;
  const long long ia = pair / b, ib = pair % b, step = (long long)b * m, corner = ia * n * step + ib * m;
  if (upper && ib < ia) return;
  mantissa += pair * ({table_size_code(width, rows)});
  int i = len_x[ia] - 1, j = len_y[{"ib" if dots else "pair"}] - 1;
  while (true) {{
    slopes[corner + i * step + j] = gain[pair];
    if (i == 0 && j == 0) return;
    if (i == 0) {{ j--; continue; }}
    if (j == 0) {{ i--; continue; }}
    const int k = i - 1;
    const {dtype} diag = mantissa[{kept("k", "(j - 1)")}], above = mantissa[{kept("k", "j")}];
    const {dtype} before = mantissa[{kept("i", "(j - 1)")}];
    if (diag <= above && diag <= before) {{ i--; j--; }}
    else if (above <= before) i--;
    else j--;
  }}
}}
"""
    return Kernel(source, signature)
