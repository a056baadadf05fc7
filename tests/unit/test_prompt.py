"""`vlws prompt`: a prompt for a CSV file, what is refused before work starts, and that nothing is half-written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from peft import PeftModel
from typer.testing import CliRunner

from vlws import prompt
from vlws.data.labelled import as_clozes, few_shot_split, read_labelled
from vlws.errors import InputError
from vlws.lab.prompting import prompt_command
from vlws.methods.summer import Summer, SummerConfig
from vlws.models.seq2seq import decode, encode, encoder_states, label_ids, load_seq2seq, tiny_seq2seq
from vlws.prompt import learn

WORDS = ["fine", "dull", "film", *(f"w{i}" for i in range(12)), "It", "was", ".", "good", "bad", "great"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    model, tokenizer = tiny_seq2seq(WORDS, dim=16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    rows = [f"{'fine' if i % 2 else 'dull'} w{i // 2} film,{'good' if i % 2 else 'bad'}" for i in range(24)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


QUICK = {"k": 4, "steps": 20, "prompt_length": 4, "device": "cpu"}


def test_a_prompt_is_learned_and_written(tmp_path, backbone, reviews):
    done = learn(reviews, backbone, out=tmp_path / "prompt", words={"good": "great"}, **QUICK)
    assert done["classes"] == {"bad": "bad", "good": "great"}
    assert [done[name]["examples"] for name in ("train", "dev", "test")] == [8, 8, 8]
    best = max(done["curve"], key=lambda r: (r["dev_accuracy"], -r["dev_loss"]))
    assert done["dev"]["accuracy"] == best["dev_accuracy"] >= done["start"]
    assert done["dev"]["loss"] == pytest.approx(best["dev_loss"], rel=1e-4)
    assert done["best_step"] == best["step"]
    assert 0 <= done["test"]["accuracy"] <= 1
    json.dumps(done)
    # what peft reads gives what was told
    model, tokenizer = load_seq2seq(backbone, "cpu")
    test = as_clozes(few_shot_split(read_labelled(reviews), 4, 0).test, done["classes"])
    batch = encode(tokenizer, test, last=False)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(model, tmp_path / "prompt")
        logits = adapted(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=batch.decoder_input_ids[:, :2],
        ).logits[:, 1]
    said = logits[:, label_ids(tokenizer, ["bad", "great"])].argmax(1)
    right = said == torch.tensor([cloze.answer for cloze in test])
    assert float(right.float().mean()) == done["test"]["accuracy"]


def test_a_start_in_the_folder_of_the_model_is_used_unless_the_vocabulary_is_asked_for(tmp_path, backbone, reviews):
    own = shutil.copytree(backbone, tmp_path / "own")
    summer = Summer(*load_seq2seq(str(own), "cpu"), SummerConfig(prompt_length=6, seed=3))
    summer.save_pretrained(own / "summer")
    done = learn(reviews, str(own), **QUICK)
    assert done["init"] == str(own / "summer")
    assert done["curve"] == learn(reviews, backbone, init=own / "summer", **QUICK)["curve"]
    words = learn(reviews, str(own), init="vocabulary", **QUICK)
    assert words["init"] is None
    assert words["curve"] == learn(reviews, backbone, **QUICK)["curve"]


def test_a_summer_is_where_it_starts(tmp_path, backbone, reviews):
    model, tokenizer = load_seq2seq(backbone, "cpu")
    summer = Summer(model, tokenizer, SummerConfig(prompt_length=6, seed=3, psi="literal"))
    summer.save_pretrained(tmp_path / "summer")
    done = learn(reviews, backbone, init=tmp_path / "summer", out=tmp_path / "prompt", **QUICK)
    plain = learn(reviews, backbone, **QUICK)
    assert done["curve"][0]["dev_loss"] != plain["curve"][0]["dev_loss"]
    config = json.loads((tmp_path / "prompt" / "adapter_config.json").read_text())
    assert config["num_virtual_tokens"] == 6
    assert done["init"] == str(tmp_path / "summer")
    dev = as_clozes(few_shot_split(read_labelled(reviews), 4, 0).dev, done["classes"])
    batch = encode(tokenizer, dev, last=False)
    logits = decode(model, *encoder_states(model, batch, summer.theta), batch.decoder_input_ids)[:, 1]
    right = logits[:, label_ids(tokenizer, ["bad", "good"])].argmax(1) == torch.tensor([c.answer for c in dev])
    assert done["start"] == float(right.float().mean())


def test_same_seed_same_prompt(backbone, reviews):
    one, again, other = (learn(reviews, backbone, seed=seed, **QUICK) for seed in (0, 0, 1))
    assert one == again
    assert one["curve"] != other["curve"]


def test_no_text_may_be_left_for_a_test(backbone, reviews):
    done = learn(reviews, backbone, **QUICK | {"k": 6, "steps": 2})
    assert done["test"] == {"examples": 0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 0}, "k=0 was given"),
        ({"k": 9}, "the class 'bad' has 12 distinct texts; accepted are 18 or more"),
        ({"steps": 0}, "steps=0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"prompt_length": 0}, "prompt_length=0 was given"),
        ({"text": "review"}, "has no column 'review'"),
        ({"data": "none.csv"}, "none.csv is no file"),
        ({"template": "{text}"}, "accepted is one with"),
        ({"words": {"awful": "bad"}}, "a word was given for the class 'awful'; classes are bad, good"),
        ({"words": {"good": "bad"}}, "two classes share a label word"),
        ({"words": {"good": "great film"}}, "'great film' is 2 tokens"),
        ({"words": {"good": "superb"}}, "'superb' is unknown"),
        ({"init": "nowhere"}, "nowhere is no folder; accepted is one written by Summer.save_pretrained"),
        ({"init": "."}, "holds no Summer"),
        ({"backbone": "nowhere"}, "There is no backbone 'nowhere'"),
        ({"backbone": "clip-emoji"}, "clip-emoji is a CLIPModel; accepted here: T5ForConditionalGeneration"),
        ({"device": "tpu9"}, "device='tpu9'"),
    ],
)
def test_what_is_refused_before_work_starts(tmp_path, backbone, reviews, monkeypatch, arguments, said):
    def never(*args, **kwargs):
        raise AssertionError("work has started")

    monkeypatch.setattr(prompt, "prompt_tuning", never)
    monkeypatch.setattr(prompt, "tune_prompt", never)
    monkeypatch.chdir(tmp_path)
    given = {"data": reviews, "backbone": backbone, "out": tmp_path / "prompt", **QUICK} | arguments
    with pytest.raises(InputError, match=said):
        learn(**given)
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"]


def test_a_folder_of_other_files_is_refused_and_kept(tmp_path, backbone, reviews):
    (tmp_path / "prompt").mkdir()
    (tmp_path / "prompt" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        learn(reviews, backbone, out=tmp_path / "prompt", **QUICK)
    with pytest.raises(InputError, match="is a file"):
        learn(reviews, backbone, out=reviews / "below", **QUICK)
    assert (tmp_path / "prompt" / "mine.txt").read_text() == "mine"


def test_a_summer_of_another_model_is_refused(tmp_path, backbone, reviews):
    Summer(*tiny_seq2seq(WORDS, dim=8), SummerConfig(prompt_length=4)).save_pretrained(tmp_path / "summer")
    with pytest.raises(InputError, match="was made for a backbone of d_model 8"):
        learn(reviews, backbone, init=tmp_path / "summer", out=tmp_path / "prompt", **QUICK)
    assert not (tmp_path / "prompt").exists()


def test_what_fails_midway_leaves_nothing(tmp_path, backbone, reviews, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        learn(reviews, backbone, out=tmp_path / "prompt", **QUICK | {"steps": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"]


# --- the command ---


@pytest.fixture
def command():
    app = typer.Typer()
    app.command("prompt")(prompt_command)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_tells_and_writes(tmp_path, backbone, reviews, command):
    given = (reviews, "--backbone", backbone, "--k", 4, "--steps", 10, "--length", 4, "--word", "good=great")
    told = command(*given, "--out", tmp_path / "prompt")
    assert told.exit_code == 0, told.output
    assert "classes: bad, good as great" in told.output
    assert f"prompt written: {tmp_path / 'prompt'}" in told.output
    assert (tmp_path / "prompt" / "adapter_model.safetensors").is_file()
    found = json.loads(command(*given, "--json").stdout)
    assert found["classes"] == {"bad": "bad", "good": "great"}
    assert found["out"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [(("good",), "--word 'good' is no CLASS=WORD"), (("good=great", "good=fine"), "--word good is given twice")],
)
def test_words_that_are_refused(backbone, reviews, command, words, said):
    options = [part for word in words for part in ("--word", word)]
    found = command(reviews, "--backbone", backbone, *options)
    assert isinstance(found.exception, InputError)
    assert said in str(found.exception)
