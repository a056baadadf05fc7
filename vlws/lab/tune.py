"""A search for a chapter's best parameters, by Optuna, on seeds that are never reported.

Each trial is a run of `vlws.lab.runner` in `runs/tuning/`, where nothing looks for evidence; its kernel computes on
seeds from 1000 up, and only the arms that the target names (`vlws.lab.tuned`). The trials stand in a journal, a file
that several searches may share, killed and started again: a trial whose search is gone is begun anew, and its run,
found by its key, goes on with the cells that are missing.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vlws import paths
from vlws.errors import InputError
from vlws.lab import executors, holding, records, runner, tuned
from vlws.lab.chapters import Chapter, chapter, presets
from vlws.lab.space import Target, known_arms, read_space, read_target, wanted_arms

SPENT = "its minutes are spent; the same command goes on from here"
AGAIN = "again "  # before the number of a trial that was begun anew
Say = Callable[[str], None]


def tune(
    name: str,
    texts: Mapping[str, str],
    metric: str,
    *,
    trials: int,
    minutes: float | None = None,
    preset: str = "cpu",
    seeds: int | None = None,
    minimize: bool = False,
    jobs: int | None = None,
    parsl: Path | None = None,
    journal: Path | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Search until the journal holds `trials` that ended, or `minutes` are over; what was found, the best first.

    texts: parameter -> range, choice or value, as `space.read_space` reads them. metric: a claim or arm:metric. jobs:
    how many trials at once. InputError, before anything runs, for what the chapter does not accept, a budget of
    nothing, and the journal of another search.
    """
    if trials < 1:
        raise InputError(f"trials is {trials}; a search needs at least 1.")
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes is {minutes:g}; a search needs more than 0.")
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1.")
    one = chapter(name)
    if "seeds" not in one.parameters:
        raise InputError(f"chapter {one.id} has no parameter `seeds`, so it has no seeds to tune on.")
    space, fixed = read_space(one, texts)
    search = Search(one, space, fixed, read_target(one, metric, minimize), preset, seeds)
    search.open(journal)
    ended = search.go(trials, minutes, jobs or max(1, executors.cores() // 2), parsl, say)
    return search.found() | {"ended": ended}


class Search:
    """One search: its space, its target, its journal."""

    def __init__(self, one: Chapter, space: dict, fixed: dict, target: Target, preset: str, seeds: int | None) -> None:
        self.one, self.space, self.fixed, self.target, self.preset = one, space, fixed, target, preset
        self.given = fixed | ({"seeds": seeds} if seeds is not None else {})
        if "first_seed" in one.parameters:
            self.given["first_seed"] = tuned.FIRST
        (base,) = runner.plan([one.id], preset, given=self.given)
        self.base = base
        self.folder = paths.runs() / "tuning"
        self.begun: dict[str, list[Any]] = {}  # key of a run -> trials that wait for it

    # --- the journal ---

    def open(self, journal: Path | None) -> None:
        """The study of the journal, made where there is none; InputError where it is of another search."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        figure = re.sub(r"\W+", "-", self.target.text).strip("-")
        self.journal = journal or self.folder / self.one.slug / f"{figure}.{self.preset}.journal"
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage = JournalStorage(JournalFileBackend(str(self.journal)))
            self.study = optuna.create_study(
                storage=storage, study_name="vlws", direction=self.target.direction, load_if_exists=True
            )
            known = self.study.user_attrs
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())
            raise InputError(f"{self.journal} is no journal of a search ({type(error).__name__}: {said}).") from None
        for name, value in self._asked().items():
            if known.get(name, value) != value:
                raise InputError(
                    f"{self.journal} is the journal of another search: its {name} is {_shown(known[name])}, and now "
                    f"it is {_shown(value)}; give another --journal."
                )
            if name not in known:
                self.study.set_user_attr(name, value)

    def _asked(self) -> dict[str, Any]:
        """What must be the same for two searches to share a journal."""
        params = {name: value for name, value in self.base["params"].items() if name not in self.space}
        return {
            "chapter": self.one.slug,
            "metric": self.target.text,
            "direction": self.target.direction,
            "preset": self.preset,
            "ranges": {name: str(self.space[name]) for name in sorted(self.space)},
            "values": {name: params[name] for name in sorted(params)},
            "code": records.key(self.one, params)[:16],
        }

    # --- trials ---

    def go(self, trials: int, minutes: float | None, jobs: int, parsl: Path | None, say: Say) -> str:
        """Run trials; why the search ended before all of them were there, if it did."""
        until = None if minutes is None else time.monotonic() + 60 * minutes
        driver = f"search-{secrets.token_hex(6)}"
        hold = holding.take(self.folder / holding.FOLDER, driver)
        assert hold is not None, "nobody else has this name"
        with hold:
            wanted = self._wanted(until, say)
            self._begin()
            number = max(1, trials - len(self._counted()))
            asked = self._jobs(trials, until, driver, wanted)
            try:
                for record in runner.through(
                    asked, number, slots=jobs, width=jobs, parsl=parsl, runs=self.folder, say=say
                ):
                    self._tell(record, say)
            finally:
                for trial in [trial for waiting in self.begun.values() for trial in waiting]:
                    self._begin_anew(trial.number, trial.params)
        return SPENT if until is not None and time.monotonic() >= until and len(self._counted()) < trials else ""

    def _begin(self) -> None:
        """The chapter's own values come first, where the ranges hold them."""
        own = {name: self.base["params"][name] for name in self.space}
        if all(_holds(self.space[name], value) for name, value in own.items()) and not self.study.get_trials(
            deepcopy=False
        ):
            self.study.enqueue_trial(own, skip_if_exists=True)

    def _jobs(self, trials: int, until: float | None, driver: str, wanted: Mapping) -> Iterator[executors.Job]:
        """A run for each trial that is asked for, as long as there are to be more."""
        import optuna

        while until is None or time.monotonic() < until:
            self._adopt()
            if len(self._counted()) >= trials:
                return
            seed = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            trial = self.study.ask(self.space)
            trial.set_user_attr("driver", driver)
            job = self._job(trial.params, wanted, None if until is None else max(1.0, until - time.monotonic()))
            trial.set_user_attr("key", job["key"])
            self.begun.setdefault(job["key"], []).append(trial)
            yield job

    def _job(self, params: Mapping[str, Any], wanted: Mapping[str, Any], timeout: float | None) -> executors.Job:
        (job,) = runner.plan([self.one.id], self.preset, given={**self.given, **params}, timeout=timeout)
        return self._aside(job, wanted)

    def _aside(self, job: executors.Job, wanted: Mapping[str, Any]) -> executors.Job:
        """A job on seeds to tune on, with the arms that are wanted, among the runs of searches."""
        spec = json.dumps({"claims": [self.target.text] if self.target.claim else [], **wanted}, sort_keys=True)
        return job | {
            "made_by": job["key"],
            "key": hashlib.sha256(f"{job['key']} {tuned.FIRST} {spec}".encode()).hexdigest(),
            "overrides": sorted({*job["overrides"], "seeds"}),  # so that none takes it for evidence
            "folders": job["folders"] | {"VLWS_RUNS": str(self.folder)},
            "env": {tuned.VARIABLE: spec},
        }

    def _tell(self, record: Mapping[str, Any], say: Say) -> None:
        """Give a run's figure to the trial that waits for it."""
        from optuna.trial import TrialState

        trial = self.begun[record["key"]].pop(0)
        trial.set_user_attr("run", Path(record["folder"]).relative_to(paths.runs()).as_posix())
        trial.set_user_attr("seconds", record["wall_s"])
        if record["status"] in ("timeout", "cancelled"):
            self._begin_anew(trial.number, trial.params)
            return
        value, why = self.target.value(record) if record["status"] == "ok" else (None, record["status"])
        if record["status"] != "ok" and record["first_error"]:
            why = f"{why} ({record['first_error']['ename']}: {record['first_error']['evalue']})"
        if value is None or not np.isfinite(value):
            why = why or f"the value is {value}"
            trial.set_user_attr("why", why)
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, value)
        say(f"trial {trial.number}: {why or f'{self.target.text} = {value:.6g}'}")

    def _begin_anew(self, number: int, params: Mapping[str, Any]) -> None:
        """End a trial that came to nothing by no fault of its own, and leave its values to the next that asks."""
        from optuna.trial import TrialState

        with suppress(RuntimeError):  # another search has done so
            self.study.tell(number, state=TrialState.FAIL)
            self.study.set_user_attr(f"{AGAIN}{number}", True)
            self.study.enqueue_trial(dict(params))

    def _adopt(self) -> None:
        """Begin anew the trials whose search is gone."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING":
                driver = trial.user_attrs.get("driver")
                if driver and holding.holder(self.folder / holding.FOLDER, driver) is None:
                    self._begin_anew(trial.number, trial.params)

    def _counted(self) -> list[Any]:
        """The trials that have ended by themselves, and those that go on."""
        trials = self.study.get_trials(deepcopy=False)
        known = self.study.user_attrs
        return [t for t in trials if t.state.name != "WAITING" and f"{AGAIN}{t.number}" not in known]

    # --- which arms ---

    def _wanted(self, until: float | None, say: Say) -> dict[str, Any]:
        """The arms that every trial computes: those that the target names, if it reads no other.

        That is tried once, at preset test, where a chapter takes seconds: a run with all arms and one without the
        others must find the same. All arms where they do not, or where none is known.
        """
        everything: dict[str, Any] = {"wanted": [], "of": []}
        named = sorted(wanted_arms(self.one, self.target))
        if not named:
            return everything
        known = self.study.user_attrs.get("wanted")
        if known is not None:
            return known
        few = {"wanted": named, "of": sorted(known_arms(self.one))}
        preset = "test" if "test" in presets(self.one) else self.preset
        (base,) = runner.plan([self.one.id], preset, given={k: v for k, v in self.given.items() if k == "first_seed"})
        left = None if until is None else max(1.0, until - time.monotonic())
        tried = [self._aside(base | {"timeout": left}, wanted) for wanted in (everything, few)]
        values = {record["key"]: self._values(record) for record in self._probed(tried, say)}
        whole, part = (values.get(job["key"]) for job in tried)
        same = bool(whole and part) and np.allclose(np.array(whole), np.array(part), rtol=1e-9, atol=1e-12)
        say(f"arms that each trial computes: {', '.join(named) if same else 'all, since the metric reads others too'}")
        self.study.set_user_attr("wanted", few if same else everything)
        return few if same else everything

    def _probed(self, jobs: list[executors.Job], say: Say) -> Iterator[dict[str, Any]]:
        for job in jobs:  # one after the other: the second reads the cells of the first
            yield from runner.through([job], 1, slots=1, runs=self.folder, say=say)

    def _values(self, record: Mapping[str, Any]) -> list[float]:
        """What a run found of the target, for every seed."""
        if self.target.claim:
            found = [m["values"] for m in records.measures(record) if m["id"] == self.target.text]
        else:
            grids = records.kept(record, "arms.json")
            found = [grid["arms"].get(self.target.arm, {}).get(self.target.metric) for grid in grids]
        return [value for values in found if values for value in values if value is not None]

    # --- what was found ---

    def found(self) -> dict[str, Any]:
        """The search in plain values: its trials, the best first, and how much each parameter matters."""
        trials = [
            {
                "number": trial.number,
                "value": trial.value if trial.state.name == "COMPLETE" else None,
                "params": dict(trial.params),
                "state": trial.state.name.lower(),
                **{name: trial.user_attrs.get(name) for name in ("run", "seconds", "why")},
            }
            for trial in self._counted()
        ]
        sign = -1 if self.target.direction == "maximize" else 1
        trials.sort(key=lambda t: (t["value"] is None, sign * (t["value"] or 0.0), t["number"]))
        seeds = self.base["params"]["seeds"]
        return {
            **self._asked(),
            "seeds": [tuned.FIRST + k for k in range(seeds)],
            "trials": trials,
            "best": trials[0] if trials and trials[0]["value"] is not None else None,
            "importance": self._importance(trials),
            "journal": str(self.journal),
        }

    def _importance(self, trials: list[dict[str, Any]]) -> dict[str, float] | None:
        """parameter -> share of the variance of the figure that it explains; None of few trials."""
        values = {trial["value"] for trial in trials if trial["value"] is not None}
        if len(values) < 4:
            return None
        from optuna.importance import get_param_importances

        return dict(get_param_importances(self.study))


def _holds(distribution: Any, value: Any) -> bool:
    """Whether a range or a choice has a value."""
    choices = getattr(distribution, "choices", None)
    return value in choices if choices is not None else distribution.low <= value <= distribution.high


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else repr(value)
