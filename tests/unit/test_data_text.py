"""The one reader of users' texts: encodings, ends of lines, and faults with file and line."""

import json

import pytest

from vlws.data.text import parse_json, read_json, read_text
from vlws.errors import InputError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("the worker’s\r\n\u2028 plate\x85\n".encode(encoding))
    assert read_text(path) == "the worker’s\n\u2028 plate\x85\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            b"one\ntwo\nthe worker\x92s",
            r"a\.txt, line 3, is not UTF-8 \(byte 0x92\); save the file as UTF-8, as `iconv",
        ),
        ("plate".encode("utf-16-le"), r"a\.txt, line 1, holds a null character, as UTF-16 does"),
        ("plate".encode("utf-16")[:-1], r"a\.txt, line 1, is not UTF-16"),
    ],
)
def test_another_encoding_is_refused(tmp_path, data, says):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError, match=says):
        read_text(tmp_path / "a.txt")


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.txt cannot be read \(No such file or directory\)"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{\n "a": 1,\n "b" 2}', r"a\.json, line 3, is not valid JSON \(Expecting ':' delimiter at column 6\)"),
        ("[" * 100_000, r"a\.json, line 1, is no JSON that can be read"),
        ("9" * 5000, r"a\.json, line 1, is no JSON that can be read"),
    ],
)
def test_faulty_json_is_refused_with_its_line(tmp_path, text, says):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=says) as told:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="line 7"):
        parse_json("{", "a.jsonl", 7)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": "ü"}), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": "ü"}
