"""Codebooks and the tokenizer of pictures."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vlws.errors import InputError
from vlws.models.quantize import Codebook, usage
from vlws.models.vq import PictureTokenizer, VQConfig, from_pixels, load_vq, to_pixels


@pytest.fixture(scope="module")
def vq():
    torch.manual_seed(0)
    return PictureTokenizer(VQConfig(side=16, codes=32, width=16)).eval()


@pytest.mark.parametrize("unit", [False, True])
def test_the_nearest_code_is_that_of_float64(unit):
    torch.manual_seed(0)
    book, z = Codebook(20, 5, unit=unit).eval(), torch.randn(3, 40, 5)
    found = book(z)
    double = F.normalize(z.double(), dim=-1) if unit else z.double()
    distance = (double[..., None, :] - book.codes.double()).square().sum(-1)
    assert (found.ids == distance.argmin(-1)).all()
    assert torch.allclose(found.codes, book.codes[found.ids], atol=1e-6)
    assert found.loss.item() == pytest.approx(
        (double - book.codes[found.ids].double()).square().mean().item(), rel=1e-5
    )


def test_the_gradient_goes_straight_to_the_vectors():
    book, z = Codebook(4, 3).eval(), torch.randn(6, 3, requires_grad=True)
    weight = torch.randn(6, 3)
    (book(z).codes * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_codes_are_the_running_means_of_their_vectors():
    torch.manual_seed(0)
    book = Codebook(2, 1, decay=0.5)
    book.start(torch.tensor([[0.0], [0.0], [10.0], [10.0]]))
    low = int(book.codes.argmin())
    for _ in range(3):
        book(torch.tensor([[1.0], [1.0], [10.0], [10.0]]))
    assert book.codes[low].item() == pytest.approx(1 - 0.5**3)  # from 0 half of the way to 1, three times
    assert book.uses.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("unit", [False, True])
def test_moving_averages_are_those_of_float64(unit):
    """Eight steps of a plain loop: shares and sums decay, a code is their ratio (of length 1 where `unit`)."""
    torch.manual_seed(0)
    book = Codebook(3, 4, unit=unit, decay=0.7)
    batches = torch.randn(9, 60, 4)
    book.start(batches[0])
    codes, uses, sums = (x.double() for x in (book.codes, book.uses, book.sums))
    for z in batches[1:]:
        book(z)
        z = F.normalize(z.double(), dim=-1) if unit else z.double()
        ids = torch.cdist(z, codes).argmin(1)
        for k in range(3):
            uses[k] = 0.7 * uses[k] + 0.3 * (ids == k).double().mean()
            sums[k] = 0.7 * sums[k] + 0.3 * z[ids == k].sum(0) / len(z)
        codes = sums / uses[:, None]
        codes = F.normalize(codes, dim=-1) if unit else codes
    assert torch.allclose(book.codes.double(), codes, atol=1e-5)
    assert torch.allclose(book.uses.double(), uses, atol=1e-6)


def test_a_codebook_at_test_does_not_move():
    torch.manual_seed(0)
    book = Codebook(4, 2).eval()
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book(torch.randn(64, 2))
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


def test_what_k_means_began_is_not_taken_for_dead():
    torch.manual_seed(0)
    book, z = Codebook(16, 2), torch.randn(512, 2)
    book.start(z)
    before = book.codes.clone()
    book(z[:64])
    assert (book.codes - before).norm(dim=1).max() < 0.05


def test_dead_codes_come_back():
    torch.manual_seed(0)
    book = Codebook(8, 2)
    with torch.no_grad():
        book.codes[1:] = 1e3  # nothing is near them
    z = torch.randn(64, 2)
    assert len(usage(book.eval()(z).ids, 8).dead) == 7
    book.train()
    for _ in range(100):
        book(z)
    assert usage(book.eval()(z).ids, 8).dead == ()


def test_usage_is_the_exponent_of_the_entropy():
    ids = torch.tensor([0, 0, 1, 3])
    p = np.array([0.5, 0.25, 0.25])
    assert usage(ids, 4).perplexity == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert usage(ids, 4).dead == (2,)
    with pytest.raises(InputError, match="A codebook of 1 codes of dimension 3"):
        Codebook(1, 3)


def test_a_token_is_that_of_its_own_patch(vq):
    torch.manual_seed(1)
    pixels = torch.randn(1, 3, 16, 16)
    other = pixels.clone()
    other[:, :, :4, :4] += 1.0  # the first patch
    before, after = vq.encode(pixels), vq.encode(other)
    assert (before[:, 1:] == after[:, 1:]).all()
    assert before.shape == (1, vq.config.tokens)
    each = vq.before_codes(pixels).flatten(1, 2).double()
    assert (before == (each @ vq.codes.double().T).argmax(-1)).all()


def test_a_tokenizer_is_saved_and_read(vq, tmp_path):
    vq.save_pretrained(tmp_path)
    again, pixels = load_vq(str(tmp_path), "cpu"), torch.randn(2, 3, 16, 16)
    assert (again.encode(pixels) == vq.encode(pixels)).all()
    assert torch.equal(again.decode(vq.encode(pixels)), vq.decode(vq.encode(pixels)))


def test_pictures_of_another_size_or_type_are_refused(vq):
    with pytest.raises(InputError, match="Pictures of 8 x 16 pixels: this tokenizer reads 16 x 16"):
        vq.encode(torch.zeros(1, 3, 16, 8))
    with pytest.raises(InputError, match="accepted is uint8 of shape n, h, w, 3"):
        from_pixels(np.zeros((1, 4, 4, 4), np.uint8))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    assert (to_pixels(from_pixels(pictures)) == pictures).all()
