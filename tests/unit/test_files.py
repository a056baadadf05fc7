"""Folders are whole or absent."""

from pathlib import Path

import pytest

from vlws.files import replace_folder


def held(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "model"
    for text in ("one", "two"):
        with replace_folder(folder) as part:
            (part / text).write_text(text)
            assert not folder.exists() or held(folder) == {"one": "one"}
        assert held(folder) == {text: text}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_stays_where_filling_its_successor_fails(tmp_path):
    folder = tmp_path / "model"
    with replace_folder(folder) as part:
        (part / "a").write_text("old")

    def fail(part: Path) -> None:
        (part / "a").write_text("new")
        raise RuntimeError

    with pytest.raises(RuntimeError), replace_folder(folder) as part:
        fail(part)
    assert held(folder) == {"a": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
