"""Interleaved documents as rows of tokens: where each slice stands, and which tokens carry labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlws.data.documents import Document
from vlws.errors import InputError
from vlws.models.adapter import IGNORED, IMAGE_PLACEHOLDER, Adapter, Batch


@dataclass(frozen=True)
class Rows:
    """A batch of documents. `spans[row]` is "slice 2" int64: start and stop of each slice's tokens.

    >>> from vlws.data.documents import Slice
    >>> from vlws.models.families import load_mllm
    >>> reader = Reader(load_mllm("llava-emoji", "cpu"))
    >>> rows = reader.rows([Document((Slice("a red cat"), Slice("and a dog")))], torch.zeros(0))
    >>> rows.spans[0].tolist(), rows.batch.input_ids.shape  # start and stop of each of the two slices
    ([[1, 4], [4, 10]], torch.Size([1, 10]))
    """

    batch: Batch
    spans: list[Tensor]


class Reader:
    """Documents -> rows for one model; the length of each tokenized text is kept.

    >>> from vlws.data.documents import Slice
    >>> from vlws.models.families import load_mllm
    >>> reader = Reader(load_mllm("llava-emoji", "cpu"))
    >>> features = reader.features(np.zeros((1, 32, 32, 3), np.uint8))  # of the frozen vision tower
    >>> documents = [Document((Slice(image=0), Slice("what is it?")), answer="a cat"), Document((Slice("a dog"),))]
    >>> reader.groups(documents)  # the short one first
    [[1], [0]]
    >>> rows = reader.rows(documents, features)
    >>> [len(spans) for spans in rows.spans], int((rows.batch.labels >= 0).sum())  # the answer's tokens and the end
    ([2, 1], 3)
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._lengths: dict[str, int] = {}
        self._special = set(adapter.tokenizer.all_special_ids) - {adapter.image_token_id}

    @torch.no_grad()
    def features(self, images: np.ndarray, batch: int = 256) -> Tensor:
        """Pictures "n h w 3" uint8 -> what the frozen vision tower gives, one row per picture (float32, on the CPU).

        Raises:
            InputError: pictures that do not come to one shape (a model that reads pictures of any size).
        """
        rows = []
        for start in range(0, len(images), batch):
            part = list(images[start : start + batch])
            read = self.adapter.encode([IMAGE_PLACEHOLDER] * len(part), [[image] for image in part])
            found = self.adapter.vision_features(read.to(self.adapter.device))
            rows.append((found if isinstance(found, Tensor) else torch.stack(found)).float().cpu())
        return torch.cat(rows) if rows else torch.zeros(0)

    def groups(self, documents: Sequence[Document]) -> list[list[int]]:
        """Indices of documents grouped by similar length, shortest first, so that padding stays short."""
        config = self.adapter.model.config
        picture = getattr(config, "image_seq_length", None) or getattr(config, "num_query_tokens", None) or 16
        lengths = [sum(picture if s.is_image else self._count(f" {s.text}") for s in d.slices) for d in documents]
        found: list[list[int]] = []
        for i in sorted(range(len(documents)), key=lambda i: lengths[i]):
            if found and lengths[i] <= 1.35 * lengths[found[-1][0]] + 4:
                found[-1].append(i)
            else:
                found.append([i])
        return found

    def rows(
        self, documents: Sequence[Document], features: Tensor, *, answers: bool = True, padding_side: str = "right"
    ) -> Rows:
        """One row per document: its slices in their order, then (`answers`) its answer and the end token.

        features: one row per picture; a slice names its row. With `answers` the batch has labels, on answers and on
        supervised slices.
        """
        texts, pictures = [], []
        for document in documents:
            body = "".join(IMAGE_PLACEHOLDER if s.is_image else f" {s.text}" for s in document.slices)
            ends = f" {document.answer}{self.adapter.tokenizer.eos_token or ''}" if answers and document.answer else ""
            texts.append(body + ends)
            pictures.append([features[s.image] for s in document.slices if s.is_image])
        batch = self.adapter.encode(texts, pictures, padding_side)
        images: list[list[tuple[int, int]]] = [[] for _ in documents]
        for row, start, stop in batch.image_spans.tolist():
            images[row].append((start, stop))
        spans, labels = [], torch.full_like(batch.input_ids, IGNORED)
        for row, document in enumerate(documents):
            ids, length = batch.input_ids[row].tolist(), int(batch.attention_mask[row].sum())
            first = len(ids) - length if padding_side == "left" else 0
            found = self._spans(document, ids, first, iter(images[row]))
            spans.append(torch.tensor(found))
            if answers:
                learned = [span for part, span in zip(document.slices, found, strict=True) if part.supervised]
                if document.answer:
                    learned.append((found[-1][1], first + length))
                for start, stop in learned:
                    labels[row, start:stop] = batch.input_ids[row, start:stop]
        return Rows(replace(batch, labels=labels) if answers else batch, spans)

    def _spans(self, document: Document, ids: list[int], at: int, images) -> list[tuple[int, int]]:
        """(start, stop) of each slice, counted from the picture before it: pieces of one text tokenize as the whole."""
        spans, text = [], ""
        base = at = self._skip(ids, at)
        for part in document.slices:
            if part.is_image:
                spans.append(next(images))
                text, base = "", self._skip(ids, spans[-1][1])
            else:
                start = base + self._count(text)
                text += f" {part.text}"
                spans.append((start, base + self._count(text)))
                if spans[-1][1] <= start or spans[-1][1] > len(ids):
                    raise InputError(f"{part.text!r} comes to no tokens of its own; each text slice needs one or more.")
        return spans

    def _skip(self, ids: list[int], at: int) -> int:
        while at < len(ids) and ids[at] in self._special:
            at += 1
        return at

    def _count(self, text: str) -> int:
        if text not in self._lengths:
            self._lengths[text] = len(self.adapter.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._lengths[text]


def language_loss(adapter: Adapter, groups: Sequence[Rows]) -> Tensor:
    """L_g: the mean cross-entropy over all tokens with a label, whatever group their rows stand in.

    >>> from vlws.data.documents import Slice
    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("llava-emoji", "cpu")
    >>> rows = Reader(adapter).rows([Document((Slice("what colour is a cat?"),), answer="red")], torch.zeros(0))
    >>> language_loss(adapter, [rows]).shape, bool(language_loss(adapter, [rows]) > 0)
    (torch.Size([]), True)
    """
    counts = [int((rows.batch.labels[:, 1:] != IGNORED).sum()) for rows in groups]
    losses = [adapter.run(rows.batch).loss * n for rows, n in zip(groups, counts, strict=True) if n]
    return sum(losses) / sum(counts)
