"""One notebook as one page that loads nothing: pictures are embedded; styles, scripts and fonts stand inside."""

import base64
import html
import json
import mimetypes
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jinja2
import nbformat
from nbconvert.exporters.html import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from vlws import display, mime, paths, verdicts
from vlws.errors import InputError
from vlws.files import read_json, write_atomically
from vlws.lab import claim_graph, records, seal
from vlws.lab.describe import clip, day, duration, facts, failure, sha
from vlws.lab.evidence import Row, rows_of

TEMPLATE = Path(__file__).resolve().parents[2] / "reports" / "template"
PROGRESS = re.compile(r"\d+%\||\d+it \[|\dit/s|s/it\]|TqdmWarning: |from \.autonotebook import")  # a bar of tqdm's


def export(notebook: Path, html: Path) -> Path:
    """Write an executed notebook as one self-contained page and return its path.

    Code is folded and progress bars are gone; where a run.json stands beside the notebook, the page says how it was
    run. Raises InputError where `notebook` is missing or is no notebook.
    """
    notebook, html = Path(notebook), Path(html)
    book = read_notebook(notebook)
    record = read_json(notebook.parent / "run.json")
    record = record | {"folder": str(notebook.parent)} if record else None
    about = book.metadata.get("vlws", {})
    slug = (record or {}).get("slug") or notebook.stem
    rows = rows_of(slug, records.collect_measures(book), record, "run", anchor=True)
    title, carried = about.get("title", notebook.stem), seal.of(record, notebook, book)
    text = page(book, title=title, record=record, rows=rows, folder=notebook.parent, carried=carried)
    html.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(html, text.encode())
    return html


def page(
    notebook: NotebookNode,
    *,
    title: str,
    record: dict | None,
    rows: list[Row],
    folder: Path | None = None,
    links: dict[str, str] | None = None,
    carried: seal.Evidence | None = None,
    **navigation: str,
) -> str:
    """The page of an executed notebook.

    Args:
        record, rows: of the run that executed it, for the top of the page.
        folder: where the pictures that its Markdown names lie; the run's unless given.
        links: the run's files for its reader -> where the page finds them; below `files/` unless given.
        carried: what the page carries of the run as data (`vlws.lab.seal`), and draws where each figure comes from.
        navigation: home, previous, next; larger, the address of a larger run's results, and its preset.
    """
    heading, quiet = _without_noise(notebook)
    folder = folder or (Path(record["folder"]) if record and "folder" in record else paths.notebooks())
    links = {name: f"files/{name}" for name in small_files(record)} if links is None else links
    top = render(
        "top.html.j2",
        title=heading or html.escape(title),
        facts=facts(record),
        failed=failure(record) if record else "",
        error_here=any(o.output_type == "error" for c in quiet.cells for o in c.get("outputs", [])),
        rows=rows,
        results=records.kept(record, "results.json") if record and "folder" in record else [],
        files=links,
        **{"home": "", "previous": "", "next": "", "larger": "", "preset": ""} | navigation,
    )
    if carried:  # within the head, which the top ends with
        top = f"{top.rstrip().removesuffix('</div>')}{claim_graph.figures(carried)}</div>"
    page = {"title": _plain(heading) or title, "top": top, "css": _asset("style.css"), "js": _asset("page.js")}
    text, _ = _PageExporter(folder).from_notebook_node(quiet, {"page": page})
    text = text.replace("</head>", _katex() + "</head>", 1) if 'class="math' in text else text
    return seal.seal(text, "run" if record else "notebook", [carried]) if carried else text


class _PageExporter(HTMLExporter):
    """nbconvert's HTML exporter with our template over JupyterLab's, formulas for KaTeX, and a table of contents."""

    def __init__(self, folder: Path):
        super().__init__(template_name="chapter", extra_template_basedirs=[str(TEMPLATE)])
        self.folder = folder  # of the pictures that Markdown names
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
        renderer = _Renderer(self.toc, self.folder, escape=False, attachments=attachments)
        return MarkdownWithMath(renderer=renderer).render(source)


class _Renderer(IPythonRenderer):
    """Markdown whose formulas are elements of their own, and whose sections are listed."""

    def __init__(self, toc: list[tuple[str, str]], folder: Path = Path(), **options: Any):
        super().__init__(**options)
        self.toc, self.folder = toc, folder

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """A picture beside the notebook stands in the page; one that is missing is named in words."""
        if re.match(r"[a-z]+:", url):
            return super().image(text, url, title)
        file = self.folder / unquote(url)
        kind = mimetypes.guess_type(file.name)[0] or ""
        if not (file.is_file() and kind.startswith("image/")):
            return f'<em class="missing">The picture {html.escape(url)} is not beside the notebook.</em>'
        data = base64.b64encode(file.read_bytes()).decode()
        return super().image(text, f"data:{kind};base64,{data}", title)

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


def small_files(record: dict | None, limit: float = float("inf")) -> list[str]:
    """What a run kept for its reader, below `files/` of its folder, where it is of at most `limit` bytes."""
    folder = Path(record["folder"]) / "files" if record and "folder" in record else None
    found = sorted(path for path in folder.rglob("*") if path.is_file()) if folder and folder.is_dir() else []
    return [path.relative_to(folder).as_posix() for path in found if folder and path.stat().st_size <= limit]


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

    Gone are widgets and their state, progress bars, papermill's own error banners, and cells that were left out.
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
    quiet.cells = [cell for cell in quiet.cells if cell.source.strip() and not _is_left_out(cell)]
    return _inline(title), quiet


def _is_left_out(cell: NotebookNode) -> bool:
    """Whether a cell did nothing, since the run was on the reader's data alone (`vlws.own`)."""
    outputs = cell.get("outputs") or []
    return len(outputs) == 1 and outputs[0].get("text", "").startswith(
        "left out: a part of the chapter's own experiment"
    )


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
    ids = [o.data[mime.MEASURE]["id"] for o in outputs if mime.MEASURE in o.get("data", {})]
    return ["error"] * any(o.output_type == "error" for o in outputs) + ids


def _code_label(cell: NotebookNode) -> str:
    tags = cell.metadata.get("tags", [])
    if "injected-parameters" in tags:
        return "Parameters of this run"
    return "Parameters" if "parameters" in tags else "Code"


def _inline(markdown: str) -> str:
    """A heading's Markdown as inline HTML."""
    rendered = MarkdownWithMath(renderer=_Renderer([], escape=False)).render(markdown).strip()
    return rendered.removeprefix("<p>").removesuffix("</p>")


def _plain(fragment: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", fragment))


def _asset(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    safe = jinja2.filters.Markup
    environment.filters |= {
        "badge": lambda word: safe(verdicts.badge(word)),
        "strip": lambda row: safe(verdicts.strip(row)),
        "number": display.number,
        "figures": verdicts.figures,
        "wanted": verdicts.wanted,
        "day": day,
        "duration": duration,
        "megabytes": lambda m: "–" if m is None else f"{m / 1024:.1f} GB" if m >= 1024 else f"{m:.0f} MB",
    }
    built, commit = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), sha({"git": records.git_state()})
    shared = {"css": _asset("style.css"), "js": _asset("page.js"), "built": built, "sha": commit, "home": "index.html"}
    return environment.get_template(template).render(shared | values)


def read_notebook(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # nbformat raises its own, json's and validation's
        raise InputError(f"{path} is no notebook: {clip(str(error), 200)}") from None
