"""C++ and CUDA of the alignment recursions, written part by part: arguments, rows of the table, costs, cells, results.

`Align` fills the table of one sequence `x_i` against a block of `lanes` sequences `y_j`, one sequence a SIMD lane, so
that the recursion, serial within a pair, is vectorised across pairs. On a GPU a lane is a thread and `lanes` is 1; the
generated code is then plain scalar C.

For each pair is written log2 M[n,m] as mantissa and exponent, or R[n,m] of dtw; `cells.py` has the recursions.

Costs of many dimensions are inner products, 4 x 4 cells at a time in registers, and differences where those cancel.

One trap shapes this code. KeOps passes an argument as an expression such as `(arg_0[0]+i*64)`: code that declares its
own `i` captures it, so every argument is bound to a fresh pointer before anything else is declared, and every name is
fresh.
"""

from collections.abc import Callable

from vlws_kernels.cells import Cells, largest_cost
from vlws_kernels.lanes import Lanes, fresh, larger, several
from vlws_kernels.shapes import is_wide

STRIP = 4  # rows of the table that advance together
COLUMNS = 4
NEAR = 0.25  # a cost below this share of |x|^2 + |y|^2 is formed from the differences
INDEX = 2**20  # an index that a float32 cannot hold comes as two numbers: index // INDEX and index % INDEX


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
    """C code of one alignment block; `args` are expressions of the variables of `ops.align_names`."""
    return AlignWriter(dtype, rule, cost, paired, n, m, dim, lanes).code(out, args)


class AlignWriter(Cells):
    """Writes the code of one form of `ops.Align`; the parts share their C names, which are attributes here."""

    def __init__(self, dtype: str, rule: str, cost: str, paired: bool, n: int, m: int, dim: int, lanes: int) -> None:
        self.rule, self.cost, self.paired, self.n, self.m, self.dim = rule, cost, paired, n, m, dim
        self.strip = strip = 1 if paired else min(STRIP, n)
        self.linear, self.wide = rule != "dtw", is_wide(cost, dim)
        self.columns = COLUMNS if self.wide else 1
        self.c = Lanes(dtype, lanes)
        # Rows of the table (mantissas, exponents), and what stood above and to the left before it was overwritten.
        self.M, self.E, self.corner = (fresh(name) for name in ("M", "E", "corner"))
        self.px, self.py, self.lx, self.ly = (fresh(name) for name in ("x", "y", "lx", "ly"))
        self.ps, self.pt, self.result = (fresh(name) for name in ("p", "task", "out"))
        self.cx, self.cy, self.nx, self.ny = (fresh(name) for name in ("cx", "cy", "nx", "ny"))
        self.i, self.j, self.k, self.w = (fresh(name) for name in ("i", "j", "k", "w"))
        self.rows, self.cols = fresh("rows"), fresh("cols")
        self.costs, self.left, self.left_e = (several(name, strip) for name in ("d", "left", "lefte"))
        self.diag, self.diag_e, self.up, self.up_e = (fresh(name) for name in ("diag", "diage", "up", "upe"))
        self.scale = fresh("p")
        self.block, self.far = fresh("block"), fresh("far")
        self.column = fresh("c") if self.wide else self.j
        self.most = self.c.const(largest_cost(dtype, n, m))

    def code(self, out: str, args: tuple[str, ...]) -> str:
        """The whole block: arguments `args` (expressions) to results at `out` (an expression)."""
        return self.arguments(out, args) + self.lengths() + self.border() + self.table() + self.results()

    def arguments(self, out: str, args: tuple[str, ...]) -> str:
        """Bind every argument to a pointer of its own before any other name is declared; go to the task's items."""
        c, cost, px, py, lx, ly, ps, pt = self.c, self.cost, self.px, self.py, self.lx, self.ly, self.ps, self.pt
        pointers = ((px,) if cost == "table" else (px, py)) + (
            (self.cx, self.cy, self.nx, self.ny) if self.wide else ()
        )
        pointers += (lx, ly) + ((ps,) if self.linear else ())
        pointers += (pt,) if cost == "indexed" else ()
        code = f"{c.dtype}* {self.result} = {out};\n"
        code += "".join(f"const {c.dtype}* {name} = {arg};\n" for name, arg in zip(pointers, args, strict=True))
        code += c.types()
        if cost != "indexed":
            return code
        n, m, dim, lanes = self.n, self.m, self.dim, c.lanes
        row, block = f"(long long){pt}[0]", f"(long long){pt}[1]"
        code += f"{px} += {row} * {n * dim};\n{lx} += {row};\n"
        code += f"{py} += {block} * {m * dim * lanes};\n{ly} += {block} * {lanes};\n"
        if self.wide:
            code += f"{self.cx} += {row} * {n * dim};\n{self.nx} += {row} * {n};\n"
            code += f"{self.cy} += {block} * {m * dim * lanes};\n{self.ny} += {block} * {m * lanes};\n"
        return code + (f"{ps} += ((long long){pt}[2] * {INDEX} + (long long){pt}[3]) * {lanes};\n" * self.linear)

    def lane_loop(self) -> str:
        """The head of a loop over the lanes."""
        return f"for (int {self.w} = 0; {self.w} < {self.c.lanes}; {self.w}++)"

    def lengths(self) -> str:
        """Declare `rows` and `cols`, the longest true lengths of the block."""
        rows, cols = self.rows, self.cols
        of_x = f"(int){self.lx}[{self.w if self.paired else 0}]"
        of_y = f"(int){self.ly}[{self.w}]"
        code = f"int {rows} = 1, {cols} = 1;\n{self.lane_loop()} {rows} = {of_x} > {rows} ? {of_x} : {rows};\n"
        return code + f"{self.lane_loop()} {cols} = {of_y} > {cols} ? {of_y} : {cols};\n"

    def border(self) -> str:
        """Declare the row of the table: nothing stands above the first one."""
        c, j = self.c, self.j
        zero, _, no_e, _ = self.start()
        code = f"{c.V} {self.M}[{self.m}];\n"
        if self.linear:
            code += f"{c.B} {self.E}[{self.m}];\nconst {c.V} {self.scale} = {c.load(self.ps, '0')};\n"
        code += f"for (int {j} = 0; {j} < {self.cols}; {j}++) {{ {self.M}[{j}] = {zero};"
        return code + (f" {self.E}[{j}] = {no_e};" if self.linear else "") + " }\n"

    def table(self) -> str:
        """The loop over strips of rows, left open for the results, and in it the loop over columns."""
        c, i, j, column, corner = self.c, self.i, self.j, self.column, self.corner
        zero, one, no_e, one_e = self.start()
        code = f"for (int {i} = 0; {i} < {self.rows}; {i} += {self.strip}) {{\n"
        code += f"{c.V} {', '.join(f'{name} = {zero}' for name in self.left)}, {corner} = {i} == 0 ? {one} : {zero};\n"
        if self.linear:
            code += f"{c.B} {', '.join(f'{name} = {no_e}' for name in self.left_e)}, "
            code += f"{corner}e = {i} == 0 ? {one_e} : {no_e};\n"
        code += f"for (int {j} = 0; {j} < {self.cols}; {j} += {self.columns}) {{\n"
        if self.wide:
            code += self.block_costs()
            code += (
                f"for (int {column} = {j}; {column} < {self.cols} && {column} < {j} + {self.columns}; {column}++) {{\n"
            )
            for r, name in enumerate(self.costs):
                code += f"{c.V} {name} = {self.block}[({column}-{j})*{self.strip}+{r}];\n"
        else:
            code += self.local_costs()
        return code + self.cells() + ("}\n" if self.wide else "")

    def cells(self) -> str:
        """The `strip` cells of one column, from above to below."""
        c, column, corner = self.c, self.column, self.corner
        code = f"{c.V} {self.up} = {self.M}[{column}], {self.diag} = {corner};\n{corner} = {self.up};\n"
        if self.linear:
            code += f"{c.B} {self.up_e} = {self.E}[{column}], {self.diag_e} = {corner}e;\n{corner}e = {self.up_e};\n"
        keep = f"{self.M}[{column}] = {self.up};" + (f" {self.E}[{column}] = {self.up_e};" if self.linear else "")
        for r in range(self.strip):
            code += f"{{\n{self.cell(r)}}}\n"
            if r < self.strip - 1:  # the last row of x is kept, though it may be within a strip
                code += f"if ({self.i} + {r + 1} == {self.rows}) {{ {keep} continue; }}\n"
        return code + keep + "\n}\n"

    def cell(self, r: int) -> str:
        """The cell of a strip's row r."""
        return self.linear_cell(r) if self.linear else self.hard_cell(r)

    def local_costs(self) -> str:
        """The costs between x_i, ..., x_(i+strip-1) and the lanes' y_j; y_j is loaded once for all of them."""
        c, i, j, k, px, dim = self.c, self.i, self.j, self.k, self.px, self.dim
        if self.cost == "table":
            cells = (c.load(px, f"({i}+{r})*{self.m}+{j}") for r in range(self.strip))
            return "".join(
                f"{c.V} {name} = {cell};\n{name} = {larger(name, c.const(0))};\n"
                for name, cell in zip(self.costs, cells, strict=True)
            )
        y, difference = fresh("y"), fresh("u")
        code = "".join(f"{c.V} {name} = {c.const(0)};\n" for name in self.costs)
        code += f"for (int {k} = 0; {k} < {dim}; {k}++) {{\n"
        code += f"const {c.V} {y} = {c.load(self.py, f'{j}*{dim}+{k}')};\n"
        for r, name in enumerate(self.costs):
            at = f"({i}+{r})*{dim}+{k}"
            code += f"{{ const {c.V} {difference} = {c.load(px, at) if self.paired else f'{px}[{at}]'} - {y};\n"
            code += f"{name} = {name} + {difference} * {difference}; }}\n"
        return code + "}\n"

    def block_costs(self) -> str:
        """The costs of STRIP x COLUMNS cells, |x|^2 + |y|^2 - 2 x.y, or of differences where that would cancel.

        Each number loaded serves a whole row or column of the block, and all sums stay in registers. Of x and y a
        common shift is taken away (`cx`, `cy`, squared norms `nx`, `ny`); differences are those of x and y themselves.
        """
        c, i, j, w, block, far = self.c, self.i, self.j, self.w, self.block, self.far
        cells = [(r, column) for column in range(self.columns) for r in range(self.strip)]
        sums = dict(zip(cells, several("s", len(cells)), strict=True))
        y = several("y", self.columns)
        term, norms, one = fresh("x"), fresh("n"), fresh("w")
        code = f"{c.V} {block}[{len(cells)}];\n{c.B} {far} = {c.whole(-1)};\n{{\n"
        code += self.block_sums(sums, y, term, (self.cx, self.cy), lambda a, b: f"{a} * {b}")
        for place, (r, column) in enumerate(cells):
            total = sums[r, column]
            code += f"{{ const {c.V} {norms} = {c.load(self.ny, f'{j}+{column}')} + {self.nx}[{i}+{r}];\n"
            code += f"{far} = {far} & ({total} < {c.const((1 - NEAR) / 2)} * {norms});\n"
            code += f"{block}[{place}] = {norms} - {c.const(2)} * {total}; }}\n"
        code += f"}}\nint {one} = 1;\n"
        code += f"{self.lane_loop()} {one} &= ((const {c.integer}*)&{far})[{w}] != 0;\n"
        code += f"if (!{one}) {{\n"
        code += self.block_sums(sums, y, term, (self.px, self.py), lambda a, b: f"({a} - {b}) * ({a} - {b})")
        return code + "".join(f"{block}[{place}] = {sums[cell]};\n" for place, cell in enumerate(cells)) + "}\n"

    def block_sums(
        self, sums: dict, y: list[str], term: str, sides: tuple[str, str], add: Callable[[str, str], str]
    ) -> str:
        """Declare the sums over dim of `add(x, y)`, for all cells of a block."""
        c, i, j, k, dim, (left, right) = self.c, self.i, self.j, self.k, self.dim, sides
        code = "".join(f"{c.V} {name} = {c.const(0)};\n" for name in sums.values())
        code += f"for (int {k} = 0; {k} < {dim}; {k}++) {{\n"
        for column, name in enumerate(y):
            code += f"const {c.V} {name} = {c.load(right, f'({j}+{column})*{dim}+{k}')};\n"
        for r in range(self.strip):
            code += f"{{ const {c.V} {term} = {c.const(0)} + {left}[({i}+{r})*{dim}+{k}];\n"
            for column, name in enumerate(y):
                code += f"{sums[r, column]} = {sums[r, column]} + {add(term, name)};\n"
            code += "}\n"
        return code + "}\n"

    def results(self) -> str:
        """The lanes whose x ends here find their value where their y ends; closes the loop over strips."""
        c, w, lanes = self.c, self.w, self.c.lanes
        at = f"((int){self.ly}[{w}]-1)*{lanes}+{w}"
        ends = f"if ((int){self.lx}[{w}] == {self.i} + 1) " if self.paired else ""
        code = f"if ({self.i} + {self.strip} >= {self.rows}) " if not self.paired else ""
        code += f"{self.lane_loop()} {ends}{{\n{self.result}[{w}] = ((const {c.dtype}*){self.M})[{at}];\n"
        if self.linear:
            code += f"{self.result}[{lanes}+{w}] = ({c.dtype})((const {c.integer}*){self.E})[{at}];\n"
        return code + "}\n}\n"
