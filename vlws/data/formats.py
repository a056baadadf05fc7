"""Read the folders that users have. Each fault of a folder is refused in one sentence before any work starts."""

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlws.data.english import with_article
from vlws.data.images import SUFFIXES, find_file, is_hidden, list_images
from vlws.data.text import read_json, read_text
from vlws.errors import InputError


@dataclass(frozen=True)
class Split:
    """n pictures in the order of their paths, each with the name of its folder as label, and one caption.

    >>> split = Split((Path("train/good/000.png"),), labels=("good",), captions=("an owl",))
    >>> split.labels[0], split.captions[0]
    ('good', 'an owl')
    """

    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class AnomalyFolder:
    """Normal pictures to train on, and pictures to test on; a test label that training lacks is anomalous.

    >>> train = Split((Path("train/good/000.png"),), ("good",), ("a plate",))
    >>> test = Split((Path("test/good/000.png"), Path("test/crack/000.png")), ("good", "crack"), ("", ""))
    >>> AnomalyFolder("plate", train, test).anomalous.tolist()
    [False, True]
    """

    name: str
    train: Split
    test: Split

    @property
    def anomalous(self) -> np.ndarray:
        """ "test" bool."""
        return ~np.isin(self.test.labels, self.train.labels)


def read_anomaly_folder(root: str | Path, category: str | None = None) -> AnomalyFolder:
    """A folder in the layout of MVTec-AD, or plain `train/<class>/*` and `test/<class>/*` folders.

    `root` holds `train` and `test`, or one or several categories that do; of several, `category` chooses. Captions:
    `captions.json` beside `train` or in `root` ({"train/good/000.png": "text"}), else a .txt beside the picture, else
    "a photo of a <class>" (for MVTec's `good` and defects: "a photo of a <category>", "... with <defect>"). Where
    captions are given but not to all training pictures, a warning says how many take the last form.

    A name in `captions.json` is a path relative to it. Where there is no such file, it may be written otherwise if it
    still means one picture: with "\\\\", with more folders in front or fewer, without the suffix, in another case,
    with accents composed otherwise.

    Raises:
        InputError: no such folder, no `train` or `test` in it, an unknown or missing category, a class without
            pictures, no normal or no anomalous test picture, captions that are no JSON object of texts, a name in it
            that means no picture or several.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("train/good/0.png", "train/good/1.png", "test/good/0.png", "test/crack/0.png"):
    ...         path = Path(folder, "plate", name)
    ...         path.parent.mkdir(parents=True, exist_ok=True)
    ...         Image.new("RGB", (8, 8)).save(path)
    ...     found = read_anomaly_folder(folder)
    >>> found.name, found.train.captions, found.test.labels, found.anomalous.tolist()
    ('plate', ('a photo of a plate', 'a photo of a plate'), ('crack', 'good'), [True, False])
    """
    given = root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"The data folder {root} does not exist; give a folder that holds train/ and test/.")
    if not (root / "train").is_dir():
        known = sorted(p.parent.name for p in root.glob("*/train") if p.is_dir() and not is_hidden(p, root))
        if not known:
            raise InputError(f"{root} holds no train/<class>/ folder, nor do its subfolders (the layout of MVTec-AD).")
        if category is None and len(known) > 1:
            raise InputError(f"{root} holds {len(known)} categories ({', '.join(known)}); give one of these folders.")
        if category is not None and category not in known:
            raise InputError(f"{root} has no category {category!r}; it holds {', '.join(known)}.")
        root = root / (category or known[0])
    paths = {part: _pictures(root, part) for part in ("train", "test")}
    files = dict.fromkeys(folder / "captions.json" for folder in (given, root))
    texts = _captions(root, [path for part in paths.values() for path in part], [f for f in files if f.is_file()])
    train, test = (_split(root, part, texts) for part in paths.values())
    _tell_uncaptioned(root, train, texts)
    if len(train) < 2:
        raise InputError(f"{root}/train holds {len(train)} picture; accepted are two or more, for one has no spread.")
    found = AnomalyFolder(root.resolve().name, train, test)
    if found.anomalous.all() or not found.anomalous.any():
        missing = "normal" if found.anomalous.all() else "anomalous"
        raise InputError(
            f"{root}/test has no {missing} picture: folders named as in train ({', '.join(sorted(set(train.labels)))}) "
            "are normal, all others anomalous, and both are needed."
        )
    return found


def _pictures(root: Path, part: str) -> list[Path]:
    if not (root / part).is_dir():
        raise InputError(f"{root} has no {part}/ folder; it needs train/<class>/ and test/<class>/.")
    folders = sorted(path for path in (root / part).iterdir() if path.is_dir() and not is_hidden(path, root))
    if not folders:
        raise InputError(f"{root / part} has no class folder; pictures belong in {part}/<class>/.")
    found = []
    for folder in folders:
        pictures = list_images(folder)
        if not pictures:
            raise InputError(f"The class {folder} is empty; it needs at least one of {', '.join(SUFFIXES)}.")
        found += pictures
    return found


def _split(root: Path, paths: Sequence[Path], texts: dict[Path, str]) -> Split:
    labels = tuple(path.relative_to(root).parts[1] for path in paths)
    plain = not (root / "train" / "good").is_dir()
    defaults = {label: _default_caption(root.resolve().name, label, plain) for label in set(labels)}
    captions = tuple(texts.get(path) or defaults[label] for path, label in zip(paths, labels, strict=True))
    return Split(tuple(paths), labels, captions)


def _default_caption(category: str, label: str, plain: bool) -> str:
    category, label = (text.replace("_", " ").replace("-", " ") for text in (category, label))
    if plain:
        return f"a photo of {with_article(label)}"
    return f"a photo of {with_article(category)}" + ("" if label == "good" else f" with {label}")


# --- captions of pictures ---------------------------------------------------------------------------------------------


def _captions(root: Path, pictures: Sequence[Path], files: Sequence[Path]) -> dict[Path, str]:
    """Picture -> its own caption, where it has one: of `captions.json`, else of a .txt beside it."""
    texts = {}
    for path in pictures:
        beside = find_file(path.parent, f"{path.stem}.txt")
        if beside and (text := read_text(beside).strip()):
            texts[path] = text
    for file in files:
        texts |= _captions_file(file, root, pictures)
    return texts


def _captions_file(file: Path, root: Path, pictures: Sequence[Path]) -> dict[Path, str]:
    given = read_json(file)
    accepted = '{"train/good/000.png": "text"}'
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise InputError(f"{file} must be one JSON object of texts by relative path: {accepted}.")
    known = {path.resolve(): path for path in pictures}
    names = _Names(root, pictures)
    texts: dict[Path, str] = {}
    for name, text in given.items():
        exact = find_file(file.parent, name)
        meant = [known.get(exact.resolve())] if exact else names.meant(name)
        if len(meant) != 1:
            which = f"{len(meant)} pictures, {meant[0]} among them" if meant else f"no picture below {root}"
            raise InputError(f"{file}: the name {name!r} means {which}; accepted are relative paths, {accepted}.")
        path = meant[0]  # None: a file that is in no split, such as a mask
        if path and text.strip() and texts.setdefault(path, text.strip()) != text.strip():
            raise InputError(f"{file}: two names mean {path}, the second is {name!r}; accepted is one per picture.")
    return texts


class _Names:
    """What the names of pictures may mean that are not written as their paths are."""

    def __init__(self, root: Path, pictures: Sequence[Path]):
        self.endings: dict[tuple[str, ...], list[Path]] = {}  # the last folders and the name -> pictures
        for path in pictures:
            inside = path.relative_to(root)
            for whole in (inside, inside.with_suffix("")):
                parts = self._parts(f"{root.resolve().name}/{whole.as_posix()}")
                for start in range(len(parts)):
                    self.endings.setdefault(parts[start:], []).append(path)

    def meant(self, name: str) -> list[Path]:
        """The pictures whose path ends as `name` does; else those whose whole path, from train/ on, ends `name`."""
        parts = self._parts(name)
        if parts in self.endings:
            return self.endings[parts]
        shorter = (parts[start:] for start in range(1, len(parts)))
        return next((self.endings[p] for p in shorter if p[0] in ("train", "test") and p in self.endings), [])

    @staticmethod
    def _parts(name: str) -> tuple[str, ...]:
        plain = unicodedata.normalize("NFC", name.strip().replace("\\", "/")).casefold()
        return tuple(part for part in plain.split("/") if part not in ("", "."))


def _tell_uncaptioned(root: Path, train: Split, texts: dict[Path, str]) -> None:
    """Warn of training pictures without a caption, where there are captions, and of .txt files that belong to none."""
    without = [i for i, path in enumerate(train.paths) if path not in texts]
    if without and texts:
        first = without[0]
        warnings.warn(
            f"{len(without)} of {len(train)} training pictures have no caption of their own; the first is "
            f"{train.paths[first]}, which is captioned {train.captions[first]!r}.",
            stacklevel=3,
        )
    beside = {find_file(path.parent, f"{path.stem}.txt") for path in train.paths}
    found = (path for path in sorted((root / "train").glob("*/**/*.txt")) if not is_hidden(path, root))
    if lone := [path for path in found if path not in beside]:
        warnings.warn(
            f"{len(lone)} .txt files stand beside no picture of their name and caption none; the first is {lone[0]}, "
            f"which would caption {lone[0].stem}.png.",
            stacklevel=3,
        )
