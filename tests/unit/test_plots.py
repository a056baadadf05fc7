"""Figures: an arm keeps its colour, intervals stand where they should, bad input is one sentence."""

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from vlws import plots
from vlws.errors import InputError


@pytest.fixture(autouse=True)
def _close():
    with matplotlib.rc_context():
        plots.use_style()
        yield
    plt.close("all")


@pytest.fixture
def roles(monkeypatch):
    monkeypatch.setattr(plots, "_role_of", {})
    plots.set_roles({"CMG": "method", "image only": "baseline"})


def test_an_arm_has_the_colour_of_its_role_however_it_is_spelt(roles):
    assert plots.color("CMG") == plots.color(" cmg ") == plots.color("method") == plots.BLUE
    assert plots.color("image_only") == plots.color("Image-only") == plots.GREY


def test_an_arm_without_a_role_has_one_colour():
    assert plots.color("a new arm") == plots.color("A-new_arm")


def test_an_unknown_role_is_refused():
    with pytest.raises(InputError, match="gives 'CMG' the role 'best'; the roles are method, baseline"):
        plots.set_roles({"CMG": "best"})


def test_every_colour_stands_out_from_the_white_ground():
    def luminance(colour: str) -> float:  # WCAG 2.2, relative luminance
        channels = np.array(to_rgb(colour))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for colour in {*plots.ROLES.values(), *plots.HUES}:
        assert 1.05 / (luminance(colour) + 0.05) > 2, f"{colour} is too pale for a line on white"


def test_forest_draws_each_interval_and_its_figures():
    ax = plots.forest({"image only": (0.6, 0.55, 0.65), "CMG": (0.7, 0.66, 0.74)}, threshold=0.65, xlabel="AUROC")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["image only", "CMG"]
    assert list(ax.get_lines()[0].get_xdata()) == [0.55, 0.65]
    assert ax.texts[1].get_text() == "0.700 [0.660, 0.740]"
    top, bottom = ax.transData.transform([(0, 0), (0, 1)])[:, 1]
    assert top > bottom, "the first row stands on top"


@pytest.mark.parametrize("rows", [{}, {"CMG": (0.5, 0.6, 0.4)}, {"CMG": (float("nan"), 0.1, 0.2)}])
def test_forest_refuses_what_is_no_interval(rows):
    with pytest.raises(InputError, match=r"forest\(\)"):
        plots.forest(rows)


@pytest.mark.parametrize("scale", [1e-4, 0.03, 0.5, 12.0, 4000.0])
def test_ticks_of_a_forest_do_not_collide(scale):
    rows = {"5 seeds, true effect 0: opposed": (-0.3, -1.4, 0.7), "12 seeds: supported": (3.3, 2.6, 4.0)}
    ax = plots.forest({name: tuple(scale * v for v in row) for name, row in rows.items()}, threshold=1.7 * scale)
    ax.figure.canvas.draw()
    low, high = sorted(ax.get_xlim())
    shown = [label for tick, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True) if low <= tick <= high]
    boxes = [label.get_window_extent() for label in shown]
    assert len(boxes) >= 2
    assert all(left.x1 + 3 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("shared", [False, True])
def test_a_legend_lies_over_no_data(shared):
    figure, axes = plt.subplots(1, 2)
    for ax in axes:
        ax.plot([0, 1], [0, 1], label="normal")
        ax.plot([0, 1], [1, 0], label="anomalous")
        ax.set_title("a title")
    drawn = plots.legend(axes[0], shared=shared)
    figure.canvas.draw()
    assert [text.get_text() for text in drawn.get_texts()] == ["normal", "anomalous"]
    assert not any(drawn.get_window_extent().overlaps(ax.get_window_extent()) for ax in axes)


def test_a_legend_of_nothing_is_refused():
    with pytest.raises(InputError, match="without a labelled artist"):
        plots.legend(plt.subplots()[1])


@pytest.mark.parametrize("n", [1, 8, 11])
def test_show_images_shows_every_image(n):
    images = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    figure = plots.show_images(images, [str(k) for k in range(n)])
    shown = [ax.get_images()[0].get_array() for ax in figure.axes if ax.get_images()]
    assert np.array_equal(np.stack(shown), images)
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == [str(k) for k in range(n)]


def test_show_images_refuses_none_and_titles_that_do_not_match():
    with pytest.raises(InputError, match="no images"):
        plots.show_images([])
    with pytest.raises(InputError, match="2 images and 1 titles"):
        plots.show_images(np.zeros((2, 4, 4, 3)), ["one"])


def test_a_value_without_an_interval_is_a_dot():
    ax = plots.forest({"a": (0.5, 0.4, 0.6), "b": (1.0, None, None)})
    assert [text.get_text() for text in ax.texts] == ["0.500 [0.400, 0.600]", "1.000"]
    with pytest.raises(InputError, match=r"row 'b' is \(1.0, None, 2.0\)"):
        plots.forest({"b": (1.0, None, 2.0)})
