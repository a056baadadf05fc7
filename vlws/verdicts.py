"""From what was measured to a verdict: pure functions of a measure as a dict (`claims.Measure.to_dict`).

A page, a table or a committed result is audited with `recompute`, which reads values, gates and thresholds alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vlws import display, stats
from vlws.display import count, number

SUPPORTED, OPPOSED, UNDECIDED, NOT_AT_THIS_SCALE = "supported", "opposed", "undecided", "not at this scale"
BY_CONSTRUCTION, REPORTED = "by construction", "reported"
VERDICTS = {  # verdict -> (sign, background); white text on each has a contrast above 4.5
    SUPPORTED: ("✓", "#1a7f4b"),
    OPPOSED: ("✗", "#b3261e"),
    UNDECIDED: ("?", "#8a5a00"),
    NOT_AT_THIS_SCALE: ("–", "#5f6368"),
    BY_CONSTRUCTION: ("=", "#4a5a78"),
    REPORTED: ("·", "#5f6368"),
}
JUDGED = (SUPPORTED, OPPOSED, UNDECIDED)  # what a correction for many claims is made over


def recompute(measure: Mapping[str, Any]) -> dict[str, Any]:
    """value, low, high, p, verdict and why of a measure, from its values and what it is held against alone.

    `measure`: a dict as `Measure.to_dict` gives it; what is recomputed is not read. A page, a table or a committed
    result can be audited with it.

    >>> claim = {"direction": "greater", "threshold": 0.05, "n_seeds": 3}
    >>> found = recompute(claim | {"values": [0.10, 0.12, 0.11]})
    >>> found["verdict"], found["why"]
    ('supported', 'the interval [0.085, 0.135] is above 0.050')
    """
    found: dict[str, Any] = dict.fromkeys(("value", "low", "high", "p"))
    if measure.get("values"):
        values = np.asarray(measure["values"])
        if measure.get("replicates"):
            values = np.concatenate([values[None], np.asarray(measure["replicates"])])
        estimate = stats.estimate(
            values,
            shared_items=bool(measure.get("shared_items")),
            bounds=measure.get("bounds"),
            items=measure.get("items"),
            item_se=measure.get("item_se"),
        )
        found = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        found["p"] = estimate.p_value(_nearest_edge(measure, estimate.value))
    word, why = verdict(measure, found["low"], found["high"])
    return found | {"verdict": word, "why": why}


def _nearest_edge(claim: Mapping[str, Any], value: float) -> float:
    """The threshold, or the edge of the tolerated band that is nearest to the value."""
    if claim["direction"] != "within":
        return claim["threshold"]
    return min((claim["threshold"] + s * claim["tolerance"] for s in (-1, 1)), key=lambda edge: abs(edge - value))


def seeds_to_decide(measure: Mapping[str, Any], most: int = 1000) -> int | None:
    """How many seeds would decide an undecided claim, if their mean and their spread stayed as they are.

    None where none up to `most` would, and for seeds that share their test items, whose noise more seeds do not lower.

    >>> claim = {"direction": "greater", "threshold": 0.05, "verdict": "undecided", "value": 0.09}
    >>> seeds_to_decide(claim | {"values": [0.04, 0.14, 0.09]})
    9
    >>> seeds_to_decide(claim | {"values": [0.04, 0.14, 0.09], "value": 0.0501}) is None  # at the threshold itself
    True
    """
    from scipy.stats import t

    values = np.asarray(measure.get("values") or ())
    if measure["verdict"] != UNDECIDED or measure.get("shared_items") or len(values) < 2 or values.std() == 0:
        return None
    gap = abs(measure["value"] - _nearest_edge(measure, measure["value"]))
    items = np.sqrt(np.mean(np.square(measure.get("item_se") or 0.0)))
    n = np.arange(len(values) + 1, most + 1)
    half = np.maximum(t.ppf(0.975, n - 1) * values.std(ddof=1), stats.Z * items) / np.sqrt(n)
    return int(n[np.argmax(half < gap)]) if (half < gap).any() else None


def remedy(measure: Mapping[str, Any]) -> str:
    """What would decide an undecided claim, in words, and whether the paper's own effect is ruled out; else empty.

    >>> claim = {"direction": "greater", "threshold": 0.05, "verdict": "undecided", "value": 0.09}
    >>> remedy(claim | {"values": [0.04, 0.14, 0.09]})
    'about 9 seeds would decide it, 3 times this run, if mean and spread stay'
    """
    if measure["verdict"] != UNDECIDED or len(measure.get("values") or ()) < 2:
        return ""
    n, paper, low, high = seeds_to_decide(measure), measure.get("paper"), measure.get("low"), measure.get("high")
    excluded = ""
    if paper is not None and low is not None and high is not None and not low <= paper <= high:
        excluded = f"; the paper's {number(paper)} is outside the interval"
    if n is None:
        what = "more test items" if measure.get("shared_items") else "a larger effect"
        return f"more seeds alone would not decide it; {what} would{excluded}"
    cost = f"about {n} seeds would decide it, {n / len(measure['values']):.2g} times this run, if mean and spread stay"
    return cost + excluded


def verdict(claim: Mapping[str, Any], low: float | None, high: float | None) -> tuple[str, str]:
    """The verdict and its reason in words, of a measure as a dict and its interval.

    "not at this scale" where a need or a gate is not met, or one seed gives no interval; "by construction" and
    "reported" where the claims file says so; else the whole interval decides: on the claim's side of the threshold
    (supported), on the other side (opposed), across it (undecided).

    >>> claim = {"direction": "greater", "threshold": 0.05, "n_seeds": 3}
    >>> verdict(claim, 0.06, 0.09)
    ('supported', 'the interval [0.060, 0.090] is above 0.050')
    >>> verdict(claim, 0.01, 0.09)[0], verdict(claim, -0.02, 0.01)[0]
    ('undecided', 'opposed')
    >>> verdict(claim | {"n_seeds": 1}, None, None)
    ('not at this scale', '1 seed, the claim needs 2')
    """
    n_seeds, per = claim["n_seeds"], claim.get("per", "seed")
    wanted = max(2, (claim.get("needs") or {}).get("seeds", 2))
    if claim.get("unmet"):
        return NOT_AT_THIS_SCALE, claim["unmet"]
    if claim.get("reported"):
        return REPORTED, claim["reported"]
    if n_seeds < wanted:
        return NOT_AT_THIS_SCALE, f"{count(n_seeds, per)}, the claim needs {wanted}"
    if claim.get("by_construction"):
        return BY_CONSTRUCTION, claim["by_construction"]
    if low is None or high is None:
        return UNDECIDED, f"all {count(n_seeds, per)} gave the same value: no noise was seen, so there is no interval"
    word = _side(claim, low, high)
    relation = {SUPPORTED: "is", OPPOSED: "is not", UNDECIDED: "is partly"}[word]
    same = len(set(claim.get("values") or ())) == 1 and n_seeds > 1
    note = f"; all {count(n_seeds, per)} gave the same value, the width is that of the items" if same else ""
    return word, f"the interval [{number(low)}, {number(high)}] {relation} {criterion(claim)}{note}"


def _side(claim: Mapping[str, Any], low: float, high: float) -> str:
    threshold = claim["threshold"]
    if claim["direction"] == "within":
        bottom, top = threshold - claim["tolerance"], threshold + claim["tolerance"]
        inside, outside = bottom <= low and high <= top, high < bottom or low > top
    elif claim["direction"] == "greater":
        inside, outside = low > threshold, high < threshold
    else:
        inside, outside = high < threshold, low > threshold
    return SUPPORTED if inside else OPPOSED if outside else UNDECIDED


def holm_verdicts(measures: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """id -> verdict after Holm's correction over the judged claims of a chapter, at a family-wise level of 5 %.

    A verdict that does not survive the correction becomes undecided; those that are not judged stay as they are.

    >>> found = {"01.C1": 0.001, "01.C2": 0.04, "01.C3": 0.03}
    >>> holm_verdicts([{"id": claim, "verdict": "supported", "p": p} for claim, p in found.items()])
    {'01.C1': 'supported', '01.C2': 'undecided', '01.C3': 'undecided'}
    """
    judged = [m for m in measures if m["verdict"] in JUDGED and m.get("p") is not None]
    kept = stats.holm([m["p"] for m in judged])
    lost = {m["id"] for m, keep in zip(judged, kept, strict=True) if not keep}
    return {m["id"]: UNDECIDED if m["id"] in lost else m["verdict"] for m in measures}


def criterion(claim: Any) -> str:
    """What the interval must be, in words: "above 0.05", "below 0.02", "within 0.40 ± 0.03" (a dict or a Claim).

    >>> criterion({"direction": "greater", "threshold": 0.05})
    'above 0.050'
    >>> criterion({"direction": "within", "threshold": 0.4, "tolerance": 0.03})
    'within 0.400 ± 0.030'
    """
    given = claim if isinstance(claim, Mapping) else asdict(claim)
    if given["direction"] == "within":
        return f"within {number(given['threshold'])} ± {number(given['tolerance'])}"
    return f"{'above' if given['direction'] == 'greater' else 'below'} {number(given['threshold'])}"


def gate_passed(gate: Mapping[str, Any]) -> bool:
    """Whether a gate's value is on the right side of its threshold.

    >>> gate_passed({"direction": "greater", "value": 0.62, "threshold": 0.9})
    False
    """
    above = gate["direction"] == "greater"
    return bool(gate["value"] >= gate["threshold"] if above else gate["value"] <= gate["threshold"])


def gate_reason(gate: Mapping[str, Any]) -> str:
    """ "0.62, needed at least 0.90".

    >>> gate_reason({"direction": "greater", "value": 0.62, "threshold": 0.9})
    '0.620, needed at least 0.900'
    """
    bound = "at least" if gate["direction"] == "greater" else "at most"
    return f"{number(gate['value'])}, needed {bound} {number(gate['threshold'])}"


# --- how they look ----------------------------------------------------------------------------------------------------

DECADES = "decades"  # the unit of a decimal logarithm of a factor; "decades of X" is that of an X


def figures(m: Any) -> tuple[str, str, str]:
    """Value, interval and unit of a measure (a dict or anything with its fields) in a unit that a reader knows.

    A measure in decades is shown as the factor that it is the logarithm of; the measure itself keeps its unit.

    >>> figures({"value": 1.368, "low": 1.237, "high": 1.499, "unit": "decades"})
    ('23.3', '[17.3, 31.6]', 'times')
    >>> figures({"value": 0.152, "low": None, "high": None, "unit": "R@5"})
    ('0.152', '', 'R@5')
    """
    given = m if isinstance(m, Mapping) else vars(m)
    value, low, high = (_shown(given[name], given["unit"]) for name in ("value", "low", "high"))
    interval = "" if given["low"] is None or given["high"] is None else f"[{low}, {high}]"
    return value, interval, _known_unit(given["unit"])


def wanted(m: Any) -> str:
    """The criterion in the unit that `figures` shows: "above 10", "within 0.80 to 1.25".

    >>> wanted({"direction": "greater", "threshold": 1, "unit": "decades"})
    'above 10'
    >>> wanted({"direction": "less", "threshold": 0.02, "unit": "AUROC"})
    'below 0.020'
    """
    given = m if isinstance(m, Mapping) else vars(m)
    if not _logarithmic(given["unit"]):
        return criterion(given)
    if given["direction"] == "within":
        low, high = (_shown(given["threshold"] + side * given["tolerance"], given["unit"]) for side in (-1, 1))
        return f"within {low} to {high}"
    return f"{'above' if given['direction'] == 'greater' else 'below'} {_shown(given['threshold'], given['unit'])}"


def _logarithmic(unit: str) -> bool:
    return unit == DECADES or unit.startswith(f"{DECADES} of ")


def _known_unit(unit: str) -> str:
    return (unit.removeprefix(f"{DECADES} of ") if unit != DECADES else "times") if _logarithmic(unit) else unit


def _shown(value: float | None, unit: str) -> str:
    if value is None or not _logarithmic(unit):
        return number(value)
    return f"{10.0**value:.3g}" if abs(value) < 300 else f"10^{value:.0f}"  # beyond that lies the range of a float


def badge(word: str, label: str = "") -> str:
    """A verdict as a coloured label, which says `label` where that is given.

    >>> "✓ supported" in badge("supported"), "✗ after Holm: no" in badge("opposed", "after Holm: no")
    (True, True)
    """
    return display.badge(label or word, *VERDICTS.get(word, ("·", "#5f6368")))


def strip(m: Any) -> str:
    """The interval of a measure (a dict or anything with its fields) against its threshold or band.

    >>> m = {"low": 0.06, "value": 0.08, "high": 0.1, "threshold": 0.05, "tolerance": None}
    >>> drawn = strip(m | {"unit": "AUROC", "direction": "greater", "verdict": "supported"})
    >>> 'aria-label="0.080 [0.060, 0.100] against above 0.050"' in drawn
    True
    """
    given = m if isinstance(m, Mapping) else vars(m)
    goal, band = given["threshold"], given["tolerance"] or 0.0
    value, interval, _ = figures(given)
    label = f"{value} {interval} against {wanted(given)}"
    colour = VERDICTS.get(given["verdict"], ("·", "#5f6368"))[1]
    return display.strip(given["low"], given["value"], given["high"], (goal - band, goal + band), label, colour)
