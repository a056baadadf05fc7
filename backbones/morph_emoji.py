"""Train a model that reads and draws: `python -m backbones.morph_emoji [--out FOLDER]`.

Two folders are written: `morph-emoji-stage0` beside it, encoder, codebook and decoder with a language model that is
untrained, where chapter 03's arms start; and `morph-emoji`, the whole model.

morph-emoji: `MorphTokens` over a Llama of two layers, a GPT-2 decoder and vq-emoji, in the stages of the paper:

0. encoder and codebook learn to tell what a drawing means (thing, colour, place), the decoder to draw from the codes;
1. the LLM learns captions and codes from each other;
2. pictures from captions, and from themselves;
3. instructions: questions, edits, the thing of a picture elsewhere.
"""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backbones.common import History, check_gates, curve, draw_losses, learn_tokenizer, run_recipe, table, work_folder
from vlws.data.emoji_world import album as albums
from vlws.data.emoji_world import drawings
from vlws.data.emoji_world.album import Album
from vlws.data.emoji_world.drawing_tasks import DRAW, TELL, tasks
from vlws.files import replace_folder
from vlws.methods.morph_tokens import MorphConfig, MorphTokens
from vlws.models.morph_encoder import EncoderConfig, MorphEncoder, Readout
from vlws.models.quantize import usage
from vlws.models.vq import load_vq
from vlws.train import fit, warmup_cosine

ENCODER = EncoderConfig(layers=3, slot_layers=(1,))
ENCODER_STEPS, DECODER_STEPS = 2500, 1000
STEPS = {1: 100, 2: 1500, 3: 4000}
BATCH = 64
GATES = {"stage 0, thing": 0.95, "stage 0, colour": 0.95, "stage 0, place": 0.95}
GATES |= {"answers": 0.90, "captions": 0.80, "tokens, draw": 0.80, "tokens of the thing, draw": 0.80}
GATES |= {f"tokens of the thing, {kind}": 0.80 for kind in ("rebuild", "edit", "subject")}


# --- the untrained parts ----------------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that holds each word of the tasks whole, and any other text in pieces."""
    rng = np.random.default_rng(0)
    found = tasks((*TELL, *DRAW), np.arange(len(drawings.everything())), 4000, rng)
    lines = [f" {t.text.removeprefix('<image> ')} {t.answer}" for t in found]
    return learn_tokenizer(lines, vocab_size=420, max_length=128)


def make_llm(tokenizer: PreTrainedTokenizerFast, codes: int, seed: int) -> LlamaForCausalLM:
    """A Llama of two layers of 96 with random weights, room for the codes in its vocabulary."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) + codes + 2,
            hidden_size=ENCODER.code_dim,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            initializer_range=ENCODER.code_dim**-0.5,  # of the size of the codes' elements
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_decoder(vq_codes: int, tokens: int) -> GPT2LMHeadModel:
    """A GPT-2 of two layers of 64 over the tokenizer's tokens, with random weights."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vq_codes,
            n_positions=tokens + ENCODER.queries,
            n_embd=64,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


# --- stage 0 ----------------------------------------------------------------------------------------------------------


def train_encoder(
    dictionary: Tensor, config: EncoderConfig = ENCODER
) -> tuple[MorphEncoder, dict[str, float], History]:
    """An encoder whose codes tell what a drawing means, held-out accuracies of a readout, and its history."""
    torch.manual_seed(0)
    encoder = MorphEncoder(config, dictionary)
    readout = Readout(config.queries * config.code_dim, {name: len(drawings.WORDS[name]) for name in drawings.MEANING})
    both = nn.ModuleDict({"encoder": encoder, "readout": readout})
    pixels, labels = albums.all_drawings(), albums.labels()
    optimizer = torch.optim.AdamW(both.parameters(), lr=2e-3, weight_decay=0.01)

    def draw(step: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([0, step]).choice(drawings.splits().train, BATCH))

    def loss(_: nn.Module, rows: Tensor) -> Tensor:
        found = encoder(pixels[rows])
        return readout.loss(found.codes, {name: labels[name][rows] for name in drawings.MEANING}) + 0.25 * found.loss

    history = fit(
        both,
        loss,
        draw,
        ENCODER_STEPS,
        optimizer,
        warmup_cosine(optimizer, ENCODER_STEPS, 0.05),
        out=work_folder("morph-encoder", (ENCODER_STEPS, BATCH, config), both, [pixels[:8]]),
        clip=1.0,
        device="cpu",
        label="encoder",
    )
    held = torch.from_numpy(drawings.splits().test)
    with torch.no_grad():
        scores = readout(encoder(pixels[held]).codes)
    right = {f"stage 0, {k}": float((v.argmax(1) == labels[k][held]).float().mean()) for k, v in scores.items()}
    return encoder, right, history


def make_album(model: MorphTokens) -> Album:
    """Every drawing through the frozen towers."""
    pixels = albums.all_drawings()
    read = model.read(pixels)
    return Album(read.ids, read.z, model.vq.encode(pixels))


def train_decoder(model: MorphTokens, album: Album) -> History:
    """Stage 0's decoder: L_img after the picture's own codes."""
    parts = nn.ModuleList([model.decoder, model.prefix])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=2e-3, weight_decay=0.01)

    def draw(step: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([1, step]).choice(drawings.splits().train, BATCH))

    def loss(_: nn.Module, rows: Tensor) -> Tensor:
        return model.image_loss(model.code_rows()[album.ids[rows]].detach(), album.vq_ids[rows])

    return fit(
        parts,
        loss,
        draw,
        DECODER_STEPS,
        optimizer,
        warmup_cosine(optimizer, DECODER_STEPS, 0.05),
        out=work_folder("morph-decoder", (DECODER_STEPS, BATCH, model.config.forget), parts, [album.ids, album.vq_ids]),
        clip=1.0,
        device="cpu",
        label="decoder",
    )


# --- stages 1 to 3 ----------------------------------------------------------------------------------------------------


def teach(model: MorphTokens, album: Album, stage: int) -> History:
    """A stage of the LLM's training: the first with M' = M, the others without."""
    model.config = MorphConfig(image=0.0, equal=1.0) if stage == 1 else MorphConfig()
    optimizer = torch.optim.AdamW(model.learned(), lr=2e-3, weight_decay=0.0, betas=(0.9, 0.95))
    return fit(
        model,
        lambda m, lesson: m.loss(*lesson),
        partial(albums.lesson, model, album, stage, seed=1_000_000, n=24),
        STEPS[stage],
        optimizer,
        warmup_cosine(optimizer, STEPS[stage], 0.05),
        out=work_folder(f"morph-{stage}", (STEPS[stage],), model, [album.ids, album.vq_ids]),
        clip=1.0,
        device="cpu",
        label=f"morph-emoji, stage {stage}",
    )


def pretrain(out: Path) -> Path:
    """Train (or go on training), hold against the gates, and write the checkpoint folder with its card."""
    vq = load_vq("vq-emoji", "cpu")
    encoder, results, told = train_encoder(vq.codes.clone())
    tokenizer = make_tokenizer()
    llm = make_llm(tokenizer, ENCODER.codes, seed=1_000_000)
    encoder.half().float()  # what is measured is what is shipped
    decoder = make_decoder(vq.config.codes, vq.config.tokens)
    model = MorphTokens(encoder, llm, tokenizer, decoder, vq, MorphConfig())
    model.start_scores()
    album = make_album(model)
    histories = {"encoder": told, "decoder": train_decoder(model, album)}
    ship(model, out.with_name(f"{out.name}-stage0"), histories, results, "stage 0 alone")
    histories |= {f"stage {stage}": teach(model, album, stage) for stage in STEPS}
    model.half().float().eval()
    results |= evaluate(model, album)
    check_gates("morph-emoji", results, GATES)
    return ship(model, out, histories, results, "all stages")


def ship(model: MorphTokens, out: Path, histories: dict[str, History], results: dict[str, float], what: str) -> Path:
    """Write the model as a whole, in half precision, with its card; it stays as it is."""
    with replace_folder(out) as part:
        copy.deepcopy(model).half().save_pretrained(part)
        for file in part.rglob("*.safetensors"):
            file.chmod(0o644)
        draw_losses(histories, part / "loss.png")
        (part / "README.md").write_text(card(model, out.name, what, histories, results), encoding="utf-8")
    return out


@torch.no_grad()
def evaluate(model: MorphTokens, album: Album) -> dict[str, float]:
    """Shares that are right on held-out drawings: answers, captions, picture tokens; and squared errors of pixels."""
    rng = np.random.default_rng(21)
    found = {}
    for name, kind in (("answers", "question"), ("captions", "caption")):
        asked = tasks((kind,), drawings.splits().test, 384, rng)
        said = model.answer(albums.told(model, album, asked, answers=False))
        found[name] = float(np.mean([s == t.answer for s, t in zip(said, asked, strict=True)]))
    for kind in DRAW:
        asked = tasks((kind,), drawings.splits().test, 192, rng)
        ids = model.draw(model.think(albums.asked(model, album, asked)).tokens)
        wanted = album.vq_ids[[t.target for t in asked]]
        right, cells = ids == wanted, torch.stack([cell_tokens(t.target) for t in asked])
        found[f"tokens, {kind}"] = float(right.float().mean())
        found[f"tokens of the thing, {kind}"] = float(right[cells].float().mean())  # three in four are ground
        found[f"squared error, {kind}"] = float(F.mse_loss(model.vq.decode(ids) / 2, model.vq.decode(wanted) / 2))
    used = usage(album.ids, len(model.encoder.codebook))
    return found | {"perplexity of codes": used.perplexity, "dead codes": float(len(used.dead))}


def cell_tokens(drawing: int) -> Tensor:
    """Which of a drawing's 64 picture tokens lie in the cell of its thing, "64" bool."""
    cells = torch.zeros(2, 2, dtype=torch.bool)
    cells.view(-1)[drawings.everything()[drawing].place] = True
    return cells.repeat_interleave(4, 0).repeat_interleave(4, 1).flatten()


def card(model: MorphTokens, name: str, what: str, histories: dict[str, History], results: dict[str, float]) -> str:
    """README.md of the checkpoint."""
    size = sum(p.numel() for p in model.parameters()) / 1e6
    later = (
        f"""Stages 1, 2, 3: {STEPS[1]:,}, {STEPS[2]:,}, {STEPS[3]:,} steps of 24 answers and 24 pictures, AdamW,
  cosine from 0.002, soft tokens at temperature 2."""
        if "stage 3" in histories
        else "The language model has random weights: what it says and draws is nonsense."
    )
    curves = "\n\n".join(f"**{k}**\n\n| step | loss |\n|---|---|\n{curve(told)}" for k, told in histories.items())
    return f"""# {name}

A `MorphTokens` of {size:.2f} M parameters (half precision), {what}: an encoder that turns 32 px pictures into
{model.queries} of {len(model.encoder.codebook)} codes, a Llama of 2 layers of 96, a GPT-2 of 2 layers of 64 over the
tokens of `vq-emoji`.

```python
from vlws.methods.morph_tokens import MorphTokens

model = MorphTokens.from_pretrained("{name}")
pictures = model.paint(model.prompts(["draw a blue cat at the top left on teal stripes ."], draw=True))
```

- Data: drawings of `vlws.data.emoji_world.drawings`, none that is held out, and the six tasks of
  `vlws.data.emoji_world.drawing_tasks`; seed 1,000,000.
- Stage 0: the encoder learns thing, colour and place ({ENCODER_STEPS:,} steps of {BATCH}), then the decoder draws from
  its codes ({DECODER_STEPS:,}), AdamW, cosine from 0.002, one CPU thread: `python -m backbones.morph_emoji`. {later}
- Licence: MIT, as the workspace; pictures are named in NOTICE.

| held out | | gate |
|---|---|---|
{table(results, GATES)}

{curves}

![loss curve](loss.png)
"""


if __name__ == "__main__":
    run_recipe("morph-emoji", pretrain, partial(MorphTokens.from_pretrained, device="cpu"))
