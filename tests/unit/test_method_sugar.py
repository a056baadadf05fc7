"""Sugar: labels against hand-made references, the loss, the slice ends, training, retrieval."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from backbones.llava_emoji import make_processor
from vlws.data.documents import Document, Documents, Slice
from vlws.data.emoji_world import stories, story_sets
from vlws.data.emoji_world.scenes import COLOURS
from vlws.errors import InputError
from vlws.methods import sugar
from vlws.models import added, retrieval, slice_ends
from vlws.models.clip import load_clip
from vlws.models.experts import SliceEmbeddings, encoder_experts, latent_experts, slices_of
from vlws.models.families import adapt, load_mllm
from vlws.models.interleave import Reader
from vlws.train import Diverged
from vlws_kernels import gak


def random_slices(n: int, seed: int = 0, dim: int = 8) -> SliceEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    parts = [F.normalize(torch.randn(n, dim, generator=generator), dim=-1) for _ in range(2)]
    return SliceEmbeddings(torch.cat(parts, 1), torch.randint(0, 2, (n,), generator=generator), dim)


def path_sum(kappa: np.ndarray) -> float:
    """K by its definition: the sum over all monotone paths of the product of local kernels."""
    n, m = kappa.shape

    def from_cell(i: int, j: int) -> float:
        if (i, j) == (n - 1, m - 1):
            return kappa[i, j]
        steps = [(i + 1, j), (i, j + 1), (i + 1, j + 1)]
        return kappa[i, j] * sum(from_cell(a, b) for a, b in steps if a < n and b < m)

    return from_cell(0, 0)


def kappa(distance: np.ndarray, sigma: float) -> np.ndarray:
    s = np.exp(-distance / (2 * sigma**2))
    return s / (2 - s)


def labels_of(distance, prefixes, **options):
    sample = torch.arange(len(prefixes))
    return sugar.alignment_labels(distance, [torch.tensor(p) for p in prefixes], sample, **options).matrix.numpy()


# --- labels ---------------------------------------------------------------------------------------------------------


def test_labels_equal_the_sum_over_all_paths():
    slices = random_slices(12)
    distance = sugar.slice_distances(slices, torch.arange(12))
    prefixes = [[0, 1, 2], [3, 4, 5, 6], [7, 8], [9, 10, 11]]
    found = labels_of(distance, prefixes, delta=0.7)
    d = distance.numpy().astype(float)
    for i, x in enumerate(prefixes):
        for j, y in enumerate(prefixes):
            sigma = 0.7 * math.sqrt((len(x) + len(y)) / 2)
            k = [path_sum(kappa(d[np.ix_(a, b)], sigma)) for a, b in ((x, y), (x, x), (y, y))]
            expected = 1.0 if i == j else min(1.0, k[0] / math.sqrt(k[1] * k[2]))
            assert found[i, j] == pytest.approx(expected, rel=1e-4), (i, j)


@pytest.mark.parametrize(
    ("y", "sigma", "expected"),
    [([1.0, 2, 2, 3], 2.0, 0.8393), ([1.0, 2, 2, 3, 4], 1.0, 0.2734)],
)
def test_labels_of_two_known_sequences(y, sigma, expected):
    values = torch.tensor([1.0, 2, 3, *y])[:, None]
    distance = (values - values.T).square()
    lengths = (3, len(y))
    found = labels_of(distance, [[0, 1, 2], [*range(3, 3 + len(y))]], delta=sigma / math.sqrt(sum(lengths) / 2))
    assert found[0, 1] == pytest.approx(expected, abs=5e-5)


def test_equal_slices_give_ratios_of_delannoy_numbers():
    """Unnormalised, n equal slices would give 1, 3, 13, 63, 321; normalised, labels decay with the lengths alone."""
    found = labels_of(torch.zeros(20, 20), [[*range(n)] for n in (1, 2, 4, 5, 8, 9)])
    assert found.max() <= 1
    for i, j, expected in [(0, 1, 0.58), (2, 3, 0.91), (0, 3, 0.056), (4, 5, 0.95), (0, 5, 0.002), (3, 5, 0.40)]:
        assert found[i, j] == pytest.approx(expected, abs=0.01)


def test_five_orthonormal_slices():
    """The figures of a swap, a reversal, disjoint sequences, a doubled slice and prefixes, at delta 0.7."""
    distance = 2 * (1 - torch.eye(10))
    x = [0, 1, 2, 3, 4]
    cases = [
        ([1, 0, 2, 3, 4], 0.50),
        ([0, 2, 1, 3, 4], 0.65),
        (x[::-1], 0.10),
        ([5, 6, 7, 8, 9], 0.06),
        ([*x, 4], 0.77),
        ([0, 1, 2, 3], 0.45),
        ([0], 0.004),
    ]
    found = labels_of(distance, [x, *(y for y, _ in cases)])
    assert found[0, 1:] == pytest.approx([expected for _, expected in cases], abs=0.006)
    mean = labels_of(distance, [x, *(y for y, _ in cases)], kind="mean")
    assert mean[0, 1:4] == pytest.approx([0.2] * 3)  # blind to order


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["gak", "mean", "dtw", "soft_dtw"]))
def test_labels_are_symmetric_bounded_and_one_on_the_diagonal(seed, kind):
    rng = np.random.default_rng(seed)
    slices = random_slices(12, seed)
    distance = sugar.slice_distances(slices, torch.arange(12))
    prefixes = [rng.integers(12, size=rng.integers(1, 7)).tolist() for _ in range(6)]
    found = labels_of(distance, prefixes, kind=kind)
    assert found == pytest.approx(found.T, abs=1e-5)
    assert np.diag(found) == pytest.approx(np.ones(6), abs=1e-5)
    if kind in ("gak", "dtw", "soft_dtw"):  # cosines of one-slice prefixes may be negative
        longer = [i for i, p in enumerate(prefixes) if len(p) > 1]
        assert ((found[longer] >= 0) & (found[longer] <= 1)).all()


def test_dtw_and_soft_dtw_are_the_best_path_and_the_plain_sum():
    slices = random_slices(7, 3)
    distance = sugar.slice_distances(slices, torch.arange(7))
    x, y = [0, 1, 2], [3, 4, 5, 6]
    sigma = 0.7 * math.sqrt(3.5)
    d = distance.numpy().astype(float)
    plain = [path_sum(np.exp(-d[np.ix_(a, b)] / (2 * sigma**2))) for a, b in ((x, y), (x, x), (y, y))]
    assert labels_of(distance, [x, y], kind="soft_dtw")[0, 1] == pytest.approx(
        plain[0] / math.sqrt(plain[1] * plain[2]), rel=1e-4
    )

    def best(i, j):
        before = [best(a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
        return d[x[i], y[j]] + (min(before) if before else 0.0)

    assert labels_of(distance, [x, y], kind="dtw")[0, 1] == pytest.approx(
        math.exp(-best(2, 3) / (2 * sigma**2)), rel=1e-4
    )


def test_triple_kernel_takes_the_part_that_the_modalities_share():
    slices = random_slices(6, 4)
    modality = slices.modality
    found = sugar.slice_distances(slices, torch.arange(6))
    clip = sugar.slice_distances(slices, torch.arange(6), triple=False)
    for i in range(6):
        for j in range(6):
            part = slice(0, 8) if modality[i] == modality[j] else slice(8, 16)
            expected = (slices.vectors[i, part] - slices.vectors[j, part]).square().sum()
            assert found[i, j] == pytest.approx(float(expected), abs=1e-5)
            if i != j:
                cross = (slices.cross[i] - slices.cross[j]).square().sum()
                assert clip[i, j] == pytest.approx(float(cross), abs=1e-5)


def test_overrides_one_slice_is_its_cosine_and_one_sample_is_one():
    slices = random_slices(6, 5)
    distance = sugar.slice_distances(slices, torch.arange(6))
    prefixes = [torch.tensor(p) for p in ([0], [3], [0, 1, 2], [3, 4])]
    found = sugar.alignment_labels(distance, prefixes, torch.tensor([0, 1, 0, 1])).matrix
    assert found[0, 1] == pytest.approx(float(1 - distance[0, 3] / 2), abs=1e-6)
    assert found[0, 2] == found[1, 3] == 1
    assert 0 <= found[2, 3] < 1
    s = math.exp(-float(distance[0, 3]) / 2 / 0.7**2)  # Theorem 3: without the override, s / (2 - s), sigma = delta
    blank, length = torch.zeros(1, 1, 1), torch.tensor([1])
    found = gak(blank, blank, length, length, 0.7, normalize=False, distance=distance[None, None, :1, 3:4])
    assert float(found) == pytest.approx(s / (2 - s), rel=1e-5)


def test_clamped_values_are_counted():
    """E2: two pictures far apart, both at their text: the kernel is not positive definite, and labels can exceed 1."""
    distance = torch.tensor([[0.0, 4, 0, 0], [4, 0, 0, 0], [0, 0, 0, 4], [0, 0, 4, 0]])
    prefixes = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    found = sugar.alignment_labels(distance, prefixes, torch.arange(2), delta=0.5)
    assert found.matrix[0, 1] == 1
    assert found.clamped == pytest.approx(0.5)  # both off-diagonal entries of four


def test_labels_refuse_an_empty_prefix_and_an_unknown_kind():
    with pytest.raises(InputError, match="without slices"):
        sugar.alignment_labels(torch.zeros(2, 2), [torch.tensor([0]), torch.tensor([], dtype=int)], torch.arange(2))
    with pytest.raises(InputError, match="accepted are gak"):
        sugar.alignment_labels(torch.zeros(2, 2), [torch.tensor([0])], torch.arange(1), kind="lcs")


# --- loss -------------------------------------------------------------------------------------------------------------


def test_structure_loss_is_divided_by_n_and_blind_to_order():
    torch.manual_seed(0)
    r = F.normalize(torch.randn(5, 3, dtype=torch.float64), dim=-1)
    labels = torch.rand(5, 5, dtype=torch.float64)
    labels = (labels + labels.T) / 2
    loss = sugar.structure_loss(r, labels)
    assert loss == pytest.approx(float(((r @ r.T - labels) ** 2).mean() * 5))
    order = torch.randperm(5)
    assert sugar.structure_loss(r[order], labels[order][:, order]) == pytest.approx(float(loss))


def test_no_gradient_passes_into_labels():
    r = F.normalize(torch.randn(4, 3), dim=-1).requires_grad_()
    labels = torch.rand(4, 4, requires_grad=True)
    sugar.structure_loss(r, labels).backward()
    assert labels.grad is None
    assert r.grad is not None


def test_gradients_of_both_losses():
    r = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels, sample = torch.rand(5, 5, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2])
    unit = lambda x: F.normalize(x, dim=-1)  # noqa: E731
    assert torch.autograd.gradcheck(lambda x: sugar.structure_loss(unit(x), labels), r)
    assert torch.autograd.gradcheck(lambda x: sugar.same_sample_loss(unit(x), sample), r)


def test_contrastive_loss_is_least_where_samples_stand_together():
    r = torch.eye(4)[[0, 0, 1, 1]]
    assert sugar.same_sample_loss(r, torch.tensor([0, 0, 1, 1])) < sugar.same_sample_loss(r, torch.tensor([0, 1, 0, 1]))
    assert sugar.same_sample_loss(r, torch.arange(4)) == 0


# --- the model ------------------------------------------------------------------------------------------------------


@cache
def processor():
    return make_processor()


def tiny(seed: int = 0):
    """A random-weight LLaVA: 4 patches a picture, 2 layers."""
    made = processor()
    made.patch_size = 16
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=len(made.tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=vision | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16},
        text_config=text.to_dict(),
        image_token_id=made.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return adapt(LlavaForConditionalGeneration(config).eval(), made)


@pytest.fixture
def small():
    return sugar.Sugar(tiny(), sugar.SugarConfig(rank=2, embedding_dim=8))


@pytest.fixture(scope="module")
def corpus():
    return stories.corpus(48, 12)


def test_slice_spans_hold_their_own_tokens(small, corpus):
    features = small.reader.features(corpus.images)
    documents = corpus.documents[:20]
    for side in ("right", "left"):
        rows = small.reader.rows(documents, features, padding_side=side)
        for row, document in enumerate(documents):
            for part, (start, stop) in zip(document.slices, rows.spans[row].tolist(), strict=True):
                tokens = rows.batch.input_ids[row, start:stop]
                if part.is_image:
                    assert (tokens == small.adapter.image_token_id).all()
                    assert stop - start == 4
                else:
                    assert small.adapter.tokenizer.decode(tokens) == f" {part.text}"
            learned = small.adapter.tokenizer.decode(rows.batch.input_ids[row][rows.batch.labels[row] >= 0])
            told = [s.text for s in document.slices if s.supervised]
            answer = f" {document.answer}</s>" if document.answer else ""
            assert learned == "".join(f" {text}" for text in told) + answer


def test_states_are_the_mean_of_a_picture_and_the_last_token_of_a_sentence(small):
    hidden = torch.randn(2, 9, 24)
    at = torch.tensor([[0, 1, 5], [1, 5, 9]])
    found = small.states(hidden, at, torch.tensor([True, False]))
    assert torch.allclose(found[0], hidden[0, 1:5].mean(0), atol=1e-6)
    assert torch.allclose(found[1], hidden[1, 8])
    last = sugar.Sugar(tiny(), sugar.SugarConfig(pooling="last")).states(hidden, at, torch.tensor([True, False]))
    assert torch.equal(last[0], hidden[0, 4])
    with pytest.raises(InputError, match="accepted are mean and last"):
        sugar.Sugar(tiny(), sugar.SugarConfig(pooling="max"))


def test_an_embedding_summarises_its_prefix_alone(small, corpus):
    """Causal: what follows a slice end changes nothing; padding and company neither."""
    features = small.reader.features(corpus.images)
    story = next(d for d in corpus.documents if d.answer and any(s.supervised for s in d.slices))
    prefix = Document(story.slices[:3])
    r = small.embed([prefix], features)[0]
    rows = small.reader.rows([story], features, answers=False)
    hidden = small.adapter.hidden(rows.batch, small.adapter.num_layers)
    at = torch.tensor([[0, *rows.spans[0][2].tolist()]])
    assert torch.allclose(small(hidden, at, torch.tensor([story.slices[2].is_image]))[0], r, atol=1e-5)
    company = small.embed([*corpus.documents[:5], prefix], features)[-1]
    assert torch.allclose(company, r, atol=1e-5)
    assert torch.linalg.norm(r) == pytest.approx(1, abs=1e-5)


def test_lora_starts_as_the_model_it_is_put_into(corpus):
    plain, adapted = tiny(), sugar.Sugar(tiny(), sugar.SugarConfig(rank=2))
    reader = Reader(plain)
    features = reader.features(corpus.images)
    batch = reader.rows(corpus.documents[:4], features).batch
    assert torch.allclose(plain.run(batch).logits, adapted.adapter.run(batch).logits, atol=1e-6)
    learned = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert learned
    assert all("lora_" in name or name.startswith("head.") for name in learned)
    assert any("q_proj" in name for name in learned)
    assert not any("k_proj" in name for name in learned)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(corpus):
    return latent_experts(corpus, load_clip("clip-emoji", "cpu"))


def test_a_draw_names_the_slices_of_its_prefixes(small, corpus, embedded):
    flat = slices_of(corpus)
    assert len(flat) == len(embedded.vectors)
    for draw in slice_ends.draw_steps(corpus, 3, 16, small.reader, seed=1):
        assert len(draw.sample) > 16
        for (k, s), prefix, sample in zip(draw.ends.tolist(), draw.prefixes, draw.sample.tolist(), strict=True):
            document, found = corpus.documents[sample], [flat[i] for i in prefix]
            if draw.sequences[k] == document:
                assert found == list(document.slices[: s + 1])
            else:  # the lone slice: the end of all that its document tells
                assert draw.sequences[k].slices == (document.lone,)
                told = list(document.slices[: len(document.slices) - bool(document.answer)])
                inside = replace(told[-1], supervised=False) == document.lone
                assert found == (told if inside else [*told, document.lone])
        labels = sugar.step_labels(draw, embedded)
        assert labels.matrix.shape == (len(draw.sample),) * 2
        assert (labels.matrix[draw.sample[:, None] == draw.sample] == 1).all()


def test_step_labels_are_those_of_whole_sequences_given_to_the_kernel(small, corpus, embedded):
    """The table of shared distances and the one call for all K(x,x), against the kernel on the slices themselves."""
    draw = slice_ends.draw_steps(corpus, 1, 16, small.reader)[0]
    found = sugar.step_labels(draw, embedded).matrix
    index = torch.nn.utils.rnn.pad_sequence(list(draw.prefixes), batch_first=True)
    length = torch.tensor([len(p) for p in draw.prefixes])
    sigma = sugar.DELTA * ((length[:, None] + length) / 2).sqrt()
    direct = gak(
        embedded.vectors[index], None, length, None, sigma, modality_x=embedded.modality[index], split=embedded.split
    ).clamp(0, 1)
    plain = (draw.sample[:, None] != draw.sample) & ~((length[:, None] == 1) & (length == 1))
    assert torch.allclose(found[plain], direct[plain], atol=1e-5)


def test_training_lowers_the_loss_and_resumes(tmp_path, corpus, embedded):
    config = sugar.SugarConfig(rank=4, embedding_dim=16)
    model = sugar.Sugar(tiny(), config)
    features = model.reader.features(corpus.images)
    draws = slice_ends.draw_steps(corpus, 30, 12, model.reader)
    labels = [sugar.step_labels(draw, embedded).matrix for draw in draws]
    batch = slice_ends.collate(draws[0], model.reader, features)

    def both():
        with torch.no_grad():
            language, r = model.losses(batch)
        return float(language), float(sugar.structure_loss(r, labels[0]))

    before = both()
    history = sugar.train_sugar(model, draws, features, labels, lr=5e-3, out=tmp_path)
    after = both()
    assert after[0] < before[0] + 0.05  # random weights, of which LoRA moves few
    assert after[1] < 0.7 * before[1]
    again = sugar.Sugar(tiny(), config)
    assert sugar.train_sugar(again, draws, features, labels, lr=5e-3, out=tmp_path) == history
    assert torch.equal(again.head[0].weight, model.head[0].weight)


def test_the_arms_train_what_they_say(corpus, embedded):
    def trained(**options):
        given = options.pop("labels", True)
        model = sugar.Sugar(tiny(), sugar.SugarConfig(rank=2, embedding_dim=8, **options))
        features = model.reader.features(corpus.images)
        draws = slice_ends.draw_steps(corpus, 3, 12, model.reader)
        labels = [sugar.step_labels(draw, embedded).matrix for draw in draws]
        start = model.head[0].weight.clone()
        sugar.train_sugar(model, draws, features, labels if given else None)
        return not torch.allclose(start, model.head[0].weight, rtol=0.01)

    assert not trained(alpha=0.0)  # weight decay alone
    assert trained(alpha=1.0, generative=False)
    assert trained(alpha=1.0, labels=False, temperature=0.1)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_state(tmp_path, corpus):
    model = sugar.Sugar(tiny(), sugar.SugarConfig(rank=2, embedding_dim=8, alpha=1.0, temperature=0.1))
    features = model.reader.features(corpus.images)
    draws = slice_ends.draw_steps(corpus, 300, 12, model.reader)[:260]
    with pytest.raises(Diverged, match=r"nan at step 1 of 260; nothing was saved; try a smaller lr"):
        sugar.train_sugar(model, draws, features * torch.nan, None, out=tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_what_cannot_be_trained_is_refused(small, corpus):
    draws = slice_ends.draw_steps(corpus, 1, 8, small.reader)
    features = torch.zeros(1)
    for alpha in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="nothing to learn"):
            sugar.SugarConfig(alpha=alpha, generative=False)
    for labels, told in [(None, "needs label matrices"), ([], "each step needs one")]:
        with pytest.raises(InputError, match=told):
            sugar.train_sugar(small, draws, features, labels)
    one = Slice(text="alone")
    shown = Slice(image=0)
    for document, told in [
        (Document((shown,)), "has 1 slice"),
        (Document((one, one)), "has no pictures"),
    ]:
        found = Documents((document,), np.zeros((1, 32, 32, 3), np.uint8))
        with pytest.raises(InputError, match=told):
            slice_ends.draw_steps(found, 1, 1, small.reader)


# --- retrieval and answers --------------------------------------------------------------------------------------------


def test_retrieval_is_exact_and_leaves_out_what_was_seen():
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(n, 6), dim=-1) for n in (7, 50))
    exclude = np.array([(queries @ keys.T)[i].topk(2).indices.tolist() for i in range(7)])
    scores = queries @ keys.T
    assert (retrieval.retrieve(queries, keys, 5) == scores.topk(5).indices.numpy()).all()
    left = retrieval.retrieve(queries, keys, 3, exclude)
    assert (left == scores.topk(5).indices.numpy()[:, 2:]).all()
    assert retrieval.ranks(left, left[:, 1]).tolist() == [1] * 7
    assert retrieval.ranks(left, exclude[:, 0]).tolist() == [3] * 7
    with pytest.raises(InputError, match="accepted is 1 to 48"):
        retrieval.retrieve(queries, keys, 49, exclude)
    assert retrieval.recall(np.array([0, 1, 4, 5]), 5) == 0.75


FRESH = """
import sys, torch
from vlws.data.emoji_world import stories
from vlws.methods.sugar import Sugar
from vlws.models.families import load_mllm
found = stories.corpus(6, 12)
model = Sugar.from_pretrained(sys.argv[1], load_mllm("llava-emoji", "cpu"))
torch.save(model.embed(found.documents, model.reader.features(found.images)), sys.argv[2])
"""


def test_embeddings_are_the_same_in_a_fresh_process(tmp_path):
    found = stories.corpus(6, 12)
    model = sugar.Sugar(load_mllm("llava-emoji", "cpu"), sugar.SugarConfig(rank=2, embedding_dim=8, pooling="last"))
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.normal_(std=0.2)
        model.mean.normal_()
    model.save_pretrained(tmp_path / "saved")
    paths = [str(tmp_path / name) for name in ("saved", "r.pt")]
    done = subprocess.run([sys.executable, "-c", FRESH, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    r = model.embed(found.documents, model.reader.features(found.images))
    torch.testing.assert_close(torch.load(paths[1]), r, rtol=1e-5, atol=1e-6)
    _, tensors = added.load_added(paths[0], "Sugar")
    assert {name.split(".")[0] for name in tensors} == {"decoder", "head", "mean", "scale"}
    assert all("lora_" in name for name in tensors if name.startswith("decoder"))


def test_a_folder_of_another_method_or_backbone_is_refused(small, tmp_path):
    with pytest.raises(InputError, match="holds no Sugar"):
        sugar.Sugar.from_pretrained(tmp_path, tiny())
    small.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="made for a backbone of hidden_size 24, num_layers 2; the one given has"):
        sugar.Sugar.from_pretrained(tmp_path / "saved", load_mllm("llava-emoji", "cpu"))
    added.save_added(tmp_path / "cheetor", "Cheetor", {}, {}, {})
    with pytest.raises(InputError, match="holds Cheetor, not Sugar"):
        sugar.Sugar.from_pretrained(tmp_path / "cheetor", tiny())


def test_merged_lora_reads_the_same(small, corpus):
    features = small.reader.features(corpus.images)
    for name, weights in small.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    documents = corpus.documents[:12]
    before = small.embed(documents, features)
    small.merge_lora()
    assert torch.allclose(small.embed(documents, features), before, atol=1e-5)
    assert not torch.allclose(
        sugar.Sugar(tiny(), sugar.SugarConfig(rank=2, embedding_dim=8)).embed(documents, features), before, atol=1e-2
    )


def test_language_loss_is_the_models_own(small, corpus):
    features = small.reader.features(corpus.images)
    documents = corpus.documents[:8]
    found = small.adapter.run(small.reader.rows(documents, features).batch).loss.detach()
    assert small.language_loss(documents, features) == pytest.approx(float(found), rel=1e-5)


def test_choices_and_answers_agree_with_the_model(small):
    found = story_sets.questions("colour", 12, 13)
    features = small.reader.features(found.images)
    chosen = small.choose(found.documents, features)
    assert ((chosen >= 0) & (chosen < len(COLOURS))).all()
    rows = small.reader.rows(found.documents[:1], features, answers=False)
    logits = small.adapter.run(rows.batch).logits[0, int(rows.batch.attention_mask[0].sum()) - 1]
    first = [small.adapter.tokenizer(f" {c}", add_special_tokens=False).input_ids[0] for c in COLOURS]
    assert chosen[0] == int(logits[first].argmax())
    assert len(small.answer(found.documents[:3], features, max_new_tokens=2)) == 3
    assert small.language_loss(found.documents, features) > 0


def test_augmented_queries_hold_the_retrieved_answer(corpus):
    base = story_sets.knowledge_base(5, 14)
    right = sugar.augmented(base.queries, base.items, base.relevant.argmax(1))
    for query, asked in zip(right, base.queries, strict=True):
        assert asked.answer in " ".join(s.text for s in query.slices)
        assert query.slices[-2:] == asked.slices


def test_experts_tell_near_twins_apart_and_clip_does_not(corpus):
    clip = load_clip("clip-emoji", "cpu")
    found = story_sets.winoground(40, 15)
    both = Documents((*found.pictures, *found.texts), found.images)
    for experts in (latent_experts, encoder_experts):
        slices = experts(both, clip)
        assert slices.vectors.shape[0] == 160
        norms = slices.vectors[:, : slices.split].norm(dim=1), slices.cross.norm(dim=1)
        assert all(torch.allclose(n, torch.ones(160), atol=1e-5) for n in norms)
    slices = latent_experts(both, clip)
    uni = (slices.vectors[0:80:2, : slices.split] * slices.vectors[1:80:2, : slices.split]).sum(1)
    cross = (slices.cross[0:80:2] * slices.cross[1:80:2]).sum(1)
    assert uni.mean() < 0.6 < cross.mean()
    unlike = slices.cross[0:80:2] @ slices.cross[80:160:2].T
    assert abs(unlike[~torch.eye(40, dtype=torch.bool)].mean()) < 0.1  # centred: unrelated slices near 0
