import json
import math

import numpy as np
import pytest

from vlws import claims, verdicts
from vlws.errors import InputError

CLAIM = """
  - id: "04.C1"
    says: "text helps"
    where: "abstract"
    metric: "AUROC(+CMER) - AUROC(image only)"
    unit: "AUROC"
    paper: 0.1
    direction: greater
    threshold: 0.05
    needs: {seeds: 3}
"""
FILE = f'chapter: "04"\npaper: {{title: T, authors: A, venue: V, url: "https://example.org"}}\nclaims:{CLAIM}'


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "claims").mkdir(parents=True)
    monkeypatch.setenv("VLWS_ROOT", str(tmp_path))
    (tmp_path / "notebooks" / "claims" / "04_cmg.yaml").write_text(FILE)
    return tmp_path


@pytest.fixture
def chapter(workspace):
    return claims.open_chapter("04", preset="cpu")


def claim(**changed):
    """A measure as a dict, as far as verdicts read it."""
    given = dict(id="04.C1", says="s", where="w", metric="m", unit="u", direction="greater", threshold=0.05)
    return given | dict(tolerance=None, n_seeds=3, per="seed") | changed


def stated(**changed):
    given = dict(id="04.C1", says="s", where="w", metric="m", unit="u", direction="greater", threshold=0.05)
    return claims.Claim(**(given | changed))


# --- the verdict ---


@pytest.mark.parametrize(
    ("direction", "low", "high", "expected"),
    [
        ("greater", 0.06, 0.10, "supported"),
        ("greater", 0.01, 0.10, "undecided"),
        ("greater", 0.05, 0.10, "undecided"),  # touching the threshold is not beating it
        ("greater", -0.1, 0.04, "opposed"),
        ("less", -0.1, 0.04, "supported"),
        ("less", 0.01, 0.10, "undecided"),
        ("less", 0.06, 0.10, "opposed"),
        ("within", 0.03, 0.07, "supported"),
        ("within", 0.0201, 0.0799, "supported"),
        ("within", 0.01, 0.07, "undecided"),
        ("within", -0.5, 0.5, "undecided"),
        ("within", 0.09, 0.20, "opposed"),
        ("within", -0.2, 0.01, "opposed"),
    ],
)
def test_verdict_table(direction, low, high, expected):
    tolerance = 0.03 if direction == "within" else None
    word, why = verdicts.verdict(claim(direction=direction, tolerance=tolerance), low, high)
    assert word == expected
    assert "interval" in why


def test_unmet_needs_come_before_any_verdict():
    needy = claim(needs={"seeds": 5})
    assert verdicts.verdict(needy, 1, 2) == ("not at this scale", "3 seeds, the claim needs 5")
    assert verdicts.verdict(needy | {"n_seeds": 5}, 1, 2)[0] == "supported"
    assert verdicts.verdict(claim(n_seeds=1), 1, 2) == ("not at this scale", "1 seed, the claim needs 2")
    assert verdicts.verdict(claim(n_seeds=9, unmet="no GPU"), 1, 2) == ("not at this scale", "no GPU")
    assert verdicts.verdict(claim(per="row", n_seeds=1), 1, 2) == ("not at this scale", "1 row, the claim needs 2")


def test_what_the_set_up_builds_in_is_shown_and_not_counted():
    built = claim(by_construction="the control cannot learn")
    assert verdicts.verdict(built, 1, 2) == ("by construction", "the control cannot learn")
    assert verdicts.verdict(built | {"unmet": "the gate failed"}, 1, 2)[0] == "not at this scale"
    assert verdicts.verdict(claim(reported="a time"), 1, 2) == ("reported", "a time")


def test_agreement_is_said_and_is_no_certainty():
    word, why = verdicts.verdict(claim(values=[0.2] * 3), None, None)
    assert (word, why) == ("undecided", "all 3 seeds gave the same value: no noise was seen, so there is no interval")
    word, why = verdicts.verdict(claim(values=[0.2] * 3), 0.19, 0.21)
    assert word == "supported"
    assert why.endswith("all 3 seeds gave the same value, the width is that of the items")


def test_holm_takes_back_what_many_claims_would_give():
    measures = [claim(id=f"04.C{k}", verdict="supported", p=0.04) for k in range(3)]
    measures += [claim(id="04.C4", verdict="opposed", p=0.001), claim(id="04.C5", verdict="by construction", p=0.9)]
    assert verdicts.holm_verdicts(measures) == {
        **dict.fromkeys(["04.C0", "04.C1", "04.C2"], "undecided"),
        "04.C4": "opposed",
        "04.C5": "by construction",
    }


# --- measures ---


def test_what_was_not_measured_has_a_reason_and_no_figure(chapter):
    m = chapter.measure("04.C1", None, unmet="trained in the full run only")
    assert (m.value, m.low, m.high, m.n_seeds, m.n_replicates) == (None, None, None, 0, 0)
    assert (m.verdict, m.why) == ("not at this scale", "trained in the full run only")
    assert "– not at this scale" in m._repr_html_()
    assert "–" in m._repr_html_()
    with pytest.raises(InputError, match=r"04\.C1 was given"):
        chapter.measure("04.C1", None)


def test_measure_holds_all_that_the_contract_names(chapter):
    m = chapter.measure("04.C1", np.array([0.2, 0.21, 0.19]))
    d = m.to_dict()
    keys = "id says where metric unit paper direction threshold tolerance value low high n_seeds n_replicates"
    keys += " verdict why preset per p values item_se replicates items gates needs by_construction reported"
    assert list(d) == [*keys.split(), "shared_items", "bounds", "unmet"]
    assert d["values"] == (0.2, 0.21, 0.19)
    assert (d["id"], d["paper"], d["n_seeds"], d["n_replicates"], d["preset"]) == ("04.C1", 0.1, 3, 0, "cpu")
    assert d["value"] == pytest.approx(0.2)
    assert d["verdict"] == "supported"
    assert repr(m) == "04.C1: AUROC(+CMER) - AUROC(image only)"
    assert "✓ supported" in m._repr_html_()
    assert chapter.measures["04.C1"] is m


def test_measure_takes_replicates_and_tensors(chapter):
    import torch

    m = chapter.measure("04.C1", 0.3 + 0.01 * torch.randn(101, 3, generator=torch.Generator().manual_seed(0)))
    assert (m.n_seeds, m.n_replicates, m.verdict) == (3, 100, "supported")
    assert len(m.item_se) == 3
    assert m.replicates is None


@pytest.mark.parametrize("shared", [False, True])
def test_a_measure_can_be_computed_again_from_its_record(chapter, shared):
    chapter.claims["04.C1"] = stated(shared_items=shared, bounds=(0, 1))
    rng = np.random.default_rng(0)
    rows = 0.3 + rng.normal(size=3) * 0.05 + rng.normal(size=(201, 3)) * 0.02
    recorded = json.loads(json.dumps(chapter.measure("04.C1", rows).to_dict()))
    again = verdicts.recompute(recorded | dict.fromkeys(("value", "low", "high", "p", "verdict", "why")))
    for name in ("value", "low", "high", "p"):
        assert again[name] == pytest.approx(recorded[name], abs=1e-5)
    assert (again["verdict"], again["why"]) == (recorded["verdict"], recorded["why"])


def test_items_give_an_interval_where_all_agree(chapter):
    assert chapter.measure("04.C1", np.full((51, 3), 0.2)).verdict == "undecided"
    m = chapter.measure("04.C1", np.full((51, 3), 0.2), items=100)
    assert (m.verdict, m.high - m.value) == ("supported", pytest.approx(0.01))


def gated(chapter, **changed):
    gate = dict(name="sees", says="The base sees.", metric="accuracy", direction="greater", threshold=0.9)
    chapter.gates["sees"] = claims.Gate(**(gate | changed))
    chapter.claims["04.C1"] = stated(gates=("sees",))


def test_a_gate_decides_whether_its_claims_are_judged(chapter):
    gated(chapter)
    with pytest.raises(InputError, match=r"04\.C1 needs the gate 'sees'; measure it first"):
        chapter.measure("04.C1", [0.2, 0.21, 0.19])
    assert chapter.gate("sees", [0.8, 0.9, 0.7]) is False
    m = chapter.measure("04.C1", [0.2, 0.21, 0.19])
    assert (m.verdict, m.why) == ("not at this scale", "The base sees. 0.800, needed at least 0.900")
    assert chapter.gate("sees", 0.95) is True
    assert chapter.measure("04.C1", [0.2, 0.21, 0.19]).verdict == "supported"
    assert chapter.gated["sees"]["values"] == [0.95]


def test_a_gate_from_below(chapter):
    gated(chapter, direction="less", threshold=0.5)
    assert chapter.gate("sees", [0.4]) is True
    assert chapter.gate("sees", [0.6]) is False


def test_an_unknown_gate_is_refused(chapter):
    with pytest.raises(InputError, match="no gate 'hears' in chapter 04; its gates are: none"):
        chapter.gate("hears", [1.0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.1, math.nan, 0.2], "1 values that are not finite"),
        ([[0.1, 0.2], [0.1, math.inf]], "not finite"),
        ([], r"shape \(0,\)"),
        ([[0.1, 0.2]], r"shape \(1, 2\)"),
        (0.1, r"shape \(\)"),
        ("high", "it takes numbers"),
    ],
)
def test_measure_refuses_what_is_no_measurement(chapter, values, message):
    with pytest.raises(InputError, match=message):
        chapter.measure("04.C1", values)
    assert not chapter.measures


def test_measure_refuses_an_unknown_id(chapter):
    with pytest.raises(InputError, match=r"no claim '04.C9' in chapter 04; its claims are 04.C1"):
        chapter.measure("04.C9", [1, 2, 3])


def test_tables_escape_and_say_what_was_not_measured(chapter):
    assert "text helps" in chapter.claimed().html
    assert repr(chapter.claimed()) == "04.C1: text helps"
    assert repr(chapter.verdicts()) == "04.C1: not measured"
    chapter.claims["04.C1"] = stated(says="<script>")
    assert "<script>" not in chapter.claimed().html + chapter.verdicts().html


# --- the claims file ---


def test_numbers_that_yaml_reads_as_text_are_numbers(workspace):
    path = workspace / "notebooks" / "claims" / "04_cmg.yaml"
    path.write_text(FILE.replace("threshold: 0.05", "threshold: 1e-5"))
    assert claims.load(path).claims["04.C1"].threshold == 1e-5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("direction: greater", "direction: upward", "direction is 'upward'; it is one of greater, less, within"),
        ('    says: "text helps"\n', "", "claim 04.C1 lacks says"),
        ("says:", "sais:", "lacks says"),
        ("paper: 0.1", "papr: 0.1", "unknown fields papr"),
        ("threshold: 0.05", "threshold: high", "threshold is 'high'; it must be a number"),
        ("threshold: 0.05", "threshold: .nan", "must be a number"),
        ("threshold: 0.05", "threshold: null", "threshold is empty"),
        ("direction: greater", "direction: within", "direction within needs one above 0"),
        ("needs: {seeds: 3}", "needs: {seeds: many}", "needs is"),
        ("needs: {seeds: 3}", "tolerance: 0.1", "tolerance is 0.1"),
        ("needs: {seeds: 3}", "per: 3", "per is 3; it is a word"),
        ("needs: {seeds: 3}", "gates: [sees]", "claim 04.C1 names the gate 'sees'; the file's gates are: none"),
        ("needs: {seeds: 3}", "gates: sees", "gates is 'sees'; it is a list of names"),
        ("needs: {seeds: 3}", "bounds: [1, 0]", r"bounds is \[1, 0\]; it is a list \[lowest, highest\]"),
        ("needs: {seeds: 3}", "shared_items: 1", "shared_items is 1; it is true or false"),
        ("needs: {seeds: 3}", "by_construction: 1", "by_construction is 1; it must be text"),
        ("claims:", "gates: [sees]\nclaims:", r"gates is \['sees'\]; it maps a name"),
        ("claims:", "gates: {a: 1}\nclaims:", "gate a must be a mapping"),
        ("claims:", "gates: {a: {says: s}}\nclaims:", "gate a lacks metric"),
        (
            "claims:",
            "gates: {a: {says: s, metric: m, direction: within, threshold: 1}}\nclaims:",
            "direction is 'within'; it is greater or less",
        ),
        ('"04.C1"', '"05.C1"', "must start with '04.'"),
        ('"04.C1"', "4.1", "id is 4.1; it must be text"),
        ('chapter: "04"', "chapter: 04", "chapter is 4; write it quoted"),
        ("claims:", f"claims:{CLAIM}", "claim id '04.C1' stands twice"),
        ("claims:", "claims: all\nx:", "unknown fields x"),
        ("chapter:", "chapter: [", "is not YAML"),
        ("title: T", "name: T", "paper lacks title"),
    ],
)
def test_a_fault_of_the_file_is_one_sentence(workspace, old, new, message):
    path = workspace / "notebooks" / "claims" / "04_cmg.yaml"
    assert old in FILE
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as error:
        claims.load(path)
    assert "04_cmg.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_chapters_without_a_claims_file_are_refused(workspace):
    with pytest.raises(InputError, match="0 claims files for chapter '07'; there are: 04_cmg"):
        claims.open_chapter("07")
    with pytest.raises(InputError, match="cannot be read"):
        claims.load(workspace / "absent.yaml")


def test_the_table_shows_the_verdict_after_holm_where_a_claim_was_judged(chapter):
    chapter.claims["04.C2"] = stated(id="04.C2", reported="a time")
    chapter.measure("04.C1", [0.2, 0.21, 0.19])
    chapter.measure("04.C2", [0.2, 0.21, 0.19])
    html = chapter.verdicts().html
    assert html.count(">supported<") == 1  # after Holm; the verdict itself is a badge with a sign
    assert "· reported" in html
