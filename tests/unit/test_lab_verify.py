"""A page verifies itself: what was edited by hand is found, and what cannot be known here is said to be so."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlws import paths
from vlws.errors import InputError
from vlws.files import read_json, write_json
from vlws.lab import checks, compare, evidence, page, records, run_pages, seal, verify

PAGES: list[str] = []
SHARED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(measured) -> Path:
    (path,) = (measured / "runs" / "04_cmg").iterdir()
    return path


@pytest.fixture
def written(folder) -> Path:
    """The page of the run, which is the same in every workspace, so that it is made once."""
    path = folder / "notebook.html"
    if not PAGES:
        PAGES.append(page.export(folder / "notebook.ipynb", path).read_text())
    path.write_text(PAGES[0])
    return path


def found(result: dict, word: str = checks.DIFFERS) -> dict[str, str]:
    """check -> what was said, of those that ended so; of several lines the first."""
    lines = [one for one in result["checks"] if one["result"] == word]
    return {one["check"]: one["said"] for one in reversed(lines)}


def carried(text: str) -> dict:
    return json.loads(seal.ELEMENT.search(text)[1])


def resealed(text: str, change) -> str:
    """The page with what it carries changed, and every hash made again: what a forger would do."""
    runs = carried(text)["runs"]
    change(runs)
    for one in runs:
        one["sha256"] |= {
            f"{name}.json": seal.sha256(seal.as_file(one[name])) for name in ("measures", "gates", "arms", "results")
        }
    return seal.seal(seal.ELEMENT.sub("", text), carried(text)["kind"], runs)


# --- as it was written ------------------------------------------------------------------------------------------------


def test_a_page_as_it_was_written_is_fine(written, vlws):
    code, out = vlws("verify", str(written), "--json")
    result = json.loads(out)
    assert (code, result["ok"], result["kind"]) == (0, True, "page of a run")
    words = {one["check"]: one["result"] for one in reversed(result["checks"])}
    names = ["page", "claims table", "carried record", "shown figures", "hashes", "intervals and verdicts", "gates"]
    arms = ["measures from arms", "arms of 04-arms", "arms of 04-tower"]
    assert words == dict.fromkeys([*names, "record", "notebook", *arms, "code", "data"], "ok")
    assert found(result, checks.UNKNOWN).keys() == {"measures from arms"}, "of some it is not recorded"
    assert result["again"] == ["vlws run 04"]
    assert {one["run_id"] for one in result["checks"]} == {None, written.parent.name}


def test_a_run_is_checked_with_its_page(written, vlws):
    code, out = vlws("verify", written.parent.name)
    assert code == 0
    assert "page's record" in out
    assert re.search(r"run: \d+ ok, 0 differ, \d+ cannot be re-derived", out)
    text = written.read_text()
    written.write_text(resealed(text, lambda runs: runs[0]["run"].update(wall_s=1.0)))
    code, out = vlws("verify", written.parent.name)
    assert code == 1
    assert "notebook.html carries something else than the files" in out


def test_a_page_alone_says_what_it_cannot_know(written, tmp_path, monkeypatch):
    alone = Path(shutil.copy(written, tmp_path / "alone.html"))
    monkeypatch.setenv("VLWS_ROOT", str(tmp_path))
    result = verify.verify(str(alone))
    assert result["ok"]
    assert found(result, checks.OK).keys() >= {"page", "claims table", "shown figures", "intervals and verdicts"}
    assert found(result, checks.UNKNOWN) == {
        "record": "there is no workspace here that could hold the run",
        "measures from arms": "of 4 measures it is not recorded which arms' numbers the notebook computed them from",
        "arms of 04-arms": "there is no workspace here, and so no cache",
        "arms of 04-tower": "there is no workspace here, and so no cache",
        "code": "the chapter 04_cmg is not here",
        "data": "the chapter 04_cmg is not here",
    }


@pytest.mark.parametrize("result", evidence.published(), ids=lambda result: result["slug"])
def test_every_published_result_and_its_page_are_fine(result, tmp_path, monkeypatch):
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path / "cache"))
    path = seal.result_file(result["slug"], result["run"]["preset"])
    assert found(verify.verify(str(path))) == {}
    if result["slug"] in ("02_unike", "07_summer"):  # the pages of all take seconds
        monkeypatch.setattr(evidence, "published", lambda *_: [result])
        run_pages.write_results(tmp_path)
        assert found(verify.verify(str(tmp_path / run_pages.result_page(result["slug"], "full")))) == {}


# --- edited by hand ---------------------------------------------------------------------------------------------------


def digit(text: str, pattern: str) -> str:
    """The text with the third digit of the first group changed."""
    where = re.search(pattern, text, re.DOTALL)
    place = [k for k in range(where.start(1), where.end(1)) if text[k].isdigit()][2]
    return f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}"


def put(pattern: str, instead: str):
    """An edit: the first place of a pattern becomes something else."""
    return lambda text: re.sub(pattern, instead, text, count=1, flags=re.DOTALL)


def another(pattern: str):
    """An edit: another digit in the group of a pattern."""
    return lambda text: digit(text, pattern)


ROW = r'href="#04.C2b">.*?'
WHOLE_ROW = r'(<tr><td><div><a class="id" href="#04.C2b">.*?</tr>)'
VERDICT = f"({ROW})(. (supported|undecided|opposed|not at this scale))"
EDITS = {  # what is edited -> (edit, the check that finds it, what it says)
    "a value": (another(ROW + r"<b>([^<]+)</b>"), "shown figures", "04.C2b: the page shows"),
    "an interval": (another(ROW + r'"interval">([^<]+)<'), "shown figures", "04.C2b: the page shows '["),
    "a threshold": (another(ROW + r"wanted ([^<]+)<"), "shown figures", "04.C2b"),
    "a verdict": (put(VERDICT, r"\1· right"), "shown figures", "04.C2b: the page shows '· right'"),
    "a row": (put(WHOLE_ROW, ""), "shown figures", "04.C2b: its row is missing"),
    "a row twice": (put(WHOLE_ROW, r"\1\1"), "shown figures", "a claim stands in the table twice"),
    "what is claimed": (put(r"(>04.C2b</a>) \S+", r"\1 Guided"), "shown figures", "shows 'Guided"),
    "a sentence": (put("the ", "a "), "page", "not as it was written"),
    "a seed": (another(r'"id":"04.C2b".*?"values":\[([^,]+),'), "intervals and verdicts", "04.C2b: value is"),
    "a hash": (another(r'"measures.json":"(\w+)"'), "hashes", "measures.json has another sha256"),
    "the key": (another(r'"key":"(\w+)"'), "record", "key is"),
    "the hash of the page": (another(r'"page":"(\w+)"'), "page", "not as it was written"),
    "a gate": (put('"passed":true', '"passed":false'), "gates", "gate "),
    "an arm": (another(r'"image only":\{"[^"]+":\[([^,]+),'), "arms of 04-arms", "image only, seed 0"),
    "a hash of data": (another(r'"notebooks/claims/04_cmg.yaml":"(\w+)"'), "data", "04_cmg.yaml has another"),
}


@pytest.mark.parametrize(("edit", "check", "said"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_is_found(written, edit, check, said):
    text = written.read_text()
    assert edit(text) != text
    written.write_text(edit(text))
    wrong = found(verify.verify(str(written)))
    assert said in wrong[check]


def test_an_edited_page_ends_with_exit_code_1_and_says_where(written, vlws):
    text = written.read_text()
    written.write_text(digit(text, ROW + r"<b>([^<]+)</b>"))
    code, out = vlws("verify", str(written))
    assert code == 1
    assert re.search(r"differs +shown figures +04.C2b: the page shows", out)


@SHARED
@given(data=st.data())
def test_any_changed_number_of_the_table_is_found_with_its_claim(written, data):
    text = written.read_text()
    start = text.index("<tbody>", text.index('<table class="verdicts">'))
    table = text[start : text.index("</table>", start)]
    rows = [m.span() for m in re.finditer(r"<tr>.*?</tr>", table, re.DOTALL) if "href=" in m[0]]
    low, high = data.draw(st.sampled_from(rows))
    row = text[start + low : start + high]
    id = re.search(r'href="#([^"]+)"', row)[1]
    figures = row.index('class="figure"')
    places = [m.start() for m in re.finditer(r"\d(?=[^<>]*<)", row) if m.start() > figures]
    place = data.draw(st.sampled_from(places))
    put = data.draw(st.sampled_from([d for d in "0123456789" if d != row[place]]))
    edited = text[: start + low + place] + put + text[start + low + place + 1 :]
    sealed = seal.unseal("page", edited.encode())
    (said,) = [c.said for c in verify.of_tables(sealed) if c.result == checks.DIFFERS]
    assert said.startswith(f"{id}: the page shows")
    assert not sealed.table


@SHARED
@given(place=st.integers(min_value=0), put=st.sampled_from("0123456789 xé"))
def test_any_other_character_anywhere_is_found(written, place, put):
    text = written.read_text()
    start = text.index("<body")
    place = start + place % (len(text) - start)
    edited = text[:place] + put + text[place + 1 :]
    if edited == text:
        return
    try:
        sealed = seal.unseal("page", edited.encode())
    except InputError:  # what it carries can no longer be read
        return
    if carried(edited) != carried(text) or seal.ELEMENT.sub("", edited) != seal.ELEMENT.sub("", text):
        assert checks.DIFFERS in {check.result for check in verify.of_hashes(sealed)}


# --- forged with care -------------------------------------------------------------------------------------------------


def better(runs: list[dict]) -> None:
    """Make a measure look better, verdict and all, as computed from its new values."""
    from vlws import verdicts

    measure = next(m for m in runs[0]["measures"] if m["id"] == "04.C2b")
    measure["values"] = [value + 0.5 for value in measure["values"]]
    measure |= verdicts.recompute(measure)


def test_a_forgery_with_all_hashes_is_found_by_the_runs_folder(written, tmp_path, monkeypatch):
    record = records.records()[0]
    text = resealed(written.read_text(), better)
    forged = carried(text)["runs"]
    rows = evidence.rows_of("04_cmg", forged[0]["measures"], record, "run", anchor=True)
    book = page.read_notebook(written.parent / "notebook.ipynb")
    path = tmp_path / "forged.html"
    path.write_text(seal.seal(page.page(book, title="", record=record, rows=rows), "run", forged))
    result = verify.verify(str(path))
    assert found(result).keys() == {"record"}
    assert found(result)["record"].startswith("measures.04.C2b.")
    shutil.rmtree(written.parent)
    result = verify.verify(str(path))
    assert result["ok"], "no signature: the page alone cannot know"
    assert "no other copy of the run" in found(result, checks.UNKNOWN)["record"]


def test_a_forged_value_with_all_hashes_is_found_by_the_seeds(written):
    def change(runs):
        runs[0]["measures"][0]["value"] += 0.01

    written.write_text(resealed(written.read_text(), change))
    assert "intervals and verdicts" in found(verify.verify(str(written)))


def test_a_judged_claim_whose_gate_failed_is_found(written):
    def change(runs):
        runs[0]["gates"] = []

    written.write_text(resealed(written.read_text(), change))
    assert "although the gate" in found(verify.verify(str(written)))["gates"]


# --- what it was made from --------------------------------------------------------------------------------------------


def cells(measured) -> list[Path]:
    return sorted((measured / ".cache" / "experiment" / "04-arms").glob("*.json"))


def test_a_cell_with_another_number_is_found(measured, written):
    path = next(path for path in cells(measured) if path.stem == "CMER-1")
    cell = read_json(path)
    cell["scalars"]["AUROC"] += 0.001
    write_json(path, cell)
    assert "CMER, seed 1: AUROC is" in found(verify.verify(str(written)))["arms of 04-arms"]


def test_cells_that_are_gone_or_of_another_run_cannot_be_compared(measured, written):
    first, second, *others = cells(measured)
    first.unlink()
    cell = read_json(second)
    cell["scalars"] = {name: value + 1 for name, value in cell["scalars"].items()}
    write_json(second, cell)
    result = verify.verify(str(written))
    n = len(others) + 2
    assert result["ok"]
    assert found(result, checks.UNKNOWN)["arms of 04-arms"].startswith(f"2 of {n} cells are not in the cache")
    assert found(result, checks.OK)["arms of 04-arms"].startswith(f"{n - 2} of {n} cells are in the cache")


def test_code_that_changed_since_is_stale_and_no_fault(measured, written):
    file = measured / "notebooks" / "04_cmg.ipynb"
    book = read_json(file)
    next(cell for cell in book["cells"] if cell["cell_type"] == "code")["source"].append(
        "\nmore: int = 1  # a parameter"
    )
    write_json(file, book)
    result = verify.verify(str(written))
    assert result["ok"]
    assert "(it is stale)" in found(result, checks.UNKNOWN)["code"]


def test_data_that_changed_since_is_stale_and_no_fault(measured, written):
    file = measured / "notebooks" / "claims" / "04_cmg.yaml"
    file.write_text(file.read_text() + "\n# a remark\n")
    records.forget()
    result = verify.verify(str(written))
    assert result["ok"]
    assert "04_cmg.yaml has changed since (the run is stale)" in found(result, checks.UNKNOWN)["data"]


def test_kernels_that_are_not_found_are_said(written, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert (
        "put kernels/ of the checkout on PYTHONPATH too" in found(verify.verify(str(written)), checks.UNKNOWN)["code"]
    )


def test_files_of_a_run_are_held_against_its_notebook(folder):
    measures = read_json(folder / "measures.json")
    measures[0]["says"] = "It is better."
    write_json(folder / "measures.json", measures)
    said = found(verify.verify(folder.name))
    assert said.keys() == {"notebook"}
    assert "measures.json: 0.says is 'It is better.'" in said["notebook"]


def test_a_published_result_is_held_against_its_run(folder):
    path = evidence.publish("04", "cpu")
    assert found(verify.verify(str(path))) == {}
    result = read_json(path)
    result["measures"][1]["values"][0] += 0.01
    write_json(path, result)
    said = found(verify.verify(str(path)))
    assert said.keys() == {"intervals and verdicts", "record"}
    assert found(verify.verify(folder.name)).keys() == {"published result"}


# --- refused ----------------------------------------------------------------------------------------------------------

PAGE = "<!DOCTYPE html>\n<html><body>{}</body></html>"
ELEMENT = '<script type="application/json" id="vlws-record">{}</script>'
RUN = {"run": {"slug": "04_cmg"}, "sha256": {}, "data": None, "measures": [], "gates": [], "arms": [], "results": []}
GOOD = {"schema": 1, "kind": "run", "runs": [RUN]}


def with_record(value) -> str:
    return PAGE.format(ELEMENT.format(value if isinstance(value, str) else json.dumps(value)))


REFUSED = {
    "no HTML": ("just words", "it has no <html> element"),
    "bytes": (b"\xff\xfe\x00", "bytes that are no text"),
    "no record": (PAGE.format(""), "carries 0 records"),
    "two records": (PAGE.format(ELEMENT.format("{}") * 2), "carries 2 records"),
    "no JSON": (with_record("{"), "is no JSON"),
    "a list": (with_record([]), "has schema None"),
    "of a later version": (with_record(GOOD | {"schema": 9}), "has schema 9; this version reads 1"),
    "no runs": (with_record(GOOD | {"runs": None}), "lacks a part"),
    "another kind": (with_record(GOOD | {"kind": "x"}), "lacks a part"),
    "measures of another form": (with_record(GOOD | {"runs": [RUN | {"measures": [3]}]}), "lacks a part"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_page_of_a_run_is_refused_in_a_sentence(tmp_path, content, said, vlws):
    path = tmp_path / "page.html"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out = vlws("verify", str(path), "--json")
    error = json.loads(out)["error"]
    assert code == 2
    assert said in error
    assert error.count("\n") == 0


@pytest.mark.parametrize("measure", [{}, {"id": "04.C1"}, {"id": "04.C1", "values": "x"}])
def test_a_measure_of_another_form_differs_and_stops_nothing(tmp_path, measured, measure):
    path = tmp_path / "page.html"
    path.write_text(with_record(GOOD | {"runs": [RUN | {"measures": [measure], "gates": [{}], "arms": [{"arms": 3}]}]}))
    assert found(verify.verify(str(path))).keys() >= {"page", "shown figures", "intervals and verdicts", "gates"}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("../*"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value, at=()) -> list[tuple]:
    """Where the parts of a value of dicts and lists are; of a long list the first two."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [place for key, one in inner for place in ((*at, key), *places(one, (*at, key)))]


@settings(SHARED, max_examples=40)
@given(data=st.data())
def test_whatever_a_page_carries_is_refused_or_checked(folder, data):
    runs = [seal.of_run(read_json(folder / "run.json") | {"folder": str(folder)})]
    *above, last = data.draw(st.sampled_from(places(runs)))
    part = runs
    for key in above:
        part = part[key]
    if isinstance(part, dict) and data.draw(st.booleans()):
        del part[last]
    else:
        part[last] = data.draw(ANY)
    path = folder / "other.html"
    path.write_text(seal.seal(PAGE.format(""), "run", runs))
    with contextlib.suppress(InputError):
        assert isinstance(verify.verify(str(path))["ok"], bool)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("none.html", "cannot be read"),
        ("none.json", "cannot be read"),
        ("none", "no run answers"),
        ("04@ful", "preset"),
    ],
)
def test_what_is_not_there_is_refused(measured, target, said):
    with pytest.raises(InputError, match=said):
        verify.verify(target)


def test_a_file_that_is_no_result_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"measures": [3]}')
    (tmp_path / "b.txt").write_text("words")
    for name in ("a.json", "b.txt"):
        with pytest.raises(InputError, match="no result that `vlws claims publish` wrote"):
            verify.verify(str(tmp_path / name))


# --- two runs ---------------------------------------------------------------------------------------------------------


def test_a_page_of_runs_beside_each_other_is_checked(folder, tmp_path, vlws):
    path = tmp_path / "compared.html"
    assert vlws("compare", folder.name, "04@cpu", "--page", str(path))[0] == 0
    assert vlws("verify", str(path))[0] == 0
    text = path.read_text()
    assert len(carried(text)["runs"]) == 2
    path.write_text(digit(text, r">04.C2b<.*?<b>([^<]+)</b>"))
    assert "04.C2b: the page shows" in found(verify.verify(str(path)))["shown figures"]
    path.write_text(re.sub(r'<tr><th scope="row">04.C2b<.*?</tr>', "", text, count=1, flags=re.DOTALL))
    assert found(verify.verify(str(path)))["shown figures"] == "04.C2b: its row is missing"


def test_a_committed_notebook_beside_a_published_result_is_checked(tmp_path, monkeypatch, vlws):
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path))
    monkeypatch.setenv("VLWS_RUNS", str(tmp_path))
    path = tmp_path / "compared.html"
    assert vlws("compare", "06@cpu", "06@full", "--page", str(path))[0] == 0
    result = verify.verify(str(path))
    assert found(result) == {}
    assert {one["run_id"] for one in result["checks"]} == {None, compare.find(["06@full"])[0]["run_id"]}
    assert paths.runs() == tmp_path
