"""Chapter 07 on a reader's CSV file, by the real command; what cannot work is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
from peft import PeftModel

from vlws.data.wordnet import classification as tasks
from vlws.models.seq2seq import load_seq2seq
from vlws.prompt import learn

SMALL = ["meta_steps=2", "tune_steps=4", "examples=4"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Texts of a few-shot task as a file of one's own."""
    task = tasks.few_shot("person", k=10, test=8)
    rows = [*task.train, *task.dev]
    made = tmp_path_factory.mktemp("data") / "mine.csv"
    pd.DataFrame({"text": [one.texts[0] for one in rows], "label": [one.label for one in rows]}).to_csv(
        made, index=False
    )
    return made


def test_a_prompt_is_learned_from_a_start_that_serves_again(run, tmp_path, texts):
    result, record, _ = run("07", f"data={texts}", *SMALL)
    assert result.returncode == 0, result.stderr[-4000:]
    assert record["status"] == "ok"
    left = next((tmp_path / "runs").glob("*/*/run.json")).parent
    assert json.loads((left / "measures.json").read_text()) == []  # the chapter's own experiment is left out
    results = {row["name"]: row for row in json.loads((left / "results.json").read_text())}
    assert list(results) == ["SUMMER", "vocabulary", "SUMMER − vocabulary"]
    right = pd.read_csv(left / "files" / "right.csv")
    assert len(right) == 40 - 2 * 2 * 4
    for name in ("SUMMER", "vocabulary"):
        assert results[name]["value"] == pytest.approx(right[name].mean())
    model, _ = load_seq2seq("t5-wordnet", "cpu")
    assert PeftModel.from_pretrained(model, left / "files" / "prompt-summer").get_prompt(1).shape[1:] == (16, 64)
    again = learn(texts, "t5-wordnet", init=left / "files" / "start", steps=2, k=4, device="cpu")
    assert again["dev"]["examples"] == 8


def test_a_label_of_two_tokens_is_refused(refuse, tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{'yes' if i % 2 else 'zyxqv'}\n" for i in range(40)))
    refuse("07", f"data={path}", "the label word 'zyxqv' is", SMALL)


def test_too_few_examples_are_refused(refuse, tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("text,label\na cat,yes\na dog,no\n")
    refuse("07", f"data={path}", "accepted are 8 or more", SMALL)


def test_no_csv_is_refused_before_the_run(refuse, tmp_path):
    refuse("07", f"data={tmp_path / 'none.csv'}", "does not exist", SMALL)
    refuse("07", f"data={tmp_path}", "is a folder; accepted is a CSV file", SMALL)
