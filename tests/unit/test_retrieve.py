"""An index finds what an exact search finds, is whole or absent, and refuses another checkpoint; the two commands."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer
from typer.testing import CliRunner

from vlws.data.beir import Collection, write_beir
from vlws.errors import InputError
from vlws.lab.retrieving import index_command, retrieve_command
from vlws.models.retriever import load_retriever
from vlws.retrieve import index, retrieve
from vlws.shards import Index, read_manifest

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "owl", "car", "red", "night", "fast", "hunts", "at"]
DOCUMENTS = {"owls.md": "owl hunts at night", "deep/cars.txt": "red car fast", "long.md": "night " * 30}


def checkpoint(folder, seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: k for k, word in enumerate(WORDS)}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture
def notes(tmp_path):
    for name, text in DOCUMENTS.items():
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text(text + "\n")
    (tmp_path / "notes" / ".git").mkdir()
    (tmp_path / "notes" / ".git" / "hidden.txt").write_text("red")
    (tmp_path / "notes" / "picture.png").write_bytes(b"\xff")
    return tmp_path / "notes"


@pytest.fixture
def made(notes, backbone):
    """The folder of an index of the notes."""
    index(notes, backbone, notes.parent / "index", "cpu")
    return notes.parent / "index"


@pytest.fixture
def older(made):
    """The same index as it was written before there were shards."""
    folder = made.parent / "older"
    folder.mkdir()
    (shard,) = Index(made).shards()
    (folder / "config.json").write_text(json.dumps(read_manifest(made) | {"format": 1}))
    (folder / "ids.json").write_text(json.dumps(list(shard.ids)))
    (folder / "texts.json").write_text(json.dumps(list(shard.texts)))
    save_file({"vectors": torch.from_numpy(shard.vectors)}, folder / "vectors.safetensors")
    return folder


def refused(*sentences: str):
    return pytest.raises(InputError, match=".*".join(map(re.escape, sentences)))


def test_an_index_says_what_made_it(notes, backbone):
    out = notes.parent / "index"
    found = index(notes, backbone, out, "cpu")
    manifest = json.loads((out / "manifest.json").read_text())
    assert {name: manifest[name] for name in found.keys() & manifest.keys() - {"shards"}}.items() <= found.items()
    assert (found["out"], found["cut"], found["shards"], found["reused"]) == (str(out), 1, 1, 0)
    assert (manifest["backbone"], manifest["count"], manifest["dim"]) == (backbone, 3, 16)
    assert (manifest["pooling"], manifest["dtype"], manifest["data"]) == ("mean", "float32", [str(notes)])
    (shard,) = Index(out).shards()
    assert list(shard.ids) == ["deep/cars.txt", "long.md", "owls.md"]
    assert [len(text) for text in shard.texts] == [12, 179, 18]
    assert sorted(path.name for path in notes.parent.iterdir()) == ["index", "notes"]  # nothing temporary
    assert sorted(path.name for path in out.iterdir()) == [".lock", "manifest.json", "shards"]


def test_a_document_is_found_by_its_own_text(made, backbone):
    found = retrieve([DOCUMENTS["owls.md"], "red car"], made, k=2, device="cpu")
    assert (found["backbone"], found["index"], found["instruction"]) == (backbone, str(made), "")
    assert [row["query"] for row in found["results"]] == [DOCUMENTS["owls.md"], "red car"]
    retriever = load_retriever(backbone, "cpu")
    vectors = retriever.encode([DOCUMENTS["owls.md"], "red car"]) @ retriever.encode(list(DOCUMENTS.values())).T
    for row, wanted in zip(found["results"], vectors, strict=True):
        scores, order = wanted.sort(descending=True)
        assert [hit["id"] for hit in row["hits"]] == [list(DOCUMENTS)[j] for j in order[:2]]
        assert [hit["score"] for hit in row["hits"]] == pytest.approx(scores[:2].tolist(), rel=1e-4)
        assert all(DOCUMENTS[hit["id"]].startswith(hit["text"]) for hit in row["hits"])
    assert len(retrieve(["owl"], made, k=10, device="cpu")["results"][0]["hits"]) == 3


def test_a_folder_of_beir_is_indexed(tmp_path, backbone):
    documents = {"d1": "owl", "d2": "red car"}
    write_beir(tmp_path / "set", Collection(documents, {"q1": "owl"}, {"q1": {"d1": 1}}))
    index(tmp_path / "set", backbone, tmp_path / "index", "cpu")
    hits = retrieve(["owl"], tmp_path / "index", device="cpu")["results"][0]["hits"]
    assert {hit["id"]: hit["text"] for hit in hits} == documents


def test_an_index_is_replaced_whole(made, notes, backbone, monkeypatch):
    (notes / "long.md").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("vlws.shards.save_array", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="full"):
            index(notes, backbone, made, "cpu")
    assert len(retrieve(["owl"], made, device="cpu")["results"][0]["hits"]) == 3
    index(notes, backbone, made, "cpu")
    assert len(retrieve(["owl"], made, device="cpu")["results"][0]["hits"]) == 2
    assert sorted(path.name for path in notes.parent.iterdir()) == ["index", "notes"]


def test_a_backbone_that_moved_is_named(made, backbone, tmp_path):
    assert retrieve(["owl"], made, backbone, device="cpu") == retrieve(["owl"], made, device="cpu")
    other = checkpoint(tmp_path / "other", seed=1)
    with refused(
        "index was made by", "tiny (weights ", "other has the weights ", "give that checkpoint, or make the ind"
    ):
        retrieve(["owl"], made, other, device="cpu")


def test_a_plugin_embeds_the_queries(made, backbone, monkeypatch):
    class ControlRetriever:
        @classmethod
        def from_pretrained(cls, folder, retriever):
            assert folder == "trained"
            cls.retriever = retriever
            return cls()

        def encode_queries(self, texts, instruction):
            assert instruction == "Find a car."
            return self.retriever.encode(["red car fast"] * len(texts))

    module = SimpleNamespace(ControlRetriever=ControlRetriever)
    monkeypatch.setitem(sys.modules, "vlws.methods.control_retriever", module)
    found = retrieve(["owl"], made, instruction="Find a car.", plugin="trained", device="cpu")
    plain = retrieve(["red car fast"], made, device="cpu")
    assert found["results"][0]["hits"] == plain["results"][0]["hits"]
    assert found["instruction"] == "Find a car."


def test_documents_that_cannot_be_indexed_are_refused_before_the_model_is_loaded(notes, tmp_path):
    out = tmp_path / "index"
    with refused("There is no file or folder 'nowhere'; accepted is a folder of .txt and .md files, a BEIR folder"):
        index("nowhere", "no model", out)
    (tmp_path / "empty").mkdir()
    with refused("empty holds no document; accepted"):
        index(tmp_path / "empty", "no model", out)
    (notes / "nothing.md").write_text(" \n")
    with refused("nothing.md is empty; accepted are documents of a word or more"):
        index(notes, "no model", out)
    (notes / "nothing.md").write_bytes(b"caf\xe9")
    with refused("nothing.md, line 1, is not UTF-8"):
        index(notes, "no model", out)
    (notes / "nothing.md").unlink()
    with refused("There is no retriever 'no model'"):
        index(notes, "no model", out)
    with refused("notes holds .git; accepted is a new or empty folder, or an index"):
        index(notes, "no model", notes)
    with refused("owls.md is a file; `out` is a folder"):
        index(notes, "no model", notes / "owls.md" / "index")
    out.mkdir()
    (out / "config.json").write_text("{}")
    with refused("index holds files, but no index; accepted"):
        index(notes, "no model", out)
    assert [path.name for path in out.iterdir()] == ["config.json"]


def test_what_cannot_be_retrieved_is_refused(made, tmp_path):
    for queries in ([], ["owl", " "]):
        with refused("A query is empty; say what is looked for"):
            retrieve(queries, made)
    with refused("k=0 was given; accepted is 1 or more"):
        retrieve(["owl"], made, k=0)
    with refused("The instruction 'Find a car.' was given without a plugin"):
        retrieve(["owl"], made, instruction="Find a car.")
    with refused("nowhere is no index (manifest.json is missing); accepted is a folder that `vlws index` wrote"):
        retrieve(["owl"], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", "{}", "its config.json is of something else"),
        ("config.json", "[", "its config.json is of something else"),
        ("ids.json", '["owls.md"]', "its ids, texts and vectors are not equally many"),
        ("texts.json", "3", "its ids, texts and vectors are not equally many"),
        ("vectors.safetensors", "x", "its vectors.safetensors is damaged"),
    ],
)
def test_an_index_of_the_older_format_that_is_damaged_is_refused(older, file, content, told):
    (older / file).write_text(content)
    with refused("older is no index", told):
        retrieve(["owl"], older, device="cpu")


def test_an_index_of_the_older_format_is_read(older, made):
    found, wanted = (retrieve(["owl", "red car"], one, k=2, device="cpu")["results"] for one in (older, made))
    assert found == wanted


def test_the_commands(notes, backbone, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # a narrow terminal breaks lines
    app = typer.Typer()
    app.command("index")(index_command)
    app.command("retrieve")(retrieve_command)

    def run(*args):
        done = CliRunner().invoke(app, list(map(str, args)))
        assert done.exit_code == 0, done.exception
        return done.stdout

    out = notes.parent / "index"
    told = run("index", notes, "--backbone", backbone, "--out", out, "--device", "cpu")
    assert told.splitlines()[0] == f"3 documents of 16 numbers: {out}"
    assert "1 are longer than 16 tokens" in told
    assert (
        json.loads(run("index", notes, "--backbone", backbone, "--out", out, "--device", "cpu", "--json"))["count"] == 3
    )
    given = ("retrieve", "owl", "red car", "--index", out, "-k", 2, "--device", "cpu")
    assert json.loads(run(*given, "--json")) == retrieve(["owl", "red car"], out, k=2, device="cpu")
    told = run(*given)
    assert [part.splitlines()[0] for part in told.split("\n\n")] == ["owl", "red car"]
    assert all(len(part.strip().splitlines()) == 4 for part in told.split("\n\n"))
