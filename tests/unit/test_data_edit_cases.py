"""Edits of a world of facts: who is edited, what is asked in which words, and that what must stay is known."""

from dataclasses import replace

import numpy as np
import pytest

from vlws.data.emoji_world import edit_cases, facts
from vlws.data.emoji_world.facts import LAND_RELATIONS, QUESTIONS, RELATIONS, REPHRASED, TAUGHT
from vlws.errors import InputError

WORLD = facts.make_world(0)
ASKED = {facts.question(relation, form): (relation, form) for relation in RELATIONS for form in (*TAUGHT, *REPHRASED)}
LANDS = {
    facts.land_question(land, relation, form): (land, relation, form)
    for land in facts.LANDS
    for relation in LAND_RELATIONS
    for form in (*TAUGHT, *REPHRASED)
}


@pytest.fixture
def views(monkeypatch):
    """Pictures that hold nothing but the number of their thing; the seeds that they were asked with."""
    seeds = []

    def render(world, things, seed, size=32):
        seeds.append(seed)
        return np.array(things)[:, None, None, None].repeat(3, axis=3)

    monkeypatch.setattr(facts, "render", render)
    return seeds


def key(question) -> tuple[int, str]:
    return int(question.images[0][0, 0, 0]), ASKED[question.text][0]


def form(question) -> int:
    return (ASKED | LANDS)[question.text][-1]


def test_every_question_has_its_own_words():
    assert len(ASKED) == len(RELATIONS) * len(facts.FORMS)
    assert not set(TAUGHT) & set(REPHRASED)


@pytest.mark.parametrize("captions", [False, True], ids=["questions", "captions"])
@pytest.mark.parametrize("role", facts.ROLES)
def test_cases_ask_what_was_withheld_and_keep_what_is_known(views, role, captions):
    found = edit_cases.cases(WORLD, role, 0, captions=captions)
    edited = [key(case.edit) for case in found]
    assert sorted(edited) == sorted(WORLD.unknown(role, captions=captions))
    for case, (thing, relation) in zip(found, edited, strict=True):
        assert WORLD.roles[thing] == role
        assert case.edit.answer == WORLD.answers[thing, relation]
        assert key(case.text_generality) == key(case.image_generality) == (thing, relation)
        assert case.text_generality.images[0] is not case.image_generality.images[0]
        assert case.image_generality.text == case.edit.text
        assert form(case.edit) in TAUGHT
        assert form(case.text_generality) in REPHRASED
        far, (twin, same) = key(case.image_locality), map(key, case.near)
        assert far[0] != thing
        assert far[1] != relation
        assert twin[0] != thing
        assert twin[1] == relation
        assert same[0] == thing
        assert same[1] != relation
        for question in (case.image_locality, *case.near):
            assert key(question) not in WORLD.withheld
            assert question.answer == WORLD.answers[key(question)]
            assert form(question) in TAUGHT
        land, matter, words = LANDS[case.text_locality.text]
        assert case.text_locality.answer == WORLD.lands[land, matter]
        assert words in TAUGHT
        assert not case.text_locality.images


def test_roles_share_no_thing(views):
    things = [{key(case.edit)[0] for case in edit_cases.cases(WORLD, role, 0)} for role in facts.ROLES]
    assert sum(map(len, things)) == len(set.union(*things)) == len(WORLD)


def test_text_generality_shows_the_picture_of_the_edit():
    case = edit_cases.cases(WORLD, "dev", 0)[0]
    assert np.array_equal(case.edit.images[0], case.text_generality.images[0])
    assert not np.array_equal(case.edit.images[0], case.image_generality.images[0])


def test_another_draw_shows_other_pictures(views):
    first = edit_cases.cases(WORLD, "test", 0)
    again = edit_cases.cases(WORLD, "test", 0)
    other = edit_cases.cases(WORLD, "test", 1)
    n = len(first)
    assert views[:n] == views[n : 2 * n]
    assert not set(views[:n]) & set(views[2 * n :])
    assert [case.edit.text for case in first] == [case.edit.text for case in again]
    assert [case.edit.text for case in first] != [case.edit.text for case in other]


def test_imagined_answers_are_wrong_and_of_the_role(views):
    found = edit_cases.imagined(WORLD, "training", 50, 0)
    assert len(found) == 50
    for case in found:
        thing, relation = key(case.edit)
        assert WORLD.roles[thing] == "training"
        assert relation in QUESTIONS
        assert case.edit.answer != WORLD.answers[thing, relation]
        assert case.edit.answer == case.text_generality.answer == case.image_generality.answer
        assert all(question.answer == WORLD.answers[key(question)] for question in (case.image_locality, *case.near))


def test_mistakes_are_what_is_answered_wrongly(views):
    found = edit_cases.cases(WORLD, "dev", 0)[:3]
    said = [f" {found[0].edit.answer.replace(' ', '  ')}", "", "oslo is it"]
    assert edit_cases.mistakes(found, said) == [
        replace(found[1], predicted=""),
        replace(found[2], predicted="oslo is it"),
    ]


def test_a_negative_seed_of_a_world_is_refused():
    with pytest.raises(InputError, match="seed=-1 was given; accepted is 0 or more"):
        facts.make_world(-1)
