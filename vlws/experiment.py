"""Arms x seeds: parallel, cached cell by cell, resumable.

    def cell(arm, seed, *, scenes, steps):
        ...
        return {"auroc": 0.91, "scores": scores}

    results = experiment.grid(cell, ["image only", "CMER"], seeds, name="04-main", scenes=scenes, steps=steps)
    results["CMER"]["auroc"]                # "seed": paired with every other arm, seed by seed
    results.table()                         # arm, seed, and every scalar

One cell is one call of the function in a process with one torch thread (tiny models run fastest so: parallelism is
across arms and seeds, never inside one), its global random generators seeded with the cell's seed. What it returns is
written to `.cache/experiment/<name>/` before the cell counts as done, and read from there: a grid that was killed and
is started again computes only what is missing. A cell is known by what made it: the source of the function, of what it
refers to and of every module of vlws and vlws_kernels that it reaches; arm, seed, arguments by content; versions.
"""

import operator
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlws import fingerprint, mime, paths, stats, training_log
from vlws.cells import log_of, read_cell, seconds_of, write_cell
from vlws.errors import InputError
from vlws.fingerprint import digest


class CellFailed(RuntimeError):
    """One or more cells raised; the message tells which arm and seed, and holds the first traceback.

    >>> def cell(arm, seed):
    ...     return {"accuracy": 1 / seed}
    >>> try:
    ...     grid(cell, ["mine"], 2, name="doc-failing", workers=1)
    ... except CellFailed as error:
    ...     print(str(error).splitlines()[0])
    arm 'mine', seed 0: ZeroDivisionError: division by zero
    """


@dataclass(frozen=True)
class Grid:
    """Results of a grid: `grid[arm][metric]` is "seed ..." in the order of `seeds`.

    `seconds`: what its cells took to compute, summed, whether they were computed now or read. `code`: hash of the code
    that computed them.

    >>> def cell(arm, seed):
    ...     return {"accuracy": 0.9 if arm == "mine" else 0.8, "scores": np.arange(3) + seed}
    >>> results = grid(cell, ["mine", "baseline"], 2, name="doc-grid", workers=1)
    >>> results
    Grid: 2 arms (mine, baseline) x 2 seeds; accuracy, scores
    >>> results["mine"]["accuracy"] - results["baseline"]["accuracy"]  # paired, seed by seed
    array([0.1, 0.1])
    >>> results.cell("mine", 1)["scores"]
    array([1, 2, 3])
    >>> results.table().columns.tolist(), results.scalars()["mine"]["scores"]
    (['arm', 'seed', 'accuracy'], [1.0, 2.0])
    >>> results.keep()  # in a notebook the numbers go into the output
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: dict[tuple[str, int], dict[str, Any]]
    name: str = ""
    seconds: float = 0.0
    code: str = ""

    def __getitem__(self, arm: str) -> "Arm":
        if arm not in self.arms:
            raise InputError(f"no arm {arm!r}; the arms are {', '.join(self.arms)}.")
        return Arm(self, arm)

    def cell(self, arm: str, seed: int) -> dict[str, Any]:
        """All that one cell returned."""
        if (arm, seed) not in self.cells:
            raise InputError(f"no cell ({arm!r}, {seed}); arms {', '.join(self.arms)}; seeds {list(self.seeds)}.")
        return self.cells[arm, seed]

    def table(self):
        """A DataFrame with one row per cell: arm, seed, and every scalar that the cells returned."""
        import pandas as pd

        rows = [
            {"arm": arm, "seed": seed}
            | {k: v for k, v in self.cells[arm, seed].items() if not isinstance(v, np.ndarray)}
            for arm in self.arms
            for seed in self.seeds
        ]
        return pd.DataFrame(rows)

    def scalars(self) -> dict[str, dict[str, list[float]]]:
        """arm -> metric -> a number per seed: scalars as they are, arrays of one shape by their mean."""
        found: dict[str, dict[str, list[float]]] = {arm: {} for arm in self.arms}
        for arm in self.arms:
            cells = [self.cells[arm, seed] for seed in self.seeds]
            for metric in cells[0]:
                values = [np.asarray(cell.get(metric, np.array([]))) for cell in cells]
                if all(v.size and v.dtype.kind in "biuf" for v in values):
                    found[arm][metric] = [float(v.mean()) for v in values]
        return found

    def keep(self) -> None:
        """Put every arm's numbers, per seed, into the notebook's output, from where a run keeps them as evidence."""
        module = sys.modules.get("IPython")  # a notebook has loaded it
        if module and module.get_ipython():
            from IPython.display import publish_display_data

            record: dict[str, Any] = {"name": self.name, "seeds": list(self.seeds), "arms": self.scalars()}
            record |= {"seconds": round(self.seconds, 1), "code": self.code}
            publish_display_data({mime.ARMS: record, "text/plain": f"{self.name}: {', '.join(self.arms)}"})

    def __repr__(self) -> str:
        metrics = sorted({metric for cell in self.cells.values() for metric in cell})
        return f"Grid: {len(self.arms)} arms ({', '.join(self.arms)}) x {len(self.seeds)} seeds; {', '.join(metrics)}"


@dataclass(frozen=True)
class Arm:
    """One arm of a grid: `arm[metric]` is "seed ...".

    >>> results = Grid(("mine",), (0, 1), {("mine", 0): {"accuracy": 0.5}, ("mine", 1): {"accuracy": 0.75}})
    >>> results["mine"]["accuracy"]
    array([0.5 , 0.75])
    >>> results["mine"]["auroc"]
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: arm 'mine' has no metric 'auroc'; it has accuracy.
    """

    grid: Grid
    name: str

    def __getitem__(self, metric: str) -> np.ndarray:
        cells = [self.grid.cells[self.name, seed] for seed in self.grid.seeds]
        if any(metric not in cell for cell in cells):
            raise InputError(f"arm {self.name!r} has no metric {metric!r}; it has {', '.join(cells[0])}.")
        values = [np.asarray(cell[metric]) for cell in cells]
        if len({v.shape for v in values}) > 1:
            shapes = ", ".join(str(v.shape) for v in values)
            raise InputError(
                f"{metric!r} of arm {self.name!r} differs in shape over seeds ({shapes}); use cell(arm, seed)."
            )
        return np.stack(values)


def grid(
    fn: Callable[..., Mapping[str, Any]],
    arms: Sequence[str] | Mapping[str, Mapping[str, Any]],
    seeds: int | Iterable[int],
    *,
    name: str,
    workers: int | None = None,
    code: Iterable[Any] = (),
    by_seed: Mapping[str, Mapping[int, Any]] | None = None,
    **shared: Any,
) -> Grid:
    """Run `fn(arm, seed, **shared)` for every arm and seed that the cache does not hold, in parallel processes.

    fn: returns a dict of numbers, texts, lists of numbers, numpy arrays or tensors; may be defined in a notebook.
    arms: names, or a mapping name -> further keyword arguments of that arm.
    seeds: how many (0, 1, ...), or which.
    name: the folder of the cache.
    workers: processes; by default $VLWS_WORKERS or all cores. Large numpy arrays among the arguments are shared with
    them through memory maps (copied on write), so give data as arguments rather than as globals.
    code: further functions or modules whose source decides whether a cached cell is still good.
    by_seed: argument -> seed -> value. A cell gets its own seed's value alone, and is known by that alone: with more
    seeds, or others, only the new cells are computed.

    Raises InputError for no arms, seeds below 1, an unusable name; CellFailed where a cell raised, after all others
    have finished (where the cell raised an InputError, that). Interrupted or killed, it loses at most the cells in
    hand.

    >>> def cell(arm, seed, *, noise, steps):
    ...     rng = np.random.default_rng(seed)
    ...     return {"accuracy": 0.8 + noise * rng.random(steps).mean()}
    >>> arms = {"quiet": {"noise": 0.0}, "noisy": {"noise": 0.1}}
    >>> results = grid(cell, arms, seeds=3, name="doc-noise", workers=1, steps=10)
    >>> results["quiet"]["accuracy"]
    array([0.8, 0.8, 0.8])
    """
    kwargs_of = {arm: dict(kw) for arm, kw in arms.items()} if isinstance(arms, Mapping) else {arm: {} for arm in arms}
    seed_list = _checked_seeds(seeds)
    if isinstance(arms, str) or not kwargs_of or not all(isinstance(arm, str) for arm in kwargs_of):
        raise InputError(f"grid {name!r} was given arms {arms!r}; it takes at least one name, as a list or a mapping.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"grid name {name!r} names a folder; use letters, digits, '-', '_' and '.'.")
    if workers is None:
        workers = _workers()
    if workers < 1:
        raise InputError(f"workers is {workers}; it must be at least 1.")

    folder = paths.cache() / "experiment" / name
    own = _of_each_seed(name, by_seed or {}, seed_list)
    given = [*shared.values(), *(value for extra in kwargs_of.values() for value in extra.values())]
    code_key = fingerprint.code(fn, [*code, *given, *own[seed_list[0]].values()])
    shared_keys = {key: digest(value) for key, value in shared.items()}
    own_keys = {seed: {key: digest(value) for key, value in values.items()} for seed, values in own.items()}
    arm_keys = {arm: {key: digest(value) for key, value in extra.items()} for arm, extra in kwargs_of.items()}
    keys = {
        (arm, seed): digest([code_key, arm, seed, shared_keys | own_keys[seed] | arm_keys[arm]])[:20]
        for arm in kwargs_of
        for seed in seed_list
    }
    missing = [
        (arm, seed) for seed in seed_list for arm in kwargs_of if not (folder / f"{keys[arm, seed]}.json").exists()
    ]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(fn, arm, seed, shared | own[seed] | kwargs_of[arm], folder / keys[arm, seed]) for arm, seed in missing]
        failures = _run(jobs, min(workers, len(jobs)), total=len(keys), name=name)
        print(
            f"{name}: {len(missing) - len(failures)} of {len(keys)} cells computed, in {_shown(folder)}",
            file=sys.stderr,
        )
        if failures:
            _raise(failures)
    stems = {cell: folder / key for cell, key in keys.items()}
    seconds = sum(seconds_of(stem) for stem in stems.values())
    cells = {cell: read_cell(stem) for cell, stem in stems.items()}
    training_log.write([{"experiment": name} | line for stem in stems.values() for line in log_of(stem)])
    return Grid(tuple(kwargs_of), seed_list, cells, name, seconds, code_key[:16])


def _of_each_seed(name: str, by_seed: Mapping[str, Mapping[int, Any]], seeds: tuple[int, ...]) -> dict[int, dict]:
    """seed -> argument -> value."""
    for key, values in by_seed.items():
        if lacking := [seed for seed in seeds if seed not in values]:
            raise InputError(
                f"grid {name!r}: by_seed[{key!r}] has no value for seed {lacking[0]}; it has {sorted(values)}."
            )
    return {seed: {key: values[seed] for key, values in by_seed.items()} for seed in seeds}


def bootstrap(
    results: Grid,
    metric: str,
    statistic: Callable[..., float] = np.mean,
    *,
    arms: Iterable[str] | None = None,
    labels: np.ndarray | None = None,
    n: int = 300,
) -> dict[str, np.ndarray]:
    """arm -> "1+n seed": a statistic of each seed's items, then of n resamples of them (`stats.replicates`).

    The k-th seed's items are resampled alike in every arm, so a difference of two arms is paired, item by item.

    Args:
        metric: a metric "item" of the cells.
        statistic: `statistic(items)`, or `statistic(labels, items)` where labels are given.
        arms: which; all that have the metric unless given.
        labels: "item", the same for all seeds, such as those of an AUROC; their classes keep their sizes.

    >>> cells = {("mine", seed): {"correct": np.array([1, 1, 0, seed])} for seed in (0, 1)}
    >>> rows = bootstrap(Grid(("mine",), (0, 1), cells), "correct", n=100)
    >>> rows["mine"].shape, rows["mine"][0]
    ((101, 2), array([0.5 , 0.75]))
    >>> stats.interval(rows["mine"])[0]
    0.625
    """
    chosen = [arm for arm in results.arms if metric in results.cells[arm, results.seeds[0]]] if arms is None else arms
    first = () if labels is None else (labels,)
    return {
        arm: np.stack(
            [
                stats.replicates(statistic, *first, np.asarray(items, dtype=float), n=n, seed=k, strata=labels)
                for k, items in enumerate(results[arm][metric])
            ],
            axis=1,
        )
        for arm in chosen
    }


def _checked_seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    try:
        whole = not isinstance(seeds, bool | np.bool_) and operator.index(seeds)  # type: ignore[arg-type]
        chosen = tuple(range(whole))
    except TypeError:
        try:
            chosen = tuple(operator.index(seed) for seed in seeds)  # type: ignore[union-attr]
        except TypeError:
            chosen = ()
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise InputError(f"seeds is {seeds!r}; it is a number of at least 1, or a list of distinct seeds from 0 up.")
    return chosen


def _workers() -> int:
    """$VLWS_WORKERS, or all cores."""
    given = os.environ.get("VLWS_WORKERS", "").strip()
    if given and not (given.isdecimal() and int(given) > 0):
        raise InputError(
            f"VLWS_WORKERS is {given!r}; it is a number of processes of at least 1, or unset for all cores."
        )
    return int(given) if given else _cores()


def _cores() -> int:
    import joblib

    return joblib.cpu_count()


# --- running ----------------------------------------------------------------------------------------------------------


def _run(jobs: list[tuple], workers: int, total: int, name: str) -> list[tuple[str, int, BaseException, str]]:
    """Run the jobs; what each raised, if anything: (arm, seed, error, traceback)."""
    import joblib
    from joblib.externals.loky import BrokenProcessPool
    from tqdm import tqdm

    failures = []
    with tqdm(total=total, initial=total - len(jobs), desc=name, unit="cell", file=sys.stderr) as bar:
        if workers == 1:
            results: Iterable = (_cell(*job) for job in jobs)
        else:
            with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
                pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", mmap_mode="c", batch_size=1)
                results = pool(joblib.delayed(_cell)(*job) for job in jobs)
        try:
            for failure in results:
                bar.update()
                if failure:
                    failures.append(failure)
                    tqdm.write(f"{name}: arm {failure[0]!r}, seed {failure[1]} failed: {failure[2]}", file=sys.stderr)
        except BrokenProcessPool as error:
            why = " ".join(str(error).split())
            raise CellFailed(f"a process of {name!r} was lost (finished cells are kept): {why}") from error
    return failures


def _cell(fn: Callable, arm: str, seed: int, arguments: dict, stem: Path) -> tuple | None:
    """One cell, in its process: seed, run, write. What it raised comes back as a value, so that the others go on."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- for what still draws from the global generator
    torch.manual_seed(seed)
    began = time.perf_counter()
    try:
        with training_log.collected() as log:
            result = fn(arm, seed, **arguments)
        write_cell(stem, result, arm, seed, began, log)
    except Exception as error:
        kept = (
            InputError(str(error))
            if isinstance(error, InputError)
            else RuntimeError(f"{type(error).__name__}: {error}")
        )
        return arm, seed, kept, traceback.format_exc()
    finally:
        torch.set_num_threads(threads)
    return None


def _raise(failures: list[tuple[str, int, BaseException, str]]) -> None:
    arm, seed, error, trace = failures[0]
    others = f"; {len(failures) - 1} more cells failed" if len(failures) > 1 else ""
    if isinstance(error, InputError):
        raise error
    raise CellFailed(f"arm {arm!r}, seed {seed}: {error}{others}\n\n{trace}")


def _shown(folder: Path) -> str:
    """The folder relative to the workspace or to $VLWS_CACHE: outputs of a notebook hold no path of a machine."""
    if folder.is_relative_to(paths.root()):
        return str(folder.relative_to(paths.root()))
    return f"$VLWS_CACHE/{folder.relative_to(paths.cache())}"
