import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws import claims
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
    given = dict(id="04.C1", says="s", where="w", metric="m", unit="u", direction="greater", threshold=0.05)
    return claims.Claim(**(given | changed))


# --- the statistics ---


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_interval_covers_about_95_percent_on_normal_data(n_seeds):
    rng = np.random.default_rng(1)
    runs = 1200
    hits = 0
    for k in range(runs):
        _, low, high = claims.interval(rng.normal(size=n_seeds), resamples=800, seed=k)
        hits += low <= 0 <= high
    assert abs(hits / runs - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs)  # four standard errors of the simulation


def test_interval_with_shared_items_covers_both_sources_of_noise():
    """Items shared by all seeds do not average out over seeds: intervals over seeds alone would miss them."""
    rng = np.random.default_rng(2)
    runs, crossed, seeds_only = 300, 0, 0
    for k in range(runs):
        items, effect = rng.normal(size=(100, 1)) * 10, rng.normal(size=3) * 0.3
        rows = np.stack([claims.replicates(np.mean, items[:, 0] + e, n=150, seed=k) for e in effect], axis=1)
        _, low, high = claims.interval(rows, resamples=800)
        crossed += low <= 0 <= high
        _, low, high = claims.interval(rows[0], resamples=800)
        seeds_only += low <= 0 <= high
    assert crossed / runs > 0.9
    assert seeds_only / runs < 0.75


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-100, 100))
@settings(max_examples=40, deadline=None)
def test_interval_holds_its_point_and_moves_with_the_data(effects, shift):
    values = np.array(effects)
    value, low, high = claims.interval(values, resamples=200)
    assert low - 1e-9 <= value <= high + 1e-9
    moved = claims.interval(values + shift, resamples=200)
    np.testing.assert_allclose(moved, np.array([value, low, high]) + shift, atol=1e-8)


def test_widening_is_the_t_interval_of_normal_data():
    assert claims.widening(3) == pytest.approx(math.sqrt(3 / 2) * 4.302652729911275 / 1.959963984540054)
    assert claims.widening(10_000) == pytest.approx(1, abs=1e-3)
    values = np.array([0.1, 0.3, 0.2, 0.25, 0.15, 0.22, 0.18, 0.28] * 2)
    value, low, high = claims.interval(values, resamples=20_000)
    half = 2.131449545559323 * values.std(ddof=1) / math.sqrt(len(values))  # t(.975, 15)
    assert high - value == pytest.approx(half, rel=0.05)
    assert value - low == pytest.approx(half, rel=0.05)


def test_interval_is_the_same_every_time():
    values = np.random.default_rng(0).normal(size=(101, 4))
    assert claims.interval(values) == claims.interval(values.copy())


def test_one_seed_has_an_interval_over_items_alone_or_none():
    assert claims.interval(np.array([0.2])) == (0.2, None, None)
    rows = claims.replicates(np.mean, np.arange(50.0), n=200)[:, None]
    value, low, high = claims.interval(rows)
    assert low < value < high


def test_replicates_pair_arms_of_one_seed():
    rng = np.random.default_rng(3)
    a = rng.normal(size=80)
    difference = claims.replicates(np.mean, a + 0.25, seed=5) - claims.replicates(np.mean, a, seed=5)
    assert difference.shape == (1001,)
    np.testing.assert_allclose(difference, 0.25, atol=1e-12)  # paired: the noise of the items cancels
    unpaired = claims.replicates(np.mean, a + 0.25, seed=5) - claims.replicates(np.mean, a, seed=6)
    assert unpaired.std() > 0.05


def test_replicates_resample_all_arrays_with_the_same_indices():
    x = np.arange(30)
    assert (claims.replicates(lambda a, b: np.abs(a - b).max(), x, x.copy(), n=50) == 0).all()


def test_replicates_keep_the_strata():
    labels = np.array([1] + [0] * 40)
    assert (claims.replicates(lambda y: y.sum(), labels, n=100, strata=labels) == 1).all()
    with pytest.raises(InputError, match="give the labels as strata"):
        claims.replicates(lambda y: 1 / y.sum() if y.sum() else math.nan, labels, n=100)


def test_replicates_refuse_bad_input():
    with pytest.raises(InputError, match="one common, positive length"):
        claims.replicates(np.mean, np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="n >= 1"):
        claims.replicates(np.mean, np.zeros(3), n=0)
    with pytest.raises(InputError, match=r"strata must have shape \(3,\)"):
        claims.replicates(np.mean, np.zeros(3), strata=np.zeros(2))


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
    word, why = claims.verdict(claim(direction=direction, tolerance=tolerance), low, high, n_seeds=3)
    assert word == expected
    assert "interval" in why


def test_unmet_needs_come_before_any_verdict():
    needy = claim(needs={"seeds": 5})
    assert claims.verdict(needy, 1, 2, n_seeds=3) == ("not at this scale", "3 seeds, the claim needs 5")
    assert claims.verdict(needy, 1, 2, n_seeds=5)[0] == "supported"
    assert claims.verdict(claim(), 1, 2, n_seeds=1) == ("not at this scale", "1 seed, the claim needs 2")
    assert claims.verdict(claim(), 1, 2, n_seeds=9, unmet="no GPU") == ("not at this scale", "no GPU")
    assert claims.verdict(claim(per="row"), 1, 2, n_seeds=1) == ("not at this scale", "1 row, the claim needs 2")


# --- measures ---


def test_what_was_not_measured_has_a_reason_and_no_figure(chapter):
    m = chapter.measure("04.C1", None, unmet="trained in the full run only")
    assert (m.value, m.low, m.high, m.n_seeds, m.n_replicates) == (None, None, None, 0, 0)
    assert (m.verdict, m.why) == ("not at this scale", "trained in the full run only")
    assert "<td" in m._repr_html_()
    assert "–" in m._repr_html_()
    with pytest.raises(InputError, match=r"04\.C1 was given"):
        chapter.measure("04.C1", None)


def test_measure_holds_all_that_the_contract_names(chapter):
    m = chapter.measure("04.C1", np.array([0.2, 0.21, 0.19]))
    d = m.to_dict()
    keys = "id says where metric unit paper direction threshold tolerance value low high n_seeds n_replicates"
    assert list(d) == [*keys.split(), "verdict", "why", "preset", "per"]
    assert (d["id"], d["paper"], d["n_seeds"], d["n_replicates"], d["preset"]) == ("04.C1", 0.1, 3, 0, "cpu")
    assert d["value"] == pytest.approx(0.2)
    assert d["verdict"] == "supported"
    assert repr(m) == "04.C1: AUROC(+CMER) - AUROC(image only)"
    assert "✓ supported" in m._repr_html_()
    assert chapter.measures["04.C1"] is m


def test_measure_takes_replicates_and_tensors(chapter):
    import torch

    m = chapter.measure("04.C1", torch.full((101, 3), 0.3))
    assert (m.n_seeds, m.n_replicates, m.verdict) == (3, 100, "supported")


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
    assert "text helps" in chapter.claimed()._repr_html_()
    assert repr(chapter.claimed()) == "04.C1: text helps"
    assert repr(chapter.verdicts()) == "04.C1: not measured"
    chapter.claims["04.C1"] = claim(says="<script>")
    assert "<script>" not in chapter.claimed()._repr_html_() + chapter.verdicts()._repr_html_()


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
