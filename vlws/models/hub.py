"""Find a checkpoint by shipped name, folder or hub id, check what it is before it is loaded, and choose a device."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

from vlws.errors import InputError

ASSETS = Path(__file__).parent / "assets"
REACH_SECONDS = 5.0
CLIP = {"clip": "CLIPModel"}


def shipped() -> tuple[str, ...]:
    """Names of the backbones that come with the package."""
    return tuple(sorted(path.parent.name for path in ASSETS.glob("*/config.json")))


def locate(
    name: str, classes: Mapping[str, str] = CLIP, example: str = "openai/clip-vit-base-patch32"
) -> tuple[str, str]:
    """The folder or hub id behind a name, and its model_type, once its config is there and one of `classes`.

    Args:
        classes: model_type -> class name.

    Raises:
        InputError: no such folder or hub id, a hub that cannot be reached, a checkpoint of another class.
    """
    folder = ASSETS / name if name in shipped() else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{name} is no Hugging Face checkpoint: the folder has no config.json.")
        config, source = folder / "config.json", str(folder)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        config, source = _hub(name)
    else:
        raise InputError(
            f"There is no backbone {name!r}: accepted are a shipped name ({', '.join(shipped())}), a folder written by "
            f"save_pretrained, or a hub id such as {example}."
        )
    given = json.loads(config.read_text(encoding="utf-8"))
    kind = given.get("model_type")
    if kind not in classes:
        raise InputError(
            f"{name} is a {(given.get('architectures') or [kind])[0]}; accepted here: {', '.join(classes.values())}, "
            f"such as {example}."
        )
    return source, kind


def _hub(name: str) -> tuple[Path, str]:
    """(config.json, where to load from) of a hub id: its snapshot in the local cache, else the hub if that answers."""
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        snapshot = Path(cached).parent
        if any(any(snapshot.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin")):
            return Path(cached), str(snapshot)  # asks nobody
    advice = (
        f"on a connected machine run `hf download {name} --local-dir FOLDER` and give that folder, "
        "or bring its cache along and set HF_HOME"
    )
    if is_offline_mode():
        raise InputError(f"{name} is not in the local cache and HF_HUB_OFFLINE is set: {advice}.")
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=REACH_SECONDS)
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise InputError(f"The hub shows no model {name!r}: check the id, or log in with `hf auth login`.") from error
    except Exception as error:  # the hub's HTTP client differs by version; whatever it raises, the hub did not answer
        reason = type(error).__name__
        raise InputError(f"{name} cannot be reached on the Hugging Face hub ({reason}): {advice}.") from error
    return Path(hf_hub_download(name, "config.json")), name


def resolve_device(device: str = "auto") -> torch.device:
    """ "auto" is cuda where there is one, else cpu; anything else is torch's own name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={device!r}: accepted are auto, cpu, cuda and cuda:0.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device={device!r}, but this machine has no CUDA device that torch can use; give auto or cpu."
        )
    return found


def weights_hash(model: torch.nn.Module) -> str:
    """sha256 over names and values of all weights, 16 hex digits."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
