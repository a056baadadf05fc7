"""Work on n x m matrices a tile at a time, so that none is ever held, also for its gradient."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlws_kernels import engine as engines

PRODUCTS = 64  # from this dim on a matrix product is the quicker way to all pairs on a GPU
TILE = 2**20  # numbers of the matrix held at once: a few megabytes stay in a CPU's cache


def choose_engine(engine: str | None, x: Tensor) -> str:
    """The engine of a reduction: the one asked for, or tiles (`torch`); on a GPU KeOps where dimensions are few.

    Raises ValueError for an unknown name, and RuntimeError when `keops` is asked for and cannot run.
    """
    if engine is None and not (x.is_cuda and x.shape[-1] < PRODUCTS and engines.keops_has_cuda()):
        return "torch"
    if engine == "keops" and x.is_cuda and not engines.keops_has_cuda():
        raise RuntimeError("engine 'keops' cannot run: KeOps finds no CUDA toolkit; engine 'torch' can.")
    return engines.choose(engine, x)


def side(x: Tensor) -> int:
    """Rows and columns of a square tile; a GPU wants few large ones."""
    return max(1, math.isqrt(64 * TILE if x.is_cuda else TILE))


def rows(step: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some tensors together, `step` rows at a time."""
    return zip(*(tensor.split(step) for tensor in tensors), strict=True)


def piece(function: Callable, *tensors: Tensor):
    """One tile; where a gradient is wanted, its matrix is formed again in the backward pass instead of kept."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return checkpoint(function, *tensors, use_reentrant=False)
    return function(*tensors)


class Recomputed(torch.autograd.Function):
    """`fast(*tensors)` forward; the gradient is that of `tiled(*tensors)`, the same function in torch."""

    @staticmethod
    def forward(ctx, fast: Callable, tiled: Callable, *tensors: Tensor) -> Tensor:
        ctx.tiled = tiled
        ctx.save_for_backward(*tensors)
        return fast(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_(want) for t, want in zip(ctx.saved_tensors, wanted, strict=True)]
            value = ctx.tiled(*tensors)
        grads = iter(torch.autograd.grad(value, [t for t in tensors if t.requires_grad], grad))
        return None, None, *(next(grads) if want else None for want in wanted)
