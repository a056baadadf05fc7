"""The examples in docstrings do what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"vlws": ROOT / "vlws", "vlws_kernels": ROOT / "kernels" / "vlws_kernels"}
MODULES = [
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
    for package, folder in PACKAGES.items()
    for path in sorted(folder.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    told = []
    runner = doctest.DocTestRunner(verbose=False)
    module = importlib.import_module(name)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=told.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(told)


def test_there_are_examples():
    assert {"vlws.own", "vlws.methods.cmg", "vlws.models.clip"} <= set(MODULES)
