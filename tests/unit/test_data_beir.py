"""Folders of BEIR: what is written is read, each fault is told with file and line, and large files are read fast."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws.data.beir import Collection, read_beir, read_corpus, write_beir
from vlws.errors import InputError

DOCUMENTS = [{"_id": "d1", "title": "Owls", "text": "They hunt at night."}, {"_id": "d2", "text": " A red car. "}]
QUERIES = [
    {"_id": "q1", "text": "owls"},
    {"_id": "q2", "text": "cars", "instruction": "Find a colour."},
    {"_id": "q3", "text": "nobody judges this"},
]
QRELS = "query-id\tcorpus-id\tscore\nq2\td2\t2\nq2\td1\t0\nq1\td1\t1\n"


def jsonl(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "nfcorpus"
    (root / "qrels").mkdir(parents=True)
    (root / "corpus.jsonl").write_text(jsonl(*DOCUMENTS))
    (root / "queries.jsonl").write_text(jsonl(*QUERIES))
    (root / "qrels" / "test.tsv").write_text(QRELS)
    return root


def refused(*sentences: str):
    return pytest.raises(InputError, match=".*".join(map(re.escape, sentences)))


def test_a_folder_of_beir_is_read(folder):
    found = read_beir(folder)
    assert found.documents == {"d1": "Owls They hunt at night.", "d2": "A red car."}
    assert found.queries == {"q1": "owls", "q2": "cars"}  # the third is not judged
    assert list(found.qrels) == ["q1", "q2"]
    assert found.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2, "d1": 0}}
    assert found.instructions == {"q1": "", "q2": "Find a colour."}
    assert read_corpus(folder) == found.documents


def test_windows_and_blank_lines_are_no_fault(folder):
    for file in folder.rglob("*.*l"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n\r\n"))
    (folder / "qrels" / "test.tsv").write_bytes(QRELS.replace("\n", "\r\n").encode())
    (folder / "corpus.jsonl").write_text(jsonl({"_id": "d1", "title": None, "text": "a b"}, DOCUMENTS[1]))
    assert read_beir(folder).documents["d1"] == "a b"
    assert len(read_beir(folder).queries) == 2


def test_the_instruction_of_a_dataset_is_the_first_of_its_name(folder):
    lines = [("scifact", "Find science."), ("nfcorpus", "Find medicine."), ("nfcorpus", "Find another.")]
    rows = [{"dataset": name, "_id": f"i{k}", "text": text} for k, (name, text) in enumerate(lines)]
    (folder.parent / "instructions.jsonl").write_text(jsonl(*rows))
    assert read_beir(folder).instructions == {"q1": "Find medicine.", "q2": "Find a colour."}
    (folder / "instructions.jsonl").write_text(jsonl(rows[0]))  # in the folder, of one dataset: taken whatever its name
    assert read_beir(folder).instructions["q1"] == "Find science."
    (folder / "instructions.jsonl").write_text(jsonl(*rows))
    assert read_beir(folder).instructions["q1"] == "Find medicine."
    (folder / "instructions.jsonl").write_text(jsonl(rows[0], rows[1] | {"dataset": "fever"}))
    with refused("instructions.jsonl is of several datasets (fever, scifact, ...) and none is 'nfcorpus'"):
        read_beir(folder)
    (folder / "instructions.jsonl").write_text(jsonl({"dataset": "nfcorpus"}))
    with refused("instructions.jsonl, line 1, is no JSON object"):
        read_beir(folder)


def test_an_instruction_beside_the_folder_of_other_datasets_is_none(folder):
    (folder.parent / "instructions.jsonl").write_text(jsonl({"dataset": "fever", "_id": "1", "text": "Find it."}))
    assert read_beir(folder).instructions["q1"] == ""


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("corpus.jsonl", "", "corpus.jsonl is empty; accepted is one document or more"),
        ("corpus.jsonl", "not json", "corpus.jsonl, line 1, is not valid JSON"),
        ("corpus.jsonl", jsonl(DOCUMENTS[0], ["d2"]), "corpus.jsonl, line 2, is no JSON object"),
        ("corpus.jsonl", jsonl({"_id": "d1"}), "corpus.jsonl, line 1, is no JSON object"),
        ("corpus.jsonl", jsonl({"_id": "d1", "text": 3}), "corpus.jsonl, line 1, is no JSON object"),
        ("corpus.jsonl", jsonl({"_id": "d1", "title": 3, "text": "a"}), "corpus.jsonl, line 1, is no JSON object"),
        ("corpus.jsonl", jsonl({"_id": 12, "text": "a"}), 'line 1, has the number 12 as its _id; quote it: "12".'),
        ("corpus.jsonl", jsonl({"_id": "", "text": "a"}), "line 1, has an empty _id"),
        ("corpus.jsonl", jsonl({"_id": "d1", "title": " ", "text": ""}), "line 1, has an empty text"),
        ("corpus.jsonl", jsonl(*DOCUMENTS, DOCUMENTS[0]), "line 3, has the _id 'd1' of a line before"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "a"}\n{"_id": "d\xe9"}', "line 2, is not UTF-8 (byte 0xe9)"),
        ("corpus.jsonl", '{"_id": "d1", "text": "\\ud83d"}', "line 1, has half of a surrogate pair"),
        ("queries.jsonl", "[]\n", "queries.jsonl, line 1, is no JSON object"),
        ("queries.jsonl", "{", "queries.jsonl, line 1, is not valid JSON"),
        ("queries.jsonl", jsonl({"_id": "q1"}), "queries.jsonl, line 1, is no JSON object"),
        ("queries.jsonl", jsonl(QUERIES[0] | {"instruction": 3}), "queries.jsonl, line 1, is no JSON object"),
        ("queries.jsonl", jsonl({"_id": 1, "text": "a"}), 'line 1, has the number 1 as its _id; quote it: "1".'),
        ("queries.jsonl", jsonl({"_id": "", "text": "a"}), "line 1, has an empty _id"),
        ("queries.jsonl", jsonl({"_id": "q1", "text": " "}), "queries.jsonl, line 1, has an empty text"),
        ("queries.jsonl", jsonl(QUERIES[0], QUERIES[0]), "queries.jsonl, line 2, has the _id 'q1' of a line before"),
        ("queries.jsonl", jsonl(QUERIES[0]), "qrels/test.tsv names the query 'q2', which is not in queries.jsonl"),
        ("queries.jsonl", jsonl(QUERIES[2]), "names 2 queries, the first 'q2', which are not in queries.jsonl"),
        ("corpus.jsonl", jsonl(DOCUMENTS[1]), "names the document 'd1', which is not in corpus.jsonl"),
        (
            "corpus.jsonl",
            jsonl({"_id": "x", "text": "a"}),
            "names 2 documents, the first 'd2', which are not in corpus",
        ),
        ("qrels/test.tsv", "", "qrels/test.tsv, line 1, is not the header; accepted is"),
        ("qrels/test.tsv", "q1\td1\t1\n", "qrels/test.tsv, line 1, is not the header; accepted is"),
        ("qrels/test.tsv", QRELS.splitlines()[0] + "\n", "qrels/test.tsv judges no query"),
        ("qrels/test.tsv", QRELS + "q1 d2 1\n", "qrels/test.tsv, line 5, has 1 fields; accepted are three"),
        ("qrels/test.tsv", QRELS + "q1\t0\td2\t1\n", "qrels/test.tsv, line 5, has 4 fields; accepted are three"),
        (
            "qrels/test.tsv",
            QRELS + "q1\td2\t0.5\n",
            "qrels/test.tsv, line 5, has the score '0.5'; accepted is an integer",
        ),
        ("qrels/test.tsv", QRELS + "q1\td1\t2\n", "qrels/test.tsv, line 5, gives 'd1' another score for 'q1'"),
        ("qrels/test.tsv", QRELS.encode() + b"q\xff", "qrels/test.tsv, line 5, is not UTF-8"),
    ],
)
def test_files_that_cannot_be_used_are_refused(folder, file, content, told):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(told):
        read_beir(folder)


def test_folders_that_cannot_be_used_are_refused(folder):
    with refused("There is no folder", "nowhere", "accepted is a folder with corpus.jsonl, queries.jsonl and qrels/"):
        read_beir(folder / "nowhere")
    (folder / "qrels" / "dev.tsv").write_text(QRELS)
    with refused("has no qrels/train.tsv, but those of dev, test;"):
        read_beir(folder, "train")
    for name in ("queries.jsonl", "corpus.jsonl"):
        (folder / name).unlink()
        with refused(f"has no {name};"):
            read_beir(folder)


SMALL = Collection({"d1": "an owl"}, {"q1": "owls"}, {"q1": {"d1": 1}}, {"q1": ""})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"documents": {}}, "has no document"),
        ({"queries": {}}, "has no query"),
        ({"documents": {"d1": " "}}, "document 'd1' has an empty text"),
        ({"queries": {"q1": ""}}, "query 'q1' has an empty text"),
        ({"documents": {"d\t1": "a"}}, r"document id 'd\t1' was given; accepted is a text without tabs"),
        ({"documents": {1: "a"}}, "document id 1 was given"),
        ({"qrels": {}}, "query 'q1' has no judgement"),
        ({"qrels": {"q1": {}}}, "query 'q1' has no judgement"),
        ({"qrels": {"q1": {"d1": 1}, "q2": {"d1": 1}}}, "names the query 'q2', which is not in queries.jsonl"),
        ({"qrels": {"q1": {"d2": 1}}}, "names the document 'd2', which is not in corpus.jsonl"),
        ({"instructions": {"q2": "Find it."}}, "instructions name the query 'q2', which is not in the collection"),
        ({"documents": {"d1": "\ud83d"}}, "A text of corpus.jsonl has half of a surrogate pair"),
    ],
)
def test_collections_that_would_not_be_read_are_not_written(tmp_path, change, told):
    with refused(told):
        write_beir(tmp_path / "new", Collection(**(vars(SMALL) | change)))
    assert not list(tmp_path.rglob("*.tsv"))


def test_splits_of_the_same_documents_share_a_folder(tmp_path):
    other = Collection(SMALL.documents, {"q2": "birds"}, {"q2": {"d1": 1}}, {"q2": "Find a fact."})
    write_beir(tmp_path, SMALL, "train")
    write_beir(tmp_path, other)
    assert (read_beir(tmp_path, "train"), read_beir(tmp_path)) == (SMALL, other)
    write_beir(tmp_path, Collection(SMALL.documents, {"q3": "fowl"}, {"q3": {"d1": 1}}))  # the split's old queries go
    assert [json.loads(line)["_id"] for line in (tmp_path / "queries.jsonl").open()] == ["q1", "q3"]
    with refused("has other documents, judged by its split 'train'"):
        write_beir(tmp_path, Collection({"d1": "a car"}, SMALL.queries, SMALL.qrels))
    with refused("has another text or instruction of the query 'q1' in its split 'train'"):
        write_beir(tmp_path, Collection(SMALL.documents, {"q1": "fowl"}, SMALL.qrels))
    with refused("queries.jsonl is a file; accepted is a folder"):
        write_beir(tmp_path / "queries.jsonl", SMALL)


NAMES = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1, max_size=5)
TEXTS = st.text(max_size=20).map(str.strip).filter(bool)


@st.composite
def collections(draw):
    documents = draw(st.dictionaries(NAMES, TEXTS, min_size=1, max_size=4))
    queries = draw(st.dictionaries(NAMES, TEXTS, min_size=1, max_size=4))
    judged = st.dictionaries(st.sampled_from(sorted(documents)), st.integers(-1, 3), min_size=1)
    return Collection(
        documents, queries, {query: draw(judged) for query in queries}, {q: draw(st.text(max_size=9)) for q in queries}
    )


@settings(max_examples=60, deadline=None)
@given(collections())
def test_what_is_written_is_read(tmp_path_factory, collection):
    one, other = (tmp_path_factory.mktemp("beir") for _ in range(2))
    write_beir(one, collection)
    found = read_beir(one)
    assert found == collection
    assert list(found.qrels) == list(found.queries) == list(collection.queries)
    write_beir(other, found)
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_a_large_corpus_is_read_fast(tmp_path):
    text = "word " * 40
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"_id": "{k}", "text": "{text}"}}\n' for k in range(50_000)))
    started = time.process_time()
    assert len(read_corpus(tmp_path)) == 50_000
    assert time.process_time() - started < 3  # 0.2 s where nothing else runs: a million documents take seconds
