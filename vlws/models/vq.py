"""Pictures as tokens: a VQGAN of transformers (`JanusVQVAE`), shipped or the reader's own."""

from typing import cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers import JanusVQVAE

from vlws.errors import InputError
from vlws.models import hub


def load_vq(name: str, device: str = "auto") -> JanusVQVAE:
    """A picture tokenizer: the name of a shipped one, a folder, or a hub id; frozen, in float32.

    >>> vq = load_vq("vq-emoji", "cpu")
    >>> side(vq), vq.config.num_embeddings
    (32, 256)
    """
    source, _ = hub.locate(name, hub.VQ)
    vq = JanusVQVAE.from_pretrained(source, dtype=torch.float32).to(hub.resolve_device(device))
    return cast(JanusVQVAE, vq.eval().requires_grad_(False))


def side(vq: JanusVQVAE) -> int:
    """Pixels of a side of the pictures that it reads and draws.

    >>> side(load_vq("vq-emoji", "cpu"))
    32
    """
    return int(vq.config.num_patches * 2 ** (len(vq.config.channel_multiplier) - 1))


def from_pixels(pictures: np.ndarray) -> Tensor:
    """Pictures "n h w 3" uint8 -> "n 3 h w" float32 in [-1, 1].

    >>> from_pixels(np.full((1, 2, 2, 3), 255, np.uint8)).unique().tolist()
    [1.0]
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise InputError(
            f"Pictures are {pictures.dtype} {pictures.shape}; they must be uint8 of shape n, h, w, 3 (RGB)."
        )
    return rearrange(torch.from_numpy(pictures), "n h w c -> n c h w").float() / 127.5 - 1


def to_pixels(values: Tensor) -> np.ndarray:
    """The way back: "n 3 h w" -> "n h w 3" uint8, what lies outside [-1, 1] clipped.

    >>> pictures = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    >>> bool((to_pixels(from_pixels(pictures)) == pictures).all())
    True
    """
    scaled = ((values.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return rearrange(scaled, "n c h w -> n h w c").numpy()


@torch.no_grad()
def to_tokens(vq: JanusVQVAE, pixels: Tensor, chunk: int = 256) -> Tensor:
    """Pictures "n 3 h w" in [-1, 1] -> token ids "n (h w)", int64, row by row from the top.

    Raises:
        InputError: pictures of another size than the tokenizer's.

    >>> to_tokens(load_vq("vq-emoji", "cpu"), torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """
    wanted = side(vq)
    if pixels.shape[-2:] != (wanted, wanted):
        h, w = pixels.shape[-2:]
        raise InputError(f"Pictures of {w} x {h} pixels: this tokenizer reads {wanted} x {wanted}.")
    parts = [vq.encode(part.to(vq.device)).image_tokens.view(len(part), -1) for part in pixels.split(chunk)]
    return torch.cat(parts)


@torch.no_grad()
def decode(vq: JanusVQVAE, ids: Tensor, chunk: int = 256) -> Tensor:
    """Token ids "n (h w)" -> pictures "n 3 h w", about [-1, 1].

    >>> decode(load_vq("vq-emoji", "cpu"), torch.zeros(2, 64, dtype=torch.long)).shape
    torch.Size([2, 3, 32, 32])
    """
    return torch.cat([vq.decode(part) for part in ids.to(vq.device).split(chunk)])
