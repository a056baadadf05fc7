from pathlib import Path

import pytest

from vlws import paths
from vlws.errors import InputError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package in a folder of its own, outside any checkout; and a checkout elsewhere."""
    package = tmp_path / "site-packages" / "vlws" / "paths.py"
    package.parent.mkdir(parents=True)
    monkeypatch.setattr(paths, "__file__", str(package))
    monkeypatch.delenv("VLWS_ROOT", raising=False)
    checkout = tmp_path / "my checkout"
    (checkout / "notebooks" / "claims").mkdir(parents=True)
    return checkout


def test_the_checkout_that_holds_the_package_comes_before_the_one_we_are_in(installed, monkeypatch):
    monkeypatch.chdir(installed)
    held = Path(paths.__file__).parents[1]
    (held / "notebooks").mkdir()
    assert paths.root() == held


@pytest.mark.parametrize("within", [".", "notebooks", "notebooks/claims"])
def test_an_installed_package_finds_the_checkout_that_we_are_in(installed, monkeypatch, within):
    monkeypatch.chdir(installed / within)
    assert paths.root() == installed


def test_a_folder_of_notebooks_is_no_workspace(installed, monkeypatch):
    other = installed.parent / "other"
    (other / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(other)
    with pytest.raises(InputError, match=r"site-packages is no vlws workspace .*/other lies in none; set VLWS_ROOT"):
        paths.root()


def test_a_root_that_was_given_is_not_replaced(installed, monkeypatch):
    monkeypatch.chdir(installed)
    monkeypatch.setenv("VLWS_ROOT", str(installed.parent))
    with pytest.raises(InputError, match=r"is no vlws workspace \(it has no notebooks/ folder\); set VLWS_ROOT"):
        paths.root()
