"""Runs beside each other as pages: charts that say what they show, sweeps found among the runs, nothing loaded."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from vlws.lab import charts, comparison_pages


def points(svg: str) -> list[tuple[float, float]]:
    return [(float(c.get("cx")), float(c.get("cy"))) for c in ElementTree.fromstring(svg).iter("circle")]


def texts(svg: str) -> list[str]:
    return [t.text for t in ElementTree.fromstring(svg).iter("text")]


# --- charts -----------------------------------------------------------------------------------------------------------


def test_a_chart_says_in_words_what_it_shows():
    svg = charts.curves({"": [(2, (0.7, None, None)), (1, (0.5, 0.4, 0.6))]}, "k", "AUROC <mine>")
    assert ElementTree.fromstring(svg).get("aria-label") == "AUROC <mine>; k 1, 0.500; k 2, 0.700"


def test_points_stand_in_order_and_higher_values_higher():
    (x1, y1), (x2, y2), (x3, y3) = points(
        charts.curves({"": [(3, (3, 3, 3)), (1, (1, 1, 1)), (2, (2, 2, 2))]}, "k", "")
    )
    assert x1 < x2 < x3
    assert y1 > y2 > y3


@pytest.mark.parametrize(("xs", "even"), [((1e-4, 1e-3, 1e-2), True), ((1, 2, 10), False), ((0, 1, 100), False)])
def test_a_wide_range_of_positive_values_has_a_logarithmic_axis(xs, even):
    (x1, _), (x2, _), (x3, _) = points(charts.curves({"": [(x, (1.0, None, None)) for x in xs]}, "lr", ""))
    assert (abs((x2 - x1) - (x3 - x2)) < 1) is even


def test_words_have_places_and_no_line():
    svg = charts.curves({"": [("living", (0.5, 0.4, 0.6)), ("random", (0.6, 0.5, 0.7))]}, "split", "")
    assert len(points(svg)) == 2
    assert "living" in texts(svg)
    assert "stroke-dasharray" not in svg


@pytest.mark.parametrize("values", [[0.075, 0.075], [0.0], [1e-12, 2e-12], [-0.3, 0.6], [-1e6, 1e6]])
def test_labels_of_an_axis_are_different_and_span_the_values(values):
    svg = charts.curves({"": [(k, (v, None, None)) for k, v in enumerate(values)]}, "k", "")
    ends = [t for t in ElementTree.fromstring(svg).iter("text") if t.get("text-anchor") == "end"]
    labels = [float(t.text) for t in ends]
    assert len(set(labels)) == len(labels) >= 2
    assert min(labels) <= min(values)
    assert max(values) <= max(labels)


def test_labels_below_the_axis_do_not_touch():
    svg = charts.curves({"": [(k, (1.0, None, None)) for k in range(1000, 1040)]}, "k", "")
    found = [t for t in ElementTree.fromstring(svg).iter("text") if t.get("text-anchor") == "middle"][:-1]
    places = [float(t.get("x")) for t in found]
    assert 2 <= len(places) < 40
    assert min(b - a for a, b in itertools.pairwise(places)) > 6.8 * 4


def test_what_is_not_finite_is_left_out():
    nan = float("nan")
    assert charts.curves({"": [(1, (nan, nan, nan))]}, "k", "") == ""
    assert len(points(charts.curves({"": [(1, (nan, 0.0, 1.0)), (2, (0.5, None, None))]}, "k", ""))) == 1


def test_series_differ_in_more_than_colour():
    assert charts.key(["one"]) == ""
    drawn = re.findall(r'stroke="(#\w+)" stroke-width="2" stroke-dasharray="([\d ]*)"', charts.key(["a", "b", "c < d"]))
    assert len({ink for ink, _ in drawn}) == len({dash for _, dash in drawn}) == 3
    assert "c &lt; d" in charts.key(["a", "c < d"])


# --- pages ------------------------------------------------------------------------------------------------------------


def value(v: float, **more) -> dict:
    return {"value": v, "low": v - 0.1, "high": v + 0.1} | more


TABLE = {
    "axes": ["lr", "components"],
    "metrics": [
        {"name": "mine", "kind": "result", "metric": "AUROC", "unit": ""},
        {"name": "08.K1", "kind": "measure", "metric": "log10(ratio)", "unit": "decades"},
    ],
    "rows": [
        {
            "run_id": f"r{k}",
            "status": "ok",
            "axes": {"lr": lr, "components": c},
            "values": {"mine": value(0.1 * k + 0.1)},
        }
        for k, (lr, c) in enumerate([(1e-4, 3), (1e-3, 3), (1e-2, 3), (1e-4, 5), (1e-3, 5)])
    ]
    + [{"run_id": "r5", "status": "failed", "axes": {"lr": 1e-2, "components": 5}, "values": {}}],
}


def test_a_sweep_has_a_chart_of_each_metric_and_a_row_of_each_run():
    text = comparison_pages.sweep_page(TABLE, "04: components, lr", {"r0": "run-r0.html"})
    assert text.count("<figure>") == 1  # of 08.K1 no run has a value
    assert text.count("<tr>") == 7
    assert 'href="run-r0.html"' in text
    assert "components=5" in text, "the parameter of fewer values makes the lines"
    assert "failed" in text
    assert not re.search(r'(src|href)="http', text)


def test_a_measure_in_decades_is_shown_as_its_factor():
    row = {
        "run_id": "r",
        "status": "ok",
        "axes": {"lr": 1},
        "values": {"08.K1": {"value": 2.0, "low": 1.0, "high": 3.0}},
    }
    text = comparison_pages.sweep_page({"axes": ["lr"], "metrics": TABLE["metrics"][1:], "rows": [row]}, "08")
    assert '<b>100</b> <span class="interval">[10, 1e+03]</span><small>times</small>' in text


def test_a_table_without_a_varied_parameter_has_no_chart():
    rows = [row | {"axes": {}} for row in TABLE["rows"]]
    assert "<figure>" not in comparison_pages.sweep_page(TABLE | {"axes": [], "rows": rows}, "04")


FOUND = {
    "chapter": "04",
    "slug": "04_cmg",
    "runs": [
        {"run_id": f"r{k}", "status": "ok", "preset": "cpu", "started": "", "wall_s": 61.0, "label": f"04_cmg lr=0.{k}"}
        for k in (1, 2)
    ],
    "parameters": [{"name": "data", "values": ["", "<mine>"]}],
    "code": [{"name": "commit", "values": ["0123456789abcdef0123", None]}],
    "environment": [],
    "measures": [
        {
            "id": "04.C1",
            "says": "It helps.",
            "metric": "AUROC",
            "unit": "AUROC",
            "values": [value(0.2, verdict="supported", p=0.01, n_seeds=3), None],
        }
    ],
    "results": [{"name": "CMG", "metric": "AUROC", "unit": "", "values": [value(0.9, n=3, of="mine"), value(0.8)]}],
}


def test_compared_runs_stand_beside_each_other():
    text = comparison_pages.compare_page(FOUND, {"r1": "run-r1.html"})
    assert "04_cmg: 2 runs compared" in text
    assert "&lt;mine&gt;" in text
    assert "0123456789a…" in text
    assert text.index("On your data") < text.index("Claims of the chapter")
    assert "✓ supported" in text
    assert text.count("<details>") == 1, "one run alone has no chart"
    assert "claims.json" not in text, "a page by itself has no neighbours"
    assert "claims.json" in comparison_pages.compare_page(FOUND, home="index.html")


def test_runs_that_are_the_same_are_said_to_be():
    assert "Nothing: parameters, code" in comparison_pages.compare_page(FOUND | {"parameters": [], "code": []})


# --- sweeps among the runs --------------------------------------------------------------------------------------------


def record(run_id: str, **more) -> dict:
    made = {"slug": "04_cmg", "preset": "cpu", "status": "ok", "overrides": ["lr"], "params": {"lr": 0.1, "seeds": 3}}
    return made | {"run_id": run_id} | more


def lr(value: object) -> dict:
    return {"lr": value, "seeds": 3}


def test_runs_that_changed_the_same_parameters_are_a_sweep():
    kept = [
        record("e", params=lr(0.3)),
        record("d", params=lr(0.02)),
        record("c", params=lr(0.3)),  # older than e, with the same values
        record("b", overrides=["seeds"], params={"lr": 0.1, "seeds": 5}),
        record("a", overrides=[]),
        record("f", preset="full", params=lr(0.4)),
        record("g", status="running", params=lr(0.5)),
        record("h", slug="06_cheetor", params=lr(0.5)),
    ]
    assert [[one["run_id"] for one in group] for _, group in comparison_pages.sweeps(kept)] == [["d", "e"]]


def test_a_run_at_the_literals_is_a_value_of_a_sweep_that_asked_for_it():
    kept = [
        record("b", params=lr(0.2)) | {"axes": ["lr"]},
        record("a", overrides=[], params=lr(0.1)),
        record("c", overrides=["seeds"], params={"lr": 0.1, "seeds": 5}),
    ]
    assert [(axes, [one["run_id"] for one in group]) for axes, group in comparison_pages.sweeps(kept)] == [
        (("lr",), ["a", "b"])
    ]
    del kept[0]["axes"]  # a single run with a changed parameter is no sweep
    assert comparison_pages.sweeps(kept) == []


def test_values_are_ordered_numbers_before_words():
    kept = [record(str(v), params=lr(v)) for v in ("b", 10, 2, "a")]
    assert [[one["run_id"] for one in group] for _, group in comparison_pages.sweeps(kept)] == [["2", "10", "a", "b"]]


def test_a_sweep_is_written_and_listed(tmp_path):
    kept = [record("b", params=lr(0.2)), record("a", params=lr(0.1))]

    def tabulate(group, axes):
        assert axes == ("lr",)
        rows = [r | {"axes": {"lr": r["params"]["lr"]}, "values": {"mine": value(0.5)}} for r in group]
        return {"axes": axes, "metrics": TABLE["metrics"][:1], "rows": rows}

    (one,) = comparison_pages.write_sweeps(kept, tmp_path, tabulate)
    assert one == {"label": "04_cmg: lr", "page": "sweep-04_cmg-cpu-lr.html", "runs": 2}
    assert "Sweep of 04_cmg: lr" in (tmp_path / one["page"]).read_text()
