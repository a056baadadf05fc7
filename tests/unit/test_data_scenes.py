"""Scenes: deterministic pictures, exact truth, edits that change what they say and nothing else."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws.data.emoji_world import emoji, pairs, scenes
from vlws.errors import InputError

SAMPLES = {
    "free": {},
    "clutter": {"items": (1, 1), "clutter": True, "muted": True, "tints": False},
    "one": {"grid": 1, "items": (1, 1)},
    "three": {"grid": 3, "clutter": True},
}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


# The same on every machine: only integers between the seed and these bytes.
GOLDEN = {
    "free": "c8224d88d84edf22",
    "clutter": "7aad10fa19512c15",
    "one": "ae4cbcb28496cb59",
    "three": "5751ce788394e899",
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_same_seed_gives_the_same_bytes_everywhere(kind):
    found = scenes.sample(24, 20_310, **SAMPLES[kind])
    assert digest(np.concatenate([scenes.render(found, size).ravel() for size in (64, 32, 16)])) == GOLDEN[kind]


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_first_scenes_do_not_depend_on_how_many_or_how_they_are_batched(kind):
    few, many = scenes.sample(5, 3, **SAMPLES[kind]), scenes.sample(70, 3, **SAMPLES[kind])
    assert few == many[:5]
    pictures = scenes.render(many)
    np.testing.assert_array_equal(pictures[:5], scenes.render(few))
    np.testing.assert_array_equal(pictures[69], scenes.render(many[69:])[0])


@pytest.mark.parametrize("kind", SAMPLES)
def test_other_seeds_give_other_pictures(kind):
    a, b = (scenes.render(scenes.sample(200, seed, **SAMPLES[kind]), 32) for seed in (0, 1))
    assert not {digest(image) for image in a} & {digest(image) for image in b}
    assert len({digest(image) for image in a}) == 200


@pytest.mark.parametrize("kind", SAMPLES)
def test_an_item_changes_pixels_in_its_box_only_and_the_box_is_tight_and_in_its_cell(kind):
    for scene, its_boxes in zip(found := scenes.sample(40, 5, **SAMPLES[kind]), scenes.boxes(found), strict=True):
        full = scenes.render([scene])[0]
        for k, (top, left, bottom, right) in enumerate(its_boxes):
            without = replace(scene, items=scene.items[:k] + scene.items[k + 1 :])
            changed = (scenes.render([without])[0] != full).any(-1)
            ys, xs = np.nonzero(changed)
            assert top <= ys.min()
            assert ys.max() < bottom
            assert left <= xs.min()
            assert xs.max() < right
            # the rim of a box may be too faint to show on a ground of its colour, but not by much
            assert ys.max() + 1 - ys.min() >= 0.6 * (bottom - top)
            assert xs.max() + 1 - xs.min() >= 0.6 * (right - left)
            rows, columns = scenes.cell_slices(scene.grid, scene.items[k].cell)
            assert rows.start <= top < bottom <= rows.stop
            assert columns.start <= left < right <= columns.stop


def test_every_emoji_at_every_angle_and_size_stays_whole():
    """The box never touches more than the turned square allows, and what is drawn is as opaque as the sprite."""
    ground = scenes.sample(1, 0)[0].background
    sprites = emoji.load().sprites
    for angle in scenes.ANGLES:
        items = [scenes.Item(i, 0, 26, angle) for i in range(0, len(sprites), 9)]
        found = [scenes.Scene((item,), ground) for item in items]
        (_, patches), *_ = scenes._patches(found)
        mass = patches[:, 3].sum((1, 2)) / sprites[::9, ..., 3].astype(int).sum((1, 2))
        np.testing.assert_allclose(mass, (26 / 32) ** 2, rtol=0.12)
        assert (patches[:, :3] <= patches[:, 3:]).all()  # premultiplied


@given(word=st.integers(0, 2**31), grid=st.integers(1, 3), clutter=st.booleans())
@settings(max_examples=40, deadline=None)
def test_items_and_clutter_have_a_cell_each(word, grid, clutter):
    top = min(4, grid**2 - clutter)
    if top < 1:
        return
    for scene in scenes.sample(10, word, grid=grid, items=(1, top), clutter=clutter):
        cells = [item.cell for item in scene.items] + ([scene.clutter.cell] if clutter else [])
        assert len(set(cells)) == len(cells)
        assert set(cells) <= set(range(grid**2))
        assert [item.cell for item in scene.items] == sorted(item.cell for item in scene.items)


def test_counts_cells_tints_and_classes_are_all_drawn():
    found = scenes.sample(4000, 11)
    counts = np.bincount([len(scene.items) for scene in found], minlength=5)[1:]
    assert (np.abs(counts - 1000) < 120).all()
    items = [item for scene in found for item in scene.items]
    assert (np.abs(np.bincount([item.cell for item in items]) / len(items) - 0.25) < 0.02).all()
    assert abs(np.mean([item.tint > 0 for item in items]) - 0.5) < 0.02
    shares = np.bincount([scenes.class_of()[item.emoji] for item in items]) / len(items)
    assert (np.abs(shares - 0.1) < 0.015).all()
    assert {item.emoji for item in items} == set(scenes.class_of())
    assert {item.angle for item in items} == set(scenes.ANGLES)


def test_sines_and_cosines_are_the_rounded_ones():
    radians = np.deg2rad(scenes.ANGLES)
    np.testing.assert_array_equal(scenes._COS, np.round(4096 * np.cos(radians)))
    np.testing.assert_array_equal(scenes._SIN, np.round(4096 * np.sin(radians)))


def test_a_tint_gives_the_colour_it_names():
    ground = scenes.sample(1, 0)[0].background
    coat = emoji.load().index("white flower")
    plain, *tinted = (
        scenes.render([scenes.Scene((scenes.Item(coat, 0, 26, tint=t),), ground)])[0, 10:22, 10:22]
        .reshape(-1, 3)
        .mean(0)
        for t in range(len(scenes.TINTS))
    )
    for mean, name in zip(tinted, scenes.TINT_NAMES[1:], strict=True):
        towards = {other: np.abs(mean - colour).sum() for other, colour in scenes.TINTS.items() if other != "natural"}
        assert min(towards, key=towards.get) == name
    assert not np.allclose(plain, tinted[0])


def test_classes_are_disjoint_and_large_enough():
    members = scenes.class_members()
    assert len(members) == 10
    assert all(len(m) >= 10 for m in members.values())
    flat = [i for m in members.values() for i in m]
    assert len(flat) == len(set(flat)) == len(scenes.class_of())
    known = emoji.load()
    for name, c in scenes.CLASSES.items():
        assert set(c.without) <= {known.names[i] for i in known.where(subgroup=c.subgroups)}, name


def test_cells_tile_the_picture():
    for grid in (1, 2, 3, 4):
        for size in (16, 32, 64, 224):
            hits = np.zeros((size, size), int)
            for cell in range(grid**2):
                hits[scenes.cell_slices(grid, cell, size)] += 1
            assert (hits == 1).all()
    assert scenes.cell_bounds(2, 32) == (0, 16, 32)
    assert scenes.cell_bounds(3) == (0, 20, 44, 64)


def test_small_pictures_are_means_of_the_large():
    found = scenes.sample(8, 2)
    large = scenes.render(found).astype(int)
    for size in (32, 16):
        f = 64 // size
        mean = large.reshape(8, size, f, size, f, 3).mean((2, 4))
        assert np.abs(scenes.render(found, size) - mean).max() <= 0.5


def test_edits_change_their_cells_and_nothing_else():
    kinds = set()
    for n, scene in enumerate(scenes.sample(120, 8) + scenes.sample(40, 8, **SAMPLES["three"])):
        before = scenes.render([scene])[0]
        for kind in scenes.possible_edits(scene):
            done = scenes.edit(scene, kind, n)
            changed = (scenes.render([done.scene])[0] != before).any(-1)
            for cell in done.cells:
                inside = scenes.cell_slices(scene.grid, cell)
                assert changed[inside].any()
                changed[inside] = False
            assert not changed.any(), kind
            grown = {"delete": -1, "add": 1}.get(kind, 0)
            assert len(done.scene.items) == len(scene.items) + grown
            assert done == scenes.edit(scene, kind, n)
            kinds.add(kind)
    assert kinds == set(scenes.EDITS)


def test_a_near_twin_shows_the_same_things_in_other_places():
    for n, scene in enumerate(scenes.sample(60, 21, items=(2, 4))):
        twin = scenes.near_twin(scene, n)
        look = [sorted((it.emoji, it.tint, it.size, it.angle) for it in s.items) for s in (scene, twin.scene)]
        assert twin.kind == ("swap" if "swap" in scenes.possible_edits(scene) else "recolour")
        assert (look[0] == look[1]) == (twin.kind == "swap")
        assert twin.scene != scene


def test_clutter_pairs_tell_their_truth():
    found = pairs.clutter_pairs(300, 4, classes=("bird", "dish"), size=64)
    assert found.images.shape == (300, 64, 64, 3)
    assert {scenes.CLASS_NAMES[k] for k in found.classes} == {"bird", "dish"}
    assert abs((found.classes == scenes.CLASS_NAMES.index("bird")).mean() - 0.5) < 0.1
    assert (found.object_cell != found.clutter_cell).all()
    spread = np.array(
        [[image[scenes.cell_slices(2, cell)].std() for cell in range(4)] for image in found.images.astype(float)]
    )
    assert (spread.argmax(1) == found.clutter_cell).mean() == 1.0  # the mosaic is the loudest cell by far
    for image, scene, cell in zip(found.images, found.scenes, found.object_cell, strict=True):
        bare = scenes.render([replace(scene, items=())])[0]
        changed = (image != bare).any(-1)
        assert changed[scenes.cell_slices(2, cell)].any()
        changed[scenes.cell_slices(2, cell)] = False
        assert not changed.any()


def test_clutter_tells_nothing_of_the_class():
    found = pairs.clutter_pairs(4000, 6)
    for column in (found.object_cell, found.clutter_cell):
        table = np.array([[((found.classes == k) & (column == c)).mean() for c in range(4)] for k in range(10)])
        assert np.abs(table - 1 / 40).max() < 0.01


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: scenes.sample(1, 0, pools=[[]]), "A pool of emoji is empty"),
        (
            lambda: scenes.sample(1, 0, grid=1, items=(1, 2)),
            r"items=\(1, 2\) with clutter=False does not fit a grid of 1",
        ),
        (lambda: scenes.sample(1, 0, grid=7), "grid is 1-3"),
        (lambda: scenes.sample(-1, 0), "n=-1 scenes from seed=0: both must be 0 or more"),
        (lambda: scenes.render([], 48), "Scenes are rendered at 64, 32 or 16 pixels, not 48"),
        (lambda: scenes.cell_bounds(2, 33), "size a multiple of 16"),
        (lambda: scenes.edit(scenes.sample(1, 0, items=(1, 1))[0], "swap", 0), "The edit 'swap' is not possible here"),
        (
            lambda: pairs.clutter_pairs(1, 0, classes=("bird", "spoon")),
            "There is no class 'spoon'; the classes are smiley",
        ),
        (lambda: pairs.clutter_pairs(1, 0, classes=()), "No class was given"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_edit_without_new_emoji_is_refused():
    scene = scenes.sample(1, 0, items=(1, 1))[0]
    with pytest.raises(InputError, match="The pool holds no emoji that the scene does not show already"):
        scenes.edit(scene, "modify", 0, pool=[scene.items[0].emoji])
