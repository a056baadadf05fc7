"""Stories: interleaved image-text documents over emoji pictures whose last event depends on all earlier ones.

A story meets a thing, paints it in the colour of a second, meets a third, paints that in the colour of a fourth; its
fifth picture shows the two side by side, as they have become. The sentences leave out what the pictures show (which
mammal, which colour), so the last picture follows from the earlier pictures and sentences together and from neither
alone. Around the stories stand the sets that a model is measured on: a retrieval split in the protocol of visual
storytelling (VIST), single pairs, Winoground's pairs of pairs, presence questions, near-twins, questions over several
pictures, and a knowledge base.

Seeds: as in `vlws.data.emoji_world.scenes`. All pictures are 32 px unless a folder says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from vlws.data.documents import Document, Documents, Pictured, Slice, with_reference
from vlws.data.emoji_world import emoji, renderer, scenes
from vlws.data.emoji_world.captions import with_article
from vlws.errors import InputError

KINDS: dict[str, dict[str, str]] = {  # kind -> {word: CLDR name}; three things of a kind
    "mammal": {"cat": "cat face", "panda": "panda", "lion": "lion"},
    "bird": {"owl": "owl", "penguin": "penguin", "parrot": "parrot"},
    "bug": {"butterfly": "butterfly", "snail": "snail", "honeybee": "honeybee"},
    "flower": {"rose": "rose", "sunflower": "sunflower", "tulip": "tulip"},
    "fruit": {"banana": "banana", "melon": "watermelon", "strawberry": "strawberry"},
    "dish": {"pizza": "pizza", "hamburger": "hamburger", "pretzel": "pretzel"},
    "vehicle": {"car": "automobile", "bicycle": "bicycle", "train": "locomotive"},
    "garment": {"crown": "crown", "scarf": "scarf", "necktie": "necktie"},
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
WORDS = tuple(KIND_OF)
COLOURS = scenes.TINT_NAMES[1:]
SIDES = ("left", "right")
KEEPERS = ("anna", "bert", "carl", "dora", "emil", "frida", "gus", "hana")
EVENTS = 5
SIZE = 32


@cache
def sprite(word: str) -> int:
    """The index into `emoji.load()` of one of WORDS."""
    return emoji.load().index(KINDS[KIND_OF[word]][word])


# --- pictures and slices ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thing:
    """One of WORDS in one of COLOURS."""

    word: str
    colour: str

    def __str__(self) -> str:
        return f"{self.colour} {self.word}"


@dataclass(frozen=True, slots=True)
class View:
    """What a picture shows: one thing, or two in one row, the left one first; `cells` of the 2 x 2 grid."""

    things: tuple[Thing, ...]
    cells: tuple[int, ...]

    def sides(self) -> tuple[str, ...]:
        return tuple(SIDES[cell % 2] for cell in self.cells)

    def features(self) -> tuple[str, ...]:
        """What there is to know of the picture, from coarse to fine: word, word and colour, and with its side."""
        placed = zip(self.things, self.sides(), strict=True)
        return tuple(f for t, s in placed for f in (t.word, str(t), f"{t} {s}"))


def view(things: Sequence[Thing], rng: np.random.Generator) -> View:
    """A view of one thing in any cell, or of two in a row in this order."""
    row = 2 * int(rng.integers(2))
    return View(tuple(things), (row + int(rng.integers(2)),) if len(things) == 1 else (row, row + 1))


def render(views: Sequence[View], seed: int) -> np.ndarray:
    """Views -> "n 32 32 3" uint8; pose and ground are drawn from `seed`."""
    grounds = scenes.sample(len(views), seed, muted=True)
    poses = np.random.default_rng(seed).integers(0, [5, 5, 3, 3], size=(len(views), 2, 4))
    made = []
    for shown, ground, pose in zip(views, grounds, poses, strict=True):
        items = [
            scenes.Item(sprite(t.word), cell, 24 + a, 3 * b - 6, y - 1, x - 1, scenes.TINT_NAMES.index(t.colour))
            for t, cell, (a, b, y, x) in zip(shown.things, shown.cells, pose.tolist(), strict=False)
        ]
        made.append(scenes.Scene(tuple(items), ground.background))
    return renderer.render(made, SIZE)


@dataclass
class Album:
    """Views that are rendered when first asked for; a slice holds the index that its picture will have."""

    seed: int
    views: list[View] = field(default_factory=list)

    def add(self, shown: View) -> Slice:
        self.views.append(shown)
        return Slice(image=len(self.views) - 1, features=shown.features())

    def render(self) -> np.ndarray:
        return render(self.views, self.seed)


def _statement(text: str, *features: str) -> Slice:
    """A sentence that the language model learns."""
    return Slice(text=text, features=features, supervised=True)


def _question(text: str, *features: str) -> Slice:
    """A sentence that the language model reads; it learns the answer alone."""
    return Slice(text=text, features=features)


def _thing(rng: np.random.Generator, without: Sequence[str] = ()) -> Thing:
    words = [w for w in WORDS if w not in without]
    return Thing(words[rng.integers(len(words))], COLOURS[rng.integers(len(COLOURS))])


def draw_things(n: int, rng: np.random.Generator) -> list[Thing]:
    """n things with different words."""
    words = rng.permutation(WORDS)[:n].tolist()
    return [Thing(word, COLOURS[c]) for word, c in zip(words, rng.integers(len(COLOURS), size=n), strict=True)]


def _other(options: Sequence[str], but: str, rng: np.random.Generator) -> str:
    rest = [o for o in options if o != but]
    return rest[rng.integers(len(rest))]


def phrase(shown: View) -> str:
    """ "a red cat", "a red cat left of a blue rose"."""
    return " left of ".join(with_article(str(t)) for t in shown.things)


CAPTIONS = ("{}.", "here is {}.", "we see {}.", "this shows {}.", "look at {}.")


def caption(shown: View, form: int) -> Slice:
    """A full description of a picture, in one of len(CAPTIONS) forms."""
    return _statement(CAPTIONS[form].format(phrase(shown)), *shown.features())


# --- stories --------------------------------------------------------------------------------------------------------

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

    The first takes the colour of the second, the third that of the fourth. `forms`: how each event is told.
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
        told = [KIND_OF[first.word], second.word, KIND_OF[third.word], fourth.word, self.side]
        return [
            _statement(SENTENCES[e][form].format(word), word, f"event {e} {word}")
            for e, (form, word) in enumerate(zip(self.forms, told, strict=True))
        ]


def sample(n: int, seed: int) -> list[Story]:
    """n stories; the four things have different words."""
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
    """The story with one attribute changed (one of TWINS) and told in other words; only the side is told in words."""
    rng = np.random.default_rng(seed)
    change = TWINS[rng.integers(len(TWINS))] if change is None else change
    if change not in TWINS:
        raise InputError(f"change={change!r}: a twin differs by one of {', '.join(TWINS)}.")
    things, side = list(story.things), story.side
    if change == "side":
        side = _other(SIDES, side, rng)
    else:
        at = ("first", "second", "third", "fourth").index(change.split()[0])
        thing = things[at]
        if change.endswith("word"):
            taken = {t.word for t in things}
            words = [w for w in KINDS[KIND_OF[thing.word]] if w == thing.word or w not in taken]
            if len(words) < 2:  # its siblings stand elsewhere in the story
                return near_twin(story, seed, "side")
            things[at] = replace(thing, word=_other(words, thing.word, rng))
        else:
            things[at] = replace(thing, colour=_other(COLOURS, thing.colour, rng))
    return replace(retold(story, seed), things=tuple(things), side=side)


def retold(story: Story, seed: int) -> Story:
    """The same events in other words, the things in other places."""
    rng = np.random.default_rng(seed)
    forms = tuple(int((f + 1 + rng.integers(len(SENTENCES[0]) - 1)) % len(SENTENCES[0])) for f in story.forms)
    return replace(story, forms=forms, cells=tuple(rng.integers(4, size=4).tolist()), row=int(rng.integers(2)))


def told(story: Story, pictures: Sequence[Slice], shown: Sequence[bool], said: Sequence[bool]) -> list[Slice]:
    """sentence 1, picture 1, sentence 2, ...: of the first four events what is shown and said, of the last what is."""
    slices = []
    for e, (sentence, picture) in enumerate(zip(story.sentences(), pictures, strict=True)):
        slices += ([sentence] if said[e] else []) + ([picture] if shown[e] else [])
    return slices


# --- the corpus -----------------------------------------------------------------------------------------------------

MIX = {"story": 0.40, "pair": 0.20, "question": 0.40}


def corpus(n: int, seed: int, mix: dict[str, float] | None = None, lone: bool = True) -> Documents:
    """n training documents; stories in groups of four: a story, a near-twin, a retelling and another story.

    story: half with all sentences and four pictures, one in four without pictures, one in four with each of the first
        four events shown, said, or both; then the question what the last picture shows. Its `lone` slice is that
        picture.
    pair: a picture and its caption; the `lone` slice is the caption.
    question: a picture (or several, or a reference and a picture) and a question with its answer.
    """
    mix = MIX if mix is None else mix
    rng = np.random.default_rng(seed)
    counts = {kind: round(n * share) for kind, share in mix.items()}
    counts["question"] = n - counts.get("story", 0) - counts.get("pair", 0)
    album, documents = Album(seed), []
    group: list[Story] = []
    for k in range(counts.get("story", 0)):
        if not group:
            one, another = sample(2, int(rng.integers(2**31)))
            group = [another, retold(one, k), near_twin(one, k), one]
        documents.append(_story_document(group.pop(), album, rng, lone))
    for _ in range(counts.get("pair", 0)):
        shown = view(draw_things(int(rng.integers(1, 3)), rng), rng)
        said = caption(shown, int(rng.integers(len(CAPTIONS))))
        documents.append(Document((album.add(shown), said), lone=replace(said, supervised=False) if lone else None))
    makers = (_presence, _colour, _what, _where, _either, _several, _order, _reference)
    for k in range(counts["question"]):
        documents.append(makers[k % len(makers)](album, rng))
    order = rng.permutation(len(documents))
    return Documents(tuple(documents[i] for i in order), album)


def _story_document(story: Story, album: Album, rng: np.random.Generator, lone: bool) -> Document:
    views = story.views()
    form = rng.integers(4)
    shown, said = [form != 2] * 4 + [False], [True] * EVENTS
    if form == 3:
        how = rng.integers(3, size=4)  # shown, said, both
        shown, said = [*(how != 1), False], [*(how != 0), True]
    pictures = [album.add(v) if s else Slice() for v, s in zip(views, shown, strict=True)]
    asked = _question(LAST_QUESTION, "question")
    last = album.add(views[-1]) if lone else None
    slices = (*told(story, pictures, shown, said), asked)
    return Document(slices, answer=phrase(views[-1]), lone=last)


def _ask(slices: Sequence[Slice], text: str, answer: str, choices: Sequence[str]) -> Document:
    return Document((*slices, _question(text, *text.split())), answer=answer, choices=tuple(choices))


def _presence(album: Album, rng: np.random.Generator) -> Document:
    """Balanced; what is absent is of the same kind as something shown (adversarial, as POPE's)."""
    things = draw_things(int(rng.integers(1, 3)), rng)
    word = things[rng.integers(len(things))].word
    answer = ("yes", "no")[rng.integers(2)]
    if answer == "no":
        absent = [w for w in KINDS[KIND_OF[word]] if w not in {t.word for t in things}]
        word = absent[rng.integers(len(absent))]
    return _ask([album.add(view(things, rng))], f"is there {with_article(word)}?", answer, ("yes", "no"))


def _colour(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(1, 3)), rng)
    thing = things[rng.integers(len(things))]
    return _ask([album.add(view(things, rng))], f"what colour is the {thing.word}?", thing.colour, COLOURS)


def _what(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(1, 3)), rng)
    shown = view(things, rng)
    k = rng.integers(len(things))
    return _ask([album.add(shown)], f"what is {shown.sides()[k]}?", things[k].word, WORDS)


def _where(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(1, 3)), rng)
    shown = view(things, rng)
    k = rng.integers(len(things))
    return _ask([album.add(shown)], f"where is the {things[k].word}?", shown.sides()[k], SIDES)


def _either(album: Album, rng: np.random.Generator) -> Document:
    return _twins(album, rng)[int(rng.integers(2))]


def _several(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(2, 7)), rng)
    return _about(things, int(rng.integers(len(things))), album, rng)


def _about(things: Sequence[Thing], at: int, album: Album, rng: np.random.Generator) -> Document:
    pictures = [album.add(view([t], rng)) for t in things]
    return _ask(pictures, f"what colour is the {things[at].word}?", things[at].colour, COLOURS)


ORDINALS = ("first", "second", "third", "fourth")


def _order(album: Album, rng: np.random.Generator) -> Document:
    things = draw_things(int(rng.integers(2, 5)), rng)
    k = int(rng.integers(len(things)))
    pictures = [album.add(view([t], rng)) for t in things]
    return _ask(pictures, f"what is {ORDINALS[k]}?", things[k].word, WORDS)


KEEPER_QUESTION = "who keeps it?"


def _reference(album: Album, rng: np.random.Generator) -> Document:
    thing, keeper = _thing(rng), KEEPERS[rng.integers(len(KEEPERS))]
    seen, asked = (album.add(view([thing], rng)) for _ in range(2))
    return with_reference(_ask([asked], KEEPER_QUESTION, keeper, KEEPERS), _ask([seen], KEEPER_QUESTION, keeper, ()))


# --- what a model is measured on --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RetrievalSplit(Pictured):
    """VIST's protocol: which of all pictures of all stories is the last of this one?

    Attributes:
        captions, interleaved: a query a story: five sentences (5c), or sentence 1, picture 1, ... sentence 5 (5c+4i).
        pool: one-picture documents, five a story, in order; `images` are theirs.
        target: "story" index into the pool. seen: "story 4", the pool's pictures that an interleaved query shows.
    """

    captions: tuple[Document, ...]
    interleaved: tuple[Document, ...]
    pool: tuple[Document, ...]
    target: np.ndarray
    seen: np.ndarray
    album: Album


def retrieval_split(n: int, seed: int) -> RetrievalSplit:
    """n stories (even), half of them near-twins of the other half; the pool is their 5 n pictures."""
    if n < 2 or n % 2:
        raise InputError(f"A retrieval split of {n} stories was asked for; it takes an even number, for their twins.")
    base = sample(n // 2, seed)
    stories = [s for k, one in enumerate(base) for s in (one, near_twin(one, seed + k))]
    album = Album(seed)
    queries, interleaved, pool = [], [], []
    for story in stories:
        pictures = [album.add(v) for v in story.views()]
        every, never = [True] * EVENTS, [False] * EVENTS
        queries.append(Document(tuple(told(story, pictures, never, every))))
        interleaved.append(Document(tuple(told(story, pictures, [*every[:4], False], every))))
        pool += [Document((picture,)) for picture in pictures]
    first = EVENTS * np.arange(n)
    seen = first[:, None] + np.arange(EVENTS - 1)
    return RetrievalSplit(tuple(queries), tuple(interleaved), tuple(pool), first + EVENTS - 1, seen, album)


@dataclass(frozen=True)
class PairSet(Pictured):
    """pictures[i] and texts[i] belong together; documents of one slice each."""

    pictures: tuple[Document, ...]
    texts: tuple[Document, ...]
    album: Album


def pair_set(n: int, seed: int) -> PairSet:
    """n pictures of two things, all different, and their captions."""
    rng = np.random.default_rng(seed)
    album, views = Album(seed), {}
    while len(views) < n:
        shown = view(draw_things(2, rng), rng)
        views.setdefault(phrase(shown), shown)
    pictures = tuple(Document((album.add(v),)) for v in views.values())
    texts = tuple(Document((caption(v, int(rng.integers(len(CAPTIONS)))),)) for v in views.values())
    return PairSet(pictures, texts, album)


def winoground(n: int, seed: int) -> PairSet:
    """n pairs of pairs, rows 2k and 2k+1: the same words in another order (colours or places change hands)."""
    rng = np.random.default_rng(seed)
    album, pictures, texts = Album(seed), [], []
    for k in range(n):
        a, b = draw_things(2, rng)
        b = replace(b, colour=_other(COLOURS, a.colour, rng))
        other = (Thing(a.word, b.colour), Thing(b.word, a.colour)) if k % 2 else (b, a)
        form = int(rng.integers(len(CAPTIONS)))
        for things in ((a, b), other):
            shown = view(things, rng)
            pictures.append(Document((album.add(shown),)))
            texts.append(Document((caption(shown, form),)))
    return PairSet(tuple(pictures), tuple(texts), album)


def questions(kind: str, n: int, seed: int) -> Documents:
    """n questions of one kind: presence, colour, what, where, several or order (over several pictures)."""
    makers = {
        "presence": _presence,
        "colour": _colour,
        "what": _what,
        "where": _where,
        "several": _several,
        "order": _order,
    }
    if kind not in makers:
        raise InputError(f"kind={kind!r}: accepted are {', '.join(makers)}.")
    rng, album = np.random.default_rng(seed), Album(seed)
    documents = tuple(makers[kind](album, rng) for _ in range(n))
    return Documents(documents, album)


def twins(n: int, seed: int) -> Documents:
    """n near-twin pictures, rows 2k and 2k+1, with one question of two answers: each is right for one of them."""
    rng, album = np.random.default_rng(seed), Album(seed)
    documents = [d for _ in range(n // 2) for d in _twins(album, rng)]
    return Documents(tuple(documents), album)


def _twins(album: Album, rng: np.random.Generator) -> list[Document]:
    a, b = draw_things(2, rng)
    change = rng.integers(3)
    if change == 0:  # colour
        other = replace(a, colour=_other(COLOURS, a.colour, rng))
        options, views = (a.colour, other.colour), ([a, b], [other, b])
        text = f"is the {a.word} {{}} or {{}}?"
    elif change == 1:  # word, of one kind
        words = [w for w in KINDS[KIND_OF[a.word]] if w != b.word]
        other = replace(a, word=_other(words, a.word, rng))
        options, views = (a.word, other.word), ([a, b], [other, b])
        text = "is that a {} or a {}?"
    else:
        options, views = SIDES, ([a, b], [b, a])
        text = f"is the {a.word} {{}} or {{}}?"
    text = text.format(*(options if rng.integers(2) else options[::-1]))
    row = 2 * int(rng.integers(2))
    pictures = [album.add(View(tuple(things), (row, row + 1))) for things in views]
    return [_ask([p], text, answer, options) for p, answer in zip(pictures, options, strict=True)]


def positions(n: int, seed: int, length: int = 6) -> Documents:
    """n questions over `length` pictures; row k * length + p has the useful picture at place p."""
    rng, album, documents = np.random.default_rng(seed), Album(seed), []
    for _ in range(n):
        useful, *rest = draw_things(length, rng)
        first = _about([useful, *rest], 0, album, rng)
        picture, others, question = first.slices[0], first.slices[1:-1], first.slices[-1]
        for p in range(length):
            documents.append(replace(first, slices=(*others[:p], picture, *others[p:], question)))
    return Documents(tuple(documents), album)


def story_questions(n: int, seed: int) -> Documents:
    """n stories told with all sentences and four pictures, and the question what the last picture shows."""
    album, documents = Album(seed), []
    for story in sample(n, seed):
        pictures = [album.add(v) for v in story.views()[:4]] + [Slice()]
        slices = told(story, pictures, [True] * 4 + [False], [True] * EVENTS)
        documents.append(Document((*slices, _question(LAST_QUESTION)), answer=phrase(story.views()[-1])))
    return Documents(tuple(documents), album)


RELATIONS = ("shown again", "permuted", "replaced", "repainted", "prefix", "unrelated")


@dataclass(frozen=True)
class SequencePairs(Pictured):
    """Documents 2k and 2k+1 are related as `relation[k]` says; `truth` "pair" is how alike they are, in [0, 1].

    truth: the longest common subsequence of their events, where the same thing counts 1, in another colour 1/2, over
    the longer length. It favours what respects order, by design.
    """

    documents: tuple[Document, ...]
    relation: tuple[str, ...]
    truth: np.ndarray
    album: Album


def sequence_pairs(n: int, seed: int) -> SequencePairs:
    """n pairs of sequences of 3 to 6 events, each told by a picture or by its caption, equally many a relation."""
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
            two[at] = _thing(rng, [t.word for t in one])
        elif relation == "repainted":
            for at in rng.permutation(len(one))[: len(one) // 2].tolist():
                two[at] = replace(two[at], colour=_other(COLOURS, two[at].colour, rng))
        elif relation == "prefix":
            two = two[: int(rng.integers(1, len(one)))]
        elif relation == "unrelated":
            rest = [w for w in WORDS if w not in {t.word for t in one}]
            words = rng.permutation(rest)[: len(one)].tolist()
            two = [Thing(word, COLOURS[c]) for word, c in zip(words, rng.integers(5, size=len(one)), strict=True)]
        documents += [_sequence(things, album, rng) for things in (one, two)]
        truth.append(_overlap(one, two))
    relation = tuple(RELATIONS[k % len(RELATIONS)] for k in range(n))
    return SequencePairs(tuple(documents), relation, np.array(truth), album)


def _sequence(things: Sequence[Thing], album: Album, rng: np.random.Generator) -> Document:
    slices = []
    for thing in things:
        shown, form = view([thing], rng), int(rng.integers(len(CAPTIONS)))
        slices.append(album.add(shown) if rng.integers(2) else caption(shown, form))
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
    """

    items: tuple[Document, ...]
    queries: tuple[Document, ...]
    relevant: np.ndarray
    album: Album


def knowledge_base(n: int, seed: int) -> KnowledgeBase:
    """An item for each thing in each colour, each with a keeper drawn from `seed`, and n queries."""
    rng, album = np.random.default_rng(seed), Album(seed)
    things = [Thing(word, colour) for word in WORDS for colour in COLOURS]
    keeper = rng.integers(len(KEEPERS), size=len(things))
    asked = rng.integers(len(things), size=n)
    made = [
        _ask([album.add(view([things[k]], rng))], KEEPER_QUESTION, KEEPERS[keeper[k]], KEEPERS)
        for k in [*range(len(things)), *asked]
    ]
    relevant = asked[:, None] == np.arange(len(things))
    return KnowledgeBase(tuple(made[: len(things)]), tuple(made[len(things) :]), relevant, album)
