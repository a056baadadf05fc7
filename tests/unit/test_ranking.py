"""Measures of rankings are trec_eval's, and rankings by words and by vectors are exact."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws.errors import InputError
from vlws.models.ranking import as_run, bm25, measure, top

pytest.importorskip("ir_measures")
NAMES = {"nDCG@10": "ndcg_cut_10", "AP": "map", "R@5": "recall_5", "P@5": "P_5", "RR": "recip_rank"}


def refused(sentence: str):
    return pytest.raises(InputError, match=re.escape(sentence))


DOCS = st.sampled_from([f"d{k}" for k in range(15)])
QRELS = st.dictionaries(
    st.sampled_from([f"q{k}" for k in range(5)]), st.dictionaries(DOCS, st.integers(0, 3), min_size=1), min_size=1
)
RUNS = st.dictionaries(  # few scores, so that there are ties; queries that are not judged, and some without documents
    st.sampled_from([f"q{k}" for k in range(6)]), st.dictionaries(DOCS, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
)


@settings(max_examples=80, deadline=None)
@given(RUNS, QRELS)
def test_measures_are_those_of_trec_eval(run, qrels):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    found = measure(run, qrels, tuple(NAMES))
    names = {
        name.rsplit("_", 1)[0] + "." + name.rsplit("_", 1)[1] if name[-1].isdigit() else name for name in NAMES.values()
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    for ours, name in NAMES.items():
        assert found[ours].shape == (len(qrels),)
        assert found[ours].tolist() == [theirs.get(query, {}).get(name, 0.0) for query in qrels]


def test_the_gain_is_linear_and_ties_go_to_the_later_id():
    qrels = {"q": {"a": 3, "b": 1}}
    wanted = (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    assert measure({"q": {"a": 0.5, "b": 0.5}}, qrels)["nDCG@10"] == pytest.approx(wanted)
    assert measure({"q": {"a": 0.6, "b": 0.5}}, qrels)["nDCG@10"] == pytest.approx(1)


def test_a_query_without_a_run_counts_as_zero():
    qrels = {"q3": {"d": 1}, "q1": {"d": 1}, "q2": {"d": 1}}
    assert measure({"q1": {"d": 1.0}, "q2": {}}, qrels)["nDCG@10"].tolist() == [0, 1, 0]


def test_two_names_of_one_measure_have_the_same_values():
    found = measure({"q": {"d": 1.0}}, {"q": {"d": 1}}, ("R@5", "Recall@5"))
    assert found["R@5"].tolist() == found["Recall@5"].tolist() == [1]


def test_a_document_that_is_the_query_is_left_out():
    run, qrels = {"q": {"q": 2.0, "d": 1.0}}, {"q": {"d": 1}}
    assert measure(run, qrels)["nDCG@10"] == [1]
    assert measure(run, qrels, ignore_identical_ids=False)["nDCG@10"] == pytest.approx(1 / math.log2(3))


@pytest.mark.parametrize(
    ("run", "qrels", "names", "told"),
    [
        ({}, {}, ("nDCG@10",), "No judgements, or a query without any, were given"),
        ({}, {"q": {}}, ("nDCG@10",), "No judgements, or a query without any, were given"),
        ({}, {"q": {"d": 1}}, ("good@10",), "'good@10' was given; accepted are measures such as nDCG@10"),
        ({}, {"q": {"d": 1}}, ("nDCG@",), "'nDCG@' was given"),
        ({}, {"q": {"d": 1}}, ("RR@10",), "trec_eval has no measure 'RR@10'"),
        ({"q": {"d": math.nan}}, {"q": {"d": 1}}, ("nDCG@10",), "A score of the query 'q' is not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(run, qrels, names, told):
    with refused(told):
        measure(run, qrels, names)


def test_bm25_ranks_by_words():
    documents = {
        "d1": "an owl hunts at night",
        "d2": "the owl and the other owl",
        "d3": "a red car",
        "d4": "blue paint",
    }
    found = bm25(documents, {"q1": "Owl!", "q2": "the", "q3": "zebra", "q4": "red owl"}, k=3)
    assert max(found["q1"], key=found["q1"].get) == "d2"
    assert set(found["q1"]) == {"d1", "d2"}
    assert found["q2"] == found["q3"] == {}
    assert set(found["q4"]) == {"d1", "d2", "d3"}
    idf, lengths = math.log(1 + 2.5 / 2.5), [3, 3, 2, 2]  # two of four documents have the word; stop words are gone
    tf = 1 / (1 + 1.5 * (0.25 + 0.75 * lengths[0] / np.mean(lengths)))
    assert found["q1"]["d1"] == pytest.approx(idf * tf, rel=1e-5)


def test_bm25_takes_what_has_no_words_and_k_beyond_the_documents():
    assert bm25({"d": "the of and"}, {"q": "owl"}, k=5) == {"q": {}}
    assert bm25({"d": "an owl"}, {}, k=5) == {}
    assert list(bm25({"d": "an owl"}, {"q": "owl"}, k=5)["q"]) == ["d"]
    with refused("k=0 of 1 documents was given"):
        bm25({"d": "an owl"}, {"q": "owl"}, k=0)
    with refused("k=1 of 0 documents was given"):
        bm25({}, {"q": "owl"}, k=1)


def test_top_is_the_whole_sort_whatever_the_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 8, generator=generator) for n in (7, 50))
    scores, index = (queries @ documents.T).sort(descending=True)
    monkeypatch.setattr("vlws.models.ranking.BLOCK", 100)
    found, at = top(queries, documents, 5)
    assert torch.equal(at, index[:, :5])
    torch.testing.assert_close(found, scores[:, :5])
    assert top(queries[:0], documents, 5)[0].shape == (0, 5)
    run = as_run([f"q{k}" for k in range(7)], [f"d{k}" for k in range(50)], found, at)
    assert list(run["q0"]) == [f"d{j}" for j in index[0, :5].tolist()]


def test_what_top_cannot_rank_is_refused():
    for k in (0, 4):
        with refused(f"k={k} of 3 documents was given; accepted is 1 to 3"):
            top(torch.zeros(1, 2), torch.zeros(3, 2), k)
    with refused("Queries of 2 numbers and documents of 4 were given"):
        top(torch.zeros(1, 2), torch.zeros(3, 4), 1)
