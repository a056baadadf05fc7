"""ControlRetriever on three families of encoders: exact at the start, frozen where it must be, and it learns."""

import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from vlws.errors import InputError
from vlws.methods.control_retriever import ControlConfig, ControlRetriever, contrast, distil, spaced
from vlws.models.hub import weights_hash
from vlws.models.retriever import Retriever
from vlws.retrieve import index, retrieve

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "find", "names", "images", "of", "animals", "tools"]
WORDS += ["near", "the", "query", "dog", "cat", "saw", "axe", "red", "old", "one", "big"]
QUERIES, ASKED = ["dog", "saw axe", "red old one dog"], ["find names of animals", "find images of tools", "find names"]
SIZES = dict(vocab_size=len(WORDS), hidden_size=16, num_attention_heads=2, intermediate_size=32)


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    names = dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **names)


def encoder(kind: str, layers: int = 4) -> torch.nn.Module:
    if kind == "t5":
        sizes = dict(vocab_size=len(WORDS), d_model=16, d_kv=8, num_layers=layers, num_heads=2, d_ff=32)
        return T5EncoderModel(T5Config(**sizes, pad_token_id=0))
    sizes = SIZES | dict(num_hidden_layers=layers, max_position_embeddings=40)
    if kind == "mpnet":
        return MPNetModel(MPNetConfig(**sizes, pad_token_id=0), add_pooling_layer=False)
    return BertModel(BertConfig(**sizes, pad_token_id=0), add_pooling_layer=False)


def make(
    kind: str = "bert", pooling: str = "mean", normalize: bool = True, layers: int = 4, seed: int = 0
) -> Retriever:
    torch.manual_seed(seed)
    model = encoder(kind, layers)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.3)
    return Retriever(model, tokenizer(), pooling, normalize, max_length=12).eval()


def awake(control: ControlRetriever) -> ControlRetriever:
    """With connections that are no longer zero."""
    torch.manual_seed(1)
    for connection in (control.connect_instruction, control.connect_control):
        if connection is not None:
            torch.nn.init.normal_(connection.weight, std=0.1)
    return control


KINDS = pytest.mark.parametrize("kind", ["bert", "mpnet", "t5"])
FORMS = pytest.mark.parametrize(
    "config",
    [
        ControlConfig(),
        ControlConfig(reader_pool="cls", layers=2),
        ControlConfig(upper=2, train_reader=False),
        ControlConfig(upper=4),
        ControlConfig(mode="joint"),
    ],
    ids=["released", "pruned", "upper", "all upper", "joint"],
)


def embedded(control: ControlRetriever, queries=QUERIES, asked=ASKED) -> torch.Tensor:
    if control.config.mode == "joint":
        return control(control.states(queries, asked))
    return control(control.states(queries), control.instruct(asked))


# --- invariants -------------------------------------------------------------------------------------------------------


@KINDS
@FORMS
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_before_training_it_is_the_retriever_to_the_bit(kind, config, pooling, normalize):
    retriever = make(kind, pooling, normalize)
    control = ControlRetriever(retriever, config)
    with torch.no_grad():  # attention of T5 rounds otherwise where its bias has a gradient
        plain = retriever.embed(*retriever.tokens(QUERIES))
    assert torch.equal(embedded(control), plain)
    control.train()
    assert torch.equal(embedded(control), plain)  # nothing drops out in training either


@KINDS
@FORMS
def test_what_is_frozen_stays_to_the_bit_and_what_is_added_learns(kind, config):
    retriever = make(kind)
    before, index_before = weights_hash(retriever.model), retriever.encode(["dog", "saw", "cat"])
    control = ControlRetriever(retriever, config)
    assert not {id(p) for p in retriever.parameters()} & {id(p) for p in control.trainable_parameters()}
    optimizer = torch.optim.AdamW(control.parameter_groups(1e-2, 1e-2))
    start = [p.clone() for p in control.trainable_parameters()]
    for _ in range(3):
        loss = contrast(embedded(control), index_before, torch.tensor([0, 1, 2]), torch.tensor([[1], [0], [0]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert weights_hash(retriever.model) == before
    assert torch.equal(retriever.encode(["dog", "saw", "cat"]), index_before)
    moved = [not torch.equal(p, q) for p, q in zip(control.trainable_parameters(), start, strict=True)]
    assert sum(moved) > 0.8 * len(moved)


def test_gradients_arrive_one_connection_after_the_other():
    """Z2 first, behind it f_c and Z1 once Z2 is not zero, G once Z1 is not."""
    retriever = make()
    control = ControlRetriever(retriever, ControlConfig())
    documents = retriever.encode(["dog", "saw", "cat"])
    parts = {
        "Z2": control.connect_control,
        "f_c": control.control,
        "Z1": control.connect_instruction,
        "G": control.reader,
    }
    optimizer = torch.optim.SGD(control.trainable_parameters(), lr=1.0)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        contrast(embedded(control), documents, torch.tensor([0, 1, 2]), torch.tensor([[1], [0], [0]])).backward()
        moving = {
            n for n, m in parts.items() if any(p.grad is not None and p.grad.abs().max() > 0 for p in m.parameters())
        }
        seen.append(moving)
        optimizer.step()
    assert seen == [{"Z2"}, {"Z2", "f_c", "Z1"}, {"Z2", "f_c", "Z1", "G"}]


def test_a_random_start_is_not_the_retriever():
    retriever = make()
    plain = retriever.embed(*retriever.tokens(QUERIES))
    assert not torch.allclose(embedded(ControlRetriever(retriever, ControlConfig(zero=False))), plain, atol=1e-3)


@pytest.mark.parametrize("config", [ControlConfig(), ControlConfig(upper=2, train_reader=False)], ids=["full", "upper"])
def test_the_equations_by_hand(config):
    """t = Z1 pool(G(I)); c = pool(f_c(x + t)); e = finish(pool(f(q)) + Z2 c), query by query without padding."""
    retriever = make(layers=3)
    control = awake(ControlRetriever(retriever, config))
    model = retriever.model
    for query, instruction, e in zip(QUERIES, ASKED, embedded(control), strict=True):
        (ids, mask), (said, heard) = retriever.tokens([query]), retriever.tokens([instruction])
        t = control.connect_instruction(model(said, attention_mask=heard).last_hidden_state.mean(1))  # G is a copy
        if config.upper:
            states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
            x = states[1] + t
            for layer in control.control:
                x = layer(x)
            last = x
        else:
            last = model(inputs_embeds=model.get_input_embeddings()(ids) + t, attention_mask=mask).last_hidden_state
        pooled = model(ids, attention_mask=mask).last_hidden_state.mean(1)
        wanted = F.normalize(pooled + control.connect_control(last.mean(1)), dim=-1)[0]
        assert torch.allclose(e, wanted, atol=1e-5)


def test_joint_mode_reads_instruction_and_query_as_one_text():
    retriever = make()
    control = awake(ControlRetriever(retriever, ControlConfig(mode="joint")))
    pair = retriever.tokenizer([ASKED[0]], [QUERIES[0]], return_tensors="pt")
    last = retriever.model(**pair).last_hidden_state.mean(1)  # f_c is still a copy
    ids, mask = retriever.tokens([QUERIES[0]])
    pooled = retriever.model(ids, attention_mask=mask).last_hidden_state.mean(1)
    wanted = F.normalize(pooled + control.connect_control(last), dim=-1)
    assert torch.allclose(embedded(control)[:1], wanted, atol=1e-5)


@FORMS
def test_one_instruction_serves_all_queries_of_a_collection(config):
    control = awake(ControlRetriever(make(), config))
    found = control.encode_queries(QUERIES, ASKED[0], batch_size=2)
    assert torch.allclose(found, embedded(control, QUERIES, [ASKED[0]] * 3), atol=1e-5)


def test_without_an_instruction_the_control_is_passed_by():
    control = awake(ControlRetriever(make()))
    assert torch.equal(control.encode_queries(QUERIES), control.retriever.encode(QUERIES))
    assert not torch.allclose(control.encode_queries(QUERIES, ASKED[0]), control.encode_queries(QUERIES), atol=1e-3)


def test_states_of_some_rows_drop_the_padding_that_only_others_need():
    control = awake(ControlRetriever(make()))
    states = control.states(QUERIES)
    few = states.pick(torch.tensor([1, 0]))
    assert few.hidden.shape[1] == 4 < states.hidden.shape[1]
    t = control.instruct(ASKED)
    assert torch.allclose(control(few, t[[1, 0]]), control(states, t)[[1, 0]], atol=1e-6)


def test_instructions_that_another_control_has_read_are_not_read_again(monkeypatch):
    config = ControlConfig(upper=2, train_reader=False)
    first, second = (awake(ControlRetriever(make(), config)) for _ in range(2))
    second.remember(ASKED, first.heard(ASKED))
    wanted = first.instruct(ASKED)
    monkeypatch.setattr(second, "_pooled", None)  # it would be called
    assert torch.equal(second.instruct(ASKED), wanted)
    with pytest.raises(InputError, match="train_reader=True: vectors of instructions change in training"):
        ControlRetriever(make()).remember(ASKED, first.heard(ASKED))


# --- it learns to be controlled ---------------------------------------------------------------------------------------


def test_an_instruction_decides_between_documents_of_one_topic():
    retriever = make(layers=2)
    documents = retriever.encode(["names dog", "images dog", "names saw", "images saw"])
    queries, asked = ["dog", "dog", "saw", "saw"], ["find names", "find images"] * 2
    positive, negatives = torch.arange(4), torch.tensor([[1], [0], [3], [2]])
    control = ControlRetriever(retriever, ControlConfig(upper=1, train_reader=False))
    states = control.states(queries)
    optimizer = torch.optim.AdamW(control.parameter_groups(1e-2, 1e-3))
    for _ in range(100):
        loss = contrast(control(states, control.instruct(asked)), documents, positive, negatives)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        e = control(states, control.instruct(asked))
        swapped = control(states, control.instruct(asked[::-1]))
    assert (e @ documents.T).argmax(1).tolist() == [0, 1, 2, 3]
    assert (swapped @ documents.T).argmax(1).tolist() == [1, 0, 3, 2]


# --- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("have", "keep", "kept"), [(6, 6, [0, 1, 2, 3, 4, 5]), (6, 4, [0, 2, 3, 5]), (4, 1, [3])])
def test_kept_layers_are_evenly_spaced_and_end_with_the_last(have, keep, kept):
    assert spaced(have, keep) == kept


@pytest.mark.parametrize("config", [ControlConfig(), ControlConfig(upper=3)], ids=["full", "upper"])
def test_a_student_starts_from_its_teachers_weights(config, tmp_path):
    teacher = awake(ControlRetriever(make(), config))
    student = teacher.pruned(2)
    assert torch.equal(student.connect_control.weight, teacher.connect_control.weight)
    assert student.connect_control.weight is not teacher.connect_control.weight
    count = sum(p.numel() for p in student.trainable_parameters())
    assert count < sum(p.numel() for p in teacher.trainable_parameters())
    student.save_pretrained(tmp_path / "student")
    again = ControlRetriever.from_pretrained(tmp_path / "student", make())
    assert torch.allclose(embedded(again), embedded(student), atol=1e-6)
    with pytest.raises(InputError, match=r"layers=9: accepted is 1 to [34], those of the control encoder"):
        teacher.pruned(9)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_contrast_against_a_loop_in_double_precision():
    torch.manual_seed(0)
    e, documents = torch.randn(5, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    positive, negatives = torch.tensor([0, 1, 0, 2, 3]), torch.tensor([[4, 5], [6, 7], [8, 4], [5, 2], [7, 3]])
    total = 0.0
    for k in range(5):
        own = float(e[k] @ documents[positive[k]])
        others = [float(e[k] @ documents[j]) for j in positive.tolist() if j != positive[k]]
        others += [float(e[k] @ documents[j]) for j in negatives[k].tolist() if j != positive[k]]
        scores = torch.tensor([own, *others], dtype=torch.float64) / 0.1
        total += float(scores.logsumexp(0) - scores[0])
    assert float(contrast(e, documents, positive, negatives, 0.1)) == pytest.approx(total / 5, abs=1e-12)


def test_the_contrast_has_right_gradients():
    torch.manual_seed(0)
    e = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(6, 4, dtype=torch.float64)
    at = torch.tensor([0, 1, 2]), torch.tensor([[3], [4], [2]])
    assert torch.autograd.gradcheck(lambda x: contrast(x, documents, *at, 0.5), e)
    assert torch.autograd.gradcheck(lambda x: distil(x, documents[:3], documents, 0.5), e)


def test_distillation_is_zero_at_the_teacher_alone():
    torch.manual_seed(0)
    e, other, documents = torch.randn(3, 4), torch.randn(3, 4), torch.randn(7, 4)
    assert float(distil(e, e, documents)) == pytest.approx(0.0, abs=1e-6)
    assert float(distil(other, e, documents)) > 0.1


# --- files ------------------------------------------------------------------------------------------------------------


@KINDS
@FORMS
def test_saved_and_loaded_on_a_fresh_retriever_it_scores_the_same(kind, config, tmp_path):
    control = awake(ControlRetriever(make(kind), config))
    control.save_pretrained(tmp_path / "control")
    again = ControlRetriever.from_pretrained(tmp_path / "control", make(kind))
    assert again.config == config
    assert torch.allclose(embedded(again), embedded(control), atol=1e-6)


def test_the_file_holds_nothing_of_the_retriever(tmp_path):
    from safetensors.torch import load_file

    control = ControlRetriever(make(), ControlConfig(upper=2, train_reader=False))
    control.save_pretrained(tmp_path / "control")
    tensors = load_file(tmp_path / "control" / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"control", "connect_instruction", "connect_control"}
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in control.trainable_parameters())


def test_a_plug_in_of_another_retriever_is_refused(tmp_path):
    ControlRetriever(make()).save_pretrained(tmp_path / "control")
    with pytest.raises(InputError, match=r"was made for a backbone of hidden_size 16, weights \w+; the one given has"):
        ControlRetriever.from_pretrained(tmp_path / "control", make(seed=5))
    with pytest.raises(InputError, match="holds no ControlRetriever"):
        ControlRetriever.from_pretrained(tmp_path / "nowhere", make())


def test_a_saved_plug_in_serves_retrieve(tmp_path):
    retriever = make()
    retriever.model.save_pretrained(tmp_path / "base")
    retriever.tokenizer.save_pretrained(tmp_path / "base")
    texts = tmp_path / "texts"
    texts.mkdir()
    for k, text in enumerate(["names dog", "images dog", "names saw"]):
        (texts / f"{k}.txt").write_text(text)
    from vlws.models.retriever import load_retriever

    base = load_retriever(str(tmp_path / "base"), "cpu")
    control = awake(ControlRetriever(base, ControlConfig(upper=2, train_reader=False)))
    control.save_pretrained(tmp_path / "control")
    index(texts, str(tmp_path / "base"), tmp_path / "index", "cpu")
    asked = dict(instruction="find names", plugin=tmp_path / "control", k=3, device="cpu")
    hits = retrieve(["dog"], tmp_path / "index", **asked)["results"][0]["hits"]
    scores = control.encode_queries(["dog"], "find names") @ base.encode(["names dog", "images dog", "names saw"]).T
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores[0].tolist(), reverse=True), abs=1e-4)


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "too many layers": (ControlConfig(upper=5), "upper=5: accepted is 0 to the encoder's 4 layers, and 0 where joint."),
    "upper in joint": (ControlConfig(mode="joint", upper=1), "upper=1: accepted is 0 to the encoder's 4 layers"),
    "layers": (ControlConfig(layers=5), "layers=5: accepted is 0 to the 4 that are copied."),
    "layers of upper": (ControlConfig(upper=2, layers=3), "layers=3: accepted is 0 to the 2 that are copied."),
}


@pytest.mark.parametrize(("config", "told"), REFUSED.values(), ids=REFUSED)
def test_a_config_that_does_not_fit_is_refused(config, told):
    with pytest.raises(InputError, match=re.escape(told)):
        ControlRetriever(make(), config)


@pytest.mark.parametrize("config", [ControlConfig(), ControlConfig(train_reader=False), ControlConfig(mode="joint")])
def test_instructions_that_cannot_be_read_are_refused(config):
    control = ControlRetriever(make(), ControlConfig(**(config.__dict__ | {"max_instruction": 6})))
    with pytest.raises(InputError, match=r"The instruction 'find names of animals near' has 7 tokens; .* at most 6"):
        control.encode_queries(["dog"], "find names of animals near")
    with pytest.raises(InputError, match="An instruction is empty"):
        control.encode_queries(["dog"], "  ")


def test_joint_mode_has_no_vector_of_an_instruction():
    with pytest.raises(InputError, match='mode="joint" has no vector of an instruction'):
        ControlRetriever(make(), ControlConfig(mode="joint")).instruct(["find names"])
