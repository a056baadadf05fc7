"""Meta-tasks from documents, and few-shot data from CSV files: balance, no leak, truncation, and what is refused."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws.data.cloze import BLANK, VECTOR, WORDS, Cloze, Cutter, Wording, as_choice
from vlws.data.labelled import Labelled, as_clozes, few_shot_split, read_labelled
from vlws.data.meta_tasks import FORMATS, Corpus, as_choices, cluster, meta_batches, meta_task, split
from vlws.errors import InputError

LINKED = ("nsp", "nss")


def corpus(clusters=8, documents=12, sentences=4, by_sentence=False):
    """Documents whose sentences are all different: "c3 d7 s2"."""
    made = [[f"c{c} d{d} s{s}" for s in range(sentences)] for c, d in np.ndindex(clusters, documents)]
    labels = [c for c, _ in np.ndindex(clusters, documents)]
    centroids = np.random.default_rng(0).normal(size=(clusters, 6)).astype(np.float32)
    return Corpus(made, [[c] * sentences for c in labels] if by_sentence else labels, centroids)


def parts(text):
    """The sentences "c d s" of a cloze, in order."""
    words = text.replace(".", " ").split()
    return [tuple(words[i : i + 3]) for i, word in enumerate(words) if word[0] == "c" and word[1:].isdigit()]


LARGE = corpus(clusters=9, documents=14, sentences=5)


@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from(FORMATS),
    seed=st.integers(0, 10_000),
    support=st.integers(1, 16),
    query=st.integers(1, 16),
    options=st.integers(2, 4),
)
def test_a_task_is_balanced_and_leaks_nothing(format, seed, support, query, options):
    task = meta_task(format, LARGE, np.random.default_rng(seed), support=support, query=query, options=options)
    sets = (task.support, task.query, task.augmentation)
    assert [len(one) for one in sets] == [support, query, query]
    answers = {"nsp": 3, "scsp": 2}.get(format, options)
    for one in sets:
        counts = [Counter(c.answer for c in one)[k] for k in range(answers)]
        assert max(counts) - min(counts) <= 1
        assert all(c.text.count(BLANK) == 1 and len(c.words) == answers for c in one)
        anchors = [parts(c.text)[0] for c in one]
        assert len(set(anchors)) == len(anchors)  # no anchor twice
    sentences = [{s for c in one for s in parts(c.text)} for one in sets]
    assert not sentences[0] & sentences[1]
    assert not (sentences[0] | sentences[1]) & sentences[2]
    clusters = [{int(s[0][1:]) for s in found} for found in sentences]
    assert clusters[0] | clusters[1] <= set(task.anchors)
    assert clusters[2] <= set(task.others)
    assert task.overlap == 0
    if format in LINKED:  # not even a document
        documents = [{s[:2] for s in found} for found in sentences]
        assert not documents[0] & documents[1]


@settings(max_examples=40, deadline=None)
@given(format=st.sampled_from(FORMATS), seed=st.integers(0, 10_000))
def test_answers_are_true(format, seed):
    task = meta_task(format, LARGE, np.random.default_rng(seed))
    centroids = LARGE.centroids
    for cloze in (*task.support, *task.query, *task.augmentation):
        (c, d, s), *others = parts(cloze.text)
        following = (c, d, f"s{int(s[1:]) + 1}")
        if format == "nsp":
            (other,) = others
            truth = "yes" if other == following else "maybe" if other[:2] == (c, d) else "no"
        elif format == "scsp":
            (other,) = others
            truth = "yes" if other[0] == c else "no"
        elif format == "scc":
            assert cloze.text.count(VECTOR) == 4
            truth = "ABCD"[int(np.flatnonzero((cloze.vectors == centroids[int(c[1:])]).all(1)).item())]
        else:
            right = [other == following if format == "nss" else other[0] == c for other in others]
            assert sum(right) == 1
            assert (c, d, s) not in others
            assert len(set(others)) == 4
            truth = "ABCD"[right.index(True)]
        assert cloze.label == truth


@pytest.mark.parametrize("format", FORMATS)
def test_same_generator_same_task(format):
    def made(seed):
        return meta_task(format, LARGE, np.random.default_rng(seed))

    one, again, other = made(3), made(3), made(4)
    assert [c.text for c in one.query] == [c.text for c in again.query]
    assert [c.text for c in one.query] != [c.text for c in other.query]


def test_sentences_may_have_clusters_of_their_own():
    by_document, by_sentence = corpus(), corpus(by_sentence=True)
    assert by_document.clusters == by_sentence.clusters
    mixed = Corpus([["a 1", "b 1", "b 2"], ["a 2"]], [[0, 1, 1], [0]], np.eye(2))
    assert mixed.of_document == (1, 0)
    assert mixed.sentences == {0: ("a 1", "a 2"), 1: ("b 1", "b 2")}


def test_a_repeated_sentence_is_one_of_its_cluster():
    repeated = Corpus([["a 1", "a 1", "a 2"], ["a 1"]], [0, 0], np.eye(2))
    assert repeated.sentences[0] == ("a 1", "a 2")


def test_the_next_sentence_is_no_wrong_option_though_it_is_repeated():
    documents = [[f"d{d} a", "same", f"d{d} b", f"d{d} c"] for d in range(24)]
    texts = Corpus(documents, [d % 2 for d in range(24)], np.eye(2))
    for seed in range(5):
        task = meta_task("nss", texts, np.random.default_rng(seed))
        for cloze in (*task.support, *task.query):
            assert cloze.text.count("same") <= 1 or cloze.text.startswith("same")
        task = meta_task("nsp", texts, np.random.default_rng(seed))
        assert not [
            c
            for c in task.query
            if c.label == "no" and c.text.startswith("d") and " a <" in c.text and c.text.endswith("same")
        ]


def test_domain_similarity_is_of_mean_centroids():
    centroids = np.array([[1, 0], [0, 1], [-1, 0], [1, 1]], np.float32)
    texts = Corpus([["a"]] * 4, [0, 1, 2, 3], centroids)
    assert texts.similarity([0], [0]) == pytest.approx(1)
    assert texts.similarity([0], [2]) == pytest.approx(0)
    assert texts.similarity([0, 1], [3]) == pytest.approx(1)
    assert texts.similarity([0], [1]) == pytest.approx(0.5)


def test_other_clusters_may_overlap_where_asked():
    few = corpus(clusters=4)
    with pytest.raises(InputError, match=r"4 clusters are large enough for scss .* accepted are 8 or more"):
        meta_task("scss", few, np.random.default_rng(0))
    assert meta_task("scss", few, np.random.default_rng(0), disjoint=False).overlap == 1


def test_a_format_is_drawn_for_two_steps():
    batches = list(islice(meta_batches(LARGE, np.random.default_rng(0), tasks=3), 40))
    formats = [{task.format for task in batch} for batch in batches]
    assert all(len(found) == 1 for found in formats)
    assert all(formats[i] == formats[i + 1] for i in range(0, 40, 2))
    assert set.union(*formats) == set(FORMATS)
    assert {len(batch) for batch in batches} == {3}


# --- wording ---


@settings(max_examples=50, deadline=None)
@given(
    anchor=st.integers(1, 60), options=st.lists(st.integers(1, 30), min_size=2, max_size=4), total=st.integers(60, 90)
)
def test_texts_are_cut_and_blanks_are_not(anchor, options, total):
    wording = Wording(total=total, anchor=40, option=6)
    text = wording.choice("x " * anchor, ["y " * n for n in options])
    assert WORDS.count(text) <= total
    assert text.endswith(f"The correct one is {BLANK}")
    assert text.split(" ?")[0].count("x") == min(anchor, 40, total - sum(min(n, 6) + 2 for n in options) - 7)
    pair = wording.pair("x " * anchor, "y " * anchor)
    assert WORDS.count(pair) <= total
    assert pair.split().count("x") == pair.split().count("y") == min(anchor, 40, (total - 1) // 2)


def test_a_label_that_is_no_word_is_refused():
    with pytest.raises(InputError, match="the label 'maybe' was given; accepted is one of yes, no"):
        Cloze(f"a {BLANK}", "maybe", ("yes", "no"))


def test_options_that_leave_no_room_are_refused():
    with pytest.raises(InputError, match="2 options of at most 86 tokens leave no room for a sentence in 12"):
        Wording(total=12).choice("x", ["y", "z"])


def test_every_format_as_a_choice():
    for format in FORMATS:
        task = meta_task(format, LARGE, np.random.default_rng(1))
        for before, after in zip(task.query, as_choices(task).query, strict=True):
            assert after.text.endswith(f"The correct one is {BLANK}")
            assert after.text.count(BLANK) == 1
            assert after.answer == before.answer
            assert after.words == tuple("ABCD"[: len(before.words)])
    assert as_choice(Cloze(f"a ? A. b . {BLANK}", "A", ("A",))).text == f"a ? A. b . {BLANK}"


# --- what is refused ---


@pytest.mark.parametrize(
    ("documents", "clusters", "centroids", "said"),
    [
        ([], [], np.eye(2), "0 documents were given, or an empty one"),
        ([["a"], []], [0, 1], np.eye(2), "2 documents were given, or an empty one"),
        ([["a", " "]], [0], np.eye(2), "is empty or holds a sentinel"),
        ([["a <extra_id_7>"]], [0], np.eye(2), "is empty or holds a sentinel"),
        ([["a"]], [0, 1], np.eye(2), "2 labels were given for 1 documents"),
        ([["a", "b"]], [[0]], np.eye(2), "1 labels were given for a document of 2 sentences"),
        ([["a"]], [2], np.eye(2), "labels reach 2 with 2 centroids"),
        ([["a"]], [-1], np.eye(2), "labels reach -1"),
        ([["a"]], [0], np.zeros(2), r"centroids are \[2\]"),
        ([["a"]], [0], np.full((2, 2), np.nan), "accepted are finite vectors"),
    ],
)
def test_a_corpus_that_is_refused(documents, clusters, centroids, said):
    with pytest.raises(InputError, match=said):
        Corpus(documents, clusters, centroids)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"format": "mlm"}, "format='mlm' was given; accepted are nsp, nss, scsp, scss, scc"),
        ({"format": "nsp", "support": 0}, "support=0"),
        ({"format": "scc", "options": 1}, "options=1 were given; accepted are 1 or more clozes, and 2 to 8"),
        ({"format": "scc", "options": 9}, "options=9"),
        ({"format": "nsp", "support": 99}, "0 clusters are large enough for nsp with support=99 and query=16"),
        ({"format": "scsp", "query": 199}, "0 clusters are large enough for scsp"),
    ],
)
def test_a_task_that_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        meta_task(corpus=LARGE, rng=np.random.default_rng(0), **arguments)


def test_sentences_that_are_all_the_same_are_refused():
    same = Corpus([["a", "b", "a"]] * 40, [0, 1] * 20, np.eye(2))
    with pytest.raises(InputError, match="2 distinct sentences for a set of nss"):
        meta_task("nss", same, np.random.default_rng(0))
    with pytest.raises(InputError, match="tasks=0"):
        next(meta_batches(LARGE, np.random.default_rng(0), tasks=0))
    with pytest.raises(InputError, match="0 formats"):
        next(meta_batches(LARGE, np.random.default_rng(0), formats=[]))


# --- splits ---


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), documents=st.integers(1, 25), held_out=st.sampled_from([0.1, 0.3]))
def test_a_split_holds_out_whole_documents_of_every_cluster(seed, documents, held_out):
    texts = corpus(clusters=3, documents=documents + 1, sentences=3)
    train, test = split(texts, np.random.default_rng(seed), held_out)
    sides = [{s for document in side.documents for s in document} for side in (train, test)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 3 * 3 * (documents + 1)
    assert Counter(test.of_document) == {c: max(1, round(held_out * (documents + 1))) for c in range(3)}
    assert np.array_equal(train.centroids, test.centroids)


def test_a_split_that_is_refused():
    with pytest.raises(InputError, match="held_out=0 was given"):
        split(LARGE, np.random.default_rng(0), 0)
    with pytest.raises(InputError, match="no cluster has two documents"):
        split(corpus(clusters=3, documents=1), np.random.default_rng(0))


# --- CSV files ---


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_file_is_read(tmp_path):
    path = written(tmp_path, 'id,label,text\r\n1,good,"a ""fine"" film,\r\nreally"\r\n\r\n2,bad,slow; and dull\r\n')
    assert read_labelled(path) == Labelled(('a "fine" film, really', "slow; and dull"), ("good", "bad"))
    assert read_labelled(written(tmp_path, "t,l\na,x\nb,y\n", "utf-16"), "t", "l").classes == ("x", "y")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; accepted is a CSV file with the columns 'text' and 'label'"),
        ("text;label\na;x\nb;y\n", "separates its columns by a semicolon; accepted is a comma"),
        ("text\tlabel\na\tx\nb\ty\n", "separates its columns by a tab; accepted is a comma"),
        ("text|label\na|x\nb|y\n", "separates its columns by a bar; accepted is a comma"),
        ("text,class\na,x\nb,y\n", "has no column 'label'; its columns are text, class"),
        ("text,label,text\na,x,c\n", "has the column 'text' twice"),
        ("text,label\na,x\nb,y,z\n", "line 3, has 3 fields; accepted are 2"),
        ("text,label\na,x\nb\n", "line 3, has 1 fields"),
        ("text,label\na,x\n ,y\n", "line 3, has an empty text"),
        ("text,label\na,\nb,y\n", "line 2, has an empty label"),
        ('text,label\na,x\n"b,y\n', "is not valid CSV"),
        ("text,label\n", "has no rows; accepted are two classes or more in the column 'label'"),
        ("text,label\na,x\nb,x\n", "has one class alone, 'x'"),
    ],
)
def test_a_csv_file_that_is_refused(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read_labelled(written(tmp_path, text))


def test_other_files_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="is no file; accepted is a CSV file"):
        read_labelled(tmp_path / "none.csv")
    with pytest.raises(InputError, match="line 2, is not UTF-8"):
        read_labelled(written(tmp_path, "text,label\nfaçade,x\nb,y\n", "latin-1"))
    with pytest.raises(InputError, match="'text' was given for text and label"):
        read_labelled(written(tmp_path, "text,label\na,x\n"), "text", "text")


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(4, 12), min_size=2, max_size=4),
    k=st.integers(1, 2),
    seed=st.integers(0, 1000),
    repeats=st.integers(0, 3),
)
def test_a_few_shot_split_is_balanced_and_leaks_nothing(counts, k, seed, repeats):
    labels = [f"class {c}" for c, n in enumerate(counts) for _ in range(n)]
    texts = [f"text {i}" for i in range(len(labels))]
    rows = Labelled((*texts, *texts[:repeats]), (*labels, *labels[:repeats]))
    found = few_shot_split(rows, k, seed)
    assert Counter(found.train.labels) == Counter(found.dev.labels) == {f"class {c}": k for c in range(len(counts))}
    sides = [set(part.texts) for part in found]
    assert sum(map(len, sides)) == len(set.union(*sides)) == len(texts)
    assert found == few_shot_split(rows, k, seed)
    told = dict(zip(texts, labels, strict=True))
    assert all(told[t] == label for part in found for t, label in zip(part.texts, part.labels, strict=True))


def test_a_few_shot_split_that_is_refused():
    rows = Labelled(("a", "b", "c", "d", "d"), ("x", "x", "y", "y", "y"))
    with pytest.raises(InputError, match="k=0 was given"):
        few_shot_split(rows, 0, 0)
    with pytest.raises(InputError, match="the class 'x' has 2 distinct texts; accepted are 4 or more, 2 to train on"):
        few_shot_split(rows, 2, 0)
    assert few_shot_split(rows, 1, 0).test.texts == ()


def test_rows_as_clozes():
    rows = Labelled(("one two three four", "one"), ("x", "y"))
    made = as_clozes(rows, {"x": "good", "y": "bad"}, "It : {text} is <extra_id_0>", max_length=6)
    assert [c.text for c in made] == ["It : one two is <extra_id_0>", "It : one is <extra_id_0>"]
    assert [(c.label, c.words) for c in made] == [("good", ("good", "bad")), ("bad", ("good", "bad"))]
    joined = Cutter(lambda text: len(text.split()) + ("two is" in text), WORDS.first)  # one token more where they meet
    assert as_clozes(rows, {"x": "good", "y": "bad"}, "It : {text} is <extra_id_0>", 6, joined)[0].text.startswith(
        "It : one is"
    )


@pytest.mark.parametrize(
    ("words", "template", "said"),
    [
        ({"x": "a", "y": "b"}, "It is <extra_id_0>", "accepted is one with {text} and <extra_id_0> once each"),
        ({"x": "a", "y": "b"}, "{text}", "accepted is one with {text} and <extra_id_0> once each"),
        ({"x": "a", "y": "b"}, "{text} <extra_id_0> <extra_id_1>", "accepted is one with"),
        ({"x": "a"}, "{text} <extra_id_0>", "the class 'y' has no label word"),
        ({"x": "a", "y": "a"}, "{text} <extra_id_0>", "two classes share a label word"),
        ({"x": "a", "y": "b"}, "{text} a b c d <extra_id_0>", "the template alone takes the 5 tokens"),
    ],
)
def test_clozes_of_rows_that_are_refused(words, template, said):
    with pytest.raises(InputError, match=said):
        as_clozes(Labelled(("t", "u"), ("x", "y")), words, template, max_length=5)


def test_a_text_with_a_sentinel_is_refused():
    with pytest.raises(InputError, match="holds a sentinel"):
        as_clozes(Labelled(("t <extra_id_1>",), ("x",)), {"x": "a"})


def test_clusters_are_found_by_direction_and_centroids_stand_where_the_vectors_do():
    rng = np.random.default_rng(0)
    means = np.eye(3, 8, dtype=np.float32) * 4
    own = np.repeat(np.arange(3), 20)
    lengths = rng.uniform(0.5, 1.0, (60, 1)).astype(np.float32)
    vectors = torch.from_numpy(lengths * (means[own] + rng.normal(size=(60, 8)).astype(np.float32) * 0.1))
    documents = [[f"sentence {i} ." for i in range(k, k + 4)] for k in range(0, 60, 4)]
    corpus = cluster(documents, vectors, 3)
    labels = np.array([c for label in corpus.clusters for c in label])
    for k in range(3):
        assert len(set(labels[own == k])) == 1
        assert np.allclose(corpus.centroids[labels[own == k][0]], vectors[own == k].mean(0), atol=1e-5)
    assert cluster(documents, vectors, 3).clusters == corpus.clusters


@pytest.mark.parametrize(("many", "clusters"), [(3, 2), (4, 0), (4, 5)])
def test_clusters_of_other_numbers_are_refused(many, clusters):
    with pytest.raises(InputError, match=f"{many} vectors and {clusters} clusters were given for 4 texts"):
        cluster([["a .", "b ."], ["c .", "d ."]], torch.zeros(many, 2), clusters)
