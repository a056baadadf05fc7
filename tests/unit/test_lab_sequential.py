"""Stopping as soon as a claim is decided is wrong no more often than one look at the end would be: simulated."""

import numpy as np
import pytest

from vlws.errors import InputError
from vlws.lab import sequential

CLAIM = {"direction": "greater", "threshold": 0.0, "n_seeds": 3}
SEQUENCES = 1500


def ends(effect, at, levels, draw=None, claim=CLAIM, seed=0):
    """verdict -> share of sequences that end with it, and the mean number of seeds at the end."""
    rng = np.random.default_rng(seed)
    draw = draw or rng.standard_normal
    found = {"supported": 0, "opposed": 0, "undecided": 0}
    used = 0
    for _ in range(SEQUENCES):
        values = draw(at[-1]) + effect
        for n, level in zip(at, levels, strict=True):
            judged = sequential.judge(claim | {"values": values[:n].tolist()}, level)["verdict"]
            if judged != "undecided":
                break
        found[judged] += 1
        used += n
    return {word: count / SEQUENCES for word, count in found.items()}, used / SEQUENCES


@pytest.fixture(scope="module")
def plan():
    at = sequential.looks(18)
    return at, sequential.levels(at)


def test_under_the_null_one_claim_of_twenty_is_decided(plan):
    found, _ = ends(0.0, *plan)
    assert 0.03 < found["supported"] + found["opposed"] < 0.07  # 0.05; its standard error is 0.0056
    unguarded, _ = ends(0.0, plan[0], [0.05] * len(plan[0]))
    assert unguarded["supported"] + unguarded["opposed"] > 0.13


def test_under_heavy_tails_no_more_are_decided(plan):
    rng = np.random.default_rng(3)
    found, _ = ends(0.0, *plan, draw=lambda n: rng.standard_t(3, n))
    assert found["supported"] + found["opposed"] < 0.06


@pytest.mark.parametrize(("effect", "wrong"), [(0.3, 0.01), (1.0, 0.005)])
def test_small_effects_are_seldom_decided_the_wrong_way(plan, effect, wrong):
    found, seeds = ends(effect, *plan)
    assert found["opposed"] <= wrong
    assert found["supported"] > {0.3: 0.15, 1.0: 0.9}[effect]
    assert seeds < {0.3: 17.9, 1.0: 12.0}[effect]


def test_a_clear_effect_ends_early(plan):
    found, seeds = ends(8.0, *plan)
    assert found["supported"] > 0.999
    assert seeds < 5.5


def test_all_intervals_together_hold_the_value(plan):
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(SEQUENCES):
        values = rng.standard_normal(plan[0][-1]) + 5.0
        intervals = [sequential.interval({"values": values[:n]}, level) for n, level in zip(*plan, strict=True)]
        missed += not all(low <= 5.0 <= high for low, high in intervals)
    assert 0.03 < missed / SEQUENCES < 0.07


def test_a_band_is_judged_by_the_same_intervals(plan):
    band = {"direction": "within", "threshold": 0.0, "tolerance": 1.0, "n_seeds": 3}
    inside, _ = ends(0.0, *plan, claim=band)
    edge, _ = ends(1.0, *plan, claim=band, seed=5)
    assert inside["supported"] > 0.9
    assert edge["supported"] + edge["opposed"] < 0.07


def test_looks_are_fixed_and_grow():
    assert sequential.looks(24) == (3, 5, 8, 12, 18, 24)
    assert sequential.looks(3) == (3,)
    assert sequential.looks(13, fewest=5) == (5, 8, 12, 13)
    with pytest.raises(InputError, match="seeds is 2; this claim needs at least 3"):
        sequential.looks(2)


def test_one_look_is_the_plain_interval():
    (level,) = sequential.levels([8])
    assert level == pytest.approx(0.05, abs=0.001)


def test_the_noise_of_the_items_is_a_floor_and_bounds_are_kept():
    agree = {"values": [0.5, 0.5, 0.5], "item_se": [0.1, 0.1, 0.1]}
    _, high = sequential.interval(agree, 0.05)
    assert high - 0.5 == pytest.approx(1.96 * 0.1 / np.sqrt(3), rel=1e-3)
    assert sequential.interval({"values": [0.9, 1.0, 0.95], "bounds": (0, 1)}, 0.01)[1] == 1.0
    assert sequential.interval({"values": [0.5, 0.5, 0.5]}, 0.05) == (None, None)
