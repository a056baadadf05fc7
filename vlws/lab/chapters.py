"""The registry of chapters: the notebooks folder, presets, and the values that a user gives for parameters."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlws import paths
from vlws.errors import InputError
from vlws.files import read_json
from vlws.lab.parameters import PRESETS, Parameter, read_parameters

SWEEP_LIMIT = 10_000

# --- chapters ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chapter:
    """A notebook of the registry: `id` "04", `slug` "04_cmg", and what its metadata and its parameters cell say."""

    id: str
    slug: str
    path: Path
    title: str
    paper: str
    summary: str
    backbones: tuple[str, ...]
    parameters: dict[str, Parameter] = field(repr=False)
    code: tuple[str, ...] = field(repr=False)  # the source of each code cell


def chapters() -> list[Chapter]:
    """Every chapter, in order."""
    return [_chapter(path) for path in sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))]


def chapter(name: str) -> Chapter:
    """A chapter by its id ("04" or "4"), slug ("04_cmg") or name ("cmg"); InputError where there is none."""
    known = sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))
    wanted = name.removesuffix(".ipynb")
    wanted = f"0{wanted}" if re.fullmatch(r"\d", wanted) else wanted
    for path in known:
        if wanted in (path.stem, path.stem[:2], path.stem[3:]):
            return _chapter(path)
    slugs = [path.stem for path in known]
    raise InputError(f"no chapter {name!r}{_nearest(wanted, slugs)}; there are {', '.join(slugs) or 'none'}.")


def _chapter(path: Path) -> Chapter:
    notebook = read_json(path)
    if not isinstance(notebook, dict) or "cells" not in notebook:
        raise InputError(f"{path.name} is not a notebook.")
    said = notebook.get("metadata", {}).get("vlws", {})
    code = [cell for cell in notebook["cells"] if cell.get("cell_type") == "code"]
    tagged = [cell for cell in code if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{path.name} has {len(tagged)} cells tagged `parameters`; it must have one.")
    return Chapter(
        id=path.stem[:2],
        slug=path.stem,
        path=path,
        title=said.get("title", path.stem),
        paper=said.get("paper", ""),
        summary=said.get("summary", ""),
        backbones=tuple(said.get("backbones", ())),
        parameters=read_parameters("".join(tagged[0]["source"]), path.name),
        code=tuple("".join(cell["source"]) for cell in code),
    )


def told(one: Chapter) -> dict[str, Any]:
    """What a program is told of a chapter: id, slug, title, paper, summary, backbones, and its parameters."""
    parameters = [
        {"name": p.name, "type": p.type, "default": p.default, "help": p.help} for p in one.parameters.values()
    ]
    said = {name: getattr(one, name) for name in ("id", "slug", "title", "paper", "summary")}
    return said | {"backbones": list(one.backbones), "parameters": parameters}


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def preset_values(chapter: Chapter, preset: str) -> dict[str, Any]:
    """What a preset puts in place of a chapter's literals, by notebooks/presets.yml.

    Raises InputError for an unknown preset, and for one that the chapter has not.
    """
    found = presets(chapter)
    if preset not in PRESETS:
        near = _nearest(preset, PRESETS)
        raise InputError(f"no preset {preset!r}{near}; chapter {chapter.id} has {', '.join(found)}.")
    if preset not in found:
        raise InputError(f"chapter {chapter.id} has no preset {preset!r}; it has {', '.join(found)}.")
    return read_values(chapter, found[preset], where=f"presets.yml, {chapter.id}, {preset}: ")


def presets(chapter: Chapter) -> dict[str, dict[str, Any]]:
    """The presets of a chapter and their values: cpu, which changes nothing, and what notebooks/presets.yml holds."""
    path = paths.notebooks() / "presets.yml"
    try:
        data = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or {}
    except yaml.YAMLError as error:
        raise InputError(f"presets.yml is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise InputError('presets.yml must map chapters to presets to values: "04": {full: {seeds: 5}}.')
    own = data.get(chapter.id) or {}
    if own.get("cpu"):
        raise InputError("presets.yml must not hold cpu: that preset is the notebooks' literals.")
    return {"cpu": {}} | {name: values or {} for name, values in own.items()}


def read_values(chapter: Chapter, given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Values checked against the chapter's parameters; InputError for an unknown name or a value of another type."""
    values = {}
    for name, value in given.items():
        parameter = chapter.parameters.get(name)
        if parameter is None:
            known = ", ".join(chapter.parameters)
            hint = _nearest(name, chapter.parameters)
            raise InputError(f"{where}chapter {chapter.id} has no parameter {name!r}{hint}; it has {known}.")
        values[name] = _located(name, parameter.read(value))
    return values


def _located(name: str, value: Any) -> Any:
    """A path in `data` or `backbone`, made absolute while the user's working directory is still known."""
    if name not in ("data", "backbone") or not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser()
    if path.exists():
        return str(path.resolve())
    if path.is_absolute() or value.startswith((".", "~")):
        raise InputError(f"{name}={value!r} does not exist.")
    return value


# --- grids ---


def grid_values(chapter: Chapter, texts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A sweep's grid: per parameter a list, "1,2,3", or "0:5" (0 to 4, whole numbers only).

    Raises InputError as `read_values` does, for an empty list, and for a grid of more than 10,000 cells.
    """
    grid: dict[str, list[Any]] = {}
    for name, given in texts.items():
        parameter = chapter.parameters.get(name)
        span = re.fullmatch(r"\s*(-?\d+):(-?\d+)\s*", given) if isinstance(given, str) else None
        if parameter is not None and parameter.type == "int" and span:
            values: list[Any] = list(range(int(span[1]), int(span[2])))
        elif isinstance(given, str):
            values = re.split(r",(?![^\[]*\])", given)
        else:
            values = list(given) if isinstance(given, list) else [given]
        if not values or (parameter is not None and parameter.type != "str" and "" in values):
            raise InputError(f"{name}={given!r} holds no value (or an empty one); write {name}=1,2,3 or {name}=0:5.")
        grid[name] = [read_values(chapter, {name: value})[name] for value in values]
    if math.prod(map(len, grid.values())) > SWEEP_LIMIT:
        raise InputError(f"the grid has more than {SWEEP_LIMIT} cells.")
    return grid


def read_grid(path: Path) -> dict[str, Any]:
    """A YAML file that maps parameters to a value, a list of values, or "0:5"."""
    try:
        # every scalar as its text, for the declared types to read: YAML 1.1 takes 0:5 for five and 1e-4 for a text
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"the grid {path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"the grid {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not data:
        raise InputError(f"the grid {path} must map parameters to lists of values, such as lr: [1.0e-3, 1.0e-4].")
    return data
