"""Backbones: what is shipped works, any CLIP of any size works, and what cannot work is told in a sentence."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BertConfig, BertModel, CLIPConfig, CLIPModel, CLIPProcessor

from backbones import clip_emoji as pretrain
from vlws.data.emoji_world import captions, emoji, pairs, scenes
from vlws.data.english import with_article
from vlws.errors import InputError
from vlws.models import clip as clips
from vlws.models import hub, tiny


@pytest.fixture(scope="module")
def clip():
    return clips.load_clip("clip-emoji", device="cpu")


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory):
    """A CLIP of random weights and another size everywhere: 48 px pictures, patches of 12, 24-d projection."""
    folder = tmp_path_factory.mktemp("other") / "clip"
    processor = CLIPProcessor.from_pretrained(hub.ASSETS / "clip-emoji")
    processor.image_processor.size = {"shortest_edge": 48}
    processor.image_processor.crop_size = {"height": 48, "width": 48}
    config = CLIPConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 20,
            "bos_token_id": processor.tokenizer.bos_token_id,
            "eos_token_id": processor.tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 40,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 12,
        },
        projection_dim=24,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_shipped_clip_is_small_half_precision_and_loads_as_float32_in_eval_mode(clip):
    folder = hub.ASSETS / "clip-emoji"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert next(clip.model.parameters()).dtype == torch.float32
    assert not clip.model.training
    assert isinstance(AutoProcessor.from_pretrained(folder), CLIPProcessor)
    assert not list(hub.ASSETS.glob("*.part"))


def test_the_shipped_clip_passes_its_gate(clip):
    """Not the card's word: measured again on held-out pictures."""
    found = pairs.clutter_pairs(1000, 700_001)
    right = clips.embed_images(clip, found.images) @ clips.zero_shot_weights(clip, captions.class_texts()).T
    assert (right.argmax(1) == found.classes).mean() >= pretrain.GATE


def test_the_shipped_clip_finds_emoji_by_name(clip):
    members = sorted(scenes.class_of())
    texts = [f"a photo of {with_article(emoji.load().names[i])}" for i in members]
    found = pairs.clutter_pairs(500, 700_002)
    scores = clips.embed_images(clip, found.images) @ clips.embed_texts(clip, texts).T
    rank = (scores > np.take_along_axis(scores, np.searchsorted(members, found.emoji)[:, None], 1)).sum(1)
    assert (rank < 5).mean() > 0.7


def test_the_card_is_of_these_weights(clip):
    card = (hub.ASSETS / "clip-emoji" / "README.md").read_text(encoding="utf-8")
    assert f"`{hub.weights_hash(clip.model)}`" in card
    gate = float(re.search(r"\| zero-shot class accuracy \| ([\d.]+) \|", card).group(1))
    assert gate >= pretrain.GATE


def test_text_is_pooled_at_the_end_token(clip):
    """eos_token_id == 2 would select CLIP's legacy pooling (largest id)."""
    config = clip.model.config.text_config
    assert config.eos_token_id == clip.processor.tokenizer.eos_token_id != 2
    short = clips.embed_texts(clip, ["a dog"])
    padded = clips.embed_texts(clip, ["a dog", "a photo of a very long caption of a dog on a patterned ground"])[:1]
    np.testing.assert_allclose(short, padded, atol=1e-5)


def test_the_legacy_end_token_is_refused():
    with pytest.raises(ValueError, match="eos_token_id=2 selects CLIP's legacy pooling"):
        tiny.clip_config(100, 1, 2)


def test_features_are_unit_rows_whatever_the_batch(clip):
    images = pairs.clutter_pairs(20, 1).images
    a, b = clips.embed_images(clip, images, batch=7), clips.embed_images(clip, images, batch=64)
    np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    assert a.dtype == np.float32
    texts = ["a dog", "a bus", "a dog", "word " * 200]
    t = clips.embed_texts(clip, texts, batch=2)
    np.testing.assert_allclose(t[0], t[2])
    np.testing.assert_allclose(np.linalg.norm(t, axis=1), 1, atol=1e-5)
    assert clips.embed_texts(clip, []).shape == clips.embed_images(clip, images[:0]).shape == (0, a.shape[1])


def test_arrays_of_the_right_size_skip_the_processor_and_come_out_the_same(clip):
    images = pairs.clutter_pairs(8, 2).images
    ours = clips.pixels(clip.processor, images, 32)
    theirs = clips.pixels(clip.processor, [Image.fromarray(image) for image in images], 32)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_pictures_of_another_size_are_resized(clip):
    large = pairs.clutter_pairs(50, 3, size=64)
    small = pairs.clutter_pairs(50, 3, size=32)
    similar = (clips.embed_images(clip, large.images) * clips.embed_images(clip, small.images)).sum(1)
    assert np.median(similar) > 0.8


def test_a_clip_of_another_size_works_by_its_path(other_clip):
    clip = clips.load_clip(str(other_clip), device="cpu")
    images = pairs.clutter_pairs(5, 4).images
    assert clips.embed_images(clip, images).shape == (5, 24)
    assert clips.embed_texts(clip, ["a dog", "many words " * 30]).shape == (2, 24)


def test_a_backbone_of_another_class_is_refused(tmp_path):
    BertModel(
        BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is a BertModel; accepted here: CLIPModel, such as"):
        clips.load_clip(str(tmp_path))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no Hugging Face checkpoint: the folder has no config\.json"):
        clips.load_clip(str(tmp_path))


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer.json"])
def test_an_incomplete_checkpoint_is_refused(tmp_path, gone):
    folder = shutil.copytree(hub.ASSETS / "clip-emoji", tmp_path / "clip")
    (folder / gone).unlink()
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        clips.load_clip(str(folder))


def test_an_unknown_name_lists_what_is_accepted():
    with pytest.raises(
        InputError, match=r"There is no backbone 'clip-emojis': accepted are a shipped name \(.*clip-emoji"
    ):
        clips.load_clip("clip-emojis")


def hub_error(tmp_path, **env):
    """What a fresh process says of a hub id that it can not have."""
    script = "from vlws.models.clip import load_clip; load_clip('openai/clip-vit-base-patch32')"
    env = {"PATH": "", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_a_hub_that_does_not_answer_gives_one_sentence_with_the_way_out(tmp_path):
    # port 9 of this machine: refused at once, whatever the network is
    says = hub_error(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert says.startswith(
        "vlws.errors.InputError: openai/clip-vit-base-patch32 is no folder, and cannot be reached on the "
        "Hugging Face hub"
    )
    assert "hf download openai/clip-vit-base-patch32 --local-dir" in says
    assert "HF_HOME" in says


def test_offline_mode_is_told_as_such(tmp_path):
    says = hub_error(tmp_path, HF_HUB_OFFLINE="1")
    assert "is not in the local cache and HF_HUB_OFFLINE is set" in says


def test_a_hub_id_in_the_cache_is_loaded_without_asking_the_hub(tmp_path):
    commit = "0" * 40
    repo = tmp_path / "models--someone--clip"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(hub.ASSETS / "clip-emoji", repo / "snapshots" / commit)
    load_it = (
        "from vlws.models.clip import load_clip; from vlws.models.hub import locate; "
        "load_clip(name, 'cpu'); print(locate(name)[0])"
    )
    script = f"name = 'someone/clip'; {load_it}"
    env = {"PATH": "", "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(repo / "snapshots" / commit)


def test_devices():
    assert hub.resolve_device("cpu").type == "cpu"
    assert hub.resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(InputError, match="device='gpu': accepted are auto, cpu, cuda and cuda:0"):
        hub.resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device='cuda', but this machine has no CUDA device"):
            hub.resolve_device("cuda")


class Counting:
    """An encoder that counts what it is asked for."""

    asked = 0

    def images(self, images):
        self.asked += len(images)
        return np.stack([[float(image.sum()), 1.0] for image in images])

    def texts(self, texts):
        self.asked += len(texts)
        return np.array([[float(len(text)), 2.0] for text in texts])


def test_what_was_embedded_once_is_remembered_by_content():
    from vlws.models.clip import Remembered

    encoder = Counting()
    seen = Remembered(encoder)
    pictures = np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)
    found = seen.images(pictures[[0, 1, 1, 2]])
    assert encoder.asked == 3
    np.testing.assert_array_equal(found, Counting().images(pictures[[0, 1, 1, 2]]))
    np.testing.assert_array_equal(seen.texts(["a", "bb", "a"])[:, 0], [1, 2, 1])
    alone = seen.alone()
    np.testing.assert_array_equal(alone.images(pictures[[2, 0]]), found[[3, 0]])
    assert encoder.asked == 5
    with pytest.raises(InputError, match="1 pictures or texts were not embedded before"):
        alone.images(pictures[3:])
