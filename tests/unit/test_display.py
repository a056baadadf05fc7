"""What a notebook shows: numbers as data too, plain texts without numbers, text on the left, numbers on the right."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlws import display, mime


@pytest.fixture
def frame():
    return pd.DataFrame({"score": [0.12345, np.nan], "n": [3, 4], "kind": ["<b>", "plain"]}, index=["CMG", "SSD"])


def test_a_table_keeps_its_numbers_as_data(frame):
    shown = display.table(frame, name="arm")
    data = shown._repr_mimebundle_()[mime.TABLE]
    assert data == {
        "columns": ["score", "n", "kind"],
        "index": ["CMG", "SSD"],
        "rows": [[0.12345, 3, "<b>"], [None, 4, "plain"]],
    }
    json.dumps(data, allow_nan=False)


def test_a_tables_text_holds_no_number(frame):
    assert repr(display.table(frame, name="arm")) == "table: arm, score, n, kind; rows: CMG, SSD"
    assert repr(display.table(frame, index=False)) == "table: score, n, kind"


def test_numbers_stand_on_the_right_and_text_on_the_left(frame):
    html = display.table(frame, decimals=2, formats={"n": "03d"}).html
    assert html.count("text-align:right") == 6  # two heads, four cells
    assert ">0.12<" in html
    assert ">003<" in html
    assert ">–<" in html
    assert "&lt;b&gt;" in html


def test_a_table_of_a_mapping_by_rows():
    data = display.table({"a": {"x": 1.0, "y": 2.0}}, transpose=True)._repr_mimebundle_()[mime.TABLE]
    assert (data["index"], data["columns"], data["rows"]) == (["a"], ["x", "y"], [[1.0, 2.0]])


def test_source_is_shown_with_its_place():
    shown = display.show_source(display.count)
    assert "vlws/display.py, line " in shown.html
    assert "def" in shown.html
    assert repr(shown) == "source of vlws.display.count"


def test_numbers_say_something():
    assert [display.number(x) for x in (None, 0, 0.1234, 0.00123, 1234.5)] == [
        "–",
        "0.000",
        "0.123",
        "0.00123",
        "1.23e+03",
    ]
    assert [display.count(n, "seed") for n in (1, 2)] == ["1 seed", "2 seeds"]


def test_a_strip_stands_only_where_there_is_an_interval():
    assert display.strip(None, 0.1, None, (0, 0), "label", "#000") == ""
    assert 'aria-label="a &lt; b"' in display.strip(0.0, 0.1, 0.2, (0.05, 0.05), "a < b", "#000")
    assert "<rect" in display.strip(0.0, 0.1, 0.2, (0.05, 0.15), "band", "#000")


def test_cards_show_the_first_picture_of_a_notebook(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (600, 300), "red").save(png, "PNG")
    picture = {"output_type": "display_data", "data": {"image/png": base64.b64encode(png.getvalue()).decode()}}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [{"outputs": [picture]}]}))
    (tmp_path / "b.ipynb").write_text(json.dumps({"cells": [{}]}))
    shown = display.cards([("A", "first", "paper", tmp_path / "a.ipynb"), ("B", "second", "", tmp_path / "b.ipynb")])
    assert shown.html.count("data:image/png") == 1
    assert repr(shown) == "A\nB"
