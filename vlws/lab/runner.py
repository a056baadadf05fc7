"""Runs of chapters: plan and execute.

A run is one chapter under papermill in a process of its own, and one folder, `runs/NN_slug/<utc>-<key8>/`. The process
that started it writes its run.json at the start and again at the end. All that the user gives is checked before any run
starts; the status comes from the exit code; a finished key is not run again.
"""

import itertools
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from vlws import paths
from vlws.errors import InputError
from vlws.lab import attempts, cluster, evidence, execution, executors, holding, records, sweeping
from vlws.lab.attempts import Outcome
from vlws.lab.chapters import chapter, chapters, preset_values, presets, read_values
from vlws.lab.describe import duration, label, shown
from vlws.lab.inputs import check_inputs
from vlws.lab.records import key

execute = execution.execute  # one job alone, whoever else may run it
LINE_EVERY = 60.0  # seconds
GRACE = 20.0  # seconds that interrupted runs on a cluster have to write their records
NEEDED = ("papermill", "ipykernel", "nbconvert", "psutil")  # of the extra `lab`, to run a chapter


# --- jobs -------------------------------------------------------------------------------------------------------------


def plan(
    targets: Sequence[str] = (),
    preset: str = "cpu",
    given: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    timeout: float | None = None,
) -> list[executors.Job]:
    """The jobs that a command asks for, all of them checked: one a chapter and a cell of the grid.

    targets: chapters by id, slug or name; none means all. given: values for parameters. grid: lists of values, every
    combination of which is a job. Without targets a parameter counts where a chapter has it, and must be one of some,
    and a chapter that has not the preset runs at cpu, its literals.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(f"running a chapter needs {', '.join(missing)}, not installed here; pip install 'vlws[lab]'.")
    given, grid = dict(given or {}), dict(grid or {})
    preset = given.pop("preset", preset)
    if timeout is not None and timeout <= 0:
        raise InputError(f"timeout is {timeout:g}; it must be above 0 seconds.")
    chosen = [chapter(target) for target in dict.fromkeys(targets)] or chapters()
    if not chosen:
        raise InputError(f"there are no chapters in {paths.notebooks()}.")
    places = {"VLWS_ROOT": paths.root(), "VLWS_RUNS": paths.runs(), "VLWS_CACHE": paths.cache()}
    folders = {name: str(path) for name, path in places.items()}
    jobs = []
    for one in chosen:
        evidence.known_claims(one)  # else a fault in the claims file would show after the experiment
        everywhere = {name for other in chosen for name in other.parameters} if not targets else set()
        mine = {k: v for k, v in given.items() if k in one.parameters or k not in everywhere}
        axes = {k: v for k, v in grid.items() if k in one.parameters or k not in everywhere}
        literals = {name: parameter.default for name, parameter in one.parameters.items()}
        of_preset = preset_values(one, its := preset if targets or preset in presets(one) else "cpu")
        base = literals | of_preset | ({"preset": its} if "preset" in literals else {})
        fixed = read_values(one, mine)
        check_inputs(one, base | fixed, axes)
        for cell in itertools.product(*axes.values()):
            chosen_values = fixed | read_values(one, dict(zip(axes, cell, strict=True)))
            params = base | chosen_values
            jobs.append(
                {
                    "chapter": one.id,
                    "slug": one.slug,
                    "title": one.title,
                    "notebook": str(one.path),
                    "preset": its,
                    "params": params,
                    "injected": {name: value for name, value in params.items() if value != literals[name]},
                    "axes": sorted(axes),
                    "overrides": sorted(name for name in chosen_values if params[name] != base[name]),
                    "key": key(one, params),
                    "timeout": timeout,
                    "folders": folders,
                }
            )
    return list({job["key"]: job for job in jobs}.values())


# --- running ----------------------------------------------------------------------------------------------------------


def run(
    jobs: Sequence[executors.Job],
    *,
    slots: int | None = None,
    force: bool = False,
    parsl: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run jobs and yield the record of each as it ends; a failing one does not stop the others.

    slots: how many at once on this machine; None is one per two cores, but not more than there are jobs. A job whose
    key has a finished run yields that run's record with `skipped: True`, unless `force`; one that another process runs
    now is waited for, and that process's record is yielded so. `say` gets a line for each. OSError, once all others
    have ended, where a disk kept a record from being written.
    """
    say = say or (lambda line: None)
    done_before = {} if force else finished()
    waiting = []
    for job in jobs:
        if done := done_before.get(job["key"]):
            say(f"{label(job)}: nothing has changed since {shown(Path(done['folder']))} (--force runs it again)")
            yield done | {"skipped": True}
        else:
            waiting.append(job | ({"since": datetime.now(UTC).isoformat(timespec="milliseconds")} if force else {}))
    if waiting:
        yield from through(waiting, len(waiting), slots=slots, parsl=parsl, say=say)


def through(
    jobs: Iterable[executors.Job],
    number: int,
    *,
    slots: int | None = None,
    width: int | None = None,
    parsl: Path | None = None,
    runs: Path | None = None,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """`run` without a look at what had finished before.

    number: of the jobs, at most. width: how many are taken of `jobs` before a record is yielded; None: all.
    runs: the folder of the jobs' runs, where it is another.
    """
    faults: list[OSError] = []
    with ExitStack() as stack:
        if parsl:
            submit, look, prepared = stack.enter_context(_on_cluster(parsl, jobs, runs or paths.runs(), say))
        else:
            submit, look, prepared = stack.enter_context(executors.local(_with_bar, number, slots)), None, iter(jobs)
        ended = 0
        for job, outcome in sweeping.outcomes(submit, prepared, width, say, look):
            ended += 1
            count = f"[{ended}/{number}] " if number > 1 else ""
            try:
                record = _recorded(job, outcome)
            except OSError as error:
                faults.append(error)
                if number > 1:
                    say(f"{count}{label(job)}: {error.strerror or error} ({error.filename})")
                continue
            say(f"{count}{_line(record)}")
            yield record
    if faults:
        raise faults[0]


def _recorded(job: executors.Job, outcome: Outcome) -> dict[str, Any]:
    """The record of a job that has ended, written now where its process could not; OSError."""
    if outcome.fault:
        raise outcome.fault
    if outcome.record:
        return outcome.record
    if outcome.refused:
        return execution.never_run(job, "failed", "Refused", outcome.refused)
    begun = next((record for record in attempts.known(job) if record["status"] == "running"), None)
    if begun and holding.holder(attempts.held_in(job), job["key"]) is None:
        return records.bury(begun, records.error_of("Lost", outcome.lost))
    return execution.never_run(job, "dead", "Lost", outcome.lost)


def _line(record: Mapping[str, Any]) -> str:
    """One line on a run that has ended."""
    why = f" ({record['first_error']['ename']}: {record['first_error']['evalue']})" if record["first_error"] else ""
    how = f"{record['wall_s'] or 0:.0f} s{' by another process' if record.get('skipped') else ''}"
    return f"{label(record)}: {record['status']}{why} in {how}, {shown(Path(record['folder']))}"


@contextmanager
def _on_cluster(
    config: Path, jobs: Iterable[executors.Job], runs: Path, say: Callable[[str], None]
) -> Iterator[tuple[executors.Submit, sweeping.Look, Iterator[executors.Job]]]:
    """What submits to a cluster, what looks at it, and the jobs with what a worker must know.

    While it lasts this process holds a name; a run on a worker ends once that is gone. So, where this is interrupted,
    the runs are given time to record that they were cancelled, before the blocks are ended.
    """
    folder = runs / holding.FOLDER
    name = f"driver-{secrets.token_hex(6)}"
    submitted: dict[str, executors.Job] = {}
    needs: dict[str, Any] = {}  # of each chapter

    def prepared() -> Iterator[executors.Job]:
        for job in jobs:
            of = needs.get(job["slug"]) or needs.setdefault(job["slug"], attempts.needs(job))
            submitted[job["key"]] = {"made_by": job["key"], **job, "driver": name, "needs": of}
            yield submitted[job["key"]]

    cluster.read_config(config)  # before anything is written
    with ExitStack() as stack:
        stack.callback(_settle_cancelled, submitted, name)
        submit = stack.enter_context(cluster.parsl(attempts.on_worker, config))
        stack.callback(_wait_for_ends, submitted, name)
        hold = holding.take(folder, name)
        assert hold is not None, "nobody else has this name"
        stack.enter_context(hold)
        yield submit, cluster.Watch(folder, label, say, name).look, prepared()


def _ours(jobs: Mapping[str, executors.Job], driver: str) -> list[executors.Job]:
    """The jobs that workers of a driver hold."""
    return [
        job
        for key, job in jobs.items()
        if (attempts.held_in(job) / key).exists()
        and (holding.holder(attempts.held_in(job), key) or {}).get("driver") == driver
    ]


def _wait_for_ends(jobs: Mapping[str, executors.Job], driver: str) -> None:
    until = time.monotonic() + GRACE
    while _ours(jobs, driver) and time.monotonic() < until:
        time.sleep(0.2)


def _settle_cancelled(jobs: Mapping[str, executors.Job], driver: str) -> None:
    """Record as cancelled what was ended with its block before it could write that down."""
    for job in _ours(jobs, driver):
        for record in attempts.known(job):
            if record["status"] == "running":
                records.bury(record, records.error_of("Cancelled", "stopped by the user"), "cancelled")


def finished() -> dict[str, dict[str, Any]]:
    """key -> the newest good run that has it, after `records.settle`."""
    records.settle()
    return {record["key"]: record for record in reversed(records.records()) if record["status"] == "ok"}


def _with_bar(job: executors.Job, slot: int, stop: Event) -> Outcome:
    from tqdm import tqdm

    bar_format = "{desc}: {bar} {n_fmt}/{total_fmt} cells, {elapsed}"
    with tqdm(desc=label(job), total=1, position=slot, leave=False, disable=None, bar_format=bar_format) as bar:
        line_a_minute = progress_lines(label(job), lambda line: tqdm.write(line, file=sys.stderr))

        def progress(n: int, total: int) -> None:
            bar.total, bar.n = total, n
            bar.refresh()

        return attempts.attempt(job, progress=line_a_minute if bar.disable else progress, stop=stop)


def progress_lines(
    name: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """What says "started", and then how far a run is once a minute: for where no progress bar can be shown."""
    began = said = clock()
    say(f"{name}: started")

    def progress(n: int, total: int) -> None:
        nonlocal said
        if clock() - said >= LINE_EVERY:
            said = clock()
            say(f"{name}: {n}/{total} cells, {duration(said - began)}")

    return progress
