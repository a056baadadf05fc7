"""Chapters through JupyterLab's manager of files: what was executed in Lab never reaches a committed notebook."""

import asyncio
import copy
import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from tornado.web import HTTPError
from traitlets.config import Config

from vlws.lab import contents

COMMITTED = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NAME = "04_a.ipynb"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A workspace with one small chapter that was executed."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("VLWS_ROOT", str(tmp_path))
    monkeypatch.delenv("VLWS_CACHE", raising=False)
    cells = [
        new_markdown_cell("# 04 · A", id="title"),
        new_code_cell("x = 1", id="x", metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell("x + 1", id="y", execution_count=2, outputs=[shown("2")]),
        new_code_cell("print(x)", id="z", execution_count=3, outputs=[new_output("stream", text="1\n")]),
    ]
    write(tmp_path, new_notebook(cells=cells, metadata={"vlws": {"title": "A"}, "kernelspec": kernel("Python 3")}))
    return tmp_path


def write(root: Path, book: nbformat.NotebookNode, name: str = NAME) -> Path:
    nbformat.write(book, root / "notebooks" / name)
    return root / "notebooks" / name


def kernel(name: str) -> dict[str, str]:
    return {"name": "python3", "display_name": name, "language": "python"}


def shown(text: str) -> nbformat.NotebookNode:
    return new_output("execute_result", {"text/html": f"<b>{text}</b>", "text/plain": text}, execution_count=1)


class Lab:
    """What JupyterLab asks of the manager of files, as a server that has just started."""

    def __init__(self, root: Path, store: Path | None = None) -> None:
        signatures = {"db_file": str(store or ":memory:"), "secret": b"secret"}
        config = Config(NotebookNotary=signatures)
        self.manager = contents.ChapterContents(root_dir=str(root / "notebooks"), config=config)

    def open(self, name: str = NAME) -> nbformat.NotebookNode:
        return asyncio.run(self.manager.get(name, type="notebook"))["content"]

    def save(self, book: nbformat.NotebookNode, name: str = NAME) -> dict:
        sent = json.loads(json.dumps(book))  # as it comes over HTTP
        return asyncio.run(self.manager.save({"type": "notebook", "format": "json", "content": sent}, name))


def executed(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook of which every cell was run in JupyterLab: other outputs, and all else that Lab then changes."""
    book = copy.deepcopy(book)
    for n, cell in enumerate(cell for cell in book.cells if cell.cell_type == "code"):
        cell.outputs = [shown(f"made in Lab {n}"), new_output("stream", text="a line\n")]
        cell.execution_count = 100 + n
        cell.metadata |= {"trusted": True, "scrolled": True, "collapsed": True, "jupyter": {"outputs_hidden": True}}
        cell.metadata["execution"] = {"iopub.execute_input": "2026-11-29T00:00:00Z"}
    book.metadata.kernelspec = kernel("Python 3 (ipykernel)")
    book.metadata.language_info = {"name": "python", "version": "3.99"}
    book.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {}}
    return book


def outputs(book: nbformat.NotebookNode) -> list:
    return [[cell.outputs, cell.execution_count] for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("committed", COMMITTED, ids=lambda path: path.stem)
def test_a_chapter_that_was_only_run_is_not_written(root, committed):
    file = root / "notebooks" / committed.name
    file.write_bytes(committed.read_bytes())
    before = file.stat()
    ran = executed(Lab(root).open(committed.name))
    model = Lab(root).save(ran, committed.name)
    after = file.stat()
    assert file.read_bytes() == committed.read_bytes()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert model["last_modified"].timestamp() == pytest.approx(before.st_mtime)
    opened = Lab(root).open(committed.name)
    assert outputs(opened) == outputs(ran)
    assert opened.metadata == nbformat.read(committed, 4).metadata


@pytest.mark.parametrize("committed", COMMITTED, ids=lambda path: path.stem)
def test_a_chapter_that_was_only_opened_has_no_outputs_of_its_reader(root, committed):
    (root / "notebooks" / committed.name).write_bytes(committed.read_bytes())
    lab = Lab(root)
    lab.save(lab.open(committed.name), committed.name)
    assert (root / "notebooks" / committed.name).read_bytes() == committed.read_bytes()
    assert not contents.own_file(committed.stem).exists()


def test_what_is_edited_goes_into_the_file_and_nothing_else(root):
    lab, file = Lab(root), root / "notebooks" / NAME
    lines = file.read_text().splitlines()
    book = executed(lab.open())
    book.cells[2].source = "x + 2"
    book.cells[1].metadata["tags"] = ["parameters", "more"]
    book.metadata.vlws = {"title": "B"}
    lab.save(book)
    now = file.read_text().splitlines()
    changed = {line.strip(' ",') for line in set(now) ^ set(lines)}
    assert changed == {"x + 1", "x + 2", "parameters", "more", "title: A".replace(": ", '": "'), 'title": "B'}
    assert outputs(lab.open()) == outputs(book)
    assert outputs(nbformat.read(file, 4)) == [[[], 1], [[shown("2")], 2], [[new_output("stream", text="1\n")], 3]]


def test_new_cells_have_no_outputs_in_the_file_and_deleted_ones_are_gone(root):
    lab, file = Lab(root), root / "notebooks" / NAME
    book = lab.open()
    book.cells[3] = new_code_cell("x + 3", id="new", execution_count=9, outputs=[shown("4")])
    lab.save(book)
    kept = nbformat.read(file, 4)
    assert [cell.id for cell in kept.cells] == ["title", "x", "y", "new"]
    assert (kept.cells[3].outputs, kept.cells[3].execution_count) == ([], None)
    assert lab.open().cells[3].outputs == [shown("4")]


def test_a_cell_that_becomes_code_has_no_outputs_in_the_file(root):
    lab = Lab(root)
    book = lab.open()
    book.cells[0] = new_code_cell("7", id="title", execution_count=1, outputs=[shown("7")])
    book.cells[2] = new_markdown_cell("text", id="y")
    lab.save(book)
    kept = nbformat.read(root / "notebooks" / NAME, 4)
    assert kept.cells[0].outputs == []
    assert "outputs" not in kept.cells[2]
    assert lab.open().cells[0].outputs == [shown("7")]


def test_outputs_of_other_code_are_not_shown(root):
    """A chapter is edited outside Lab (by git pull): what the reader executed of a cell that changed is of old code."""
    lab, file = Lab(root), root / "notebooks" / NAME
    ran = executed(lab.open())
    lab.save(ran)
    book = nbformat.read(file, 4)
    book.cells[2].source = "x + 5"
    nbformat.write(book, file)
    assert outputs(lab.open()) == [outputs(ran)[0], outputs(book)[1], outputs(ran)[2]]


def test_a_chapter_that_is_executed_anew_is_shown_so(root):
    lab, file = Lab(root), root / "notebooks" / NAME
    ran = executed(lab.open())
    lab.save(ran)
    book = nbformat.read(file, 4)
    book.cells[3].outputs = [new_output("stream", text="anew\n")]
    nbformat.write(book, file)
    assert outputs(lab.open()) == [*outputs(ran)[:2], outputs(book)[2]]


def test_forgotten_outputs(root):
    lab = Lab(root)
    committed = lab.open()
    lab.save(executed(committed))
    assert contents.own_file("04_a").exists()
    contents.forget("04_a")
    assert outputs(lab.open()) == outputs(committed)
    contents.forget("04_a")  # where there is nothing


def test_cleared_outputs_are_the_readers_too(root):
    lab, file = Lab(root), root / "notebooks" / NAME
    before = file.read_bytes()
    book = lab.open()
    for cell in book.cells[1:]:
        cell.outputs, cell.execution_count = [], None
    lab.save(book)
    assert file.read_bytes() == before
    assert outputs(lab.open()) == [[[], None]] * 3


def test_how_outputs_are_shown_is_the_readers(root):
    lab, file = Lab(root), root / "notebooks" / NAME
    book = lab.open()
    book.cells[2].metadata["jupyter"] = {"source_hidden": True}
    lab.save(book)
    assert nbformat.read(file, 4).cells[2].metadata == {"jupyter": {"source_hidden": True}}
    before = file.read_bytes()
    book.cells[2].metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
    lab.save(book)
    assert file.read_bytes() == before
    opened = lab.open().cells[2].metadata
    assert opened["jupyter"] == {"source_hidden": True, "outputs_hidden": True}


def test_a_readers_outputs_are_trusted_again(root, tmp_path):
    """Lab shows HTML of trusted cells alone; a server that starts anew knows them by their signature."""
    store = tmp_path / "signatures.db"
    assert not Lab(root, store).open().cells[2].metadata.trusted
    Lab(root, store).save(executed(Lab(root, store).open()))
    assert all(cell.metadata.trusted for cell in Lab(root, store).open().cells if cell.cell_type == "code")
    contents.forget("04_a")
    assert not Lab(root, store).open().cells[2].metadata.trusted


def test_a_checkpoint_keeps_the_readers_outputs(root):
    lab, file = Lab(root), root / "notebooks" / NAME
    first = executed(lab.open())
    lab.save(first)
    (checkpoint,) = [asyncio.run(lab.manager.create_checkpoint(NAME))]
    before = file.read_bytes()
    second = lab.open()
    second.cells[1].source = "x = 2"
    second.cells[2].outputs = []
    lab.save(second)
    assert file.read_bytes() != before
    asyncio.run(lab.manager.restore_checkpoint(checkpoint["id"], NAME))
    assert file.read_bytes() == before
    assert outputs(lab.open()) == outputs(first)


def test_a_checkpoint_without_outputs_of_the_reader(root):
    lab = Lab(root)
    committed = lab.open()
    asyncio.run(lab.manager.create_checkpoint(NAME))
    lab.save(executed(committed))
    asyncio.run(lab.manager.restore_checkpoint("checkpoint", NAME))
    assert outputs(lab.open()) == outputs(committed)


def test_other_notebooks_are_saved_as_always(root):
    lab = Lab(root)
    book = executed(new_notebook(cells=[new_code_cell("1")]))
    for name in ("mine.ipynb", "claims/04_b.ipynb", "09_not_there.ipynb"):
        (root / "notebooks" / name).parent.mkdir(exist_ok=True)
        lab.save(book, name)
        assert outputs(nbformat.read(root / "notebooks" / name, 4)) == outputs(book)
    assert not (root / ".cache").exists()


def test_a_chapter_without_cell_ids_is_saved_as_always(root):
    book = nbformat.read(root / "notebooks" / NAME, 4)
    book.nbformat_minor = 4
    for cell in book.cells:
        del cell["id"]
    file = write(root, book)
    ran = executed(Lab(root).open())
    Lab(root).save(ran)
    assert outputs(nbformat.read(file, 4)) == outputs(ran)


def test_a_text_is_saved_as_always(root):
    lab = Lab(root)
    model = {"type": "file", "format": "text", "content": "{}"}
    asyncio.run(lab.manager.save(model, NAME))
    assert (root / "notebooks" / NAME).read_text() == "{}"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda book: book.cells[1].pop("outputs"), "'outputs' is a required property"),
        (lambda book: book.pop("cells"), "it lacks 'cells'"),
        (lambda book: [book.update(nbformat_minor=4), *(c.pop("id") for c in book.cells)], "its cells have no ids"),
    ],
)
def test_what_is_no_notebook_is_refused(root, change, why):
    lab, file = Lab(root), root / "notebooks" / NAME
    before = file.read_bytes()
    book = lab.open()
    change(book)
    with pytest.raises(HTTPError, match="what was sent is no notebook") as error:
        lab.save(book)
    said = "04_a.ipynb is not saved: what was sent is no notebook of nbformat 4.5"
    assert error.value.log_message == f"{said} ({why})."
    assert file.read_bytes() == before


@pytest.mark.parametrize("broken", ["<<<<<<< HEAD", "{}", "[]"])
def test_a_broken_file_is_not_written_over(root, broken):
    lab, file = Lab(root), root / "notebooks" / NAME
    book = lab.open()
    file.write_text(broken)
    with pytest.raises(HTTPError, match=r"04_a\.ipynb is not saved: on disk it is no notebook"):
        lab.save(book)
    assert file.read_text() == broken


def test_a_disk_that_refuses_is_told_of_and_nothing_is_saved(root):
    lab, file = Lab(root), root / "notebooks" / NAME
    before = file.read_bytes()
    book = executed(lab.open())
    book.cells[1].source = "x = 9"
    (root / ".cache").write_text("a file where the folder belongs")
    with pytest.raises(HTTPError, match=r"04_a\.ipynb is not saved: File exists|Not a directory"):
        lab.save(book)
    assert file.read_bytes() == before


@pytest.mark.parametrize("broken", ["", "[1]", '{"x": 1}', "{"])
def test_broken_outputs_of_the_reader_count_as_none(root, broken):
    lab = Lab(root)
    contents.own_file("04_a").parent.mkdir(parents=True)
    contents.own_file("04_a").write_text(broken)
    assert outputs(lab.open()) == outputs(nbformat.read(root / "notebooks" / NAME, 4))


def test_a_link_is_the_chapter_that_it_leads_to(root):
    (root / "notebooks" / "link.ipynb").symlink_to(NAME)
    assert contents.chapter_at(root / "notebooks" / "link.ipynb") == "04_a"
    assert contents.chapter_at(root / "notebooks" / "09_none.ipynb") is None
