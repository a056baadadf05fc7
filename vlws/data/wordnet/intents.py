"""Retrieval with different intents over the same query, from WordNet: an instruction names a category and a form.

The query is a word. A document is one text about one meaning: its gloss, its names, or an example of its use. Relevant
are documents of the form and of the category that the instruction names, about a meaning of the word or one that is one
relation away. Words, wordings of instructions, and some combinations of category and form are kept for tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from vlws.data.beir import Collection
from vlws.data.wordnet.synsets import Synset, meanings, synsets, words
from vlws.data.wordnet.wordings import wordings

CATEGORIES = {  # name -> lexicographer files
    "act": ("noun.act", "noun.event", "noun.process"),
    "living": ("noun.animal", "noun.plant"),
    "artifact": ("noun.artifact",),
    "quality": ("noun.attribute", "noun.state", "noun.feeling"),
    "idea": ("noun.cognition", "noun.communication"),
    "place": ("noun.location",),
    "person": ("noun.person",),
    "verb": (),  # every verb
    "adjective": (),  # every adjective
}
FORMS = ("gloss", "names", "example")
UNSEEN = "place"  # a category that no training names
HELD_OUT = (("artifact", "gloss"), ("quality", "names"))  # cells whose category and form are met, but not together
EXAMPLES = ("act", "artifact", "quality", "idea", "verb", "adjective")  # categories with examples enough
MAX_RELEVANT, MAX_NEAR = 20, 40  # documents of a query and intent; meanings near a word


class Intent(NamedTuple):
    """What is looked for: a category and a form.

    >>> Intent("verb", "gloss").kind
    'seen'
    """

    category: str
    form: str

    @property
    def kind(self) -> str:
        """seen; held out (category and form are seen, together they are not); or unseen (the category is not)."""
        if self.category == UNSEEN:
            return "unseen"
        return "held out" if (self.category, self.form) in HELD_OUT else "seen"


INTENTS = tuple(
    Intent(category, form) for category, form in product(CATEGORIES, FORMS) if form != "example" or category in EXAMPLES
)

# --- documents and judgements -----------------------------------------------------------------------------------------


def category(one: Synset) -> str | None:
    """The category of a meaning; None for what is in none.

    >>> category(synsets()[meanings()["dancer"][0]])
    'person'
    """
    if one.part in "va":
        return "verb" if one.part == "v" else "adjective"
    return next((name for name, files in CATEGORIES.items() if one.lexicographer in files), None)


def text(one: Synset, form: str) -> str:
    """The document of a meaning in a form: gloss, names, or the first example; empty where it has no example.

    >>> text(synsets()[meanings()["dancer"][0]], "names")
    'dancer, professional dancer, terpsichorean'
    """
    return {"gloss": one.gloss, "names": ", ".join(one.lemmas), "example": (*one.examples, "")[0]}[form]


@dataclass(frozen=True)
class Task:
    """Queries, documents, and which documents answer which query under which intent.

    Attributes:
        documents: id ("17-gloss") -> text.
        queries: split -> words; no meaning belongs to words of two splits.
        relevant: word -> intent -> ids of documents, of at most 20.

    >>> task = make(train=3, dev=2, test=2)
    >>> sorted(task.queries), all(len(found) <= 20 for by in task.relevant.values() for found in by.values())
    (['dev', 'test', 'train'], True)
    """

    documents: Mapping[str, str]
    queries: Mapping[str, Sequence[str]]
    relevant: Mapping[str, Mapping[Intent, Sequence[str]]]

    def collection(self, split: str, seed: int = 0, wording: str | None = None) -> Collection:
        """One row for each word of a split and each of its intents, with an instruction in the split's wording, drawn.

        Rows are named "word|category-form". `wording`: "train", "dev" or "test" instead of the split's own.

        >>> made = make(train=3, dev=2, test=2).collection("test")
        >>> made.queries.keys() == made.qrels.keys() == made.instructions.keys()
        True
        """
        rng = np.random.default_rng(seed)
        queries, qrels, instructions = {}, {}, {}
        for word in self.queries[split]:
            for intent, found in self.relevant[word].items():
                row = f"{word}|{intent.category}-{intent.form}"
                among = wordings(*intent, wording or split)
                queries[row], qrels[row] = word, dict.fromkeys(found, 1)
                instructions[row] = among[rng.integers(len(among))]
        return Collection(self.documents, queries, qrels, instructions)


def intent_of(row: str) -> Intent:
    """The intent of a row of `Task.collection`.

    >>> intent_of("dog|living-gloss")
    Intent(category='living', form='gloss')
    """
    return Intent(*row.rsplit("|", 1)[1].split("-"))


def make(train: int = 1000, dev: int = 100, test: int = 200, seed: int = 0) -> Task:
    """A task over so many words. Documents are all those near the words for dev and test, and for training one of each
    intent, drawn by `seed`: a corpus that can be encoded in a minute.

    The names of a word's own meanings, which the query spells, are no documents.

    >>> task = make(train=3, dev=2, test=2)
    >>> word = task.queries["test"][0]
    >>> any(word == text for text in task.documents.values())
    False
    """
    rng = np.random.default_rng(seed)
    chosen = _split({"train": train, "dev": dev, "test": test}, rng)
    asked = {word for some in chosen.values() for word in some}
    spelt = {f"{k}-names" for word in asked for k in meanings()[word]}
    documents: dict[str, str] = {}
    relevant = {}
    for split, some in chosen.items():
        for word in some:
            found = {intent: [d for d in ids if d not in spelt] for intent, ids in _near(word).items()}
            found = {intent: ids for intent, ids in found.items() if 0 < len(ids) <= MAX_RELEVANT}
            if split == "train":
                found = {intent: [ids[rng.integers(len(ids))]] for intent, ids in found.items()}
            relevant[word] = {intent: tuple(ids) for intent, ids in found.items()}
            documents |= {d: _text(d) for ids in found.values() for d in ids}
    return Task(dict(sorted(documents.items())), chosen, relevant)


def _text(document: str) -> str:
    k, form = document.split("-")
    return text(synsets()[int(k)], form)


@cache
def _near(word: str) -> Mapping[Intent, Sequence[str]]:
    """Intent -> documents of the meanings of a word and of those one relation away."""
    own = meanings()[word]
    near = sorted({*own, *(k for one in own for _, k in synsets()[one].relations)})
    found: dict[Intent, list[str]] = {intent: [] for intent in INTENTS}
    for k in near:
        for form in FORMS:
            intent = Intent(category(synsets()[k]) or "", form)
            if intent in found and text(synsets()[k], form):
                found[intent].append(f"{k}-{form}")
    return {intent: ids for intent, ids in found.items() if ids}


def _split(sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, tuple[str, ...]]:
    """Words by split: words that share a meaning stand in one split."""
    taken: dict[int, str] = {}
    chosen: dict[str, list[str]] = {split: [] for split in sizes}
    wanted = [split for split in ("test", "dev", "train") for _ in range(sizes[split])]
    for word in rng.permutation(sorted(words())).tolist():
        if not wanted:
            break
        own = meanings()[word]
        if len(_near(word)) < 3 or _count(own) > MAX_NEAR:
            continue
        others = {taken[k] for k in own if k in taken}
        split = wanted[0]
        if others - {split}:
            continue
        wanted.pop(0)
        chosen[split].append(word)
        taken |= dict.fromkeys(own, split)
    return {split: tuple(some) for split, some in chosen.items()}


def _count(own: Sequence[int]) -> int:
    return len({*own, *(k for one in own for _, k in synsets()[one].relations)})
