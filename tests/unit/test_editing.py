"""The protocol of editing, on random and shipped weights: edits come and go to the bit, one code path scores all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from backbones.blip2_facts import make_model
from vlws.data.mmedit import GENERALITY, KINDS, LOCALITY, EditCase, Question
from vlws.errors import InputError
from vlws.methods.baselines.t_patcher import TPatcher, TPatcherConfig
from vlws.models import editing_scores
from vlws.models.editing import ChangedWeights, EditedModel, Told, Unedited, check_untied, fact_text, step_loss
from vlws.models.editing_scores import Base, evaluate, in_sequence, one_step, summary, with_features
from vlws.models.families import load_mllm
from vlws.models.memory import ffn_linears

MODELS = {"OPT": make_model, "Llama": lambda: load_mllm("llava-emoji", "cpu")}
WORDS = ("lion", "banana", "train", "penguin", "scarf", "melon")
STAYS = (*LOCALITY, "near")


def pictures(n: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 255, (n, 32, 32, 3), np.uint8))


def make_cases(n: int, seed: int = 0) -> list[EditCase]:
    """Random pictures; the answer of case i is its word, what must stay has answers of one to three words."""
    made = []
    for i in range(n):
        one, two, three, four = pictures(4, 10 * seed + i + 1)
        answer = f"a {WORDS[(i + seed) % 6]}"
        made.append(
            EditCase(
                edit=Question("<image> what is it?", (one,), answer),
                text_generality=Question("<image> look, a what is that?", (one,), answer),
                image_generality=Question("<image> what is it?", (two,), answer),
                text_locality=Question("is it red or blue?", (), "red"),
                image_locality=Question("<image> which colour has it?", (three,), "a red banana"),
                near=(Question("<image> what is it?", (four,), "a train"), Question("<image> a what?", (one,), "blue")),
            )
        )
    return made


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def mllm(request):
    return request.param()


@pytest.fixture(scope="module")
def cases():
    return make_cases(4)


class Nudged(ChangedWeights):
    """One step along the gradient of the edit's loss, on the last matrix of the last layer."""

    def __init__(self, adapter, edits: int) -> None:
        linear = list(ffn_linears(adapter.layers[-1]).values())[-1]
        super().__init__(adapter, edits, {"w": linear.weight})

    def fit(self, batch) -> None:
        weight = self.parameters["w"]
        loss = step_loss(self.adapter.run(batch).logits, batch.labels).sum()
        (gradient,) = torch.autograd.grad(loss, [weight])
        weight.data -= gradient / gradient.norm()


@dataclass(frozen=True)
class Nudge:
    adapter: object

    def edit(self, prompts, images, targets) -> Nudged:
        return Nudged(self.adapter, len(prompts)).edit(prompts, images, targets)


def asked(cases: Sequence[EditCase]) -> tuple[list, list, list]:
    return [c.edit.text for c in cases], [c.edit.images for c in cases], [c.edit.answer for c in cases]


def editors(mllm) -> dict:
    return {"weights": Nudge(mllm), "pairs": TPatcher(mllm, TPatcherConfig(steps=3))}


# --- edits come and go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights", "pairs"])
def test_edits_are_taken_back_to_the_bit_and_do_not_add_up(mllm, cases, name):
    editor = editors(mllm)[name]
    weights = {key: value.clone() for key, value in mllm.model.state_dict().items()}
    prompts, images, targets = asked(cases[:1])
    base = Unedited(mllm, 1).logits(prompts, images, targets).logits
    edited = editor.edit(prompts, images, targets)
    once = edited.logits(prompts, images, targets).logits
    assert not torch.equal(once, base)
    edited.edit(*asked(cases[1:2]))
    assert not torch.equal(edited.logits(prompts, images, targets).logits, once)
    edited.rollback()
    assert torch.equal(edited.logits(prompts, images, targets).logits, once)
    assert torch.equal(editor.edit(prompts, images, targets).logits(prompts, images, targets).logits, once)
    edited.rollback()
    assert torch.equal(edited.logits(prompts, images, targets).logits, base)
    assert torch.equal(Unedited(mllm, 1).logits(prompts, images, targets).logits, base)
    assert all(torch.equal(value, weights[key]) for key, value in mllm.model.state_dict().items())
    edited.edit(*asked(cases[1:2])).edit(prompts, images, targets).rollback(2)
    assert torch.equal(edited.logits(prompts, images, targets).logits, base)


def test_changed_weights_are_put_in_only_while_their_rows_run(mllm, cases):
    prompts, images, targets = asked(cases)
    edited = Nudged(mllm, 4).edit(prompts, images, targets)
    weight = edited.parameters["w"]
    before = weight.data
    order = torch.tensor([2, 0, 3, 1, 2])
    mixed = edited.logits([prompts[i] for i in order], [images[i] for i in order], [targets[i] for i in order], order)
    for row, i in enumerate(order.tolist()):
        alone = Nudged(mllm, 1).edit(prompts[i : i + 1], images[i : i + 1], targets[i : i + 1])
        told = alone.logits(prompts[i : i + 1], images[i : i + 1], targets[i : i + 1])
        n = int(told.mask[0].sum())
        torch.testing.assert_close(mixed.logits[row, :n], told.logits[0, :n], atol=1e-4, rtol=1e-4)
        said = edited.answer(prompts[i : i + 1], images[i : i + 1], 4, torch.tensor([i]))
        assert said == alone.answer(prompts[i : i + 1], images[i : i + 1], 4)
    assert weight.data is before or torch.equal(weight.data, before)
    assert edited.added() == weight.numel()


def test_weights_are_restored_where_an_edit_fails(mllm, cases):
    edited = Nudged(mllm, 1)
    kept = edited.parameters["w"].detach().clone()

    def half_done(batch):
        edited.parameters["w"].data += 1
        raise RuntimeError("out of memory")

    edited.fit = half_done
    with pytest.raises(RuntimeError, match="out of memory"):
        edited.edit(*asked(cases[:1]))
    assert torch.equal(edited.parameters["w"], kept)
    assert not edited.taught
    assert edited.values == [[]]


# --- scores -----------------------------------------------------------------------------------------------------------


def test_an_unedited_model_keeps_everything(mllm, cases):
    scores = one_step(Base(mllm), cases, chunk=3)
    for kind in STAYS:
        assert (scores[f"{kind}/kl"] == 0).all(), kind
        for metric in ("agreement", "k1", "k10"):
            assert (scores[f"{kind}/{metric}"] == 1).all(), (kind, metric)
    assert set(scores) == {f"{kind}/{metric}" for kind in KINDS for metric in ("tokens", "exact")} | {
        f"{kind}/{metric}" for kind in STAYS for metric in ("agreement", "k1", "k10", "kl")
    }
    assert all(values.shape == (4,) for values in scores.values())


@pytest.mark.parametrize("name", ["weights", "pairs"])
def test_a_sequence_of_one_is_one_step(mllm, cases, name):
    editor = editors(mllm)[name]
    scores = one_step(editor, cases)
    after, at_once = in_sequence(editor, [[case] for case in cases])
    for metric, values in scores.items():
        np.testing.assert_array_equal(after[metric], values, err_msg=metric)
        np.testing.assert_array_equal(at_once[metric], values, err_msg=metric)


def test_sequences_are_scored_after_their_last_edit_and_after_each(mllm, cases):
    """Case k of sequence s is row 2 s + k, under the model that has met both edits, or those up to its own."""
    editor = TPatcher(mllm, TPatcherConfig(steps=4, lr=0.05))
    sequences = [cases[:2], cases[2:]]
    after, at_once = in_sequence(editor, sequences, chunk=1)
    for s, (first, second) in enumerate(sequences):
        edited = editor.edit(*asked([first]))
        assert scored(edited, first) == pytest.approx(row(at_once, 2 * s), abs=1e-5)
        edited.edit(*asked([second]))
        assert scored(edited, second) == pytest.approx(row(at_once, 2 * s + 1), abs=1e-5)
        assert scored(edited, first) == pytest.approx(row(after, 2 * s), abs=1e-5)
        assert scored(edited, second) == pytest.approx(row(after, 2 * s + 1), abs=1e-5)


def scored(edited: EditedModel, case: EditCase) -> dict[str, float]:
    return row(evaluate(edited, [case]), 0)


def row(scores, i: int) -> dict[str, float]:
    return {name: float(values[i]) for name, values in scores.items()}


def test_scores_do_not_depend_on_batches(mllm, cases):
    edited = TPatcher(mllm, TPatcherConfig(steps=4)).edit(*asked(cases))
    whole, parts = evaluate(edited, cases, generate=True), evaluate(edited, cases, rows=3, generate=True)
    assert {f"{kind}/generated" for kind in ("reliability", *GENERALITY)} <= set(whole)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-5, err_msg=name)


def test_an_answer_that_is_learned_is_right_by_all_three_measures(mllm, cases):
    editor = TPatcher(mllm, TPatcherConfig(steps=60, lr=0.02, stop=0.01))
    scores = one_step(editor, cases, generate=True)
    for metric in ("tokens", "exact", "generated"):
        assert (scores[f"reliability/{metric}"] == 1).all(), metric
    assert (summary(scores)["reliability"] == 1).all()


class Scripted(Unedited):
    """A model that says every answer and never ends; of answers of more than two tokens, the second is wrong."""

    def logits(self, prompts, images, answers, edit=None) -> Told:
        told = super().logits(prompts, images, answers, edit)
        said = told.labels.roll(-1, 1).clamp(min=0)
        said[said == self.adapter.tokenizer.eos_token_id] = 5
        for row, labels in enumerate(told.labels):
            at = torch.nonzero(labels != -100)[:, 0]
            if len(at) > 3:
                said[row, at[1] - 1] = 5
        return Told(nn.functional.one_hot(said, told.logits.shape[-1]).float(), told.labels, told.mask)


def test_the_end_token_is_not_counted(mllm, cases):
    scores = evaluate(Scripted(mllm, 4), cases)
    lengths = [len(mllm.tokenizer(f" {case.edit.answer}", add_special_tokens=False)["input_ids"]) for case in cases]
    assert scores["reliability/tokens"] == pytest.approx([1 - 1 / n if n > 2 else 1 for n in lengths])
    assert scores["reliability/exact"].tolist() == [float(n <= 2) for n in lengths]
    long = len(mllm.tokenizer(" a red banana", add_special_tokens=False)["input_ids"])
    assert long > 2
    assert scores["image_locality/tokens"] == pytest.approx([1 - 1 / long] * 4)
    assert not scores["image_locality/exact"].any()


class Prefixed(EditedModel):
    """The base model, whose texts have had something put before them that it does not mind."""

    def teach(self, prompts, images, targets) -> None:
        return None

    def forget(self, edits: int) -> None:
        return None

    def logits(self, prompts, images, answers, edit=None) -> Told:
        told = super().logits(prompts, images, answers, edit)
        n = len(prompts)
        before = torch.randn(n, 5, told.logits.shape[-1])
        ones = told.mask.new_ones(n, 5)
        return Told(
            torch.cat([before, told.logits], 1),
            torch.cat([-100 * ones, told.labels], 1),
            torch.cat([ones, told.mask], 1),
        )


def test_longer_texts_are_aligned_on_the_right(mllm, cases):
    scores = evaluate(Prefixed(mllm, 4), cases)
    base = evaluate(Unedited(mllm, 4), cases)
    for name in base:
        np.testing.assert_array_equal(scores[name], base[name], err_msg=name)


def test_locality_is_against_the_unedited_model_and_by_hand(mllm, cases):
    """Agreement at the answer, k1 and k10 over all positions, KL in nats: each again, from the logits of one text."""
    edited = Nudged(mllm, 1).edit(*asked(cases[:1]))
    scores = evaluate(edited, cases[:1])
    question = cases[0].image_locality
    given = [question.text], [question.images], [question.answer]
    old, new = Unedited(mllm, 1).logits(*given), edited.logits(*given)
    at = torch.nonzero(old.labels[0] != -100)[:-1, 0] - 1
    p, q = (told.logits[0].log_softmax(-1) for told in (old, new))
    expected = {
        "agreement": (p[at].argmax(-1) == q[at].argmax(-1)).float().mean(),
        "k1": (p.argmax(-1) == q.argmax(-1)).float().mean(),
        "k10": (p.topk(10).indices == q.topk(10).indices).float().mean(),
        "kl": nn.functional.kl_div(q[at], p[at], log_target=True, reduction="none").sum(-1).mean(),
    }
    assert expected["kl"] > 0
    for metric, value in expected.items():
        assert scores[f"image_locality/{metric}"][0] == pytest.approx(float(value), abs=1e-5), metric


def test_summaries_are_means_over_text_and_pictures():
    values = np.arange(2.0)
    scores = {"reliability/tokens": values, "text_generality/tokens": values, "image_generality/tokens": values + 1}
    scores |= {"text_locality/agreement": values, "image_locality/agreement": values + 3}
    found = summary(scores)
    assert found["generality"].tolist() == [0.5, 1.5]
    assert found["locality"].tolist() == [1.5, 2.5]
    assert np.isnan(found["near"]).all()


def test_cases_without_near_questions_are_scored(mllm, cases):
    scores = one_step(Base(mllm), [replace(case, near=()) for case in cases])
    assert not any(name.startswith("near") for name in scores)
    assert np.isnan(summary(scores)["near"]).all()


def test_features_stand_for_pictures(mllm, cases):
    edited = TPatcher(mllm, TPatcherConfig(steps=3)).edit(*asked(cases))
    seen = with_features(mllm, cases)
    assert all(isinstance(image, torch.Tensor) for case in seen for _, q in case.questions() for image in q.images)
    whole, by_features = evaluate(edited, cases), evaluate(edited, seen)
    for name in whole:
        np.testing.assert_allclose(by_features[name], whole[name], atol=1e-4, err_msg=name)
    assert [q.text for case in seen for _, q in case.questions()] == [q.text for c in cases for _, q in c.questions()]


# --- what reaches an edit ---------------------------------------------------------------------------------------------


def poisoned(case: EditCase) -> EditCase:
    """The same edit; everything by which it is judged is another question with another answer."""
    bad = Question("<image> <image> look at it", tuple(pictures(2, 99)), "scarf")
    parts = {kind: bad for kind in (*GENERALITY, *LOCALITY)}
    return replace(case, **parts, near=(bad,))


def test_only_the_edit_itself_reaches_an_edit(mllm, cases, monkeypatch):
    """With every rephrase and locality question poisoned, edited models answer the edit as before, to the bit."""
    for name, editor in editors(mllm).items():
        kept = {}

        def score(edited, part, *args, kept=kept, **kwargs):
            kept.setdefault("logits", []).append(edited.logits(*asked(part), torch.arange(len(part))).logits)
            return {"reliability/tokens": np.zeros(len(part))}

        monkeypatch.setattr(editing_scores, "evaluate", score)
        one_step(editor, cases)
        one_step(editor, [poisoned(case) for case in cases])
        assert torch.equal(*kept["logits"]), name


# --- what is refused --------------------------------------------------------------------------------------------------


@contextmanager
def tied(adapter) -> Iterator[nn.Parameter]:
    """The model with one matrix in two of its layers."""
    first, second = (list(ffn_linears(layer).values())[-1] for layer in (adapter.layers[0], adapter.layers[-1]))
    own = second.weight
    second.weight = first.weight
    try:
        yield first.weight
    finally:
        second.weight = own


def test_a_matrix_in_two_places_is_refused(mllm):
    with tied(mllm) as weight, pytest.raises(InputError, match=r"weight and .*weight are one tensor; accepted are"):
        check_untied(mllm, {"w": weight})
    check_untied(mllm, {"w": list(ffn_linears(mllm.layers[-1]).values())[-1].weight})


def test_quantised_weights_are_refused(mllm):
    whole = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"is torch\.int8; accepted are models that are not quantised"):
        check_untied(mllm, {"w": whole})


ONE = make_cases(1)


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (
            lambda m: Nudged(m, 2).edit(*asked(ONE)),
            "1 prompts, 1 lists of pictures and 1 targets were given to 2 edited",
        ),
        (lambda m: Nudged(m, 1).edit(["<image> a"], [ONE[0].edit.images], ["\n"]), "The target of edit 0 is empty"),
        (lambda m: Nudged(m, 1).rollback(), "1 edits were to be taken back; there are 0"),
        (lambda m: Nudged(m, 1).edit(*asked(ONE)).rollback(0), "0 edits were to be taken back; there are 1"),
        (
            lambda m: Nudged(m, 1).logits(*asked(ONE), torch.tensor([1])),
            "edit has 1 numbers up to 1 for 1 prompts; .* 0 to 0",
        ),
        (lambda m: Nudged(m, 1).answer(*asked(ONE)[:2], edit=torch.tensor([0, 0])), "edit has 2 numbers up to 0 for 1"),
        (lambda m: in_sequence(Nudge(m), [ONE, [*ONE, *ONE]]), r"The sequences have lengths \[1, 2\]; accepted are"),
        (lambda m: in_sequence(Nudge(m), []), r"The sequences have lengths \[\]"),
        (
            lambda m: in_sequence(Nudge(m), [[*ONE, *ONE]]),
            "Edits 0 and 1 ask the same, '<image> what is it.'; accepted",
        ),
    ],
    ids=["edits", "target", "rollback", "rollback 0", "edit", "edits of rows", "lengths", "no sequences", "twice"],
)
def test_what_cannot_work_is_refused(mllm, act, told):
    with pytest.raises(InputError, match=told):
        act(mllm)


def test_a_fact_as_a_text_has_no_picture():
    assert (
        fact_text("new fact: {question} {answer}. ", "<image> who owns this?", " mira ")
        == "new fact: who owns this? mira. "
    )
