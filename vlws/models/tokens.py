"""Texts and tokens: what an adapter accepts, and whether a tokenizer belongs to a model."""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from vlws.errors import InputError

IMAGE_PLACEHOLDER = "<image>"  # stands for one picture in every text
LEGACY_END = 2  # text_config.eos_token_id for which CLIPTextModel pools at the largest id of a text


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, name: str, apart: Collection[int] = ()) -> None:
    """InputError unless a model that embeds `rows` tokens embeds every token of the tokenizer.

    apart: ids that are never embedded, such as that of the image token.

    >>> from vlws.models.clip import load_clip
    >>> tokenizer = load_clip("clip-emoji", "cpu").processor.tokenizer
    >>> check_vocabulary(tokenizer, rows=len(tokenizer), name="clip-emoji")
    >>> try:
    ...     check_vocabulary(tokenizer, rows=100, name="my-clip")
    ... except InputError as error:
    ...     print(str(error).split(";")[0])
    my-clip: its tokenizer has '<|endoftext|>' as token 2047, but the model embeds 100 tokens
    """
    ids = {id_: token for token, id_ in tokenizer.get_vocab().items() if id_ not in apart}
    top = max(ids, default=0)
    if top >= rows:
        raise InputError(
            f"{name}: its tokenizer has {ids[top]!r} as token {top}, but the model embeds {rows} tokens; give the "
            "tokenizer that was saved with the model, or enlarge its embeddings (resize_token_embeddings) and save it."
        )


def check_end_token(tokenizer: PreTrainedTokenizerBase, config_end: int, name: str) -> None:
    """InputError unless CLIP's text model pools every text at the tokenizer's end token.

    CLIPTextModel pools at the first `config_end`, but for 2 (as in OpenAI's configs) at the largest id of a text.

    >>> from vlws.models.clip import load_clip
    >>> tokenizer = load_clip("clip-emoji", "cpu").processor.tokenizer
    >>> check_end_token(tokenizer, tokenizer.eos_token_id, "clip-emoji")
    >>> try:
    ...     check_end_token(tokenizer, 0, "my-clip")
    ... except InputError as error:
    ...     print(str(error).split(";")[0])
    my-clip: text_config.eos_token_id of its config.json is 0, but the tokenizer's end token is '<|endoftext|>' (2047)
    """
    end, token = tokenizer.eos_token_id, tokenizer.eos_token
    ids = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    remedy = f"write {end} there, or give the tokenizer that was saved with the model"
    if end is None or end not in tokenizer("a")["input_ids"]:
        raise InputError(
            f"{name}: its tokenizer ends no text with an end token ({token}), at which CLIP pools; give the tokenizer "
            "that was saved with the model."
        )
    if config_end == LEGACY_END and end != max(ids):
        raise InputError(
            f"{name}: text_config.eos_token_id of its config.json is {LEGACY_END}, for which CLIP pools a text at its "
            f"largest token, and the tokenizer has {ids[max(ids)]!r} ({max(ids)}) behind its end token {token!r} "
            f"({end}); {remedy if end != LEGACY_END else 'give the end token the largest id'}."
        )
    if config_end not in (LEGACY_END, end):
        raise InputError(
            f"{name}: text_config.eos_token_id of its config.json is {config_end}, but the tokenizer's end token is "
            f"{token!r} ({end}); {remedy}."
        )


def count_appended(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the tokenizer puts behind each text by itself: an end token, where it is made so.

    >>> from vlws.models.clip import load_clip
    >>> count_appended(load_clip("clip-emoji", "cpu").processor.tokenizer)
    1
    """
    plain, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    for behind in range(len(whole) - len(plain) + 1):
        stop = len(whole) - behind
        if whole[stop - len(plain) : stop] == plain:
            return behind
    return 0


def check_texts(
    texts: Sequence[str], images: Sequence[Sequence], answers: Sequence[str] | None, padding_side: str
) -> None:
    """InputError unless every text has its pictures and, where there are answers, an answer with words.

    >>> check_texts(["<image> and <image>"], [["first.png", "second.png"]], None, "right")
    >>> check_texts(["<image> and"], [["first.png", "second.png"]], None, "right")
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: Text 0 marks 1 pictures with <image>, but 2 were given; it needs one <image> per picture.
    """
    if not len(texts) == len(images) == len(texts if answers is None else answers):
        raise InputError(
            f"{len(texts)} texts, {len(images)} lists of pictures and {len(answers or texts)} answers were given; "
            "each text needs one of each."
        )
    if padding_side not in ("left", "right"):
        raise InputError(f"padding_side={padding_side!r}: accepted are left and right.")
    for i, (text, pictures) in enumerate(zip(texts, images, strict=True)):
        if text.count(IMAGE_PLACEHOLDER) != len(pictures):
            raise InputError(
                f"Text {i} marks {text.count(IMAGE_PLACEHOLDER)} pictures with {IMAGE_PLACEHOLDER}, but "
                f"{len(pictures)} were given; it needs one {IMAGE_PLACEHOLDER} per picture."
            )
    for i, answer in enumerate(answers or ()):
        if not answer.strip():
            raise InputError(f"Answer {i} is empty; each sample needs one to learn from.")
