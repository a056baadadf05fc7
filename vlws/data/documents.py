"""Interleaved documents: sentences and pictures in one order, and the folders (`documents.jsonl`) that hold them.

Nothing here knows where documents come from: `vlws.data.emoji_world.stories` generates them, `read_folder` reads a
user's own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from vlws.data.images import find_file, read_images
from vlws.data.text import parse_json, read_text
from vlws.errors import InputError
from vlws.files import write_atomically

SIZE = 32  # pixels per side, of pictures read from a folder unless asked for otherwise


@dataclass(frozen=True, slots=True)
class Slice:
    """One sentence, or one picture (`image`, an index into `Documents.images`).

    features: the facts that the slice states, where they are known.
    supervised: whether the language model learns the sentence: its tokens carry labels. Never a question that an
        answer answers; a document's answer always carries labels. Two slices of the same content are equal, whether
        supervised or not.

    >>> Slice("a red cat").is_image, Slice(image=0).is_image
    (False, True)
    >>> Slice("a red cat", supervised=True) == Slice("a red cat")
    True
    """

    text: str = ""
    image: int = -1
    features: tuple[str, ...] = ()
    supervised: bool = field(default=False, compare=False)

    @property
    def is_image(self) -> bool:
        """Whether it is a picture rather than a sentence."""
        return self.image >= 0


@dataclass(frozen=True, slots=True)
class Document:
    """Slices in their order; where there is an answer, the last slice is its question.

    choices: the answers to choose from, of a question with a closed set.
    lone: the slice that is also read by itself, as a retrieval candidate is; not supervised.

    >>> document = Document((Slice(image=0), Slice("what colour?")), answer="red", choices=("red", "blue"))
    >>> len(document.slices), document.slices[-1].text, document.lone
    (2, 'what colour?', None)
    """

    slices: tuple[Slice, ...]
    answer: str = field(default="", kw_only=True)
    choices: tuple[str, ...] = field(default=(), kw_only=True)
    lone: Slice | None = field(default=None, kw_only=True)


class Renderable(Protocol):
    """Pictures that are rendered when first asked for.

    >>> class Black:
    ...     def render(self):
    ...         return np.zeros((2, 32, 32, 3), np.uint8)
    >>> Documents((), Black()).images.shape
    (2, 32, 32, 3)
    """

    def render(self) -> np.ndarray:
        """All pictures, "n h w 3" uint8 RGB."""
        ...


class Pictured:
    """Base of what holds documents: `images` "n h w 3" uint8 RGB, indexed by `Slice.image`.

    >>> found = Documents((), np.zeros((2, 32, 32, 3), np.uint8))
    >>> isinstance(found, Pictured), found.images.shape
    (True, (2, 32, 32, 3))
    """

    album: Renderable | np.ndarray

    @cached_property
    def images(self) -> np.ndarray:
        """All pictures, "n h w 3" uint8 RGB."""
        return self.album if isinstance(self.album, np.ndarray) else self.album.render()


@dataclass(frozen=True)
class Documents(Pictured):
    """Documents and their pictures, given as an array or rendered when first asked for.

    >>> document = Document((Slice("a red cat"), Slice(image=0)))
    >>> found = Documents((document,), np.zeros((1, 32, 32, 3), np.uint8))
    >>> len(found), found.images[found.documents[0].slices[1].image].shape
    (1, (32, 32, 3))
    """

    documents: tuple[Document, ...]
    album: Renderable | np.ndarray

    def __len__(self) -> int:
        return len(self.documents)


def with_reference(query: Document, reference: Document) -> Document:
    """The query after a retrieved document: its slices and, as a sentence without labels, its answer.

    >>> reference = Document((Slice(image=0), Slice("who keeps it?")), answer="anna")
    >>> query = Document((Slice(image=1), Slice("who keeps it?")))
    >>> [part.text or part.image for part in with_reference(query, reference).slices]
    [0, 'who keeps it?', 'anna.', 1, 'who keeps it?']
    """
    answer = Slice(text=f"{reference.answer}.", features=(reference.answer,))
    return replace(query, slices=(*reference.slices, answer, *query.slices))


# --- folders ----------------------------------------------------------------------------------------------------------


def write_folder(found: Documents, folder: str | Path) -> Path:
    """Write pictures as PNG and `documents.jsonl`, one document per line.

    A line is {"slices": [{"image": "00000.png"} | {"text": "..."}, ...]}, with "answer" where the document has one.

    >>> import tempfile
    >>> document = Document((Slice(image=0), Slice("what colour?")), answer="red")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = write_folder(Documents((document,), np.zeros((1, 32, 32, 3), np.uint8)), folder)
    ...     print((written / "documents.jsonl").read_text().strip())
    {"slices": [{"image": "00000.png"}, {"text": "what colour?"}], "answer": "red"}
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(found.images):
        Image.fromarray(image).save(folder / f"{i:05}.png")
    lines = []
    for document in found.documents:
        slices = [{"image": f"{s.image:05}.png"} if s.is_image else {"text": s.text} for s in document.slices]
        lines.append(json.dumps({"slices": slices} | ({"answer": document.answer} if document.answer else {})))
    write_atomically(folder / "documents.jsonl", ("\n".join(lines) + "\n").encode())
    return folder


def read_folder(folder: str | Path, size: int = SIZE) -> Documents:
    """Read a folder in the format of `write_folder`; pictures are cut to their central square, `size` pixels per side.

    All sentences are supervised but a question that an answer answers; each document's last slice is its lone one.

    Raises:
        InputError: no folder or no documents.jsonl; a line that is no such document; a document of one slice or
            without pictures, an empty answer; a picture that is missing or cannot be read.

    >>> import tempfile
    >>> document = Document((Slice(image=0), Slice("what colour?")), answer="red")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = read_folder(write_folder(Documents((document,), np.zeros((1, 48, 32, 3), np.uint8)), folder))
    >>> found.documents[0].answer, found.images.shape  # the central square, 32 pixels per side
    ('red', (1, 32, 32, 3))
    """
    folder = Path(folder).expanduser()
    file = folder / "documents.jsonl"
    if not file.is_file():
        fault = "holds no documents.jsonl" if folder.is_dir() else "does not exist"
        raise InputError(
            f'The data folder {folder} {fault}; it needs one, with one line {{"slices": [...]}} per document.'
        )
    indices: dict[Path, int] = {}
    documents = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            documents.append(_document(line, number, folder, indices))
    if not documents:
        raise InputError(f"{file} holds no document; it needs one or more, one per line.")
    return Documents(tuple(documents), read_images(list(indices), size))


def _document(line: str, number: int, folder: Path, indices: dict[Path, int]) -> Document:
    """One line -> a document; `indices` (file -> `Slice.image`) takes up the files that are new."""
    where, record = f"documents.jsonl, line {number}", parse_json(line, "documents.jsonl", number)
    given = record.get("slices") if isinstance(record, dict) else None
    if not isinstance(given, list) or not all(
        isinstance(part, dict) and len(part) == 1 and isinstance(part.get("text", part.get("image")), str)
        for part in given
    ):
        raise InputError(f'{where}: accepted is {{"slices": [{{"image": "a.png"}}, {{"text": "..."}}, ...]}}.')
    answer = record.get("answer", "")
    if "answer" in record and (not isinstance(answer, str) or not answer.strip()):
        raise InputError(f"{where}, has an empty answer; leave it out or fill it.")
    slices = [_slice(part, where, folder, indices) for part in given]
    _check_slices(slices, where)
    if answer:
        slices[-1] = replace(slices[-1], supervised=False)
    return Document(tuple(slices), answer=answer, lone=replace(slices[-1], supervised=False))


def _slice(part: dict[str, str], where: str, folder: Path, indices: dict[Path, int]) -> Slice:
    if "text" in part:
        text = part["text"].strip()
        if not text:
            raise InputError(f"{where}, has an empty text; leave it out or fill it.")
        return Slice(text=text, supervised=True)
    name = part["image"]
    path = find_file(folder, name)
    if path is None:
        raise InputError(f"{where}, names the picture {name}, which is not in {folder}.")
    return Slice(image=indices.setdefault(path, len(indices)))


def _check_slices(slices: Sequence[Slice], where: str) -> None:
    if len(slices) < 2:
        raise InputError(f"{where}, is a document of {len(slices)} slice; it needs two or more.")
    if not any(s.is_image for s in slices):
        raise InputError(f"{where}, is a document without pictures; each needs one or more.")
