"""Pictures read once: what frozen towers make of a set of pictures, looked up by index while a model trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vlws.data.emoji_world import drawings
from vlws.data.emoji_world.drawing_tasks import Task, tasks


@dataclass(frozen=True)
class Album:
    """Of every picture: `ids` "picture query" and `z` "picture query dim" of the encoder, `vq_ids` "picture token".

    >>> Album(torch.zeros(2, 4), torch.zeros(2, 4, 96), torch.zeros(2, 64)).ids.shape
    torch.Size([2, 4])
    """

    ids: Tensor
    z: Tensor
    vq_ids: Tensor


def all_drawings() -> Tensor:
    """Every drawing, "5760 3 32 32" in [-1, 1].

    >>> all_drawings().shape
    torch.Size([5760, 3, 32, 32])
    """
    pictures = torch.from_numpy(drawings.render(drawings.everything()))
    return rearrange(pictures, "n h w c -> n c h w").float() / 127.5 - 1


def labels(of: np.ndarray | None = None) -> dict[str, Tensor]:
    """Attribute -> its values in every drawing (or those of these indices), int64.

    >>> labels(np.array([0, 5759]))["thing"].tolist()
    [0, 11]
    """
    table = torch.tensor(drawings.everything())
    table = table if of is None else table[torch.from_numpy(of)]
    return dict(zip(drawings.WORDS, table.T, strict=True))


STAGES: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {  # tasks that are told, and tasks that are drawn
    1: (("caption",), ("draw",)),
    2: (("caption",), ("draw", "rebuild")),
    3: (("caption", "question", "question"), ("draw", "rebuild", *4 * ("edit",), "subject")),  # four kinds of edit
}


class Lesson(NamedTuple):
    """A batch as `MorphTokens.loss` takes it: prompts with answers, prompts for pictures, M and picture tokens of these
    pictures, and the prompts with M as labels.

    >>> Lesson._fields
    ('told', 'asked', 'ids', 'vq_ids', 'forced')
    """

    told: Any
    asked: Any
    ids: Tensor
    vq_ids: Tensor
    forced: Any


def told(model: Any, album: Album, tasks: Sequence[Task], *, answers: bool = True) -> Any:
    """Prompts of tasks that want an answer, with it or without.

    >>> from vlws.methods.morph_tokens import MorphTokens
    >>> model = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu")
    >>> album = Album(torch.zeros(5760, 4, dtype=torch.long), torch.zeros(5760, 4, 96), torch.zeros(5760, 64))
    >>> asked_of = tasks(("question",), [0], 2, np.random.default_rng(0))
    >>> told(model, album, asked_of).labels is None, told(model, album, asked_of, answers=False).labels is None
    (False, True)
    """
    said = [t.answer for t in tasks] if answers else None
    return model.prompts([t.text for t in tasks], *_shown(model, album, tasks), answers=said)


def asked(model: Any, album: Album, tasks: Sequence[Task], *, forced: bool = False) -> Any:
    """Prompts of tasks that want a picture; `forced`: with M of that picture as labels.

    >>> from vlws.methods.morph_tokens import MorphTokens
    >>> model = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu")
    >>> album = Album(torch.zeros(5760, 4, dtype=torch.long), torch.zeros(5760, 4, 96), torch.zeros(5760, 64))
    >>> wished = tasks(("draw",), [0], 2, np.random.default_rng(0))
    >>> forced = asked(model, album, wished, forced=True)
    >>> int((forced.labels >= 0).sum())  # two pictures of four codes, and what ends them
    10
    """
    codes = album.ids[[t.target for t in tasks]] if forced else True
    return model.prompts([t.text for t in tasks], *_shown(model, album, tasks), draw=codes)


def _shown(model: Any, album: Album, tasks: Sequence[Task]) -> tuple[Tensor, Tensor | None]:
    given = [t.picture for t in tasks if t.picture >= 0]
    return album.ids[given], album.z[given] if model.config.relax == "continuous" else None


def lesson(model: Any, album: Album, stage: int, step: int, seed: int, n: int = 24) -> Lesson:
    """Step -> n tasks with answers and n with pictures of a stage, about drawings that train.

    >>> from vlws.methods.morph_tokens import MorphTokens
    >>> model = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu")
    >>> zeros = torch.zeros(5760, 64, dtype=torch.long)
    >>> batch = lesson(model, Album(zeros[:, :4], torch.zeros(5760, 4, 96), zeros), stage=3, step=0, seed=0, n=4)
    >>> batch.ids.shape, batch.vq_ids.shape
    (torch.Size([4, 4]), torch.Size([4, 64]))
    """
    rng = np.random.default_rng([seed, stage, step])
    tell, draw = (tasks(kinds, drawings.splits().train, n, rng) for kinds in STAGES[stage])
    targets = [t.target for t in draw]
    forced = asked(model, album, draw, forced=True) if model.config.equal and not model.config.image else None
    ids, vq_ids = (table[targets].to(model.device) for table in (album.ids, album.vq_ids))
    return Lesson(told(model, album, tell), asked(model, album, draw), ids, vq_ids, forced)
