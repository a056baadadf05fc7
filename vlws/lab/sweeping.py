"""Many jobs through one executor: none is lost with its worker, none is done while another process does it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait

from vlws.errors import InputError
from vlws.lab import attempts, cluster, holding
from vlws.lab.attempts import Outcome
from vlws.lab.describe import label
from vlws.lab.executors import Job, Submit

AGAIN = 2  # times that a job is done again whose worker was lost, or which a worker refused
POLL = 0.5  # seconds

Look = Callable[[dict[str, Job], int, int], None]  # (submitted jobs by key, jobs that run elsewhere, jobs done)


def outcomes(
    submit: Submit, jobs: Iterator[Job], width: int | None, say: Callable[[str], None], look: Look | None = None
) -> Iterator[tuple[Job, Outcome]]:
    """Submit jobs, at most `width` at a time (None: all), and yield what came of each as it ends.

    A job whose worker is lost, or refuses it, is submitted again, `AGAIN` times; one that another process runs is
    waited for, and submitted again where that left no record. Neither ends the others. InputError where Parsl's blocks
    fail before any job has begun.
    """
    flow = _Flow(submit, say)
    while True:
        while (width is None or flow.on_the_way() < width) and (job := next(jobs, None)):
            flow.start(job)
        if not flow.on_the_way():
            return
        for found in (*flow.ended(), *flow.ended_elsewhere()):
            flow.done += 1
            yield found
        if look:
            look({job["key"]: job for job in flow.pending.values()}, len(flow.elsewhere), flow.done)


class _Flow:
    """The jobs of a sweep that are on their way."""

    def __init__(self, submit: Submit, say: Callable[[str], None]) -> None:
        self.submit, self.say = submit, say
        self.pending: dict[Future, Job] = {}
        self.elsewhere: list[_Elsewhere] = []
        self.tries: Counter[str] = Counter()
        self.done = 0
        self.begun = False  # whether any worker has ever answered

    def on_the_way(self) -> int:
        return len(self.pending) + len(self.elsewhere)

    def start(self, job: Job) -> None:
        try:
            future = self.submit(job)
        except Exception as error:  # no executor takes it
            future = Future()
            future.set_exception(error)
        self.pending[future] = job

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """What has ended here within a moment, but for what is done again or waited for."""
        if not self.pending:
            time.sleep(POLL)
            return
        for future in wait(self.pending, POLL, FIRST_COMPLETED).done:
            job, error = self.pending.pop(future), _error(future)
            outcome = Outcome(lost=_told(error)) if error else future.result()
            self.begun = self.begun or not error
            if outcome.held is not None:
                self.elsewhere.append(_Elsewhere(job, outcome.held))
                self.say(f"{label(job)}: {_who(outcome.held)} runs it; waiting for its record")
            elif (why := outcome.lost or outcome.refused) and self.tries[job["key"]] < AGAIN:
                self.tries[job["key"]] += 1
                self.say(f"{label(job)}: {why}; tried again ({self.tries[job['key']]} of {AGAIN})")
                self.start(job)
            elif error and not self.begun and cluster.does_not_start(error):
                raise InputError(f"the blocks of Parsl do not start: {' '.join(str(error).split())}")
            else:
                yield job, outcome

    def ended_elsewhere(self) -> Iterator[tuple[Job, Outcome]]:
        """What other processes have ended; what they left without a record is started here."""
        for one in [one for one in self.elsewhere if one.is_over()]:
            self.elsewhere.remove(one)
            if record := one.record():
                yield one.job, Outcome(record=record | {"skipped": True})
            else:
                self.start(one.job)


class _Elsewhere:
    """A job that another process runs, and the runs of it that had ended before."""

    def __init__(self, job: Job, held: dict) -> None:
        self.job, self.token = job, held.get("token")
        self.before = {record["run_id"] for record in attempts.known(job) if record["status"] != "running"}

    def is_over(self) -> bool:
        now = holding.holder(attempts.held_in(self.job), self.job["key"])
        return now is None or now.get("token") != self.token

    def record(self) -> dict | None:
        """Of the run that has ended since, if it ended by itself."""
        ended = (r for r in attempts.known(self.job) if r["run_id"] not in self.before and r["status"] != "running")
        newest = next(ended, None)
        wanted = newest and newest["status"] in ("ok", "failed") and newest["started"] >= self.job.get("since", "")
        return newest if wanted else None


def _error(future: Future) -> BaseException | None:
    try:
        return future.exception()
    except CancelledError as error:
        return error


def _told(error: BaseException) -> str:
    """What became of a worker, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return f"a worker cannot import {error.name}; `worker_init` of the provider must activate this environment"
    return f"its worker was lost ({type(error).__name__}{': ' * bool(text)}{text[:300]})"


def _who(held: dict) -> str:
    return f"process {held.get('pid')} on {held.get('host')}" if held.get("pid") else "another process"
