"""I4 over emoji scenes: every answer follows from the pictures, none from the text alone, and all is deterministic."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from vlws.data.demon import CATEGORIES, CHOICE, OPEN, normalise, read_demon, score, summary, write_demon
from vlws.data.emoji_world import emoji, i4, i4_pictures, scenes
from vlws.data.emoji_world.captions import ORDINALS
from vlws.data.emoji_world.i4 import TASKS, Draft, drafts, make
from vlws.data.emoji_world.i4_pictures import LabelledScene
from vlws.data.english import with_article
from vlws.errors import InputError

CHOICES = [name for name, spec in TASKS.items() if spec.question_type == CHOICE]
OPENS = [name for name, spec in TASKS.items() if spec.question_type == OPEN]


# --- an oracle that sees the specifications of the pictures and the context, and nothing of how they were drawn ---


def seen(picture: LabelledScene) -> dict[int, tuple[str, str]]:
    """Cell -> (colour, kind)."""
    names = emoji.load().names
    return {item.cell: (scenes.TINT_NAMES[item.tint], names[item.emoji]) for item in picture.scene.items}


def phrase(thing: tuple[str, str]) -> str:
    return " ".join(thing)


def one(picture: LabelledScene) -> tuple[str, str]:
    (thing,) = seen(picture).values()
    return thing


def change(before: LabelledScene, after: LabelledScene) -> tuple[list, list]:
    """What was there and is no more, and what is new: (cell, thing)."""
    old, new = seen(before).items(), seen(after).items()
    return [x for x in old if x not in new], [x for x in new if x not in old]


def edit_words(d: Draft, said: dict[str, str]) -> str:
    gone, come = change(*d.pictures)
    if not gone:
        return said["add"].format(new=with_article(phrase(come[0][1])))
    old = gone[0][1]
    if not come:
        return said["delete"].format(old=phrase(old))
    new = come[0][1]
    if old[1] == new[1]:
        return said["recolour"].format(old=phrase(old), colour=new[0])
    return said["replace"].format(old=phrase(old), kind=with_article(new[1]))


def solve_next_step(d):
    left = seen(d.pictures[-1])
    return f"take the {phrase(left[min(left)])}."


def solve_conversation(d):
    place = re.search(r"at the (.+) of the first", d.context)[1]
    return f"{with_article(phrase(seen(d.pictures[-1])[scenes.POSITIONS[2].index(place)]))}."


def solve_arrivals(d):
    gone, come = change(*d.pictures[-2:])
    return f"{with_article(phrase(come[0][1]))} came." if come else f"the {phrase(gone[0][1])} left."


def solve_journey(d):
    _, ((cell, _),) = change(*d.pictures[-2:])
    return f"it goes to the {scenes.POSITIONS[3][cell]}."


def solve_spot_difference(d):
    said = {"add": "{new} is new", "delete": "the {old} is gone"}
    return edit_words(d, said | {"recolour": "the {old} is now {colour}", "replace": "the {old} became {kind}"})


def solve_edit_request(d):
    said = {"add": "add {new}", "delete": "remove the {old}"}
    return edit_words(d, said | {"recolour": "make the {old} {colour}", "replace": "turn the {old} into {kind}"})


def solve_comparison(d):
    first, second = (with_article(phrase(one(picture))) for picture in d.pictures)
    return f"the first is {first}, the second is {second}"


def solve_panel_cloze(d):
    where = [next(iter(seen(picture))) for picture in d.pictures]
    clockwise = {0: 1, 1: 3, 3: 2, 2: 0}
    back = {b: a for a, b in clockwise.items()}
    turn = clockwise if clockwise[where[0]] == where[1] else back
    (answer,) = [k for k in range(4) if where[3 + k] == turn[where[2]]]
    return f"Image {'ABCD'[answer]}"


def solve_caption_cloze(d):
    return with_article(
        phrase(
            one(
                d.pictures[
                    d.context.split("{image#").index(
                        next(part for part in d.context.split("{image#") if "unknown" in part)
                    )
                    - 1
                ]
            )
        )
    )


def solve_sort_colour(d):
    asked = re.search(r"what colour is the (\w+)\?", d.context)[1]
    (colour,) = [colour for colour, kind in map(one, d.pictures) if sort(kind) == asked]
    return colour


def sort(kind: str) -> str | None:
    """By Unicode's subgroup, not by the list of the module."""
    subgroup = emoji.load().subgroups[emoji.load().index(kind)]
    return next((name for name, (prefix, _) in i4_pictures.SORTS.items() if subgroup.startswith(prefix)), None)


def solve_same_sort(d):
    (common,) = {sort(one(picture)[1]) for picture in d.pictures}
    (answer,) = [choice for choice in d.choices if sort(choice) == common]
    return answer


def solve_table_lookup(d):
    table, picture = d.pictures
    rows = {cell // 3: text for cell, text in table.labels}
    (answer,) = [rows[cell // 3] for cell, (_, kind) in seen(table).items() if kind == one(picture)[1]]
    return answer


def solve_title(d):
    asked = re.search(r"under the (\w+)\?", d.context)[1]
    (answer,) = [picture.labels[0][1] for picture in d.pictures if one(picture)[1] == asked]
    return answer


def solve_page(d):
    asked = re.search(r"the word (\w+)\?", d.context)[1]
    (answer,) = [k for k, picture in enumerate(d.pictures) if picture.labels[0][1] == asked]
    return f"{ORDINALS[answer]} page"


def solve_price(d):
    asked = re.search(r"the number (\w+)\?", d.context)[1]
    (answer,) = [one(picture)[1] for picture in d.pictures if picture.labels[0][1] == asked]
    return answer


def solve_both(d):
    asked = re.search(r"show an? (\w+)\?", d.context)[1]
    return "yes" if all(asked in {kind for _, kind in seen(picture).values()} for picture in d.pictures) else "no"


def solve_count(d):
    return i4_pictures.NUMBERS[sum(len(seen(picture)) for picture in d.pictures) - 2]


def solve_odd_one(d):
    things = [one(picture) for picture in d.pictures]
    answers = [
        k
        for k in range(4)
        for part in (0, 1)
        if len({thing[part] for i, thing in enumerate(things) if i != k}) == 1 and len({t[part] for t in things}) == 2
    ]
    (answer,) = answers
    return f"Image {'ABCD'[answer]}"


def solve_shared(d):
    columns = zip(*[(thing[0], thing[1], cell) for p in d.pictures for cell, thing in seen(p).items()], strict=True)
    (answer,) = [
        name for name, column in zip(("colour", "kind", "place"), columns, strict=True) if len(set(column)) == 1
    ]
    return answer


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_is_the_one_that_follows_from_the_pictures(name):
    for draft in drafts(name, 300, 3):
        assert globals()[f"solve_{name}"](draft) == draft.response
        for picture in draft.pictures:
            cells = [item.cell for item in picture.scene.items]
            assert cells == sorted(set(cells))  # one thing a cell
            assert len({kind for _, kind in seen(picture).values()}) == len(cells)  # a name means one thing
        if draft.choices:
            assert draft.choices.count(draft.response) == 1
            assert len(set(map(normalise, draft.choices))) == len(draft.choices)


def test_the_right_answer_scores_full_and_every_other_option_nothing():
    for name in TASKS:
        task = make(name, 20, 1, 16)
        assert score(task, [sample.response for sample in task.samples]).min() == 1.0
        for sample in task.samples:
            wrong = [c for c in sample.choices if c != sample.response]
            if task.question_type == CHOICE and not wrong:
                wrong = [f"Image {x}" for x in "ABCD" if f"Image {x}" != sample.response]
            for choice in wrong:
                assert score(make_one(task, sample), [choice])[0] == 0.0


def make_one(task, sample):
    return type(task)(task.name, task.category, task.question_type, task.instructions, (sample,))


# --- nothing leaks from the text --------------------------------------------------------------------------------


def options(draft: Draft) -> list[str]:
    return list(draft.choices) or [f"Image {x}" for x in "ABCD"]


@pytest.mark.parametrize("name", CHOICES)
def test_options_are_balanced_and_text_alone_tells_nothing(name):
    """A learner that sees the text, each option's place, its words in the context and in the other options."""
    found = drafts(name, 2400, 5)
    right = np.array([options(d).index(d.response) for d in found])
    k = len(options(found[0]))
    share = np.bincount(right, minlength=k) / len(found)
    assert np.abs(share - 1 / k).max() < 0.045
    context = TfidfVectorizer(max_features=60).fit_transform([d.context for d in found]).toarray()
    rows = []
    for d, words in zip(found, context, strict=True):
        for place, option in enumerate(options(d)):
            others = " ".join(o for o in options(d) if o != option).split()
            own = [len(set(option.split()) & set(others)), d.context.count(option), len(option)]
            hashed = np.eye(16)[sum(map(ord, option)) % 16]
            rows.append([*np.eye(k)[place], *own, *hashed, *(np.outer(np.eye(k)[place], words).ravel())])
    x = np.array(rows).reshape(len(found), k, -1)
    half = len(found) // 2
    y = (np.arange(k) == right[:, None]).astype(int)
    learner = LogisticRegression(C=0.1, max_iter=300).fit(x[:half].reshape(-1, x.shape[-1]), y[:half].ravel())
    scores = learner.decision_function(x[half:].reshape(-1, x.shape[-1])).reshape(-1, k)
    assert (scores.argmax(1) == right[half:]).mean() < 1 / k + 0.07


@pytest.mark.parametrize("name", OPENS)
def test_open_answers_cannot_be_guessed_from_the_text(name):
    found = drafts(name, 1500, 5)
    assert Counter(d.response for d in found).most_common(1)[0][1] / len(found) < 0.15
    vectors = TfidfVectorizer().fit_transform([d.context for d in found])
    near = (vectors[:500] @ vectors[500:].T).toarray().argmax(1)
    guessed = [found[500 + j].response for j in near]
    assert np.mean([g == d.response for g, d in zip(guessed, found[:500], strict=True)]) < 0.2


def test_both_images_are_needed_to_say_whether_both_show_it():
    answers = Counter((solve_both(d), d.response) for d in drafts("both", 1000, 2))
    assert abs(answers["yes", "yes"] / 1000 - 0.5) < 0.05


# --- form -------------------------------------------------------------------------------------------------------


def test_there_are_at_least_fourteen_tasks_over_all_seven_categories_most_with_several_pictures():
    assert len(TASKS) >= 14
    assert {spec.category for spec in TASKS.values()} == set(CATEGORIES)
    assert min(Counter(spec.category for spec in TASKS.values()).values()) >= 2
    for name, spec in TASKS.items():
        assert len(set(spec.instructions)) == 10
        assert min(len(d.pictures) for d in drafts(name, 50, 0)) >= 2
        assert {s.instruction_id for s in make(name, 90, 0, 16).samples} == set(range(10))


def test_every_mark_has_its_picture():
    for name in TASKS:
        for sample in make(name, 30, 4, 16).samples:
            assert sample.prompt.count("<image>") == len(sample.images) == len(sample.pictures())
            assert "#" not in sample.prompt


def test_the_sorts_are_those_of_unicode():
    for name, (_, kinds) in i4_pictures.SORTS.items():
        assert [sort(kind) for kind in kinds] == [name] * len(kinds)
    assert all(sort(kind) is None for kind in ("house", "star", "key", "bell", "camera"))
    assert len(set(i4_pictures.I4_KINDS)) == len(i4_pictures.I4_KINDS)


def test_all_words_are_known_and_few():
    known = set(i4.vocabulary())
    assert len(known) < 400
    for text in i4.corpus(77, 2000):
        assert set(re.findall(r"\w+", text.lower())) <= known


def test_the_corpus_holds_every_task_prompt_and_answer():
    texts = list(i4.corpus(1, 2 * len(TASKS)))
    assert len(texts) == 2 * len(TASKS)
    for k, name in enumerate(TASKS):
        first = make(name, 1, 1, 16).samples[0]
        assert texts[k].endswith(f" {first.response}")
        assert texts[k].count("<image>") == len(first.images)


@pytest.mark.parametrize("size", [64, 32, 16])
def test_samples_depend_on_the_seed_alone(size):
    for name in ("spot_difference", "table_lookup"):
        few, many, other = make(name, 5, 9, size), make(name, 12, 9, size), make(name, 5, 10, size)
        for a, b in zip(few.samples, many.samples, strict=False):
            assert (a.prompt, a.choices, a.response) == (b.prompt, b.choices, b.response)
            assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
            assert a.images[0].shape == (size, size, 3)
        assert [s.response for s in few.samples] != [s.response for s in other.samples]


def test_pictures_stay_the_same_on_every_machine():
    task = make("title", 2, 0, 32)
    assert [int(image.astype(np.int64).sum()) for image in task.samples[0].images] == SUMS


SUMS = [461523, 439169, 487758]


def test_an_edit_changes_the_edited_cells_alone():
    for draft in drafts("spot_difference", 40, 1):
        before, after = i4_pictures.render(draft.pictures).astype(int)
        cells = {cell for part in change(*draft.pictures) for cell, _ in part}
        changed = np.abs(before - after).sum(-1) > 0
        assert changed.any()
        for cell in set(range(4)) - cells:
            assert not changed[scenes.cell_slices(2, cell)].any()


def test_written_words_can_be_read_off_the_pixels():
    assert len(set(i4_pictures.FONT.values())) == len(i4_pictures.FONT) == 36
    for draft in drafts("title", 20, 1):
        for image, picture in zip(i4_pictures.render(draft.pictures), draft.pictures, strict=True):
            lower, word = image[32:], picture.labels[0][1]
            found = {text for text in i4_pictures.WRITTEN_WORDS if shows(lower, i4_pictures.plate(text))}
            assert found == {word}


def shows(image: np.ndarray, dots: np.ndarray) -> bool:
    top, left = (32 - dots.shape[0]) // 2, (64 - dots.shape[1]) // 2
    part = image[top : top + dots.shape[0], left : left + dots.shape[1]]
    return part.shape[:2] == dots.shape and np.array_equal(part, np.repeat(dots[..., None], 3, -1))


def test_written_and_read_in_the_benchmarks_files_nothing_changes(tmp_path):
    tasks = i4.make_all(3, 0, 32)
    assert {path.suffix for path in write_demon(tmp_path, tasks).rglob("*") if path.is_file()} == {".json", ".png"}
    back = {task.name: task for task in read_demon(tmp_path)}
    assert set(back) == set(TASKS)
    for task in tasks:
        other = back[task.name]
        assert (task.category, task.question_type, task.instructions) == (
            *(other.category, other.question_type, other.instructions),
        )
        for a, b in zip(task.samples, other.samples, strict=True):
            assert (a.prompt, a.choices, a.response) == (b.prompt, b.choices, b.response)
            assert all(np.array_equal(x, np.asarray(y)) for x, y in zip(a.pictures(), b.pictures(), strict=True))
    table = summary({task: score(task, [s.response for s in task.samples]) for task in back.values()})
    assert list(table.index) == [*CATEGORIES, "mean"]
    assert (table.score == 100).all()


def test_unknown_tasks_and_sizes_are_refused():
    with pytest.raises(InputError, match="There is no task 'chess'; the tasks are next_step, conversation"):
        drafts("chess", 1, 0)
    for name in ("title", "journey"):
        with pytest.raises(InputError, match="at 64, 32 or 16 pixels, not 48"):
            make(name, 1, 0, 48)


# Written down before the edits had one grammar.
DRAWN = {
    "spot_difference": "fed2046094f085cc",
    "edit_request": "61bfaed86d422683",
}


@pytest.mark.parametrize("name", DRAWN)
def test_edits_are_drawn_as_ever(name):
    task = make(name, 40, 3, 32)
    digest = hashlib.sha256(" ".join(s.response for s in task.samples).encode())
    for sample in task.samples:
        digest.update(b"".join(image.tobytes() for image in sample.images))
    assert digest.hexdigest()[:16] == DRAWN[name]
