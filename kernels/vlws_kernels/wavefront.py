"""The wavefront engine, for GPUs: costs by matrix products, the recursion by the kernels of `wave_code.py`.

A call goes through its pairs in chunks, as large as the free memory allows. Nothing in a chunk waits for the GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vlws_kernels import cuda
from vlws_kernels import engine as engines
from vlws_kernels.costs import blocks, held
from vlws_kernels.inputs import Problem
from vlws_kernels.keops import LOG2E, recompute_overflow

if TYPE_CHECKING:  # it imports KeOps
    from vlws_kernels import wave_code

PIECES = 8  # of a symmetric problem: 9/16 of its products are formed


class Side(NamedTuple):
    """One side's elements "item length dim", the same less a common vector, its squared norms, and lengths (int32)."""

    x: Tensor
    shifted: Tensor
    norms: Tensor
    lengths: Tensor

    def part(self, items: slice) -> "Side":
        return Side(*(values[items] for values in self))


def align_points(rule: str, problem: Problem, scale: Tensor) -> Tensor:
    """log K (or costs of dtw) "a b", float64, from squared Euclidean distances of the elements."""
    a, b, _n, _m = problem.shape
    values = torch.zeros(a, b, dtype=torch.float64, device=problem.device)
    for rows, columns, pairs in _chunks(rule, problem, scale, problem.shape[2] * problem.shape[3]):
        values[rows, columns] = pairs.values()
    if problem.symmetric:
        values = values.triu() + values.triu(1).T
    return recompute_overflow(values, problem, scale) if rule == "soft" else values


def point_gradients(rule: str, problem: Problem, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x "a n dim" and y "b m dim", where that of the values is `grad` "a b".

    The slopes S of the values by the costs come from two sweeps; d = |x - y|^2 makes 2 (x S1 - S y) of them.
    """
    grad = grad.double()
    if problem.symmetric:  # a pair below the diagonal has the value of its mirror image
        grad = grad.triu() + grad.T.triu(1)
    grad_x, grad_y = torch.zeros_like(problem.x), torch.zeros_like(problem.y)
    for rows, columns, pairs in _chunks(rule, problem, scale, numbers(*problem.shape[2:])):
        slopes = pairs.slopes(grad[rows, columns]).flatten(0, 1).flatten(1)
        x, y = (side.shifted.flatten(0, 1) for side in pairs.sides)
        grad_x[rows] += (2 * (x * slopes.sum(1)[:, None] - products(slopes, y.T))).view_as(grad_x[rows])
        grad_y[columns] += (2 * (y * slopes.sum(0)[:, None] - products(slopes.T, x.T))).view_as(grad_y[columns])
    return grad_x, grad_y


def align_tables(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
    """The same "p" for given cost tables "p n m" with lengths and scales "p"."""
    return _of_tables(rule, d, len_x, len_y, scale).values()[:, 0]


def cost_gradient(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    """The derivative "p n m" of the values "p" by each cost, times `grad` "p"."""
    return _of_tables(rule, d.clone(), len_x, len_y, scale).slopes(grad.double()[:, None])[:, :, 0]


def numbers(n: int, m: int) -> int:
    """How many numbers a pair holds with its gradient: costs, slopes, products, and two tables in the sweep's order."""
    from vlws_kernels import wave_code

    return 3 * n * m + 2 * wave_code.table_size(n, m, *wave_code.shape_of(n))


def products(x: Tensor, y: Tensor) -> Tensor:
    """x y^T in the precision of float32 also where torch may take TF32 for it: then as three such products."""
    if not (x.is_cuda and x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32):
        return x @ y.T
    (x, x_rest), (y, y_rest) = split_tf32(x), split_tf32(y)
    return (x @ y_rest.T + x_rest @ y.T).add_(x @ y.T)


def split_tf32(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a sum of two, of which the first has the ten bits of mantissa that TF32 keeps."""
    high = (x.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32)
    return high, x - high


@dataclass(frozen=True)
class Pairs:
    """A chunk of pairs "a b" on the GPU: `dots` "a n b m" are inner products of `sides`, or the costs where it is None.

    `len_x` "a" and `len_y` "b", or "a b" where costs are given.
    `power` "a b" (or "1 1") is p in s = 2^-(p d); with `upper` a pair below the diagonal is left out.
    """

    rule: str
    dots: Tensor
    len_x: Tensor
    len_y: Tensor
    power: Tensor
    sides: tuple[Side, Side] | None = None
    upper: bool = False

    def values(self) -> Tensor:
        """log K (or costs of dtw) "a b", float64."""
        return self._logarithm(*self._run("values", {}))

    def slopes(self, grad: Tensor) -> Tensor:
        """The derivative "a n b m" of the values by each cost, times `grad` "a b" (float64), in place of `dots`."""
        from vlws_kernels import wave_code

        a, n, b, m = self.dots.shape
        cells = a * b * wave_code.table_size(n, m, *wave_code.shape_of(n))
        tables = {"mantissa": self.dots.new_empty(cells)}
        if self.rule == "dtw":
            self._run("tables", tables)
            gain = grad.to(self.dots.dtype).contiguous()
            return self._launch_path({"slopes": self.dots.zero_(), "gain": gain} | tables)
        tables["exponent"] = self.dots.new_empty(cells, dtype=self._kinds()[1])
        ends = self._run("tables", tables)
        gain = (grad * self.power.double() / LOG2E).to(self.dots.dtype).contiguous()
        self._run("slopes", tables | {"gain": gain}, ends)
        return self.dots

    def _kinds(self) -> tuple[str, torch.dtype]:
        """The name of the numbers' C type, and the integers of its size."""
        return ("float", torch.int32) if self.dots.dtype == torch.float32 else ("double", torch.int64)

    def _run(
        self, part: str, more: dict[str, Tensor], ends: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Launch one part of `wave_code`; `ends` are what its `values` gave, mantissa and exponent "a b"."""
        from vlws_kernels import wave_code

        a, n, b, m = self.dots.shape
        dtype, whole = self._kinds()
        width, rows = wave_code.shape_of(n)
        fresh = self.dots.new_empty
        strips = a * b * m if n > width * rows else 0
        out, out_e = ends or (fresh(a, b), fresh(a, b, dtype=whole))
        own = self.power.numel() > 1
        given = {"dots": self.dots, "out": out, "out_e": out_e, "scale": self.power, "dim": 0, "exponent": None, **more}
        given |= {"scale_a": b * own, "scale_b": int(own), "most": engines.operations().largest_cost(dtype, n, m)}
        given |= {"edge": fresh(strips), "edge_e": fresh(strips, dtype=whole)}
        if self.sides is not None:
            x, y = self.sides
            given |= {"x": x.x, "y": y.x, "norm_x": x.norms, "norm_y": y.norms, "dim": x.x.shape[-1]}
        self._launch(
            wave_code.wave_kernel(dtype, self.rule, part, self.sides is not None, width, rows), "wave", width, given
        )
        return out, out_e

    def _launch_path(self, given: dict[str, Tensor]) -> Tensor:
        from vlws_kernels import wave_code

        kernel = wave_code.path_kernel(
            self._kinds()[0], self.sides is not None, *wave_code.shape_of(self.dots.shape[1])
        )
        self._launch(kernel, "path", 1, given)
        return given["slopes"]

    def _launch(self, kernel: "wave_code.Kernel", name: str, width: int, given: dict[str, Any]) -> None:
        a, n, b, m = self.dots.shape
        given = {"len_x": self.len_x, "len_y": self.len_y, "a": a, "b": b, "n": n, "m": m, **given}
        given["upper"] = int(self.upper)
        arguments = [(kind, given[argument]) for kind, argument in kernel.signature]
        cuda.launch(kernel.source, name, a * b * width, cuda.THREADS, arguments)

    def _logarithm(self, out: Tensor, out_e: Tensor) -> Tensor:
        if self.rule == "dtw":
            return out.double()
        return torch.add(out.log(), out_e.double(), alpha=math.log(2))


def _chunks(rule: str, problem: Problem, scale: Tensor, size: int) -> Iterator[tuple[slice, slice, Pairs]]:
    """Rows, columns and pairs of a problem on points, as many at once as there is room for `size` numbers each."""
    a, b, n, m = problem.shape
    x, y = _sides(problem)
    power = (scale * LOG2E).to(problem.dtype)
    pairs = held(size, device=problem.device)
    if problem.symmetric and a >= 8 * PIECES:  # of a piece of rows only the columns from its first on are formed
        pairs = min(pairs, -(-a // PIECES) * b)
    for rows, columns in blocks(a, b, pairs):
        if problem.symmetric:
            columns = slice(max(rows.start, columns.start), columns.stop)
            if columns.start >= columns.stop:
                continue
        left, right = x.part(rows), y.part(columns)
        dots = products(left.shifted.flatten(0, 1), right.shifted.flatten(0, 1))
        dots = dots.view(len(left.x), n, len(right.x), m)
        of_pairs = power if power.numel() == 1 else power.expand(a, b)[rows, columns].contiguous()
        yield rows, columns, Pairs(rule, dots, left.lengths, right.lengths, of_pairs, (left, right), problem.symmetric)


def _sides(problem: Problem) -> tuple[Side, Side]:
    """Both sides less their common mean, so that inner products cancel as little as they may."""
    x, y = problem.x.detach().contiguous(), problem.y.detach().contiguous()
    mean = (x.sum((0, 1)) + y.sum((0, 1))) / (problem.len_x.sum() + problem.len_y.sum())

    def side(x: Tensor, lengths: Tensor) -> Side:
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        shifted = torch.where(inside[..., None], x - mean, 0)
        return Side(x, shifted, shifted.square().sum(-1), lengths.int())

    return side(x, problem.len_x), side(y, problem.len_y)


def _of_tables(rule: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Pairs:
    power = (scale * LOG2E).to(d.dtype)[:, None].contiguous()
    return Pairs(rule, d.detach().contiguous()[:, :, None], len_x.int(), len_y.int(), power)
