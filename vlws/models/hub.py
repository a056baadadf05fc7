"""Find a checkpoint by shipped name, folder or hub id, look at its files before it is loaded, and choose a device.

Importing this file imports no torch: the runner looks at a checkpoint with `locate` before it starts a run.
`models.weights` then loads what was found.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from vlws.errors import InputError

if TYPE_CHECKING:
    import torch

ASSETS = Path(__file__).parent / "assets"
REACH_SECONDS = 5.0


class Kinds(NamedTuple):
    """The models that a loader takes: model_type -> class name, and a hub id as an example.

    >>> CLIP.classes, CLIP.example
    ({'clip': 'CLIPModel'}, 'openai/clip-vit-base-patch32')
    """

    classes: Mapping[str, str]
    example: str


CLIP = Kinds({"clip": "CLIPModel"}, "openai/clip-vit-base-patch32")  # what `clip.load_clip` takes
MLLM = Kinds(  # what `families.load_mllm` takes
    {
        "llava": "LlavaForConditionalGeneration",
        "blip-2": "Blip2ForConditionalGeneration",
        "instructblip": "InstructBlipForConditionalGeneration",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    },
    "Salesforce/blip2-opt-2.7b",
)
VQ = Kinds({"picture_tokenizer": "PictureTokenizer"}, "your-name/your-picture-tokenizer")
MORPH = Kinds({"morph_tokens": "MorphTokens"}, "your-name/your-morph-tokens")

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # each whole, or in parts that an .index.json lists
FOREIGN = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".onnx")
POINTER = b"version https://git-lfs"
READ = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")  # suffixes of files that loading reads
QUANTISED = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F4")  # types of safetensors that no weight of a float model has
UNQUANTISED = "accepted are weights in float32, float16 or bfloat16, such as those that the checkpoint was made from"


def shipped() -> tuple[str, ...]:
    """Names of the backbones that come with the package.

    >>> shipped()  # doctest: +ELLIPSIS
    ('bert-wordnet', 'blip2-emoji', ..., 'vq-emoji')
    """
    return tuple(sorted(path.parent.name for path in ASSETS.glob("*/config.json")))


def locate(name: str, kinds: Kinds = CLIP) -> tuple[str, str]:
    """The folder or hub id behind a name, and its model_type; a folder's files have been looked at (`check_folder`).

    >>> locate("clip-emoji")[1]
    'clip'

    Args:
        kinds: CLIP, MLLM or MORPH.

    Raises:
        InputError: no such folder or hub id, a hub that cannot be reached, a checkpoint of another class, one that is
            quantised, or whose files cannot be those of a whole checkpoint.
    """
    folder = ASSETS / name if name in shipped() else Path(name).expanduser()
    if folder.is_dir():
        config, source = _read_config(folder, name), str(folder)
        _check_class(config, name, kinds)
        check_folder(folder, name)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        path, source = _hub(name)
        config = _read_config(path.parent, name)
        _check_class(config, name, kinds)
        if source != name:
            check_folder(Path(source), name)
    else:
        fault = f"{name} is a file" if folder.is_file() else f"There is no backbone {name!r}"
        raise InputError(
            f"{fault}: accepted are a shipped name ({', '.join(shipped())}), a folder written by save_pretrained, or a "
            f"hub id such as {kinds.example}."
        )
    return source, config["model_type"]


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"{name} holds a PEFT adapter alone; accepted is a whole checkpoint: load adapter and base with peft, "
                "then call merge_and_unload() and save_pretrained."
            )
        raise InputError(f"{name} is no Hugging Face checkpoint: the folder has no config.json.")
    _check_pointers(folder, name)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{name} is no Hugging Face checkpoint: its config.json is no JSON ({error}).") from error
    if not isinstance(config, dict):
        raise InputError(f"{name} is no Hugging Face checkpoint: its config.json is no JSON object.")
    return config


def _check_pointers(folder: Path, name: str) -> None:
    for path in sorted(folder.iterdir()):
        small = path.suffix in READ and path.is_file() and path.stat().st_size < 1024
        if small and path.read_bytes().startswith(POINTER):
            raise InputError(
                f"{name}: {path.name} is a git-lfs pointer, not the file itself; run `git lfs pull` in the folder, or "
                "`hf download` the checkpoint anew."
            )


def _check_class(config: Mapping[str, Any], name: str, kinds: Kinds) -> None:
    """InputError unless a config's model_type is one of `kinds` and its weights are not quantised."""
    kind = config.get("model_type")
    if kind not in kinds.classes:
        raise InputError(
            f"{name} is a {(config.get('architectures') or [kind])[0]}; accepted here: "
            f"{', '.join(kinds.classes.values())}, such as {kinds.example}."
        )
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown method") if isinstance(quantised, dict) else quantised
        raise InputError(f"{name} is quantised ({method}); {UNQUANTISED}.")


def check_folder(folder: Path, name: str) -> None:
    """Look at the files of a checkpoint, not at its weights: seconds even for a large one.

    Raises:
        InputError: no such folder, a git-lfs pointer where a file should be, no weights, a part of them that is
            missing or cut short, weights of a quantised type.

    >>> check_folder(ASSETS / "clip-emoji", "clip-emoji")
    """
    if not folder.is_dir():
        raise InputError(f"{name} holds no complete checkpoint: there is no such folder here; download it.")
    _check_pointers(folder, name)
    files = weight_files(folder)
    if not files:
        there = [path.name for path in sorted(folder.iterdir()) if path.suffix in FOREIGN]
        raise InputError(
            f"{name} holds no complete checkpoint: it has neither {' nor '.join(WEIGHTS)}, but "
            f"{', '.join(there[:3]) or 'no weights'}; accepted is a folder written by save_pretrained."
        )
    for path in files:
        if not path.is_file():
            raise InputError(
                f"{name} holds no complete checkpoint: {path.name}, which its index lists, is missing; download it."
            )
        fault = _safetensors_fault(path) if path.suffix == ".safetensors" else _bin_fault(path)
        if fault:
            raise InputError(f"{name} holds no complete checkpoint: {path.name} {fault}.")


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that loading would read, there or not; none where the folder has no weights.

    >>> [file.name for file in weight_files(ASSETS / "clip-emoji")]
    ['model.safetensors']
    """
    for weights in WEIGHTS:
        index = folder / f"{weights}.index.json"
        if (folder / weights).is_file():
            return [folder / weights]
        if index.is_file():
            try:
                parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{index} is no index of weights ({type(error).__name__}); download it.") from error
            return [folder / part for part in sorted(parts)]
    return []


def _safetensors_fault(path: Path) -> str | None:
    """What is wrong with a file by its header, which says how long the file must be."""
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                kind = file.get_slice(key).get_dtype()
                if kind in QUANTISED:
                    return f"is quantised ({key} is {kind}); {UNQUANTISED}"
    except (SafetensorError, OSError) as error:
        return f"is damaged or cut short ({str(error).splitlines()[0]}); download it anew"
    return None


def _bin_fault(path: Path) -> str | None:
    """A file of torch.save is a zip archive, whose table of contents stands at its end."""
    with path.open("rb") as file:
        begins = file.read(2)
    cut = begins == b"PK" and not zipfile.is_zipfile(path)
    return "is damaged or cut short; download it anew" if cut or not begins else None


def _hub(name: str) -> tuple[Path, str]:
    """(config.json, where to load from) of a hub id: its snapshot in the local cache, else the hub if that answers."""
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        snapshot = Path(cached).parent
        files = weight_files(snapshot)
        if files and all(path.is_file() for path in files):
            return Path(cached), str(snapshot)  # asks nobody
    advice = (
        f"on a connected machine run `hf download {name} --local-dir FOLDER` and give that folder, "
        "or bring its cache along and set HF_HOME"
    )
    if is_offline_mode():
        raise InputError(f"{name} is no folder, is not in the local cache and HF_HUB_OFFLINE is set: {advice}.")
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=REACH_SECONDS)
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{name} is no folder, and the hub shows no such model: check the id, or log in with `hf auth login`."
        ) from error
    except Exception as error:  # the hub's HTTP client differs by version; whatever it raises, the hub did not answer
        reason = type(error).__name__
        raise InputError(
            f"{name} is no folder, and cannot be reached on the Hugging Face hub ({reason}): {advice}."
        ) from error
    return Path(hf_hub_download(name, "config.json")), name


def resolve_device(device: str = "auto") -> "torch.device":
    """ "auto" is cuda where there is one, else cpu; anything else is torch's own name.

    >>> resolve_device("cpu").type
    'cpu'
    """
    import torch

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


def weights_hash(model: "torch.nn.Module") -> str:
    """sha256 over names and values of all weights, 16 hex digits.

    >>> import torch
    >>> one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> weights_hash(one) == weights_hash(other)
    False
    >>> _ = other.load_state_dict(one.state_dict())
    >>> weights_hash(one) == weights_hash(other), len(weights_hash(one))
    (True, 16)
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
