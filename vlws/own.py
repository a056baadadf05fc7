"""The reader's own data in a chapter: figures and files that its run keeps, and the chapter's own experiment left out.

own.leave_out_experiment(bool(data) and own_only)     # cells that begin with `# experiment` then do nothing
own.results({"CMG": estimate}, metric="AUROC", of="83 test pictures", n=3)        # results.json of the run, and SQL
scores.to_csv(own.file("scores.csv"))                 # files/scores.csv of the run
own.files()                                           # what was written, and where
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlws import mime, paths
from vlws.display import Shown, escape, html_table, muted, number
from vlws.errors import InputError

EXPERIMENT = "# experiment"
LEFT_OUT = 'print("left out: a part of the chapter\'s own experiment (own_only=False runs it)")\n'


def leave_out_experiment(when: bool) -> None:
    """From here on, cells of this notebook whose first line is `# experiment` do nothing (or something again).

    It works wherever IPython runs the cells: JupyterLab, papermill, nbval. Outside of IPython nothing happens.

    >>> leave_out_experiment(True)  # outside of a notebook nothing happens
    """
    module = sys.modules.get("IPython")  # a notebook has loaded it
    shell = module.get_ipython() if module else None
    if shell is None:
        return
    transforms = shell.input_transformers_cleanup
    transforms[:] = [transform for transform in transforms if transform is not _without_experiment]
    if when:
        transforms.append(_without_experiment)


def _without_experiment(lines: list[str]) -> list[str]:
    return [LEFT_OUT] if lines and lines[0].strip() == EXPERIMENT else lines


@dataclass(frozen=True)
class Result:
    """One figure on the reader's data with its 95 % interval (None where nothing tells the noise).

    >>> Result("CMG", "AUROC", "", value=0.91, low=0.88, high=0.94, n=3, of="83 test pictures of bottle").value
    0.91
    """

    name: str
    metric: str
    unit: str
    value: float
    low: float | None
    high: float | None
    n: int
    of: str


def results(found: Mapping[str, Sequence[float | None]], *, metric: str, of: str, n: int, unit: str = "") -> Shown:
    """Figures on the reader's data as a table of a notebook, and in its run's results.json.

    Args:
        found: name -> (value, low, high), as `stats.interval` gives it.
        metric: what is measured, such as "AUROC". unit: its unit, where it has one.
        of: on what, in words, such as "83 test pictures of bottle". n: how many seeds stand behind each.

    Raises InputError for a value that is not finite.

    >>> results({"CMG": (0.91, 0.88, 0.94)}, metric="AUROC", of="83 test pictures of bottle", n=3)
    AUROC on 83 test pictures of bottle: CMG
    """
    made = [Result(name, metric, unit, *_finite(name, values), n, of) for name, values in found.items()]
    cells = [
        [f"<b>{escape(r.name)}</b>", number(r.value), "–" if r.low is None else f"{number(r.low)} to {number(r.high)}"]
        for r in made
    ]
    head = ["", f"{metric}{unit and f', {unit}'}", "95 % interval"]
    table = html_table(head, cells, (False, True, False)) + muted(f"{of}; {n} seed{'s' * (n != 1)}")
    text = f"{metric} on {of}: {', '.join(found)}"
    return Shown(table, text, **{mime.RESULT: [vars(r) for r in made]})


def _finite(name: str, values: Sequence[float | None]) -> tuple[float, float | None, float | None]:
    value, low, high = (None if v is None else float(v) for v in values)
    if value is None or not all(np.isfinite(v) for v in (value, low, high) if v is not None):
        raise InputError(f"the result {name!r} is {tuple(values)}; its value and limits must be finite numbers.")
    return value, low, high


def folder() -> Path:
    """`files/` of the run; of a notebook that no run executes, `runs/notebook/files/`.

    >>> folder().name
    'files'
    """
    run = os.environ.get("VLWS_RUN")
    return (Path(run) if run else paths.runs() / "notebook") / "files"


def file(name: str) -> Path:
    """Where a file or a folder for the reader is to be written; its parent exists.

    >>> file("scores/test.csv").relative_to(folder()).as_posix()
    'scores/test.csv'
    >>> file("scores/test.csv").parent.is_dir()
    True
    """
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def files() -> Shown:
    """The files that were written for the reader, with their sizes.

    >>> _ = file("scores.csv").write_text("picture,score")
    >>> "scores.csv" in repr(files())
    True
    """
    found = sorted(path for path in folder().rglob("*") if path.is_file())
    where = folder().relative_to(paths.runs()).as_posix() if folder().is_relative_to(paths.runs()) else folder().name
    rows = [[escape(path.relative_to(folder()).as_posix()), f"{path.stat().st_size / 1000:,.0f} kB"] for path in found]
    table = html_table(["file", ""], rows, (False, True)) + muted(f"in {where}, below the folder of the runs")
    return Shown(table, "files: " + ", ".join(path.relative_to(folder()).as_posix() for path in found))


def packed(save: Callable[[Path], Any]) -> dict[str, np.ndarray]:
    """What `save(folder)` writes, as arrays that a cell of an experiment can return: "file NAME" -> bytes uint8.

    >>> cell = packed(lambda to: (to / "weights.txt").write_text("1 2 3"))
    >>> {name: len(data) for name, data in cell.items()}
    {'file weights.txt': 5}
    """
    with tempfile.TemporaryDirectory() as to:
        save(Path(to))
        found = sorted(path for path in Path(to).rglob("*") if path.is_file())
        return {f"file {p.relative_to(to).as_posix()}": np.frombuffer(p.read_bytes(), np.uint8) for p in found}


def unpack(cell: Mapping[str, Any], to: Path) -> Path:
    """Write the files that a cell holds (`packed`) into a folder, which is returned.

    >>> cell = {"auroc": 0.9} | packed(lambda to: (to / "weights.txt").write_text("1 2 3"))
    >>> with tempfile.TemporaryDirectory() as to:
    ...     (unpack(cell, Path(to)) / "weights.txt").read_text()
    '1 2 3'
    """
    for name, data in cell.items():
        if name.startswith("file "):
            path = to / name.removeprefix("file ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(np.asarray(data, np.uint8).tobytes())
    return to
