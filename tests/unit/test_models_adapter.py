"""Every family of multimodal language models: on random weights of the real classes, the adapter is the model's own."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    T5Config,
)

from vlws.errors import InputError
from vlws.models import families
from vlws.models.adapter import Parts
from vlws.models.families import adapt, load_mllm

SIDE, PATCH, WIDTH = 16, 8, 32
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEXTS = [
    "<image> and <image> differ in colour",
    "what is <image>?",
    "no picture at all, only words",
    "<image><image><image>",
]
COUNTS = [2, 1, 0, 3]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens: any text tokenizes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def text_config(kind: str, vocab: int, layers: int = 3) -> LlamaConfig | OPTConfig:
    shared = {"vocab_size": vocab, "hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 96}
    if kind == "opt":
        return OPTConfig(**shared, **ids, ffn_dim=64, word_embed_proj_dim=WIDTH, dropout=0.0)
    return LlamaConfig(**shared, **ids, intermediate_size=64)


VISION = {
    **{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"image_size": SIDE, "patch_size": PATCH},
}
SIZE = {"height": SIDE, "width": SIDE}


def make_llava(strategy: str = "default", layers=-2):
    tokenizer = make_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text_config("llama", len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layers,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIZE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config), processor


def qformer(**more) -> dict:
    return {
        **{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "cross_attention_frequency": 1},
        **more,
    }


def make_blip2(kind: str = "opt"):
    processor = Blip2Processor(BlipImageProcessorPil(size=SIZE), make_tokenizer(), num_query_tokens=3)
    config = Blip2Config(
        vision_config={**VISION, "initializer_range": 0.02},
        qformer_config=qformer(),
        text_config=text_config(kind, len(processor.tokenizer)),
        num_query_tokens=3,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    return Blip2ForConditionalGeneration(config), processor


def make_instructblip():
    tokenizer, other = make_tokenizer(), make_tokenizer()
    processor = InstructBlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer, other, num_query_tokens=3)
    config = InstructBlipConfig(
        vision_config={**VISION, "initializer_range": 0.02},
        qformer_config=qformer(vocab_size=len(other), pad_token_id=0),
        text_config=text_config("llama", len(tokenizer)),
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return InstructBlipForConditionalGeneration(config), processor


def make_qwen():
    tokenizer = make_tokenizer()
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=32 * 32)
    config = Qwen2_5_VLConfig(
        text_config={
            **{"vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
        },
        vision_config={
            **{"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH},
            **{"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1]},
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config), Parts(tokenizer, images)  # the real processor needs torchvision


MAKERS = {
    "llava": make_llava,
    "llava-full-two-layers": lambda: make_llava(strategy="full", layers=[-2, -1]),
    "blip2-opt": make_blip2,
    "blip2-llama": lambda: make_blip2("llama"),
    "instructblip": make_instructblip,
    "qwen2.5-vl": make_qwen,
}


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that pictures and positions matter, and distinct where classes start at zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "query_tokens" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=MAKERS)
def mllm(request):
    model, processor = MAKERS[request.param]()
    return adapt(spread(model), processor)


@pytest.fixture(scope="module")
def pictures():
    """Per text its pictures, PIL, some of another size (which only Qwen2.5-VL keeps)."""
    noise = np.random.default_rng(0)
    sizes = iter([(16, 16), (16, 32), (24, 16), (16, 16), (16, 16), (32, 24)])
    return [
        [Image.fromarray(noise.integers(0, 256, (*next(sizes), 3), np.uint8)) for _ in range(count)] for count in COUNTS
    ]


def real(batch, values: torch.Tensor) -> list[torch.Tensor]:
    """The rows of "batch len ..." without padding."""
    return [row[mask.bool()] for row, mask in zip(values, batch.attention_mask, strict=True)]


def own_inputs(mllm, batch) -> dict:
    """What the model's own forward takes."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "pixel_values": batch.pixel_values}
    if isinstance(mllm, families.QwenVLAdapter):
        inputs["mm_token_type_ids"] = (batch.input_ids == mllm.image_token_id).int()
    return inputs | batch.extra


# --- encoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_picture_has_its_span_of_image_tokens_in_the_order_of_the_placeholders(mllm, pictures, side):
    batch = mllm.encode(TEXTS, pictures, padding_side=side)
    assert batch.image_spans[:, 0].tolist() == [0, 0, 1, 3, 3, 3]
    inside = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    for row, start, stop in batch.image_spans.tolist():
        assert stop > start
        assert not inside[row, start:stop].any()
        inside[row, start:stop] = True
    assert torch.equal(inside, batch.input_ids == mllm.image_token_id)
    filled = [len(rows.reshape(-1, mllm.hidden_size)) for rows in mllm.embed_images(batch)]
    assert (batch.image_spans[:, 2] - batch.image_spans[:, 1]).tolist() == filled
    assert (batch.input_ids[:, 0 if side == "right" else -1] != mllm.tokenizer.pad_token_id).all()
    assert [mllm.tokenizer.bos_token_id for _ in TEXTS] == [row[0].item() for row in real(batch, batch.input_ids)]


def test_the_pictures_stand_at_their_spans(mllm, pictures):
    batch = mllm.encode(TEXTS, pictures, padding_side="left")
    embeds = mllm.embed(batch)
    for (row, start, stop), image in zip(batch.image_spans.tolist(), mllm.embed_images(batch), strict=True):
        assert torch.equal(embeds[row, start:stop], image)


def test_labels_are_the_answers_and_their_end(mllm, pictures):
    answers = [" blue", " a cat with a hat", " yes", " no"]
    for side in ("right", "left"):
        batch = mllm.encode(TEXTS, pictures, side, answers)
        for row, labels, answer in zip(batch.input_ids, batch.labels, answers, strict=True):
            kept = labels != -100
            assert torch.equal(labels[kept], row[kept])
            assert mllm.tokenizer.decode(labels[kept]) == f"{answer}</s>"
        log_p = mllm.run(batch).logits[:, :-1].log_softmax(-1)
        kept = batch.labels[:, 1:] != -100
        picked = log_p[kept].gather(1, batch.labels[:, 1:][kept][:, None])
        torch.testing.assert_close(mllm.run(batch).loss, -picked.mean())


def test_arrays_of_the_models_size_are_read_like_pictures(mllm):
    array = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    one, other = (mllm.encode(["<image>"], [[picture]]) for picture in (array, Image.fromarray(array)))
    torch.testing.assert_close(one.pixel_values, other.pixel_values)


def test_cached_features_stand_for_the_pictures(mllm, pictures):
    batch = mllm.encode(TEXTS, pictures)
    rows = iter(mllm.vision_features(batch))
    cached = mllm.encode(TEXTS, [[next(rows) for _ in range(count)] for count in COUNTS])
    assert cached.pixel_values is None
    assert torch.equal(cached.input_ids, batch.input_ids)
    assert torch.equal(cached.image_spans, batch.image_spans)
    torch.testing.assert_close(mllm.run(cached).logits, mllm.run(batch).logits)


# --- running ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_running_from_embeddings_equals_the_models_own_forward(mllm, pictures):
    batch = mllm.encode(TEXTS, pictures)  # padded right, as the models' own positions assume
    own = mllm.model(**own_inputs(mllm, batch)).logits
    for ours in (mllm.run(batch).logits, mllm.run(batch, mllm.embed(batch)).logits):
        for a, b in zip(real(batch, ours), real(batch, own), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing_at_real_tokens(mllm, pictures):
    right, left = (mllm.encode(TEXTS, pictures, side) for side in ("right", "left"))
    alone = [mllm.encode([text], [row]) for text, row in zip(TEXTS, pictures, strict=True)]
    for a, b, one in zip(real(right, mllm.run(right).logits), real(left, mllm.run(left).logits), alone, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)
        if not isinstance(mllm, families.InstructBlipAdapter):  # its Q-Former reads the text of the row
            torch.testing.assert_close(a, mllm.run(one).logits[0], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_the_pictures_and_their_order_matter(mllm, pictures):
    logits = mllm.run(mllm.encode(TEXTS[:1], pictures[:1])).logits[0, -1]
    turned = mllm.run(mllm.encode(TEXTS[:1], [pictures[0][::-1]])).logits[0, -1]
    assert (logits - turned).abs().max() > 1e-3


@torch.no_grad()
def test_bfloat16_runs_and_stays_near_float32(mllm, pictures):
    wide = mllm.run(mllm.encode(TEXTS, pictures)).logits
    try:
        mllm.model.to(torch.bfloat16)
        assert mllm.dtype == torch.bfloat16
        batch = mllm.encode(TEXTS, pictures)
        narrow = mllm.run(batch).logits
        assert narrow.dtype == mllm.embed(batch).dtype == torch.bfloat16
        assert mllm.generate(mllm.encode(TEXTS, pictures, "left"), 3)
    finally:
        mllm.model.to(torch.float32)
        spread(mllm.model)
    for a, b in zip(real(batch, narrow.float()), real(batch, wide), strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99


@torch.no_grad()
def test_hidden_states_are_the_models_own(mllm, pictures):
    batch = mllm.encode(TEXTS, pictures)
    states = mllm.run(batch, output_hidden_states=True).hidden_states
    assert len(states) == mllm.num_layers + 1
    for layer, state in enumerate(states):
        assert torch.equal(mllm.hidden(batch, layer), state)
        assert state.shape == (*batch.input_ids.shape, mllm.hidden_size)
    torch.testing.assert_close(mllm.lm_head(states[-1]), mllm.run(batch).logits)
    seen = []
    hook = mllm.layers[1].register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    mllm.run(batch)
    hook.remove()
    assert torch.equal(seen[0], states[1])


def test_gradients_reach_embeddings_and_projector(mllm, pictures):
    batch = mllm.encode(TEXTS, pictures, answers=["a", "b", "c", "d"])
    embeds = mllm.embed(batch).detach().requires_grad_()
    mllm.run(batch, embeds).loss.backward()
    assert embeds.grad.abs().sum() > 0
    mllm.model.zero_grad()
    mllm.run(batch).loss.backward()
    bridge = [p for name, p in mllm.model.named_parameters() if re.search("projector|language_projection|merger", name)]
    assert bridge
    assert all(p.grad.abs().sum() > 0 for p in bridge)
    mllm.model.zero_grad()


# --- generating -------------------------------------------------------------------------------------------------


@torch.no_grad()
def argmax_decoding(mllm, text, images, steps) -> str:
    """Uncached: the whole row again for each token."""
    batch, ids = mllm.encode([text], [images]), []
    embeds = mllm.embed(batch)
    for _ in range(steps):
        token = mllm.run(batch, embeds).logits[0, -1].argmax()
        ids.append(token.item())
        if token == mllm.tokenizer.eos_token_id:
            break
        embeds = torch.cat([embeds, mllm.causal_lm.get_input_embeddings()(token)[None, None]], dim=1)
        grown = torch.cat([batch.input_ids, token[None, None]], dim=1)
        batch = dataclasses.replace(batch, input_ids=grown, attention_mask=torch.ones_like(grown))
    return mllm.tokenizer.decode(ids, skip_special_tokens=True)


def test_batched_generation_equals_one_by_one_and_uncached_argmax(mllm, pictures):
    together = mllm.generate(mllm.encode(TEXTS, pictures, "left"), 6)
    assert len(set(together)) > 1
    assert any(together)
    for text, images, answer in zip(TEXTS, pictures, together, strict=True):
        assert mllm.generate(mllm.encode([text], [images], "left"), 6) == [answer]
        assert argmax_decoding(mllm, text, images, 6) == answer


def test_decoding_is_greedy_whatever_the_checkpoint_prefers(mllm, pictures):
    batch = mllm.encode(TEXTS, pictures, "left")
    plain, own = mllm.generate(batch, 6), mllm.causal_lm.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.num_beams = True, 3.0, 9.0, 2
    try:
        assert mllm.generate(batch, 6) == plain
    finally:
        own.do_sample, own.temperature, own.repetition_penalty, own.num_beams = None, None, None, None


def test_a_batch_without_any_picture_runs(mllm):
    batch = mllm.encode(["only words", "and some more words"], [[], []], "left")
    assert batch.pixel_values is None
    assert batch.image_spans.shape == (0, 3)
    assert mllm.run(batch).logits.isfinite().all()
    assert len(mllm.generate(batch, 2)) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_same_road_leads_to_the_same_logits(mllm, pictures):
    batch = mllm.encode(TEXTS, pictures, answers=["a", "b", "c", "d"])
    prompts = mllm.encode(TEXTS, pictures, "left")
    wide, said = mllm.run(batch), mllm.generate(prompts, 4)
    try:
        mllm.model.to("cuda")
        near = mllm.run(batch.to(mllm.device))
        assert near.logits.device.type == "cuda"
        torch.testing.assert_close(near.loss.cpu(), wide.loss, atol=1e-3, rtol=1e-3)
        assert mllm.generate(prompts.to(mllm.device), 4) == said
    finally:
        mllm.model.to("cpu")


# --- the Q-Former -----------------------------------------------------------------------------------------------


def test_a_second_look_with_other_queries_sees_the_same_pictures_otherwise(pictures):
    model, processor = make_blip2()
    mllm = adapt(spread(model), processor)
    batch = mllm.encode(TEXTS, pictures)
    features = mllm.vision_features(batch)
    first = mllm.qformer_outputs(features, mllm.model.query_tokens, batch.extra).last_hidden_state
    torch.testing.assert_close(mllm.model.language_projection(first), mllm.embed_images(batch))
    shifted = mllm.model.query_tokens + torch.randn(len(features), 1, first.shape[-1])
    assert mllm.qformer_outputs(features, shifted, batch.extra).last_hidden_state.shape == first.shape
    model.set_attn_implementation("eager")
    looked = mllm.qformer_outputs(features, shifted, batch.extra, output_attentions=True)
    assert looked.cross_attentions[0].shape == (len(features), 2, 3, (SIDE // PATCH) ** 2 + 1)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava():
    model, processor = make_llava()
    return adapt(spread(model), processor)


def refused(sentence: str):
    return pytest.raises(InputError, match=re.escape(sentence))


def test_marks_and_pictures_must_match(llava, pictures):
    with refused("Text 0 marks 2 pictures with <image>, but 1 were given; it needs one <image> per picture."):
        llava.encode(TEXTS[:1], [pictures[0][:1]])
    with refused("2 texts, 1 lists of pictures and 2 answers were given; each text needs one of each."):
        llava.encode(["a", "b"], [[]])


def test_image_tokens_and_what_fills_them_must_match(llava, pictures):
    batch = llava.encode(TEXTS, pictures)
    cut = dataclasses.replace(batch, input_ids=batch.input_ids[:, :4], attention_mask=batch.attention_mask[:, :4])
    with refused("image tokens, but its pictures fill 24; check that the processor's patch_size"):
        llava.run(cut)
    with refused("The batch has 24 image tokens, but its pictures fill 0;"):
        llava.embed(dataclasses.replace(batch, pixel_values=None))
    model, processor = make_llava()
    processor.num_additional_image_tokens = 0
    with refused("The batch has 3 image tokens, but its pictures fill 4;"):
        wrong = adapt(model, processor)
        wrong.embed(wrong.encode(["<image>"], [pictures[1]]))


def test_an_image_token_of_ones_own_is_refused(pictures):
    mllm = adapt(*make_qwen())
    with refused("The texts hold 1 image tokens where their pictures need 0; write <image> for a picture"):
        mllm.encode(["<|image_pad|>"], [[]])


def test_a_layer_out_of_range_is_refused(llava, pictures):
    batch = llava.encode(TEXTS, pictures)
    for layer in (-1, 4):
        with refused(f"layer={layer}: LlavaForConditionalGeneration has layers 0 to 3."):
            llava.hidden(batch, layer)


def test_an_empty_answer_is_refused(llava):
    with refused("Answer 1 is empty; each sample needs one to learn from."):
        llava.encode(["a", "b"], [[], []], answers=["yes", " "])


def test_more_tokens_than_positions_are_refused(llava):
    with refused("Text 1 comes to 102 tokens with its pictures; the model has 96 positions."):
        llava.encode(["a", "z" + "qx" * 50], [[], []])


def test_generation_refuses_right_padding_and_answers(llava):
    for batch in (llava.encode(["a", "b c d"], [[], []]), llava.encode(["a"], [[]], answers=["b"])):
        with refused("generate() needs prompts padded on the left"):
            llava.generate(batch, 2)
    with refused("padding_side='both': accepted are left and right."):
        llava.encode(["a"], [[]], padding_side="both")


def test_other_classes_are_refused(llava):
    with refused("A CLIPVisionModel was given; accepted are LlavaForConditionalGeneration, Blip2For"):
        adapt(llava.model.model.vision_tower, llava.processor)


def test_an_encoder_decoder_is_refused():
    processor = make_blip2()[1]
    t5 = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    config = Blip2Config(vision_config=VISION, qformer_config=qformer(), text_config=t5, num_query_tokens=3)
    with refused("Blip2ForConditionalGeneration over T5ForConditionalGeneration, an encoder-decoder, was given;"):
        adapt(Blip2ForConditionalGeneration(config), processor)


def test_embeddings_of_another_dimension_are_refused():
    model, processor = make_blip2()
    model.config.text_config.word_embed_proj_dim = 16
    with refused("The language model's embeddings have dimension 16, but pictures enter at 32; accepted are"):
        adapt(Blip2ForConditionalGeneration(model.config), processor)


def test_a_processor_of_another_model_is_refused(llava):
    model, _ = make_qwen()
    with refused("The tokenizer has <image> as token 3, but the model expects pictures at token 6;"):
        adapt(model, llava.processor)


# --- loading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llava", "blip2-opt", "instructblip", "qwen2.5-vl"])
def test_what_was_saved_loads_and_says_the_same(kind, tmp_path, pictures):
    model, processor = MAKERS[kind]()
    spread(model).save_pretrained(tmp_path)
    if kind == "qwen2.5-vl":  # as on the hub: the processor's parts beside the weights
        processor.image_processor.save_pretrained(tmp_path)
        processor.tokenizer.save_pretrained(tmp_path)
    else:
        processor.save_pretrained(tmp_path)
    before, after = adapt(model, processor), load_mllm(str(tmp_path), device="cpu")
    assert not after.model.training
    with torch.no_grad():
        for a, b in zip(*(m.run(m.encode(TEXTS, pictures)).logits for m in (before, after)), strict=True):
            torch.testing.assert_close(a, b)


def test_what_cannot_be_loaded_is_told_in_a_sentence(tmp_path):
    with refused("There is no backbone 'nowhere': accepted are a shipped name"):
        load_mllm("nowhere")
    with refused("is no Hugging Face checkpoint: the folder has no config.json."):
        load_mllm(str(tmp_path))
    with refused("clip-emoji is a CLIPModel; accepted here: LlavaForConditionalGeneration, Blip2For"):
        load_mllm("clip-emoji")
    model, processor = make_llava()
    processor.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    with refused("holds no complete checkpoint:"):
        load_mllm(str(tmp_path), device="cpu")
    weights = model.state_dict()
    del weights["model.multi_modal_projector.linear_1.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with refused("holds no complete checkpoint: its weights lack model.multi_modal_projector.linear_1.weight; give"):
        load_mllm(str(tmp_path), device="cpu")
