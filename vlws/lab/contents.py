"""How JupyterLab reads and writes chapters, so that running one does not change what is committed.

A chapter's file is committed as executed. When Lab saves one, sources and metadata go into the file, while each cell's
outputs stay as they are there; what the reader executed goes into a file of its own, `.cache/lab/NN_slug.json`, and is
shown in place of the committed outputs when the chapter is opened again. A file in which nothing has changed is not
written. Any other notebook, and a chapter without cell ids (nbformat 4.4), is saved as always.

The reader's outputs of a cell are shown as long as its source, and its committed outputs, are those that they were
kept beside. Without the file (`forget`, or a deleted cache) a chapter is shown as committed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from jupyter_server.utils import ApiPath, to_os_path
from nbformat import NotebookNode
from tornado.web import HTTPError

from vlws import paths
from vlws.files import read_json, write_json

IN_FILE = ("kernelspec", "language_info", "widgets")  # metadata of a notebook that a kernel changes
OF_OUTPUTS = ("collapsed", "scrolled", "execution")  # metadata of a cell: how outputs are shown, when they were made
HIDDEN = "outputs_hidden"  # the same, within a cell's `jupyter`
Own = dict[str, dict[str, Any]]  # cell id -> what the reader executed


def file_at(path: str, root: str) -> Path:
    """The file at a path of a server whose files lie in `root`."""
    return Path(to_os_path(ApiPath(path), root))


def chapter_at(file: Path) -> str | None:
    """The slug of the chapter that a file is; None where it is none."""
    real = Path(os.path.realpath(file))
    known = real.match("[0-9][0-9]_*.ipynb") and real.parent == Path(os.path.realpath(paths.notebooks()))
    return real.stem if known and real.is_file() else None


# --- what the reader executed -----------------------------------------------------------------------------------------


def own_file(slug: str) -> Path:
    """The file of what was executed of a chapter in Lab."""
    return paths.cache() / "lab" / f"{slug}.json"


def checkpoint_file(slug: str) -> Path:
    """As `own_file`, at the chapter's checkpoint."""
    return paths.cache() / "lab" / f"{slug}.checkpoint.json"


def read_own(file: Path) -> Own:
    """What a file keeps; nothing where it is missing or broken."""
    own = read_json(file)
    return own if isinstance(own, dict) and all(isinstance(kept, dict) for kept in own.values()) else {}


def write_own(file: Path, own: Own) -> None:
    """Keep what was executed; no file where that is nothing. Raises OSError."""
    if own:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, own)
    else:
        file.unlink(missing_ok=True)


def forget(slug: str) -> None:
    """From now on a chapter is shown as committed. Raises OSError."""
    write_own(own_file(slug), {})


# --- a notebook taken apart and put together --------------------------------------------------------------------------


def apart(given: NotebookNode, committed: NotebookNode) -> tuple[NotebookNode, Own]:
    """What of a notebook in Lab goes into its file, and what the reader executed, by cell id.

    Cells that are new to the file have no outputs there.
    """
    before = {cell.id: cell for cell in committed.cells}
    metadata = {name: value for name, value in given.metadata.items() if name not in IN_FILE}
    metadata |= {name: committed.metadata[name] for name in IN_FILE if name in committed.metadata}
    cells, own = [], {}
    for cell in given.cells:
        had = before.get(cell.id, {})
        had = had if had.get("cell_type") == cell.cell_type else {}
        rest, shown = _shown(cell.metadata)
        _, had_shown = _shown(had.get("metadata", {}))
        kept = {**cell, "metadata": _whole(rest, had_shown)}
        if cell.cell_type == "code":
            kept |= {"outputs": had.get("outputs", []), "execution_count": had.get("execution_count")}
            if (cell.outputs, cell.execution_count, shown) != (kept["outputs"], kept["execution_count"], had_shown):
                executed = {"outputs": cell.outputs, "execution_count": cell.execution_count, "shown": shown}
                own[cell.id] = executed | {"source": cell.source, "beside": _hash(kept)}
        cells.append(kept)
    return nbformat.from_dict({**committed, "metadata": metadata, "cells": cells}), own


def together(committed: NotebookNode, own: Own) -> NotebookNode:
    """A notebook of a file with what the reader executed in place of the committed outputs."""
    cells = []
    for cell in committed.cells:
        rest, shown = _shown(cell.metadata)
        kept = own.get(cell.id, {})
        if cell.cell_type == "code" and kept.get("source") == cell.source and kept.get("beside") == _hash(cell):
            shown = kept["shown"]
            cell = cell | {"outputs": kept["outputs"], "execution_count": kept["execution_count"]}
        cells.append({**cell, "metadata": _whole(rest, shown)})
    return nbformat.from_dict({**committed, "cells": cells})


def _shown(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A cell's metadata, and of that what speaks of its outputs; a mark of trust is in neither."""
    shown = {name: metadata[name] for name in OF_OUTPUTS if name in metadata}
    rest = {name: value for name, value in metadata.items() if name not in (*OF_OUTPUTS, "trusted")}
    if HIDDEN in rest.get("jupyter", {}):
        inner = dict(rest.pop("jupyter"))
        shown[HIDDEN] = inner.pop(HIDDEN)
        rest |= {"jupyter": inner} if inner else {}
    return rest, shown


def _whole(rest: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of which these are the parts."""
    hidden = {"jupyter": {**rest.get("jupyter", {}), HIDDEN: shown[HIDDEN]}} if HIDDEN in shown else {}
    return {**rest, **{name: value for name, value in shown.items() if name != HIDDEN}, **hidden}


def _hash(cell: Mapping[str, Any]) -> str:
    """Of a cell's outputs."""
    outputs = json.dumps([cell["outputs"], cell["execution_count"]], sort_keys=True)
    return hashlib.sha256(outputs.encode()).hexdigest()


# --- Jupyter's manager of files ---------------------------------------------------------------------------------------


class ChapterContents(AsyncLargeFileManager):
    """Jupyter's own manager of files, but for the outputs of chapters."""

    def chapter(self, path: str) -> str | None:
        """The slug of the chapter at a path of the server; None where there is none."""
        return chapter_at(file_at(path, self.root_dir))

    async def get(
        self,
        path: str,
        content: bool = True,
        type: str | None = None,
        format: str | None = None,
        require_hash: bool = False,
    ) -> dict[str, Any]:
        model = await super().get(path, content, type, format, require_hash)
        slug = self.chapter(path)
        if slug and content and model["type"] == "notebook" and _has_ids(model["content"]):
            model["content"] = together(model["content"], read_own(own_file(slug)))
            self.notary.mark_cells(model["content"], self.notary.check_signature(model["content"]))
        return model

    async def save(self, model: dict[str, Any], path: str = "") -> dict[str, Any]:
        slug = self.chapter(path)
        if slug is None or model.get("type") != "notebook" or "content" not in model:
            return await super().save(model, path)
        committed = _read(paths.notebooks() / f"{slug}.ipynb")
        if not _has_ids(committed):
            return await super().save(model, path)
        given = _valid(slug, model["content"])
        trusted = self.notary.check_cells(given)
        kept, own = apart(given, committed)
        try:
            write_own(own_file(slug), own)
        except OSError as error:
            raise HTTPError(500, f"{slug}.ipynb is not saved: {error.strerror} ({error.filename}).") from None
        if trusted:
            self.notary.sign(together(kept, own))
        if kept == committed:
            return await self.get(path, content=False)
        return await super().save(model | {"content": kept}, path)

    async def create_checkpoint(self, path: str) -> dict[str, Any]:
        if slug := self.chapter(path):
            write_own(checkpoint_file(slug), read_own(own_file(slug)))
        return await super().create_checkpoint(path)

    async def restore_checkpoint(self, checkpoint_id: str, path: str) -> None:
        await super().restore_checkpoint(checkpoint_id, path)
        if slug := self.chapter(path):
            write_own(own_file(slug), read_own(checkpoint_file(slug)))


def _read(file: Path) -> NotebookNode:
    try:
        return nbformat.read(file, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:  # what nbformat raises
        reason = " ".join(str(error).splitlines()[:1])
        raise HTTPError(
            400, f"{file.name} is not saved: on disk it is no notebook ({reason}); save under another name."
        ) from None


def _valid(slug: str, content: Mapping[str, Any]) -> NotebookNode:
    given = nbformat.from_dict(content)
    try:
        nbformat.validate(given)
        reason = "" if _has_ids(given) else "its cells have no ids"
    except nbformat.ValidationError as error:
        reason = " ".join(str(error).splitlines()[:1])
    except KeyError as error:
        reason = f"it lacks {error}"
    if reason:
        raise HTTPError(400, f"{slug}.ipynb is not saved: what was sent is no notebook of nbformat 4.5 ({reason}).")
    return given


def _has_ids(book: NotebookNode) -> bool:
    return (book.nbformat, book.nbformat_minor) >= (4, 5)
