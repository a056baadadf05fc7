"""Train the shipped BLIP-2: `python -m backbones.blip2_emoji [--out FOLDER]`.

blip2-emoji: a Blip2ForConditionalGeneration whose parts are trained one after the other, each frozen once it is done:
the language model on text alone; the vision tower on what its patches show; the Q-Former on representation, as in the
first stage of BLIP-2; then the query tokens and the projection, so that the frozen language model speaks of pictures,
as in its second. As a caption tells of the primary subject alone, so does all that is asked in this last stage: it is
about the large thing of each picture, never about the small ones. That defect is the subject of chapter 06.

Three substitutes for scale (arXiv:2308.04152 has a 7B language model, the EVA tower and a Q-Former that met 129 M
pictures), said again in the model's card:
- The language model meets pictures, in its text training, as sums of word embeddings, one per thing, in the places of
  the query tokens, louder or fainter and with noise. For most of the samples a part of this evidence is not there at
  the input and is added, through a linear map that is thrown away afterwards, to the hidden states in front of a layer
  drawn uniformly from all; for some it never comes. A large model can use evidence that first appears at mid depth, and
  doubts where it has none; one of this size must have met both.
- The vision tower is trained to tell, patch by patch, kind, colour and size of what the patch shows.
- The Q-Former is trained with 18 learned queries, four at a time, which ask for what is in a cell, for a kind of thing
  or for the large thing. So its queries steer it, as those of a large one do; they are thrown away afterwards, but for
  that of the large thing, where the query tokens start.

Seeds are 1,000,000 and above, which no chapter uses.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
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
    ProcessorMixin,
)

from backbones.common import History, check_gates, learn_tokenizer, run_recipe, table, work_folder, write_checkpoint
from vlws.data.emoji_world import counterfactual as cf
from vlws.data.emoji_world.scenes import COLOURS, CORPUS_SEED
from vlws.models.clip import pixels
from vlws.models.families import Blip2Adapter, adapt, load_mllm
from vlws.models.hub import ASSETS, weights_hash
from vlws.train import epochs, fit

QUERIES = 4
LM_STEPS, VISION_STEPS, QFORMER_STEPS, ALIGN_STEPS = 2400, 2000, 1000, 300
EARLY_SHARE = 0.25  # of the language model's samples, whose small things do not come late
MISSING_SHARE = 0.3  # of its samples, some of whose late evidence never comes
NOISE = 0.3  # largest standard deviation of what is added to all evidence
LM_BATCH, VISION_BATCH, QFORMER_BATCH, ALIGN_BATCH = 64, 64, 64, 64
LEARNING_RATE = 2e-3
POOL = 8192  # pictures for the Q-Former, and half as many pairs for the alignment, their features computed once
GATE_SEED = CORPUS_SEED - 1
GATE = 0.95  # exact match about the large thing
GATED = ("captions", "differences, large thing", "its colour, large thing")
PARTS = ("vision_model", "qformer", "language_model")


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
            "num_hidden_layers": 2,
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
    tokenizer = learn_tokenizer(lines, vocab_size=512, max_length=2048)
    pictures = BlipImageProcessorPil(size={"height": cf.SIDE, "width": cf.SIDE})
    return Blip2Processor(pictures, tokenizer, num_query_tokens=QUERIES)


def _sentences() -> list[str]:
    names = [f"{c} {k}" for c in COLOURS for k in cf.PAIR_KINDS]
    texts = [*COLOURS, *(f"a {name}" for name in names), *(f"the {name} is gone" for name in names)]
    texts += [f"a {name} is new" for name in names]
    texts += [f"the {name} is now {c}" for name in names for c in COLOURS]
    return [*texts, *(f"the {name} became a {k}" for name in names for k in cf.PAIR_KINDS), " large small"] * 2


def _prompts() -> list[str]:
    questions = [f"<image> what colour is the {kind}?" for kind in cf.PAIR_KINDS]
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
    """Texts as token ids, each text tokenized once; a picture takes `image_tokens` of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int = QUERIES) -> None:
        self.tokenizer, self.image_tokens, self.known = tokenizer, image_tokens, {}
        self.things = {word: self._one(f" {word}") for word in (*COLOURS, *cf.PAIR_KINDS, "large", "small")}

    def _one(self, word: str) -> int:
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens; the corpus of the tokenizer should hold it whole.")
        return ids[0]

    def ids(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """(ids of prompt and answer, where the answer begins); "<image>" becomes the tokens of a picture."""
        if (prompt, answer) not in self.known:
            images = prompt.replace("<image>", "<image>" * self.image_tokens)
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

    def described(self, thing: cf.PlacedThing) -> list[int]:
        """Token ids of its size, colour and kind."""
        size = "large" if thing.large else "small"
        return [self.things[word] for word in (size, COLOURS[thing.colour], cf.PAIR_KINDS[thing.kind])]


def evidence(words: Words, shown: Sequence[cf.SalientScene], rng: np.random.Generator) -> np.ndarray:
    """One or two pictures of a sample in words: what the K tokens of each say at the input, and what they say late.

    Returns "when image K 3" token ids or -1; `when` is early, late. As with queries that look at places, a token speaks
    of the same cell in both pictures.

    - EARLY_SHARE of the samples: each thing has its token, all early.
    - The others: the large thing early, in each of the tokens or in one; each small thing late, in a token of its own.
      In a quarter of these, half of all this, drawn at random, comes at the other time.
    Tokens left over repeat a thing or say nothing. In MISSING_SHARE of all, some late tokens say nothing after all.
    """
    out = np.full((2, 2, QUERIES, 3), -1)
    cells = sorted({thing.cell for picture in shown for thing in picture.things if not thing.large})
    early = rng.random() < EARLY_SHARE
    repeats, everywhere, mixed = rng.random() < 0.5, rng.random() < 0.75, not early and rng.random() < 0.25
    slots = rng.permutation(QUERIES)
    other = rng.random((2, QUERIES)) < 0.5
    missing = rng.random(QUERIES) < rng.random()
    for image, picture in enumerate(shown):
        small = {thing.cell: words.described(thing) for thing in picture.things[1:]}
        large = words.described(picture.things[0])
        if early:
            rows = [large, *(small.get(cell) for cell in cells)][:QUERIES]
            for k, slot in enumerate(slots):
                if k < len(rows) or repeats:
                    row = rows[k % len(rows)]
                    out[0, image, slot] = -1 if row is None else row
            continue
        for k, slot in enumerate(slots):
            if everywhere or k == QUERIES - 1:
                out[0, image, slot] = large
            row = small.get(cells[k % len(cells)]) if k < len(cells) or repeats else None
            out[1, image, slot] = -1 if row is None else row
        if mixed:
            out[:, image, other[image]] = out[::-1, image, other[image]]
    if rng.random() < MISSING_SHARE:
        out[1, :, missing] = -1
    return out


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
    afters = [pair.after for pair in pairs]
    shown = [*zip(pictures[:size], afters, strict=True), *((picture,) for picture in pictures[size:])]
    early, late = torch.from_numpy(np.stack([evidence(words, row, rng) for row in shown], axis=1))
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
            said = (table(tokens.clamp(min=0)) * known).sum(-2)[there]
            if not self.training:
                return said
            scale = 0.3 + torch.rand(len(said), 1, 1)
            return scale * said + NOISE * torch.rand(len(said), 1, 1) * torch.randn_like(said)

        embeds = table(ids).masked_scatter(at[..., None], described(batch["early"]))
        added = torch.zeros_like(embeds).masked_scatter(at[..., None], self.late(described(batch["late"])))

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


def train_lm(model: Blip2ForConditionalGeneration, words: Words, work: Path, steps: int) -> History:
    """Train the language model on described pictures; a run found in `work` is continued."""
    reader = LateReader(model.language_model, model.config.image_token_id)
    optimizer, scheduler = one_cycle(reader.parameters(), steps)
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


def one_cycle(parameters: Any, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and its schedule, as every stage has them."""
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )


# --- the vision tower: what is where ----------------------------------------------------------------------------


class PatchReader(nn.Module):
    """The vision tower with a head for every patch: kind, colour and size of what its cell holds, or nothing."""

    sizes = (len(cf.PAIR_KINDS) + 1, len(COLOURS) + 1, 3)

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, nn.Linear(tower.config.hidden_size, sum(self.sizes))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Logits of kind, colour and size, each "b label patch"."""
        logits = self.head(self.tower(batch["pixel_values"]).last_hidden_state[:, 1:])
        return rearrange(logits, "b patch label -> b label patch").split(self.sizes, dim=1)


def vision_batch(processor: ProcessorMixin, step: int, size: int = VISION_BATCH) -> dict[str, torch.Tensor]:
    """Step -> pixel_values "b 3 48 48" and truth "b 3 patch": kind, colour, size; 0 is nothing."""
    pictures = cf.sample(size, CORPUS_SEED + 10_000_000 + step, small=(1, 4))
    truth = np.zeros((size, 3, 9), np.int64)
    for i, picture in enumerate(pictures):
        for thing in picture.things:
            truth[i, :, thing.cells] = (1 + thing.kind, 1 + thing.colour, 1 + thing.large)
    truth = repeat(truth, "b what (row column) -> b what (row y column x)", row=3, y=2, x=2)
    return {"pixel_values": pixels(processor, cf.render(pictures), cf.SIDE), "truth": torch.from_numpy(truth)}


def train_vision(tower: nn.Module, processor: ProcessorMixin, work: Path, steps: int) -> History:
    """Train a vision tower alone; a run found in `work` is continued."""
    reader = PatchReader(tower)
    optimizer, scheduler = one_cycle(reader.parameters(), steps)

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


@torch.no_grad()
def vision_features(tower: nn.Module, processor: ProcessorMixin, pictures: Sequence[cf.SalientScene]) -> torch.Tensor:
    """ "picture 1+patch d", in half precision."""
    parts = []
    for start in trange(0, len(pictures), 512, desc="features", leave=False):
        images = pixels(processor, cf.render(pictures[start : start + 512]), cf.SIDE)
        parts.append(tower(images).last_hidden_state.half())
    return torch.cat(parts)


# --- the Q-Former: what a query asks for ------------------------------------------------------------------------


class QueryReader(nn.Module):
    """The Q-Former with learned queries, and a head for what each asks for: its kind, colour and size, or nothing."""

    roles = (*(f"cell {cell}" for cell in range(9)), "large", *cf.PAIR_KINDS)
    sizes = PatchReader.sizes

    def __init__(self, qformer: nn.Module) -> None:
        super().__init__()
        width = qformer.config.hidden_size
        self.qformer, self.head = qformer, nn.Linear(width, sum(self.sizes))
        self.queries = nn.Parameter(0.5 * torch.randn(len(self.roles), width))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Logits of kind, colour and size, each "b label K"."""
        queries = self.queries[batch["roles"]]
        seen = self.qformer(queries, encoder_hidden_states=batch["features"]).last_hidden_state
        return rearrange(self.head(seen), "b k label -> b label k").split(self.sizes, dim=1)


def role_truth(pictures: Sequence[cf.SalientScene]) -> torch.Tensor:
    """ "picture role 3": kind, colour, size of what each role asks for; 0 is nothing."""
    truth = np.zeros((len(pictures), len(QueryReader.roles), 3), np.int64)
    for i, picture in enumerate(pictures):
        for thing in picture.things:
            asked = [*thing.cells, 10 + thing.kind, *([9] if thing.large else [])]
            truth[i, asked] = (1 + thing.kind, 1 + thing.colour, 1 + thing.large)
    return torch.from_numpy(truth)


def train_qformer(model: Blip2ForConditionalGeneration, processor: Blip2Processor, work: Path, steps: int) -> History:
    """Train the Q-Former alone, then start the query tokens at its query for the large thing, with a little noise."""
    torch.manual_seed(0)
    reader = QueryReader(model.qformer)
    pictures = cf.sample(POOL, CORPUS_SEED + 30_000_000, small=(1, 4))
    features, truth = vision_features(model.vision_model, processor, pictures), role_truth(pictures)
    order = epochs(POOL, QFORMER_BATCH, CORPUS_SEED + 1)
    optimizer, scheduler = one_cycle(reader.parameters(), steps)

    def batch(step: int) -> dict[str, torch.Tensor]:
        rng, at = np.random.default_rng(CORPUS_SEED + step), order(step)
        roles = np.stack([rng.permutation(len(reader.roles))[:QUERIES] for _ in at])
        roles = torch.from_numpy(roles)
        return {"features": features[at].float(), "roles": roles, "truth": truth[at[:, None], roles]}

    def loss(reader: QueryReader, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(F.cross_entropy(part, batch["truth"][..., k]) for k, part in enumerate(reader(batch)))

    history = fit(reader, loss, batch, steps, optimizer, scheduler, out=work, clip=1.0, device="cpu", label="Q-Former")
    with torch.no_grad():
        noise = torch.randn(model.query_tokens.shape, generator=torch.Generator().manual_seed(0))
        model.query_tokens.copy_(reader.queries[reader.roles.index("large")] + 0.1 * noise)
    return history


# --- query tokens and projection: the large thing alone ---------------------------------------------------------


class Aligned(nn.Module):
    """What the alignment trains; the Q-Former and the language model that it speaks through are frozen."""

    def __init__(self, model: Blip2ForConditionalGeneration) -> None:
        super().__init__()
        self.query_tokens, self.language_projection = model.query_tokens, model.language_projection

    def forward(self, qformer: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """features "image patch d" -> "image K hidden"."""
        queries = self.query_tokens.expand(len(features), -1, -1)
        return self.language_projection(qformer(queries, encoder_hidden_states=features).last_hidden_state)


def large_edits(tower: nn.Module, processor: ProcessorMixin) -> tuple[list[cf.Pair], torch.Tensor]:
    """Pairs of pictures whose large thing changed, and what the tower gives of them, "pair 2 1+patch d"."""
    pictures = cf.sample(POOL // 2, CORPUS_SEED + 20_000_000)
    pairs = cf.edits(pictures, [0] * len(pictures), CORPUS_SEED + 20_000_001)
    shown = [[pair.before for pair in pairs], [pair.after for pair in pairs]]
    return pairs, torch.stack([vision_features(tower, processor, row) for row in shown], dim=1)


def about_large(
    words: Words, pairs: Sequence[cf.Pair], features: torch.Tensor, at: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Half differences of two pictures; a quarter captions and a quarter colours of one; all of the large thing."""
    half = len(at) // 2
    chosen = [pairs[i] for i in at.tolist()]
    prompts, answers = [cf.DIFFERENCE_PROMPT] * half, [pair.sentence for pair in chosen[:half]]
    for k, pair in enumerate(chosen[half:]):
        told = (cf.CAPTION_PROMPT, cf.caption(pair.before))
        prompt, answer = told if k % 2 else cf.colour_question(pair.before.things[0])
        prompts.append(prompt)
        answers.append(answer)
    shown = torch.cat([features[at[:half]].flatten(0, 1), features[at[half:], 0]])
    return words.batch(prompts, answers) | {"features": shown.float()}


def spoken_loss(
    lm: nn.Module, image_token_id: int, tokens: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Loss of the answers where the pictures of a batch are `tokens` "image token hidden"."""
    ids = batch["input_ids"]
    embeds = lm.get_input_embeddings()(ids).masked_scatter((ids == image_token_id)[..., None], tokens)
    return answer_loss(lm(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits, batch["labels"])


def train_alignment(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, words: Words, work: Path, steps: int
) -> History:
    """Train query tokens and projection on pairs in which the large thing changes; all else is frozen."""
    pairs, features = large_edits(model.vision_model, processor)
    model.requires_grad_(False).eval()
    aligned = Aligned(model).requires_grad_(True)
    order = epochs(len(pairs), ALIGN_BATCH, CORPUS_SEED)

    def loss(aligned: Aligned, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = aligned(model.qformer, batch["features"])
        return spoken_loss(model.language_model, model.config.image_token_id, tokens, batch)

    optimizer, scheduler = one_cycle(aligned.parameters(), steps)
    return fit(
        aligned,
        loss,
        lambda step: about_large(words, pairs, features, order(step)),
        steps,
        optimizer,
        scheduler,
        out=work,
        clip=1.0,
        device="cpu",
        label="alignment",
    )


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
    """Train (or go on training) the four parts, hold against the gate, and write the checkpoint folder with its card.

    Raises:
        RuntimeError: an exact match about the large thing below `gate`; nothing is written then.
    """
    processor = make_processor()
    words = Words(processor.tokenizer)
    model = new_model(processor.tokenizer)
    first = lm_batch(words, 0)
    parts = (first["input_ids"], first["early"], vision_batch(processor, 0)["pixel_values"])
    work = work_folder("blip2-emoji", (LM_STEPS, VISION_STEPS, QFORMER_STEPS, ALIGN_STEPS), model, parts)
    histories = {
        "language model": train_lm(model, words, work / "lm", LM_STEPS),
        "vision tower": train_vision(model.vision_model, processor, work / "vision", VISION_STEPS),
        "Q-Former": train_qformer(model, processor, work / "qformer", QFORMER_STEPS),
        "alignment": train_alignment(model, processor, words, work / "align", ALIGN_STEPS),
    }
    return ship(model, processor, histories, out, gate)


def ship(
    model: Blip2ForConditionalGeneration,
    processor: Blip2Processor,
    histories: dict[str, History],
    out: Path,
    gate: float,
) -> Path:
    """Hold a trained model against the gate, then write its folder."""
    model = model.half().float().eval()  # what is measured is what is shipped
    results = evaluate(adapt(model, processor))
    check_gates("blip2-emoji", results, dict.fromkeys(GATED, gate))
    return write_checkpoint(out, model, processor, card(model, histories, results), histories)


def card(model: Blip2ForConditionalGeneration, histories: dict[str, History], results: dict[str, float]) -> str:
    """The model card: what it saw, what it can do and what not, and its hash."""
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
from vlws.models.families import load_mllm

mllm = load_mllm("blip2-emoji")
```

**It tells of the large thing in a picture and of nothing else, by design.** A caption tells of the primary subject, \
and all that its Q-Former was asked in training is about the large thing. Chapter 06 repairs that without touching it.

- Data: pictures of `vlws.data.emoji_world.counterfactual`: one large emoji and some small ones \
of {len(cf.PAIR_KINDS)} kinds in {len(COLOURS)} colours. No picture twice in the first two stages; \
{POOL:,} pictures in the third, {POOL // 2:,} pairs in the fourth.
- Stages, each frozen when done: the language model on text alone ({LM_STEPS:,} steps of {LM_BATCH * 3 // 2}); the \
vision tower on kind, colour and size of what each patch shows ({VISION_STEPS:,} steps of {VISION_BATCH}); the \
Q-Former on what a query asks for ({QFORMER_STEPS:,} steps of {QFORMER_BATCH}); query tokens and projection through \
the frozen rest ({ALIGN_STEPS:,} steps of {ALIGN_BATCH}).
- **Substitutes for scale.** In its text training the language model meets pictures as sums of word embeddings, one a \
thing, scaled and noisy. In {1 - EARLY_SHARE:.0%} of the samples the small things arrive late: through a linear map, \
which is not shipped, in front of a layer drawn uniformly; in {MISSING_SHARE:.0%}, some of that never comes. A model \
of 7 billion parameters can use evidence that first appears at mid depth and doubts where it has none; one of this \
size has to have met both. The vision tower's dense task stands for EVA's features, which hold details. The Q-Former's \
18 learned queries (a cell, a kind, the large thing) stand for the breadth of its first stage in BLIP-2; the query \
tokens start as noisy copies of the one for the large thing, the others are not shipped.
- AdamW, OneCycle to {LEARNING_RATE}, gradients clipped at 1, one CPU thread. \
`python -m backbones.blip2_emoji` remakes it. Seeds: {CORPUS_SEED:,} and above; the gate uses {GATE_SEED:,}.
- Licence: MIT, as the workspace; the pictures it learned from are named in NOTICE.
- Hash of the weights: `{weights_hash(model)}`

| exact match, 512 held-out samples | |
|---|---|
{table(results)}

The gate is {GATE} for captions and for the large thing. Chance for a colour is 0.20.

| loss | from first to last step |
|---|---|
{curves}

![loss curves](loss.png)
"""


if __name__ == "__main__":
    run_recipe("blip2-emoji", pretrain_blip2, load_mllm)
