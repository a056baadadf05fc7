"""A source is checked whole and cut into parts that are read by their bytes alone; each fault is named by its line."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws.errors import InputError
from vlws.streams import read, scan

WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n\x1c\x1d\x1e\x85\u2028\u2029\x0b\x0c"), min_size=1
)
TEXTS = st.lists(WORDS.filter(lambda text: text.strip() and not text.startswith("\ufeff")), min_size=1, max_size=12)


def whole(path, size):
    found = [read(part) for part in scan(path, size)]
    return [name for ids, _ in found for name in ids], [text for _, texts in found for text in texts]


@settings(deadline=None, max_examples=60)
@given(texts=TEXTS, size=st.integers(1, 13), ends=st.sampled_from(["\n", "\r\n"]), blank=st.booleans())
def test_parts_hold_what_the_source_holds(tmp_path_factory, texts, size, ends, blank):
    folder = tmp_path_factory.mktemp("sources")
    ids = [f"é{k}" for k in range(len(texts))]
    wanted = [text.strip() for text in texts]
    between = ends * (2 if blank else 1)

    def written(name, lines):
        path = folder / name
        path.write_bytes(between.join(lines).encode())
        return path

    named = list(zip(ids, texts, strict=True))
    rows = [json.dumps({"_id": k, "text": text}, ensure_ascii=len(text) % 2 == 0) for k, text in named]
    assert whole(written("a.jsonl", rows), size) == (ids, wanted)
    quoted = [f'"{text.replace(chr(34), chr(34) * 2)}",{k}' for k, text in named]
    assert whole(written("a.csv", ["text,id", *quoted]), size) == (ids, wanted)
    lines = range(1, 2 * len(texts), 2) if blank else range(1, len(texts) + 1)
    assert whole(written("a.txt", texts), size) == ([f"a.txt:{line}" for line in lines], wanted)


def test_a_field_in_quotes_may_hold_line_ends(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\na,"an\nowl"\nb,"a ""red"" car"\nc,"x\n\ny"\n')
    parts = scan(tmp_path / "a.csv", 1)
    assert [read(part) for part in parts] == [(["a"], ["an\nowl"]), (["b"], ['a "red" car']), (["c"], ["x\n\ny"])]
    (tmp_path / "a.tsv").write_text("wort\nEule\n")
    (part,) = scan(tmp_path / "a.tsv", 5, text="wort")
    assert read(part) == (["a.tsv:2"], ["Eule"])


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfowl\ncar\n")
    assert [read(part)[1] for part in scan(tmp_path / "a.txt", 1)] == [["owl"], ["car"]]


def refused(*sentences):
    return pytest.raises(InputError, match=".*".join(map(re.escape, sentences)))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", "", "a.jsonl is empty; accepted is one document or more"),
        ("a.txt", "\n \n", "a.txt is empty; accepted is one document or more"),
        ("a.pdf", "x", "a.pdf is no file of documents; accepted is a folder of"),
        ("a.jsonl", '{"text": "owl"}\n{"text": ""}', "a.jsonl, line 2, has an empty text; accepted"),
        ("a.jsonl", '{"text": "owl"}\n\n{"body": "car"}', "a.jsonl, line 3, is no JSON object"),
        ("a.jsonl", "[1]", "a.jsonl, line 1, is no JSON object"),
        ("a.jsonl", "{", "a.jsonl, line 1, is not valid JSON"),
        ("a.jsonl", '{"_id": 3, "text": "owl"}', 'line 1, has the number 3 as its id; quote it: "3"'),
        ("a.jsonl", '{"_id": "", "text": "owl"}', "line 1, has an empty id"),
        ("a.jsonl", '{"_id": "a", "text": "b"}\n{"_id": "a", "text": "c"}', "line 2, has the id 'a' of a line before"),
        ("a.jsonl", '{"text": "\\ud83d"}', "line 1, has half of a surrogate pair"),
        ("a.csv", "title\nowl\n", "a.csv has the columns title; accepted is a header with a column 'text'"),
        ("a.csv", "text,id\nowl\n", "a.csv, line 2, has 1 fields; accepted is a row of 2 fields"),
        ("a.csv", 'text\n"owl" x\n', "a.csv, line 2, is no row of a table"),
        ("a.csv", "text\n", "a.csv is empty; accepted is one document or more"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with refused(told):
        scan(tmp_path / name, 10)


def test_other_faults_are_refused(tmp_path):
    with refused("There is no file or folder", "nowhere"):
        scan(tmp_path / "nowhere", 10)
    with refused("holds no document; accepted is a folder of .txt and .md files"):
        scan(tmp_path, 10)
    (tmp_path / "a.txt").write_bytes(b"owl\ncaf\xe9\n")
    with refused("a.txt, line 2, is not UTF-8 (byte 0xe9); save the file as UTF-8"):
        scan(tmp_path / "a.txt", 10)
    (tmp_path / "a.txt").write_bytes(b"owl\0\n")
    with refused("a.txt, line 1, holds a null character"):
        scan(tmp_path / "a.txt", 10)
    (tmp_path / "a.jsonl").write_text('{"_id": "a", "text": "b"}')
    with refused("line 1, has the id 'a', which the index has already; accepted is each once"):
        scan(tmp_path / "a.jsonl", 10, taken=lambda: ["a"])
    with refused("A shard of 0 documents was asked for; accepted is 1 or more"):
        scan(tmp_path / "a.jsonl", 0)


def test_a_source_that_changes_between_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("owl\ncar\n")
    (_, part) = scan(tmp_path / "a.txt", 1)
    (tmp_path / "a.txt").write_text("owl\ncat\n")
    with refused("a.txt has changed while it was read; run the command again"):
        read(part)
