"""Train the shipped LLaVA: `python -m backbones.llava_emoji [--out FOLDER]`.

llava-emoji: a LlavaForConditionalGeneration whose vision tower is that of clip-emoji, frozen, as LLaVA's is CLIP's;
projector and language model are trained from random weights on pictures with captions, questions, and stories
(`stories.corpus`). It is trained to generate and to nothing else: the checkpoint from which every arm of chapter 01
starts, as Sugar starts from VILA. Three stages: the projector alone learns to put each patch near the words
for what it shows (LLaVA's feature alignment, told patch by patch); then projector and language model learn captions and
questions; then stories too. Beside the language loss two attention heads are told where to look (`grounding_loss`):
by the language loss alone, 6,000 steps left "is there a cat?" at chance. Seeds are 1,000,000 and above, which no
chapter uses.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
from vlws.data.documents import Document
from vlws.data.emoji_world import stories, story_sets
from vlws.data.emoji_world.questions import KEEPERS
from vlws.data.emoji_world.scenes import COLOURS, CORPUS_SEED
from vlws.data.emoji_world.story_pictures import STORY_KINDS, STORY_WORDS, Album, draw_things, render, view
from vlws.models import tiny
from vlws.models.adapter import IGNORED, Adapter
from vlws.models.clip import load_clip
from vlws.models.families import adapt, load_mllm
from vlws.models.hub import ASSETS, weights_hash
from vlws.models.interleave import Reader, Rows
from vlws.train import fit

ALIGN_STEPS, ALIGN_BATCH = 600, 128
STEPS, FIRST_STEPS = 5000, 1000  # of the language model; of these, those without stories
BATCH = 32
FIRST_MIX = {"pair": 0.25, "presence": 0.15, "several": 0.15, "question": 0.45}
MIX = {"story": 0.25, "pair": 0.06, "presence": 0.19, "several": 0.25, "question": 0.25}
LEARNING_RATE = 2e-3
GROUNDING = 0.5  # weight of the loss on attention
GATE_SEED = CORPUS_SEED - 1
GATES = {"presence": 0.80, "colour": 0.80, "what": 0.90, "where": 0.70, "several": 0.80, "stories": 0.50}


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


class Lesson(NamedTuple):
    """Documents of like length, and which tokens of theirs should look where.

    Attributes:
        rows: the documents, with labels.
        words: "word 2" (row, token) of each word for a thing; shown: "word len" bool, what it should look at.
        ends: "question 2" (row, last token) of each question about things; asked: "question len" bool, likewise.
    """

    rows: Rows
    words: Tensor
    shown: Tensor
    ends: Tensor
    asked: Tensor


def lesson(rows: Rows, documents: Sequence[Document], album: Album, words: dict[int, str]) -> Lesson:
    """A word for a thing looks at the patches before it that show the thing, or at the start token where none does.

    The end of a question looks at the things that it names. `words`: token -> one of STORY_WORDS.
    """
    looks: list[tuple[int, int, list[int]]] = []
    ends: list[tuple[int, int, list[int]]] = []
    for row, (document, spans) in enumerate(zip(documents, rows.spans, strict=True)):
        ids, shown, named = rows.batch.input_ids[row].tolist(), {}, []
        for part, (start, stop) in zip(document.slices, spans.tolist(), strict=True):
            if part.is_image:
                view = album.views[part.image]
                for thing, cell in zip(view.things, view.cells, strict=True):
                    shown.setdefault(thing.word, []).extend(start + patch for patch in patches(cell))
            else:
                named = [at for at in range(start, stop) if ids[at] in words]
                looks += [(row, at, shown.get(words[ids[at]], [0])) for at in named]
        if document.answer and named:
            ends.append((row, stop - 1, named))
    length = rows.batch.input_ids.shape[1]
    return Lesson(rows, *_targets(looks, length), *_targets(ends, length))


def patches(cell: int) -> list[int]:
    """The patches of a cell of the 2 x 2 grid, counted row by row over the whole picture."""
    side = tiny.IMAGE_SIZE // tiny.PATCH_SIZE
    grid = np.arange(side**2).reshape(2, side // 2, 2, side // 2)
    return grid[cell // 2, :, cell % 2].ravel().tolist()


def _targets(found: Sequence[tuple[int, int, list[int]]], length: int) -> tuple[Tensor, Tensor]:
    inside = torch.zeros(len(found), length, dtype=torch.bool)
    for k, (_, _, tokens) in enumerate(found):
        inside[k, tokens] = True
    return torch.tensor([[row, at] for row, at, _ in found], dtype=torch.long).reshape(-1, 2), inside


def corpus_lessons(reader: Reader, words: dict[int, str], step: int) -> list[Lesson]:
    """Step -> BATCH documents of the corpus in groups of like length, their pictures through the frozen tower."""
    found = stories.corpus(BATCH, CORPUS_SEED + step, FIRST_MIX if step < FIRST_STEPS else MIX, lone=False)
    features = reader.features(found.images)
    made = []
    for group in reader.groups(found.documents):
        documents = [found.documents[i] for i in group]
        made.append(lesson(reader.rows(documents, features), documents, found.album, words))
    return made


def grounding_loss(weights: Tensor, at: Tensor, inside: Tensor) -> Tensor:
    """-log of the attention that one head pays to what it should look at, summed over "n".

    weights: "row len len" of the head; at: "n 2" (row, token that looks); inside: "n len" bool.
    """
    return -((weights[at[:, 0], at[:, 1]] * inside).sum(1) + 1e-6).log().sum()


def loss_of(adapter: Adapter, lessons: Sequence[Lesson]) -> Tensor:
    """The language loss, and that of the first heads of the first two layers: a word finds its thing, a question its
    word. The attention is that of `attn_implementation="eager"`, which gives it away."""
    tokens = sum(int((part.rows.batch.labels[:, 1:] != IGNORED).sum()) for part in lessons)
    words, ends = (max(1, sum(len(getattr(part, name)) for part in lessons)) for name in ("words", "ends"))
    total = torch.zeros(())
    for part in lessons:
        batch = part.rows.batch
        out = adapter.run(batch)
        total = total + out.loss * int((batch.labels[:, 1:] != IGNORED).sum()) / tokens
        first, second = (out.attentions[layer][:, 0] for layer in (0, 1))
        looks = grounding_loss(first, part.words, part.shown) / words
        total = total + GROUNDING * (looks + grounding_loss(second, part.ends, part.asked) / ends)
    return total


def pretrain_llava(out: Path = ASSETS / "llava-emoji", steps: int = STEPS, gates: dict | None = None) -> Path:
    """Train (or go on training), hold against the gates, and write the checkpoint folder with its card.

    Raises:
        RuntimeError: a share of right answers below its gate; nothing is written then.
    """
    adapter = make_model()
    reader = Reader(adapter)
    model = adapter.model
    words = {adapter.tokenizer(f" {w}", add_special_tokens=False).input_ids[0]: w for w in STORY_WORDS}
    first = corpus_lessons(reader, words, 0)[0].rows.batch  # a changed corpus, tokenizer or model starts anew
    settings = (steps, FIRST_STEPS, FIRST_MIX, MIX, ALIGN_STEPS, BATCH, LEARNING_RATE, GROUNDING)
    work = work_folder("llava-emoji", settings, model, (first.input_ids, first.labels, first.features.half()))
    align(adapter, reader, work)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    model.set_attn_implementation("eager")
    model.config.text_config.output_attentions = True
    history = fit(
        model,
        lambda _, lessons: loss_of(adapter, lessons),
        partial(corpus_lessons, reader, words),
        steps,
        optimizer,
        scheduler,
        out=work,
        clip=1.0,
        device="cpu",
        label="llava-emoji",
    )
    model.config.text_config.output_attentions = False
    model.set_attn_implementation("sdpa")
    return ship(adapter, history, out, GATES if gates is None else gates)


def ship(adapter: Adapter, history: History, out: Path, gates: dict[str, float]) -> Path:
    """Hold a trained model against the gates, then write its folder."""
    adapter.model.half().float()  # what is measured is what is shipped
    results = evaluate(adapter)
    check_gates("llava-emoji", results, gates)
    text = card(adapter, history, results, gates)
    return write_checkpoint(out, adapter.model, adapter.processor, text, {"loss, with that of attention": history})


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
    mix = ", ".join(f"{kind} {share:.0%}" for kind, share in MIX.items())
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
{mix}; none of them stories in the first {FIRST_STEPS:,} steps.
- Loss: cross-entropy of the sentences of stories, of captions, and of answers; and {GROUNDING} times that of two \
attention heads that are told where to look: in the first layer a word looks at the patches that show it (or at the \
start token), in the second the end of a question looks at the things that it names. By the language loss alone, 6,000 \
steps left presence at chance (0.47) and the colour of one of several things at 0.48.
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
