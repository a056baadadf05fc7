"""A slice of WordNet 3.0 (Miller 1995): what words mean, examples of their use, and how meanings are related.

39,774 synsets: those of 3,366 common words, and all that are one relation away from them (`build`).
"""

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

SLICE = Path(__file__).parent / "assets" / "wordnet.json.gz"


class Synset(NamedTuple):
    """A meaning, and the words that have it.

    Attributes:
        part: n, v, a or r: noun, verb, adjective, adverb.
        lexicographer: WordNet's lexicographer file, such as "noun.animal".
        lemmas: words of this meaning, the most common first.
        gloss: its definition.
        examples: of its use; most nouns have none.
        relations: (symbol of wninput(5WN), index of a synset of the slice).
        concrete: whether it is a physical entity; None where that makes no sense, of what is no noun.

    >>> Synset("n", "noun.artifact", ("cup",), "a small open container", ("he put the cup back",), (), True).lemmas[0]
    'cup'
    """

    part: str
    lexicographer: str
    lemmas: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    relations: tuple[tuple[str, int], ...]
    concrete: bool | None


@cache
def synsets() -> tuple[Synset, ...]:
    """All synsets of the slice, in WordNet's order.

    >>> len(synsets()), next(one.gloss for one in synsets() if "dancer" in one.lemmas)
    (39774, 'a performer who dances professionally')
    """
    return tuple(
        Synset(
            part,
            lexicographer,
            tuple(lemmas),
            gloss,
            tuple(examples),
            tuple((s, k) for s, k in relations),
            None if concrete < 0 else bool(concrete),
        )
        for part, lexicographer, lemmas, gloss, examples, relations, concrete in _read()["synsets"]
    )


@cache
def words() -> tuple[str, ...]:
    """Words that make a good question: common, of at most three meanings, which are related to others in several ways.

    >>> len(words()), words()[:3]
    (3366, ('abdomen', 'abdominal', 'abide'))
    """
    return tuple(_read()["queries"])


@cache
def meanings() -> Mapping[str, tuple[int, ...]]:
    """Lower-case word -> indices of its synsets in the slice: all its meanings, for each of `words()`.

    >>> [synsets()[k].part for k in meanings()["abdomen"]]
    ['n', 'n']
    """
    found: dict[str, list[int]] = {}
    for k, one in enumerate(synsets()):
        for lemma in dict.fromkeys(lemma.lower() for lemma in one.lemmas):
            found.setdefault(lemma, []).append(k)
    return {word: tuple(at) for word, at in found.items()}


@cache
def _read() -> Mapping[str, list]:
    return json.loads(gzip.decompress(SLICE.read_bytes()))
