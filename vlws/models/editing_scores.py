"""Scores of edited models, by one code path for every method.

    scores = one_step(editor, cases)              # each case alone: "reliability/tokens" -> "case", and so on
    after, at_once = in_sequence(editor, ten_cases_each)
    summary(scores)                               # reliability, generality, locality, near

Scores of an answer, teacher-forced: `tokens`, the share of its tokens that are the likeliest; `exact`, whether all are.
With `generate`, `generated`: whether greedy decoding gives the answer. Scores of locality, against the unedited model:
`agreement`, the share of the answer's tokens at which both have the same likeliest token; `k1` and `k10`, MMEdit's own,
over all positions of the text (the share of ranks with the same token); `kl`, mean KL divergence in nats at the answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlws.data.mmedit import GENERALITY, LOCALITY, EditCase, Question
from vlws.errors import InputError
from vlws.models.adapter import IGNORED, Adapter, ImageInput
from vlws.models.editing import EditedModel, Editor, Images, Told, Unedited

Scores = dict[str, np.ndarray]  # "kind/metric" -> "case" float


@dataclass(frozen=True)
class Base:
    """The editor that edits nothing.

    >>> from vlws.models.families import load_mllm
    >>> edited = Base(load_mllm("blip2-emoji", "cpu")).edit(["who is it?"] * 2, [[], []], ["mira", "tom"])
    >>> edited.edits, edited.added()
    (2, 0)
    """

    adapter: Adapter

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> EditedModel:
        """The base model, once for each edit."""
        return Unedited(self.adapter, len(prompts)).edit(prompts, images, targets)


def one_step(editor: Editor, cases: Sequence[EditCase], *, chunk: int = 64, generate: bool = False) -> Scores:
    """Each case edited alone, scored, and taken back.

    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> from vlws.models.families import load_mllm
    >>> cases = edit_cases.imagined(facts.make_world(seed=0), "training", n=2, seed=0)
    >>> scores = one_step(Base(load_mllm("blip2-emoji", "cpu")), cases)
    >>> scores["reliability/exact"].tolist(), scores["near/agreement"].tolist()  # nothing learned, nothing moved
    ([0.0, 0.0], [1.0, 1.0])
    """
    parts = []
    for start in range(0, len(cases), chunk):
        part = cases[start : start + chunk]
        edited = editor.edit(*_edits([case.edit for case in part]))
        parts.append(evaluate(edited, part, generate=generate))
        edited.rollback()
    return joined(parts)


def in_sequence(editor: Editor, sequences: Sequence[Sequence[EditCase]], *, chunk: int = 16) -> tuple[Scores, Scores]:
    """(after, at once): every case of every sequence, scored after the last edit of its sequence, and after its own.

    All sequences are of one length; case k of sequence s is row s * length + k.

    Raises:
        InputError: sequences of several lengths, an edit that stands twice in one.

    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> from vlws.models.families import load_mllm
    >>> cases = edit_cases.imagined(facts.make_world(seed=0), "training", n=4, seed=0)
    >>> after, at_once = in_sequence(Base(load_mllm("blip2-emoji", "cpu")), [cases[:2], cases[2:]])  # two of two edits
    >>> after["near/agreement"].tolist(), at_once["near/agreement"].shape
    ([1.0, 1.0, 1.0, 1.0], (4,))
    """
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1:
        raise InputError(f"The sequences have lengths {sorted(lengths)}; accepted are sequences of one length.")
    after, at_once = [], []
    for start in range(0, len(sequences), chunk):
        part = sequences[start : start + chunk]
        for sequence in part:
            check_distinct([case.edit for case in sequence])
        edited, now = None, []
        for step in zip(*part, strict=True):
            edits = _edits([case.edit for case in step])
            edited = editor.edit(*edits) if edited is None else edited.edit(*edits)
            now.append(evaluate(edited, step))
        if edited is not None:
            cases = [case for sequence in part for case in sequence]
            after.append(evaluate(edited, cases, torch.arange(len(cases)) // lengths.copy().pop()))
            edited.rollback(lengths.copy().pop())
        at_once.append({name: np.stack([s[name] for s in now], 1).ravel() for name in now[0]})
    return joined(after), joined(at_once)


def check_distinct(edits: Sequence[Question]) -> None:
    """InputError where two edits ask the same of the same pictures.

    >>> first, other = Question("who is it?", (), "mira"), Question("where is it?", (), "oslo")
    >>> check_distinct([first, other])
    >>> check_distinct([first, other, first])
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: Edits 0 and 2 ask the same, 'who is it?'; accepted is one edit of each question.
    """
    seen: dict[tuple, int] = {}
    for i, edit in enumerate(edits):
        key = (edit.text, *(np.asarray(image).tobytes() for image in edit.images))
        if key in seen:
            raise InputError(
                f"Edits {seen[key]} and {i} ask the same, {edit.text!r}; accepted is one edit of each question."
            )
        seen[key] = i


def _edits(questions: Sequence[Question]) -> tuple[list[str], list[Sequence[ImageInput]], list[str]]:
    return [q.text for q in questions], [q.images for q in questions], [q.answer for q in questions]


def evaluate(
    edited: EditedModel,
    cases: Sequence[EditCase],
    of: Tensor | None = None,
    *,
    rows: int = 256,
    generate: bool = False,
) -> Scores:
    """All scores of the cases, each under its own model (case i under model i, or `of[i]`), in batches of `rows`.

    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> from vlws.models.families import load_mllm
    >>> cases = edit_cases.imagined(facts.make_world(seed=0), "training", n=2, seed=0)
    >>> scores = evaluate(Unedited(load_mllm("blip2-emoji", "cpu"), edits=2), cases)
    >>> [name for name in scores if name.startswith("reliability")], scores["image_locality/agreement"].tolist()
    (['reliability/exact', 'reliability/tokens'], [1.0, 1.0])
    """
    of = torch.arange(len(cases)) if of is None else of
    asked = [(i, kind, question) for i, case in enumerate(cases) for kind, question in case.questions()]
    asked.sort(key=lambda one: len(one[2].text))  # little padding
    base = Unedited(edited.adapter, 1)
    found: dict[str, list[list[float]]] = {}
    for start in range(0, len(asked), rows):
        part = asked[start : start + rows]
        for (i, kind, _), scores in zip(part, _scores(edited, base, part, of, generate), strict=True):
            for name, value in scores.items():
                found.setdefault(f"{kind}/{name}", [[] for _ in cases])[i].append(value)
    return {name: np.array([np.mean(v) if v else np.nan for v in values]) for name, values in sorted(found.items())}


def _scores(
    edited: EditedModel, base: EditedModel, part: list[tuple[int, str, Question]], of: Tensor, generate: bool
) -> list[dict[str, float]]:
    """Scores of a batch of (case, kind, question)."""
    questions = [q for _, _, q in part]
    edit = of[torch.tensor([i for i, _, _ in part])]
    prompts, images, answers = _edits(questions)
    after = edited.logits(prompts, images, answers, edit)
    end = edited.adapter.tokenizer.eos_token_id
    scores = [dict(zip(("tokens", "exact"), pair, strict=True)) for pair in _right(after, end)]
    stays = [k for k, (_, kind, _) in enumerate(part) if kind in (*LOCALITY, "near")]
    if stays:
        before = base.logits([prompts[k] for k in stays], [images[k] for k in stays], [answers[k] for k in stays])
        for j, k in enumerate(stays):
            scores[k] |= _unchanged(Told(*(t[j] for t in before)), Told(*(t[k] for t in after)), end)
    changes = [k for k in range(len(part)) if k not in set(stays)]
    if generate and changes:
        said = edited.answer([prompts[k] for k in changes], [images[k] for k in changes], edit=edit[changes])
        for k, text in zip(changes, said, strict=True):
            scores[k]["generated"] = float(" ".join(text.split()) == " ".join(answers[k].split()))
    return scores


def _right(told: Told, end: int | None) -> list[tuple[float, float]]:
    """(share of the answer's tokens that are the likeliest, whether all are); the end token is not counted."""
    labels = told.labels[:, 1:]
    counted = (labels != IGNORED) & (labels != end)
    right = (told.logits[:, :-1].argmax(-1) == labels) & counted
    share = right.sum(1) / counted.sum(1)
    return list(zip(share.tolist(), (share == 1).float().tolist(), strict=True))


def _unchanged(before: Told, after: Told, end: int | None) -> dict[str, float]:
    """Scores of locality of one row; the texts are aligned on the right, where a method has put a context before."""
    length, longer = int(before.mask.sum()), int(after.mask.sum())
    old, new = before.logits[:length].float(), after.logits[longer - length : longer].float()
    labels = before.labels[1:length]
    at = torch.nonzero((labels != IGNORED) & (labels != end))[:, 0]  # positions that tell an answer's token
    same = old.argmax(-1) == new.argmax(-1)
    k = min(10, old.shape[-1])
    ranks = old.topk(k).indices == new.topk(k).indices
    log_old, log_new = old[at].log_softmax(-1), new[at].log_softmax(-1)
    kl = (log_old.exp() * (log_old - log_new)).sum(-1).mean()
    return {
        "agreement": float(same[at].float().mean()),
        "k1": float(same.float().mean()),
        "k10": float(ranks.float().mean()),
        "kl": float(kl),
    }


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of one list of cases after another.

    >>> parts = {"near/kl": np.array([0.5])}, {"near/kl": np.array([0.0, 0.25])}
    >>> joined(parts)
    {'near/kl': array([0.5 , 0.  , 0.25])}
    """
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summary(scores: Scores) -> Scores:
    """What the chapter's claims are in, "case": reliability, generality (G), locality (L), near locality.

    G and L are means over text and pictures: token accuracy, and agreement with the unedited model.

    >>> scores = {f"{kind}/tokens": np.array([1.0, 0.5]) for kind in ("reliability", *GENERALITY)}
    >>> scores |= {"text_locality/agreement": np.array([1.0, 1.0]), "image_locality/agreement": np.array([0.0, 1.0])}
    >>> {name: values.tolist() for name, values in summary(scores).items()}
    {'reliability': [1.0, 0.5], 'generality': [1.0, 0.5], 'locality': [0.5, 1.0], 'near': [nan, nan]}
    """
    return {
        "reliability": scores["reliability/tokens"],
        "generality": np.mean([scores[f"{kind}/tokens"] for kind in GENERALITY], axis=0),
        "locality": np.mean([scores[f"{kind}/agreement"] for kind in LOCALITY], axis=0),
        "near": scores.get("near/agreement", np.full(len(scores["reliability/tokens"]), np.nan)),
    }


@torch.no_grad()
def with_features(adapter: Adapter, cases: Sequence[EditCase], chunk: int = 128) -> list[EditCase]:
    """The cases with what the vision tower gives in place of their pictures, so that it runs once for all methods.

    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> from vlws.models.families import load_mllm
    >>> adapter, world = load_mllm("blip2-emoji", "cpu"), facts.make_world(seed=0)
    >>> (case,) = with_features(adapter, edit_cases.imagined(world, "training", n=1, seed=0))
    >>> case.edit.images[0].shape, len(case.text_locality.images)
    (torch.Size([37, 96]), 0)
    """
    questions = [question for case in cases for _, question in case.questions()]
    pictures = [image for question in questions for image in question.images]
    rows: list[Tensor] = []
    for start in range(0, len(pictures), chunk):
        part = pictures[start : start + chunk]
        batch = adapter.encode([adapter.default_image_token] * len(part), [[image] for image in part])
        rows += [row.cpu() for row in adapter.vision_features(batch.to(adapter.device))]
    features = iter(rows)
    seen = iter([replace(q, images=tuple(next(features) for _ in q.images)) for q in questions])
    return [_replaced(case, seen) for case in cases]


def _replaced(case: EditCase, questions: Iterator[Question]) -> EditCase:
    """The case with its questions replaced, in the order of `EditCase.questions`."""
    named: dict[str, Any] = {name: next(questions) for name in ("edit", *GENERALITY, *LOCALITY)}
    return replace(case, **named, near=tuple(next(questions) for _ in case.near))
