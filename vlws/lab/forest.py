"""All judged claims at a glance: their intervals on one axis a unit, as SVG."""

import math
from collections.abc import Iterable

from vlws import verdicts
from vlws.display import escape, number
from vlws.lab.evidence import Row

WIDTH, LABEL, LINE, TOP = 560, 84, 17, 8  # px


def overview(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """(unit, SVG) of the claims with an interval, by unit; the units of most claims first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.value is not None and row.low is not None and row.high is not None:
            groups.setdefault(row.unit, []).append(row)
    return [(unit, draw(found)) for unit, found in sorted(groups.items(), key=lambda g: -len(g[1]))]


def draw(rows: list[Row]) -> str:
    """One axis: a line a claim from low to high with its point, and its threshold as a short stroke."""
    marks = [0.0, *(v for r in rows for v in (r.low, r.high, r.threshold) if v is not None)]
    round_numbers = ticks(min(marks), max(marks))
    start, stop = round_numbers[0], round_numbers[-1]
    height = TOP + LINE * len(rows) + 24

    def x(value: float | None) -> float:
        return LABEL + (WIDTH - LABEL - 12) * ((value or 0.0) - start) / (stop - start)

    parts = []
    for tick in round_numbers:
        stroke = 'stroke="currentColor" opacity=".55"' if tick == 0 else 'stroke="currentColor" opacity=".15"'
        bottom = height - 22
        parts.append(f'<path d="M{x(tick):.1f} {TOP}V{bottom}" {stroke}/>')
        parts.append(
            f'<text x="{x(tick):.1f}" y="{height - 7}" text-anchor="middle" font-size="11" fill="currentColor">'
            f"{tick:g}</text>"
        )
    for i, row in enumerate(rows):
        y = TOP + LINE * (i + 0.5)
        colour = verdicts.VERDICTS.get(row.verdict, ("·", "#5f6368"))[1]
        interval = f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"
        said = f"{row.id}: {interval}, wanted {row.criterion}: {row.verdict}"
        parts.append(
            f'<a href="{escape(row.page)}"><title>{escape(said)}</title>'
            f'<text x="0" y="{y + 4:.1f}" font-size="12" fill="currentColor">{escape(row.id)}</text>'
            f'<path d="M{x(row.low):.1f} {y}H{x(row.high):.1f}" stroke="{colour}" stroke-width="3"/>'
            f'<path d="M{x(row.threshold):.1f} {y - 6:.1f}v12" stroke="currentColor" stroke-width="1.5"/>'
            f'<circle cx="{x(row.value):.1f}" cy="{y}" r="4" fill="{colour}" stroke="currentColor"/></a>'
        )
    label = f"Intervals of {len(rows)} claims against their thresholds"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that span low to high."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step = next(step * m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]
