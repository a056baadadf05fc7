"""Documents that fit a query: what `vlws index` and `vlws retrieve` do.

index("notes", "minilm", "notes-index")
retrieve(["what did we say about warm-up ?"], "notes-index")["results"][0]["hits"][0]["id"]

An index is a folder in shards (`vlws.shards`), made of documents that are read part by part (`vlws.streams`): neither
needs more memory for more documents.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlws.errors import InputError
from vlws.fingerprint import digest
from vlws.models.hub import weights_hash
from vlws.models.retriever import Retriever, load_retriever
from vlws.search import search
from vlws.shards import (
    DTYPES,
    MADE_BY,
    SHARDS,
    Index,
    check_out,
    clean,
    finished,
    read_manifest,
    write_manifest,
    write_shard,
    writing,
)
from vlws.streams import Part, read, scan

SHOWN = 200  # characters of each document that an index keeps
SHARD_SIZE = 50_000  # documents
Job = dict[str, Any]
Run = Callable[[Callable[[Job], dict[str, Any]], Sequence[Job]], Iterable[dict[str, Any]]]


def index(
    data: str | Path,
    backbone: str | None,
    out: str | Path,
    device: str = "auto",
    *,
    text: str = "text",
    shard_size: int = SHARD_SIZE,
    dtype: str = "float32",
    append: bool = False,
    run: Run = map,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Encode documents, and keep their vectors as an index in shards.

    Shards that are there and whole are taken as they are: called again after it was killed, it goes on with those that
    are missing; called on a file that has grown, it encodes what is new and the shard that was last. Until all are
    there, an index that stood in `out` stays what it was.

    Args:
        data: a folder or a file of documents, as `vlws.streams.scan` takes them; `text` is the field or column.
        backbone: what `load_retriever` takes; None: minilm, or with `append` that of the index.
        out: a new folder, an empty one, or an index, which is replaced.
        shard_size: documents of a shard; a run that is killed loses the shards that were being made.
        dtype: float32, or float16: half the disk, and scores of vectors of length 1 that differ by up to 0.0005.
        append: add the documents to the index in `out`.
        run: what calls a function on each of a list of jobs, in any order: `map` in this process,
            `vlws.lab.slots.over` in several or over Parsl.
        progress: is called with the documents done and all of them.

    Returns:
        The index's manifest without its list of shards, `out`, `shards`, `reused` (how many of them were there),
        `seconds`, `serial_s` of them to check the documents and to load the checkpoint, `cpu_s` of the shards that were
        made (in all slots together), and `cut`: how many documents are longer than `max_length` tokens, of which only
        the beginning can be found.

    Raises:
        InputError: documents or a checkpoint that cannot be used; an `out` that holds anything else; `append` to an
            index of another checkpoint. No index is changed then.

    >>> index("nowhere", "minilm", "notes-index")
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: There is no file or folder 'nowhere'; accepted is a folder of .txt and .md files, a BEIR \
folder with corpus.jsonl, or a file (.jsonl, .txt, .csv, .tsv) of a document a line.
    """
    began = time.perf_counter()
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} was given; accepted are {' and '.join(DTYPES)}.")
    folder = Path(out).expanduser()
    check_out(folder)
    old = Index(folder) if append else None
    if backbone is None:
        backbone = old.manifest["backbone"] if old else "minilm"
    parts = scan(data, shard_size, text, old.ids if old else tuple)
    retriever = _load(_absolute(backbone), device)
    said = {
        "backbone": _absolute(backbone),
        "weights_hash": weights_hash(retriever),
        "pooling": retriever.pooling,
        "normalize": retriever.normalize,
        "max_length": retriever.max_length,
        "dim": retriever.dim,
        "dtype": dtype,
    }
    before = _to_grow(old, said) if old else []
    said["data"] = [*(old.manifest["data"] if old else []), parts[0].source]
    serial = time.perf_counter() - began
    with writing(folder):
        made = _made(folder, said, parts, device, run, progress)
        kept = {record["name"] for record in before}
        records = before + [record for record in made if record["name"] not in kept]
        manifest = write_manifest(folder, said, records)
    done = {name: value for name, value in manifest.items() if name not in ("shards", "sha256")}
    reused = sum(record.get("reused", False) for record in made)
    return done | {
        "out": str(folder),
        "shards": len(records),
        "reused": reused,
        "cut": sum(record["cut"] for record in records),
        "seconds": round(time.perf_counter() - began, 2),
        "serial_s": round(serial, 2),
        "cpu_s": round(sum(record["cpu_s"] for record in made if not record.get("reused")), 2),
    }


def _to_grow(old: Index, said: dict[str, Any]) -> list[dict[str, Any]]:
    """The shards of an index that is to grow; refused where what made them differs."""
    for name in MADE_BY:
        if old.manifest[name] != said[name] and name != "backbone":  # a checkpoint may have moved
            raise InputError(
                f"{old.folder} has {name} {old.manifest[name]}, and what is to be added {said[name]}; accepted is the "
                "same checkpoint and dtype, or a new folder."
            )
    if old.manifest["format"] == 1:
        raise InputError(f"{old.folder} is of an older format, which does not grow; make the index anew.")
    return list(old.manifest["shards"])


def _made(
    folder: Path,
    said: dict[str, Any],
    parts: Sequence[Part],
    device: str,
    run: Run,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """The records of the shards of all parts, those that are missing made by `run`."""
    made_by = {name: said[name] for name in MADE_BY if name != "backbone"}
    names = [digest([part._replace(source=Path(part.source).name), made_by])[:24] for part in parts]
    (folder / SHARDS).mkdir(exist_ok=True)
    there = (
        {record["name"] for record in read_manifest(folder)["shards"]}
        if (folder / "manifest.json").is_file()
        else set()
    )
    clean(folder, there | set(names))
    records = {name: record for name in names if (record := finished(folder / SHARDS / name))}
    done, total = sum(record["count"] for record in records.values()), sum(part.count for part in parts)
    jobs = [
        {"part": list(part), "folder": str((folder / SHARDS / name).resolve()), "device": device, **said}
        for name, part in zip(names, parts, strict=True)
        if name not in records
    ]
    reused = set(records)
    if progress:
        progress(done, total)
    for record in run(embed_part, jobs):
        records[record["name"]] = record
        done += record["count"]
        if progress:
            progress(done, total)
    return [records[name] | ({"reused": True} if name in reused else {}) for name in names]


def embed_part(job: Job) -> dict[str, Any]:
    """One shard: read a part, encode it, write it. The process keeps the retriever for its next shard.

    Raises:
        InputError: a source or a checkpoint that has changed since the index was begun.

    >>> try:
    ...     embed_part({"backbone": "no model", "device": "cpu"})
    ... except InputError as error:
    ...     print(str(error)[:32])
    There is no retriever 'no model'
    """
    retriever = _load(job["backbone"], job["device"])
    began = time.process_time()
    ids, texts = read(Part(*job["part"]))
    vectors = retriever.encode(texts)
    begun = [text[:SHOWN] for text in texts]
    said = {"cut": _cut(retriever, texts), "cpu_s": round(time.process_time() - began, 3)}
    return write_shard(Path(job["folder"]), vectors, ids, begun, job["dtype"], **said)


@lru_cache(1)
def _load(backbone: str, device: str) -> Retriever:
    return load_retriever(backbone, device)


def _absolute(backbone: str) -> str:
    """A folder by its whole path, so that the index knows it from anywhere; other names as they are."""
    path = Path(backbone).expanduser()
    return str(path.resolve()) if path.is_dir() else backbone


def _cut(retriever: Retriever, texts: Sequence[str]) -> int:
    """How many texts have more tokens than are read; a text has no more than bytes, but for the ends' two."""
    long = [text for text in texts if len(text.encode()) > retriever.max_length - 3]
    found = retriever.tokenizer(long, verbose=False)["input_ids"] if long else []
    return sum(len(ids) > retriever.max_length for ids in found)


def retrieve(
    queries: Sequence[str],
    index_folder: str | Path,
    backbone: str | None = None,
    *,
    instruction: str = "",
    k: int = 10,
    plugin: str | Path | None = None,
    device: str = "auto",
    jobs: int = 1,
) -> dict[str, Any]:
    """The `k` best documents of an index for each query, by an exact search; an index of fewer gives all of them.

    The search goes through the shards one by one (`vlws.search`); documents of equal score are ordered by id.

    Args:
        backbone: None is the checkpoint that made the index.
        instruction: what is to be found, in words; only a plugin reads it.
        plugin: a folder that `ControlRetriever.save_pretrained` wrote; it embeds the queries, and the index stays.
        jobs: threads that search.

    Returns:
        backbone, index, instruction, and `results`: of each query its `hits`, each with id, score and the beginning of
        its text.

    Raises:
        InputError: no query or an empty one, `k` below 1, an instruction without a plugin, a folder that is no index, a
            checkpoint that is not the one of the index.

    >>> retrieve(["owls"], "nowhere")
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: nowhere is no index (manifest.json is missing); accepted is a folder that `vlws index` \
wrote.
    """
    if not queries or not all(query.strip() for query in queries):
        raise InputError("A query is empty; say what is looked for, such as 'how do owls hunt'.")
    for name, value in (("k", k), ("jobs", jobs)):
        if value < 1:
            raise InputError(f"{name}={value} was given; accepted is 1 or more.")
    if instruction.strip() and plugin is None:
        raise InputError(
            f"The instruction {instruction[:40]!r} was given without a plugin, and a plain retriever reads none; give "
            "the folder of a trained ControlRetriever as the plugin."
        )
    found = Index(index_folder)
    made_by = found.manifest
    name = made_by["backbone"] if backbone is None else backbone
    retriever = load_retriever(name, device, pooling=made_by["pooling"], normalize=made_by["normalize"])
    weights = weights_hash(retriever)
    if weights != made_by["weights_hash"]:
        raise InputError(
            f"{found.folder} was made by {made_by['backbone']} (weights {made_by['weights_hash']}), and {name} has the "
            f"weights {weights}; give that checkpoint, or make the index anew."
        )
    with torch.no_grad():
        rows = search(found, _encode(retriever, queries, instruction, plugin), k, jobs)
    results = [
        {
            "query": query,
            "hits": [{"id": hit.id, "score": hit.score, "text": found.shard(hit.shard).texts[hit.row]} for hit in row],
        }
        for query, row in zip(queries, rows, strict=True)
    ]
    return {"backbone": name, "index": str(found.folder), "instruction": instruction, "results": results}


def _encode(retriever: Retriever, queries: Sequence[str], instruction: str, plugin: str | Path | None) -> Tensor:
    """ "query dim": by the retriever itself, or by what a method made of it."""
    if plugin is None:
        return retriever.encode(queries)
    from vlws.methods.control_retriever import ControlRetriever  # only here: most searches need no method

    return ControlRetriever.from_pretrained(plugin, retriever).encode_queries(list(queries), instruction)
