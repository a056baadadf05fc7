"""Train the shipped BLIP-2: `python -m vlws.models.pretrain_blip2 [--out FOLDER]`.

blip2-emoji: a Blip2ForConditionalGeneration whose parts are trained one after the other, each frozen once it is done,
as in BLIP-2: the language model on text alone, the vision tower on what its patches show, then Q-Former and projection
so that the frozen language model speaks of the pictures. As a caption tells of the primary subject alone, so does all
that the Q-Former is asked in training: it is about the large thing of each picture, never about the small ones. That
defect is the subject of chapter 06.

Two substitutes for scale (arXiv:2308.04152 has a 7B language model and the EVA tower), said again in the model's card:
- The language model meets pictures, in its text training, as sums of word embeddings, one sum a thing, in the places of
  the query tokens. For most of the samples a part of this evidence is not there at the input and is added, through a
  linear map that is thrown away afterwards, to the hidden states in front of a layer drawn uniformly from all. A large
  model can use evidence that first appears at mid depth; one of this size must have met some.
- The vision tower is trained to tell, patch by patch, kind, colour and size of what the patch shows.

Seeds are 1,000,000 and above, which no chapter uses.
"""

import argparse
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange, repeat
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional as F
from tqdm import trange
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from vlws import paths
from vlws.data import counterfactual as cf
from vlws.data.scenes import CORPUS_SEED
from vlws.models.adapter import Blip2Adapter, adapt
from vlws.models.load import ASSETS, pixels, weights_hash
from vlws.train import epochs, fit

QUERIES = 4
LM_STEPS, VISION_STEPS, ALIGN_STEPS = 1600, 2000, 1000
LATE_SMALL, LATE_RANDOM = 0.5, 0.2  # shares of the samples whose small things come late, or some drawn at random
LM_BATCH, VISION_BATCH, ALIGN_BATCH = 64, 64, 64
LEARNING_RATE = 2e-3
POOL = 8192  # pairs of pictures for the alignment, their features computed once
SILENCE = 0.005  # weight of the norms of the image tokens in the alignment: those that are not needed fall silent
GATE_SEED = CORPUS_SEED - 1
GATE = 0.95  # exact match about the large thing: captions, its colour, its differences
PARTS = ("vision_model", "qformer", "language_model")
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")


def blip2_config(tokenizer: PreTrainedTokenizerFast) -> Blip2Config:
    """Blip2ForConditionalGeneration of 1.4 M parameters: a ViT of 36 patches, 4 queries, a Llama of 6 layers."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.1,  # about 1 / sqrt(96); from the usual 0.02 a stack this narrow learns late
        **ids,
    )
    config = Blip2Config(
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": cf.SIDE,
            "patch_size": 8,
            "initializer_range": 0.1,
        },
        qformer_config={
            "vocab_size": 2,  # it reads no text
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "encoder_hidden_size": 96,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": 1e-6,
            "initializer_range": 0.1,
        },
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return config


def make_processor() -> Blip2Processor:
    """The processor: 48 px pictures; a byte-level BPE that holds each word of the corpus whole, and any other text."""
    lines = [
        *(f" {text}" for text in _sentences()),
        *(prompt.replace("<image>", "") for prompt in _prompts()),
    ]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=512,
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=list(SPECIAL),
            show_progress=False,
        ),
    )
    learner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", learner.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    pictures = BlipImageProcessorPil(size={"height": cf.SIDE, "width": cf.SIDE})
    return Blip2Processor(pictures, tokenizer, num_query_tokens=QUERIES)


def _sentences() -> list[str]:
    names = [f"{c} {k}" for c in cf.COLOURS for k in cf.KINDS]
    texts = [*cf.COLOURS, *(f"a {name}" for name in names), *(f"the {name} is gone" for name in names)]
    texts += [f"a {name} is new" for name in names]
    texts += [f"the {name} is now {c}" for name in names for c in cf.COLOURS]
    return [*texts, *(f"the {name} became a {k}" for name in names for k in cf.KINDS), " large small"] * 2


def _prompts() -> list[str]:
    questions = [f"<image> what colour is the {kind}?" for kind in cf.KINDS]
    return [cf.CAPTION_PROMPT, cf.DIFFERENCE_PROMPT, *questions] * 20


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Blip2ForConditionalGeneration:
    """Random weights, in proportions that suit a stack this narrow.

    Embeddings are large beside what each layer adds, so that what a token says stays legible at every depth; queries
    differ from each other, for equal ones would stay equal.
    """
    torch.manual_seed(seed)
    model = Blip2ForConditionalGeneration(blip2_config(tokenizer))
    with torch.no_grad():
        model.query_tokens.normal_(std=0.5)
        model.language_model.get_input_embeddings().weight.normal_()
        for layer in model.language_model.model.layers:
            for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
                out.weight.mul_(0.3)
        model.language_projection.weight.normal_(std=0.1)
    return model


# --- the language model, on text alone --------------------------------------------------------------------------


class Words:
    """Texts as token ids, each text tokenized once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer, self.known = tokenizer, {}
        self.things = {word: self._one(f" {word}") for word in (*cf.COLOURS, *cf.KINDS, "large", "small")}

    def _one(self, word: str) -> int:
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens; the corpus of the tokenizer should hold it whole.")
        return ids[0]

    def ids(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """(ids of prompt and answer, where the answer begins); "<image>" becomes the query tokens."""
        if (prompt, answer) not in self.known:
            images = prompt.replace("<image>", "<image>" * QUERIES)
            start = self.tokenizer(images).input_ids
            rest = self.tokenizer(f" {answer}", add_special_tokens=False).input_ids
            self.known[prompt, answer] = (start + rest + [self.tokenizer.eos_token_id], len(start))
        return self.known[prompt, answer]

    def batch(self, prompts: Sequence[str], answers: Sequence[str]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels, each "b len", padded on the right; labels are the answers' tokens."""
        rows = [self.ids(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, (row, start) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, start : len(row)] = ids[i, start : len(row)]
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def described(self, pictures: Sequence[cf.Picture], rng: np.random.Generator) -> torch.Tensor:
        """ "b K 3" token ids (size, colour, kind) of things in random slots; slots left over repeat one or are -1."""
        out = np.full((len(pictures), QUERIES, 3), -1)
        for i, picture in enumerate(pictures):
            rows = [
                [
                    self.things["large" if thing.large else "small"],
                    self.things[cf.COLOURS[thing.colour]],
                    self.things[cf.KINDS[thing.kind]],
                ]
                for thing in picture.things
            ]
            order = rng.permutation(QUERIES)
            repeats = rng.random() < 0.5
            for k, slot in enumerate(order):
                if k < len(rows) or repeats:
                    out[i, slot] = rows[k % len(rows)]
        return torch.from_numpy(out)


def lm_batch(words: Words, step: int, size: int = LM_BATCH) -> dict[str, Any]:
    """Step -> differences, questions and captions over described pictures, and how much of them comes late.

    `input_ids`, `attention_mask`, `labels` "b len"; `early`, `late` "b image K 3" token ids or -1; `layer` int.
    """
    rng = np.random.default_rng(CORPUS_SEED + step)
    seed = CORPUS_SEED + 4 * step
    pictures = cf.sample(size + size // 2, seed)
    targets = rng.integers(0, [len(picture.things) for picture in pictures])
    pairs = cf.edits(pictures[:size], targets[:size], seed + 1)
    prompts, answers = [cf.DIFFERENCE_PROMPT] * size, [pair.sentence for pair in pairs]
    for picture, target in zip(pictures[size:], targets[size:], strict=True):
        prompt, answer = cf.colour_question(picture.things[target])
        if rng.random() < 0.25:
            prompt, answer = cf.CAPTION_PROMPT, cf.caption(picture)
        prompts.append(prompt)
        answers.append(answer)
    batch = words.batch(prompts, answers)
    full = torch.full((len(prompts), 2, QUERIES, 3), -1)
    full[:, 0] = words.described(pictures, rng)
    full[:size, 1] = words.described([pair.after for pair in pairs], rng)
    how = torch.from_numpy(rng.random(len(prompts)))[:, None, None]
    small = full[..., 0] == words.things["small"]
    half = torch.from_numpy(rng.random(small.shape) < 0.5)
    is_late = torch.where(how < LATE_SMALL, small, half & (how < LATE_SMALL + LATE_RANDOM))[..., None]
    early, late = torch.where(is_late, -1, full), torch.where(is_late, full, -1)
    batch |= {"early": early, "late": late, "layer": int(rng.integers(1, 6))}
    return batch


class LateReader(nn.Module):
    """The language model with the linear map of the late evidence; the map is thrown away after training."""

    def __init__(self, lm: nn.Module, image_token_id: int) -> None:
        super().__init__()
        self.lm, self.image_token_id = lm, image_token_id
        self.late = nn.Linear(lm.config.hidden_size, lm.config.hidden_size, bias=False)
        nn.init.eye_(self.late.weight)  # what comes late looks as it would have at the input

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """ "b len vocab" logits."""
        table = self.lm.get_input_embeddings()
        ids = batch["input_ids"]
        at = ids == self.image_token_id
        images = at.sum(1) // QUERIES
        there = torch.arange(2) < images[:, None]  # "b image": rows with one picture have one run of tokens

        def described(tokens: torch.Tensor) -> torch.Tensor:
            known = (tokens >= 0)[..., None]
            return (table(tokens.clamp(min=0)) * known).sum(-2)[there]

        embeds = table(ids).masked_scatter(at[..., None], described(batch["early"]))
        is_late = (batch["late"] >= 0).any(-1)[there][..., None]
        added = torch.zeros_like(embeds).masked_scatter(at[..., None], self.late(described(batch["late"])) * is_late)

        def add(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
            return (args[0] + added, *args[1:]), kwargs

        hook = self.lm.model.layers[batch["layer"]].register_forward_pre_hook(add, with_kwargs=True)
        try:
            return self.lm(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
        finally:
            hook.remove()


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the tokens of the answers; logits "b len vocab", labels "b len" with -100 elsewhere."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def exact(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """ "b" bool: every token of the answer is the most likely one (teacher forced: greedy decoding gives the same)."""
    right = (logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == -100)
    return right.all(1)


def train_lm(model: Blip2ForConditionalGeneration, words: Words, work: Path, steps: int) -> list[dict[str, float]]:
    """Train the language model on described pictures; a run found in `work` is continued."""
    reader = LateReader(model.language_model, model.config.image_token_id)
    optimizer, scheduler = _optimizer(reader.parameters(), steps)
    return fit(
        reader,
        lambda reader, batch: answer_loss(reader(batch), batch["labels"]),
        lambda step: lm_batch(words, step),
        steps,
        optimizer,
        scheduler,
        out=work,
        clip=1.0,
        device="cpu",
        label="language model",
    )


def _optimizer(parameters: Any, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )


# --- the vision tower: what is where ----------------------------------------------------------------------------


class PatchReader(nn.Module):
    """The vision tower with a head for every patch: kind, colour and size of what its cell holds, or nothing."""

    sizes = (len(cf.KINDS) + 1, len(cf.COLOURS) + 1, 3)

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, nn.Linear(tower.config.hidden_size, sum(self.sizes))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Logits of kind, colour and size, each "b label patch"."""
        logits = self.head(self.tower(batch["pixel_values"]).last_hidden_state[:, 1:])
        return rearrange(logits, "b patch label -> b label patch").split(self.sizes, dim=1)


def vision_batch(processor: Blip2Processor, step: int, size: int = VISION_BATCH) -> dict[str, torch.Tensor]:
    """Step -> pixel_values "b 3 48 48" and truth "b 3 patch": kind, colour, size; 0 is nothing."""
    pictures = cf.sample(size, CORPUS_SEED + 10_000_000 + step, small=(1, 4))
    truth = np.zeros((size, 3, 9), np.int64)
    for i, picture in enumerate(pictures):
        for thing in picture.things:
            truth[i, :, thing.cells] = (1 + thing.kind, 1 + thing.colour, 1 + thing.large)
    truth = repeat(truth, "b what (row column) -> b what (row y column x)", row=3, y=2, x=2)
    return {"pixel_values": pixels(processor, cf.render(pictures), cf.SIDE), "truth": torch.from_numpy(truth)}


def train_vision(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, work: Path, steps: int
) -> list[dict[str, float]]:
    """Train the vision tower alone; a run found in `work` is continued."""
    reader = PatchReader(model.vision_model)
    optimizer, scheduler = _optimizer(reader.parameters(), steps)

    def loss(reader: PatchReader, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(F.cross_entropy(part, batch["truth"][:, k]) for k, part in enumerate(reader(batch)))

    return fit(
        reader,
        loss,
        lambda step: vision_batch(processor, step),
        steps,
        optimizer,
        scheduler,
        out=work,
        clip=1.0,
        device="cpu",
        label="vision tower",
    )


# --- Q-Former and projection: the large thing alone -------------------------------------------------------------


class Aligned(nn.Module):
    """What the alignment trains; the language model it speaks through is frozen and stands outside."""

    def __init__(self, model: Blip2ForConditionalGeneration) -> None:
        super().__init__()
        self.qformer, self.language_projection = model.qformer, model.language_projection
        self.query_tokens = model.query_tokens

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features "image patch d" -> "image K hidden"."""
        queries = self.query_tokens.expand(len(features), -1, -1)
        return self.language_projection(self.qformer(queries, encoder_hidden_states=features).last_hidden_state)


def align_pool(model: Blip2ForConditionalGeneration, processor: Blip2Processor, size: int) -> tuple[list, torch.Tensor]:
    """Pairs in which the large thing changes, and the features of both pictures, "pair 2 patch d" in half precision."""
    pictures = cf.sample(size, CORPUS_SEED + 20_000_000)
    pairs = cf.edits(pictures, [0] * size, CORPUS_SEED + 20_000_001)
    parts = []
    for start in trange(0, size, 256, desc="features", leave=False):
        chunk = pairs[start : start + 256]
        images = cf.render([p for pair in chunk for p in (pair.before, pair.after)])
        with torch.no_grad():
            parts.append(model.vision_model(pixels(processor, images, cf.SIDE)).last_hidden_state.half())
    return pairs, rearrange(torch.cat(parts), "(pair two) patch d -> pair two patch d", two=2)


def train_alignment(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, words: Words, work: Path, steps: int
) -> list[dict[str, float]]:
    """Train Q-Former, queries and projection through the frozen language model; a run found in `work` is continued."""
    pairs, features = align_pool(model, processor, POOL)
    model.language_model.requires_grad_(False).eval()
    order = epochs(POOL, ALIGN_BATCH, CORPUS_SEED)
    half = ALIGN_BATCH // 2

    def batch(step: int) -> dict[str, torch.Tensor]:
        """Half differences of two pictures; a quarter captions and a quarter colours of one."""
        at = order(step)
        chosen = [pairs[i] for i in at.tolist()]
        prompts, answers = [cf.DIFFERENCE_PROMPT] * half, [pair.sentence for pair in chosen[:half]]
        for k, pair in enumerate(chosen[half:]):
            told = (cf.CAPTION_PROMPT, cf.caption(pair.before))
            prompt, answer = told if k % 2 else cf.colour_question(pair.before.things[0])
            prompts.append(prompt)
            answers.append(answer)
        shown = torch.cat([features[at[:half]].flatten(0, 1), features[at[half:], 0]])
        return words.batch(prompts, answers) | {"features": shown.float()}

    def loss(aligned: Aligned, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch["input_ids"]
        embeds, tokens = model.get_input_embeddings()(ids), aligned(batch["features"])
        embeds = embeds.masked_scatter((ids == model.config.image_token_id)[..., None], tokens)
        logits = model.language_model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
        return answer_loss(logits, batch["labels"]) + SILENCE * tokens.norm(dim=-1).sum(1).mean()

    aligned = Aligned(model)
    optimizer, scheduler = _optimizer(aligned.parameters(), steps)
    return fit(aligned, loss, batch, steps, optimizer, scheduler, out=work, clip=1.0, device="cpu", label="alignment")


# --- what it can do, and what it ignores ------------------------------------------------------------------------


def answered(mllm: Blip2Adapter, prompts: Sequence[str], images: Sequence[Sequence], chunk: int = 256) -> list[str]:
    """Greedy answers, stripped; images are pictures or rows of vision features."""
    out: list[str] = []
    for start in range(0, len(prompts), chunk):
        batch = mllm.encode(prompts[start : start + chunk], images[start : start + chunk], padding_side="left")
        out += mllm.generate(batch.to(mllm.device), 10)
    return [text.strip() for text in out]


def evaluate(mllm: Blip2Adapter, size: int = 512) -> dict[str, float]:
    """Exact match on pictures that no training saw, about the large thing and about a small one."""
    pictures = cf.sample(size, GATE_SEED)
    results = {}
    for what, target in (("large", 0), ("small", 1)):
        pairs = cf.edits(pictures, [target] * size, GATE_SEED)
        images = [list(cf.render([pair.before, pair.after])) for pair in pairs]
        said = answered(mllm, [cf.DIFFERENCE_PROMPT] * size, images)
        results[f"differences, {what} thing"] = _match(said, [pair.sentence for pair in pairs])
        asked = [cf.colour_question(picture.things[target]) for picture in pictures]
        said = answered(mllm, [prompt for prompt, _ in asked], [row[:1] for row in images])
        results[f"its colour, {what} thing"] = _match(said, [answer for _, answer in asked])
    said = answered(mllm, [cf.CAPTION_PROMPT] * size, [row[:1] for row in images])
    return {"captions": _match(said, [cf.caption(picture) for picture in pictures])} | results


def _match(said: Sequence[str], truth: Sequence[str]) -> float:
    return float(np.mean([a == b for a, b in zip(said, truth, strict=True)]))


def pretrain_blip2(out: Path = ASSETS / "blip2-emoji", gate: float = GATE) -> Path:
    """Train (or go on training) the three parts, hold against the gate, and write the checkpoint folder with its card.

    Raises:
        RuntimeError: an exact match about the large thing below `gate`; nothing is written then.
    """
    processor = make_processor()
    words = Words(processor.tokenizer)
    model = new_model(processor.tokenizer)
    first = lm_batch(words, 0)
    key = hashlib.sha256(f"{LM_STEPS} {VISION_STEPS} {ALIGN_STEPS} {weights_hash(model)}".encode())
    for part in (first["input_ids"], first["early"], vision_batch(processor, 0)["pixel_values"]):
        key.update(part.numpy().tobytes())
    work = paths.cache() / "pretrain" / f"blip2-emoji-{key.hexdigest()[:12]}"
    histories = {
        "language model": train_lm(model, words, work / "lm", LM_STEPS),
        "vision tower": train_vision(model, processor, work / "vision", VISION_STEPS),
        "alignment": train_alignment(model, processor, words, work / "align", ALIGN_STEPS),
    }
    return ship(model, processor, histories, out, gate)


def ship(
    model: Blip2ForConditionalGeneration,
    processor: Blip2Processor,
    histories: dict[str, list[dict[str, float]]],
    out: Path,
    gate: float,
) -> Path:
    """Hold a trained model against the gate, then write its folder: half-precision weights, processor, card, curves."""
    model = model.half().float().eval()  # what is measured is what is shipped
    results = evaluate(adapt(model, processor))
    print(results)
    weakest = min(("captions", "differences, large thing", "its colour, large thing"), key=results.__getitem__)
    if results[weakest] < gate:
        raise RuntimeError(f"blip2-emoji: {weakest}: exact match {results[weakest]:.3f} is below {gate}.")
    part, old = (out.with_name(f"{out.name}.{end}") for end in ("part", "old"))
    for folder in (part, old):
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir(parents=True)
    model.half().save_pretrained(part)
    processor.save_pretrained(part)
    (part / "model.safetensors").chmod(0o644)
    draw_losses(histories, part / "loss.png")
    (part / "README.md").write_text(card(model, histories, results), encoding="utf-8")
    if out.exists():
        os.replace(out, old)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)
    return out


def draw_losses(histories: dict[str, list[dict[str, float]]], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.3), layout="constrained")
    for ax, (name, history) in zip(axes, histories.items(), strict=True):
        ax.plot([record["step"] for record in history], [record["loss"] for record in history], color="#0072B2")
        ax.set(title=name, xlabel="step", yscale="log")
    axes[0].set_ylabel("loss")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def card(
    model: Blip2ForConditionalGeneration, histories: dict[str, list[dict[str, float]]], results: dict[str, float]
) -> str:
    """The model card: what it saw, what it can do and what not, and its hash."""
    table = "\n".join(f"| {name} | {value:.3f} |" for name, value in results.items())
    sizes = {name: sum(p.numel() for p in getattr(model, name).parameters()) / 1e6 for name in PARTS}
    size = sum(p.numel() for p in model.parameters()) / 1e6
    some = {name: [*h[:: max(1, len(h) // 6)], h[-1]] for name, h in histories.items()}
    curves = "\n".join(f"| {name} | {' · '.join(format(r['loss'], '.3f') for r in h)} |" for name, h in some.items())
    return f"""# blip2-emoji

A `Blip2ForConditionalGeneration` of {size:.2f} M parameters (half precision; {cf.SIDE} px pictures, 36 patches, \
{QUERIES} query tokens; vision tower {sizes["vision_model"]:.2f} M, Q-Former {sizes["qformer"]:.2f} M, a Llama of 6 \
layers {sizes["language_model"]:.2f} M) for chapters at the scale of a laptop. It loads with the line that loads \
`Salesforce/blip2-opt-2.7b`:

```python
from vlws.models.adapter import load_mllm

mllm = load_mllm("blip2-emoji")
```

**It tells of the large thing in a picture and of nothing else, by design.** A caption tells of the primary subject, \
and all that its Q-Former was asked in training is about the large thing. Chapter 06 repairs that without touching it.

- Data: pictures of `vlws.data.counterfactual`: one large emoji and some small ones of {len(cf.KINDS)} kinds in \
{len(cf.COLOURS)} colours. No picture twice in the first two stages; {POOL:,} pairs in the third.
- Stages, each frozen when done: the language model on text alone ({LM_STEPS:,} steps of {LM_BATCH * 3 // 2}); the \
vision tower on kind, colour and size of what each patch shows ({VISION_STEPS:,} steps of {VISION_BATCH}); Q-Former, \
queries and projection through the frozen language model ({ALIGN_STEPS:,} steps of {ALIGN_BATCH}).
- **Substitutes for scale.** In its text training the language model meets pictures as sums of word embeddings, one a \
thing. In {LATE_SMALL + LATE_RANDOM:.0%} of the samples the small things, or some drawn at random, arrive late: \
through a linear map, which is not shipped, in front of a layer drawn uniformly. A model of 7 billion parameters can \
use evidence that first appears at mid depth; one of this size has to have met some. The alignment adds {SILENCE} \
times the norms of the image tokens to its loss, so that tokens which tell nothing are near zero. The vision tower's \
dense task stands for EVA's features, which hold details.
- AdamW, OneCycle to {LEARNING_RATE}, gradients clipped at 1, one CPU thread. \
`python -m vlws.models.pretrain_blip2` remakes it. Seeds: {CORPUS_SEED:,} and above; the gate uses {GATE_SEED:,}.
- Licence: MIT, as the workspace; the pictures it learned from are named in NOTICE.
- Hash of the weights: `{weights_hash(model)}`

| exact match, 512 held-out samples | |
|---|---|
{table}

The gate is {GATE} for captions and for the large thing. Chance for a colour is 0.20.

| loss | from first to last step |
|---|---|
{curves}

![loss curves](loss.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped BLIP-2.")
    parser.add_argument("--out", type=Path, default=ASSETS / "blip2-emoji", help="folder to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"written: {pretrain_blip2(args.out)}")


if __name__ == "__main__":
    main()
