"""Where a claim's figure comes from: found where the numbers tell, said to be unknown where they do not."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import claim_graph, evidence, page, seal, verify
from vlws.lab.arms import arms_of


@pytest.fixture
def run(measured) -> dict:
    (folder,) = (measured / "runs" / "04_cmg").iterdir()
    return seal.of_run(read_json(folder / "run.json") | {"folder": str(folder)})


def kinds(found: dict) -> dict[str, list[dict]]:
    of: dict[str, list[dict]] = {}
    for node in found["nodes"]:
        of.setdefault(node["kind"], []).append(node)
    return of


# --- which arms -------------------------------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-1, 1, allow_nan=False, width=16), min_size=3, max_size=3)


@given(st.lists(NUMBERS, min_size=2, max_size=6), st.data())
def test_the_arms_of_a_difference_are_found(values, data):
    a, b = data.draw(st.permutations(range(len(values))))[:2]
    effect = np.subtract(values[a], values[b])
    arms = [{"name": "main", "seeds": [0, 1, 2], "arms": {f"arm {k}": {"f1": v} for k, v in enumerate(values)}}]
    found = arms_of({"metric": "f1", "values": effect.tolist()}, arms)
    chosen = {one["arm"]: one for one in found if one["how"] == "equal"}
    if not chosen:  # no values that vary, or several pairs have this difference
        others = [np.subtract(x, y) for i, x in enumerate(values) for j, y in enumerate(values) if (i, j) != (a, b)]
        assert np.ptp(effect) == 0 or any(np.allclose(o, effect, atol=1e-8) for o in (*others, *values))
        return
    numbers = [[one["values"][seed]["f1"] for seed in (0, 1, 2)] for one in chosen.values()]
    told = numbers[0] if len(numbers) == 1 else np.subtract(*numbers)
    assert np.allclose(told, effect, atol=1e-8)


def test_of_several_arms_with_the_same_numbers_the_words_tell():
    same = {"f1": [0.9, 0.7]}
    arms = [{"name": "main", "seeds": [0, 1], "arms": {"A": same, "B": same, "C": {"f1": [0.1, 0.1]}}}]
    assert [one["arm"] for one in arms_of({"metric": "f1(B) − f1(C)", "values": [0.8, 0.6]}, arms)] == ["B", "C"]
    assert arms_of({"metric": "a difference", "values": [0.8, 0.6]}, arms) == []


def test_an_arm_is_named_by_its_whole_name():
    names = ("all", "UniKE", "UniKE, repaired")
    arms = [{"name": "main", "seeds": [0, 1], "arms": {name: {"f1": [1, 2]} for name in names}}]
    found = arms_of({"metric": "fall of UniKE, repaired", "values": [0.3, 0.9]}, arms)
    assert [(one["arm"], one["how"]) for one in found] == [("UniKE, repaired", "named")]


@pytest.mark.parametrize("values", [[], [0.1], [0.2, 0.2], None])
def test_values_that_do_not_vary_tell_no_arm(values):
    arms = [{"name": "main", "seeds": [0, 1], "arms": {"A": {"f1": [0.2, 0.2]}}}]
    assert arms_of({"metric": "a slope", "values": values}, arms) == []


# --- the graph --------------------------------------------------------------------------------------------------------


def test_a_graph_leads_from_the_claim_to_code_data_and_pins(run):
    found = claim_graph.graph(run, "04.C2")
    of = kinds(found)
    assert [arm["arm"] for arm in of["arm"]] == ["CMER", "image only"]
    assert [arm["how"] for arm in of["arm"]] == ["equal", "equal"]
    assert [len(cells["cached"]) for cells in of["cells"]] == [3, 3]
    assert of["code"][0]["key"] == run["run"]["key"]
    assert of["data"][0]["files"] == run["data"]
    ids = {node["id"] for node in found["nodes"]}
    assert {end for edge in found["edges"] for end in edge} == ids
    reached = {"claim"}
    for above, below in found["edges"]:
        assert above in reached, "edges come in order"
        reached.add(below)
    assert reached == ids
    json.dumps(found)


def test_a_cell_that_is_gone_is_not_in_the_graph(measured, run):
    (measured / ".cache" / "experiment" / "04-arms" / "CMER-1.json").unlink()
    cells = kinds(claim_graph.graph(run, "04.C2"))["cells"]
    assert [sorted(one["cached"]) for one in cells] == [["0", "2"], ["0", "1", "2"]]


def test_what_is_not_recorded_is_said(run):
    found = claim_graph.graph(run | {"arms": [], "data": None}, "04.C2")
    assert "not recorded" in found["not_recorded"][0]
    assert kinds(found)["data"][0]["label"] == "not kept"
    assert ["measure", "code"] in [list(edge) for edge in found["edges"]]
    assert "not recorded" in claim_graph.as_text(found)
    assert "not recorded" in claim_graph.draw(found)


@pytest.mark.parametrize("result", evidence.published(), ids=lambda result: result["slug"])
def test_every_published_measure_has_a_graph_that_fits_its_boxes(result):
    one = seal.of_result(result)
    drawn = [claim_graph.draw(claim_graph.graph(one, m["id"], cached=False)) for m in one["measures"]]
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert float(root.get("width")) <= 372
        for group in root.iter("g"):
            box = group.find("rect")
            left, top = float(box.get("x")), float(box.get("y"))
            right, bottom = left + float(box.get("width")), top + float(box.get("height"))
            assert 0 <= left < right <= 372
            for text in group.iter("text"):
                assert float(text.get("x")) + 6.6 * len(text.text or "") <= right
                assert top < float(text.get("y")) < bottom


def test_a_page_draws_the_graph_of_every_measure_and_stays_verified(measured, tmp_path):
    (folder,) = (measured / "runs" / "04_cmg").iterdir()
    text = page.export(folder / "notebook.ipynb", tmp_path / "page.html").read_text()
    graphs = re.search(
        r'<details class="overview"><summary>Where each figure comes from.*?</details>', text, re.DOTALL
    )[0]
    assert graphs.count("<figure>") == len(read_json(folder / "measures.json"))
    assert text.index('<div class="head">') < text.index(graphs) < text.index("<main")
    assert verify.verify(str(tmp_path / "page.html"))["ok"]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_where_a_figure_comes_from(measured, vlws):
    code, out = vlws("claims", "--graph", "04.C2")
    assert code == 0
    assert "  measure AUROC(CMER) − AUROC(image only): " in out
    assert "    arm CMER of 04-arms (its AUROC)\n      3 cells, seeds 0 to 2, 3 in the cache" in out
    code, out = vlws("claims", "--json", "--graph", "04.C2")
    assert (code, json.loads(out)["source"], json.loads(out)["stale"]) == (0, "run", False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--graph", "04.C99"], "no claim '04.C99'; there are 04.C1, "),
        (["04", "--graph", "04.C2"], "give one of them"),
    ],
)
def test_a_graph_of_nothing_is_refused(measured, vlws, arguments, said):
    code, out = vlws("claims", *arguments)
    assert code == 2
    assert said in out


def test_a_claim_that_was_not_measured_has_no_graph(measured, vlws):
    for path in (measured / "runs" / "04_cmg").iterdir():
        (path / "run.json").unlink()
    file = measured / "notebooks" / "04_cmg.ipynb"
    book = read_json(file)
    for cell in book["cells"]:
        cell.pop("outputs", None)
    file.write_text(json.dumps(book))
    with pytest.raises(InputError, match=r"04\.C2 has not been measured; vlws run 04 measures it"):
        claim_graph.of_claim("04.C2")
