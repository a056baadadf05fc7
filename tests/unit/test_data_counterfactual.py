"""Counterfactual pairs: exact edits, true sentences, the same bytes for the same seed."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws.data.emoji_world import counterfactual as cf
from vlws.data.emoji_world.edits import SINGLE_EDITS
from vlws.data.emoji_world.scenes import COLOURS
from vlws.errors import InputError


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 899_999))
def test_pictures_are_what_they_say(seed):
    (picture,) = cf.sample(1, seed)
    assert [thing.large for thing in picture.things] == [True] + [False] * (len(picture.things) - 1)
    assert len(picture.things) == 3
    assert len({thing.kind for thing in picture.things}) == len(picture.things)  # so a kind names one thing
    cells = [cell for thing in picture.things for cell in thing.cells]
    assert len(cells) == len(set(cells))
    assert set(cells).isdisjoint(picture.free_cells)
    assert sorted([*cells, *picture.free_cells]) == list(range(9))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 899_999), st.data())
def test_an_edit_changes_the_pixels_of_its_masks_alone(seed, data):
    (picture,) = cf.sample(1, seed)
    target = data.draw(st.integers(0, len(picture.things) - 1))
    kind = data.draw(st.sampled_from(cf.possible_edits(picture, target)))
    pair = cf.edit(picture, target, seed, kind)
    before, after = cf.render([pair.before, pair.after])
    changed = (before != after).any(-1)
    assert changed.any()
    assert not changed[~cf.edit_mask(pair)].any()
    assert pair.edit == kind


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 899_999))
def test_a_deletion_leaves_the_ground_and_all_else(seed):
    (picture,) = cf.sample(1, seed, small=(3, 3))
    pair = cf.edit(picture, 2, seed, "delete")
    before, after = cf.render([pair.before, pair.after])
    mask = cf.masks([picture])[0][2]
    assert np.array_equal(before[~mask], after[~mask])
    (bare,) = cf.render([replace(picture, things=())])
    others = np.delete(cf.masks([picture])[0], 2, axis=0).any(0)
    assert np.array_equal(after[~others], bare[~others])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 899_999), st.data())
def test_sentences_tell_the_difference(seed, data):
    (picture,) = cf.sample(1, seed)
    pair = cf.edit(picture, data.draw(st.integers(0, len(picture.things) - 1)), seed)
    old, new = ({(t.name, t.cell) for t in p.things} for p in (pair.before, pair.after))
    gone, come = [name for name, _ in old - new], [name for name, _ in new - old]
    told = {
        "recolour": lambda: f"the {gone[0]} is now {come[0].split()[0]}",
        "replace": lambda: f"the {gone[0]} became a {come[0].split()[1]}",
        "delete": lambda: f"the {gone[0]} is gone",
        "add": lambda: f"a {come[0]} is new",
    }
    assert pair.sentence == told[pair.edit]()
    assert (len(gone), len(come)) == {"delete": (1, 0), "add": (0, 1)}.get(pair.edit, (1, 1))
    assert len({thing.kind for thing in pair.after.things}) == len(pair.after.things)


def test_every_kind_of_edit_comes_about_equally_often():
    pictures = cf.sample(2000, 3)
    pairs = cf.edits(pictures, [1] * 2000, 4)
    share = {kind: np.mean([pair.edit == kind for pair in pairs]) for kind in SINGLE_EDITS}
    assert all(value == pytest.approx(0.25, abs=0.04) for value in share.values())
    large = cf.edits(pictures, [0] * 2000, 4)
    assert {pair.edit for pair in large} == {"recolour", "replace"}
    assert all(pair.salient for pair in large)
    assert not any(pair.salient for pair in pairs)


def test_an_addition_takes_the_first_free_cell_of_those_given():
    for picture in cf.sample(50, 9, small=(2, 2)):
        pair = cf.edit(picture, 1, 5, "add", cells=list(range(8, -1, -1)))
        assert pair.after_thing.cell == max(picture.free_cells)
        assert pair.before_thing is None
        assert not pair.after_thing.large


def test_the_same_seed_gives_the_same_bytes():
    pictures = cf.sample(40, 123_456)
    assert pictures[:7] == cf.sample(7, 123_456)
    pairs = cf.edits(pictures, [k % len(p.things) for k, p in enumerate(pictures)], 5)
    images = cf.render([pair.after for pair in pairs])
    assert images.shape == (40, 48, 48, 3)
    assert images.dtype == np.uint8
    told = hashlib.sha256(images.tobytes() + " ".join(pair.sentence for pair in pairs).encode()).hexdigest()
    assert told[:16] == "f11ec9d50f09a7a3"


def test_a_picture_alone_is_what_it_is_among_others():
    pictures = cf.sample(cf.CHUNK + 3, 1)
    assert np.array_equal(cf.render(pictures)[-1], cf.render(pictures[-1:])[0])


def test_captions_and_questions_speak_of_what_is_there():
    (picture,) = cf.sample(1, 2)
    first, second = picture.things[:2]
    assert cf.caption(picture) == f"a {first.name}"
    assert cf.colour_question(second) == (
        f"<image> what colour is the {cf.PAIR_KINDS[second.kind]}?",
        COLOURS[second.colour],
    )


def test_what_cannot_be_is_refused():
    (picture,) = cf.sample(1, 2, small=(2, 2))
    with pytest.raises(InputError, match=r"target=9: the picture shows things 0 to 2"):
        cf.edit(picture, 9, 0)
    with pytest.raises(InputError, match="'delete' is not possible here; this thing allows recolour, replace"):
        cf.edit(picture, 0, 0, "delete")
    with pytest.raises(InputError, match="1 pictures and 2 targets"):
        cf.edits([picture], [0, 1], 0)
    with pytest.raises(InputError, match=r"small=\(0, 9\)"):
        cf.sample(1, 0, small=(0, 9))
