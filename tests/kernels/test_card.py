"""The GPU's way through every public function, on a card that is not there (`card.py`): devices, waits, memory."""

import pytest
import torch
from card import CARD, OnCard, card

import vlws_kernels as vk
from vlws_kernels import costs
from vlws_kernels import engine as engines

pytestmark = pytest.mark.skipif(engines.compiler() is None, reason="no C++ compiler")
SEQUENCES = {"x": (3, 18, 4), "y": (2, 21, 4)}  # longer than KeOps's kernels take
LENGTHS = {"len_x": torch.tensor([18, 1, 7]), "len_y": torch.tensor([3, 21])}
MODALITIES = {
    "modality_x": torch.arange(54).view(3, 18) % 2,
    "modality_y": torch.arange(42).view(2, 21) % 3 % 2,
    "split": 1,
}
SIGMA = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 2.0]], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sequences(call, own: bool = False, **about):
    """A function of x and, but for `own`, of y; lengths and all else stay on the CPU."""
    given = ("x",) if own else ("x", "y")
    if own:
        about = {name: value for name, value in about.items() if not name.endswith("_y")}
    return [drawn(*SEQUENCES[name], seed=k) for k, name in enumerate(given)], lambda *some: call(*some, **about)


def points(call, dim: int = 80, **about):
    return [drawn(50, dim), drawn(30, dim, seed=1)], lambda x, y: call(x, y, **about)


CALLS = {
    "gak": sequences(vk.gak, sigma=2.0, **LENGTHS),
    "gak, a sigma a pair": sequences(vk.gak, sigma=SIGMA, **LENGTHS),
    "gak, modalities": sequences(vk.gak, sigma=2.0, **LENGTHS, **MODALITIES),
    "gak, x with itself": sequences(vk.gak, own=True, sigma=2.0, **LENGTHS),
    "gak, a table": (
        [drawn(3, 2, 18, 21).square()],
        lambda d: vk.gak(d[:, 0, :, :1].detach(), d[0, :, 0, :, None].detach(), sigma=2.0, distance=d, normalize=False),
    ),
    "soft_dtw": sequences(vk.soft_dtw, gamma=0.5, **LENGTHS),
    "dtw": sequences(vk.dtw, **LENGTHS),
    "dtw, modalities": sequences(vk.dtw, **LENGTHS, **MODALITIES),
    "max_sim": sequences(vk.max_sim, **LENGTHS),
    "info_nce": ([drawn(40, 80), drawn(40, 80, seed=1)], lambda x, y: vk.info_nce(x, y, temperature=0.3)),
    "mmd": points(vk.mmd, sigma=[5.0, 9.0]),
    "nearest_code": points(lambda x, y: vk.nearest_code(x, y)[0]),
    "knn": points(lambda x, y: vk.knn(x, y, k=3)[0]),
    "knn, few dimensions": points(lambda x, y: vk.knn(x, y, k=3)[0], dim=3),
}


def on_cpu(value: torch.Tensor) -> torch.Tensor:
    return value.held if isinstance(value, OnCard) else value


@pytest.mark.parametrize("name", CALLS)
def test_on_the_card_as_on_the_cpu(name: str) -> None:
    """Values and gradients, on the card of x; lengths, modalities, sigma and tables come to it from the CPU."""
    inputs, call = CALLS[name]
    found = {}
    for place in ("cpu", "cuda:0"):
        with card(2**30):
            here = [value.to(place).detach().requires_grad_() for value in inputs]
            value = call(*here)
            assert value.device == torch.device(place)
            weight = torch.linspace(-1, 2, value.numel()).view(value.shape).to(place)
            (value * weight).sum().backward()
            assert all(isinstance(x.grad, OnCard) == (place != "cpu") for x in here)
            found[place] = [on_cpu(value.detach()), *(on_cpu(x.grad) for x in here)]
    for ours, theirs in zip(found["cuda:0"], found["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6 * float(theirs.abs().max()))


def test_k_means_and_paths_on_the_card() -> None:
    x = drawn(200, 70)
    one, other, table = drawn(9, 3), drawn(12, 3, seed=1), drawn(9, 12).square()
    for call in (
        lambda to: vk.kmeans(to(x), 5, seed=0),
        lambda to: (vk.expected_alignment(to(one), to(other), gamma=0.5),),
        lambda to: (vk.expected_alignment(to(one), to(other), gamma=0.5, distance=table),),
        lambda to: (vk.alignment_path(to(one), to(other), distance=table),),
    ):
        expected = call(lambda value: value)
        with card():
            found = call(lambda value: value.to("cuda:0"))
        for ours, theirs in zip(found, expected, strict=True):
            if isinstance(theirs, torch.Tensor):
                assert ours.device == CARD
                torch.testing.assert_close(ours.held, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("call", [vk.gak, vk.soft_dtw, vk.dtw, vk.max_sim, vk.knn, vk.nearest_code, vk.info_nce])
def test_points_on_two_devices_are_refused(call) -> None:
    about = {"gak": {"sigma": 1.0}, "soft_dtw": {"gamma": 1.0}, "knn": {"k": 1}}.get(call.__name__, {})
    shape = (4, 3) if call in (vk.knn, vk.nearest_code, vk.info_nce) else (4, 5, 3)
    with card():
        here, there = drawn(*shape).to("cuda:0"), drawn(*shape)
        for x, y in ((here, there), (there, here)):
            with pytest.raises(ValueError, match=r"on (cpu|cuda:0) and y is .* on (cpu|cuda:0); .*must agree"):
                call(x, y, **about)


def test_tensors_that_meet_on_two_devices_are_found() -> None:
    """The card that is not there sees what a real one would refuse."""
    with card() as seen:
        x = torch.ones(3).to("cuda:0")
        with pytest.raises(RuntimeError, match="same device: add"):
            x + torch.ones(3)
        assert (x + torch.tensor(1.0)).device == x.new_zeros(2).device == torch.zeros(2, device="cuda:0").device
        assert x[torch.tensor([0, 2])].device.type == "cuda"  # torch takes indices of the CPU
        assert x.cpu().device.type == "cpu"
        assert seen.waits["outside"] == 1
        assert float(x.sum()) == 3
        assert seen.waits["outside"] == 2


@pytest.mark.parametrize("name", ["gak", "soft_dtw", "dtw", "gak, modalities", "dtw, x with itself"])
def test_chunks_wait_for_nothing(name: str) -> None:
    """Of a hundred times less memory come more launches, the same values, and no more waiting."""
    inputs, call = CALLS.get(name) or sequences(vk.dtw, own=True)
    found = []
    for free in (2**30, 2**18):
        with card(free) as seen:
            here = [value.to("cuda:0").detach().requires_grad_() for value in inputs]
            value = call(*here)
            value.sum().backward()
            found.append((seen.launches, sum(seen.waits.values()), value.detach().held, here[0].grad.held))
    (few, waits, *whole), (many, waits_of_many, *parts) = found
    assert many > few
    assert waits_of_many == waits
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_more_centres_and_more_points_wait_no_more() -> None:
    def waits(call) -> int:
        with card() as seen:
            call()
            return sum(seen.waits.values())

    x = drawn(300, 70)
    few, many = (waits(lambda k=k: vk.kmeans(x.to("cuda:0"), k, iterations=2, tolerance=0, seed=0)) for k in (2, 40))
    assert many == few
    few, many = (waits(lambda n=n: vk.knn(x.to("cuda:0"), x[:n].to("cuda:0"), k=2)) for n in (5, 300))
    assert many == few


def test_too_little_memory_is_told() -> None:
    with card(2**12):
        x = drawn(2, 30, 4).to("cuda:0")
        with pytest.raises(torch.OutOfMemoryError, match=r"cuda:0 has 0\.00 GB free.*give shorter sequences"):
            vk.gak(x, sigma=1.0)


def test_no_more_cells_at_once_than_32_bits_count() -> None:
    """Some of torch's kernels index with 32 bits; ours do not."""
    with card(2**50):
        assert costs.held(1, device=CARD) == 2**31
        assert costs.held(2**31, device=CARD) == 1


def test_a_graph_capture_is_refused() -> None:
    with card(capturing=True):
        x = drawn(2, 30, 4).to("cuda:0")
        with pytest.raises(RuntimeError, match=r"gak was called while a CUDA graph is captured.*call it outside"):
            vk.gak(x, sigma=1.0)


def test_nan_on_the_card_is_refused() -> None:
    x = drawn(2, 30, 4)
    x[1, 3, 0] = torch.nan
    with card(), pytest.raises(ValueError, match="x holds NaN or infinite numbers"):
        vk.dtw(x.to("cuda:0"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("call", [vk.dtw, vk.max_sim, vk.nearest_code, vk.info_nce])
def test_half_precision_is_refused(dtype: torch.dtype, call) -> None:
    """Distances of near points are differences of large numbers: the caller says where eight bits become more."""
    x = drawn(*((4, 3) if call in (vk.nearest_code, vk.info_nce) else (4, 5, 3))).to(dtype)
    with pytest.raises(TypeError, match=rf"x is torch.{str(dtype)[6:]}; it must be .* float32 or float64"):
        call(x, x)
