"""Values by KeOps or torch whose gradients are those of the torch engine, piece by piece in float64."""

import torch
from torch import Tensor

from vlws_kernels import keops, torch_engine
from vlws_kernels.costs import held, squared_distance
from vlws_kernels.inputs import Problem


class AlignPoints(torch.autograd.Function):
    """KeOps over pairs of sequences; the distances are formed inside the operation."""

    @staticmethod
    def forward(ctx, rule: str, problem: Problem, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
        values = keops.align_points(rule, problem, scale)
        ctx.rule, ctx.problem, ctx.scale = rule, problem, scale
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        problem, (a, b, n, m) = ctx.problem, ctx.problem.shape
        x, y = problem.x.detach(), problem.y.detach()
        grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y, dtype=torch.float64)
        scale = ctx.scale.expand(a, b)
        step = held(b * n * m, 1 / 8)
        for start in range(0, a, step):
            rows = slice(start, min(start + step, a))
            with torch.enable_grad():
                part, other = x[rows].double().requires_grad_(), y.double().requires_grad_()
                table = squared_distance(part[:, None], other[None])
            slope = torch_engine.cost_gradient(
                ctx.rule,
                table.detach().flatten(0, 1),
                problem.len_x[rows].repeat_interleave(b),
                problem.len_y.repeat(len(part)),
                scale[rows].flatten(),
            )
            slope = slope.view_as(table) * grad[rows][..., None, None]
            into_x, into_y = torch.autograd.grad(table, (part, other), slope)
            grad_x[rows] += into_x
            grad_y += into_y
        return None, None, None, grad_x, grad_y.to(y.dtype)


class AlignTables(torch.autograd.Function):
    """Values "p" of given cost tables "p n m", by KeOps or by plain torch; differentiable in the tables."""

    @staticmethod
    def forward(ctx, rule: str, engine: str, d: Tensor, len_x: Tensor, len_y: Tensor, scale: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(d, len_x, len_y, scale)
        align = keops.align_tables if engine == "keops" else torch_engine.align_tables
        return align(rule, d, len_x, len_y, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        d, len_x, len_y, scale = ctx.saved_tensors
        slope = torch_engine.cost_gradient(ctx.rule, d.double(), len_x, len_y, scale) * grad[:, None, None]
        return None, None, slope.to(d.dtype), None, None, None
