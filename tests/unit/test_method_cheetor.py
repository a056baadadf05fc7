"""Cheetor on random-weight models of real classes: the invariants of a zero-initialised, frozen-backbone method."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
)

from backbones.blip2_emoji import make_processor
from vlws.data.emoji_world import counterfactual as cf
from vlws.errors import InputError
from vlws.methods.cheetor import (
    Cheetor,
    CheetorConfig,
    fit_cheetor,
    guidance_position,
)
from vlws.models import added
from vlws.models.adapter import IGNORED
from vlws.models.attention import attention_map, least_attended, significance
from vlws.models.families import adapt, load_mllm
from vlws.models.upper import upper_layers
from vlws.train import Diverged

QUERIES, WIDTH, HIDDEN, LAYERS = 3, 20, 32, 4


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def text_config(kind: str, tokenizer):
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size = {"vocab_size": len(tokenizer), "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    if kind == "opt":
        return OPTConfig(**size, **ids, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=HIDDEN, dropout=0.0)
    return LlamaConfig(**size, **ids, intermediate_size=48, max_position_embeddings=64, num_key_value_heads=2)


def blip2(processor, kind="llama", dtype=torch.float32, seed=0):
    """A Blip2ForConditionalGeneration of another size than the shipped one, with random weights."""
    torch.manual_seed(seed)
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config=tower | {"image_size": 48, "patch_size": 12, "initializer_range": 0.2},
        qformer_config={
            **{"vocab_size": 2, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 3},
            **{"num_attention_heads": 2, "encoder_hidden_size": 24, "initializer_range": 0.2},
        },
        text_config=text_config(kind, processor.tokenizer).to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_()
        for parameter in model.language_model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)  # far enough from uniform logits to see what changes them
    model.to(dtype).eval()
    processor.num_query_tokens = QUERIES
    return adapt(model, processor)


def llava(processor):
    torch.manual_seed(0)
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=48, patch_size=16),
        text_config=text_config("llama", processor.tokenizer),
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    of_llava = LlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return adapt(LlavaForConditionalGeneration(config).eval(), of_llava)


def samples(n=3, seed=1):
    """Prompts with two pictures, their pictures, and answers of different lengths."""
    pairs = cf.edits(cf.sample(n, seed), [1] * n, seed)
    pictures = [list(cf.render([pair.before, pair.after])) for pair in pairs]
    return [cf.DIFFERENCE_PROMPT] * n, pictures, [f" {pair.sentence}" for pair in pairs]


def mixed(n=3):
    """Prompts with one, two and no leading picture in turn: rows of different length and number of pictures."""
    prompts = ["<image> what is this?", "first <image> then <image> describe the difference.", "<image><image><image>."]
    pictures = [list(cf.render(cf.sample(k, 7 + k))) for k in (1, 2, 3)]
    return prompts[:n], pictures[:n]


def moved(cheetor, scale=0.5):
    """The second look after training would have moved it: no weight at zero."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in cheetor.second_look.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return cheetor


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("second", ["vpg", "heuristic"])
def test_at_the_start_it_is_the_backbone(processor, kind, side, second):
    mllm = blip2(processor, kind)
    batch = mllm.encode(*mixed(), padding_side=side)
    cheetor = Cheetor(mllm, CheetorConfig(kind=second))
    assert (cheetor.run(batch).logits - mllm.run(batch).logits).abs().max() == 0
    assert cheetor.times_added == 1


def test_at_the_start_it_is_the_backbone_in_half_precision(processor):
    mllm = blip2(processor, dtype=torch.bfloat16)
    batch = mllm.encode(*mixed(), padding_side="left")
    logits = Cheetor(mllm).run(batch).logits
    assert logits.dtype == torch.bfloat16
    assert (logits - mllm.run(batch).logits).abs().max() == 0
    assert not torch.equal(moved(Cheetor(mllm)).run(batch).logits, mllm.run(batch).logits)


def test_only_the_new_parameters_are_trained(processor):
    mllm = blip2(processor)
    cheetor = Cheetor(mllm)
    expected = 2 * HIDDEN * WIDTH + HIDDEN + WIDTH + QUERIES * WIDTH
    assert sum(p.numel() for p in cheetor.trainable_parameters()) == expected
    assert not [p for p in mllm.model.parameters() if p.requires_grad]
    assert torch.equal(cheetor.second_look.queries, mllm.model.query_tokens[0])  # a copy, not the same tensor
    assert cheetor.second_look.queries.data_ptr() != mllm.model.query_tokens.data_ptr()
    without = Cheetor(mllm, CheetorConfig(guided=False))
    assert sum(p.numel() for p in without.trainable_parameters()) == expected - HIDDEN * WIDTH - WIDTH


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_positions_stay_and_image_positions_change_after_one_step(processor, side):
    mllm = blip2(processor)
    cheetor = Cheetor(mllm)
    prompts, pictures, answers = samples()
    fit_cheetor(cheetor, [cheetor.states(prompts, pictures, answers)], 1, [3], lr=1e-2)
    batch = mllm.encode(*mixed(), padding_side=side)
    image = batch.input_ids == mllm.image_token_id
    seen = []
    with cheetor.injecting(batch):
        hook = mllm.layers[cheetor.layer].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        mllm.run(batch)
        hook.remove()
    given = mllm.hidden(batch, cheetor.layer)
    there = batch.attention_mask.bool()
    assert torch.equal(seen[0][there & ~image], given[there & ~image])
    assert ((seen[0] - given)[image].abs().amax(-1) > 0).all()


def test_gradients_reach_the_injection_first_then_all(processor):
    mllm = blip2(processor)
    cheetor = Cheetor(mllm)
    prompts, pictures, answers = samples()
    batch = mllm.encode(prompts, pictures, answers=answers)
    optimizer = torch.optim.SGD(cheetor.trainable_parameters(), lr=0.1)
    cheetor.run(batch).loss.backward()
    second = cheetor.second_look
    assert second.inject.weight.grad.abs().max() > 0
    assert second.inject.bias.grad.abs().max() > 0
    for parameter in (second.queries, second.guide.weight, second.guide.bias):
        assert parameter.grad.abs().max() == 0
    optimizer.step()
    optimizer.zero_grad()
    cheetor.run(batch).loss.backward()
    for parameter in (second.queries, second.guide.weight, second.guide.bias):
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_cached_decoding_is_uncached_decoding_and_adds_the_second_look_once(processor, kind):
    mllm = blip2(processor, kind)
    cheetor = moved(Cheetor(mllm))
    batch = mllm.encode(*mixed(), padding_side="left")
    cheetor.times_added = 0
    cached = cheetor.generate(batch, 5)
    assert cheetor.times_added == 1
    embeds, mask, chosen = mllm.embed(batch), batch.attention_mask, []
    table = mllm.causal_lm.get_input_embeddings()
    with torch.no_grad(), cheetor.injecting(batch):
        for _ in range(5):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            out = mllm.causal_lm(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
            chosen.append(out.logits[:, -1].argmax(-1))
            embeds = torch.cat([embeds, table(chosen[-1])[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    ids = torch.stack(chosen, 1)
    ended = (ids == mllm.tokenizer.eos_token_id).cumsum(1) > 0
    ids = ids.masked_fill(ended, mllm.tokenizer.pad_token_id)
    assert cached == mllm.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert cached != mllm.generate(batch, 5)


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_cached_states_give_the_loss_and_the_gradients_of_the_whole_model(processor, kind, layer):
    mllm = blip2(processor, kind)
    cheetor = moved(Cheetor(mllm, CheetorConfig(layer=layer)), 0.1)
    prompts, pictures, answers = samples(5)
    states = cheetor.states(prompts, pictures, answers, chunk=2)
    found = {}
    for name, loss in [
        ("states", lambda: cheetor.loss(states)),
        ("hooks", lambda: cheetor.run(mllm.encode(prompts, pictures, answers=answers)).loss),
    ]:
        cheetor.second_look.zero_grad()
        value = loss()
        value.backward()
        found[name] = [value.detach(), *(p.grad.clone() for p in cheetor.trainable_parameters())]
    for fast, slow in zip(found["states"], found["hooks"], strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_logits_of_answers_are_those_of_the_whole_model_and_follow_the_guidance_that_is_given(processor):
    mllm = blip2(processor)
    cheetor = moved(Cheetor(mllm))
    prompts, pictures, answers = samples(5)
    states = cheetor.states(prompts, pictures, answers, chunk=2)
    with torch.no_grad():
        logits, tokens = cheetor.answer_logits(states)
        batch = mllm.encode(prompts, pictures, answers=answers)
        answered = batch.labels[:, 1:] != IGNORED
        torch.testing.assert_close(logits, cheetor.run(batch).logits[:, :-1][answered], rtol=1e-4, atol=1e-5)
        assert tokens.tolist() == batch.labels[:, 1:][answered].tolist()
        other, same = cheetor.answer_logits(states | {"h": states["h"].roll(1, 0)})
    assert (same == tokens).all()
    assert not torch.allclose(other, logits)


def test_left_padding_changes_no_answer(processor):
    mllm = blip2(processor)
    cheetor = moved(Cheetor(mllm))
    prompts, pictures = mixed()
    together = cheetor.run(mllm.encode(prompts, pictures, padding_side="left")).logits[:, -1]
    for i in range(3):
        alone = cheetor.run(mllm.encode(prompts[i : i + 1], pictures[i : i + 1])).logits[0, -1]
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_guidance_comes_from_the_last_token_of_the_prompt(processor):
    mllm = blip2(processor)
    prompts, pictures, answers = samples()
    batch = mllm.encode(prompts, pictures, answers=answers)
    at = guidance_position(batch)
    starts = [len(ids) for ids in mllm.encode(prompts, pictures).input_ids]
    assert at.tolist() == [start - 1 for start in starts]
    left = mllm.encode(*mixed(), padding_side="left")
    assert guidance_position(left).tolist() == [left.input_ids.shape[1] - 1] * 3
    cheetor = moved(Cheetor(mllm))
    same = mllm.encode(prompts, pictures, answers=[" red"] * 3)
    for row in range(3):  # so the answer that follows changes nothing of what is added
        found = []
        for b in (batch, same):
            with cheetor.injecting(b):
                found.append(mllm.hidden(b, LAYERS)[row, : starts[row]])
        first, second = found
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_upper_layers_share_their_weights_and_leave_the_model_whole(processor):
    mllm = blip2(processor)
    upper = upper_layers(mllm.decoder, 3)
    assert len(upper.layers) == 1
    assert upper.layers[0] is mllm.layers[3]
    assert len(mllm.decoder.layers) == LAYERS


def test_training_lowers_the_loss_and_leaves_the_backbone(processor):
    mllm = blip2(processor)
    before = {name: value.clone() for name, value in mllm.model.state_dict().items()}
    cheetor = Cheetor(mllm)
    states = cheetor.states(*samples(8))
    start = cheetor.loss(states).item()
    history = fit_cheetor(cheetor, [states, states], 30, [4, 4], lr=1e-2, label="")
    assert cheetor.loss(states).item() < start - 0.05
    assert history[-1]["step"] == 30
    assert all(torch.equal(value, before[name]) for name, value in mllm.model.state_dict().items())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(processor, tmp_path):
    mllm = blip2(processor)
    cheetor = Cheetor(mllm)
    states = cheetor.states(*samples(4))
    fit_cheetor(cheetor, [states], 4, [4], out=tmp_path, label="")
    good = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["states"][0]
    states["features"] = states["features"] * torch.nan
    with pytest.raises(Diverged, match=r"at step 5 of 8; the checkpoint in .* is good"):
        fit_cheetor(Cheetor(mllm), [states], 8, [4], out=tmp_path, label="")
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["states"][0]
    assert all(torch.equal(kept[name], good[name]) and kept[name].isfinite().all() for name in good)


# --- Linear-VPG -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_linear_vpg_on_a_llava(processor, side):
    mllm = llava(processor)
    batch = mllm.encode(*mixed(), padding_side=side)
    cheetor = Cheetor(mllm, CheetorConfig(kind="linear"))
    assert (cheetor.run(batch).logits - mllm.run(batch).logits).abs().max() == 0
    assert not [p for p in mllm.model.parameters() if p.requires_grad]
    prompts, pictures, answers = samples(4)
    states = cheetor.states(prompts, pictures, answers)
    start = cheetor.loss(states).item()
    fit_cheetor(cheetor, [states], 20, [4], lr=1e-2, label="")
    assert cheetor.loss(states).item() < start
    whole = cheetor.run(mllm.encode(prompts, pictures, answers=answers)).loss
    torch.testing.assert_close(cheetor.loss(states), whole, rtol=1e-4, atol=1e-5)
    assert all((p.grad is None) == (not p.requires_grad) for p in cheetor.second_look.parameters())
    assert moved(cheetor).generate(mllm.encode(*mixed(), padding_side="left"), 3)


# --- InstructBLIP ---------------------------------------------------------------------------------------------------


def instructblip(processor):
    """A Q-Former that reads the text beside its queries."""
    torch.manual_seed(0)
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = BertTokenizer(
        vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "this"])}
    )
    config = InstructBlipConfig(
        vision_config=tower | {"image_size": 48, "patch_size": 12, "initializer_range": 0.2},
        qformer_config=tower
        | {"vocab_size": 7, "hidden_size": WIDTH, "encoder_hidden_size": 24, "initializer_range": 0.2},
        text_config=text_config("llama", processor.tokenizer).to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = InstructBlipForConditionalGeneration(config).eval()
    model.query_tokens.data.normal_()
    pictures = processor.image_processor
    return adapt(model, InstructBlipProcessor(pictures, processor.tokenizer, words, num_query_tokens=QUERIES))


def test_instructblip_is_the_backbone_at_first_and_trains_from_states(processor):
    mllm = instructblip(processor)
    cheetor = Cheetor(mllm)
    batch = mllm.encode(*mixed(), padding_side="left")
    assert torch.equal(cheetor.run(batch).logits, mllm.run(batch).logits)
    prompts, pictures, answers = samples(4)
    prompts = ["<image> what is this? <image>", *prompts[1:]]  # instructions of different length
    states = cheetor.states(prompts, pictures, answers, chunk=2)
    moved(cheetor, 0.1)
    whole = cheetor.run(mllm.encode(prompts, pictures, answers=answers)).loss
    torch.testing.assert_close(cheetor.loss(states), whole, rtol=1e-4, atol=1e-5)
    start = cheetor.loss(states).item()
    fit_cheetor(cheetor, [states], 20, [4], lr=1e-2, label="")
    assert cheetor.loss(states).item() < start


def test_instructblip_has_attention_maps_with_and_without_an_instruction(processor):
    mllm = instructblip(processor)
    batch = mllm.encode(["<image> what is this"], [mixed(1)[1][0]])
    features = mllm.vision_features(batch)
    alone, told = attention_map(mllm, features), attention_map(mllm, features, instructions=batch.extra)
    assert alone.shape == told.shape == (1, 16)
    assert not torch.allclose(alone, told)


# --- what the VPG attends to ------------------------------------------------------------------------------------------


def test_attention_map_is_the_mean_over_layers_heads_and_queries(processor):
    mllm = blip2(processor)
    batch = mllm.encode(*mixed())
    features = mllm.vision_features(batch)
    attention = attention_map(mllm, features)
    assert attention.shape == (6, 16)  # the class token is left out
    qformer = mllm.model.qformer
    assert qformer.config._attn_implementation == "sdpa"
    own, read = [], qformer.encoder.layer[0].crossattention.attention  # layer 0 and layer 2 look at the picture
    hooks = [
        qformer.encoder.layer[k].crossattention.attention.register_forward_pre_hook(
            lambda module, args, kwargs: own.append((module, kwargs["hidden_states"], kwargs["encoder_hidden_states"])),
            with_kwargs=True,
        )
        for k in (0, 2)
    ]
    with torch.no_grad():
        mllm.qformer_outputs(features, mllm.model.query_tokens, batch.extra)
    for hook in hooks:
        hook.remove()
    maps = []
    for module, hidden, keys in own:
        q, k = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (module.query(hidden), module.key(keys)))
        maps.append((q @ k.transpose(-1, -2) * read.scaling).softmax(-1).mean((1, 2)))
    torch.testing.assert_close(attention, torch.stack(maps).mean(0)[:, 1:], rtol=1e-4, atol=1e-6)
    other = attention_map(mllm, features, mllm.model.query_tokens + 1.0)
    assert not torch.allclose(attention, other, atol=1e-3) or torch.allclose(attention.sum(1), other.sum(1))


def test_the_least_attended_thing_is_chosen():
    attention = torch.full((2, 36), 0.01)
    attention[0, 0], attention[1, 35] = 0.5, 0.5  # the top left corner, the bottom right one
    masks = np.zeros((2, 48, 48), bool)
    masks[0, :8, :8], masks[1, 40:, 40:] = True, True
    scores = significance(attention, [masks, masks])
    assert scores[0][0] > 10 * scores[0][1]
    assert scores[1][1] > 10 * scores[1][0]
    targets, ignored = least_attended(scores)
    assert targets.tolist() == [1, 0]
    assert ignored.all()
    even, kept = least_attended([np.array([0.3, 0.31])])
    assert even.tolist() == [0]
    assert not kept.any()


def test_significance_is_the_mean_inside_the_mask():
    attention = torch.rand(1, 36, generator=torch.Generator().manual_seed(0))
    everything = np.ones((1, 48, 48), bool)
    assert significance(attention, [everything])[0][0] == pytest.approx(attention.mean().item(), abs=0.02)


# --- what cannot work -----------------------------------------------------------------------------------------------


def test_a_model_without_a_q_former_is_refused(processor):
    with pytest.raises(InputError, match="LlavaForConditionalGeneration has no Q-Former"):
        Cheetor(llava(processor))
    with pytest.raises(InputError, match="has no projection of patches"):
        Cheetor(blip2(processor), CheetorConfig(kind="linear"))
    with pytest.raises(InputError, match="kind='twice': accepted are vpg, linear, heuristic"):
        Cheetor(blip2(processor), CheetorConfig(kind="twice"))


@pytest.mark.parametrize("layer", [-1, LAYERS, 99])
def test_a_layer_out_of_range_is_refused(processor, layer):
    with pytest.raises(InputError, match=f"layer={layer}: .* layers 0 to {LAYERS - 1}"):
        Cheetor(blip2(processor), CheetorConfig(layer=layer))


def test_samples_that_cannot_be_learned_from_are_refused(processor):
    mllm = blip2(processor)
    cheetor = Cheetor(mllm)
    prompts, pictures, answers = samples(2)
    with pytest.raises(InputError, match="Sample 1 has no picture"):
        cheetor.run(mllm.encode([prompts[0], "no picture"], [pictures[0], []]))
    with pytest.raises(InputError, match=r"The samples have \[1, 2\] pictures"):
        cheetor.states([prompts[0], "<image>"], [pictures[0], pictures[1][:1]], answers)
    with pytest.raises(InputError, match="Sample 0 has no picture"):
        cheetor.states(["a", "b"], [[], []], answers)
    with pytest.raises(InputError, match="Answer 1 is empty"):
        cheetor.states(prompts, pictures, [answers[0], " "])
    with pytest.raises(InputError, match="1 sets of samples and 2 batch sizes; give one size per set"):
        fit_cheetor(cheetor, [cheetor.states(prompts, pictures, answers)], 1, [1, 1])


# --- on disk ----------------------------------------------------------------------------------------------------------


FRESH = """
import sys
from vlws.methods.cheetor import Cheetor
from vlws.models.families import load_mllm
from vlws.data.emoji_world import counterfactual as cf
mllm = load_mllm("blip2-emoji", "cpu")
pictures = [[image] for image in cf.render(cf.sample(3, 7))]
batch = mllm.encode(["<image> what is this?"] * 3, pictures, padding_side="left")
print(Cheetor.from_pretrained(sys.argv[1], mllm).run(batch).logits.double().sum(-1).tolist())
"""


def test_a_saved_second_look_is_the_same_in_a_fresh_process(tmp_path):
    mllm = load_mllm("blip2-emoji", "cpu")
    cheetor = moved(Cheetor(mllm, CheetorConfig(layer=1)), 0.1)
    batch = mllm.encode(
        ["<image> what is this?"] * 3, [[image] for image in cf.render(cf.sample(3, 7))], padding_side="left"
    )
    cheetor.save_pretrained(tmp_path / "saved")
    done = subprocess.run([sys.executable, "-c", FRESH, tmp_path / "saved"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = cheetor.run(batch).logits.double().sum(-1)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)).double(), expected, rtol=1e-6, atol=1e-6)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}


def test_added_weights_travel_as_arrays(processor):
    mllm = blip2(processor)
    trained, other = moved(Cheetor(mllm)), Cheetor(mllm)
    assert all(isinstance(value, np.ndarray) for value in trained.state_dict().values())
    other.load_state_dict(trained.state_dict())
    batch = mllm.encode(*mixed())
    assert torch.equal(other.run(batch).logits, trained.run(batch).logits)
    assert not torch.equal(other.run(batch).logits, mllm.run(batch).logits)


def test_a_folder_of_another_method_or_backbone_is_refused(processor, tmp_path):
    mllm = blip2(processor)
    with pytest.raises(InputError, match="holds no Cheetor"):
        Cheetor.from_pretrained(tmp_path, mllm)
    Cheetor(mllm).save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="made for a backbone of hidden_size 32, num_layers 4; the one given has"):
        Cheetor.from_pretrained(tmp_path / "saved", load_mllm("blip2-emoji", "cpu"))
    added.save_added(tmp_path / "sugar", "Sugar", {}, mllm.sizes, {})
    with pytest.raises(InputError, match="holds Sugar, not Cheetor"):
        Cheetor.from_pretrained(tmp_path / "sugar", mllm)
