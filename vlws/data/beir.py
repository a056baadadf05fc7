"""Retrieval data in the folders of BEIR (Thakur et al. 2021, arXiv:2104.08663): documents, queries, judgements.

A folder holds `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`. Beyond BEIR a query may have an instruction: in
its own line, or in `instructions.jsonl`, the file that evaluations of instructed retrievers keep.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlws.data.text import parse_json
from vlws.errors import InputError
from vlws.files import write_atomically

CORPUS, QUERIES, QRELS, INSTRUCTIONS = "corpus.jsonl", "queries.jsonl", "qrels", "instructions.jsonl"
HEADER = "query-id\tcorpus-id\tscore"
ACCEPTED = f"accepted is a folder with {CORPUS}, {QUERIES} and {QRELS}/SPLIT.tsv, as BEIR has them"


@dataclass(frozen=True)
class Collection:
    """Documents, and the queries and judgements of one split; all ids are strings.

    Attributes:
        documents: id -> title + " " + text, stripped.
        queries: id -> text; only those that are judged.
        qrels: query id -> document id -> score (0 is not relevant), in the order of `queries`.
        instructions: query id -> what is to be found for it in words, "" where nothing is said.

    >>> collection = Collection({"d1": "An owl hunts at night."}, {"q1": "owls"}, {"q1": {"d1": 1}}, {"q1": ""})
    >>> collection.qrels["q1"]
    {'d1': 1}
    """

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    instructions: Mapping[str, str] = field(default_factory=dict)


def read_beir(folder: str | Path, split: str = "test") -> Collection:
    """The documents of a BEIR folder, and the queries of a split with their judgements and instructions.

    corpus.jsonl has lines {"_id", "title" (optional), "text"}, queries.jsonl {"_id", "text", "instruction" (optional)},
    qrels/SPLIT.tsv a header and lines of query id, document id and score, separated by tabs. Queries that the split
    does not judge are left out. instructions.jsonl, in the folder or beside it, has lines {"dataset", "_id", "text"}:
    the first line whose dataset is the folder's name is the instruction of every query that has none of its own (a file
    in the folder that is of one dataset alone is taken whatever the dataset is called).

    Raises:
        InputError: a folder or a file that is missing, a file that is not UTF-8, a line without these fields, ids that
            are numbers, empty or there twice, a text that is empty, an empty corpus, judgements that have another form
            or name documents or queries that are not there, a split that judges no query. The sentence says file and
            line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_beir(folder, Collection({"d1": "An owl hunts at night."}, {"q1": "owls"}, {"q1": {"d1": 1}}))
    ...     read_beir(folder).documents
    {'d1': 'An owl hunts at night.'}
    """
    root = _folder(folder)
    judged = _file(root, f"{QRELS}/{split}.tsv", _splits(root))
    documents = read_corpus(root)
    queries, own = _read_queries(_file(root, QUERIES))
    qrels = _read_qrels(judged, documents, queries)
    if not qrels:
        raise InputError(f"{judged} judges no query; accepted is one line or more after the header.")
    default = _instruction_of(root)
    return Collection(
        documents,
        {query: text for query, text in queries.items() if query in qrels},
        {query: qrels[query] for query in queries if query in qrels},
        {query: own.get(query, default) for query in queries if query in qrels},
    )


def read_corpus(folder: str | Path) -> dict[str, str]:
    """The documents of a BEIR folder: id -> title + " " + text, stripped.

    Raises:
        InputError: as `read_beir`, of corpus.jsonl alone.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "corpus.jsonl").write_text('{"_id": "1", "title": "Owls", "text": "They hunt at night."}')
    ...     read_corpus(folder)
    {'1': 'Owls They hunt at night.'}
    """
    file = _file(_folder(folder), CORPUS)
    documents: dict[str, str] = {}
    for k, line in _lines(file):
        row = _parsed(line, file, k)
        try:
            name, text = row["_id"], row["text"]
            whole = f"{row.get('title') or ''} {text}".strip()
            known = type(name) is str and type(text) is str and name
        except (KeyError, TypeError, AttributeError):
            known = False
        if not known or not isinstance(row.get("title") or "", str):
            raise _fault(row, file, k, '{"_id", "title" (optional), "text"}')
        if not whole:
            raise InputError(f"{file}, line {k}, has an empty text; accepted is a document of a word or more.")
        if name in documents:
            raise InputError(f"{file}, line {k}, has the _id {name!r} of a line before; accepted is each once.")
        documents[name] = whole
    if not documents:
        raise InputError(f"{file} is empty; accepted is one document or more.")
    return documents


def _folder(folder: str | Path) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}; {ACCEPTED}.")
    return root


def _splits(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / QRELS).glob("*.tsv"))


def _file(root: Path, name: str, splits: list[str] | None = None) -> Path:
    if not (root / name).is_file():
        there = f", but those of {', '.join(splits)}" if splits else ""
        raise InputError(f"{root} has no {name}{there}; {ACCEPTED}.")
    return root / name


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number, text without its end) of the lines that are not blank; a file is never held as a whole."""
    with file.open("rb") as opened:
        for k, raw in enumerate(opened, 1):
            try:
                line = raw.decode("utf-8-sig" if k == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{file}, line {k}, is not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8."
                ) from error
            if line and not line.isspace():
                yield k, line


def _parsed(line: str, file: Path, k: int) -> Any:
    value = parse_json(line, file, k)
    if "\\ud" in line or "\\uD" in line:  # an escape can spell half a character, which no tokenizer takes
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{file}, line {k}, has half of a surrogate pair; accepted are whole characters."
            ) from error
    return value


def _fault(row: Any, file: Path, k: int, accepted: str) -> InputError:
    """What is wrong with a line that has not the fields of its file."""
    name = row.get("_id", "") if isinstance(row, dict) else ""
    if isinstance(name, int | float):
        return InputError(f'{file}, line {k}, has the number {name} as its _id; quote it: "{name}".')
    if isinstance(row, dict) and row.get("_id") == "":
        return InputError(f"{file}, line {k}, has an empty _id; accepted is a text of a character or more.")
    return InputError(f"{file}, line {k}, is no JSON object {accepted} of texts.")


def _read_queries(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Texts of all queries, and the instructions that stand in their own lines."""
    queries: dict[str, str] = {}
    own: dict[str, str] = {}
    for k, line in _lines(file):
        row = _parsed(line, file, k)
        fields = [row.get(name) for name in ("_id", "text")] if isinstance(row, dict) else [None]
        said = row.get("instruction") if isinstance(row, dict) else None
        if not all(isinstance(text, str) for text in [*fields, said or ""]) or not fields[0]:
            raise _fault(row, file, k, '{"_id", "text", "instruction" (optional)}')
        name, text = row["_id"], row["text"]
        if not text.strip():
            raise InputError(f"{file}, line {k}, has an empty text; accepted is a query of a word or more.")
        if name in queries:
            raise InputError(f"{file}, line {k}, has the _id {name!r} of a line before; accepted is each once.")
        queries[name] = text
        if said is not None:
            own[name] = said
    return queries, own


def _read_qrels(file: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    lines = _lines(file)
    k, header = next(lines, (1, ""))
    if header.strip() != HEADER:
        raise InputError(f"{file}, line {k}, is not the header; accepted is {HEADER!r} as the first line.")
    for k, line in lines:
        row = line.split("\t")
        if len(row) != 3:
            raise InputError(f"{file}, line {k}, has {len(row)} fields; accepted are three, separated by tabs.")
        query, document, text = row
        try:
            score = int(text)
        except ValueError:
            raise InputError(f"{file}, line {k}, has the score {text!r}; accepted is an integer.") from None
        if found.setdefault(query, {}).setdefault(document, score) != score:
            raise InputError(
                f"{file}, line {k}, gives {document!r} another score for {query!r} than a line before; accepted is one."
            )
    _check_known(str(file), found, documents, queries)
    return found


def _check_known(
    where: str,
    qrels: Mapping[str, Mapping[str, int]],
    documents: Mapping[str, str],
    queries: Mapping[str, str],
) -> None:
    strange = [query for query in qrels if query not in queries]
    if strange:
        raise InputError(f"{where} names {_how_many(strange, 'query', 'queries')} not in {QUERIES}.")
    strange = list(dict.fromkeys(name for row in qrels.values() for name in row if name not in documents))
    if strange:
        raise InputError(f"{where} names {_how_many(strange, 'document', 'documents')} not in {CORPUS}.")


def _how_many(names: list[str], one: str, several: str) -> str:
    if len(names) == 1:
        return f"the {one} {names[0]!r}, which is"
    return f"{len(names)} {several}, the first {names[0]!r}, which are"


def _instruction_of(root: Path) -> str:
    """The instruction of a dataset from instructions.jsonl, in its folder or beside it; "" where none is said."""
    name = root.resolve().name
    if (root / INSTRUCTIONS).is_file():
        rows = _read_instructions(root / INSTRUCTIONS)
        named = {dataset for dataset, _ in rows}
        if len(named) > 1 and name not in named:
            raise InputError(
                f"{root / INSTRUCTIONS} is of several datasets ({', '.join(sorted(named)[:3])}, ...) and none is "
                f"{name!r}, the folder's name; accepted is a file of this dataset."
            )
        return next((text for dataset, text in rows if dataset == name or len(named) == 1), "")
    beside = root.resolve().parent / INSTRUCTIONS
    rows = _read_instructions(beside) if beside.is_file() else []
    return next((text for dataset, text in rows if dataset == name), "")


def _read_instructions(file: Path) -> list[tuple[str, str]]:
    rows = []
    for k, line in _lines(file):
        row = _parsed(line, file, k)
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("dataset", "text")):
            raise InputError(f'{file}, line {k}, is no JSON object {{"dataset", "_id", "text"}} of texts.')
        rows.append((row["dataset"], row["text"]))
    return rows


# --- writing ----------------------------------------------------------------------------------------------------------


def write_beir(folder: str | Path, collection: Collection, split: str = "test") -> None:
    """Write a collection as a BEIR folder, which `read_beir` reads; the same collection gives the same bytes.

    Other splits in the folder stay, with their queries: write one collection per split, all of the same documents. The
    judgements come last, so that a folder which is cut short has no such split.

    Raises:
        InputError: a collection that `read_beir` would refuse or not give back: empty texts, ids with tabs or line
            ends, queries without judgements, judgements of what is not there; other documents, or another text of a
            query, than the folder's other splits have.
        OSError: the disk refuses.

    >>> import tempfile
    >>> documents = {"d1": "An owl hunts at night."}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_beir(folder, Collection(documents, {"q1": "owls"}, {"q1": {"d1": 1}}), "train")
    ...     write_beir(folder, Collection(documents, {"q2": "birds"}, {"q2": {"d1": 1}}, {"q2": "Find a fact."}))
    ...     read_beir(folder, "test").instructions, read_beir(folder, "train").queries
    ({'q2': 'Find a fact.'}, {'q1': 'owls'})
    """
    root = Path(folder).expanduser()
    _check(collection)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; accepted is a folder.")
    queries = {q: (text, collection.instructions.get(q, "")) for q, text in collection.queries.items()}
    for other in _splits(root):
        if other != split:
            queries = _together(root, other, collection, queries)
    (root / QRELS).mkdir(parents=True, exist_ok=True)
    _write_jsonl(root / CORPUS, collection.documents.items(), lambda name, text: {"_id": name, "text": text})
    # an empty instruction is written too: it says that the query has none, whatever instructions.jsonl says
    _write_jsonl(
        root / QUERIES, queries.items(), lambda name, said: {"_id": name, "text": said[0], "instruction": said[1]}
    )
    judged = [f"{q}\t{d}\t{score}" for q in collection.queries for d, score in collection.qrels[q].items()]
    write_atomically(root / QRELS / f"{split}.tsv", ("\n".join([HEADER, *judged]) + "\n").encode())


def _together(
    root: Path, other: str, collection: Collection, queries: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """The queries of another split in the folder, and those of this one."""
    there = read_beir(root, other)
    if there.documents != collection.documents:
        raise InputError(
            f"{root} has other documents, judged by its split {other!r}; accepted are the same, or a new folder."
        )
    found = {q: (text, there.instructions[q]) for q, text in there.queries.items()}
    for q in found.keys() & queries.keys():
        if found[q] != queries[q]:
            raise InputError(f"{root} has another text or instruction of the query {q!r} in its split {other!r}.")
    return found | dict(queries)


def _check(collection: Collection) -> None:
    for kind, texts in (("document", collection.documents), ("query", collection.queries)):
        if not texts:
            raise InputError(f"The collection has no {kind}; accepted is one or more.")
        for name, text in texts.items():
            if not isinstance(name, str) or not name or any(end in name for end in "\t\n\r"):
                raise InputError(f"The {kind} id {name!r} was given; accepted is a text without tabs and line ends.")
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"The {kind} {name!r} has an empty text; accepted is a word or more.")
    _check_known("The collection's qrels", collection.qrels, collection.documents, collection.queries)
    if bare := [q for q in collection.queries if not collection.qrels.get(q)]:
        raise InputError(f"The query {bare[0]!r} has no judgement; accepted is one or more of each query.")
    if strange := [q for q in collection.instructions if q not in collection.queries]:
        raise InputError(f"The instructions name {_how_many(strange, 'query', 'queries')} not in the collection.")


def _write_jsonl(file: Path, rows: Any, as_object: Callable[[str, Any], dict[str, str]]) -> None:
    try:
        lines = [json.dumps(as_object(*row), ensure_ascii=False) + "\n" for row in rows]
        write_atomically(file, "".join(lines).encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"A text of {file.name} has half of a surrogate pair; accepted are whole characters."
        ) from error
