"""Remake the slice of WordNet from its Debian package: `python -m vlws.data.wordnet.build`.

What is kept: every lemma that makes a good question, its synsets, and all synsets one relation away from those.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlws.errors import InputError
from vlws.files import write_atomically

ASSETS = Path(__file__).parent / "assets"
SOURCE = Path("/usr/share/wordnet")  # of Debian's wordnet-base
PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# WordNet's lexicographer files, by number (lexnames(5WN))
# fmt: off
LEXICOGRAPHERS = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant",
    "noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state",
    "noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication",
    "verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion",
    "verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)
# fmt: on
PHYSICAL = ("n", 1930)  # physical entity: what lies below it is concrete
MAX_WORDS, MAX_SENSES, MIN_RELATIONS = 2, 3, 4  # of a lemma that makes a good question


class Sense(NamedTuple):
    """A line of WordNet's data files; relations are (symbol, (part of speech, offset))."""

    lexicographer: str
    lemmas: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    relations: tuple[tuple[str, tuple[str, int]], ...]


def build(out: Path = ASSETS, source: Path = SOURCE) -> Path:
    """Write `wordnet.json.gz` under `out`: {"synsets": [...], "queries": [...]}, the same bytes each time.

    A synset is [part of speech, lexicographer file, lemmas, gloss, examples, relations, concrete]; relations are
    [symbol, index of a synset]; concrete is 1 for nouns below "physical entity", 0 for other nouns, -1 elsewhere.

    Raises:
        InputError: the package's files are missing.
    """
    check_source(source)
    senses = dict(read(source))
    queries, of = questions(senses, tagged(source / "cntlist.rev"))
    kept = {key for lemma in queries for key in of[lemma]}
    kept |= {target for key in list(kept) for _, target in senses[key].relations}
    order = sorted(kept)
    index = {key: k for k, key in enumerate(order)}
    concrete = below(PHYSICAL, senses)
    synsets: list[list[Any]] = []
    for key in order:
        one = senses[key]
        near = sorted({(symbol, index[target]) for symbol, target in one.relations if target in index})
        told = -1 if key[0] != "n" else int(key in concrete)
        synsets.append([key[0], one.lexicographer, one.lemmas, one.gloss, one.examples, near, told])
    text = json.dumps({"synsets": synsets, "queries": queries}, ensure_ascii=False, separators=(",", ":"))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "wordnet.json.gz", gzip.compress(text.encode(), 9, mtime=0))
    return out


def check_source(source: Path = SOURCE) -> None:
    """InputError where the package's files are missing."""
    if not (source / "data.noun").is_file():
        raise InputError(f"{source}/data.noun is missing: install the Debian package wordnet-base.")


def read(source: Path) -> Iterator[tuple[tuple[str, int], Sense]]:
    """((part of speech, offset), sense) of every line of the four data files (wndb(5WN)); satellites count as "a"."""
    for part, name in PARTS.items():
        for line in (source / f"data.{name}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue  # the licence
            fields, _, said = line.partition(" | ")
            f = fields.split()
            words = int(f[3], 16)
            lemmas = [re.sub(r"\((a|p|ip)\)$", "", f[4 + 2 * k]).replace("_", " ") for k in range(words)]
            at = 4 + 2 * words
            n = int(f[at])
            pointers = [f[at + 1 + 4 * k : at + 5 + 4 * k] for k in range(n)]
            relations = tuple((symbol, (pos.replace("s", "a"), int(offset))) for symbol, offset, pos, _ in pointers)
            gloss, examples = split_gloss(said)
            yield (part, int(f[0])), Sense(LEXICOGRAPHERS[int(f[1])], tuple(lemmas), gloss, examples, relations)


def split_gloss(said: str) -> tuple[str, tuple[str, ...]]:
    """Definition, and the examples in quotation marks behind it.

    >>> split_gloss('having warmth; "a warm body"; "a warm room" ')
    ('having warmth', ('a warm body', 'a warm room'))
    """
    examples = tuple(part.strip() for part in re.findall(r'"([^"]+)"', said) if part.strip())
    return said.split('; "')[0].split('"')[0].strip(" ;") or said.strip(), examples


def tagged(path: Path) -> set[str]:
    """Lemmas that occur in WordNet's tagged texts."""
    return {line.split("%")[0].replace("_", " ") for line in path.read_text(encoding="latin-1").splitlines()}


def questions(
    senses: dict[tuple[str, int], Sense], tagged: set[str]
) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """Lemmas that make a good question, sorted, and the synsets of every lemma.

    A good one has few words and senses, occurs in text, and has relations of several kinds.
    """
    of = defaultdict(list)
    for key, one in senses.items():
        for lemma in dict.fromkeys(lemma.lower() for lemma in one.lemmas):
            of[lemma].append(key)
    good = [
        lemma
        for lemma, keys in of.items()
        if lemma in tagged
        and len(lemma.split()) <= MAX_WORDS
        and len(keys) <= MAX_SENSES
        and lemma.replace(" ", "").isalpha()
        and len({symbol for key in keys for symbol, _ in senses[key].relations}) >= MIN_RELATIONS
    ]
    return sorted(good), of


def below(root: tuple[str, int], senses: dict[tuple[str, int], Sense]) -> set[tuple[str, int]]:
    """All synsets that are a kind or an instance of `root`."""
    found, border = {root}, [root]
    while border:
        border = [
            target
            for key in border
            for symbol, target in senses[key].relations
            if symbol in ("~", "~i") and target not in found
        ]
        found |= set(border)
    return found


if __name__ == "__main__":
    print(build())
