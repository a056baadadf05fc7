"""llava-emoji: what it is trained on, and that what ships is what its card says."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange

from backbones import llava_emoji as pretrain
from vlws.data.emoji_world.questions import KEEPERS
from vlws.data.emoji_world.scenes import COLOURS, CORPUS_SEED
from vlws.data.emoji_world.story_pictures import SIDES, STORY_KINDS, STORY_WORDS
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


def test_the_corpus_begins_without_stories():
    reader = Reader(shipped())
    early, late = (pretrain.corpus_rows(reader, step) for step in (0, pretrain.FIRST_STEPS))
    assert sum(len(rows.spans) for rows in early) == sum(len(rows.spans) for rows in late) == pretrain.BATCH
    longest = [max(len(s) for rows in groups for s in rows.spans) for groups in (early, late)]
    assert longest[0] <= 7 < longest[1] <= 10
    assert CORPUS_SEED >= 1_000_000


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
