"""Where a claim's figure comes from: claim, measure, arms, cells, and the code, data and pins that they were made with.

Which arms those are is told as far as it is known (`vlws.lab.arms`); where it is not, the graph says so.
"""

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlws.display import count, escape
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import checks, evidence, records, seal
from vlws.lab.arms import arms_of
from vlws.lab.chapters import chapter
from vlws.lab.describe import clip, sha
from vlws.lab.evidence import Row
from vlws.lab.seal import Evidence
from vlws.lab.terminal import with_interval

UNKNOWN = "which arms it was computed from is not recorded: the notebook computes it from values of its own"


def graph(one: Evidence, id: str, cached: bool = True) -> dict[str, Any]:
    """The graph of one claim: nodes {id, kind, label, ...}, edges (from, to), and what is not recorded.

    kinds: claim, measure, arm (experiment, arm, metrics, how), cells (seeds, and with `cached` how many of them the
    cache has), code, data, pins. An edge leads from what is said to what it rests on.
    """
    measure = next(m for m in one["measures"] if m["id"] == id)
    run = one["run"]
    nodes = [
        {"id": "claim", "kind": "claim", "label": f"{id} {measure['says']}", "where": measure.get("where")},
        {"id": "measure", "kind": "measure", "label": measure["metric"], "run_id": run.get("run_id")}
        | {name: measure.get(name) for name in ("value", "low", "high", "verdict", "n_seeds", "per")},
    ]
    edges = [("claim", "measure")]
    found = arms_of(measure, one["arms"])
    for place, arm in enumerate(found):
        nodes += [{"id": f"arm {place}", "kind": "arm", "label": arm["arm"]} | arm, _cells(place, arm, cached)]
        edges += [("measure", f"arm {place}"), (f"arm {place}", f"cells {place}")]
    nodes += _made_of(one, {arm["experiment"] for arm in found})
    last = [f"cells {place}" for place in range(len(found))] or ["measure"]
    edges += [(node, kind) for node in last for kind in ("code", "data", "pins")]
    return {"claim": id, "nodes": nodes, "edges": edges, "not_recorded": [] if found else [UNKNOWN]}


def _cells(place: int, arm: Mapping[str, Any], cached: bool) -> dict[str, Any]:
    seeds = arm["seeds"]
    node = {"id": f"cells {place}", "kind": "cells", "label": count(len(seeds), "cell"), "seeds": seeds}
    if not cached:
        return node
    kept = checks.cells_of(arm["experiment"])
    files = {seed: checks.nearest_cell(kept.get((arm["arm"], seed), ()), of) for seed, of in arm["values"].items()}
    return node | {"cached": {str(seed): file.name for seed, file in files.items() if file}}


def _made_of(one: Evidence, experiments: Iterable[str]) -> list[dict[str, Any]]:
    """Code, data and pins, as far as they are kept."""
    run, env = one["run"], one["run"].get("env") or {}
    hashes = {grid["name"]: grid.get("code") for grid in one["arms"] if grid["name"] in experiments}
    versions = {name: env[name] for name in ("python", "torch", "transformers", "pykeops") if env.get(name)}
    data = one["data"]
    return [
        {"id": "code", "kind": "code", "label": sha(run) or "not kept", "key": run.get("key"), "experiments": hashes},
        {"id": "data", "kind": "data", "label": count(len(data), "file") if data else "not kept", "files": data},
        {"id": "pins", "kind": "pins", "label": env.get("constraints") or "not kept", "versions": versions},
    ]


# --- of the claim that stands -----------------------------------------------------------------------------------------


def of_claim(id: str) -> dict[str, Any]:
    """The graph of a claim, of the measure that stands of it (`evidence.standing`); InputError where there is none."""
    rows = evidence.standing()
    row = rows.get(id)
    if row is None:
        mine = [name for name in rows if name.startswith(id[:3])] or list(rows)
        raise InputError(f"no claim {id!r}; there are {', '.join(mine[:40])}.")
    if not row.kind:
        raise InputError(f"{id} has not been measured; vlws run {row.chapter} measures it.")
    return graph(_evidence_of(row), id) | {"source": row.kind, "preset": row.preset, "stale": row.stale}


def _evidence_of(row: Row) -> Evidence:
    if row.kind == "run":
        return next(seal.of_run(record) for record in records.records(row.slug) if record["run_id"] == row.source)
    if row.kind == "results":
        published = evidence.published(row.slug)
        return next(seal.of_result(r) for r in published if r["run"].get("preset") == row.preset)
    path: Path = chapter(row.slug).path
    return seal.of_notebook(path, read_json(path))


def as_text(found: Mapping[str, Any]) -> str:
    """The graph as an indented list."""
    depth = {"claim": 0, "measure": 1, "arm": 2, "cells": 3, "code": 2, "data": 2, "pins": 2}
    lines = [f"{'  ' * depth[node['kind']]}{_said(node)}" for node in found["nodes"]]
    return "\n".join([*lines, *(f"    {why}" for why in found["not_recorded"])])


def _said(node: Mapping[str, Any]) -> str:
    kind, label = node["kind"], node["label"]
    if kind == "measure":
        return f"measure {label}: {_came_out(node)}"
    if kind == "arm":
        return f"arm {label} of {node['experiment']} ({_how(node)})"
    if kind == "cells":
        cached = f", {len(node['cached'])} in the cache" if "cached" in node else ""
        return f"{label}, seeds {_seeds(node['seeds'])}{cached}"
    more = [f"key {node['key'][:12]}"] if node.get("key") else _versions(node)
    return ", ".join([f"{kind} {label}", *more])


def _came_out(node: Mapping[str, Any]) -> str:
    return f"{with_interval(node)}, {node['verdict']}, {count(node['n_seeds'], node['per'] or 'seed')}"


def _versions(node: Mapping[str, Any]) -> list[str]:
    return [f"{name} {version}" for name, version in node.get("versions", {}).items()]


def _how(node: Mapping[str, Any]) -> str:
    return f"its {', '.join(node['metrics'])}" if node["how"] == "equal" else "named in metric"


def _seeds(seeds: Sequence[int]) -> str:
    whole = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


# --- drawn ------------------------------------------------------------------------------------------------------------

WIDTH, GAP, LINE, PAD, STEP = 372, 8, 14, 6, 16  # px: a page on a telephone of 420 px has room for it
LETTER = 6.6  # px of a letter of 11 px, in a wide font
MOST = 4  # lines of a box
SIDE_BY_SIDE = 3  # arms in a row; more are counted in the last box
BOLD = ' font-weight="650"'

Box = list[str]  # its lines, of which the first says what it is


def draw(found: Mapping[str, Any]) -> str:
    """The graph as SVG, from the claim down to what it rests on; it takes the page's colours."""
    rows = _rows(found)
    parts, y = [], 1.0
    for place, row in enumerate(rows):
        height = PAD * 2 + LINE * max(map(len, row))
        parts += [_box(k, len(row), y, height, lines) for k, lines in enumerate(row)]
        y += height
        if place + 1 < len(rows):
            below = rows[place + 1]
            straight = below[0][0].startswith("cells")
            every = itertools.product(range(len(row)), range(len(below)))
            pairs = ((k, k) for k in range(len(row))) if straight else every
            parts += [_line(_middle(a, len(row)), _middle(b, len(below)), y) for a, b in pairs]
            y += STEP
    label = escape("; ".join(_said(node) for node in found["nodes"]))
    size = f'viewBox="0 0 {WIDTH} {y + 1:.0f}" width="{WIDTH}" height="{y + 1:.0f}" style="height:auto"'
    return f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _rows(found: Mapping[str, Any]) -> list[list[Box]]:
    """The boxes, row by row."""
    nodes = {node["id"]: node for node in found["nodes"]}
    arms = [node for node in found["nodes"] if node["kind"] == "arm"]
    shown = arms if len(arms) <= SIDE_BY_SIDE else arms[: SIDE_BY_SIDE - 1]
    rest = arms[len(shown) :]
    of_arms = [["arm", arm["label"], arm["experiment"], _how(arm)] for arm in shown]
    of_cells = [["cells", str(len(arm["seeds"])), f"seeds {_seeds(arm['seeds'])}"] for arm in shown]
    if rest:
        of_arms.append([f"{len(rest)} arms more", *(arm["label"] for arm in rest[:3])])
        of_cells.append(["cells", str(sum(len(arm["seeds"]) for arm in rest))])
    unknown = [["arms", "not recorded: the notebook computes it from other values"]]
    claim, measure = nodes["claim"], nodes["measure"]
    head = [[[f"claim {found['claim']}", *_wrapped(claim["label"].removeprefix(found["claim"]).strip(), MOST - 1)]]]
    head += [[["measure", *_wrapped(measure["label"], MOST - 2), _came_out(measure)]]]
    more = [_versions(nodes["pins"])[1:3], [f"key {nodes['code']['key'][:8]}"] if nodes["code"]["key"] else []]
    last = [["code", nodes["code"]["label"], *more[1]], ["data", nodes["data"]["label"]]]
    return [*head, *([of_arms, of_cells] if arms else [unknown]), [*last, ["pins", nodes["pins"]["label"], *more[0]]]]


def _wrapped(text: str, lines: int) -> list[str]:
    return textwrap.wrap(text, int((WIDTH - 2 * PAD) / LETTER), max_lines=lines, placeholder=" …") or [""]


def _box(place: int, of: int, y: float, height: float, lines: Box) -> str:
    """One of several boxes in a row: the first line bold, each cut to the box, all of them whole when pointed at."""
    width = (WIDTH - 2 - GAP * (of - 1)) / of
    x = 1 + place * (width + GAP)
    texts = "".join(
        f'<text x="{x + PAD:.1f}" y="{y + PAD + LINE * (k + 1) - 4:.1f}" font-size="11" fill="currentColor"'
        f"{BOLD * (k == 0)}>{escape(clip(line, int((width - 2 * PAD) / LETTER)))}</text>"
        for k, line in enumerate(lines)
    )
    frame = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4" fill="none" '
    return f'<g><title>{escape("; ".join(lines))}</title>{frame}stroke="currentColor" opacity=".45"/>{texts}</g>'


def _middle(place: int, of: int) -> float:
    return WIDTH * (2 * place + 1) / (2 * of)


def _line(above: float, below: float, y: float) -> str:
    return f'<path d="M{above:.1f} {y:.1f}L{below:.1f} {y + STEP:.1f}" stroke="currentColor" opacity=".45"/>'


def figures(one: Evidence) -> str:
    """The graphs of all measured claims of a run, folded, for its page; nothing where none was measured."""
    drawn = [
        f"<figure><figcaption>{escape(m['id'])}</figcaption>{draw(graph(one, m['id'], cached=False))}</figure>"
        for m in one["measures"]
    ]
    if not drawn:
        return ""
    return (
        '<details class="overview"><summary>Where each figure comes from</summary>\n<div class="forests">'
        + "\n".join(drawn)
        + "</div></details>"
    )
