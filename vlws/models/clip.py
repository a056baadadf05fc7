"""CLIP: load one by path or hub id, and take unit-norm features of pictures and texts."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from tqdm import trange
from transformers import CLIPModel, CLIPProcessor
from transformers.utils import logging

from vlws.errors import InputError
from vlws.models.hub import locate, resolve_device


class ImageTextEncoder(Protocol):
    """Anything that embeds images and texts as a CLIP does: unit-norm float32 rows "n d"."""

    def images(self, images: np.ndarray) -> np.ndarray: ...

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...


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


@torch.inference_mode()
def embed_images(clip: Clip, images: np.ndarray | Sequence, batch: int = 256) -> np.ndarray:
    """Pictures -> "n d" float32 rows of unit norm (projection space).

    Args:
        images: "n h w 3" uint8 RGB, or a sequence of PIL images; resized and normalised by the model's own processor.
        batch: pictures a forward pass.
    """
    side = clip.model.config.vision_config.image_size
    rows = []
    for start in trange(0, len(images), batch, desc="image features", leave=False, disable=len(images) < 20 * batch):
        pixel_values = pixels(clip.processor, images[start : start + batch], side).to(clip.model.device)
        rows.append(_unit(clip.model.get_image_features(pixel_values=pixel_values).pooler_output))
    return np.concatenate(rows) if rows else np.zeros((0, clip.model.config.projection_dim), np.float32)


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


def zero_shot_weights(clip: Clip, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """A zero-shot classifier, "class d" float32 unit rows: the mean text feature of each class's prompts.

    Prompt ensembling as in CLIP (Radford et al., 2021, section 3.1.4); logits are `images @ weights.T`.
    """
    rows = np.stack([embed_texts(clip, prompts).mean(0) for prompts in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pixels(processor: CLIPProcessor, images: np.ndarray | Sequence, side: int) -> torch.Tensor:
    """Pictures -> "n 3 side side" float32 as the processor makes them; arrays of the model's size skip PIL."""
    p = processor.image_processor
    if isinstance(images, np.ndarray) and images.shape[1:] == (side, side, 3) and p.do_rescale and p.do_normalize:
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (p.image_mean, p.image_std))
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() * p.rescale_factor - mean) / std
    return p(images=list(images), return_tensors="pt")["pixel_values"]


def _unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
