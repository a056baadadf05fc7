"""The families of multimodal language models that have an adapter: LLaVA, BLIP-2, InstructBLIP and Qwen2.5-VL."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as QFormerOutput

from vlws.errors import InputError
from vlws.models.adapter import IMAGE_PLACEHOLDER, Adapter, Batch, ImageInput, Parts
from vlws.models.clip import check_size
from vlws.models.hub import MLLM, locate, resolve_device
from vlws.models.tokens import check_vocabulary
from vlws.models.weights import check_differ, check_finite, in_one_sentence, load_checked


class LlavaAdapter(Adapter):
    """LLaVA: every patch of the tower becomes a token through a projector.

    >>> import numpy as np
    >>> mllm = load_mllm("llava-emoji", "cpu")
    >>> batch = mllm.encode(["<image>"], [[np.zeros((32, 32, 3), np.uint8)]])
    >>> features = mllm.vision_features(batch)
    >>> features.shape, mllm.project(features, batch).shape, mllm.num_image_tokens(32, 32)
    (torch.Size([1, 16, 96]), torch.Size([1, 16, 128]), 16)
    """

    model: LlavaForConditionalGeneration

    def vision_features(self, batch: Batch) -> Tensor:
        """ "image patch width": the configured layers side by side, the class token dropped where the model does."""
        config = self.model.config
        layers = config.vision_feature_layer
        tower = self.model.model.vision_tower
        states = tower(batch.pixel_values.to(self.dtype), output_hidden_states=True).hidden_states
        features = torch.cat([states[k] for k in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        return features[:, 1:] if config.vision_feature_select_strategy == "default" else features

    def project(self, features: Tensor, batch: Batch) -> Tensor:
        """Through the projector: "image patch hidden"."""
        return self.model.model.multi_modal_projector(features.to(self.dtype))

    def num_image_tokens(self, height: int, width: int) -> int:
        """One for each patch that the projector reads, and for the class token where the model keeps it."""
        patch = self.processor.patch_size or self.model.config.vision_config.patch_size
        dropped = self.processor.vision_feature_select_strategy == "default"
        return (height // patch) * (width // patch) + self.processor.num_additional_image_tokens - dropped


class Blip2Adapter(Adapter):
    """BLIP-2: a Q-Former reads the patches with a few queries, and each query becomes a token.

    >>> import numpy as np
    >>> mllm = load_mllm("blip2-emoji", "cpu")
    >>> batch = mllm.encode(["<image> a cat"], [[np.zeros((48, 48, 3), np.uint8)]])
    >>> features = mllm.vision_features(batch)
    >>> features.shape[2] == mllm.features_dim, mllm.query_tokens.shape
    (True, torch.Size([1, 4, 96]))
    >>> mllm.qformer_outputs(features, mllm.query_tokens).last_hidden_state.shape
    torch.Size([1, 4, 96])
    >>> mllm.project(features, batch).shape[1] == mllm.num_image_tokens(48, 48)
    True
    """

    model: Blip2ForConditionalGeneration | InstructBlipForConditionalGeneration

    @property
    def query_tokens(self) -> Tensor:
        """The pretrained queries, "1 query width"."""
        return cast(Tensor, self.model.query_tokens)

    @property
    def features_dim(self) -> int:
        """Dimension of a patch's features."""
        return cast(PreTrainedConfig, self.model.config.vision_config).hidden_size

    def vision_features(self, batch: Batch) -> Tensor:
        """ "image patch width", the class token first."""
        return self.model.vision_model(batch.pixel_values.to(self.dtype)).last_hidden_state

    def qformer_outputs(
        self, features: Tensor, query_embeds: Tensor, instructions: Mapping[str, Tensor] | None = None, **options
    ) -> QFormerOutput:
        """The Q-Former over features "image patch width" with queries "image query width" (or "1 query width").

        Args:
            instructions: `Batch.extra`, what InstructBLIP's Q-Former reads beside its queries; BLIP-2's reads none.
            options: of the Q-Former (output_attentions=True).

        Returns:
            Its output; `.last_hidden_state` is "image query width".
        """
        queries = query_embeds.expand(len(features), -1, -1)
        return self.model.qformer(query_embeds=queries, encoder_hidden_states=features, **options)

    def project(self, features: Tensor, batch: Batch) -> Tensor:
        """Through the Q-Former and its projection: "image query hidden"."""
        queries = self.qformer_outputs(features, self.query_tokens, batch.extra).last_hidden_state
        return self.model.language_projection(queries.to(self.dtype))

    def num_image_tokens(self, height: int, width: int) -> int:
        """The number of queries, whatever the size of the picture."""
        return self.model.config.num_query_tokens


class InstructBlipAdapter(Blip2Adapter):
    """InstructBLIP: a Q-Former that reads the text (without its placeholders) beside its queries."""

    def qformer_outputs(
        self, features: Tensor, query_embeds: Tensor, instructions: Mapping[str, Tensor] | None = None, **options
    ) -> QFormerOutput:
        """As of BLIP-2; without `instructions` the queries read the picture alone."""
        queries = query_embeds.expand(len(features), -1, -1)
        mask = queries.new_ones(queries.shape[:2]).long()  # "image query", then the instruction's own
        ids = None
        if instructions:
            ids = instructions["qformer_input_ids"]
            mask = torch.cat([mask, instructions["qformer_attention_mask"]], dim=1)
        out = self.model.qformer(
            input_ids=ids,
            attention_mask=mask,
            query_embeds=queries.to(self.dtype),
            encoder_hidden_states=features.to(self.dtype),
            **options,
        )
        out.last_hidden_state = out.last_hidden_state[:, : queries.shape[1]]
        return out

    def read_instructions(self, texts: Sequence[str], counts: list[int]) -> dict[str, Tensor]:
        """The texts without placeholders, once for each of their pictures: ids and mask, "image word" int64."""
        plain = [
            text.replace(IMAGE_PLACEHOLDER, "").strip()
            for text, count in zip(texts, counts, strict=True)
            for _ in range(count)
        ]
        if not plain:
            return {}
        tokens = self.processor.qformer_tokenizer(plain, padding=True, padding_side="right", return_tensors="pt")
        return {"qformer_input_ids": tokens.input_ids, "qformer_attention_mask": tokens.attention_mask}


class QwenVLAdapter(Adapter):
    """Qwen2.5-VL: pictures of any size, one token per merged patch, positions of time, height and width."""

    model: Qwen2_5_VLForConditionalGeneration
    default_image_token = "<|image_pad|>"

    def vision_features(self, batch: Batch) -> list[Tensor]:
        """One "height width hidden" per picture, counted in tokens: the tower has its projector inside."""
        rows = self.model.get_image_features(batch.pixel_values, batch.extra["image_grid_thw"]).pooler_output
        width = (batch.extra["image_grid_thw"][:, 2] // self._merge).tolist()
        return [rearrange(row, "(h w) hidden -> h w hidden", w=w) for row, w in zip(rows, width, strict=True)]

    def project(self, features: list[Tensor], batch: Batch) -> list[Tensor]:
        """Features as rows, one "token hidden" per picture: the projector is a part of the tower."""
        return [rearrange(row, "h w hidden -> (h w) hidden") for row in features]

    def positions(self, batch: Batch) -> Tensor:
        """position_ids "3 batch len" of time, height and width."""
        kinds = (batch.input_ids == self.image_token_id).int()
        grid = batch.extra.get("image_grid_thw")
        return self.model.model.get_rope_index(
            batch.input_ids, kinds, image_grid_thw=grid, attention_mask=batch.attention_mask
        )[0]

    @property
    def _merge(self) -> int:
        return self.model.config.vision_config.spatial_merge_size

    def num_image_tokens(self, height: int, width: int) -> int:
        """One for each merged patch; `height` and `width` are counted in patches, not in pixels."""
        return height * width // self._merge**2

    def read_images(self, pictures: list[ImageInput]) -> tuple[Tensor | None, list | None, list[int], dict]:
        """As of `Adapter`; pictures may differ in size, and `extra` has the patches of each: "image_grid_thw" "n 3"."""
        if isinstance(pictures[0], Tensor):
            grid = torch.tensor([[1, p.shape[0] * self._merge, p.shape[1] * self._merge] for p in pictures])
            values, features = None, pictures
        else:
            read = self.processor.image_processor(images=pictures, return_tensors="pt")
            grid, values, features = read["image_grid_thw"], read["pixel_values"], None
        counts = [self.num_image_tokens(height, width) for _, height, width in grid.tolist()]
        return values, features, counts, {"image_grid_thw": grid}

    def image_text(self, tokens: int) -> str:
        """The image tokens, between those that begin and end a picture."""
        return f"<|vision_start|>{self.image_token * tokens}<|vision_end|>"


def _qwen_parts(source: str) -> Parts:
    """Without the video processor, which would need torchvision."""
    return Parts(AutoTokenizer.from_pretrained(source), AutoImageProcessor.from_pretrained(source))


PROCESSORS: dict[type[PreTrainedModel], Callable[[str], Parts]] = {Qwen2_5_VLForConditionalGeneration: _qwen_parts}
ADAPTERS: dict[type[PreTrainedModel], type[Adapter]] = {
    LlavaForConditionalGeneration: LlavaAdapter,
    Blip2ForConditionalGeneration: Blip2Adapter,
    InstructBlipForConditionalGeneration: InstructBlipAdapter,
    Qwen2_5_VLForConditionalGeneration: QwenVLAdapter,
}
ACCEPTED = ", ".join(model.__name__ for model in ADAPTERS)


def adapt(model: PreTrainedModel, processor: ProcessorMixin | Parts) -> Adapter:
    """The adapter for a model of one of the classes in ADAPTERS, and the processor that was saved with it.

    `processor` needs a `tokenizer` and an `image_processor` (and InstructBLIP's a `qformer_tokenizer`).

    Raises:
        InputError: a model of another class, an encoder-decoder inside, a tokenizer without the image token.

    >>> mllm = load_mllm("llava-emoji", "cpu")
    >>> type(adapt(mllm.model, mllm.processor)).__name__
    'LlavaAdapter'
    >>> try:
    ...     adapt(torch.nn.Linear(1, 1), mllm.processor)
    ... except InputError as error:
    ...     print(str(error).split(";")[0])
    A Linear was given
    """
    for kind, adapter in ADAPTERS.items():
        if isinstance(model, kind):
            return adapter(model, processor)
    raise InputError(f"A {type(model).__name__} was given; accepted are {ACCEPTED}.")


def load_mllm(name: str, device: str = "auto", dtype: torch.dtype = torch.float32) -> Adapter:
    """A multimodal language model in eval mode: a shipped name, a folder written by save_pretrained, or a hub id.

    Raises:
        InputError: no such folder or hub id, a hub that cannot be reached, a checkpoint of another class, one that is
            not complete, or whose weights, tokenizer and processor do not belong together: one blank picture and short
            texts go through the whole model.

    >>> mllm = load_mllm("blip2-emoji", "cpu")
    >>> type(mllm).__name__, mllm.num_layers, mllm.hidden_size
    ('Blip2Adapter', 6, 96)
    """
    source, model_type = locate(name, MLLM)
    kind = next(kind for kind in ADAPTERS if kind.config_class.model_type == model_type)
    where = resolve_device(device)
    model, processor = load_checked(kind, PROCESSORS.get(kind, AutoProcessor.from_pretrained), source, name, dtype)
    with in_one_sentence(name, "cannot be used"):
        mllm = adapt(model, processor)
    check_vocabulary(mllm.tokenizer, mllm.causal_lm.get_input_embeddings().num_embeddings, name, [mllm.image_token_id])
    model.to(where)
    with in_one_sentence(name, "cannot run a blank picture and a text"):
        _try_out(mllm, name)
    return mllm


@torch.no_grad()
def _try_out(mllm: Adapter, name: str) -> None:
    """One blank picture with a text, and two texts alone, through the whole model.

    Raises:
        InputError: values that are not finite, two texts that the model cannot tell apart, a picture that does not fit.
    """
    blank = mllm.encode(["<image> a word"], [[Image.new("RGB", (96, 64))]])
    side = getattr(mllm.model.config.vision_config, "image_size", None)  # Qwen2.5-VL takes any
    if side is not None and blank.pixel_values is not None:
        check_size(blank.pixel_values, side, name)
    check_finite(mllm.run(blank.to(mllm.device)).logits, name)
    alone = mllm.encode(["a word", "and others"], [[], []], padding_side="left")
    logits = mllm.run(alone.to(mllm.device)).logits[:, -1].float()  # "text vocabulary"
    check_finite(logits, name)
    check_differ(*logits, name)
