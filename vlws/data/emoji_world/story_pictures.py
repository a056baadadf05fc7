"""The pictures of stories: one or two emoji in one of five colours each, on a muted background, and what they show.

All pictures are SIZE px per side. A picture is drawn as a `View`, collected in an `Album`, and rendered when first
asked for. Seeds as in `vlws.data.emoji_world.scenes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from vlws.data.documents import Slice
from vlws.data.emoji_world import emoji, renderer, scenes
from vlws.data.emoji_world.scenes import COLOURS
from vlws.data.english import with_article

STORY_KINDS: dict[str, dict[str, str]] = {  # kind -> {word: CLDR name}; three things of a kind
    "mammal": {"cat": "cat face", "panda": "panda", "lion": "lion"},
    "bird": {"owl": "owl", "penguin": "penguin", "parrot": "parrot"},
    "bug": {"butterfly": "butterfly", "snail": "snail", "honeybee": "honeybee"},
    "flower": {"rose": "rose", "sunflower": "sunflower", "tulip": "tulip"},
    "fruit": {"banana": "banana", "melon": "watermelon", "strawberry": "strawberry"},
    "dish": {"pizza": "pizza", "hamburger": "hamburger", "pretzel": "pretzel"},
    "vehicle": {"car": "automobile", "bicycle": "bicycle", "train": "locomotive"},
    "garment": {"crown": "crown", "scarf": "scarf", "necktie": "necktie"},
}
KIND_OF = {word: kind for kind, words in STORY_KINDS.items() for word in words}
STORY_WORDS = tuple(KIND_OF)
SIDES = ("left", "right")
SIZE = 32


@cache
def sprite(word: str) -> int:
    """The index into `emoji.load()` of one of STORY_WORDS.

    >>> emoji.load().names[sprite("cat")]
    'cat face'
    """
    return emoji.load().index(STORY_KINDS[KIND_OF[word]][word])


# --- pictures and slices ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thing:
    """One of STORY_WORDS in one of COLOURS.

    >>> Thing("cat", "red")
    Thing(word='cat', colour='red')
    """

    word: str
    colour: str

    def __str__(self) -> str:
        return f"{self.colour} {self.word}"


@dataclass(frozen=True, slots=True)
class View:
    """What a picture shows: one thing, or two in one row, the left one first; `cells` of the 2 x 2 grid.

    >>> shown = View((Thing("cat", "red"), Thing("rose", "blue")), cells=(0, 1))
    >>> shown.sides(), shown.features()
    (('left', 'right'), ('cat', 'red cat', 'red cat left', 'rose', 'blue rose', 'blue rose right'))
    """

    things: tuple[Thing, ...]
    cells: tuple[int, ...]

    def sides(self) -> tuple[str, ...]:
        """ "left" or "right" of each thing."""
        return tuple(SIDES[cell % 2] for cell in self.cells)

    def features(self) -> tuple[str, ...]:
        """The facts that the picture shows, coarse to fine: each thing's word, with its colour, and with its side."""
        placed = zip(self.things, self.sides(), strict=True)
        return tuple(f for t, s in placed for f in (t.word, str(t), f"{t} {s}"))


def view(things: Sequence[Thing], rng: np.random.Generator) -> View:
    """A view of one thing in any cell, or of two in a row in this order.

    >>> view([Thing("cat", "red"), Thing("rose", "blue")], np.random.default_rng(0)).cells
    (2, 3)
    """
    row = 2 * int(rng.integers(2))
    return View(tuple(things), (row + int(rng.integers(2)),) if len(things) == 1 else (row, row + 1))


def render(views: Sequence[View], seed: int) -> np.ndarray:
    """Views -> "n 32 32 3" uint8; pose and background are drawn from `seed`.

    >>> render([View((Thing("cat", "red"),), cells=(0,))], seed=0).shape
    (1, 32, 32, 3)
    """
    grounds = scenes.sample(len(views), seed, muted=True)
    poses = np.random.default_rng(seed).integers(0, [5, 5, 3, 3], size=(len(views), 2, 4))
    made = []
    for picture, ground, pose in zip(views, grounds, poses, strict=True):
        items = [
            scenes.Item(sprite(t.word), cell, 24 + a, 3 * b - 6, y - 1, x - 1, scenes.TINT_NAMES.index(t.colour))
            for t, cell, (a, b, y, x) in zip(picture.things, picture.cells, pose.tolist(), strict=False)
        ]
        made.append(scenes.Scene(tuple(items), ground.background))
    return renderer.render(made, SIZE)


@dataclass
class Album:
    """Views that are rendered when first asked for; a slice holds the index that its picture will have.

    >>> album = Album(seed=0)
    >>> album.add(View((Thing("cat", "red"),), cells=(0,))).image, album.render().shape
    (0, (1, 32, 32, 3))
    """

    seed: int
    views: list[View] = field(default_factory=list)

    def add(self, picture: View) -> Slice:
        """Take up a view; the slice that stands for its picture."""
        self.views.append(picture)
        return Slice(image=len(self.views) - 1, features=picture.features())

    def render(self) -> np.ndarray:
        """All pictures, "n 32 32 3" uint8 RGB."""
        return render(self.views, self.seed)


def statement(text: str, *features: str) -> Slice:
    """A sentence that the language model learns.

    >>> statement("a red cat.").supervised
    True
    """
    return Slice(text=text, features=features, supervised=True)


def question(text: str, *features: str) -> Slice:
    """A sentence that the language model reads; it learns the answer alone.

    >>> question("what colour is the cat?").supervised
    False
    """
    return Slice(text=text, features=features)


def draw_thing(rng: np.random.Generator, without: Sequence[str] = ()) -> Thing:
    """A thing in a random colour; its word is none of `without`.

    >>> thing = draw_thing(np.random.default_rng(0), without=["cat"])
    >>> thing.word != "cat", thing.colour in COLOURS
    (True, True)
    """
    words = [w for w in STORY_WORDS if w not in without]
    return Thing(words[rng.integers(len(words))], COLOURS[rng.integers(len(COLOURS))])


def draw_things(n: int, rng: np.random.Generator) -> list[Thing]:
    """n things with different words.

    >>> len({thing.word for thing in draw_things(4, np.random.default_rng(0))})
    4
    """
    words = rng.permutation(STORY_WORDS)[:n].tolist()
    return [Thing(word, COLOURS[c]) for word, c in zip(words, rng.integers(len(COLOURS), size=n), strict=True)]


def pick_other(options: Sequence[str], but: str, rng: np.random.Generator) -> str:
    """One of the options that are not `but`.

    >>> pick_other(["left", "right"], "left", np.random.default_rng(0))
    'right'
    """
    rest = [o for o in options if o != but]
    return rest[rng.integers(len(rest))]


def phrase(picture: View) -> str:
    """ "a red cat", "a red cat left of a blue rose".

    >>> phrase(View((Thing("cat", "red"), Thing("rose", "blue")), cells=(0, 1)))
    'a red cat left of a blue rose'
    """
    return " left of ".join(with_article(str(t)) for t in picture.things)


CAPTIONS = ("{}.", "here is {}.", "we see {}.", "this shows {}.", "look at {}.")


def caption(picture: View, form: int) -> Slice:
    """A full description of a picture, in one of len(CAPTIONS) forms.

    >>> caption(View((Thing("cat", "red"),), cells=(0,)), form=1).text
    'here is a red cat.'
    """
    return statement(CAPTIONS[form].format(phrase(picture)), *picture.features())
