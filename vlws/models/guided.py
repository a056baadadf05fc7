"""CMLE, cross-modal linear embedding: a contrastive encoder that text vectors teach who is like whom.

Section 2 of CMG (`vlws.methods.cmg`): the correlation structure of a batch's captions is the mask M of the contrastive
loss L(M) of `vlws.models.ssd`. Without guidance it is SSD's encoder.

Images are uint8 arrays "n h w 3", or lists of pictures of one size.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional as F

from vlws import train
from vlws.data.images import Picture, stack_images
from vlws.errors import InputError
from vlws.models.ssd import Encoder, augment, check_rows, chunks, masked_contrastive_loss


def correlation_matrix(vectors: np.ndarray, components: int = 5, seed: int = 0) -> np.ndarray:
    """The correlation-structure matrix M of a batch: M_ij = 1 where a Gaussian mixture puts i and j together.

    Args:
        vectors: text vectors "b d" (or, as a control, image vectors).
        components: Gaussians; fewer where the batch has fewer distinct vectors. Diagonal covariances.

    Returns:
        bool "b b", with a true diagonal.

    >>> correlation_matrix(np.repeat(np.eye(2), 2, axis=0), components=2).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
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

    Attributes (after `fit`): encoder_, an `Encoder`; history_, what was logged.

    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    >>> GuidedEncoder(epochs=1, batch_size=4).fit(images).transform(images).shape
    (8, 64)
    """

    rows_needed = 2

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

    def fit(self, images: np.ndarray | Sequence[Picture], text_vectors: np.ndarray | None = None) -> "GuidedEncoder":
        """Train on images and, where there is guidance, one text vector per image, "n d".

        >>> images, vectors = np.zeros((4, 32, 32, 3), np.uint8), np.eye(4, dtype=np.float32)
        >>> GuidedEncoder("cluster", epochs=1, batch_size=4).fit(images, vectors).encoder_.training
        False

        Raises:
            InputError: an unknown guidance, one without text vectors, or as many as there are not images; fewer than
                two images, of which the contrastive loss compares pairs; images of other forms (`stack_images`).
        """
        images = stack_images(images)
        if self.guidance not in (None, "cluster", "regress"):
            raise InputError(f"guidance is {self.guidance!r}; accepted are None, 'cluster' and 'regress'.")
        if self.guidance and text_vectors is None:
            raise InputError(f"guidance={self.guidance!r} needs text_vectors, one row per image, and got none.")
        if self.guidance and text_vectors is not None and len(text_vectors) != len(images):
            raise InputError(f"{len(images)} images came with {len(text_vectors)} text_vectors; each image needs one.")
        check_rows(self, len(images), "pictures")
        torch.manual_seed(self.seed)
        projection = 32 if text_vectors is None or self.guidance != "regress" else text_vectors.shape[1]
        self.encoder_ = Encoder(self.width, self.features, projection)
        optimizer = torch.optim.Adam(self.encoder_.parameters(), lr=self.lr)
        steps = self.epochs * max(1, len(images) // self.batch_size)
        pixels = self._pixels(images)
        self.history_ = train.fit(
            self.encoder_,
            lambda encoder, batch: self._loss(encoder, pixels, text_vectors, batch.cpu().numpy()),
            train.epochs(len(images), min(self.batch_size, len(images)), self.seed),
            steps,
            optimizer,
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
            device=self.device,
            label="",
        )
        return self

    def _pixels(self, images: np.ndarray) -> np.ndarray | Tensor:
        """Images larger than the encoder's input, resized to it once, "n 3 size size" in [0, 1]; others as they are."""
        if images.shape[1] * images.shape[2] <= self.image_size**2:
            return images
        return torch.cat([self.encoder_.pixels(part, self.image_size) for part in chunks(images)])

    def _loss(
        self, encoder: Encoder, images: np.ndarray | Tensor, text_vectors: np.ndarray | None, batch: np.ndarray
    ) -> Tensor:
        pixels = images[batch] if isinstance(images, Tensor) else encoder.pixels(images[batch], self.image_size)
        z = encoder.project(torch.cat([augment(pixels), augment(pixels)]))  # "(2 b) projection", view after view
        if text_vectors is None or self.guidance is None:
            alike = torch.eye(len(batch))  # M = I, "b b"
        elif self.guidance == "regress":
            return F.mse_loss(z, torch.from_numpy(text_vectors[batch]).to(z).repeat(2, 1))
        else:
            alike = torch.from_numpy(correlation_matrix(text_vectors[batch], self.components, int(batch[0])))
        return masked_contrastive_loss(z, alike.to(z.device))

    @torch.no_grad()
    def transform(self, images: np.ndarray | Sequence[Picture]) -> np.ndarray:
        """Encoder features "n features" float32, the head discarded, in evaluation mode.

        >>> encoder = GuidedEncoder(epochs=1).fit(np.zeros((2, 32, 32, 3), np.uint8))
        >>> encoder.transform([np.zeros((48, 48, 3), np.uint8)]).shape
        (1, 64)

        Raises NotFittedError before `fit`, InputError as `stack_images`.
        """
        check_is_fitted(self, "encoder_")
        parts = chunks(stack_images(images))
        return torch.cat([self.encoder_(self.encoder_.pixels(part, self.image_size)) for part in parts]).cpu().numpy()
