"""Remake the emoji assets from three Debian packages: `python -m vlws.data.emoji_world.build`.

Pictures are the PNG strikes of Noto Color Emoji, names and keywords CLDR's English annotations, order and groups
Unicode's emoji-test.txt. What is kept: every fully-qualified emoji of a single code point (a trailing variation
selector aside) that the font draws.
"""

import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vlws.errors import InputError
from vlws.files import write_atomically

ASSETS = Path(__file__).parent / "assets"
SIDE = 32  # pixels of a shipped sprite
COLUMNS = 40  # sprites in a row of the sheet
VARIATION_SELECTOR = "\ufe0f"
SOURCES = {
    "fonts-noto-color-emoji": Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    "unicode-cldr-core": Path("/usr/share/unicode/cldr/common/annotations/en.xml"),
    "unicode-data": Path("/usr/share/unicode/emoji/emoji-test.txt"),
}


def build(out: Path = ASSETS) -> Path:
    """Write `emoji.png` (sprite sheet, 40 per row, 32 px, RGBA) and `emoji.json` (one record per sprite) under `out`.

    Raises:
        InputError: a package's file is missing; the sentence names both.
    """
    for package, path in SOURCES.items():
        if not path.is_file():
            raise InputError(f"{path} is missing: install the Debian package {package} (apt-get install {package}).")
    annotations = _annotations(SOURCES["unicode-cldr-core"])
    pictures = _pictures(SOURCES["fonts-noto-color-emoji"])
    records, sprites = [], []
    for char, group, subgroup, unicode_name in _emoji_test(SOURCES["unicode-data"]):
        base = char.removesuffix(VARIATION_SELECTOR)
        if len(base) != 1 or ord(base) not in pictures:
            continue
        name, keywords = annotations.get(base, (unicode_name, []))
        records.append({"char": char, "name": name, "keywords": keywords, "group": group, "subgroup": subgroup})
        sprites.append(_sprite(pictures[ord(base)]))
    out.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    _sheet(np.stack(sprites)).save(png, format="PNG", optimize=True)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    write_atomically(out / "emoji.png", png.getvalue())
    write_atomically(out / "emoji.json", f"[\n{lines}\n]\n".encode())
    return out


def _emoji_test(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(characters, group, subgroup, name) of each fully-qualified line, in Unicode's order."""
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ").strip()
        elif "; fully-qualified" in line:
            codepoints, comment = line.split(";", 1)
            name = comment.split("#", 1)[1].split(maxsplit=2)[2]
            yield "".join(chr(int(code, 16)) for code in codepoints.split()), group, subgroup, name


def _annotations(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Character -> (CLDR short name, keywords)."""
    names, keywords = {}, {}
    for node in ElementTree.parse(path).iter("annotation"):
        if node.get("type") == "tts":
            names[node.get("cp")] = node.text.strip()
        else:
            keywords[node.get("cp")] = [word.strip() for word in node.text.split("|")]
    return {char: (name, keywords.get(char, [])) for char, name in names.items()}


def _pictures(path: Path) -> dict[int, bytes]:
    """Code point -> the PNG of the font's only strike (136 x 128 pixels), byte for byte."""
    from fontTools.ttLib import TTFont  # comes with matplotlib; only the builder needs it

    font = TTFont(path)
    strike = font["CBDT"].strikeData[0]
    return {code: strike[glyph].imageData for code, glyph in font.getBestCmap().items() if glyph in strike}


def _sprite(png: bytes) -> np.ndarray:
    """One strike as "32 32 4" uint8, filtered with premultiplied alpha so that no edge darkens."""
    strike = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(strike.size)
    square = Image.new("RGBA", (side, side))
    square.paste(strike, ((side - strike.width) // 2, (side - strike.height) // 2))
    small = np.array(square.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGBA"))
    small[small[..., 3] < 8] = 0  # specks of the filter
    return small


def _sheet(sprites: np.ndarray) -> Image.Image:
    """ "n 32 32 4" -> one picture, 40 sprites per row."""
    rows = -(-len(sprites) // COLUMNS)
    full = np.zeros((rows * COLUMNS, SIDE, SIDE, 4), np.uint8)
    full[: len(sprites)] = sprites
    tiled = full.reshape(rows, COLUMNS, SIDE, SIDE, 4).swapaxes(1, 2)
    return Image.fromarray(tiled.reshape(rows * SIDE, COLUMNS * SIDE, 4))


if __name__ == "__main__":
    print(build())
