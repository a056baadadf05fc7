"""What UniKE is compared with: every method learns, leaves the base as it was, and takes back to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backbones.blip2_facts import make_model
from vlws.data.emoji_world import edit_cases, facts
from vlws.data.mmedit import EditCase, Question
from vlws.errors import InputError
from vlws.methods.baselines.finetune import Finetune, FinetuneConfig
from vlws.methods.baselines.ike import IKE, IKEConfig
from vlws.methods.baselines.lora import LoraEditConfig, LoraEditor
from vlws.methods.baselines.mend import MEND, MENDConfig
from vlws.methods.baselines.serac import SERAC, SERACConfig
from vlws.methods.baselines.t_patcher import TPatcher, TPatcherConfig
from vlws.methods.unike import UniKE, UniKEConfig
from vlws.models.editing import Unedited, encode
from vlws.models.editing_scores import one_step
from vlws.models.families import load_mllm
from vlws.models.knowledge import without_knowledge

WORLD = facts.make_world(0)
CASES = edit_cases.imagined(WORLD, "training", 6, 5)
LAST = slice(0, 3)
MANY = 60  # steps, enough for random weights


@pytest.fixture(scope="module", params=["OPT", "Llama"])
def mllm(request):
    """An OPT with random weights, larger embeddings so that inputs matter, and a trained Llama."""
    if request.param == "Llama":
        return load_mllm("llava-emoji", "cpu")
    adapter = make_model()
    adapter.model.eval()
    return adapter


def editors(mllm, steps: int = MANY) -> dict:
    layers = (mllm.num_layers - 2, mllm.num_layers - 1)
    config = UniKEConfig(gate="similarity", direction="none", steps=steps, lr=2e-2)
    return {
        "fine-tuning": Finetune(mllm, FinetuneConfig(steps=steps, lr=5e-3)),
        "LoRA": LoraEditor(mllm, LoraEditConfig(steps=steps, lr=2e-2)),
        "T-Patcher": TPatcher(mllm, TPatcherConfig(steps=steps, lr=3e-2)),
        "T-Patcher, three losses": TPatcher(
            mllm, TPatcherConfig(steps=steps, lr=3e-2, activation=0.1, memory=0.01), CASES[3:]
        ),
        "IKE": IKE(mllm),
        "IKE, demonstrations": IKE(mllm, IKEConfig(demonstrations=2), CASES[3:]),
        "MEND": MEND(mllm, MENDConfig(steps=3)).fit(CASES[3:]),
        "SERAC": SERAC(mllm, SERACConfig(steps=20)).fit(CASES[3:]),
        "UniKE": UniKE(mllm, without_knowledge(mllm, layers), config),
    }


NAMES = (
    *("fine-tuning", "LoRA", "T-Patcher", "T-Patcher, three losses", "IKE", "IKE, demonstrations"),
    *("MEND", "SERAC", "UniKE"),
)


@pytest.fixture(scope="module")
def made(mllm):
    return editors(mllm)


def parts(cases):
    return [c.edit.text for c in cases], [c.edit.images for c in cases], [c.edit.answer for c in cases]


def base_logits(mllm):
    with torch.no_grad():
        return mllm.run(encode(mllm, *parts(CASES[LAST]))).logits


def test_the_methods_under_test_are_all_that_there_are(made):
    assert tuple(made) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_changes_answers_and_is_taken_back_to_the_bit(mllm, made, name):
    before, weights = base_logits(mllm), {k: v.clone() for k, v in mllm.model.state_dict().items()}
    flags = {k: p.requires_grad for k, p in mllm.model.named_parameters()}
    edited = made[name].edit(*parts(CASES[LAST]))
    told = edited.logits(*parts(CASES[LAST]), torch.arange(3))
    assert told.logits.shape[1] != before.shape[1] or not torch.equal(told.logits, before)
    assert torch.equal(base_logits(mllm), before), "the base model is not as it was while an edited one exists"
    assert edited.added() >= 0
    edited.rollback()
    assert torch.equal(edited.run(encode(mllm, *parts(CASES[LAST])), torch.arange(3)), before)
    after = mllm.model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[k], v) for k, v in weights.items())
    assert {k: p.requires_grad for k, p in mllm.model.named_parameters()} == flags
    with pytest.raises(InputError, match="1 edits were to be taken back; there are 0"):
        edited.rollback()


@pytest.mark.parametrize("name", ["fine-tuning", "LoRA", "T-Patcher", "UniKE"])
def test_methods_that_train_learn_their_edits(made, name):
    words = zip(CASES[LAST], ("red lion", "blue train", "green banana"), strict=True)
    edits = [Question("<image> what is it?", case.edit.images, word) for case, word in words]
    scores = one_step(made[name], [EditCase(edit, *[edit] * 4) for edit in edits], generate=True)
    assert scores["reliability/tokens"].tolist() == [1, 1, 1]
    assert scores["reliability/generated"].tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def made_in_few_steps(mllm):
    """Rounding differs between a batch and a row, and each step of training carries the difference on."""
    return editors(mllm, steps=5)


@pytest.mark.parametrize("name", NAMES)
def test_edits_side_by_side_are_as_if_alone(made_in_few_steps, name):
    made = made_in_few_steps
    together = made[name].edit(*parts(CASES[:2])).logits(*parts(CASES[:2]), torch.arange(2))
    for i in range(2):
        alone = made[name].edit(*parts(CASES[i : i + 1])).logits(*parts(CASES[i : i + 1]))
        length = int(alone.mask.sum())
        torch.testing.assert_close(together.logits[i, :length], alone.logits[0, :length], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_beside_the_edit_reaches_no_training(made, name):
    """Other words, pictures and answers of generality and locality leave the edited model as it is."""
    case, other = CASES[0], CASES[1]
    first = one_step(made[name], [case])
    second = one_step(made[name], [type(case)(case.edit, *[other.edit] * 4)])
    assert first["reliability/tokens"] == second["reliability/tokens"]


def test_patches_are_more_silent_at_other_questions_where_they_are_trained_to_be(mllm):
    weights = []
    for memory in (0.0, 1.0):
        patcher = TPatcher(mllm, TPatcherConfig(steps=20, lr=3e-2, memory=memory), CASES[3:])
        edited = patcher.edit(*parts(CASES[:1]))
        pairs, queries = edited.blocks[0], patcher.silent[None]
        with torch.no_grad():
            weights.append(float(pairs.weights(queries, torch.zeros(1, dtype=torch.long)).clamp(min=0).mean()))
    assert weights[1] < weights[0]


def test_a_second_edit_in_sequence_keeps_the_first_one_of_in_context_editing(mllm, made):
    edited = made["IKE"].edit(*parts(CASES[:1])).edit(*parts(CASES[1:2]))
    asked = edited.asked(["<image> who?"], [CASES[0].edit.images], torch.zeros(1, dtype=torch.long))[0]
    assert asked.count("new fact:") == 2
    assert asked.endswith("<image> who?")
    edited.rollback()
    assert edited.asked(["<image> who?"], [()], torch.zeros(1, dtype=torch.long))[0].count("new fact:") == 1


def test_serac_puts_the_edit_before_its_own_question_alone(mllm, made):
    serac = SERAC(mllm, SERACConfig(steps=200)).fit(CASES)
    edited = serac.edit(*parts(CASES[:1]))
    asked = edited.asked(
        [CASES[0].edit.text, CASES[0].text_locality.text], [CASES[0].edit.images, ()], torch.zeros(2, dtype=torch.long)
    )
    assert [text.startswith("new fact:") for text in asked] == [True, False]


def test_serac_learns_without_near_questions_and_is_emptied(mllm):
    method = SERAC(mllm, SERACConfig(steps=2)).fit([replace(case, near=()) for case in CASES])
    edited = method.edit(*parts(CASES[:1]))
    edited.rollback()
    assert torch.equal(edited.logits(*parts(CASES[:1])).logits, Unedited(mllm, 1).logits(*parts(CASES[:1])).logits)


def test_mend_learns_to_make_edits(mllm):
    mend = MEND(mllm, MENDConfig(steps=30, first=0.3, batch_size=4)).fit(CASES)
    assert np.mean(mend.losses[-5:]) < np.mean(mend.losses[:5])


@pytest.mark.parametrize("make", [MEND, SERAC])
def test_a_network_without_cases_is_refused(mllm, make):
    with pytest.raises(InputError, match="was given no cases to train"):
        make(mllm).fit([])
