"""What a method needs of a multimodal language model, the same for LLaVA, BLIP-2 and Qwen2.5-VL.

    mllm = load_mllm("Salesforce/blip2-opt-2.7b")  # or adapt(model, processor); both of `models.families`
    batch = mllm.encode(["<image> and <image> differ in"], [[first, second]])
    mllm.hidden(batch, mllm.num_layers // 2)  # "batch len hidden"
    mllm.generate(mllm.encode(texts, images, padding_side="left"), max_new_tokens=8)

Every model takes the same steps: pictures -> `vision_features` (frozen, worth caching) -> `embed_images` (projector or
Q-Former) -> `embed` (text with the pictures in place) -> `run`. Modules that peft replaces in the model keep working.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlws.errors import InputError
from vlws.models.clip import pixels
from vlws.models.tokens import IMAGE_PLACEHOLDER, check_texts, count_appended

IGNORED = -100  # label of a token without a loss
ImageInput = Image.Image | np.ndarray | Tensor  # PIL, uint8 RGB "h w 3", or one row of `vision_features`


@dataclass(frozen=True)
class Batch:
    """Texts with their pictures, padded. The n pictures of all rows stand in one list, row by row.

    Attributes:
        input_ids, attention_mask: "batch len" int64.
        image_spans: "n 3" int64 (row, start, stop): the tokens of each picture.
        pixel_values: of the image processor; None without pictures or where `features` are given.
        features: what `vision_features` gives, where the tower need not run again.
        labels: "batch len" int64, -100 everywhere but on the answers; None without answers.
        extra: what else the model takes ("image_grid_thw"; "qformer_input_ids", "qformer_attention_mask").

    >>> from vlws.models.families import load_mllm
    >>> mllm = load_mllm("llava-emoji", "cpu")
    >>> pictures = [np.zeros((32, 32, 3), np.uint8)] * 3
    >>> batch = mllm.encode(["<image> and <image>", "<image>"], [pictures[:2], pictures[2:]])
    >>> batch.image_spans[:, 0].tolist(), batch.image_places.shape  # the row of each picture; its tokens
    ([0, 0, 1], torch.Size([3, 16]))
    >>> batch.to("cpu").input_ids.shape == batch.attention_mask.shape
    True
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_spans: Tensor
    pixel_values: Tensor | None
    features: Tensor | list[Tensor] | None
    labels: Tensor | None
    extra: dict[str, Tensor]

    @property
    def image_places(self) -> Tensor:
        """ "n token" int64: the positions of each picture's tokens, where all pictures have equally many."""
        start, stop = self.image_spans[:, 1:].T
        return start[:, None] + torch.arange(int(stop[0] - start[0]), device=start.device)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with every tensor on a device."""
        return replace(self, **{field.name: _to(getattr(self, field.name), device) for field in fields(self)})


def _to(value, device):
    if isinstance(value, dict):
        return {key: _to(part, device) for key, part in value.items()}
    if isinstance(value, list):
        return [_to(part, device) for part in value]
    return value if value is None else value.to(device)


class Parts(NamedTuple):
    """What an adapter needs of a processor, where the real one cannot be made.

    >>> from vlws.models.clip import load_clip
    >>> processor = load_clip("clip-emoji", "cpu").processor
    >>> Parts(processor.tokenizer, processor.image_processor).tokenizer is processor.tokenizer
    True
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor


class Adapter(ABC):
    """The parts and steps of one model; `families.adapt` and `families.load_mllm` make it.

    Attributes:
        causal_lm: from embeddings to logits, with `generate`.
        decoder, layers, lm_head: the stack without its head, its blocks, its head.
        num_layers, hidden_size: of the decoder.
        image_token, image_token_id: what stands in the text where a picture goes.

    >>> from vlws.models.families import load_mllm
    >>> mllm = load_mllm("llava-emoji", "cpu")
    >>> mllm.sizes, mllm.device, mllm.dtype, mllm.num_image_tokens(32, 32)
    ({'hidden_size': 128, 'num_layers': 4}, device(type='cpu'), torch.float32, 16)
    >>> batch = mllm.encode(["<image> a cat"], [[np.zeros((32, 32, 3), np.uint8)]])
    >>> features = mllm.vision_features(batch)  # frozen: worth caching, and taken by `encode` in place of pictures
    >>> mllm.project(features, batch).shape == mllm.embed_images(batch).shape == (1, 16, mllm.hidden_size)
    True
    >>> mllm.run(batch).logits.shape[:2] == batch.input_ids.shape
    True
    """

    default_image_token = IMAGE_PLACEHOLDER  # where the processor names none

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | Parts) -> None:
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.causal_lm: PreTrainedModel = getattr(model, "language_model", model)
        config = self.causal_lm.config.get_text_config()
        if config.is_encoder_decoder:
            raise InputError(
                f"{type(model).__name__} over {type(self.causal_lm).__name__}, an encoder-decoder, was given; accepted "
                "are decoder-only language models, as in Salesforce/blip2-opt-2.7b."
            )
        dim = self.causal_lm.get_input_embeddings().embedding_dim
        if dim != config.hidden_size:  # transformers would scatter pictures into it without an error
            raise InputError(
                f"The language model's embeddings have dimension {dim}, but pictures enter at {config.hidden_size}; "
                "accepted are language models whose embeddings have the dimension of their layers."
            )
        self.decoder: PreTrainedModel = self.causal_lm.get_decoder()
        self.layers: nn.ModuleList = self.decoder.layers
        self.lm_head: nn.Module = self.causal_lm.get_output_embeddings()
        self.num_layers, self.hidden_size = len(self.layers), config.hidden_size
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self.image_token = str(getattr(processor, "image_token", self.default_image_token))
        self.image_token_id: int = self.tokenizer.convert_tokens_to_ids(self.image_token)
        expected = model.config.image_token_id
        if self.image_token_id is None or expected not in (None, self.image_token_id):
            raise InputError(
                f"The tokenizer has {self.image_token} as token {self.image_token_id}, but the model expects pictures "
                f"at token {expected}; give the processor that was saved with the model."
            )

        self._appended = count_appended(self.tokenizer)

    @property
    def sizes(self) -> dict[str, int]:
        """What added weights must fit: `hidden_size` and `num_layers` of the language model."""
        return {"hidden_size": self.hidden_size, "num_layers": self.num_layers}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model's weights."""
        return self.causal_lm.dtype  # BLIP-2 keeps its queries in float32

    # --- from texts and pictures to embeddings --------------------------------------------------------------------

    def encode(
        self,
        texts: Sequence[str],
        images: Sequence[Sequence[ImageInput]],
        padding_side: str = "right",
        answers: Sequence[str] | None = None,
    ) -> Batch:
        """n texts, each with one picture per placeholder "<image>", and with its answer after it -> a batch on the CPU.

        Pictures are all PIL or arrays, or all rows of `vision_features`. Tokens of an answer, and the end token after
        it, follow the text's own; they alone have labels. The tokenizer's start token comes first in every row; an end
        token that it appends by itself is left out, since generation would start behind it.

        Raises:
            InputError: numbers of placeholders and pictures, or of texts, pictures and answers, that differ; an empty
                answer; more tokens than the model has positions; an unknown padding side.

        >>> from vlws.models.families import load_mllm
        >>> mllm = load_mllm("llava-emoji", "cpu")
        >>> picture = np.zeros((32, 32, 3), np.uint8)
        >>> batch = mllm.encode(["<image> what is it?"], [[picture]], answers=["a cat"])
        >>> mllm.tokenizer.decode(batch.labels[batch.labels != IGNORED])
        'a cat</s>'
        """
        check_texts(texts, images, answers, padding_side)
        pictures = [picture for row in images for picture in row]
        pixel_values, features, counts, extra = self.read_images(pictures) if pictures else (None, None, [], {})
        extra |= self.read_instructions(texts, [len(row) for row in images])
        tokens = iter(counts)
        marked = [re.sub(IMAGE_PLACEHOLDER, lambda _: self.image_text(next(tokens)), text) for text in texts]
        rows = [row[: len(row) - self._appended] for row in self.tokenizer(marked)["input_ids"]]
        prompt_lengths = torch.tensor([len(row) for row in rows])
        if answers is not None:
            tails = self.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
            end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
            rows = [row + tail + end for row, tail in zip(rows, tails, strict=True)]
        input_ids, attention_mask, offsets = self._pad(rows, padding_side)
        spans = self._image_spans(input_ids, counts)
        labels = None
        if answers is not None:
            answered = torch.arange(input_ids.shape[1]) >= (offsets + prompt_lengths)[:, None]
            labels = input_ids.masked_fill(~(answered & attention_mask.bool()), IGNORED)
        return Batch(input_ids, attention_mask, spans, pixel_values, features, labels, extra)

    def _image_spans(self, input_ids: Tensor, counts: list[int]) -> Tensor:
        """(row, start, stop) of each picture, "n 3"; picture i has `counts[i]` tokens."""
        if min(counts, default=1) < 1:
            raise InputError(
                f"A picture comes to {min(counts)} image tokens; check that the processor's patch_size, "
                "num_additional_image_tokens or num_query_tokens are those of the model."
            )
        at = torch.nonzero(input_ids == self.image_token_id)  # "token 2" (row, column)
        first = torch.tensor([0, *counts], dtype=torch.long).cumsum(0)
        if first[-1] != len(at):
            raise InputError(
                f"The texts hold {len(at)} image tokens where their pictures need {first[-1]}; write "
                f"{IMAGE_PLACEHOLDER} for a picture, and no {self.image_token} of your own."
            )
        return torch.stack([at[first[:-1], 0], at[first[:-1], 1], at[first[1:] - 1, 1] + 1], dim=1)

    def _pad(self, rows: list[list[int]], side: str) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of ids -> input_ids, attention_mask "batch len", and where each row starts "batch"."""
        length = max(map(len, rows))
        if self.max_length is not None and length > self.max_length:
            raise InputError(
                f"Text {max(range(len(rows)), key=lambda i: len(rows[i]))} comes to {length} tokens with its pictures; "
                f"the model has {self.max_length} positions."
            )
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        input_ids = torch.full((len(rows), length), pad or 0)
        attention_mask = torch.zeros_like(input_ids)
        offsets = torch.tensor([length - len(row) if side == "left" else 0 for row in rows])
        for i, (row, start) in enumerate(zip(rows, offsets.tolist(), strict=True)):
            input_ids[i, start : start + len(row)] = torch.tensor(row)
            attention_mask[i, start : start + len(row)] = 1
        return input_ids, attention_mask, offsets

    def embed_images(self, batch: Batch) -> Tensor | list[Tensor]:
        """What stands at the image tokens: "image token hidden", or one "token hidden" per picture (Qwen2.5-VL)."""
        return self.project(self.vision_features(batch) if batch.features is None else batch.features, batch)

    def embed(self, batch: Batch) -> Tensor:
        """inputs_embeds "batch len hidden": embedded tokens, the pictures in place.

        Raises:
            InputError: the batch has more or fewer image tokens than its pictures fill.

        >>> from vlws.models.families import load_mllm
        >>> mllm = load_mllm("llava-emoji", "cpu")
        >>> batch = mllm.encode(["<image> a cat"], [[np.zeros((32, 32, 3), np.uint8)]])
        >>> mllm.embed(batch).shape == (*batch.input_ids.shape, mllm.hidden_size)
        True
        """
        image = batch.input_ids == self.image_token_id
        embeds = self.causal_lm.get_input_embeddings()(batch.input_ids.masked_fill(image, 0))
        if batch.pixel_values is None and batch.features is None:
            tokens = embeds.new_zeros(0, embeds.shape[-1])
        else:
            tokens = torch.cat(list(self.embed_images(batch)))
        if len(tokens) != image.sum():
            raise InputError(
                f"The batch has {int(image.sum())} image tokens, but its pictures fill {len(tokens)}; check that the "
                "processor's patch_size, num_additional_image_tokens or num_query_tokens are those of the model."
            )
        return embeds.masked_scatter(image[..., None], tokens.to(embeds.dtype))

    # --- from embeddings to hidden states, logits and texts -------------------------------------------------------

    def positions(self, batch: Batch) -> Tensor:
        """position_ids "batch len" that count real tokens only ("3 batch len" for Qwen2.5-VL).

        >>> from vlws.models.families import load_mllm
        >>> mllm = load_mllm("llava-emoji", "cpu")
        >>> mllm.positions(mllm.encode(["a red cat", "a"], [[], []], padding_side="left")).tolist()
        [[0, 1, 2, 3], [0, 0, 0, 1]]
        """
        return (batch.attention_mask.cumsum(1) - 1).clamp(min=0)

    def run(
        self,
        batch: Batch,
        inputs_embeds: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        use_cache: bool = False,
    ) -> CausalLMOutputWithPast:
        """The language model over the batch: `.logits` "batch len vocab", `.hidden_states`, and `.loss` with labels.

        The loss is the mean cross-entropy of all tokens with a label. `inputs_embeds` "batch len hidden" replace those
        of `embed`.

        >>> from vlws.models.families import load_mllm
        >>> mllm = load_mllm("llava-emoji", "cpu")
        >>> batch = mllm.encode(["what colour?"], [[]], answers=["red"])
        >>> bool(mllm.run(batch).loss == mllm.run(batch, mllm.embed(batch)).loss)
        True
        """
        return self.causal_lm(
            inputs_embeds=self.embed(batch) if inputs_embeds is None else inputs_embeds,
            attention_mask=batch.attention_mask,
            position_ids=self.positions(batch),
            labels=batch.labels,
            output_hidden_states=output_hidden_states,
            use_cache=use_cache,
        )

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        """Hidden states "batch len hidden" after `layer` blocks: 0 = what enters the first, num_layers = after the
        final norm.

        Raises:
            InputError: a layer out of range.

        >>> from vlws.models.families import load_mllm
        >>> mllm = load_mllm("llava-emoji", "cpu")
        >>> batch = mllm.encode(["a red cat"], [[]])
        >>> bool((mllm.hidden(batch, 0) == mllm.embed(batch)).all())
        True
        >>> mllm.hidden(batch, mllm.num_layers).shape == (*batch.input_ids.shape, mllm.hidden_size)
        True
        """
        self.check_layer(layer)
        out = self.decoder(
            inputs_embeds=self.embed(batch),
            attention_mask=batch.attention_mask,
            position_ids=self.positions(batch),
            output_hidden_states=True,
            use_cache=False,
        )
        return out.hidden_states[layer]

    def check_layer(self, layer: int) -> None:
        """InputError unless 0 <= layer <= num_layers.

        >>> from vlws.models.families import load_mllm
        >>> load_mllm("llava-emoji", "cpu").check_layer(99)
        Traceback (most recent call last):
            ...
        vlws.errors.InputError: layer=99: LlavaForConditionalGeneration has layers 0 to 4.
        """
        if not 0 <= layer <= self.num_layers:
            raise InputError(f"layer={layer}: {type(self.model).__name__} has layers 0 to {self.num_layers}.")

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int) -> list[str]:
        """Greedy, cached continuation of every row, without special tokens, as far as the end token.

        Raises:
            InputError: a batch padded on the right, or with answers.

        >>> from vlws.data.emoji_world import counterfactual
        >>> from vlws.models.families import load_mllm
        >>> mllm, scenes = load_mllm("blip2-emoji", "cpu"), counterfactual.sample(1, seed=0)
        >>> prompt, answer = counterfactual.colour_question(scenes[0].things[0])
        >>> prompt, answer
        ('<image> what colour is the house?', 'red')
        >>> batch = mllm.encode([prompt], [list(counterfactual.render(scenes))], padding_side="left")
        >>> mllm.generate(batch, max_new_tokens=4)
        [' red']
        """
        if batch.labels is not None or not batch.attention_mask[:, -1].all():
            raise InputError('generate() needs prompts padded on the left: encode(texts, images, padding_side="left").')
        pad = self.tokenizer.pad_token_id
        ids = self.causal_lm.generate(
            inputs_embeds=self.embed(batch),
            attention_mask=batch.attention_mask,
            position_ids=self.positions(batch),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # checkpoints bring their own
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
        )
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    # --- what differs between the models --------------------------------------------------------------------------

    @abstractmethod
    def vision_features(self, batch: Batch) -> Tensor | list[Tensor]:
        """What the vision tower gives, one row per picture; rows may stand for pictures in `encode`."""

    @abstractmethod
    def project(self, features: Tensor | list[Tensor], batch: Batch) -> Tensor | list[Tensor]:
        """Vision features -> what stands at the image tokens."""

    @abstractmethod
    def num_image_tokens(self, height: int, width: int) -> int:
        """Number of tokens of a picture of `height` x `width` pixels."""

    def read_images(self, pictures: list[ImageInput]) -> tuple[Tensor | None, Tensor | list | None, list[int], dict]:
        """Pictures -> pixel_values, features (one of the two is None), tokens of each picture, extra.

        >>> from vlws.models.families import load_mllm
        >>> mllm = load_mllm("llava-emoji", "cpu")
        >>> values, features, tokens, extra = mllm.read_images([np.zeros((32, 32, 3), np.uint8)] * 2)
        >>> values.shape, features, tokens, extra
        (torch.Size([2, 3, 32, 32]), None, [16, 16], {})
        """
        vision = self.model.config.vision_config
        if isinstance(pictures[0], Tensor):
            count = self.num_image_tokens(vision.image_size, vision.image_size)
            return None, torch.stack(pictures), [count] * len(pictures), {}
        same = all(isinstance(p, np.ndarray) and p.shape == pictures[0].shape for p in pictures)
        values = pixels(self.processor, np.stack(pictures) if same else pictures, vision.image_size)
        return values, None, [self.num_image_tokens(*values.shape[-2:])] * len(pictures), {}

    def read_instructions(self, texts: Sequence[str], counts: list[int]) -> dict[str, Tensor]:
        """`Batch.extra` that the vision side reads of the texts; `counts` pictures in each.

        >>> from vlws.models.families import load_mllm
        >>> load_mllm("llava-emoji", "cpu").read_instructions(["<image> what?"], [1])  # only InstructBLIP reads any
        {}
        """
        return {}

    def image_text(self, tokens: int) -> str:
        """What replaces the placeholder of a picture of so many tokens.

        >>> from vlws.models.families import load_mllm
        >>> load_mllm("llava-emoji", "cpu").image_text(3)
        '<image><image><image>'
        """
        return self.image_token * tokens
