"""Intervals and tests of a mean over seeds, where each seed's value is itself a mean over test items.

    rows = np.stack([replicates(np.mean, correct, n=300, seed=k) for k, correct in enumerate(items)], axis=1)
    value, low, high = interval(rows)          # each seed drew items of its own
    interval(rows, shared_items=True)          # all seeds were tested on the same items
    p_value(rows, threshold=0.05)

How well the intervals cover is simulated in tests/unit/test_stats.py at 3, 5 and 8 seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlws.errors import InputError

RESAMPLES = 4000
Z = 1.959963984540054  # 97.5 % quantile of the normal
RULE_OF_THREE = 3.0  # n items without one event: the event's rate is below 3 / n with 95 % confidence


def replicates(
    statistic: Callable[..., float], *arrays: Any, n: int = 1000, seed: int = 0, strata: Any = None
) -> np.ndarray:
    """Item-level bootstrap of a statistic: "1+n", the value itself and n values on resampled items.

    Args:
        statistic: `statistic(*arrays) -> float`.
        arrays: each "item ..."; all are resampled with the same indices, which depend on `seed`, `n`, `strata` and the
            number of items alone. So arms scored on the same items with the same `seed` are paired, and
            `replicates(f, y, a) - replicates(f, y, b)` are replicates of the paired difference.
        strata: "item", such as the labels of an AUROC: the number of items of each stratum is kept.

    Raises:
        InputError: arrays of unequal length; a statistic that is not finite on some resample.

    >>> correct = np.array([1, 1, 0, 1])
    >>> replicates(np.mean, correct, n=1000).shape
    (1001,)
    >>> float(replicates(np.mean, correct)[0])  # the value itself comes first
    0.75
    """
    columns = [np.asarray(a) for a in arrays]
    if not columns or any(c.ndim == 0 or len(c) != len(columns[0]) for c in columns) or len(columns[0]) == 0:
        raise InputError(
            f"replicates needs arrays of one common, positive length, not shapes {[c.shape for c in columns]}."
        )
    if n < 1:
        raise InputError(f"replicates needs n >= 1, not {n}.")
    items = len(columns[0])
    groups = _groups(items, strata)
    rng = np.random.default_rng(seed)
    values = np.empty(1 + n)
    values[0] = statistic(*columns)
    for r in range(n):
        chosen = np.concatenate([g[rng.integers(len(g), size=len(g))] for g in groups])
        values[1 + r] = statistic(*(c[chosen] for c in columns))
    if not np.isfinite(values).all():
        raise InputError(
            f"the statistic is not finite on {int((~np.isfinite(values)).sum())} of {1 + n} resamples; "
            "if it needs items of every class, give the labels as strata."
        )
    return values


def _groups(items: int, strata: Any) -> list[np.ndarray]:
    """Indices of the items, one array per stratum."""
    if strata is None:
        return [np.arange(items)]
    strata = np.asarray(strata)
    if strata.shape != (items,):
        raise InputError(f"strata must have shape ({items},), one entry per item, not {strata.shape}.")
    return [np.flatnonzero(strata == s) for s in np.unique(strata)]


# --- the mean over seeds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over S seeds with its 95 % interval (None where nothing tells its noise) and a test against a value.

    `se_seeds`, `se_items`: standard errors of the mean from the spread over seeds and from the items within them.
    `draws`: of the crossed bootstrap, where seeds share their items; else None.

    >>> accuracy = estimate(np.array([0.81, 0.84, 0.83]))
    >>> f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] over {accuracy.n_seeds} seeds"
    '0.827 [0.789, 0.865] over 3 seeds'
    >>> accuracy.p_value(0.75) < 0.05 < accuracy.p_value(0.82)
    True
    """

    value: float
    low: float | None
    high: float | None
    n_seeds: int
    se_seeds: float = 0.0
    se_items: float = 0.0
    draws: np.ndarray | None = None

    def p_value(self, threshold: float) -> float | None:
        """Two-sided p of the mean being `threshold`; below 0.05 where the interval excludes it. None without one."""
        from scipy.stats import norm, t

        if self.low is None or self.high is None:
            return None
        distance = abs(self.value - threshold)
        if self.draws is not None:
            beyond = (self.draws <= threshold) if self.value > threshold else (self.draws >= threshold)
            return min(1.0, 2 * (1 + int(beyond.sum())) / (1 + len(self.draws)))
        over_seeds = 2 * t.sf(distance / self.se_seeds, self.n_seeds - 1) if self.se_seeds else 0.0
        over_items = 2 * norm.sf(distance / self.se_items) if self.se_items else 0.0
        return float(max(over_seeds, over_items))


def estimate(
    values: np.ndarray,
    *,
    shared_items: bool = False,
    bounds: Sequence[float] | None = None,
    items: int | None = None,
    item_se: Sequence[float] | None = None,
) -> Estimate:
    """The mean over seeds and its 95 % interval.

    Each seed draws its own items (`shared_items=False`): the spread over seeds holds the noise of the items already, so

        half-width = max( t(.975, S-1) sd / sqrt(S),  1.96 SE_items / sqrt(S) ),

    where SE_items is the root mean square over seeds of each seed's own item-level standard error. The floor keeps few
    seeds that happen to agree from looking certain. Seeds share their items: a crossed bootstrap of seeds and items,
    the deviations over seeds widened by `widening`.

    What it cannot do: with 3 seeds of a skewed effect, or of training that sometimes collapses, it covers less than it
    says (measured in the tests). The remedy is more seeds, and to show every seed's value.

    Args:
        values: "seed", or "1+replicate seed" where row 0 holds the point estimates and the others `replicates`.
        bounds: (lowest, highest) possible value of the metric; the interval stays within.
        items: test items per seed; where all seeds and items agree, the rule of three gives a half-width 3 / (S items)
            times the farthest that an item can lie from them, by `bounds` (1 without).
        item_se: "seed", in place of replicates.

    Where neither seeds nor items vary and `items` is not given, there is no interval: agreement is not certainty.

    >>> estimate(np.array([0.90, 0.94, 0.92]), bounds=(0, 1)).high  # t(.975, 2) is 4.3: three seeds say little
    0.9696827542350064
    >>> estimate(np.array([1.0, 1.0, 1.0])).low is None
    True
    >>> estimate(np.array([1.0, 1.0, 1.0]), items=50, bounds=(0, 1)).low  # rule of three over 150 items
    0.98
    """
    point, rows = (values, None) if values.ndim == 1 else (values[0], values[1:])
    value, n_seeds = float(point.mean()), len(point)
    if shared_items and rows is not None:
        return _crossed(value, point, rows, bounds)
    if item_se is None:
        item_se = rows.std(axis=0).tolist() if rows is not None else [0.0] * n_seeds
    se_items = math.sqrt(float(np.mean(np.square(np.asarray(item_se)))) / n_seeds)
    sd = float(point.std(ddof=1)) if n_seeds > 1 else 0.0
    se_seeds = 0.0 if sd <= 1e-12 * max(1.0, abs(value)) else sd / math.sqrt(n_seeds)
    se_items = 0.0 if se_items <= 1e-12 * max(1.0, abs(value)) else se_items
    half = max(quantile(n_seeds) * se_seeds if se_seeds else 0.0, Z * se_items)
    if half == 0.0 and items and n_seeds > 1:
        farthest = max(value - bounds[0], bounds[1] - value) if bounds else 1.0
        half = farthest * RULE_OF_THREE / (n_seeds * items)
        se_items = half / Z
    if half == 0.0:
        return Estimate(value, None, None, n_seeds)
    low, high = _clipped(value - half, value + half, bounds)
    return Estimate(value, low, high, n_seeds, se_seeds, se_items)


def _crossed(value: float, point: np.ndarray, rows: np.ndarray, bounds: Sequence[float] | None) -> Estimate:
    """Items and seeds resampled together, the same items for all seeds."""
    rng = np.random.default_rng(0)
    row = rows[rng.integers(len(rows), size=RESAMPLES)]
    draws = row.mean(axis=1)
    if len(point) > 1:
        chosen = rng.integers(len(point), size=(RESAMPLES, len(point)))
        draws = draws + widening(len(point)) * (np.take_along_axis(row, chosen, axis=1).mean(axis=1) - draws)
    if float(np.ptp(draws)) == 0.0:
        return Estimate(value, None, None, len(point))
    low, high = _clipped(float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975)), bounds)
    return Estimate(value, low, high, len(point), draws=draws)


def _clipped(low: float, high: float, bounds: Sequence[float] | None) -> tuple[float, float]:
    if bounds is None:
        return low, high
    return max(low, float(bounds[0])), min(high, float(bounds[1]))


def interval(values: np.ndarray, **options: Any) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of `estimate`.

    >>> value, low, high = interval(np.array([0.81, 0.84, 0.83]))
    >>> round(value, 3), round(low, 3), round(high, 3)
    (0.827, 0.789, 0.865)
    """
    found = estimate(values, **options)
    return found.value, found.low, found.high


def p_value(values: np.ndarray, threshold: float, **options: Any) -> float | None:
    """Two-sided p of the mean over seeds being `threshold`; see `estimate`.

    >>> round(p_value(np.array([0.81, 0.84, 0.83]), threshold=0.75), 3)
    0.013
    """
    return estimate(values, **options).p_value(threshold)


def quantile(n_seeds: int) -> float:
    """t(.975, S-1).

    >>> [round(quantile(n), 2) for n in (2, 3, 5, 30)]
    [12.71, 4.3, 2.78, 2.05]
    """
    from scipy.stats import t

    return float(t.ppf(0.975, n_seeds - 1))


def widening(n_seeds: int) -> float:
    """sqrt(S/(S-1)) t(.975, S-1) / z(.975): what a percentile bootstrap over S seeds must be widened by.

    >>> [round(widening(n), 2) for n in (2, 3, 5, 30)]
    [9.17, 2.69, 1.58, 1.06]
    """
    return math.sqrt(n_seeds / (n_seeds - 1)) * quantile(n_seeds) / Z


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects: the family-wise error rate is at most `level`.

    >>> holm([0.001, 0.04, 0.02])  # 0.02 is held against 0.05 / 2
    [True, True, True]
    >>> holm([0.001, 0.04, 0.03])
    [True, False, False]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected
