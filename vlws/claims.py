"""What a chapter measured of a paper's claims, and the verdicts, which are computed and never typed.

    chapter = claims.open_chapter("04", preset=preset)
    chapter.claimed()                      # the table of what is claimed
    chapter.gate("knows", accuracy)        # of the base model, "seed"; the claims that name it need it passed
    chapter.measure("04.C2", effects)      # "seed" or "1+replicate seed"; shown, and kept in the run's measures.json
    chapter.verdicts()                     # paper, measured [low, high], verdict, verdict after Holm

A claims file holds the paper, gates and claims: see `vlws.claims_file`.
"""

import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from vlws import display, mime, paths
from vlws.claims_file import Claim, Gate, load
from vlws.display import Shown, count, escape, muted, number
from vlws.errors import InputError
from vlws.verdicts import (
    JUDGED,
    OPPOSED,
    SUPPORTED,
    UNDECIDED,
    badge,
    criterion,
    gate_passed,
    gate_reason,
    holm_verdicts,
    recompute,
    remedy,
    strip,
)


@dataclass(frozen=True)
class Measure:
    """A claim with what was measured: estimate, 95 % interval, p value against the threshold, verdict and its reason.

    A notebook shows it in a line (`ChapterClaims.verdicts` has the table); its plain text holds no number. `low`,
    `high` and `p` are None where nothing tells the noise; `value` too where nothing was measured, and `why` then says
    why. `values`: of each seed. `item_se`: each seed's standard error over its items; `replicates` "replicate seed"
    where the seeds share their items.

    >>> chapter = open_chapter("08")
    >>> m = chapter.measure("08.K3", [-6.1, -5.9, -6.4])
    >>> m, m.verdict
    (08.K3: log10(largest relative error), 'supported')
    >>> m.to_dict()["values"], round(m.high, 2)
    ((-6.1, -5.9, -6.4), -5.51)
    >>> m.show()  # in a notebook: a line with the value, its interval and the verdict
    """

    id: str
    says: str
    where: str
    metric: str
    unit: str
    paper: float | None
    direction: str
    threshold: float
    tolerance: float | None
    value: float | None
    low: float | None
    high: float | None
    n_seeds: int
    n_replicates: int
    verdict: str
    why: str
    preset: str
    per: str = "seed"
    p: float | None = None
    values: tuple[float, ...] = ()
    item_se: tuple[float, ...] | None = None
    replicates: list[list[float]] | None = None
    items: int | None = None
    gates: tuple[str, ...] = ()
    needs: dict[str, int] = field(default_factory=dict)
    by_construction: str = ""
    reported: str = ""
    shared_items: bool = False
    bounds: tuple[float, float] | None = None
    unmet: str = ""
    shown_by: int = field(default=0, compare=False)  # the cell that measured has shown it already

    def to_dict(self) -> dict[str, Any]:
        """The measure as it stands in measures.json."""
        return {name: value for name, value in asdict(self).items() if name != "shown_by"}

    def show(self) -> None:
        """Display the measure in a notebook; elsewhere nothing happens."""
        _publish({mime.MEASURE: self.to_dict(), "text/html": self._repr_html_(), "text/plain": repr(self)})

    def _ipython_display_(self) -> None:
        if _execution_count() != self.shown_by:  # else: the last line of the cell that measured
            self.show()

    def __repr__(self) -> str:
        return f"{self.id}: {self.metric}"

    def _repr_html_(self) -> str:
        value = "–" if self.value is None else f"<b>{number(self.value)}</b>{_interval(self)} {escape(self.unit)}"
        return f"<div><b>{escape(self.id)}</b> {value} {badge(self.verdict)} {muted(self.why)}</div>"


@dataclass
class ChapterClaims:
    """The claims and gates of one chapter, and what has been measured of them so far.

    >>> chapter = open_chapter("04", preset="full")
    >>> chapter.gate("knows", [0.97, 0.98]), chapter.gate("headroom", [0.02, 0.04])
    (True, False)
    >>> chapter.measure("04.C2", [0.11, 0.13, 0.12]).why  # the gate that failed
    'Clutter costs the image-only detector what CMER could win back. 0.030, needed at least 0.050'
    >>> print(repr(chapter.verdicts()).splitlines()[1])
    04.C2: AUROC(CMER) − AUROC(image only)
    >>> print(repr(chapter.claimed()).splitlines()[0])
    04.C1: A detector does much better on the captions than on the images.
    """

    chapter: str
    paper: dict[str, str]
    claims: dict[str, Claim]
    gates: dict[str, Gate] = field(default_factory=dict)
    preset: str = "cpu"
    measures: dict[str, Measure] = field(default_factory=dict)
    gated: dict[str, dict[str, Any]] = field(default_factory=dict)

    def claimed(self) -> Shown:
        """What is claimed, where, and what would support it; one row per claim."""
        rows = [
            [
                f"<b>{escape(c.id)}</b>",
                f"{escape(c.says)}{muted(c.where)}",
                escape(c.metric),
                "–" if c.paper is None else f"{number(c.paper)}{muted(c.unit)}",
                escape(
                    (c.reported and "shown, not judged") or (c.by_construction and "shown, not counted") or criterion(c)
                ),
            ]
            for c in self.claims.values()
        ]
        text = "\n".join(f"{c.id}: {c.says}" for c in self.claims.values())
        head = ["", "claim", "metric", "paper", "supported if the interval is"]
        return Shown(display.html_table(head, rows), text)

    def gate(self, name: str, values: Any) -> bool:
        """Hold a gate of the claims file against the base model or the data, show it, and say whether it is passed.

        values: "seed" (or one number); their mean is held against the threshold.
        """
        gate = self.gates.get(name)
        if gate is None:
            known = ", ".join(self.gates) or "none"
            raise InputError(f"no gate {name!r} in chapter {self.chapter}; its gates are: {known}.")
        array = _checked_values(f"gate {name}", np.atleast_1d(values))
        found = asdict(gate) | {"value": float(array.mean()), "values": array.ravel().tolist()}
        self.gated[name] = found = found | {"passed": gate_passed(found)}
        mark = badge(SUPPORTED if found["passed"] else OPPOSED, "passed" if found["passed"] else "failed")
        row = [f"<b>{escape(name)}</b>", escape(gate.says), escape(gate_reason(found)), mark]
        table = display.html_table(["gate", "", gate.metric, ""], [row])
        _publish({mime.GATE: found, "text/html": table, "text/plain": f"gate {name}: {gate.metric}"})
        return bool(found["passed"])

    def measure(self, id: str, values: Any, *, unmet: str = "", items: int | None = None) -> Measure:
        """Hold a claim against what was measured, show it, and remember it.

        Args:
            values: "seed", the paired effect of each seed; or "1+replicate seed", row 0 the point estimates and the
                others item-level replicates (`stats.replicates`); None where there are none and `unmet` says why.
            unmet: in words, what else the claim needs and this run does not have; its gates are looked up by name.
            items: test items per seed, for where all of them agree (`stats.estimate`).

        Raises:
            InputError: an id that the claims file does not hold, a gate that was not measured before, values that are
                not finite, None without a word why.
        """
        claim = self.claims.get(id)
        if claim is None:
            raise InputError(f"no claim {id!r} in chapter {self.chapter}; its claims are {', '.join(self.claims)}.")
        unmet = unmet or self._failed_gates(claim)
        found: dict[str, Any] = {"n_seeds": 0, "n_replicates": 0}
        if values is not None or not unmet:
            array = _checked_values(id, values)
            found = _kept(array, claim.shared_items) | {"items": items}
        stated = {f.name: getattr(claim, f.name) for f in fields(Claim)}
        draft = stated | found | {"unmet": unmet}
        result = Measure(**draft | recompute(draft), preset=self.preset, shown_by=_execution_count())
        self.measures[id] = result
        result.show()
        return result

    def _failed_gates(self, claim: Claim) -> str:
        for name in claim.gates:
            if name not in self.gated:
                raise InputError(f"{claim.id} needs the gate {name!r}; measure it first: chapter.gate({name!r}, ...).")
        failed = [self.gated[name] for name in claim.gates if not self.gated[name]["passed"]]
        return "; ".join(f"{gate['says']} {gate_reason(gate)}" for gate in failed)

    def verdicts(self) -> Shown:
        """Every claim of the chapter with the paper's value, ours with its interval, and the verdict before and after
        Holm's correction for the number of claims that were judged."""
        corrected = holm_verdicts([m.to_dict() for m in self.measures.values()])
        rows, text = [], []
        for claim in self.claims.values():
            m = self.measures.get(claim.id)
            after = escape(corrected[m.id]) if m and m.verdict in JUDGED else ""
            rows.append([*_measure_row(m), after] if m else [*_claim_row(claim), "–", "not measured", ""])
            text.append(repr(m) if m else f"{claim.id}: not measured")
        return Shown(display.html_table(["claim", "paper", "measured", "verdict", "after Holm"], rows), "\n".join(text))


def open_chapter(chapter: str, preset: str = "cpu") -> ChapterClaims:
    """The claims of a chapter, by its id ("04") or slug ("04_cmg"), from `notebooks/claims/`.

    Raises InputError, which names the chapters, where there is no such claims file.

    >>> chapter = open_chapter("04_cmg")
    >>> chapter.chapter, list(chapter.claims)[:2], list(chapter.gates)
    ('04', ['04.C1', '04.C2'], ['knows', 'headroom', 'sees', 'tower'])
    """
    folder = paths.notebooks() / "claims"
    found = sorted(folder.glob(f"{chapter}.yaml")) or sorted(folder.glob(f"{chapter}_*.yaml"))
    if len(found) != 1:
        known = ", ".join(p.stem for p in sorted(folder.glob("*.yaml"))) or "none"
        raise InputError(f"{len(found)} claims files for chapter {chapter!r}; there are: {known}.")
    read = load(found[0])
    return ChapterClaims(read.chapter, read.paper, read.claims, read.gates, preset)


# --- from values to verdicts ------------------------------------------------------------------------------------------


def _kept(array: np.ndarray, shared_items: bool) -> dict[str, Any]:
    """What of the values is kept, so that the interval can be computed again from it."""
    point, rows = (array, None) if array.ndim == 1 else (array[0], array[1:])
    kept: dict[str, Any] = {"values": tuple(point.tolist()), "n_seeds": len(point)}
    kept["n_replicates"] = 0 if rows is None else len(rows)
    if rows is not None and shared_items:
        kept["replicates"] = rows.round(6).tolist()
    elif rows is not None:
        kept["item_se"] = tuple(rows.std(axis=0).tolist())
    return kept


def _checked_values(id: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{id} was given {type(values).__name__}; it takes numbers of shape (seed,) or (1+replicate, seed)."
        ) from None
    if array.ndim not in (1, 2) or array.size == 0 or (array.ndim == 2 and len(array) < 2):
        raise InputError(f"{id} was given shape {array.shape}; it takes (seed,) or (1+replicate, seed), neither empty.")
    if not np.isfinite(array).all():
        raise InputError(f"{id} was given {int((~np.isfinite(array)).sum())} values that are not finite (nan or inf).")
    return array


# --- how they look ----------------------------------------------------------------------------------------------------


def _execution_count() -> int:
    """Which cell of a notebook is running; 0 outside one."""
    ipython = sys.modules.get("IPython")  # a notebook has loaded it
    shell = ipython.get_ipython() if ipython else None
    return shell.execution_count if shell else 0


def _publish(data: dict[str, Any]) -> None:
    if _execution_count():
        from IPython.display import publish_display_data

        publish_display_data(data)


def _wanted(claim: Claim) -> str:
    if claim.reported:
        return "shown, not judged"
    return "shown, not counted" if claim.by_construction else criterion(claim)


def _claim_row(claim: Claim | Measure) -> list[str]:
    says = f"<b>{escape(claim.id)}</b> {escape(claim.says)}{muted(claim.metric)}"
    return [says, f"{number(claim.paper)}{muted(claim.where)}"]


def _interval(m: Measure) -> str:
    return "" if m.low is None else f" [{number(m.low)}, {number(m.high)}]"


def _measure_row(m: Measure) -> list[str]:
    unit = f"{m.unit}, {count(m.n_seeds, m.per)}; wanted {criterion(m)}"
    told = muted(remedy(m.to_dict())) if m.verdict == UNDECIDED else ""
    measured = f'<span style="white-space:nowrap"><b>{number(m.value)}</b>{_interval(m)}</span>{strip(m)}{muted(unit)}'
    return [*_claim_row(m), "–" if m.value is None else measured, badge(m.verdict) + muted(m.why) + told]
