"""What a paper claims and what must hold first, as `notebooks/claims/NN_slug.yaml` says it.

    chapter: "04"
    paper: {title: ..., authors: ..., venue: ..., url: ...}
    gates:
      knows: {says: "The CLIP knows the classes.", metric: accuracy, direction: greater, threshold: 0.9}
    claims:
      - {id: 04.C1, says: ..., where: ..., metric: ..., unit: ..., direction: greater, threshold: 0.05, gates: [knows]}

Every fault is one InputError that names the file and the claim.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlws.errors import InputError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that in C reads ten times as fast
DIRECTIONS = ("greater", "less", "within")


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    `direction` and `threshold` say what the interval is held against: all of it above `threshold` (greater), below it
    (less), or inside `threshold` ± `tolerance` (within). `paper` is the paper's own value, where it gives one. `gates`
    must be passed before it is judged. `by_construction` (a reason): the set-up builds the result in, so it is shown
    and not counted. `reported` (a reason): it is shown and not judged, as times are. `shared_items`: all seeds are
    tested on the same items. `bounds` of the metric. `per` names what there is a value for, where that is not a seed.
    """

    id: str
    says: str
    where: str
    metric: str
    unit: str
    direction: str
    threshold: float
    paper: float | None = None
    tolerance: float | None = None
    needs: dict[str, int] = field(default_factory=dict)
    per: str = "seed"
    gates: tuple[str, ...] = ()
    by_construction: str = ""
    reported: str = ""
    shared_items: bool = False
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Gate:
    """What must hold of the base model or of the data, never of a method's result, before claims can be judged."""

    name: str
    says: str
    metric: str
    direction: str
    threshold: float


@dataclass(frozen=True)
class ClaimsFile:
    """A claims file as read."""

    chapter: str
    paper: dict[str, str]
    claims: dict[str, Claim]
    gates: dict[str, Gate]


def load(path: Path) -> ClaimsFile:
    """Read and check a claims file."""
    path = Path(path)
    data = _read_yaml(path)
    _check_fields(path.name, data, required=("chapter", "claims"), optional=("paper", "gates"))
    chapter, paper = data["chapter"], data.get("paper") or {}
    if not isinstance(chapter, str) or not path.stem.startswith(chapter):
        raise InputError(
            f'{path.name}: chapter is {chapter!r}; write it quoted and as in the file\'s name, such as "04".'
        )
    if not isinstance(paper, dict):
        raise InputError(f"{path.name}: paper is {paper!r}; it is a mapping with title, authors, venue and url.")
    if paper:
        _check_fields(f"{path.name}: paper", paper, required=("title",), optional=("authors", "venue", "url"))
    gates = _read_gates(path.name, data.get("gates") or {})
    claims = _read_claims(path.name, data["claims"], chapter, gates)
    return ClaimsFile(chapter, {k: str(v) for k, v in paper.items()}, claims, gates)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path.name} must be a mapping with chapter, paper and claims.")
    return data


def _read_claims(file: str, given: Any, chapter: str, gates: dict[str, Gate]) -> dict[str, Claim]:
    if not isinstance(given, list):
        raise InputError(f"{file}: claims must be a list.")
    claims: dict[str, Claim] = {}
    for position, entry in enumerate(given, start=1):
        claim = _read_claim(file, position, entry)
        if not claim.id.startswith(f"{chapter}."):
            raise InputError(f"{file}: claim id {claim.id!r} must start with {chapter + '.'!r}.")
        if claim.id in claims:
            raise InputError(f"{file}: claim id {claim.id!r} stands twice.")
        for gate in claim.gates:
            if gate not in gates:
                known = ", ".join(gates) or "none"
                raise InputError(f"{file}: claim {claim.id} names the gate {gate!r}; the file's gates are: {known}.")
        claims[claim.id] = claim
    return claims


def _read_gates(file: str, given: Any) -> dict[str, Gate]:
    if not isinstance(given, dict):
        raise InputError(f"{file}: gates is {given!r}; it maps a name to says, metric, direction and threshold.")
    gates = {}
    for key, entry in given.items():
        name = f"{file}: gate {key}"
        if not isinstance(entry, dict):
            raise InputError(f"{name} must be a mapping, not {entry!r}.")
        _check_fields(name, entry, ("says", "metric", "direction", "threshold"), ())
        _check_texts(name, entry, ("says", "metric", "direction"))
        if entry["direction"] not in ("greater", "less"):
            raise InputError(f"{name}: direction is {entry['direction']!r}; it is greater or less.")
        threshold = _real(name, "threshold", entry["threshold"])
        if threshold is None:
            raise InputError(f"{name}: threshold is empty; it must be a number.")
        gates[str(key)] = Gate(str(key), entry["says"], entry["metric"], entry["direction"], threshold)
    return gates


REQUIRED = ("id", "says", "where", "metric", "unit", "direction", "threshold")
OPTIONAL = ("paper", "tolerance", "needs", "per", "gates", "by_construction", "reported", "shared_items", "bounds")


def _read_claim(file: str, position: int, entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise InputError(f"{file}: claim {position} must be a mapping, not {entry!r}.")
    name = f"{file}: claim {entry.get('id', position)}"
    _check_fields(name, entry, REQUIRED, OPTIONAL)
    _check_texts(name, entry, ("id", "says", "where", "metric", "unit", "direction"))
    _check_texts(name, {"by_construction": "", "reported": ""} | entry, ("by_construction", "reported"))
    if entry["direction"] not in DIRECTIONS:
        raise InputError(f"{name}: direction is {entry['direction']!r}; it is one of {', '.join(DIRECTIONS)}.")
    numbers = {key: _real(name, key, entry.get(key)) for key in ("threshold", "paper", "tolerance")}
    if numbers["threshold"] is None:
        raise InputError(f"{name}: threshold is empty; it must be a number.")
    if (entry["direction"] == "within") != (numbers["tolerance"] is not None and numbers["tolerance"] > 0):
        raise InputError(
            f"{name}: tolerance is {entry.get('tolerance')!r}; direction within needs one above 0, the others none."
        )
    return Claim(
        **{key: entry[key] for key in REQUIRED} | numbers,
        needs=_needs(name, entry),
        per=_per(name, entry),
        gates=_gate_names(name, entry),
        by_construction=entry.get("by_construction", ""),
        reported=entry.get("reported", ""),
        shared_items=_flag(name, "shared_items", entry),
        bounds=_bounds(name, entry),
    )


def _needs(name: str, entry: dict) -> dict[str, int]:
    needs = entry.get("needs") or {}
    if (
        not isinstance(needs, dict)
        or set(needs) - {"seeds"}
        or not all(type(v) is int and v > 0 for v in needs.values())
    ):
        raise InputError(f"{name}: needs is {needs!r}; it is a mapping such as {{seeds: 3}}.")
    return needs


def _per(name: str, entry: dict) -> str:
    per = entry.get("per", "seed")
    if not isinstance(per, str) or not per:
        raise InputError(f"{name}: per is {per!r}; it is a word, such as seed.")
    return per


def _gate_names(name: str, entry: dict) -> tuple[str, ...]:
    gates = entry.get("gates") or []
    if not isinstance(gates, list) or not all(isinstance(gate, str) for gate in gates):
        raise InputError(f"{name}: gates is {gates!r}; it is a list of names, such as [sees].")
    return tuple(gates)


def _flag(name: str, key: str, entry: dict) -> bool:
    value = entry.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{name}: {key} is {value!r}; it is true or false.")
    return value


def _bounds(name: str, entry: dict) -> tuple[float, float] | None:
    bounds = entry.get("bounds")
    if bounds is None:
        return None
    pair = [_real(name, "bounds", b) for b in bounds] if isinstance(bounds, list) else []
    if len(pair) != 2 or pair[0] is None or pair[1] is None or pair[0] >= pair[1]:
        raise InputError(f"{name}: bounds is {bounds!r}; it is a list [lowest, highest].")
    return pair[0], pair[1]


def _check_fields(name: str, given: dict, required: Sequence[str], optional: Iterable[str]) -> None:
    missing = [key for key in required if key not in given]
    if missing:
        raise InputError(f"{name} lacks {', '.join(missing)}.")
    unknown = [str(key) for key in given if key not in {*required, *optional}]
    if unknown:
        raise InputError(
            f"{name} has unknown fields {', '.join(unknown)}; known are {', '.join([*required, *optional])}."
        )


def _check_texts(name: str, entry: dict, keys: Sequence[str]) -> None:
    for key in keys:
        if not isinstance(entry[key], str):
            raise InputError(f"{name}: {key} is {entry[key]!r}; it must be text (quote it).")


def _real(name: str, key: str, given: Any) -> float | None:
    """A finite number or None; text such as "1e-5" counts (YAML 1.1 reads it as text)."""
    if given is None:
        return None
    try:
        number = float(given) if isinstance(given, int | float | str) and not isinstance(given, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}: {key} is {given!r}; it must be a number.")
    return number
