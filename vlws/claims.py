"""What a paper claims, what a chapter measured, and the verdict, which is computed and never typed.

    chapter = claims.open_chapter("04", preset=preset)
    chapter.claimed()                      # the table of what is claimed
    chapter.measure("04.C2", effects)      # "seed" or "1+replicate seed"; shown, and kept in the run's measures.json
    chapter.verdicts()                     # paper, measured [low, high], verdict

A claims file, `notebooks/claims/NN_slug.yaml`, holds the paper and a list of claims; see `Claim` for their fields.
"""

import html
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlws import paths
from vlws.errors import InputError

MIME = "application/vnd.vlws.measure+json"
SUPPORTED, OPPOSED, UNDECIDED, NOT_AT_THIS_SCALE = "supported", "opposed", "undecided", "not at this scale"
VERDICTS = {  # verdict -> (sign, background); white text on each has a contrast above 4.5
    SUPPORTED: ("✓", "#1a7f4b"),
    OPPOSED: ("✗", "#b3261e"),
    UNDECIDED: ("?", "#8a5a00"),
    NOT_AT_THIS_SCALE: ("–", "#5f6368"),
}
DIRECTIONS = ("greater", "less", "within")
RESAMPLES = 4000
Z = 1.959963984540054  # 97.5 % quantile of the normal


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, as its YAML gives it.

    `direction` and `threshold` say what the interval is held against: all of it above `threshold` (greater), below it
    (less), or inside `threshold` ± `tolerance` (within). `paper` is the paper's own value, where it gives one. `per`
    names what there is a value for, and what is resampled, where that is not a seed.
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


@dataclass(frozen=True)
class Measure:
    """A claim with what was measured: point estimate, 95 % interval, verdict and its reason.

    A notebook shows it as a row; its plain text holds no number, so that a comparison of outputs does not hang on
    rounding. `low` and `high` are None where one seed, without replicates, gives no interval; `value` too where nothing
    was measured, and `why` then says why.
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
    shown_by: int = field(default=0, compare=False)  # the cell that measured has shown it already

    def to_dict(self) -> dict[str, Any]:
        """The measure as it stands in measures.json."""
        return {name: value for name, value in asdict(self).items() if name != "shown_by"}

    def show(self) -> None:
        """Display the measure in a notebook; elsewhere nothing happens."""
        if _execution_count():
            from IPython.display import publish_display_data

            publish_display_data({MIME: self.to_dict(), "text/html": self._repr_html_(), "text/plain": repr(self)})

    def _ipython_display_(self) -> None:
        if _execution_count() != self.shown_by:  # else: the last line of the cell that measured
            self.show()

    def __repr__(self) -> str:
        return f"{self.id}: {self.metric}"

    def _repr_html_(self) -> str:
        return _table(["claim", "paper", "measured", "verdict"], [_measure_row(self)])


@dataclass(frozen=True)
class Table:
    """An HTML table with a plain text of its own (the ids, no numbers)."""

    html: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


@dataclass
class Chapter:
    """The claims of one chapter and what has been measured of them so far."""

    chapter: str
    paper: dict[str, str]
    claims: dict[str, Claim]
    preset: str = "cpu"
    measures: dict[str, Measure] = field(default_factory=dict)

    def claimed(self) -> Table:
        """What is claimed, where, and what would support it; one row a claim."""
        rows = [
            [
                f"<b>{_text(c.id)}</b>",
                f"{_text(c.says)}{_muted(c.where)}",
                _text(c.metric),
                "–" if c.paper is None else f"{number(c.paper)}{_muted(c.unit)}",
                _text(criterion(c)),
            ]
            for c in self.claims.values()
        ]
        text = "\n".join(f"{c.id}: {c.says}" for c in self.claims.values())
        return Table(_table(["", "claim", "metric", "paper", "supported if the interval is"], rows), text)

    def measure(self, id: str, values: Any, *, unmet: str = "") -> Measure:
        """Hold a claim against what was measured, show it, and remember it.

        `values`: "seed", the paired effect of each seed; or "1+replicate seed", row 0 the point estimates and the
        others item-level bootstrap replicates (see `replicates`). `unmet`: in words, a need of the claim that this
        run does not meet; the verdict is then "not at this scale", and `values` may be None where there are none.
        Raises InputError for an id that the claims file does not hold, for values that are not finite, and for None
        without a word why.
        """
        claim = self.claims.get(id)
        if claim is None:
            raise InputError(f"no claim {id!r} in chapter {self.chapter}; its claims are {', '.join(self.claims)}.")
        if values is None and unmet:
            value, low, high, seeds, replicas = None, None, None, 0, 0
        else:
            array = _checked_values(id, values)
            value, low, high = interval(array)
            seeds, replicas = array.shape[-1], (array.shape[0] - 1 if array.ndim == 2 else 0)
        word, why = verdict(claim, low, high, seeds, unmet)
        stated = {name: getattr(claim, name) for name in Measure.__dataclass_fields__ if hasattr(claim, name)}
        stated.update(value=value, low=low, high=high, n_seeds=seeds, n_replicates=replicas)
        stated.update(verdict=word, why=why, preset=self.preset)
        result = self.measures[id] = Measure(**stated, shown_by=_execution_count())
        result.show()
        return result

    def verdicts(self) -> Table:
        """Every claim of the chapter with the paper's value, ours with its interval, and the verdict."""
        rows, text = [], []
        for claim in self.claims.values():
            measured = self.measures.get(claim.id)
            rows.append(_measure_row(measured) if measured else [*_claim_row(claim), "–", "not measured"])
            text.append(repr(measured) if measured else f"{claim.id}: not measured")
        return Table(_table(["claim", "paper", "measured", "verdict"], rows), "\n".join(text))


# --- the statistics ---------------------------------------------------------------------------------------------------


def replicates(
    statistic: Callable[..., float],
    *arrays: Any,
    n: int = 1000,
    seed: int = 0,
    strata: Any = None,
) -> np.ndarray:
    """Item-level bootstrap of a statistic: "1+n", the value itself and n values on resampled items.

    `statistic(*arrays) -> float`; each array is "item ..." and all are resampled with the same indices, which depend
    on `seed`, `n`, `strata` and the number of items alone: arms scored on the same items with the same `seed` are
    paired, and `replicates(f, y, a) - replicates(f, y, b)` are replicates of the paired difference. `strata` ("item",
    such as the labels of an AUROC) keeps the number of items of each stratum. Raises InputError for arrays of unequal
    length and for a statistic that is not finite on some resample.
    """
    columns = [np.asarray(a) for a in arrays]
    if not columns or any(c.ndim == 0 or len(c) != len(columns[0]) for c in columns) or len(columns[0]) == 0:
        raise InputError(
            f"replicates needs arrays of one common, positive length, not shapes {[c.shape for c in columns]}."
        )
    if n < 1:
        raise InputError(f"replicates needs n >= 1, not {n}.")
    items = len(columns[0])
    if strata is None:
        groups = [np.arange(items)]
    else:
        strata = np.asarray(strata)
        if strata.shape != (items,):
            raise InputError(f"strata must have shape ({items},), one entry an item, not {strata.shape}.")
        groups = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    rng = np.random.default_rng(seed)
    values = np.empty(1 + n)
    values[0] = statistic(*columns)
    for r in range(n):
        chosen = np.concatenate([g[rng.integers(len(g), size=len(g))] for g in groups])
        values[1 + r] = statistic(*(c[chosen] for c in columns))
    if not np.isfinite(values).all():
        raise InputError(
            f"the statistic is not finite on {int((~np.isfinite(values)).sum())} of {1 + n} resamples; "
            "if it needs items of every class, give the labels as strata."
        )
    return values


def interval(
    values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Point estimate and 95 % bootstrap interval of the mean over seeds.

    `values`: "seed" or "1+replicate seed". Seeds are resampled with replacement; given replicates, each draw also
    takes one replicate, the same for all its seeds (a crossed bootstrap of items and seeds: right where the seeds share
    their test items, a little wide where they do not). A percentile bootstrap over few seeds is far too narrow: its
    deviations over seeds are widened by sqrt(S/(S-1)) t(.975, S-1) / z(.975), which makes it about exact for normal
    data; deviations over items (hundreds of them) need no such help. With one seed the interval is over items alone,
    or absent.
    """
    point, rows = (values, values[None]) if values.ndim == 1 else (values[0], values[1:])
    value, n_seeds = float(point.mean()), len(point)
    rng = np.random.default_rng(seed)
    row = (
        rows[rng.integers(len(rows), size=resamples)] if len(rows) > 1 else np.broadcast_to(rows, (resamples, n_seeds))
    )
    draws = row.mean(axis=1)
    if n_seeds > 1:
        chosen = rng.integers(n_seeds, size=(resamples, n_seeds))
        draws = draws + widening(n_seeds) * (np.take_along_axis(row, chosen, axis=1).mean(axis=1) - draws)
    elif values.ndim == 1:
        return value, None, None
    low, high = np.quantile(draws, [0.025, 0.975])
    return value, float(low), float(high)


def widening(n_seeds: int) -> float:
    """sqrt(S/(S-1)) t(.975, S-1) / z(.975): what a percentile bootstrap over S seeds must be widened by."""
    from scipy.stats import t

    return math.sqrt(n_seeds / (n_seeds - 1)) * float(t.ppf(0.975, n_seeds - 1)) / Z


def verdict(claim: Claim, low: float | None, high: float | None, n_seeds: int, unmet: str = "") -> tuple[str, str]:
    """The verdict and its reason in words.

    "not at this scale" where a need is not met or one seed gives no interval; else the whole interval decides: on the
    claim's side of the threshold (supported), on the other side (opposed), across it (undecided).
    """
    wanted = max(2, claim.needs.get("seeds", 2))
    if unmet:
        return NOT_AT_THIS_SCALE, unmet
    if n_seeds < wanted or low is None or high is None:
        return NOT_AT_THIS_SCALE, f"{count(n_seeds, claim.per)}, the claim needs {wanted}"
    if claim.direction == "within":
        bottom, top = claim.threshold - claim.tolerance, claim.threshold + claim.tolerance
        inside, outside = bottom <= low and high <= top, high < bottom or low > top
    elif claim.direction == "greater":
        inside, outside = low > claim.threshold, high < claim.threshold
    else:
        inside, outside = high < claim.threshold, low > claim.threshold
    word = SUPPORTED if inside else OPPOSED if outside else UNDECIDED
    relation = {SUPPORTED: "is", OPPOSED: "is not", UNDECIDED: "is partly"}[word]
    return word, f"the interval [{number(low)}, {number(high)}] {relation} {criterion(claim)}"


def criterion(claim: Claim | Measure) -> str:
    """What the interval must be, in words: "above 0.05", "below 0.02", "within 0.40 ± 0.03"."""
    if claim.direction == "within":
        return f"within {number(claim.threshold)} ± {number(claim.tolerance)}"
    return f"{'above' if claim.direction == 'greater' else 'below'} {number(claim.threshold)}"


def count(n: int, per: str) -> str:
    """ "1 seed", "5 seeds", "12 rows"."""
    return f"{n} {per}{'s' * (n != 1)}"


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


# --- the claims file --------------------------------------------------------------------------------------------------


def open_chapter(chapter: str, preset: str = "cpu") -> Chapter:
    """The claims of a chapter, by its id ("04") or slug ("04_cmg"), from `notebooks/claims/`."""
    folder = paths.notebooks() / "claims"
    found = sorted(folder.glob(f"{chapter}.yaml")) or sorted(folder.glob(f"{chapter}_*.yaml"))
    if len(found) != 1:
        known = ", ".join(p.stem for p in sorted(folder.glob("*.yaml"))) or "none"
        raise InputError(f"{len(found)} claims files for chapter {chapter!r}; there are: {known}.")
    read = load(found[0])
    read.preset = preset
    return read


def load(path: Path) -> Chapter:
    """Read and check a claims file; every fault is one InputError that names the file and the claim."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path.name} must be a mapping with chapter, paper and claims.")
    _check_fields(path.name, data, required=("chapter", "claims"), optional=("paper",))
    chapter, paper = data["chapter"], data.get("paper") or {}
    if not isinstance(chapter, str) or not path.stem.startswith(chapter):
        raise InputError(
            f'{path.name}: chapter is {chapter!r}; write it quoted and as in the file\'s name, such as "04".'
        )
    if not isinstance(paper, dict):
        raise InputError(f"{path.name}: paper is {paper!r}; it is a mapping with title, authors, venue and url.")
    if paper:
        _check_fields(f"{path.name}: paper", paper, required=("title",), optional=("authors", "venue", "url"))
    if not isinstance(data["claims"], list):
        raise InputError(f"{path.name}: claims must be a list.")
    claims: dict[str, Claim] = {}
    for position, entry in enumerate(data["claims"], start=1):
        claim = _read_claim(path.name, position, entry)
        if not claim.id.startswith(f"{chapter}."):
            raise InputError(f"{path.name}: claim id {claim.id!r} must start with {chapter + '.'!r}.")
        if claim.id in claims:
            raise InputError(f"{path.name}: claim id {claim.id!r} stands twice.")
        claims[claim.id] = claim
    return Chapter(chapter, {k: str(v) for k, v in paper.items()}, claims)


def _read_claim(file: str, position: int, entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise InputError(f"{file}: claim {position} must be a mapping, not {entry!r}.")
    name = f"{file}: claim {entry.get('id', position)}"
    required = ("id", "says", "where", "metric", "unit", "direction", "threshold")
    _check_fields(name, entry, required, optional=("paper", "tolerance", "needs", "per"))
    for key in ("id", "says", "where", "metric", "unit", "direction"):
        if not isinstance(entry[key], str):
            raise InputError(f"{name}: {key} is {entry[key]!r}; it must be text (quote it).")
    if entry["direction"] not in DIRECTIONS:
        raise InputError(f"{name}: direction is {entry['direction']!r}; it is one of {', '.join(DIRECTIONS)}.")
    numbers = {key: _real(name, key, entry.get(key)) for key in ("threshold", "paper", "tolerance")}
    if numbers["threshold"] is None:
        raise InputError(f"{name}: threshold is empty; it must be a number.")
    if (entry["direction"] == "within") != (numbers["tolerance"] is not None and numbers["tolerance"] > 0):
        raise InputError(
            f"{name}: tolerance is {entry.get('tolerance')!r}; direction within needs one above 0, the others none."
        )
    needs = entry.get("needs") or {}
    if (
        not isinstance(needs, dict)
        or set(needs) - {"seeds"}
        or not all(type(v) is int and v > 0 for v in needs.values())
    ):
        raise InputError(f"{name}: needs is {needs!r}; it is a mapping such as {{seeds: 3}}.")
    if not isinstance(entry.get("per", "seed"), str) or not entry.get("per", "seed"):
        raise InputError(f"{name}: per is {entry['per']!r}; it is a word, such as seed.")
    return Claim(**{key: entry[key] for key in required} | numbers, needs=needs, per=entry.get("per", "seed"))


def _check_fields(name: str, given: dict, required: Sequence[str], optional: Iterable[str]) -> None:
    missing = [key for key in required if key not in given]
    if missing:
        raise InputError(f"{name} lacks {', '.join(missing)}.")
    unknown = [str(key) for key in given if key not in {*required, *optional}]
    if unknown:
        raise InputError(
            f"{name} has unknown fields {', '.join(unknown)}; known are {', '.join([*required, *optional])}."
        )


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


# --- how they look ----------------------------------------------------------------------------------------------------


def number(x: float | None) -> str:
    """Three decimals, or three digits where that would say nothing."""
    if x is None:
        return "–"
    return f"{x:.3f}" if x == 0 or 0.01 <= abs(x) < 100 else f"{x:.3g}"


def badge(word: str) -> str:
    """A verdict as a coloured label with a sign and its text: never colour alone."""
    sign, colour = VERDICTS.get(word, ("·", "#5f6368"))
    style = "display:inline-block;padding:.1em .55em;border-radius:.7em;color:#fff;font-weight:600;white-space:nowrap"
    return f'<span style="{style};background:{colour}">{sign} {_text(word)}</span>'


def _execution_count() -> int:
    """Which cell of a notebook is running; 0 outside one."""
    ipython = sys.modules.get("IPython")  # a notebook has loaded it
    shell = ipython.get_ipython() if ipython else None
    return shell.execution_count if shell else 0


def _text(s: str) -> str:
    return html.escape(str(s))


def _muted(s: str) -> str:
    return f'<div style="opacity:.65;font-size:90%">{_text(s)}</div>' if s else ""


def _claim_row(claim: Claim | Measure) -> list[str]:
    says = f"<b>{_text(claim.id)}</b> {_text(claim.says)}{_muted(claim.metric)}"
    paper = f"{number(claim.paper)}{_muted(claim.where)}"
    return [says, paper]


def _measure_row(m: Measure) -> list[str]:
    band = f" [{number(m.low)}, {number(m.high)}]" if m.low is not None else ""
    unit = f"{m.unit}, {count(m.n_seeds, m.per)}"
    measured = f'<span style="white-space:nowrap"><b>{number(m.value)}</b>{band}</span>{strip(m)}{_muted(unit)}'
    measured = "–" if m.value is None else measured
    return [*_claim_row(m), measured, badge(m.verdict) + _muted(m.why)]


def strip(m: Measure, width: int = 150, height: int = 16) -> str:
    """The interval as a line with its point, against the threshold (dashed) or the band of tolerance (grey)."""
    if m.low is None or m.high is None:
        return ""
    band = m.tolerance or 0.0
    marks = [m.low, m.high, m.value, m.threshold - band, m.threshold + band]
    span = (max(marks) - min(marks)) or 1.0
    start, y = min(marks) - 0.08 * span, height / 2
    low, high, value, left, right = (width * (v - start) / (1.16 * span) for v in marks)
    goal = (
        f'<rect x="{left:.1f}" y="0" width="{right - left:.1f}" height="{height}" fill="currentColor" opacity=".15"/>'
        if band
        else f'<path d="M{left:.1f} 0V{height}" stroke="currentColor" stroke-dasharray="2 2" opacity=".7"/>'
    )
    colour = VERDICTS[m.verdict][1]
    label = f"{number(m.value)} [{number(m.low)}, {number(m.high)}] against {criterion(m)}"
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{_text(label)}" '
        f'style="display:block;margin:.15em 0">{goal}'
        f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{value:.1f}" cy="{y}" r="4" fill="{colour}" stroke="currentColor"/></svg>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cell = "text-align:left;vertical-align:top;padding:.35em .7em;border-bottom:1px solid rgba(128,128,128,.35)"
    top = "".join(f'<th scope="col" style="{cell}">{_text(h)}</th>' for h in head)
    body = "".join("<tr>" + "".join(f'<td style="{cell}">{c}</td>' for c in row) + "</tr>" for row in rows)
    style = "border-collapse:collapse;font-size:13px;line-height:1.4;max-width:70em;background:none;color:inherit"
    return f'<table style="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
