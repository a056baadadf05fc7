"""The frozen experts from which Sugar's labels are made: what each slice is, by itself and across modalities.

A slice has a uni-modal part (Sugar: DINOv2 of a picture, BGE of a sentence) and a cross-modal part (CLIP), each of unit
norm, side by side [Chow et al. 2024, section 3.3]. Here the cross-modal part is always a CLIP's, pictures and sentences
each centred over the set: in a small world unrelated slices have cosines far above 0 (0.43 for clip-emoji on stories),
which large encoders have not, and which as labels would say nothing but the modality. The uni-modal part is

- `latent_experts`: a fixed function of the features of a generated slice, plus noise: a stand-in that is as fine as
  DINOv2 and BGE are, and knows nothing of the other modality;
- `encoder_experts`: real encoders, for a user's own documents: the CLIP's own patch features for pictures, counts
  of words and word pairs for sentences.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor
from torch.nn import functional as F

from vlws.data.documents import Documents, Slice
from vlws.models.clip import Clip, pixels

UNI = 64  # dimension of the uni-modal part of latent_experts
NOISE = 0.1  # its noise, against unit norm


@dataclass(frozen=True)
class SliceEmbeddings:
    """s slices: `vectors` "s dim" float32 (uni-modal part, then cross-modal), `modality` "s" int64 (1 = picture).

    >>> slices = SliceEmbeddings(torch.eye(5)[:2], torch.tensor([1, 0]), split=3)  # a picture and a sentence
    >>> slices.cross.shape
    torch.Size([2, 2])
    """

    vectors: Tensor
    modality: Tensor
    split: int

    @property
    def cross(self) -> Tensor:
        """The cross-modal part, "s dim"."""
        return self.vectors[:, self.split :]


def slices_of(found: Documents) -> list[Slice]:
    """All slices of all documents in their order; a `lone` slice repeats one or follows its document's own.

    >>> from vlws.data.documents import Document
    >>> picture, words = Slice(image=0), Slice("a cat")
    >>> found = Documents((Document((picture, words), lone=picture),), np.zeros((1, 32, 32, 3), np.uint8))
    >>> [part.is_image for part in slices_of(found)]
    [True, False, True]
    """
    return [s for d in found.documents for s in (*d.slices, *((d.lone,) if d.lone else ()))]


def latent_experts(found: Documents, clip: Clip, seed: int = 0) -> SliceEmbeddings:
    """Uni-modal: the sum of one fixed random direction per feature (`Slice.features`), and noise drawn from `seed`.

    The directions of pictures and of sentences are different ones: only CLIP can compare across.

    >>> from vlws.data.emoji_world import stories
    >>> from vlws.models.clip import load_clip
    >>> found = stories.corpus(4, seed=0)
    >>> slices = latent_experts(found, load_clip("clip-emoji", "cpu"))
    >>> slices.vectors.shape[1] == UNI + 64, len(slices.vectors) == len(slices_of(found))
    (True, True)
    """
    rng = np.random.default_rng(seed)
    rows = []
    for part in slices_of(found):
        total = sum(_code(f"{part.is_image} {feature}") for feature in part.features)
        noise = NOISE * rng.standard_normal(UNI) / np.sqrt(UNI)
        rows.append(total / max(np.linalg.norm(total), 1e-6) + noise)
    return _embeddings(found, np.array(rows), clip)


def encoder_experts(found: Documents, clip: Clip) -> SliceEmbeddings:
    """Uni-modal: pictures by CLIP's patch features (2 x 2 means, centred), sentences by hashed words and word pairs.

    >>> from vlws.data.documents import Document
    >>> from vlws.models.clip import load_clip
    >>> document = Document((Slice("a cat sleeps"), Slice(image=0), Slice("a cat sleeps")))
    >>> found = Documents((document,), np.zeros((1, 32, 32, 3), np.uint8))
    >>> slices = encoder_experts(found, load_clip("clip-emoji", "cpu"))
    >>> slices.modality.tolist(), round(float(slices.vectors[0] @ slices.vectors[2]), 3)  # unit norm in both parts
    ([0, 1, 0], 1.0)
    """
    slices = slices_of(found)
    patches = _patches(clip, found.images)
    words = HashingVectorizer(n_features=patches.shape[1], ngram_range=(1, 2), alternate_sign=True)
    counts = words.transform([s.text for s in slices]).toarray()
    uni = np.where([[s.is_image] for s in slices], patches[[max(s.image, 0) for s in slices]], counts)
    return _embeddings(found, uni, clip)


def _embeddings(found: Documents, uni: np.ndarray, clip: Clip) -> SliceEmbeddings:
    slices = slices_of(found)
    modality = torch.tensor([int(s.is_image) for s in slices])
    cross = np.zeros((len(slices), clip.model.config.projection_dim), np.float32)
    is_image = modality.numpy() == 1
    for at, vectors in (
        (is_image, lambda: clip.images(found.images)[[s.image for s in slices if s.is_image]]),
        (~is_image, lambda: clip.texts([s.text for s in slices if not s.is_image])),
    ):
        if at.any():
            cross[at] = vectors()
            cross[at] -= cross[at].mean(0) if at.sum() > 1 else 0
    parts = [F.normalize(torch.from_numpy(part).float(), dim=-1) for part in (uni, cross)]
    return SliceEmbeddings(torch.cat(parts, dim=-1), modality, uni.shape[1])


def _code(feature: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(feature.encode())).standard_normal(UNI) / np.sqrt(UNI)


@torch.inference_mode()
def _patches(clip: Clip, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """ "image (4 width)": the last block's patches, averaged in each quarter of the picture, centred over the set."""
    config, rows = clip.model.config.vision_config, []
    side = config.image_size // config.patch_size
    for start in range(0, len(images), batch):
        values = pixels(clip.processor, images[start : start + batch], config.image_size).to(clip.model.device)
        states = clip.model.vision_model(pixel_values=values).last_hidden_state[:, 1:].float().cpu()
        grid = rearrange(states, "n (h w) d -> n d h w", h=side)
        rows.append(rearrange(F.adaptive_avg_pool2d(grid, 2), "n d h w -> n (h w d)"))
    found = torch.cat(rows)
    return (found - reduce(found, "n d -> d", "mean")).numpy()
