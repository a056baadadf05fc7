"""What a Q-Former attends to in its pictures, and what it ignores (Cheetor, section 2.2)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from vlws.models.families import Blip2Adapter


@torch.no_grad()
def attention_map(
    adapter: Blip2Adapter,
    features: Tensor,
    queries: Tensor | None = None,
    instructions: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Cross-attention of the Q-Former over the patches, "image patch", mean over layers, heads and queries.

    Rows sum to at most 1: the class token is left out.

    Args:
        features: "image 1+patch width".
        queries: "image K d" or "1 K d"; the pretrained ones unless given.
        instructions: `Batch.extra`; without them InstructBLIP's queries read the pictures alone.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> batch = adapter.encode(["<image>"], [[np.zeros((48, 48, 3), np.uint8)]])
    >>> attended = attention_map(adapter, adapter.vision_features(batch))
    >>> attended.shape, bool(attended.sum() <= 1)
    (torch.Size([1, 36]), True)
    """
    qformer = adapter.model.qformer
    before = qformer.config._attn_implementation
    qformer.set_attn_implementation("eager")  # the fast kernels keep no weights
    try:
        given = adapter.query_tokens if queries is None else queries
        out = adapter.qformer_outputs(features, given, instructions, output_attentions=True)
    finally:
        qformer.set_attn_implementation(before)
    maps = torch.stack([m for m in out.cross_attentions or () if m is not None])
    return reduce(maps, "layer image head query patch -> image patch", "mean")[:, 1:]


def significance(attention: Tensor | np.ndarray, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How much the VPG attends to each thing: the mean of the attention map inside its mask, bilinearly interpolated.

    attention: "image patch" over a square grid; masks: per image "thing height width" bool. Returns per image "thing".

    >>> left = np.zeros((1, 4, 4), bool)
    >>> left[:, :, :2] = True  # the mask of one thing, in the left half
    >>> (score,) = significance(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), [left])  # 2 x 2 patches
    >>> score.tolist()
    [0.875]
    """
    attention = torch.as_tensor(attention).float()
    side = round(attention.shape[1] ** 0.5)
    grid = rearrange(attention, "image (h w) -> image 1 h w", h=side)
    fine = F.interpolate(grid, size=masks[0].shape[-2:], mode="bilinear", align_corners=False)[:, 0].numpy()
    return [(m * f).sum((1, 2)) / m.sum((1, 2)) for m, f in zip(masks, fine, strict=True)]


def least_attended(scores: Sequence[np.ndarray], ignored: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """(target "image", kept "image" bool): the thing of lowest significance, and whether it is ignored enough.

    "Significantly ignored" (section 2.2) has no threshold in the paper; here, below `ignored` times the mean.

    >>> target, kept = least_attended([np.array([0.9, 0.1, 0.8]), np.array([0.5, 0.4])])
    >>> target.tolist(), kept.tolist()
    ([1, 1], [True, False])
    """
    targets = np.array([int(s.argmin()) for s in scores])
    return targets, np.array([s.min() < ignored * s.mean() for s in scores])
