"""What holds for every public function: the precision of its inputs inside autocast, gradients included."""

import pytest
import torch
from torch.utils import _pytree as pytree

import vlws_kernels as vk

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(3, 5, 4, generator=GENERATOR) for _ in range(2))
P, Q = (torch.randn(40, 8, generator=GENERATOR) for _ in range(2))
KINDS = torch.tensor([[0, 1, 0, 1, 1]] * 3)
MODALITY = {"modality_x": KINDS, "modality_y": KINDS, "split": 2}
RATE = torch.tensor(0.3)
CALLS = {
    "alignment_path": lambda: vk.alignment_path(X[0], Y[0]),
    "dtw": lambda: vk.dtw(X, Y),
    "expected_alignment": lambda: vk.expected_alignment(X[0], Y[0], gamma=0.5),
    "gak": lambda: vk.gak(X, Y, sigma=2.0, **MODALITY),
    "info_nce": lambda: vk.info_nce(P, Q, RATE),
    "kmeans": lambda: vk.kmeans(P, 3),
    "knn": lambda: vk.knn(P, Q, 3),
    "max_sim": lambda: vk.max_sim(X, Y),
    "mmd": lambda: vk.mmd(P, P + 1e-3),
    "nearest_code": lambda: vk.nearest_code(P, codes=Q),
    "soft_dtw": lambda: vk.soft_dtw(X, engine="torch"),
    "squared_distance": lambda: vk.squared_distance(X, Y),
    "triple_distance": lambda: vk.triple_distance(X, Y, KINDS, KINDS, 2),
}
INPUTS = [X, Y, P, Q, RATE]


def value_and_gradients(name: str) -> list:
    """What the function returns, and the gradients of the sum of what is differentiable of it."""
    for tensor in INPUTS:
        tensor.requires_grad_(True)
    try:
        outputs = pytree.tree_leaves(CALLS[name]())
        slopes = [o.sum() for o in outputs if isinstance(o, torch.Tensor) and o.requires_grad]
        grads = torch.autograd.grad(sum(slopes), INPUTS, allow_unused=True) if slopes else []
        plain = [CALLS[name]()] if not slopes else []
    finally:
        for tensor in INPUTS:
            tensor.requires_grad_(False)
    return [*outputs, *pytree.tree_leaves(plain), *(grad for grad in grads if grad is not None)]


def test_every_public_function_is_called_here() -> None:
    assert set(CALLS) == set(vk.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name: str) -> None:
    expected = value_and_gradients(name)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(name)
        with torch.no_grad():
            values = pytree.tree_leaves(CALLS[name]())
        assert torch.is_autocast_enabled("cpu")
    for one, other in zip([*found, *values], [*expected, *expected[: len(values)]], strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        else:
            assert one == other


def test_a_gradient_is_taken_twice_and_a_failure_leaves_autocast_on() -> None:
    x = X.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = vk.max_sim(x, Y).sum()
        first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
        with pytest.raises(ValueError, match="must be"):
            vk.max_sim(x[0], Y)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(first, second)
