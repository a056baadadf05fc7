"""An index of vectors in shards: a folder that is written shard by shard, read through memory maps, and may grow.

INDEX/manifest.json            what made the index, and its shards; written last, so that it names what is whole
INDEX/shards/NAME/vectors.npy  "document dim" float16 or float32
INDEX/shards/NAME/ids.*        texts as UTF-8, one after the other (.bin), and where each ends (.npy); texts.* likewise
INDEX/shards/NAME/shard.json   number of documents, the largest length of a vector, sha256 of the files

A shard takes its place whole, and its name is a hash of what made it: one that is there is taken as it is, which is how
a run that was killed goes on. What the manifest does not name is not read.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from vlws.errors import InputError
from vlws.files import read_json, replace_folder, write_json

FORMAT = 2  # of an index; 1 was one file of vectors
MANIFEST, SHARD, LOCK, SHARDS = "manifest.json", "shard.json", ".lock", "shards"
FIRST = ("config.json", "ids.json", "texts.json", "vectors.safetensors")  # the files of format 1
DTYPES = ("float16", "float32")
MADE_BY = ("backbone", "weights_hash", "pooling", "normalize", "max_length", "dim", "dtype")  # alike in all shards
ACCEPTED = "accepted is a folder that `vlws index` wrote"


class Texts(Sequence[str]):
    """Texts in a file, read one by one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_texts(Path(folder), "ids", ["an owl", "été", ""])
    ...     texts = Texts(Path(folder), "ids")
    ...     len(texts), texts[1], list(texts)
    (3, 'été', ['an owl', 'été', ''])
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._ends = np.load(folder / f"{name}.npy", mmap_mode="r")
        size = (folder / f"{name}.bin").stat().st_size
        self._bytes = np.memmap(folder / f"{name}.bin", np.uint8, "r") if size else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        start = int(self._ends[place - 1]) if place else 0
        return self._bytes[start : int(self._ends[place])].tobytes().decode()


def write_texts(folder: Path, name: str, texts: Sequence[str]) -> None:
    """Write texts so that `Texts` reads them. Raises OSError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_texts(Path(folder), "ids", ["a", "bc"])
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['ids.bin', 'ids.npy']
    """
    raw = [text.encode() for text in texts]
    (folder / f"{name}.bin").write_bytes(b"".join(raw))
    save_array(folder / f"{name}.npy", np.cumsum([len(one) for one in raw], dtype=np.int64))


def save_array(path: Path, array: np.ndarray) -> None:
    """`numpy.save`, but what the system says where the disk is full; raises OSError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_array(Path(folder, "a.npy"), np.eye(2)[:, :1])
    ...     np.load(Path(folder, "a.npy")).tolist()
    [[1.0], [0.0]]
    """
    with path.open("wb") as file:
        write_header(file, array.shape, array.dtype)
        file.write(np.ascontiguousarray(array).data)


def write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """What stands before the numbers of a .npy file.

    >>> import io
    >>> file = io.BytesIO()
    >>> write_header(file, (2, 3), np.dtype("float32"))
    >>> file.getvalue()[1:6]
    b'NUMPY'
    """
    said = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)


@dataclass(frozen=True)
class Shard:
    """Documents one after the other: vectors "document dim", their ids, how their texts begin.

    Attributes:
        norm: no vector is longer.

    >>> shard = Shard(np.eye(2, dtype=np.float32), ["a", "b"], ["an owl", "a hen"], norm=1.0)
    >>> len(shard)
    2
    """

    vectors: np.ndarray
    ids: Sequence[str]
    texts: Sequence[str]
    norm: float

    def __len__(self) -> int:
        return len(self.vectors)


def write_shard(
    folder: Path,
    vectors: Tensor | np.ndarray,
    ids: Sequence[str],
    texts: Sequence[str],
    dtype: str = "float32",
    **said: Any,
) -> dict[str, Any]:
    """Write a shard, whole or not at all; returns its record, which `said` is part of.

    Raises:
        InputError: vectors that are not finite in `dtype`.
        OSError: the disk refuses.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = write_shard(Path(folder, "one"), torch.eye(2), ["a", "b"], ["an owl", "a hen"])
    ...     record["count"], record["norm"], read_shard(Path(folder, "one"), record).ids[1]
    (2, 1.0, 'b')
    """
    with np.errstate(over="ignore"):  # of what float16 does not hold: it is refused
        array = (vectors.cpu().numpy() if isinstance(vectors, Tensor) else vectors).astype(dtype)
    norm = float(np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64).max()))
    if not np.isfinite(norm):
        raise InputError(f"A vector is not finite as {dtype}; accepted are finite numbers (float32 holds larger ones).")
    with replace_folder(folder) as made:
        save_array(made / "vectors.npy", array)
        write_texts(made, "ids", ids)
        write_texts(made, "texts", texts)
        files = {path.name: [path.stat().st_size, sha256(path)] for path in sorted(made.iterdir())}
        record = {"name": folder.name, "count": len(array), "norm": norm, **said, "files": files}
        write_json(made / SHARD, record)
    return record


def read_shard(folder: Path, record: dict[str, Any]) -> Shard:
    """The shard of a record, through memory maps.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = write_shard(Path(folder, "one"), torch.eye(2), ["a", "b"], ["an owl", "a hen"])
    ...     read_shard(Path(folder, "one"), record).vectors.shape
    (2, 2)
    """
    vectors = np.load(folder / "vectors.npy", mmap_mode="c")  # torch wants what may be written to; no file is changed
    return Shard(vectors, Texts(folder, "ids"), Texts(folder, "texts"), record["norm"])


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of a shard that is there and has not changed since it was written (by sha256), else None.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = write_shard(Path(folder, "one"), torch.eye(2), ["a", "b"], ["an owl", "a hen"])
    ...     whole = finished(Path(folder, "one")) == made
    ...     _ = Path(folder, "one", "ids.bin").write_text("ac")
    ...     whole, finished(Path(folder, "one"))
    (True, None)
    """
    record = read_json(folder / SHARD)
    if not isinstance(record, dict) or _unlike(folder, record):
        return None
    return record if all(sha256(folder / name) == known for name, (_, known) in record["files"].items()) else None


def _unlike(folder: Path, record: dict[str, Any]) -> str:
    """The first file of a shard that is missing or has another size; "" where there is none."""
    for name, (size, _) in record["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return str(path)
    return ""


def sha256(path: Path) -> str:
    """The hash of a file, which is read in blocks.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a").write_text("owl")
    ...     sha256(Path(folder, "a"))[:8]
    '10f7127b'
    """
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class Index:
    """An index that is whole: `manifest`, `shards` one by one.

    >>> import tempfile, torch
    >>> said = {"backbone": "minilm", "weights_hash": "0", "pooling": "mean", "normalize": True, "max_length": 8}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = write_shard(Path(folder, "shards", "one"), torch.eye(2), ["a", "b"], ["an owl", "a hen"])
    ...     _ = write_manifest(Path(folder), said | {"dim": 2, "dtype": "float32"}, [record])
    ...     index = Index(Path(folder))
    ...     len(index), index.dim, [shard.ids[0] for shard in index.shards()], list(index.ids())
    (2, 2, ['a'], ['a', 'b'])
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError for a folder that is no index, or one whose files have changed."""
        self.folder = Path(folder).expanduser()
        self.manifest = read_manifest(self.folder)
        for record in self.manifest["shards"]:
            if unlike := _unlike(self.folder / SHARDS / record["name"], record):
                raise InputError(f"{self.folder} is damaged ({unlike} is missing or has another size); make it anew.")

    def __len__(self) -> int:
        return int(self.manifest["count"])

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.manifest["dim"])

    def shards(self) -> Iterator[Shard]:
        """The shards in order, each opened when it is asked for: what is dropped takes no memory."""
        return map(self.shard, range(self.n_shards))

    @property
    def n_shards(self) -> int:
        """How many shards there are."""
        return 1 if self.manifest["format"] == 1 else len(self.manifest["shards"])

    def shard(self, number: int) -> Shard:
        """One of the shards."""
        if self.manifest["format"] == 1:
            return self._only
        record = self.manifest["shards"][number]
        return read_shard(self.folder / SHARDS / record["name"], record)

    @cached_property
    def _only(self) -> Shard:
        """All of an index of format 1, which is held in memory."""
        try:
            vectors = load_file(self.folder / FIRST[3])["vectors"]
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{self.folder} is no index (its {FIRST[3]} is damaged); {ACCEPTED}.") from error
        ids, texts = (read_json(self.folder / name) for name in FIRST[1:3])
        if not isinstance(ids, list) or not isinstance(texts, list) or not len(ids) == len(texts) == len(vectors):
            raise InputError(
                f"{self.folder} is no index (its ids, texts and vectors are not equally many); {ACCEPTED}."
            )
        return Shard(vectors, ids, texts, float(np.linalg.norm(vectors.astype(np.float64), axis=1).max()))

    def ids(self) -> Iterator[str]:
        """The ids of all documents, shard by shard."""
        for shard in self.shards():
            yield from shard.ids


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index, or the config of one of format 1 in its form.

    Raises:
        InputError: a folder that is no index, one that is not finished, a manifest that was changed by hand.

    >>> read_manifest(Path("nowhere"))
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: nowhere is no index (manifest.json is missing); accepted is a folder that `vlws index` \
wrote.
    """
    if not (folder / MANIFEST).is_file():
        return _first_format(folder)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{folder} is no index (its {MANIFEST} is of something else); {ACCEPTED}.")
    if manifest.get("sha256") != _seal(manifest):
        raise InputError(f"{folder} is no index (its {MANIFEST} was changed after it was written); {ACCEPTED}.")
    return manifest


def _first_format(folder: Path) -> dict[str, Any]:
    missing = [name for name in FIRST if not (folder / name).is_file()]
    if missing:
        begun = "it is not finished: the same `vlws index` goes on" if (folder / SHARDS).is_dir() else ""
        raise InputError(f"{folder} is no index ({begun or f'{MANIFEST} is missing'}); {ACCEPTED}.")
    config = read_json(folder / FIRST[0])
    wanted = set(MADE_BY) - {"dtype"}
    if not isinstance(config, dict) or config.get("format") != 1 or not wanted <= set(config):
        raise InputError(f"{folder} is no index (its {FIRST[0]} is of something else); {ACCEPTED}.")
    return config | {"dtype": "float32", "shards": []}


def write_manifest(folder: Path, said: dict[str, Any], shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make shards an index: the manifest takes its place at once, and what it does not name is deleted.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = write_shard(Path(folder, "shards", "one"), torch.eye(2), ["a", "b"], ["an owl", "a hen"])
    ...     write_manifest(Path(folder), {"dim": 2}, [record])["count"]
    2
    """
    made = {"format": FORMAT, **said, "count": sum(record["count"] for record in shards), "shards": list(shards)}
    made["sha256"] = _seal(made)
    write_json(folder / MANIFEST, made)
    clean(folder, {record["name"] for record in shards})
    return made


def clean(folder: Path, named: set[str]) -> None:
    """Delete the shards of an index that are not named, and what a killed run left half written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "shards", ".one.12-new.tmp").mkdir(parents=True)
    ...     clean(Path(folder), set())
    ...     list(Path(folder, "shards").iterdir())
    []
    """
    for path in (folder / SHARDS).iterdir():
        if path.name not in named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in FIRST:
        (folder / name).unlink(missing_ok=True)


def _seal(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_out(folder: Path) -> None:
    """Refuse to write an index to a file, or to a folder that holds anything else.

    >>> try:
    ...     check_out(Path(__file__))
    ... except InputError as error:
    ...     print(str(error)[-39:])
    shards.py is a file; `out` is a folder.
    """
    above = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if above.exists() and not above.is_dir():
        raise InputError(f"{above} is a file; `out` is a folder.")
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        others = sorted(names - {*FIRST, MANIFEST, SHARDS, LOCK})
        if others or (names and not names & {MANIFEST, SHARDS, LOCK, FIRST[3]}):
            held = others[0] if others else "files, but no index"
            raise InputError(f"{folder} holds {held}; accepted is a new or empty folder, or an index, to replace it.")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, as the only one that writes to it.

    Raises:
        InputError: another process writes to it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, writing(Path(folder)):
    ...     try:
    ...         with writing(Path(folder)): pass
    ...     except InputError as error:
    ...         print(str(error)[-57:])
    is written to by another process; wait for it, or end it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is written to by another process; wait for it, or end it.") from None
        yield
