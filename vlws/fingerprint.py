"""What made a result, as a hash: values by their content, code by its syntax and by all of our modules that it reaches.

Used for the cells of an experiment and for the runs of a chapter; neither is believed once what made it has changed.
Docstrings, comments and formatting compute nothing, so that a change of them alone keeps every hash.
"""

import ast
import dis
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

OURS = ("vlws", "vlws_kernels")  # packages whose modules count as code
KERNELS = "vlws_kernels"  # whose functions count by the version of their values, its `VALUES`, as torch's do by torch's
VERSIONS = ("torch", "numpy", "transformers", "scikit-learn", "peft", "pykeops", "keopscore")


def digest(value: Any) -> str:
    """A hash of a value by its content, the same in every process.

    Numbers, texts, containers, dataclasses, numpy arrays, tensors, modules of torch (class and state), functions and
    classes (what they compute: `computes`), paths (their text); anything else by its pickle.
    """
    h = hashlib.sha256()
    _feed(h, value)
    return h.hexdigest()


def _feed(h: Any, value: Any) -> None:
    h.update(f"{type(value).__module__}.{type(value).__qualname__}:".encode())
    if not (_feed_plain(h, value) or _feed_container(h, value) or _feed_code(h, value) or _feed_torch(h, value)):
        import joblib

        h.update(joblib.hash(value).encode())
    h.update(b";")


def _feed_plain(h: Any, value: Any) -> bool:
    """Numbers, texts, bytes, arrays; False where the value is none of them."""
    if value is None or isinstance(value, bool | int | float | complex | str | Path | np.generic):
        h.update(str(value).encode() if isinstance(value, str | Path) else repr(value).encode())
    elif isinstance(value, bytes | bytearray):
        h.update(value)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        h.update(f"{value.dtype.str}{value.shape}".encode())
        h.update(np.ascontiguousarray(value).tobytes())
    else:
        return False
    return True


def _feed_container(h: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            _feed(h, key)
            _feed(h, value[key])
    elif isinstance(value, set | frozenset):
        for part in sorted(digest(part) for part in value):
            h.update(part.encode())
    elif isinstance(value, list | tuple | range):
        for part in value:
            _feed(h, part)
    else:
        return False
    return True


def _feed_code(h: Any, value: Any) -> bool:
    """Modules, functions and classes by what they compute; dataclasses by their fields."""
    if isinstance(value, types.ModuleType):
        h.update(module_source(value.__name__))
    elif isinstance(value, types.FunctionType | types.MethodType | type):
        h.update(computes(_source(value)).encode())
    elif is_dataclass(value):
        for part in fields(value):
            _feed(h, part.name)
            _feed(h, getattr(value, part.name))
    else:
        return False
    return True


def _feed_torch(h: Any, value: Any) -> bool:
    """Modules of torch by class and state, tensors by dtype, shape and bytes."""
    if hasattr(value, "state_dict") and hasattr(value, "parameters"):
        h.update(f"{value!r}{getattr(value, 'config', '')}".encode())
        _feed(h, dict(value.state_dict()))
    elif hasattr(value, "detach") and hasattr(value, "untyped_storage"):
        import torch

        tensor = value.detach().cpu().contiguous()
        h.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    else:
        return False
    return True


def code(fn: Callable, parts: Iterable[Any] = ()) -> str:
    """Hash of the code that a function runs: what it computes, what it and `parts` refer to, our modules, versions."""
    seen: dict[str, str] = {}
    modules: set[str] = set()
    for part in (fn, *parts):
        _collect(part, seen, modules)
    sources = {module: digest(module_source(module)) for module in sorted(reached(modules))}
    versions = {package: metadata.version(package) for package in VERSIONS}
    return digest([getattr(fn, "__qualname__", ""), seen, sources, versions, sys.version_info[:2]])


def _collect(part: Any, seen: dict[str, str], modules: set[str]) -> None:
    """What a function or class computes and, through its globals and closure, what that which it refers to does."""
    if isinstance(part, types.ModuleType):
        modules.add(part.__name__)
        return
    part = inspect.unwrap(part.func if isinstance(part, partial) else part)
    if not isinstance(part, types.FunctionType | type):
        part = type(part)  # a value: its content is digested elsewhere, its methods are code
    module = part.__module__
    if _is_ours(module):
        modules.add(KERNELS if module.startswith(f"{KERNELS}.") else module)
        return
    name = f"{module}.{part.__qualname__}"
    if name in seen or (module != "__main__" and isinstance(part, type)):
        return
    source = _source(part)
    seen[name] = computes(source)
    modules.update(imported(source))
    _collect_names(part, source, seen, modules)
    if isinstance(part, types.FunctionType):
        seen[f"{name}:defaults"] = digest([part.__defaults__, part.__kwdefaults__])


def _collect_names(part: Any, source: str, seen: dict[str, str], modules: set[str]) -> None:
    """What the names in a function or class of a notebook stand for: modules, further code, values."""
    module, name = part.__module__, f"{part.__module__}.{part.__qualname__}"
    scope = part.__globals__ if isinstance(part, types.FunctionType) else vars(sys.modules[module])
    nonlocals = inspect.getclosurevars(part).nonlocals if isinstance(part, types.FunctionType) else {}
    for used in sorted(_names(part, source)):
        value = nonlocals.get(used, scope.get(used))
        if isinstance(value, types.ModuleType):
            if _is_ours(value.__name__):
                modules.add(value.__name__)
        elif isinstance(value, types.FunctionType | type):
            if _is_ours(value.__module__) or value.__module__ == module:
                _collect(value, seen, modules)
        elif value is not None and not isinstance(value, types.BuiltinFunctionType):
            seen[f"{name}:{used}"] = digest(value)


def _source(part: Any) -> str:
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        code = getattr(part, "__code__", None)
        return repr((code.co_code, code.co_consts, code.co_names)) if code else repr(part)


def _parsed(source: str) -> ast.AST:
    lines = textwrap.dedent(source).splitlines()
    try:
        return ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in lines))  # magics of IPython
    except SyntaxError:  # a lambda cut out of its line
        return ast.parse("")


def computes(source: str) -> str:
    """The syntax of a source as a text: two sources that differ in docstrings, comments and formatting have the same.

    A source that does not parse (a lambda cut out of its line) is given back as it is.

    >>> computes("x = [1,2]  # two") == computes("x = [1, 2]")
    True
    >>> computes("x = 1") == computes("x = 2")
    False
    """
    try:
        return _syntax(ast.parse(textwrap.dedent(source)))
    except SyntaxError:
        return source


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)  # what may begin with a docstring
IDLE = ("ctx", "kind", "type_comment")  # fields of the syntax tree that say nothing of what is computed


def _syntax(part: Any) -> str:
    """`ast.dump` without docstrings, and without empty fields, which come and go with the version of Python."""
    if isinstance(part, list):
        return f"[{','.join([_syntax(one) for one in part])}]"
    if not isinstance(part, ast.AST):
        return repr(part)
    given = []
    for name in part._fields:
        value = getattr(part, name, None)
        if name == "body" and isinstance(part, DOCUMENTED) and ast.get_docstring(part, clean=False) is not None:
            value = value[1:]
        if name not in IDLE and (value or not (value is None or isinstance(value, list))):
            given.append(f"{name}={_syntax(value)}")
    return f"{type(part).__name__}({','.join(given)})"


def _names(part: Any, source: str) -> set[str]:
    """The names that a function loads from its globals or closure, or that stand anywhere in a class."""
    if isinstance(part, types.FunctionType):
        return _loaded(part.__code__) | set(part.__code__.co_freevars)
    return {node.id for node in ast.walk(_parsed(source)) if isinstance(node, ast.Name)}


def _loaded(code: types.CodeType) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_loaded(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def imported(source: str, package: str = "") -> set[str]:
    """Modules of ours that a source imports, wherever in it the import stands."""
    return _imported(_parsed(source), package)


def _imported(tree: ast.AST, package: str) -> set[str]:
    found = set()
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        else:  # an import is a statement, and stands in no expression
            for name in STATEMENTS:
                waiting.extend(getattr(node, name, ()))
    return {name for name in found if _is_ours(name) and _file(name)}


STATEMENTS = ("body", "orelse", "finalbody", "handlers", "cases")  # the fields of a statement that hold statements


def reached(modules: Iterable[str]) -> set[str]:
    """The modules and, transitively, every module of ours that they import.

    The kernels' package alone stands for itself; with one of its modules, which is how they compute, all of it counts.
    """
    found: set[str] = set()
    waiting = list(modules)
    how = any(module.startswith(f"{KERNELS}.") for module in waiting)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            path = _file(module)
            if path and _is_ours(module) and (how or module != KERNELS):
                waiting.extend(_read(module, path)[1])
    return found


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


@cache
def _file(module: str) -> Path | None:
    """The source file of a module, found without importing anything (`find_spec` would import its parents)."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    if not rest:
        return path
    found = path.parent.joinpath(*rest)
    candidates = (found / "__init__.py", found.with_name(f"{found.name}.py"))
    return next((file for file in candidates if path.name == "__init__.py" and file.is_file()), None)


def module_source(module: str) -> bytes:
    """What a module of ours computes (see `computes`); the name of a module that has no source."""
    path = _file(module)
    return _read(module, path)[0] if path else module.encode()


def _read(module: str, path: Path) -> tuple[bytes, set[str]]:
    """What a module computes, and the modules of ours that it imports."""
    stat = path.stat()
    return _read_once(module, path, stat.st_mtime_ns, stat.st_size)


@cache
def _read_once(module: str, path: Path, changed: int, size: int) -> tuple[bytes, set[str]]:
    source = path.read_bytes()
    try:
        tree = ast.parse(source)
    except SyntaxError:  # half written by an editor
        return source, set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return _syntax(tree).encode(), _imported(tree, package)
