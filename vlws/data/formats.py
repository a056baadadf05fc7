"""Read the folders that users have. Each fault of a folder is refused in one sentence before any work starts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlws.data.english import with_article
from vlws.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Split:
    """n pictures in the order of their paths, each with the name of its folder as label, and one caption."""

    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class AnomalyFolder:
    """Normal pictures to train on, and pictures to test on; a test label that training lacks is anomalous."""

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
    `captions.json` beside `train` ({"train/good/000.png": "text"}), else a .txt beside the picture, else
    "a photo of a <class>" (for MVTec's `good` and defects: "a photo of a <category>", "... with <defect>").

    Raises:
        InputError: no such folder, no `train` or `test` in it, an unknown or missing category, a class without
            pictures, no normal or no anomalous test picture, captions that are no JSON object of texts.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"The data folder {root} does not exist; give a folder that holds train/ and test/.")
    if not (root / "train").is_dir():
        known = sorted(path.parent.name for path in root.glob("*/train") if path.is_dir())
        if not known:
            raise InputError(f"{root} holds no train/<class>/ folder, nor do its subfolders (the layout of MVTec-AD).")
        if category is None and len(known) > 1:
            raise InputError(f"{root} holds {len(known)} categories ({', '.join(known)}); give one of these folders.")
        if category is not None and category not in known:
            raise InputError(f"{root} has no category {category!r}; it holds {', '.join(known)}.")
        root = root / (category or known[0])
    texts = _captions_file(root / "captions.json")
    train, test = (_split(root, part, texts) for part in ("train", "test"))
    found = AnomalyFolder(root.resolve().name, train, test)
    if found.anomalous.all() or not found.anomalous.any():
        missing = "normal" if found.anomalous.all() else "anomalous"
        raise InputError(
            f"{root}/test has no {missing} picture: folders named as in train ({', '.join(sorted(set(train.labels)))}) "
            "are normal, all others anomalous, and both are needed."
        )
    return found


def _split(root: Path, part: str, texts: dict[str, str]) -> Split:
    if not (root / part).is_dir():
        raise InputError(f"{root} has no {part}/ folder; it needs train/<class>/ and test/<class>/.")
    folders = sorted(path for path in (root / part).iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise InputError(f"{root / part} has no class folder; pictures belong in {part}/<class>/.")
    rows = []
    for folder in folders:
        pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not pictures:
            raise InputError(f"The class {folder} is empty; it needs at least one of {', '.join(SUFFIXES)}.")
        default = _default_caption(root.resolve().name, folder.name, plain=not (root / "train" / "good").is_dir())
        for path in pictures:
            beside = path.with_suffix(".txt")
            text = texts.get(path.relative_to(root).as_posix())
            if text is None and beside.is_file():
                text = beside.read_text(encoding="utf-8").strip()
            rows.append((path, folder.name, text or default))
    return Split(*(tuple(column) for column in zip(*rows, strict=True)))


def _default_caption(category: str, label: str, plain: bool) -> str:
    category, label = (text.replace("_", " ").replace("-", " ") for text in (category, label))
    if plain:
        return f"a photo of {with_article(label)}"
    return f"a photo of {with_article(category)}" + ("" if label == "good" else f" with {label}")


def _captions_file(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise InputError(f'{path} must be one JSON object of texts by relative path: {{"train/good/000.png": "text"}}.')
    return texts
