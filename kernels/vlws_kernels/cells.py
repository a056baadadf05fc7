"""The arithmetic of one cell of an alignment's table, in the C of `lanes.py`: the same for every kernel that fills one.

    rule   cell (i, j) of the table
    gak    M = k (M[i-1,j] + M[i,j-1] + M[i-1,j-1]), k = s/(2-s)
    soft   the same with k = s, s = 2^-(p d): soft-DTW is -log M
    dtw    R = d + min(R[i-1,j], R[i,j-1], R[i-1,j-1])

The sums run in the linear domain. Each value is a pair (mantissa, exponent) of floats, rescaled cell by cell, so that
nothing overflows or vanishes whatever the costs: one exponential a cell (an explicit polynomial), none in the
recursion, and no logarithm at all. The log domain would need two exponentials and a logarithm for each cell.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vlws_kernels.lanes import Lanes, fresh, larger, several, smaller


@functools.cache
def exp2_polynomial(degree: int) -> list[float]:
    """Coefficients, lowest first, of the Chebyshev interpolant of 2^f on [-1/2, 1/2]."""
    interpolant = np.polynomial.Chebyshev.interpolate(np.exp2, degree, domain=[-0.5, 0.5])
    return [float(c) for c in interpolant.convert(kind=np.polynomial.Polynomial).coef]


def largest_cost(dtype: str, n: int, m: int) -> float:
    """The largest p d of a cell that the integer exponents hold along a whole path; larger ones are cut to it."""
    if dtype == "double":
        return float(2**50)
    return float(min(2**22, 2**29 // (n + m)))


class Local(NamedTuple):
    """C names of a cell's local kernel, `factor` 2^-n: `near` is n + 1.5 2^23 (2^52); `power` (of gak) is 2^-n."""

    factor: str
    near: str
    power: str


class Sum(NamedTuple):
    """C of a cell's sum over its neighbours: its name, its exponent less the bias, and what each neighbour adds."""

    total: str
    base: str
    up: str
    left: str
    diag: str


class Cells:
    """Writes the cells of a column of `strip` rows, from above to below; the names are those of who inherits it.

    `costs` and `left` have a name a row: its local cost, and its cell in the column before. `up` and `diag` are what
    stands above the first row, in this column and the one before. Each cell leaves its own value in `left` and `up`.
    With sums every value has an exponent beside it (`left_e`, `up_e`, `diag_e`); `scale` is p in s = 2^-(p d), and
    `most` the largest p d that the exponents hold.
    """

    c: Lanes
    rule: str
    linear: bool
    costs: list[str]
    left: list[str]
    left_e: list[str]
    diag: str
    diag_e: str
    up: str
    up_e: str
    scale: str
    most: str

    def start(self) -> tuple[str, str, str, str]:
        """Nothing and the start, as values and as exponents: one (a cost of 0) before the first cell."""
        c, single = self.c, self.c.dtype == "float"
        zero, one = (c.const(1), c.const(1)) if self.linear else (c.const(1e37 if single else 1e300), c.const(0))
        return zero, one, c.whole(-(1 << 30) if single else -(1 << 60)), c.whole(0)

    def hard_cell(self, r: int) -> str:
        """Cell (i+r, j): `up` and `diag` hold its neighbours in the row before, left[r] the one in its own."""
        best, left, diag, up = fresh("r"), self.left[r], self.diag, self.up
        code = f"{self.c.V} {best} = {smaller(up, left)};\n{best} = {smaller(best, diag)};\n"
        return code + f"{diag} = {left};\n{left} = {best} + {self.costs[r]};\n{up} = {left};\n"

    def linear_cell(self, r: int, between: Callable[[Local, Sum], str] | None = None) -> str:
        """The same for sums: the local kernel, the neighbours added and multiplied by it, the result taken apart.

        `between` writes code that stands after the sum and before the product.
        """
        c, left, left_e = self.c, self.left[r], self.left_e[r]
        up, up_e, diag, diag_e = self.up, self.up_e, self.diag, self.diag_e
        # Adding 1.5 2^23 (2^52) rounds to the nearest integer and leaves it in the low bits.
        magic_bits = int(c.real(1.5 * 2.0**c.mantissa_bits).view(f"i{c.size}"))
        code, local = self.local_kernel(r, magic_bits)
        # The three neighbours, brought to the largest exponent and added.
        e, base, total, raw = (fresh(name) for name in ("e", "e", "m", "b"))
        code += f"{c.B} {e} = {larger(up_e, left_e)};\n{e} = {larger(e, diag_e)};\n"
        code += f"{c.B} {base} = {e} - {c.whole(c.bias)};\n"
        of_up, of_left, of_diag = several("s", 3)
        for name, exponent in ((of_up, up_e), (of_diag, diag_e), (of_left, left_e)):
            code += c.power_of_two(name, f"{exponent} - {base}")
        neighbours = Sum(total, base, f"{up} * {of_up}", f"{left} * {of_left}", f"{diag} * {of_diag}")
        code += f"{c.V} {total} = {neighbours.up} + {neighbours.diag} + {neighbours.left};\n"
        code += between(local, neighbours) if between else ""
        code += f"{total} = {total} * {local.factor};\n{diag} = {left};\n{diag_e} = {left_e};\n"
        # Back to a mantissa in [1, 2) and an exponent.
        code += c.bits(raw, total)
        code += f"{left_e} = ({base} + {c.whole(magic_bits)} - {local.near}) + ({raw} >> {c.mantissa_bits});\n"
        ones = c.whole(int(c.real(1).view(f"i{c.size}")))
        mantissa = fresh("m")
        code += c.from_bits(mantissa, f"({raw} & {c.whole((1 << c.mantissa_bits) - 1)}) | {ones}")
        return code + f"{left} = {mantissa};\n{up} = {left};\n{up_e} = {left_e};\n"

    def local_kernel(self, r: int, magic_bits: int) -> tuple[str, Local]:
        """Code of the local kernel of a cell, and its names. 2^-t = 2^-round(t) 2^f, the second by a polynomial."""
        c = self.c
        t, rounded, near, f, g, s = (fresh(name) for name in ("t", "r", "k", "f", "g", "s"))
        magic = c.const(c.real(1.5 * 2.0**c.mantissa_bits))
        code = f"{c.V} {t} = {self.costs[r]} * {self.scale};\n"
        code += f"{t} = {smaller(t, self.most)};\n"
        code += f"{c.V} {rounded} = {t} + {magic};\n{c.V} {f} = ({rounded} - {magic}) - {t};\n"
        code += c.bits(near, rounded)
        top, *rest = reversed(exp2_polynomial(6 if c.dtype == "float" else 12))
        code += f"{c.V} {g} = {c.const(top)};\n"
        code += "".join(f"{g} = {g} * {f} + {c.const(coefficient)};\n" for coefficient in rest)
        if self.rule == "gak":  # k = s / (2 - s); its exponent is that of s
            code += c.power_of_two(s, f"{c.whole(c.bias + magic_bits)} - {near}")
            code += f"{g} = {g} / ({c.const(2)} - {g} * {s});\n"
        return code, Local(g, near, s)
