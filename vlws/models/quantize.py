"""A codebook that learns by moving averages (van den Oord et al. 2017, appendix A.1), and gives dead codes new life.

Rows are looked up by `vlws_kernels.nearest_code`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.errors import InputError
from vlws_kernels import kmeans, nearest_code

DEAD = 0.05  # a code is dead whose average share of the vectors has fallen below this part of an even one


class Quantized(NamedTuple):
    """What a codebook makes of vectors: `codes` "... dim" (the gradient goes straight to the vectors), `ids` "..."
    (int64), `loss`: the mean squared distance that ties vectors to their codes.

    >>> Quantized(torch.zeros(2, 3), torch.tensor([4, 4]), torch.tensor(0.0)).ids.tolist()
    [4, 4]
    """

    codes: Tensor
    ids: Tensor
    loss: Tensor


class Codebook(nn.Module):
    """Codes "code dim" that are the running means of the vectors nearest to them.

    Args:
        unit: vectors and codes have length 1 (then the nearest is the one of the largest cosine).
        decay: of the running means, a training step.

    While the module trains, a code that is dead becomes a vector of the batch, drawn at random.

    >>> _ = torch.manual_seed(0)
    >>> book, corners = Codebook(4, 2), torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])
    >>> book.start(corners.repeat(8, 1))
    >>> for _ in range(5):
    ...     _ = book(corners.repeat(8, 1))
    >>> book.eval()(corners).ids.unique().tolist()  # each corner has a code
    [0, 1, 2, 3]
    """

    codes: Tensor
    uses: Tensor
    sums: Tensor

    def __init__(self, size: int, dim: int, *, unit: bool = False, decay: float = 0.99) -> None:
        super().__init__()
        if size < 2 or dim < 1:
            raise InputError(
                f"A codebook of {size} codes of dimension {dim}: it takes 2 codes and 1 dimension or more."
            )
        self.unit, self.decay = unit, decay
        self.register_buffer("codes", self._scaled(torch.randn(size, dim)))
        self.register_buffer("uses", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dim))

    def __len__(self) -> int:
        return len(self.codes)

    def forward(self, z: Tensor) -> Quantized:
        """Vectors "... dim" -> their codes; moves the codes while training.

        >>> book = Codebook(4, 2).eval()
        >>> book(torch.zeros(3, 5, 2)).ids.shape
        torch.Size([3, 5])
        """
        z = self._scaled(z)
        flat = z.detach().flatten(0, -2).float()
        ids = nearest_code(flat, self.codes)[1]
        if self.training:
            self._move(flat, ids)
        codes = self.codes[ids].view(z.shape)
        loss = F.mse_loss(z, codes)
        return Quantized(z + (codes - z).detach(), ids.view(z.shape[:-1]), loss)

    @torch.no_grad()
    def start(self, z: Tensor, seed: int = 0) -> None:
        """Begin at the centres of k-means of vectors "n dim", as many as there are codes or more.

        >>> book = Codebook(2, 1)
        >>> book.start(torch.tensor([[0.0], [1.0], [10.0], [11.0]]))
        >>> sorted(book.codes[:, 0].tolist())
        [0.5, 10.5]
        """
        centres, labels, _ = kmeans(self._scaled(z).float(), len(self), iterations=20, seed=seed)
        self.codes.copy_(self._scaled(centres))
        self.uses.copy_(torch.bincount(labels, minlength=len(self)) / len(z))
        self.sums.copy_(self.codes * self.uses[:, None])

    def _scaled(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1) if self.unit else z

    @torch.no_grad()
    def _move(self, z: Tensor, ids: Tensor) -> None:
        """Running means; codes without use begin anew at vectors of this batch."""
        share = torch.bincount(ids, minlength=len(self)) / len(z)
        self.uses.mul_(self.decay).add_(share, alpha=1 - self.decay)
        self.sums.mul_(self.decay).index_add_(0, ids, z / len(z), alpha=1 - self.decay)
        self.codes.copy_(self._scaled(torch.where(self.uses[:, None] > 0, self.sums / self.uses[:, None], self.codes)))
        even = 1 / len(self)
        dead = (self.uses < DEAD * even).nonzero()[:, 0]
        if len(dead):
            rows = z[torch.randint(len(z), (len(dead),))]
            self.codes[dead], self.uses[dead], self.sums[dead] = rows, even, even * rows


class Usage(NamedTuple):
    """How a codebook is used: `perplexity`, 1 to the number of codes (the exponent of the entropy), and the codes that
    are never used.

    >>> usage(torch.tensor([[0, 1], [1, 0]]), 3)
    Usage(perplexity=2.0, dead=(2,))
    """

    perplexity: float
    dead: Sequence[int]


def usage(ids: Tensor, size: int) -> Usage:
    """Perplexity and dead codes of ids (any shape) of a codebook of `size` codes.

    >>> round(usage(torch.arange(8), 8).perplexity, 6)
    8.0
    """
    counts = torch.bincount(ids.flatten(), minlength=size).double()
    share = counts / counts.sum()
    entropy = -torch.xlogy(share, share).sum()
    return Usage(round(float(entropy.exp()), 9), tuple((counts == 0).nonzero()[:, 0].tolist()))
