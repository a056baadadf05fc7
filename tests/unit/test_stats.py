"""Intervals cover what they say, at 3, 5 and 8 seeds; where they cannot, what they do cover is measured."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws import stats
from vlws.errors import InputError

SEEDS = pytest.mark.parametrize("n_seeds", [3, 5, 8])


def coverage(draw, n_seeds: int, runs: int = 3000, **options) -> float:
    """Share of simulated experiments whose interval holds the true mean, 0; one without an interval does not."""
    rng, hits = np.random.default_rng(n_seeds), 0
    for _ in range(runs):
        _, low, high = stats.interval(draw(rng, n_seeds), **options)
        hits += low is not None and low <= 0 <= high
    return hits / runs


def own_items(rng, n_seeds, n_items=100, spread=0.3, n=60):
    """ "1+replicate seed": each seed's effect plus the mean of its own items, and replicates as a bootstrap gives."""
    point = rng.normal(size=n_seeds) * spread + rng.normal(size=n_seeds) / math.sqrt(n_items)
    return np.concatenate([point[None], point + rng.normal(size=(n, n_seeds)) / math.sqrt(n_items)])


@SEEDS
@pytest.mark.parametrize("spread", [0.3, 0.0], ids=["seeds differ", "only items differ"])
def test_own_items_cover_95_percent(n_seeds, spread):
    found = coverage(lambda rng, s: own_items(rng, s, spread=spread), n_seeds)
    assert 0.93 <= found <= (0.97 if spread else 0.99)  # the floor by items may only widen


@SEEDS
def test_seeds_alone_cover_95_percent(n_seeds):
    assert coverage(lambda rng, s: rng.normal(size=s), n_seeds) == pytest.approx(0.95, abs=0.02)


@SEEDS
def test_shared_items_cover_95_percent(n_seeds):
    def draw(rng, s):
        items, effects = rng.normal(size=50) * 3, rng.normal(size=s) * 0.3
        resampled = items[rng.integers(50, size=(100, 50))].mean(1)
        return np.concatenate([[items.mean() + effects], resampled[:, None] + effects])

    assert coverage(draw, n_seeds, runs=400, shared_items=True) >= 0.90
    assert coverage(draw, n_seeds, runs=400) < 0.88  # which is why the claim must say that its items are shared


@pytest.mark.parametrize(("n_seeds", "least"), [(3, 0.85), (5, 0.86), (8, 0.88)])
def test_a_skewed_effect_is_covered_less_than_said(n_seeds, least):
    found = coverage(lambda rng, s: rng.exponential(size=s) - 1, n_seeds)
    assert least <= found < 0.94


@pytest.mark.parametrize(("n_seeds", "least"), [(3, 0.40), (5, 0.60), (8, 0.78)])
def test_seeds_that_collapse_need_more_seeds(n_seeds, least):
    """One training in five collapses: with few seeds none is seen collapsing, and the interval misses it."""

    def draw(rng, s):
        return 0.2 + rng.normal(size=s) * 0.05 - (rng.random(s) < 0.2)

    found = coverage(draw, n_seeds)
    assert least <= found < 0.93


def test_own_items_are_not_counted_twice():
    """Power at an effect of two standard errors: more than the crossed bootstrap has, which adds the items again."""
    rng, runs, won, crossed = np.random.default_rng(0), 400, 0, 0
    for _ in range(runs):
        rows = own_items(rng, 5, spread=0.02) + 0.11
        won += stats.interval(rows)[1] > 0
        crossed += stats.interval(rows, shared_items=True)[1] > 0
    assert won > crossed


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-6), st.floats(-100, 100))
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_its_point_and_moves_with_the_data(effects, shift):
    values = np.array(effects)
    value, low, high = stats.interval(values)
    assert low <= value <= high
    np.testing.assert_allclose(stats.interval(values + shift), np.array([value, low, high]) + shift, atol=1e-8)


def test_the_interval_of_seeds_is_students():
    values = np.array([0.1, 0.3, 0.2])
    value, low, high = stats.interval(values)
    half = 4.302652729911275 * values.std(ddof=1) / math.sqrt(3)  # t(.975, 2)
    np.testing.assert_allclose([low, high], [value - half, value + half])


def test_agreeing_seeds_have_the_floor_of_their_items():
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.full((1, 3), 0.5), 0.5 + 0.05 * rng.normal(size=(5000, 3))])
    value, _, high = stats.interval(rows)
    assert value == 0.5
    assert high - value == pytest.approx(stats.Z * 0.05 / math.sqrt(3), rel=0.03)


def test_agreement_is_not_certainty():
    same = np.full((11, 4), 0.25)
    assert stats.interval(same) == stats.interval(same[0]) == (0.25, None, None)
    assert stats.p_value(same, 0.0) is None
    value, low, high = stats.interval(same, items=150)  # the rule of three, over all items
    assert (value, high - value, value - low) == pytest.approx((0.25, 3 / 600, 3 / 600))


def test_the_rule_of_three_knows_the_unit():
    """Points say what shares say: an item that lies otherwise is off by 100, not by 1."""
    share = stats.interval(np.ones(3), items=50, bounds=(0, 1))
    points = stats.interval(np.full(3, 100.0), items=50, bounds=(0, 100))
    assert points == pytest.approx([100 * v for v in share])
    assert share[1] == pytest.approx(1 - 3 / 150)
    assert stats.interval(np.zeros(3), items=50, bounds=(-100, 100)) == pytest.approx((0, -2, 2))


def test_bounded_metrics_keep_their_bounds():
    value, low, high = stats.interval(np.array([0.9, 1.0, 0.99]), bounds=(0, 1))
    assert low < value < high == 1.0
    assert stats.interval(np.array([0.9, 1.0, 0.99]))[2] > 1


def test_one_seed_has_an_interval_over_items_alone_or_none():
    assert stats.interval(np.array([0.2])) == (0.2, None, None)
    rows = stats.replicates(np.mean, np.arange(50.0), n=200)[:, None]
    for shared in (True, False):
        value, low, high = stats.interval(rows, shared_items=shared)
        assert low < value < high


@pytest.mark.parametrize("shared", [True, False])
def test_p_is_below_five_percent_where_the_interval_excludes(shared):
    rng = np.random.default_rng(5)
    for _ in range(60):
        rows = own_items(rng, 4) + 0.3
        found = stats.estimate(rows, shared_items=shared)
        inside = found.low <= 0.0 <= found.high
        assert (found.p_value(0.0) > 0.05 - 0.002) if inside else (found.p_value(0.0) < 0.05 + 0.002)


def test_item_errors_stand_for_replicates():
    rows = own_items(np.random.default_rng(1), 5)
    assert stats.interval(rows[0], item_se=rows[1:].std(0)) == stats.interval(rows)


def test_widening_is_that_of_the_t_interval():
    assert stats.widening(3) == pytest.approx(math.sqrt(3 / 2) * 4.302652729911275 / 1.959963984540054)
    assert stats.widening(10_000) == pytest.approx(1, abs=1e-3)


def test_holm_is_the_textbooks():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == [
        True,
        False,
        False,
        True,
    ]  # Holm (1979): 0.0125, 0.0167, 0.025, 0.05
    assert stats.holm([0.04]) == [True]
    assert stats.holm([]) == []


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(0)
    wrong = sum(any(stats.holm(list(rng.random(12)))) for _ in range(4000))
    assert wrong / 4000 <= 0.06


def test_replicates_pair_arms_of_one_seed():
    a = np.random.default_rng(3).normal(size=80)
    difference = stats.replicates(np.mean, a + 0.25, seed=5) - stats.replicates(np.mean, a, seed=5)
    assert difference.shape == (1001,)
    np.testing.assert_allclose(difference, 0.25, atol=1e-12)  # paired: the noise of the items cancels
    unpaired = stats.replicates(np.mean, a + 0.25, seed=5) - stats.replicates(np.mean, a, seed=6)
    assert unpaired.std() > 0.05


def test_replicates_resample_all_arrays_with_the_same_indices():
    x = np.arange(30)
    assert (stats.replicates(lambda a, b: np.abs(a - b).max(), x, x.copy(), n=50) == 0).all()


def test_replicates_keep_the_strata():
    labels = np.array([1] + [0] * 40)
    assert (stats.replicates(lambda y: y.sum(), labels, n=100, strata=labels) == 1).all()
    with pytest.raises(InputError, match="give the labels as strata"):
        stats.replicates(lambda y: 1 / y.sum() if y.sum() else math.nan, labels, n=100)


def test_replicates_refuse_bad_input():
    with pytest.raises(InputError, match="one common, positive length"):
        stats.replicates(np.mean, np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="n >= 1"):
        stats.replicates(np.mean, np.zeros(3), n=0)
    with pytest.raises(InputError, match=r"strata must have shape \(3,\)"):
        stats.replicates(np.mean, np.zeros(3), strata=np.zeros(2))
