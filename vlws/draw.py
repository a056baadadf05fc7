"""Pictures from text by a model that reads and draws: what `vlws draw` does.

draw(["draw a blue cat at the top left on teal stripes ."], out="drawings")["drawn"][0]["file"]
"""

import io
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlws.data.images import open_image, read_images
from vlws.errors import InputError
from vlws.files import write_atomically
from vlws.methods.morph_tokens import PICTURE, MorphTokens, Prompts
from vlws.models.morph_encoder import Encoded
from vlws.models.vq import from_pixels, to_pixels
from vlws_kernels import nearest_code

ANSWER = 12  # tokens of an answer at most
EXACT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX")  # modes that are RGB without loss where opaque


def draw(
    texts: Sequence[str],
    backbone: str = "morph-emoji",
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
        backbone: a shipped name, or a folder that `MorphTokens.save_pretrained` wrote.
        resize: take pictures of any size, by their central square; else only those of the model's size.
        out: folder of 0.png, 1.png and so on; files of these names are replaced.
        sample: draw tokens at temperature 1, from `seed`, instead of taking the likeliest.

    Returns:
        backbone, and `drawn`: of each text its file, the codes of its pictures (M), the codes nearest to what the model
        made of it (M'), the picture tokens; or `answers`: text and answer.

    Raises:
        InputError: no text or an empty one, a text without a word that the model knows, with a token that is the
            model's own, or too long for it; pictures more or fewer than `<image>` stands for, one that cannot be read,
            that is of another size or that 8 bits of red, green and blue do not hold; no such checkpoint; `out` that is
            a file or below one. Nothing is written then.
    """
    if not texts or not all(text.strip() for text in texts):
        raise InputError(
            "A text is empty; say what to draw, such as 'draw a blue cat at the top left on teal stripes .'"
        )
    folder = Path(out)
    if not ask:
        _check_out(folder, len(texts))
    model = MorphTokens.from_pretrained(backbone, device)
    _check_words(model, texts)
    read = _read(model, images, resize)
    ids, z = (None, None) if read is None else (read.ids.cpu(), read.z)
    prompts = model.prompts(texts, ids, z if model.config.relax == "continuous" else None, draw=not ask)
    check_length(model, texts, prompts, ANSWER if ask else model.queries)
    if ask:
        said = model.answer(prompts, ANSWER)
        return {
            "backbone": backbone,
            "answers": [{"text": t, "answer": a} for t, a in zip(texts, said, strict=True)],
        }
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
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


def _check_out(folder: Path, pictures: int) -> None:
    above = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if above.exists() and not above.is_dir():
        raise InputError(f"{above} is a file; `out` is a folder.")
    if taken := [file for k in range(pictures) if (file := folder / f"{k}.png").is_dir()]:
        raise InputError(f"{taken[0]} is a folder, and a picture is to be written there; give another `out`.")


def _check_words(model: MorphTokens, texts: Sequence[str]) -> None:
    """Every text has a word that is one piece of the vocabulary: others fall into bytes, which training hardly met."""
    own = [str(token) for token in model.tokenizer.added_tokens_decoder.values() if token.special]
    for text in texts:
        if found := [token for token in own if token in text and token != PICTURE]:
            raise InputError(f"{text!r} holds {found[0]}, a token that the model alone writes; accepted is {PICTURE}.")
        if not any(_is_known(model.tokenizer, word) for word in text.replace(PICTURE, " ").split()):
            known = ", ".join(_known(model.tokenizer))
            raise InputError(f"{text!r} has no word that the model knows; some that it does: {known}.")


def _is_known(tokenizer: Any, word: str) -> bool:
    """Whether a word is one piece of the vocabulary; what stands around it (`cat.`) does not count."""
    bare = word.strip(string.punctuation)
    pieces = [piece for piece in tokenizer.tokenize(f" {bare}") if piece.strip("Ġ▁")]
    return any(c.isalpha() for c in bare) and len(pieces) == 1 and pieces != [tokenizer.unk_token]


def _known(tokenizer: Any, most: int = 8) -> list[str]:
    """The first whole words of a vocabulary: no piece that another one goes on from (`butterfl`)."""
    ids = tokenizer.get_vocab()
    begun = {piece[1:]: k for piece, k in ids.items() if piece[:1] in ("Ġ", "▁")} or ids
    words = sorted(word for word in begun if len(word) > 2 and word.isalpha() and word.islower())
    whole = [word for word, after in zip(words, [*words[1:], ""], strict=True) if not after.startswith(word)]
    return sorted(whole, key=begun.__getitem__)[:most]


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
        if lost := _lost(Path(image)):
            raise InputError(f"{image} has {lost}; accepted is one opaque picture of 8 bits per channel, RGB or grey.")
    return model.read(from_pixels(read_images([Path(image) for image in images], side)))


def _lost(image: Path) -> str | None:
    """What a picture has that 8 bits of red, green and blue do not hold."""
    with Image.open(image) as opened:
        if (frames := getattr(opened, "n_frames", 1)) > 1:
            return f"{frames} frames"
        if opened.mode.startswith("I"):  # 16 bits of grey; as 8 bits where each value is one of those, 257 times
            return "16 bits per channel" if (np.asarray(opened) % 257).any() else None
        if any("16" in str(tile[-1]) for tile in opened.tile):  # which Pillow would cut to 8
            return "16 bits per channel"
        if opened.mode not in EXACT:
            return f"the colours of {opened.mode}"
        opaque = not opened.has_transparency_data or opened.convert("RGBA").getchannel("A").getextrema()[0] == 255
        return None if opaque else "transparent pixels"


def check_length(model: MorphTokens, texts: Sequence[str], prompts: Prompts, after: int) -> None:
    """Refuse prompts that the language model has too few positions for, `after` tokens to come among them; the last
    token that is written is not read again.

    Raises:
        InputError: the longest does not fit; it is named by its text.

    >>> model = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu")
    >>> check_length(model, ["draw a cat"], model.prompts(["draw a cat"], draw=True), after=4)
    """
    most = getattr(model.llm.config.get_text_config(), "max_position_embeddings", None)
    lengths = (prompts.attention_mask.sum(1) + after - 1).tolist()
    if most is not None and max(lengths) > most:
        text = texts[lengths.index(max(lengths))]
        raise InputError(
            f"{text[:40]!r}, {len(text)} letters long, takes {max(lengths)} tokens with what follows it; the language "
            f"model has {most} positions."
        )
