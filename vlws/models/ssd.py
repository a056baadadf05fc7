"""SSD, detection of anomalies from images alone: a contrastive encoder, scored by Mahalanobis distance.

Sehwag, Chiang, Mittal, "SSD: A Unified Framework for Self-Supervised Outlier Detection", ICLR 2021, arXiv:2103.12051.
The detector that CMG improves; its loss takes a mask, which is the identity here and comes from captions there.
"""

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from einops import rearrange, reduce
from sklearn.base import BaseEstimator, clone
from sklearn.covariance import EmpiricalCovariance
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

import vlws_kernels
from vlws.errors import InputError

SCALER = ("mean_", "var_", "scale_")  # what scikit-learn's StandardScaler learns
CHUNK = (256, 2**22)  # pictures, and pixels, that are held as floats at once: 256 of 32 x 32, 83 of 224 x 224
COVARIANCE = ("location_", "covariance_", "precision_")  # and its EmpiricalCovariance


def masked_contrastive_loss(z: Tensor, positives: Tensor, tau: float = 0.5, tau_0: float = 0.07) -> Tensor:
    """The masked contrastive loss L(M): rows that M marks attract each other, all others repel.

        S = z z' / tau,   P(i) = {p != i : M_ip = 1},
        L(M) = -(tau / tau_0) mean_i 1/|P(i)| sum_{p in P(i)} [ S_ip - log sum_{a != i} exp S_ia ]

    With M = I this is SimCLR's NT-Xent times tau / tau_0; with M from CMLE it is CMG's loss.

    Args:
        z: unit rows "(2 b) d", both views of a batch, view after view.
        positives: M, "b b", non-zero where two samples are to be alike; its diagonal must be non-zero.

    >>> z = torch.eye(2).repeat(2, 1)  # two samples, two views of each, which agree
    >>> apart, alike = torch.eye(2), torch.ones(2, 2)
    >>> bool(masked_contrastive_loss(z, apart) < masked_contrastive_loss(z, alike))  # unlike rows, said to be alike
    True
    """
    similarity = z @ z.T / tau
    self_pairs = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = similarity - torch.logsumexp(similarity.masked_fill(self_pairs, -torch.inf), dim=1, keepdim=True)
    mask = positives.bool().repeat(2, 2) & ~self_pairs
    return -(tau / tau_0) * ((log_p * mask).sum(1) / mask.sum(1)).mean()


def chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Pictures "n h w 3" in parts of as many as are held as floats at once (`CHUNK`).

    >>> [len(part) for part in chunks(np.zeros((100, 224, 224, 3), np.uint8))]
    [83, 17]
    """
    count, pixels = CHUNK
    step = max(1, min(count, pixels // (images.shape[1] * images.shape[2])))
    return (images[start : start + step] for start in range(0, len(images), step))


class Encoder(nn.Module):
    """A small convolutional encoder f "b 3 h w" -> "b d", and a projection head that serves training alone.

    >>> encoder = Encoder(features=64, projection=32)
    >>> pixels = encoder.pixels(np.zeros((2, 48, 48, 3), np.uint8), 32)
    >>> pixels.shape, encoder(pixels).shape, encoder.project(pixels).shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 64]), torch.Size([2, 32]))
    """

    def __init__(self, width: int = 16, features: int = 64, projection: int = 32):
        super().__init__()
        plan = [(12, 2 * width, 2), (2 * width, 4 * width, 1), (4 * width, features, 2)]
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o, stride in plan
        ]
        self.body = nn.Sequential(nn.PixelUnshuffle(2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, projection))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU

    def pixels(self, images: np.ndarray, size: int) -> Tensor:
        """Images "b h w 3" uint8 -> "b 3 size size" in [0, 1], on the device of the weights."""
        device = next(self.parameters()).device
        pixels = rearrange(torch.from_numpy(images).to(device), "b h w c -> b c h w").float() / 255
        return pixels if pixels.shape[-1] == size else F.adaptive_avg_pool2d(pixels, size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features "b d" of pixels "b 3 h w" in [0, 1]."""
        return self.body(pixels.contiguous(memory_format=torch.channels_last))

    def project(self, pixels: Tensor) -> Tensor:
        """Unit rows "b projection"."""
        return F.normalize(self.head(self(pixels)), dim=-1)


def augment(pixels: Tensor, scale: tuple[float, float] = (0.4, 1.0)) -> Tensor:
    """One random view of each image "b 3 h w" in [0, 1]: crop and resize, flip, brightness, contrast, grey.

    >>> pixels = torch.rand(2, 3, 32, 32)
    >>> view = augment(pixels)
    >>> view.shape == pixels.shape, bool(0 <= view.min() and view.max() <= 1), bool((view == pixels).all())
    (True, True, False)
    """
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


def check_rows(estimator: BaseEstimator, given: int, what: str = "rows") -> None:
    """Raise InputError where an estimator is given fewer training rows than its `rows_needed`, if it has any such.

    >>> check_rows(KNN(5), 5)
    """
    needed = getattr(estimator, "rows_needed", 1)
    if given < needed:
        least = f"n_neighbors={needed}" if isinstance(estimator, KNN) else str(needed)
        raise InputError(f"{type(estimator).__name__} needs at least {least} training {what}, and got {given}.")


def held_out_scores(detector: BaseEstimator, features: np.ndarray, folds: int = 5) -> np.ndarray:
    """Scores "n" of the rows that a detector was fitted to, each by one like it that was fitted to the others.

    A row's score under a detector that has seen it is too low to set a threshold by.

    >>> rows = np.random.default_rng(0).normal(size=(40, 30))
    >>> bool((held_out_scores(Mahalanobis(), rows) > Mahalanobis().fit(rows).decision_function(rows)).all())
    True
    """
    scores = np.empty(len(features))
    folds = min(folds, len(features) // 2)
    if folds < 2 or len(features) - -(-len(features) // folds) < getattr(detector, "rows_needed", 1):
        return detector.decision_function(features)
    for others, held in KFold(folds, shuffle=True, random_state=0).split(features):
        scores[held] = clone(detector).fit(features[others]).decision_function(features[held])
    return scores


class Mahalanobis(BaseEstimator):
    """SSD's score: rows to unit length, standardised, then the squared Mahalanobis distance to the training set.

    `rows_needed`: how few training rows will do; one has no spread.

    >>> rows = np.random.default_rng(0).normal(size=(50, 3))
    >>> Mahalanobis().fit(rows).decision_function(rows[:2]).shape
    (2,)
    """

    rows_needed = 2

    def fit(self, features: np.ndarray, y=None) -> "Mahalanobis":
        """Learn location and covariance of rows "n d". Raises InputError for one row.

        >>> Mahalanobis().fit(np.eye(3)).covariance_.location_.shape
        (3,)
        """
        check_rows(self, len(features))
        if len(features) <= features.shape[1]:
            warnings.warn(
                f"{len(features)} training rows of {features.shape[1]} features have a singular covariance: rows "
                f"not seen score far above those seen; give more than {features.shape[1]} rows.",
                stacklevel=2,
            )
        self.scale_ = make_pipeline(Normalizer(), StandardScaler()).fit(features)
        self.covariance_ = EmpiricalCovariance().fit(self.scale_.transform(features))
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Squared distances "n" float64; higher is more anomalous. Raises NotFittedError before `fit`.

        >>> bool(np.isclose(Mahalanobis().fit(np.eye(3)).decision_function(np.eye(3)), 2).all())
        True
        """
        check_is_fitted(self, "covariance_")
        return self.covariance_.mahalanobis(self.scale_.transform(features))

    def state_dict(self) -> dict[str, np.ndarray]:
        """What `fit` learned, as arrays. Raises NotFittedError before `fit`.

        >>> sorted(Mahalanobis().fit(np.eye(3)).state_dict())[:2]
        ['covariance.covariance_', 'covariance.location_']
        """
        check_is_fitted(self, "covariance_")
        scaler = self.scale_[-1]
        learned = {f"scaler.{name}": getattr(scaler, name) for name in SCALER}
        return learned | {f"covariance.{name}": getattr(self.covariance_, name) for name in COVARIANCE}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> "Mahalanobis":
        """As if fitted to the rows to which the detector of `state_dict` was.

        >>> fitted = Mahalanobis().fit(np.eye(3))
        >>> Mahalanobis().load_state_dict(fitted.state_dict()).decision_function(np.eye(3)).shape
        (3,)
        """
        scaler, self.covariance_ = StandardScaler(), EmpiricalCovariance()
        for name in SCALER:
            setattr(scaler, name, state[f"scaler.{name}"])
        for name in COVARIANCE:
            setattr(self.covariance_, name, state[f"covariance.{name}"])
        scaler.n_features_in_ = self.covariance_.n_features_in_ = len(scaler.mean_)
        self.scale_ = make_pipeline(Normalizer(), scaler)
        return self


class KNN(BaseEstimator):
    """Distance to the k-th nearest training row (PyOD's `KNN(method="largest")`), by `vlws_kernels.knn`.

    >>> KNN(2).fit(np.eye(3)).decision_function(np.eye(3))
    array([1.4142135, 1.4142135, 1.4142135], dtype=float32)
    """

    def __init__(self, n_neighbors: int = 5):
        self.n_neighbors = n_neighbors

    @property
    def rows_needed(self) -> int:
        """How few training rows will do.

        >>> KNN(3).rows_needed
        3
        """
        return self.n_neighbors

    def fit(self, features: np.ndarray, y=None) -> "KNN":
        """Keep the rows "n d". Raises InputError for fewer than `n_neighbors`.

        >>> KNN(2).fit(np.eye(3)).features_.shape
        torch.Size([3, 3])
        """
        check_rows(self, len(features))
        self.features_ = torch.from_numpy(np.ascontiguousarray(features, np.float32))
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Euclidean distances "n" float32; higher is more anomalous. Raises NotFittedError before `fit`.

        >>> KNN(1).fit(np.eye(3)).decision_function(np.zeros((1, 3))).tolist()
        [1.0]
        """
        check_is_fitted(self, "features_")
        rows = torch.from_numpy(np.ascontiguousarray(features, np.float32))
        return vlws_kernels.knn(rows, self.features_, self.n_neighbors)[0][:, -1].numpy()

    def state_dict(self) -> dict[str, np.ndarray]:
        """The training rows. Raises NotFittedError before `fit`.

        >>> KNN(1).fit(np.eye(3)).state_dict()["features"].shape
        (3, 3)
        """
        check_is_fitted(self, "features_")
        return {"features": self.features_.numpy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> "KNN":
        """As if fitted to the rows of `state_dict`.

        >>> KNN(1).load_state_dict({"features": np.eye(3, dtype=np.float32)}).decision_function(np.eye(3)).tolist()
        [0.0, 0.0, 0.0]
        """
        self.features_ = torch.from_numpy(state["features"])
        return self
