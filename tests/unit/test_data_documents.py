"""Documents: which of their tokens carry labels, and the folders of a user's own."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlws.data.documents import Document, Documents, Slice, read_folder, with_reference, write_folder
from vlws.data.emoji_world import stories, story_sets
from vlws.errors import InputError
from vlws.models.families import load_mllm
from vlws.models.interleave import Reader


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(load_mllm("llava-emoji", "cpu"))


def digest_of_labels(reader: Reader, documents) -> str:
    pictures = 1 + max(s.image for d in documents for s in d.slices)
    features = reader.features(np.zeros((1, 32, 32, 3), np.uint8)).expand(pictures, -1, -1)
    digest = hashlib.sha256()
    for document in documents:
        digest.update(reader.rows([document], features).batch.labels.numpy().tobytes())
    return digest.hexdigest()[:16]


# Written down when labels still hung on `Document.kind`: the shipped llava-emoji learned from these labels.
LABELS = {
    "corpus": "9a3475fe9e6bfda0",
    "retrieval": "060f1d8dfe9c833a",
    "pairs": "c3bee35863468b32",
    "questions": "0e9cc918c8f0677f",
    "sets": "d3df1bbbdda8a495",
    "references": "354170c853fc97f3",
}


def some_documents(name: str) -> tuple[Document, ...]:
    if name == "corpus":
        return stories.corpus(48, 12).documents
    if name == "retrieval":
        split = story_sets.retrieval_split(4, 5)
        return split.captions + split.interleaved
    if name == "pairs":
        return story_sets.pair_set(6, 1).texts + story_sets.winoground(3, 6).texts
    if name == "questions":
        kinds = ("presence", "colour", "what", "where", "several", "order")
        return tuple(d for kind in kinds for d in story_sets.questions(kind, 4, 7).documents)
    if name == "sets":
        sets = (story_sets.twins(6, 8), story_sets.positions(2, 9), story_sets.story_questions(3, 7))
        return tuple(d for found in (*sets, story_sets.sequence_pairs(12, 16)) for d in found.documents)
    base = story_sets.knowledge_base(5, 14)
    return tuple(with_reference(q, item) for q, item in zip(base.queries, base.items[:5], strict=True))


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_those_that_the_shipped_model_learned_from(reader, name):
    assert digest_of_labels(reader, some_documents(name)) == LABELS[name]


def test_sentences_of_stories_and_captions_are_supervised_and_questions_are_not():
    for document in stories.corpus(200, 3).documents:
        assert document.lone is None or not document.lone.supervised
        sentences = [s for s in document.slices if not s.is_image]
        assert not any(s.supervised for s in document.slices if s.is_image)
        if not document.answer:
            assert [s.supervised for s in sentences] == [True]  # a caption
        elif document.choices or sentences[-1].text != stories.LAST_QUESTION:
            assert not any(s.supervised for s in sentences)
        else:
            assert [s.supervised for s in sentences] == [True] * (len(sentences) - 1) + [False]


def test_a_given_answer_is_not_supervised():
    query = Document((Slice(image=0), Slice(text="who?")), answer="anna", choices=("anna", "bert"))
    reference = Document((Slice(image=1), Slice(text="who?")), answer="bert")
    asked = with_reference(query, reference)
    assert [s.text for s in asked.slices] == ["", "who?", "bert.", "", "who?"]
    assert not any(s.supervised for s in asked.slices)
    assert (asked.answer, asked.choices) == (query.answer, query.choices)


def test_pictures_are_rendered_once_and_only_when_asked_for():
    class Album:
        times = 0

        def render(self) -> np.ndarray:
            self.times += 1
            return np.zeros((1, 4, 4, 3), np.uint8)

    album = Album()
    found = Documents((Document((Slice(image=0),)),), album)
    assert len(found) == 1
    assert album.times == 0
    assert found.images is found.images
    assert album.times == 1


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_reads_back_as_it_was_written(tmp_path):
    found = stories.corpus(20, 11)
    pictured = tuple(d for d in found.documents if any(s.is_image for s in d.slices))
    found = replace(found, documents=pictured)
    write_folder(found, tmp_path / "own")
    back = read_folder(tmp_path / "own")
    assert len(back) == len(found)
    for one, two in zip(found.documents, back.documents, strict=True):
        assert [s.text for s in one.slices] == [s.text for s in two.slices]
        assert one.answer == two.answer
        texts = [s for s in two.slices if not s.is_image]
        questions = [texts[-1]] if two.answer and not two.slices[-1].is_image else []
        assert all(s.supervised != any(s is q for q in questions) for s in texts)
        assert two.lone == two.slices[-1]
        assert not two.lone.supervised
        for a, b in zip(one.slices, two.slices, strict=True):
            if a.is_image:
                assert (found.images[a.image] == back.images[b.image]).all()


GOOD = {"slices": [{"image": "a.png"}, {"text": "a red cat."}]}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"slices": [', "line 1, is not valid JSON"),
        (json.dumps({"pictures": []}), "accepted is"),
        (json.dumps({"slices": [{"image": "a.png", "text": "both"}]}), "accepted is"),
        (json.dumps({"slices": [{"image": 3}]}), "accepted is"),
        (json.dumps({"slices": [{"image": "a.png"}]}), "is a document of 1 slice"),
        (json.dumps({"slices": [{"text": "one"}, {"text": "two"}]}), "is a document without pictures"),
        (json.dumps({"slices": [{"image": "b.png"}, {"text": "two"}]}), "names the picture b.png, which is not in"),
        (json.dumps({"slices": [{"image": "a.png"}, {"text": "  "}]}), "has an empty text"),
        (json.dumps(GOOD | {"answer": " "}), "has an empty answer"),
        ("", "holds no document"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, line, told):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "documents.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=told):
        read_folder(tmp_path)


def test_a_missing_folder_or_file_and_a_broken_picture_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no documents\.jsonl"):
        read_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "documents.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(InputError, match="no picture that can be read"):
        read_folder(tmp_path)


def test_lines_end_at_newlines_only_and_names_may_be_written_on_windows(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "sub" / "a.png")
    texts = ["a red\u2028cat.", "a\u0085 dog."]
    lines = [
        {"slices": [{"image": name}, {"text": text}]}
        for name, text in zip(("sub/a.png", "sub\\a.png"), texts, strict=True)
    ]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "documents.jsonl").write_bytes(text.encode("utf-8-sig"))
    found = read_folder(tmp_path)
    assert [document.slices[1].text for document in found.documents] == texts
    assert len(found.images) == 1
