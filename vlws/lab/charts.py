"""Small charts of a page as SVG: they take the page's colours, light and dark, and say in words what they show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from vlws.display import escape, number

WIDTH, HEIGHT = 330, 190  # px, of a curve
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 8, 38  # px around it
INKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a5a00", "#5f6368")  # the first as in vlws.plots
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # beside the colour: never colour alone

Interval = tuple[float, float | None, float | None]  # value, low, high


def curves(series: Mapping[str, Sequence[tuple[Any, Interval]]], xlabel: str, label: str) -> str:
    """A metric against a parameter, one line per series with its intervals, as SVG.

    series: name -> points (x, (value, low, high)), in any order; low and high None: a point alone. Points that are not
    finite are left out. x: numbers, on a logarithmic axis where they are positive and span a factor of 20; or anything
    else, one place each and no line. label: what the chart shows, for readers who hear it; the points are added to it.

    >>> curves({"": [(1, (0.5, 0.4, 0.6)), (2, (0.7, None, None))]}, "lr", "AUROC")[:14]
    '<svg viewBox="'
    """
    points = {name: [p for p in some if _finite(p[1])] for name, some in series.items()}
    xs = list(dict.fromkeys(x for some in points.values() for x, _ in some))
    if not xs:
        return ""
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)
    where, order = _places(xs, numeric)
    ticks = _ticks([v for some in points.values() for _, interval in some for v in interval if v is not None])
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: Any, y: float) -> tuple[float, float]:
        return LEFT + across * where[x], TOP + up * (1 - (y - ticks[0]) / (ticks[-1] - ticks[0]))

    parts = [_across(place(xs[0], tick)[1], tick) for tick in ticks]
    parts += [_below(LEFT + across * where[x], x) for x in _apart(order, where)]
    parts.append(_text(LEFT + across / 2, HEIGHT - 4, xlabel, "middle"))
    told = []
    for index, (name, some) in enumerate(points.items()):
        ink, dash = _style(index)
        ordered = sorted(some, key=lambda point: where[point[0]])
        parts += [_line([place(x, value) for x, (value, _, _) in ordered], ink, dash)] * numeric  # words have no order
        for x, (value, low, high) in ordered:
            parts.append(
                _point(place(x, value), None if low is None or high is None else (place(x, low), place(x, high)), ink)
            )
            told.append(f"{name}{': ' if name else ''}{xlabel} {_said(x)}, {number(value)}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape("; ".join([label, *told]))}">{"".join(parts)}</svg>'
    )


def key(names: Sequence[str]) -> str:
    """The lines of `curves` with the names of their series; nothing where there is one."""
    if len(names) < 2:
        return ""
    parts = []
    for index, name in enumerate(names):
        line = _line([(1, 5), (25, 5)], *_style(index))
        parts.append(f'<span><svg width="26" height="10" aria-hidden="true">{line}</svg> {escape(name)}</span>')
    return f'<p class="key">{"".join(parts)}</p>'


def _style(index: int) -> tuple[str, str]:
    """Colour and dashes of a series."""
    return INKS[index % len(INKS)], DASHES[index % len(DASHES)]


def _finite(interval: Interval) -> bool:
    value, low, high = interval
    return value is not None and all(math.isfinite(v) for v in (value, low, high) if v is not None)


def _ticks(levels: Sequence[float]) -> list[float]:
    """Round numbers that span all levels; about one level alone there is room."""
    low, high = min(levels), max(levels)
    room = 0.0 if high > low else 0.1 * abs(low) or 1.0
    found = MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(low - room, high + room)
    return [0.0 if abs(tick) < 1e-9 * (found[-1] - found[0]) else float(tick) for tick in found]


def _places(xs: Sequence[Any], numeric: bool) -> tuple[dict[Any, float], list[Any]]:
    """x -> its place on the axis, 0 to 1, and the xs in the order of their places."""
    order = sorted(xs) if numeric else list(xs)
    scale = [float(x) for x in order] if numeric else [float(i) for i in range(len(order))]
    if numeric and scale[0] > 0 and scale[-1] / scale[0] >= 20:
        scale = [math.log(v) for v in scale]
    low, span = scale[0], scale[-1] - scale[0]
    return {x: 0.04 + 0.92 * ((v - low) / span if span else 0.5) for x, v in zip(order, scale, strict=True)}, order


def _apart(order: Sequence[Any], where: Mapping[Any, float]) -> list[Any]:
    """Those values of an axis whose labels do not touch, from the left."""
    kept: list[Any] = []
    for x in order:
        half = 3.4 * (len(_said(x)) + 2) / (WIDTH - LEFT - RIGHT)  # about 6.8 px a character
        if not kept or where[x] - half >= where[kept[-1]] + 3.4 * len(_said(kept[-1])) / (WIDTH - LEFT - RIGHT):
            kept.append(x)
    return kept


def _said(x: Any) -> str:
    text = f"{x:g}" if isinstance(x, float) else str(x)
    return text if len(text) <= 16 else "…" + text[-15:]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" fill="currentColor">{escape(text)}</text>'
    )


def _across(y: float, tick: float) -> str:
    grid = f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="currentColor" opacity="{0.5 if tick == 0 else 0.15}"/>'
    return grid + _text(LEFT - 6, y + 4, f"{tick:.10g}", "end")


def _below(x: float, value: Any) -> str:
    return _text(x, HEIGHT - BOTTOM + 16, _said(value), "middle")


def _line(places: Sequence[tuple[float, float]], ink: str, dash: str) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path d="{path}" fill="none" stroke="{ink}" stroke-width="2" stroke-dasharray="{dash}"/>' if places else ""


def _point(place: tuple[float, float], ends: tuple[tuple[float, float], tuple[float, float]] | None, ink: str) -> str:
    x, y = place
    bar = (
        ""
        if ends is None
        else f'<path d="M{x:.1f} {ends[0][1]:.1f}V{ends[1][1]:.1f}" stroke="{ink}" stroke-width="1.5"/>'
    )
    return f'{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{ink}" stroke="currentColor" stroke-width=".6"/>'
