"""One grammar of edits: what can change between two pictures, and the sentences that say it.

    recolour   a thing takes another colour
    replace    another kind of thing stands in its place, in the same colour
    exchange   two things change places
    delete     a thing goes
    add        a thing of a new kind comes

`scenes`, `counterfactual` and `i4` draw their edits each in its own way, apply them by `apply`, and tell them in the
words of `tell`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vlws.data.emoji_world.scenes import TINTS, Item, Scene, below, class_of, draws, poses
from vlws.data.english import with_article
from vlws.errors import InputError

EDITS = ("recolour", "replace", "exchange", "delete", "add")
SINGLE_EDITS = ("recolour", "replace", "delete", "add")  # those of one thing

T = TypeVar("T")
Change = tuple[T | None, T | None]  # a thing before and after; None where there is none

DIFFERENCES = {
    "recolour": "the {old} is now {colour}",
    "replace": "the {old} became {a_noun}",
    "exchange": "the {old} and the {new} changed places",
    "delete": "the {old} is gone",
    "add": "{a_new} is new",
}
REQUESTS = {
    "recolour": "make the {old} {colour}",
    "replace": "turn the {old} into {a_noun}",
    "exchange": "exchange the {old} and the {new}",
    "delete": "remove the {old}",
    "add": "add {a_new}",
}


def tell(forms: Mapping[str, str], kind: str, old: tuple[str, str] | None, new: tuple[str, str] | None) -> str:
    """The sentence of an edit.

    Args:
        forms: DIFFERENCES or REQUESTS.
        kind: one of EDITS.
        old, new: (colour, noun) of the thing before and after; of an exchange, of the two things.

    >>> tell(DIFFERENCES, "recolour", ("red", "cat"), ("blue", "cat"))
    'the red cat is now blue'
    >>> tell(REQUESTS, "delete", ("red", "cat"), None)
    'remove the red cat'
    """
    words = {}
    if old is not None:
        words["old"] = " ".join(old)
    if new is not None:
        words |= {"new": " ".join(new), "a_new": with_article(" ".join(new))}
        words |= {"colour": new[0], "a_noun": with_article(new[1])}
    return forms[kind].format(**words)


def apply(things: Sequence[T], changes: Sequence[Change]) -> tuple[T, ...]:
    """Things after their changes: a new one takes the place of its old one, or the end where it has none.

    >>> apply(["cat", "dog"], [("cat", "owl"), ("dog", None), (None, "bee")])
    ('owl', 'bee')
    """
    after = list(things)
    for old, new in changes:
        come = [] if new is None else [new]
        at = len(after) if old is None else after.index(old)
        after[at : at + 1] = come
    return tuple(after)


# --- edits of scenes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SceneEdit:
    """The scene after an edit; its picture differs from the one before inside `cells` and nowhere else.

    >>> from vlws.data.emoji_world import scenes
    >>> (scene,) = scenes.sample(1, seed=0, items=(2, 2))
    >>> change = edit_scene(scene, "delete", seed=0)
    >>> len(scene.items) - len(change.after.items), len(change.cells)
    (1, 1)
    """

    kind: str
    after: Scene
    changes: tuple[Change[Item], ...]

    @property
    def cells(self) -> tuple[int, ...]:
        """The cells that change, in order."""
        return tuple(sorted({item.cell for change in self.changes for item in change if item is not None}))


def possible_edits(scene: Scene) -> tuple[str, ...]:
    """Which of EDITS a scene allows: an exchange needs two unlike items, a deletion two, an addition a free cell.

    >>> from vlws.data.emoji_world import scenes
    >>> possible_edits(scenes.sample(1, seed=0, items=(1, 1))[0])  # nothing to exchange, and one thing must stay
    ('recolour', 'replace', 'add')
    """
    impossible = set()
    if len({(item.emoji, item.tint) for item in scene.items}) < 2:
        impossible.add("exchange")
    if len(scene.items) < 2:
        impossible.add("delete")
    if not _free_cells(scene):
        impossible.add("add")
    return tuple(kind for kind in EDITS if kind not in impossible)


def edit_scene(scene: Scene, kind: str, seed: int, pool: Sequence[int] | None = None) -> SceneEdit:
    """One edit, drawn from `seed`; new emoji come from `pool` (all members of CLASSES unless given).

    A replacement keeps pose and tint.

    Raises:
        InputError: the scene does not allow the edit, or the pool holds no new emoji.

    >>> from vlws.data.emoji_world import scenes
    >>> (scene,) = scenes.sample(1, seed=0, items=(2, 2))
    >>> change = edit_scene(scene, "recolour", seed=0)
    >>> ((old, new),) = change.changes
    >>> old.emoji == new.emoji, old.tint == new.tint, change.cells == (old.cell,)
    (True, False, True)
    """
    allowed = possible_edits(scene)
    if kind not in allowed:
        raise InputError(f"The edit {kind!r} is not possible here; this scene allows {', '.join(allowed)}.")
    word = draws(1, 24, seed)
    first, second = (int(below(word[0, k], len(scene.items))) for k in (0, 1))
    item = scene.items[first]
    if kind == "recolour":
        tint = int((item.tint + 1 + below(word[0, 3], len(TINTS) - 1)) % len(TINTS))
        changes = ((item, replace(item, tint=tint)),)
    elif kind == "delete":
        changes = ((item, None),)
    elif kind == "exchange":
        a, b = _unlike(scene.items[second:] + scene.items[:second])
        changes = ((a, replace(a, cell=b.cell)), (b, replace(b, cell=a.cell)))
    else:
        present = {other.emoji for other in scene.items}
        fresh = [i for i in (sorted(class_of()) if pool is None else pool) if i not in present]
        if not fresh:
            raise InputError("The pool holds no emoji that the scene does not show already; give a larger one.")
        emoji = int(fresh[below(word[0, 2], len(fresh))])
        if kind == "replace":
            changes = ((item, replace(item, emoji=emoji)),)
        else:
            free = _free_cells(scene)
            pose = (int(column[0, 0]) for column in poses(word[:, 5:9], scene.grid))
            changes = ((None, Item(emoji, free[int(below(word[0, 4], len(free)))], *pose)),)
    items = sorted(apply(scene.items, changes), key=lambda other: other.cell)
    return SceneEdit(kind, replace(scene, items=tuple(items)), changes)


def _unlike(items: Sequence[Item]) -> tuple[Item, Item]:
    """The first two items that differ in emoji or tint."""
    return next((a, b) for a in items for b in items if (a.emoji, a.tint) != (b.emoji, b.tint))


def _free_cells(scene: Scene) -> list[int]:
    taken = {item.cell for item in scene.items} | ({scene.clutter.cell} if scene.clutter else set())
    return [cell for cell in range(scene.grid**2) if cell not in taken]
