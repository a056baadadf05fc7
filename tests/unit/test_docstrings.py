"""The examples in docstrings do what they show, and what a reader calls has one."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"vlws": ROOT / "vlws", "vlws_kernels": ROOT / "kernels" / "vlws_kernels"}
FILES = {
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for package, folder in PACKAGES.items()
    for path in sorted(folder.rglob("*.py"))
}
MODULES = [name for name, path in FILES.items() if ">>> " in path.read_text(encoding="utf-8")]


# whose public names a reader of the API pages or of a notebook calls: each has a docstring and is shown by an example
SCOPE = ("vlws.methods", "vlws.models", "vlws.data")
SCOPE += tuple(
    f"vlws.{name}" for name in ("stats", "experiment", "claims", "own", "train", "plots", "display", "verdicts")
)
NO_EXAMPLE = {  # module or name -> why it has none
    "vlws.models.families.InstructBlipAdapter": "no small InstructBLIP ships; its steps are those of Adapter",
    "vlws.models.families.QwenVLAdapter": "no small Qwen2.5-VL ships; its steps are those of Adapter",
    "vlws.data.emoji_world.build.build": "reads a font and packages of Node that only the builder of the data has",
    "vlws.data.wordnet.build": "reads the files of Debian's wordnet-base, which only the builder of the data has",
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)


class Finder(doctest.DocTestFinder):
    """Finds the examples of decorated functions too, whose globals are those of the decorator's module."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object))


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.delenv("VLWS_RUN", raising=False)
    monkeypatch.setenv("VLWS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VLWS_CACHE", str(tmp_path / "cache"))
    told = []
    runner = doctest.DocTestRunner(verbose=False)
    module = importlib.import_module(name)
    for example in Finder(exclude_empty=True).find(module, name):
        runner.run(example, out=told.append, clear_globs=False)
    found = runner.summarize(verbose=False)
    assert found.failed == 0, "".join(told)
    written = doctest.DocTestParser().get_examples(_docstrings(FILES[name]))
    assert found.attempted == len(written), "some examples are not run"


def _docstrings(path: Path) -> str:
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, DOCUMENTED)]
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes) + "\n"


# --- what has an example ---


def scope() -> dict[str, set[str] | None]:
    """Module -> those of its names that are public; None is all without an underscore."""
    found: dict[str, set[str] | None] = {
        name: None for name in FILES if any(name == top or name.startswith(f"{top}.") for top in SCOPE)
    }
    for node in ast.parse(FILES["vlws_kernels"].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            found[str(node.module)] = {alias.name for alias in node.names}
    return found


def unshown(sources: dict[str, str], public: dict[str, set[str] | None]) -> list[str]:
    """Public names without a docstring or an example, each in one sentence.

    A class has an example of its own; so has each public method, or the example of its class (or of a base class that
    has the method too) uses it.
    """
    told, classes = [], {}
    for module, source in sources.items():
        tops = [n for n in ast.parse(source).body if isinstance(n, (ast.ClassDef, *FUNCTIONS))]
        names = public[module]
        for node in tops:
            if node.name.startswith("_") or (names is not None and node.name not in names):
                continue
            told += _lacks(f"{module}.{node.name}", node, bool(_examples(node)))
            if isinstance(node, ast.ClassDef):
                classes[node.name] = (module, node)
    for name, (module, node) in classes.items():
        for method in _methods(node):
            told += _lacks(f"{module}.{name}.{method.name}", method, _is_shown(method.name, name, classes))
    return told


def _lacks(name: str, node: ast.AST, shown: bool) -> list[str]:
    documented = bool(ast.get_docstring(node)) or name.endswith(".forward")
    return [f"{name} has no docstring"] * (not documented) + [f"{name} is shown by no example"] * (not shown)


def _examples(node: ast.AST) -> str:
    return "\n".join(one.source for one in doctest.DocTestParser().get_examples((ast.get_docstring(node) or "") + "\n"))


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [part for part in node.body if isinstance(part, FUNCTIONS) and not part.name.startswith("_")]


def _is_shown(method: str, name: str, classes: dict[str, tuple[str, ast.ClassDef]]) -> bool:
    _, node = classes[name]
    own = next((part for part in _methods(node) if part.name == method), None)
    parts = list(ast.walk(ast.parse(_examples(node))))
    used = {part.attr for part in parts if isinstance(part, ast.Attribute)}
    used |= {part.name for part in parts if isinstance(part, FUNCTIONS)}  # what the example of a protocol writes
    if own and (_examples(own) or method in used or (method == "forward" and _examples(node))):
        return True
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    return any(_is_shown(method, base, classes) for base in bases)


def test_what_a_reader_calls_is_shown_by_an_example():
    public = scope()
    told = unshown({module: FILES[module].read_text(encoding="utf-8") for module in public}, public)
    assert [one for one in told if not any(one.startswith((f"{name}.", f"{name} ")) for name in NO_EXAMPLE)] == []


def test_a_reason_stands_only_for_what_is_there():
    names = {f"{module}.{name}" for module in scope() for name in vars(importlib.import_module(module))}
    assert [name for name in NO_EXAMPLE if name not in names | set(FILES)] == []


SHOWN = """
class A:
    '''A.

    >>> A().used()
    '''

    def used(self):
        '''Used.'''

    def forward(self, x):
        return x

class B(A):
    '''B.

    >>> B()
    '''

    def used(self):
        '''Used otherwise.'''

def f():
    '''F.

    >>> f()
    '''

def _private(): ...
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (">>> A().used()", ">>> A()", "m.A.used is shown by no example"),
        (">>> A().used()", ">>> A()  # used", "m.A.used is shown by no example"),
        ("'''Used.'''", "...", "m.A.used has no docstring"),
        (">>> f()", "f()", "m.f is shown by no example"),
        (">>> B()", "B()", "m.B is shown by no example"),
        ("_private", "public", "m.public has no docstring"),
        ("class B(A)", "class B", "m.B.used is shown by no example"),
    ],
)
def test_what_is_not_shown_is_found(old, new, problem):
    assert unshown({"m": SHOWN}, {"m": None}) == []
    assert old in SHOWN
    assert problem in unshown({"m": SHOWN.replace(old, new)}, {"m": None})
    assert unshown({"m": SHOWN.replace(old, new)}, {"m": set()}) == []


def test_there_are_examples():
    assert {"vlws.own", "vlws.methods.cmg", "vlws.models.clip"} <= set(MODULES)
