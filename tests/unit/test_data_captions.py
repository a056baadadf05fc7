"""Captions are true of their scenes."""

import re

import pytest

from vlws.data.emoji_world import captions, emoji, pairs, scenes
from vlws.data.english import with_article

KNOWN = emoji.load()


def meanings(noun: str) -> set[int]:
    """All emoji of the classes that a noun may stand for."""
    found = set()
    for i, k in scenes.class_of().items():
        words = scenes.CLASSES[scenes.CLASS_NAMES[k]].words
        nouns = {KNOWN.names[i], *captions.own_keywords()[i], *words}
        nouns |= {f"{KNOWN.names[i]}, {with_article(word)}" for word in words}
        if noun in nouns:
            found.add(i)
    return found


def read_back(caption: str, scene: scenes.Scene) -> list[tuple[set[int], int | None, int | None]]:
    """(possible emoji, tint, cell) of each phrase of a caption."""
    patterns = [re.escape(t).replace(r"\{\}", "(.*)") for t in captions.TEMPLATES if t != "{}"]
    told = next((m.group(1) for p in patterns if (m := re.fullmatch(p, caption))), caption)
    phrases = re.split(r", (?!an? \w+(?: of \w+)?$)| and ", told) if len(scene.items) > 1 else [told]
    out = []
    for phrase in phrases:
        cell = tint = None
        if found := re.fullmatch(r"(.*) (?:at|in) the ((?:top|bottom|middle)(?: \w+)?)", phrase):
            phrase, cell = found.group(1), scenes.POSITIONS[scene.grid].index(found.group(2))
        phrase = re.sub(r"^an? ", "", phrase)
        first, _, rest = phrase.partition(" ")
        if first in scenes.TINTS and meanings(rest):
            tint, phrase = scenes.TINT_NAMES.index(first), rest
        out.append((meanings(phrase), tint, cell))
    return out


@pytest.mark.parametrize("sampling", [{"items": (1, 1)}, {}, {"grid": 3, "items": (2, 4)}])
def test_a_caption_read_back_fits_its_scene(sampling):
    found = scenes.sample(400, 31, **sampling)
    tints = cells = 0
    for scene, caption in zip(found, captions.captions(found, 5), strict=True):
        phrases = read_back(caption, scene)
        assert len(phrases) == len(scene.items), caption
        for item, (means, tint, cell) in zip(scene.items, phrases, strict=True):
            assert item.emoji in means, caption
            assert tint is None or tint == item.tint, caption
            assert cell is None or cell == item.cell, caption
            tints, cells = tints + (tint is not None), cells + (cell is not None)
    assert tints > 50
    assert (cells > 50) == (sampling.get("items") != (1, 1))


def test_captions_use_names_keywords_class_words_and_every_template():
    found = pairs.clutter_pairs(2000, 1, size=16)
    assert len(set(found.captions)) > 500
    starts = [t.split("{}")[0] for t in captions.TEMPLATES if t.split("{}")[0]]
    assert all(any(c.startswith(start) for c in found.captions) for start in starts)
    words = {word for c in scenes.CLASSES.values() for word in c.words}
    assert all(any(word in c for c in found.captions) for word in words)
    assert not any("mosaic" in c or "clutter" in c for c in found.captions)


def test_captions_depend_on_the_seed_only():
    found = scenes.sample(50, 2)
    assert captions.captions(found, 9) == captions.captions(found, 9)
    assert captions.captions(found, 9) != captions.captions(found, 10)
    assert captions.captions(found[:10], 9) == captions.captions(found, 9)[:10]


def test_a_keyword_belongs_to_one_class():
    owner = {}
    for i, words in captions.own_keywords().items():
        for word in words:
            assert owner.setdefault(word, scenes.class_of()[i]) == scenes.class_of()[i]
    assert "face" not in owner
    assert owner["pet"] == scenes.CLASS_NAMES.index("mammal")


@pytest.mark.parametrize(
    ("noun", "told"),
    [
        ("apple", "an apple"),
        ("bus", "a bus"),
        ("grapes", "grapes"),
        ("cactus", "a cactus"),
        ("dress", "a dress"),
        ("Japanese castle", "a Japanese castle"),
        ("grapes, a fruit", "grapes, a fruit"),
        ("ox, a beast", "an ox, a beast"),
    ],
)
def test_articles(noun, told):
    assert with_article(noun) == told
