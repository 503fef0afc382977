"""Tensors at the ends of their range, and rows too long for float32, against the twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.references import statistics_twin as twin
from tests.references.agreement import TOLERANCE, wrong
from torch import nn

import signalprop as sp
from signalprop.capture import statistics


class Gives(nn.Module):
    """A site with exactly this activation and exactly this delta."""

    def __init__(self, activation, delta):
        super().__init__()
        self.activation, self.delta = activation, delta
        self.step = Step()

    def forward(self, x):
        return (self.step(self.activation + 0 * x) * self.delta).sum()


class Step(nn.Module):
    def forward(self, x):
        return x.clamp(min=-math.inf)


def seen_of(activation, delta=None):
    delta = activation if delta is None else delta
    x = torch.zeros((), dtype=activation.dtype).expand(activation.shape).clone()
    return sp.trace(Gives(activation, delta), x).sites["step"]


def grid(dtype=torch.float32, n=8, d=24):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def mixed(*scales, dtype=torch.float32):
    x = grid(torch.float64, n=len(scales))
    return (x * torch.tensor(scales, dtype=torch.float64)[:, None]).to(dtype)


EXTREME = {
    "1e-30": 1e-30 * grid(),
    "1e25": 1e25 * grid(),
    "1e-40, denormal": 1e-40 * grid(),
    "largest": grid().sign() * torch.finfo(torch.float32).max,
    "zeros": torch.zeros(8, 24),
    "half the rows zero": mixed(1, 0, 1, 0, 2, 0, 3, 0),
    "all rows but one zero": mixed(0, 0, 0, 5, 0, 0, 0, 0),
    "mixed rows": mixed(1e-30, 1.0, 1e20, 0, 1e-8, 1e8, 1e-20, 3),
    "at the borders of the quick way": mixed(2e-15, 1e-14, 3e-14, 1, 1e14, 2e14, 1, 1),
    "beyond them": mixed(1e-14, 1e-13, 1e16, 1, 1e15, 1, 1, 1),
    "large mean": grid() + 1e4,
    "opposite": torch.cat([grid(n=4), -grid(n=4)]),
    "constant": torch.full((8, 24), 0.1),
    "same rows": grid(n=1).expand(8, 24).clone(),
    "one column": grid(d=1),
    "one row": grid(n=1),
    "one number": grid(n=1, d=1),
    "many rows": grid(n=200, d=3),
    "bfloat16": grid(torch.bfloat16),
    "bfloat16 1e-30": (1e-30 * grid()).bfloat16(),
    "float16": grid(torch.float16),
    "float16 small": (1e-6 * grid()).half(),
    "float64": grid(torch.float64),
    "float64 1e-100": 1e-100 * grid(torch.float64),
    "float64 1e100": 1e100 * grid(torch.float64),
    "images": grid(n=8, d=48).reshape(8, 3, 4, 4),
    "tokens": grid(n=8, d=60).reshape(8, 5, 12),
    "minus zero": -torch.zeros(8, 24),
    "complex": torch.complex(grid(), grid().roll(1, 0)),
    "complex mixed": torch.complex(mixed(1e-30, 1, 1e20, 0), mixed(1e-30, 2, 1e19, 0)),
}


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_extreme_tensors_agree_with_the_twin(name):
    x = EXTREME[name]
    other = x.flip(0) if x.is_complex() else x.flip(0) * 3e-3
    delta = other if not x.is_complex() else None
    if delta is None:
        flat = statistics.by_sample(x, len(x))
        ours = statistics.activation_scalars(flat)
        found = twin.activation(x, len(x))
        square = float(ours[1])
        assert math.sqrt(square) == pytest.approx(found["rms"], rel=TOLERANCE)
        assert float(ours[2]) / flat.numel() == found["zeros"]
        cosine = statistics.mean_cosine(float(ours[3]), round(float(ours[4])))
        assert cosine == pytest.approx(found["cosine"], abs=TOLERANCE)
        assert float(ours[4]) ** 2 / float(ours[5]) == pytest.approx(
            found["effective_rank"], rel=TOLERANCE
        )
        return
    site = seen_of(x, delta)
    assert not wrong(site.activation, twin.activation(x, len(x)))
    assert not wrong(site.delta, twin.delta(delta, len(x)))


LONG = {
    "long rows": torch.randn(3, 400_000, generator=torch.Generator().manual_seed(0)),
    "long rows of one value": torch.full((3, 400_000), 0.1),
    "long rows, large mean": 5 + torch.rand(3, 400_001, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("name", LONG)
def test_long_rows_agree_with_the_twin(name):
    """Adding up a million float32 numbers in float32 is off by 1e-3."""
    x = LONG[name]
    site = seen_of(x)
    assert not wrong(site.activation, twin.activation(x, len(x)))
    assert not wrong(site.delta, twin.delta(x, len(x)))
    assert float(statistics.norm(x)) == pytest.approx(float(x.double().norm()), rel=TOLERANCE)


def test_tokens_that_are_zero_are_left_out_of_the_cosine():
    """Padding is often embedded as exactly zero."""
    x = grid(n=8, d=60).reshape(8, 5, 12)
    x[0, 3:] = 0
    x[1, 1:] = 0  # a single token has nothing to be compared with
    mean = np.nanmean([twin.mean_cosine(sample) for sample in twin.wide(x)])
    assert float(statistics.token_cosine(x)) == pytest.approx(mean, abs=TOLERANCE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_said_and_breaks_nothing(value):
    x = grid()
    x[3, 5] = value
    flat_delta = grid()
    flat_delta[2, 2] = value
    site = seen_of(x, grid())
    assert not site.activation.finite
    assert site.delta.finite
    site = seen_of(grid(), flat_delta)
    assert site.activation.finite
    assert not site.delta.finite


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
@pytest.mark.parametrize("name", EXTREME)
def test_the_norm_and_the_mean_of_a_parameter(name, chunk, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    x = EXTREME[name]
    value = twin.wide(x)
    length = float(twin.norms(value.reshape(1, -1))[0])
    assert float(statistics.norm(x)) == pytest.approx(length, rel=TOLERANCE)
    if not x.is_complex():
        scale = length / math.sqrt(value.size)
        assert float(statistics.mean(x)) == pytest.approx(
            float(value.mean()), abs=max(TOLERANCE * scale, 1e-300)
        )
