"""What a training of Sugar reads at each step: documents, and the slice ends whose prefixes are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlws import train
from vlws.data.documents import Document, Documents
from vlws.errors import InputError
from vlws.models.interleave import Reader, Rows

Anchor = tuple[int, int, int, Tensor]  # sequence, slice, document id, prefix


@dataclass(frozen=True)
class Draw:
    """One step's sequences (documents, then lone slices) and slice ends, in the order of `Reader.groups`.

    ends: "n 2" (sequence, slice). sample: "n" document ids. prefixes: n index tensors into `slices_of(documents)`.

    >>> from vlws.data.emoji_world import stories
    >>> from vlws.models.families import load_mllm
    >>> (draw,) = draw_steps(stories.corpus(8, seed=0), 1, 4, Reader(load_mllm("llava-emoji", "cpu")))
    >>> draw.ends.shape[1], len(draw.ends) == len(draw.sample) == len(draw.prefixes)
    (2, True)
    """

    sequences: tuple[Document, ...]
    groups: tuple[tuple[int, ...], ...]
    ends: Tensor
    sample: Tensor
    prefixes: tuple[Tensor, ...]


def draw_steps(
    found: Documents,
    steps: int,
    batch_size: int,
    reader: Reader,
    *,
    ends: int = 3,
    seed: int = 0,
    use: Sequence[int] | None = None,
) -> list[Draw]:
    """What each step reads: `batch_size` documents and, of each with a lone slice, `ends` slice ends and that slice.

    Slice ends are random ones and the last. The lone slice is read by itself, and its prefix is all of its document and
    it: that of the slice alone is so short that its label with any long one is near 0, whatever it shows. Documents of
    questions alone have no ends: only their answers are learned.
    The same for all arms. `use`: "document" indices that stand for the documents' own (fewer documents, as many steps).

    Raises:
        InputError: fewer documents than a batch, a document of one slice or without pictures.

    >>> from vlws.data.emoji_world import stories
    >>> from vlws.models.families import load_mllm
    >>> reader = Reader(load_mllm("llava-emoji", "cpu"))
    >>> found = stories.corpus(8, seed=0, mix={"pair": 1.0})  # a picture and its caption, which is the lone slice
    >>> draws = draw_steps(found, steps=2, batch_size=4, reader=reader, ends=1)
    >>> len(draws), len(draws[0].sequences), draws[0].ends.shape  # 4 documents and 4 captions, one end of each
    (2, 8, torch.Size([8, 2]))
    """
    offsets, total = [], 0
    for i, document in enumerate(found.documents):
        _check_document(i, document)
        offsets.append(total)
        total += len(document.slices) + (document.lone is not None)
    batches = train.epochs(len(found), min(batch_size, len(found)), seed)
    rng = np.random.default_rng(seed)
    draws = []
    for step in range(steps):
        chosen = [i if use is None else int(use[i]) for i in batches(step).tolist()]
        sequences, anchors = _anchors(found, chosen, offsets, ends, rng)
        groups = reader.groups(sequences)
        place = {k: (g, at) for g, group in enumerate(groups) for at, k in enumerate(group)}
        anchors.sort(key=lambda anchor: place[anchor[0]])
        draws.append(
            Draw(
                tuple(sequences),
                tuple(map(tuple, groups)),
                torch.tensor([anchor[:2] for anchor in anchors]).reshape(-1, 2),
                torch.tensor([anchor[2] for anchor in anchors]),
                tuple(anchor[3] for anchor in anchors),
            )
        )
    return draws


def _check_document(i: int, document: Document) -> None:
    if len(document.slices) < 2:
        raise InputError(f"Document {i} has {len(document.slices)} slice; Sugar aligns two or more.")
    if not any(s.is_image for s in (*document.slices, *((document.lone,) if document.lone else ()))):
        raise InputError(f"Document {i} has no pictures; Sugar learns from interleaved pictures and sentences.")


def _anchors(
    found: Documents, chosen: Sequence[int], offsets: Sequence[int], ends: int, rng: np.random.Generator
) -> tuple[list[Document], list[Anchor]]:
    """The sequences of a step (the chosen documents, then lone slices) and their slice ends."""
    sequences = [found.documents[i] for i in chosen]
    anchors: list[Anchor] = []
    for k, i in enumerate(chosen):
        document = found.documents[i]
        if document.lone is None:
            continue
        told = len(document.slices) - bool(document.answer)  # the question belongs to the answer
        picked = [told - 1, *rng.permutation(told - 1)[: ends - 1].tolist()]
        anchors += [(k, s, i, offsets[i] + torch.arange(s + 1)) for s in picked]
        whole = torch.arange(told)
        if replace(document.slices[told - 1], supervised=False) != document.lone:
            whole = torch.cat([whole, torch.tensor([len(document.slices)])])
        anchors.append((len(sequences), 0, i, offsets[i] + whole))
        sequences.append(Document((document.lone,)))
    return sequences, anchors


@dataclass(frozen=True)
class Collated:
    """Rows of each group, and for each its slice ends "n 3" (row, start, stop) and whether they are pictures "n".

    >>> from vlws.data.emoji_world import stories
    >>> from vlws.models.families import load_mllm
    >>> reader, found = Reader(load_mllm("llava-emoji", "cpu")), stories.corpus(8, seed=0)
    >>> (draw,) = draw_steps(found, 1, 4, reader)
    >>> batch = collate(draw, reader, reader.features(found.images))
    >>> len(batch.groups) == len(batch.at) == len(batch.is_image), batch.at[0].shape[1]
    (True, 3)
    """

    groups: list[Rows]
    at: list[Tensor]
    is_image: list[Tensor]


def collate(draw: Draw, reader: Reader, features: Tensor) -> Collated:
    """A step's documents as rows of tokens, with the tokens at which each slice ends.

    features: one row per picture, as `Reader.features` gives them.

    >>> from vlws.data.emoji_world import stories
    >>> from vlws.models.families import load_mllm
    >>> reader, found = Reader(load_mllm("llava-emoji", "cpu")), stories.corpus(8, seed=0)
    >>> (draw,) = draw_steps(found, 1, 4, reader)
    >>> batch = collate(draw, reader, reader.features(found.images))
    >>> sum(len(at) for at in batch.at) == len(draw.ends)
    True
    """
    groups, at, is_image = [], [], []
    for group in draw.groups:
        rows = reader.rows([draw.sequences[k] for k in group], features)
        row_of = {k: row for row, k in enumerate(group)}
        mine = [(k, s) for k, s in draw.ends.tolist() if k in row_of]
        at.append(torch.tensor([[row_of[k], *rows.spans[row_of[k]][s].tolist()] for k, s in mine]).reshape(-1, 3))
        is_image.append(torch.tensor([draw.sequences[k].slices[s].is_image for k, s in mine], dtype=torch.bool))
        groups.append(rows)
    return Collated(groups, at, is_image)
