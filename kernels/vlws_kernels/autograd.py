"""Values whose gradients are formed anew from the costs: by generated kernels, or by torch in float64."""

import torch
from torch import Tensor

from vlws_kernels import cuda, keops, keops_own, torch_engine, wavefront
from vlws_kernels.costs import blocks, held, squared_distance
from vlws_kernels.inputs import Problem

POINTS = {"keops": keops.align_points, "wavefront": wavefront.align_points}
TABLES = {"keops": keops.align_tables, "wavefront": wavefront.align_tables, "torch": torch_engine.align_tables}


class AlignPoints(torch.autograd.Function):
    """Values of pairs of sequences by generated kernels, which form the distances themselves."""

    @staticmethod
    def forward(ctx, engine: str, rule: str, problem: Problem, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
        values = POINTS[engine](rule, problem, scale)
        ctx.engine, ctx.rule, ctx.problem, ctx.scale = engine, rule, problem, scale
        ctx.held = rule == "dtw" or float(values.min()) > keops.least_value(problem)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        problem, (a, b, n, m) = ctx.problem, ctx.problem.shape
        if ctx.held and (found := _by_kernels(ctx.engine, ctx.rule, problem, ctx.scale, grad)):
            return None, None, None, None, *found
        x, y = problem.x.detach(), problem.y.detach()
        grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y, dtype=torch.float64)
        scale = ctx.scale.expand(a, b)
        for rows, columns in blocks(a, b, held(n * m, 1 / 8, x.device)):
            with torch.enable_grad():
                part, other = (side.double().requires_grad_() for side in (x[rows], y[columns]))
                table = squared_distance(part[:, None], other[None])
            slope = torch_engine.cost_gradient(
                ctx.rule,
                table.detach().flatten(0, 1),
                problem.len_x[rows].repeat_interleave(len(other)),
                problem.len_y[columns].repeat(len(part)),
                scale[rows, columns].flatten(),
            )
            slope = slope.view_as(table) * grad[rows, columns][..., None, None]
            into_x, into_y = torch.autograd.grad(table, (part, other), slope)
            grad_x[rows] += into_x
            grad_y[columns] += into_y
        return None, None, None, None, grad_x, grad_y.to(y.dtype)


def _by_kernels(engine: str, rule: str, problem: Problem, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor] | None:
    """The gradients of x and y by generated kernels; None where there is none for them."""
    if engine == "wavefront" or (grad.is_cuda and cuda.missing() is None):
        return wavefront.point_gradients(rule, problem, scale, grad)
    return None if grad.is_cuda else keops.point_gradients(rule, problem, scale, grad)


class AlignOwn(torch.autograd.Function):
    """log K(x,x) "p" of items "p" of x at the scales "p" on a CPU, by generated kernels; see `keops_own.align_own`."""

    @staticmethod
    def forward(ctx, x: Tensor, lengths: Tensor, item: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, lengths, item, scale)
        return keops_own.align_own(x.detach(), lengths, item, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, *of_items = ctx.saved_tensors
        return keops_own.own_gradients(x.detach(), *of_items, grad), None, None, None


class AlignTables(torch.autograd.Function):
    """Values "p" of given cost tables "p n m" by any engine; differentiable in the tables."""

    @staticmethod
    def forward(ctx, rule: str, engine: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
        ctx.rule, ctx.engine = rule, engine
        ctx.save_for_backward(d, len_x, len_y, scale)
        return TABLES[engine](rule, d, len_x, len_y, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        d, len_x, len_y, scale = ctx.saved_tensors
        if ctx.engine == "wavefront":
            slope = wavefront.cost_gradient(ctx.rule, d, len_x, len_y, scale, grad)
        else:
            slope = torch_engine.cost_gradient(ctx.rule, d.double(), len_x, len_y, scale) * grad[:, None, None]
        return None, None, slope.to(d.dtype), None, None, None
