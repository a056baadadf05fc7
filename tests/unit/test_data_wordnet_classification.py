"""Few-shot tasks of WordNet's glosses: their domains, which side a sentence stands on, and unlabelled documents."""

import itertools
from collections import Counter

import numpy as np
import pytest

from vlws.data.cloze import BLANK, Wording
from vlws.data.meta_tasks import FORMATS, Corpus, meta_task
from vlws.data.wordnet.classification import (
    CHOICE,
    JOIN,
    LETTERS,
    MAX_WORDS,
    MIN_WORDS,
    NAMED,
    PAIR,
    QUESTIONS,
    TASKS,
    TOPICS,
    YES_NO,
    Pool,
    documents,
    draw,
    few_shot,
    near,
    parents,
    sentence,
    sides,
    topic,
)
from vlws.data.wordnet.synsets import synsets
from vlws.errors import InputError

SPLITS = ("train", "dev", "test", "shifted")


@pytest.fixture(scope="module")
def synset_of() -> dict[str, int]:
    return {said: i for some in sides().values() for i, said in some.items()}


def sentences(task, split) -> set[str]:
    """Those of a split that are glosses; the names of topics are no sentences."""
    return {said for one in getattr(task, split) for text in one.texts for said in text.split(JOIN)} - set(NAMED)


# --- sides ------------------------------------------------------------------------------------------------------------


def test_no_sentence_stands_on_two_sides(synset_of):
    assert len(synset_of) == sum(map(len, sides().values()))
    for said, i in list(synset_of.items())[::50]:
        assert said == sentence(synsets()[i].gloss)
        assert MIN_WORDS <= len(said.split()) <= MAX_WORDS


def test_sisters_stand_on_one_side():
    of = {}
    for side, some in sides().items():
        for i in some:
            assert of.setdefault(parents()[i], side) == side


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a small dog", "a small dog"),
        ("(nautical) of a ship; stern", "of a ship"),
        ("having (or seeming to have) wings", "having wings"),
        (" ".join("abcdefghijkl"), "a b c d e f g h i j"),
        ("the thing (", "the thing"),
    ],
)
def test_a_sentence_is_the_first_clause_without_brackets(text, said):
    assert sentence(text) == said


def test_a_topic_has_its_lexicographer_files():
    found = Counter(topic(one) for one in synsets())
    assert set(found) == {*TOPICS, None}
    assert {topic(one) for one in synsets() if one.lexicographer == "noun.plant"} == {"living"}
    assert {topic(one) for one in synsets() if one.part == "v"} == {"verb"}


# --- few-shot tasks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", [0, 1000])
def test_no_sentence_stands_in_two_splits_and_classes_are_balanced(name, seed, synset_of):
    task = few_shot(name, seed=seed)
    many = len(task.words)
    assert [len(getattr(task, split)) for split in SPLITS] == [16 * many, 16 * many, 200, 200]
    used = [sentences(task, split) for split in SPLITS]
    assert len(set.union(*used)) == sum(map(len, used))
    assert all(synset_of[said] in sides()["tasks"] for some in used for said in some)
    for split in SPLITS:
        counts = Counter(one.label for one in getattr(task, split))
        assert set(counts) == set(task.words)
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_told_by_its_seed_and_its_domains_share_no_file(name, synset_of):
    one, again, other = few_shot(name), few_shot(name), few_shot(name, seed=1)
    assert one == again
    assert one.train != other.train

    def files(split):
        found = [synsets()[synset_of[said]] for said in sentences(one, split)]
        return {(s.lexicographer, any(symbol == "@i" for symbol, _ in s.relations)) for s in found}

    assert not files("train") & files("shifted")


@pytest.mark.parametrize("name", TASKS)
def test_clozes_have_one_blank_and_the_words_of_the_task(name):
    task = few_shot(name, k=2, test=12)
    for cloze, one in zip(task.clozes("test"), task.test, strict=True):
        assert cloze.text.count(BLANK) == 1
        assert "<extra_id_1>" not in cloze.text
        assert "{" not in cloze.text
        assert (cloze.label, cloze.words) == (one.label, task.words)
    assert [c.text for c in task.clozes("test", "what ?")] == [f"what ? {c.text}" for c in task.clozes("test")]


def test_templates_are_those_of_the_meta_tasks():
    assert PAIR.format("a", "b") == Wording().pair("a", "b")
    assert CHOICE.format("x", *"abcd") == Wording().choice("x", "abcd")


def test_answers_are_right(synset_of):
    def of(text):  # the synsets of a text
        return [synsets()[synset_of[said]] for said in text.split(JOIN)]

    def topics(text):
        (found,) = {topic(one) for one in of(text)}
        return found

    for one in few_shot("category").test:
        assert topics(one.texts[0]) == one.label
    for one in few_shot("concrete").shifted:
        assert {part.concrete for part in of(one.texts[0])} == {one.label == "yes"}
    for one in few_shot("topic").shifted:
        first, second = map(topics, one.texts)
        assert (first == second) == (one.label == "yes")
    pool, rng = Pool(sides()["language"]), np.random.default_rng(0)
    for one in (draw("kind", pool, rng, label) for label in YES_NO * 50):
        first, second = ({parents()[synset_of[said]] for said in text.split(JOIN)} for text in one.texts)
        assert len(first) == len(second) == 1
        assert (first == second) == (one.label == "yes")
        assert len({said for text in one.texts for said in text.split(JOIN)}) == 4
    for one in (draw("option", pool, rng, label) for label in LETTERS * 25):
        first, *options = map(topics, one.texts)
        assert [option == first for option in options] == [letter == one.label for letter in LETTERS]
        assert len(set(options)) == 4
    for one in few_shot("named").test:
        assert one.texts[1 + LETTERS.index(one.label)] == topics(one.texts[0])
        assert len(set(one.texts[1:])) == 4


def test_a_text_is_of_sisters_where_there_are(synset_of):
    pool, rng = Pool(sides()["tasks"]), np.random.default_rng(0)
    alone = 0
    for _ in range(300):
        (text,) = pool.single(rng, "living", topic).texts
        one, other = (synset_of[said] for said in text.split(JOIN))
        assert one != other
        if parents()[one] != parents()[other]:
            alone += 1
            assert not [k for k in pool.families[parents()[one]] if k != one and topic(synsets()[k]) == "living"]
    assert alone < 100


def test_what_cannot_be_made_is_refused():
    with pytest.raises(InputError, match="there is no task 'nli'; the tasks are category, part"):
        few_shot("nli")
    with pytest.raises(InputError, match="k=0 and test=200 were given; accepted are 1 or more"):
        few_shot("topic", k=0)
    with pytest.raises(InputError, match="category has too few sentences for 60000 examples in a split"):
        few_shot("category", k=10_000)


def test_there_are_six_tasks_or_more_and_each_has_a_shifted_domain():
    assert len(TASKS) >= 6
    assert all(not set(q.inside) & set(q.outside) for q in QUESTIONS.values())


# --- documents --------------------------------------------------------------------------------------------------------


def test_documents_share_no_sentence_with_the_tasks():
    made = documents()
    told = [said for document in made for text in document for said in text.split(JOIN)]
    assert len(made) > 600
    assert len(told) == len(set(told))
    assert not set(told) & set(sides()["tasks"].values())
    assert documents(seed=1) != made


def test_neighbours_in_a_document_are_related(synset_of):
    linked = of_far = far = 0
    for document in documents(300):
        at = [synset_of.get(said) for text in document for said in text.split(JOIN)]
        for i, j in itertools.pairwise(at):
            if i is not None and j is not None:
                assert j in near(i) or parents()[i] == parents()[j]
                linked += 1
        for i, j in zip(at, at[2:], strict=False):
            if i is not None and j is not None:
                far, of_far = far + 1, of_far + (j in near(i))
    assert linked > 300
    assert of_far < 0.5 * far


def test_documents_make_meta_tasks_of_all_formats():
    made, rng = documents(), np.random.default_rng(0)
    corpus = Corpus(made, rng.integers(0, 12, len(made)).tolist(), rng.normal(size=(12, 8)))
    for format in FORMATS:
        assert len(meta_task(format, corpus, rng).query) == 16


def test_a_pool_draws_no_sentence_twice_in_an_example():
    pool, rng = Pool(sides()["tasks"]), np.random.default_rng(0)
    for _ in range(200):
        for one in (pool.topic(rng, "yes"), pool.kind(rng, "yes"), pool.option(rng, "B")):
            assert len(set(one.texts)) == len(one.texts)
