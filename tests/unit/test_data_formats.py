"""Folders of users' pictures: what is read, and what is refused."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from vlws.data import formats
from vlws.errors import InputError


def put(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8) if image is None else image).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path):
    root = tmp_path / "bottle"
    for name in ("000.png", "001.png"):
        put(root / "train" / "good" / name)
    put(root / "test" / "good" / "000.png")
    put(root / "test" / "broken_large" / "000.png")
    put(root / "ground_truth" / "broken_large" / "000_mask.png")
    return root


def test_an_mvtec_category(mvtec):
    found = formats.read_anomaly_folder(mvtec)
    assert found.name == "bottle"
    assert [path.name for path in found.train.paths] == ["000.png", "001.png"]
    assert found.train.captions == ("a photo of a bottle",) * 2
    assert found.test.labels == ("broken_large", "good")
    assert found.test.captions == ("a photo of a bottle with broken large", "a photo of a bottle")
    assert found.anomalous.tolist() == [True, False]


def test_a_root_of_several_categories_needs_a_choice(mvtec):
    assert formats.read_anomaly_folder(mvtec.parent).name == "bottle"  # one only: no question
    put(mvtec.parent / "cable" / "train" / "good" / "0.png")
    with pytest.raises(InputError, match=r"holds 2 categories \(bottle, cable\); give one of these folders"):
        formats.read_anomaly_folder(mvtec.parent)
    assert formats.read_anomaly_folder(mvtec.parent, "bottle").name == "bottle"
    with pytest.raises(InputError, match="has no category 'pill'; it holds bottle, cable"):
        formats.read_anomaly_folder(mvtec.parent, "pill")


def test_plain_class_folders_with_captions(tmp_path):
    put(tmp_path / "train" / "owl" / "a.png")
    put(tmp_path / "train" / "snow_leopard" / "b.png")
    put(tmp_path / "test" / "owl" / "c.png")
    put(tmp_path / "test" / "car" / "d.jpg")
    (tmp_path / "train" / "owl" / "a.txt").write_text("an owl at night\n")
    (tmp_path / "captions.json").write_text(json.dumps({"test/car/d.jpg": "a red car"}))
    with pytest.warns(
        UserWarning, match=r"1 of 2 training pictures have no caption of their own; .*b\.png, which is c"
    ):
        found = formats.read_anomaly_folder(tmp_path)
    assert found.train.captions == ("an owl at night", "a photo of a snow leopard")
    assert dict(zip(found.test.labels, found.test.captions, strict=True)) == {
        "owl": "a photo of an owl",
        "car": "a red car",
    }
    assert found.anomalous.tolist() == [True, False]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist; give a folder that holds train/ and test/"):
        formats.read_anomaly_folder(tmp_path / "nowhere")


def test_a_folder_of_another_layout_is_refused(tmp_path):
    put(tmp_path / "picture.png")
    with pytest.raises(InputError, match="holds no train/<class>/ folder"):
        formats.read_anomaly_folder(tmp_path)


def test_a_missing_test_folder_is_refused(tmp_path):
    put(tmp_path / "train" / "owl" / "a.png")
    with pytest.raises(InputError, match="has no test/ folder"):
        formats.read_anomaly_folder(tmp_path)


def test_an_empty_class_is_refused(mvtec):
    (mvtec / "test" / "scratch").mkdir()
    with pytest.raises(InputError, match=r"The class .*scratch is empty"):
        formats.read_anomaly_folder(mvtec)


def test_one_training_picture_is_refused(mvtec):
    (mvtec / "train" / "good" / "001.png").unlink()
    with pytest.raises(InputError, match="train holds 1 picture; accepted are two or more"):
        formats.read_anomaly_folder(mvtec)


def test_a_split_without_classes_is_refused(tmp_path):
    put(tmp_path / "train" / "a.png")
    with pytest.raises(InputError, match="has no class folder"):
        formats.read_anomaly_folder(tmp_path)


@pytest.mark.parametrize(("gone", "missing"), [("good", "normal"), ("broken_large", "anomalous")])
def test_a_test_set_of_one_kind_is_refused(mvtec, gone, missing):
    (mvtec / "test" / gone / "000.png").unlink()
    (mvtec / "test" / gone).rmdir()
    with pytest.raises(InputError, match=f"has no {missing} picture"):
        formats.read_anomaly_folder(mvtec)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", r"captions\.json, line 1, is not valid JSON"), ('["a"]', "must be one JSON object of texts")],
)
def test_captions_of_another_form_are_refused(mvtec, text, says):
    (mvtec / "captions.json").write_text(text)
    with pytest.raises(InputError, match=says):
        formats.read_anomaly_folder(mvtec)


ACCENT = unicodedata.normalize("NFD", "plaqué.png")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("train/good/000.png", "000.png"),
        ("train\\good\\000.png", "000.png"),
        ("./train/good/000.png", "000.png"),
        ("bottle/train/good/000.png", "000.png"),
        ("/home/other/plates/train/good/000.png", "000.png"),
        ("C:\\plates\\Train\\good\\000.PNG", "000.png"),
        ("train/good/000", "000.png"),
        ("good/lone.v1", "lone.v1.png"),
        ("lone", "lone.png"),
        ("train/good/" + unicodedata.normalize("NFC", ACCENT), ACCENT),
        ("train\\good\\" + unicodedata.normalize("NFC", ACCENT).removesuffix(".png"), ACCENT),
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 2 training pictures")
def test_a_name_written_otherwise_means_its_picture(mvtec, name, file):
    picture = mvtec / "train" / "good" / file
    (mvtec / "train" / "good" / "000.png").rename(picture)
    (mvtec / "captions.json").write_text(json.dumps({name: "a caption"}))
    train = formats.read_anomaly_folder(mvtec).train
    assert dict(zip(train.paths, train.captions, strict=True))[picture] == "a caption"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train/good/007.png"], r"the name 'train/good/007\.png' means no picture below .*bottle; accepted are"),
        (["other/000.png"], "means no picture"),  # a folder that is none of the picture's
        (["a caption " * 40], "means no picture"),  # longer than the name of a file may be
        (["good/000.png"], r"'good/000\.png' means 2 pictures, .*train/good/000\.png among them"),
        (["train/good/000.png", "train/good/000"], r"two names mean .*000\.png, the second is 'train/good/000'"),
    ],
)
def test_a_name_that_means_no_picture_or_several_is_refused(mvtec, names, says):
    (mvtec / "captions.json").write_text(json.dumps({name: f"caption {i}" for i, name in enumerate(names)}))
    with pytest.raises(InputError, match=says):
        formats.read_anomaly_folder(mvtec)


def test_captions_of_all_categories_may_stand_in_the_root_and_name_masks(mvtec):
    put(mvtec.parent / "cable" / "train" / "good" / "000.png")
    captions = {"bottle/train/good/000.png": "mine", "cable/train/good/000.png": "another's"}
    captions |= {"bottle/train/good/001.png": "too", "bottle/ground_truth/broken_large/000_mask.png": "a mask"}
    (mvtec.parent / "captions.json").write_text(json.dumps(captions))
    assert formats.read_anomaly_folder(mvtec.parent, "bottle").train.captions == ("mine", "too")


def test_hidden_files_and_folders_are_no_pictures(mvtec):
    good = mvtec / "train" / "good"
    for path in (
        good / ".ipynb_checkpoints" / "000-checkpoint.png",
        good / "deep" / "__MACOSX" / "000.png",
        mvtec / "test" / ".trash" / "000.png",
        mvtec / "test" / "__MACOSX" / "good" / "000.png",
        mvtec.parent / "__MACOSX" / "train" / "good" / "000.png",
    ):
        put(path)
    for name in ("._000.png", "Thumbs.db", ".DS_Store", "000.png.part"):
        (good / name).write_bytes(b"\x00\x05\x16\x07")
    (good / "folder.png").mkdir()
    found = formats.read_anomaly_folder(mvtec.parent)
    assert [path.name for path in found.train.paths] == ["000.png", "001.png"]
    assert found.test.labels == ("broken_large", "good")


def test_text_files_that_belong_to_no_picture_are_told(mvtec):
    (mvtec / "train" / "good" / "0.txt").write_text("a bottle")
    with pytest.warns(UserWarning, match=r"1 \.txt files stand beside no picture .*0\.txt, which would caption 0\.png"):
        formats.read_anomaly_folder(mvtec)


def test_captions_in_other_encodings_are_read_or_refused(mvtec):
    good = mvtec / "train" / "good"
    (good / "000.txt").write_text("the bottle", encoding="utf-8-sig")
    (good / "001.txt").write_text("the worker’s bottle\r\n", encoding="utf-16")
    assert formats.read_anomaly_folder(mvtec).train.captions == ("the bottle", "the worker’s bottle")
    (good / "001.txt").write_text("good\nthe worker’s", encoding="cp1252")
    with pytest.raises(InputError, match=r"001\.txt, line 2, is not UTF-8 \(byte 0x92\); save the file as UTF-8, as"):
        formats.read_anomaly_folder(mvtec)
