"""How far a run or a proof is, as a server tells it: by its handle where the server started it, else by its record."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlws import paths
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import answers, guards, proved
from vlws.lab.background import Run, Runs, newest_line
from vlws.lab.describe import failure


def of_run(runs: Runs, run: Run) -> answers.Status:
    """The status of a run, or a proof, that this server was asked for."""
    if "claim" in run.job:
        return _of_proof(runs, run)
    ended = run.seconds is not None  # asked before the record is read, which is final then
    record = runs.record(run)
    final = record["status"] if record else "failed"
    going = "running" if record else "starting"  # also where the record says "ok" and its page is being written
    return _with_progress(of_record(runs, record, run.job, final if ended else going), run)


def of_record(runs: Runs, record: dict[str, Any] | None, job: dict[str, Any], state: str) -> answers.Status:
    """The status of a run by its record (None before its folder is there) and what was asked for."""
    told = answers.Status(
        handle=None,
        run_id=None,
        chapter=job["chapter"],
        preset=job["preset"],
        status=state,
        skipped=False,
        cells=None,
        elapsed_s=None,
        limit_s=None,
        report=None,
        budget=answers.Budget(**runs.state()),
        untrusted=answers.Written(),
    )
    if record is not None:
        folder = Path(record["folder"])
        told.run_id, told.elapsed_s = record["run_id"], record["wall_s"]
        told.untrusted.progress = guards.clean(newest_line(folder), 300)
        if state != "running":
            told.untrusted.error = guards.clean(failure(record))
            told.report = f"vlws://runs/{told.run_id}/report/1" if (folder / "notebook.html").is_file() else None
    return told


def _with_progress(told: answers.Status, run: Run) -> answers.Status:
    """A status with what the server knows of a run that it started."""
    told.handle, told.elapsed_s, told.skipped = run.handle, round(run.elapsed(), 1), run.process is None
    told.limit_s = None if run.limit is None else round(run.limit, 1)
    told.cells = answers.Cells(done=run.cells[0], total=run.cells[1]) if run.cells[1] else None
    if run.fault:
        told.untrusted.error = guards.clean(run.fault)
    return told


def _of_proof(runs: Runs, run: Run) -> answers.Status:
    """How far a proof is, from its ledger, which its runs could have overwritten."""
    state = "running" if run.seconds is None else run.state or "failed"
    told = _with_progress(of_record(runs, None, run.job, state), run)
    told.untrusted.progress = guards.clean(run.line, 300)
    ledger = Path(run.job["ledger"])
    kept = (paths.runs(), proved.published())
    if ledger.is_file() and any(guards.is_inside(ledger, folder) for folder in kept):
        try:
            told.untrusted.proof = answers.Proof.model_validate(guards.cleaned(read_json(ledger)))
        except ValidationError:
            raise InputError(f"the ledger {ledger.name} of the proof is damaged; delete it, and begin again.") from None
    return told
