"""Figures in a unit that a reader knows: a decimal logarithm is shown as its factor, and kept as it was measured."""

import pytest

from vlws import verdicts

MEASURE = dict(
    id="08.K1", value=1.368, low=1.237, high=1.499, unit="decades", direction="greater", threshold=1.0, tolerance=None
)


@pytest.mark.parametrize(
    ("given", "figures", "wanted"),
    [
        ({}, ("23.3", "[17.3, 31.6]", "times"), "above 10"),
        ({"threshold": -0.176, "direction": "less"}, ("23.3", "[17.3, 31.6]", "times"), "below 0.667"),
        (
            {"threshold": 0.0, "tolerance": 0.1, "direction": "within"},
            ("23.3", "[17.3, 31.6]", "times"),
            "within 0.794 to 1.26",
        ),
        (
            {"unit": "decades of relative error", "value": -6.0, "low": -7.0, "high": -5.0},
            ("1e-06", "[1e-07, 1e-05]", "relative error"),
            "above 10",
        ),
        ({"unit": "R@5"}, ("1.368", "[1.237, 1.499]", "R@5"), "above 1.000"),
        ({"unit": "decadesque"}, ("1.368", "[1.237, 1.499]", "decadesque"), "above 1.000"),
        ({"low": None, "high": None}, ("23.3", "", "times"), "above 10"),
        ({"value": None, "low": None, "high": None}, ("–", "", "times"), "above 10"),
        ({"value": 400.0, "low": -400.0, "high": 500.0}, ("10^400", "[10^-400, 10^500]", "times"), "above 10"),
    ],
)
def test_figures_in_a_unit_that_a_reader_knows(given, figures, wanted):
    measure = MEASURE | given
    before = dict(measure)
    assert verdicts.figures(measure) == figures
    assert verdicts.wanted(measure) == wanted
    assert measure == before


def test_a_strip_tells_what_is_shown():
    label = 'aria-label="23.3 [17.3, 31.6] against above 10"'
    assert label in verdicts.strip(MEASURE | {"verdict": "supported"})
