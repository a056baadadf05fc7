"""Load a CLIP by path or hub id, and take unit-norm features of pictures and texts."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from tqdm import trange
from transformers import CLIPModel, CLIPProcessor
from transformers.utils import logging

from vlws import paths
from vlws.errors import InputError

ASSETS = Path(__file__).parent / "assets"
REACH_SECONDS = 5.0
CLIP = {"clip": "CLIPModel"}


class Clip(NamedTuple):
    """`model, processor = load_clip(...)`; embeds pictures and texts with unit norm."""

    model: CLIPModel
    processor: CLIPProcessor

    def images(self, images: np.ndarray | Sequence) -> np.ndarray:
        """`embed_images`: "n h w 3" uint8 or PIL images -> "n d" float32."""
        return embed_images(self, images)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """`embed_texts`: n texts -> "n d" float32."""
        return embed_texts(self, texts)


def shipped() -> tuple[str, ...]:
    """Names of the backbones that come with the package."""
    return tuple(sorted(path.parent.name for path in ASSETS.glob("*/config.json")))


def load_clip(name: str = "clip-emoji", device: str = "auto") -> Clip:
    """A CLIPModel (float32, eval mode) and its CLIPProcessor: a shipped name, a folder, or a hub id.

    Raises:
        InputError: no such folder or hub id, a hub that cannot be reached, or a checkpoint of another class.
    """
    source, _ = locate(name)
    where = resolve_device(device)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # torchvision is not needed: the PIL processor does the same
    try:
        model = CLIPModel.from_pretrained(source, dtype=torch.float32).to(where).eval()
        processor = CLIPProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} holds no complete CLIP checkpoint: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    known, read = len(processor.tokenizer), model.config.text_config.vocab_size
    if known < read / 2:  # without its files the tokenizer class starts empty, and says nothing
        raise InputError(f"{name} holds no complete CLIP checkpoint: its tokenizer has {known} of {read} tokens.")
    return Clip(model, processor)


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


@torch.inference_mode()
def embed_images(clip: Clip, images: np.ndarray | Sequence, batch: int = 256, cache: bool = False) -> np.ndarray:
    """Pictures -> "n d" float32 rows of unit norm (projection space).

    Args:
        images: "n h w 3" uint8 RGB, or a sequence of PIL images; resized and normalised by the model's own processor.
        batch: pictures a forward pass.
        cache: keep the features (uint8 arrays only) under `paths.cache()`, keyed by weights and pictures.
    """
    kept = _feature_file(clip, images) if cache and isinstance(images, np.ndarray) else None
    if kept is not None and kept.exists():
        return np.load(kept)
    side = clip.model.config.vision_config.image_size
    rows = []
    for start in trange(0, len(images), batch, desc="image features", leave=False, disable=len(images) < 20 * batch):
        pixel_values = pixels(clip.processor, images[start : start + batch], side).to(clip.model.device)
        rows.append(_unit(clip.model.get_image_features(pixel_values=pixel_values).pooler_output))
    features = np.concatenate(rows) if rows else np.zeros((0, clip.model.config.projection_dim), np.float32)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, features)
        os.replace(part, kept)
    return features


@torch.inference_mode()
def embed_texts(clip: Clip, texts: Sequence[str], batch: int = 256) -> np.ndarray:
    """Texts -> "n d" float32 rows of unit norm; what is longer than the model reads is cut. Equal texts cost once."""
    unique = list(dict.fromkeys(texts))
    limit = clip.model.config.text_config.max_position_embeddings
    rows = []
    for start in range(0, len(unique), batch):
        tokens = clip.processor.tokenizer(
            unique[start : start + batch], padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(clip.model.device)
        features = clip.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        rows.append(_unit(features.pooler_output))
    if not rows:
        return np.zeros((0, clip.model.config.projection_dim), np.float32)
    at = {text: i for i, text in enumerate(unique)}
    return np.concatenate(rows)[[at[text] for text in texts]]


def pixels(processor: CLIPProcessor, images: np.ndarray | Sequence, side: int) -> torch.Tensor:
    """Pictures -> "n 3 side side" float32 as the processor makes them; arrays of the model's size skip PIL."""
    p = processor.image_processor
    if isinstance(images, np.ndarray) and images.shape[1:] == (side, side, 3) and p.do_rescale and p.do_normalize:
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (p.image_mean, p.image_std))
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() * p.rescale_factor - mean) / std
    return p(images=list(images), return_tensors="pt")["pixel_values"]


def _unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def weights_hash(model: torch.nn.Module) -> str:
    """sha256 over names and values of all weights, 16 hex digits."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _feature_file(clip: Clip, images: np.ndarray) -> Path:
    digest = hashlib.sha256(f"{weights_hash(clip.model)} {images.shape} {images.dtype}".encode())
    digest.update(clip.processor.image_processor.to_json_string().encode())
    digest.update(np.ascontiguousarray(images).data)
    return paths.cache() / "features" / f"{digest.hexdigest()[:24]}.npy"
