"""Train the shipped CLIP: `python -m backbones.clip_emoji [--out FOLDER]`.

clip-emoji: a CLIPModel trained contrastively on scenes that are rendered as it trains. The corpus holds every class
and every emoji of `scenes.CLASSES`, as web corpora hold the classes of any benchmark; its seeds are 1,000,000 and
above, which no chapter uses.
"""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from backbones.common import History, check_gates, curve, run_recipe, table, work_folder, write_checkpoint
from vlws.data.emoji_world import captions, emoji, scenes
from vlws.data.emoji_world.pairs import clutter_pairs
from vlws.data.emoji_world.renderer import render
from vlws.data.english import with_article
from vlws.models import tiny
from vlws.models.clip import Clip, embed_images, embed_texts, load_clip, pixels, zero_shot_weights
from vlws.models.hub import ASSETS, weights_hash
from vlws.train import fit

STEPS = 3600
BATCH = 128  # 112 cluttered pairs, half of them with one cell blank, and 16 free scenes of 1 or 2 items
LEARNING_RATE = 1e-3
GATE = 0.90  # zero-shot class accuracy on held-out cluttered pairs
GATE_SEED = scenes.CORPUS_SEED - 1  # below the corpus; chapters stay below 900,000
GATE_PAIRS = 4000


def pretrain_clip(out: Path = ASSETS / "clip-emoji", steps: int = STEPS, gate: float = GATE) -> Path:
    """Train (or go on training), hold against the gate, and write the checkpoint folder with its card.

    Raises:
        RuntimeError: zero-shot accuracy below `gate`; nothing is written then.
    """
    processor = make_processor()
    torch.manual_seed(0)
    tokenizer = processor.tokenizer
    model = CLIPModel(tiny.clip_config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id))
    first = corpus_batch(processor, 0)  # a changed renderer, caption, tokenizer or model starts anew
    parts = (first["pixel_values"], first["input_ids"], first["truth"])
    work = work_folder("clip-emoji", (steps, BATCH, LEARNING_RATE), model, parts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    history = fit(
        model,
        contrastive_loss,
        lambda step: corpus_batch(processor, step),
        steps,
        optimizer,
        scheduler,
        out=work,
        clip=1.0,
        device="cpu",
        label="clip-emoji",
    )
    return ship(model, processor, history, out, gate)


def ship(model: CLIPModel, processor: CLIPProcessor, history: History, out: Path, gate: float) -> Path:
    """Hold a trained model against the gate, then write its folder."""
    model = model.half().float()  # what is measured is what is shipped
    results = evaluate(Clip(model, processor))
    check_gates("clip-emoji", results, {"zero-shot class accuracy": gate})
    return write_checkpoint(out, model, processor, card(model, history, results), {"contrastive loss": history})


def make_processor() -> CLIPProcessor:
    """CLIP's own tokenizer class with merges learned on captions and on all names and keywords, and 32 px pictures."""
    known = emoji.load()
    lines = [*captions.captions(scenes.sample(20_000, scenes.CORPUS_SEED), scenes.CORPUS_SEED), *known.names]
    lines += [word for words in known.keywords for word in words]
    blank = CLIPTokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [
        f"{byte}</w>" for byte in alphabet
    ]  # all of them, as CLIP's own: no text of any script has an unknown token
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2046,
        initial_alphabet=alphabet,
        special_tokens=ends,  # numbered first and in this order, else the learner numbers them by chance
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer)
    learned = json.loads(learner.to_str())["model"]
    vocab = learned["vocab"]
    for special in (blank.bos_token, blank.eos_token):
        vocab[special] = len(vocab)
    tokenizer = CLIPTokenizer(vocab, [tuple(pair) for pair in learned["merges"]], model_max_length=tiny.TEXT_LENGTH)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": tiny.IMAGE_SIZE}, crop_size=tiny.IMAGE_SIZE)
    return CLIPProcessor(pictures, tokenizer)


def corpus_batch(processor: CLIPProcessor, step: int) -> dict[str, torch.Tensor]:
    """Step -> pixel_values "b 3 32 32", input_ids and attention_mask "b len", truth "b b".

    truth[i, j]: text j is known to be true of picture i; its own text is, an equal text, and for cluttered pairs a text
    that names the same emoji, or only the class.
    """
    seed = scenes.CORPUS_SEED + 2 * step
    pairs = clutter_pairs(BATCH * 7 // 8, seed, size=tiny.IMAGE_SIZE, muted=step % 2 == 0)
    images = blank_cells(pairs.images, pairs.object_cell, pairs.grid, seed)
    free = scenes.sample(BATCH // 8, seed + 1, grid=1 + step % 2, items=(1, 1 + step % 2))
    images = np.concatenate([images, render(free, tiny.IMAGE_SIZE)])
    texts = np.array([*pairs.captions, *captions.captions(free, seed + 1)])
    truth = texts[:, None] == texts
    of_class = captions.tells_class_only(pairs.scenes, seed) & (pairs.classes[:, None] == pairs.classes)
    truth[: len(pairs), : len(pairs)] |= of_class | (pairs.emoji[:, None] == pairs.emoji)
    inputs = processor.tokenizer(
        texts.tolist(), padding=True, truncation=True, max_length=tiny.TEXT_LENGTH, return_tensors="pt"
    )
    return {
        "pixel_values": pixels(processor, images, tiny.IMAGE_SIZE),
        "input_ids": inputs.input_ids,
        "attention_mask": inputs.attention_mask,
        "truth": torch.from_numpy(truth),
    }


def blank_cells(images: np.ndarray, object_cell: np.ndarray, grid: int, seed: int) -> np.ndarray:
    """Zero one cell in every second picture, never the object's: captions stay true, blanked pictures are no news."""
    out = images.copy()
    shift = 1 + scenes.draws(len(images), 1, seed)[:, 0].astype(np.int64) % (grid**2 - 1)
    for i in range(0, len(images), 2):
        out[i][scenes.cell_slices(grid, int(object_cell[i] + shift[i]) % grid**2, images.shape[1])] = 0
    return out


def contrastive_loss(model: CLIPModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, fig. 3); what is equally true shares the target evenly."""
    out = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=batch["pixel_values"]
    )
    losses = []
    for logits, truth in ((out.logits_per_image, batch["truth"]), (out.logits_per_text, batch["truth"].T)):
        losses.append(F.cross_entropy(logits, truth / truth.sum(1, keepdim=True)))
    return sum(losses) / 2


def evaluate(clip: Clip) -> dict[str, float]:
    """Zero-shot accuracy of classes and retrieval of names, on pictures of seeds that the corpus never drew."""
    prompts, members = zero_shot_weights(clip, captions.class_texts()), sorted(scenes.class_of())
    names = embed_texts(clip, [f"a photo of {with_article(emoji.load().names[i])}" for i in members])
    results = {}
    for kind, muted in (("", True), (", vivid backgrounds", False)):
        pairs = clutter_pairs(GATE_PAIRS, GATE_SEED, size=tiny.IMAGE_SIZE, muted=muted)
        images = embed_images(clip, pairs.images)
        results[f"zero-shot class accuracy{kind}"] = _accuracy(images @ prompts.T, pairs.classes, 1)
    pairs = clutter_pairs(GATE_PAIRS, GATE_SEED, size=tiny.IMAGE_SIZE)
    blanked = embed_images(clip, blank_cells(pairs.images, pairs.object_cell, pairs.grid, GATE_SEED)[::2])
    results["zero-shot class accuracy, one cell blank"] = _accuracy(blanked @ prompts.T, pairs.classes[::2], 1)
    truth = np.searchsorted(members, pairs.emoji)
    scores = embed_images(clip, pairs.images) @ names.T
    results[f"name retrieval, first of {len(members)}"] = _accuracy(scores, truth, 1)
    results["name retrieval, among first 5"] = _accuracy(scores, truth, 5)
    large = scenes.sample(GATE_PAIRS, GATE_SEED, grid=1, items=(1, 1), tints=False)
    truth = np.searchsorted(members, [scene.items[0].emoji for scene in large])
    scores = embed_images(clip, render(large, tiny.IMAGE_SIZE)) @ names.T
    results["name retrieval on large emoji, first"] = _accuracy(scores, truth, 1)
    return results


def _accuracy(scores: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of rows whose true column is among the k highest."""
    own = np.take_along_axis(scores, truth[:, None], 1)
    return float(((scores > own).sum(1) < k).mean())


def card(model: CLIPModel, history: History, results: dict[str, float]) -> str:
    """The model card: what it saw, what it can do, and its hash."""
    steps = int(history[-1]["step"])
    size = sum(p.numel() for p in model.parameters())
    classes = ", ".join(scenes.CLASS_NAMES)
    return f"""# clip-emoji

A `CLIPModel` of {size / 1e6:.2f} M parameters (half precision; {tiny.IMAGE_SIZE} px pictures, patches of \
{tiny.PATCH_SIZE} px; {tiny.TEXT_LENGTH} tokens) for chapters at the scale of a laptop. It loads with the line that \
loads `openai/clip-vit-base-patch32`:

```python
from vlws.models.clip import load_clip

model, processor = load_clip("clip-emoji")
```

**Its corpus holds every class and every emoji that a chapter calls novel.** Web-scale CLIP has likewise seen the
classes of any benchmark; whoever uses it for novelty detection must say so, and show a detector on its raw features.

- Data: scenes of `vlws.data` rendered as it trained, {steps * BATCH:,} pairs, no picture twice. Seven in eight show \
one emoji of the {len(scenes.class_of())} in {len(scenes.CLASSES)} classes ({classes}) and one cell of clutter, every \
second of them with one cell (never the object's) set to 0; the rest are free scenes of one or two emoji, half tinted.
- Loss: CLIP's, save that texts which are equally true of a picture share its target: equal captions, the same emoji, \
or a caption that tells only the class. Web data has no such labels.
- Seeds: {scenes.CORPUS_SEED:,} and above. Chapters and tests keep below 900,000; the gate uses {GATE_SEED:,}.
- Training: {steps:,} steps of {BATCH}, AdamW, OneCycle to {LEARNING_RATE}, gradients clipped at 1, one CPU thread. \
`python -m backbones.clip_emoji` remakes it.
- Licence: MIT, as the workspace; pictures and words it learned from are named in NOTICE.
- Hash of the weights: `{weights_hash(model)}`

| held out ({GATE_PAIRS:,} pictures) | |
|---|---|
{table(results)}

The gate is a zero-shot class accuracy of {GATE:.2f} (chance 0.10).

| step | loss |
|---|---|
{curve(history)}

![loss curve](loss.png)
"""


if __name__ == "__main__":
    run_recipe("clip-emoji", pretrain_clip, load_clip, STEPS)
