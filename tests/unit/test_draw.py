"""Pictures from text, by the command line."""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from backbones.morph_emoji import make_llm
from vlws.data.emoji_world import drawings
from vlws.draw import draw
from vlws.errors import InputError
from vlws.lab import cli
from vlws.methods.morph_tokens import MorphConfig, MorphTokens
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


def test_the_shipped_model_draws_edits_and_answers(tmp_path):
    """By default: what it draws is nearest, of all drawings, to the one that was asked for, and again once edited."""
    known = drawings.render(drawings.everything()).astype(float)

    def nearest(done):
        picture = np.asarray(Image.open(done["drawn"][0]["file"]), float)
        return drawings.everything()[int(np.square(known - picture).mean((1, 2, 3)).argmin())]

    first = draw(["draw a blue cat at the top left on teal stripes ."], out=tmp_path / "a", device="cpu")
    assert nearest(first) == (0, 3, 0, 4, 1)
    at = [tmp_path / "a" / "0.png"]
    edited = draw(
        ["<image> this is on teal stripes . put it on grey checks ."], images=at, out=tmp_path / "b", device="cpu"
    )
    assert nearest(edited).caption() == "a blue cat at the top left"
    assert nearest(edited).ground() == "grey checks"
    assert (
        nearest(
            draw(["<image> this is on teal stripes . make it green ."], images=at, out=tmp_path / "c", device="cpu")
        )[1]
        == 2
    )
    (said,) = draw(["<image> what is it ?"], images=at, ask=True, device="cpu")["answers"]
    assert said["answer"] == "cat"


def test_sampling_follows_its_seed(tmp_path):
    tokens = [
        draw([ASKED], STAGE0, sample=True, seed=seed, out=tmp_path, device="cpu")["drawn"][0]["tokens"]
        for seed in (1, 1, 2)
    ]
    assert tokens[0] == tokens[1] != tokens[2]


def test_a_model_of_vectors_reads_vectors(tmp_path):
    """Without codes (relax="continuous") the language model reads what stands before the codebook, as in training."""
    model = MorphTokens.from_pretrained(STAGE0, "cpu")
    model.config = MorphConfig(relax="continuous")
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
    Image.new("RGBA", (32, 32), (255, 0, 0, 254)).save(tmp_path / "clear.png")
    Image.new("I;16", (32, 32), 258).save(tmp_path / "grey16.png")
    (tmp_path / "rgb16.png").write_bytes(png_of_16_bits(32))
    Image.new("CMYK", (32, 32)).save(tmp_path / "cmyk.tiff")
    Image.new("L", (32, 32)).save(tmp_path / "two.gif", save_all=True, append_images=[Image.new("L", (32, 32), 9)])
    (tmp_path / "taken" / "1.png").mkdir(parents=True)
    refused = [
        ([], {}, "A text is empty"),
        ([ASKED, " "], {}, "A text is empty"),
        (["zzgrk 17"], {}, "'zzgrk 17' has no word that the model knows; some that it does: the, draw, this, top"),
        (["<image>"], {"images": [tmp_path / "small.png"]}, "'<image>' has no word that the model knows"),
        ([ASKED, "draw <code3> ."], {}, "'draw <code3> .' holds <code3>, a token that the model alone writes"),
        (["draw a cat </s>"], {}, "holds </s>, a token that the model alone writes; accepted is <image>"),
        (["draw <image>"], {}, "The texts name 1 pictures by <image> and 0 were given"),
        ([ASKED], {"images": ["none.png"]}, r"none\.png"),
        (["draw <image>"], {"images": [tmp_path / "bad.png"]}, "is no picture that can be read"),
        (["draw <image>"], {"images": [tmp_path / "small.png"]}, "has 16 x 32 pixels, and the model reads 32 x 32"),
        (["draw <image>"], {"images": [tmp_path / "float.tiff"]}, "has floating-point pixels"),
        (["draw <image>"], {"images": [tmp_path / "clear.png"]}, "has transparent pixels; accepted is one opaque"),
        (["draw <image>"], {"images": [tmp_path / "grey16.png"]}, "has 16 bits per channel; accepted is"),
        (["draw <image>"], {"images": [tmp_path / "rgb16.png"]}, "has 16 bits per channel; accepted is"),
        (["draw <image>"], {"images": [tmp_path / "cmyk.tiff"]}, "has the colours of CMYK; accepted is"),
        (["draw <image>"], {"images": [tmp_path / "two.gif"]}, "has 2 frames; accepted is"),
        ([ASKED, "draw" + 200 * " a"], {}, "'draw a a a .* 404 letters long, takes .* has 128 positions"),
        ([ASKED], {"backbone": "clip-emoji"}, "MorphTokens"),
        ([ASKED], {"out": tmp_path / "file"}, "is a file; `out` is a folder"),
        ([ASKED], {"out": tmp_path / "file" / "below"}, "file is a file; `out` is a folder"),
        ([ASKED, ASKED], {"out": tmp_path / "taken"}, r"1\.png is a folder, and a picture is to be written there"),
    ]
    for texts, options, sentence in refused:
        given = {"backbone": STAGE0, "out": tmp_path / "out", "device": "cpu"} | options
        with pytest.raises(InputError, match=sentence):
            draw(texts, **given)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["1.png"]


def png_of_16_bits(side):
    """A PNG of 16 bits of red, green and blue, which Pillow reads and does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    rows = side * (b"\0" + bytes(6 * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_what_loses_nothing_as_rgb_is_read(tmp_path):
    """The same red, or the same grey, in every mode that holds it: the same codes."""
    red, grey = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32), 77)
    kept = {"red": red, "opaque": red.convert("RGBA"), "palette": red.convert("P", palette=Image.Palette.ADAPTIVE)}
    kept |= {"grey": grey, "rgb": grey.convert("RGB"), "grey16": Image.new("I;16", (32, 32), 77 * 257)}
    for name, picture in kept.items():
        picture.save(tmp_path / f"{name}.png")
    texts = ["<image> draw this on grey clouds ."] * len(kept)
    files = [tmp_path / f"{name}.png" for name in kept]
    found = [row["read"] for row in draw(texts, STAGE0, images=files, out=tmp_path, device="cpu")["drawn"]]
    assert found[0] == found[1] == found[2] != found[3] == found[4] == found[5]


def test_a_text_may_fill_the_context(tmp_path):
    """All but the last of M' are read again: 125 tokens with `<img>`, and 3 more."""
    model = MorphTokens.from_pretrained(STAGE0, "cpu")
    text = "draw" + 115 * " a"
    while model.prompts([text], draw=True).input_ids.shape[1] < 125:
        text += " a"
    assert len(draw([text], STAGE0, out=tmp_path, device="cpu")["drawn"][0]["thought"]) == 4
    with pytest.raises(InputError, match="takes 129 tokens"):
        draw([text + " a"], STAGE0, out=tmp_path, device="cpu")


def test_a_word_with_punctuation_is_known_and_an_unknown_token_is_not(tmp_path):
    assert draw(["Zzgrk (cat)."], STAGE0, out=tmp_path, device="cpu")["drawn"]
    learner = Tokenizer(WordLevel({"<unk>": 0, "<pad>": 1, "<s>": 2, "</s>": 3, "cat": 4, "dog": 5}, unk_token="<unk>"))
    learner.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learner, **special)
    model = MorphTokens.from_pretrained(STAGE0, "cpu")
    again = MorphTokens(model.encoder, make_llm(tokenizer, 64, 0), tokenizer, model.decoder, model.vq)
    again.save_pretrained(tmp_path / "words")
    assert draw(["a cat"], str(tmp_path / "words"), out=tmp_path, device="cpu")["drawn"]
    with pytest.raises(InputError, match="'a fox' has no word that the model knows; some that it does: cat, dog"):
        draw(["a fox"], str(tmp_path / "words"), out=tmp_path, device="cpu")


def test_its_seed_is_not_the_callers(tmp_path):
    """What a notebook draws at random afterwards follows the notebook's seed."""
    after = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        draw([ASKED], STAGE0, sample=True, seed=1, out=tmp_path, device="cpu")
        after.append(torch.rand(1).item())
    assert after[0] != after[1]


def test_pictures_are_not_cut_short_and_refusals_leave_with_2(tmp_path, monkeypatch, capsys):
    """A disk that fails in the second picture leaves the first whole and nothing of the second."""
    write, calls = Path.write_bytes, []

    def failing(path, data):
        calls.append(path)
        if len(calls) == 2:
            write(path, data[:20])
            raise OSError(28, "No space left on device")
        return write(path, data)

    given = ("--backbone", STAGE0, "--out", str(tmp_path / "out"), "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", failing)
        code, _, err = said(monkeypatch, capsys, ASKED, ASKED, *given)
    assert code == 1
    assert "No space left on device" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]
    assert Image.open(tmp_path / "out" / "0.png").load()
    code, out, err = said(monkeypatch, capsys, "zzgrk", *given, "--json")
    assert code == 2
    assert "has no word that the model knows" in json.loads(out)["error"]
    code, out, _ = said(monkeypatch, capsys, "draw a cat", "what is it ?", *given, "--ask")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["text", "draw", "what"]
