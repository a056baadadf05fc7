"""The checks of a proof's ledger: its looks, levels, intervals and verdicts computed again from its seeds' values."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlws import paths, verdicts
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import evidence, proved, sequential
from vlws.lab.chapters import chapter
from vlws.lab.checks import BROKEN, DIFFERS, OK, UNKNOWN, Check, same, told

Ledger = Mapping[str, Any]
ASKED = ("direction", "threshold", "tolerance", "by_construction", "reported")


def of_ledger(ledger: Ledger) -> list[Check]:
    """All checks of a ledger that has the fields of one."""
    steps: dict[str, Callable[[Ledger], list[Check]]] = {
        "claim": _claim,
        "looks": lambda one: told("looks", _looks(one), f"looks at {one['at']} and their levels, computed again"),
        "intervals and verdicts": _verdicts,
        "gates": _gates,
        "code and data": _key,
        "run": _run,
    }
    checks = []
    for name, step in steps.items():
        try:
            checks += step(ledger)
        except BROKEN as error:
            checks.append(Check(name, DIFFERS, f"it has another form ({type(error).__name__}: {error})"))
    return checks


def _claim(ledger: Ledger) -> list[Check]:
    """What is asked of the claim, against the claims file of this workspace."""
    try:
        claim = evidence.known_claims(chapter(ledger["slug"])).get(ledger["claim"])
    except InputError as error:
        return [Check("claim", UNKNOWN, str(error))]
    if claim is None:
        return [Check("claim", UNKNOWN, f"no chapter of this workspace has a claim {ledger['claim']!r}")]
    wrong = [
        f"look {look['seeds']}: {name} is {look['measure'][name]!r}, in the claims file {getattr(claim, name)!r}"
        for look in ledger["looks"]
        for name in ASKED
        if not same(look["measure"][name], getattr(claim, name))
    ]
    return told("claim", wrong, "its criterion is that of the claims file")


def _looks(ledger: Ledger) -> Iterator[str]:
    at = list(sequential.looks(ledger["at"][-1], ledger["at"][0]))
    if ledger["at"] != at:
        yield f"at is {ledger['at']}, of these numbers the rule gives {at}"
        return
    for n, said, again in zip(at, ledger["levels"], sequential.levels(at), strict=True):
        if not np.isclose(said, again, rtol=1e-6):
            yield f"the level at {n} seeds is {said}, the rule gives {again}"
    looked = [look["seeds"] for look in ledger["looks"]]
    if looked != at[: len(looked)]:
        yield f"it looked at {looked}, and was to look at {at[: len(looked)]}"
    for look, level in zip(ledger["looks"], ledger["levels"], strict=False):
        if look["level"] != level:
            yield f"the look at {look['seeds']} seeds was at level {look['level']}, not {level}"
        if look["verdict"] != verdicts.UNDECIDED and look is not ledger["looks"][-1]:
            yield f"it went on after {look['seeds']} seeds, where the claim was {look['verdict']}"


def _verdicts(ledger: Ledger) -> list[Check]:
    def wrong() -> Iterator[str]:
        for look in ledger["looks"]:
            if len(look["measure"]["values"]) != look["seeds"] or look["measure"]["n_seeds"] != look["seeds"]:
                yield f"the look at {look['seeds']} seeds has {len(look['measure']['values'])} values"
            again = sequential.judge(look["measure"], look["level"])
            for name in ("value", "low", "high", "verdict"):
                if not same(look[name], again[name]):
                    yield f"at {look['seeds']} seeds {name} is {look[name]}, the values say {again[name]}"
        for name in ("value", "low", "high", "verdict"):
            if not same(ledger[name], ledger["looks"][-1][name]):
                yield f"{name} is {ledger[name]}, that of the last look {ledger['looks'][-1][name]}"

    count = len(ledger["looks"])
    return told("intervals and verdicts", wrong(), f"{count} look{'s' * (count != 1)} computed again from the values")


def _gates(ledger: Ledger) -> list[Check]:
    def wrong() -> Iterator[str]:
        for look in ledger["looks"]:
            for gate in look["gates"]:
                value = float(np.mean(gate["values"]))
                passed = verdicts.gate_passed(gate | {"value": value})
                if not same(gate["value"], value) or gate["passed"] != passed:
                    yield f"gate {gate['name']} at {look['seeds']} seeds: its values say {value:.4f}, passed {passed}"
            failed = [gate["name"] for gate in look["gates"] if not gate["passed"]]
            if failed and look["verdict"] in (verdicts.SUPPORTED, verdicts.OPPOSED):
                yield f"the look at {look['seeds']} seeds is {look['verdict']}, although gate {failed[0]} failed"

    return told("gates", wrong(), "each passed where it says so, and a claim whose gate failed is not judged")


def _key(ledger: Ledger) -> list[Check]:
    try:
        now = proved.key(ledger)
    except InputError as error:
        return [Check("code and data", UNKNOWN, str(error))]
    if now != ledger["key"]:
        why = "code, data, pins or parameters are not those of the proof (it is stale); prove again, or take its commit"
        return [Check("code and data", UNKNOWN, why)]
    return [Check("code and data", OK, "those of this workspace")]


def _run(ledger: Ledger) -> list[Check]:
    """The values of the last look, against the run that they were measured in."""
    last = ledger["looks"][-1]
    runs = paths.runs().resolve()
    folder = (runs / last["run"]).resolve()
    if not folder.is_relative_to(runs) or not (folder / "measures.json").is_file():
        return [Check("run", UNKNOWN, f"the run {last['run']} is not here")]
    found = [m for m in read_json(folder / "measures.json") or [] if m["id"] == ledger["claim"]]
    differ = [] if found and found[0]["values"] == last["measure"]["values"] else [f"{last['run']} has other values"]
    return told("run", differ, f"{last['run']} has the values of the last look")


def command_of(ledger: Ledger) -> str:
    """The command that makes a proof again."""
    return f"vlws prove {ledger['claim']} --preset {ledger['preset']} --seeds {ledger['at'][-1]}"


def read(path: Path) -> dict[str, Any] | None:
    """The ledger of a file; None where it is none. InputError where it has not looked, or is of another schema."""
    found = read_json(path)
    if not isinstance(found, dict) or not {"claim", "looks", "at"} <= set(found):
        return None
    if found.get("schema") != proved.SCHEMA or not found["looks"]:
        raise InputError(f"{path} is a proof that has not looked yet, or of another schema than {proved.SCHEMA}.")
    return found
