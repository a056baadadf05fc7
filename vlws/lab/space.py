"""What a search is asked for: the ranges of parameters, and the figure that is to become best."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlws import mime
from vlws.claims import Claim
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import evidence, prove, records
from vlws.lab.chapters import Chapter, grid_values, read_values

CHOSEN_BY_US = ("seeds", "first_seed", "preset", "data", "device")  # what no search may choose


def read_space(one: Chapter, texts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ranges as Optuna's distributions, and values that stay.

    "1e-4..1e-2:log" and "3..8" are ranges, ends included, "1,2,3" a choice, "5" a value that stays. InputError for an
    unknown parameter, one that no search may choose, a value that it does not accept, and where nothing is left to
    choose.
    """
    space: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    for name, text in texts.items():
        text_wanted = name in one.parameters and one.parameters[name].type == "str"  # such as a path
        span = re.fullmatch(r"\s*([^.,]+(?:\.\d+)?[^.,]*?)\s*\.\.\s*(.+?)\s*(:log)?\s*", text)
        if span and not text_wanted:
            space[name] = _span(one, name, text, span[1], span[2], bool(span[3]))
            continue
        values = list(dict.fromkeys(map(_hashable, grid_values(one, {name: text})[name])))
        if len(values) == 1:
            fixed[name] = values[0]
        else:
            space[name] = _choice(name, values)
    if barred := [name for name in texts if name in CHOSEN_BY_US and (name in space or name != "data")]:
        raise InputError(
            f"{barred[0]} is not for a search to choose: it tunes on seeds from 1000 up, --seeds of them, at --preset."
        )
    if not space:
        raise InputError(
            "a search needs a parameter to choose: -p lr=1e-4..1e-2:log, -p components=3..8, -p tau=1,2,3."
        )
    return space, fixed


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        raise InputError(f"{value} is a list; a search chooses numbers, texts and true or false.")
    return value


def _choice(name: str, values: list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution(values)


def _span(one: Chapter, name: str, text: str, low: str, high: str, log: bool) -> Any:
    """A range of whole or other numbers, both ends of which the parameter accepts."""
    from optuna.distributions import FloatDistribution, IntDistribution

    read_values(one, {name: low})  # an unknown name, or an end that it does not accept
    kind = one.parameters[name].type
    if kind not in ("int", "float"):
        raise InputError(f"{name}={text!r} is a range, and {name} is {kind}; write its values, {name}=a,b,c.")
    ends = [read_values(one, {name: end})[name] for end in (low, high)]
    if ends[0] >= ends[1]:
        raise InputError(f"{name}={text!r} is no range: its first end must be below the second.")
    if log and ends[0] <= 0:
        raise InputError(f"{name}={text!r} begins at {ends[0]:g}; a logarithmic range begins above 0.")
    made: Any = IntDistribution if kind == "int" else FloatDistribution
    return made(low=ends[0], high=ends[1], log=log)


@dataclass(frozen=True)
class Target:
    """What is to become best: the value of a claim's measure, or an arm's mean of a metric."""

    text: str
    claim: Claim | None = None
    arm: str = ""
    metric: str = ""
    minimize: bool = False

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """In Optuna's words."""
        return "minimize" if self.minimize or (self.claim and self.claim.direction != "greater") else "maximize"

    def value(self, record: Mapping[str, Any]) -> tuple[float | None, str]:
        """What a run found, as it is to become best; or why it found nothing.

        Of a claim that wants a value within a tolerance: its distance from that value.
        """
        if self.claim:
            measure = next((m for m in records.measures(record) if m["id"] == self.claim.id), {})
            found = measure.get("value")
            if found is None:
                return (
                    None,
                    f"{self.claim.id} was not measured{': ' * bool(measure.get('why'))}{measure.get('why', '')}",
                )
            within = self.claim.direction == "within"
            return (abs(found - self.claim.threshold) if within else found), ""
        for grid in records.kept(record, "arms.json"):
            values = grid["arms"].get(self.arm, {}).get(self.metric) or []
            if values and all(value is not None for value in values):
                return sum(values) / len(values), ""
        return None, f"no number for {self.metric!r} of arm {self.arm!r}"


def read_target(one: Chapter, text: str, minimize: bool) -> Target:
    """A claim by its id, or "arm:metric"; InputError where the chapter is known to have neither."""
    known = evidence.known_claims(one)
    if text in known:
        if minimize:
            raise InputError(f"{text} says itself which way is better; --minimize is for arm:metric.")
        return Target(text, claim=known[text])
    arm, colon, metric = text.partition(":")
    arms = known_arms(one)
    if not colon:
        raise InputError(
            f"{text!r} is no metric: give one of the claims {', '.join(known) or '(none)'}, or arm:metric."
        )
    metrics = {name for of in arms.values() for name in of.get(arm, ())}
    if arms and not metrics:
        names = dict.fromkeys(name for of in arms.values() for name in of)
        raise InputError(f"chapter {one.id} has no arm {arm!r}; it has {', '.join(names)}.")
    if arms and metric not in metrics:
        raise InputError(f"arm {arm!r} has no metric {metric!r}; it has {', '.join(sorted(metrics))}.")
    return Target(text, arm=arm, metric=metric, minimize=minimize)


def known_arms(one: Chapter) -> dict[str, dict[str, list[str]]]:
    """experiment -> arm -> metrics, of the committed notebook and published results; empty where neither ran."""
    grids = records.collect(read_json(one.path) or {"cells": []}, mime.ARMS, "name")
    grids += [grid for result in evidence.published(one.slug) for grid in result["arms"]]
    found: dict[str, dict[str, list[str]]] = {}
    for grid in grids:
        for arm, metrics in grid["arms"].items():
            found.setdefault(grid["name"], {}).setdefault(arm, list(metrics))
    return found


def wanted_arms(one: Chapter, target: Target) -> set[str]:
    """The arms that a target names; none where that is not known, and all are to be computed."""
    arms = {arm for of in known_arms(one).values() for arm in of}
    if not arms:
        return set()
    return prove.named_arms(one, target.claim, arms) if target.claim else {target.arm}
