"""Folders of users' pictures: what is read, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from vlws.data import formats
from vlws.data.emoji_world import pairs
from vlws.data.images import open_image, read_images
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
    found = formats.read_anomaly_folder(tmp_path)
    assert found.train.captions == ("an owl at night", "a photo of a snow leopard")
    assert dict(zip(found.test.labels, found.test.captions, strict=True)) == {
        "owl": "a photo of an owl",
        "car": "a red car",
    }
    assert found.anomalous.tolist() == [True, False]


def test_pictures_are_read_as_central_squares(tmp_path):
    image = pairs.clutter_pairs(1, 0, size=64).images[0]
    wide = np.concatenate([np.zeros((64, 32, 3), np.uint8), image, np.zeros((64, 32, 3), np.uint8)], 1)
    paths = [put(tmp_path / "a.png", image), put(tmp_path / "b.png", wide)]
    grey = tmp_path / "c.png"
    Image.fromarray(image).convert("L").save(grey)
    found = read_images([*paths, grey], 64)
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], image)
    assert found.shape == (3, 64, 64, 3)
    assert (found[2, ..., 0] == found[2, ..., 2]).all()


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


@pytest.mark.parametrize(("text", "says"), [("{", "is not valid JSON"), ('["a"]', "must be one JSON object of texts")])
def test_captions_of_another_form_are_refused(mvtec, text, says):
    (mvtec / "captions.json").write_text(text)
    with pytest.raises(InputError, match=says):
        formats.read_anomaly_folder(mvtec)


@pytest.mark.parametrize("kind", ["cut", "text", "empty"])
def test_a_broken_picture_is_named(tmp_path, kind):
    path = put(tmp_path / "bad.png", pairs.clutter_pairs(1, 0, size=64).images[0])
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"no picture", "empty": b""}[kind])
    with pytest.raises(InputError, match=r"bad\.png is no picture that can be read") as caught:
        read_images([path], 32)
    assert "\n" not in str(caught.value)


def test_pictures_stand_upright_as_their_exif_orientation_says(tmp_path):
    upright = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "turned.png")), np.asarray(upright))
