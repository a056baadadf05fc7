"""What was proved: the ledgers of `vlws.lab.prove`, in this workspace and published, and which stands of a claim."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlws import paths
from vlws.display import number
from vlws.errors import InputError
from vlws.files import read_json, write_json
from vlws.lab import records
from vlws.lab.chapters import chapter, read_values
from vlws.lab.parameters import PRESETS
from vlws.verdicts import UNDECIDED

SCHEMA = 2


def folder() -> Path:
    """Where proofs and their runs are kept."""
    return paths.runs() / "proofs"


def published() -> Path:
    """Where published proofs are kept."""
    return paths.reports() / "results" / "proofs"


def is_over(ledger: Mapping[str, Any]) -> bool:
    """Whether a proof has come to its end: decided, or at its last look."""
    looks = ledger["looks"]
    return bool(looks) and (looks[-1]["verdict"] != UNDECIDED or len(looks) == len(ledger["at"]))


def key(ledger: Mapping[str, Any]) -> str:
    """Hash of all that a proof is made of, as it is today: of a run's key all but the number of seeds."""
    one = chapter(ledger["slug"])
    return records.key(one, read_values(one, ledger["params"]))


def standing(sources: Sequence[str] = ("results", "run")) -> dict[str, dict[str, Any]]:
    """claim id -> the proof that stands of it, told: that of the largest scale; within it what is not stale, is over.

    Each has verdict, why, value, low, high, seeds, level (of the last look), at, preset, stale, source (run or
    results) and `said`, all that in words.
    """
    found: dict[str, tuple[tuple, dict[str, Any]]] = {}
    for source, ledger in _ledgers(sources):
        try:
            told = _told(ledger, source)
            rank = (PRESETS.index(told["preset"]), not told["stale"], is_over(ledger), source == "run")
            if ledger["claim"] not in found or rank >= found[ledger["claim"]][0]:
                found[ledger["claim"]] = (rank, told)
        except (KeyError, TypeError, ValueError, IndexError, InputError):
            continue  # of another schema or chapter, or damaged: a proof that cannot be read stands for nothing
    return {id: told for id, (_, told) in found.items()}


def _ledgers(sources: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(results or run, ledger) of every proof that has looked."""
    places = {"results": published(), "run": folder()}
    for source in sources:
        where = places[source]
        for path in sorted(where.glob("*/*.json")):
            if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(where)):
                ledger = read_json(path)
                if isinstance(ledger, dict) and ledger.get("schema") == SCHEMA and ledger.get("looks"):
                    yield source, ledger


def _told(ledger: Mapping[str, Any], source: str) -> dict[str, Any]:
    last = ledger["looks"][-1]
    said = f"{last['verdict']} at {last['seeds']} of at most {ledger['at'][-1]} seeds"
    if last["low"] is not None:
        said += f", {number(last['value'])} [{number(last['low'])}, {number(last['high'])}]"
    names = ("verdict", "why", "value", "low", "high", "seeds", "level")
    stale = key(ledger) != ledger["key"]
    told = {name: last[name] for name in names} | {"at": ledger["at"], "preset": ledger["preset"], "stale": stale}
    return told | {"source": source, "said": said + (" (stale)" if stale else "")}


def publish(id: str, preset: str) -> Path:
    """Keep the proof of a claim at a preset under reports/results/proofs/.

    Raises InputError where there is none, and where it has not come to its end or is stale.
    """
    one = chapter(id.partition(".")[0])
    path = folder() / one.slug / f"{id}.{preset}.json"
    ledger = read_json(path)
    if not isinstance(ledger, dict) or ledger.get("schema") != SCHEMA:
        raise InputError(f"{id} has no proof at preset {preset!r}; make one with `vlws prove {id} --preset {preset}`.")
    if not is_over(ledger):
        raise InputError(f"the proof of {id} has not come to its end; go on with `vlws prove {id} --preset {preset}`.")
    if key(ledger) != ledger["key"]:
        raise InputError(f"the proof of {id} is stale (code or data of its chapter has changed); prove it again.")
    kept = published() / one.slug / path.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, ledger)
    return kept
