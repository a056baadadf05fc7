"""Questions about the pictures of stories: one true answer each, most from a closed set of choices."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vlws.data.documents import Document, Slice, with_reference
from vlws.data.emoji_world.captions import ORDINALS
from vlws.data.emoji_world.scenes import COLOURS
from vlws.data.emoji_world.story_pictures import (
    KIND_OF,
    SIDES,
    STORY_KINDS,
    STORY_WORDS,
    Album,
    Thing,
    View,
    draw_thing,
    draw_things,
    pick_other,
    question,
    view,
)
from vlws.data.english import with_article

KEEPERS = ("anna", "bert", "carl", "dora", "emil", "frida", "gus", "hana")
KEEPER_QUESTION = "who keeps it?"


def ask(slices: Sequence[Slice], text: str, answer: str, choices: Sequence[str]) -> Document:
    """The slices, then a question with its answer.

    >>> document = ask([Slice(image=0)], "what colour?", "red", ["red", "blue"])
    >>> document.slices[-1].text, document.answer, document.choices
    ('what colour?', 'red', ('red', 'blue'))
    """
    return Document((*slices, question(text, *text.split())), answer=answer, choices=tuple(choices))


def _presence(album: Album, rng: np.random.Generator) -> Document:
    """Balanced; an absent thing is of the same kind as one in the picture (adversarial, as POPE's)."""
    things = draw_things(int(rng.integers(1, 3)), rng)
    word = things[rng.integers(len(things))].word
    answer = ("yes", "no")[rng.integers(2)]
    if answer == "no":
        absent = [w for w in STORY_KINDS[KIND_OF[word]] if w not in {t.word for t in things}]
        word = absent[rng.integers(len(absent))]
    return ask([album.add(view(things, rng))], f"is there {with_article(word)}?", answer, ("yes", "no"))


def _colour(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(1, 3)), rng)
    thing = things[rng.integers(len(things))]
    return ask([album.add(view(things, rng))], f"what colour is the {thing.word}?", thing.colour, COLOURS)


def _what(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(1, 3)), rng)
    picture = view(things, rng)
    k = rng.integers(len(things))
    return ask([album.add(picture)], f"what is {picture.sides()[k]}?", things[k].word, STORY_WORDS)


def _where(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(1, 3)), rng)
    picture = view(things, rng)
    k = rng.integers(len(things))
    return ask([album.add(picture)], f"where is the {things[k].word}?", picture.sides()[k], SIDES)


def _either(album: Album, rng: np.random.Generator) -> Document:
    return twin_questions(album, rng)[int(rng.integers(2))]


def _several(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(2, 7)), rng)
    return colour_of_one(things, int(rng.integers(len(things))), album, rng)


def colour_of_one(things: Sequence[Thing], at: int, album: Album, rng: np.random.Generator) -> Document:
    """One picture per thing, and a question on the colour of things[at].

    >>> album, rng = Album(seed=0), np.random.default_rng(0)
    >>> document = colour_of_one([Thing("cat", "red"), Thing("dog", "blue")], 1, album, rng)
    >>> len(album.views), document.slices[-1].text, document.answer
    (2, 'what colour is the dog?', 'blue')
    """
    pictures = [album.add(view([t], rng)) for t in things]
    return ask(pictures, f"what colour is the {things[at].word}?", things[at].colour, COLOURS)


def _order(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(2, 5)), rng)
    k = int(rng.integers(len(things)))
    pictures = [album.add(view([t], rng)) for t in things]
    return ask(pictures, f"what is {ORDINALS[k]}?", things[k].word, STORY_WORDS)


def _reference(album: Album, rng: np.random.Generator) -> Document:
    thing, keeper = draw_thing(rng), KEEPERS[rng.integers(len(KEEPERS))]
    seen, asked = (album.add(view([thing], rng)) for _ in range(2))
    return with_reference(ask([asked], KEEPER_QUESTION, keeper, KEEPERS), ask([seen], KEEPER_QUESTION, keeper, ()))


def twin_questions(album: Album, rng: np.random.Generator) -> list[Document]:
    """Two near-twin pictures with one question of two answers: each is right for one of them.

    >>> one, other = twin_questions(Album(seed=0), np.random.default_rng(0))
    >>> one.slices[-1] == other.slices[-1], one.answer != other.answer, one.choices == other.choices
    (True, True, True)
    """
    a, b = draw_things(2, rng)
    change = rng.integers(3)
    if change == 0:  # colour
        other = replace(a, colour=pick_other(COLOURS, a.colour, rng))
        options, views = (a.colour, other.colour), ([a, b], [other, b])
        text = f"is the {a.word} {{}} or {{}}?"
    elif change == 1:  # word, of one kind
        words = [w for w in STORY_KINDS[KIND_OF[a.word]] if w != b.word]
        other = replace(a, word=pick_other(words, a.word, rng))
        options, views = (a.word, other.word), ([a, b], [other, b])
        text = "is that a {} or a {}?"
    else:
        options, views = SIDES, ([a, b], [b, a])
        text = f"is the {a.word} {{}} or {{}}?"
    text = text.format(*(options if rng.integers(2) else options[::-1]))
    row = 2 * int(rng.integers(2))
    pictures = [album.add(View(tuple(things), (row, row + 1))) for things in views]
    return [ask([p], text, answer, options) for p, answer in zip(pictures, options, strict=True)]


QUESTIONS: dict[str, Callable[[Album, np.random.Generator], Document]] = {
    "presence": _presence,
    "colour": _colour,
    "what": _what,
    "where": _where,
    "either": _either,
    "several": _several,
    "order": _order,
    "reference": _reference,
}
