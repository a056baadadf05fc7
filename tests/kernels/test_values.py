"""What the functions return at this version of `VALUES`; that the engines agree is told by the other tests.

Where a value moves beyond rounding, raise `vlws_kernels.VALUES` and write the new value here: results that were
computed with the functions are stale then.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vlws_kernels as vk

x = torch.sin(torch.arange(2 * 5 * 3, dtype=torch.float64)).view(2, 5, 3)
y = torch.cos(torch.arange(3 * 4 * 3, dtype=torch.float64) / 3).view(3, 4, 3)
rows, others = x.flatten(0, 1), y.flatten(0, 1)
ragged = {"len_x": torch.tensor([5, 3]), "len_y": torch.tensor([4, 2, 4]), "engine": "torch"}
mixed = {"modality_x": torch.arange(10).view(2, 5) % 2, "modality_y": torch.arange(12).view(3, 4) % 2, "split": 2}


def gradient() -> Tensor:
    leaf = x.clone().requires_grad_()
    vk.gak(leaf, y, sigma=1.5, **ragged).sum().backward()
    return leaf.grad


CALLS: dict[str, tuple[Callable[[], Tensor], float]] = {
    "gak": (lambda: vk.gak(x, y, sigma=1.5, **ragged), -0.0481516608894),
    "gak, defaults": (lambda: vk.gak(x, y, engine="torch"), 3.22937386136e-05),
    "gak, log, not normalised": (lambda: vk.gak(x, y, log=True, normalize=False, **ragged), 1.32625863072),
    "gak, modalities": (lambda: vk.gak(x, y, **ragged, **mixed), -0.3043511548),
    "gak, gradient": (gradient, 0.0783506265051),
    "soft_dtw": (lambda: vk.soft_dtw(x, y, **ragged), -2.80623470706),
    "dtw": (lambda: vk.dtw(x, y, **ragged), -4.05210142125),
    "expected_alignment": (lambda: vk.expected_alignment(x[0], y[0], gamma=0.5), 1.5566760604),
    "alignment_path": (lambda: vk.alignment_path(x[0], y[0]), -1.35683994166),
    "squared_distance": (lambda: vk.squared_distance(x[0], y[0]), -6.83497770518),
    "triple_distance": (
        lambda: vk.triple_distance(x[0], y[0], mixed["modality_x"][0], mixed["modality_y"][0], 2),
        -3.11567932479,
    ),
    "knn, distances": (lambda: vk.knn(rows, others, 3, engine="torch")[0], -1.0934762162),
    "knn, indices": (lambda: vk.knn(rows, others, 3, engine="torch")[1], 20.084654065),
    "nearest_code": (lambda: vk.nearest_code(rows, others, engine="torch")[1], 1.72672593671),
    "kmeans": (lambda: vk.kmeans(rows, 3, engine="torch")[0].sort(0).values, 0.791508421379),
    "max_sim": (lambda: vk.max_sim(x, y, **ragged), 4.71776475275),
    "info_nce": (lambda: vk.info_nce(rows[:9], others[:9], engine="torch"), 13.5032154778),
    "mmd": (lambda: vk.mmd(rows, others, engine="torch"), 0.139396702643),
}


def one_number(found: Tensor) -> float:
    """A sum in which each number has a weight of its own."""
    flat = found.double().flatten()
    return float(flat @ torch.cos(torch.arange(len(flat), dtype=torch.float64)))


def test_the_version_is_that_of_these_values() -> None:
    assert vk.VALUES == 1


@pytest.mark.parametrize("name", CALLS)
def test_values_are_those_of_this_version(name: str) -> None:
    call, value = CALLS[name]
    assert one_number(call()) == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_every_public_function_has_a_value() -> None:
    assert {name.split(",")[0] for name in CALLS} == set(vk.__all__)
