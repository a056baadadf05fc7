"""Drawings, the tasks about them, and folders of captioned pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from vlws.data.captioned import read_captioned
from vlws.data.emoji_world import drawings
from vlws.data.emoji_world.drawing_tasks import DRAW, TELL, task, tasks
from vlws.data.emoji_world.drawings import CHANGES, WORDS, Drawing
from vlws.errors import InputError


def test_splits_share_no_drawing_and_withheld_pairs_never_train():
    splits, known = drawings.splits(), drawings.everything()
    parts = [set(part.tolist()) for part in (splits.train, splits.test, splits.pairs)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(known)
    pairs = {known[i][:2] for i in splits.pairs}
    assert not pairs & {known[i][:2] for i in (*splits.train, *splits.test)}
    assert {known[i][:2] for i in splits.test} <= {known[i][:2] for i in splits.train}


def test_a_drawing_and_its_index_are_one():
    known = drawings.everything()
    assert len(set(known)) == len(known) == np.prod([len(words) for words in WORDS.values()])
    assert [drawings.index(drawing) for drawing in known] == list(range(len(known)))


def test_the_attributes_alone_determine_the_pixels():
    """Different drawings differ, and a drawing is the same whatever is rendered beside it."""
    chosen = [drawings.everything()[i] for i in np.random.default_rng(0).choice(5760, 120, replace=False)]
    together = drawings.render(chosen)
    assert len({picture.tobytes() for picture in together}) == len(chosen)
    assert (drawings.render(chosen[::-1])[::-1] == together).all()
    assert (drawings.render(chosen[7:8])[0] == together[7]).all()


@pytest.mark.parametrize("attribute", WORDS)
def test_every_attribute_changes_the_picture(attribute):
    base = Drawing(1, 1, 1, 1, 1)
    values = [base._replace(**{attribute: k}) for k in range(len(WORDS[attribute]))]
    pictures = drawings.render([*values, base])
    assert len({picture.tobytes() for picture in pictures}) == len(values)
    assert (pictures[-1] == pictures[values.index(base)]).all()


@pytest.mark.parametrize("attribute", CHANGES)
def test_an_edit_leaves_the_pixels_that_it_must_leave(attribute):
    rng = np.random.default_rng(0)
    for drawing in [drawings.everything()[i] for i in rng.integers(5760, size=8)]:
        new = drawings.changed(drawing, rng, attribute)
        fields = ("shade", "pattern") if attribute == "shade" else (attribute,)
        assert [f for f in Drawing._fields if getattr(new, f) != getattr(drawing, f)] == list(fields)
        mask = drawings.kept_pixels(drawing, new, attribute)
        before, after = drawings.render([drawing, new])
        differ = (before != after).any(-1)
        if attribute == "shade":  # everything around the thing's cell changes
            assert differ[~mask].mean() > 0.9
            assert mask.sum() == 256
        else:
            assert not differ[mask].any()
            assert differ[~mask].any()


def test_tasks_tell_the_truth():
    rng, known = np.random.default_rng(0), drawings.everything()
    for one in tasks((*TELL, *DRAW), drawings.splits().test, 60, rng):
        assert ("<image>" in one.text) == (one.picture >= 0)
        assert bool(one.answer) == (one.target < 0)
        if one.kind == "caption":
            assert one.answer == known[one.picture].caption()
        elif one.kind == "question":
            assert one.answer == known[one.picture].word(one.about)
        elif one.kind in ("draw", "rebuild"):
            assert known[one.target].ground() in one.text
        elif one.kind == "edit":
            differ = [f for f in Drawing._fields if known[one.picture]._asdict()[f] != known[one.target]._asdict()[f]]
            assert one.about in differ
            assert known[one.picture].ground() in one.text
        else:
            assert known[one.picture].thing == known[one.target].thing
    with pytest.raises(InputError, match="no task 'sing'; accepted are caption"):
        task("sing", known[0], rng)
    with pytest.raises(InputError, match="'pose' cannot be edited; accepted are thing"):
        drawings.changed(known[0], rng, "pose")


def test_captioned_pictures_are_read_both_ways(tmp_path):
    for name in "abcde":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"the {name}\n")
    assert read_captioned(tmp_path).captions == ("the a", "the b", "the c", "the d", "the e")
    rows = [{"file_name": f"{name}.png", "text": text} for name, text in zip("ebcda", "12345", strict=True)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_captioned(tmp_path)
    assert [p.stem for p in found.pictures] == list("ebcda")
    assert found.captions == tuple("12345")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", r"Line 1 of metadata.jsonl is not"),
        ('{"file_name": "a.png"}', "Line 1 of metadata.jsonl is not"),
        ('{"file_name": "no.png", "text": "x"}', "names no.png, which is not there"),
        ('{"file_name": "a.png", "text": 3}', "has a text of no words"),
        ('{"file_name": "a.png", "text": " "}', r"The caption of a.png in .* is empty"),
        ("", "holds no picture with a caption"),
        ('{"file_name": "a.png", "text": "x"}', r"holds 1 captioned picture; accepted are 5 or more"),
        (4 * '{"file_name": "a.png", "text": "x"}\n', r"holds 4 captioned pictures; accepted are 5 or more"),
    ],
)
def test_what_is_no_captioned_folder_is_refused(tmp_path, line, sentence):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(InputError, match=sentence):
        read_captioned(tmp_path)


def test_a_picture_without_caption_and_a_missing_folder_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png has no caption: neither a\.txt nor"):
        read_captioned(tmp_path)
    with pytest.raises(InputError, match="There is no folder"):
        read_captioned(tmp_path / "none")
