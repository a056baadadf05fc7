"""Chapter 01 on a reader's own checkpoint and documents, by the real command; what cannot work is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import CLIPImageProcessorPil, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from vlws.data.documents import write_folder
from vlws.data.emoji_world import stories
from vlws.methods.sugar import Sugar
from vlws.models.families import load_mllm

SMALL = ["seeds=2", "documents=64", "stories=20", "items=20", "steps=3", "batch_size=8"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A LLaVA of another size than the one that ships, with random weights: 9 patches of 16 px, 3 layers of 48."""
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = load_mllm("llava-emoji", "cpu").tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")},
    )
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=tower | {"model_type": "clip_vision_model", "image_size": 48, "patch_size": 16},
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=9,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=48),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    """A folder of 40 stories and pairs as a reader would write it, pictures beside."""
    found = stories.corpus(60, 800_001, {"story": 0.5, "pair": 0.3})
    told = [d for d in found.documents if any(s.is_image for s in d.slices)][:40]
    return write_folder(replace(found, documents=tuple(told)), tmp_path_factory.mktemp("data") / "recipes")


@pytest.mark.slow
def test_sugar_on_a_checkpoint_and_a_folder(tmp_path, run, checkpoint, documents):
    result, record, notebook = run("01", *SMALL, f"backbone={checkpoint}", f"data={documents}")
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    assert "40 documents with" in notebook
    folder = next((tmp_path / "runs").glob("*/*/run.json")).parent
    assert json.loads((folder / "measures.json").read_text()) == []  # its own experiment is left out
    results = json.loads((folder / "results.json").read_text())
    assert {r["metric"] for r in results} == {"R@1", "R@5", "ROUGE-L of answers"}
    assert len(pd.read_csv(folder / "files" / "retrieval.csv")) == 8
    answers = pd.read_csv(folder / "files" / "answers.csv")
    assert list(answers) == ["question", "true answer", "before", "Sugar"]
    Sugar.from_pretrained(folder / "files" / "sugar", load_mllm(str(checkpoint), "cpu"))


@pytest.mark.slow
def test_a_checkpoint_alone_is_tried_on_the_shipped_documents(tmp_path, run, checkpoint):
    result, record, notebook = run("01", *SMALL[1:], "seeds=1", f"backbone={checkpoint}")
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    assert "200 documents with" in notebook
    assert list((tmp_path / "runs").glob("*/*/files/sugar/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("backbone=no-such-checkpoint", "There is no backbone"),
        ("backbone=clip-emoji", "clip-emoji is a CLIPModel"),
        ("data=no/such/folder", "does not exist"),
        ("seeds=0", "seeds"),
    ],
)
def test_what_cannot_work_is_told_in_one_sentence(refuse, parameter, told):
    refuse("01", parameter, told, SMALL)
