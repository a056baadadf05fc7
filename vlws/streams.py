"""Documents of a file larger than memory, or of a folder: checked in one pass, then read part by part.

The pass (`scan`) records where each part begins, so that whoever reads a part (`read`) reads its bytes alone.
"""

import csv
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlws.data.beir import CORPUS
from vlws.data.text import parse_json, read_text
from vlws.errors import InputError

SUFFIXES = (".txt", ".md")  # of a folder's documents
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".txt", *DELIMITERS)  # of a file that holds documents line by line
NAMES = ("_id", "id")  # of the field or column of ids
ACCEPTED = (
    f"accepted is a folder of {' and '.join(SUFFIXES)} files, a BEIR folder with {CORPUS}, or a file "
    f"({', '.join(LINES)}) of a document a line"
)


class Part(NamedTuple):
    """Documents that stand one after the other in a source.

    Attributes:
        source: the file, or the folder.
        text: the field or column that holds the texts; a .txt file and a folder of files have none.
        start, stop: bytes of the file, or places in the folder's sorted list of files.
        line: how many lines of the file, or rows, stand before it.
        count: how many documents it holds.
        sha256: of what stands there.

    >>> Part("notes.txt", "text", 0, 20, 0, 2, "e3b0c442").count
    2
    """

    source: str
    text: str
    start: int
    stop: int
    line: int
    count: int
    sha256: str


def scan(data: str | Path, size: int, text: str = "text", taken: Callable[[], Iterable[str]] = tuple) -> list[Part]:
    """Check all documents of a source, and cut it into parts of `size` documents; memory: 8 bytes a document.

    Args:
        data: a file of a document a line: .jsonl ({"_id" or "id" (optional), "title" (optional), "text"}), .csv or .tsv
            (a header with such columns), .txt (a line is a text); or a folder: of BEIR, whose corpus.jsonl is read, or
            of .txt and .md files, one document each. A document without an id is called by its file and line.
        text: the name of the field or column of texts.
        taken: gives the ids that no document may have, those of an index that is to grow.

    Raises:
        InputError: a source that is not there, empty or none of these, a line that is no document, an empty text, an id
            that is there twice. The sentence says file and line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "birds.txt").write_text("an owl\\na hen\\na duck\\n")
    ...     parts = scan(Path(folder, "birds.txt"), size=2)
    ...     [(part.start, part.stop, part.count) for part in parts], read(parts[1])
    ([(0, 13, 2), (13, 20, 1)], (['birds.txt:3'], ['a duck']))
    """
    if size < 1:
        raise InputError(f"A shard of {size} documents was asked for; accepted is 1 or more.")
    cursor = _open(_source(data), text)
    hashes = array("q", map(hash, taken()))
    parts: list[Part] = []
    count = 0
    place = cursor.place()
    for name, _ in cursor.documents():
        hashes.append(hash(name))
        count += 1
        if count == size:
            parts.append(cursor.part(place, count))
            place, count = cursor.place(), 0
    if count:
        parts.append(cursor.part(place, count))
    if not parts:
        raise InputError(f"{cursor.source} is empty; accepted is one document or more.")
    _check_distinct(hashes, _open(cursor.source, text), taken)
    return parts


def read(part: Part) -> tuple[list[str], list[str]]:
    """Ids and texts of a part.

    Raises:
        InputError: a source that has changed since it was scanned.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "owls.jsonl").write_text('{"_id": "a", "title": "Owls", "text": "hunt at night"}')
    ...     (part,) = scan(Path(folder, "owls.jsonl"), size=1000)
    ...     read(part)
    (['a'], ['Owls hunt at night'])
    """
    cursor = _open(Path(part.source), part.text, part.start, part.line)
    ids, texts = [], []
    for name, text in cursor.documents():
        ids.append(name)
        texts.append(text)
        if len(ids) == part.count:
            break
    if cursor.part((part.start, part.line), len(ids)) != part:
        raise InputError(f"{part.source} has changed while it was read; run the command again.")
    return ids, texts


def _source(data: str | Path) -> Path:
    path = Path(data).expanduser()
    if not path.exists():
        raise InputError(f"There is no file or folder {str(data)!r}; {ACCEPTED}.")
    if path.is_dir():
        return (path / CORPUS if (path / CORPUS).is_file() else path).resolve()
    if path.suffix.lower() not in LINES:
        raise InputError(f"{path} is no file of documents; {ACCEPTED}.")
    return path.resolve()


def _open(path: Path, text: str, start: int = 0, line: int = 0) -> "_Cursor":
    if path.is_dir():
        return _Files(path, text, start, line)
    kinds: dict[str, type[_Cursor]] = {".jsonl": _Jsonl, ".txt": _Plain, ".csv": _Table, ".tsv": _Table}
    return kinds[path.suffix.lower()](path, text, start, line)


class _Cursor:
    """Reads documents one by one; knows where it stands, and the hash of what it has read since the last `place`."""

    def __init__(self, source: Path, text: str, start: int = 0, line: int = 0) -> None:
        self.source, self.text = source, text
        self.end, self.line = start, line
        self.sha = hashlib.sha256()

    def place(self) -> tuple[int, int]:
        """Where it stands, from where a next part begins."""
        self.sha = hashlib.sha256()
        return self.end, self.line

    def part(self, begun: tuple[int, int], count: int) -> Part:
        """What it has read since it stood at `begun`."""
        return Part(str(self.source), self.text, begun[0], self.end, begun[1], count, self.sha.hexdigest())

    def lines(self) -> Iterator[str]:
        """Lines with their ends, decoded; the file is never held as a whole."""
        try:
            opened = self.source.open("rb")
        except OSError as error:
            raise InputError(f"{self.source} cannot be read ({error.strerror}).") from error
        with opened:
            opened.seek(self.end)
            for raw in opened:
                self.line += 1
                self.end += len(raw)
                self.sha.update(raw)
                try:
                    line = raw.decode("utf-8-sig" if self.line == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise self.fault(f"is not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from error
                if "\0" in line:
                    raise self.fault("holds a null character, as UTF-16 does; save the file as UTF-8")
                yield line

    def documents(self) -> Iterator[tuple[str, str]]:
        """(id, text) of what follows."""
        raise NotImplementedError

    def fault(self, said: str) -> InputError:
        """One sentence on the line that was read last."""
        return InputError(f"{self.source}, line {self.line}, {said}.")

    def named(self, row: dict[str, Any], accepted: str) -> tuple[str, str]:
        """(id, text) of the fields of a line."""
        title, text = row.get("title") or "", row.get(self.text)
        given = next((row[name] for name in NAMES if row.get(name) is not None), None)
        if isinstance(given, int | float):
            raise self.fault(f'has the number {given} as its id; quote it: "{given}"')
        if not isinstance(text, str) or not isinstance(title, str) or not isinstance(given, str | None):
            raise self.fault(f"is no {accepted} of texts")
        if given == "":
            raise self.fault("has an empty id; accepted is a text of a character or more")
        whole = f"{title} {text}".strip()
        if not whole:
            raise self.fault("has an empty text; accepted is a document of a word or more")
        return given or self.called(), whole

    def called(self) -> str:
        """The id of a document that has none: its file and line."""
        return f"{self.source.name}:{self.line}"


class _Plain(_Cursor):
    """A .txt file: each line that is not blank is a text."""

    def documents(self) -> Iterator[tuple[str, str]]:
        for line in self.lines():
            if text := line.strip():
                yield self.called(), text


class _Jsonl(_Cursor):
    """A .jsonl file: each line that is not blank is an object."""

    def documents(self) -> Iterator[tuple[str, str]]:
        accepted = f'JSON object {{"_id" (optional), "title" (optional), "{self.text}"}}'
        for line in self.lines():
            if line.isspace():
                continue
            row = parse_json(line, self.source, self.line)
            if not isinstance(row, dict):
                raise self.fault(f"is no {accepted} of texts")
            name, text = self.named(row, accepted)
            if "\\ud" in line.lower() and not _is_whole(name + text):  # an escape can spell half a character
                raise self.fault("has half of a surrogate pair; accepted are whole characters")
            yield name, text


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Table(_Cursor):
    """A .csv or .tsv file with a header; a field in quotes may hold line ends."""

    def documents(self) -> Iterator[tuple[str, str]]:
        begins = self.end == 0
        own = self if begins else _Table(self.source, self.text)
        lines = own.lines()
        header = next(self.rows(lines), [])
        if self.text not in header:
            raise InputError(
                f"{self.source} has the columns {', '.join(header) or 'none'}; accepted is a header with a column "
                f"{self.text!r} (name yours by --text)."
            )
        accepted = f"row of {len(header)} fields, as the header has"
        for row in self.rows(lines if begins else self.lines()):
            if not row:
                continue
            if len(row) != len(header):
                raise self.fault(f"has {len(row)} fields; accepted is a {accepted}")
            yield self.named(dict(zip(header, row, strict=True)), accepted)

    def rows(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """Rows of lines, of which it takes no more than it needs for each row."""
        try:
            yield from csv.reader(lines, delimiter=DELIMITERS[self.source.suffix.lower()], strict=True)
        except csv.Error as error:
            raise self.fault(f"is no row of a table ({error})") from error


class _Files(_Cursor):
    """A folder of .txt and .md files, in the order of their paths; the id of a file is its path in the folder.

    Folders and files whose name begins with a dot are left out.
    """

    def documents(self) -> Iterator[tuple[str, str]]:
        found = [
            path
            for path in sorted(self.source.rglob("*"))
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(self.source).parts)
        ]
        if not found:
            raise InputError(f"{self.source} holds no document; {ACCEPTED}.")
        for path in found[self.end :]:
            name, text = path.relative_to(self.source).as_posix(), read_text(path).strip()
            if not text:
                raise InputError(f"{path} is empty; accepted are documents of a word or more.")
            self.end += 1
            self.line += 1
            self.sha.update(f"{name}\0{text}\0".encode())
            yield name, text


def _check_distinct(hashes: "array[int]", cursor: _Cursor, taken: Callable[[], Iterable[str]]) -> None:
    """Refuse an id that is there twice: by their hashes first, and by a second pass where two hashes are the same."""
    ordered = np.frombuffer(hashes, np.int64)
    ordered.sort()  # in place
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    before = {name for name in taken() if hash(name) in twice}
    seen: set[str] = set()
    for name, _ in cursor.documents():
        if hash(name) in twice:
            if name in before:
                raise cursor.fault(f"has the id {name!r}, which the index has already; accepted is each once")
            if name in seen:
                raise cursor.fault(f"has the id {name!r} of a line before; accepted is each once")
            seen.add(name)
