"""The emoji set: 32 px pictures of Noto Color Emoji with CLDR names and keywords and Unicode's groups."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from vlws.data.emoji_world.build import ASSETS, COLUMNS, SIDE
from vlws.errors import InputError


@dataclass(frozen=True, eq=False)
class EmojiSet:
    """n emoji in Unicode's order; every field has length n.

    Attributes:
        chars: the characters, with the variation selector where the emoji needs one.
        names: CLDR English short names, unique ("cat face").
        keywords: CLDR English keywords ("cat", "face", "pet"); empty for 21 emoji newer than this CLDR.
        groups, subgroups: of Unicode's emoji-test.txt ("Animals & Nature", "animal-mammal").
        sprites: "n 32 32 4" uint8, straight (not premultiplied) alpha.

    >>> found = load()
    >>> cat = found.index("cat face")
    >>> found.chars[cat], found.groups[cat], found.sprites[cat].shape, f"{found.codepoints[cat]:x}"
    ('🐱', 'Animals & Nature', (32, 32, 4), '1f431')
    >>> found.select(subgroup="food-fruit").names[:3]
    ('grapes', 'melon', 'watermelon')
    >>> len(found.where(group="Animals & Nature")) < len(found)
    True
    """

    chars: tuple[str, ...]
    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    subgroups: tuple[str, ...]
    sprites: np.ndarray

    def __len__(self) -> int:
        return len(self.chars)

    @property
    def codepoints(self) -> tuple[int, ...]:
        """The one code point of each emoji, variation selector aside."""
        return tuple(ord(char[0]) for char in self.chars)

    def index(self, name: str) -> int:
        """The index of an emoji by its character or its CLDR name; InputError where there is none."""
        for column in (self.chars, self.names):
            if name in column:
                return column.index(name)
        raise InputError(f"There is no emoji {name!r}; give one of the {len(self)} characters or CLDR names.")

    def where(self, *, group: str | None = None, subgroup: str | Iterable[str] | None = None) -> np.ndarray:
        """Indices ("k", int64) of a group and/or of one or several subgroups; InputError for an unknown one."""
        subgroups = {subgroup} if isinstance(subgroup, str) else None if subgroup is None else set(subgroup)
        for kind, given, known in (("group", {group} - {None}, self.groups), ("subgroup", subgroups, self.subgroups)):
            for name in sorted((given or set()) - set(known)):
                raise InputError(f"There is no emoji {kind} {name!r}; known: {', '.join(dict.fromkeys(known))}.")
        keep = [
            (group is None or g == group) and (subgroups is None or s in subgroups)
            for g, s in zip(self.groups, self.subgroups, strict=True)
        ]
        return np.flatnonzero(keep)

    def select(self, *, group: str | None = None, subgroup: str | Iterable[str] | None = None) -> "EmojiSet":
        """The part of the set in a group and/or in one or several subgroups."""
        at = self.where(group=group, subgroup=subgroup)
        columns = (self.chars, self.names, self.keywords, self.groups, self.subgroups)
        return EmojiSet(*(tuple(column[i] for i in at) for column in columns), self.sprites[at])


@cache
def load() -> EmojiSet:
    """The shipped set. Its arrays are read-only, for everyone shares them.

    >>> load() is load(), load().sprites.flags.writeable
    (True, False)
    """
    records = json.loads((ASSETS / "emoji.json").read_text(encoding="utf-8"))
    sheet = np.asarray(Image.open(ASSETS / "emoji.png").convert("RGBA"))
    tiles = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 4)
    sprites = tiles[: len(records)].copy()
    sprites.flags.writeable = False
    text = {field: tuple(record[field] for record in records) for field in ("char", "name", "group", "subgroup")}
    keywords = tuple(tuple(record["keywords"]) for record in records)
    return EmojiSet(text["char"], text["name"], keywords, text["group"], text["subgroup"], sprites)
