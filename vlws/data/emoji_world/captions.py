"""Captions of scenes, from templates; all are true."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from vlws.data.emoji_world import emoji
from vlws.data.emoji_world.scenes import (
    CLASS_NAMES,
    CLASSES,
    POSITIONS,
    TINT_NAMES,
    Item,
    Scene,
    below,
    class_of,
    draws,
)
from vlws.data.english import with_article

ORDINALS = ("first", "second", "third", "fourth")
TEMPLATES = (
    "a photo of {}",
    "a picture of {}",
    "an image that shows {}",
    "there is {}",
    "here you see {}",
    "{}",
    "look, {}",
    "{} on a patterned ground",
)


def class_texts() -> list[list[str]]:
    """Prompts of each of CLASSES, in their order: every class word in every template.

    >>> texts = class_texts()
    >>> len(texts) == len(CLASS_NAMES), texts[0][0]
    (True, 'a photo of a smiley')
    """
    return [[t.format(with_article(word)) for word in c.words for t in TEMPLATES] for c in CLASSES.values()]


@cache
def own_keywords() -> dict[int, tuple[str, ...]]:
    """Emoji index -> its CLDR keywords that no emoji of another class has (members of the classes only).

    "face" says nothing between a smiley and a cat face; "pet" does.

    >>> from vlws.data.emoji_world import emoji
    >>> words = own_keywords()[emoji.load().index("cat face")]
    >>> "face" in words, "pet" in words
    (False, True)
    """
    known = emoji.load()
    users: dict[str, set[int]] = {}
    for i, k in class_of().items():
        for word in {*known.keywords[i], *known.names[i].split()}:
            users.setdefault(word, set()).add(k)
    words = {*TINT_NAMES, *(part for c in CLASSES.values() for word in c.words for part in (word, *word.split()))}
    return {
        i: tuple(w for w in known.keywords[i] if len(users[w]) == 1 and w not in words and w != known.names[i])
        for i in class_of()
    }


def captions(scenes: Sequence[Scene], seed: int) -> list[str]:
    """One true caption per scene: one of the templates around every item, in the order of the cells.

    An item is called by its CLDR name, a keyword of its own, a word of its class, or "name, a class". Its tint, where
    it has one, is named three times in four; its place, where there are several items, one time in two. Clutter and
    background are never named.

    >>> from vlws.data.emoji_world import scenes
    >>> captions(scenes.sample(1, seed=0), seed=0)
    ['a motor scooter, a smile and a smiley']
    """
    words = draws(len(scenes), 2 + 4 * 4, seed)
    return [_caption(scene, row) for scene, row in zip(scenes, words, strict=True)]


def tells_class_only(scenes: Sequence[Scene], seed: int) -> np.ndarray:
    """ "n" bool: the caption of `captions(scenes, seed)` calls every item by a bare word of its class, tints aside.

    "a bug" is such a caption, even where it is meant as the CLDR name of one bug.

    >>> from vlws.data.emoji_world import scenes
    >>> tells_class_only(scenes.sample(4, seed=0, items=(1, 1)), seed=0).shape
    (4,)
    """
    words = draws(len(scenes), 2 + 4 * 4, seed)
    return np.array(
        [
            all(
                item.emoji in class_of()
                and _noun(item.emoji, _form(scene, row, k), row[3 + 4 * k])
                in CLASSES[CLASS_NAMES[class_of()[item.emoji]]].words
                for k, item in enumerate(scene.items)
            )
            for scene, row in zip(scenes, words, strict=True)
        ],
        bool,
    )


def _form(scene: Scene, row: np.ndarray, k: int) -> int:
    return int(below(row[2 + 4 * k], 15 if len(scene.items) > 1 else 20))


def _caption(scene: Scene, row: np.ndarray) -> str:
    places = len(scene.items) > 1 and below(row[1], 2) == 1
    phrases = []
    for k, item in enumerate(scene.items):
        _, choice, tint, _ = row[2 + 4 * k : 6 + 4 * k]
        noun = _noun(item.emoji, _form(scene, row, k), choice)
        if item.tint and below(tint, 4):
            noun = f"{TINT_NAMES[item.tint]} {noun}"
        phrase = with_article(noun)
        phrases.append(f"{phrase} {_at(scene, item)}" if places else phrase)
    things = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return TEMPLATES[int(below(row[0], len(TEMPLATES)))].format(things)


def _noun(index: int, form: int, choice) -> str:
    """form 0-6: the name; 7-9: a keyword of its own; 10-14: a class word; 15-19: "name, a class" (single items)."""
    name = emoji.load().names[index]
    if index not in class_of():
        return name
    class_words, keywords = CLASSES[CLASS_NAMES[class_of()[index]]].words, own_keywords()[index]
    if form < 7 or (form < 10 and not keywords):
        return name
    if form < 10:
        return keywords[int(below(choice, len(keywords)))]
    word = class_words[int(below(choice, len(class_words)))]
    return word if form < 15 else f"{name}, {with_article(word)}"


def _at(scene: Scene, item: Item) -> str:
    place = POSITIONS[scene.grid][item.cell]
    return f"in the {place}" if place == "middle" else f"at the {place}"
