"""What would decide an undecided claim: a number of seeds that is right when it is tried, or a word why not."""

import numpy as np
import pytest

from vlws import verdicts

UNDECIDED = {"direction": "greater", "threshold": 0.0, "tolerance": None, "verdict": "undecided"}


def measured(values, **changed):
    claim = UNDECIDED | {"values": list(values), "n_seeds": len(values)} | changed
    return claim | verdicts.recompute(claim)


def spread(n, mean, sd):
    """n values of exactly this mean and standard deviation."""
    values = np.resize([1.0, -1.0], n) if n % 2 == 0 else np.linspace(-1, 1, n)
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


@pytest.mark.parametrize("mean", [0.05, -0.03, 0.4])
@pytest.mark.parametrize("changed", [{}, {"direction": "less"}, {"direction": "within", "tolerance": 0.2}])
def test_the_number_of_seeds_is_the_first_that_decides(mean, changed):
    measure = measured(spread(3, mean, 0.4), **changed)
    assert measure["verdict"] == "undecided"
    n = verdicts.seeds_to_decide(measure)
    assert measured(spread(n, mean, 0.4), **changed)["verdict"] in ("supported", "opposed")
    if n > 4:
        assert measured(spread(n - 1, mean, 0.4), **changed)["verdict"] == "undecided"


def test_the_noise_of_the_items_counts_too():
    quiet = measured([0.01, 0.02, -0.01])
    noisy = measured([0.01, 0.02, -0.01], item_se=[0.05, 0.05, 0.05])
    assert verdicts.seeds_to_decide(quiet) < verdicts.seeds_to_decide(noisy)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "about 23 seeds would decide it, 7.7 times this run, if mean and spread stay"),
        ({"values": [0.1, -0.1, 0.0001]}, "more seeds alone would not decide it; a larger effect would"),
        ({"shared_items": True}, "more seeds alone would not decide it; more test items would"),
        (
            {"paper": 0.5},
            "about 23 seeds would decide it, 7.7 times this run, if mean and spread stay; "
            "the paper's 0.500 is outside the interval",
        ),
        ({"paper": 0.1}, "about 23 seeds would decide it, 7.7 times this run, if mean and spread stay"),
        ({"values": [0.1, 0.11, 0.12]}, ""),  # decided
        ({"values": [0.1]}, ""),  # not at this scale
    ],
)
def test_it_is_said_in_words(changed, words):
    changed = {"values": [0.1, -0.05, 0.05]} | changed
    assert verdicts.remedy(measured(changed.pop("values"), **changed)) == words
