"""Chapter 06 on a reader's own checkpoint and DEMON folder, by the real command; what cannot work is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    OPTConfig,
)

from backbones.blip2_emoji import make_processor
from vlws.data import demon
from vlws.data.emoji_world import i4
from vlws.methods.cheetor import Cheetor
from vlws.models.families import load_mllm
from vlws.models.hub import ASSETS

SMALL = ["seeds=2", "train_pairs=32", "test_pairs=20", "steps=3", "batch_size=8"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A Blip2ForConditionalGeneration over OPT, of other sizes than the shipped one, with random weights."""
    folder = tmp_path_factory.mktemp("blip2")
    tokenizer = make_processor().tokenizer
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = {"vocab_size": len(tokenizer), "hidden_size": 40, "num_hidden_layers": 4, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = OPTConfig(**size, **ids, ffn_dim=48, word_embed_proj_dim=40, max_position_embeddings=2048)
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=tower | {"image_size": 32, "patch_size": 8, "initializer_range": 0.1},
            qformer_config=tower | {"vocab_size": 2, "hidden_size": 20, "encoder_hidden_size": 24},
            text_config=text.to_dict(),
            num_query_tokens=3,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    model.query_tokens.data.normal_()
    model.save_pretrained(folder)
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    Blip2Processor(pictures, tokenizer, num_query_tokens=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Path:
    """Three tasks of three categories in DEMON's own files."""
    folder = tmp_path_factory.mktemp("demon")
    return demon.write_demon(folder, [i4.make(name, 4, 630_000) for name in ("spot_difference", "count", "arrivals")])


@pytest.mark.slow
def test_cheetor_on_a_checkpoint_and_a_folder(run, tmp_path, checkpoint, benchmark):
    result, record, notebook = run("06", *SMALL, f"backbone={checkpoint}", f"data={benchmark}")
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    assert "your folder: 3 tasks, 12 samples" in notebook
    assert "Visual Relation Inference" in notebook
    folder = next((tmp_path / "runs").glob("*/*/run.json")).parent
    assert json.loads((folder / "measures.json").read_text()) == []  # its own experiment is left out
    results = json.loads((folder / "results.json").read_text())
    assert [r["name"] for r in results] == ["backbone", "Cheetor", "Cheetor − backbone"]
    answers = pd.read_csv(folder / "files" / "answers.csv")
    assert len(answers) == 12
    by_task = answers.groupby("task")["Cheetor score"].mean()
    assert abs(results[1]["value"] - 100 * by_task.mean()) < 1e-6
    Cheetor.from_pretrained(folder / "files" / "cheetor", load_mllm(str(checkpoint), "cpu"))


def without_a_picture(folder: Path) -> Path:
    demon.write_demon(folder, [i4.make("spot_difference", 2, 630_001)])
    next(path for path in sorted(folder.rglob("*.png"))).unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: "backbone=llava-emoji", "has no Q-Former"),
        (lambda folder: f"data={without_a_picture(folder)}", "is missing"),
    ],
    ids=["no Q-Former", "a missing picture"],
)
def test_what_cannot_work_is_told_in_one_sentence(refuse, tmp_path, make, told):
    (tmp_path / "given").mkdir()
    refuse("06", make(tmp_path / "given"), told, SMALL)


def test_the_card_of_the_backbone_names_its_defect():
    assert "of nothing else" in (ASSETS / "blip2-emoji" / "README.md").read_text()
