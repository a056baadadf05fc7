"""What a page carries of the runs that it shows: one JSON element with records, measures and hashes.

    <script type="application/json" id="vlws-record">{"schema": 1, "kind": "run", "runs": [...], ...}</script>

Its `table` is the hash of the tables of figures as they are shown, `page` that of all of the page but this element,
`sha256` that of the element's own value. A page that was edited has another hash; `vlws.lab.verify` says where. Hashes
are no signature: who makes all of them again is found by the run's folder, or by the published result, and not by the
page alone.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from vlws import paths
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab import evidence, records
from vlws.lab.chapters import chapter

Evidence = dict[str, Any]  # {run, measures, gates, arms, results, sha256: {file: hash}, data: {file: hash} | None}

SCHEMA = 1
ELEMENT = re.compile(r'<script type="application/json" id="vlws-record">(.*?)</script>\n?', re.DOTALL)
TABLE = re.compile(r'<table class="(verdicts|verdicts own|values|beside)">(.*?)</table>', re.DOTALL)
SLUG = re.compile(r"[^/\\*?\[\]\0.][^/\\*?\[\]\0]*")  # the name of a notebook; it leads nowhere else, and is no pattern
NOT_SHARED = ("folder", "host", "pid", "pid_started", "skipped")  # fields of a record that say where, not what
KINDS = ("run", "result", "notebook", "comparison")
Table = list[list[list[str]]]  # rows of cells of texts


# --- what is known of a run -------------------------------------------------------------------------------------------


def of_run(record: Mapping[str, Any]) -> Evidence:
    """What a run's folder holds: its record, what it measured, the hashes of its files."""
    folder = Path(record["folder"])
    kept = {file.removesuffix(".json"): records.kept(record, file) for file in records.KEPT}
    files = [folder / file for file in (*records.KEPT, "notebook.ipynb")]
    hashes = {file.name: sha256(file.read_bytes()) for file in files if file.is_file()}
    run = {name: value for name, value in record.items() if name not in NOT_SHARED}
    return {"run": run} | kept | {"sha256": hashes, "data": _data(record)}


def of_result(result: Mapping[str, Any]) -> Evidence:
    """What a published result holds (`evidence.published`), as `of_run` gives it; its notebook is not kept."""
    arms = [dict(sorted({**grid, "code": result["code"].get(grid["name"])}.items())) for grid in result["arms"]]
    kept = {"measures": result["measures"], "gates": result["gates"], "arms": arms}
    hashes = {f"{name}.json": sha256(as_file(value)) for name, value in kept.items()}
    run = dict(result["run"])
    return {"run": run} | kept | {"results": [], "sha256": hashes, "data": _data(run)}


def of_notebook(path: Path, executed: Mapping[str, Any]) -> Evidence:
    """What the outputs of a notebook carry that no run on record made, such as a committed one."""
    about = executed.get("metadata", {}).get("vlws", {})
    run = {"run_id": None, "slug": path.stem, "chapter": path.stem[:2], "title": about.get("title", "")}
    run |= {"preset": "cpu", "status": "ok", "params": {}, "overrides": []}
    kept = {file.removesuffix(".json"): records.collect(executed, *kind) for file, kind in records.KEPT.items()}
    hashes = {f"{name}.json": sha256(as_file(value)) for name, value in kept.items()}
    return {"run": run} | kept | {"sha256": hashes | {"notebook.ipynb": sha256(path.read_bytes())}, "data": None}


def _data(record: Mapping[str, Any]) -> dict[str, str] | None:
    """Hashes of the shipped files that a run read; None where it is stale, since theirs are not known then."""
    known = records.is_record(record) and not records.is_stale(record)
    return records.data_hashes(chapter(record["slug"])) if known else None


def as_file(value: Any) -> bytes:
    """A value as `files.write_json` writes it."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- into a page and out of it ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sealed:
    """A page as it was read: what it carries, its tables, and which hashes fit."""

    kind: str
    runs: list[Evidence]
    tables: dict[str, Table]
    whole: bool  # the text of the page is as it was written
    table: bool  # so are its tables of figures
    record: bool  # so is what it carries


def seal(page: str, kind: str, runs: Sequence[Evidence]) -> str:
    """The page with what it shows as data, before the end of its body.

    kind: run, result, notebook or comparison. runs: of each run what `of_run`, `of_result` or `of_notebook` gives.
    """
    carried = {"schema": SCHEMA, "kind": kind, "runs": list(runs)}
    carried |= {"table": sha256(_as_bytes(tables(page))), "page": sha256(page.encode())}
    carried |= {"sha256": sha256(_as_bytes(carried))}
    text = _as_bytes(carried).decode().replace("<", "\\u003c")  # so that nothing within ends the element
    before, end, after = page.rpartition("</body>")
    return f'{before}<script type="application/json" id="vlws-record">{text}</script>\n{end}{after}'


def unseal(name: str, data: bytes) -> Sealed:
    """What a page carries; InputError where it is no HTML, or carries no record that this version can read.

    name: of the page, for the error.
    """
    try:
        page = data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{name} is no HTML page: it holds bytes that are no text.") from None
    if not re.search(r"<html[\s>]", page[:2000], re.IGNORECASE):
        raise InputError(f"{name} is no HTML page: it has no <html> element.")
    found = ELEMENT.findall(page)
    if len(found) != 1:
        raise InputError(
            f"{name} carries {len(found)} records of a run; a page that `vlws report` or a run has written carries one."
        )
    try:
        carried = json.loads(found[0])
    except (ValueError, RecursionError):
        raise InputError(f"the record that {name} carries is no JSON.") from None
    if not isinstance(carried, dict) or carried.get("schema") != SCHEMA:
        given = carried.get("schema") if isinstance(carried, dict) else None
        raise InputError(f"the record that {name} carries has schema {given!r}; this version reads {SCHEMA}.")
    runs = carried.get("runs")
    if carried.get("kind") not in KINDS or not isinstance(runs, list) or not all(map(is_evidence, runs)):
        raise InputError(f"the record that {name} carries lacks a part; it needs kind, and runs with their measures.")
    shown = tables(page)
    return Sealed(
        kind=carried["kind"],
        runs=runs,
        tables=shown,
        whole=sha256(ELEMENT.sub("", page).encode()) == carried.get("page"),
        table=sha256(_as_bytes(shown)) == carried.get("table"),
        record=sha256(_as_bytes({k: v for k, v in carried.items() if k != "sha256"})) == carried.get("sha256"),
    )


def is_evidence(value: Any) -> bool:
    """Whether a value has the parts of `of_run`, each of its kind."""
    if not isinstance(value, dict) or not all(isinstance(value.get(part), dict) for part in ("run", "sha256")):
        return False
    slug = value["run"].get("slug")
    if not isinstance(slug, str) or not SLUG.fullmatch(slug) or not isinstance(value.get("data"), dict | None):
        return False
    lists = {part: value.get(part) for part in ("measures", "gates", "arms", "results")}
    return all(isinstance(some, list) and all(isinstance(one, dict) for one in some) for some in lists.values())


def _as_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# --- the tables of a page ---------------------------------------------------------------------------------------------


def tables(page: str) -> dict[str, Table]:
    """Class of a table of figures -> its rows, as cells, as the texts in them, top to bottom.

    >>> tables('<table class="values"><tr><td><b>0.12</b> <small>AUROC</small></td><td>2</td></tr></table>')
    {'values': [[['0.12', 'AUROC'], ['2']]]}
    """
    found: dict[str, Table] = {}
    for kind, inner in TABLE.findall(page):
        reader = _Cells()
        reader.feed(inner)
        reader.close()
        found.setdefault(kind, []).extend(reader.rows)
    return found


class _Cells(HTMLParser):
    """The texts in the cells of a table's body; drawings have none."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Table = []
        self.inside = {"tbody": 0, "thead": 0, "svg": 0}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self.inside:
            self.inside[tag] += 1
        elif tag == "tr" and not self.inside["thead"]:
            self.rows.append([])
        elif tag in ("td", "th") and self.rows and not self.inside["thead"]:
            self.rows[-1].append([])

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            self.inside[tag] -= 1

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text and not self.inside["thead"] and not self.inside["svg"] and self.rows and self.rows[-1]:
            self.rows[-1][-1].append(text)


# --- where a run lies -------------------------------------------------------------------------------------------------


def result_file(slug: str, preset: str) -> Path:
    """Where a published result lies."""
    return paths.reports() / "results" / slug / f"{preset}.json"


def read_result(path: Path) -> dict[str, Any]:
    """A published result of a file; InputError where it is none."""
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("measures"), list):
        raise InputError(f"{path} is no result that `vlws claims publish` wrote (it has no measures).")
    empty: dict[str, Any] = {"run": {}, "gates": [], "arms": [], "code": {}}
    result = empty | found
    run = {"slug": path.parent.name, "chapter": path.parent.name[:2], "preset": path.stem, "run_id": None}
    result["run"] = run | result["run"]
    if not is_evidence(of_result(result)):
        raise InputError(f"{path} is no result that `vlws claims publish` wrote (a part of it has another form).")
    return result


def of(record: Mapping[str, Any] | None, path: Path, executed: Mapping[str, Any]) -> Evidence:
    """`of_run` where a run executed a notebook, else `of_notebook`."""
    return of_run(record) if record else of_notebook(path, executed)


def of_found(record: Mapping[str, Any]) -> Evidence:
    """`of_run`, `of_result` or `of_notebook` of what `compare.find` gives for a name."""
    if "folder" in record:
        return of_run(record)
    for result in evidence.published(record["slug"]):
        if result["run"].get("run_id") == record["run_id"]:
            return of_result(result)
    path = chapter(record["slug"]).path
    return of_notebook(path, read_json(path))
