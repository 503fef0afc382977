"""What Jacobian spectra cost, as ratios to `torch.func.vmap(jacrev)` and `svdvals`.

Run with `make bench`, or `pytest benchmarks/bench_spectra.py`. Asked, on a 512-wide, 50-layer
network at batch 16 in float32: all singular values at most 1.0 of that time and under 300 MB more;
the top 8 to 1e-4 at least 5 times faster and the Frobenius norm to 1% at least 7 times faster
where the spectrum decays. The 4 largest of every block of a ResNet-50, batch of 8: in less than 60
backward passes of the whole. Errors are against float64. The figures go to benchmarks/results/.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks.bench_cost import _cpu_peak, _cuda_peak
from benchmarks.timing import keep, ratio, timed
from torch import Tensor, nn

from signalprop.jacobian import exact, krylov, norms
from signalprop.jacobian.between import between
from signalprop.jacobian.diagonal import diagonal_of
from signalprop.jacobian.operator import End, Jacobian
from signalprop.jacobian.spectrum import BLOCK_AT_ONCE, BLOCK_VECTORS

WIDTH, DEPTH, BATCH = 512, 50, 16
FIGURES: dict[str, Any] = {}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


@pytest.fixture(scope="module", autouse=True)
def _kept() -> Any:
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
    yield
    keep("spectra", FIGURES)


def _he_relu(weight: Tensor) -> nn.Module:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return nn.ReLU()


def _gaussian_tanh(weight: Tensor) -> nn.Module:
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return nn.Tanh()


def _orthogonal_tanh(weight: Tensor) -> nn.Module:
    nn.init.orthogonal_(weight)
    return nn.Tanh()


NETWORKS: dict[str, Callable[[Tensor], nn.Module]] = {
    "He ReLU": _he_relu,
    "Gaussian tanh": _gaussian_tanh,
    "orthogonal tanh": _orthogonal_tanh,
}
DECAYING = ["He ReLU", "Gaussian tanh"]


class Case:
    """A network, its batch, and its singular values in float64."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(DEPTH):
            linear = nn.Linear(WIDTH, WIDTH)
            nn.init.zeros_(linear.bias)
            layers += [linear, NETWORKS[name](linear.weight)]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # small inputs keep orthogonal tanh near its linear part, where its spectrum is flat
        size = 0.1 if name == "orthogonal tanh" else 1.0
        self.x = (size * torch.randn(BATCH, WIDTH)).to(device)
        self.model = nn.Sequential(*layers).to(device).double()
        self.truth = torch.linalg.svdvals(exact.matrices(self.jacobian(self.x.double())))
        self.model.float()

    def jacobian(self, x: Tensor | None = None) -> Jacobian:
        """The operator, forward pass included, as for the peer."""
        x = (self.x if x is None else x).clone().requires_grad_()
        return Jacobian(End.at("output", self.model(x)), End.at("input", x))

    def peer(self) -> Tensor:
        """What a user would write."""
        with torch.no_grad():
            return torch.linalg.svdvals(torch.func.vmap(torch.func.jacrev(self.model))(self.x))


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request: Any) -> tuple[str, Case]:
    return request.param, Case(request.param)


def _relative(found: Tensor, truth: Tensor) -> float:
    return float(f"{float(((found - truth).abs() / truth).max()):.2g}")


def test_exact(case: tuple[str, Case], benchmark: Any) -> None:
    """All singular values; at most 1.0 of the peer's time, under 300 MB more."""
    name, net = case
    call = lambda: exact.singular_values(net.jacobian())  # noqa: E731
    measured: dict[str, Any] = dict(ratio(net.peer, call, rounds=3))
    found = call()
    measured["error / s_1"] = _relative(
        found.values - net.truth + net.truth[:, :1], net.truth[:, :1]
    )
    peak = _cuda_peak if torch.cuda.is_available() else _cpu_peak
    measured["peak_mb"], measured["peer_peak_mb"] = (
        round(peak(f) / 2**20, 1) for f in (call, net.peer)
    )
    FIGURES[f"exact / jacrev and svdvals, {name}"] = measured
    benchmark.extra_info |= measured
    benchmark.pedantic(call, rounds=1)


def test_top(case: tuple[str, Case], benchmark: Any) -> None:
    """The largest 8 to 1e-4; 5 times faster where the spectrum decays, else the exact way."""
    name, net = case
    call = lambda: krylov.spectrum_top(net.jacobian(), 8)  # noqa: E731
    found = call()
    off = (found.values - net.truth[:, :8]).abs()
    FIGURES[f"jacrev and svdvals / top 8, {name}"] = measured = {
        **ratio(call, net.peer, rounds=3),
        "error": _relative(found.values, net.truth[:, :8]),
        "errors that cover": round(float((off <= found.errors).double().mean()), 3),
        "method": found.method,
        "vectors": found.vectors,
    }
    benchmark.extra_info |= measured
    benchmark.pedantic(call, rounds=1)


def test_frobenius(case: tuple[str, Case], benchmark: Any) -> None:
    """||J||_F to 1%; 7 times faster where the spectrum decays."""
    name, net = case
    call = lambda: norms.moments(net.jacobian(), fourth=False)  # noqa: E731
    truth = torch.linalg.vector_norm(net.truth, dim=1)
    found = call()
    values = [
        norms.frobenius(net.jacobian(), generator=torch.Generator().manual_seed(seed))[0]
        for seed in range(3)
    ]
    FIGURES[f"jacrev and svdvals / Frobenius norm, {name}"] = measured = {
        **ratio(call, net.peer, rounds=3),
        "largest error, 16 samples, 3 seeds": max(_relative(v, truth) for v in values),
        "method": found.method,
        "vectors": found.vectors,
    }
    benchmark.extra_info |= measured
    benchmark.pedantic(call, rounds=1)


def test_blocks_of_a_resnet_50(benchmark: Any) -> None:
    """The 4 largest of every block, as `spectrum` finds them, in backward passes of the whole."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval().to(device)
    x = torch.randn(8, 3, 64, 64, device=device)

    def backward() -> float:
        model.zero_grad()
        value = model(x).logits.sum()
        return timed(lambda: value.backward())

    few = {"block": BLOCK_AT_ONCE, "vectors": 4 * BLOCK_VECTORS}
    worst = 0.0
    with between(model, x, samples=8) as live:
        blocks = [live.jacobian(b.end, b.start) for b in live.trace.blocks]
        backward()
        passes = []
        for _ in range(3):
            plain = min(backward() for _ in range(5))
            found = []
            passes.append(timed(lambda: found.extend(_four(op, few) for op in blocks)) / plain)  # noqa: B023
        worst = max(float((s.errors / s.values.clamp_min(1e-12)).amax()) for s in found if s)
    FIGURES["top 4 of every block / backward passes, ResNet-50 at 64 x 64"] = {
        "median": round(sorted(passes)[1], 1),
        "blocks": len(blocks),
        "largest relative error stated": round(worst, 3),
    }
    benchmark.extra_info |= FIGURES["top 4 of every block / backward passes, ResNet-50 at 64 x 64"]
    benchmark.pedantic(backward, rounds=1)


def _four(op: Jacobian, few: dict[str, int]) -> Any:
    """An operation element by element shows its values on its diagonal."""
    diagonal = diagonal_of(op, torch.Generator().manual_seed(0))
    return None if diagonal is not None else krylov.spectrum_top(op, 4, tol=1e-2, **few)
