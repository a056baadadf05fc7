"""Pretraining of the shipped CLIP: its batches, its loss, its gate, and that only whole checkpoints appear."""

import json

import numpy as np
import pytest
import torch

from backbones import clip_emoji as pretrain
from vlws.data.emoji_world import pairs, scenes
from vlws.models import hub
from vlws.models.clip import load_clip


@pytest.fixture(scope="module")
def processor():
    return pretrain.make_processor()


def test_the_tokenizer_knows_captions_and_ends_like_clip(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer("a photo of an Owl, a bird").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id != 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a photo of an owl , a bird"
    assert (
        tokenizer.unk_token_id not in tokenizer("Ærøskøbing 東京 \U0001f60a q; {j}", add_special_tokens=False).input_ids
    )
    shipped = load_clip(device="cpu").processor.tokenizer
    made, kept = (json.loads(t.backend_tokenizer.to_str())["model"] for t in (tokenizer, shipped))
    assert made == kept  # remade the same: the learner left nothing to chance


def test_a_batch_knows_which_texts_are_true_of_which_pictures(processor):
    for step in (0, 1):
        batch = pretrain.corpus_batch(processor, step)
        truth, n = batch["truth"].numpy(), pretrain.BATCH * 7 // 8
        assert truth.shape == (pretrain.BATCH, pretrain.BATCH)
        assert truth.diagonal().all()
        found = pairs.clutter_pairs(n, scenes.CORPUS_SEED + 2 * step)
        for j, caption in enumerate(found.captions):
            same_class = found.classes == found.classes[j]
            assert not (truth[:n, j] & ~same_class).any(), caption
            assert truth[:n, j][found.emoji == found.emoji[j]].all()
            words = scenes.CLASSES[scenes.CLASS_NAMES[found.classes[j]]].words
            only_class = any(caption.removesuffix(" on a patterned ground").endswith(f"a {word}") for word in words)
            if only_class and "," not in caption.removeprefix("look, "):
                assert (truth[:n, j] == same_class).all(), caption


def test_batches_depend_on_the_step_only_and_never_repeat(processor):
    a, b = pretrain.corpus_batch(processor, 3), pretrain.corpus_batch(processor, 4)
    torch.testing.assert_close(a["pixel_values"], pretrain.corpus_batch(processor, 3)["pixel_values"], rtol=0, atol=0)
    assert not torch.equal(a["pixel_values"], b["pixel_values"])


def test_blank_cells_spare_the_object():
    found = pairs.clutter_pairs(64, 1)
    out = pretrain.blank_cells(found.images, found.object_cell, 2, seed=0)
    blanked = np.array([[not image[scenes.cell_slices(2, c, 32)].any() for c in range(4)] for image in out])
    assert blanked[::2].sum(1).tolist() == [1] * 32
    assert not blanked[1::2].any()
    assert not blanked[np.arange(64), found.object_cell].any()
    np.testing.assert_array_equal(out[1::2], found.images[1::2])


def test_the_loss_is_the_symmetric_cross_entropy():
    class Fixed(torch.nn.Module):
        def forward(self, **_):
            logits = torch.tensor([[2.0, 0.5, 0.0], [1.0, 3.0, -1.0], [0.0, 0.2, 1.5]], dtype=torch.float64)
            return type("Out", (), {"logits_per_image": logits, "logits_per_text": logits.T})

    truth = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    found = pretrain.contrastive_loss(Fixed(), {"input_ids": 0, "attention_mask": 0, "pixel_values": 0, "truth": truth})
    total = 0.0
    logits = Fixed()().logits_per_image.numpy()
    for table, true in ((logits, truth.numpy()), (logits.T, truth.numpy().T)):
        for row, positives in zip(table, true, strict=True):
            log_p = row - np.log(np.exp(row).sum())
            total -= log_p[positives].mean() / 3 / 2
    assert found.item() == pytest.approx(total, abs=1e-12)


def test_below_the_gate_nothing_is_written_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrain, "GATE_PAIRS", 64)
    monkeypatch.setattr(pretrain, "BATCH", 16)
    out = tmp_path / "clip"
    out.mkdir()
    (out / "config.json").write_text("old")
    with pytest.raises(RuntimeError, match=r"zero-shot class accuracy 0\.\d+ is below 0\.9"):
        pretrain.pretrain_clip(out, steps=2)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["clip"]
    assert (out / "config.json").read_text() == "old"
    # the same run with a gate that it passes takes no further step, and replaces the folder as a whole
    pretrain.pretrain_clip(out, steps=2, gate=0.0)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["clip"]
    clip = load_clip(str(out), device="cpu")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert hub.weights_hash(clip.model) in card
    assert "holds every class and every emoji" in card
    assert (out / "loss.png").stat().st_size < 50_000
