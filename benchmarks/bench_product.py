"""The whole log-spectrum of a deep product: its time against the exact path, and who is right.

Asked, on a 512-wide, 50-layer network, batch 16, float32: at most 2 times the time of
`torch.func.vmap(jacrev)` and `svdvals`, which loses every value 7 decades below the largest. The
accuracy table counts values wrong by more than 0.1 decade: of 24-wide products against mpmath, of
512-wide ones against sweeps in float64 over the same float32 blocks.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import pytest
import torch
from benchmarks.timing import keep, ratio
from tests.references import product_twin
from torch import Tensor, nn

from signalprop.jacobian.operator import Dense, End, Jacobian
from signalprop.jacobian.product import log_spectrum

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

FIGURES: dict[str, Any] = {}
KINDS = ("gaussian tanh", "he relu", "orthogonal tanh")


@pytest.fixture(scope="module", autouse=True)
def _kept() -> Any:
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
    yield
    keep("product", FIGURES)


def _network(kind: str, width: int, batch: int) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(50):
        linear = nn.Linear(width, width, bias=False)
        if kind == "orthogonal tanh":
            nn.init.orthogonal_(linear.weight)
        else:
            nn.init.normal_(linear.weight, std=((2 if kind == "he relu" else 1) / width) ** 0.5)
        layers += [linear, nn.ReLU() if kind == "he relu" else nn.Tanh()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return nn.Sequential(*layers).to(device), torch.randn(batch, width).to(device)


def _blocks(model: nn.Sequential, x: Tensor) -> list[Jacobian]:
    h = x.clone().requires_grad_()
    ends = [End.at("input", h)]
    for linear, activation in zip(model[::2], model[1::2], strict=True):
        h = activation(linear(h))
        ends.append(End.at(f"block {len(ends)}", h))
    return [Jacobian(of, wrt) for wrt, of in itertools.pairwise(ends)]


def _exact(model: nn.Sequential, x: Tensor) -> Tensor:
    return torch.linalg.svdvals(torch.func.vmap(torch.func.jacrev(model))(x)).detach()


@pytest.mark.parametrize("profile", [False, True], ids=["values", "profile"])
@pytest.mark.parametrize("kind", KINDS)
def test_time(kind: str, profile: bool, benchmark: Any) -> None:
    model, x = _network(kind, 512, 16)
    sweeps = lambda: log_spectrum(_blocks(model, x), profile=profile)  # noqa: E731
    measured = ratio(lambda: _exact(model, x), sweeps, rounds=5)
    what = "values and profile" if profile else "values"
    FIGURES[f"{what} / exact, {kind}, 512 x 50, batch 16"] = measured
    benchmark.extra_info |= measured
    benchmark.pedantic(sweeps, rounds=1)


def _matrices(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Every block's Jacobian, as float32 has it."""
    unit = torch.eye(x.shape[1], device=x.device).expand(len(x), -1, -1)
    return [block.adjoint(unit).mT for block in _blocks(model, x)]


def _wrong(found: Tensor, truth: Tensor) -> str:
    """How many of the values that are there are off by more than 0.1 decade, and the worst."""
    there = truth > -torch.inf
    apart = ((found.cpu() - truth.cpu()).abs() / math.log(10))[there.cpu()]
    return f"{int((apart > 0.1).sum())} of {len(apart)}, at most {float(apart.max()):.2g} decades"


@pytest.mark.parametrize("width", [24, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy(kind: str, width: int) -> None:
    model, x = _network(kind, width, 2)
    matrices = _matrices(model, x)
    wide = [matrix.double() for matrix in matrices]
    if width > 100:
        truth = log_spectrum([Dense(matrix) for matrix in wide], profile=False).log_values
    else:
        truth = product_twin.log_values([matrix.cpu() for matrix in wide])
    product = wide[0]
    for matrix in wide[1:]:
        product = matrix @ product
    table = {
        "svdvals, float32": _exact(model, x).double().log(),
        "svdvals, float64": torch.linalg.svdvals(product).log(),
        "sweeps, float32": log_spectrum(_blocks(model, x), profile=False).log_values,
    }
    for method, found in table.items():
        FIGURES[f"wrong, {kind}, {width} x 50, {method}"] = _wrong(found, truth)
