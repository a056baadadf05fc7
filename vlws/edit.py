"""Edits of a file, made in one checkpoint: what `vlws edit` does.

    report = apply("edits.json", "Salesforce/blip2-opt-2.7b", method="unike", out="edited")
    report["scores"]["reliability/tokens"]

All edits live in one model, one made after the other, and are scored after the last. The checkpoint stays as it is:
`out` holds what was added (for UniKE), and at the end everything is taken back, which is checked to the bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlws.data.mmedit import VQA_PROMPT, EditCase, read_mmedit
from vlws.errors import InputError
from vlws.methods.baselines.finetune import Finetune, FinetuneConfig
from vlws.methods.baselines.ike import IKE
from vlws.methods.baselines.lora import LoraEditConfig, LoraEditor
from vlws.methods.baselines.t_patcher import TPatcher, TPatcherConfig
from vlws.methods.unike import UniKE, UniKEConfig
from vlws.models.adapter import Adapter
from vlws.models.editing import Editor, Unedited, encode
from vlws.models.editing_scores import check_distinct, evaluate
from vlws.models.families import load_mllm
from vlws.models.knowledge import without_knowledge

LAYERS = 4  # UniKE's, from the last (the paper's appendix D.3); half of the layers where a model has fewer than eight


def unike(adapter: Adapter, steps: int, lr: float | None) -> UniKE:
    """UniKE for edits alone: pairs, and the edits' own states behind a gate by similarity."""
    layers = range(adapter.num_layers - min(LAYERS, max(1, adapter.num_layers // 3)), adapter.num_layers)
    config = UniKEConfig(gate="similarity", sharpness=0.03, direction="none", alternate=True, steps=steps)
    return UniKE(adapter, without_knowledge(adapter, layers), config if lr is None else replace(config, lr=lr))


def _rated(config: Any, lr: float | None) -> Any:
    return config if lr is None else replace(config, lr=lr)


METHODS: dict[str, Callable[[Adapter, int, float | None], Editor]] = {
    "unike": unike,
    "finetune": lambda adapter, steps, lr: Finetune(adapter, _rated(FinetuneConfig(steps=steps), lr)),
    "lora": lambda adapter, steps, lr: LoraEditor(adapter, _rated(LoraEditConfig(steps=steps), lr)),
    "t-patcher": lambda adapter, steps, lr: TPatcher(adapter, _rated(TPatcherConfig(steps=steps), lr)),
    "ike": lambda adapter, steps, lr: IKE(adapter),
}


def apply(
    edits: str | Path,
    backbone: str,
    *,
    method: str = "unike",
    images: str | Path | None = None,
    prompt: str = VQA_PROMPT,
    steps: int = 40,
    lr: float | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Make the edits of a JSON file of MMEdit in a checkpoint, score them, write what was added, and take them back.

    Args:
        backbone: a folder, a hub id or the name of a shipped model.
        images: folder of the pictures; that of `edits` unless given.
        prompt: what stands around a question about a picture ("{}" for nothing).
        steps, lr: of the training of one edit; the method's own rate unless given.
        out: where UniKE's edits are written (`UniKE.load` reads them).

    Returns:
        edits (question, target, before, after), already (how many targets the model said before), scores
        ("kind/metric" -> mean), added (numbers beside the model's), rolled_back (whether the base is as it was).

    Raises:
        InputError: an unknown method, steps below 1, `out` with a method that has nothing to write, what the file, the
            checkpoint or the method refuses; all before the first edit.
    """
    check(method, steps, out)
    cases = read_mmedit(edits, Path(edits).parent if images is None else images, prompt=prompt, keep_known=True)
    adapter = load_mllm(backbone, device)
    editor = METHODS[method](adapter, steps, lr)
    check_distinct([case.edit for case in cases])
    base = Unedited(adapter, 1)
    before, was = _said(base, cases), base.logits(*_parts(cases)).logits
    first, *others = [([c.edit.text], [c.edit.images], [c.edit.answer]) for c in cases]
    edited = editor.edit(*first)
    for one in others:
        edited.edit(*one)
    scores = evaluate(edited, cases, torch.zeros(len(cases), dtype=torch.long), rows=16)
    after, added = _said(edited, cases), edited.added()
    if out is not None:
        edited.save_pretrained(out)  # type: ignore[attr-defined]
    edited.rollback(len(cases))
    now = edited.run(encode(adapter, *_parts(cases)))
    told = [
        {"question": c.edit.text, "target": c.edit.answer, "before": b, "after": a}
        for c, b, a in zip(cases, before, after, strict=True)
    ]
    return {
        "method": method,
        "edits": told,
        "already": sum(row["before"].split() == row["target"].split() for row in told),
        "scores": {name: float(np.nanmean(values)) for name, values in scores.items()},
        "added": added,
        "rolled_back": torch.equal(now, was),
        "out": None if out is None else str(out),
    }


def check(method: str, steps: int, out: str | Path | None) -> None:
    """InputError for what needs neither the file nor the checkpoint to be refused."""
    if method not in METHODS:
        raise InputError(f"method={method!r} was given; accepted are {', '.join(METHODS)}.")
    if steps < 1:
        raise InputError(f"steps={steps} was given; accepted is 1 or more.")
    if out is not None and method != "unike":
        raise InputError(f"--out was given with {method}; accepted is unike, whose edits stand beside a checkpoint.")


def _parts(cases: Sequence[EditCase]) -> tuple[list[str], list[Sequence[Any]], list[str]]:
    return [c.edit.text for c in cases], [c.edit.images for c in cases], [c.edit.answer for c in cases]


def _said(model: Any, cases: Sequence[EditCase], rows: int = 16) -> list[str]:
    found: list[str] = []
    for start in range(0, len(cases), rows):
        prompts, pictures, _ = _parts(cases[start : start + rows])
        found += model.answer(prompts, pictures)
    return found
