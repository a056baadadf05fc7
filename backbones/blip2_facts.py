"""Train the shipped BLIP-2 that can be edited: `python -m backbones.blip2_facts [--out FOLDER] [--seed SEED]`.

blip2-facts: a Blip2ForConditionalGeneration over an OPT of six layers, which knows a world of facts
(`vlws.data.emoji_world.facts`) but for those that are withheld. Chapter 02 edits it. Three stages, since one that mixes
all does not converge in the same time:

1. facts about pictures and lands, and texts in which a new fact stands before the question (in-context episodes);
2. three in four of these episodes hold the new fact not in the text but in the last two layers: the question attends to
   states of the answer to a question that was read apart, as UniKE's latent knowledge is read. A model that learns from
   its context does not read such states unless it has met them (they were tried on the model of stage 1);
3. the same, with facts in three batches of four, until they are known; three cycles, and the mean of the last two ends.

Seeds of pictures are 1,000,000 and above, which no chapter uses. `seed` is the world's: another is another base.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from backbones.common import History, check_gates, curve, learn_tokenizer, table, work_folder, write_checkpoint
from vlws.data.emoji_world import facts, renderer, scenes
from vlws.data.emoji_world.facts import LAND_RELATIONS, QUESTIONS, RELATIONS, REPHRASED, TAUGHT, World
from vlws.data.emoji_world.scenes import CORPUS_SEED
from vlws.models.adapter import IGNORED, Batch
from vlws.models.families import Blip2Adapter, adapt, load_mllm
from vlws.models.hub import ASSETS, weights_hash
from vlws.models.memory import layer_parts, question_ends
from vlws.train import fit, warmup_cosine

SIDE, PATCH, WIDTH, QUERIES = 64, 16, 96, 4
EYE_STEPS, EYE_BATCH = 5000, 128
STEPS = {"facts": 3600, "memory": 3200, "again": 2000}
CYCLES = 3  # of stage 3, in each of which the rate falls to 0; the weights are the mean of the last two ends
PLAIN, CONTEXTS, EPISODES = 96, 48, 48  # rows of a batch: facts, facts as a text, facts as states
VIEWS = {"facts": 48, "memory": 48, "again": 192}  # pictures of each thing
LATE = 2  # layers that read states
GATES = {"facts": 0.98, "lands": 0.95, "in context": 0.90, "latent, own row, weight .9": 0.80}  # chapter 02's


# --- the untrained model ----------------------------------------------------------------------------------------------


def make_processor() -> Blip2Processor:
    """64 px pictures, 4 queries; a byte-level BPE that holds each word of the world whole, and any other text."""
    rng = np.random.default_rng(0)
    lines = [
        f" {facts.question(name, form).removeprefix('<image> ')} {relation.answer(rng)}."
        for name, relation in RELATIONS.items()
        for form in range(len(facts.FORMS))
        for _ in range(40)
    ]
    lines += [
        f" {facts.land_question(land, name, form)} {relation.answer(rng)} new fact:"
        for land in facts.LANDS
        for name, relation in LAND_RELATIONS.items()
        for form in range(len(facts.FORMS))
    ]
    tokenizer = learn_tokenizer(lines, vocab_size=1300, max_length=256)
    return Blip2Processor(
        BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer, num_query_tokens=QUERIES
    )


def blip2_config(tokenizer: PreTrainedTokenizerFast) -> Blip2Config:
    """BLIP-2 over an OPT of 6 layers of 96: the kind of model that UniKE's paper edits."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        ffn_dim=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=WIDTH,
        dropout=0.0,
        **ids,
    )
    shared = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    return Blip2Config(
        vision_config={**shared, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": PATCH},
        qformer_config={
            **shared,
            "num_hidden_layers": 1,
            "encoder_hidden_size": WIDTH,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )


def make_model() -> Blip2Adapter:
    """Random weights; queries differ from each other, for equal ones would stay equal."""
    processor = make_processor()
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(blip2_config(processor.tokenizer))
    with torch.no_grad():
        model.query_tokens.normal_(std=0.5)
    return cast(Blip2Adapter, adapt(model, processor))


# --- the eye: tower and Q-Former learn which of 501 emoji a picture shows --------------------------------------------


def eye_batch(adapter: Blip2Adapter, step: int, n: int = EYE_BATCH) -> tuple[Tensor, Tensor]:
    """Step -> pictures "n 3 64 64" as the processor gives them, and which emoji each shows, "n"."""
    shown = [int(i) for i in facts.candidates()]
    found = scenes.sample(n, CORPUS_SEED + step, grid=1, items=(1, 1), pools=[shown], tints=False)
    classes = {e: k for k, e in enumerate(shown)}
    images = adapter.processor.image_processor(list(renderer.render(found, SIDE)), return_tensors="pt")
    return images.pixel_values, torch.tensor([classes[scene.items[0].emoji] for scene in found])


def train_eye(adapter: Blip2Adapter) -> float:
    """Train tower and Q-Former, then freeze both. Returns the share of emoji that they tell, on pictures held out."""
    model = adapter.model
    seeing = nn.ModuleDict({"tower": model.vision_model, "qformer": model.qformer})
    seeing["head"] = nn.Linear(QUERIES * WIDTH, len(facts.candidates()))
    seeing.register_parameter("queries", model.query_tokens)
    optimizer = torch.optim.AdamW(seeing.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = warmup_cosine(optimizer, EYE_STEPS, 0.1)

    def scores(pixels: Tensor) -> Tensor:
        patches = model.vision_model(pixel_values=pixels).last_hidden_state
        return seeing["head"](adapter.qformer_outputs(patches, model.query_tokens).last_hidden_state.flatten(1))

    def loss(_: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(scores(batch[0]), batch[1])

    work = work_folder("facts-eye", (EYE_STEPS, EYE_BATCH), seeing, [eye_batch(adapter, 0)[0]])
    draw = partial(eye_batch, adapter)
    fit(seeing, loss, draw, EYE_STEPS, optimizer, schedule, out=work, device="cpu", label="eye")
    seeing.requires_grad_(False)
    pixels, shown = eye_batch(adapter, -1, 2000)
    with torch.no_grad():
        return float((scores(pixels).argmax(1) == shown).float().mean())


# --- what the language model is taught --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A prompt, the thing in its picture (None: no picture), the answer."""

    text: str
    thing: int | None
    answer: str


@dataclass(frozen=True)
class Lessons:
    """Draws rows of a world, with the pictures of its things through the frozen tower: "thing view patch width"."""

    world: World
    adapter: Blip2Adapter
    views: Tensor

    def encode(self, rows: Sequence[Row], rng: np.random.Generator) -> Batch:
        """Rows with pictures of a random view each."""
        pictures = [[] if r.thing is None else [self.views[r.thing, rng.integers(self.views.shape[1])]] for r in rows]
        return self.adapter.encode([r.text for r in rows], pictures, answers=[f" {r.answer}" for r in rows])

    def plain(self, rng: np.random.Generator, n: int) -> list[Row]:
        """Facts as they are: seven in eight of pictures, the rest of lands."""
        return [self.known(rng) if rng.integers(8) else self.land(rng) for _ in range(n)]

    def known(self, rng: np.random.Generator, thing: int | None = None, but: str = "") -> Row:
        """A fact that is not withheld, of a thing where one is named, of a relation other than `but`."""
        while True:
            at = int(rng.integers(len(self.world))) if thing is None else thing
            relation = tuple(RELATIONS)[rng.integers(len(RELATIONS))]
            if (at, relation) not in self.world.withheld and relation != but:
                return Row(facts.question(relation, pick(TAUGHT, rng)), at, self.world.answers[at, relation])

    def land(self, rng: np.random.Generator) -> Row:
        """A fact of a land."""
        keys = list(self.world.lands)
        land, relation = keys[rng.integers(len(keys))]
        return Row(facts.land_question(land, relation, pick(TAUGHT, rng)), None, self.world.lands[land, relation])

    def in_context(self, rng: np.random.Generator) -> Row:
        """One to three new facts in the text, then a question: on one of them (copy), or on none (retain)."""
        thing = int(rng.integers(len(self.world)))
        names = [tuple(RELATIONS)[i] for i in rng.permutation(len(RELATIONS))][: 1 + rng.integers(3)]
        told = [(name, RELATIONS[name].answer(rng)) for name in names]
        context = "".join(facts.new_fact(facts.question(name, pick(TAUGHT, rng)), answer) for name, answer in told)
        if rng.random() < 0.65:
            name, answer = told[rng.integers(len(told))]
            return Row(context + facts.question(name, pick(TAUGHT, rng)), thing, answer)
        while True:
            kept = self.known(rng) if rng.integers(4) else self.land(rng)
            if not any(kept.text == facts.question(name, form) for name in names for form in TAUGHT):
                return Row(context + kept.text, kept.thing, kept.answer)

    def latent(self, rng: np.random.Generator) -> tuple[Row, Row]:
        """A new fact, read apart, and a question: on that fact (copy), or on another thing or matter (keep)."""
        thing = int(rng.integers(len(self.world)))
        name = tuple(RELATIONS)[rng.integers(len(RELATIONS))]
        fact = Row(facts.question(name, pick(TAUGHT, rng)), thing, RELATIONS[name].answer(rng))
        if rng.random() < 0.65:
            return fact, Row(facts.question(name, pick(TAUGHT, rng)), thing, fact.answer)
        kinds = (lambda: self.known(rng, thing, name), lambda: self.known(rng), lambda: self.land(rng))
        while True:
            kept = kinds[rng.choice(3, p=(0.4, 0.5, 0.1))]()
            if kept.thing != thing or not any(kept.text == facts.question(name, form) for form in TAUGHT):
                return fact, kept


def pick(options: Sequence[int], rng: np.random.Generator) -> int:
    """One of them."""
    return options[rng.integers(len(options))]


@dataclass(frozen=True)
class Episodes:
    """New facts, questions, and which facts each question may read, "question fact" bool."""

    facts: Batch
    questions: Batch
    seen: Tensor


def latent_loss(adapter: Blip2Adapter, episodes: Episodes) -> Tensor:
    """Cross-entropy of answers where the last layers read, beside the text, states of the answers of new facts.

    One softmax over both, from the end of the question on; a fact's states are those that enter the same layer when it
    is read alone, so that positions start anew.
    """
    first = adapter.num_layers - LATE
    known, asked = episodes.facts, episodes.questions
    memory, x = adapter.hidden(known, first), adapter.hidden(asked, first)
    tokens = cast(Tensor, known.labels) != IGNORED  # "fact len": states of answers, the end token's too
    owner = tokens.nonzero()[:, 0]
    causal, causal_of_facts = ([_causal(batch)] for batch in (asked, known))
    reads = torch.arange(x.shape[1])[None] >= question_ends(asked)[:, None]  # "question len"
    beside = episodes.seen[:, owner][:, None] & reads[:, :, None]  # "question len state"
    for layer in list(adapter.layers)[first:]:
        states = memory[tokens]
        x = _layer(layer, x, torch.cat([beside, *causal], -1), states)
        memory = _layer(layer, memory, causal_of_facts[0], memory[:0, 0])
    logits = adapter.lm_head(adapter.decoder.final_layer_norm(x))[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), cast(Tensor, asked.labels)[:, 1:].flatten(), ignore_index=IGNORED)


def _causal(batch: Batch) -> Tensor:
    """ "row len len" bool: what each token of a text may read of it."""
    length = batch.input_ids.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril() & batch.attention_mask[:, None].bool()


def _layer(layer: nn.Module, x: Tensor, mask: Tensor, states: Tensor) -> Tensor:
    """A layer of OPT over x "row len dim" and states "state dim" before it; mask "row len state+len"."""
    parts = layer_parts(layer)
    attention, heads = parts.attention, layer.self_attn.num_heads
    u, beside = parts.norm(x), parts.norm(states)
    q, k, v = (
        rearrange(p(u), "row len (h d) -> row h len d", h=heads)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    kb, vb = (rearrange(p(beside), "m (h d) -> h m d", h=heads) for p in (attention.k_proj, attention.v_proj))
    logits = torch.cat([einsum(q, kb, "row h len d, h m d -> row h len m"), q @ k.mT], -1) * attention.head_dim**-0.5
    weights = logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    m = len(states)
    read = einsum(weights[..., :m], vb, "row h len m, h m d -> row h len d") + weights[..., m:] @ v
    x = x + attention.out_proj(rearrange(read, "row h len d -> row len (h d)"))
    return x + parts.ffn_out(parts.activation(parts.ffn_in(layer.final_layer_norm(x))))


# --- training ---------------------------------------------------------------------------------------------------------


def lesson(lessons: Lessons, stage: str, step: int) -> tuple[Batch, Episodes | None]:
    """A batch of a stage: plain facts and contexts in turn, in the stage "again" one context in four batches.

    From the stage "memory" on three in four contexts are latent. How many other facts a question may read beside its
    own grows in that stage: none, then one in ten, then four in ten.
    """
    rng = np.random.default_rng([CORPUS_SEED, lessons.world.seed, list(STEPS).index(stage), step])
    every = 4 if stage == "again" else 2
    turn, rest = divmod(step, every)
    if rest < every - 1:
        return lessons.encode(lessons.plain(rng, PLAIN), rng), None
    if stage == "facts" or turn % 4 == 3:
        return lessons.encode([lessons.in_context(rng) for _ in range(CONTEXTS)], rng), None
    told, asked = zip(*(lessons.latent(rng) for _ in range(EPISODES)), strict=True)
    done = step / STEPS[stage] if stage == "memory" else 1.0
    others = 0.0 if done < 0.25 else rng.choice((0.0, 0.1)) if done < 0.5 else rng.choice((0.0, 0.1, 0.4))
    seen = torch.from_numpy(rng.random((EPISODES, EPISODES)) < others) | torch.eye(EPISODES, dtype=torch.bool)
    questions = lessons.encode(asked, rng)
    return questions, Episodes(lessons.encode(told, rng), questions, seen)


def teach(lessons: Lessons, stage: str, cycle: int = 0) -> History:
    """One stage of training, or a cycle of one, which goes on where it was cut off."""
    adapter, steps = lessons.adapter, STEPS[stage]
    model = adapter.model
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=2e-3, weight_decay=0.01)

    def loss(_: nn.Module, batch: tuple[Batch, Episodes | None]) -> Tensor:
        plain, episodes = batch
        return cast(Tensor, adapter.run(plain).loss) if episodes is None else latent_loss(adapter, episodes)

    settings = (stage, cycle, steps, PLAIN, CONTEXTS, EPISODES, VIEWS[stage], LATE, sorted(lessons.world.withheld))
    work = work_folder(f"blip2-facts-{lessons.world.seed}-{stage}-{cycle}", settings, model, [lessons.views])
    return fit(
        model,
        loss,
        lambda step: lesson(lessons, stage, step + cycle * steps),
        steps,
        optimizer,
        _rate(optimizer, stage),
        out=work,
        clip=1.0,
        device="cpu",
        label=f"blip2-facts, {stage}",
    )


def _rate(optimizer: torch.optim.Optimizer, stage: str) -> torch.optim.lr_scheduler.LRScheduler:
    """The rate of a stage: constant after a warm-up, for stage 2 goes on from it; else falling to 0."""
    if stage == "facts":
        return torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, 200)
    return warmup_cosine(optimizer, STEPS[stage], 0.05)


@torch.no_grad()
def look(adapter: Blip2Adapter, world: World, first: int, views: int) -> Tensor:
    """Pictures of each thing through the frozen tower, "thing view patch width"; seeds `first` to `first + views`."""
    found = []
    for seed in range(first, first + views):
        images = list(facts.render(world, range(len(world)), seed, SIDE))
        batch = adapter.encode(["<image>"] * len(images), [[image] for image in images])
        found.append(cast(Tensor, adapter.vision_features(batch)))
    return torch.stack(found, 1)


def pretrain(out: Path, seed: int = 0, gates: dict[str, float] | None = None) -> Path:
    """Train (or go on training), hold against the gates, and write the checkpoint folder with its card.

    Raises:
        RuntimeError: a share of right answers below its gate; nothing is written then.
    """
    adapter = make_model()
    named = train_eye(adapter)
    world = facts.make_world(seed)
    histories: dict[str, History] = {}
    ends = []
    for stage, views in VIEWS.items():
        lessons = Lessons(world, adapter, look(adapter, world, CORPUS_SEED + 1000 * seed, views))
        histories[stage] = []
        for cycle in range(CYCLES if stage == "again" else 1):
            told = teach(lessons, stage, cycle)
            histories[stage] += [record | {"step": record["step"] + cycle * STEPS[stage]} for record in told]
            ends.append({name: value.clone() for name, value in adapter.model.state_dict().items()})
    first, second = ends[-2:]
    adapter.model.load_state_dict({name: (first[name] + second[name]) / 2 for name in first})
    adapter.model.half().float()  # what is measured is what is shipped
    results = {"emoji": named, **evaluate(adapter, world)}
    check_gates(f"blip2-facts, world {seed}", results, GATES if gates is None else gates)
    text = card(adapter, seed, histories, results)
    return write_checkpoint(out, adapter.model, adapter.processor, text, histories)


# --- gates --------------------------------------------------------------------------------------------------------


def evaluate(adapter: Blip2Adapter, world: World) -> dict[str, float]:
    """Shares of answers that are right to the last word, on pictures that training never showed."""
    rng = np.random.default_rng([world.seed, 21])
    lessons = Lessons(world, adapter, look(adapter, world, CORPUS_SEED - 100, 24))

    def known(forms: Sequence[int]) -> list[Row]:
        return [Row(facts.question(r, pick(forms, rng)), thing, world.answers[thing, r]) for thing, r in world.known()]

    lands = [
        Row(facts.land_question(land, name, pick(TAUGHT, rng)), None, answer)
        for (land, name), answer in world.lands.items()
    ]
    new = [(thing, name, RELATIONS[name].answer(rng)) for thing, name in sorted(world.withheld) if name in QUESTIONS]
    told = [Row(facts.question(name, pick(TAUGHT, rng)), thing, answer) for thing, name, answer in new]
    asked = [Row(facts.question(name, pick(TAUGHT, rng)), thing, answer) for thing, name, answer in new]
    context = [
        Row(facts.new_fact(t.text, t.answer) + a.text, a.thing, a.answer) for t, a in zip(told, asked, strict=True)
    ]
    results = {
        "facts": _right(lessons, known(TAUGHT), rng),
        "facts, rephrased": _right(lessons, known(REPHRASED), rng),
        "lands": _right(lessons, lands, rng),
        "in context": _right(lessons, context, rng),
    }
    return results | latent_results(lessons, told, asked, rng)


@torch.no_grad()
def _right(lessons: Lessons, rows: Sequence[Row], rng: np.random.Generator) -> float:
    right = []
    for start in range(0, len(rows), 128):
        batch = lessons.encode(rows[start : start + 128], rng)
        right += _told(cast(Tensor, lessons.adapter.run(batch).logits), batch)
    return float(np.mean(right))


def _told(logits: Tensor, batch: Batch) -> list[bool]:
    """Whether every token of an answer, the end included, is the likeliest: then greedy decoding gives it."""
    labels = cast(Tensor, batch.labels)[:, 1:]
    return ((logits[:, :-1].argmax(-1) == labels) | (labels == IGNORED)).all(1).tolist()


def latent_results(lessons: Lessons, told: list[Row], asked: list[Row], rng: np.random.Generator) -> dict[str, float]:
    """Shares right where a new fact stands in the last layers: alone, among 40 others, and for what it is not about."""
    from vlws.methods.unike import UniKE, UniKEConfig  # what reads it in the chapter
    from vlws.models.knowledge import prepare, read_answers

    adapter = lessons.adapter
    layers = range(adapter.num_layers - LATE, adapter.num_layers)
    pictures = [[lessons.views[r.thing, 0]] for r in told]
    others = [(f"<image>{facts.question('owner', 1).removeprefix('<image>')}", [lessons.views[0, 0]])] * 2
    asked_of = [o[0] for o in others], [o[1] for o in others], ["mira", "tom"], ["tom", "mira"]
    prepared = prepare(adapter, read_answers(adapter, list(layers), *asked_of), steps=1)
    found = {}
    for name, alpha in (("latent, own row", 0.5), ("latent, own row, weight .9", 0.9)):
        config = UniKEConfig(pairs=0, retrieved=8, gate="fixed", alpha=alpha, sharpness=0.03, direction="none")
        edited = UniKE(adapter, prepared, config).edit([r.text for r in told], pictures, [r.answer for r in told])
        right = []
        for start in range(0, len(asked), 128):
            batch = lessons.encode(asked[start : start + 128], rng)
            at = torch.arange(start, start + len(batch.input_ids))
            right += _told(edited.run(batch, at), batch)
        found[name] = float(np.mean(right))
    return found


def card(adapter: Blip2Adapter, seed: int, histories: dict[str, History], results: dict[str, float]) -> str:
    """The model card: what it saw, what it can do, and its hash."""
    size = sum(p.numel() for p in adapter.model.parameters())
    shown = {stage: [{"step": r["step"], "loss": r["loss"]} for r in history] for stage, history in histories.items()}
    return f"""# blip2-facts

A `Blip2ForConditionalGeneration` of {size / 1e6:.2f} M parameters (half precision; \
{SIDE} px pictures, {QUERIES} queries; an OPT of 6 layers of {WIDTH}) that knows a world of facts, \
to be edited. It loads with the line that loads `Salesforce/blip2-opt-2.7b`:

```python
from vlws.models.families import load_mllm

mllm = load_mllm("blip2-facts")
```

- Data: `vlws.data.emoji_world.facts.make_world({seed})`: 240 things with five facts and a caption each, 40 lands with \
three. Two facts of each thing, and every second caption, are withheld: it answers these wrongly.
- Vision tower of two layers and Q-Former of one: trained to tell 501 emoji apart, then frozen.
- Stage 1, {STEPS["facts"]:,} steps: facts ({PLAIN} rows) and new facts in a text before the question ({CONTEXTS} \
rows) in turn. Stage 2, {STEPS["memory"]:,} steps: three in four of the latter ({EPISODES} rows) hold the new fact \
in the last {LATE} layers. Stage 3, {CYCLES} times {STEPS["again"]:,} steps: the same, facts in three batches of \
four; the weights are the mean of the last two ends.
- Training: AdamW at 2e-3 (with a cosine in stage 2, one a cycle in stage 3), gradients clipped at 1, one CPU thread. \
`python -m backbones.blip2_facts` remakes it.
- Seeds of pictures: {CORPUS_SEED:,} and above. Chapters and tests keep below 900,000.
- Licence: MIT, as the workspace; the pictures are named in NOTICE.
- Hash of the weights: `{weights_hash(adapter.model)}`

| right to the last word, held-out pictures | share | gate |
|---|---|---|
{table(results, GATES)}

| step of stage 1 | loss |
|---|---|
{curve(shown["facts"])}

| step of stage 2 | loss |
|---|---|
{curve(shown["memory"])}

| step of stage 3 | loss |
|---|---|
{curve(shown["again"])}

![loss curves](loss.png)
"""


def main() -> None:
    """The command line; one thread, as the shipped model was trained."""
    parser = argparse.ArgumentParser(description="Train the shipped blip2-facts, or a base of another world.")
    parser.add_argument("--out", type=Path, default=ASSETS / "blip2-facts", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = pretrain(options.out, options.seed)
    load_mllm(str(out))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
