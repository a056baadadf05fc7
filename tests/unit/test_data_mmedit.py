"""Files of MMEdit: what is written is read, prompts are EasyEdit's, and each fault is told with its file and record."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vlws.data.emoji_world import edit_cases, facts
from vlws.data.mmedit import EditCase, Question, read_mmedit, write_mmedit
from vlws.errors import InputError

RECORD = {
    "src": "Who made this?",
    "pred": "tom",
    "alt": "mira",
    "rephrase": "Whose work is this?",
    "image": "a/one.png",
    "image_rephrase": "a/two.png",
    "loc": "nq question: who wrote it",
    "loc_ans": "Borges",
    "m_loc": "three.png",
    "m_loc_q": "What colour?",
    "m_loc_a": "red",
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a").mkdir()
    for shade, name in enumerate(("a/one.png", "a/two.png", "three.png"), start=1):
        Image.new("RGB", (8, 6), (shade, 0, 0)).save(tmp_path / name)
    return tmp_path


def written(root, *records):
    path = root / "edits.json"
    path.write_text(json.dumps(list(records)))
    return path


def shade(question: Question) -> int:
    return question.images[0].getpixel((0, 0))[0]


def test_a_record_is_a_case_with_easyedits_prompts(root):
    (case,) = read_mmedit(written(root, RECORD), root)
    assert case.edit.text == "<image> Question: Who made this? Short answer:"
    assert case.text_generality.text == "<image> Question: Whose work is this? Short answer:"
    assert case.image_generality.text == case.edit.text
    assert case.image_locality.text == "<image> Question: What colour? Short answer:"
    assert case.text_locality == Question("nq question: who wrote it", (), "Borges")
    assert [q.answer for _, q in case.questions()] == ["mira", "mira", "mira", "Borges", "red"]
    assert [shade(q) for _, q in case.questions() if q.images] == [1, 1, 2, 3]
    assert case.predicted == "tom"


def test_captions_are_asked_as_they_stand(root):
    caption = RECORD | {"src": "a photo of", "rephrase": "a picture of ", "alt": "a red owl"}
    (case,) = read_mmedit(written(root, caption), root, prompt="{}")
    assert (case.edit.text, case.text_generality.text) == ("<image> a photo of", "<image> a picture of")
    assert case.image_locality.text == "<image> Question: What colour? Short answer:"


def test_only_the_first_records_are_read_where_that_is_asked(root):
    later = RECORD | {"src": "When?", "image": "nowhere.png"}
    assert len(read_mmedit(written(root, RECORD, later), root, n=1)) == 1


def test_a_known_answer_is_kept_where_that_is_asked(root):
    path = written(root, RECORD | {"alt": " tom "})
    assert read_mmedit(path, root, keep_known=True)[0].edit.answer == "tom"


@pytest.mark.parametrize("prompt", ["{}", "Question: {} Short answer:"])
def test_what_is_written_is_read(tmp_path, prompt):
    found = edit_cases.cases(facts.make_world(0), "dev", 0)[:3]
    given = [replace(case, predicted="oslo") for case in found]
    prompts = {"prompt": prompt, "locality_prompt": "{}"}
    write_mmedit(tmp_path / "new" / "edits.json", tmp_path / "pictures", given, **prompts)
    again = read_mmedit(tmp_path / "new" / "edits.json", tmp_path / "pictures", **prompts)
    assert len(again) == 3
    for one, other in zip(given, again, strict=True):
        assert other.predicted == "oslo"
        for (kind, a), (kind_read, b) in zip(one.questions(), other.questions(), strict=True):
            around = prompt if kind in ("reliability", "text_generality", "image_generality") else "{}"
            text = a.text.replace("<image> ", "")
            assert (kind_read, b.answer) == (kind, a.answer)
            assert b.text.replace("<image> ", "") == around.format(text)
            assert b.text.count("<image>") == len(a.images)
            assert all(np.array_equal(p, np.asarray(q)) for p, q in zip(a.images, b.images, strict=True))
    write_mmedit(tmp_path / "again.json", tmp_path / "pictures", again, **prompts)
    first, second = (json.loads((tmp_path / n).read_text()) for n in ("new/edits.json", "again.json"))
    assert first == second


def without(name: str) -> dict:
    return {key: value for key, value in RECORD.items() if key != name}


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([RECORD, without("loc_ans")], r"edits\.json, record 1, lacks loc_ans; accepted are records with src, pred"),
        ([without("pred")], "record 0, lacks pred"),
        ([RECORD | {"alt": ""}], 'record 0, has "" as its alt; accepted is a text of a word or more'),
        ([RECORD | {"alt": None}], "record 0, has null as its alt"),
        ([RECORD | {"m_loc_a": " "}], 'record 0, has " " as its m_loc_a'),
        ([RECORD | {"alt": "tom"}], r"record 0, has the target 'tom', which the model says already.*keep_known=True"),
        ([RECORD | {"image": "b.png"}], r"record 0, names the picture b\.png, which is not in "),
        ([RECORD | {"image_rephrase": "b.png"}], r"record 0, names the picture b\.png"),
        ([RECORD | {"m_loc": "b.png"}], r"record 0, names the picture b\.png"),
        (
            [RECORD, RECORD | {"rephrase": "By whom?"}],
            r"edits\.json, records 0 and 1, ask the same of the same picture",
        ),
        ([RECORD | {"loc": "<image> who?"}], "record 0, holds <image> in its loc; .*, since its question has no pict"),
        ([RECORD | {"m_loc_q": "<image> who?"}], "record 0, holds <image> in its m_loc_q; .* put before the question"),
        ([RECORD | {"near": ["who?"]}], 'record 0, has another "near" than'),
        ([RECORD | {"near": [{"image": "b.png", "question": "Who?", "answer": "a"}]}], r"the picture b\.png"),
        ([RECORD | {"near": [{"image": "three.png", "question": "", "answer": "a"}]}], 'has "" as its near question 0'),
        ([["src"]], "record 0, is a list; accepted is an object with src"),
        ([], r"edits\.json is no list of records"),
    ],
)
def test_records_that_cannot_be_used_are_refused(root, records, told):
    with pytest.raises(InputError, match=told):
        read_mmedit(written(root, *records), root)


def test_files_and_arguments_that_cannot_be_used_are_refused(root):
    path = written(root, RECORD)
    with pytest.raises(InputError, match="prompt 'Question:' was given; accepted is a text with one"):
        read_mmedit(path, root, prompt="Question:")
    with pytest.raises(InputError, match=r"prompt '<image> .*' was given"):
        write_mmedit(path, root, read_mmedit(path, root), locality_prompt="<image> {}")
    with pytest.raises(InputError, match="n=0 was given"):
        read_mmedit(path, root, n=0)
    with pytest.raises(InputError, match="cannot be read"):
        read_mmedit(root / "none.json", root)
    (root / "three.png").write_text("no picture")
    with pytest.raises(InputError, match=r"three\.png is no picture"):
        read_mmedit(path, root)
    path.write_text('{"src": "one"}')
    with pytest.raises(InputError, match="is no list of records"):
        read_mmedit(path, root)


def case(**changes) -> EditCase:
    picture = (np.zeros((4, 4, 3), np.uint8),)
    edit = Question("<image> who?", picture, "mira")
    parts = dict(edit=edit, text_generality=edit, image_generality=edit, image_locality=edit)
    return EditCase(**(parts | {"text_locality": Question("where?", (), "oslo")} | changes))


OTHER = (np.ones((4, 4, 3), np.uint8),)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text_locality": Question("<image> a", OTHER, "b")}, "Case 0 has 1 pictures .*text_locality; .* no picture"),
        ({"edit": Question("who?", (), "mira")}, "Case 0 has 0 pictures for 'who.', its reliability; MMEdit holds one"),
        (
            {"image_locality": Question("see <image>", OTHER, "b")},
            "image_locality; MMEdit holds one picture, <image> b",
        ),
        ({"near": (Question("<image> a", (torch.zeros(2, 3),), "b"),)}, "The picture of case 0's near is a Tensor"),
        ({"image_generality": Question("<image> who?", OTHER, "tom")}, "Case 0 has another answer for its generality"),
        ({"image_generality": Question("<image> whose?", OTHER, "mira")}, "Case 0 has a text generality with another"),
        ({"text_generality": Question("<image> whose?", OTHER, "mira")}, "Case 0 has a text generality with another"),
    ],
)
def test_cases_that_mmedit_cannot_hold_are_refused_before_anything_is_written(tmp_path, changes, told):
    with pytest.raises(InputError, match=told):
        write_mmedit(tmp_path / "edits.json", tmp_path / "pictures", [case(**changes)])
    assert not list(tmp_path.iterdir())


def test_no_cases_are_refused(tmp_path):
    with pytest.raises(InputError, match="No cases were given"):
        write_mmedit(tmp_path / "edits.json", tmp_path, [])
