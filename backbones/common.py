"""What the recipes of the shipped models share: tokenizer, resumable work folder, gates, and a whole checkpoint."""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vlws import paths
from vlws.files import replace_folder
from vlws.models.hub import ASSETS, weights_hash

History = list[dict[str, float]]  # records with "step" and "loss", as `vlws.train.fit` returns them
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")


def learn_tokenizer(lines: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that holds each frequent word of the lines whole, and any other text in pieces."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer)
    start = ("<s>", learner.token_to_id("<s>"))
    learner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def work_folder(name: str, settings: tuple, model: torch.nn.Module, first: Iterable[torch.Tensor]) -> Path:
    """Where a training keeps its checkpoints; another setting, initial weight or first batch starts anew."""
    key = hashlib.sha256(f"{' '.join(map(str, settings))} {weights_hash(model)}".encode())
    for tensor in first:
        key.update(tensor.numpy().tobytes())
    return paths.cache() / "pretrain" / f"{name}-{key.hexdigest()[:12]}"


def check_gates(name: str, results: Mapping[str, float], gates: Mapping[str, float]) -> None:
    """Print the results; RuntimeError where one of them is below its gate."""
    print(dict(results))
    for what, gate in gates.items():
        if results[what] < gate:
            raise RuntimeError(f"{name}: {what} {results[what]:.3f} is below {gate}.")


def write_checkpoint(out: Path, model: Any, processor: Any, card: str, histories: Mapping[str, History]) -> Path:
    """Write a checkpoint folder as a whole: weights in half precision, processor, card (README.md), loss curves."""
    with replace_folder(out) as part:
        model.half().save_pretrained(part)
        processor.save_pretrained(part)
        (part / "model.safetensors").chmod(0o644)
        draw_losses(histories, part / "loss.png")
        (part / "README.md").write_text(card, encoding="utf-8")
    return out


def draw_losses(histories: Mapping[str, History], path: Path) -> None:
    """One panel per history, named by its key."""
    size = (5, 2.5) if len(histories) == 1 else (9.5, 2.3)
    figure, axes = plt.subplots(1, len(histories), figsize=size, layout="constrained", squeeze=False)
    for ax, (name, history) in zip(axes[0], histories.items(), strict=True):
        ax.plot([record["step"] for record in history], [record["loss"] for record in history], color="#0072B2")
        ax.set(title=name, xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("loss")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(results: Mapping[str, float], *columns: Mapping[str, float]) -> str:
    """Rows of a Markdown table: name, result, and where there are more columns their values or nothing."""
    rows = [[name, f"{value:.3f}", *(str(c.get(name, "")) for c in columns)] for name, value in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def curve(history: History) -> str:
    """About ten rows of a Markdown table: step, loss; the last step is one of them."""
    every = max(1, len(history) // 10)
    return "\n".join(f"| {r['step']} | {r['loss']:.3f} |" for r in [*history[::every], history[-1]])


def run_recipe(name: str, train: Callable[..., Path], load: Callable[[str], Any], steps: int | None = None) -> None:
    """The command line of a recipe: `--out`, and `--steps` where the recipe has one number of steps.

    One thread, as the shipped models were trained; what is written is loaded once, as a user will.
    """
    parser = argparse.ArgumentParser(description=f"Train the shipped {name}.")
    parser.add_argument("--out", type=Path, default=ASSETS / name, help="folder to write")
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps)
    torch.set_num_threads(1)
    out = train(**vars(parser.parse_args()))
    load(str(out))
    print(f"written: {out}")
