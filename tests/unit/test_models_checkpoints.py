"""Checkpoints of users: what does not belong together is refused at the door, in one sentence; what does is loaded."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoTokenizer, CLIPModel, LlavaForConditionalGeneration

from vlws.errors import InputError
from vlws.models import families, hub, weights
from vlws.models.clip import load_clip
from vlws.models.families import load_mllm

LOADERS = {"clip-emoji": load_clip, "llava-emoji": load_mllm, "blip2-emoji": load_mllm}


@pytest.fixture(params=LOADERS)
def given(request, tmp_path):
    """(folder, loader) of a copy of each shipped checkpoint."""
    return shutil.copytree(hub.ASSETS / request.param, tmp_path / request.param), LOADERS[request.param]


@pytest.fixture
def clip(tmp_path):
    return shutil.copytree(hub.ASSETS / "clip-emoji", tmp_path / "clip")


@pytest.fixture
def llava(tmp_path):
    return shutil.copytree(hub.ASSETS / "llava-emoji", tmp_path / "llava")


def refused(sentence: str):
    return pytest.raises(InputError, match=re.escape(sentence))


def edit(file: Path, part: str = "", **change) -> None:
    """Change fields of a JSON file, of its object `part` where that is named."""
    content = json.loads(file.read_text())
    (content[part] if part else content).update(change)
    file.write_text(json.dumps(content))


def rewrite(folder: Path, change) -> None:
    """Weights -> `change(weights)`."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def test_the_tables_of_the_door_name_the_classes_that_have_adapters():
    assert hub.MLLM.classes == {kind.config_class.model_type: kind.__name__ for kind in families.ADAPTERS}
    assert hub.CLIP.classes == {CLIPModel.config_class.model_type: CLIPModel.__name__}


def test_looking_at_a_checkpoint_imports_no_torch():
    script = "import sys; from vlws.models import hub; hub.locate('clip-emoji'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_refused(given, file):
    folder, load = given
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n")
    with refused(f"{file} is a git-lfs pointer, not the file itself; run `git lfs pull` in the folder"):
        load(str(folder), "cpu")


def test_a_pointer_that_loading_does_not_read_is_no_fault(clip):
    (clip / "loss.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n")
    load_clip(str(clip), "cpu")


def test_weights_that_are_cut_short_are_refused(given):
    folder, load = given
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with refused("holds no complete checkpoint: model.safetensors is damaged or cut short ("):
        load(str(folder), "cpu")


def as_bin(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def test_weights_of_torch_save_are_loaded_and_refused_where_cut_short(given):
    folder, load = given
    file = as_bin(folder)
    load(str(folder), "cpu")
    for length in (file.stat().st_size // 2, 0):
        file.write_bytes(file.read_bytes()[:length])
        with refused("holds no complete checkpoint: pytorch_model.bin is damaged or cut short; download it anew."):
            load(str(folder), "cpu")


@pytest.mark.parametrize("other", ["ViT-B-32.pt", "model.gguf", "adapter_model.safetensors"])
def test_weights_of_another_library_are_refused(clip, other):
    (clip / "model.safetensors").rename(clip / other)
    with refused(f"it has neither model.safetensors nor pytorch_model.bin, but {other}; accepted is a folder written"):
        load_clip(str(clip), "cpu")


def test_an_adapter_alone_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with refused("holds a PEFT adapter alone; accepted is a whole checkpoint: load adapter and base with peft"):
        load_clip(str(tmp_path), "cpu")


def test_weights_in_parts_are_loaded_and_refused_where_one_is_missing(llava):
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    (llava / "model.safetensors").unlink()
    model.save_pretrained(llava, max_shard_size="500KB")
    assert (llava / "model.safetensors.index.json").is_file()
    load_mllm(str(llava), "cpu")
    part = sorted(llava.glob("model-*.safetensors"))[0]
    part.unlink()
    with refused(f"{part.name}, which its index lists, is missing; download it."):
        load_mllm(str(llava), "cpu")
    (llava / "model.safetensors.index.json").write_text("{}")
    with refused("model.safetensors.index.json is no index of weights (KeyError); download it."):
        load_mllm(str(llava), "cpu")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_json_object_is_refused(clip, text):
    (clip / "config.json").write_text(text)
    with refused("is no Hugging Face checkpoint: its config.json is no JSON"):
        load_clip(str(clip), "cpu")


def test_a_file_is_refused_as_such(clip):
    with refused("model.safetensors is a file: accepted are a shipped name ("):
        load_clip(str(clip / "model.safetensors"), "cpu")


def test_quantised_weights_are_refused(given):
    folder, load = given
    rewrite(folder, lambda found: found | {next(iter(sorted(found))): torch.zeros(2, 2, dtype=torch.int8)})
    with refused(" is I8); accepted are weights in float32, float16 or bfloat16"):
        load(str(folder), "cpu")
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with refused("is quantised (bitsandbytes); accepted are weights in float32"):
        load(str(folder), "cpu")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_clip_without_its_text_tower_is_refused(clip):
    rewrite(clip, lambda found: {k: v for k, v in found.items() if k.startswith("vision_model.")})
    edit(clip / "config.json", architectures=["CLIPForImageClassification"])
    with refused("of 94, such as logit_scale (it was saved as a CLIPForImageClassification); give a whole CLIPModel"):
        load_clip(str(clip), "cpu")


@pytest.mark.parametrize("prefix", ["module.", "net.", "module.model."])
def test_weights_under_a_prefix_are_refused(given, prefix):
    folder, load = given
    rewrite(folder, lambda found: {prefix + k: v for k, v in found.items()})
    with refused("weights stand under the prefix '"):
        load(str(folder), "cpu")


def test_one_missing_weight_is_named(given):
    folder, load = given
    rewrite(folder, lambda found: {k: v for k, v in found.items() if not k.endswith("layers.1.mlp.fc1.bias")})
    with refused("holds no complete checkpoint: its weights lack "):
        load(str(folder), "cpu")


def test_weights_of_another_shape_are_refused(given):
    folder, load = given
    rewrite(folder, lambda found: {k: v[:-1] if k.endswith("layers.1.mlp.fc1.bias") else v for k, v in found.items()})
    with refused("layers.1.mlp.fc1.bias is [191] in its weights and [192] by its config.json"):
        load(str(folder), "cpu")


def test_layers_that_the_config_leaves_out_are_refused(clip):
    edit(clip / "config.json", "vision_config", num_hidden_layers=2)
    with refused("its config.json leaves out 16 of the weights, such as vision_model.encoder.layers.2."):
        load_clip(str(clip), "cpu")


def test_a_bias_that_the_model_has_not_is_refused(clip):
    rewrite(clip, lambda found: found | {"visual_projection.bias": torch.zeros(64)})
    with refused("its config.json leaves out 1 of the weights, such as visual_projection.bias;"):
        load_clip(str(clip), "cpu")


def test_a_head_that_the_model_has_not_is_no_fault(given):
    folder, load = given
    rewrite(folder, lambda found: found | {"classifier.weight": torch.zeros(2, 64), "classifier.bias": torch.zeros(2)})
    load(str(folder), "cpu")


def test_weights_that_are_not_finite_are_refused(given):
    folder, load = given
    rewrite(folder, lambda found: {k: v * float("nan") if k.endswith("fc1.bias") else v for k, v in found.items()})
    with refused("gives values that are not finite for a blank picture or a short text: its weights hold NaN"):
        load(str(folder), "cpu")


def test_what_libraries_raise_becomes_one_sentence():
    for error, sentence in (
        (ImportError("needs\naccelerate"), "x cannot be loaded (ImportError: needs accelerate): install what"),
        (EOFError(), "x cannot be loaded (EOFError: no reason given): the file is damaged, download it anew."),
        (InputError("bad."), "x: bad."),
    ):
        with refused(sentence), weights.in_one_sentence("x", "cannot be loaded"):
            raise error


def test_a_config_that_makes_no_model_is_refused(clip):
    edit(clip / "config.json", "vision_config", num_attention_heads=5)
    with refused("holds no complete checkpoint (StrictDataclassClassValidationError: Class validation error"):
        load_clip(str(clip), "cpu")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_another_end_token_than_the_tokenizers_is_refused(clip):
    edit(clip / "config.json", "text_config", eos_token_id=5)
    with refused(
        "eos_token_id of its config.json is 5, but the tokenizer's end token is '<|endoftext|>' (2047); write"
    ):
        load_clip(str(clip), "cpu")


def test_the_legacy_end_token_is_the_largest_or_refused(clip):
    before = load_clip(str(clip), "cpu")
    edit(clip / "config.json", "text_config", eos_token_id=2)
    legacy = load_clip(str(clip), "cpu")
    assert abs(legacy.texts(["a red cat"]) - before.texts(["a red cat"])).max() < 1e-6
    tokenizer = AutoTokenizer.from_pretrained(clip)
    tokenizer.add_tokens(["<my-style>"])
    legacy.model.text_model.resize_token_embeddings(len(tokenizer))
    legacy.model.save_pretrained(clip)
    tokenizer.save_pretrained(clip)
    with refused(
        "at its largest token, and the tokenizer has '<my-style>' (2048) behind its end token '<|endoftext|>'"
    ):
        load_clip(str(clip), "cpu")
    edit(clip / "config.json", "text_config", eos_token_id=2047)  # as the sentence says
    after = load_clip(str(clip), "cpu").texts(["a red cat", "a <my-style> cat", "a <my-style> bus"])
    assert abs(after[0] - before.texts(["a red cat"])[0]).max() < 1e-6
    assert abs(after[1] - after[2]).max() > 1e-3


def set_template(folder: Path, single: str, tokens: list[tuple[str, int]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = processors.TemplateProcessing(single=single, special_tokens=tokens)
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def test_a_tokenizer_that_appends_its_end_token_to_prompts_changes_nothing(llava):
    texts, pictures = ["<image> the", "the"], [[Image.new("RGB", (32, 32))], []]
    before = load_mllm(str(llava), "cpu").encode(texts, pictures, "left", answers=["red", "blue"])
    set_template(llava, "<s> $A </s>", [("<s>", 1), ("</s>", 2)])
    assert AutoTokenizer.from_pretrained(llava)("the")["input_ids"][-1] == 2
    mllm = load_mllm(str(llava), "cpu")
    after = mllm.encode(texts, pictures, "left", answers=["red", "blue"])
    assert torch.equal(before.input_ids, after.input_ids)
    assert torch.equal(before.labels, after.labels)
    assert (mllm.encode(texts, pictures, "left").input_ids[:, -1] != 2).all()


@pytest.mark.parametrize("name", ["clip-emoji", "llava-emoji"])
def test_a_tokenizer_larger_than_the_embeddings_is_refused(tmp_path, name):
    folder = shutil.copytree(hub.ASSETS / name, tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer) - 2
    with refused(f"its tokenizer has '<two>' as token {rows + 1}, but the model embeds {rows} tokens; give"):
        LOADERS[name](str(folder), "cpu")


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"crop_size": {"height": 48, "width": 48}, "size": {"shortest_edge": 48}},
        {"do_center_crop": False},
        {"do_resize": False, "do_center_crop": False},
    ],
)
@pytest.mark.parametrize("name", ["clip-emoji", "llava-emoji"])
def test_a_processor_of_another_picture_size_is_refused(tmp_path, name, change):
    folder = shutil.copytree(hub.ASSETS / name, tmp_path / name)
    edit(folder / "processor_config.json", "image_processor", **change)
    with refused("but its vision tower takes 32 x 32; write that size into crop_size (or size)"):
        LOADERS[name](str(folder), "cpu")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_additional_image_tokens": 0}, "The batch has 15 image tokens, but its pictures fill 16; check that"),
        ({"vision_feature_select_strategy": None}, "The batch has 17 image tokens, but its pictures fill 16; check"),
        ({"patch_size": 4}, "The batch has 64 image tokens, but its pictures fill 16; check that"),
        (
            {"patch_size": 64},
            "A picture comes to 0 image tokens; check that the processor's patch_size, num_additional",
        ),
    ],
)
def test_a_processor_that_counts_other_tokens_is_refused(llava, change, sentence):
    edit(llava / "processor_config.json", **change)
    with refused(sentence):
        load_mllm(str(llava), "cpu")


def test_a_model_that_tells_no_texts_apart_is_refused(llava):
    rewrite(llava, lambda found: {k: v * 0 if "embed_tokens" in k else v for k, v in found.items()})
    with refused("gives the same for two different texts; check that its tokenizer was saved with the model"):
        load_mllm(str(llava), "cpu")
