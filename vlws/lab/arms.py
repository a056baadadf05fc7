"""Which arms a measure was computed from, as far as it can be told: the notebook computes it, and records none.

Two things tell. The measure's values are those of an arm, or the difference of two arms, seed by seed (`equal`); or its
metric names the arm (`named`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arms = Sequence[Mapping[str, Any]]  # arms.json: [{name, seeds, arms: {arm: {metric: [per seed]}}, code}]
CLOSE = 1e-9


def arms_of(measure: Mapping[str, Any], arms: Arms) -> list[dict[str, Any]]:
    """The arms of a measure: {experiment, arm, metrics, how, seeds, values: {seed: {metric: number}}}.

    >>> arms = [{"name": "main", "seeds": [0, 1], "arms": {"A": {"auroc": [0.9, 0.7]}, "B": {"auroc": [0.5, 0.6]}}}]
    >>> found = arms_of({"metric": "AUROC(A) − AUROC(B)", "values": [0.4, 0.1]}, arms)
    >>> [(one["arm"], one["metrics"], one["how"]) for one in found]
    [('A', ['auroc'], 'equal'), ('B', ['auroc'], 'equal')]
    >>> arms_of({"metric": "a slope", "values": [0.3, 0.2]}, arms)
    []
    """
    equal = _equal(measure, arms)
    names = _named(measure["metric"], arms)
    experiments = {experiment for experiment, _, _ in equal} or {grid["name"] for grid in arms}
    chosen: dict[tuple[str, str], dict[str, Any]] = {
        (experiment, arm): {"metrics": [metric], "how": "equal"} for experiment, arm, metric in equal
    }
    for grid in arms:
        for arm in grid["arms"]:
            if arm in names and grid["name"] in experiments:
                chosen.setdefault((grid["name"], arm), {"metrics": [], "how": "named"})
    of = {grid["name"]: grid for grid in arms}
    return [
        {"experiment": experiment, "arm": arm, **how, "seeds": list(of[experiment]["seeds"])}
        | {"values": _of_seeds(of[experiment], arm)}
        for (experiment, arm), how in chosen.items()
    ]


def _of_seeds(grid: Mapping[str, Any], arm: str) -> dict[int, dict[str, Any]]:
    metrics = grid["arms"][arm].items()
    return {seed: {metric: values[k] for metric, values in metrics} for k, seed in enumerate(grid["seeds"])}


def _equal(measure: Mapping[str, Any], arms: Arms) -> list[tuple[str, str, str]]:
    """(experiment, arm, metric) of the one arm, or of the two whose difference, has the measure's values at each seed.

    Nothing where the values do not vary, and where several pairs have them and the metric's words do not tell which.
    """
    wanted = np.asarray(measure.get("values") or (), float)
    if len(wanted) < 2 or np.ptp(wanted) == 0:
        return []
    found = [match for grid in arms if len(grid["seeds"]) == len(wanted) for match in _matches(wanted, grid)]
    said = [sum(arm in measure["metric"] for _, arm, _ in match) for match in found]
    best = [match for match, n in zip(found, said, strict=True) if n == max(said)]
    best = [match for match in best if len(match) == min(map(len, best))] if said and max(said) == 0 else best
    arms_only = {tuple((experiment, arm) for experiment, arm, _ in match) for match in best}
    return best[0] if len(arms_only) == 1 else []


def _matches(wanted: np.ndarray, grid: Mapping[str, Any]) -> list[list[tuple[str, str, str]]]:
    found = []
    for metric in dict.fromkeys(metric for of in grid["arms"].values() for metric in of):
        names = [arm for arm, of in grid["arms"].items() if metric in of and None not in of[metric]]
        if not names:
            continue
        values = np.array([grid["arms"][arm][metric] for arm in names], float)  # "arm seed"
        close = np.abs(values - wanted).max(axis=1) < CLOSE
        found += [[(grid["name"], names[a], metric)] for a in np.flatnonzero(close)]
        close = np.abs(values[:, None] - values[None] - wanted).max(axis=2) < CLOSE
        found += [[(grid["name"], names[k], metric) for k in pair] for pair in np.argwhere(close) if pair[0] != pair[1]]
    return found


def _named(metric: str, arms: Arms) -> set[str]:
    """The arms whose names stand in the words of a metric; of names within names the longest."""
    found, rest = set(), metric
    for name in sorted({arm for grid in arms for arm in grid["arms"]}, key=len, reverse=True):
        pattern = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
        if re.search(pattern, rest):
            found.add(name)
            rest = re.sub(pattern, "·", rest)
    return found
