"""Texts with pictures in them, as token ids: cut at a mark, padded on the left, with labels where answers are known."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORED = -100  # as a label: no loss


class Prompts(NamedTuple):
    """Token ids "row len" (padded on the left), their mask; `z` "picture query dim" of all pictures in order, where
    vectors before the codebook go in instead of codes; `labels` "row len" of answers.

    >>> Prompts(torch.tensor([[5]]), torch.tensor([[1]])).labels is None
    True
    """

    input_ids: Tensor
    attention_mask: Tensor
    z: Tensor | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device) -> "Prompts":
        """The same on a device.

        >>> Prompts(torch.tensor([[5]]), torch.tensor([[1]])).to(torch.device("cpu")).labels is None
        True
        """
        return Prompts(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with no token at either end.

    >>> from vlws.methods.morph_tokens import MorphTokens
    >>> tokenizer = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu").tokenizer
    >>> len(token_ids(tokenizer, ["blue", "a blue cat"])[1]) > 1
    True
    """
    return tokenizer(list(texts) or [""], add_special_tokens=False)["input_ids"][: len(texts)]


def cut_ids(tokenizer: Any, texts: Sequence[str], mark: str) -> list[list[list[int] | None]]:
    """Of each text its pieces as token ids, begun by the start token, with None at each mark.

    >>> from vlws.methods.morph_tokens import MorphTokens
    >>> tokenizer = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu").tokenizer
    >>> [piece is None for piece in cut_ids(tokenizer, ["<image> what is it ?"], "<image>")[0]]
    [False, False, True, False]
    """
    pieces = [text.split(mark) for text in texts]
    found = iter(token_ids(tokenizer, [piece for row in pieces for piece in row]))
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = []
    for row in pieces:
        mixed: list[list[int] | None] = [begin]
        for k, _ in enumerate(row):
            mixed += [next(found)] if k == 0 else [None, next(found)]
        rows.append(mixed)
    return rows


def padded(rows: Sequence[list[int]], tails: Sequence[list[int]], pad: int, z: Tensor | None = None) -> Prompts:
    """Rows and what is to be said after each, padded on the left; the tails are labels, where there are any.

    >>> padded([[5, 6], [7]], [[8], []], pad=0).input_ids.tolist()
    [[5, 6, 8], [0, 0, 7]]
    """
    longest = max(len(row) + len(tail) for row, tail in zip(rows, tails, strict=True))
    input_ids = torch.full((len(rows), longest), pad)
    labels, mask = torch.full_like(input_ids, IGNORED), torch.zeros_like(input_ids)
    for k, (row, tail) in enumerate(zip(rows, tails, strict=True)):
        whole = torch.tensor([*row, *tail])
        input_ids[k, longest - len(whole) :], mask[k, longest - len(whole) :] = whole, 1
        labels[k, longest - len(tail) :] = whole[len(row) :]
    return Prompts(input_ids, mask, z, labels if any(tails) else None)
