"""What counts as a change of code."""

import os

import pytest

from vlws import fingerprint

CODE = '"""A module."""\n\nRATE = 1\n\n\ndef fn(x):\n    """Double."""\n    return 2 * x  # twice\n'


def sources(tmp_path, monkeypatch, *texts):
    path = tmp_path / "code.py"
    monkeypatch.setattr(fingerprint, "_file", lambda module: path)
    found = []
    for at, text in enumerate(texts):
        path.write_text(text)
        os.utime(path, ns=(at, at))
        found.append(fingerprint.module_source("vlws.code"))
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A module.", "Another."),
        ("Double.", "Twice.\n\n    >>> fn(1)\n    2"),
        ("  # twice", ""),
        ("2 * x", "(2 *  x)"),
    ],
    ids=["docstring of a module", "docstring of a function", "comment", "layout"],
)
def test_what_is_said_of_code_does_not_change_it(tmp_path, monkeypatch, old, new):
    first, second = sources(tmp_path, monkeypatch, CODE, CODE.replace(old, new))
    assert first == second


@pytest.mark.parametrize(("old", "new"), [("RATE = 1", "RATE = 2"), ("2 * x", "3 * x"), ("fn(x)", "fn(x, y=0)")])
def test_what_code_does_changes_it(tmp_path, monkeypatch, old, new):
    first, second = sources(tmp_path, monkeypatch, CODE, CODE.replace(old, new))
    assert first != second


def test_a_module_without_a_file_is_known_by_its_name():
    assert fingerprint.module_source("nowhere.to_be_found") == b"nowhere.to_be_found"
