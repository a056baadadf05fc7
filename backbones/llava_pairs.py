"""Train the second backbone of chapter 06: `python -m backbones.llava_pairs [--out FOLDER]`.

llava-pairs: a LlavaForConditionalGeneration, whose visual prompt generator is a projection of the patches (Linear-VPG)
where that of blip2-emoji is a Q-Former. Its language model is that of blip2-emoji, frozen; its vision tower, a CLIP's,
is trained alone to tell what each patch shows; then the projector alone is trained, through the frozen rest, on what
is said of the large thing of each picture and never of the small ones. So it has every patch, and speaks of some.
Seeds are those of blip2-emoji, which no chapter uses.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from backbones import blip2_emoji as pairs_world
from backbones.blip2_emoji import ALIGN_BATCH, GATE, GATE_SEED, GATED, VISION_BATCH, VISION_STEPS, Words
from backbones.common import History, check_gates, run_recipe, table, work_folder, write_checkpoint
from vlws.data.emoji_world import counterfactual as cf
from vlws.data.emoji_world.scenes import CORPUS_SEED
from vlws.models.adapter import Adapter
from vlws.models.families import adapt, load_mllm
from vlws.models.hub import ASSETS, weights_hash
from vlws.train import epochs, fit

PATCH = 8
PATCHES = (cf.SIDE // PATCH) ** 2
ALIGN_STEPS = 300


def make_model() -> Adapter:
    """The language model and the tokenizer of blip2-emoji, a CLIP's tower and a projector from random weights."""
    given = load_mllm("blip2-emoji", "cpu").model.language_model
    tokenizer = AutoProcessor.from_pretrained(ASSETS / "blip2-emoji").tokenizer
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=cf.SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=given.config.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": cf.SIDE}, crop_size=cf.SIDE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,  # the class token, which "default" then drops
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(given.model.state_dict())
    model.lm_head.load_state_dict(given.lm_head.state_dict())
    return adapt(model, processor)


def train_projector(adapter: Adapter, work: Path, steps: int) -> History:
    """Train the projector on pairs in which the large thing changes; all else is frozen."""
    model = adapter.model.requires_grad_(False).eval()
    words = Words(adapter.processor.tokenizer, PATCHES)
    pairs, features = pairs_world.large_edits(model.model.vision_tower, adapter.processor)
    features = features[:, :, 1:]  # without the class token
    projector = model.model.multi_modal_projector.requires_grad_(True)
    order = epochs(len(pairs), ALIGN_BATCH, CORPUS_SEED)

    def loss(projector: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return pairs_world.spoken_loss(model, model.config.image_token_id, projector(batch["features"]), batch)

    optimizer, scheduler = pairs_world.one_cycle(projector.parameters(), steps)
    return fit(
        projector,
        loss,
        lambda step: pairs_world.about_large(words, pairs, features, order(step)),
        steps,
        optimizer,
        scheduler,
        out=work,
        clip=1.0,
        device="cpu",
        label="projector",
    )


def pretrain_llava(out: Path = ASSETS / "llava-pairs", gate: float = GATE) -> Path:
    """Train (or go on training) tower and projector, hold against the gate, and write the checkpoint with its card.

    Raises:
        RuntimeError: an exact match about the large thing below `gate`; nothing is written then.
    """
    adapter = make_model()
    first = pairs_world.vision_batch(adapter.processor, 0)["pixel_values"]
    work = work_folder("llava-pairs", (VISION_STEPS, ALIGN_STEPS), adapter.model, [first])
    tower = adapter.model.model.vision_tower
    histories = {
        "vision tower": pairs_world.train_vision(tower, adapter.processor, work / "vision", VISION_STEPS),
        "projector": train_projector(adapter, work / "align", ALIGN_STEPS),
    }
    return ship(adapter, histories, out, gate)


def ship(adapter: Adapter, histories: dict[str, History], out: Path, gate: float) -> Path:
    """Hold a trained model against the gate, then write its folder."""
    adapter.model.half().float().eval()  # what is measured is what is shipped
    results = pairs_world.evaluate(adapter)
    check_gates("llava-pairs", results, dict.fromkeys(GATED, gate))
    return write_checkpoint(out, adapter.model, adapter.processor, card(adapter, histories, results), histories)


def card(adapter: Adapter, histories: dict[str, History], results: dict[str, float]) -> str:
    """The model card: what it saw, what it can do and what not, and its hash."""
    size = sum(p.numel() for p in adapter.model.parameters()) / 1e6
    some = {name: [*h[:: max(1, len(h) // 6)], h[-1]] for name, h in histories.items()}
    curves = "\n".join(f"| {name} | {' · '.join(format(r['loss'], '.3f') for r in h)} |" for name, h in some.items())
    return f"""# llava-pairs

A `LlavaForConditionalGeneration` of {size:.2f} M parameters (half precision; {cf.SIDE} px pictures of {PATCHES} \
tokens; a Llama of 6 layers of 96), the second backbone of chapter 06. It loads with the line that loads \
`llava-hf/llava-1.5-7b-hf`:

```python
from vlws.models.families import load_mllm

mllm = load_mllm("llava-pairs")
```

**It tells of the large thing in a picture and of nothing else, by design**, though every patch is a token: its \
projector was only ever asked about the large thing.

- Data: pictures of `vlws.data.emoji_world.counterfactual`, as for blip2-emoji.
- Language model: that of blip2-emoji, frozen, with its substitutes for scale (see its card).
- Vision tower: a `CLIPVisionModel`, trained alone on kind, colour and size of what each patch shows \
({VISION_STEPS:,} steps of {VISION_BATCH}).
- Projector: trained alone through the frozen rest on captions, colours and differences of the large thing \
({ALIGN_STEPS:,} steps of {ALIGN_BATCH}).
- AdamW, OneCycle to {pairs_world.LEARNING_RATE}, gradients clipped at 1, one CPU thread. \
`python -m backbones.llava_pairs` remakes it. Seeds: {CORPUS_SEED:,} and above; the gate uses {GATE_SEED:,}.
- Licence: MIT, as the workspace; the pictures it learned from are named in NOTICE.
- Hash of the weights: `{weights_hash(adapter.model)}`

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
    run_recipe("llava-pairs", pretrain_llava, load_mllm)
