"""A chapter that computes only the arms that a claim needs: what `vlws prove` puts in the place of `experiment.grid`.

Loaded in the kernel of a run (`vlws.lab.launch`) where $VLWS_ONLY asks for it, in JSON: {"claims": [ids], "spare":
{experiment: [arms]}}. The spare arms are computed for the first two seeds alone, and stand in for the others: tables
and figures that read them are drawn of these. Between the first two seeds they are exchanged. So a claim that does
read one of them has other values for these two seeds than in a run of all arms, and is found out; no claim but those
asked for is measured, and of the experiment's numbers only those that were computed are kept.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

from vlws import claims, experiment

VARIABLE = "VLWS_ONLY"
KNOWN = 2  # seeds of the spare arms


class Partly(experiment.Grid):
    """A grid some of whose arms stand in for others; `computed` are the arms that do not."""

    computed: tuple[str, ...] = ()

    def scalars(self) -> dict[str, dict[str, list[float]]]:
        found = super().scalars()
        return {arm: found[arm] for arm in self.arms if arm in self.computed}


def install(asked: str) -> None:
    """Take the places of `experiment.grid` and of `ChapterClaims.measure` in this process."""
    spec = json.loads(asked)
    experiment.grid = grid_of(experiment.grid, spec["spare"])  # type: ignore[assignment]
    claims.ChapterClaims.measure = measure_of(claims.ChapterClaims.measure, spec["claims"])  # type: ignore[method-assign]


def grid_of(real: Callable[..., experiment.Grid], spare: Mapping[str, Iterable[str]]) -> Callable[..., experiment.Grid]:
    """`experiment.grid` with stand-ins for the spare arms."""

    @wraps(real)
    def grid(fn: Any, arms: Any, seeds: Any, *, name: str, **options: Any) -> experiment.Grid:
        given = dict(arms) if isinstance(arms, Mapping) else {arm: {} for arm in arms}
        left_out = {arm: how for arm, how in given.items() if arm in spare.get(name, ())}
        chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
        if not left_out or len(chosen) < KNOWN:
            return real(fn, arms, seeds, name=name, **options)
        donors = real(fn, left_out, chosen[:KNOWN], name=name, **options)
        wanted = {arm: how for arm, how in given.items() if arm not in left_out}
        cells, seconds, code = {}, donors.seconds, donors.code
        if wanted:
            found = real(fn, wanted, chosen, name=name, **options)
            cells, seconds, code = dict(found.cells), seconds + found.seconds, found.code
        for place, seed in enumerate(chosen):
            for arm in left_out:
                cells[arm, seed] = donors.cells[arm, chosen[(place + 1) % KNOWN]]
        partly = Partly(tuple(given), tuple(chosen), cells, name, seconds, code)
        object.__setattr__(partly, "computed", tuple(wanted))
        return partly

    return grid


def measure_of(real: Callable[..., claims.Measure], asked: Iterable[str]) -> Callable[..., claims.Measure]:
    """`ChapterClaims.measure` that measures only the claims that were asked for."""

    @wraps(real)
    def measure(self: claims.ChapterClaims, id: str, values: Any, **options: Any) -> claims.Measure:
        if id in asked:
            return real(self, id, values, **options)
        return real(self, id, None, unmet=f"this run computes what {', '.join(asked)} needs")

    return measure
