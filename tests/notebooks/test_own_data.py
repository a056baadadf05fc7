"""Chapters on a reader's own checkpoint and data, by the real command; what cannot work is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from transformers import CLIPConfig, CLIPModel

from vlws.data.emoji_world import edit_cases, facts
from vlws.data.emoji_world.pairs import clutter_pairs
from vlws.data.images import read_images
from vlws.data.mmedit import write_mmedit
from vlws.methods.cmg import CMGDetector
from vlws.models.clip import load_clip

SMALL = ["seeds=2", "train_images=64", "test_images=20", "epochs=1", "batch_size=16"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A CLIPModel of another size than any that ships, with random weights, and the shipped processor."""
    folder = tmp_path_factory.mktemp("clip")
    processor = load_clip("clip-emoji", "cpu").processor
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": processor.tokenizer.bos_token_id, "eos_token_id": processor.tokenizer.eos_token_id}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config=tower | tokens | {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 40},
            vision_config=tower | {"image_size": 32, "patch_size": 16},
            projection_dim=20,
        )
    ).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder in the layout of MVTec-AD: birds are good, vehicles and dishes are not; captions stand beside."""
    root = tmp_path_factory.mktemp("data") / "birds"
    captions = {}
    for part, label, name, count, seed in [
        ("train", "good", "bird", 40, 1),
        ("test", "good", "bird", 12, 2),
        ("test", "vehicle", "vehicle", 12, 3),
        ("test", "dish", "dish", 12, 4),
    ]:
        pairs = clutter_pairs(count, 800_000 + seed, classes=[name])
        for i, (image, caption) in enumerate(zip(pairs.images, pairs.captions, strict=True)):
            path = root / part / label / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            captions[path.relative_to(root).as_posix()] = caption
    (root / "captions.json").write_text(json.dumps(captions))
    return root


def kept(folder: Path, name: str) -> Path:
    """A file of the one run below `folder`."""
    return next((folder / "runs").glob(f"*/*/{name}"))


@pytest.mark.slow
def test_cmg_on_a_checkpoint_and_a_folder(tmp_path, run, checkpoint, pictures):
    result, record, notebook = run("04", *SMALL[1:], "seeds=1", f"backbone={checkpoint}", f"data={pictures}")
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    assert "birds: 40 training pictures, 36 test pictures, 24 anomalous" in notebook
    assert json.loads(kept(tmp_path, "measures.json").read_text()) == []  # its own experiment is left out
    results = json.loads(kept(tmp_path, "results.json").read_text())
    assert [r["name"] for r in results] == ["CLIP's features", "image only", "CMG", "CMG − image only"]
    assert {r["metric"] for r in results} == {"AUROC"}
    scores = pd.read_csv(kept(tmp_path, "files/scores.csv"))
    assert len(scores) == 36
    assert results[2]["value"] == pytest.approx(roc_auc_score(scores["anomalous"], scores["CMG, seed 0"]))
    detector = CMGDetector.from_pretrained(kept(tmp_path, "files/detector"), load_clip(str(checkpoint), "cpu"))
    images = read_images([Path(path) for path in scores["picture"]], 32)
    np.testing.assert_allclose(detector.decision_function(images), scores["CMG, seed 0"], rtol=1e-4)


@pytest.mark.slow
def test_unike_on_a_folder_of_edits(tmp_path, run):
    folder = tmp_path / "edits"
    found = edit_cases.cases(facts.make_world(0), "dev", 950)[:3]
    cases = [replace(case, predicted="something else") for case in found]
    write_mmedit(folder / "edits.json", folder, cases, prompt="{}", locality_prompt="{}")
    result, record, _ = run("02", "encoder_steps=2", "mend_steps=2", f"data={folder}", "prompt={}")
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    assert json.loads(kept(tmp_path, "measures.json").read_text()) == []
    results = {r["name"]: r["value"] for r in json.loads(kept(tmp_path, "results.json").read_text())}
    assert {name.split(", ")[0] for name in results} == {"fine-tuning", "LoRA", "IKE", "UniKE"}
    edits = pd.read_csv(kept(tmp_path, "files/edits.csv"))
    assert len(edits) == 12
    unike = edits[edits["method"] == "UniKE"]
    assert results["UniKE, reliability"] == pytest.approx(100 * unike["reliability/tokens"].mean())
    assert unike["reliability/generated"].mean() == 1


@pytest.mark.slow
def test_the_experiment_runs_beside_own_data_where_asked_for(tmp_path, run, pictures):
    result, record, _ = run("04", *SMALL[1:], "seeds=1", f"data={pictures}", "own_only=false")
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    assert json.loads(kept(tmp_path, "measures.json").read_text())
    assert json.loads(kept(tmp_path, "results.json").read_text())


@pytest.mark.slow
def test_a_broken_picture_is_refused_before_any_work(tmp_path, run, pictures):
    folder = tmp_path / "broken"
    shutil.copytree(pictures, folder)
    (folder / "test" / "dish" / "003.png").write_bytes(b"no picture")
    result, record, _ = run("04", f"data={folder}")
    assert result.returncode == 1
    assert "003.png is no picture that can be read" in result.stderr
    assert record["status"] == "failed"
    assert record["first_error"]["cell"] <= 4  # the set-up


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("backbone=no-such-checkpoint", "There is no backbone"),
        ("data=no/such/folder", "does not exist"),
        ("seeds=0", "seeds"),
    ],
)
def test_what_cannot_work_is_told_in_one_sentence(refuse, parameter, told):
    refuse("04", parameter, told, SMALL)
