"""Stories: interleaved image-text documents over emoji pictures whose last event depends on all earlier ones.

A story meets a thing, paints it in the colour of a second, meets a third, paints that in the colour of a fourth; its
fifth picture shows the two side by side, as they have become. The sentences leave out what the pictures show (which
mammal, which colour), so the last picture follows from the earlier pictures and sentences together and from neither
alone. `corpus` draws training documents: stories, pairs and questions; `story_sets` holds what a model is measured on.

Seeds: as in `vlws.data.emoji_world.scenes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlws.data.documents import Document, Documents, Slice
from vlws.data.emoji_world.questions import QUESTIONS
from vlws.data.emoji_world.scenes import COLOURS
from vlws.data.emoji_world.story_pictures import (
    CAPTIONS,
    KIND_OF,
    SIDES,
    STORY_KINDS,
    Album,
    Thing,
    View,
    caption,
    draw_things,
    phrase,
    pick_other,
    question,
    statement,
    view,
)
from vlws.errors import InputError

EVENTS = 5
SENTENCES = (  # three ways to tell each event
    ("first a {} came.", "it began with a {}.", "there was a {}."),
    ("it took the colour of a {}.", "it was painted like a {}.", "it went as a {} is."),
    ("then a {} came.", "next there was a {}.", "after it a {}."),
    ("that took the colour of a {}.", "that was painted like a {}.", "that went as a {} is."),
    ("now the first is {}.", "at last the first stands {}.", "in the end the first was {}."),
)
LAST_QUESTION = "what now?"


@dataclass(frozen=True, slots=True)
class Story:
    """Four pictures of one thing each, and the side on which the first stands at last.

    The first takes the colour of the second, the third that of the fourth. `forms`: the sentence of each event.

    >>> (story,) = sample(1, seed=0)
    >>> len(story.views()), [sentence.text for sentence in story.sentences()][:2]
    (5, ['it began with a vehicle.', 'it went as a penguin is.'])
    """

    things: tuple[Thing, Thing, Thing, Thing]
    side: str
    cells: tuple[int, int, int, int]
    row: int
    forms: tuple[int, ...]

    def views(self) -> list[View]:
        """The five pictures; the last depends on all four things and on the fifth sentence."""
        first, second, third, fourth = self.things
        became = [Thing(first.word, second.colour), Thing(third.word, fourth.colour)]
        last = became if self.side == "left" else became[::-1]
        seen = [View((t,), (c,)) for t, c in zip(self.things, self.cells, strict=True)]
        return [*seen, View(tuple(last), (2 * self.row, 2 * self.row + 1))]

    def sentences(self) -> list[Slice]:
        """The five sentences: kinds of the first and third, words (no colours) of the second and fourth, a side."""
        first, second, third, fourth = self.things
        words = [KIND_OF[first.word], second.word, KIND_OF[third.word], fourth.word, self.side]
        return [
            statement(SENTENCES[e][form].format(word), word, f"event {e} {word}")
            for e, (form, word) in enumerate(zip(self.forms, words, strict=True))
        ]


def sample(n: int, seed: int) -> list[Story]:
    """n stories; the four things have different words.

    >>> (story,) = sample(1, seed=0)
    >>> len({thing.word for thing in story.things}), sample(2, seed=0)[0] == story
    (4, True)
    """
    rng = np.random.default_rng(seed)
    return [
        Story(
            tuple(draw_things(4, rng)),
            SIDES[rng.integers(2)],
            tuple(rng.integers(4, size=4).tolist()),
            int(rng.integers(2)),
            tuple(rng.integers(len(SENTENCES[0]), size=EVENTS).tolist()),
        )
        for _ in range(n)
    ]


TWINS = ("first word", "third word", "second colour", "fourth colour", "side")


def near_twin(story: Story, seed: int, change: str | None = None) -> Story:
    """The story with one attribute changed (one of TWINS), in other words; only the side stands in the words.

    >>> (story,) = sample(1, seed=0)
    >>> near_twin(story, seed=0, change="side").side != story.side
    True
    """
    rng = np.random.default_rng(seed)
    change = TWINS[rng.integers(len(TWINS))] if change is None else change
    if change not in TWINS:
        raise InputError(f"change={change!r}: a twin differs by one of {', '.join(TWINS)}.")
    things, side = list(story.things), story.side
    if change == "side":
        side = pick_other(SIDES, side, rng)
    else:
        at = ("first", "second", "third", "fourth").index(change.split()[0])
        thing = things[at]
        if change.endswith("word"):
            taken = {t.word for t in things}
            words = [w for w in STORY_KINDS[KIND_OF[thing.word]] if w == thing.word or w not in taken]
            if len(words) < 2:  # its siblings stand elsewhere in the story
                return near_twin(story, seed, "side")
            things[at] = replace(thing, word=pick_other(words, thing.word, rng))
        else:
            things[at] = replace(thing, colour=pick_other(COLOURS, thing.colour, rng))
    return replace(retold(story, seed), things=tuple(things), side=side)


def retold(story: Story, seed: int) -> Story:
    """The same events in other words, the things in other places.

    >>> (story,) = sample(1, seed=0)
    >>> again = retold(story, seed=0)
    >>> again.things == story.things, again.forms == story.forms
    (True, False)
    """
    rng = np.random.default_rng(seed)
    forms = tuple(int((f + 1 + rng.integers(len(SENTENCES[0]) - 1)) % len(SENTENCES[0])) for f in story.forms)
    return replace(story, forms=forms, cells=tuple(rng.integers(4, size=4).tolist()), row=int(rng.integers(2)))


def tell(
    story: Story, pictures: Sequence[Slice], with_picture: Sequence[bool], with_sentence: Sequence[bool]
) -> list[Slice]:
    """Sentence 1, picture 1, sentence 2, ...: of each event those slices for which the two lists hold True.

    >>> (story,) = sample(1, seed=0)
    >>> pictures = [Slice(image=k) for k in range(5)]
    >>> told = tell(story, pictures, with_picture=[True] * 4 + [False], with_sentence=[True] * 5)
    >>> [part.is_image for part in told]
    [False, True, False, True, False, True, False, True, False]
    """
    slices = []
    for e, (sentence, picture) in enumerate(zip(story.sentences(), pictures, strict=True)):
        slices += ([sentence] if with_sentence[e] else []) + ([picture] if with_picture[e] else [])
    return slices


# --- the corpus -----------------------------------------------------------------------------------------------------

MIX = {"story": 0.40, "pair": 0.20, "question": 0.40}


def corpus(n: int, seed: int, mix: dict[str, float] | None = None, lone: bool = True) -> Documents:
    """n training documents; stories in groups of four: a story, a near-twin, a retelling and another story.

    story: half with all sentences and four pictures, one in four without pictures, one in four with each of the first
        four events as picture, sentence, or both; then the question what the last picture shows. Its `lone` slice is
        that picture.
    pair: a picture and its caption; the `lone` slice is the caption.
    question: a picture (or several, or a reference and a picture) and a question with its answer, kinds in turn; the
        name of one of QUESTIONS asks for questions of that kind.

    >>> found = corpus(20, seed=0, mix={"pair": 1.0})
    >>> len(found), found.images.shape[1:], found.documents[0].slices[0].is_image, found.documents[0].lone.text
    (20, (32, 32, 3), True, 'look at a purple bicycle left of a red sunflower.')
    """
    mix = MIX if mix is None else mix
    unknown = [kind for kind in mix if kind not in ("story", "pair", "question", *QUESTIONS)]
    if unknown:
        raise InputError(f"mix names {unknown[0]!r}; accepted are story, pair, question, {', '.join(QUESTIONS)}.")
    rng = np.random.default_rng(seed)
    counts = {kind: round(n * share) for kind, share in mix.items()}
    counts["question"] = max(0, n - sum(count for kind, count in counts.items() if kind != "question"))
    album, documents = Album(seed), []
    group: list[Story] = []
    for k in range(counts.get("story", 0)):
        if not group:
            one, another = sample(2, int(rng.integers(2**31)))
            group = [another, retold(one, k), near_twin(one, k), one]
        documents.append(_story_document(group.pop(), album, rng, lone))
    for _ in range(counts.get("pair", 0)):
        picture = view(draw_things(int(rng.integers(1, 3)), rng), rng)
        text = caption(picture, int(rng.integers(len(CAPTIONS))))
        documents.append(Document((album.add(picture), text), lone=replace(text, supervised=False) if lone else None))
    kinds = [kind for kind, count in counts.items() if kind in QUESTIONS for _ in range(count)]
    kinds += [tuple(QUESTIONS)[k % len(QUESTIONS)] for k in range(counts["question"])]
    documents += [QUESTIONS[kind](album, rng) for kind in kinds]
    order = rng.permutation(len(documents))
    return Documents(tuple(documents[i] for i in order), album)


def _story_document(story: Story, album: Album, rng: np.random.Generator, lone: bool) -> Document:
    views = story.views()
    form = rng.integers(4)
    with_picture, with_sentence = [form != 2] * 4 + [False], [True] * EVENTS
    if form == 3:
        how = rng.integers(3, size=4)  # picture, sentence, both
        with_picture, with_sentence = [*(how != 1), False], [*(how != 0), True]
    pictures = [album.add(v) if s else Slice() for v, s in zip(views, with_picture, strict=True)]
    asked = question(LAST_QUESTION, "question")
    last = album.add(views[-1]) if lone else None
    slices = (*tell(story, pictures, with_picture, with_sentence), asked)
    return Document(slices, answer=phrase(views[-1]), lone=last)
