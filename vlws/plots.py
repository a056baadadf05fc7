"""One look for every figure: legible on screen and in print, safe for colour-blind readers, an arm keeps its colour.

Colours are those of Okabe and Ito (2008, "Color universal design"), which stay apart under the three common colour
vision deficiencies. Figures keep a white ground, so that they read the same in a light page, a dark page and on paper.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from vlws.errors import InputError

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#7A7A7A"

# A role has one colour in every chapter. A chapter says which of its arms plays which role (`set_roles`); an arm
# without a role takes a colour from its name, the same wherever the name appears.
ROLES = {
    "method": BLUE,
    "baseline": GREY,
    "part": GREEN,  # a part of the method by itself
    "other part": ORANGE,
    "rival": VERMILION,
    "control": SKY,
    "ablation": PURPLE,
    "oracle": BLACK,
    "paper": PURPLE,
}
HUES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)


def use_style() -> None:
    """Set matplotlib's defaults for the process; call it once, in the first cell that imports.

    >>> use_style()
    >>> mpl.rcParams["figure.constrained_layout.use"]
    True
    """
    mpl.rcParams.update(
        {
            "figure.figsize": (6.8, 3.4),  # inches: the text width of the report
            "figure.dpi": 120,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.dpi": 120,
            "savefig.facecolor": "white",
            "font.family": "DejaVu Sans",  # ships with matplotlib, so a figure is the same on every machine
            "font.size": 9.5,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9.5,
            "axes.labelcolor": "#333333",
            "axes.edgecolor": "#888888",
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.prop_cycle": mpl.cycler(color=HUES),
            "grid.color": "#E4E4E4",
            "grid.linewidth": 0.7,
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "xtick.labelcolor": "#333333",
            "ytick.labelcolor": "#333333",
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "image.cmap": "cividis",  # monotone in lightness, nearly the same to all eyes
            "image.interpolation": "nearest",
        }
    )


_role_of: dict[str, str] = {}  # arm -> role, of this process's chapter


def set_roles(arms: Mapping[str, str]) -> None:
    """Say which role (one of ROLES) each arm of a chapter plays; call it once, beside `use_style`.

    >>> set_roles({"CMG": "method", "SSD": "baseline"})
    >>> color("CMG") == ROLES["method"]
    True
    """
    for arm, role in arms.items():
        if role not in ROLES:
            raise InputError(f"set_roles() gives {arm!r} the role {role!r}; the roles are {', '.join(ROLES)}.")
    _role_of.update({_spelt(arm): role for arm, role in arms.items()})


def color(arm: str) -> str:
    """The colour of an arm or a role as `#rrggbb`; case, `_` and `-` in its name do not matter.

    >>> color("method")
    '#0072B2'
    >>> color("random_cell") == color("Random cell")  # an arm without a role: a colour by its name
    True
    """
    name = _spelt(arm)
    role = _role_of.get(name, name)
    return ROLES[role] if role in ROLES else HUES[zlib.crc32(name.encode()) % len(HUES)]


def _spelt(arm: str) -> str:
    return arm.strip().casefold().replace("_", " ").replace("-", " ")


def forest(
    rows: Mapping[str, tuple[float, float | None, float | None]],
    *,
    threshold: float | None = None,
    xlabel: str = "",
    title: str = "",
    decimals: int = 3,
    ax: Axes | None = None,
) -> Axes:
    """Dots with intervals, one row per name, first row on top; the figures stand at the right.

    rows: name -> (value, low, high), low <= value <= high in the metric's own unit; low and high None: a dot alone.
    threshold: a dashed line, such as
    the value that a claim must beat. Raises InputError on no rows and on an interval that is upside down or not finite.

    >>> axes = forest({"CMG": (0.91, 0.88, 0.94), "SSD": (0.71, None, None)}, threshold=0.5, xlabel="AUROC")
    >>> [label.get_text() for label in axes.get_yticklabels()], axes.get_xlabel()
    (['CMG', 'SSD'], 'AUROC')
    >>> plt.close(axes.figure)
    """
    if not rows:
        raise InputError("forest() was given no rows; it takes a dict of name -> (value, low, high).")
    for name, (value, low, high) in rows.items():
        if (low is None) != (high is None) or not _ordered(value, low, high):
            raise InputError(
                f"forest() row {name!r} is ({value}, {low}, {high}); it takes finite figures, low <= high."
            )
    if ax is None:
        _, ax = plt.subplots(figsize=(6.8, 0.7 + 0.34 * len(rows)))
    for y, (name, (value, low, high)) in enumerate(rows.items()):
        if low is not None:
            ax.plot([low, high], [y, y], color=color(name), lw=2.2, solid_capstyle="round")
        ax.plot([value], [y], "o", color=color(name), ms=6.5, mec="white", mew=0.9)
        figures = f"{value:.{decimals}f}"
        figures += "" if low is None else f" [{low:.{decimals}f}, {high:.{decimals}f}]"
        ax.text(1.02, y, figures, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color="#333333")
    if threshold is not None:
        ax.axvline(threshold, color="#333333", lw=1, ls=(0, (4, 3)), zorder=0)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))  # long names leave little room for figures
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.set(xlabel=xlabel, title=title)
    return ax


def _ordered(*figures: float | None) -> bool:
    """Whether figures (value, low, high), as far as they are given, are finite and low is not above high."""
    value, low, high = figures
    return bool(np.isfinite([f for f in (value, low, high) if f is not None]).all()) and (low is None or low <= high)


def legend(ax: Axes, *, shared: bool = False, columns: int = 4, **options: Any) -> Legend:
    """A legend that never lies over data: right of its axes, or once above all axes of the figure.

    ax: the axes whose labelled artists it lists. shared: above the figure, `columns` per row, for panels that show the
    same things. options: passed on to matplotlib. It needs a figure with constrained layout, as `use_style` sets.
    Raises InputError where nothing on the axes has a label.

    Example: plots.legend(axes[0, 0], shared=True, markerscale=4)

    >>> figure, axes = plt.subplots(layout="constrained")
    >>> _ = axes.plot([0, 1], label="CMG")
    >>> [text.get_text() for text in legend(axes).get_texts()]
    ['CMG']
    >>> plt.close(figure)
    """
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        raise InputError("legend() was given axes without a labelled artist; draw with label=... first.")
    figure = ax.get_figure(root=True)
    if shared and figure is not None:
        return figure.legend(handles, labels, loc="outside upper right", ncols=min(columns, len(labels)), **options)
    return ax.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), **options)


def show_images(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str] = (),
    *,
    columns: int = 8,
    inches: float = 0.9,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A strip of pictures, `columns` per row, with small titles underneath.

    images: "n h w c" or "n h w" (a list may mix sizes), uint8 in 0..255 or float in 0..1; "h w" is drawn with the
    colour map, over `limits` when given. titles: one per picture, or none. Raises InputError when their numbers differ.

    >>> figure = show_images(np.zeros((10, 32, 32, 3), np.uint8), [f"no. {i}" for i in range(10)], columns=5)
    >>> len(figure.axes), figure.axes[9].texts[0].get_text()
    (10, 'no. 9')
    >>> plt.close(figure)
    """
    if len(images) == 0:
        raise InputError("show_images() was given no images.")
    if len(titles) and len(titles) != len(images):
        raise InputError(
            f"show_images() was given {len(images)} images and {len(titles)} titles; it takes one each, or none."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = inches + (0.14 * (1 + max(title.count("\n") for title in titles)) + 0.06 if len(titles) else 0.05)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * inches, rows * height), squeeze=False)
    if engine := figure.get_layout_engine():
        engine.set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    low, high = limits or (None, None)
    for k, ax in enumerate(axes.flat):
        ax.axis("off")
        if k >= len(images):
            continue
        ax.imshow(images[k], vmin=low, vmax=high)
        if len(titles):
            ax.text(0.5, -0.04, titles[k], transform=ax.transAxes, ha="center", va="top", fontsize=7.5, color="#333333")
    return figure
