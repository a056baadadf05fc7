"""A folder of captioned pictures, as the hub's `imagefolder` keeps them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlws.data.images import list_images
from vlws.errors import InputError

LEAST = 5  # pictures


class Captioned(NamedTuple):
    """Paths of pictures and what is said of each.

    >>> Captioned((Path("cat.png"),), ("a cat",)).captions
    ('a cat',)
    """

    pictures: Sequence[Path]
    captions: Sequence[str]


def read_captioned(folder: str | Path) -> Captioned:
    """Pictures with captions: `metadata.jsonl` of {"file_name", "text"} lines, or `name.txt` beside each `name.png`.

    Raises:
        InputError: no such folder, fewer than 5 pictures, one without a caption or with an empty one, a line of
            metadata.jsonl that is no such JSON or names a file that is not there.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> for k in range(5):
    ...     Image.new("RGB", (8, 8)).save(folder / f"{k}.png")
    ...     _ = (folder / f"{k}.txt").write_text("a cat")
    >>> set(read_captioned(folder).captions)
    {'a cat'}
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}; give one of pictures with captions.")
    listed = root / "metadata.jsonl"
    found = _listed(root, listed) if listed.is_file() else _beside(root)
    empty = [path.name for path, text in found if not text.strip()]
    if empty:
        raise InputError(f"The caption of {empty[0]} in {root.name} is empty; every picture takes one.")
    if not found:
        raise InputError(f"{root.name} holds no picture with a caption: give metadata.jsonl, or a .txt beside each.")
    if len(found) < LEAST:
        held = f"{len(found)} captioned picture" + "s" * (len(found) > 1)
        raise InputError(f"{root.name} holds {held}; accepted are {LEAST} or more, for some are kept back as a test.")
    return Captioned(tuple(path for path, _ in found), tuple(" ".join(text.split()) for _, text in found))


def _listed(root: Path, listed: Path) -> list[tuple[Path, str]]:
    found = []
    for k, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            path, text = root / row["file_name"], row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'Line {k} of {listed.name} is not {{"file_name": ..., "text": ...}}.') from error
        if not isinstance(text, str) or not path.is_file():
            fault = (
                f"names {row['file_name']}, which is not there" if isinstance(text, str) else "has a text of no words"
            )
            raise InputError(f"Line {k} of {listed.name} {fault}.")
        found.append((path, text))
    return found


def _beside(root: Path) -> list[tuple[Path, str]]:
    found = []
    for path in list_images(root):
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise InputError(f"{path.name} has no caption: neither {text.name} nor metadata.jsonl is there.")
        found.append((path, text.read_text(encoding="utf-8")))
    return found
