"""Matrices of alignment kernels (or distances) of many sequences, block by block: what `vlws gram` does.

gram("sequences", "matrix", kernel="gak", sigma=2.0)
numpy.load("matrix/gram.npy", mmap_mode="r")

A block is a job, and a file that takes its place whole: a run that was killed goes on with the blocks that are missing.
The matrix is put together last. A process holds the sequences of one block, or one row of blocks, however many there
are in all.
"""

import hashlib
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

import vlws_kernels as vk
from vlws.errors import InputError
from vlws.files import read_json, write_json
from vlws.shards import save_array, sha256, write_header, writing

KERNELS = {"gak": "sigma", "soft_dtw": "gamma", "dtw": None}  # the name of what each takes
BLOCK = 256  # sequences
FLOATS = ("float32", "float64")
ACCEPTED = (
    'accepted is a folder of .npy files, each a sequence "length dim" or "length" of one dim, or an .npz file of '
    '"values" (all elements, dim) and "lengths" (sequences)'
)
Job = dict[str, Any]
Run = Callable[[Callable[[Job], dict[str, Any]], Sequence[Job]], Iterable[dict[str, Any]]]


def gram(
    sequences: str | Path,
    out: str | Path,
    *,
    kernel: str = "gak",
    sigma: float | None = None,
    gamma: float | None = None,
    other: str | Path | None = None,
    block: int = BLOCK,
    run: Run = map,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The matrix of all pairs of sequences, in `out`/gram.npy: "n n" of one set, of which half is computed, or "n m".

    Each block is one call of the kernel (`vlws_kernels.gak`, normalised, `soft_dtw` or `dtw`), in float32, or float64
    where the sequences are. The numbers are those of one call with all sequences: bit by bit below dim 32, from there
    on to the rounding of an inner product; of one set they are those above the diagonal, mirrored. A block computes the
    K(x,x) and K(y,y) that it divides by itself, which is 2/b of its work, b being its side.

    Args:
        sequences: a folder of .npy files, each "length dim" or "length", in the order of their names; or an .npz file
            with `values` "all elements, dim" of one sequence after the other, and `lengths` "n".
        out: a new folder, an empty one, or one of the same matrix, which is gone on with.
        sigma: of gak, in the unit of the elements; gamma: of soft_dtw, in its square.
        other: the sequences of the columns; None: the same as of the rows.
        block: sequences of a block's side.
        run: what calls a function on each of a list of jobs, in any order: `map` in this process,
            `vlws.lab.slots.over` in several or over Parsl.
        progress: is called with the pairs done and all of them.

    Returns:
        kernel, sigma or gamma, n, m, dim, dtype, block, symmetric, sha256 (of gram.npy), out, blocks, reused (how many
        of them were there), seconds (serial_s of them to read the sequences and to put the matrix together), cpu_s (of
        the blocks that were made, in all slots together).

    Raises:
        InputError: sequences that cannot be read, are empty or not finite; a kernel without its parameter, or one that
            is not above 0; a folder of another matrix; too little room on the disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, row in (("a", [0.0, 1.0, 2.0]), ("b", [0.0, 9.0])):
    ...         np.save(Path(folder, f"{name}.npy"), np.array(row, np.float32))
    ...     done = gram(folder, Path(folder, "matrix"), kernel="dtw")
    ...     done["n"], np.load(Path(folder, "matrix", "gram.npy")).tolist()
    (2, [[0.0, 50.0], [50.0, 0.0]])
    """
    began = time.perf_counter()
    value = _parameter(kernel, sigma, gamma)
    if block < 1:
        raise InputError(f"block={block} was given; accepted is 1 or more.")
    folder = Path(out).expanduser()
    sources = [_Source(sequences), *([_Source(other)] if other is not None else [])]
    if len({(source.dim, source.dtype) for source in sources}) > 1:
        told = " and ".join(f"dim {source.dim} {source.dtype}" for source in sources)
        raise InputError(f"The sequences of rows and columns have {told}; accepted is one dim and dtype.")
    n, m = sources[0].count, sources[-1].count
    said = {
        "kernel": kernel,
        **({KERNELS[kernel]: value} if KERNELS[kernel] else {}),
        "n": n,
        "m": m,
        "dim": sources[0].dim,
        "dtype": sources[0].dtype,
        "block": block,
        "symmetric": other is None,
        "values": vk.VALUES,
    }
    _check_out(folder, said, sources)
    with writing(folder):
        return _computed(folder, sources, said, run, progress, began)


def _parameter(kernel: str, sigma: float | None, gamma: float | None) -> float | None:
    """The value of the kernel's parameter."""
    if kernel not in KERNELS:
        raise InputError(f"kernel={kernel!r} was given; accepted are {', '.join(KERNELS)}.")
    wanted = KERNELS[kernel]
    for name, value in (("sigma", sigma), ("gamma", gamma)):
        if name == wanted and (value is None or not 0 < value < math.inf):
            given = "none was given" if value is None else f"{value} was given"
            raise InputError(f"{kernel} needs {name}, a number above 0; {given}.")
        if name != wanted and value is not None:
            raise InputError(f"{kernel} was given {name}={value}, which it does not take.")
    return {"sigma": sigma, "gamma": gamma, None: None}[wanted]


# --- the sequences ----------------------------------------------------------------------------------------------------


class _Source:
    """Sequences of a folder or an .npz file, of which little is held: `count`, `dim`, `dtype`, `lengths`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            self._read_folder()
        elif self.path.suffix == ".npz" and self.path.is_file():
            self._read_npz()
        else:
            raise InputError(f"{path} holds no sequences; {ACCEPTED}.")
        self.count = len(self.lengths)
        if not self.count or self.lengths.min() < 1 or self.dim < 1:
            raise InputError(f"{self.path} holds no sequence, or one of no element; {ACCEPTED}.")

    def _read_folder(self) -> None:
        self.files = sorted(self.path.glob("*.npy"))
        shapes = []
        for file in self.files:
            array = _loaded(file)
            if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
                raise InputError(f"{file} is {array.dtype} of shape {array.shape}; {ACCEPTED}.")
            shapes.append((len(array), 1 if array.ndim == 1 else array.shape[1], array.dtype == np.float64))
        dims = {dim: file for (_, dim, _), file in zip(shapes, self.files, strict=True)}
        if len(dims) > 1:
            one, two = list(dims.items())[:2]
            raise InputError(f"{one[1]} has dim {one[0]} and {two[1]} dim {two[0]}; accepted is one dim.")
        self.lengths = np.array([length for length, _, _ in shapes], np.int64)
        self.dim = next(iter(dims), 0)
        self.dtype = "float64" if any(double for _, _, double in shapes) else "float32"

    def _read_npz(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("values.npy") as values:
                shape, dtype = _header(values)
                self.lengths = np.load(self.path)["lengths"]
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path} has no values and lengths; {ACCEPTED}.") from error
        fits = len(shape) == 2 and dtype.name in FLOATS and self.lengths.ndim == 1 and self.lengths.dtype.kind in "iu"
        if not fits or self.lengths.sum() != shape[0]:
            raise InputError(
                f"{self.path} has values of shape {shape} {dtype} and {len(self.lengths)} lengths that come to "
                f"{self.lengths.sum()}; {ACCEPTED}, float32 or float64."
            )
        self.dim, self.dtype = shape[1], dtype.name

    def sha256(self) -> str:
        """The hash of what it was made of; it is read once."""
        if not self.path.is_dir():
            return sha256(self.path)
        return hashlib.sha256("".join(f"{file.name}:{sha256(file)}" for file in self.files).encode()).hexdigest()

    def pack(self, folder: Path, name: str) -> None:
        """Write it as one array that can be mapped, and refuse what is not finite."""
        made = folder / f".{name}.tmp"
        with made.open("wb") as file:
            shape = (int(self.lengths.sum()), self.dim)
            write_header(file, shape, np.dtype(self.dtype))
            for where, some in self._blocks():
                if not np.isfinite(some).all():
                    raise InputError(f"{where} holds NaN or infinite numbers; accepted are finite ones.")
                file.write(np.ascontiguousarray(some, self.dtype).tobytes())
        save_array(folder / f"{name}.ends.npy", np.cumsum(self.lengths))
        made.replace(folder / f"{name}.npy")

    def _blocks(self) -> Iterator[tuple[Path, np.ndarray]]:
        """Elements "some dim" in order, as few at once as they come in."""
        if self.path.is_dir():
            for file in self.files:
                yield file, _loaded(file).reshape(-1, self.dim)
            return
        step = max(1, 2**20 // self.dim)
        with zipfile.ZipFile(self.path) as archive, archive.open("values.npy") as values:
            _header(values)
            for start in range(0, int(self.lengths.sum()), step):
                rows = min(step, int(self.lengths.sum()) - start)
                raw = values.read(rows * self.dim * np.dtype(self.dtype).itemsize)
                yield self.path, np.frombuffer(raw, self.dtype).reshape(rows, self.dim)


def _loaded(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is no .npy file of numbers; {ACCEPTED}.") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a .npy file that is read from its start; ValueError for another file, or order."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran:
        raise ValueError("the values are in Fortran's order")
    return shape, dtype


# --- the blocks -------------------------------------------------------------------------------------------------------


def compute_block(job: Job) -> dict[str, Any]:
    """One block of the matrix, from the packed sequences to its file.

    >>> import tempfile
    >>> job = {"kernel": "dtw", "symmetric": True, "n": 2, "m": 2, "block": 2, "row": 0, "column": 0}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "x.npy"), np.array([[0.0], [1.0], [3.0]], np.float32))
    ...     np.save(Path(folder, "x.ends.npy"), np.array([2, 3]))
    ...     compute_block(job | {"folder": folder})["pairs"], np.load(Path(folder, "0-0.npy")).tolist()
    (3, [[0.0, 13.0], [13.0, 0.0]])
    """
    began = time.process_time()
    folder, row, column, block = Path(job["folder"]), job["row"], job["column"], job["block"]
    x, len_x = _batch(folder, "x", row * block, min(job["n"], (row + 1) * block))
    given = {name: job[name] for name in ("sigma", "gamma") if name in job}
    function = getattr(vk, job["kernel"])
    name = "x" if job["symmetric"] else "y"
    y, len_y = _batch(folder, name, column * block, min(job["m"], (column + 1) * block))
    with torch.no_grad():
        values = function(x, y, len_x, len_y, **given)
    if job["symmetric"] and row == column:  # mirrored as all other blocks are: no number hangs on the size of blocks
        values = values.triu() + values.triu(1).T
    path = _tile(folder, row, column)
    made = path.with_name(f".{path.name}.tmp")
    save_array(made, values.numpy())
    made.replace(path)
    return {"row": row, "column": column, "pairs": _pairs(job), "cpu_s": round(time.process_time() - began, 3)}


def _tile(folder: Path, row: int, column: int) -> Path:
    return folder / f"{row}-{column}.npy"


def _pairs(job: Job) -> int:
    """How many different pairs a block holds."""
    rows, columns = (
        min(job["block"], total - place * job["block"])
        for total, place in ((job["n"], job["row"]), (job["m"], job["column"]))
    )
    return rows * (rows + 1) // 2 if job["symmetric"] and job["row"] == job["column"] else rows * columns


def _batch(folder: Path, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Sequences "sequence length dim", zeros behind their ends, and their lengths."""
    ends = np.load(folder / f"{name}.ends.npy", mmap_mode="r")[:stop]
    begins = np.concatenate([[0], ends[:-1]])[start:]
    lengths = ends[start:] - begins
    values = np.load(folder / f"{name}.npy", mmap_mode="r")[int(begins[0]) : int(ends[-1])]
    padded = np.zeros((stop - start, int(lengths.max()), values.shape[1]), values.dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = values
    return torch.from_numpy(padded), torch.from_numpy(np.ascontiguousarray(lengths))


# --- the folder -------------------------------------------------------------------------------------------------------

TIMES = ("seconds", "serial_s", "cpu_s")
MATRIX, MANIFEST, PLAN, WORK = "gram.npy", "manifest.json", "plan.json", "blocks"


def _check_out(folder: Path, said: dict[str, Any], sources: Sequence[_Source]) -> None:
    """Refuse a file, a folder of something else or of another matrix, and a disk without room; note the sources."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; `out` is a folder.")
    said["sources"] = [source.sha256() for source in sources]
    begun = next((read_json(folder / name) for name in (MANIFEST, PLAN) if (folder / name).is_file()), None)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := sorted(names - {MATRIX, MANIFEST, PLAN, WORK, ".lock", f".{MATRIX}.tmp"}):
        raise InputError(f"{folder} holds {others[0]}; accepted is a new or empty folder, or one of the same matrix.")
    if begun is not None:
        differs = [name for name, value in said.items() if not isinstance(begun, dict) or begun.get(name) != value]
        if differs:
            was = begun.get(differs[0]) if isinstance(begun, dict) else begun
            raise InputError(
                f"{folder} holds a matrix with {differs[0]} {was}, and {said[differs[0]]} was given; accepted is the "
                "same, or a new folder."
            )
    matrix = said["n"] * said["m"] * np.dtype(said["dtype"]).itemsize
    needed = matrix * (1.5 if said["symmetric"] else 2) - sum(
        path.stat().st_size for path in folder.glob("blocks/*-*.npy")
    )
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(above).free
    if MATRIX not in names and free < needed:
        raise InputError(
            f"The matrix and its blocks take {needed / 1e9:.1f} GB, and {above} has {free / 1e9:.1f} free."
        )


def _computed(
    folder: Path,
    sources: Sequence[_Source],
    said: dict[str, Any],
    run: Run,
    progress: Callable[[int, int], None] | None,
    began: float,
) -> dict[str, Any]:
    """Pack the sequences, do the blocks that are missing, put the matrix together."""
    manifest = read_json(folder / MANIFEST)
    places = _places(said)
    if manifest is not None and (folder / MATRIX).is_file():
        if sha256(folder / MATRIX) != manifest.get("sha256"):
            raise InputError(f"{folder / MATRIX} has changed since it was written; delete it to make it anew.")
        return manifest | {"out": str(folder), "blocks": len(places), "reused": len(places)} | dict.fromkeys(TIMES, 0.0)
    work = folder / WORK
    work.mkdir(exist_ok=True)
    write_json(folder / PLAN, said)
    for name, source in zip("xy", sources, strict=False):
        if not (work / f"{name}.npy").is_file():
            source.pack(work, name)
    serial = time.perf_counter() - began
    jobs = [said | {"folder": str(work.resolve()), "row": row, "column": column} for row, column in places]
    waiting = [job for job in jobs if not _is_whole(job)]
    total = sum(map(_pairs, jobs))
    done, cpu = total - sum(map(_pairs, waiting)), 0.0
    if progress:
        progress(done, total)
    for result in run(compute_block, waiting):
        done += result["pairs"]
        cpu += result["cpu_s"]
        if progress:
            progress(done, total)
    assembling = time.perf_counter()
    made = said | {"sha256": _assemble(folder, said)}
    write_json(folder / MANIFEST, made)
    shutil.rmtree(work)
    (folder / PLAN).unlink()
    ended = time.perf_counter()
    return made | {
        "out": str(folder),
        "blocks": len(jobs),
        "reused": len(jobs) - len(waiting),
        "seconds": round(ended - began, 2),
        "serial_s": round(serial + ended - assembling, 2),
        "cpu_s": round(cpu, 2),
    }


def _places(said: dict[str, Any]) -> list[tuple[int, int]]:
    """The blocks' places (row, column): all, or those of the upper triangle."""
    rows, columns = (range(math.ceil(said[name] / said["block"])) for name in ("n", "m"))
    return [(row, column) for row in rows for column in columns if not said["symmetric"] or row <= column]


def _is_whole(job: Job) -> bool:
    """Whether a block's file is there, with all of its numbers."""
    path, block = _tile(Path(job["folder"]), job["row"], job["column"]), job["block"]
    try:
        shape = np.load(path, mmap_mode="r").shape
    except (OSError, ValueError):
        return False
    return shape == (min(block, job["n"] - job["row"] * block), min(block, job["m"] - job["column"] * block))


def _assemble(folder: Path, said: dict[str, Any]) -> str:
    """Write the matrix, one row of blocks at a time; its sha256."""
    n, m, block, dtype = said["n"], said["m"], said["block"], np.dtype(said["dtype"])
    work, made = folder / WORK, folder / f".{MATRIX}.tmp"
    held = np.empty((min(n, block), m), dtype)
    with made.open("wb") as file:
        write_header(file, (n, m), dtype)
        for row in range(math.ceil(n / block)):
            rows = held[: min(block, n - row * block)]
            for column in range(math.ceil(m / block)):
                mirrored = said["symmetric"] and column < row
                values = np.load(_tile(work, column, row) if mirrored else _tile(work, row, column))
                rows[:, column * block : (column + 1) * block] = values.T if mirrored else values
            file.write(rows.data)
    made.replace(folder / MATRIX)
    return sha256(folder / MATRIX)
