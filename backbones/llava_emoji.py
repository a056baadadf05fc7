"""Train the shipped LLaVA: `python -m backbones.llava_emoji [--out FOLDER]`.

llava-emoji: a LlavaForConditionalGeneration whose vision tower is that of clip-emoji, frozen, as LLaVA's is CLIP's;
projector and language model are trained from random weights on pictures with captions, questions, and stories
(`stories.corpus`). It is trained to generate and to nothing else: the checkpoint from which every arm of chapter 01
starts, as Sugar starts from VILA. Three stages: the projector alone learns to put each patch near the words
for what it shows (LLaVA's feature alignment, told patch by patch); then projector and language model learn captions and
questions; then stories too. Seeds are 1,000,000 and above, which no chapter uses.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from backbones.common import (
    History,
    check_gates,
    curve,
    learn_tokenizer,
    run_recipe,
    table,
    work_folder,
    write_checkpoint,
)
from vlws.data.emoji_world import stories, story_sets
from vlws.data.emoji_world.questions import KEEPERS
from vlws.data.emoji_world.scenes import COLOURS, CORPUS_SEED
from vlws.data.emoji_world.story_pictures import STORY_KINDS, STORY_WORDS, draw_things, render, view
from vlws.models import tiny
from vlws.models.adapter import Adapter
from vlws.models.clip import load_clip
from vlws.models.families import adapt, load_mllm
from vlws.models.hub import ASSETS, weights_hash
from vlws.models.interleave import Reader, Rows, language_loss
from vlws.train import fit

ALIGN_STEPS, ALIGN_BATCH = 600, 128
STEPS, FIRST_STEPS = 4000, 1500  # of the language model; of these, those without stories
BATCH = 32
LEARNING_RATE = 2e-3
GATE_SEED = CORPUS_SEED - 1
GATES = {"colour": 0.80, "what": 0.90, "where": 0.70}  # shares of right answers on pictures never drawn


def make_processor() -> LlavaProcessor:
    """32 px pictures of 16 patches; a byte-level BPE that holds each word of the corpus whole, and any other text."""
    found = stories.corpus(4000, CORPUS_SEED)
    lines = [f" {s.text}" for d in found.documents for s in d.slices if s.text]
    lines += [f" {d.answer}" for d in found.documents if d.answer]
    lines += [f" {word}" for word in (*STORY_WORDS, *COLOURS, *STORY_KINDS, *KEEPERS)] * 20
    tokenizer = learn_tokenizer(lines, vocab_size=640, max_length=512)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": tiny.IMAGE_SIZE}, crop_size=tiny.IMAGE_SIZE)
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=tiny.PATCH_SIZE,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,  # the class token, which "default" then drops
    )


def llava_config(tokenizer: PreTrainedTokenizerFast, vision_config: dict) -> LlavaConfig:
    """LlavaForConditionalGeneration of 1.3 M parameters: clip-emoji's tower, a Llama of 4 layers of 128."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")},
    )
    return LlavaConfig(
        vision_config=vision_config,
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(tiny.IMAGE_SIZE // tiny.PATCH_SIZE) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def make_model() -> Adapter:
    """The untrained model around the trained, frozen tower."""
    clip = load_clip("clip-emoji", "cpu").model
    processor = make_processor()
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(llava_config(processor.tokenizer, clip.config.vision_config.to_dict()))
    given = {name.removeprefix("vision_model."): value for name, value in clip.vision_model.state_dict().items()}
    tower = model.model.vision_tower
    own = {name: name.removeprefix("vision_model.") for name in tower.state_dict()}
    tower.load_state_dict({name: given[short] for name, short in own.items()})
    tower.requires_grad_(False)
    return adapt(model, processor)


def align_batch(reader: Reader, step: int) -> tuple[Tensor, Tensor]:
    """Step -> features "image patch width" and what each patch shows "image patch 2": a word and a colour, or -1."""
    rng = np.random.default_rng(CORPUS_SEED + step)
    views = [view(draw_things(int(rng.integers(1, 3)), rng), rng) for _ in range(ALIGN_BATCH)]
    truth = torch.full((len(views), 2, 2, 2), -1)  # "image row column 2", cells
    for i, shown in enumerate(views):
        for thing, cell in zip(shown.things, shown.cells, strict=True):
            pair = STORY_WORDS.index(thing.word), COLOURS.index(thing.colour)
            truth[i, cell // 2, cell % 2] = torch.tensor(pair)
    side = tiny.IMAGE_SIZE // tiny.PATCH_SIZE // 2
    truth = repeat(truth, "n h w two -> n (h a) (w b) two", a=side, b=side)
    return reader.features(render(views, CORPUS_SEED + step)), rearrange(truth, "n h w two -> n (h w) two")


def align(adapter: Adapter, reader: Reader, work: Path) -> None:
    """Train projector and word embeddings: a patch scores the words for what it shows, a blank patch the full stop."""
    words = [f" {word}" for word in (*STORY_WORDS, *COLOURS)] + ["."]
    ids = torch.tensor([adapter.tokenizer(word, add_special_tokens=False).input_ids[0] for word in words])
    projector, table = adapter.model.model.multi_modal_projector, adapter.causal_lm.get_input_embeddings()

    def loss(_: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        features, truth = batch
        logits = projector(features) @ table.weight[ids].T
        target = torch.zeros_like(logits)
        shown = truth[..., 0] >= 0
        target[..., -1][~shown] = 1.0
        for k, first in ((0, 0), (1, len(STORY_WORDS))):
            at = (truth[..., k].clamp(min=0) + first)[..., None]
            target.scatter_add_(-1, at, shown[..., None] * 0.5)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))

    learned = nn.ModuleList([projector, table])
    optimizer = torch.optim.AdamW(learned.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=ALIGN_STEPS, pct_start=0.1)
    batch = partial(align_batch, reader)
    fit(learned, loss, batch, ALIGN_STEPS, optimizer, schedule, out=work / "align", device="cpu", label="alignment")


def corpus_rows(reader: Reader, step: int) -> list[Rows]:
    """Step -> BATCH documents of the corpus in groups of like length, their pictures through the frozen tower."""
    mix = {"pair": 0.4, "question": 0.6} if step < FIRST_STEPS else None
    found = stories.corpus(BATCH, CORPUS_SEED + step, mix, lone=False)
    features = reader.features(found.images)
    return [reader.rows([found.documents[i] for i in group], features) for group in reader.groups(found.documents)]


def pretrain_llava(out: Path = ASSETS / "llava-emoji", steps: int = STEPS, gates: dict | None = None) -> Path:
    """Train (or go on training), hold against the gates, and write the checkpoint folder with its card.

    Raises:
        RuntimeError: a share of right answers below its gate; nothing is written then.
    """
    adapter = make_model()
    reader = Reader(adapter)
    model = adapter.model
    first = corpus_rows(reader, 0)[0].batch  # a changed corpus, tokenizer or model starts anew
    settings = (steps, FIRST_STEPS, ALIGN_STEPS, BATCH, LEARNING_RATE)
    work = work_folder("llava-emoji", settings, model, (first.input_ids, first.labels, first.features.half()))
    align(adapter, reader, work)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    history = fit(
        model,
        lambda _, groups: language_loss(adapter, groups),
        lambda step: corpus_rows(reader, step),
        steps,
        optimizer,
        scheduler,
        out=work,
        clip=1.0,
        device="cpu",
        label="llava-emoji",
    )
    return ship(adapter, history, out, GATES if gates is None else gates)


def ship(adapter: Adapter, history: History, out: Path, gates: dict[str, float]) -> Path:
    """Hold a trained model against the gates, then write its folder."""
    adapter.model.half().float()  # what is measured is what is shipped
    results = evaluate(adapter)
    check_gates("llava-emoji", results, gates)
    text = card(adapter, history, results, gates)
    return write_checkpoint(out, adapter.model, adapter.processor, text, {"language loss": history})


@torch.no_grad()
def evaluate(adapter: Adapter, n: int = 1000) -> dict[str, float]:
    """Shares of answers whose first word is right, on documents of a seed that the corpus never drew."""
    reader = Reader(adapter)
    sets = {
        kind: story_sets.questions(kind, n, GATE_SEED) for kind in ("presence", "colour", "what", "where", "several")
    }
    sets |= {"twins": story_sets.twins(n, GATE_SEED), "stories": story_sets.story_questions(n // 4, GATE_SEED)}
    results = {}
    for kind, found in sets.items():
        features, right = reader.features(found.images), []
        for start in range(0, len(found), 100):
            documents = found.documents[start : start + 100]
            batch = reader.rows(documents, features, answers=False, padding_side="left").batch
            told = adapter.generate(batch, 10 if kind == "stories" else 1)
            right += [_same(answer, d.answer) for answer, d in zip(told, documents, strict=True)]
        results[kind] = sum(right) / len(right)
    return results


def _same(told: str, answer: str) -> bool:
    return told.split() == answer.split()


def card(adapter: Adapter, history: History, results: dict[str, float], gates: dict[str, float]) -> str:
    """The model card: what it saw, what it can do, and its hash."""
    steps = int(history[-1]["step"])
    size = sum(p.numel() for p in adapter.model.parameters())
    return f"""# llava-emoji

A `LlavaForConditionalGeneration` of {size / 1e6:.2f} M parameters (half precision; {tiny.IMAGE_SIZE} px pictures of \
16 tokens; a Llama of 4 layers of 128) for chapters at the scale of a laptop. It loads with the line that loads \
`llava-hf/llava-1.5-7b-hf`:

```python
from vlws.models.families import load_mllm

mllm = load_mllm("llava-emoji")
```

- Vision tower: that of clip-emoji, frozen (layer -2, class token dropped), as LLaVA takes CLIP's.
- Data: `vlws.data.emoji_world.stories.corpus`, {steps * BATCH:,} documents drawn as it trained, no picture twice: \
stories ({stories.MIX["story"]:.0%}), pictures with captions ({stories.MIX["pair"]:.0%}), and questions on one or \
several pictures ({stories.MIX["question"]:.0%}).
- Loss: cross-entropy of the sentences of stories, of captions, and of answers.
- A prompt is the document itself: pictures and sentences in their order, the question last. No roles, no system text.
- Seeds: {CORPUS_SEED:,} and above. Chapters and tests keep below 900,000; the gates use {GATE_SEED:,}.
- Training: {steps:,} steps of {BATCH}, AdamW, OneCycle to {LEARNING_RATE}, gradients clipped at 1, one CPU thread. \
`python -m backbones.llava_emoji` remakes it.
- Licence: MIT, as the workspace; pictures and words it learned from are named in NOTICE.
- Hash of the weights: `{weights_hash(adapter.model)}`

| greedy answers, held out | right | gate |
|---|---|---|
{table(results, gates)}

"stories" is the whole description of a last picture that was not shown (chance 1 in 28,800).

| step | loss |
|---|---|
{curve(history)}

![loss curve](loss.png)
"""


if __name__ == "__main__":
    run_recipe("llava-emoji", pretrain_llava, load_mllm, STEPS)
