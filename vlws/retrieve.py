"""Documents that fit a query: what `vlws index` and `vlws retrieve` do.

index("notes", "minilm", "notes-index")
retrieve(["what did we say about warm-up ?"], "notes-index")["results"][0]["hits"][0]["id"]

An index is a folder: `config.json`, `ids.json`, `texts.json` (how each document begins) and `vectors.safetensors`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlws.data.beir import CORPUS, read_corpus
from vlws.data.text import read_text
from vlws.errors import InputError
from vlws.files import read_json, replace_folder
from vlws.models.hub import weights_hash
from vlws.models.ranking import top
from vlws.models.retriever import Retriever, load_retriever

SUFFIXES = (".txt", ".md")
FORMAT = 1  # of an index; a later one that reads differently has another number
FILES = ("config.json", "ids.json", "texts.json", "vectors.safetensors")
SHOWN = 200  # characters of each document that an index keeps


def read_documents(data: str | Path) -> dict[str, str]:
    """Documents of a folder: id -> text; those of corpus.jsonl in a BEIR folder, else each .txt and .md file.

    The id of a file is its path in the folder; folders and files whose name begins with a dot are left out.

    Raises:
        InputError: no such folder, one without documents, a file that is empty or no UTF-8, what `read_corpus` refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "owls.md").write_text("Owls hunt at night.")
    ...     read_documents(folder)
    {'owls.md': 'Owls hunt at night.'}
    """
    root = Path(data).expanduser()
    accepted = f"accepted is a folder of {' and '.join(SUFFIXES)} files, or a BEIR folder with {CORPUS}"
    if not root.is_dir():
        raise InputError(f"There is no folder {str(data)!r}; {accepted}.")
    if (root / CORPUS).is_file():
        return read_corpus(root)
    documents = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not any(p.startswith(".") for p in inside.parts):
            documents[inside.as_posix()] = read_text(path).strip()
            if not documents[inside.as_posix()]:
                raise InputError(f"{path} is empty; accepted are documents of a word or more.")
    if not documents:
        raise InputError(f"{root} holds no document; {accepted}.")
    return documents


def index(data: str | Path, backbone: str, out: str | Path, device: str = "auto") -> dict[str, Any]:
    """Encode the documents of a folder, and keep their vectors as an index; the index is whole or absent.

    Args:
        data: a folder of .txt and .md files, or of BEIR (`read_documents`).
        backbone: what `load_retriever` takes.
        out: a new folder, an empty one, or an index, which is replaced.

    Returns:
        The index's config (backbone, weights_hash, pooling, normalize, max_length, dim, count), `out`, and `cut`: how
        many documents are longer than `max_length` tokens, of which only the beginning can be found.

    Raises:
        InputError: documents or a checkpoint that cannot be used; an `out` that holds anything else. Nothing is written
            then.

    >>> index("nowhere", "minilm", "notes-index")
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: There is no folder 'nowhere'; accepted is a folder of .txt and .md files, or a BEIR folder \
with corpus.jsonl.
    """
    documents = read_documents(data)
    folder = Path(out).expanduser()
    _check_out(folder)
    retriever = load_retriever(backbone, device)
    ids, texts = list(documents), list(documents.values())
    vectors = retriever.encode(texts, label="documents").cpu()
    config = {
        "format": FORMAT,
        "backbone": _absolute(backbone),
        "weights_hash": weights_hash(retriever),
        "pooling": retriever.pooling,
        "normalize": retriever.normalize,
        "max_length": retriever.max_length,
        "dim": retriever.dim,
        "count": len(ids),
        "data": str(Path(data).expanduser().resolve()),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(folder) as made:
        beginnings = [text[:SHOWN] for text in texts]
        for name, value in (("config.json", config), ("ids.json", ids), ("texts.json", beginnings)):
            (made / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        save_file({"vectors": vectors.contiguous()}, made / "vectors.safetensors")
    return config | {"out": str(folder), "cut": _cut(retriever, texts)}


def _check_out(folder: Path) -> None:
    above = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if above.exists() and not above.is_dir():
        raise InputError(f"{above} is a file; `out` is a folder.")
    if folder.is_dir():
        others = sorted({path.name for path in folder.iterdir()} - set(FILES))
        if others or (any(folder.iterdir()) and not (folder / "vectors.safetensors").is_file()):
            held = others[0] if others else "files, but no index"
            raise InputError(f"{folder} holds {held}; accepted is a new or empty folder, or an index, to replace it.")


def _absolute(backbone: str) -> str:
    """A folder by its whole path, so that the index knows it from anywhere; other names as they are."""
    path = Path(backbone).expanduser()
    return str(path.resolve()) if path.is_dir() else backbone


def _cut(retriever: Retriever, texts: Sequence[str]) -> int:
    return sum(len(ids) > retriever.max_length for ids in retriever.tokenizer(texts, verbose=False)["input_ids"])


def retrieve(
    queries: Sequence[str],
    index_folder: str | Path,
    backbone: str | None = None,
    *,
    instruction: str = "",
    k: int = 10,
    plugin: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """The `k` best documents of an index for each query, by an exact search; an index of fewer gives all of them.

    The search is a product of matrices in blocks (`ranking.top`), for cosine and inner product alike: it took 11 ms a
    query among 10^5 documents where the nearest neighbours of `vlws_kernels.knn` took 150.

    Args:
        backbone: None is the checkpoint that made the index.
        instruction: what is to be found, in words; only a plugin reads it.
        plugin: a folder that `ControlRetriever.save_pretrained` wrote; it embeds the queries, and the index stays.

    Returns:
        backbone, index, instruction, and `results`: of each query its `hits`, each with id, score and the beginning of
        its text.

    Raises:
        InputError: no query or an empty one, `k` below 1, an instruction without a plugin, a folder that is no index, a
            checkpoint that is not the one of the index.

    >>> retrieve(["owls"], "nowhere")
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: nowhere is no index (config.json is missing); accepted is a folder that `vlws index` wrote.
    """
    if not queries or not all(query.strip() for query in queries):
        raise InputError("A query is empty; say what is looked for, such as 'how do owls hunt'.")
    if k < 1:
        raise InputError(f"k={k} was given; accepted is 1 or more.")
    if instruction.strip() and plugin is None:
        raise InputError(
            f"The instruction {instruction[:40]!r} was given without a plugin, and a plain retriever reads none; give "
            "the folder of a trained ControlRetriever as the plugin."
        )
    folder = Path(index_folder).expanduser()
    config, ids, texts, vectors = _read_index(folder)
    name = config["backbone"] if backbone is None else backbone
    retriever = load_retriever(name, device, pooling=config["pooling"], normalize=config["normalize"])
    found = weights_hash(retriever)
    if found != config["weights_hash"]:
        raise InputError(
            f"{folder} was made by {config['backbone']} (weights {config['weights_hash']}), and {name} has the weights "
            f"{found}; give that checkpoint, or make the index anew."
        )
    vectors = vectors.to(retriever.device)
    with torch.no_grad():
        encoded = _encode(retriever, queries, instruction, plugin)
        scores, index = top(encoded.to(vectors), vectors, min(k, len(ids)))
    results = [
        {"query": query, "hits": [{"id": ids[j], "score": s, "text": texts[j]} for j, s in zip(row, best, strict=True)]}
        for query, row, best in zip(queries, index.tolist(), scores.tolist(), strict=True)
    ]
    return {"backbone": name, "index": str(folder), "instruction": instruction, "results": results}


def _encode(retriever: Retriever, queries: Sequence[str], instruction: str, plugin: str | Path | None) -> Tensor:
    """ "query dim": by the retriever itself, or by what a method made of it."""
    if plugin is None:
        return retriever.encode(queries)
    from vlws.methods.control_retriever import ControlRetriever  # only here: most searches need no method

    return ControlRetriever.from_pretrained(plugin, retriever).encode_queries(list(queries), instruction)


def _read_index(folder: Path) -> tuple[dict[str, Any], list[str], list[str], Tensor]:
    accepted = "accepted is a folder that `vlws index` wrote"
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise InputError(f"{folder} is no index ({missing[0]} is missing); {accepted}.")
    config, ids, texts = (read_json(folder / name) for name in FILES[:3])
    wanted = ("backbone", "weights_hash", "pooling", "normalize")
    if not isinstance(config, dict) or config.get("format") != FORMAT or not set(wanted) <= set(config):
        raise InputError(f"{folder} is no index (its config.json is of something else); {accepted}.")
    try:
        vectors = load_file(folder / "vectors.safetensors")["vectors"]
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{folder} is no index (its vectors.safetensors is damaged); {accepted}.") from error
    if not isinstance(ids, list) or not isinstance(texts, list) or not len(ids) == len(texts) == len(vectors):
        raise InputError(f"{folder} is no index (its ids, texts and vectors are not equally many); {accepted}.")
    return config, ids, texts, vectors
