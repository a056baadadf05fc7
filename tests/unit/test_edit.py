"""Edits of a file, made in a checkpoint by the command line."""

import json
import sys

import numpy as np
import pytest

from backbones.blip2_facts import make_model
from vlws.data.mmedit import EditCase, Question, read_mmedit, write_mmedit
from vlws.edit import METHODS, apply
from vlws.errors import InputError
from vlws.lab import cli
from vlws.methods.unike import UniKE
from vlws.models.families import load_mllm
from vlws.models.knowledge import without_knowledge


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An OPT-based BLIP-2 with random weights, and two edits with their pictures."""
    folder = tmp_path_factory.mktemp("edits")
    adapter = make_model()
    adapter.model.save_pretrained(folder / "model")
    adapter.processor.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    cases = []
    for word in ("mira", "otto"):
        picture, other = rng.integers(0, 255, (2, 64, 64, 3), np.uint8)
        edit = Question("<image> who owns this?", (picture,), word)
        again = Question("<image> who owns this?", (other,), word)
        far = Question("<image> where is this kept?", (other,), "oslo")
        cases.append(EditCase(edit, edit, again, Question("who rules zorvia?", (), "anna"), far, predicted="tom"))
    write_mmedit(folder / "edits.json", folder, cases, prompt="{}", locality_prompt="{}")
    return folder


def made(files, **options):
    settings = {"method": "unike", "prompt": "{}", "steps": 60, "lr": 2e-2, "device": "cpu"} | options
    return apply(files / "edits.json", str(files / "model"), **settings)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_edits_reports_and_is_taken_back(files, method):
    report = made(files, method=method)
    assert [row["target"] for row in report["edits"]] == ["mira", "otto"]
    assert report["rolled_back"] is True
    assert report["scores"]["text_locality/agreement"] >= 0
    if method == "unike":
        assert report["edits"][-1]["after"] == "otto"


def test_what_unike_wrote_answers_as_it_did(files, tmp_path):
    report = made(files, out=tmp_path / "plug-in")
    adapter = load_mllm(str(files / "model"), "cpu")
    layers = range(adapter.num_layers - 2, adapter.num_layers)
    again = UniKE(adapter, without_knowledge(adapter, layers)).load(tmp_path / "plug-in")
    edits = [c.edit for c in read_mmedit(files / "edits.json", files, prompt="{}")]
    assert again.answer([q.text for q in edits], [q.images for q in edits]) == [r["after"] for r in report["edits"]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "rome"}, "method='rome' was given; accepted are unike, finetune, lora, t-patcher, ike"),
        ({"steps": 0}, "steps=0 was given; accepted is 1 or more"),
        ({"method": "lora", "out": "x"}, "--out was given with lora"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(files, options, told):
    with pytest.raises(InputError, match=told):
        made(files, **options)


def test_a_target_that_is_the_answer_already_is_said(files):
    said = made(files)["edits"][0]["before"]
    records = json.loads((files / "edits.json").read_text())
    records[0] |= {"alt": said or "tom", "pred": said}
    (files / "known.json").write_text(json.dumps(records))
    report = apply(files / "known.json", str(files / "model"), images=files, prompt="{}", steps=1, device="cpu")
    assert report["already"] == 1


def test_the_command_prints_a_table_or_json(files, monkeypatch, capsys):
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    given = ["vlws", "edit", str(files / "edits.json"), "--backbone", str(files / "model"), "--prompt", "{}"]
    told = []
    for more in ([], ["--json", "--method", "ike"]):
        monkeypatch.setattr(sys, "argv", [*given, "--steps", "40", *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 0
        told.append(capsys.readouterr().out)
    assert "image locality" in told[0]
    assert "as it was: True" in told[0]
    assert json.loads(told[1])["method"] == "ike"
