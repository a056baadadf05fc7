"""UniKE on random weights of both kinds of feed-forward network: shapes, identities, gradients, rollback."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange

from vlws.errors import InputError
from vlws.methods.unike import UniKE, UniKEConfig
from vlws.models.editing import Unedited
from vlws.models.families import load_mllm
from vlws.models.knowledge import load_prepared, prepare, read_answers, save_prepared
from vlws.models.memory import AddedPairs, Bank, attend, layer_parts, layer_states, own_rows, question_ends

KINDS = {"blip2-emoji": "OPT", "llava-emoji": "Llama"}
WORDS = ("lion", "banana", "train", "penguin", "scarf", "melon")


def pictures(n: int, seed: int = 0) -> list[list[np.ndarray]]:
    return [[p] for p in np.random.default_rng(seed).integers(0, 255, (n, 32, 32, 3), np.uint8)]


@pytest.fixture(scope="module", params=KINDS, ids=KINDS.values())
def mllm(request):
    return load_mllm(request.param, "cpu")


@pytest.fixture(scope="module")
def prepared(mllm):
    n = 12
    true, false = ([f"a {WORDS[(i + k) % 6]}" for i in range(n)] for k in (0, 1))
    layers = (mllm.num_layers - 2, mllm.num_layers - 1)
    return prepare(mllm, read_answers(mllm, layers, ["<image> what is it?"] * n, pictures(n), true, false), steps=5)


def unike(mllm, prepared, **change) -> UniKE:
    return UniKE(mllm, prepared, replace(UniKEConfig(retrieved=4, steps=3), **change))


def encoded(mllm, prompts=("<image> what is it?", "<image> a what is that?"), answers=("a lion", "a red banana")):
    return mllm.encode(list(prompts), pictures(len(prompts), 1), answers=list(answers))


def two_endings(mllm):
    """A batch, the same with another last token of its second row's answer, and where that stands."""
    one = encoded(mllm)
    changed = int((one.labels[1] != -100).nonzero()[-1]) - 1
    ids = one.input_ids.clone()
    ids[1, changed] = ids[1, changed - 1]
    assert ids[1, changed] != one.input_ids[1, changed]
    return one, replace(one, input_ids=ids), changed


def test_nothing_changes_until_something_is_learned(mllm, prepared):
    batch = encoded(mllm)
    with torch.no_grad():
        base = mllm.run(batch).logits
    silent = unike(mllm, prepared, steps=0, beta=0.0, gate="fixed", alpha=0.0)
    edited = silent.edit(["<image> what is it?"], pictures(1), ["a lion"])
    assert torch.equal(edited.run(batch), base)


def test_attention_over_a_longer_context_is_a_mixture_row_by_row(mllm):
    """Equations 2, 8 and 9: the softmax over both is a of the one and 1 - a of the other, a of each row and head."""
    layer = deepcopy(mllm.layers[-1]).double()  # the output projection is undone below, which float32 is too coarse for
    parts = layer_parts(layer)
    torch.manual_seed(0)
    x, memory = (torch.randn(2, n, mllm.hidden_size, dtype=torch.float64) for n in (3, 5))
    attention = parts.attention
    bias = torch.randn(2, 8, dtype=torch.float64)

    def weight(states, bias):  # sum of exp of the logits: row head len
        q, k = (
            rearrange(p(parts.norm(s)), "r t (h d) -> r h t d", d=attention.head_dim)
            for p, s in ((attention.q_proj, x), (attention.k_proj, states))
        )
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        return (q @ k.mT * attention.head_dim**-0.5 + bias[:, None, None]).exp().sum(-1)

    a = weight(memory, bias[:, :5])
    b = weight(x, bias[:, 5:])
    share = rearrange(a / (a + b), "r h t -> r t h 1")
    out = attention.out_proj if hasattr(attention, "out_proj") else attention.o_proj
    both, first, second = (
        attend(parts, x, states, b)
        for states, b in ((torch.cat([memory, x], 1), bias), (memory, bias[:, :5]), (x, bias[:, 5:]))
    )
    # undo the output projection: mixing happens per head before it
    inverse = torch.linalg.pinv(out.weight)
    offset = 0 if out.bias is None else out.bias

    def heads(y):
        return rearrange((y - offset) @ inverse.T, "r t (h d) -> r t h d", d=attention.head_dim)

    mixed = share * heads(first) + (1 - share) * heads(second)
    torch.testing.assert_close(heads(both), mixed, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("gate", ["specified", "similarity", "fixed"])
def test_no_token_sees_what_comes_after_it(mllm, prepared, gate):
    edited = unike(mllm, prepared, gate=gate, threshold=0.0, width=1.0).edit(
        ["<image> what is it?"], pictures(1), ["a lion"]
    )
    one, other, changed = two_endings(mllm)
    assert torch.equal(edited.run(one)[1, :changed], edited.run(other)[1, :changed])


def test_the_printed_gate_lets_tokens_see_what_comes_after(mllm, prepared):
    edited = unike(mllm, prepared, gate="printed").edit(["<image> what is it?"], pictures(1), ["a lion"])
    one, other, changed = two_endings(mllm)
    assert not torch.equal(edited.run(one)[1, :changed], edited.run(other)[1, :changed])


def test_rollback_is_exact_and_edits_do_not_add_up(mllm, prepared):
    weights = {name: value.clone() for name, value in mllm.model.state_dict().items()}
    batch = encoded(mllm)
    with torch.no_grad():
        base = mllm.run(batch).logits
    method = unike(mllm, prepared)
    first = method.edit(["<image> what is it?"], pictures(1), ["a lion"])
    once = first.run(batch)
    assert not torch.equal(once, base)
    first.edit(["<image> what is it?"], pictures(1, 5), ["a train"])
    assert not torch.equal(first.run(batch), once)
    first.rollback()
    assert torch.equal(first.run(batch), once)
    again = method.edit(["<image> what is it?"], pictures(1), ["a lion"])
    assert torch.equal(again.run(batch), once)
    first.rollback()
    assert torch.equal(first.run(batch), base)
    with torch.no_grad():
        assert torch.equal(mllm.run(batch).logits, base)
    assert all(torch.equal(value, weights[name]) for name, value in mllm.model.state_dict().items())
    with pytest.raises(InputError, match="there are 0"):
        first.rollback()


def test_what_is_trained_and_that_beta_reaches_the_values(mllm, prepared):
    edited = unike(mllm, prepared, steps=2, stop=0.0).edit(["<image> what is it?"], pictures(1), ["a lion"])
    trained = edited.trainable_parameters()
    expected = len(prepared) * sum(1 for _ in edited.blocks[0][min(prepared)].parameters())
    assert len(trained) == expected
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert not any(p.requires_grad and p.grad is not None for p in mllm.model.parameters())
    batch = encoded(mllm)
    logits = [
        unike(mllm, prepared, steps=0, beta=beta, gate="fixed", alpha=0.0)
        .edit(["<image> what is it?"], pictures(1), ["a lion"])
        .run(batch)
        for beta in (0.1, 0.9)
    ]
    assert not torch.equal(*logits)


def test_a_map_learned_within_one_edit_cannot_carry_the_direction(mllm, prepared):
    """From zero, W_zeta's steps move W_zeta zeta along the gradient alone: two directions of one length act alike."""
    other = {}
    for layer, p in prepared.items():
        torch.manual_seed(1)
        unrelated = torch.randn_like(p.zeta)
        other[layer] = replace(p, zeta=unrelated / unrelated.norm() * p.zeta.norm())
    batch = encoded(mllm)
    config = dict(direction="per edit", lr=1e-3, steps=4, gate="fixed", alpha=0.0, beta=1.0)
    shifts = []
    for these in (prepared, other):
        edited = unike(mllm, these, **config).edit(["<image> what is it?"], pictures(1), ["a lion"])
        shifts.append(edited.maps[0][max(these)][0] @ these[max(these)].zeta)
        edited.run(batch)
    assert torch.cosine_similarity(*shifts, dim=0) > 0.9


def test_a_sequence_appends_pairs_and_leaves_the_earlier_ones(mllm, prepared):
    edited = unike(mllm, prepared, pairs=3).edit(["<image> what is it?"], pictures(1), ["a lion"])
    before = [p.detach().clone() for p in edited.trainable_parameters()]
    for i, word in enumerate(WORDS[1:4]):
        edited.edit(["<image> what is it?"], pictures(1, 7 + i), [f"a {word}"])
    assert sum(block[max(prepared)].keys.shape[-1] for block in edited.blocks) == 12
    kept = [p for pairs in edited.blocks[0].values() for p in pairs.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))


def test_independent_edits_in_a_batch_are_the_edits_alone(mllm, prepared):
    prompts, shown, targets = ["<image> what is it?", "<image> what is it?"], pictures(2, 3), ["a lion", "a red banana"]
    method = unike(mllm, prepared, stop=0.0)
    together = method.edit(prompts, shown, targets)
    for i in range(2):
        alone = method.edit(prompts[i : i + 1], shown[i : i + 1], targets[i : i + 1])
        batch = encoded(mllm)
        found = together.run(batch, torch.full((2,), i))
        torch.testing.assert_close(found, alone.run(batch), atol=2e-3, rtol=1e-3)


def test_decoding_goes_on_from_what_was_retrieved_for_the_question(mllm, prepared):
    """Greedy answers with a cache are those of teacher forcing, token by token."""
    edited = unike(mllm, prepared, gate="fixed", alpha=0.3).edit(["<image> what is it?"], pictures(1), ["a lion"])
    prompts = ["<image> what is it?", "<image> a", "<image> look at", "<image> it is a"]
    shown = pictures(4, 9)
    spoken = 0
    for prompt, picture, said in zip(prompts, shown, edited.answer(prompts, shown, max_new_tokens=4), strict=True):
        if said:
            batch = mllm.encode([prompt], [picture], answers=[" " + said])
            answer = batch.labels[0] != -100
            predicted = edited.run(batch)[0, :-1].argmax(-1)[answer[1:]][: answer.sum() - 1]
            assert torch.equal(predicted, batch.input_ids[0][answer][:-1])
            spoken += 1
    assert spoken >= 2


@pytest.mark.parametrize("direction", ["ridge", "per edit"])
def test_edits_are_saved_and_read_back(mllm, prepared, tmp_path, direction):
    method = unike(mllm, prepared, direction=direction, steps=2, context="new fact: {question} {answer}. ")
    edited = method.edit(["<image> what is it?"] * 2, pictures(2), ["a lion", "a train"])
    edited.edit(["<image> a what?"] * 2, pictures(2, 5), ["a red banana", "a melon"])
    edited.save_pretrained(tmp_path / "edits")
    save_prepared(tmp_path / "base", mllm, prepared)
    again = UniKE(mllm, load_prepared(tmp_path / "base", mllm)).load(tmp_path / "edits")
    asked = ["<image> what is it?", "<image> a what is that?"], pictures(2, 1), ["a lion", "a red banana"]
    row = torch.tensor([1, 0])
    assert (again.edits, again.taught, again.added()) == (2, edited.taught, edited.added())
    assert torch.equal(again.logits(*asked, row).logits, edited.logits(*asked, row).logits)
    for one in (edited, again):
        one.rollback()
    assert torch.equal(again.logits(*asked, row).logits, edited.logits(*asked, row).logits)
    again.rollback()
    assert torch.equal(again.logits(*asked, row).logits, Unedited(mllm, 1).logits(*asked).logits)
    assert sorted(path.name for path in (tmp_path / "edits").iterdir()) == ["config.json", "model.safetensors"]


def test_edits_beside_other_preparations_are_refused(mllm, prepared, tmp_path):
    unike(mllm, prepared, steps=1).edit(["<image> a"], pictures(1), ["a lion"]).save_pretrained(tmp_path / "edits")
    last = max(prepared)
    other = {**prepared, last: replace(prepared[last], zeta=prepared[last].zeta + 1)}
    with pytest.raises(InputError, match="holds edits made beside other preparations, of layers "):
        UniKE(mllm, other).load(tmp_path / "edits")
    with pytest.raises(InputError, match=r"accepted are those that this UniKE was made with, of layers \["):
        UniKE(mllm, {last: prepared[last]}).load(tmp_path / "edits")
    save_prepared(tmp_path / "base", mllm, prepared)
    with pytest.raises(InputError, match="holds Prepared, not UniKE"):
        UniKE(mllm, prepared).load(tmp_path / "base")


def test_the_end_of_a_question(mllm):
    answered = encoded(mllm)
    ends = question_ends(answered)
    for i, end in enumerate(ends.tolist()):
        assert answered.labels[i, end] == -100
        assert answered.labels[i, end + 1] != -100
    asked = mllm.encode(["<image> what is it?", "<image> a"], pictures(2), padding_side="left")
    assert question_ends(asked).tolist() == [asked.input_ids.shape[1] - 1] * 2
    asked = mllm.encode(["<image> what is it?", "<image> a"], pictures(2))
    assert question_ends(asked).tolist() == (asked.attention_mask.sum(1) - 1).tolist()


def test_the_bank_finds_the_most_similar_and_the_own_rows_of_one_query_only():
    torch.manual_seed(0)
    bank = Bank(torch.randn(50, 8), torch.randn(50, 6))
    query = torch.randn(3, 8)
    own = own_rows([Bank(query[:1].expand(2, 8), torch.ones(2, 6)), Bank(torch.randn(1, 8), torch.zeros(1, 6))])
    states, cosine = bank.search(query, 4, own.of(torch.tensor([0, 1, 1])))
    assert torch.equal(states[0, :2], torch.ones(2, 6))  # its own rows, of cosine 1
    true = torch.cosine_similarity(query[2:, None], bank.sem[None], dim=-1)[0]
    mine = torch.cosine_similarity(query[2], own.sem[1, 0], dim=0)
    expected = torch.cat([true, mine[None]]).topk(4).values
    torch.testing.assert_close(cosine[2], expected)
    states, cosine = Bank(bank.sem[:0], bank.pos[:0]).search(query, 4, own.of(torch.tensor([0, 1, 1])))
    assert torch.isinf(cosine[1, 1])  # a padded row
    with pytest.raises(InputError, match="memory is empty"):
        Bank(bank.sem[:0], bank.pos[:0]).search(query, 4)


def test_rows_of_a_bank_are_the_states_that_enter_the_layer(mllm):
    batch = encoded(mllm)
    layer = mllm.num_layers - 1
    rows = layer_states(
        mllm, [layer], ["<image> what is it?", "<image> a what is that?"], pictures(2, 1), ["a lion", "a red banana"]
    )[layer]
    with torch.no_grad():
        states = mllm.hidden(batch, layer)
    for i, end in enumerate(question_ends(batch).tolist()):
        torch.testing.assert_close(rows[i].sem[0], states[i, end])
        torch.testing.assert_close(rows[i].pos, states[i][batch.labels[i] != -100])


@pytest.mark.parametrize("gated", [False, True])
def test_added_pairs_have_the_right_gradients(gated):
    torch.manual_seed(0)
    pairs = AddedPairs(2, 4, 3, torch.nn.functional.silu, gated).double()
    with torch.no_grad():
        for p in pairs.parameters():
            p.normal_()
    q, shift, edit = torch.randn(3, 2, 4).double(), torch.randn(4).double(), torch.tensor([0, 1, 1])
    names = [name for name, _ in pairs.named_parameters()]

    def forward(*values):
        return torch.func.functional_call(pairs, dict(zip(names, values, strict=True)), (q, edit, shift))

    assert torch.autograd.gradcheck(forward, tuple(p.detach().requires_grad_() for p in pairs.parameters()))


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda m, p: UniKE(m, {}), "layers are"),
        (lambda m, p: UniKE(m, {99: next(iter(p.values()))}), "accepted are some of 0 to"),
        (lambda m, p: unike(m, p).edit(["<image> a"], pictures(1), [" "]), "The target of edit 0 is empty"),
        (lambda m, p: unike(m, p).edit(["<image> a"], pictures(1), ["a lion"]).edit([], [], []), "0 prompts, 0 lists"),
        (lambda m, p: layer_parts(torch.nn.Linear(2, 2)), "accepted are layers"),
    ],
    ids=["no layers", "a layer beyond the last", "an empty target", "another number of edits", "another kind of layer"],
)
def test_what_cannot_work_is_refused(mllm, prepared, act, told):
    with pytest.raises(InputError, match=told):
        act(mllm, prepared)


def test_what_was_prepared_is_read_back(mllm, prepared, tmp_path):
    save_prepared(tmp_path / "p", mllm, prepared)
    again = load_prepared(tmp_path / "p", mllm)
    batch = encoded(mllm)
    first, second = (unike(mllm, p).edit(["<image> what is it?"], pictures(1), ["a lion"]) for p in (prepared, again))
    assert torch.equal(first.run(batch), second.run(batch))
    assert not torch.equal(first.run(batch), mllm.run(batch).logits)


def test_a_gate_by_similarity_is_one_for_all_layers_and_open_at_the_edit(mllm, prepared):
    config = dict(gate="similarity", threshold=0.99, width=0.001, direction="none", retrieved=1)
    edited = unike(mllm, prepared, **config).edit(["<image> what is it?"], pictures(1), ["a lion"])
    asked = ["<image> what is it?", "a banana"]
    gates = edited.gates(asked, [pictures(1)[0], []], torch.zeros(2, dtype=torch.long))
    assert gates.shape == (2, 2)
    assert torch.equal(gates[0], gates[1])
    assert gates[0, 0] > 0.99
    assert gates[0, 1] < 0.5


def test_a_context_is_put_before_the_question_and_taken_back(mllm, prepared):
    edited = unike(mllm, prepared, context="new fact: {question} {answer}. ").edit(
        ["<image> what is it?"], pictures(1), ["a lion"]
    )
    zero = torch.zeros(1, dtype=torch.long)
    assert edited.asked(["<image> a what?"], [], zero) == ["new fact: what is it? a lion. <image> a what?"]
    edited.rollback()
    assert edited.asked(["<image> a what?"], [], zero) == ["<image> a what?"]
