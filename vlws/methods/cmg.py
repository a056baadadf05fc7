"""CMG: the guidance of language for unsupervised vision anomaly detection.

Chen, Pan, Wang, Zhuang, Tang, Dai, Xu, "Improving Vision Anomaly Detection with the Guidance of Language Modality",
IEEE TMM 27 (2024), arXiv:2310.02821. Normal images come with captions at training; at test there are images alone.

The file follows the method: (1) CMER, which drops the part of the image that the text does not speak of; (2) CMLE,
which teaches the image embedding who is like whom in language; (3) the detector that a PyOD user knows how to call.
The image-only detector that CMG improves, SSD, is `vlws.models.ssd`.

Images are uint8 arrays "n h w 3"; a clip is what `vlws.models.clip.load_clip` gives, or anything that embeds alike.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from vlws import train
from vlws.errors import InputError
from vlws.models.added import fill, grouped, load_added, save_added
from vlws.models.clip import ImageTextEncoder
from vlws.models.masking import drop_cells
from vlws.models.ssd import KNN, Encoder, Mahalanobis, augment, masked_contrastive_loss

Images = np.ndarray  # uint8 "n h w 3"


# ---------------------------------------------------------------------------------------------------------------------
# 1. CMER: cross-modal entropy reduction


def masked_embeddings(clip: ImageTextEncoder, images: Images, grid: int = 2) -> np.ndarray:
    """CLIP embeddings "n g d" of each image without each of its g = grid**2 cells, unit rows."""
    variants = [clip.images(drop_cells(images, np.full(len(images), cell), grid)) for cell in range(grid**2)]
    return np.stack(variants, axis=1)


def matching_scores(masked: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """a_k = 100 cos(image without cell k, text): "n g". The cell whose absence helps most is the irrelevant one."""
    return 100 * np.einsum("n g d, n d -> n g", masked, texts)


class RID(nn.Module):
    """The text-free predictor of the irrelevant cell, so that no caption is needed at test.

        u_k = MLP(e_k),   d_k = sum_{l != k} <u_k, u_l>,   p = softmax(d / g)

    from the g embeddings e_k of the image without cell k. The MLP is shared and d is symmetric in the cells, so
    permuting the cells permutes the answer. `published=True` is the released form instead, softmax(d_k / sum_j d_j)
    fed into a loss that applies a second softmax: where the sum is negative it turns the ranking round.
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
        _check_pairs(images, texts)
        masked = masked_embeddings(self.clip, images, self.grid)
        self.cells_ = matching_scores(masked, self.clip.texts(texts)).argmax(1)  # k*, by the text
        return self.fit_predictor(masked, self.cells_)

    def fit_predictor(self, masked: np.ndarray, cells: np.ndarray) -> "CMER":
        """Train the RID alone, on embeddings "n g d" and the cells "n" to drop."""
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
        """The cell to drop, int "n", from embeddings "n g d" of the masked images."""
        return self.rid_(torch.from_numpy(masked)).argmax(1).numpy()

    def irrelevant_cells(self, images: Images) -> np.ndarray:
        """The cell to drop, int "n", from images alone."""
        return self.predict(masked_embeddings(self.clip, images, self.grid))

    def transform(self, images: Images) -> Images:
        """x': each image without its irrelevant cell."""
        return drop_cells(images, self.irrelevant_cells(images), self.grid)


# ---------------------------------------------------------------------------------------------------------------------
# 2. CMLE: cross-modal linear embedding


def correlation_matrix(vectors: np.ndarray, components: int = 5, seed: int = 0) -> np.ndarray:
    """The correlation-structure matrix M of a batch: M_ij = 1 where a Gaussian mixture puts i and j together.

    Args:
        vectors: text vectors "b d" (or, as a control, image vectors).
        components: Gaussians; fewer where the batch has fewer distinct vectors. Diagonal covariances.

    Returns:
        bool "b b", with a true diagonal.
    """
    components = min(components, len(np.unique(vectors.round(6), axis=0)))
    mixture = GaussianMixture(components, covariance_type="diag", reg_covar=1e-4, random_state=seed)
    cluster = mixture.fit_predict(vectors.astype(np.float64))
    return cluster[:, None] == cluster[None, :]


class GuidedEncoder(TransformerMixin, BaseEstimator):
    """The contrastive encoder, image only (SSD) or guided by text vectors (CMLE).

    Args:
        guidance: None is SSD, L(I); "cluster" is CMLE-G, L(M) with M from a Gaussian mixture of each batch's text
            vectors; "regress" is CMLE-R, both views' projections regress the text vector (as released for Wikipedia).
        components: Gaussians in the mixture.
        image_size: side of the encoder's square input; images are resized to it (the paper's are 28 and 32).
        width, features: of the encoder.
        epochs, batch_size, lr: Adam, cosine to zero, the last epoch is kept.
        device: where it trains.
        seed: of weights, order, views and mixtures.
    """

    def __init__(
        self,
        guidance: Literal["cluster", "regress"] | None = None,
        components=5,
        image_size=32,
        width=16,
        features=64,
        epochs=20,
        batch_size=64,
        lr=3e-3,
        device="cpu",
        seed=0,
    ):
        self.guidance = guidance
        self.components = components
        self.image_size = image_size
        self.width = width
        self.features = features
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.seed = seed

    def fit(self, images: Images, text_vectors: np.ndarray | None = None) -> "GuidedEncoder":
        if self.guidance not in (None, "cluster", "regress"):
            raise InputError(f"guidance is {self.guidance!r}; accepted are None, 'cluster' and 'regress'.")
        if self.guidance and text_vectors is None:
            raise InputError(f"guidance={self.guidance!r} needs text_vectors, one row per image, and got none.")
        torch.manual_seed(self.seed)
        projection = 32 if text_vectors is None or self.guidance != "regress" else text_vectors.shape[1]
        self.encoder_ = Encoder(self.width, self.features, projection)
        optimizer = torch.optim.Adam(self.encoder_.parameters(), lr=self.lr)
        steps = self.epochs * max(1, len(images) // self.batch_size)
        self.history_ = train.fit(
            self.encoder_,
            lambda encoder, batch: self._loss(encoder, images, text_vectors, batch.cpu().numpy()),
            train.epochs(len(images), min(self.batch_size, len(images)), self.seed),
            steps,
            optimizer,
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
            device=self.device,
            label="",
        )
        return self

    def _loss(self, encoder: Encoder, images: Images, text_vectors: np.ndarray | None, batch: np.ndarray) -> Tensor:
        pixels = encoder.pixels(images[batch], self.image_size)
        z = encoder.project(torch.cat([augment(pixels), augment(pixels)]))  # "(2 b) projection", view after view
        if text_vectors is None or self.guidance is None:
            alike = torch.eye(len(batch))  # M = I, "b b"
        elif self.guidance == "regress":
            return F.mse_loss(z, torch.from_numpy(text_vectors[batch]).to(z).repeat(2, 1))
        else:
            alike = torch.from_numpy(correlation_matrix(text_vectors[batch], self.components, int(batch[0])))
        return masked_contrastive_loss(z, alike.to(z.device))

    @torch.no_grad()
    def transform(self, images: Images) -> np.ndarray:
        """Encoder features "n features", the head discarded, in evaluation mode."""
        chunks = (self.encoder_.pixels(images[i : i + 256], self.image_size) for i in range(0, len(images), 256))
        return torch.cat([self.encoder_(pixels) for pixels in chunks]).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# 3. The detector


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
        _check_pairs(images, texts)
        if not 0 < self.contamination <= 0.5:
            raise InputError(f"contamination is {self.contamination}; accepted is a share in (0, 0.5].")
        self.cmer_ = CMER(self.clip, self.grid, seed=self.seed).fit(images, texts) if self.cmer else None
        kept = self._kept(images)
        self.encoder_ = GuidedEncoder("cluster") if self.encoder is None else clone(self.encoder)
        self.encoder_.fit(kept, self.clip.texts(texts) if self.encoder_.guidance else None)
        self.detector_ = Mahalanobis() if self.detector is None else clone(self.detector)
        features = self.encoder_.transform(kept)
        self.detector_.fit(features)
        self.decision_scores_ = self.detector_.decision_function(features)
        self.threshold_ = np.quantile(self.decision_scores_, 1 - self.contamination)
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the fitted detector, without the clip: weights and arrays as safetensors, the settings as JSON.

        Raises InputError for a detector without arrays, one not fitted, and a folder of other files.
        """
        if not hasattr(self, "detector_"):
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
        """A detector that scores as the saved one, with the clip that it had. Raises InputError for other folders."""
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
        blank = np.zeros((1, 32, 32, 3), np.uint8)
        return {"embedding_dim": self.clip.images(blank).shape[1]} if self.cmer else {}

    def _kept(self, images: Images) -> Images:
        return images if self.cmer_ is None else self.cmer_.transform(images)

    def transform(self, images: Images) -> np.ndarray:
        """Encoder features "n features"."""
        return self.encoder_.transform(self._kept(images))

    def decision_function(self, images: Images) -> np.ndarray:
        """Anomaly scores "n"; higher is more anomalous. Takes no text."""
        return self.detector_.decision_function(self.transform(images))

    def predict(self, images: Images) -> np.ndarray:
        """0 normal, 1 anomalous, "n"."""
        return (self.decision_function(images) > self.threshold_).astype(int)


def _check_pairs(images: Images, texts: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise InputError(f"images are {images.dtype} {images.shape}; accepted is a uint8 array 'n h w 3'.")
    if len(images) != len(texts):
        raise InputError(f"{len(images)} images came with {len(texts)} captions; each image needs one.")
