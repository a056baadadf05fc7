"""The one opener of pictures: bit depths, modes, orientation, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from vlws.data.emoji_world import pairs
from vlws.data.images import open_image, read_images, stack_images
from vlws.errors import InputError


def put(path, image):
    Image.fromarray(image).save(path)
    return path


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


GREY = np.linspace(0, 65535, 64)[None] * np.ones((4, 1))


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", "<u2"), ("a.tif", "<u2"), ("b.tif", ">u2"), ("a.ppm", "<u2")], ids=str
)
def test_sixteen_bits_are_scaled_by_their_depth(tmp_path, name, dtype):
    path = put(tmp_path / name, GREY.astype(dtype))
    pixels = np.asarray(open_image(path))
    np.testing.assert_allclose(pixels[..., 1], GREY / 257, atol=0.51)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(open_image(picture)), pixels)


def test_sixteen_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "a.png", exif=exif)
    pixels = np.asarray(open_image(tmp_path / "a.png"))
    assert pixels.shape == (64, 4, 3)
    np.testing.assert_allclose(pixels[:, 0, 0], GREY[0] / 257, atol=0.51)


@pytest.mark.parametrize(("dtype", "says"), [(np.float32, "floating-point"), (np.int32, "signed or 32-bit integer")])
def test_pixels_without_a_white_are_refused(tmp_path, dtype, says):
    path = put(tmp_path / "a.tif", GREY.astype(dtype))
    with pytest.raises(
        InputError, match=rf"a\.tif has {says} pixels; accepted are 8 and 16 bits per channel, unsigned"
    ):
        open_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_keeps_its_colours(tmp_path, mode):
    red = Image.new("RGB", (8, 8), (255, 255, 255) if mode in ("1", "L", "LA") else (255, 0, 0))
    picture = red.convert("L").convert(mode) if mode == "LA" else red.convert(mode)
    np.testing.assert_allclose(np.asarray(open_image(picture), int), np.asarray(red, int), atol=8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.convert(mode).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 255]


def test_cmyk_is_read_from_a_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    np.testing.assert_allclose(np.asarray(open_image(tmp_path / "a.jpg"), int)[0, 0], [255, 0, 0], atol=6)


def test_of_an_animated_picture_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.png", "a.webp", "a.tif"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({} if name == "a.tif" else {"duration": 9})
        )
        np.testing.assert_allclose(np.asarray(open_image(tmp_path / name), int)[0, 0], [255, 0, 0], atol=4)


def test_a_list_of_pictures_is_an_array(tmp_path):
    images = pairs.clutter_pairs(3, 0, size=32).images
    given = [images[0], Image.fromarray(images[1]), put(tmp_path / "a.png", images[2])]
    np.testing.assert_array_equal(stack_images(given), images)
    assert stack_images(images) is images


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)],
            "picture 0 is 8 x 8 and picture 1 is 8 x 9 pix",
        ),
        ([np.zeros((8, 8, 3), np.float32)], "a picture is float32"),
        (np.zeros((8, 8, 3), np.uint8), "images are uint8 "),
        (np.zeros((1, 8, 8, 3)), "images are float64"),
        ([], "images are an empty list"),
        (Image.new("RGB", (8, 8)), "images are one Image"),
    ],
)
def test_what_is_no_list_of_pictures_is_refused(given, says):
    with pytest.raises(InputError, match=says):
        stack_images(given)
