"""Clozes: a text with one blank, the word that fills it, and how sentences are worded as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlws.errors import InputError

BLANK = "<extra_id_0>"  # what the label word fills
VECTOR = "<extra_id_2>"  # where a vector is put in place of a token's embedding; <extra_id_1> ends the target


@dataclass(frozen=True)
class Cloze:
    """A text with one blank, the word that fills it, and the words that it is chosen from.

    Attributes:
        text: holds `<extra_id_0>` once, and `<extra_id_2>` once per vector.
        label: one of `words`.
        words: the label words, in the order of the classes.
        vectors: "vector dim" float32, each in place of one input embedding; None where the text has none.

    Raises InputError for a label that is none of the words.

    >>> Cloze("a fine film . It was <extra_id_0> .", "great", ("terrible", "great")).answer
    1
    """

    text: str
    label: str
    words: tuple[str, ...]
    vectors: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.label not in self.words:
            raise InputError(f"the label {self.label!r} was given; accepted is one of {', '.join(self.words)}.")

    @property
    def answer(self) -> int:
        """Which of the words the label is."""
        return self.words.index(self.label)


def as_choice(cloze: Cloze, wording: "Wording | None" = None) -> Cloze:
    """A cloze as a multiple choice between its label words, as Unified-PPT has all formats; a choice stays.

    >>> as_choice(Cloze("a cat <extra_id_0> a dog", "no", ("yes", "no"))).text
    'a cat ? a dog ? A. yes . B. no . ? The correct one is <extra_id_0>'
    """
    wording = wording or Wording()
    letters = tuple(wording.letters[: len(cloze.words)])
    if cloze.words == letters:
        return cloze
    text = wording.choice(" ".join(cloze.text.replace(BLANK, "?").split()), cloze.words)
    return Cloze(text, letters[cloze.answer], letters, cloze.vectors)


class Cutter(NamedTuple):
    """How a text's length is counted, and its beginning taken: count(text) -> length, first(text, length) -> text.

    >>> WORDS.count("a black cat"), WORDS.first("a black cat", 2)
    (3, 'a black')
    """

    count: Callable[[str], int]
    first: Callable[[str, int], str]


WORDS = Cutter(lambda text: len(text.split()), lambda text, length: " ".join(text.split()[:length]))


@dataclass(frozen=True)
class Wording:
    """The words around sentences, and how long those may be.

    Attributes:
        order: label words of nsp: of another document, of the same, next.
        same: label words of scsp: of one cluster, of two.
        letters: of the options.
        closing: what stands in front of the blank of a choice.
        total, anchor, option: most tokens of a text, of a first sentence, of an option (authors' code: 412, 389, 86).
        cutter: which counts them; words unless given (`seq2seq.token_cutter` counts a tokenizer's).

    >>> wording = Wording(option=2)
    >>> wording.choice("a cat", ["a small black dog", "a cat"])
    'a cat ? A. a small . B. a cat . ? The correct one is <extra_id_0>'
    >>> wording.pair("a cat", "a dog")
    'a cat <extra_id_0> a dog'
    """

    order: tuple[str, str, str] = ("no", "maybe", "yes")
    same: tuple[str, str] = ("yes", "no")
    letters: str = "ABCDEFGH"
    closing: str = "? The correct one is"
    total: int = 412
    anchor: int = 389
    option: int = 86
    cutter: Cutter = WORDS

    def pair(self, first: str, second: str) -> str:
        """Two sentences around the blank, each cut to half of the length."""
        most = min(self.anchor, (self.total - self.cutter.count(BLANK)) // 2)
        return f"{self.cutter.first(first, most)} {BLANK} {self.cutter.first(second, most)}"

    def choice(self, anchor: str, options: Sequence[str]) -> str:
        """A sentence and its lettered options; the sentence is cut to what the options leave."""
        shown = (self.cutter.first(option, self.option) for option in options)
        listed = " ".join(f"{letter}. {option} ." for letter, option in zip(self.letters, shown, strict=False))
        behind = f"? {listed} {self.closing} {BLANK}"
        most = min(self.anchor, self.total - self.cutter.count(behind))
        if most < 1:
            raise InputError(
                f"{len(options)} options of at most {self.option} tokens leave no room for a sentence in {self.total}; "
                "accepted is a smaller `option` or a larger `total`."
            )
        return f"{self.cutter.first(anchor, most)} {behind}"
