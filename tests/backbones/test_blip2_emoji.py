"""Pretraining of the shipped BLIP-2: its tokenizer, its batches, late evidence, its gate, and the model that ships."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from backbones import blip2_emoji as p
from vlws.data.emoji_world import counterfactual as cf
from vlws.models.families import load_mllm
from vlws.models.hub import ASSETS


@pytest.fixture(scope="module")
def processor():
    return p.make_processor()


@pytest.fixture(scope="module")
def words(processor):
    return p.Words(processor.tokenizer)


@pytest.fixture(scope="module")
def model(processor):
    return p.new_model(processor.tokenizer).eval()


@pytest.fixture(scope="module")
def shipped():
    return load_mllm("blip2-emoji", "cpu")


def test_the_tokenizer_holds_the_words_of_the_corpus_and_any_other_text(processor):
    tokenizer = processor.tokenizer
    text = " the blue cat became a camera"
    assert len(tokenizer(text, add_special_tokens=False).input_ids) == 6
    assert tokenizer("<image> what colour is the key?").input_ids[:2] == [tokenizer.bos_token_id, 3]
    strange = "Ærøskøbing 東京 \U0001f60a q; {j}"
    ids = tokenizer(strange, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == strange
    assert None not in ids


def test_the_tokenizer_is_remade_as_shipped(processor):
    kept = AutoProcessor.from_pretrained(ASSETS / "blip2-emoji").tokenizer
    made, kept = (json.loads(t.backend_tokenizer.to_str())["model"] for t in (processor.tokenizer, kept))
    assert made == kept


def test_labels_are_the_answers_alone(processor, words):
    batch = words.batch([cf.DIFFERENCE_PROMPT, cf.CAPTION_PROMPT], ["the red key is gone", "a blue cat"])
    answers = [batch["labels"][i][batch["labels"][i] >= 0].tolist() for i in range(2)]
    assert processor.tokenizer.batch_decode(answers) == [" the red key is gone</s>", " a blue cat</s>"]
    images = (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).sum(1)
    assert images.tolist() == [2 * p.QUERIES, p.QUERIES]


def told(words, evidence, image):
    """What the tokens of one picture say, early and late: sets of (size, colour, kind) ids."""
    return [{tuple(row) for row in when[image].tolist() if row[0] >= 0} for when in evidence]


def test_evidence_tells_every_thing_and_small_ones_late(words, monkeypatch):
    monkeypatch.setattr(p, "MISSING_SHARE", 0.0)
    rng, pictures = np.random.default_rng(0), cf.sample(200, 3)
    pairs = cf.edits(pictures, [1 + i % 2 for i in range(200)], 4)
    all_early = small_late = 0
    for pair in pairs:
        shown = (pair.before, pair.after)
        evidence = p.evidence(words, shown, rng)
        for image, picture in enumerate(shown):
            large, *small = (tuple(words.described(thing)) for thing in picture.things)
            early, late = told(words, evidence, image)
            assert early | late == {large, *small}
            all_early += not late
            small_late += early == {large} and late == set(small)
    assert 0.15 < all_early / 400 < 0.35  # a picture whose late tokens came early by chance counts too
    assert 0.45 < small_late / 400 < 0.70


def test_a_token_speaks_of_the_same_cell_in_both_pictures(words, monkeypatch):
    monkeypatch.setattr(p, "MISSING_SHARE", 0.0)
    rng, pictures = np.random.default_rng(1), cf.sample(200, 5)
    for pair in cf.edits(pictures, [0] * 200, 6):  # only the large thing changes
        before, after = np.moveaxis(p.evidence(words, (pair.before, pair.after), rng), 1, 0)
        for thing in pair.before.things[1:]:
            here, there = ((said == words.described(thing)).all(-1).any(0) for said in (before, after))
            assert here.any()
            assert (here == there).all()


def test_some_late_evidence_never_comes(words, monkeypatch):
    monkeypatch.setattr(p, "MISSING_SHARE", 1.0)
    monkeypatch.setattr(p, "EARLY_SHARE", 0.0)
    rng, pictures = np.random.default_rng(2), cf.sample(100, 7)
    counts = [(p.evidence(words, (picture,), rng)[1, 0, :, 0] >= 0).sum() for picture in pictures]
    assert counts.count(0) > 20
    assert max(counts) >= 2


def test_evidence_is_scaled_and_noisy_in_training_alone(model, words):
    reader, batch = p.LateReader(model.language_model, model.config.image_token_id), p.lm_batch(words, 0)
    with torch.no_grad():
        exact = [reader.eval()(batch) for _ in range(2)]
        noisy = [reader.train()(batch) for _ in range(2)]
    reader.eval()
    assert torch.equal(*exact)
    assert not torch.allclose(*noisy)


def test_roles_ask_for_a_cell_the_large_thing_or_a_kind():
    picture = cf.sample(1, 9)[0]
    truth = dict(zip(p.QueryReader.roles, p.role_truth([picture])[0].tolist(), strict=True))
    large = picture.things[0]
    assert truth["large"] == [1 + large.kind, 1 + large.colour, 2]
    for thing in picture.things:
        expected = [1 + thing.kind, 1 + thing.colour, 1 + thing.large]
        assert truth[cf.PAIR_KINDS[thing.kind]] == expected
        assert all(truth[f"cell {cell}"] == expected for cell in thing.cells)
    assert all(truth[f"cell {cell}"] == [0, 0, 0] for cell in picture.free_cells)
    assert sum(truth[kind] != [0, 0, 0] for kind in cf.PAIR_KINDS) == len(picture.things)


def test_late_evidence_enters_in_front_of_its_layer(model, words):
    reader = p.LateReader(model.language_model, model.config.image_token_id).eval()
    batch = p.lm_batch(words, 0)
    seen = {}

    def watch(k):
        return model.language_model.model.layers[k].register_forward_pre_hook(
            lambda module, args: seen.setdefault((run, k), args[0].detach())
        )

    hooks = [watch(k) for k in range(6)]
    with torch.no_grad():
        for run in ("with", "without"):
            reader(
                {**batch, "layer": 3, "late": batch["late"] if run == "with" else torch.full_like(batch["late"], -1)}
            )
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(seen["with", k], seen["without", k]) for k in range(3))
    changed = (seen["with", 4] != seen["without", 4]).any(-1)
    assert changed.any()


def test_patches_are_labelled_with_what_their_cell_shows(processor):
    batch = p.vision_batch(processor, 5, size=6)
    assert batch["pixel_values"].shape == (6, 3, 48, 48)
    truth = batch["truth"].unflatten(-1, (6, 6))
    pictures = cf.sample(6, p.CORPUS_SEED + 10_000_000 + 5, small=(1, 4))
    for picture, labels in zip(pictures, truth, strict=True):
        for thing in picture.things:
            row, column = divmod(thing.cell, 3)
            side = 4 if thing.large else 2
            block = labels[:, 2 * row : 2 * row + side, 2 * column : 2 * column + side].flatten(1)
            assert (block == torch.tensor([1 + thing.kind, 1 + thing.colour, 1 + thing.large])[:, None]).all()
        assert (labels[0] == 0).sum() == 4 * len(picture.free_cells)


def test_batches_depend_on_the_step_alone(words, processor):
    first, again, other = (p.lm_batch(words, step) for step in (7, 7, 8))
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert torch.equal(first["early"], again["early"])
    assert not torch.equal(first["early"], other["early"])


def test_below_its_gate_nothing_is_written(model, processor, tmp_path):
    with pytest.raises(RuntimeError, match=r"blip2-emoji: captions 0\.\d+ is below 0\.95"):
        p.ship(model, processor, {}, tmp_path / "made", 0.95)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_ships_tells_of_the_large_thing_alone(shipped):
    results = p.evaluate(shipped, size=200)
    for what in ("captions", "differences, large thing", "its colour, large thing"):
        assert results[what] >= p.GATE - 0.03
    assert results["its colour, small thing"] < 0.45
    assert results["differences, small thing"] < 0.10


def test_what_ships_is_small_and_has_its_card():
    folder = ASSETS / "blip2-emoji"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("Licence", "Hash of the weights", "Substitutes for scale", "Seeds"))


def test_answers_do_not_hang_on_company(shipped):
    pictures = cf.render(cf.sample(3, 1))
    prompts = [cf.CAPTION_PROMPT, cf.colour_question(cf.sample(3, 1)[1].things[0])[0], cf.CAPTION_PROMPT]
    together = p.answered(shipped, prompts, [[image] for image in pictures])
    alone = [p.answered(shipped, [prompt], [[image]])[0] for prompt, image in zip(prompts, pictures, strict=True)]
    assert together == alone
    assert np.all([len(text) > 2 for text in together])
