"""What `backbone` and `data` name is looked at before a run starts: exit code 2, one sentence, no folder of a run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlws
from vlws.errors import InputError
from vlws.lab import chapters, runner
from vlws.lab.inputs import KINDS, called_with, check_inputs

ROOT = Path(__file__).parents[2]
ASSETS = Path(vlws.__file__).parent / "models" / "assets"


@pytest.fixture(autouse=True)
def _real_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("VLWS_ROOT", str(ROOT))
    monkeypatch.setenv("VLWS_RUNS", str(tmp_path / "runs"))


def pictures(root: Path) -> Path:
    for label in ("train/good", "test/good", "test/crack"):
        (root / label).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(root / label / f"{i}.png")
    return root


def test_every_chapter_that_takes_a_checkpoint_or_data_is_known_to_read_it():
    for one in chapters.chapters():
        if "backbone" in one.parameters:
            assert any(name in KINDS for name in called_with(one.code, "backbone")), one.id
        if "data" in one.parameters:
            assert any(name.startswith("vlws.data.") for name in called_with(one.code, "data")), one.id


def test_calls_are_found_by_their_first_argument():
    code = [
        "%matplotlib inline",
        "import numpy as np\nfrom vlws.data import demon\nfrom vlws.models.clip import load_clip as load",
        "clip = load(backbone or 'clip-emoji', device)\ntasks = demon.read_demon(data) if data else []",
        "np.asarray(other, data)\nbool(data)\nlen(data)",
    ]
    assert called_with(code, "backbone") == ["vlws.models.clip.load_clip"]
    assert called_with(code, "data") == ["vlws.data.demon.read_demon"]


def refused(chapter: str, sentence: str, **given) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        runner.plan([chapter], given=given)


@pytest.mark.parametrize(
    ("chapter", "sentence"),
    [
        ("01", "holds no documents.jsonl"),
        ("03", "holds no picture"),
        ("04", "holds no train/<class>/ folder"),
        ("06", "holds no core.json"),
    ],
)
def test_a_folder_that_the_chapter_cannot_read_is_refused(tmp_path, chapter, sentence):
    refused(chapter, sentence, data=str(tmp_path))


def test_data_that_is_no_folder_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "photos.zip"
    file.write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    refused("04", "photos.zip' is a file; accepted is a folder, as chapter 04 describes it.", data=str(file))
    refused("04", "photos.zip' is a file; accepted is a folder", data="photos.zip")
    refused("04", f"data='photos' does not exist (seen from {tmp_path}); accepted is a folder", data="photos")
    refused(
        "07", f"data='{tmp_path}' is a folder; accepted is a CSV file, as chapter 07 describes it.", data=str(tmp_path)
    )
    refused("07", "accepted is a CSV file, as chapter 07", data="none.csv")


def test_a_checkpoint_of_another_class_is_refused():
    refused("04", "llava-emoji is a LlavaForConditionalGeneration; accepted here: CLIPModel", backbone="llava-emoji")
    refused("01", "clip-emoji is a CLIPModel; accepted here: LlavaForConditionalGeneration", backbone="clip-emoji")
    refused("03", "clip-emoji is a CLIPModel; accepted here: MorphTokens", backbone="clip-emoji")
    refused("06", "There is no backbone 'nowhere': accepted are a shipped name", backbone="nowhere")
    refused("04", "someone/clip is no folder, ", backbone="someone/clip")


def test_a_checkpoint_without_its_weights_is_refused(tmp_path):
    folder = shutil.copytree(ASSETS / "clip-emoji", tmp_path / "clip")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused("04", "model.safetensors is a git-lfs pointer, not the file itself", backbone=str(folder))


def test_what_can_be_used_is_planned_with_absolute_paths(tmp_path, monkeypatch):
    pictures(tmp_path / "bottles")
    monkeypatch.chdir(tmp_path)
    (job,) = runner.plan(["04"], given={"data": "bottles", "backbone": "clip-emoji"})
    assert job["params"]["data"] == str(tmp_path / "bottles")


def test_every_value_of_a_grid_is_looked_at(tmp_path):
    one = chapters.chapter("04")
    check_inputs(one, {"data": ""}, {"backbone": ["clip-emoji"], "data": [str(pictures(tmp_path / "bottles"))]})
    with pytest.raises(InputError, match="llava-emoji is a LlavaForConditionalGeneration"):
        runner.plan(["04"], grid={"backbone": ["clip-emoji", "llava-emoji"], "seeds": [1, 2]})


def test_the_command_starts_nothing(tmp_path):
    command = [sys.executable, "-m", "vlws.lab.cli", "run", "04", "--json", "-p", f"data={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "holds no train/<class>/ folder" in json.loads(done.stdout)["error"]
    assert not (tmp_path / "runs").exists()


def test_listing_chapters_imports_neither_the_hub_nor_torch():
    script = (
        "import sys; from vlws.lab import cli, runner, chapters; chapters.chapters(); "
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
