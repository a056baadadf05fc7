"""Morph-tokens: encoder, tokens before and after the language model, losses, files, other architectures."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, Qwen2Config

from backbones.morph_emoji import make_decoder, make_llm, make_tokenizer
from vlws.data.emoji_world import album as albums
from vlws.data.emoji_world import drawings
from vlws.data.emoji_world.album import Album
from vlws.data.emoji_world.drawing_tasks import DRAW, TELL, tasks
from vlws.errors import InputError
from vlws.methods.morph_tokens import MorphConfig, MorphTokens
from vlws.models import hub
from vlws.models.morph_encoder import EncoderConfig, MorphEncoder, SlotAttention
from vlws.models.vq import PictureTokenizer, VQConfig


def made(llm=None, seed=0, **config):
    torch.manual_seed(seed)
    vq = PictureTokenizer(VQConfig(codes=40, width=8))
    encoder = MorphEncoder(EncoderConfig(vit_layers=1, codes=16), vq.codes.clone())
    tokenizer = make_tokenizer()
    llm = llm(tokenizer) if llm else make_llm(tokenizer, 16, seed)
    return MorphTokens(encoder, llm, tokenizer, make_decoder(40, 64), vq, MorphConfig(**config)).eval()


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture(scope="module")
def album():
    rng = torch.Generator().manual_seed(0)
    n = len(drawings.everything())
    ids, vq_ids = torch.randint(16, (n, 4), generator=rng), torch.randint(40, (n, 64), generator=rng)
    return Album(ids, torch.randn(n, 4, 96, generator=rng), vq_ids)


def asked_of(model, album, n=4, seed=0, **options):
    return albums.asked(model, album, tasks(DRAW, range(5760), n, np.random.default_rng(seed)), **options)


# --- encoder ---


@pytest.mark.parametrize("renormalise", [False, True])
def test_slot_attention_is_that_of_the_release(renormalise):
    torch.manual_seed(0)
    config = EncoderConfig(width=8, heads=2, renormalise=renormalise)
    slots = SlotAttention(config, torch.randn(5, 3)).double()
    slots.prior.data.normal_()
    x, patches = torch.randn(2, 4, 8).double(), torch.randn(2, 6, 8).double()
    got, weights = slots(x, patches)
    q, k, v = slots.q(x), slots.k(patches), slots.v(patches)
    confounders, prior = slots.to_head(slots.dictionary), slots.prior.softmax(0)
    want = torch.zeros(2, 4, 8).double()
    for b in range(2):
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            adjusted = []
            for query in q[b, :, part]:
                alpha = (confounders @ query / 2).softmax(0)
                shares = prior * alpha / ((prior * alpha).sum() if renormalise else 1)
                adjusted.append(query + (shares[:, None] * confounders).sum(0))
            s = torch.stack(adjusted) @ k[b, :, part].T / 2
            a = s.exp() / s.exp().sum(0)  # over queries
            a = a / (a.sum(1, keepdim=True) + 1)
            assert torch.allclose(weights[b, h], a)
            want[b, :, part] = a @ v[b, :, part]
    assert torch.allclose(got, slots.out(want))


def test_the_adjustment_as_released_shrinks_with_the_dictionary():
    torch.manual_seed(0)
    sizes = []
    for n in (10, 1000):
        slots = SlotAttention(EncoderConfig(), torch.randn(n, 16))
        sizes.append(slots.adjustment(torch.randn(1, 4, 4, 16)).norm().item())
    assert sizes[1] < 0.05 * sizes[0]


def test_a_query_does_not_depend_on_later_ones():
    torch.manual_seed(0)
    encoder = MorphEncoder(EncoderConfig(slot_layers=(), deconfound=False)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    before = encoder(pixels).z
    with torch.no_grad():
        encoder.queries[2] += torch.randn(64)  # a constant would not pass the LayerNorms
    after = encoder(pixels).z
    assert torch.allclose(before[:, :2], after[:, :2], atol=1e-6)
    assert not torch.allclose(before[:, 2:], after[:, 2:], atol=1e-2)


def test_a_picture_of_another_size_is_refused(model):
    with pytest.raises(InputError, match="Pictures of 16 x 32 pixels: this model reads 32 x 32"):
        model.read(torch.zeros(1, 3, 32, 16))
    assert model.read(torch.zeros(3, 3, 32, 32), chunk=2).ids.shape == (3, 4)


# --- prompts ---


def test_labels_are_the_answer_alone(model, album):
    said = tasks(TELL, range(5760), 6, np.random.default_rng(0))
    told = albums.told(model, album, said)
    for row, one in zip(range(6), said, strict=True):
        labels = told.labels[row][told.labels[row] >= 0]
        assert model.tokenizer.decode(labels[:-1]).strip() == one.answer
        assert labels[-1] == model.tokenizer.eos_token_id
        codes = told.input_ids[row][(told.input_ids[row] >= model.first) & (told.input_ids[row] < model.first + 16)]
        assert (codes - model.first == album.ids[one.picture]).all()


def test_wrong_numbers_of_pictures_and_empty_texts_are_refused(model):
    with pytest.raises(InputError, match="The texts name 1 pictures by <image> and 0 were given"):
        model.prompts(["<image> what is it ?"])
    with pytest.raises(InputError, match="The texts name 0 pictures by <image> and 2 were given"):
        model.prompts(["draw"], torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(InputError, match="A text is empty"):
        model.prompts(["draw", " "])


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="relax='firm': accepted are soft"):
        MorphConfig(relax="firm")
    with pytest.raises(InputError, match=r"tau=0.0: a temperature is above 0"):
        MorphConfig(tau=0.0)
    with pytest.raises(InputError, match=r"forget=1.5: a share lies between 0 and 1"):
        MorphConfig(forget=1.5)
    with pytest.raises(InputError, match="one of text, image and equal is above 0"):
        MorphConfig(text=0.0, image=0.0)


def test_codes_are_marked_and_nothing_else(model, album):
    """By what they have in common attention finds codes wherever they stand; words stay as they are."""
    prompts = asked_of(model, album)
    table = model.llm.get_input_embeddings()(prompts.input_ids)
    is_code = (prompts.input_ids >= model.first) & (prompts.input_ids < model.first + 16)
    assert is_code.any()
    moved = model.embed(prompts) - table
    assert torch.allclose(moved[is_code], model.mark.expand_as(moved[is_code]), atol=1e-6)
    assert (moved[~is_code] == 0).all()
    assert any(p is model.mark for p in model.learned())


# --- tokens after the model ---


def test_thinking_with_the_cache_is_thinking_anew(model, album):
    prompts = asked_of(model, album)
    found = model.think(prompts)
    x, mask, tokens = model.embed(prompts), prompts.attention_mask, []
    for k in range(4):
        out = model.llm(inputs_embeds=x, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
        scores = out.logits[:, -1, model.first : model.first + 16]
        assert torch.allclose(scores, found.scores[:, k], atol=1e-4)
        tokens.append((scores / 2.0).softmax(-1) @ model.code_rows())
        x, mask = torch.cat([x, tokens[-1][:, None] + model.mark], 1), F.pad(mask, (0, 1), value=1)
    assert torch.allclose(torch.stack(tokens, 1), found.tokens, atol=1e-4)


def test_a_batch_is_its_rows_one_by_one(model, album):
    wished = tasks(DRAW, range(5760), 4, np.random.default_rng(2))
    together = model.think(albums.asked(model, album, wished)).tokens
    alone = torch.cat([model.think(albums.asked(model, album, [one])).tokens for one in wished])
    assert torch.allclose(together, alone, atol=1e-4)
    assert (model.draw(together, cached=True) == model.draw(together, cached=False)).all()


def test_a_drawing_is_the_likeliest_token_after_another(model):
    torch.manual_seed(0)
    thought = torch.randn(2, 4, 96)
    x, tokens = model.prefix(thought * 96**0.5), []
    for _ in range(64):
        tokens.append(model.decoder(inputs_embeds=x).logits[:, -1].argmax(-1))
        x = torch.cat([x, model.decoder.get_input_embeddings()(tokens[-1])[:, None]], 1)
    assert (model.draw(thought) == torch.stack(tokens, 1)).all()


def test_vectors_stand_where_the_codes_would(album):
    model = made(relax="continuous")
    texts, ids, z = ["<image> what is it ?", "draw a cat", "<image> where is it ?"], album.ids[:2], album.z[:2]
    vectors = model.prompts(texts, ids, z)
    x, codes = model.embed(vectors), model.embed(model.prompts(texts, ids))
    at = (vectors.input_ids >= model.first) & (vectors.input_ids < model.first + 16)
    assert torch.equal(x[~at], codes[~at])
    wanted = model.continuous_in(z / model.encoder.codebook.codes.norm(dim=1).mean()) + model.mark
    assert torch.allclose(x[at], wanted.flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("how", ["soft", "straight-through", "gumbel", "hard"])
def test_relaxations(how):
    model = made(relax=how)
    scores = torch.randn(3, 16, requires_grad=True)
    token, rows = model.relax(scores), model.code_rows()
    soft = (scores / 2.0).softmax(-1) @ rows
    want = soft if how == "soft" else rows[scores.argmax(-1)]
    assert torch.allclose(token, want, atol=1e-6)
    weight = torch.randn(3, 96)
    if how in ("hard", "gumbel"):  # at test a gumbel model takes the best code
        assert not torch.autograd.grad((token * weight).sum(), scores, allow_unused=True)[0]
    else:
        got, wanted = (torch.autograd.grad((t * weight).sum(), scores)[0] for t in (token, soft))
        assert torch.allclose(got, wanted, atol=1e-6)
    if how == "gumbel":
        drawn = model.train().relax(scores)
        assert (torch.cdist(drawn, rows).amin(1) < 1e-3).all()
        assert torch.autograd.grad((drawn * weight).sum(), scores)[0].abs().sum() > 0


# --- losses ---


def test_the_picture_loss_is_the_mean_over_tokens_one_by_one(model, album):
    tokens, v = torch.randn(2, 4, 96), album.vq_ids[:2]
    x, total = model.prefix(tokens * 96**0.5), 0.0
    for j in range(64):
        logits = model.decoder(inputs_embeds=x).logits[:, -1]
        total += F.cross_entropy(logits, v[:, j]).item() / 64
        x = torch.cat([x, model.decoder.get_input_embeddings()(v[:, j : j + 1])], 1)
    assert model.image_loss(tokens, v).item() == pytest.approx(total, rel=1e-4)


def test_what_is_forgotten_does_not_reach_the_decoder(album):
    """At forget=1 the decoder tells all tokens from M' alone; at test nothing is forgotten."""
    tokens, v = torch.randn(3, 4, 96), album.vq_ids[:3]
    model = made(forget=1.0)
    remembered = model.image_loss(tokens, v)
    x = torch.cat([model.prefix(tokens * 96**0.5), torch.zeros(3, 63, 64)], 1)
    wanted = F.cross_entropy(model.decoder(inputs_embeds=x).logits[:, 3:].flatten(0, 1), v.flatten())
    model.train()
    assert model.image_loss(tokens, v).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert remembered.item() != pytest.approx(wanted.item(), rel=1e-5)
    model.config = MorphConfig(forget=0.0)
    assert model.image_loss(tokens, v).item() == pytest.approx(remembered.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "drawn", "equal"),
    [({}, True, False), ({"image": 0.0, "equal": 1.0}, False, True), ({"equal": 1.0}, True, True)],
)
def test_what_the_losses_of_an_arm_reach(album, config, drawn, equal):
    model = made(**config)
    given = albums.lesson(model, album, 2, 0, 0, 4)
    without = model.loss(*given) - model.text_loss(given.told)
    wanted = 0.0
    thought = model.think(given.asked)
    if drawn:
        wanted = wanted + model.image_loss(thought.tokens, given.vq_ids)
    if drawn and equal:
        wanted = wanted + F.cross_entropy(thought.scores.flatten(0, 1), given.ids.flatten())
    if not drawn:
        rows = model.code_rows()[given.ids]
        wanted = model.text_loss(given.forced) + model.image_loss(rows, given.vq_ids)
    assert without.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_loss_is_the_weighted_sum(album):
    model = made(text=2.0, image=3.0, equal=0.5)
    given = albums.lesson(model, album, 3, 0, 0, 4)
    thought = model.think(given.asked)
    wanted = 2 * model.text_loss(given.told) + 3 * model.image_loss(thought.tokens, given.vq_ids)
    wanted = wanted + F.cross_entropy(thought.scores.flatten(0, 1), given.ids.flatten()) / 2
    assert model.loss(*given).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_codes_stay_what_they_are_while_all_else_learns(album):
    model = made()
    optimizer = torch.optim.AdamW(model.learned(), lr=1e-2, weight_decay=0.0)
    table = model.llm.get_input_embeddings().weight
    before, codes = table.detach().clone(), model.encoder.codebook.codes
    losses = []
    for step in range(12):
        loss = model.loss(*albums.lesson(model, album, 3, step % 2, 0, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert torch.allclose(model.code_rows(), codes / codes.norm(dim=1).mean(), atol=1e-6)
    assert not torch.equal(table[5:100], before[5:100])
    assert losses[-1] < 0.8 * losses[0]


def test_continuous_tokens_learn_too(album):
    model = made(relax="continuous")
    given = albums.lesson(model, album, 3, 0, 0, 4)
    assert given.asked.z is not None
    model.loss(*given).backward()
    assert all(part.weight.grad.abs().sum() > 0 for part in (model.continuous_in, model.continuous_out))


# --- files and other models ---


def test_a_model_is_saved_and_read(model, album, tmp_path):
    model.save_pretrained(tmp_path)
    again, prompts = MorphTokens.from_pretrained(tmp_path, "cpu"), asked_of(model, album)
    assert torch.equal(again.think(prompts).tokens, model.think(prompts).tokens)
    assert torch.equal(again.paint(prompts), model.paint(prompts))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"MorphTokens"):
        MorphTokens.from_pretrained(tmp_path, "cpu")


BROKEN = {
    "a language model that is not there": ("llm", None, "llm holds no complete checkpoint: there is no such folder"),
    "a decoder that is not there": ("decoder", None, "decoder holds no complete checkpoint: there is no such folder"),
    "a picture tokenizer that is not there": ("vq", None, "vq holds no complete checkpoint: there is no such folder"),
    "weights that are not there": ("llm/model.safetensors", None, "holds no complete checkpoint: it has neither"),
    "no tokenizer": ("llm/tokenizer.json", None, "is no folder as MorphTokens.save_pretrained writes it"),
    "a config of the type alone": ("config.json", {"encoder": None}, r"writes it \(TypeError"),
    "another width": ("config.json", {"encoder": {"width": 128}}, r"writes it \(RuntimeError"),
    "a setting that no version has": ("config.json", {"morph": {"warmth": 1}}, "unexpected keyword argument 'warmth'"),
    "a setting out of range": ("config.json", {"morph": {"tau": -1}}, "a temperature is above 0"),
}


@pytest.mark.parametrize(("file", "change", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_checkpoint_is_refused_in_one_sentence(model, tmp_path, file, change, sentence):
    model.save_pretrained(tmp_path)
    path = tmp_path / file
    if change is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        told = json.loads(path.read_text())
        (key, value), *_ = change.items()
        told[key] = None if value is None else told[key] | value
        path.write_text(json.dumps(told))
    with pytest.raises(InputError, match=sentence) as refused:
        MorphTokens.from_pretrained(tmp_path, "cpu")
    assert "\n" not in str(refused.value)


def test_a_checkpoint_that_only_the_hub_has_is_refused(monkeypatch):
    monkeypatch.setattr(hub, "locate", lambda name, kinds: (name, "morph_tokens"))
    with pytest.raises(InputError, match="ann/morph holds no complete checkpoint: there is no such folder"):
        MorphTokens.from_pretrained("ann/morph", "cpu")


OTHERS = {
    "gpt2": lambda t: GPT2Config(vocab_size=len(t), n_embd=48, n_layer=1, n_head=2, n_positions=128),
    "opt": lambda t: OPTConfig(
        vocab_size=len(t), hidden_size=48, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2,
        word_embed_proj_dim=48, max_position_embeddings=128, dropout=0.0,
    ),
    "qwen2": lambda t: Qwen2Config(
        vocab_size=len(t), hidden_size=128, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_language_model_reads_and_draws(name, album, tmp_path):
    model = made(lambda tokenizer: AutoModelForCausalLM.from_config(OTHERS[name](tokenizer)))
    rows = model.code_rows()
    codes = model.encoder.codebook.codes
    if rows.shape[1] > codes.shape[1]:  # an orthogonal map keeps what lies between codes
        assert torch.allclose(torch.cdist(rows, rows) * model.code_scale(), torch.cdist(codes, codes), atol=1e-3)
    model.loss(*albums.lesson(model, album, 3, 0, 0, 4)).backward()
    model.save_pretrained(tmp_path)
    again, prompts = MorphTokens.from_pretrained(tmp_path, "cpu"), asked_of(model, album)
    assert again.paint(prompts).shape == (4, 3, 32, 32)
    assert torch.allclose(again.think(prompts).tokens, model.eval().think(prompts).tokens, atol=1e-6)
    wished = tasks(DRAW, range(5760), 4, np.random.default_rng(0))  # what is padded on the left is not read
    alone = torch.cat([again.think(albums.asked(again, album, [one])).tokens for one in wished])
    assert torch.allclose(again.think(prompts).tokens, alone, atol=1e-5)
    texts = ["what is it ?", "draw a blue cat at the top left on teal stripes ."]
    said = [again.answer(again.prompts([text]), 6)[0] for text in texts]
    assert again.answer(again.prompts(texts), 6) == said
