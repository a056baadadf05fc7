"""The picture tokenizer and stage 0 of the model that draws, as they ship; and what their gates can see."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from backbones import morph_emoji, vq_emoji
from vlws.data.emoji_world import album, drawings
from vlws.data.emoji_world.drawing_tasks import DRAW
from vlws.methods.morph_tokens import MorphTokens
from vlws.models.quantize import usage
from vlws.models.vq import from_pixels, load_vq


@pytest.fixture(scope="module")
def model():
    return MorphTokens.from_pretrained("morph-emoji-stage0", "cpu")


def test_the_tokenizer_keeps_its_gate():
    assert vq_emoji.evaluate(load_vq("vq-emoji", "cpu"))["SSIM, held-out drawings"] >= vq_emoji.GATE


def test_stage_0_holds_the_same_tokenizer(model):
    pixels = from_pixels(drawings.render(drawings.everything()[:40]))
    assert (model.vq.encode(pixels) == load_vq("vq-emoji", "cpu").encode(pixels)).all()


def test_codes_tell_what_drawings_mean_and_none_is_dead(model):
    splits, labels = drawings.splits(), album.labels()
    ids = model.read(album.all_drawings()).ids
    codes = model.code_rows()[ids].detach().flatten(1).numpy()
    for name in drawings.MEANING:
        probe = LogisticRegression(max_iter=60, C=0.1).fit(codes[splits.train], labels[name][splits.train])
        assert probe.score(codes[splits.test], labels[name][splits.test]) >= morph_emoji.GATES[f"stage 0, {name}"]
    assert usage(ids, len(model.encoder.codebook)).dead == ()


def test_the_gate_of_drawings_sees_the_thing(model):
    """Another thing changes tokens of its cell and no others, which are three in four: a mean over all hides it."""
    rng = np.random.default_rng(0)
    for at in rng.integers(5760, size=10):
        drawing = drawings.everything()[at]
        other = drawings.changed(drawing, rng, "thing")
        before, after = model.vq.encode(from_pixels(drawings.render([drawing, other])))
        cell = morph_emoji.cell_tokens(int(at))
        assert cell.sum() == 16
        assert torch.equal(before[~cell], after[~cell])
        assert (before[cell] != after[cell]).any()
    assert {f"tokens of the thing, {kind}" for kind in DRAW} <= morph_emoji.GATES.keys()


def test_the_whole_model_keeps_its_gates():
    model = MorphTokens.from_pretrained("morph-emoji", "cpu")
    results = morph_emoji.evaluate(model, morph_emoji.make_album(model))
    for name, gate in morph_emoji.GATES.items():
        assert name.startswith("stage 0") or results[name] >= gate, name
