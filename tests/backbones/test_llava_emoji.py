"""llava-emoji: what it is trained on, and that what ships is what its card says."""

import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange

from backbones import llava_emoji as pretrain
from vlws.data.documents import Document
from vlws.data.emoji_world.questions import KEEPERS
from vlws.data.emoji_world.scenes import COLOURS, CORPUS_SEED
from vlws.data.emoji_world.story_pictures import SIDES, STORY_KINDS, STORY_WORDS, Album, Thing, View, question
from vlws.models.clip import load_clip
from vlws.models.families import load_mllm
from vlws.models.hub import ASSETS, weights_hash
from vlws.models.interleave import Reader


@cache
def shipped():
    return load_mllm("llava-emoji", "cpu")


def test_every_word_of_the_corpus_is_one_token_and_any_text_tokenizes():
    tokenizer = pretrain.make_processor().tokenizer
    words = (
        *STORY_WORDS,
        *COLOURS,
        *STORY_KINDS,
        *KEEPERS,
        *SIDES,
        "yes",
        "no",
    )
    assert all(len(tokenizer(f" {w}", add_special_tokens=False).input_ids) == 1 for w in words)
    for text in (" what now? a red cat", " Ärger über 7 Öfen — 東京, שלום 🦜!"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_tokenizer_that_ships_is_the_one_that_is_made():
    made, kept = pretrain.make_processor().tokenizer, shipped().tokenizer
    assert made.get_vocab() == kept.get_vocab()


def test_the_tower_is_that_of_clip_emoji():
    own = shipped().model.model.vision_tower.state_dict()
    clip = load_clip("clip-emoji", "cpu").model.vision_model.state_dict()
    clip = {name.removeprefix("vision_model."): value for name, value in clip.items()}
    assert own
    assert all(torch.equal(value, clip[name.removeprefix("vision_model.")]) for name, value in own.items())


def test_alignment_tells_each_patch_what_its_cell_shows():
    views = []
    reader = SimpleNamespace(features=lambda images: views.append(images))
    _, truth = pretrain.align_batch(reader, 3)
    assert views[0].shape == (pretrain.ALIGN_BATCH, 32, 32, 3)
    grid = rearrange(truth, "n (h w) two -> n h w two", h=4)
    quarter = rearrange(grid, "n (h a) (w b) two -> n h w (a b) two", a=2, b=2)
    assert (quarter == quarter[:, :, :, :1]).all()  # all four patches of a cell show the same
    things = (quarter[:, :, :, 0, 0] >= 0).sum((1, 2))
    assert set(things.tolist()) == {1, 2}


WORDS = {shipped().tokenizer(f" {word}", add_special_tokens=False).input_ids[0]: word for word in STORY_WORDS}


def test_the_corpus_begins_without_stories():
    reader = Reader(shipped())
    early, late = (pretrain.corpus_lessons(reader, WORDS, step) for step in (0, pretrain.FIRST_STEPS))
    assert [sum(len(part.rows.spans) for part in parts) for parts in (early, late)] == [pretrain.BATCH] * 2
    longest = [max(len(s) for part in parts for s in part.rows.spans) for parts in (early, late)]
    assert longest[0] <= 7 < longest[1] <= 10
    assert CORPUS_SEED >= 1_000_000


def test_the_patches_of_the_four_cells_are_all_patches():
    found = [pretrain.patches(cell) for cell in range(4)]
    assert found[1] == [2, 3, 6, 7]  # the upper right of 4 x 4
    assert sorted(patch for patches in found for patch in patches) == list(range(16))


def test_a_word_looks_at_its_thing_and_a_question_at_its_word():
    album = Album(seed=0)
    shown = album.add(View((Thing("cat", "red"), Thing("rose", "blue")), cells=(0, 1)))
    slices = (shown, question("is there a rose?"))
    documents = [Document(slices, answer="yes"), Document((shown, question("is there a lion?")), answer="no")]
    reader = Reader(shipped())
    rows = reader.rows(documents, reader.features(album.render()))
    made = pretrain.lesson(rows, documents, album, WORDS)
    ids, start = rows.batch.input_ids, int(rows.batch.image_spans[0, 1])
    assert [WORDS[int(ids[row, at])] for row, at in made.words.tolist()] == ["rose", "lion"]
    assert torch.nonzero(made.shown[0])[:, 0].tolist() == [start + patch for patch in (2, 3, 6, 7)]
    assert torch.nonzero(made.shown[1])[:, 0].tolist() == [0]  # what is not there: the start token
    assert [reader.adapter.tokenizer.decode(ids[row, at]) for row, at in made.ends.tolist()] == ["?", "?"]
    assert (made.asked.long().argmax(1) == made.words[:, 1]).all()


def test_the_loss_on_attention_is_least_where_it_looks_right():
    weights = torch.zeros(1, 3, 3)
    weights[0, 2] = torch.tensor([0.2, 0.5, 0.3])
    at = torch.tensor([[0, 2]])
    both, one = (torch.tensor([inside]) for inside in ([False, True, True], [False, True, False]))
    losses = [pretrain.grounding_loss(weights, at, inside).item() for inside in (both, one)]
    assert losses == pytest.approx([-math.log(0.8), -math.log(0.5)], abs=1e-4)


def test_the_gates_hold_and_the_card_names_the_weights():
    results = pretrain.evaluate(shipped(), n=200)
    for name, gate in pretrain.GATES.items():
        assert results[name] > gate - 0.07  # on fewer documents than the gates
    card = (ASSETS / "llava-emoji" / "README.md").read_text(encoding="utf-8")
    assert weights_hash(shipped().model.half().float()) in card
    assert f"{pretrain.STEPS:,} steps of {pretrain.BATCH}" in card


def test_a_model_below_its_gate_is_not_shipped(tmp_path):
    adapter = pretrain.make_model()
    with pytest.raises(RuntimeError, match="is below"):
        pretrain.ship(adapter, [{"step": 1, "loss": 1.0}], tmp_path / "out", pretrain.GATES)
    assert not (tmp_path / "out").exists()
