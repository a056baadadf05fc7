"""Open the pictures of users' folders: one opener, one list of a folder's pictures, for all formats and chapters."""

import struct
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from vlws.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
Picture = str | Path | Image.Image | np.ndarray  # a file, or an open picture: PIL, or uint8 "h w 3" or "h w"

_BITS_PER_SAMPLE = 258  # a tag of TIFF
_FAULTS = (OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, EOFError, struct.error)


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file or folder below `root` is one that systems and editors put beside a user's own.

    A name that begins with a dot (`.ipynb_checkpoints`, `._000.png`, `.DS_Store`), or `__MACOSX`, at any depth.

    >>> is_hidden(Path("data/train/.ipynb_checkpoints/000-checkpoint.png"), Path("data"))
    True
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts)


def list_images(folder: Path) -> list[Path]:
    """The pictures below a folder, at any depth, sorted by path; hidden ones (`is_hidden`) are no pictures.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("b.png", "a.jpg", "._a.jpg", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     print([path.name for path in list_images(Path(folder))])
    ['a.jpg', 'b.png']
    """
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not is_hidden(path, folder))


def find_file(folder: Path, name: str) -> Path | None:
    """The file that a user's text names, relative to `folder`, or None.

    Found as it is written, else with "\\\\" read as "/", else with accents composed or decomposed (Unicode NFC, NFD),
    as other systems write names.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "000.png").touch()
    ...     found = find_file(Path(folder), "000.png"), find_file(Path(folder), "001.png")
    >>> found[0].name, found[1]
    ('000.png', None)
    """
    plain = name.replace("\\", "/")
    names = (name, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))
    try:
        return next((path for one in names if (path := folder / one).is_file()), None)
    except OSError:  # a name that no file can have, such as one of 300 letters
        return None


def open_image(picture: Picture) -> Image.Image:
    """A picture as RGB, 8 bits per channel, read to its end, upright as its EXIF orientation says.

    16-bit grey is scaled by its bit depth (65535, or 4095 of a 12-bit TIFF, becomes 255). What is transparent becomes
    white. Of an animated picture or a TIFF of several pages it is the first frame.

    >>> open_image(np.zeros((2, 3), np.uint8)).getpixel((0, 0))
    (0, 0, 0)

    Raises:
        InputError: a file that cannot be read, an array that is not uint8 "h w 3" or "h w", pixels without a known
            white (float, or 32-bit integers); the sentence names the file.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[-1] == 3)):
            raise InputError(f"a picture is {picture.dtype} {picture.shape}; accepted is uint8, 'h w 3' or 'h w'.")
        return Image.fromarray(picture).convert("RGB")
    name = "a picture" if isinstance(picture, Image.Image) else picture
    try:
        if isinstance(picture, Image.Image):
            return _rgb(ImageOps.exif_transpose(picture), picture, name)
        with Image.open(picture) as opened:
            return _rgb(ImageOps.exif_transpose(opened), opened, name)
    except InputError:
        raise
    except (*_FAULTS, Image.DecompressionBombError) as error:
        raise InputError(
            f"{name} is no picture that can be read ({type(error).__name__}); remove or replace it."
        ) from error


def _rgb(upright: Image.Image, source: Image.Image, name: object) -> Image.Image:
    mode = upright.mode
    if mode.startswith("I;16") or (mode == "I" and source.format in ("PNG", "PPM")):
        bits = getattr(source, "tag_v2", {}).get(_BITS_PER_SAMPLE, 16)
        white = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
        grey = np.asarray(upright).astype(np.float64) * (255 / white)
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        pixels = "floating-point" if mode == "F" else "signed or 32-bit integer"
        raise InputError(f"{name} has {pixels} pixels; accepted are 8 and 16 bits per channel, unsigned.")
    if upright.has_transparency_data:
        coloured = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return upright.convert("RGB")


def read_images(pictures: Sequence[Picture], size: int) -> np.ndarray:
    """Pictures -> "n size size 3" uint8 RGB: the central square of each, bicubic. One is open at a time.

    >>> read_images([np.zeros((40, 60, 3), np.uint8), np.zeros((32, 32), np.uint8)], 32).shape
    (2, 32, 32, 3)

    Raises InputError as `open_image`.
    """
    images = np.empty((len(pictures), size, size, 3), np.uint8)
    for i, picture in enumerate(tqdm(pictures, desc="pictures", leave=False, disable=len(pictures) < 500)):
        images[i] = np.asarray(ImageOps.fit(open_image(picture), (size, size), Image.Resampling.BICUBIC))
    return images


def stack_images(pictures: np.ndarray | Sequence[Picture]) -> np.ndarray:
    """An array "n h w 3" uint8 as it is; a list of pictures of one size as such an array.

    >>> stack_images([Image.new("RGB", (32, 24)), Image.new("L", (32, 24))]).shape
    (2, 24, 32, 3)

    Raises:
        InputError: an array of another shape or type, no picture, pictures that differ in size.
    """
    if isinstance(pictures, np.ndarray) and pictures.dtype != object:
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            raise InputError(f"images are {pictures.dtype} {pictures.shape}; accepted is a uint8 array 'n h w 3'.")
        return pictures
    if isinstance(pictures, str | Path | Image.Image):
        raise InputError(f"images are one {type(pictures).__name__}; accepted are a uint8 array 'n h w 3' and a list.")
    opened = [np.asarray(open_image(picture)) for picture in pictures]
    if not opened:
        raise InputError("images are an empty list; accepted are a uint8 array 'n h w 3' and a list of pictures.")
    for i, other in enumerate(opened):
        if other.shape != opened[0].shape:
            (h, w, _), (k, j, _) = opened[0].shape, other.shape
            raise InputError(
                f"picture 0 is {h} x {w} and picture {i} is {k} x {j} pixels; accepted are pictures of one size, "
                "as read_images(pictures, size) of vlws.data.images makes them."
            )
    return np.stack(opened)
