"""Chapter 05 on a reader's BEIR folder, by the real command; what cannot work is refused."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from vlws.data.beir import read_beir, write_beir
from vlws.data.wordnet import intents
from vlws.retrieve import index, retrieve

SMALL = ["steps=3", "batch_size=4", "backbone=bert-wordnet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A few words of WordNet with their intents, as a folder of one's own."""
    task = intents.make(train=6, dev=2, test=4)
    made = tmp_path_factory.mktemp("data") / "mine"
    for split in ("train", "test"):
        write_beir(made, task.collection(split), split)
    return made


def test_a_control_is_learned_and_serves_retrieval(run, tmp_path, folder):
    result, record, _ = run("05", f"data={folder}", *SMALL)
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    left = next((tmp_path / "runs").glob("*/*/run.json")).parent
    assert json.loads((left / "measures.json").read_text()) == []  # the chapter's own experiment is left out
    results = {row["name"]: row for row in json.loads((left / "results.json").read_text())}
    names = ["controlled", "retriever alone", "instruction prepended"]
    assert list(results) == [*names, "controlled − retriever alone"]
    values = pd.read_csv(left / "files" / "ndcg.csv")
    test = read_beir(folder, "test")
    assert values["query"].tolist() == list(test.queries)
    for name in names:
        assert results[name]["value"] == pytest.approx(values[name].mean(), rel=1e-5)
        assert results[name]["low"] <= results[name]["value"] <= results[name]["high"]
    index(folder, "bert-wordnet", tmp_path / "index", "cpu")
    query, instruction = next((test.queries[q], test.instructions[q]) for q in test.queries)
    asked = dict(instruction=instruction, plugin=left / "files" / "plugin", device="cpu", k=3)
    assert len(retrieve([query], tmp_path / "index", **asked)["results"][0]["hits"]) == 3


def test_a_query_without_an_instruction_is_refused(refuse, folder, tmp_path):
    silent = shutil.copytree(folder, tmp_path / "silent")
    lines = [json.loads(line) for line in (silent / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[0]["instruction"] = ""
    (silent / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    refuse("05", f"data={silent}", "has no instruction; accepted is one for each query", SMALL)


def test_a_folder_without_a_training_split_is_refused(refuse, folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "qrels" / "train.tsv").unlink()
    refuse("05", f"data={bare}", "train", SMALL)


def test_no_beir_folder_is_refused_before_the_run(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    refuse("05", f"data={tmp_path / 'empty'}", "corpus.jsonl", SMALL)
