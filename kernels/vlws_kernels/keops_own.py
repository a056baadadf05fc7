"""The KeOps engine for items with themselves, K(x,x): a block is one item, in each lane at another scale."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vlws_kernels import engine as engines
from vlws_kernels.costs import held
from vlws_kernels.keops import LOG2E, align, lanes_of, operands, shared_shift, slopes_of
from vlws_kernels.shapes import bucket_dim, bucket_length, is_wide


class OwnBlocks(NamedTuple):
    """Blocks of `align_own` of some items: each is one item, `row`, in all lanes; where each of the numbers stands."""

    items: slice
    inside: Tensor
    row: Tensor
    place: tuple[Tensor, Tensor]
    variables: dict[str, Tensor]


def align_own(x: Tensor, lengths: Tensor, item: Tensor, scale: Tensor) -> Tensor:
    """log K(x,x) "p" of the items `item` "p" (ascending) of `x` at the scales "p", on a CPU."""
    n_pad, dim_pad = bucket_length(x.shape[1]), bucket_dim(x.shape[2])
    return torch.cat(
        [
            align("gak", of.variables, n_pad, n_pad, dim_pad, lanes_of(x))[of.place]
            for of in _own_blocks(x, lengths, item, scale)
        ]
    )


def own_gradients(x: Tensor, lengths: Tensor, item: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x "a n dim", where that of the values of `align_own` is `grad` "p"."""
    (a, n, dim), lanes = x.shape, lanes_of(x)
    sizes = (n_pad, _, dim_pad) = bucket_length(n), bucket_length(n), bucket_dim(dim)
    wide, found = is_wide("indexed", dim_pad), x.new_zeros(a, n_pad, dim_pad)
    gain = (grad.double() * scale * (1 if wide else 2)).to(x.dtype)
    for of in _own_blocks(x, lengths, item, scale):
        weight = x.new_zeros(len(of.row), lanes)
        weight[of.place] = gain[of.inside]
        part = slopes_of("gak", of.variables | {"weight": weight}, sizes, lanes)
        if wide:
            slopes = part.view(-1, n_pad, n_pad, lanes).sum(-1)
            slopes = slopes + slopes.mT
            slopes.diagonal(dim1=1, dim2=2).zero_()  # of costs of 0, which would cancel below
            rows = of.variables["shifted_x"].view(-1, n_pad, dim_pad)[of.row]
            part = 2 * (rows * slopes.sum(2)[..., None] - slopes @ rows)
        else:
            part = part[:, : n_pad * dim_pad] + part[:, n_pad * dim_pad :].unflatten(1, (-1, lanes)).sum(-1)
        found[of.items].index_add_(0, of.row, part.view(-1, n_pad, dim_pad))
    return found[:, :n, :dim]


def _own_blocks(x: Tensor, lengths: Tensor, item: Tensor, scale: Tensor) -> Iterator[OwnBlocks]:
    lanes, dim = lanes_of(x), x.shape[-1]
    n_pad, dim_pad = bucket_length(x.shape[1]), bucket_dim(dim)
    wide = is_wide("indexed", dim_pad)
    shift = shared_shift((x, lengths)) if wide else None
    step = held(n_pad * dim_pad * lanes, 4)
    for start in range(0, len(x), step):
        items = slice(start, min(start + step, len(x)))
        inside = (item >= items.start) & (item < items.stop)
        own, power = item[inside] - items.start, scale[inside] * LOG2E
        count = torch.bincount(own, minlength=items.stop - items.start)
        blocks = (count + lanes - 1) // lanes
        rank = torch.arange(len(own)) - (count.cumsum(0) - count)[own]
        block, lane = (blocks.cumsum(0) - blocks)[own] + rank // lanes, rank % lanes
        scales = x.new_ones(int(blocks.sum()), lanes)
        scales[block, lane] = power.to(x.dtype)
        row, place = torch.arange(len(count)).repeat_interleave(blocks), torch.arange(len(scales))
        index = engines.operations().INDEX
        tasks = torch.stack([row, row, place // index, place % index], 1).to(x.dtype)
        rows = operands(x[items], lengths[items], shift, wide, n_pad, dim_pad)
        variables = {f"{side}x": of for side, of in rows.items()}
        variables |= {f"{side}y": of[..., None].expand(-1, -1, lanes).flatten(1) for side, of in rows.items()}
        yield OwnBlocks(items, inside, row, (block, lane), variables | {"scale": scales, "task": tasks})
