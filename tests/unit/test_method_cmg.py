"""The method of CMG against its equations: loss, score, masking, predictor, detector."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyod.models.embedding import EmbeddingOD
from pyod.models.lof import LOF
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from torch.autograd import gradcheck

from vlws.errors import InputError
from vlws.methods.cmg import (
    CMER,
    RID,
    CMGDetector,
    GuidedEncoder,
    correlation_matrix,
    masked_embeddings,
    matching_scores,
)
from vlws.models import added
from vlws.models.clip import load_clip
from vlws.models.masking import drop_cells, grid_slices
from vlws.models.ssd import KNN, Mahalanobis, augment, held_out_scores, masked_contrastive_loss

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230)}


class ColourClip:
    """A vision-language space one can check by hand: mean colour of the lit pixels against the colour's name."""

    def images(self, images):
        lit = images.reshape(len(images), -1, 3).astype(np.float32).sum(1) + 1
        return lit / np.linalg.norm(lit, axis=1, keepdims=True)

    def texts(self, texts):
        rows = np.array([COLOURS[text] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def squares(names, seed=0):
    """Pictures "n 16 16 3" with one cell in the colour that the caption names, one cell in another colour."""
    rng = np.random.default_rng(seed)
    images = np.zeros((len(names), 16, 16, 3), np.uint8)
    clutter = np.empty(len(names), int)
    for i, name in enumerate(names):
        spoken, clutter[i] = rng.choice(4, 2, replace=False)
        other = rng.choice([c for c in COLOURS if c != name])
        for cell, colour in ((spoken, name), (clutter[i], other)):
            images[i][grid_slices(16, 16, 2)[cell]] = COLOURS[colour]
    return images + rng.integers(0, 20, images.shape, dtype=np.uint8), clutter


def nt_xent_by_hand(z, tau):
    n = len(z) // 2
    terms = []
    for i in range(2 * n):
        scores = [float(z[i] @ z[a]) / tau for a in range(2 * n)]
        denominator = sum(np.exp(s) for a, s in enumerate(scores) if a != i)
        terms.append(-np.log(np.exp(scores[(i + n) % (2 * n)]) / denominator))
    return np.mean(terms)


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


class TestLoss:
    def test_identity_is_nt_xent_scaled(self):
        z = unit(10, 4)
        assert float(masked_contrastive_loss(z, torch.eye(5))) == pytest.approx(
            nt_xent_by_hand(z, 0.5) * 0.5 / 0.07, rel=1e-12
        )

    def test_all_ones_is_finite(self):
        assert torch.isfinite(masked_contrastive_loss(unit(8, 4), torch.ones(4, 4)))

    def test_does_not_depend_on_the_order_of_the_batch(self):
        z, m = unit(12, 4), torch.from_numpy(correlation_matrix(np.random.default_rng(0).normal(size=(6, 3)), 2))
        order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
        both = torch.cat([order, order + 6])
        assert float(masked_contrastive_loss(z[both], m[order][:, order])) == pytest.approx(
            float(masked_contrastive_loss(z, m))
        )

    def test_gradient(self):
        z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
        assert gradcheck(lambda z: masked_contrastive_loss(F.normalize(z, dim=-1), torch.eye(3)), (z,))

    def test_alike_rows_are_pulled_together(self):
        z = unit(8, 16).requires_grad_()
        m = torch.eye(4)
        m[0, 1] = m[1, 0] = 1
        masked_contrastive_loss(z, m).backward()
        masked_contrastive_loss(other := z.detach().clone().requires_grad_(), torch.eye(4)).backward()
        assert -(z.grad - other.grad)[0] @ z[1].detach() > 0  # descent moves row 0 towards row 1


class TestScore:
    features = np.random.default_rng(0).normal(size=(200, 6)) @ np.random.default_rng(1).normal(size=(6, 6))

    def test_is_the_pseudo_inverse_mahalanobis_of_the_release(self):
        new = np.random.default_rng(2).normal(size=(30, 6))
        u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (self.features, new))
        mean, std = u.mean(0), u.std(0)
        u, v = (u - mean) / std, (v - mean) / std
        inverse = np.linalg.pinv(np.cov(u.T, bias=True))
        expected = np.einsum("ni,ij,nj->n", v - u.mean(0), inverse, v - u.mean(0))
        np.testing.assert_allclose(Mahalanobis().fit(self.features).decision_function(new), expected, rtol=1e-6)

    def test_ignores_a_positive_scale(self):
        scores = Mahalanobis().fit(self.features).decision_function(self.features)
        scaled = Mahalanobis().fit(7 * self.features).decision_function(7 * self.features)
        np.testing.assert_allclose(scores, scaled, rtol=1e-6)

    def test_mean_training_score_is_the_rank(self):
        assert Mahalanobis().fit(self.features).decision_function(self.features).mean() == pytest.approx(6, rel=1e-6)

    @pytest.mark.parametrize(
        ("scores", "expected"), [([1, 1, 1, 1], 0.5), ([1, 2, 300, 4000], 1.0), ([4, 3, 2, 1], 0.0)]
    )
    def test_auroc_is_a_matter_of_rank_alone(self, scores, expected):
        assert roc_auc_score([0, 0, 1, 1], scores) == expected

    def test_knn_is_the_kth_distance(self):
        new = np.random.default_rng(3).normal(size=(9, 6))
        expected = np.sort(np.linalg.norm(new[:, None] - self.features[None], axis=-1), axis=1)[:, 4]
        np.testing.assert_allclose(KNN(5).fit(self.features).decision_function(new), expected, rtol=1e-4)

    def test_knn_refuses_fewer_rows_than_neighbours(self):
        with pytest.raises(InputError, match="at least n_neighbors=5 training rows, and got 3"):
            KNN(5).fit(self.features[:3])


class TestCMER:
    @given(st.integers(1, 4), st.integers(4, 19), st.integers(4, 19))
    @settings(max_examples=30, deadline=None)
    def test_cells_cover_the_image_once(self, grid, height, width):
        count = np.zeros((height, width), int)
        for cell in grid_slices(height, width, grid):
            count[cell] += 1
        assert (count == 1).all()

    def test_dropping_zeroes_its_cell_alone_and_is_idempotent(self):
        images = np.random.default_rng(0).integers(1, 256, (5, 8, 8, 3), dtype=np.uint8)
        cells = np.array([0, 1, 2, 3, 1])
        kept = drop_cells(images, cells)
        for image, original, cell in zip(kept, images, cells, strict=True):
            inside = np.zeros((8, 8), bool)
            inside[grid_slices(8, 8, 2)[cell]] = True
            assert (image[inside] == 0).all()
            assert (image[~inside] == original[~inside]).all()
        assert (drop_cells(kept, cells) == kept).all()

    def test_predictor_is_equivariant(self):
        masked, order = unit(7, 4, 5, dtype=torch.float32), torch.tensor([2, 0, 3, 1])
        for published in (False, True):
            rid = RID(5, published).eval()
            torch.testing.assert_close(rid(masked[:, order]), rid(masked)[:, order])

    def test_finds_what_the_caption_does_not_name(self):
        names = list(np.random.default_rng(1).choice(list(COLOURS), 200))
        images, clutter = squares(names)
        scores = matching_scores(masked_embeddings(ColourClip(), images), ColourClip().texts(names))
        assert (scores.argmax(1) == clutter).all()
        cmer = CMER(ColourClip(), epochs=2).fit(images, names)
        assert (cmer.cells_ == clutter).all()
        assert cmer.transform(images).shape == images.shape


class TestCMLE:
    def test_identical_captions_are_all_alike(self):
        assert correlation_matrix(np.ones((6, 3))).all()

    def test_finds_separate_clusters(self):
        rng = np.random.default_rng(0)
        truth = np.repeat([0, 1, 2], 20)
        m = correlation_matrix(np.eye(3)[truth] + 0.01 * rng.normal(size=(60, 3)), components=3)
        assert (m == (truth[:, None] == truth)).all()

    @pytest.mark.parametrize("guidance", [None, "cluster", "regress"])
    def test_same_seed_same_features(self, guidance):
        images, _ = squares(["red", "green", "blue"] * 8)
        vectors = ColourClip().texts(["red", "green", "blue"] * 8)
        first, second = (
            GuidedEncoder(guidance, components=3, epochs=2, batch_size=8, seed=3).fit(images, vectors).transform(images)
            for _ in range(2)
        )
        np.testing.assert_array_equal(first, second)
        assert first.shape == (24, 64)

    def test_views_stay_in_range_and_differ(self):
        pixels = torch.rand(4, 3, 16, 16)
        one, two = augment(pixels), augment(pixels)
        assert one.shape == pixels.shape
        assert 0 <= one.min() <= one.max() <= 1
        assert not torch.equal(one, two)

    def test_evaluation_does_not_depend_on_the_batch(self):
        images, _ = squares(["red", "green", "blue"] * 8)
        encoder = GuidedEncoder(epochs=1, batch_size=8).fit(images)
        np.testing.assert_allclose(encoder.transform(images[:5]), encoder.transform(images)[:5], atol=1e-5)

    def test_refuses_an_unknown_guidance_and_missing_text(self):
        images, _ = squares(["red"] * 4)
        with pytest.raises(InputError, match="accepted are None, 'cluster' and 'regress'"):
            GuidedEncoder("texts").fit(images)
        with pytest.raises(InputError, match="needs text_vectors"):
            GuidedEncoder("cluster").fit(images)


def test_a_threshold_from_rows_held_out_does_not_flag_most_of_what_is_normal():
    """With few rows, those that a detector has seen score far below new ones of the same kind."""
    rng = np.random.default_rng(0)
    rows, new = rng.normal(size=(100, 64)), rng.normal(size=(400, 64))
    detector = Mahalanobis().fit(rows)
    seen, held = detector.decision_function(rows), held_out_scores(detector, rows)
    flagged = [(detector.decision_function(new) > np.quantile(scores, 0.9)).mean() for scores in (seen, held)]
    assert flagged[0] > 0.8
    assert flagged[1] < 0.2


def test_a_singular_covariance_is_told():
    with pytest.warns(UserWarning, match="40 training rows of 64 features have a singular covariance"):
        Mahalanobis().fit(np.random.default_rng(0).normal(size=(40, 64)))


class TestDetector:
    names = ("red", "green") * 40

    def fitted(self, **kwargs):
        images, _ = squares(self.names)
        encoder = GuidedEncoder("cluster", components=2, epochs=3, batch_size=16)
        return images, CMGDetector(ColourClip(), encoder=encoder, **kwargs).fit(images, self.names)

    def test_scores_odd_images_higher(self):
        _, detector = self.fitted()
        normal, _ = squares(self.names, seed=1)
        striped, _ = squares(self.names, seed=2)
        striped[:, ::2] = 255 - striped[:, ::2]
        scores = detector.decision_function(np.concatenate([normal, striped]))
        assert roc_auc_score(np.repeat([0, 1], 80), scores) > 0.9

    def test_speaks_pyod(self):
        images, detector = self.fitted(contamination=0.25)
        assert detector.decision_scores_.shape == (80,)
        assert detector.labels_.sum() == (detector.decision_scores_ > detector.threshold_).sum() == 20
        assert detector.predict(images).sum() <= 20  # rows that it was fitted to score lower than rows held out
        assert detector.transform(images).shape == (80, 64)

    def test_takes_a_pyod_detector(self):
        images, detector = self.fitted(detector=LOF(n_neighbors=5))
        assert detector.decision_function(images[:3]).shape == (3,)

    def test_encodes_for_pyod(self):
        images, detector = self.fitted()
        pyod = EmbeddingOD(encoder=detector.transform, detector="KNN").fit(images)
        assert pyod.decision_function(images[:3]).shape == (3,)

    def test_a_list_of_pictures_is_an_array(self):
        images, detector = self.fitted()
        given = [Image.fromarray(images[0]), images[1]]
        np.testing.assert_array_equal(detector.decision_function(given), detector.decision_function(images[:2]))
        again = CMGDetector(ColourClip(), encoder=detector.encoder).fit(
            [Image.fromarray(i) for i in images], self.names
        )
        np.testing.assert_array_equal(again.decision_scores_, detector.decision_scores_)
        with pytest.raises(InputError, match="picture 0 is 16 x 16 and picture 1 is 16 x 17 pixels"):
            detector.predict([images[0], np.zeros((16, 17, 3), np.uint8)])

    @pytest.mark.parametrize(
        "use",
        [
            lambda images: CMGDetector(ColourClip()).decision_function(images),
            lambda images: CMGDetector(ColourClip()).predict(images),
            lambda images: CMGDetector(ColourClip()).transform(images),
            lambda images: CMER(ColourClip()).transform(images),
            lambda images: CMER(ColourClip()).predict(np.zeros((1, 4, 3), np.float32)),
            lambda images: GuidedEncoder().transform(images),
            lambda images: Mahalanobis().decision_function(np.eye(3)),
            lambda images: KNN().decision_function(np.eye(3)),
            lambda images: KNN().state_dict(),
        ],
    )
    def test_before_fit_there_is_no_score(self, use):
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            use(squares(["red"])[0])

    @pytest.mark.parametrize("cmer", [True, False])
    @pytest.mark.parametrize("guidance", [None, "cluster", "regress"])
    def test_two_pictures_will_do_and_one_is_refused_before_any_work(self, cmer, guidance):
        images, _ = squares(["red", "green"])
        encoder = GuidedEncoder(guidance, epochs=1)
        fitted = CMGDetector(ColourClip(), cmer=cmer, encoder=encoder).fit(images, ["red", "green"])
        assert np.isfinite(fitted.decision_function(squares(["blue"] * 3)[0])).all()
        with pytest.raises(InputError, match="GuidedEncoder needs at least 2 training pictures, and got 1"):
            CMGDetector(None, cmer=cmer, encoder=encoder).fit(images[:1], ["red"])
        with pytest.raises(InputError, match="KNN needs at least n_neighbors=5 training pictures, and got 2"):
            CMGDetector(None, cmer=cmer, encoder=encoder, detector=KNN(5)).fit(images, ["red", "green"])
        with pytest.raises(InputError, match="Mahalanobis needs at least 2 training rows, and got 1"):
            Mahalanobis().fit(np.eye(3)[:1])

    def test_each_picture_passes_the_clip_once_in_its_variants(self):
        class Counting(ColourClip):
            seen = 0

            def images(self, images):
                Counting.seen += len(images)
                assert len(images) <= 2**22 // 512**2
                return super().images(images)

        images = np.random.default_rng(0).integers(0, 256, (40, 512, 512, 3), np.uint8)
        detector = CMGDetector(Counting(), encoder=GuidedEncoder("cluster", epochs=1)).fit(images, ["red", "blue"] * 20)
        assert Counting.seen == 4 * 40
        detector.decision_function(images[:3])
        assert Counting.seen == 4 * 43

    def test_a_refused_fit_leaves_nothing_fitted(self):
        images, _ = squares(["red"])
        detector = CMGDetector(ColourClip())
        with pytest.raises(InputError, match="at least 2 training pictures"):
            detector.fit(images, ["red"])
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            detector.decision_function(images)

    def test_refuses_bad_input(self):
        images, _ = squares(["red"] * 4)
        with pytest.raises(InputError, match="the captions are one text, 'blue'; accepted is a list of one per image"):
            CMGDetector(ColourClip()).fit(images, "blue")
        with pytest.raises(InputError, match="4 images came with 3 text_vectors"):
            GuidedEncoder("cluster").fit(images, np.eye(3))
        with pytest.raises(InputError, match="4 images came with 3 captions"):
            CMGDetector(ColourClip()).fit(images, ["red"] * 3)
        with pytest.raises(InputError, match="accepted is a uint8 array 'n h w 3'"):
            CMGDetector(ColourClip()).fit(images / 255, ["red"] * 4)
        with pytest.raises(InputError, match=r"accepted is a share in \(0, 0.5\]"):
            CMGDetector(ColourClip(), contamination=0.9).fit(images, ["red"] * 4)


FRESH = """
import sys
import numpy as np
from vlws.methods.cmg import CMGDetector
from vlws.models.clip import load_clip
images = np.load(sys.argv[2])
detector = CMGDetector.from_pretrained(sys.argv[1], load_clip("clip-emoji", "cpu"))
np.save(sys.argv[3], np.stack([detector.decision_function(images), detector.predict(images)]))
"""


class TestOnDisk:
    names = ("red", "green") * 20

    def fitted(self, clip=None, **kwargs):
        images, _ = squares(self.names)
        encoder = GuidedEncoder(kwargs.pop("guidance", "cluster"), components=2, epochs=2, batch_size=16)
        return images, CMGDetector(clip or ColourClip(), encoder=encoder, **kwargs).fit(images, self.names)

    def test_scores_are_the_same_in_a_fresh_process(self, tmp_path):
        images, detector = self.fitted(load_clip("clip-emoji", "cpu"))
        detector.save_pretrained(tmp_path / "saved")
        np.save(tmp_path / "images.npy", images)
        paths = [str(tmp_path / name) for name in ("saved", "images.npy", "scores.npy")]
        done = subprocess.run([sys.executable, "-c", FRESH, *paths], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        scores, labels = np.load(paths[2])
        np.testing.assert_allclose(scores, detector.decision_function(images), rtol=1e-6)
        np.testing.assert_array_equal(labels, detector.predict(images))

    @pytest.mark.parametrize("detector", [Mahalanobis(), KNN(3)])
    @pytest.mark.parametrize("guidance", [None, "cluster", "regress"])
    @pytest.mark.parametrize("cmer", [True, False])
    def test_every_part_comes_back(self, tmp_path, detector, guidance, cmer):
        _, fitted = self.fitted(detector=detector, guidance=guidance, cmer=cmer, contamination=0.2)
        fitted.save_pretrained(tmp_path / "saved")
        found = CMGDetector.from_pretrained(tmp_path / "saved", ColourClip())
        new, _ = squares(self.names, seed=1)
        np.testing.assert_array_equal(found.decision_function(new), fitted.decision_function(new))
        np.testing.assert_array_equal(found.predict(new), fitted.predict(new))
        for name in ("decision_scores_", "labels_", "threshold_", "contamination"):
            np.testing.assert_array_equal(getattr(found, name), getattr(fitted, name))
        assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}

    def test_what_needs_pickle_or_was_not_fitted_is_refused(self, tmp_path):
        _, detector = self.fitted(detector=LOF(n_neighbors=5))
        with pytest.raises(InputError, match="LOF cannot be written without pickle; accepted are Mahalanobis and KNN"):
            detector.save_pretrained(tmp_path / "saved")
        with pytest.raises(InputError, match="was not fitted"):
            CMGDetector(ColourClip()).save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()

    def test_a_folder_of_another_method_or_clip_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="holds no CMGDetector"):
            CMGDetector.from_pretrained(tmp_path, ColourClip())
        self.fitted()[1].save_pretrained(tmp_path / "saved")
        with pytest.raises(InputError, match="a backbone of embedding_dim 3; the one given has embedding_dim 64"):
            CMGDetector.from_pretrained(tmp_path / "saved", load_clip("clip-emoji", "cpu"))
        added.save_added(tmp_path / "sugar", "Sugar", {}, {}, {})
        with pytest.raises(InputError, match="holds Sugar, not CMGDetector"):
            CMGDetector.from_pretrained(tmp_path / "sugar", ColourClip())
