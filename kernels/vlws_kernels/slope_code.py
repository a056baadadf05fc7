"""C++ of the gradients of alignments on a CPU: the table is kept, and the same cells are filled from the end.

What follows a cell, times what stands before it, over the whole is the probability that an alignment passes it
(Cuturi and Blondel 2017, algorithm 2); of dtw it is 1 on one best path. Times the derivative of the local kernel and
the weight of the pair it is the slope S of the value by the cost.

    dim        result of a block
    < WIDE     sum over y of S (x - y) "n dim", summed over the lanes; then the sum over x of S (y - x) "m dim lanes"
    others     S "n m lanes": the sums over dim are left to a matrix product
"""

from vlws_kernels.cells import Local
from vlws_kernels.codegen import INDEX, AlignWriter
from vlws_kernels.lanes import fresh, larger, several

KEPT = 2**22  # bytes of tables that a thread keeps for its next block


def slope_code(
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
    """C code of the slopes of one block; `args` are expressions of `ops.slope_names`. `cost` is "indexed"."""
    return SlopeWriter(dtype, rule, cost, paired, n, m, dim, lanes).code(out, args)


def slopes_size(n: int, m: int, dim: int, lanes: int, wide: bool) -> int:
    """How many numbers a block results in."""
    return n * m * lanes if wide else n * dim + m * dim * lanes


class SlopeWriter(AlignWriter):
    """Writes the code of one form of `ops.AlignSlopes`."""

    def __init__(self, *spec) -> None:
        super().__init__(*spec)
        self.weight, self.memory = fresh("weight"), fresh("memory")
        self.tab, self.tab_e, self.kept_costs = (fresh(name) for name in ("table", "tablee", "kept"))
        self.gx, self.gy = fresh("gx"), fresh("gy")
        self.end, self.end_e, self.ends = (fresh(name) for name in ("end", "ende", "lengths"))
        self.slopes = several("slope", self.strip)

    def code(self, out: str, args: tuple[str, ...]) -> str:
        code = self.arguments(out, args[:-1])
        code += f"const {self.c.dtype}* {self.weight} = {args[-1]};\n"
        code += f"{self.weight} += ((long long){self.pt}[2] * {INDEX} + (long long){self.pt}[3]) * {self.c.lanes};\n"
        code += self.lengths() + self.tables() + "{\n" + self.border() + self.table() + "}\n"
        code += self.backward() if self.linear else self.paths()
        return code + self.finish() + "}\n"

    def tables(self) -> str:
        """Declare the tables, in memory that the thread keeps for its next block where it is little; zero results."""
        c, cells, k = self.c, self.n * self.m, self.k
        count = cells * (3 if self.linear else 1) + (0 if self.wide else self.n * self.dim)
        size = count * c.lanes * c.size + 64
        code = f"static thread_local char* {self.memory} = 0;\n"
        code += f"if (!{self.memory}) {self.memory} = (char*)__builtin_malloc({size});\n"
        code += f"{c.V}* {self.tab} = ({c.V}*)(((unsigned long long){self.memory} + 63) / 64 * 64);\n"
        if self.linear:
            code += f"{c.V}* {self.kept_costs} = {self.tab} + {cells};\n"
            code += f"{c.B}* {self.tab_e} = ({c.B}*)({self.tab} + {2 * cells});\n"
        if not self.wide:
            code += f"{c.V}* {self.gx} = {self.tab} + {count - self.n * self.dim};\n"
            code += f"for (int {k} = 0; {k} < {self.n * self.dim}; {k}++) {self.gx}[{k}] = {c.const(0)};\n"
            code += f"{c.dtype}* {self.gy} = {self.result} + {self.n * self.dim};\n"
        results = slopes_size(self.n, self.m, self.dim, c.lanes, self.wide)
        return code + f"for (int {k} = 0; {k} < {results}; {k}++) {self.result}[{k}] = 0;\n"

    def kept(self, r: int) -> str:
        at = f"[({self.i}+{r})*{self.m}+{self.column}]"
        code = f"{self.tab}{at} = {self.left[r]};\n"
        if self.linear:
            code += f"{self.tab_e}{at} = {self.left_e[r]};\n{self.kept_costs}{at} = {self.costs[r]};\n"
        return code

    def results(self) -> str:
        return "}\n"

    def backward(self) -> str:
        """The loop over strips of rows and over columns, both from the last to the first."""
        c, i, j, w, corner = self.c, self.i, self.j, self.w, self.corner
        zero, one, no_e, _one_e = self.start()
        code = f"{c.V} {self.end}, {self.end_e}m;\n{c.B} {self.end_e}, {self.ends};\n{self.lane_loop()} {{\n"
        at = f"[(({self.rows}-1)*{self.m}+(int){self.ly}[{w}]-1)*{c.lanes}+{w}]"
        code += f"(({c.integer}*)&{self.ends})[{w}] = (int){self.ly}[{w}];\n"
        code += f"(({c.dtype}*)&{self.end_e}m)[{w}] = (({c.dtype}*){self.tab}){at};\n"
        code += f"(({c.integer}*)&{self.end_e})[{w}] = (({c.integer}*){self.tab_e}){at};\n}}\n"
        code += f"{self.end} = {c.load(self.weight, '0')} / {self.end_e}m;\n{{\n" + self.border()
        code += f"for (int {i} = 0; {i} < {self.rows}; {i} += {self.strip}) {{\n"
        code += f"{c.V} {', '.join(f'{name} = {zero}' for name in self.left)}, {corner} = {zero};\n"
        code += f"{c.B} {', '.join(f'{name} = {no_e}' for name in self.left_e)}, {corner}e = {no_e};\n"
        code += f"for (int {j} = {self.cols} - 1; {j} >= 0; {j}--) {{\n"
        code += f"{c.V} {self.up} = {self.M}[{j}], {self.diag} = {corner};\n{corner} = {self.up};\n"
        code += f"{c.B} {self.up_e} = {self.E}[{j}], {self.diag_e} = {corner}e;\n{corner}e = {self.up_e};\n"
        # Before the last cell of each lane stands a one.
        code += f"if ({i} == 0) {{ {self.diag} = {one}; "
        code += f"{self.diag_e} = ~({self.ends} == {c.whole(0)} + ({j} + 1)) & {no_e}; }}\n"
        code += "".join(f"{c.V} {name} = {c.const(0)};\n" for name in self.slopes)
        for r in range(self.strip):
            at = f"({self.rows}-1-{i}-{r})*{self.m}+{j}"
            code += f"if ({i} + {r} < {self.rows}) {{\nconst {c.V} {self.costs[r]} = {self.kept_costs}[{at}];\n"
            code += self.linear_cell(r, lambda local, total, base, at=at, r=r: self.slope(r, at, local, total, base))
            code += f"*({c.U}*)({self.result} + ({at})*{c.lanes}) = {self.slopes[r]};\n" if self.wide else ""
            code += "}\n"
        code += f"{self.M}[{j}] = {self.up};\n{self.E}[{j}] = {self.up_e};\n"
        return code + ("" if self.wide else self.into_elements()) + "}\n}\n}\n"

    def slope(self, r: int, at: str, local: Local, total: str, base: str) -> str:
        """The slope by a cell's cost: `tab` stands before it, `total` after it."""
        c, part = self.c, fresh("s")
        code = c.power_of_two(part, f"{self.tab_e}[{at}] + {base} + {c.whole(2 * c.bias)} - {self.end_e}")
        rate = f" * ({c.const(1)} + {local.factor} * {local.power})" if self.rule == "gak" else ""
        return f"{code}{self.slopes[r]} = {c.const(0)} - {self.tab}[{at}] * {total} * {part} * {self.end}{rate};\n"

    def into_elements(self) -> str:
        """S (x - y) of a strip's cells, added to what x and y have of it."""
        c, j, k, dim = self.c, self.j, self.k, self.dim
        y, sum_, term = fresh("y"), fresh("g"), fresh("u")
        rows = several("row", self.strip)
        code = ""
        for r, row in enumerate(rows):  # beyond the first row of x the slopes are 0
            inside = f"{self.rows}-1-{self.i}-{r}"
            code += f"const int {row} = {larger(inside, '0')} * {dim};\n"
        code += f"for (int {k} = 0; {k} < {dim}; {k}++) {{\n"
        code += f"const {c.V} {y} = {c.load(self.py, f'{j}*{dim}+{k}')};\n"
        code += f"{c.V} {sum_} = {c.load(self.gy, f'{j}*{dim}+{k}')};\n"
        for slope, row in zip(self.slopes, rows, strict=True):
            code += f"{{ const {c.V} {term} = {slope} * ({self.px}[{row}+{k}] - {y});\n"
            code += f"{self.gx}[{row}+{k}] += {term}; {sum_} -= {term}; }}\n"
        return code + f"*({c.U}*)({self.gy} + ({j}*{dim}+{k})*{c.lanes}) = {sum_};\n}}\n"

    def paths(self) -> str:
        """One best path a lane: of equal ways the diagonal one, then the one above."""
        c, i, j, k, w, m, dim, lanes = self.c, self.i, self.j, self.k, self.w, self.m, self.dim, self.c.lanes
        R, term = fresh("R"), fresh("u")

        def at(row: str, col: str) -> str:
            return f"{R}[(({row})*{m}+{col})*{lanes}+{w}]"

        code = f"const {c.dtype}* {R} = (const {c.dtype}*){self.tab};\n{self.lane_loop()} {{\n"
        code += f"int {i} = {self.rows} - 1, {j} = (int){self.ly}[{w}] - 1;\nwhile (true) {{\n"
        if self.wide:
            code += f"{self.result}[({i}*{m}+{j})*{lanes}+{w}] = {self.weight}[{w}];\n"
        else:
            code += f"for (int {k} = 0; {k} < {dim}; {k}++) {{\n"
            code += f"const {c.dtype} {term} = {self.weight}[{w}] * ({self.px}[{i}*{dim}+{k}] - "
            code += f"{self.py}[({j}*{dim}+{k})*{lanes}+{w}]);\n"
            code += f"(({c.dtype}*){self.gx})[({i}*{dim}+{k})*{lanes}+{w}] += {term};\n"
            code += f"{self.gy}[({j}*{dim}+{k})*{lanes}+{w}] -= {term};\n}}\n"
        code += f"if ({i} == 0 && {j} == 0) break;\nif ({i} == 0) {{ {j}--; continue; }}\n"
        code += f"if ({j} == 0) {{ {i}--; continue; }}\n"
        diag, above, before = at(f"{i}-1", f"{j}-1"), at(f"{i}-1", j), at(i, f"{j}-1")
        code += f"if ({diag} <= {above} && {diag} <= {before}) {{ {i}--; {j}--; }}\n"
        return code + f"else if ({above} <= {before}) {i}--;\nelse {j}--;\n}}\n}}\n"

    def finish(self) -> str:
        """What x has, summed over the lanes; large tables are given back."""
        c, k, size = self.c, self.k, self.n * self.m * (3 if self.linear else 1) * self.c.lanes * self.c.size
        code = ""
        if not self.wide:
            code += f"for (int {k} = 0; {k} < {self.n * self.dim}; {k}++) {self.lane_loop()} "
            code += f"{self.result}[{k}] += (({c.dtype}*)({self.gx} + {k}))[{self.w}];\n"
        if size > KEPT:
            code += f"__builtin_free({self.memory});\n{self.memory} = 0;\n"
        return code
