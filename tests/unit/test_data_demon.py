"""DEMON's files as the benchmark lays them out, its rules of scoring, and none of its script's faults."""

import json
import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlws.data import demon
from vlws.data.demon import CHOICE, OPEN, Sample, Task, chosen, lcs, normalise, read_demon, rouge_l, score, summary
from vlws.errors import InputError

# a sample of each kind, in the words of the benchmark's own READMEs
SPOT = {
    "metadata": {
        **{"dataset": "Spot-the-Diff", "split": "core", "num_sample": 1, "question_type": "open-ended"},
        "task_instruction": [f"What's the difference ({k})? " for k in range(10)],
    },
    "data": [
        {
            **{"sample_id": 0, "task_instruction_id": 9},
            "task_instance": {"context": "{image#1}{image#2}Difference:", "images_path": ["0.jpg", "1.jpg"]},
            "response": "person with umbrella is gone. person with red coat is moved.",
        }
    ],
}
ALFRED = {
    "metadata": {
        **{"dataset": "ALFRED", "split": "core", "num_sample": 1, "question_type": ""},
        "task_instruction": ["Give you a main goal, figure out what to do now."],
    },
    "data": [
        {
            **{"sample_id": 3, "task_instruction_id": 0},
            "task_instance": {
                "context": "Your Main Goal: Place a soap. {image#1}Step#1: Turn left. {image#2} Current Step: ",
                "images_path": ["6.jpg", "7.jpg"],
            },
            "response": "Place the soap container on the counter in between the two sinks.",
        }
    ],
}
MMQA = {
    "metadata": {
        **{"dataset": "MMQA", "split": "core", "num_sample": 1, "question_type": "multi-choice"},
        "task_instruction": ["Answer. You must choose your answer from the Choice List. "],
    },
    "data": [
        {
            **{"sample_id": 0, "task_instruction_id": 0},
            "task_instance": {
                "context": "Global Table: {table#1} Context: {image#2} Question: What sports is the movie title?",
                "images_path": ["0.png", "1.jpg"],
                "choice_list": ["soccer", "baseball", "basketball", "football"],
            },
            "response": "baseball",
        }
    ],
}
VISUAL_CLOZE = {
    "metadata": {
        **{"dataset": "RecipeQA_VisualCloze", "split": "core", "num_sample": 1, "question_type": "multi-choice"},
        "task_instruction": ["Select the most suitable image. "],
    },
    "data": [
        {
            **{"sample_id": 0, "task_instruction_id": 0},
            "task_instance": {
                "context": "Recipe: smoker Series: {image#1} UNKNOWN\nChoice List:['Image A: {image#2}', "
                "'Image B: {image#3}'] Your answer to replace 'UNKNOWN' is:",
                "images_path": ["0.jpg", "1.jpg", "2.jpg"],
            },
            "response": "Image B",
        }
    ],
}
REAL = {"Visual Relation Inference": SPOT, "Multi-Modal Dialogue": ALFRED, "Knowledge Grounded QA": MMQA}
REAL["Multi-Modal Cloze"] = VISUAL_CLOZE


def lay(root, content: dict) -> None:
    """A task's folder, as unpacked: <task>/core/core.json and images/."""
    folder = root / content["metadata"]["dataset"] / "core"
    (folder / "images").mkdir(parents=True)
    (folder / "core.json").write_text(json.dumps(content))
    for row in content["data"]:
        for k, name in enumerate(row["task_instance"]["images_path"]):
            Image.new("RGB", (8, 8), (10 * k, 0, 0)).save(folder / "images" / name)


def copy(content: dict) -> dict:
    return json.loads(json.dumps(content))


def task(kind: str, response: str, choices=(), name="t", category="c") -> Task:
    return Task(name, category, kind, ("say. ",), (Sample(0, 0, "say. ", "{image#1}", (), tuple(choices), response),))


def refused(sentence: str):
    return pytest.raises(InputError, match=re.escape(sentence))


# --- reading ----------------------------------------------------------------------------------------------------


def test_a_real_folder_is_read_unchanged(tmp_path):
    for category, content in REAL.items():
        lay(tmp_path / category, content)
    tasks = {t.name: t for t in read_demon(tmp_path)}
    assert {t.name: t.category for t in tasks.values()} == {
        content["metadata"]["dataset"]: category for category, content in REAL.items()
    }
    spot = tasks["Spot-the-Diff"].samples[0]
    assert spot.prompt == "What's the difference (9)? <image><image>Difference:"
    assert [np.asarray(picture)[0, 0, 0] for picture in spot.pictures()] == pytest.approx([0, 10], abs=3)
    assert tasks["ALFRED"].question_type == OPEN  # its README leaves the type empty
    mmqa = tasks["MMQA"].samples[0]
    assert mmqa.prompt.endswith(
        "Global Table: <image> Context: <image> Question: What sports is the movie title?"
        "Choice list:['soccer', 'baseball', 'basketball', 'football']. Your answer is:"
    )
    cloze = tasks["RecipeQA_VisualCloze"].samples[0]
    assert cloze.choices == ()
    assert cloze.prompt.count("<image>") == 3
    perfect = {t: score(t, [s.response for s in t.samples]) for t in tasks.values()}
    assert summary(perfect).score.tolist() == [100] * 5


def test_one_task_folder_or_its_core_folder_will_do(tmp_path):
    lay(tmp_path, MMQA)
    for folder in (tmp_path / "MMQA", tmp_path / "MMQA" / "core"):
        (found,) = read_demon(folder)
        assert (found.name, found.category) == ("MMQA", "Knowledge Grounded QA")


def test_pictures_come_in_the_order_of_their_marks(tmp_path):
    content = copy(SPOT)
    content["data"][0]["task_instance"]["context"] = "{image#2} then {image#1} and {image#2}"
    lay(tmp_path, content)
    sample = read_demon(tmp_path)[0].samples[0]
    reds = [np.asarray(picture)[0, 0, 0] for picture in sample.pictures()]
    assert reds == pytest.approx([10, 0, 10], abs=3)
    assert sample.prompt.count("<image>") == 3


def test_one_text_is_a_list_of_one(tmp_path):
    content = copy(SPOT)
    content["metadata"]["task_instruction"] = "Say what changed. "
    content["data"][0] |= {"task_instruction_id": 0}
    content["data"][0]["task_instance"] = {"context": "{image#1}What is it?", "images_path": "0.jpg"}
    lay(tmp_path, SPOT)
    (tmp_path / "Spot-the-Diff" / "core" / "core.json").write_text(json.dumps(content))
    (found,) = read_demon(tmp_path)
    assert found.instructions == ("Say what changed. ",)
    assert found.samples[0].prompt == "Say what changed. <image>What is it?"
    assert [path.name for path in found.samples[0].images] == ["0.jpg"]


def test_names_written_on_windows_and_files_with_a_byte_order_mark_are_read(tmp_path):
    content = copy(SPOT)
    content["data"][0]["task_instance"]["images_path"] = ["0.jpg", "..\\images\\1.jpg"]
    lay(tmp_path, SPOT)
    core = tmp_path / "Spot-the-Diff" / "core"
    (core / "core.json").write_text(json.dumps(content), encoding="utf-8-sig")
    (core / ".ipynb_checkpoints").mkdir()
    (core / ".ipynb_checkpoints" / "core.json").write_text("{")
    (found,) = read_demon(tmp_path)
    assert [path.name for path in found.samples[0].images] == ["0.jpg", "1.jpg"]


def test_choices_in_the_context_are_found(tmp_path):
    content = copy(MMQA)
    instance = content["data"][0]["task_instance"]
    instance["context"] += " Choice List:['soccer', 'baseball'] Your answer is:"
    del instance["choice_list"]
    lay(tmp_path, content)
    (found,) = read_demon(tmp_path)
    assert found.samples[0].choices == ("soccer", "baseball")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda c: c["metadata"].update(question_type="essay"),
            "question_type='essay'; accepted are open-ended, multi-",
        ),
        (
            lambda c: c["data"][0].update(task_instruction_id=10),
            "sample 0: task_instruction_id=10; the task has instruc",
        ),
        (lambda c: c["data"][0].pop("response"), "lacks the field 'response'; see the data format of DEMON."),
        (lambda c: c.update(data=[]), "holds no sample."),
        (
            lambda c: c["metadata"].update(task_instruction=[1]),
            "task_instruction=[1]; accepted is a text, or a list of",
        ),
        (
            lambda c: c["data"][0]["task_instance"].update(choice_list="red, green"),
            "sample 0: choice_list='red, green'; accepted is a list of options.",
        ),
        (lambda c: c.update(data=3), "does not have DEMON's structure"),
        (
            lambda c: c["data"][0]["task_instance"].update(context="{image#1}{image#3}"),
            "sample 0: the context names {image#3}, but images_path lists 2 pictures.",
        ),
        (
            lambda c: c["data"][0]["task_instance"].update(context="{image#one}"),
            "sample 0: the context names {image#one}, but images_path lists 2 pictures.",
        ),
        (
            lambda c: (c["metadata"].update(question_type="multi-choice"), c["data"][0].update(response="blue")),
            "sample 0: a multi-choice sample needs a choice_list, or a response such as 'Image A'.",
        ),
        (
            lambda c: (
                c["metadata"].update(question_type="multi-choice"),
                c["data"][0]["task_instance"].update(choice_list=["red", "green"]),
                c["data"][0].update(response="blue"),
            ),
            "sample 0: the response 'blue' is none of its choices (red, green).",
        ),
    ],
)
def test_a_faulty_file_is_refused_in_a_sentence(tmp_path, change, sentence):
    content = copy(SPOT)
    change(content)
    (tmp_path / "core.json").write_text(json.dumps(content))
    for name in ("0.jpg", "1.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with refused(sentence):
        read_demon(tmp_path)


def test_missing_and_broken_files_are_refused(tmp_path):
    with refused("does not exist; give one that holds <task>/core/core.json."):
        read_demon(tmp_path / "none")
    with refused("holds no core.json; a DEMON task is a folder with core.json and images/."):
        read_demon(tmp_path)
    lay(tmp_path, SPOT)
    folder = tmp_path / "Spot-the-Diff" / "core"
    (folder / "images" / "1.jpg").write_bytes(b"no picture")
    with refused("1.jpg is no picture that can be read (UnidentifiedImageError); remove or replace it."):
        read_demon(tmp_path)[0].samples[0].pictures()
    (folder / "images" / "1.jpg").unlink()
    with pytest.raises(InputError, match=r"core\.json, sample 0: the picture .*1\.jpg is missing\."):
        read_demon(tmp_path)
    (folder / "core.json").write_text('{"metadata": ')
    with refused("core.json, line 1, is not valid JSON"):
        read_demon(tmp_path)


def test_a_task_twice_is_refused(tmp_path):
    for part in ("DEMON-Core", "DEMON-Full"):
        lay(tmp_path / part, MMQA)
    with refused("holds the task MMQA 2 times; give one of its folders."):
        read_demon(tmp_path)


def test_an_unknown_task_is_its_own_category(tmp_path):
    content = copy(SPOT)
    content["metadata"]["dataset"] = "MyTask"
    lay(tmp_path, content)
    assert read_demon(tmp_path)[0].category == "MyTask"


# --- predictions ------------------------------------------------------------------------------------------------


def test_predictions_are_written_for_the_benchmarks_script_and_read_back_in_any_order(tmp_path):
    samples = tuple(Sample(k, 0, "i", "c", (), (), f"truth {k}") for k in range(3))
    some = Task("t", "c", OPEN, ("i",), samples)
    path = demon.write_predictions(tmp_path, some, ["a", "b", "ü"])
    assert path == tmp_path / "t" / "pred.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows[2] == {"sample_id": 2, "pred_response": "ü", "gt_response": "truth 2"}
    path.write_text(json.dumps([{**row, "sample_id": str(row["sample_id"])} for row in rows[::-1]]))
    assert demon.read_predictions(tmp_path, some) == ["a", "b", "ü"]
    assert [p.name for p in path.parent.iterdir()] == ["pred.json"]


def test_predictions_that_do_not_fit_are_refused(tmp_path):
    some = task(OPEN, "blue")
    with refused("2 answers were given to t; it has 1 samples."):
        score(some, ["a", "b"])
    with refused("2 answers were given to t; it has 1 samples."):
        demon.write_predictions(tmp_path, some, ["a", "b"])
    with refused("pred.json cannot be read (No such file or directory)."):
        demon.read_predictions(tmp_path, some)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "pred.json").write_text('[{"sample_id": 7, "pred_response": "x"}]')
    with refused("pred.json has no answer to sample 0 of t."):
        demon.read_predictions(tmp_path, some)
    (tmp_path / "t" / "pred.json").write_text('[{"sample_id": 7}]')
    with refused("pred.json is no list of sample_id and pred_response (KeyError"):
        demon.read_predictions(tmp_path, some)


# --- ROUGE-L ----------------------------------------------------------------------------------------------------


def slow_lcs(a: tuple, b: tuple) -> int:
    """By the definition: the recurrence of Lin 2004, section 2."""

    @cache
    def length(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if a[i - 1] == b[j - 1]:
            return length(i - 1, j - 1) + 1
        return max(length(i - 1, j), length(i, j - 1))

    return length(len(a), len(b))


WORDS = st.lists(st.sampled_from("abcd"), max_size=80)


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS)
def test_lcs_is_the_longest_common_subsequence(a, b):
    assert lcs(a, b) == slow_lcs(tuple(a), tuple(b)) == lcs(b, a)


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_rouge_l_is_the_harmonic_mean_of_precision_and_recall(a, b):
    common = slow_lcs(tuple(a), tuple(b))
    value = rouge_l(" ".join(a), " ".join(b))
    if common == 0:
        assert value == 0
    else:
        precision, recall = common / len(a), common / len(b)
        assert value == pytest.approx(2 * precision * recall / (precision + recall))
    assert rouge_l(" ".join(a), " ".join(a)) == (1.0 if a else 0.0)


def test_rouge_l_of_lins_examples():
    """Lin 2004, section 2.3: police kill the gunman / the gunman kill police, against police killed the gunman."""
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == 0.75
    assert rouge_l("the gunman kill police", reference) == 0.5
    assert rouge_l("the gunman police killed", reference) == 0.5


def test_open_answers_are_normalised_and_repeated_words_count_each_time():
    some = task(OPEN, "The red cat, the red dog, is gone.")
    assert score(some, ["the red cat the red dog is gone"])[0] == 1
    assert score(some, [""])[0] == 0
    assert score(some, ["the"])[0] == pytest.approx(2 / 9)


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Yes, Sir!\n", "yes sir"),
        ("T-shirt", "t shirt"),
        ("a well-known - thing", "a wellknown  thing"),
        ("It is 3.5 m. Right.", "it is 3.5 m right"),
        ("1,000", "1000"),
        ("'quoted'", "quoted"),
        (". ".join("abcdefghijklmnopqrstuvwxyzabcdefghijklmn"), " ".join("abcdefghijklmnopqrstuvwxyzabcdefghijklmn")),
    ],
)
def test_normalising(text, plain):
    assert normalise(text) == plain


def test_an_exact_option_wins_else_the_nearest_by_tfidf():
    choices = ["a red cat", "a blue cat", "a red fish"]
    assert chosen("a blue cat", choices) == "a blue cat"
    assert chosen("i think it is the blue one", choices) == "a blue cat"
    some = task(CHOICE, "a blue cat", choices)
    assert score(some, ["A blue cat."]).tolist() == [1.0]
    assert score(some, ["surely a red fish"]).tolist() == [0.0]


def test_an_answer_near_no_option_or_near_several_is_wrong_even_where_the_first_is_right():
    some = task(CHOICE, "red cat", ["red cat", "blue cat"])
    for text in ("", "?", "nothing of the kind", "cat"):
        assert score(some, [text]).tolist() == [0.0]
    letters = task(CHOICE, "1", ["1", "2"])  # the vectoriser finds no word at all
    assert score(letters, ["3"]).tolist() == [0.0]
    assert score(letters, ["1"]).tolist() == [1.0]


def test_options_that_read_alike_count_as_one():
    some = task(CHOICE, "Red cat", ["red cat", "Red cat.", "blue dog"])
    assert score(some, ["it is the red cat"]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Image B", 1),
        ("image b.", 1),
        ("Image B: the pot is hot", 1),
        ("Image B shows an image at the left", 1),
        ("Image A", 0),
        ("It is Image B", 0),
        ("Image B or Image C", 0),
        ("Image A, Image B, Image C, Image D", 0),
        ("Image Bee", 0),
        ("", 0),
    ],
)
def test_pictures_as_options(text, right, tmp_path):
    lay(tmp_path, VISUAL_CLOZE)  # the script's list spells this task otherwise
    (cloze,) = read_demon(tmp_path)
    assert score(cloze, [text]).tolist() == [right]


def test_options_that_are_pictures_are_known_by_their_names_whatever_the_task(tmp_path):
    content = copy(VISUAL_CLOZE)
    content["metadata"]["dataset"] = "AnyName"
    content["data"][0]["task_instance"]["choice_list"] = ["Image A", "Image B"]
    lay(tmp_path, content)
    (cloze,) = read_demon(tmp_path)
    assert score(cloze, ["Image B and Image A"]).tolist() == [0.0]
    assert score(cloze, ["Image B"]).tolist() == [1.0]


# --- categories -------------------------------------------------------------------------------------------------


def test_a_category_is_the_unweighted_mean_of_its_own_tasks():
    """With the paper's figures: (41.02 + 33.99) / 2 = 37.5 (table 4, VPG-C)."""
    one, two, three = (
        task(OPEN, "x", name=name, category=category)
        for name, category in (("ALFRED", "Multi-Modal Dialogue"), ("MMCoQA", "Multi-Modal Dialogue"), ("x", "own"))
    )
    table = summary({three: np.array([0.1]), one: np.full(9, 0.4102), two: np.array([0.3399])})
    assert table.index.tolist() == ["Multi-Modal Dialogue", "own", "mean"]
    assert table.score.tolist() == pytest.approx([37.505, 10, (37.505 + 10) / 2])
    assert table.tasks.tolist() == [2, 1, 3]
