"""Edits: one grammar, drawn as ever, true to the pixel."""

import hashlib
from dataclasses import astuple

import pytest

from vlws.data.emoji_world import edits, renderer, scenes
from vlws.data.emoji_world.edits import DIFFERENCES, EDITS, REQUESTS, SINGLE_EDITS, apply, edit_scene, tell
from vlws.errors import InputError

SOME = scenes.sample(120, 8) + scenes.sample(40, 8, grid=3, clutter=True)


def test_edits_of_scenes_are_drawn_as_ever():
    rows = []
    for n, scene in enumerate(SOME):
        for kind in edits.possible_edits(scene):
            done = edit_scene(scene, kind, n)
            rows.append((kind, astuple(done.after), done.cells))
    digest = hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()[:16]
    assert (len(rows), digest) == (680, "22f570f930ed1cb9")  # written down before the edits had one grammar
    assert {kind for kind, *_ in rows} == set(EDITS)


def test_an_edit_changes_its_cells_and_nothing_else():
    for n, scene in enumerate(SOME):
        before = renderer.render([scene])[0]
        for kind in edits.possible_edits(scene):
            done = edit_scene(scene, kind, n)
            changed = (renderer.render([done.after])[0] != before).any(-1)
            for cell in done.cells:
                inside = scenes.cell_slices(scene.grid, cell)
                assert changed[inside].any()
                changed[inside] = False
            assert not changed.any(), kind


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        ([("b", "x")], ("a", "x", "c")),
        ([("b", None)], ("a", "c")),
        ([(None, "x")], ("a", "b", "c", "x")),
        ([("a", "x"), ("c", "y")], ("x", "b", "y")),
        ([], ("a", "b", "c")),
    ],
)
def test_changes_are_applied_in_place(changes, after):
    assert apply("abc", changes) == after


@pytest.mark.parametrize(
    ("kind", "old", "new", "difference", "asked"),
    [
        ("recolour", "red owl", "blue owl", "the red owl is now blue", "make the red owl blue"),
        ("replace", "red cat", "red owl", "the red cat became an owl", "turn the red cat into an owl"),
        (
            "exchange",
            "red cat",
            "red owl",
            "the red cat and the red owl changed places",
            "exchange the red cat and the",
        ),
        ("delete", "red cat", None, "the red cat is gone", "remove the red cat"),
        ("add", None, "red owl", "a red owl is new", "add a red owl"),
    ],
)
def test_sentences(kind, old, new, difference, asked):
    words = [thing and tuple(thing.split()) for thing in (old, new)]
    assert tell(DIFFERENCES, kind, *words) == difference
    assert tell(REQUESTS, kind, *words).startswith(asked)


def test_every_edit_has_both_sentences():
    assert tuple(DIFFERENCES) == tuple(REQUESTS) == EDITS
    assert set(SINGLE_EDITS) == set(EDITS) - {"exchange"}


def test_what_a_scene_does_not_allow_is_refused():
    (scene,) = scenes.sample(1, 0, items=(1, 1))
    with pytest.raises(InputError, match="'exchange' is not possible here; this scene allows recolour, replace, add"):
        edit_scene(scene, "exchange", 0)
    with pytest.raises(InputError, match="The pool holds no emoji that the scene does not show already"):
        edit_scene(scene, "replace", 0, pool=[scene.items[0].emoji])
