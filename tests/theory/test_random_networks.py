"""Random networks of width 512 over two hundred layers against the maps."""

import math

import numpy as np
import pytest
import torch
from tests.theory.networks import pair, propagate

from signalprop.theory import MeanField

WIDTH, DEPTH, SEEDS = 512, 200, 3

CASES = [
    ("tanh", 1.5, 0.05),
    ("tanh", 2.5, 0.05),
    ("relu", 2.0, 0.0),
    ("erf", 1.2, 0.05),
    ("gelu", 1.5, 0.2),
    ("selu", 1.0, 0.0),
]


@pytest.mark.parametrize(("phi", "weight", "bias"), CASES)
def test_maps_hold_over_two_hundred_layers(phi, weight, bias):
    theory = MeanField(phi, weight, bias)
    q0, c0 = 1.5 * theory.q_star, 0.3
    path = theory.trajectory(DEPTH, q0, c0)
    runs = []
    for seed in range(SEEDS):
        own = torch.Generator().manual_seed(seed)
        h = pair(WIDTH, q0, c0, own).float()
        runs.append(propagate(phi, weight, bias, DEPTH, h, seed))
    q, c, level = (torch.stack(x).numpy() for x in zip(*runs, strict=True))
    l = np.arange(DEPTH + 1)
    # a layer's sum over n units scatters by sqrt(k / n), k = 5 for ReLU and less for the others,
    # and the mean of a logarithm lies k / 2n below the logarithm of the mean, layer by layer
    drift = 5 * l / 2 / WIDTH
    spread = np.sqrt(5 * (l + 1) / WIDTH / SEEDS)
    memory = np.ones(DEPTH + 1) if theory.scale_free else np.minimum(1, 3 * theory.xi_q / (l + 1))
    miss = np.abs(np.log(q).mean(0) - np.log(path.q))
    assert (miss <= (drift + 4 * spread) * memory + 4 * math.sqrt(5 / WIDTH)).all()
    miss = np.abs(c.mean(0) - path.c)
    near = np.sqrt(np.maximum(1 - path.c**2, 0) * np.maximum(1 - path.c, 0) + 1e-12)
    assert (miss <= 0.02 + 4 * near * np.sqrt(np.minimum(theory.xi_c, l + 1) / WIDTH)).all()
    # the gradient, from layer 200 down: as a rate per layer it is known to three digits
    expected = path.log_gradient[-1] - path.log_gradient
    miss = np.abs(level.mean(0) - expected)
    back = DEPTH - l
    assert (miss <= 5 * back / 2 / WIDTH + 4 * np.sqrt(5 * (back + 1) / WIDTH / SEEDS) / 2).all()
    assert abs(level.mean(0)[0] - expected[0]) / DEPTH < 0.012


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.05), (0.5, 0.05)])
def test_depth_scale_of_a_random_network(weight, bias):
    """Fitted to 1 - c of eight pairs of inputs in four networks, down to about 1e-7."""
    theory = MeanField("tanh", weight, bias)
    depth = int(16 * theory.xi_c)
    first = int(3 * theory.xi_c)
    slopes = []
    for seed in range(4):
        h = pair(WIDTH, theory.q_star, 0.6, torch.Generator().manual_seed(seed), pairs=8)
        _, c, _ = propagate("tanh", weight, bias, depth, h, seed)
        gap = np.log(1 - c.numpy())[first:]
        slopes.append(np.polyfit(np.arange(len(gap)), gap, 1)[0])
    assert -1 / np.mean(slopes) == pytest.approx(theory.xi_c, rel=0.05)
