"""The reference of the library in the report: made once, kept, and never a reason for the report to fail."""

import re
import subprocess
from types import SimpleNamespace

import pytest

from vlws.lab import api_pages

PAGE = "<p>{}/models/assets</p>"


@pytest.fixture
def pdoc(monkeypatch, tmp_path):
    """pdoc as installed, and a stand-in for its process; `calls` are the commands that were run."""
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(api_pages.metadata, "version", lambda name: "16.0.0")
    made = SimpleNamespace(calls=[], returncode=0, stderr="", pages={"index.html": "", "vlws/x.html": ""})

    def run(command, **options):
        made.calls.append(command)
        for name, text in made.pages.items():
            file = api_pages.Path(command[command.index("--output-directory") + 1]) / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        if made.returncode is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return SimpleNamespace(returncode=made.returncode, stderr=made.stderr)

    monkeypatch.setattr(api_pages.subprocess, "run", run)
    return made


def folder(tmp_path, name: str):
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_the_pages_are_made_once_and_kept(pdoc, tmp_path):
    for name in ("one", "two"):
        assert api_pages.write_api(folder(tmp_path, name)) == "api/index.html"
        assert (tmp_path / name / "api" / "vlws" / "x.html").is_file()
    assert len(pdoc.calls) == 1
    assert "!vlws.lab" in pdoc.calls[0]


def test_changed_code_makes_them_anew_and_the_old_ones_go(pdoc, tmp_path, monkeypatch):
    (package := folder(tmp_path, "vlws")).joinpath("a.py").write_text("x = 1")
    monkeypatch.setattr(api_pages, "_folders", lambda: [package])
    api_pages.write_api(folder(tmp_path, "one"))
    (package / "a.py").write_text("x = 2")
    api_pages.write_api(folder(tmp_path, "two"))
    assert len(pdoc.calls) == 2
    assert len(list((tmp_path / "cache" / "api").iterdir())) == 1


def test_no_page_tells_where_the_packages_lie(pdoc, tmp_path, monkeypatch):
    package = folder(tmp_path, "vlws")
    monkeypatch.setattr(api_pages, "_folders", lambda: [package])
    pdoc.pages["index.html"] = PAGE.format(package)
    api_pages.write_api(folder(tmp_path, "one"))
    assert (tmp_path / "one" / "api" / "index.html").read_text() == PAGE.format("vlws")


@pytest.mark.parametrize(
    ("returncode", "pages", "said"),
    [(1, {}, "No module named x"), (0, {}, "No module named x"), (None, {}, "pdoc took more than 300 s")],
)
def test_where_pdoc_fails_the_report_has_none_and_says_so(pdoc, tmp_path, capsys, returncode, pages, said):
    pdoc.returncode, pdoc.pages, pdoc.stderr = returncode, pages, "Traceback\nModuleNotFoundError: No module named x\n"
    assert api_pages.write_api(folder(tmp_path, "one")) == ""
    err = capsys.readouterr().err
    assert err.startswith("the report has no API reference: ")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert list((tmp_path / "one").iterdir()) == list((tmp_path / "cache" / "api").iterdir()) == []


def test_without_pdoc_nothing_is_made_nor_said(monkeypatch, tmp_path, capsys):
    def missing(name):
        raise api_pages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(api_pages.metadata, "version", missing)
    assert api_pages.write_api(tmp_path) == ""
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_pages_document_the_library_and_lead_back(tmp_path, monkeypatch):
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path / "cache"))
    assert api_pages.write_api(tmp_path) == "api/index.html"
    text = (tmp_path / "api" / "vlws" / "methods" / "cmg.html").read_text()
    assert 'href="../../../index.html"' in text
    assert "CMGDetector" in text
    assert not (tmp_path / "api" / "vlws" / "lab.html").exists()
    for file in (tmp_path / "api").rglob("*.html"):
        assert not re.search(r'<(script|img|link)[^>]*(src|href)="http', file.read_text()), file.name
