"""How alike two prefixes of interleaved documents are: the Global Alignment Kernel over the Triple Kernel.

The labels of Sugar (Chow et al. 2024, section 3.2 and equations 2 and 4), by vlws_kernels. Two repairs of the printed
formulation: the kernel is normalised, and its values are clamped to [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import einsum
from torch import Tensor, nn

from vlws.errors import InputError
from vlws.models.experts import SliceEmbeddings
from vlws_kernels import dtw, gak, triple_distance

DELTA = 0.7  # sigma = delta sqrt((n + m) / 2), on slices of unit norm; the paper gives none
LabelKind = Literal["gak", "mean", "dtw", "soft_dtw"]
FAR = 1e4  # a local cost whose kernel is 0
SHORT = 8  # slices; tables of this size or less are the kernels' smallest


@dataclass(frozen=True)
class Labels:
    """`matrix` "n n" float32, the target of M^r; `clamped`: the share of kernel values outside [0, 1].

    >>> one, other = torch.tensor([0]), torch.tensor([0, 1])
    >>> labels = alignment_labels(4 * (1 - torch.eye(2)), [one, other], torch.tensor([0, 1]))
    >>> labels.matrix.shape, labels.clamped  # no kernel value was outside [0, 1]
    (torch.Size([2, 2]), 0.0)
    """

    matrix: Tensor
    clamped: float


def slice_distances(slices: SliceEmbeddings, rows: Tensor, triple: bool = True) -> Tensor:
    """phi "s s" (equation 4), squared, in [0, 4], between some slices ("s" indices); float32.

    Of one modality: the uni-modal parts; of two: the cross-modal parts. `triple=False` takes the latter throughout.

    >>> slices = SliceEmbeddings(torch.tensor([[1.0, 0, 1, 0], [0, 1.0, 1, 0]]), torch.tensor([0, 0]), split=2)
    >>> slice_distances(slices, torch.arange(2))[0].round().tolist()  # two sentences: by the uni-modal part
    [0.0, 2.0]
    >>> slice_distances(slices, torch.arange(2), triple=False)[0, 1].item()  # by the cross-modal part
    0.0
    """
    vectors, modality = slices.vectors[rows], slices.modality[rows]
    if not triple:
        modality = torch.arange(len(rows))  # no two of one modality
    return triple_distance(vectors, vectors, modality, modality, slices.split)


def alignment_labels(
    distance: Tensor,
    prefixes: Sequence[Tensor],
    sample: Tensor,
    *,
    kind: LabelKind = "gak",
    delta: float = DELTA,
) -> Labels:
    """M^l (section 3.2): how alike n prefixes are.

    Args:
        distance: phi "s s" of all slices that the prefixes use.
        prefixes: n index tensors "length" into them: the slices up to and with the slice end i.
        sample: "n" ids; two ends of one sample are alike, 1.
        kind: "gak"; "mean", the average cosine over all pairs of slices (the paper's ablation without GAK); "dtw",
            the best alignment alone in place of the sum over all; "soft_dtw", the sum without the half-Gaussian kernel.
        delta: of sigma = delta sqrt((n_i + n_j) / 2), one for each pair of lengths.

    The overrides: two prefixes of one slice have the cosine of their slices (Theorem 3 makes GAK a monotone function of
    it); ends of one sample have 1. Raises InputError for an empty prefix and an unknown kind.

    >>> distance = 2 * (1 - torch.eye(3))  # three unrelated slices
    >>> prefixes = list(torch.tensor([[0, 1], [0, 1], [0, 2], [1, 0]]))
    >>> matrix = alignment_labels(distance, prefixes, sample=torch.arange(4)).matrix
    >>> [round(value, 2) for value in matrix[0].tolist()]  # itself twice, one slice in common, the other order
    [1.0, 1.0, 0.22, 0.1]
    """
    if kind not in get_args(LabelKind):
        raise InputError(f"kind={kind!r}: accepted are {', '.join(get_args(LabelKind))}.")
    if not len(prefixes) or min(map(len, prefixes)) == 0:
        raise InputError("a prefix without slices was given; each slice end has one slice before it or more.")
    length = torch.tensor([len(p) for p in prefixes])
    index = nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True)  # "n l"
    table = distance[index[:, None, :, None], index[None, :, None, :]]  # "n n l l"
    clamped = 0.0
    if kind == "mean":
        inside = (torch.arange(index.shape[1]) < length[:, None]).float()
        total = einsum(1 - table / 2, inside, inside, "a b n m, a n, b m -> a b")
        matrix = total / (length[:, None] * length)
    else:
        kernel = _kernels(table, length, kind, delta)
        clamped = float(((kernel < 0) | (kernel > 1 + 1e-4)).float().mean())
        matrix = kernel.clamp(0, 1)
    single = (length == 1)[:, None] & (length == 1)
    matrix = torch.where(single, 1 - table[:, :, 0, 0] / 2, matrix)
    return Labels(torch.where(sample[:, None] == sample, 1.0, matrix).float(), clamped)


def _kernels(table: Tensor, length: Tensor, kind: str, delta: float) -> Tensor:
    """Normalised kernels "n n" of the tables "n n l l": K_xy / sqrt(K_xx K_yy), all three at the pair's sigma.

    Without the normaliser n equal slices have the central Delannoy number, 1, 3, 13, 63, ... (the paper claims (0, 1]).
    """
    sigma = delta * ((length[:, None] + length) / 2).sqrt()
    if kind == "dtw":
        blank = table.new_zeros(len(table), table.shape[-1], 1)  # the table is all that is read
        return torch.exp(-dtw(blank, blank, length, length, distance=table) / (2 * sigma**2))
    others = torch.unique(length)
    own_sigma = delta * ((length[:, None] + others) / 2).sqrt()
    log_k, own_k = table.new_empty(sigma.shape), table.new_empty(own_sigma.shape)
    sizes = sorted({min(SHORT, table.shape[-1]), table.shape[-1]})
    for low, size in zip([0, *sizes], sizes, strict=False):  # few prefixes are long, and small tables are cheap
        rows, columns = (torch.nonzero(which)[:, 0] for which in ((length > low) & (length <= size), length <= size))
        if not len(rows):
            continue
        part = table[rows[:, None], columns, :size, :size]
        log_k[rows[:, None], columns] = _log_kernel(part, length[rows], length[columns], sigma[rows][:, columns], kind)
        log_k[columns[:, None], rows] = log_k[rows[:, None], columns].T
        # K(x, x) at the sigma of every other length: beyond its end the table goes on along the diagonal at no cost,
        # so that one call reads all of them in the last cell.
        step = torch.arange(size)
        inside = step < length[rows, None]
        inside = inside[:, :, None] & inside[:, None, :]
        own = torch.where(inside, table[rows, rows, :size, :size], FAR * (1 - torch.eye(size)))
        own = own[:, None].expand(-1, len(others), -1, -1).contiguous()
        own_k[rows] = _log_kernel(own, None, None, own_sigma[rows], kind)
    mine = own_k[:, torch.searchsorted(others, length)]  # "n n": K(x_i, x_i) at the sigma of (i, j)
    return torch.exp(log_k - (mine + mine.T) / 2)


def _log_kernel(table: Tensor, len_x: Tensor | None, len_y: Tensor | None, sigma: Tensor, kind: str) -> Tensor:
    """log K "a b" of tables "a b n m", unnormalised."""
    if kind == "soft_dtw":
        table, sigma = _plain(table, sigma)
    x, y = (table.new_zeros(table.shape[k], table.shape[2 + k], 1) for k in (0, 1))  # the table is all that is read
    return gak(x, y, len_x, len_y, sigma, normalize=False, log=True, distance=table)


def _plain(table: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Costs for which the half-Gaussian kernel s/(2-s) at sigma 1 is the plain exp(-phi / (2 sigma^2))."""
    plain = torch.exp(-table / (2 * sigma[..., None, None] ** 2)).clamp_min(1e-30)
    return -2 * torch.log(2 * plain / (1 + plain)), torch.ones_like(sigma)
