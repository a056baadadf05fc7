"""environment.yml, pyproject.toml and constraints.txt name the same things, each once."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.\-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


def test_conda_names_no_python_package():
    conda = {re.split(r"[=<> ]", entry)[0] for entry in ENVIRONMENT if isinstance(entry, str)}
    assert conda == {"python", "pip", "cxx-compiler", "just"}


def test_conda_ends_with_this_project_under_the_constraints():
    *_, last = ENVIRONMENT
    assert last == {"pip": ["-c constraints.txt", "-e .[lab,test]"]}
    assert {"lab", "test"} <= PROJECT["optional-dependencies"].keys()


def test_conda_python_satisfies_the_project():
    python = next(entry for entry in ENVIRONMENT if isinstance(entry, str) and entry.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.removeprefix("python=") + ".0")


def test_every_dependency_that_is_installed_is_pinned_within_its_range():
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][g] for g in ("lab", "test", "bench"))]
    for requirement in (Requirement(line) for group in groups for line in group):
        version = PINS.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} stands in pyproject.toml but is not pinned in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"
