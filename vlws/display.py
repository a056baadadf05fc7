"""What a notebook shows besides figures: tables whose numbers can also be had as data, verdicts, and source code.

Every object has a plain text without numbers, so that a comparison of outputs does not hang on rounding.
"""

import base64
import html
import inspect
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlws import mime

CELL = "vertical-align:top;padding:.35em .7em;border-bottom:1px solid rgba(128,128,128,.35)"
STYLE = "border-collapse:collapse;font-size:13px;line-height:1.4;max-width:70em;background:none;color:inherit"


def number(x: float | None) -> str:
    """Three decimals, or three digits where that would say nothing.

    >>> number(0.12345), number(0.00012345), number(12345.0), number(None)
    ('0.123', '0.000123', '1.23e+04', '–')
    """
    if x is None:
        return "–"
    return f"{x:.3f}" if x == 0 or 0.01 <= abs(x) < 100 else f"{x:.3g}"


def count(n: int, per: str) -> str:
    """ "1 seed", "5 seeds", "12 rows".

    >>> count(1, "seed"), count(5, "seed")
    ('1 seed', '5 seeds')
    """
    return f"{n} {per}{'s' * (n != 1)}"


def escape(s: Any) -> str:
    """Text as HTML.

    >>> escape("p < 0.05")
    'p &lt; 0.05'
    """
    return html.escape(str(s))


def muted(s: str) -> str:
    """A smaller, paler line of text, or nothing.

    >>> muted("5 seeds")
    '<div style="opacity:.65;font-size:90%">5 seeds</div>'
    >>> muted("")
    ''
    """
    return f'<div style="opacity:.65;font-size:90%">{escape(s)}</div>' if s else ""


def badge(word: str, sign: str, colour: str) -> str:
    """A coloured label with a sign and its text: never colour alone.

    >>> "✓ supported" in badge("supported", "✓", "#1a7f4b")
    True
    """
    style = "display:inline-block;padding:.1em .55em;border-radius:.7em;color:#fff;font-weight:600;white-space:nowrap"
    return f'<span style="{style};background:{colour}">{sign} {escape(word)}</span>'


def strip(
    low: float | None,
    value: float | None,
    high: float | None,
    goal: tuple[float, float],
    label: str,
    colour: str,
    width: int = 150,
    height: int = 16,
) -> str:
    """An interval as a line with its point, against a threshold (dashed) or, where `goal` is a band, a grey band.

    >>> strip(0.1, 0.2, 0.3, goal=(0.05, 0.05), label="0.2 against 0.05", colour="green").startswith("<svg")
    True
    >>> strip(None, 0.2, None, goal=(0.05, 0.05), label="", colour="green")  # no interval, no line
    ''
    """
    if low is None or high is None or value is None:
        return ""
    marks = [low, high, value, *goal]
    span = (max(marks) - min(marks)) or 1.0
    start, y = min(marks) - 0.08 * span, height / 2
    left, right, low, high, value = (width * (v - start) / (1.16 * span) for v in (*goal, low, high, value))
    drawn = (
        f'<rect x="{left:.1f}" y="0" width="{right - left:.1f}" height="{height}" fill="currentColor" opacity=".15"/>'
        if right > left
        else f'<path d="M{left:.1f} 0V{height}" stroke="currentColor" stroke-dasharray="2 2" opacity=".7"/>'
    )
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}" style="display:block;margin:.15em 0">{drawn}'
        f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{value:.1f}" cy="{y}" r="4" fill="{colour}" stroke="currentColor"/></svg>'
    )


class Shown:
    """An output of a notebook: HTML, a plain text without numbers, and data under a MIME type of its own.

    >>> shown = Shown("<b>0.91</b>", "the AUROC")
    >>> shown
    the AUROC
    >>> shown._repr_mimebundle_()["text/html"]
    '<b>0.91</b>'
    """

    def __init__(self, html: str, text: str, **data: Any) -> None:
        self.html, self.text, self.data = html, text, data

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/html": self.html, "text/plain": self.text} | self.data


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] = ()) -> str:
    """Cells of HTML as a table; columns marked `numeric` stand on the right, all others on the left.

    >>> html_table(["arm", "AUROC"], [["CMG", "0.91"]], numeric=[False, True]).count("text-align:right")
    2
    """
    sides = ["right" if right else "left" for right in numeric] or ["left"] * len(head)
    top = "".join(
        f'<th scope="col" style="text-align:{side};{CELL}">{escape(h)}</th>'
        for h, side in zip(head, sides, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:{s};{CELL}">{c}</td>' for c, s in zip(row, sides, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<table style="{STYLE}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def table(
    data: Any,
    *,
    decimals: int = 3,
    name: str = "",
    index: bool = True,
    transpose: bool = False,
    formats: Mapping[str, str] | None = None,
) -> Shown:
    """A DataFrame (or what makes one) as a table: text on the left, numbers on the right with `decimals` places.

    Args:
        name: heading of the index column.
        index: whether row labels are shown.
        transpose: a mapping row -> column -> value, rather than column -> row -> value.
        formats: column -> format specification that replaces `decimals`, such as ".1%".

    The rows stand in the output as data too, under `mime.TABLE`: {"columns": [...], "index": [...], "rows": [[...]]}.

    >>> shown = table({"AUROC": {"SSD": 0.71, "CMG": 0.914}}, name="arm", decimals=2)
    >>> shown
    table: arm, AUROC; rows: SSD, CMG
    >>> shown.data[mime.TABLE]["rows"]  # what is kept is not rounded
    [[0.71], [0.914]]
    >>> "0.91<" in shown.html
    True
    """
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(data)
    frame = frame.T.infer_objects() if transpose else frame
    titles = [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in frame.columns]
    numeric = [is_numeric_dtype(t) and not is_bool_dtype(t) for t in frame.dtypes]
    spec = (
        [
            (formats or {}).get(title, "d" if t.kind in "iu" else f".{decimals}f")
            for title, t in zip(titles, frame.dtypes, strict=True)
        ]
        if len(titles)
        else []
    )
    rows = [
        [
            ("–" if pd.isna(v) else format(v, s)) if right else escape(v)
            for v, s, right in zip(row, spec, numeric, strict=True)
        ]
        for row in frame.itertuples(index=False, name=None)
    ]
    labels = [str(i) for i in frame.index]
    values = [
        [None if v != v else getattr(v, "item", lambda v=v: v)() for v in row]
        for row in frame.itertuples(index=False, name=None)
    ]
    record = {"columns": titles, "index": labels, "rows": values}
    if index:
        rows = [[f"<b>{escape(label)}</b>", *row] for label, row in zip(labels, rows, strict=True)]
        titles, numeric = [name, *titles], [False, *numeric]
    text = f"table: {', '.join(filter(None, titles))}" + (f"; rows: {', '.join(labels)}" if index else "")
    return Shown(html_table(titles, rows, numeric), text, **{mime.TABLE: record})


def cards(entries: Iterable[tuple[str, str, str, Path]], width: int = 300) -> Shown:
    """Titles, summaries and sources of notebooks, each beside the first picture that its file shows.

    entries: (title, summary, source, path of the notebook).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     notebook = Path(folder) / "01_sugar.ipynb"
    ...     _ = notebook.write_text('{"cells": []}')  # one without pictures
    ...     cards([("Sugar", "Retrieval from interleaved documents.", "Chow et al. 2024", notebook)])
    Sugar
    """
    rows, titles = [], []
    for title, summary, source, path in entries:
        rows.append([f"<b>{escape(title)}</b><br>{escape(summary)}{muted(source)}", _first_picture(path, width)])
        titles.append(title)
    return Shown(html_table(["chapter", ""], rows), "\n".join(titles))


def _first_picture(notebook: Path, width: int) -> str:
    """The first picture of a notebook's outputs as a small inline PNG, or nothing."""
    from PIL import Image

    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if encoded := output.get("data", {}).get("image/png"):
                with Image.open(io.BytesIO(base64.b64decode("".join(encoded)))) as file:
                    picture = file.convert("RGB")
                picture.thumbnail((width, width))
                small = io.BytesIO()
                picture.quantize(64).save(small, "PNG", optimize=True)
                return f'<img alt="" src="data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}">'
    return ""


def show_source(part: Any) -> Shown:
    """The source of a function or class as it stands in the library, highlighted, with its file and first line.

    >>> show_source(number)
    source of vlws.display.number
    >>> "vlws/display.py, line" in show_source(number).html
    True
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    source, line = inspect.getsourcelines(part)
    package = part.__module__.split(".")[0]
    parts = Path(inspect.getsourcefile(part) or "").parts
    where = "/".join(parts[max(i for i, name in enumerate(parts) if name == package) :]) if package in parts else ""
    code = highlight("".join(source), PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True, style="default"))
    return Shown(f"{muted(f'{where}, line {line}')}{code}", f"source of {part.__module__}.{part.__qualname__}")
