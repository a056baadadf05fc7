"""A soft prompt for a user's texts and labels: what `vlws prompt` does.

    report = learn("reviews.csv", "google-t5/t5-base", init="summer", k=16, out="prompt")
    report["dev"]["accuracy"]

The language model stays as it is; `out` holds the prompt as an adapter that peft loads beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlws.data.labelled import TEMPLATE, as_clozes, few_shot_split, read_labelled
from vlws.errors import InputError
from vlws.methods.baselines.prompts import prompt_tuning
from vlws.methods.summer import Summer, tune_prompt
from vlws.models.hub import locate
from vlws.models.kinds import SEQ2SEQ
from vlws.models.seq2seq import label_ids, load_seq2seq, score, token_cutter
from vlws.models.soft_prompts import TuneConfig, check_adapter_folder, save_peft_prompt

VOCABULARY = "vocabulary"  # a start from the model's own words
START = "summer"  # the folder in a checkpoint's where a start that was learned for it lies


def learn(
    data: str | Path,
    backbone: str,
    *,
    init: str | Path | None = None,
    steps: int = 200,
    k: int = 16,
    out: str | Path | None = None,
    text: str = "text",
    label: str = "label",
    words: Mapping[str, str] | None = None,
    template: str = TEMPLATE,
    lr: float = 0.1,
    prompt_length: int = 100,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Learn a prompt from k texts per class, choose it by k others, and test it once on the rest.

    Args:
        data: a CSV file (`labelled.read_labelled`).
        backbone: a model of T5's class: a folder or a hub id.
        init: a folder of `Summer.save_pretrained`, whose prompt and gradient map are used, or "vocabulary" for words of
            the model; None takes the start that lies in the model's folder, where one does, else the vocabulary.
        words: class -> label word of one token; the class's own name where it is left out.
        template: of a text; holds "{text}" and `<extra_id_0>`.
        lr: of AdamW. prompt_length: of a prompt from vocabulary. seed: of the split and of the order of the texts.

    Returns:
        data, backbone, init (None for the vocabulary), out, classes (class -> label word), train, dev and test: each
        examples; dev and test also accuracy, accuracy_whole and loss (not test where no text is left), start (dev's
        accuracy before the first step), steps, best_step, curve.

    Raises:
        InputError: what the file, the model, the folder of `init` or `out` refuse; all before the first step, and
            nothing is written then.

    >>> import tempfile
    >>> from vlws.models.seq2seq import tiny_seq2seq
    >>> model, tokenizer = tiny_seq2seq(["fine", "dull", *map(str, range(4)), "It", "was", ".", "good", "bad"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     _ = tokenizer.save_pretrained(folder)
    ...     rows = "".join(f"fine {i},good\\ndull {i},bad\\n" for i in range(4))
    ...     _ = Path(folder, "films.csv").write_text(f"text,label\\n{rows}")
    ...     done = learn(f"{folder}/films.csv", folder, steps=2, k=1, prompt_length=4, device="cpu")
    >>> done["classes"], done["train"]["examples"], done["test"]["examples"]
    ({'bad': 'bad', 'good': 'good'}, 2, 4)
    """
    config = TuneConfig(lr=lr, steps=steps, seed=seed)
    if prompt_length < 1:
        raise InputError(f"prompt_length={prompt_length} was given; accepted is 1 or more.")
    if out is not None:
        check_adapter_folder(out)
    if init not in (None, VOCABULARY) and not Path(init).expanduser().is_dir():
        raise InputError(f"{init} is no folder; accepted is one written by Summer.save_pretrained, or {VOCABULARY}.")
    rows = read_labelled(data, text, label)
    if unknown := sorted(set(words or {}) - set(rows.classes)):
        raise InputError(f"a word was given for the class {unknown[0]!r}; classes are {', '.join(rows.classes)}.")
    chosen = {name: (words or {}).get(name, name) for name in rows.classes}
    parts = few_shot_split(rows, k, seed)
    as_clozes(rows, chosen, template, config.max_length)  # refused before a large model is loaded
    if init is None and (start := Path(locate(backbone, SEQ2SEQ)[0]) / START).is_dir():
        init = start
    model, tokenizer = load_seq2seq(backbone, device)
    label_ids(tokenizer, list(chosen.values()))
    cutter = token_cutter(tokenizer)
    clozes = {
        name: as_clozes(part, chosen, template, config.max_length, cutter) for name, part in parts._asdict().items()
    }
    train, dev = clozes["train"], clozes["dev"]
    if init in (None, VOCABULARY):
        prompt, curve = prompt_tuning(model, tokenizer, train, dev, config, "vocabulary", prompt_length)
    else:
        summer = Summer.from_pretrained(Path(init).expanduser(), model, tokenizer)
        prompt, curve = tune_prompt(model, tokenizer, summer.theta, train, dev, config, summer.psi)
    found: dict[str, dict[str, float]] = {name: {"examples": len(part)} for name, part in clozes.items()}
    for name in ("dev", "test"):
        if clozes[name]:
            scores = score(model, tokenizer, clozes[name], prompt, max_length=config.max_length)
            found[name] |= {"accuracy": scores.accuracy, "accuracy_whole": scores.accuracy_whole, "loss": scores.loss}
    best = max(curve, key=lambda record: (record["dev_accuracy"], -record["dev_loss"]))  # which `tune` has kept
    if out is not None:
        save_peft_prompt(out, prompt, model)
    return {
        "data": str(data),
        "backbone": backbone,
        "init": None if init in (None, VOCABULARY) else str(init),
        "classes": chosen,
        **found,
        "start": curve[0]["dev_accuracy"],
        "steps": steps,
        "best_step": int(best["step"]),
        "curve": curve,
        "out": None if out is None else str(out),
    }
