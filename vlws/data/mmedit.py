"""Cases of knowledge editing: what is to be known, how else it is asked, and what must stay as it was.

A case has the fields of MMEdit (Cheng et al. 2023, arXiv:2310.08475), and beside its far questions near ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GENERALITY = ("text_generality", "image_generality")
LOCALITY = ("text_locality", "image_locality")
KINDS = ("reliability", *GENERALITY, *LOCALITY, "near")


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        text: with a placeholder "<image>" for each picture.
        images: PIL pictures, arrays "h w 3" uint8, or rows of a tower's features.
        answer: for the edit and its generality, the new one; for locality, the one that scores are read at.
    """

    text: str
    images: Sequence[Any]
    answer: str


@dataclass(frozen=True)
class EditCase:
    """An edit, and the questions by which it is judged.

    Attributes:
        edit: what is taught.
        text_generality: the same, asked in other words; image_generality: asked of another picture of the same thing.
        text_locality: about something else, without a picture; image_locality: about another picture.
        near: about the same picture, or the same of another: nearer than MMEdit's, which are drawn at random.
        predicted: what the model said before.
    """

    edit: Question
    text_generality: Question
    image_generality: Question
    text_locality: Question
    image_locality: Question
    near: tuple[Question, ...] = ()
    predicted: str = ""

    def questions(self) -> Iterator[tuple[str, Question]]:
        """(one of KINDS, question) of all that the case asks."""
        named: Mapping[str, Question] = {"reliability": self.edit} | {
            kind: getattr(self, kind) for kind in (*GENERALITY, *LOCALITY)
        }
        yield from named.items()
        yield from (("near", question) for question in self.near)
