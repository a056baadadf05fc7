"""Train the shipped picture tokenizer: `python -m backbones.vq_emoji [--out FOLDER]`.

vq-emoji: a `PictureTokenizer` of 32 px pictures, 64 tokens of 512 codes. Half of what it learns from are drawings of
`vlws.data.emoji_world.drawings` (none that is held out), half are free scenes. It learns without a codebook, then with
one that begins at the centres of k-means: from random codes it keeps the grounds and loses the things.
"""

from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from backbones.common import History, curve, draw_losses, run_recipe, table, work_folder
from vlws.data.emoji_world import drawings, renderer, scenes
from vlws.data.emoji_world.scenes import CORPUS_SEED
from vlws.files import replace_folder
from vlws.models.quantize import Codebook, usage
from vlws.models.vq import PictureTokenizer, VQConfig, from_pixels, load_vq
from vlws.train import fit, warmup_cosine

WARM, STEPS, BATCH = 1000, 4000, 32  # steps without a codebook, then with it
GATE = 0.80  # SSIM of held-out drawings
CONFIG = VQConfig()


def pictures(step: int, n: int = BATCH) -> Tensor:
    """Step -> "n 3 32 32" in [-1, 1]: drawings and free scenes, half each."""
    rng = np.random.default_rng([CORPUS_SEED, 32, step])
    chosen = rng.choice(drawings.splits().train, n // 2)
    drawn = drawings.render([drawings.everything()[i] for i in chosen])
    free = renderer.render(scenes.sample(n - n // 2, CORPUS_SEED + 50_000 + step), drawings.SIDE)
    return from_pixels(np.concatenate([drawn, free]))


class Learner(nn.Module):
    """The tokenizer with a codebook that learns; `vq` alone is shipped."""

    def __init__(self, vq: PictureTokenizer) -> None:
        super().__init__()
        self.vq, self.codebook = vq, Codebook(vq.config.codes, vq.config.dim, unit=True)

    def loss(self, pixels: Tensor, quantised: bool) -> Tensor:
        """Mean absolute and four times the mean squared error of pixels, and a quarter of the distance to the codes.

        Things are small: the squared error sees them.
        """
        z, tied = self.vq.before_codes(pixels), torch.zeros(())
        if quantised:
            z, _, tied = self.codebook(z)
        drawn = self.vq.from_codes(z)
        return F.l1_loss(drawn, pixels) + 4 * F.mse_loss(drawn, pixels) + 0.25 * tied


def learn(learner: Learner, steps: int, quantised: bool) -> History:
    """One part of the training, which goes on where it was cut off."""
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=0.0)
    return fit(
        learner,
        lambda model, batch: model.loss(batch, quantised),
        lambda step: pictures(step + quantised * WARM),
        steps,
        optimizer,
        warmup_cosine(optimizer, steps, 0.05),
        out=work_folder(f"vq-emoji-{quantised}", (steps, BATCH, CONFIG), learner, [pictures(0)]),
        clip=1.0,
        device="cpu",
        label="vq-emoji",
    )


def pretrain(out: Path, steps: int = STEPS, gate: float = GATE) -> Path:
    """Train (or go on training), hold against the gate, and write the checkpoint folder with its card."""
    torch.manual_seed(0)
    learner = Learner(PictureTokenizer(CONFIG))
    history = learn(learner, WARM, quantised=False)
    with torch.no_grad():
        learner.codebook.start(torch.cat([learner.vq.before_codes(pictures(k, 64)).flatten(0, 2) for k in range(8)]))
    told = learn(learner, steps, quantised=True)
    history += [record | {"step": record["step"] + WARM} for record in told]
    vq = learner.vq
    with torch.no_grad():
        vq.codes.copy_(learner.codebook.codes)
    vq.half().float()  # what is measured is what is shipped
    results = evaluate(vq)
    print(results)
    if results["SSIM, held-out drawings"] < gate:
        raise RuntimeError(f"vq-emoji: SSIM {results['SSIM, held-out drawings']:.3f} is below {gate}.")
    with replace_folder(out) as part:
        vq.half().save_pretrained(part)
        (part / "model.safetensors").chmod(0o644)
        draw_losses({"vq-emoji": history}, part / "loss.png")
        (part / "README.md").write_text(card(vq, history, results), encoding="utf-8")
    return out


@torch.no_grad()
def evaluate(vq: PictureTokenizer) -> dict[str, float]:
    """SSIM and squared error of reconstructions (pixels in 0..1), and how the codebook is used."""
    found = {}
    held = drawings.render([drawings.everything()[i] for i in drawings.splits().test])
    free = renderer.render(scenes.sample(512, CORPUS_SEED - 1), drawings.SIDE)
    for name, shown in (("held-out drawings", held), ("free scenes", free)):
        pixels = from_pixels(shown)
        ids = vq.encode(pixels)
        drawn, true = (vq.decode(ids) + 1) / 2, (pixels + 1) / 2
        found[f"SSIM, {name}"] = float(cast(Tensor, ssim(drawn, true, data_range=1.0)))
        found[f"squared error, {name}"] = float(F.mse_loss(drawn, true))
        found[f"perplexity of codes, {name}"] = usage(ids, vq.config.codes).perplexity
    return found


def card(vq: PictureTokenizer, history, results) -> str:
    """README.md of the checkpoint."""
    size = sum(p.numel() for p in vq.parameters()) / 1e6
    return f"""# vq-emoji

A `PictureTokenizer` of {size:.2f} M parameters, half precision: 32 px pictures as 8 x 8 tokens of 512 codes, each of
one patch. What it makes of a picture is the ceiling of whatever draws by its tokens.

```python
from vlws.models.vq import load_vq

vq = load_vq("vq-emoji")
```

- Data: drawings of `vlws.data.emoji_world.drawings` (none that is held out) and free scenes, half each,
  {(WARM + STEPS) * BATCH:,} pictures. Free scenes are of seeds 1,000,000 and above.
- Loss: mean absolute error, four times the mean squared error, and a quarter of the distance to the codes. {WARM} steps
  without a codebook, which then begins at the centres of k-means, learns by moving averages, and revives dead codes.
  No discriminator and no perceptual loss.
- Training: {WARM} + {STEPS:,} steps of {BATCH}, AdamW, cosine from 0.001, one CPU thread:
  `python -m backbones.vq_emoji`.
- Licence: MIT, as the workspace; pictures are named in NOTICE.

| held out | |
|---|---|
{table(results)}

The gate is an SSIM of {GATE} on held-out drawings.

| step | loss |
|---|---|
{curve(history)}

![loss curve](loss.png)
"""


if __name__ == "__main__":
    run_recipe("vq-emoji", pretrain, partial(load_vq, device="cpu"), STEPS)
