"""Pictures from text, by the command line."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vlws.draw import draw
from vlws.errors import InputError
from vlws.lab import cli
from vlws.methods.morph_tokens import MorphTokens
from vlws.models.vq import from_pixels

STAGE0 = "morph-emoji-stage0"  # its language model is untrained: what it draws is of the right form alone
ASKED = "draw a blue cat at the top left on teal stripes ."


def said(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of `vlws draw`."""
    monkeypatch.setattr(sys, "argv", ["vlws", "draw", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def test_texts_and_pictures_become_pngs(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    texts = (ASKED, "<image> draw this on grey clouds .")
    given = ("--image", str(tmp_path / "red.png"), "--backbone", STAGE0, "--out", str(tmp_path / "out"), "--json")
    code, out, _ = said(monkeypatch, capsys, *texts, *given)
    found = json.loads(out)["drawn"]
    assert code == 0
    assert [len(row["read"]) for row in found] == [0, 1]
    for row in found:
        assert Image.open(row["file"]).size == (32, 32)
        assert (len(row["thought"]), len(row["tokens"])) == (4, 64)
    again = draw(texts, STAGE0, images=[tmp_path / "red.png"], out=tmp_path / "again", device="cpu")["drawn"]
    assert [row["tokens"] for row in again] == [row["tokens"] for row in found]


def test_sampling_follows_its_seed(tmp_path):
    tokens = [
        draw([ASKED], STAGE0, sample=True, seed=seed, out=tmp_path, device="cpu")["drawn"][0]["tokens"]
        for seed in (1, 1, 2)
    ]
    assert tokens[0] == tokens[1] != tokens[2]


def test_a_model_of_vectors_reads_vectors(tmp_path):
    """Without codes (relax="continuous") the language model reads what stands before the codebook, as in training."""
    model = MorphTokens.from_pretrained(STAGE0, "cpu").with_config(relax="continuous")
    model.save_pretrained(tmp_path / "model")
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    Image.fromarray(picture[0]).save(tmp_path / "it.png")
    text = "<image> draw this on grey clouds ."
    given = {"images": [tmp_path / "it.png"], "out": tmp_path, "device": "cpu"}
    (found,) = draw([text], str(tmp_path / "model"), **given)["drawn"]
    read = model.read(from_pixels(picture))
    with torch.no_grad():
        tokens = model.think(model.prompts([text], read.ids, read.z, draw=True)).tokens
    assert found["read"] == read.ids.tolist()
    assert found["tokens"] == model.draw(tokens)[0].tolist()
    assert found["thought"] == torch.cdist(tokens[0], model.code_rows()).argmin(1).tolist()


def test_questions_are_answered(tmp_path):
    picture = tmp_path / "big.png"
    Image.new("L", (40, 50)).save(picture)
    found = draw(["<image> what is it ?"], STAGE0, images=[picture], resize=True, ask=True, device="cpu")
    assert found["answers"][0]["text"] == "<image> what is it ?"


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad.png").write_text("x")
    Image.new("RGB", (16, 32)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((32, 32), np.float32)).save(tmp_path / "float.tiff")
    refused = [
        ([], {}, "A text is empty"),
        ([ASKED, " "], {}, "A text is empty"),
        (["zzgrk 17"], {}, "'zzgrk 17' has no word that the model knows; some that it does: "),
        (["draw <image>"], {}, "The texts name 1 pictures by <image> and 0 were given"),
        ([ASKED], {"images": ["none.png"]}, r"none\.png"),
        (["draw <image>"], {"images": [tmp_path / "bad.png"]}, "is no picture that can be read"),
        (["draw <image>"], {"images": [tmp_path / "small.png"]}, "has 16 x 32 pixels, and the model reads 32 x 32"),
        (["draw <image>"], {"images": [tmp_path / "float.tiff"]}, "has floating-point pixels"),
        ([ASKED * 12], {}, "the language model has 128 positions"),
        ([ASKED], {"backbone": "clip-emoji"}, "MorphTokens"),
        ([ASKED], {"out": tmp_path / "file"}, "is a file; `out` is a folder"),
    ]
    for texts, options, sentence in refused:
        given = {"backbone": STAGE0, "out": tmp_path / "out", "device": "cpu"} | options
        with pytest.raises(InputError, match=sentence):
            draw(texts, **given)
    assert not (tmp_path / "out").exists()
