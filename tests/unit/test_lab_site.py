"""The report: pages that load nothing, noise gone, every run and claim where a reader looks for it."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vlws.errors import InputError
from vlws.lab import chapters, describe, evidence, forest, page, records, site


class Addresses(HTMLParser):
    """What a page would load (src, stylesheets, url() in styles) and where its links lead."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.links, self.ids, self.alts = [], [], [], []
        self.feed(text)
        self.loads += re.findall(r"url\(([^)]*)\)|@import\s+[\"']([^\"']+)", text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.alts += [found["alt"]] if "alt" in found else []
        if tag == "a":
            self.links += [found["href"]] if "href" in found else []
            return
        self.loads += [found[name] for name in ("src", "href", "srcset", "poster", "data") if name in found]


def loads(text: str) -> list[str]:
    flat = ["".join(load) if isinstance(load, tuple) else load for load in Addresses(text).loads]
    return [address for address in flat if not address.startswith("data:")]


def page_of(tmp_path, *cells, **metadata) -> str:
    book = new_notebook(cells=list(cells), metadata=metadata)
    nbformat.write(book, tmp_path / "notebook.ipynb")
    return page.export(tmp_path / "notebook.ipynb", tmp_path / "notebook.html").read_text()


def code(*outputs, source="1", **metadata):
    return new_code_cell(source, outputs=list(outputs), execution_count=1, metadata=metadata)


# --- one page ---------------------------------------------------------------------------------------------------------


def test_a_page_loads_nothing(workspace):
    for path in (workspace / "notebooks").glob("*.ipynb"):
        text = page.export(path, workspace / f"{path.stem}.html").read_text()
        assert loads(text) == []
        assert "cdnjs" not in text
        assert "unpkg" not in text


def test_code_is_folded_and_there(tmp_path):
    text = page_of(tmp_path, code(source="x = 1 < 2"), code(source="seeds: int = 3", tags=["parameters"]))
    assert text.count('<details class="code">') == 2
    assert "<details open" not in text
    assert "Parameters <span>1 line</span>" in text
    assert "&lt;" in text


def test_progress_bars_and_widgets_go_and_warnings_stay_folded(tmp_path):
    bar = "\r 33%|###   | 1/3 [00:01<00:02, 1.0it/s]\r100%|######| 3/3 [00:03<00:00, 1.0it/s]\n"
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "IntProgress(value=0)"}
    text = page_of(
        tmp_path,
        code(new_output("stream", name="stderr", text=bar)),
        code(new_output("stream", name="stderr", text=f"{bar}careful, few seeds\n")),
        code(new_output("display_data", data=widget)),
        widgets={"application/vnd.jupyter.widget-state+json": {"state": {"1": {}}}},
    )
    assert "it/s" not in text
    assert "IntProgress" not in text
    assert "widget-state" not in text
    assert text.count('<details class="log">') == 1
    assert "careful, few seeds" in text


def test_formulas_are_left_to_katex_which_stands_in_the_page(tmp_path):
    text = page_of(
        tmp_path, new_markdown_cell("A $a < b$ and\n\n$$\\sum_i x_i$$\n\n\\begin{align} a &= b \\end{align}")
    )
    assert '<span class="math">a &lt; b</span>' in text
    assert '<div class="math display">\\sum_i x_i</div>' in text
    assert '<div class="math display">\\begin{align} a &amp;= b \\end{align}</div>' in text
    assert "renderToString" in text
    assert loads(text) == []


def test_a_page_without_formulas_carries_no_katex(tmp_path):
    assert len(page_of(tmp_path, new_markdown_cell("Costs 5 dollars."))) < 60_000


def test_cells_that_were_left_out_stand_on_no_page(tmp_path):
    said = "left out: a part of the chapter's own experiment (own_only=False runs it)\n"
    cells = [
        new_code_cell("# experiment\ntrain()", outputs=[new_output("stream", name="stdout", text=said)]),
        new_code_cell("mine()", outputs=[new_output("stream", name="stdout", text="0.91\n")]),
    ]
    text = page_of(tmp_path, *cells)
    assert "train()" not in text
    assert "left out" not in text
    assert "mine" in text


def test_title_leaves_the_first_cell_and_sections_are_listed(tmp_path):
    text = page_of(
        tmp_path, new_markdown_cell("# A *title* & more\n\nText."), new_markdown_cell("## The method\n\nText.")
    )
    assert text.count("<h1") == 1
    assert "<h1>A <em>title</em> &amp; more</h1>" in text
    assert "<title>A title &amp; more</title>" in text
    assert '<li><a href="#The-method">The method</a></li>' in text


def test_pictures_say_what_they_are(tmp_path):
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    text = page_of(
        tmp_path, new_markdown_cell('## Paths of "x"'), code(new_output("display_data", data={"image/png": png}))
    )
    assert 'Figure: Paths of "x"' in Addresses(text).alts


def test_verdicts_stand_on_top_and_lead_to_their_cells(workspace):
    found = Addresses(page.export(workspace / "notebooks" / "04_cmg.ipynb", workspace / "04.html").read_text())
    for claim in ("04.C1", "04.C2", "04.C3"):
        assert f"#{claim}" in found.links
        assert found.ids.count(claim) == 1


def test_a_run_says_how_it_ran_and_why_it_failed(workspace):
    (folder,) = (workspace / "runs" / "05_fails").iterdir()
    text = page.export(folder / "notebook.ipynb", folder / "notebook.html").read_text()
    assert "<dt>Status</dt><dd>failed</dd>" in text
    assert "<dt>Time</dt><dd>1 min 05 s</dd>" in text
    assert "ValueError: the folder &lt;data&gt; holds no pictures" in text
    assert "error" in Addresses(text).ids
    assert "so far, so good" in text


def test_what_is_no_notebook_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        page.export(tmp_path / "missing.ipynb", tmp_path / "x.html")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(InputError, match="is no notebook"):
        page.export(tmp_path / "broken.ipynb", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


# --- the site ---------------------------------------------------------------------------------------------------------


def test_every_page_loads_nothing_and_every_link_leads_somewhere(workspace):
    index = site.build()
    pages = {path.name: Addresses(path.read_text()) for path in index.parent.glob("*.html")}
    assert set(pages) == {
        "index.html", "runs.html", "00_start.html", "04_cmg.html", "05_fails.html", "result-04_cmg-full.html",
        "run-20261121T100000-0a1b2c3d.html",
    }  # fmt: skip
    for name, found in pages.items():
        assert loads((index.parent / name).read_text()) == []
        assert len(set(found.ids)) == len(found.ids), f"{name} has an id twice"
        for link in found.links:
            file, _, anchor = link.partition("#")
            if link.startswith("https://"):
                continue
            assert (index.parent / (file or name)).is_file(), f"{name} links to {link}"
            if anchor:
                assert anchor in pages[file or name].ids, f"{name} links to {link}"


def test_a_failed_chapter_is_shown_with_its_error_and_the_others_stand(workspace):
    text = site.build().read_text()
    assert "ValueError: the folder &lt;data&gt; holds no pictures" in text
    assert "Guidance by language" in text
    assert "supported" in text


def test_the_newest_whole_run_at_its_presets_values_is_shown(workspace):
    site.build()
    rows = json.loads((workspace / "reports" / "site" / "claims.json").read_text())
    shown = {row["source"] for row in rows if row["anchor"]}
    assert shown == {"20261120T100000-0a1b2c3d"}  # newer ones were cancelled, or ran with changed parameters
    shutil.rmtree(workspace / "runs" / "04_cmg" / "20261120T100000-0a1b2c3d")
    site.build()
    rows = json.loads((workspace / "reports" / "site" / "claims.json").read_text())
    assert {row["source"] for row in rows if row["anchor"]} == {"committed notebook"}
    assert "seeds=2" in (workspace / "reports" / "site" / "run-20261121T100000-0a1b2c3d.html").read_text()


def test_without_runs_the_committed_notebook_stands(workspace):
    shutil.rmtree(workspace / "runs")
    site.build()
    assert "committed notebook" in (workspace / "reports" / "site" / "claims.csv").read_text()
    assert "No run is on record" not in (workspace / "reports" / "site" / "runs.html").read_text()  # evidence is
    shutil.rmtree(workspace / "reports" / "results")
    site.build()
    assert "No run is on record" in (workspace / "reports" / "site" / "runs.html").read_text()


def test_evidence_makes_rows_of_its_own_scale(workspace):
    site.build()
    rows = json.loads((workspace / "reports" / "site" / "claims.json").read_text())
    assert list(dict.fromkeys((row["id"], row["preset"]) for row in rows)) == [
        (f"04.C{n}", preset) for n in (1, 2, 3) for preset in ("full", "cpu")
    ]
    assert {row["page"] for row in rows if row["preset"] == "full"} == {
        f"result-04_cmg-full.html#04.C{n}" for n in (1, 2, 3)
    }
    table = list(csv.DictReader(io.StringIO((workspace / "reports" / "site" / "claims.csv").read_text())))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert float(table[0]["value"]) == rows[0]["value"]


def test_what_a_card_credits_is_what_its_verdicts_were_measured_in(workspace):
    text = site.build().read_text()
    assert '<span class="source">full, 2026-11-19</span>' in text


def test_a_changed_run_is_listed_first_with_its_own_figures(workspace):
    """Own data: results.json and files/ stand on the run's page, and the index tells the figures."""
    folder = workspace / "runs" / "04_cmg" / "20261121T100000-0a1b2c3d"
    found = {"name": "CMG", "metric": "AUROC", "unit": "", "value": 0.91, "low": 0.88, "high": 0.94, "n": 2}
    (folder / "results.json").write_text(json.dumps([found | {"of": "83 test pictures of bottle"}]))
    (folder / "files" / "deep").mkdir(parents=True)
    (folder / "files" / "deep" / "scores.csv").write_text("picture,score\n")
    index = site.build()
    text = index.read_text()
    own = text[text.index('id="yours"') : text.index('id="chapters"')]
    assert "04_cmg seeds=2" in own
    assert "CMG: AUROC 0.910 [0.880, 0.940]" in own
    run = (index.parent / "run-20261121T100000-0a1b2c3d.html").read_text()
    assert "83 test pictures of bottle" in run
    link = re.search(r'<a href="([^"]+)">deep/scores.csv</a>', run)[1]
    assert (index.parent / link).read_text() == "picture,score\n"


def test_a_picture_beside_a_notebook_stands_in_its_page_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "figure.png").write_bytes(b"\x89PNG")
    text = page_of(tmp_path, new_markdown_cell("![a](figure.png) ![b](missing.png)"))
    assert "data:image/png;base64,iVBORw" in text.replace("iVBORw==", "iVBORw")
    assert "The picture missing.png is not beside the notebook." in text
    assert loads(text) == []


def test_the_overview_draws_every_interval_once(workspace):
    text = site.build().read_text()
    drawn = re.findall(r"<title>(04\.C\d): [^<]*wanted", text)
    assert sorted(drawn) == ["04.C1", "04.C2"]  # C3's seeds agree: it has no interval


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.03, 0.002), (-5.0, 120.0), (0.0, 0.0)])
def test_ticks_are_round_few_and_span_the_axis(low, high):
    found = forest.ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 10 or low == high


def test_a_chapter_shown_by_a_smaller_run_leads_to_the_larger_results(workspace):
    said = '<a href="result-04_cmg-full.html">The results at preset full</a>'
    assert said in (site.build().parent / "04_cmg.html").read_text()
    (workspace / "reports" / "results" / "04_cmg" / "full.json").unlink()
    assert "count on the index" not in (site.build().parent / "04_cmg.html").read_text()


def test_the_headline_counts_a_claim_once_at_its_largest_scale(workspace):
    path = workspace / "reports" / "results" / "04_cmg" / "full.json"
    result = json.loads(path.read_text())
    result["measures"][0]["verdict"] = "opposed"
    path.write_text(json.dumps(result))
    counts = re.findall(r'data-verdict="([a-z ]+)"><b>(\d+)</b>', site.build().read_text())
    assert dict(counts) == {"opposed": "1", "undecided": "1", "not at this scale": "1"}


def test_terminal_site_and_data_agree_on_what_stands(workspace):
    """An older full result and a newer cpu run: one precedence decides for all, and the larger scale stands."""
    path = workspace / "reports" / "results" / "04_cmg" / "full.json"
    result = json.loads(path.read_text())
    result["measures"][0]["verdict"] = "opposed"
    path.write_text(json.dumps(result))
    folder = workspace / "runs" / "04_cmg" / "20261120T100000-0a1b2c3d"  # newer than the published one
    (folder / "measures.json").write_text(json.dumps([m | {"preset": "cpu"} for m in result["measures"]]))
    vlws = [sys.executable, "-m", "vlws.lab.cli", "claims", "--json"]
    told = json.loads(subprocess.run(vlws, capture_output=True, text=True, check=True).stdout)
    stands = evidence.standing()
    assert {row["id"]: row["verdict"] for row in told} == {id: row.verdict for id, row in stands.items()}
    assert {(row["id"], row["preset"], row["source"]) for row in told} == {
        (f"04.C{n}", "full", "results") for n in (1, 2, 3)
    }
    counts = dict(re.findall(r'data-verdict="([a-z ]+)"><b>(\d+)</b>', site.build().read_text()))
    assert {word: int(n) for word, n in counts.items()} == dict(evidence.tally(stands.values()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"preset": "full"}, {"preset": "cpu", "when": "2027"}),
        ({"preset": "real"}, {"preset": "gpu"}),
        ({"stale": False}, {"stale": True, "when": "2027"}),
        ({"kind": "run"}, {"kind": "results", "when": "2027"}),
        ({"kind": "results"}, {"kind": "notebook"}),
        ({"when": "2027"}, {"when": "2026"}),
        ({"preset": "full", "stale": True}, {"preset": "cpu", "stale": False}),
    ],
)
def test_precedence(one, other):
    given = dict(id="04.C1", chapter="04", slug="04_cmg", says="", where="", metric="", unit="", paper=None)
    given |= dict(direction="greater", threshold=0.0, tolerance=None, preset="cpu", kind="run", when="2026")
    assert evidence.rank(evidence.Row(**(given | one))) > evidence.rank(evidence.Row(**(given | other)))


def test_runs_of_preset_test_and_changed_runs_never_count():
    assert evidence.counts({"status": "ok", "overrides": [], "preset": "cpu"})
    for changed in ({"preset": "test"}, {"overrides": ["lr"]}, {"status": "failed"}):
        assert not evidence.counts({"status": "ok", "overrides": [], "preset": "cpu"} | changed)


def test_a_run_made_with_other_code_is_stale(workspace):
    def stale() -> dict[str, bool]:
        site.build()
        rows = json.loads((workspace / "reports" / "site" / "claims.json").read_text())
        return {row["preset"]: row["stale"] for row in rows}

    path = workspace / "runs" / "04_cmg" / "20261120T100000-0a1b2c3d" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"key": records.key(chapters.chapter("04"), record["params"])}))
    assert stale() == {"cpu": False, "full": True}
    notebook = workspace / "notebooks" / "04_cmg.ipynb"
    notebook.write_text(notebook.read_text().replace("np.ones(seeds)", "np.ones(1 + seeds)"))
    assert stale() == {"cpu": True, "full": True}


def test_a_claim_without_a_measure_says_so(workspace):
    path = workspace / "notebooks" / "claims" / "04_cmg.yaml"
    more = '  - {id: 04.C9, says: "More.", where: text, metric: m, unit: u, direction: greater, threshold: 0}\n'
    path.write_text(path.read_text() + more)
    site.build()
    rows = json.loads((workspace / "reports" / "site" / "claims.json").read_text())
    assert [(row["id"], row["verdict"], row["value"]) for row in rows][-1] == ("04.C9", "not measured", None)


def test_a_broken_run_record_or_notebook_does_not_stop_the_rest(workspace):
    broken = workspace / "runs" / "04_cmg" / "20261122T100000-ffffffff"
    broken.mkdir()
    (broken / "run.json").write_text('{"schema": 1, "run_')
    (broken.parent / "20261120T100000-0a1b2c3d" / "notebook.ipynb").write_text("{")
    text = site.build().read_text()
    assert "Guidance by language" in text


def test_building_again_replaces_the_site_whole(workspace):
    folder = site.build().parent
    (folder / "left_over.html").write_text("old")
    site.build()
    assert not (folder / "left_over.html").exists()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failing_build_leaves_the_old_site(workspace):
    index = site.build()
    before = index.read_text()
    (workspace / "notebooks" / "claims" / "04_cmg.yaml").write_text("claims: 1")
    with pytest.raises(InputError):
        site.build()
    assert index.read_text() == before
    assert [path.name for path in index.parent.parent.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_other_things_is_refused(workspace, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something that is no report"):
        site.build(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(InputError, match="holds something that is no report"):
        site.build(tmp_path / "mine" / "thesis.tex")


# --- RESULTS.md -------------------------------------------------------------------------------------------------------


def test_results_markdown_is_made_from_the_evidence_alone(workspace):
    text = evidence.results_markdown()
    shutil.rmtree(workspace / "runs")
    assert evidence.results_markdown() == text
    assert "## 04 Guidance by language: full" in text
    row = next(line for line in text.splitlines() if line.startswith("| 04.C1"))
    assert row.count("|") == 9
    assert "| above 0.050 |" in row
    assert "0.130 [0.105, 0.155] AUROC" in row
    assert "**supported**" in row


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "–"), (0.42, "0.4 s"), (42.4, "42 s"), (65.2, "1 min 05 s"), (7810, "2 h 10 min")]
)
def test_durations_read_well(seconds, words):
    assert describe.duration(seconds) == words
