"""The sets that a model is measured on, over the pictures of stories.

A retrieval split in the protocol of visual storytelling (VIST), single pairs, Winoground's pairs of pairs, questions
of one kind, near-twins, questions over several pictures, stories without their end, sequences of known likeness, and a
knowledge base. Seeds as in `vlws.data.emoji_world.scenes`.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlws.data.documents import Document, Documents, Pictured, Slice
from vlws.data.emoji_world.questions import KEEPER_QUESTION, KEEPERS, QUESTIONS, ask, colour_of_one, twin_questions
from vlws.data.emoji_world.scenes import COLOURS
from vlws.data.emoji_world.stories import EVENTS, LAST_QUESTION, near_twin, retold, sample, tell
from vlws.data.emoji_world.story_pictures import (
    CAPTIONS,
    STORY_WORDS,
    Album,
    Thing,
    caption,
    draw_thing,
    draw_things,
    phrase,
    pick_other,
    question,
    view,
)
from vlws.errors import InputError


@dataclass(frozen=True)
class RetrievalSplit(Pictured):
    """VIST's protocol: which of all pictures of all stories is the last of this one?

    Attributes:
        captions, interleaved: one query per story: five sentences (5c), or these and four pictures (5c+4i).
        pool: one-picture documents, five per story, in order; `images` are theirs.
        target: "story" index into the pool. seen: "story 4", the pool's pictures that an interleaved query shows.

    >>> split = retrieval_split(4, seed=0)
    >>> len(split.captions[0].slices), len(split.interleaved[0].slices), len(split.pool)
    (5, 9, 20)
    >>> split.target.shape, split.seen.shape
    ((4,), (4, 4))
    """

    captions: tuple[Document, ...]
    interleaved: tuple[Document, ...]
    pool: tuple[Document, ...]
    target: np.ndarray
    seen: np.ndarray
    album: Album


def retrieval_split(n: int, seed: int) -> RetrievalSplit:
    """n stories (even), half of them near-twins of the other half; the pool is their 5 n pictures.

    >>> split = retrieval_split(4, seed=0)
    >>> split.images.shape, split.target.tolist()  # the fifth picture of each story
    ((20, 32, 32, 3), [4, 9, 14, 19])
    """
    if n < 2 or n % 2:
        raise InputError(f"A retrieval split of {n} stories was asked for; it takes an even number, for their twins.")
    base = sample(n // 2, seed)
    stories = [s for k, one in enumerate(base) for s in (one, near_twin(one, seed + k))]
    album = Album(seed)
    queries, interleaved, pool = [], [], []
    for story in stories:
        pictures = [album.add(v) for v in story.views()]
        every, never = [True] * EVENTS, [False] * EVENTS
        queries.append(Document(tuple(tell(story, pictures, never, every))))
        interleaved.append(Document(tuple(tell(story, pictures, [*every[:4], False], every))))
        pool += [Document((picture,)) for picture in pictures]
    first = EVENTS * np.arange(n)
    seen = first[:, None] + np.arange(EVENTS - 1)
    return RetrievalSplit(tuple(queries), tuple(interleaved), tuple(pool), first + EVENTS - 1, seen, album)


@dataclass(frozen=True)
class Retellings(Pictured):
    """Stories; each again in other words and with new pictures; and so its near-twin, which differs in one attribute.

    >>> found = retellings(3, seed=0)
    >>> len(found.stories) == len(found.retold) == len(found.twins), len(found.stories[0].slices)
    (True, 9)
    """

    stories: tuple[Document, ...]
    retold: tuple[Document, ...]
    twins: tuple[Document, ...]
    album: Album


def retellings(n: int, seed: int) -> Retellings:
    """n stories with five sentences and four pictures; of each, a retelling and its near-twin's in the same words.

    >>> found = retellings(20, seed=0)
    >>> sum(a.slices[0].text == b.slices[0].text for a, b in zip(found.retold, found.twins))  # the first event
    20
    """
    album, parts = Album(seed), ([], [], [])
    for k, story in enumerate(sample(n, seed)):
        for part, one in zip(parts, (story, retold(story, seed + k), near_twin(story, seed + k)), strict=True):
            pictures = [album.add(v) for v in one.views()[:4]] + [Slice()]
            part.append(Document(tuple(tell(one, pictures, [True] * 4 + [False], [True] * EVENTS))))
    return Retellings(*map(tuple, parts), album)


@dataclass(frozen=True)
class PairSet(Pictured):
    """pictures[i] and texts[i] belong together; documents of one slice each.

    >>> found = pair_set(3, seed=0)
    >>> found.images.shape, found.texts[0].slices[0].text
    ((3, 32, 32, 3), 'look at a green car left of a green penguin.')
    """

    pictures: tuple[Document, ...]
    texts: tuple[Document, ...]
    album: Album


def pair_set(n: int, seed: int, without: Collection[str] = ()) -> PairSet:
    """n pictures of two things, all different, and their captions; none is a picture that `without` names.

    without: what pictures show, as `phrase` says it (`shown_in` gives that of training documents).

    Raises InputError where too few pictures are left.

    >>> len({document.slices[0].text for document in pair_set(20, seed=0).texts})
    20
    """
    rng = np.random.default_rng(seed)
    album, views = Album(seed), {}
    for _ in unshown(n, without, views):
        picture = view(draw_things(2, rng), rng)
        if phrase(picture) not in without:
            views.setdefault(phrase(picture), picture)
    pictures = tuple(Document((album.add(v),)) for v in views.values())
    texts = tuple(Document((caption(v, int(rng.integers(len(CAPTIONS)))),)) for v in views.values())
    return PairSet(pictures, texts, album)


def unshown(n: int, without: Collection[str], found: Collection[Any]) -> Iterator[int]:
    """Draws until `found` has n pictures; InputError where a hundred draws for each and a thousand more find too few.

    >>> found = []
    >>> for _ in unshown(2, (), found):
    ...     found.append("picture")
    >>> len(found)
    2
    """
    tries = 100 * n + 1000
    for k in range(tries):
        if len(found) >= n:
            return
        yield k
    if len(found) < n:
        raise InputError(
            f"{n} pictures that training has not shown were asked for, and {tries} draws found {len(found)}: training "
            f"shows {len(without)}; accepted are fewer test items or fewer training documents."
        )


def shown_in(found: Documents) -> frozenset[str]:
    """What each picture of these documents shows, in words: pictures that show the same have the same words.

    >>> from vlws.data.emoji_world import stories
    >>> len(shown_in(stories.corpus(20, seed=0, mix={"pair": 1.0})))  # two of twenty pictures show the same
    19

    Raises InputError for documents whose pictures are given and not drawn.
    """
    if not isinstance(found.album, Album):
        raise InputError("documents with pictures of their own were given; what is shown is known of drawn ones.")
    return frozenset(phrase(picture) for picture in found.album.views)


def winoground(n: int, seed: int, without: Collection[str] = ()) -> PairSet:
    """n pairs of pairs, rows 2k and 2k+1: the same words in another order (of two pairs, in the first places change
    hands, in the second colours); none is a picture that `without` names, as in `pair_set`.

    Raises InputError where too few pictures are left.

    >>> one, other = (document.slices[0].text for document in winoground(1, seed=0).texts)
    >>> one, other
    ('a green car left of a red penguin.', 'a red penguin left of a green car.')
    """
    rng = np.random.default_rng(seed)
    album, pictures, texts = Album(seed), [], []
    for _ in unshown(2 * n, without, pictures):
        a, b = draw_things(2, rng)
        b = replace(b, colour=pick_other(COLOURS, a.colour, rng))
        other = (Thing(a.word, b.colour), Thing(b.word, a.colour)) if len(pictures) % 4 else (b, a)
        form = int(rng.integers(len(CAPTIONS)))
        both = [view(things, rng) for things in ((a, b), other)]
        if any(phrase(picture) in without for picture in both):
            continue
        for picture in both:
            pictures.append(Document((album.add(picture),)))
            texts.append(Document((caption(picture, form),)))
    return PairSet(tuple(pictures), tuple(texts), album)


def questions(kind: str, n: int, seed: int) -> Documents:
    """n questions of one kind of QUESTIONS; several and order are over several pictures.

    >>> found = questions("colour", 2, seed=0)
    >>> found.documents[0].slices[-1].text, found.documents[0].answer in found.documents[0].choices
    ('what colour is the car?', True)
    """
    if kind not in QUESTIONS:
        raise InputError(f"kind={kind!r}: accepted are {', '.join(QUESTIONS)}.")
    rng, album = np.random.default_rng(seed), Album(seed)
    documents = tuple(QUESTIONS[kind](album, rng) for _ in range(n))
    return Documents(documents, album)


def twins(n: int, seed: int) -> Documents:
    """n near-twin pictures, rows 2k and 2k+1, with one question of two answers: each is right for one of them.

    >>> found = twins(2, seed=0)
    >>> found.documents[0].answer != found.documents[1].answer
    True
    """
    rng, album = np.random.default_rng(seed), Album(seed)
    documents = [d for _ in range(n // 2) for d in twin_questions(album, rng)]
    return Documents(tuple(documents), album)


def positions(n: int, seed: int, length: int = 6) -> Documents:
    """n questions over `length` pictures; row k * length + p has the useful picture at place p.

    >>> found = positions(1, seed=0, length=3)
    >>> len(found), [len(document.slices) for document in found.documents]  # three pictures and the question
    (3, [4, 4, 4])
    """
    rng, album, documents = np.random.default_rng(seed), Album(seed), []
    for _ in range(n):
        useful, *rest = draw_things(length, rng)
        first = colour_of_one([useful, *rest], 0, album, rng)
        picture, others, question = first.slices[0], first.slices[1:-1], first.slices[-1]
        for p in range(length):
            documents.append(replace(first, slices=(*others[:p], picture, *others[p:], question)))
    return Documents(tuple(documents), album)


def story_questions(n: int, seed: int) -> Documents:
    """n stories with all sentences and four pictures, and the question what the last picture shows.

    >>> (document,) = story_questions(1, seed=0).documents
    >>> document.slices[-1].text, sum(part.is_image for part in document.slices)
    ('what now?', 4)
    """
    album, documents = Album(seed), []
    for story in sample(n, seed):
        pictures = [album.add(v) for v in story.views()[:4]] + [Slice()]
        slices = tell(story, pictures, [True] * 4 + [False], [True] * EVENTS)
        documents.append(Document((*slices, question(LAST_QUESTION)), answer=phrase(story.views()[-1])))
    return Documents(tuple(documents), album)


RELATIONS = ("shown again", "permuted", "replaced", "repainted", "prefix", "unrelated")


@dataclass(frozen=True)
class SequencePairs(Pictured):
    """Documents 2k and 2k+1 are related as `relation[k]` says; `truth` "pair" is how alike they are, in [0, 1].

    truth: the longest common subsequence of their events, where the same thing counts 1, in another colour 1/2, over
    the longer length. It favours what respects order, by design.

    >>> found = sequence_pairs(6, seed=0)
    >>> len(found.documents), sorted(found.relation) == sorted(RELATIONS), found.truth.shape
    (12, True, (6,))
    """

    documents: tuple[Document, ...]
    relation: tuple[str, ...]
    truth: np.ndarray
    album: Album


def sequence_pairs(n: int, seed: int) -> SequencePairs:
    """n pairs of sequences of 3 to 6 events, each a picture or its caption, equally many per relation.

    >>> found = sequence_pairs(6, seed=0)
    >>> dict(zip(found.relation, found.truth.round(2).tolist()))
    {'shown again': 1.0, 'permuted': 0.33, 'replaced': 0.8, 'repainted': 0.83, 'prefix': 0.83, 'unrelated': 0.0}
    """
    rng, album = np.random.default_rng(seed), Album(seed)
    documents, truth = [], []
    for k in range(n):
        one, relation = draw_things(int(rng.integers(3, 7)), rng), RELATIONS[k % len(RELATIONS)]
        two = list(one)
        if relation == "permuted":
            while two == one:
                two = [one[i] for i in rng.permutation(len(one))]
        elif relation == "replaced":
            at = int(rng.integers(len(one)))
            two[at] = draw_thing(rng, [t.word for t in one])
        elif relation == "repainted":
            for at in rng.permutation(len(one))[: len(one) // 2].tolist():
                two[at] = replace(two[at], colour=pick_other(COLOURS, two[at].colour, rng))
        elif relation == "prefix":
            two = two[: int(rng.integers(1, len(one)))]
        elif relation == "unrelated":
            rest = [w for w in STORY_WORDS if w not in {t.word for t in one}]
            words = rng.permutation(rest)[: len(one)].tolist()
            two = [Thing(word, COLOURS[c]) for word, c in zip(words, rng.integers(5, size=len(one)), strict=True)]
        documents += [_sequence(things, album, rng) for things in (one, two)]
        truth.append(_overlap(one, two))
    relation = tuple(RELATIONS[k % len(RELATIONS)] for k in range(n))
    return SequencePairs(tuple(documents), relation, np.array(truth), album)


def _sequence(things: Sequence[Thing], album: Album, rng: np.random.Generator) -> Document:
    slices = []
    for thing in things:
        picture, form = view([thing], rng), int(rng.integers(len(CAPTIONS)))
        slices.append(album.add(picture) if rng.integers(2) else caption(picture, form))
    return Document(tuple(slices))


def _overlap(one: Sequence[Thing], two: Sequence[Thing]) -> float:
    best = np.zeros((len(one) + 1, len(two) + 1))
    for i, a in enumerate(one, start=1):
        for j, b in enumerate(two, start=1):
            same = 1.0 if a == b else 0.5 if a.word == b.word else 0.0
            best[i, j] = max(best[i - 1, j], best[i, j - 1], best[i - 1, j - 1] + same)
    return float(best[-1, -1] / max(len(one), len(two)))


@dataclass(frozen=True)
class KnowledgeBase(Pictured):
    """Who keeps which thing: documents [picture, question] with answers, and queries over other pictures.

    relevant: "query item" bool: items that show the query's thing in the query's colour.

    >>> base = knowledge_base(3, seed=0)
    >>> base.relevant.shape == (len(base.queries), len(base.items)), base.relevant.sum(1).tolist()
    (True, [1, 1, 1])
    """

    items: tuple[Document, ...]
    queries: tuple[Document, ...]
    relevant: np.ndarray
    album: Album


def knowledge_base(n: int, seed: int) -> KnowledgeBase:
    """An item for each thing in each colour, each with a keeper drawn from `seed`, and n queries.

    >>> base = knowledge_base(3, seed=0)
    >>> base.items[0].slices[-1].text, base.items[0].answer in KEEPERS
    ('who keeps it?', True)
    """
    rng, album = np.random.default_rng(seed), Album(seed)
    things = [Thing(word, colour) for word in STORY_WORDS for colour in COLOURS]
    keeper = rng.integers(len(KEEPERS), size=len(things))
    asked = rng.integers(len(things), size=n)
    made = [
        ask([album.add(view([things[k]], rng))], KEEPER_QUESTION, KEEPERS[keeper[k]], KEEPERS)
        for k in [*range(len(things)), *asked]
    ]
    relevant = asked[:, None] == np.arange(len(things))
    return KnowledgeBase(tuple(made[: len(things)]), tuple(made[len(things) :]), relevant, album)
