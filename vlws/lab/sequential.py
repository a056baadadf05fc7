"""Looking at a claim more than once, seed by seed, without more wrong verdicts: repeated confidence intervals.

Who adds seeds until a 95 % interval clears a threshold is wrong far more often than in one case of twenty. Here the
numbers of seeds at which one looks are fixed before the first, each look spends a part of the 5 % in proportion to the
seeds (Lan and DeMets, Biometrika 1983), and its interval is as much wider as that asks for (repeated confidence
intervals: Jennison and Turnbull, JRSS B 1989). All intervals of one claim hold the true value together with 95 %
probability, so that one may stop, or not, at any of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlws import verdicts
from vlws.errors import InputError

LEVEL = 0.05  # of all looks together, two-sided
FEWEST = 3  # seeds of the first look
GROWTH = 1.5  # a look's number of seeds to that of the look before
DRAWS = 400_000


def looks(most: int, fewest: int = FEWEST) -> tuple[int, ...]:
    """The numbers of seeds at which one looks: from the fewest to the most, each half as many again.

    Example:
        >>> looks(24)
        (3, 5, 8, 12, 18, 24)
    """
    if most < fewest:
        raise InputError(f"seeds is {most}; this claim needs at least {fewest}.")
    found = [fewest]
    while found[-1] < most:
        found.append(min(math.ceil(GROWTH * found[-1]), most))
    return tuple(found)


def levels(at: Sequence[int], level: float = LEVEL) -> list[float]:
    """The two-sided level of Student's interval at each look; together they miss a normal mean with this probability.

    Up to look k that has happened with probability level at[k] / at[-1]. Drawn, not integrated: Student's statistic of
    400,000 sequences of normal values whose mean is 0, always the same ones.

    Example:
        >>> [round(one, 3) for one in levels([12])], [round(one, 3) for one in levels([6, 12])]
        ([0.05], [0.025, 0.031])
    """
    from scipy.stats import t

    rng = np.random.default_rng(0)
    total, squares, inside = np.zeros(DRAWS), np.zeros(DRAWS), np.ones(DRAWS, dtype=bool)
    found, seen = [], 0
    for n in at:
        for _ in range(n - seen):
            drawn = rng.standard_normal(DRAWS)
            total += drawn
            squares += drawn**2
        variance = (squares - total**2 / n) / (n - 1)
        distance = np.abs(total) / np.sqrt(n * variance)
        out = round(level * (n - seen) / at[-1] * DRAWS)  # of those that are still inside, the farthest
        edge = np.partition(distance[inside], -out)[-out]
        inside &= distance < edge
        found.append(float(2 * t.sf(edge, n - 1)))
        seen = n
    return found


def interval(measure: Mapping[str, Any], level: float) -> tuple[float | None, float | None]:
    """(low, high) of a measure at the level of one look; (None, None) where nothing tells its noise.

    As `stats.estimate` with this level: the wider of Student's interval over the seeds and the normal one of the items.
    `measure`: values "seed", item_se "seed" or none, bounds or none, of measures.json.

    Example:
        >>> low, high = interval({"values": [0.10, 0.12, 0.11]}, level=0.05)
        >>> round(low, 3), round(high, 3)
        (0.085, 0.135)
    """
    from scipy.stats import norm, t

    values = np.asarray(measure["values"], dtype=float)
    n, mean = len(values), float(values.mean())
    over_seeds = float(t.isf(level / 2, n - 1) * values.std(ddof=1)) / math.sqrt(n)
    of_items = np.asarray(measure.get("item_se") or [0.0], dtype=float)
    over_items = float(norm.isf(level / 2) * np.sqrt(np.mean(of_items**2))) / math.sqrt(n)
    half = max(over_seeds, over_items)
    if half <= 1e-12 * max(1.0, abs(mean)):
        return None, None
    bottom, top = measure.get("bounds") or (-math.inf, math.inf)
    return max(mean - half, bottom), min(mean + half, top)


def judge(measure: Mapping[str, Any], level: float) -> dict[str, Any]:
    """value, low, high, verdict and why of a measure at one look.

    Example:
        >>> claim = {"direction": "greater", "threshold": 0.05, "n_seeds": 3, "values": [0.10, 0.12, 0.11]}
        >>> judge(claim, level=0.05)["verdict"], judge(claim, level=0.005)["verdict"]
        ('supported', 'undecided')
    """
    low, high = interval(measure, level)
    word, why = verdicts.verdict(measure, low, high)
    if low is not None:
        why = why.replace("the interval", f"the {100 * (1 - level):.3g} % interval of this look", 1)
    return {"value": float(np.mean(measure["values"])), "low": low, "high": high, "verdict": word, "why": why}
