"""The rows of the bench: our call, the peers' calls and the error of each, on seeded data."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import peers
import torch
from torch import Tensor

import vlws_kernels as vk


@dataclass(frozen=True)
class Case:
    """One row: our call and the peers' calls, each a function of the first `n` items."""

    op: str
    n: int
    length: int  # 0 where items are points
    dim: int
    ours: Callable[[int], object]
    peers: dict[str, Callable[[int], object]]
    error: Callable[[], float]
    target: float  # the time of the fastest peer over ours that the design asks for
    power: int = 2  # the time grows with n to this power

    @property
    def key(self) -> str:
        return f"{self.op} N={self.n} L={self.length} D={self.dim}"


def alignment_cases(sizes: list[int], lengths: list[int], dims: list[int]) -> list[Case]:
    cases = []
    for length in lengths:
        for dim in dims:
            for n in sizes:
                x = torch.randn(n, length, dim, generator=torch.Generator().manual_seed(n + length + dim))
                sigma = (2 * dim * length) ** 0.5  # the usual choice: the elements' distance times sqrt(length)
                few = torch.cat([x[:8], x[-8:]])
                target = 10.0 if length <= 32 else 3.0

                gak = functools.partial(vk.gak, sigma=sigma)
                soft_dtw = functools.partial(vk.soft_dtw, gamma=1.0)
                shape = {"n": n, "length": length, "dim": dim}
                cases += [
                    Case(
                        "gak",
                        **shape,
                        ours=lambda k, x=x, gak=gak: gak(x[:k]),
                        peers={
                            "tslearn": lambda k, x=x, s=sigma: peers.tslearn_gak(x[:k], s),
                            "tslearn n_jobs=-1": lambda k, x=x, s=sigma: peers.tslearn_gak_all_cores(x[:k], s),
                            "torch": lambda k, x=x, s=sigma: peers.torch_gak(x[:k], s),
                        },
                        error=functools.partial(error, gak, few, 0.0),
                        target=target,
                    ),
                    Case(
                        "soft_dtw",
                        **shape,
                        ours=lambda k, x=x: vk.soft_dtw(x[:k], gamma=1.0),
                        peers={
                            "tslearn": lambda k, x=x: peers.tslearn_soft_dtw(x[:k], 1.0),
                            "aeon": lambda k, x=x: peers.aeon_soft_dtw(x[:k], 1.0),
                            "torch": lambda k, x=x: peers.torch_soft_dtw(x[:k], 1.0),
                        },
                        error=functools.partial(error, soft_dtw, few, 1.0),
                        target=target,
                    ),
                    Case(
                        "dtw",
                        **shape,
                        ours=lambda k, x=x: vk.dtw(x[:k]),
                        peers={
                            "aeon": lambda k, x=x: peers.aeon_dtw(x[:k]),
                            "dtaidistance": lambda k, x=x: peers.dtaidistance_dtw(x[:k]),
                        },
                        error=functools.partial(error, vk.dtw, few, 1.0),
                        target=1.0,
                    ),
                ]
    return cases


def sugar_case(n: int = 96, longest: int = 48, dim: int = 64) -> Case:
    """GAK labels of one batch of ragged slices, normalised, each pair with a sigma of its own that grows with lengths.

    tslearn knows one sigma only and does less: it takes K(x, x) once an item, we at every pair's sigma.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, longest + 1, (n,), generator=generator)
    x = torch.randn(n, longest, dim, generator=generator)

    def sigma(k: int) -> Tensor:
        return (2 * dim) ** 0.5 * ((lengths[:k, None] + lengths[:k]) / 2).sqrt()

    def labels(k: int, x: Tensor = x, engine: str | None = None) -> Tensor:
        return vk.gak(x[:k], None, lengths[:k], sigma=sigma(k), engine=engine)

    def missed() -> float:
        truth = labels(16, x.double(), "torch")
        return float(((labels(16).double() - truth).abs() / truth).max())

    return Case(
        "sugar_gak",
        n=n,
        length=longest,
        dim=dim,
        ours=labels,
        peers={"tslearn": lambda k: peers.tslearn_ragged_gak(x[:k], lengths[:k], float(sigma(k).mean()))},
        error=missed,
        target=10.0,
    )


def error(call: Callable, x: Tensor, floor: float) -> float:
    """Largest error relative to float64; `floor`: the size of the terms, where a value may be 0 by cancellation."""
    ours, truth = call(x).double(), call(x.double(), engine="torch")
    return float(((ours - truth).abs() / truth.abs().clamp_min(floor)).max())


def reduction_cases(sizes: list[int], dims: list[int]) -> list[Case]:
    cases = []
    for dim in dims:
        for n in sizes:
            generator = torch.Generator().manual_seed(n + dim)
            x, y = (torch.randn(n, dim, generator=generator) for _ in range(2))
            u, v = (torch.nn.functional.normalize(z) for z in (x, y))
            codes = y[:512]
            tokens = max(1, n // 32)
            q, d = x[: tokens * 32].view(tokens, 32, dim), y[: tokens * 32].view(tokens, 32, dim)
            shape, target = {"n": n, "length": 0, "dim": dim}, 1 / 1.5

            def missed(k: int, x: Tensor = x) -> float:
                """The share of neighbours that are not those of float64."""
                some = x[:256]
                ours, truth = vk.knn(some, x, k)[1], vk.knn(some.double(), x.double(), k, engine="reference")[1]
                return float((ours != truth).double().mean())

            max_sim, info_nce = vk.max_sim, functools.partial(vk.info_nce, temperature=0.07)
            mmd = functools.partial(vk.mmd, sigma=1.0, unbiased=False)

            cases += [
                Case(
                    "knn",
                    **shape,
                    ours=lambda k, x=x: vk.knn(x[:k], x[:k], 10),
                    peers={
                        "sklearn brute": lambda k, x=x: peers.sklearn_knn(x[:k], 10),
                        "torch.cdist+topk": lambda k, x=x: peers.torch_knn(x[:k], 10),
                    },
                    error=lambda missed=missed: missed(10),
                    target=target,
                ),
                Case(
                    "nearest_code",
                    **shape,
                    ours=lambda k, x=x, codes=codes: vk.nearest_code(x[:k], codes),
                    peers={"torch.cdist+argmin": lambda k, x=x, codes=codes: peers.torch_nearest_code(x[:k], codes)},
                    error=lambda missed=missed: missed(1),
                    target=target,
                    power=1,
                ),
                Case(
                    "kmeans",
                    **shape,
                    ours=lambda k, x=x: vk.kmeans(x[:k], 16, iterations=10, tolerance=0.0),
                    peers={"sklearn": lambda k, x=x: peers.sklearn_kmeans(x[:k], 16, 10)},
                    error=lambda: float("nan"),
                    target=target,
                    power=1,
                ),
                Case(
                    "max_sim",
                    **shape,
                    ours=lambda k, q=q, d=d: vk.max_sim(q[: max(1, k // 32)], d[: max(1, k // 32)]),
                    peers={
                        "torch.einsum": lambda k, q=q, d=d: peers.torch_max_sim(
                            q[: max(1, k // 32)], d[: max(1, k // 32)]
                        )
                    },
                    error=functools.partial(relative_error, q[:4], d[:4], max_sim),
                    target=target,
                ),
                Case(
                    "info_nce",
                    **shape,
                    ours=lambda k, u=u, v=v: vk.info_nce(u[:k], v[:k], 0.07),
                    peers={"torch": lambda k, u=u, v=v: peers.torch_info_nce(u[:k], v[:k], 0.07)},
                    error=functools.partial(relative_error, u[:1024], v[:1024], info_nce),
                    target=target,
                ),
                Case(
                    "mmd",
                    **shape,
                    ours=lambda k, u=u, v=v: vk.mmd(u[:k], v[:k], 1.0, unbiased=False),
                    peers={"torch.cdist": lambda k, u=u, v=v: peers.torch_mmd(u[:k], v[:k], 1.0)},
                    error=functools.partial(relative_error, u[:1024], v[:1024] + 1, mmd),
                    target=target,
                ),
            ]
    return cases


def relative_error(u: Tensor, v: Tensor, call: Callable) -> float:
    ours, truth = call(u, v).double(), call(u.double(), v.double())
    return float((ours - truth).abs().max() / truth.abs().max())
