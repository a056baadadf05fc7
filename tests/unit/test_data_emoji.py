"""The emoji set, and the builder that remakes it."""

import json

import numpy as np
import pytest
from PIL import Image

from vlws.data.emoji_world import build, emoji
from vlws.errors import InputError


def test_every_column_has_one_entry_an_emoji():
    known = emoji.load()
    assert 1300 <= len(known) <= 1450
    assert known.sprites.shape == (len(known), 32, 32, 4)
    assert known.sprites.dtype == np.uint8
    for column in (known.names, known.keywords, known.groups, known.subgroups, known.codepoints):
        assert len(column) == len(known)
    assert len(set(known.names)) == len(set(known.codepoints)) == len(known)
    assert np.mean([bool(words) for words in known.keywords]) > 0.98  # the font is newer than CLDR by one Unicode


def test_known_emoji_are_what_unicode_says():
    known = emoji.load()
    cat = known.index("🐱")
    assert known.names[cat] == "cat face"
    assert "pet" in known.keywords[cat]
    assert (known.groups[cat], known.subgroups[cat]) == ("Animals & Nature", "animal-mammal")
    assert known.codepoints[cat] == 0x1F431
    assert known.index("cat face") == cat
    heart = known.sprites[known.index("red heart")].astype(int)
    solid = heart[heart[..., 3] == 255]
    assert (solid[:, 0] > solid[:, 1] + 50).mean() > 0.9  # the red heart is red


def test_every_sprite_shows_something_and_hides_no_colour_under_full_transparency():
    sprites = emoji.load().sprites
    assert ((sprites[..., 3] > 127).sum((1, 2)) >= 12).all()
    assert not sprites[sprites[..., 3] == 0].any()


def test_the_shared_arrays_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        emoji.load().sprites[0] = 0


def test_selection_by_group_and_subgroup():
    known = emoji.load()
    fruit = known.select(subgroup="food-fruit")
    assert "banana" in fruit.names
    assert set(fruit.subgroups) == {"food-fruit"}
    np.testing.assert_array_equal(fruit.sprites[0], known.sprites[known.index(fruit.names[0])])
    assert len(known.where(group="Food & Drink")) > len(known.where(subgroup=["food-fruit", "drink"])) > len(fruit)


@pytest.mark.parametrize("given", [{"group": "Cars"}, {"subgroup": "cars"}, {"subgroup": ["food-fruit", "cars"]}])
def test_an_unknown_group_is_refused_with_the_known_ones(given):
    with pytest.raises(InputError, match=r"There is no emoji (sub)?group '[Cc]ars'; known: "):
        emoji.load().where(**given)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="There is no emoji 'flying carpet'"):
        emoji.load().index("flying carpet")


def test_a_missing_package_is_named_with_its_path(monkeypatch, tmp_path):
    monkeypatch.setitem(build.SOURCES, "unicode-data", tmp_path / "emoji-test.txt")
    monkeypatch.setitem(build.SOURCES, "fonts-noto-color-emoji", build.ASSETS / "emoji.png")
    monkeypatch.setitem(build.SOURCES, "unicode-cldr-core", build.ASSETS / "emoji.json")
    with pytest.raises(InputError, match=r"emoji-test\.txt is missing: install the Debian package unicode-data"):
        build.build(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not all(path.is_file() for path in build.SOURCES.values()),
    reason="the Debian packages fonts-noto-color-emoji, unicode-cldr-core and unicode-data are not all installed",
)
def test_the_shipped_assets_are_what_the_builder_makes(tmp_path):
    build.build(tmp_path)
    made, shipped = (json.loads((folder / "emoji.json").read_text("utf-8")) for folder in (tmp_path, build.ASSETS))
    assert made == shipped
    with Image.open(tmp_path / "emoji.png") as a, Image.open(build.ASSETS / "emoji.png") as b:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert sum(path.stat().st_size for path in build.ASSETS.glob("emoji.*")) < 3_000_000
