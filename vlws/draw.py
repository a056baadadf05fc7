"""Pictures from text by a model that reads and draws: what `vlws draw` does.

draw(["draw a blue cat at the top left on teal stripes ."], "my-model", out="drawings")["drawn"][0]["file"]
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlws.data.images import open_image, read_images
from vlws.errors import InputError
from vlws.files import write_atomically
from vlws.methods.morph_tokens import PICTURE, MorphTokens
from vlws.models.morph_encoder import Encoded
from vlws.models.vq import from_pixels, to_pixels
from vlws_kernels import nearest_code


def draw(
    texts: Sequence[str],
    backbone: str,
    *,
    images: Sequence[str | Path] = (),
    resize: bool = False,
    ask: bool = False,
    out: str | Path = "drawings",
    sample: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw each text as a PNG, or answer it in words (`ask`); all texts are one batch.

    Args:
        texts: requests or questions, in which every `<image>` stands for a picture of `images`, in order.
        backbone: a folder that `MorphTokens.save_pretrained` wrote.
        resize: take pictures of any size, by their central square; else only those of the model's size.
        out: folder of 0.png, 1.png and so on; files of these names are replaced.
        sample: draw tokens at temperature 1, from `seed`, instead of taking the likeliest.

    Returns:
        backbone, and `drawn`: of each text its file, the codes of its pictures (M), the codes nearest to what the model
        made of it (M'), the picture tokens; or `answers`: text and answer.

    Raises:
        InputError: no text or an empty one, a text without a word that the model knows, one that is too long for it,
            pictures more or fewer than `<image>` stands for, one that cannot be read or is of another size, no such
            checkpoint, `out` that is a file. Nothing is written then.
    """
    if not texts or not all(text.strip() for text in texts):
        raise InputError(
            "A text is empty; say what to draw, such as 'draw a blue cat at the top left on teal stripes .'"
        )
    folder = Path(out)
    if not ask and folder.exists() and not folder.is_dir():
        raise InputError(f"{out} is a file; `out` is a folder.")
    model = MorphTokens.from_pretrained(backbone, device)
    _check_words(model, texts)
    read = _read(model, images, resize)
    ids, z = (None, None) if read is None else (read.ids.cpu(), read.z)
    prompts = model.prompts(texts, ids, z if model.config.relax == "continuous" else None, draw=not ask)
    _check_length(model, prompts.input_ids.shape[1] + (12 if ask else model.queries))
    if ask:
        said = model.answer(prompts)
        return {
            "backbone": backbone,
            "answers": [{"text": t, "answer": a} for t, a in zip(texts, said, strict=True)],
        }
    torch.manual_seed(seed)
    with torch.no_grad():
        tokens = model.think(prompts).tokens
    v = model.draw(tokens, sample=sample)
    nearest = nearest_code(tokens.flatten(0, 1).float(), model.code_rows().detach().float())[1].view(tokens.shape[:2])
    given = iter([] if ids is None else ids.tolist())
    drawn = []
    folder.mkdir(parents=True, exist_ok=True)
    for k, (text, picture) in enumerate(zip(texts, to_pixels(model.vq.decode(v)), strict=True)):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        write_atomically(folder / f"{k}.png", data.getvalue())
        shown = [next(given) for _ in range(text.count(PICTURE))]
        row = {"text": text, "file": str(folder / f"{k}.png"), "read": shown}
        drawn.append(row | {"thought": nearest[k].tolist(), "tokens": v[k].tolist()})
    return {"backbone": backbone, "drawn": drawn}


def _check_words(model: MorphTokens, texts: Sequence[str]) -> None:
    """Every text has a word that is one piece of the vocabulary: others fall into bytes, which training hardly met."""
    for text in texts:
        words = [word for word in text.replace(PICTURE, " ").split() if any(c.isalpha() for c in word)]
        if not any(len(model.tokenizer.tokenize(f" {word}")) == 1 for word in words):
            every = sorted(piece.lstrip("Ġ▁") for piece in model.tokenizer.get_vocab() if piece[:1] in "Ġ▁")
            known = [word for word in every if word.isalpha() and len(word) > 3][:8]
            raise InputError(f"{text!r} has no word that the model knows; some that it does: {', '.join(known)}.")


def _read(model: MorphTokens, images: Sequence[str | Path], resize: bool) -> Encoded | None:
    """M of the pictures."""
    if not images:
        return None
    side = model.encoder.config.side
    for image in images:
        w, h = open_image(Path(image)).size
        if (w, h) != (side, side) and not resize:
            raise InputError(
                f"{image} has {w} x {h} pixels, and the model reads {side} x {side}; --resize makes it fit."
            )
    return model.read(from_pixels(read_images([Path(image) for image in images], side)))


def _check_length(model: MorphTokens, length: int) -> None:
    most = getattr(model.llm.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise InputError(f"A text takes {length} tokens with what follows it; the language model has {most} positions.")
