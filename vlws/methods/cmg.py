"""CMG: the guidance of language for unsupervised vision anomaly detection.

Chen, Pan, Wang, Zhuang, Tang, Dai, Xu, "Improving Vision Anomaly Detection with the Guidance of Language Modality",
IEEE TMM 27 (2024), arXiv:2310.02821. Normal images come with captions at training; at test there are images alone.

The file follows the method: (1) the image-only detector that CMG improves, SSD; (2) CMER, which drops the part of the
image that the text does not speak of; (3) CMLE, which teaches the image embedding who is like whom in language;
(4) the detector that a PyOD user knows how to call.

Images are uint8 arrays "n h w 3"; a clip is what `vlws.models.clip.load_clip` gives, or anything that embeds alike.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.covariance import EmpiricalCovariance
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor, nn

import vlws_kernels
from vlws import train
from vlws.errors import InputError

Images = np.ndarray  # uint8 "n h w 3"


class Clip(Protocol):
    """What CMG asks of a vision-language model: unit-norm float32 rows "n d" for images and for texts."""

    def images(self, images: Images) -> np.ndarray: ...

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...


# ---------------------------------------------------------------------------------------------------------------------
# 1. Image only: SSD (Sehwag, Chiang, Mittal, ICLR 2021), a contrastive encoder scored by Mahalanobis distance


def contrastive_loss(z: Tensor, positives: Tensor, tau: float = 0.5, tau_0: float = 0.07) -> Tensor:
    """The masked contrastive loss L(M): rows that M marks attract each other, all others repel.

        S = z z' / tau,   P(i) = {p != i : M_ip = 1},
        L(M) = -(tau / tau_0) mean_i 1/|P(i)| sum_{p in P(i)} [ S_ip - log sum_{a != i} exp S_ia ]

    With M = I this is SimCLR's NT-Xent times tau / tau_0; with M from CMLE it is CMG's loss.

    Args:
        z: unit rows "(2 b) d", both views of a batch, view after view.
        positives: M, "b b", non-zero where two samples are to be alike; its diagonal must be non-zero.
    """
    similarity = z @ z.T / tau
    self_pairs = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = similarity - torch.logsumexp(similarity.masked_fill(self_pairs, -torch.inf), dim=1, keepdim=True)
    mask = positives.bool().repeat(2, 2) & ~self_pairs
    return -(tau / tau_0) * ((log_p * mask).sum(1) / mask.sum(1)).mean()


class Encoder(nn.Module):
    """A small convolutional encoder f "b 3 h w" -> "b d", and a projection head that serves training alone."""

    def __init__(self, width: int = 16, features: int = 64, projection: int = 32):
        super().__init__()
        plan = [(12, 2 * width, 2), (2 * width, 4 * width, 1), (4 * width, features, 2)]
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o, stride in plan
        ]
        self.body = nn.Sequential(nn.PixelUnshuffle(2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, projection))
        self.to(memory_format=torch.channels_last)  # a fifth faster on a CPU

    def forward(self, pixels: Tensor) -> Tensor:
        return self.body(pixels.contiguous(memory_format=torch.channels_last))

    def project(self, pixels: Tensor) -> Tensor:
        """Unit rows "b projection"."""
        return F.normalize(self.head(self(pixels)), dim=-1)


def augment(pixels: Tensor, scale: tuple[float, float] = (0.4, 1.0)) -> Tensor:
    """One random view of each image "b 3 h w" in [0, 1]: crop and resize, flip, brightness, contrast, grey."""
    b = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b)

    side = uniform(*scale).sqrt()
    flip = torch.where(torch.rand(b) < 0.5, -1.0, 1.0)
    x, y = uniform(-1, 1) * (1 - side), uniform(-1, 1) * (1 - side)
    affine = rearrange([side * flip, 0 * x, x, 0 * y, side, y], "(row col) b -> b row col", row=2)
    brightness, contrast = uniform(0.7, 1.3), uniform(0.7, 1.3)
    grey = torch.rand(b) < 0.2
    affine, brightness, contrast, grey = (t.to(pixels.device) for t in (affine, brightness, contrast, grey))

    view = F.grid_sample(pixels, F.affine_grid(affine, list(pixels.shape), align_corners=False), align_corners=False)
    view = torch.where(grey[:, None, None, None], reduce(view, "b c h w -> b 1 h w", "mean"), view)
    mean = reduce(view, "b c h w -> b 1 1 1", "mean")
    view = (view - mean) * rearrange(contrast, "b -> b 1 1 1") + mean * rearrange(brightness, "b -> b 1 1 1")
    return view.clamp(0, 1)


class Mahalanobis(BaseEstimator):
    """SSD's score: rows to unit length, standardised, then the squared Mahalanobis distance to the training set."""

    def fit(self, features: np.ndarray, y=None) -> "Mahalanobis":
        self.scale_ = make_pipeline(Normalizer(), StandardScaler()).fit(features)
        self.covariance_ = EmpiricalCovariance().fit(self.scale_.transform(features))
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Squared distances "n"; higher is more anomalous."""
        return self.covariance_.mahalanobis(self.scale_.transform(features))


class KNN(BaseEstimator):
    """Distance to the k-th nearest training row (PyOD's `KNN(method="largest")`), by `vlws_kernels.knn`."""

    def __init__(self, n_neighbors: int = 5):
        self.n_neighbors = n_neighbors

    def fit(self, features: np.ndarray, y=None) -> "KNN":
        if len(features) < self.n_neighbors:
            raise InputError(
                f"KNN needs at least n_neighbors={self.n_neighbors} training rows, and got {len(features)}."
            )
        self.features_ = torch.from_numpy(np.ascontiguousarray(features, np.float32))
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Euclidean distances "n"; higher is more anomalous."""
        rows = torch.from_numpy(np.ascontiguousarray(features, np.float32))
        return vlws_kernels.knn(rows, self.features_, self.n_neighbors)[0][:, -1].numpy()


# ---------------------------------------------------------------------------------------------------------------------
# 2. CMER: cross-modal entropy reduction


def cell_slices(height: int, width: int, grid: int) -> list[tuple[slice, slice]]:
    """The rows and columns of each of the g x g cells, row by row."""
    rows, cols = np.linspace(0, height, grid + 1, dtype=int), np.linspace(0, width, grid + 1, dtype=int)
    return [(slice(rows[r], rows[r + 1]), slice(cols[c], cols[c + 1])) for r in range(grid) for c in range(grid)]


def drop_cells(images: Images, cells: np.ndarray, grid: int = 2) -> Images:
    """Images without cell `cells[i]` (set to zero): x' of CMER. `cells`: int "n", counted row by row."""
    kept = images.copy()
    for cell, (rows, cols) in enumerate(cell_slices(*images.shape[1:3], grid)):
        kept[np.asarray(cells) == cell, rows, cols] = 0
    return kept


def masked_embeddings(clip: Clip, images: Images, grid: int = 2) -> np.ndarray:
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
        grid: cells a side.
        epochs, lr, batch_size: of the RID (Adam, cross-entropy against argmax_k a_k).
        published: the released RID (see `RID`).
        seed: of the RID's weights and order.
    """

    def __init__(self, clip: Clip, grid=2, epochs=60, lr=1e-3, batch_size=128, published=False, seed=0):
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
# 3. CMLE: cross-modal linear embedding


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
            raise InputError(f"guidance={self.guidance!r} needs text_vectors, one row an image, and got none.")
        torch.manual_seed(self.seed)
        projection = text_vectors.shape[1] if self.guidance == "regress" else 32
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
        pixels = self._pixels(images[batch])
        z = encoder.project(torch.cat([augment(pixels), augment(pixels)]))
        if self.guidance == "regress":
            return F.mse_loss(z, torch.from_numpy(text_vectors[batch]).to(z).repeat(2, 1))
        if self.guidance == "cluster":
            alike = torch.from_numpy(correlation_matrix(text_vectors[batch], self.components, int(batch[0])))
        else:
            alike = torch.eye(len(batch))
        return contrastive_loss(z, alike.to(z.device))

    def _pixels(self, images: Images) -> Tensor:
        device = next(self.encoder_.parameters()).device
        pixels = rearrange(torch.from_numpy(images).to(device), "b h w c -> b c h w").float() / 255
        return pixels if pixels.shape[-1] == self.image_size else F.adaptive_avg_pool2d(pixels, self.image_size)

    @torch.no_grad()
    def transform(self, images: Images) -> np.ndarray:
        """Encoder features "n features", the head discarded, in evaluation mode."""
        chunks = [self.encoder_(self._pixels(images[i : i + 256])).cpu().numpy() for i in range(0, len(images), 256)]
        return np.concatenate(chunks)


# ---------------------------------------------------------------------------------------------------------------------
# 4. The detector


class CMGDetector(BaseEstimator):
    """CMG as a PyOD user calls it: `fit` on normal images and their captions, then score images alone.

    Args:
        clip: embeds images and texts (`vlws.models.clip.load_clip`).
        cmer: drop the irrelevant cell first (needs captions at training).
        encoder: a `GuidedEncoder`; the default is CMLE-G. With guidance None and cmer=False this is SSD.
        detector: anything with PyOD's `fit` and `decision_function` (higher is more anomalous).
        grid: cells a side for CMER.
        contamination: share of the training set above `threshold_`; it sets labels, never scores.
        seed: of CMER's predictor.

    Attributes (after `fit`, PyOD's names): decision_scores_, threshold_, labels_.
    """

    def __init__(self, clip: Clip, cmer=True, encoder=None, detector=None, grid=2, contamination=0.1, seed=0):
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
