"""The report: chapters as self-contained pages, an index with the table of claims, and RESULTS.md.

Every page is one file that loads nothing: pictures are embedded; styles, scripts and the fonts of the formulas stand
inside. Links between pages are relative, so the folder can be moved, zipped or printed.
"""

import base64
import csv
import html
import io
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from nbconvert.exporters.html import HTMLExporter
from nbconvert.filters.ansi import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from vlws import claims, paths
from vlws.errors import InputError
from vlws.files import read_json, write_atomically
from vlws.lab import runner as runs
from vlws.lab.chapters import Chapter, chapters

NOT_MEASURED = "not measured"
COMMITTED = "committed notebook"
SCALES = ("cpu", "gpu", "full")  # from the smallest to the largest: the headline counts take the largest
FINISHED = ("ok", "failed", "dead", "timeout")  # the states of a run that has something to show
TEMPLATE = Path(__file__).resolve().parents[2] / "reports" / "template"
PROGRESS = re.compile(r"\d+%\||\d+it \[|\dit/s|s/it\]|TqdmWarning: |from \.autonotebook import")  # a bar of tqdm's


@dataclass
class Row:
    """One line of the table of claims: a claim, and one measure of it or none."""

    id: str
    chapter: str
    slug: str
    says: str
    where: str
    metric: str
    unit: str
    paper: float | None
    direction: str
    threshold: float
    tolerance: float | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    per: str = "seed"
    verdict: str = NOT_MEASURED
    why: str = ""
    preset: str = ""
    source: str = ""  # which run, or what stands in for one
    hardware: str = ""
    sha: str = ""
    when: str = ""  # ISO 8601, UTC
    stale: bool | None = None  # made with other code or data than today's; None where that cannot be known
    anchor: bool = False  # measured on the chapter's page


@dataclass
class Shown:
    """A chapter with the notebook that its page shows, the run that made it (or none), and the rows of its claims."""

    chapter: Chapter
    notebook: NotebookNode
    record: dict[str, Any] | None
    rows: list[Row] = field(default_factory=list)

    @property
    def failed(self) -> str:
        return _failure(self.record) if self.record else ""


# --- a page of a notebook ---------------------------------------------------------------------------------------------


def export(notebook: Path, html: Path) -> Path:
    """Write an executed notebook as one self-contained page and return its path.

    Code is folded and progress bars are gone; where a run.json stands beside the notebook, the page says how it was
    run. Raises InputError where `notebook` is missing or is no notebook.
    """
    notebook, html = Path(notebook), Path(html)
    read = _read_notebook(notebook)
    record = read_json(notebook.parent / "run.json")
    about = read.metadata.get("vlws", {})
    slug = (record or {}).get("slug") or notebook.stem
    rows = [_row(slug, m, record, anchor=True) for m in runs.collect_measures(read)]
    text = _page(read, title=about.get("title", notebook.stem), record=record, rows=rows)
    html.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(html, text.encode())
    return html


def _page(notebook: NotebookNode, *, title: str, record: dict | None, rows: list[Row], **links: str) -> str:
    heading, quiet = _without_noise(notebook)
    top = _render(
        "top.html.j2",
        title=heading or html.escape(title),
        facts=_facts(record),
        failed=_failure(record) if record else "",
        error_here=any(o.output_type == "error" for c in quiet.cells for o in c.get("outputs", [])),
        rows=rows,
        **{"home": "", "previous": "", "next": ""} | links,
    )
    page = {"title": _plain(heading) or title, "top": top, "css": _asset("style.css"), "js": _asset("page.js")}
    text, _ = _PageExporter().from_notebook_node(quiet, {"page": page})
    return text.replace("</head>", _katex() + "</head>", 1) if 'class="math' in text else text


class _PageExporter(HTMLExporter):
    """nbconvert's HTML exporter with our template over JupyterLab's, formulas for KaTeX, and a table of contents."""

    def __init__(self):
        super().__init__(template_name="chapter", extra_template_basedirs=[str(TEMPLATE)])
        self.toc: list[tuple[str, str]] = []  # filled while the cells are rendered, read by the template after them
        self.environment.globals["toc"] = self.toc

    def default_filters(self):
        yield from super().default_filters()
        yield "markdown2html", self._markdown
        yield "typeset", lambda source: _formula(source.strip().strip("$"), display=True)
        yield "anchors", _anchors
        yield "code_label", _code_label
        yield "picture_label", lambda cell: html.escape(cell.metadata.get("vlws_alt", "Figure"))

    @jinja2.pass_context
    def _markdown(self, context: jinja2.runtime.Context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(self.toc, escape=False, attachments=attachments)
        return MarkdownWithMath(renderer=renderer).render(source)


class _Renderer(IPythonRenderer):
    """Markdown whose formulas are elements of their own, and whose sections are listed."""

    def __init__(self, toc: list[tuple[str, str]], **options: Any):
        super().__init__(**options)
        self.toc = toc

    def heading(self, text: str, level: int, **attributes: Any) -> str:
        rendered = super().heading(text, level, **attributes)
        if level == 2 and (anchor := re.search(r'id="([^"]+)"', rendered)):
            self.toc.append((text, anchor[1]))
        return rendered

    def block_math(self, body: str) -> str:
        return _formula(body, display=True)

    def inline_math(self, body: str) -> str:
        return _formula(body)

    def latex_environment(self, name: str, body: str) -> str:
        return _formula(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    def block_mermaidjs(self, code: str) -> str:
        return f"<pre>{html.escape(code)}</pre>"


def _formula(latex: str, display: bool = False) -> str:
    """LaTeX as an element that KaTeX typesets when the page opens; without scripts it stands as it was written."""
    tag, kind = ("div", "math display") if display else ("span", "math")
    return f'<{tag} class="{kind}">{html.escape(latex.strip())}</{tag}>'


def _katex() -> str:
    """KaTeX with its fonts inside, for the pages that hold formulas."""

    def embedded(match: re.Match[str]) -> str:
        data = base64.b64encode((TEMPLATE / "katex" / match[1]).read_bytes()).decode()
        return f'src:url(data:font/woff2;base64,{data}) format("woff2")'

    style = re.sub(r"src:url\((fonts/[\w-]+\.woff2)\)[^}]*(?=\})", embedded, _asset("katex/katex.min.css"))
    return f"<style>{style}</style><script>{_asset('katex/katex.min.js')}</script>"


def _without_noise(notebook: NotebookNode) -> tuple[str, NotebookNode]:
    """The title (the first heading), and a copy of the notebook without it and without what only a live kernel needs.

    Gone are widgets and their state, progress bars, and papermill's own error banners.
    """
    quiet = nbformat.from_dict(json.loads(json.dumps(notebook)))
    quiet.metadata.pop("widgets", None)
    quiet.cells = [c for c in quiet.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    title, section = "", ""
    for cell in quiet.cells:
        if cell.cell_type == "markdown":
            if not title and (first := re.match(r"\s*# +(.+?) *(?:\n|$)", cell.source)):
                title, cell.source = first[1], cell.source[first.end() :]
            headings = re.findall(r"^#{1,4} +(.+)$", cell.source, flags=re.M)
            section = headings[-1] if headings else section
        elif cell.cell_type == "code":
            cell.metadata["vlws_alt"] = f"Figure: {section or title}"
            cell.outputs = [kept for output in cell.outputs if (kept := _quiet_output(output))]
    quiet.cells = [cell for cell in quiet.cells if cell.source.strip()]
    return _inline(title), quiet


def _quiet_output(output: NotebookNode) -> NotebookNode | None:
    if output.output_type == "stream" and output.name == "stderr":
        lines = [line.rsplit("\r", 1)[-1] for line in output.text.replace("\r\n", "\n").split("\n")]
        output.text = "\n".join(line for line in lines if line.strip() and not PROGRESS.search(line))
        return output if output.text.strip() else None
    if output.output_type in ("display_data", "execute_result"):
        is_widget = output.data.pop("application/vnd.jupyter.widget-view+json", None) is not None
        if not output.data or (is_widget and set(output.data) <= {"text/plain"}):
            return None
    return output


def _anchors(cell: NotebookNode) -> list[str]:
    """Where links into the page land: `error`, and the id of each claim measured in the cell."""
    outputs = cell.get("outputs", [])
    ids = [o.data[claims.MIME]["id"] for o in outputs if claims.MIME in o.get("data", {})]
    return ["error"] * any(o.output_type == "error" for o in outputs) + ids


def _code_label(cell: NotebookNode) -> str:
    tags = cell.metadata.get("tags", [])
    if "injected-parameters" in tags:
        return "Parameters of this run"
    return "Parameters" if "parameters" in tags else "Code"


def _facts(record: dict | None) -> list[tuple[str, str]]:
    if not record:
        return []
    status = record.get("status", "")
    facts = [
        ("Run", record.get("run_id", "")),
        ("Status", "" if status == "running" else status),
        ("Scale", record.get("preset", "")),
        ("Changed", _overrides(record)),
        ("Time", duration(record.get("wall_s")) if record.get("wall_s") else ""),
        ("Hardware", _hardware(record)),
        ("Python", record.get("env", {}).get("python") or ""),
        ("PyTorch", record.get("env", {}).get("torch") or ""),
        ("Code", _sha(record)),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _failure(record: dict) -> str:
    """What went wrong in a run, in one line, or nothing."""
    if record.get("status") in ("ok", "running", None):
        return ""
    error = record.get("first_error") or {}
    what = f"{error['ename']}: {strip_ansi(error.get('evalue') or '')}" if error.get("ename") else ""
    said = {"dead": "The kernel died.", "timeout": "It ran out of time.", "cancelled": "It was cancelled."}
    return _clip(what or said.get(record["status"], "No error was recorded."), 400)


# --- the site ---------------------------------------------------------------------------------------------------------


def build(out: Path | None = None) -> Path:
    """Make the site (`reports/site` unless told otherwise) and return its index.html.

    A chapter's page shows its newest finished run, ok or failed (one with all parameters at their preset's values
    before one with changed ones), or else the committed notebook. The folder is made beside the old one and swapped in
    at the end. Raises InputError where `out` is a folder that holds something else.
    """
    site = Path(out) if out else paths.reports() / "site"
    _refuse_foreign(site)
    records, evidence = runs.records(), read_evidence()
    shown = [_shown(chapter, records, evidence) for chapter in chapters()]
    site.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{site.name}-", dir=site.parent))
    try:
        made.chmod(0o755)
        slugs = ["", *(one.chapter.slug for one in shown), ""]
        for before, one, after in zip(slugs, shown, slugs[2:], strict=False):
            text = _page(
                one.notebook,
                title=one.chapter.title,
                record=one.record,
                rows=[row for row in one.rows if row.anchor or row.verdict == NOT_MEASURED],
                home="index.html",
                previous=before,
                next=after,
            )
            (made / f"{one.chapter.slug}.html").write_text(text, encoding="utf-8")
        rows = [row for one in shown for row in one.rows]
        (made / "index.html").write_text(_index(shown, rows), encoding="utf-8")
        (made / "runs.html").write_text(_runs_page(shown, records, evidence), encoding="utf-8")
        (made / "claims.json").write_text(json.dumps([asdict(r) for r in rows], indent=1), encoding="utf-8")
        (made / "claims.csv").write_text(_csv(rows), encoding="utf-8")
        _swap(made, site)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return site / "index.html"


def read_evidence() -> list[dict[str, Any]]:
    """The committed results of full runs, `reports/results/NN_slug/<preset>.json`: "slug", "run" and "measures"."""
    found = []
    for path in sorted((paths.reports() / "results").glob("*/*.json")):
        result = read_json(path)
        if isinstance(result, dict) and isinstance(result.get("measures"), list):
            found.append({"slug": path.parent.name, "run": result.get("run") or {}, "measures": result["measures"]})
    return found


def _shown(chapter: Chapter, records: list[dict], evidence: list[dict]) -> Shown:
    """The chapter with its newest run that can be shown (or its notebook as committed), and all that is known of it."""
    mine = [record for record in records if record.get("slug") == chapter.slug]
    record, notebook = _to_show(mine) or (None, _read_notebook(chapter.path))
    file = paths.notebooks() / "claims" / f"{chapter.slug}.yaml"
    known = claims.load(file).claims if file.exists() else {}
    one = Shown(chapter, notebook, record)
    one.rows = _rows(one, known, [e for e in evidence if e["slug"] == chapter.slug])
    return one


def _to_show(records: list[dict]) -> tuple[dict, NotebookNode] | None:
    finished = [record for record in records if record.get("status") in FINISHED]
    for record in sorted(finished, key=lambda r: bool(r.get("overrides"))):  # stable: the newest stays first
        try:
            return record, _read_notebook(Path(record["folder"]) / "notebook.ipynb")
        except InputError:  # killed before, or while, its notebook was written
            continue
    return None


def _rows(one: Shown, known: dict[str, claims.Claim], evidence: list[dict]) -> list[Row]:
    """Each claim of the chapter's file with all its measures: the shown notebook's, then the committed evidence."""
    slug = one.chapter.slug
    rows = [_row(slug, m, one.record, anchor=True) for m in runs.collect_measures(one.notebook)]
    for result in evidence:
        if result["run"].get("run_id") != (one.record or {}).get("run_id"):  # the very run that is shown stands already
            rows += [_row(slug, m, result["run"], anchor=False) for m in result["measures"]]
    measured = {row.id for row in rows}
    why = "the run did not get there" if one.failed else ""
    for claim in known.values():
        if claim.id not in measured:
            stated = {name: value for name, value in asdict(claim).items() if name != "needs"}
            rows.append(Row(chapter=one.chapter.id, slug=slug, why=why, **stated))
    order = list(known)
    return sorted(rows, key=lambda r: (order.index(r.id) if r.id in order else len(order), _scale(r.preset)))


def _row(slug: str, measure: dict[str, Any], record: dict | None, anchor: bool) -> Row:
    stated = {name: measure.get(name) for name in ("id", "says", "where", "metric", "unit", "paper", "direction")}
    stated |= {name: measure.get(name) for name in ("threshold", "tolerance", "value", "low", "high", "verdict", "why")}
    return Row(
        chapter=slug[:2],
        slug=slug,
        seeds=measure.get("n_seeds") or 0,
        per=measure.get("per") or "seed",
        preset=measure.get("preset") or "",
        source=(record or {}).get("run_id") or COMMITTED,
        hardware=_hardware(record or {}),
        sha=_sha(record or {}),
        when=(record or {}).get("started") or "",
        stale=_stale(record),
        anchor=anchor,
        **stated,
    )


def _index(shown: list[Shown], rows: list[Row]) -> str:
    """The headline counts each claim once, by its measure at the largest scale."""
    best = {row.id: row for row in sorted(rows, key=lambda r: (r.value is not None, _scale(r.preset)))}
    cards = [
        {
            "chapter": one.chapter,
            "picture": _picture(one.notebook),
            "failed": one.failed,
            "tally": _in_order(Counter(row.verdict for row in best.values() if row.slug == one.chapter.slug)),
            "source": f"{one.record['preset']} run, {day(one.record['started'])}" if one.record else COMMITTED,
            "claims": bool(one.rows),
        }
        for one in shown
    ]
    counts = _in_order(Counter(row.verdict for row in best.values()))
    return _render("index.html.j2", here="index", cards=cards, rows=rows, counts=counts)


def _runs_page(shown: list[Shown], records: list[dict], evidence: list[dict]) -> str:
    pages = {one.record["run_id"]: f"{one.chapter.slug}.html" for one in shown if one.record}
    kept = {result["run"].get("run_id"): result["run"] for result in evidence}
    here = {record.get("run_id") for record in records}
    known = [*records, *(run for run_id, run in kept.items() if run_id not in here)]
    lines = [
        {name: record.get(name) for name in ("chapter", "title", "run_id", "status", "preset", "wall_s", "peak_rss_mb")}
        | {
            "page": pages.get(record.get("run_id")),
            "evidence": record.get("run_id") in kept,
            "stale": _stale(record),
            "error": _failure(record),
            "overrides": _overrides(record),
            "started": record.get("started") or "",
            "hardware": _hardware(record),
            "sha": _sha(record),
        }
        for record in sorted(known, key=lambda r: r.get("started") or "", reverse=True)
    ]
    return _render("runs.html.j2", here="runs", runs=lines)


def _picture(notebook: NotebookNode, width: int = 640) -> str:
    """The notebook's first picture as a small data address, or nothing."""
    from PIL import Image, UnidentifiedImageError

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if not (encoded := output.get("data", {}).get("image/png")):
                continue
            try:
                with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
                    picture = picture.convert("RGBA")
            except (ValueError, UnidentifiedImageError):
                continue
            white = Image.new("RGBA", picture.size, "white")
            small = Image.alpha_composite(white, picture).convert("RGB")
            small.thumbnail((width, width))
            target = io.BytesIO()
            small.save(target, "WEBP", quality=85)
            return "data:image/webp;base64," + base64.b64encode(target.getvalue()).decode()
    return ""


def _csv(rows: list[Row]) -> str:
    target = io.StringIO()
    writer = csv.DictWriter(target, fieldnames=list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return target.getvalue()


# --- RESULTS.md -------------------------------------------------------------------------------------------------------


def results_markdown() -> str:
    """`reports/RESULTS.md` as text, made from the committed evidence (`reports/results/*/*.json`) and nothing else."""
    lines = ["# Results", "", "Generated from `reports/results/` by `vlws claims publish`; verdicts are computed.", ""]
    evidence = read_evidence()
    titles = {chapter.slug: chapter.title for chapter in chapters()}
    for result in evidence:
        slug, run = result["slug"], result["run"]
        lines += [f"## {slug[:2]} {titles.get(slug) or run.get('title') or slug}: {run.get('preset', '')}", ""]
        facts = [day(run.get("started")), duration(run.get("wall_s")), _hardware(run), _sha(run)]
        lines += [f"Run `{run.get('run_id', '')}`: {', '.join(f for f in facts if f and f != '–')}.", ""]
        lines += ["| claim | | paper | measured (95 % interval) | over | verdict |", "|---|---|---|---|---|---|"]
        for m in result["measures"]:
            measured = claims.number(m["value"])
            if m.get("low") is not None:
                measured += f" [{claims.number(m['low'])}, {claims.number(m['high'])}]"
            measured, over = f"{measured} {m['unit']}", claims.count(m["n_seeds"], m.get("per", "seed"))
            if m["value"] is None:
                measured = over = "–"
            cells = [m["id"], f"{m['says']} ({m['metric']})", claims.number(m.get("paper")), measured, over]
            cells.append(f"**{m['verdict']}**")
            lines.append("| " + " | ".join(str(c).replace("|", r"\|").replace("\n", " ") for c in cells) + " |")
        lines.append("")
    if not evidence:
        lines += ["No full run has been kept yet.", ""]
    return "\n".join(lines)


# --- small things -----------------------------------------------------------------------------------------------------


def day(iso: str | None) -> str:
    """2026-11-21 14:03 of an ISO 8601 time."""
    return (iso or "")[:16].replace("T", " ")


def duration(seconds: float | None) -> str:
    """42 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None or seconds == "":
        return "–"
    whole = round(float(seconds))
    if whole < 60:
        return f"{float(seconds):.1f} s" if float(seconds) < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _in_order(counts: Counter) -> list[tuple[str, int]]:
    return [(word, counts[word]) for word in (*claims.VERDICTS, NOT_MEASURED) if counts[word]]


def _scale(preset: str) -> int:
    return SCALES.index(preset) if preset in SCALES else 0


def _hardware(record: dict) -> str:
    env = record.get("env") or {}
    return env.get("gpu") or env.get("cpu") or ""


def _sha(record: dict) -> str:
    git = record.get("git") or {}
    return (git.get("sha") or "")[:8] + ("+" if git.get("sha") and git.get("dirty") else "")


def _stale(record: dict | None) -> bool | None:
    return runs.is_stale(record) if record and record.get("key") else None


def _overrides(record: dict) -> str:
    return ", ".join(f"{name}={record.get('params', {}).get(name)}" for name in record.get("overrides") or [])


def _clip(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _inline(markdown: str) -> str:
    """A heading's Markdown as inline HTML."""
    rendered = MarkdownWithMath(renderer=_Renderer([], escape=False)).render(markdown).strip()
    return rendered.removeprefix("<p>").removesuffix("</p>")


def _plain(fragment: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", fragment))


def _asset(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    safe = jinja2.filters.Markup
    environment.filters |= {
        "badge": lambda word: safe(claims.badge(word)),
        "strip": lambda row: safe(claims.strip(row)),
        "number": claims.number,
        "day": day,
        "duration": duration,
        "megabytes": lambda m: "–" if m is None else f"{m / 1024:.1f} GB" if m >= 1024 else f"{m:.0f} MB",
    }
    built, sha = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), _sha({"git": runs.git_state()})
    shared = {"css": _asset("style.css"), "js": _asset("page.js"), "built": built, "sha": sha}
    return environment.get_template(template).render(shared | values)


def _read_notebook(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # nbformat raises its own, json's and validation's
        raise InputError(f"{path} is no notebook: {_clip(str(error), 200)}") from None


def _refuse_foreign(site: Path) -> None:
    if not site.exists() or (site.is_dir() and not any(site.iterdir())):
        return
    index = site / "index.html"
    if not index.is_file() or '<meta name="generator" content="vlws">' not in index.read_text("utf-8", "ignore")[:999]:
        raise InputError(f"{site} holds something that is no report; give a new or an empty folder.")


def _swap(made: Path, site: Path) -> None:
    """Put the new folder in the old one's place; the old one is there until the new one is whole."""
    old = site.with_name(f".{site.name}-old-{os.getpid()}")
    if site.exists():
        os.replace(site, old)
    try:
        os.replace(made, site)
    except BaseException:
        if old.exists():
            os.replace(old, site)
        raise
    shutil.rmtree(old, ignore_errors=True)
