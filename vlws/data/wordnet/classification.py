"""Few-shot classification of WordNet's glosses, with a shifted domain each, and documents to meta-train from.

Sentences are first clauses of glosses. Each stands on one side of the slice: "language", which a language model learns
from, "documents", unlabelled text, or "tasks". Sisters (synsets of one parent) stand on the same side. A text is two
sentences of one class, of sisters where there are: "a small dog ; a large dog with a smooth coat".

    category   what a text is about, in six words           person    is it a person?
    part       noun, verb or adjective                      topic     are two texts about the same topic?
    concrete   is it something concrete?                    named     which of four words says what a text is about?

Two more are asked of the language model in its training, and are harder: kind (do two texts tell of kinds of the same
thing?) and option (which of four texts is about what the first is about?).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from vlws.data.cloze import BLANK, Cloze, Wording
from vlws.data.wordnet.synsets import Synset, synsets
from vlws.errors import InputError

Side = Literal["language", "documents", "tasks"]
SHARES: Mapping[Side, float] = {"language": 0.60, "documents": 0.20, "tasks": 0.20}
MIN_WORDS, MAX_WORDS = 3, 10  # of a sentence
TOPICS = {  # word -> lexicographer files
    "person": ("noun.person",),
    "living": ("noun.animal", "noun.plant"),
    "thing": ("noun.artifact", "noun.food", "noun.substance", "noun.body"),
    "place": ("noun.location", "noun.object"),
    "act": ("noun.act", "noun.event", "noun.process"),
    "idea": ("noun.cognition", "noun.communication"),
    "quality": ("noun.attribute", "noun.state", "noun.feeling"),
    "verb": (),  # every verb
    "adjective": (),  # every adjective
}
PARTS = {"n": "noun", "v": "verb", "a": "adjective"}
TRIES = 1000  # to draw an example that was not drawn before
LETTERS = ("A", "B", "C", "D")
YES_NO = ("yes", "no")
JOIN = " ; "  # between the two sentences of a text
SINGLE = "{0} It is " + BLANK + " ."
PAIR = "{0} " + BLANK + " {1}"
CHOICE = Wording().choice("{0}", ("{1}", "{2}", "{3}", "{4}"))

# --- sentences and their sides ----------------------------------------------------------------------------------------


def sentence(text: str) -> str:
    """The first clause of a gloss or an example, without brackets, of at most 10 words.

    >>> sentence("(of a lamp) giving light; bright")
    'giving light'
    """
    clause = re.sub(r"\([^)]*\)|[()\"`]", "", text).split(";")[0]
    return " ".join(clause.split()[:MAX_WORDS]).strip(" ,:")


def topic(one: Synset) -> str | None:
    """What a synset is about, a key of TOPICS; None for what is none of them.

    >>> topic(next(one for one in synsets() if "dancer" in one.lemmas))
    'person'
    """
    if one.part in "va":
        return PARTS[one.part]
    return next((name for name, files in TOPICS.items() if one.lexicographer in files), None)


@cache
def parents() -> tuple[int, ...]:
    """Of each synset the first that it is a kind, an instance or (adjectives) a satellite of; else itself.

    >>> at = next(k for k, one in enumerate(synsets()) if "dancer" in one.lemmas)
    >>> synsets()[parents()[at]].lemmas[0]
    'performer'
    """
    return tuple(next((k for symbol, k in one.relations if symbol in ("@", "@i", "&")), i)
                 for i, one in enumerate(synsets()))  # fmt: skip


@cache
def sides() -> Mapping[Side, Mapping[int, str]]:
    """Side -> index of a synset -> its sentence. No sentence occurs twice; short ones and adverbs are left out.

    >>> found = sides()
    >>> [len(found[side]) for side in ("language", "documents", "tasks")], found["language"][1]
    ([21948, 8418, 6921], 'not having the necessary means or skill or know-how')
    """
    drawn = np.random.default_rng(0).random(len(synsets()))
    language, documents = SHARES["language"], SHARES["language"] + SHARES["documents"]
    found: dict[Side, dict[int, str]] = {side: {} for side in get_args(Side)}
    seen = set()
    for i, one in enumerate(synsets()):
        said = sentence(one.gloss)
        if one.part in PARTS and len(said.split()) >= MIN_WORDS and said not in seen:
            seen.add(said)
            at = drawn[parents()[i]]
            found["language" if at < language else "documents" if at < documents else "tasks"][i] = said
    return found


def near(i: int) -> set[int]:
    """Synsets one relation away from a synset.

    >>> near(0) == {k for _, k in synsets()[0].relations}
    True
    """
    return {k for _, k in synsets()[i].relations} - {i}


def documents(n: int | None = None, seed: int = 0) -> list[list[str]]:
    """Unlabelled documents of 3 to 6 texts, at most n; each synset is told once, none is of a few-shot task.

    A document is a walk: a gloss, sometimes an example of its use, then the gloss of a synset that is one relation
    away or a sister, and so on; two steps make a text. So neighbours have more to do with each other than texts
    further apart.

    >>> made = documents()
    >>> {len(document) for document in made} == {3, 4, 5, 6}, documents(2) == made[:2]
    (True, True)
    """
    rng, here = np.random.default_rng([seed, 7]), sides()["documents"]
    sisters = _families(here)
    told: set[int] = set()
    used = {text for side in ("language", "tasks") for text in sides()[side].values()}
    made: list[list[str]] = []
    for start in rng.permutation(sorted(here)).tolist():
        if n is not None and len(made) == n:
            break
        if start in told:
            continue
        wanted, at, walked, lines = 2 * int(rng.integers(3, 7)), start, [start], [here[start]]
        while len(lines) < wanted:
            shown = [said for text in synsets()[at].examples if len((said := sentence(text)).split()) >= MIN_WORDS]
            if shown and rng.random() < 0.3 and lines[-1] == here[at] and shown[0] not in used:
                lines.append(shown[0])
                used.add(shown[0])
                continue
            direct = sorted(k for k in near(at) if k in here and k not in told and k not in walked)
            kin = direct or [k for k in sisters[parents()[at]] if k not in told and k not in walked]
            if not kin:
                break
            at = kin[rng.integers(len(kin))]
            walked.append(at)
            lines.append(here[at])
        if len(lines) >= 6:
            told.update(walked)
            made.append([JOIN.join(pair) for pair in zip(lines[::2], lines[1::2], strict=False)])
    return made


def _families(some: Iterable[int]) -> dict[int, list[int]]:
    """Parent -> its children among some synsets."""
    found: dict[int, list[int]] = defaultdict(list)
    for i in some:
        found[parents()[i]].append(i)
    return found


# --- what is asked ----------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """Texts that fill a template, and the class: a label word.

    >>> Example(("a small dog ; a black cat",), "living").label
    'living'
    """

    texts: tuple[str, ...]
    label: str


class Pool:
    """Sentences that examples are drawn from, by class and by family. All randomness comes from the generator given.

    Args:
        sentences: index of a synset -> sentence.

    >>> pool, rng = Pool(sides()["tasks"]), np.random.default_rng(0)
    >>> pool.single(rng, "noun", lambda one: PARTS[one.part]).label
    'noun'
    >>> [len(pool.topic(rng, "yes").texts), len(pool.kind(rng, "no").texts), len(pool.option(rng, "A").texts)]
    [2, 2, 5]
    >>> pool.named(rng, "C", ("person", "act", "place", "thing")).label
    'C'
    """

    def __init__(self, sentences: Mapping[int, str]) -> None:
        self.sentences = sentences
        self._classes: dict[Any, dict[str, list[int]]] = {}
        self.by_topic = self.classes(topic)
        self.families = _families(sentences)
        self.large = [kin for kin in self.families.values() if len(kin) > 3]

    def classes(self, classify: Callable[[Synset], str | None]) -> dict[str, list[int]]:
        """Class -> synsets, found once.

        >>> sorted(Pool(sides()["tasks"]).classes(lambda one: one.part))
        ['a', 'n', 'v']
        """
        if classify not in self._classes:
            found: dict[str, list[int]] = defaultdict(list)
            for i in self.sentences:
                if name := classify(synsets()[i]):
                    found[name].append(i)
            self._classes[classify] = found
        return self._classes[classify]

    def text(self, rng: np.random.Generator, i: int, classify: Callable[[Synset], str | None] = topic) -> str:
        """Two sentences: of a synset, and of a sister of its class, else of another of its class.

        >>> Pool({3: "a small dog", 4: "a hat"}).text(np.random.default_rng(0), 3, lambda one: "any")
        'a small dog ; a hat'
        """
        name = classify(synsets()[i])
        sisters = [k for k in self.families[parents()[i]] if k != i and classify(synsets()[k]) == name]
        others = sisters or [k for k in self.classes(classify)[str(name)] if k != i] or [i]
        return JOIN.join((self.sentences[i], self.sentences[_one(rng, others)]))

    def single(self, rng: np.random.Generator, label: str, classify: Callable[[Synset], str | None]) -> Example:
        """A text of a class."""
        return Example((self.text(rng, _one(rng, self.classes(classify)[label]), classify),), label)

    def topic(self, rng: np.random.Generator, label: str) -> Example:
        """Two texts of one topic ("yes"), or of two."""
        first, second = rng.choice(sorted(self.by_topic), 2, replace=False).tolist()
        i, j = self._several(rng, [first, first if label == "yes" else second])
        return Example((self.text(rng, i), self.text(rng, j)), label)

    def kind(self, rng: np.random.Generator, label: str) -> Example:
        """Two texts of one family ("yes"), or of two; a text is of two sisters."""
        one, other = (self.large[k] for k in rng.choice(len(self.large), 2, replace=False))
        i, j, *more = rng.permutation(one).tolist()
        k, m = more[:2] if label == "yes" else rng.permutation(other).tolist()[:2]
        said = self.sentences
        return Example((JOIN.join((said[i], said[j])), JOIN.join((said[k], said[m]))), label)

    def option(self, rng: np.random.Generator, label: str) -> Example:
        """A text, and four sentences of different topics, of which the one at `label` has its topic."""
        right, *wrong = rng.permutation(sorted(self.by_topic))[:4].tolist()
        at = LETTERS.index(label)
        i, *others = self._several(rng, [right, *wrong[:at], right, *wrong[at:]])
        return Example((self.text(rng, i), *(self.sentences[k] for k in others)), label)

    def named(self, rng: np.random.Generator, label: str, names: Sequence[str]) -> Example:
        """A text, and four of the names of topics, of which the one at `label` is its topic."""
        right, *wrong = rng.permutation(names)[:4].tolist()
        at = LETTERS.index(label)
        return Example((self.text(rng, _one(rng, self.by_topic[right])), *wrong[:at], right, *wrong[at:]), label)

    def _several(self, rng: np.random.Generator, names: Sequence[str]) -> list[int]:
        """Synsets of topics, no two the same."""
        chosen: list[int] = []
        for name in names:
            while (i := _one(rng, self.by_topic[name])) in chosen:
                pass
            chosen.append(i)
        return chosen


def _one(rng: np.random.Generator, among: Sequence[int]) -> int:
    return among[rng.integers(len(among))]


# --- the tasks --------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """What a few-shot task asks, and its two domains.

    Attributes:
        words: label words, the classes. template: with places {0}, {1}, ... for the texts of an example.
        inside, outside: lexicographer files of the domain that is trained in, and of the shifted one; "+" behind a file
            keeps its named instances alone ("noun.person+": people by name), "-" all others.

    >>> QUESTIONS["topic"].words
    ('yes', 'no')
    """

    words: tuple[str, ...]
    template: str
    inside: tuple[str, ...]
    outside: tuple[str, ...]


NAMED = ("person", "living", "thing", "place", "act", "quality")  # topics that are told by their word
_KINDS = ("noun.person-", "noun.plant", "noun.artifact", "noun.object", "noun.location-", "noun.act", "noun.attribute")
_OTHERS = ("noun.person+", "noun.animal", "noun.food", "noun.substance", "noun.body", "noun.location+", "noun.event",
           "noun.process", "noun.state", "noun.feeling")  # fmt: skip
_TOPICS = ("noun.person", *TOPICS["living"], *TOPICS["thing"], "verb")
_OTHER_TOPICS = (*TOPICS["place"], *TOPICS["act"], *TOPICS["quality"], "adj")
QUESTIONS = {
    "category": Question(NAMED, SINGLE, _KINDS, _OTHERS),
    "part": Question(
        ("noun", "verb", "adjective"),
        SINGLE,
        ("noun.artifact", "noun.person", "noun.act", "verb.motion", "verb.contact", "verb.change", "adj.all"),
        ("noun.state", "noun.communication", "noun.plant", "noun.group", "verb.communication", "verb.social",
         "verb.cognition", "verb.possession", "verb.body", "adj.pert"),
    ),
    "concrete": Question(
        YES_NO,
        SINGLE,
        ("noun.artifact", "noun.person", "noun.animal", "noun.act", "noun.communication", "noun.attribute"),
        ("noun.plant", "noun.body", "noun.substance", "noun.food", "noun.object", "noun.cognition", "noun.state",
         "noun.event", "noun.feeling"),
    ),
    "person": Question(
        YES_NO,
        SINGLE,
        ("noun.person-", "noun.artifact", "noun.act"),
        ("noun.person+", "noun.location+", "noun.group", "noun.communication"),
    ),
    "topic": Question(YES_NO, PAIR, _TOPICS, _OTHER_TOPICS),
    "named": Question(LETTERS, CHOICE, _KINDS, _OTHERS),
}  # fmt: skip
TASKS = tuple(QUESTIONS)


@dataclass(frozen=True)
class FewShotTask:
    """A few examples to learn from, as many to choose by, and two tests: of the same domain and of a shifted one.

    No sentence stands in two of the four.

    Attributes:
        words: label words, in the order of the classes. template: of the cloze.

    >>> task = few_shot("concrete", seed=3)
    >>> len(task.train), len(task.dev), len(task.test), task.clozes("train")[0].words
    (32, 32, 200, ('yes', 'no'))
    >>> few_shot("topic").clozes("dev", "same topic ?")[0].text.startswith("same topic ? ")
    True
    """

    name: str
    words: tuple[str, ...]
    template: str
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    shifted: tuple[Example, ...]

    def clozes(self, split: Literal["train", "dev", "test", "shifted"], instruction: str = "") -> list[Cloze]:
        """The examples of a split as clozes, an instruction in words in front of each."""
        front = f"{instruction} " if instruction else ""
        some = cast(tuple[Example, ...], getattr(self, split))
        return [Cloze(front + self.template.format(*one.texts), one.label, self.words) for one in some]


def few_shot(name: str, k: int = 16, test: int = 200, seed: int = 0) -> FewShotTask:
    """A few-shot task: k examples per class to train on, k others for dev, and two tests of so many, all balanced.

    Args:
        name: one of TASKS.

    Raises:
        InputError: an unknown name, sizes that are not above 0, or that the slice has too few sentences for.

    >>> task = few_shot("named", k=4, test=8)
    >>> task.train[0].texts == few_shot("named", k=4, test=8).train[0].texts, len(task.shifted)
    (True, 8)
    """
    if name not in QUESTIONS:
        raise InputError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    if min(k, test) < 1:
        raise InputError(f"k={k} and test={test} were given; accepted are 1 or more.")
    question = QUESTIONS[name]
    rng = np.random.default_rng([seed, TASKS.index(name)])
    inside = _cut(_domain(question.inside), rng)
    made = {
        split: _examples(name, Pool(sentences), rng, size)
        for split, sentences, size in zip(
            ("train", "dev", "test", "shifted"),
            (*inside, _domain(question.outside)),
            (k * len(question.words), k * len(question.words), test, test),
            strict=True,
        )
    }
    return FewShotTask(name, question.words, question.template, **made)


@cache
def _domain(files: tuple[str, ...]) -> Mapping[int, str]:
    """Sentences of the side "tasks" in lexicographer files."""

    def within(one: Synset) -> bool:
        instance = any(symbol == "@i" for symbol, _ in one.relations)
        whole, _, _ = one.lexicographer.partition(".")
        signed = one.lexicographer + ("+" if instance else "-")
        return bool({whole, one.lexicographer, signed} & set(files))

    return {i: said for i, said in sides()["tasks"].items() if within(synsets()[i])}


def _cut(sentences: Mapping[int, str], rng: np.random.Generator) -> list[dict[int, str]]:
    """A quarter for train, a quarter for dev, half for test, of each lexicographer file."""
    files: dict[str, list[int]] = defaultdict(list)
    for i in sentences:
        files[synsets()[i].lexicographer].append(i)
    parts: list[dict[int, str]] = [{}, {}, {}]
    for some in files.values():
        for place, at in enumerate(rng.permutation(len(some)).tolist()):
            i = some[at]
            parts[min(2, 4 * place // len(some))][i] = sentences[i]
    return parts


def _person(one: Synset) -> str:
    return "yes" if one.lexicographer == "noun.person" else "no"


def _concrete(one: Synset) -> str | None:
    return None if one.concrete is None else "yes" if one.concrete else "no"


def _part(one: Synset) -> str | None:
    return PARTS.get(one.part)


CLASSES: Mapping[str, Callable[[Synset], str | None]] = {
    "category": topic,
    "part": _part,
    "concrete": _concrete,
    "person": _person,
}


def _examples(name: str, pool: Pool, rng: np.random.Generator, size: int) -> tuple[Example, ...]:
    """So many examples, as many of each class as can be, no two with the same texts, in random order."""
    words = QUESTIONS[name].words
    made: dict[tuple[str, ...], Example] = {}
    for label in (words[j % len(words)] for j in range(size)):
        for _ in range(TRIES):
            one = draw(name, pool, rng, label)
            if one.texts not in made:
                break
        else:
            raise InputError(f"{name} has too few sentences for {size} examples in a split; accepted are fewer.")
        made[one.texts] = one
    some = list(made.values())
    return tuple(some[i] for i in rng.permutation(size))


def draw(name: str, pool: Pool, rng: np.random.Generator, label: str) -> Example:
    """An example of a task (or of kind, or option) and a class from a pool.

    >>> draw("person", Pool(sides()["language"]), np.random.default_rng(0), "yes").label
    'yes'
    """
    if name in CLASSES:
        return pool.single(rng, label, CLASSES[name])
    if name == "named":
        return pool.named(rng, label, [topic for topic in NAMED if pool.by_topic[topic]])
    return {"topic": pool.topic, "kind": pool.kind, "option": pool.option}[name](rng, label)
