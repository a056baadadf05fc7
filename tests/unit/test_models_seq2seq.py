"""Clozes, soft prompts and few-shot tuning on random-weight models of T5's class, against transformers and peft."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    MT5Config,
    MT5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from vlws.data.cloze import BLANK, VECTOR, Cloze
from vlws.errors import InputError
from vlws.models.seq2seq import (
    check_tokenizer,
    cloze_loss,
    decode,
    encode,
    encoder_states,
    label_ids,
    load_seq2seq,
    score,
    sizes,
    tiny_seq2seq,
    token_cutter,
)
from vlws.models.soft_prompts import (
    TuneConfig,
    check_adapter_folder,
    optimizer_of,
    random_prompt,
    save_peft_prompt,
    tune,
    vocabulary_prompt,
)

WORDS = ["a", "the", "cat", "dog", "bus", "sleeps", "yes", "no", "maybe", "."]
YES_NO = ("yes", "no")


@pytest.fixture(scope="module")
def tiny():
    return tiny_seq2seq(WORDS, layers=2)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def clozes(n=4):
    nouns = ["cat", "dog", "bus"]
    return [Cloze(f"the {nouns[i % 3]} " * (1 + i % 2) + BLANK, YES_NO[i % 2], YES_NO) for i in range(n)]


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --- loading ---


@pytest.mark.parametrize(
    ("config", "kind"), [(MT5Config, MT5ForConditionalGeneration), (UMT5Config, UMT5ForConditionalGeneration)]
)
def test_other_models_of_the_class_load_and_run(tmp_path, tiny, config, kind):
    size = {"d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 20}
    torch.manual_seed(0)
    made = kind(config(**size, decoder_start_token_id=0, relative_attention_num_buckets=8))
    model, tokenizer = load_seq2seq(saved(tmp_path, made, tiny[1]), "cpu")
    assert type(model) is kind
    batch = encode(tokenizer, clozes())
    theta = torch.randn(3, 24, requires_grad=True)
    loss, h = cloze_loss(model, batch, theta)
    assert h.shape == (24,)
    assert torch.autograd.grad(loss, theta)[0].norm() > 0
    embeddings = torch.cat([theta.expand(4, 3, 24), model.get_input_embeddings()(batch.input_ids)], 1)
    mask = torch.cat([torch.ones(4, 3, dtype=torch.long), batch.attention_mask], 1)
    whole = model(inputs_embeds=embeddings, attention_mask=mask, decoder_input_ids=batch.decoder_input_ids).logits
    torch.testing.assert_close(decode(model, *encoder_states(model, batch, theta), batch.decoder_input_ids), whole)


def test_a_saved_model_loads_frozen(tmp_path, tiny):
    model, _ = load_seq2seq(saved(tmp_path, *tiny), "cpu")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny[0].parameters(), strict=True))


def test_what_is_no_such_model_is_refused(tmp_path, tiny):
    with pytest.raises(InputError, match="no backbone 'nowhere'"):
        load_seq2seq("nowhere", "cpu")
    bert = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="is a BertModel; accepted here: T5ForConditionalGeneration"):
        load_seq2seq(str(tmp_path / "bert"), "cpu")
    tiny[0].save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match=r"holds no tokenizer: it has neither tokenizer\.json nor"):
        load_seq2seq(str(tmp_path / "bare"), "cpu")
    _, large = tiny_seq2seq([*WORDS, "more", "words"])
    with pytest.raises(InputError, match="has 18 tokens and its model 16 embeddings"):
        load_seq2seq(saved(tmp_path / "large", tiny[0], large), "cpu")
    broken, tokenizer = tiny_seq2seq(WORDS)
    torch.nn.init.constant_(broken.shared.weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        load_seq2seq(saved(tmp_path / "nan", broken, tokenizer), "cpu")


def test_a_tokenizer_without_sentinels_is_refused(tmp_path, tiny):
    folder = tmp_path / "words"
    tiny[1].save_pretrained(folder)
    about = json.loads((folder / "tokenizer.json").read_text().replace(VECTOR, "<other>"))
    (folder / "tokenizer.json").write_text(json.dumps(about))
    config = json.loads((folder / "tokenizer_config.json").read_text().replace(VECTOR, "<other>"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has no <extra_id_2>"):
        check_tokenizer(AutoTokenizer.from_pretrained(folder))


# --- clozes ---


def test_decoder_inputs_and_targets(tiny):
    _, tokenizer = tiny
    blank, end, yes, no = tokenizer.convert_tokens_to_ids([BLANK, "<extra_id_1>", "yes", "no"])
    batch = encode(tokenizer, clozes(2))
    assert batch.decoder_input_ids.tolist() == [[0, blank, yes], [0, blank, no]]
    assert batch.targets.tolist() == [[blank, yes, end], [blank, no, end]]
    assert encode(tokenizer, clozes(2), last=False).targets[:, 2].tolist() == [-100, -100]
    assert batch.attention_mask.sum(1).tolist() == [4, 6]


@pytest.mark.parametrize("last", [True, False])
def test_the_loss_is_the_sum_over_targets_and_the_mean_over_examples(tiny, last):
    model, tokenizer = tiny
    total = 0.0
    for cloze in clozes(4):  # each alone, unpadded
        one = encode(tokenizer, [cloze], last=last)
        logits = model(
            input_ids=one.input_ids, attention_mask=one.attention_mask, decoder_input_ids=one.decoder_input_ids
        ).logits
        total -= sum(logits[0, t].log_softmax(-1)[one.targets[0, t]] for t in range(2 + last))
    loss, _ = cloze_loss(model, encode(tokenizer, clozes(4), last=last))
    torch.testing.assert_close(loss, total / 4)


def test_the_mean_state_counts_prompt_and_padding(tiny):
    model, tokenizer = tiny
    batch, theta = encode(tokenizer, clozes(2)), torch.randn(3, 32)
    states, mask = encoder_states(model, batch, theta)
    assert states.shape == (2, 9, 32)
    assert mask[:, :3].all()
    assert mask.sum(1).tolist() == [7, 9]
    torch.testing.assert_close(cloze_loss(model, batch, theta)[1], states.mean((0, 1)))


def test_what_is_padded_changes_no_logits(tiny):
    model, tokenizer = tiny
    theta = torch.randn(3, 32)
    padded = encode(tokenizer, clozes(2))
    alone = encode(tokenizer, clozes(1))
    one, both = (decode(model, *encoder_states(model, b, theta), b.decoder_input_ids)[0] for b in (alone, padded))
    torch.testing.assert_close(one, both)


def test_a_vector_stands_for_the_embedding_of_its_placeholder(tiny):
    model, tokenizer = tiny
    table = model.get_input_embeddings().weight
    words = label_ids(tokenizer, ["cat", "dog"])
    text = f"a {VECTOR} the {VECTOR} {BLANK}"
    by_vectors = encode(tokenizer, [clozes(1)[0], Cloze(text, "yes", YES_NO, table[words].numpy())])
    by_words = encode(tokenizer, [clozes(1)[0], Cloze(f"a cat the dog {BLANK}", "yes", YES_NO)])
    assert torch.equal(encoder_states(model, by_vectors)[0], encoder_states(model, by_words)[0])
    assert by_vectors.places.tolist() == [[1, 1], [1, 3]]


@pytest.mark.parametrize(
    ("text", "label", "vectors", "said"),
    [
        ("a cat", "yes", None, "holds 0 blanks"),
        (f"{BLANK} cat {BLANK}", "yes", None, "holds 2 blanks"),
        (f"{VECTOR} {BLANK}", "yes", None, "1 <extra_id_2> for 0 vectors"),
        (f"{VECTOR} {BLANK}", "yes", np.zeros((2, 32)), "1 <extra_id_2> for 2 vectors"),
        ("cat " * 9 + BLANK, "yes", None, "has 10 tokens; accepted are 6"),
        (f"a {BLANK}", "yes no", None, r"'yes no' is 2 tokens \(yes no\); accepted is a word of one"),
        (f"a {BLANK}", "owl", None, "'owl' is unknown"),
        (f"a {BLANK}", "", None, "is 0 tokens"),
    ],
)
def test_clozes_that_are_refused(tiny, text, label, vectors, said):
    with pytest.raises(InputError, match=said):
        encode(tiny[1], [Cloze(text, label, (label,), vectors)], max_length=6)


def test_shapes_that_do_not_fit_are_refused(tiny):
    model, tokenizer = tiny
    with pytest.raises(InputError, match="no cloze"):
        encode(tokenizer, [])
    with pytest.raises(InputError, match=r"the prompt has the shape \[3, 16\]; accepted is a second dimension of 32"):
        encoder_states(model, encode(tokenizer, clozes(1)), torch.zeros(3, 16))
    cloze = Cloze(f"{VECTOR} {BLANK}", "yes", YES_NO, np.zeros((1, 8), np.float32))
    with pytest.raises(InputError, match=r"vectors have the shape \[1, 8\]"):
        encoder_states(model, encode(tokenizer, [cloze]))
    with pytest.raises(InputError, match="2 sets of label words"):
        score(model, tokenizer, [clozes(1)[0], Cloze(f"a {BLANK}", "no", ("no", "yes"))])


def test_scores_are_those_of_the_label_position(tiny):
    model, tokenizer = tiny
    theta = torch.randn(3, 32)
    batch = encode(tokenizer, clozes(5), last=False)
    logits = decode(model, *encoder_states(model, batch, theta), batch.decoder_input_ids)[:, 1]
    found = score(model, tokenizer, clozes(5), theta, batch_size=2)
    ids = label_ids(tokenizer, YES_NO)
    torch.testing.assert_close(found.logits, logits[:, ids])
    assert torch.equal(found.likeliest, logits.argmax(1))
    assert found.accuracy == (logits[:, ids].argmax(1) == torch.tensor([0, 1, 0, 1, 0])).float().mean()
    assert found.loss == pytest.approx(float(cloze_loss(model, batch, theta)[0]), rel=1e-5)


def test_texts_are_cut_between_tokens(tiny):
    cutter = token_cutter(tiny[1])
    assert cutter.first("the  cat. sleeps", 3) == "the  cat."
    assert cutter.first("the cat", 9) == "the cat"
    assert cutter.first("the cat", 0) == ""
    assert cutter.count("the cat.") == 3


# --- prompts ---


def test_a_prompt_starts_from_words_or_at_random(tiny, rng):
    table = tiny[0].get_input_embeddings().weight
    prompt = vocabulary_prompt(tiny[0], 10, rng, below=12)
    assert all((row == table[:12]).all(1).any() for row in prompt)
    assert len(prompt.unique(dim=0)) == 10  # without repetition where there are enough
    assert vocabulary_prompt(tiny[0], 30, rng).shape == (30, 32)
    assert float(random_prompt(tiny[0], 400, rng).std()) == pytest.approx(float(table.std()), rel=0.05)


@pytest.mark.parametrize("half", [False, True])
def test_peft_reads_the_prompt_and_gives_the_same_logits(tmp_path, half):
    model, tokenizer = tiny_seq2seq(WORDS, layers=2)
    model = model.bfloat16() if half else model
    theta, batch = torch.randn(5, 32), encode(tokenizer, clozes(4))
    with torch.no_grad():
        ours = decode(model, *encoder_states(model, batch, theta), batch.decoder_input_ids)
        save_peft_prompt(tmp_path / "prompt", theta, model)
        adapted = PeftModel.from_pretrained(model, tmp_path / "prompt")
        theirs = adapted(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=batch.decoder_input_ids
        ).logits
    torch.testing.assert_close(ours, theirs.float())
    assert torch.equal(adapted.get_prompt(batch_size=1)[0], theta)


def test_an_adapter_replaces_an_adapter_and_nothing_else(tmp_path, tiny):
    folder = tmp_path / "to" / "prompt"
    for value in (1.0, 2.0):
        save_peft_prompt(folder, torch.full((2, 32), value), tiny[0])
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["prompt"]  # nothing half-written beside it
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        save_peft_prompt(folder, torch.zeros(2, 32), tiny[0])
    with pytest.raises(InputError, match=r"mine.txt is a file"):
        check_adapter_folder(folder / "mine.txt" / "below")


# --- tuning ---


def learnable():
    return [Cloze(f"the {x} {BLANK}", y, YES_NO) for x, y in (("cat", "yes"), ("dog", "no"))] * 4


def test_tuning_lowers_the_loss_and_leaves_the_model(tiny, rng):
    model, tokenizer = tiny
    before = {name: value.clone() for name, value in model.state_dict().items()}
    theta = vocabulary_prompt(model, 4, rng).requires_grad_()
    curve = tune(model, tokenizer, [theta], theta, learnable(), learnable(), TuneConfig(steps=60, lr=0.3))
    assert curve[-1]["dev_loss"] < 0.5 * curve[0]["dev_loss"]
    assert score(model, tokenizer, learnable(), theta).accuracy == max(record["dev_accuracy"] for record in curve) == 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_best_prompt_by_dev_is_kept(tiny, rng):
    model, tokenizer = tiny
    theta = vocabulary_prompt(model, 4, rng).requires_grad_()
    turned = [Cloze(c.text, "no" if c.label == "yes" else "yes", YES_NO) for c in learnable()]
    start = theta.detach().clone()
    curve = tune(model, tokenizer, [theta], theta, learnable(), turned, TuneConfig(steps=40, lr=0.3))
    best = max(curve, key=lambda record: (record["dev_accuracy"], -record["dev_loss"]))
    found = score(model, tokenizer, turned, theta)
    assert found.accuracy == best["dev_accuracy"]
    assert found.loss == pytest.approx(best["dev_loss"], rel=1e-5)
    assert torch.equal(theta, start) == (best["step"] == 0)


def test_a_step_is_adamw_on_the_regularized_and_clipped_gradient(tiny, rng):
    model, tokenizer = tiny
    rows = learnable()
    start = vocabulary_prompt(model, 4, rng)
    told = []

    def regularize(g, h):
        told.append((g.clone(), h.clone()))
        return torch.flip(g, [1])

    theta = start.clone().requires_grad_()
    config = TuneConfig(steps=1, lr=0.1, batch_size=8, clip=1e-3, weight_decay=0.1)
    curve = tune(model, tokenizer, [theta], theta, rows, rows, config, regularize)
    by_hand = start.clone().requires_grad_()
    loss, h = cloze_loss(model, encode(tokenizer, rows, last=False), by_hand)
    (g,) = torch.autograd.grad(loss, by_hand)
    torch.testing.assert_close(told[0][0], g, rtol=1e-3, atol=1e-6)  # the same rows in another order
    torch.testing.assert_close(told[0][1], h)
    by_hand.grad = torch.flip(g, [1]) * 1e-3 / g.norm()
    torch.optim.AdamW([by_hand], lr=0.1, weight_decay=0.1).step()
    assert score(model, tokenizer, rows, by_hand).loss == pytest.approx(curve[1]["dev_loss"], rel=1e-4)
    assert curve[1]["dev_loss"] != pytest.approx(curve[0]["dev_loss"], rel=1e-4)
    by_raw = start.clone().requires_grad_()
    by_raw.grad = g * 1e-3 / g.norm()
    torch.optim.AdamW([by_raw], lr=0.1, weight_decay=0.1).step()
    assert score(model, tokenizer, rows, by_raw).loss != pytest.approx(curve[1]["dev_loss"], rel=1e-4)


def test_same_seed_same_prompt(tiny, rng):
    start = vocabulary_prompt(tiny[0], 4, rng)

    def tuned(seed):
        theta = start.clone().requires_grad_()
        tune(*tiny, [theta], theta, learnable(), learnable(), TuneConfig(steps=10, batch_size=3, seed=seed))
        return theta.detach()

    assert torch.equal(tuned(0), tuned(0))
    assert not torch.equal(tuned(0), tuned(1))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 0.0}, {"batch_size": 0}, {"evaluate_every": 0}, {"clip": 0.0}])
def test_tuning_that_is_refused(wrong):
    with pytest.raises(InputError, match="accepted are whole numbers from 1 and rates above 0"):
        TuneConfig(**wrong)


def test_the_rate_falls_to_zero():
    p = torch.zeros(1, requires_grad=True)
    optimizer, scheduler = optimizer_of([p], 1.0, steps=4)
    rates = []
    for _ in range(5):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_sizes_tell_models_apart(tiny):
    assert sizes(tiny[0]) != sizes(tiny_seq2seq(WORDS, dim=16)[0])
