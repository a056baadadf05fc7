"""One claim, with seed after seed until its interval clears the threshold or what may be spent is spent.

The rule of stopping is that of `vlws.lab.sequential`: the numbers of seeds at which one looks are fixed when a proof
begins, and written into its ledger, `runs/proofs/NN_slug/<claim>.<preset>.json`, beside what each look found. First the
chapter runs with all arms on two seeds; then, look after look, with the arms that the claim reads alone
(`vlws.lab.only`). Every run is one of `vlws.lab.runner`, in a process of its own, its cells kept: a proof that was
killed goes on where it was.
"""

import ast
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from vlws import paths, verdicts
from vlws.claims import Claim
from vlws.display import count
from vlws.errors import InputError
from vlws.files import read_json, write_json
from vlws.lab import evidence, executors, only, proved, records, runner, sequential
from vlws.lab.chapters import Chapter, chapters
from vlws.verdicts import UNDECIDED

JUDGED_FROM = (  # what a verdict is computed from, of a measure
    *("values", "item_se", "bounds", "direction", "threshold", "tolerance", "n_seeds", "per", "needs"),
    *("unmet", "by_construction", "reported"),
)
SPENT = "its minutes are spent; the same command goes on from here"
CANCELLED = "it was cancelled; the same command goes on from here"


class _Ended(Exception):
    """A proof ends before its last look; the message says why."""


@dataclass(frozen=True)
class Means:
    """What a call may spend, and whom it tells.

    until: when its minutes are spent, by time.monotonic(). say: gets a line for each event. progress: is called with
    the cells done and in all of the run that goes on, about once a second. stop: cancels the proof when it is set.
    """

    until: float | None = None
    say: Callable[[str], None] = lambda line: None
    progress: Callable[[int, int], None] | None = None
    stop: Event | None = None

    def left(self) -> float | None:
        """Seconds; _Ended where there are none, or the proof was cancelled."""
        if self.stop is not None and self.stop.is_set():
            raise _Ended(CANCELLED)
        if self.until is None:
            return None
        if (left := self.until - time.monotonic()) <= 0:
            raise _Ended(SPENT)
        return left


def prove(
    id: str,
    *,
    preset: str | None = None,
    seeds: int = 24,
    minutes: float | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
    stop: Event | None = None,
) -> dict[str, Any]:
    """Prove one claim; the ledger, with `verdict`, `why`, and each look's interval.

    preset: None takes that of the result that stands. seeds: at most. minutes: at most, of this call; a later one goes
    on. say, progress, stop: see `Means`. `ended` says why a proof has ended before its last look, where it has.
    InputError for a claim that no chapter has or that seeds cannot decide, a budget of nothing, and a proof that was
    begun with another number of seeds.
    """
    check_minutes(minutes)
    ledger, path = begin(id, preset, seeds)
    one, claim = find(id)
    if (old := read_json(path)) and old.get("key") != ledger["key"]:
        say(f"{id}: an earlier proof of {count(len(old['looks']), 'look')} was of other code or data; a new one begins")
    means = Means(None if minutes is None else time.monotonic() + 60 * minutes, say, progress, stop)
    ended = ""
    try:
        _walk(ledger, path, one, claim, means)
    except _Ended as why:
        ended = str(why)
        say(f"{id}: {ended}")
    return ledger | {"ended": ended, "ledger": str(path)}


def begin(id: str, preset: str | None = None, seeds: int = 24) -> tuple[dict[str, Any], Path]:
    """The ledger of a proof, begun before, published, or to begin, and its file; all is checked, as in `prove`."""
    one, claim = find(id)
    preset = preset or _standing_preset(id)
    if preset == "test":
        raise InputError("preset is 'test', whose figures are no evidence; a proof takes cpu or a larger one.")
    at = sequential.looks(seeds, max(sequential.FEWEST, claim.needs.get("seeds", 0)))
    (base,) = runner.plan([one.id], preset, given={"seeds": 1})
    path = _path(one, id, preset)
    ledger = _ledger(one, claim, preset, base["params"], at, path)
    stands = proved.published() / one.slug / path.name
    if not ledger["looks"] and (kept := read_json(stands)) and _same_proof(kept, ledger):
        return kept, stands
    return ledger, path


def _same_proof(known: Any, ledger: Mapping[str, Any]) -> bool:
    """Whether a ledger that was read is of the same proof, and may be gone on with."""
    return isinstance(known, dict) and all(known.get(name) == ledger[name] for name in ("key", "schema", "at"))


def _walk(ledger: dict, path: Path, one: Chapter, claim: Claim, means: Means) -> None:
    """Look after look; the ledger holds each as soon as it is there."""
    if ledger["spare"] is None:
        ledger["first"] = _run(one, ledger, only.KNOWN, {}, means)
        ledger["spare"] = _spare(one, claim, ledger["first"]["arms"])
        write_json(path, ledger)
    for n, level in zip(ledger["at"], ledger["levels"], strict=True):
        done = next((look for look in ledger["looks"] if look["seeds"] == n), None)
        if done is None:
            done = _look(ledger, one, claim, n, level, means)
            ledger["looks"].append(done)
            ledger |= {name: done[name] for name in ("verdict", "why", "value", "low", "high")}
            write_json(path, ledger)
            means.say(f"{claim.id}, {n} of at most {ledger['at'][-1]} seeds: {done['verdict']}; {done['why']}")
        if done["verdict"] != UNDECIDED:
            return


def _look(ledger: dict, one: Chapter, claim: Claim, n: int, level: float, means: Means) -> dict[str, Any]:
    """What n seeds say, at this look's level."""
    found = _run(one, ledger, n, ledger["spare"], means)
    if ledger["spare"] and not _same(ledger["first"], found):
        means.say(f"{claim.id} reads more arms than it names: all of them are computed")
        ledger["spare"] = {}
        found = _run(one, ledger, n, {}, means)
    measure = found.pop("measure")
    arms = {grid: {"arms": sorted(arms), "seeds": n} for grid, arms in found.pop("arms").items()}
    kept = {"seeds": n, "level": level, "gates": found.pop("gates"), "cells": arms}
    kept["measure"] = {name: measure[name] for name in JUDGED_FROM}
    return kept | sequential.judge(measure, level) | found


def _run(
    one: Chapter, ledger: Mapping[str, Any], n: int, spare: Mapping[str, Sequence[str]], means: Means
) -> dict[str, Any]:
    """One run of the chapter on n seeds: the claim's measure, its gates, the arms that were computed, its record."""
    id = ledger["claim"]
    (job,) = runner.plan([one.id], ledger["preset"], given={"seeds": n})
    asked = {"claims": [id], "spare": {name: list(arms) for name, arms in spare.items()}}
    job |= {
        "timeout": means.left(),
        "folders": job["folders"] | {"VLWS_RUNS": str(proved.folder())},
        "env": {only.VARIABLE: json.dumps(asked)},
    }
    progress = means.progress or runner.progress_lines(f"{id}, {n} seeds", means.say)
    record = runner.execute(job, progress, stop=means.stop)
    if record["status"] in ("timeout", "cancelled"):
        raise _Ended(SPENT if record["status"] == "timeout" else CANCELLED)
    if record["status"] != "ok":
        error = record["first_error"] or {}
        raise _Ended(
            f"chapter {one.id} with {n} seeds ended with status {record['status']} "
            f"({error.get('ename')}: {error.get('evalue')}); see {record['folder']}."
        )
    (measure,) = [m for m in records.measures(record) if m["id"] == id]
    claim = evidence.known_claims(one)[id]
    gates = [gate for gate in records.kept(record, "gates.json") if gate["name"] in claim.gates]
    return {
        "measure": measure,
        "gates": gates,
        "arms": {grid["name"]: list(grid["arms"]) for grid in records.kept(record, "arms.json")},
        "code": {grid["name"]: grid["code"] for grid in records.kept(record, "arms.json")},
        "computing": records.compute_seconds(record),
        "wall_s": record["wall_s"],
        "run": Path(record["folder"]).relative_to(paths.runs()).as_posix(),
        **{name: record[name] for name in ("git", "env")},
    }


def _same(first: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether claim and gates have the same values for the first seeds, though the spare arms were exchanged."""
    pairs = [(first["measure"]["values"], found["measure"]["values"])]
    values = {gate["name"]: gate["values"] for gate in found["gates"]}
    pairs += [(gate["values"], values[gate["name"]]) for gate in first["gates"] if len(gate["values"]) == only.KNOWN]
    return all(np.allclose(known, more[: only.KNOWN], rtol=1e-9, atol=1e-12) for known, more in pairs)


def check_minutes(minutes: float | None) -> None:
    """Refuse a budget of nothing."""
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes is {minutes:g}; a proof needs more than 0.")


# --- what is proved ---------------------------------------------------------------------------------------------------


def find(id: str) -> tuple[Chapter, Claim]:
    """The chapter and the claim; InputError where no chapter has it, or where more seeds cannot decide it."""
    known = {name: (one, claim) for one in chapters() for name, claim in evidence.known_claims(one).items()}
    if id not in known:
        chapter = id.partition(".")[0]
        near = [name for name in known if name.startswith(f"{chapter}.")] or list(known)
        raise InputError(f"no chapter has a claim {id!r}; there are {', '.join(near)}.")
    one, claim = known[id]
    if why := unprovable(one, claim):
        raise InputError(f"{id} cannot be proved: {why}.")
    return one, claim


def unprovable(one: Chapter, claim: Claim) -> str:
    """Why more seeds would not decide a claim; nothing where they may."""
    if claim.by_construction or claim.reported:
        return f"it is {'by construction' if claim.by_construction else 'reported'}, and not judged"
    if claim.per != "seed" or "seeds" not in one.parameters:
        return f"it has a value per {claim.per}, and chapter {one.id} no seeds to add"
    return "its seeds share their test items, whose noise more seeds do not lower" if claim.shared_items else ""


def _standing_preset(id: str) -> str:
    return evidence.standing()[id].preset or "cpu"


def open_claims(minutes: float, seeds: int) -> Iterator[str]:
    """The claims that are undecided and that seeds can decide, those first that cost least by their newest result."""
    costs: dict[str, float] = {}
    for one in chapters():
        known = evidence.known_claims(one)
        for result in evidence.published(one.slug):
            arms = sum(len(grid["arms"]) for grid in result["arms"])
            for m in result["measures"]:
                n = verdicts.seeds_to_decide(m, seeds)
                if n and m["id"] in known and not unprovable(one, known[m["id"]]) and result["seconds"] and arms:
                    share = len(named_arms(one, known[m["id"]], _arms_of(result))) or arms
                    costs[m["id"]] = result["seconds"] / m["n_seeds"] * (n * share / arms + only.KNOWN)
    yield from (id for id in sorted(costs, key=lambda id: costs[id]) if costs[id] <= 60 * minutes * executors.cores())


def _arms_of(result: Mapping[str, Any]) -> set[str]:
    return {arm for grid in result["arms"] for arm in grid["arms"]}


def _spare(one: Chapter, claim: Claim, arms: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """experiment -> the arms that neither the claim nor its gates name; nothing where they name none at all."""
    named = named_arms(one, claim, {arm for of in arms.values() for arm in of})
    if not named:
        return {}
    left = {grid: sorted(set(of) - named) for grid, of in arms.items()}
    return {grid: of for grid, of in left.items() if of}


def named_arms(one: Chapter, claim: Claim, arms: set[str]) -> set[str]:
    """The arms that a claim names: in its metric, in the calls that measure it and its gates, in what these are of."""
    trees = [tree for code in one.code if (tree := _parsed(code))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    made: dict[str, ast.expr] = {}  # name -> the value that it is given
    for node in nodes:
        if isinstance(node, ast.Assign):
            made |= {n.id: node.value for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    asked = {claim.id, *claim.gates}
    calls: list[ast.AST] = [
        node
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("measure", "gate")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value in asked
    ]
    said = {arm for arm in arms if arm in claim.metric}
    for _ in range(3):  # what the call holds, what its names were made of, and what these were
        said |= {n.value for n in _inside(calls, ast.Constant) if isinstance(n.value, str)} & arms
        calls = [made[n.id] for n in _inside(calls, ast.Name) if n.id in made and not isinstance(made[n.id], ast.Dict)]
        calls = [value for value in calls if not _is_grid(value)]
    return said


def _inside(trees: Iterable[ast.AST], kind: type) -> list[Any]:
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, kind)]


def _is_grid(value: ast.AST) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "grid"


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except SyntaxError:  # a cell of IPython's own commands
        return None


# --- the ledger -------------------------------------------------------------------------------------------------------


def _path(one: Chapter, id: str, preset: str) -> Path:
    return proved.folder() / one.slug / f"{id}.{preset}.json"


def _ledger(
    one: Chapter, claim: Claim, preset: str, params: Mapping[str, Any], at: tuple[int, ...], path: Path
) -> dict[str, Any]:
    """The ledger of a proof, begun or to begin."""
    params = {name: value for name, value in params.items() if name != "seeds"}
    key = records.key(one, params)
    known = read_json(path)
    if isinstance(known, dict) and known.get("key") == key and known.get("schema") == proved.SCHEMA:
        if known["at"] != list(at):
            raise InputError(
                f"{claim.id} was begun with at most {known['at'][-1]} seeds, and {at[-1]} were given; what its "
                f"intervals promise hangs on that number: go on with --seeds {known['at'][-1]}."
            )
        return known
    return {
        "schema": proved.SCHEMA,
        "claim": claim.id,
        "says": claim.says,
        "metric": claim.metric,
        "wanted": verdicts.wanted(claim),
        "slug": one.slug,
        "preset": preset,
        "params": params,
        "key": key,
        "at": list(at),
        "levels": sequential.levels(at),
        "spare": None,
        "first": None,
        "looks": [],
        "verdict": None,
        "why": "nothing was measured yet",
    }
