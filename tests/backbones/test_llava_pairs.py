"""llava-pairs: whose language model it has, what is trained, its gate, and that what ships is what its card says."""

import pytest
import torch

from backbones import blip2_emoji, llava_pairs
from vlws.data.emoji_world import counterfactual as cf
from vlws.models.families import load_mllm
from vlws.models.hub import ASSETS, weights_hash


@pytest.fixture(scope="module")
def shipped():
    return load_mllm("llava-pairs", "cpu")


def test_its_language_model_is_that_of_blip2_emoji(shipped):
    given = load_mllm("blip2-emoji", "cpu").model.language_model.state_dict()
    own = {f"model.{name}": value for name, value in shipped.model.model.language_model.state_dict().items()}
    own["lm_head.weight"] = shipped.model.lm_head.weight
    assert own.keys() == given.keys()
    assert all(torch.equal(own[name], value) for name, value in given.items())


def test_a_picture_is_one_token_a_patch(shipped):
    words = blip2_emoji.Words(shipped.processor.tokenizer, llava_pairs.PATCHES)
    batch = words.batch([cf.DIFFERENCE_PROMPT, cf.CAPTION_PROMPT], ["the red key is gone", "a blue cat"])
    images = (batch["input_ids"] == shipped.model.config.image_token_id).sum(1)
    assert images.tolist() == [2 * llava_pairs.PATCHES, llava_pairs.PATCHES] == [72, 36]


def test_only_the_projector_is_trained_and_only_on_the_large_thing(tmp_path, monkeypatch):
    adapter, told = llava_pairs.make_model(), []
    before = {name: value.clone() for name, value in adapter.model.state_dict().items()}
    monkeypatch.setattr(blip2_emoji, "POOL", 128)
    about_large = blip2_emoji.about_large

    def listened(words, pairs, features, at):
        told.extend(pairs)
        return about_large(words, pairs, features, at)

    monkeypatch.setattr(blip2_emoji, "about_large", listened)
    llava_pairs.train_projector(adapter, tmp_path, steps=2)
    changed = {name for name, value in adapter.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".multi_modal_projector." in name for name in changed)
    assert all((pair.before_thing or pair.after_thing).large for pair in told)


def test_below_its_gate_nothing_is_written(tmp_path):
    with pytest.raises(RuntimeError, match=r"llava-pairs: captions 0\.\d+ is below 0\.95"):
        llava_pairs.ship(llava_pairs.make_model(), {}, tmp_path / "made", 0.95)
    assert not list(tmp_path.iterdir())


def test_what_ships_tells_of_the_large_thing_alone(shipped):
    results = blip2_emoji.evaluate(shipped, size=60)
    assert all(results[what] >= blip2_emoji.GATE - 0.03 for what in blip2_emoji.GATED)
    assert results["its colour, small thing"] < 0.45
    assert results["differences, small thing"] < 0.10


def test_what_ships_is_small_and_has_its_card(shipped):
    folder = ASSETS / "llava-pairs"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("Licence", "by design", "Seeds", weights_hash(shipped.model)))
