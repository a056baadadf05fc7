"""Encoder-decoder language models of T5's class under a soft prompt: clozes and label words.

A soft prompt is "prompt dim": vectors in front of the encoder's input embeddings (Lester et al. 2021). A cloze asks the
decoder for one word (Raffel et al. 2020, section 3.1.4; Gu et al. 2022):

    encoder reads    prompt, "a fine film . It was <extra_id_0> ."
    decoder reads    <pad>  <extra_id_0>  great
    targets          <extra_id_0>  great  <extra_id_1>

The loss of an example is the sum of the cross-entropies of its targets, that of a batch the mean of its examples.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import transformers
from einops import repeat
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from vlws.data.cloze import BLANK, VECTOR, Cloze, Cutter
from vlws.errors import InputError
from vlws.models.hub import locate, resolve_device
from vlws.models.kinds import SEQ2SEQ
from vlws.models.weights import check_differ, check_finite, load_checked

END = "<extra_id_1>"  # what ends the target
VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model")
IGNORED = -100  # targets without a loss


def load_seq2seq(name: str, device: str = "auto") -> tuple[PreTrainedModel, Any]:
    """A frozen model of T5's class in float32, in eval mode, and its tokenizer, from a folder or a hub id.

    Raises:
        InputError: what `hub.locate` and `weights.load_checked` refuse, a tokenizer without sentinels or with more
            tokens than the model has embeddings, a model that gives the same for two texts or values not finite.

    >>> import tempfile
    >>> model, tokenizer = tiny_seq2seq(["a", "cat"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     _ = tokenizer.save_pretrained(folder)
    ...     loaded, words = load_seq2seq(folder, "cpu")
    >>> type(loaded).__name__, words.tokenize("a cat"), any(p.requires_grad for p in loaded.parameters())
    ('T5ForConditionalGeneration', ['a', 'cat'], False)
    """
    chosen = resolve_device(device)
    source, kind = locate(name, SEQ2SEQ)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in VOCABULARIES):
        # from which transformers would make a tokenizer that knows no word
        raise InputError(f"{name} holds no tokenizer: it has neither {' nor '.join(VOCABULARIES)}; save it there too.")
    model, tokenizer = load_checked(
        getattr(transformers, SEQ2SEQ.classes[kind]), transformers.AutoTokenizer.from_pretrained, source, name
    )
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(f"{name}: its tokenizer has {len(tokenizer)} tokens and its model {rows} embeddings.")
    check_tokenizer(tokenizer, name)
    model.requires_grad_(False).to(chosen)  # type: ignore[arg-type]
    with torch.no_grad():
        texts = tokenizer([f"A {BLANK}", f"{END} B {BLANK} ."], padding=True, return_tensors="pt").to(chosen)
        states = model.get_encoder()(input_ids=texts.input_ids, attention_mask=texts.attention_mask)[0]
    check_finite(states, name)
    check_differ(states[0, 0], states[1, 0], name)
    return model, tokenizer


def check_tokenizer(tokenizer: Any, name: str = "the model") -> None:
    """InputError unless `<extra_id_0>`, `<extra_id_1>` and `<extra_id_2>` are tokens, and one pads.

    >>> check_tokenizer(tiny_seq2seq(["a"])[1])
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in (BLANK, END, VECTOR) if token not in vocabulary]:
        raise InputError(f"{name}: its tokenizer has no {missing[0]}; accepted is one with T5's sentinels.")
    if tokenizer.pad_token_id is None:
        raise InputError(f"{name}: its tokenizer has no token that pads; accepted is one such as T5's.")


def tiny_seq2seq(
    words: Sequence[str], dim: int = 32, layers: int = 1, heads: int = 2, seed: int = 0
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """A T5 of random weights, frozen and in eval mode, and a tokenizer of whole words; for tests and examples.

    >>> model, tokenizer = tiny_seq2seq(["a", "cat"])
    >>> tokenizer.tokenize("a cat <extra_id_0>."), tokenizer.decode(tokenizer("cat").input_ids)
    (['a', 'cat', '<extra_id_0>', '<unk>'], 'cat </s>')
    """
    special = ["<pad>", "</s>", "<unk>", BLANK, END, VECTOR]
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(words)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names, extra_special_tokens=special[3:])
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=dim,
        d_kv=dim // heads,
        d_ff=2 * dim,
        num_layers=layers,
        num_heads=heads,
        relative_attention_num_buckets=8,
        dropout_rate=0.0,
        decoder_start_token_id=0,  # type: ignore[call-arg]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    return model.requires_grad_(False).eval(), tokenizer


def sizes(model: PreTrainedModel) -> dict[str, int]:
    """What a saved prompt must agree on with its model.

    >>> sizes(tiny_seq2seq(["a", "cat"])[0])
    {'d_model': 32, 'num_layers': 1, 'vocab_size': 8}
    """
    return {name: int(getattr(model.config, name)) for name in ("d_model", "num_layers", "vocab_size")}


def token_cutter(tokenizer: Any) -> Cutter:
    """Lengths in the tokenizer's tokens, without the one that ends a text; texts are cut between tokens.

    >>> cutter = token_cutter(tiny_seq2seq(["a", "cat"])[1])
    >>> cutter.count("a cat, asleep"), cutter.first("a cat, asleep", 2)
    (4, 'a cat')
    """

    def first(text: str, length: int) -> str:
        ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(ends) <= length else text[: ends[length - 1][1]] if length > 0 else ""

    return Cutter(lambda text: len(tokenizer(text, add_special_tokens=False).input_ids), first)


def mean_embeddings(model: PreTrainedModel, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """ "text dim" float32: the mean of each text's input embeddings, in whose space a centroid can stand for a token.

    >>> model, tokenizer = tiny_seq2seq(["a", "cat"])
    >>> mean_embeddings(model, tokenizer, ["a cat", "cat"]).shape
    torch.Size([2, 32])
    """
    table = cast(Tensor, model.get_input_embeddings().weight).detach().float()
    return torch.stack([table[tokenizer(text, add_special_tokens=False).input_ids].mean(0) for text in texts])


# --- clozes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClozeBatch:
    """Clozes as tensors.

    Attributes:
        input_ids, attention_mask: "batch length" int64.
        vectors, places: "vector dim" float32, and "vector 2" int64, the row and position whose embedding each replaces.
        decoder_input_ids: "batch 3" int64, <pad> <extra_id_0> label.
        targets: "batch 3" int64, <extra_id_0> label <extra_id_1>; the last may be -100, which has no loss.

    >>> _, tokenizer = tiny_seq2seq(["a", "cat", "yes"])
    >>> batch = encode(tokenizer, [Cloze("a cat <extra_id_0>", "yes", ("yes",))], last=False).to("cpu")
    >>> batch.targets.tolist(), len(batch)
    ([[3, 8, -100]], 1)
    """

    input_ids: Tensor
    attention_mask: Tensor
    vectors: Tensor
    places: Tensor
    decoder_input_ids: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> "ClozeBatch":
        """The same on a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def encode(tokenizer: Any, clozes: Sequence[Cloze], max_length: int = 412, last: bool = True) -> ClozeBatch:
    """Clozes of any label words, padded to the longest.

    Args:
        max_length: tokens of a text, without the soft prompt and the token that ends it.
        last: whether the target ends with `<extra_id_1>` (in SUPMER's code not downstream).

    Raises:
        InputError: no cloze, a text without exactly one `<extra_id_0>`, longer than `max_length`, or with another
            number of `<extra_id_2>` than of vectors; a label that is not one token.

    >>> _, tokenizer = tiny_seq2seq(["a", "cat", "yes"])
    >>> batch = encode(tokenizer, [Cloze("a cat <extra_id_0>", "yes", ("yes",))])
    >>> batch.input_ids.shape, batch.decoder_input_ids.tolist(), batch.targets.tolist()
    (torch.Size([1, 4]), [[0, 3, 8]], [[3, 8, 4]])
    """
    if not clozes:
        raise InputError("no cloze was given; accepted is one or more.")
    blank, end, vector = tokenizer.convert_tokens_to_ids([BLANK, END, VECTOR])
    read = tokenizer([cloze.text for cloze in clozes], padding=True, return_tensors="pt")
    ids, mask = read["input_ids"], read["attention_mask"]
    for cloze, row, length in zip(clozes, ids, mask.sum(1).tolist(), strict=True):
        given = 0 if cloze.vectors is None else len(cloze.vectors)
        if (found := int((row == blank).sum())) != 1:
            raise InputError(f"{cloze.text!r} holds {found} blanks; accepted is one {BLANK}.")
        if (found := int((row == vector).sum())) != given:
            raise InputError(f"{cloze.text!r} holds {found} {VECTOR} for {given} vectors; accepted is one for each.")
        if length > max_length + 1:
            raise InputError(f"{cloze.text[:60]!r}... has {length - 1} tokens; accepted are {max_length}; cut it.")
    rows = [torch.as_tensor(np.asarray(c.vectors, np.float32)) for c in clozes if c.vectors is not None]
    label = label_ids(tokenizer, [cloze.label for cloze in clozes])
    start, first = torch.full_like(label, tokenizer.pad_token_id), torch.full_like(label, blank)
    return ClozeBatch(
        input_ids=ids,
        attention_mask=mask,
        vectors=torch.cat(rows) if rows else torch.zeros(0, 0),
        places=(ids == vector).nonzero() if rows else torch.zeros(0, 2, dtype=torch.long),
        decoder_input_ids=torch.stack([start, first, label], 1),
        targets=torch.stack([first, label, torch.full_like(label, end if last else IGNORED)], 1),
    )


def label_ids(tokenizer: Any, words: Sequence[str]) -> Tensor:
    """ "word" int64: the one token of each word. Raises InputError for a word of another number, or an unknown one.

    >>> label_ids(tiny_seq2seq(["yes", "no"])[1], ["no", "yes"])
    tensor([7, 6])
    """
    found: dict[str, int] = {}
    for word in dict.fromkeys(words):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = " ".join(tokenizer.convert_ids_to_tokens(ids))
            raise InputError(f"the label word {word!r} is {len(ids)} tokens ({pieces}); accepted is a word of one.")
        if ids[0] == tokenizer.unk_token_id:
            raise InputError(f"the label word {word!r} is unknown to the tokenizer; accepted is one of its words.")
        found[word] = ids[0]
    return torch.tensor([found[word] for word in words])


# --- the model under a prompt -----------------------------------------------------------------------------------------


def encoder_states(model: PreTrainedModel, batch: ClozeBatch, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """H = Enc(x; theta), "batch prompt+length dim", and its mask, "batch prompt+length" int64.

    Args:
        prompt: theta, "prompt dim"; None for the model alone. Gradients reach it.

    Raises InputError for a prompt or vectors of another dimension than the model's.

    >>> model, tokenizer = tiny_seq2seq(["a", "cat", "yes"])
    >>> batch = encode(tokenizer, [Cloze("a cat <extra_id_0>", "yes", ("yes",))])
    >>> [tuple(part.shape) for part in encoder_states(model, batch, torch.zeros(5, 32))]
    [(1, 9, 32), (1, 9)]
    """
    embeddings, mask = model.get_input_embeddings()(batch.input_ids), batch.attention_mask
    dim = embeddings.shape[-1]
    for what, given in (("the prompt has", prompt), ("vectors have", batch.vectors if len(batch.places) else None)):
        if given is not None and (given.ndim != 2 or given.shape[1] != dim):
            raise InputError(f"{what} the shape {list(given.shape)}; accepted is a second dimension of {dim}.")
    if len(batch.places):
        embeddings = embeddings.index_put(tuple(batch.places.T), batch.vectors.to(embeddings.dtype))
    if prompt is not None:
        front = repeat(prompt.to(embeddings.dtype), "prompt dim -> batch prompt dim", batch=len(batch))
        embeddings = torch.cat([front, embeddings], 1)
        mask = torch.cat([mask.new_ones(front.shape[:2]), mask], 1)
    return model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask)[0], mask


def decode(model: PreTrainedModel, states: Tensor, mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
    """Logits "batch position vocab" of what the decoder reads, above encoder states "batch length dim".

    >>> model, tokenizer = tiny_seq2seq(["a", "cat", "yes"])
    >>> batch = encode(tokenizer, [Cloze("a cat <extra_id_0>", "yes", ("yes",))])
    >>> decode(model, *encoder_states(model, batch), batch.decoder_input_ids).shape
    torch.Size([1, 3, 9])
    """
    logits = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=cast(Any, states)),
        attention_mask=mask,
        decoder_input_ids=decoder_input_ids,
        use_cache=False,
    ).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cloze_loss(model: PreTrainedModel, batch: ClozeBatch, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean over examples of the sum over targets of the cross-entropy; and h, "dim", without gradients.

    h is the mean of the encoder's last hidden states over examples and positions, prompt and padding included,
    as in SUPMER's code.

    >>> model, tokenizer = tiny_seq2seq(["a", "cat", "yes"])
    >>> batch = encode(tokenizer, [Cloze("a cat <extra_id_0>", "yes", ("yes",))])
    >>> loss, h = cloze_loss(model, batch)
    >>> logits = decode(model, *encoder_states(model, batch), batch.decoder_input_ids)
    >>> torch.isclose(loss, -logits.log_softmax(-1)[0, [0, 1, 2], batch.targets[0]].sum()).item(), h.shape
    (True, torch.Size([32]))
    """
    states, mask = encoder_states(model, batch, prompt)
    logits = decode(model, states, mask, batch.decoder_input_ids)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss / len(batch), states.detach().mean((0, 1))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """While open, attention runs by torch's plain kernel, whose gradient has a gradient.

    >>> with twice_differentiable():
    ...     F.scaled_dot_product_attention(*torch.ones(3, 1, 1, 2, 4)).shape
    torch.Size([1, 1, 2, 4])
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


class Scores(NamedTuple):
    """What a model makes of clozes.

    Attributes:
        logits: "example word" float32, at the label's position, of the label words.
        likeliest: "example" int64, the likeliest token of the whole vocabulary there.
        answers: "example" int64, which word is right; token: "example" int64, its token.
        loss: mean over the examples, as `cloze_loss`.

    >>> scores = Scores(torch.eye(2), torch.tensor([5, 9]), torch.tensor([0, 1]), torch.tensor([5, 7]), 0.1)
    >>> scores.accuracy, scores.accuracy_whole
    (1.0, 0.5)
    """

    logits: Tensor
    likeliest: Tensor
    answers: Tensor
    token: Tensor
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of examples whose likeliest label word is right."""
        return float((self.logits.argmax(1) == self.answers).float().mean())

    @property
    def accuracy_whole(self) -> float:
        """Share of examples whose likeliest token of the whole vocabulary, as SUPMER's code counts, is the label."""
        return float((self.likeliest == self.token).float().mean())


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: Any,
    clozes: Sequence[Cloze],
    prompt: Tensor | None = None,
    *,
    max_length: int = 412,
    batch_size: int = 64,
) -> Scores:
    """Label scores of clozes that share their label words. Raises InputError where they do not, and as `encode`.

    >>> model, tokenizer = tiny_seq2seq(["a", "cat", "yes", "no"])
    >>> scores = score(model, tokenizer, [Cloze("a cat <extra_id_0>", "yes", ("yes", "no"))] * 3)
    >>> scores.logits.shape, scores.answers.tolist()
    (torch.Size([3, 2]), [0, 0, 0])
    """
    if len(words := {cloze.words for cloze in clozes}) != 1:
        raise InputError(f"the clozes have {len(words)} sets of label words; accepted is one set for all.")
    ids = label_ids(tokenizer, clozes[0].words)
    parts, likeliest, loss = [], [], 0.0
    for start in range(0, len(clozes), batch_size):
        batch = encode(tokenizer, clozes[start : start + batch_size], max_length, last=False).to(model.device)
        logits = decode(model, *encoder_states(model, batch, prompt), batch.decoder_input_ids[:, :2])
        loss += float(F.cross_entropy(logits.flatten(0, 1), batch.targets[:, :2].flatten(), reduction="sum"))
        parts.append(logits[:, 1, ids].float().cpu())
        likeliest.append(logits[:, 1].argmax(-1).cpu())
    answers = torch.tensor([cloze.answer for cloze in clozes])
    return Scores(torch.cat(parts), torch.cat(likeliest), answers, ids[answers], loss / len(clozes))
