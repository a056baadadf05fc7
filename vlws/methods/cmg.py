"""CMG: the guidance of language for unsupervised vision anomaly detection.

Chen, Pan, Wang, Zhuang, Tang, Dai, Xu, "Improving Vision Anomaly Detection with the Guidance of Language Modality",
IEEE TMM 27 (2024), arXiv:2310.02821. Normal images come with captions at training; at test there are images alone.

The file follows the method: (1) CMER, which drops the part of the image that the text does not speak of; (2) the
detector that a PyOD user knows how to call, whose encoder CMLE teaches who is like whom in language.
The image-only detector that CMG improves, SSD, is `vlws.models.ssd`; CMLE's encoder is `vlws.models.guided`.

Images are uint8 arrays "n h w 3", or lists of pictures of one size (as `vlws.data.images.read_images`
makes them); a clip is what `vlws.models.clip.load_clip` gives, or anything that embeds alike.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from vlws import train
from vlws.data.images import Picture, stack_images
from vlws.errors import InputError
from vlws.models.added import fill, grouped, load_added, save_added
from vlws.models.clip import ImageTextEncoder
from vlws.models.guided import GuidedEncoder, correlation_matrix
from vlws.models.masking import drop_cells, masked_embeddings, matching_scores
from vlws.models.ssd import KNN, Encoder, Mahalanobis, check_rows, held_out_scores

__all__ = ["CMER", "RID", "CMGDetector", "GuidedEncoder", "correlation_matrix", "masked_embeddings", "matching_scores"]

Images = np.ndarray | Sequence[Picture]  # uint8 "n h w 3", or pictures of one size


# ---------------------------------------------------------------------------------------------------------------------
# 1. CMER: cross-modal entropy reduction


class RID(nn.Module):
    """The text-free predictor of the irrelevant cell, so that no caption is needed at test.

        u_k = MLP(e_k),   d_k = sum_{l != k} <u_k, u_l>,   p = softmax(d / g)

    from the g embeddings e_k of the image without cell k. The MLP is shared and d is symmetric in the cells, so
    permuting the cells permutes the answer. `published=True` is the released form instead, softmax(d_k / sum_j d_j)
    fed into a loss that applies a second softmax: where the sum is negative it turns the ranking round.

    >>> logits = RID(64)(torch.randn(3, 4, 64))  # three images, each without one of four cells
    >>> logits.shape
    torch.Size([3, 4])
    """

    def __init__(self, dim: int, published: bool = False):
        super().__init__()
        layers = [nn.Linear(dim, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.2)]
        self.mlp = nn.Sequential(*layers, nn.Linear(256, 128))
        self.published = published

    def forward(self, masked: Tensor) -> Tensor:
        """Logits "b g" from embeddings "b g d"."""
        u = self.mlp(masked)
        affinity = torch.einsum("b k f, b l f -> b k l", u, u)
        d = affinity.sum(-1) - affinity.diagonal(dim1=1, dim2=2)
        return (d / d.sum(-1, keepdim=True)).softmax(-1) if self.published else d / d.shape[-1]


class CMER(TransformerMixin, BaseEstimator):
    """Cross-modal entropy reduction: learn from captions which cell to drop; then drop it with no caption at all.

    Args:
        clip: embeds images and texts.
        grid: cells per side.
        epochs, lr, batch_size: of the RID (Adam, cross-entropy against argmax_k a_k).
        published: the released RID (see `RID`).
        seed: of the RID's weights and order.

    Attributes (after `fit`): rid_, the predictor; cells_, the cell that each caption speaks of least, int "n".

    >>> from vlws.models.clip import load_clip
    >>> images, texts = np.zeros((4, 32, 32, 3), np.uint8), ["a bird", "an owl", "a cat", "a dog"]
    >>> CMER(load_clip("clip-emoji", "cpu"), epochs=1).fit(images, texts).transform(images).shape
    (4, 32, 32, 3)
    """

    def __init__(self, clip: ImageTextEncoder, grid=2, epochs=60, lr=1e-3, batch_size=128, published=False, seed=0):
        self.clip = clip
        self.grid = grid
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.published = published
        self.seed = seed

    def fit(self, images: Images, texts: Sequence[str]) -> "CMER":
        """Learn from images and one caption per image. Raises InputError for what is no such pair.

        >>> from vlws.models.clip import load_clip
        >>> clip, images = load_clip("clip-emoji", "cpu"), np.zeros((2, 32, 32, 3), np.uint8)
        >>> CMER(clip, epochs=1).fit(images, ["owl", "cat"]).cells_
        array([0, 0])
        """
        images = _checked_pairs(images, texts)
        masked = masked_embeddings(self.clip, images, self.grid)
        return self.fit_predictor(masked, matching_scores(masked, self.clip.texts(texts)).argmax(1))

    def fit_predictor(self, masked: np.ndarray, cells: np.ndarray) -> "CMER":
        """Train the RID alone, on embeddings "n g d" and the cells "n" to drop, k* by the text; no clip is needed.

        >>> CMER(None, epochs=1).fit_predictor(np.ones((2, 4, 8), np.float32), np.array([0, 1])).cells_
        array([0, 1])
        """
        self.cells_ = cells
        torch.manual_seed(self.seed)
        self.rid_ = RID(masked.shape[-1], self.published)
        embeddings, target = torch.from_numpy(masked), torch.from_numpy(cells)
        batches = train.epochs(len(target), min(self.batch_size, len(target)), self.seed)
        train.fit(
            self.rid_,
            lambda rid, batch: F.cross_entropy(rid(embeddings[batch]), target[batch]),
            batches,
            steps=self.epochs * max(1, len(target) // self.batch_size),
            optimizer=torch.optim.Adam(self.rid_.parameters(), lr=self.lr),
            device="cpu",
            label="",
        )
        return self

    @torch.no_grad()
    def predict(self, masked: np.ndarray) -> np.ndarray:
        """The cell to drop, int "n", from embeddings "n g d" of the masked images. Raises NotFittedError before `fit`.

        >>> masked = np.ones((2, 4, 8), np.float32)
        >>> CMER(None, epochs=1).fit_predictor(masked, np.array([0, 1])).predict(masked).shape
        (2,)
        """
        check_is_fitted(self, "rid_")
        return self.rid_(torch.from_numpy(masked)).argmax(1).numpy()

    def irrelevant_cells(self, images: Images) -> np.ndarray:
        """The cell to drop, int "n", from images alone. Raises NotFittedError before `fit`.

        >>> from vlws.models.clip import load_clip
        >>> images, clip = np.zeros((2, 32, 32, 3), np.uint8), load_clip("clip-emoji", "cpu")
        >>> CMER(clip, epochs=1).fit(images, ["owl", "cat"]).irrelevant_cells(images).shape
        (2,)
        """
        check_is_fitted(self, "rid_")
        return self.predict(masked_embeddings(self.clip, images, self.grid))

    def transform(self, images: Images) -> Images:
        """x': each image without its irrelevant cell, "n h w 3" uint8. Raises NotFittedError before `fit`.

        >>> from vlws.models.clip import load_clip
        >>> images, clip = np.ones((2, 32, 32, 3), np.uint8), load_clip("clip-emoji", "cpu")
        >>> CMER(clip, epochs=1).fit(images, ["owl", "cat"]).transform(images).mean().item()
        0.75
        """
        images = stack_images(images)
        return drop_cells(images, self.irrelevant_cells(images), self.grid)


# ---------------------------------------------------------------------------------------------------------------------
# 2. The detector


DETECTORS = {"Mahalanobis": Mahalanobis, "KNN": KNN}  # those whose state is arrays


class CMGDetector(BaseEstimator):
    """CMG as a PyOD user calls it: `fit` on normal images and their captions, then score images alone.

    Args:
        clip: embeds images and texts (`vlws.models.clip.load_clip`).
        cmer: drop the irrelevant cell first (needs captions at training).
        encoder: a `GuidedEncoder`; the default is CMLE-G. With guidance None and cmer=False this is SSD.
        detector: anything with PyOD's `fit` and `decision_function` (higher is more anomalous).
        grid: cells per side for CMER.
        contamination: share of the training set above `threshold_`; it sets labels, never scores.
        seed: of CMER's predictor.

    Attributes (after `fit`, PyOD's names): decision_scores_, threshold_, labels_.

    >>> from vlws.models.clip import load_clip
    >>> images, texts = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8), ["an owl", "a cat"] * 4
    >>> detector = CMGDetector(load_clip("clip-emoji", "cpu"), encoder=GuidedEncoder("cluster", epochs=1))
    >>> detector.fit(images, texts).decision_function(images).shape
    (8,)
    """

    def __init__(
        self, clip: ImageTextEncoder, cmer=True, encoder=None, detector=None, grid=2, contamination=0.1, seed=0
    ):
        self.clip = clip
        self.cmer = cmer
        self.encoder = encoder
        self.detector = detector
        self.grid = grid
        self.contamination = contamination
        self.seed = seed

    def fit(self, images: Images, texts: Sequence[str]) -> "CMGDetector":
        """Learn from normal images and one caption per image; each image passes the clip once, in its g variants.

        >>> CMGDetector(None, cmer=False, encoder=GuidedEncoder(epochs=1)).fit(
        ...     np.zeros((4, 32, 32, 3), np.uint8), ["a plate"] * 4
        ... ).labels_
        array([0, 0, 0, 0])

        Raises InputError for what is no such pair, a contamination out of range, and too few images for encoder or
        detector.
        """
        images = _checked_pairs(images, texts)
        if not 0 < self.contamination <= 0.5:
            raise InputError(f"contamination is {self.contamination}; accepted is a share in (0, 0.5].")
        self.encoder_ = GuidedEncoder("cluster") if self.encoder is None else clone(self.encoder)
        self.detector_ = Mahalanobis() if self.detector is None else clone(self.detector)
        for part in (self.encoder_, self.detector_):
            check_rows(part, len(images), "pictures")
        kept, self.cmer_ = images, None
        vectors = self.clip.texts(texts) if self.cmer or self.encoder_.guidance else None
        if self.cmer and vectors is not None:
            masked = masked_embeddings(self.clip, images, self.grid)
            self.cmer_ = CMER(self.clip, self.grid, seed=self.seed)
            self.cmer_.fit_predictor(masked, matching_scores(masked, vectors).argmax(1))
            kept = drop_cells(images, self.cmer_.predict(masked), self.grid)
        self.encoder_.fit(kept, vectors if self.encoder_.guidance else None)
        features = self.encoder_.transform(kept)
        self.detector_.fit(features)
        self.decision_scores_ = held_out_scores(self.detector_, features)
        self.threshold_ = np.quantile(self.decision_scores_, 1 - self.contamination)
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the fitted detector, without the clip: weights and arrays as safetensors, the settings as JSON.

        >>> import tempfile
        >>> detector = CMGDetector(None, cmer=False, encoder=GuidedEncoder(epochs=1))
        >>> _ = detector.fit(np.zeros((4, 32, 32, 3), np.uint8), ["a plate"] * 4)
        >>> detector.save_pretrained(tempfile.mkdtemp() + "/plates")

        Raises InputError for a detector without arrays, one not fitted, and a folder of other files.
        """
        if not hasattr(self, "decision_scores_"):
            raise InputError("this CMGDetector was not fitted; call fit before save_pretrained.")
        kind = type(self.detector_).__name__
        if DETECTORS.get(kind) is not type(self.detector_):
            raise InputError(f"a {kind} cannot be written without pickle; accepted are {' and '.join(DETECTORS)}.")
        parts = {
            "encoder": self.encoder_.encoder_.state_dict(),
            "rid": self.cmer_.rid_.state_dict() if self.cmer_ else {},
            "detector": self.detector_.state_dict(),
            "training": {"decision_scores": self.decision_scores_},
        }
        config = {
            "own": {name: getattr(self, name) for name in ("cmer", "grid", "contamination", "seed")},
            "encoder": self.encoder_.get_params(),
            "detector": [kind, self.detector_.get_params()],
            "threshold": float(self.threshold_),
        }
        named = {f"{part}.{name}": torch.as_tensor(v) for part, state in parts.items() for name, v in state.items()}
        save_added(folder, "CMGDetector", config, self._sizes(), named)

    @classmethod
    def from_pretrained(cls, folder: str | Path, clip: ImageTextEncoder) -> "CMGDetector":
        """A detector that scores as the saved one, with the clip that it had. Raises InputError for other folders.

        >>> import tempfile
        >>> folder, images = tempfile.mkdtemp() + "/plates", np.zeros((4, 32, 32, 3), np.uint8)
        >>> detector = CMGDetector(None, cmer=False, encoder=GuidedEncoder(epochs=1)).fit(images, ["a plate"] * 4)
        >>> detector.save_pretrained(folder)
        >>> CMGDetector.from_pretrained(folder, None).predict(images)
        array([0, 0, 0, 0])
        """
        config, tensors = load_added(folder, "CMGDetector")
        encoder, (kind, options) = GuidedEncoder(**config["encoder"]), config["detector"]
        made = cls(clip, encoder=encoder, detector=DETECTORS[kind](**options), **config["own"])
        load_added(folder, "CMGDetector", made._sizes())
        parts = grouped(tensors)
        made.encoder_ = clone(encoder)
        projection = len(parts["encoder"]["head.2.bias"])
        made.encoder_.encoder_ = Encoder(encoder.width, encoder.features, projection).eval()
        fill(made.encoder_.encoder_, parts["encoder"], folder)
        made.cmer_ = CMER(clip, made.grid, seed=made.seed) if made.cmer else None
        if made.cmer_:
            made.cmer_.rid_ = RID(parts["rid"]["mlp.0.weight"].shape[1]).eval()
            fill(made.cmer_.rid_, parts["rid"], folder)
        made.detector_ = clone(made.detector).load_state_dict({k: v.numpy() for k, v in parts["detector"].items()})
        made.decision_scores_, made.threshold_ = parts["training"]["decision_scores"].numpy(), config["threshold"]
        made.labels_ = (made.decision_scores_ > made.threshold_).astype(int)
        return made

    def _sizes(self) -> dict[str, int]:
        """The clip's embedding dimension, which CMER reads; without CMER any clip will do."""
        if not self.cmer:
            return {}
        fitted: CMER | None = getattr(self, "cmer_", None)
        if fitted:
            return {"embedding_dim": cast(nn.Linear, fitted.rid_.mlp[0]).in_features}
        return {"embedding_dim": self.clip.images(np.zeros((1, 32, 32, 3), np.uint8)).shape[1]}

    def transform(self, images: Images) -> np.ndarray:
        """Encoder features "n features" float32. Raises NotFittedError before `fit`, InputError as `stack_images`.

        >>> images = np.zeros((4, 32, 32, 3), np.uint8)
        >>> detector = CMGDetector(None, cmer=False, encoder=GuidedEncoder(epochs=1)).fit(images, ["a plate"] * 4)
        >>> detector.transform(images).shape
        (4, 64)
        """
        check_is_fitted(self, "decision_scores_")
        images = stack_images(images)
        return self.encoder_.transform(images if self.cmer_ is None else self.cmer_.transform(images))

    def decision_function(self, images: Images) -> np.ndarray:
        """Anomaly scores "n"; higher is more anomalous. Takes no text. Raises as `transform`.

        >>> images = np.zeros((4, 32, 32, 3), np.uint8)
        >>> detector = CMGDetector(None, cmer=False, encoder=GuidedEncoder(epochs=1)).fit(images, ["a plate"] * 4)
        >>> detector.decision_function([images[0]]).shape
        (1,)
        """
        features = self.transform(images)
        return self.detector_.decision_function(features)

    def predict(self, images: Images) -> np.ndarray:
        """0 normal, 1 anomalous, int "n". Raises as `transform`.

        >>> images = np.zeros((4, 32, 32, 3), np.uint8)
        >>> detector = CMGDetector(None, cmer=False, encoder=GuidedEncoder(epochs=1)).fit(images, ["a plate"] * 4)
        >>> detector.predict(images)
        array([0, 0, 0, 0])
        """
        return (self.decision_function(images) > self.threshold_).astype(int)


def _checked_pairs(images: Images, texts: Sequence[str]) -> np.ndarray:
    """The images as an array; InputError where they are none, or there is not one text per image."""
    stacked = stack_images(images)
    if isinstance(texts, str):
        raise InputError(f"the captions are one text, {texts[:40]!r}; accepted is a list of one per image.")
    if len(stacked) != len(texts):
        raise InputError(f"{len(stacked)} images came with {len(texts)} captions; each image needs one.")
    return stacked
