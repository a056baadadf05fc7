"""What holds for every public function: its inputs' own precision, and torch where KeOps cannot be compiled."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vlws_kernels import engine as engines

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of the package: in the precision of its inputs, also inside `torch.autocast`, and its gradient.

    Autocast would form products in bfloat16: distances of near points, taken as a difference of such products, would
    be noise. Where KeOps was chosen (`engine=None`) and cannot compile, torch computes, with one warning. Inside the
    capture of a CUDA graph it raises RuntimeError.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return _in_own_precision(function, args, kwargs)
        except engines.CompileError as error:
            if kwargs.get("engine") is not None:
                raise
            engines.give_up(error)
            return _in_own_precision(function, args, kwargs)

    return call


def _in_own_precision(function: Callable, args: tuple, kwargs: dict):
    leaves, shape = pytree.tree_flatten((args, kwargs))
    device = next((leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)), "cpu")
    if device == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{function.__name__} was called while a CUDA graph is captured; it looks at the numbers and lengths that "
            "it is given, which a graph cannot hold: call it outside."
        )
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return function(*args, **kwargs)
    wanted = torch.is_grad_enabled() and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
    with torch.autocast(device, enabled=False):
        if not wanted:
            return function(*args, **kwargs)
        kept: list = []
        outputs = _OwnPrecision.apply(function, shape, device, kept, *leaves)
        return pytree.tree_unflatten(outputs, kept[0])


class _OwnPrecision(torch.autograd.Function):
    """A function whose backward pass, too, runs with autocast off, wherever it is called."""

    @staticmethod
    def forward(ctx, function: Callable, shape: pytree.TreeSpec, device: str, kept: list, *leaves):
        inner = [
            leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        with torch.enable_grad():
            args, kwargs = pytree.tree_unflatten(inner, shape)
            outputs, result = pytree.tree_flatten(function(*args, **kwargs))
        kept.append(result)
        ctx.device, ctx.inner, ctx.outputs = device, inner, outputs
        given = tuple(output.detach() if isinstance(output, Tensor) else output for output in outputs)
        ctx.mark_non_differentiable(
            *(g for g, o in zip(given, outputs, strict=True) if isinstance(o, Tensor) and not o.requires_grad)
        )
        return given

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        wanted = [k for k, leaf in enumerate(ctx.inner) if isinstance(leaf, Tensor) and leaf.requires_grad]
        pairs = [(o, g) for o, g in zip(ctx.outputs, grads, strict=True) if isinstance(o, Tensor) and o.requires_grad]
        with torch.autocast(ctx.device, enabled=False):
            found = torch.autograd.grad(
                [output for output, _ in pairs],
                [ctx.inner[k] for k in wanted],
                [grad for _, grad in pairs],
                retain_graph=True,
                allow_unused=True,
            )
        by_leaf = dict(zip(wanted, found, strict=True))
        return None, None, None, None, *(by_leaf.get(k) for k in range(len(ctx.inner)))
