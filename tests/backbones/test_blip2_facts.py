"""blip2-facts: what it is taught, what is kept from it, how it reads states, and that its card speaks of what ships."""

from functools import cache

import numpy as np
import pytest
import torch

from backbones import blip2_facts as recipe
from vlws.data.emoji_world import facts
from vlws.data.emoji_world.scenes import CORPUS_SEED
from vlws.models.families import load_mllm
from vlws.models.hub import ASSETS, weights_hash

WORLD = facts.make_world(0)


@cache
def shipped():
    return load_mllm("blip2-facts", "cpu")


@pytest.fixture(scope="module")
def lessons():
    adapter = recipe.make_model()
    return recipe.Lessons(WORLD, adapter, recipe.look(adapter, WORLD, CORPUS_SEED, 1))


def test_every_word_of_the_world_is_one_token_and_any_text_tokenizes():
    tokenizer = recipe.make_processor().tokenizer
    words = {*facts.LANDS, *facts.NAMES, *facts.CITIES, *facts.MONTHS, *facts.TITLES, *facts.WARES, *facts.DEEDS}
    assert [w for w in words if len(tokenizer(f" {w}", add_special_tokens=False).input_ids) != 1] == []
    for text in (" what now? a red cat", " Ärger über 7 Öfen — 東京, שלום 🦜!"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("stage", recipe.STEPS)
def test_what_is_withheld_is_never_told_as_it_is(lessons, stage, monkeypatch):
    """A withheld fact may be asked for only where a new answer was told before, in the text or as states."""
    rows = []
    monkeypatch.setattr(recipe.Lessons, "encode", lambda self, given, rng: rows.extend(given))
    for step in range(40):
        recipe.lesson(lessons, stage, step)
    assert len(rows) > 1000
    truths = {(thing, relation): WORLD.answers[thing, relation] for thing, relation in WORLD.withheld}
    asked = {facts.question(r, form): r for r in facts.RELATIONS for form in range(len(facts.FORMS))}
    for row in rows:
        relation = asked.get(row.text)
        if row.thing is not None and (row.thing, relation) in truths and row.answer == truths[row.thing, relation]:
            assert stage != "facts", row  # later by chance, as the answer of a new fact


def test_forms_of_generality_are_never_taught(lessons):
    rng = np.random.default_rng(0)
    held = {facts.question(r, form) for r in facts.RELATIONS for form in facts.REPHRASED}
    rows = [row for _ in range(300) for row in (*lessons.plain(rng, 3), lessons.in_context(rng), *lessons.latent(rng))]
    assert not any(
        row.text.endswith(tuple(held)) for row in rows if row.thing is not None and "new fact" not in row.text
    )


def test_latent_episodes_without_states_are_plain_questions(lessons):
    _, episodes = recipe.lesson(lessons, "memory", 1)
    alone = recipe.Episodes(episodes.facts, episodes.questions, torch.zeros_like(episodes.seen))
    with torch.no_grad():
        found = recipe.latent_loss(lessons.adapter, alone)
        plain = lessons.adapter.run(episodes.questions).loss
        read = recipe.latent_loss(lessons.adapter, episodes)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)
    assert abs(read - plain) > 1e-5


def test_a_batch_is_a_function_of_its_step_alone(lessons):
    first, second = (recipe.lesson(lessons, "memory", 3)[0].input_ids for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[:, :8], recipe.lesson(lessons, "memory", 5)[0].input_ids[:, :8])


def test_the_card_speaks_of_the_weights_that_ship():
    text = (ASSETS / "blip2-facts" / "README.md").read_text()
    assert weights_hash(shipped().model) in text
    assert f"{recipe.STEPS['again']:,} steps" in text


def test_what_ships_passes_its_gates():
    results = recipe.evaluate(shipped(), WORLD)
    assert {name: results[name] for name, gate in recipe.GATES.items() if results[name] < gate} == {}
