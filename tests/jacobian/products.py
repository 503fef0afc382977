"""Products of Jacobians that the tests of sweeps share."""

import functools
import itertools
import math

import pytest
import torch
from tests.references import product_twin as twin

from signalprop.jacobian.operator import Dense

DECADE = math.log(10)
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def layers(widths, activation="tanh", variance=1.0, seed=0, batch=1, orthogonal=False):
    """Jacobians of the layers of a random network at random inputs, exact in float32."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, widths[0], generator=draw, dtype=torch.float64)
    blocks = []
    for n, m in itertools.pairwise(widths):
        W = torch.randn(m, n, generator=draw, dtype=torch.float64)
        W = torch.linalg.qr(W)[0] if orthogonal else W * (variance / n) ** 0.5
        h = x @ W.T
        slope = {"tanh": 1 - h.tanh() ** 2, "relu": (h > 0).double(), "none": 1 + 0 * h}[activation]
        x = {"tanh": h.tanh(), "relu": h.relu(), "none": h}[activation]
        blocks.append((slope[..., None] * W).float())
    return blocks


def operators(blocks, dtype=torch.float64):
    return [Dense(block.to(dtype)) for block in blocks]


DEEP = {
    "tanh": lambda: layers([24] * 51),
    "tanh, ordered": lambda: layers([24] * 51, variance=0.81, seed=1),
    "relu": lambda: layers([24] * 31, "relu", 2.0, seed=2, batch=2),
    "orthogonal tanh": lambda: layers([24] * 51, orthogonal=True, seed=3),
    "widths": lambda: layers([32, 16, 24] * 6, seed=4, batch=2),
    "narrow inside": lambda: layers([20, 14, 18, 12, 18, 14, 20] * 2, seed=5, batch=2),
}


@functools.cache
def case(name):
    blocks = DEEP[name]()
    return blocks, twin.log_values(blocks, digits=90)


def check(found, truth, tol, converged=True):
    """Every value within tol nats, every zero a zero."""
    assert found.log_values.dtype == torch.float64
    lost = truth == -torch.inf
    assert torch.equal(found.log_values == -torch.inf, lost)
    assert (found.floor[~lost] == -torch.inf).all()
    assert (found.errors[lost] == torch.inf).all()
    apart = (found.log_values - truth)[~lost].abs()
    assert (apart < tol).all()
    assert found.converged.all() or not converged
    return apart, found.errors[~lost]


def turned(s, seed, depth=4):
    """Blocks whose product has these singular values, up to float64's rounding."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(s), len(s))
    turns = [
        torch.linalg.qr(torch.randn(shape, generator=draw, dtype=torch.float64))[0]
        for _ in range(depth + 1)
    ]
    part = s ** (1 / depth)
    return [(b * part @ a.T)[None] for a, b in itertools.pairwise(turns)]


def dense_case(blocks):
    blocks = [block.double() for block in blocks]
    J = functools.reduce(lambda product, block: block @ product, blocks)
    return operators(blocks), J
