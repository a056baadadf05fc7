"""A chapter on seeds that are never reported: what `vlws tune` puts in the place of `experiment.grid`.

Loaded in the kernel of a run (`vlws.lab.launch`) where $VLWS_TUNE asks for it, in JSON: {"claims": [ids], "wanted":
[arms], "of": [experiments]}. Every seed below 1000 is replaced by itself plus 1000; the notebook sees the grid under
the seeds that it asked for, and keeps it under those that computed. Of the experiments that are named only the arms
that are wanted are computed (of one that has none of them its first arm); the first of these stands in for the others.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from typing import Any

from vlws import claims, experiment
from vlws.lab import only

VARIABLE = "VLWS_TUNE"
FIRST = 1000  # of the seeds that one may tune on


class Aside(experiment.Grid):
    """A grid as a notebook asked for it; `computed` is what was computed for it, and what is kept."""

    computed: experiment.Grid

    def keep(self) -> None:
        self.computed.keep()

    def scalars(self) -> dict[str, dict[str, list[float]]]:
        return self.computed.scalars()


def install(asked: str) -> None:
    """Take the places of `experiment.grid` and of `ChapterClaims.measure` in this process."""
    spec = json.loads(asked)
    experiment.grid = grid_of(experiment.grid, spec["wanted"], spec["of"])  # type: ignore[assignment]
    claims.ChapterClaims.measure = only.measure_of(claims.ChapterClaims.measure, spec["claims"])  # type: ignore[method-assign]


def grid_of(
    real: Callable[..., experiment.Grid], wanted: Collection[str], of: Collection[str]
) -> Callable[..., experiment.Grid]:
    """`experiment.grid` on seeds to tune on, with the arms that are wanted."""

    @wraps(real)
    def grid(
        fn: Any,
        arms: Any,
        seeds: Any,
        *,
        name: str,
        by_seed: Mapping[str, Mapping[int, Any]] | None = None,
        **options: Any,
    ) -> experiment.Grid:
        given = dict(arms) if isinstance(arms, Mapping) else {arm: {} for arm in arms}
        chosen = {seed: tuning_seed(seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds)}
        computed = kept_arms(given, wanted) if name in of else list(given)
        own = {
            key: {chosen.get(s, s): value for s, value in of_seed.items()} for key, of_seed in (by_seed or {}).items()
        }
        how = {arm: given[arm] for arm in computed}
        found = real(fn, how, list(chosen.values()), name=name, by_seed=own, **options)
        cells = {
            (arm, seed): found.cells[arm if arm in computed else computed[0], chosen[seed]]
            for arm in given
            for seed in chosen
        }
        aside = Aside(tuple(given), tuple(chosen), cells, name, found.seconds, found.code)
        object.__setattr__(aside, "computed", found)
        return aside

    return grid


def tuning_seed(seed: int) -> int:
    """The seed that takes the place of one that may be reported."""
    return seed if seed >= FIRST else seed + FIRST


def kept_arms(given: Iterable[str], wanted: Collection[str]) -> list[str]:
    """The wanted arms among those of an experiment; its first where it has none of them, all where none is wanted."""
    arms = list(given)
    return [arm for arm in arms if arm in wanted] or (arms[:1] if wanted else arms)
