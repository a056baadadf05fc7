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
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)]
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes) + "\n"
