"""Open the pictures of users' folders: one opener for all formats."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from vlws.errors import InputError


def open_image(path: Path) -> Image.Image:
    """A file as RGB, read to its end, upright as its EXIF orientation says.

    Raises:
        InputError: a file that Pillow cannot read; the sentence names it.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} is no picture that can be read ({type(error).__name__}); remove or replace it."
        ) from error


def read_images(paths: Sequence[Path], size: int) -> np.ndarray:
    """Files -> "n size size 3" uint8 RGB: the central square of each, bicubic. Raises InputError as `open_image`."""
    images = np.empty((len(paths), size, size, 3), np.uint8)
    for i, path in enumerate(tqdm(paths, desc="pictures", leave=False, disable=len(paths) < 500)):
        images[i] = np.asarray(ImageOps.fit(open_image(path), (size, size), Image.Resampling.BICUBIC))
    return images
