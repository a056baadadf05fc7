"""Look at a user's checkpoint and data before a run starts, with the readers that the chapter itself calls."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from vlws.errors import InputError
from vlws.lab.chapters import Chapter, read_values

KINDS = {  # loader -> table of the hub, or of kinds
    "vlws.models.clip.load_clip": "CLIP",
    "vlws.models.families.load_mllm": "MLLM",
    "vlws.methods.morph_tokens.MorphTokens.from_pretrained": "MORPH",
    "vlws.models.retriever.load_retriever": "RETRIEVER",
    "vlws.models.seq2seq.load_seq2seq": "SEQ2SEQ",
}
READERS = "vlws.data."
OF_FILES = {"vlws.data.labelled.read_labelled": "a CSV file"}  # reader -> what it takes in place of a folder


def check_inputs(chapter: Chapter, params: Mapping[str, Any], grid: Mapping[str, Sequence[Any]] | None = None) -> None:
    """Look at what `backbone` and `data` name, each value once; no weights are loaded, and torch is not imported.

    A checkpoint is looked at by `hub.locate`, for the models that the chapter's loaders take; a folder is read by the
    chapter's own reader of `vlws.data`, the function that is called with `data`.

    Args:
        params: values of the chapter's parameters.
        grid: lists of values, which stand before those of `params`.

    Raises:
        InputError: what they name cannot be used.
    """
    for name, check in (("backbone", _check_backbone), ("data", _check_data)):
        given = [read_values(chapter, {name: value})[name] for value in (grid or {}).get(name, ())]
        for value in given or [params.get(name)]:
            if value:
                check(chapter, value)


def _check_backbone(chapter: Chapter, backbone: str) -> None:
    for loader in called_with(chapter.code, "backbone"):
        if loader in KINDS:
            from vlws.models import hub, kinds  # a part of a second, for those who name a checkpoint

            if KINDS[loader] == "RETRIEVER" and (
                backbone in kinds.PACKAGED or (Path(backbone) / "modules.json").is_file()
            ):
                return  # a package, or encoder and pooling in folders of their own: the chapter's loader looks at them
            hub.locate(backbone, getattr(hub, KINDS[loader], None) or getattr(kinds, KINDS[loader]))


def _check_data(chapter: Chapter, data: str) -> None:
    readers = called_with(chapter.code, "data")
    file = next((OF_FILES[reader] for reader in readers if reader in OF_FILES), None)
    if not (Path(data).is_file() if file else Path(data).is_dir()):
        there = f"is a {'folder' if file else 'file'}"
        fault = there if Path(data).exists() else f"does not exist (seen from {Path.cwd()})"
        accepted = file or "a folder"
        raise InputError(f"data={data!r} {fault}; accepted is {accepted}, as chapter {chapter.id} describes it.")
    for reader in readers:
        if reader.startswith(READERS):
            module, _, function = reader.rpartition(".")
            getattr(import_module(module), function)(data)


def called_with(code: Sequence[str], name: str) -> list[str]:
    """Full names of what cells of code import and call with the variable `name`, or `name or ...`, as first argument.

    >>> called_with(["from vlws.data import demon", "tasks = demon.read_demon(data) if data else []"], "data")
    ['vlws.data.demon.read_demon']
    """
    trees = [ast.parse(cell) for cell in code if _is_python(cell)]
    imported = {alias: full for tree in trees for alias, full in _imports(tree)}
    found = []
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and node.args:
            first = node.args[0].values[0] if isinstance(node.args[0], ast.BoolOp) else node.args[0]
            alias, dot, rest = ast.unparse(node.func).partition(".")
            if isinstance(first, ast.Name) and first.id == name and alias in imported:
                found.append(f"{imported[alias]}{dot}{rest}")
    return list(dict.fromkeys(found))


def _is_python(cell: str) -> bool:
    try:
        ast.parse(cell)
    except SyntaxError:  # a magic of IPython
        return False
    return True


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name in the code, full name) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
