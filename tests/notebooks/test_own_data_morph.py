"""Chapter 03 on a reader's captioned pictures, by the real command; what cannot work is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlws.data.emoji_world import drawings
from vlws.draw import draw

SMALL = ["steps=3", "batch_size=4"]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """Twelve drawings of another size than the tokenizer reads, with their captions in metadata.jsonl."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    known = [drawings.everything()[i] for i in np.random.default_rng(0).choice(5760, 12, replace=False)]
    lines = []
    for k, (drawing, picture) in enumerate(zip(known, drawings.render(known), strict=True)):
        Image.fromarray(picture).resize((50, 40)).save(folder / f"{k}.png")
        lines.append(json.dumps({"file_name": f"{k}.png", "text": drawing.caption()}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_pictures_are_drawn_from_their_captions(run, tmp_path, captioned):
    result, record, _ = run("03", f"data={captioned}", *SMALL)
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    folder = next((tmp_path / "runs").glob("*/*/run.json")).parent
    assert json.loads((folder / "measures.json").read_text()) == []  # the chapter's own experiment is left out
    results = json.loads((folder / "results.json").read_text())
    assert [row["name"] for row in results] == ["drawn from captions", "tokenizer's ceiling", "mean picture"]
    errors = pd.read_csv(folder / "files" / "errors.csv")
    assert len(errors) == 2  # a fifth of twelve
    for row in results:
        assert row["value"] == pytest.approx(1000 * errors[row["name"]].mean(), rel=1e-5)
        assert row["low"] <= row["value"] <= row["high"]
    assert errors["tokenizer's ceiling"].max() < errors["drawn from captions"].min()  # three steps teach nothing
    drawn = draw(["draw a cat"], str(folder / "files" / "model"), out=tmp_path / "drawn", device="cpu")["drawn"]
    assert Image.open(drawn[0]["file"]).size == (32, 32)


def test_a_folder_without_captions_is_refused(refuse, tmp_path):
    (tmp_path / "given").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "given" / "a.png")
    refuse("03", f"data={tmp_path / 'given'}", "caption", SMALL)


def test_a_caption_longer_than_the_context_is_refused(refuse, captioned, tmp_path):
    folder = shutil.copytree(captioned, tmp_path / "long")
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    lines[3] = json.dumps({"file_name": "3.png", "text": 120 * "a cat "})
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    refuse("03", f"data={folder}", "the language model has 128 positions", SMALL)
