"""Soft prompts of models of T5's class: where they start, how few texts tune them, and the adapter that peft reads.

A soft prompt is "prompt dim" float32, in front of the encoder's input embeddings (`models.seq2seq`).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PromptTuningConfig, TaskType
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from vlws.data.cloze import Cloze
from vlws.errors import InputError
from vlws.files import replace_folder
from vlws.models.seq2seq import cloze_loss, encode, score

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # files of a peft adapter


def vocabulary_prompt(model: PreTrainedModel, length: int, rng: np.random.Generator, below: int = 5000) -> Tensor:
    """ "prompt dim" float32: embeddings of random tokens with an id below 5000, as SUPMER's code begins.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> vocabulary_prompt(tiny_seq2seq(["a", "cat"])[0], 4, np.random.default_rng(0)).shape
    torch.Size([4, 32])
    """
    table = cast(Tensor, model.get_input_embeddings().weight).detach()
    tokens = min(below, len(table))
    ids = rng.choice(tokens, length, replace=length > tokens)
    return table[torch.as_tensor(ids, device=table.device)].float().clone()


def random_prompt(model: PreTrainedModel, length: int, rng: np.random.Generator) -> Tensor:
    """ "prompt dim" float32: Gaussian vectors with the standard deviation of the model's input embeddings.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> random_prompt(tiny_seq2seq(["a", "cat"])[0], 4, np.random.default_rng(0)).shape
    torch.Size([4, 32])
    """
    table = cast(Tensor, model.get_input_embeddings().weight).detach().float()
    drawn = torch.as_tensor(rng.standard_normal((length, table.shape[1])), dtype=torch.float32)
    return drawn.to(table.device) * table.std()


def check_adapter_folder(folder: str | Path) -> None:
    """InputError for what `save_peft_prompt` would refuse to replace: a file, a folder of other files, below a file.

    >>> check_adapter_folder("a-new-folder")
    """
    folder = Path(folder)
    above = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if above.exists() and not above.is_dir():
        raise InputError(f"{above} is a file; accepted is a new or empty folder, or one of a saved prompt.")
    if folder.exists() and set(os.listdir(folder)) - set(ADAPTER):
        raise InputError(f"{folder} holds other files; accepted is a new or empty folder, or one of a saved prompt.")


def save_peft_prompt(folder: str | Path, prompt: Tensor, model: PreTrainedModel) -> None:
    """A prompt "prompt dim" as an adapter that `peft.PeftModel.from_pretrained(model, folder)` loads, whole or absent.

    Raises InputError as `check_adapter_folder`, OSError where the disk refuses.

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> import tempfile
    >>> from peft import PeftModel
    >>> model, _ = tiny_seq2seq(["a", "cat"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_peft_prompt(f"{folder}/prompt", torch.ones(4, 32), model)
    ...     PeftModel.from_pretrained(model, f"{folder}/prompt").get_prompt(batch_size=1).shape
    torch.Size([1, 4, 32])
    """
    check_adapter_folder(folder)
    config = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=prompt.shape[0],
        token_dim=prompt.shape[1],
        num_transformer_submodules=1,
        num_attention_heads=model.config.num_heads,
        num_layers=model.config.num_layers,
        base_model_name_or_path=model.name_or_path or None,
        inference_mode=True,
    )
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(Path(folder)) as part:
        config.save_pretrained(str(part))
        (part / ADAPTER[1]).write_bytes(save({"prompt_embeddings": prompt.detach().float().cpu().contiguous()}))


# --- few-shot tuning --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TuneConfig:
    """How a prompt, or a model, is tuned on few texts, as in SUPMER's code.

    Args:
        lr, steps, batch_size, clip, weight_decay: of AdamW, at a constant rate; clip is the largest gradient norm.
        evaluate_every: steps between looks at dev, which is also looked at before the first and after the last step.
        max_length: tokens of a text, without the prompt.
        seed: of the order of the examples.

    >>> TuneConfig(steps=20).batch_size
    16
    """

    lr: float = 0.1
    steps: int = 200
    batch_size: int = 16
    clip: float = 1.0
    weight_decay: float = 0.0
    evaluate_every: int = 10
    max_length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.evaluate_every) < 1 or self.lr <= 0 or self.clip <= 0:
            raise InputError(
                f"steps={self.steps}, batch_size={self.batch_size}, evaluate_every={self.evaluate_every}, lr={self.lr} "
                f"and clip={self.clip} were given; accepted are whole numbers from 1 and rates above 0."
            )


def tune(
    model: PreTrainedModel,
    tokenizer: Any,
    parameters: Sequence[Tensor],
    prompt: Tensor | None,
    train: Sequence[Cloze],
    dev: Sequence[Cloze],
    config: TuneConfig,
    regularize: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[dict[str, float]]:
    """AdamW on `parameters` in place, which end as they were where dev was best: accuracy, then the lower loss.

    Args:
        parameters: what is trained: the prompt alone, or the model's weights.
        prompt: what the model reads; None for none.
        regularize: (gradient, h) -> the gradient to use, before clipping; h "dim" of the batch, as `cloze_loss`.

    Returns:
        One record per look at dev: step, dev_accuracy, dev_accuracy_whole, dev_loss, loss (mean since the
        last look; not in the first).

    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["a", "cat", "dog", "yes", "no"])
    >>> rows = [Cloze(f"a {x} <extra_id_0>", y, ("yes", "no")) for x, y in (("cat", "yes"), ("dog", "no"))] * 8
    >>> prompt = vocabulary_prompt(model, 4, np.random.default_rng(0)).requires_grad_()
    >>> curve = tune(model, tokenizer, [prompt], prompt, rows, rows, TuneConfig(steps=20))
    >>> [record["step"] for record in curve], curve[-1]["dev_loss"] < curve[0]["dev_loss"]
    ([0, 10, 20], True)
    """
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    order = _orders(len(train), config.batch_size, config.seed)
    curve: list[dict[str, float]] = []
    best, kept = (-1.0, 0.0), [p.detach().clone() for p in parameters]
    losses: list[float] = []
    for step in range(config.steps + 1):
        if step % config.evaluate_every == 0 or step == config.steps:
            found = score(model, tokenizer, dev, prompt, max_length=config.max_length)
            record = {"step": step, "dev_accuracy": found.accuracy, "dev_accuracy_whole": found.accuracy_whole}
            record |= {"dev_loss": found.loss} | ({"loss": float(np.mean(losses))} if losses else {})
            curve.append(record)
            losses = []
            if (now := (found.accuracy, -found.loss)) > best or not step:
                best, kept = now, [p.detach().clone() for p in parameters]
        if step == config.steps:
            break
        batch = encode(tokenizer, [train[i] for i in next(order)], config.max_length, last=False).to(model.device)
        loss, h = cloze_loss(model, batch, prompt)
        gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g if g is None or regularize is None else regularize(g, h)
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)
            p.grad = None
    return curve


def _orders(n: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endlessly, indices of a batch: each epoch a fresh permutation, its rest a smaller batch."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n).tolist()
        yield from (order[start : start + batch_size] for start in range(0, n, batch_size))


def optimizer_of(parameters: Sequence[Tensor], lr: float, steps: int) -> tuple[Any, Any]:
    """Adam, and a rate that falls linearly to 0 over the steps, without warm-up.

    >>> optimizer, scheduler = optimizer_of([torch.zeros(1, requires_grad=True)], 0.1, steps=4)
    >>> optimizer.step(), scheduler.step(), scheduler.get_last_lr()[0]
    (None, None, 0.07500000000000001)
    """
    optimizer = torch.optim.Adam(parameters, lr=lr)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
