"""CLIP: load one by path or hub id, and take unit-norm features of pictures and texts."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from PIL import Image
from tqdm import trange
from transformers import CLIPModel, CLIPProcessor

from vlws.errors import InputError
from vlws.models.hub import locate, resolve_device
from vlws.models.tokens import check_end_token, check_vocabulary
from vlws.models.weights import check_differ, check_finite, in_one_sentence, load_checked


class ImageTextEncoder(Protocol):
    """Anything that embeds images and texts as a CLIP does: unit-norm float32 rows "n d".

    >>> class Noise:  # not a CLIP, and good enough for a test
    ...     def images(self, images):
    ...         return np.eye(len(images), 64, dtype=np.float32)
    ...
    ...     def texts(self, texts):
    ...         return np.eye(len(texts), 64, dtype=np.float32)
    >>> encoder: ImageTextEncoder = Noise()
    >>> Remembered(encoder).texts(["a cat", "a dog"]).shape
    (2, 64)
    """

    def images(self, images: np.ndarray) -> np.ndarray:
        """Pictures, "n h w 3" uint8 -> unit rows "n d" float32."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> unit rows "n d" float32."""


class Clip(NamedTuple):
    """`model, processor = load_clip(...)`; embeds pictures and texts with unit norm.

    >>> clip = load_clip("clip-emoji", "cpu")
    >>> clip.images(np.zeros((2, 32, 32, 3), np.uint8)).shape, clip.texts(["a cat"]).shape
    ((2, 64), (1, 64))
    """

    model: CLIPModel
    processor: CLIPProcessor

    def images(self, images: np.ndarray | Sequence) -> np.ndarray:
        """`embed_images`: "n h w 3" uint8 or PIL images -> "n d" float32."""
        return embed_images(self, images)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """`embed_texts`: n texts -> "n d" float32."""
        return embed_texts(self, texts)


@dataclass
class Remembered:
    """An encoder that embeds each picture and each text once, and knows what it embedded by content.

    `alone()` is the same without the encoder, small, for other processes: it knows what was embedded before.

    >>> seen = Remembered(load_clip("clip-emoji", "cpu"))
    >>> pictures = np.zeros((2, 32, 32, 3), np.uint8)
    >>> bool((seen.images(pictures) == seen.alone().images(pictures)).all())
    True
    """

    encoder: ImageTextEncoder | None
    rows: dict[bytes, np.ndarray] = field(default_factory=dict)

    def images(self, images: np.ndarray | Sequence) -> np.ndarray:
        """uint8 "n h w 3" -> unit rows "n d" float32. Raises InputError for new pictures where there is no encoder."""
        arrays = [np.ascontiguousarray(image) for image in images]
        keys = [_key(f"{array.shape}".encode() + array.tobytes()) for array in arrays]
        encoder = cast(ImageTextEncoder, self.encoder)
        return self._rows(keys, lambda new: encoder.images(np.stack([arrays[i] for i in new])))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> unit rows "n d" float32. Raises InputError for new texts where there is no encoder.

        >>> seen = Remembered(load_clip("clip-emoji", "cpu"))
        >>> seen.texts(["a cat", "a cat"]).shape, len(seen.rows)  # embedded once
        ((2, 64), 1)
        >>> seen.alone().texts(["a dog"])
        Traceback (most recent call last):
            ...
        vlws.errors.InputError: 1 pictures or texts were not embedded before, and no encoder is at hand.
        """
        keys = [_key(text.encode()) for text in texts]
        encoder = cast(ImageTextEncoder, self.encoder)
        return self._rows(keys, lambda new: encoder.texts([texts[i] for i in new]))

    def alone(self) -> "Remembered":
        """What was embedded so far, without the encoder."""
        return Remembered(None, dict(self.rows))

    def _rows(self, keys: Sequence[bytes], embed: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        new = {key: i for i, key in enumerate(keys) if key not in self.rows}
        if new and self.encoder is None:
            raise InputError(f"{len(new)} pictures or texts were not embedded before, and no encoder is at hand.")
        if new:
            self.rows |= dict(zip(new, embed(list(new.values())), strict=True))
        return np.stack([self.rows[key] for key in keys])


def _key(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def load_clip(name: str = "clip-emoji", device: str = "auto") -> Clip:
    """A CLIPModel (float32, eval mode) and its CLIPProcessor: a shipped name, a folder, or a hub id.

    Raises:
        InputError: no such folder or hub id, a hub that cannot be reached, a checkpoint of another class, one that is
            not complete, or whose weights, tokenizer and processor do not belong together: one blank picture and two
            texts go through the whole model.

    >>> model, processor = load_clip("clip-emoji", device="cpu")
    >>> model.config.projection_dim
    64
    >>> try:
    ...     load_clip("clip-emojis", device="cpu")
    ... except InputError as error:
    ...     print(str(error).split(":")[0])
    There is no backbone 'clip-emojis'
    """
    source, _ = locate(name)
    where = resolve_device(device)
    model, processor = load_checked(CLIPModel, CLIPProcessor.from_pretrained, source, name)
    config = model.config.text_config
    known = len(processor.tokenizer)
    if known < config.vocab_size / 2:  # without its files the tokenizer class starts empty, and says nothing
        raise InputError(
            f"{name} holds no complete checkpoint: its tokenizer has {known} of {config.vocab_size} tokens."
        )
    check_vocabulary(processor.tokenizer, config.vocab_size, name)
    check_end_token(processor.tokenizer, config.eos_token_id, name)
    clip = Clip(model.to(where), processor)
    with in_one_sentence(name, "cannot run a blank picture and two texts"):
        _try_out(clip, name)
    return clip


def _try_out(clip: Clip, name: str) -> None:
    """One blank picture and two texts through the whole model.

    Raises:
        InputError: pictures of another size than the tower's, values that are not finite, two texts with one feature.
    """
    blank, side = Image.new("RGB", (96, 64)), clip.model.config.vision_config.image_size
    check_size(pixels(clip.processor, [blank], side), side, name)
    texts = torch.from_numpy(clip.texts(["a word", "and others"]))
    check_finite(torch.from_numpy(clip.images([blank])), name)
    check_finite(texts, name)
    check_differ(*texts, name)


@torch.inference_mode()
def embed_images(clip: Clip, images: np.ndarray | Sequence, batch: int = 256) -> np.ndarray:
    """Pictures -> "n d" float32 rows of unit norm (projection space).

    Args:
        images: "n h w 3" uint8 RGB, or a sequence of PIL images; resized and normalised by the model's own processor.
        batch: pictures a forward pass.

    >>> rows = embed_images(load_clip("clip-emoji", "cpu"), np.zeros((2, 32, 32, 3), np.uint8))
    >>> rows.shape, rows.dtype, np.linalg.norm(rows, axis=1).round(3).tolist()
    ((2, 64), dtype('float32'), [1.0, 1.0])
    """
    side = clip.model.config.vision_config.image_size
    rows = []
    for start in trange(0, len(images), batch, desc="image features", leave=False, disable=len(images) < 20 * batch):
        pixel_values = pixels(clip.processor, images[start : start + batch], side).to(clip.model.device)
        rows.append(_unit(clip.model.get_image_features(pixel_values=pixel_values).pooler_output))
    return np.concatenate(rows) if rows else np.zeros((0, clip.model.config.projection_dim), np.float32)


@torch.inference_mode()
def embed_texts(clip: Clip, texts: Sequence[str], batch: int = 256) -> np.ndarray:
    """Texts -> "n d" float32 rows of unit norm; what is longer than the model reads is cut. Equal texts cost once.

    >>> rows = embed_texts(load_clip("clip-emoji", "cpu"), ["a cat", "a dog", "a cat"])
    >>> rows.shape, bool((rows[0] == rows[2]).all()), bool((rows[0] == rows[1]).all())
    ((3, 64), True, False)
    """
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

    >>> from vlws.data.emoji_world import captions, pairs
    >>> clip, found = load_clip("clip-emoji", "cpu"), pairs.clutter_pairs(40, seed=0)
    >>> weights = zero_shot_weights(clip, captions.class_texts())  # ten classes, some prompts for each
    >>> float(((clip.images(found.images) @ weights.T).argmax(1) == found.classes).mean())
    1.0
    """
    rows = np.stack([embed_texts(clip, prompts).mean(0) for prompts in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pixels(processor: CLIPProcessor, images: np.ndarray | Sequence, side: int) -> torch.Tensor:
    """Pictures -> "n 3 side side" float32 as the processor makes them; arrays of the model's size skip PIL.

    >>> pixels(load_clip("clip-emoji", "cpu").processor, [Image.new("RGB", (96, 64))], 32).shape
    torch.Size([1, 3, 32, 32])
    """
    p = processor.image_processor
    if isinstance(images, np.ndarray) and images.shape[1:] == (side, side, 3) and p.do_rescale and p.do_normalize:
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (p.image_mean, p.image_std))
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() * p.rescale_factor - mean) / std
    return p(images=list(images), return_tensors="pt")["pixel_values"]


def check_size(values: torch.Tensor, side: int, name: str) -> None:
    """InputError unless what an image processor gives, "n c h w", has the size that the tower takes.

    >>> check_size(torch.zeros(1, 3, 32, 32), 32, "my-clip")
    >>> try:
    ...     check_size(torch.zeros(1, 3, 24, 24), 32, "my-clip")
    ... except InputError as error:
    ...     print(str(error).split(";")[0])
    my-clip: its image processor makes pictures of 24 x 24 pixels, but its vision tower takes 32 x 32
    """
    height, width = values.shape[-2:]
    if (height, width) != (side, side):
        raise InputError(
            f"{name}: its image processor makes pictures of {height} x {width} pixels, but its vision tower takes "
            f"{side} x {side}; write that size into crop_size (or size) of its processor's config."
        )


def _unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
