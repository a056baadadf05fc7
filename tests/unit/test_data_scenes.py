"""Scenes: deterministic pictures and exact truth."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws.data.emoji_world import emoji, pairs, renderer, scenes
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
    assert digest(np.concatenate([renderer.render(found, size).ravel() for size in (64, 32, 16)])) == GOLDEN[kind]


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_first_scenes_do_not_depend_on_how_many_or_how_they_are_batched(kind):
    few, many = scenes.sample(5, 3, **SAMPLES[kind]), scenes.sample(70, 3, **SAMPLES[kind])
    assert few == many[:5]
    pictures = renderer.render(many)
    np.testing.assert_array_equal(pictures[:5], renderer.render(few))
    np.testing.assert_array_equal(pictures[69], renderer.render(many[69:])[0])


@pytest.mark.parametrize("kind", SAMPLES)
def test_other_seeds_give_other_pictures(kind):
    a, b = (renderer.render(scenes.sample(200, seed, **SAMPLES[kind]), 32) for seed in (0, 1))
    assert not {digest(image) for image in a} & {digest(image) for image in b}
    assert len({digest(image) for image in a}) == 200


@pytest.mark.parametrize("kind", SAMPLES)
def test_an_item_changes_pixels_of_its_cell_alone(kind):
    for scene in scenes.sample(40, 5, **SAMPLES[kind]):
        full = renderer.render([scene])[0]
        for k, item in enumerate(scene.items):
            without = replace(scene, items=scene.items[:k] + scene.items[k + 1 :])
            changed = (renderer.render([without])[0] != full).any(-1)
            cell = scenes.cell_slices(scene.grid, item.cell)
            assert changed[cell].sum() > item.size**2 // 10
            changed[cell] = False
            assert not changed.any()


def test_every_emoji_at_every_angle_and_size_stays_whole():
    """What is drawn is as opaque as the sprite."""
    sprites = emoji.load().sprites
    for angle in scenes.ANGLES:
        patches = renderer.sample_sprites([scenes.Item(i, 0, 26, angle) for i in range(0, len(sprites), 9)], 32)
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
    np.testing.assert_array_equal(scenes.COS, np.round(4096 * np.cos(radians)))
    np.testing.assert_array_equal(scenes.SIN, np.round(4096 * np.sin(radians)))


def test_a_tint_gives_the_colour_it_names():
    ground = scenes.sample(1, 0)[0].background
    coat = emoji.load().index("white flower")
    plain, *tinted = (
        renderer.render([scenes.Scene((scenes.Item(coat, 0, 26, tint=t),), ground)])[0, 10:22, 10:22]
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
    large = renderer.render(found).astype(int)
    for size in (32, 16):
        f = 64 // size
        mean = large.reshape(8, size, f, size, f, 3).mean((2, 4))
        assert np.abs(renderer.render(found, size) - mean).max() <= 0.5


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
        bare = renderer.render([replace(scene, items=())])[0]
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
        (lambda: renderer.render([], 48), "Scenes are rendered at 64, 32 or 16 pixels, not 48"),
        (lambda: scenes.cell_bounds(2, 33), "size a multiple of 16"),
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
