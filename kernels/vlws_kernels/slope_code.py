"""C++ of the gradients of alignments on a CPU: tables are filled with what is kept of each cell, then swept back.

A neighbour's share in a cell's sum is the probability that an alignment which passes the cell came from there. So the
probability that one passes a cell is, from the last cell on, the sum over its three successors of theirs times its
share in them (Cuturi and Blondel 2017, algorithm 2): three products a cell, without exponents, and none is ever
negative. Of dtw it is 1 on one best path. Times the derivative of the local kernel and the weight of the pair it is the
slope S of the value by the cost.

    dim        result of a block
    < WIDE     sum over y of S (x - y) "n dim", summed over the lanes; then the sum over x of S (y - x) "m dim lanes"
    others     S "n m lanes": the sums over dim are left to a matrix product
"""

from vlws_kernels.cells import Local, Sum
from vlws_kernels.codegen import INDEX, AlignWriter
from vlws_kernels.lanes import fresh, larger, several

HIGH = {"float": 100, "double": 900}  # probabilities below 2^-HIGH are 0
SPAN = 32  # columns whose slopes go into the elements together
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
        self.tab, self.gx, self.gy, self.ends = (fresh(name) for name in ("table", "gx", "gy", "lengths"))
        self.kept = {"gak": 4, "soft": 3, "dtw": 1}[self.rule]  # numbers of each cell
        self.slopes = several("slope", self.strip)
        self.span, self.column_of_span = fresh("span"), fresh("c")

    def code(self, out: str, args: tuple[str, ...]) -> str:
        code = self.arguments(out, args[:-1])
        code += f"const {self.c.dtype}* {self.weight} = {args[-1]};\n"
        code += f"{self.weight} += ((long long){self.pt}[2] * {INDEX} + (long long){self.pt}[3]) * {self.c.lanes};\n"
        code += self.lengths() + self.tables() + "{\n" + self.border() + self.table() + "}\n"
        code += self.backward() if self.linear else self.paths()
        return code + self.finish() + "}\n"

    def tables(self) -> str:
        """Declare the table, in memory that the thread keeps for its next block where it is little; zero results."""
        c, k, of_x = self.c, self.k, self.n * self.dim if self.linear and not self.wide else 0
        code = f"static thread_local char* {self.memory} = 0;\n"
        size = self.table_bytes() + of_x * c.lanes * c.size + 64
        code += f"if (!{self.memory}) {self.memory} = (char*)__builtin_malloc({size});\n"
        code += f"{c.V}* {self.tab} = ({c.V}*)(((unsigned long long){self.memory} + 63) / 64 * 64);\n"
        if of_x:
            code += f"{c.V}* {self.gx} = {self.tab} + {self.n * self.m * self.kept};\n"
            code += f"for (int {k} = 0; {k} < {of_x}; {k}++) {self.gx}[{k}] = {c.const(0)};\n"
        code += f"{c.dtype}* {self.gy} = {self.result} + {self.n * self.dim};\n"
        results = slopes_size(self.n, self.m, self.dim, c.lanes, self.wide)
        return code + f"for (int {k} = 0; {k} < {results}; {k}++) {self.result}[{k}] = 0;\n"

    def table_bytes(self) -> int:
        return self.n * self.m * self.kept * self.c.lanes * self.c.size

    def cell(self, r: int) -> str:
        """A cell, and what is kept of it: the shares of its neighbours in its sum (gak: and its slope); dtw: itself."""
        at = f"{self.tab}[(({self.i}+{r})*{self.m}+{self.column})*{self.kept}"
        if not self.linear:
            return self.hard_cell(r) + f"{at}] = {self.left[r]};\n"

        def shares(local: Local, cell: Sum) -> str:
            one, whole = self.c.const(1), fresh("w")
            code = f"const {self.c.V} {whole} = {one} / {cell.total};\n"
            for place, part in enumerate((cell.up, cell.left, cell.diag)):
                code += f"{at}+{place}] = {part} * {whole};\n"
            return code + (f"{at}+3] = {one} + {local.factor} * {local.power};\n" if self.rule == "gak" else "")

        return self.linear_cell(r, shares)

    def results(self) -> str:
        return "}\n"

    def backward(self) -> str:
        """The probability of every cell, in strips of rows and over columns, both from the last to the first.

        It is held times 2^HIGH, so that no product is a denormal number, which would be slow.
        """
        c, i, j, w, ends, weight, passing = self.c, self.i, self.j, self.w, self.ends, fresh("w"), fresh("p")
        right, corner = several("right", self.strip), several("corner", self.strip)
        zero, high = c.const(0), HIGH[c.dtype]
        code = f"{c.B} {ends};\n"
        code += f"{self.lane_loop()} (({c.integer}*)&{ends})[{w}] = (int){self.ly}[{w}];\n"
        code += f"{{\nconst {c.V} {weight} = {zero} - {c.load(self.weight, '0')};\n{c.V} {self.M}[{self.m}];\n"
        code += f"for (int {j} = 0; {j} < {self.cols}; {j}++) {self.M}[{j}] = {zero};\n"
        code += "" if self.wide else f"{c.V} {self.span}[{SPAN * self.strip}];\n"
        code += f"for (int {i} = 0; {i} < {self.rows}; {i} += {self.strip}) {{\n"
        code += f"{c.V} {', '.join(f'{name} = {zero}' for name in (*right, *corner))};\n"
        code += f"for (int {j} = {self.cols} - 1; {j} >= 0; {j}--) {{\n{c.V} {passing} = {self.M}[{j}];\n"
        # The last cell of each lane is on every alignment.
        code += f"if ({i} == 0) {passing} = {ends} == {c.whole(0)} + ({j} + 1) ? {c.const(2.0**high)} : {passing};\n"
        code += "".join(f"{c.V} {name} = {zero};\n" for name in self.slopes)
        for r, slope in enumerate(self.slopes):
            at, share = f"(({self.rows}-1-{i}-{r})*{self.m}+{j})", fresh("share")
            code += f"if ({i} + {r} < {self.rows}) {{\nconst {c.V}* {share} = {self.tab} + {at}*{self.kept};\n"
            code += f"{passing} = {passing} + {right[r]};\n"
            code += f"{passing} = {passing} > {c.const(1)} ? {passing} : {zero};\n"
            rate = f" * {share}[3]" if self.rule == "gak" else ""
            code += f"{slope} = {passing} * {c.const(2.0**-high)} * {weight}{rate};\n"
            code += f"{right[r]} = {passing} * {share}[1];\n"
            code += f"const {c.V} {self.diag} = {passing} * {share}[2];\n"
            code += f"{passing} = {passing} * {share}[0] + {corner[r]};\n{corner[r]} = {self.diag};\n"
            code += f"*({c.U}*)({self.result} + {at}*{c.lanes}) = {slope};\n" if self.wide else ""
            code += "}\n"
        code += f"{self.M}[{j}] = {passing};\n"
        if not self.wide:
            for r, name in enumerate(self.slopes):
                code += f"{self.span}[{j} % {SPAN} * {self.strip} + {r}] = {name};\n"
            code += self.into_elements()
        return code + "}\n}\n}\n"

    def into_elements(self) -> str:
        """S (x - y) of the cells of SPAN columns, added to what x and y have of it, with the sums of x in registers."""
        c, j, k, dim, column = self.c, self.j, self.k, self.dim, self.column_of_span
        y, sum_, term = fresh("y"), fresh("g"), fresh("u")
        rows, xs, sums = (several(name, self.strip) for name in ("row", "x", "sum"))
        code = f"if ({j} % {SPAN} == 0) {{\n"
        for r, row in enumerate(rows):  # beyond the first row of x the slopes are 0
            inside = f"{self.rows}-1-{self.i}-{r}"
            code += f"const int {row} = {larger(inside, '0')} * {dim};\n"
        code += f"for (int {k} = 0; {k} < {dim}; {k}++) {{\n"
        for row, x, of_x in zip(rows, xs, sums, strict=True):
            code += f"const {c.V} {x} = {c.const(0)} + {self.px}[{row}+{k}];\n{c.V} {of_x} = {c.const(0)};\n"
        code += f"for (int {column} = {j}; {column} < {self.cols} && {column} < {j} + {SPAN}; {column}++) {{\n"
        code += f"const {c.V} {y} = {c.load(self.py, f'{column}*{dim}+{k}')};\n"
        code += f"{c.V} {sum_} = {c.load(self.gy, f'{column}*{dim}+{k}')};\n"
        for r, (x, of_x) in enumerate(zip(xs, sums, strict=True)):
            slope = f"{self.span}[({column}-{j})*{self.strip}+{r}]"
            code += f"{{ const {c.V} {term} = {x} - {y};\n"
            code += f"{of_x} = {of_x} + {slope} * {term}; {sum_} = {sum_} - {slope} * {term}; }}\n"
        code += f"*({c.U}*)({self.gy} + ({column}*{dim}+{k})*{c.lanes}) = {sum_};\n}}\n"
        code += "".join(f"{self.gx}[{row}+{k}] += {of_x};\n" for row, of_x in zip(rows, sums, strict=True))
        return code + "}\n}\n"

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
            code += f"{self.result}[{i}*{dim}+{k}] += {term};\n"
            code += f"{self.gy}[({j}*{dim}+{k})*{lanes}+{w}] -= {term};\n}}\n"
        code += f"if ({i} == 0 && {j} == 0) break;\nif ({i} == 0) {{ {j}--; continue; }}\n"
        code += f"if ({j} == 0) {{ {i}--; continue; }}\n"
        diag, above, before = at(f"{i}-1", f"{j}-1"), at(f"{i}-1", j), at(i, f"{j}-1")
        code += f"if ({diag} <= {above} && {diag} <= {before}) {{ {i}--; {j}--; }}\n"
        return code + f"else if ({above} <= {before}) {i}--;\nelse {j}--;\n}}\n}}\n"

    def finish(self) -> str:
        """What x has, summed over the lanes; large tables are given back."""
        c, k, code = self.c, self.k, ""
        if self.linear and not self.wide:
            code += f"for (int {k} = 0; {k} < {self.n * self.dim}; {k}++) {self.lane_loop()} "
            code += f"{self.result}[{k}] += (({c.dtype}*)({self.gx} + {k}))[{self.w}];\n"
        if self.table_bytes() > KEPT:
            code += f"__builtin_free({self.memory});\n{self.memory} = 0;\n"
        return code
