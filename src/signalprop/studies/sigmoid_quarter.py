"""sigmoid-quarter: the sigmoid's slope, and what it does to the error signal.

Three things that are easily taken for one. The slope sigma'(z) = sigma(z) (1 - sigma(z)) is at
most 1/4. In a chain of single units a layer multiplies the error by sigma'(z) w, less than 1/4 if
|w| < 1. In a layer of n units it multiplies it by the matrix W^T diag(sigma'(z)), and |w_ij| < 1
bounds that by n/4 only: all n paths into a unit add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.capture.observe import trace
from signalprop.studies.data import Digits, digits
from signalprop.studies.frame import (
    Claim,
    Measured,
    Measurement,
    Series,
    Setup,
    Study,
    Table,
    Values,
)

QUARTER = 0.25
#: rounding of a handful of float64 operations
ROUNDING = 1e-12

# Two of the real nets, by how their hidden weights are drawn
OWN, WIDE = "PyTorch's initialisation", "weights from U(-0.99, 0.99)"

# The video's net: one unit per layer, y_i = sigma(z_i), z_i = w_i y_{i-1} + b_i, C = (y4 - t)^2/2
W = (0.9, -0.7, 0.8, 0.6)
B = (0.1, 0.3, -0.2, 0.4)
X, TARGET = 0.5, 1.0


def half_square(output: Tensor, target: Tensor) -> Tensor:
    """C = (y - t)^2 / 2, summed."""
    return (output - target).square().sum() / 2


def total(output: Tensor) -> Tensor:
    """C = sum of the outputs, so that delta is (1, ..., 1)."""
    return output.sum()


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """nn.Linear with these values."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def by_hand() -> tuple[float, float]:
    """dC/db1 of the video's net and the factor in front of dC/dy4, with nothing but `math`."""
    y = X
    slopes: list[float] = []
    for w, b in zip(W, B, strict=True):
        y = 1 / (1 + math.exp(-(w * y + b)))
        slopes.append(y * (1 - y))
    factor = slopes[0] * W[1] * slopes[1] * W[2] * slopes[2] * W[3] * slopes[3]
    return factor * (y - TARGET), factor


def by_tool() -> tuple[float, float]:
    """The same two, as sp.trace reports them: sizes, without the sign."""
    layers: list[nn.Module] = []
    for w, b in zip(W, B, strict=True):
        one = torch.ones(1, dtype=torch.float64)
        layers += [linear(w * one[None], b * one), nn.Sigmoid()]
    batch = torch.full((1, 1), X).double(), torch.full((1, 1), TARGET).double()
    seen = trace(nn.Sequential(*layers), batch, half_square)
    gradient = seen.weights["0.bias"].gradient
    assert gradient is not None
    # the first block, input to z1, is W1, which is no part of dC/db1
    return gradient, math.exp(sum(block.decay for block in seen.blocks[1:]))


def scalar_factors(count: int) -> float:
    """Largest |sigma'(z) w| over random single units with |w| < 1."""
    w = 2 * torch.rand(count, dtype=torch.float64) - 1
    z = 3 * torch.randn(count, dtype=torch.float64)
    s = torch.sigmoid(z)
    return float((s * (1 - s) * w).abs().max())


def equal_weights(n: int, w: float = 0.9) -> float:
    """Send the error (1, ..., 1) back through a layer of n units with all weights w.

    Returns:
        What it is multiplied by: n w / 4, as the bias puts every unit at z = 0, where the slope
        is 1/4.
    """
    weight = torch.full((n, n), w, dtype=torch.float64)
    layer = linear(weight, -weight.sum(1) / 2)
    half = torch.full((1, n), 0.5, dtype=torch.float64)
    seen = trace(nn.Sequential(layer, nn.Sigmoid()), half, total)
    return math.exp(seen.decay)


@dataclass(frozen=True)
class Factors:
    """What the hidden layers of a real net do to the error.

    Attributes:
        factors: ||delta^{i-1}|| / ||delta^i||, (layers, samples), first hidden-to-hidden one first.
        limits: ||W^i||_2 / 4 of the same layers, (layers,).
        largest: largest |w| of the same layers.
    """

    factors: Tensor
    limits: Tensor
    largest: float


def sigmoid_net(pixels: int, depth: int, width: int, spread: float | None) -> list[nn.Linear]:
    """Linear layers of a sigmoid net.

    Args:
        pixels: number of inputs.
        depth: number of hidden layers.
        width: units in each.
        spread: hidden weights from U(-spread, spread), and biases that put a unit at z = 0 where
            all its inputs are 1/2; None for PyTorch's own, U(-1/sqrt(n), 1/sqrt(n)).

    Returns:
        The hidden layers and the output layer.
    """
    sizes = [pixels] + [width] * depth + [10]
    layers = [nn.Linear(m, n, dtype=torch.float64) for m, n in pairwise(sizes)]
    if spread is not None:
        with torch.no_grad():
            for layer in layers[1:-1]:
                layer.weight.uniform_(-spread, spread)
                layer.bias.copy_(-layer.weight.sum(1) / 2)
    return layers


def forward(layers: Sequence[nn.Linear], x: Tensor) -> list[Tensor]:
    """Activations of the hidden layers, and the logits last."""
    a = [x]
    for layer in layers[:-1]:
        a.append(torch.sigmoid(layer(a[-1])))
    return [*a[1:], layers[-1](a[-1])]


def factors(layers: Sequence[nn.Linear], x: Tensor, y: Tensor) -> Factors:
    """Measure the hidden-to-hidden layers on real images."""
    a = forward(layers, x)
    loss = F.cross_entropy(a[-1], y, reduction="sum")
    sizes = torch.stack([delta.norm(dim=1) for delta in torch.autograd.grad(loss, a[:-1])])
    weights = [layer.weight.detach() for layer in layers[1:-1]]
    limits = torch.stack([torch.linalg.matrix_norm(w, 2) for w in weights]) / 4
    return Factors(sizes[:-1] / sizes[1:], limits, max(float(w.abs().max()) for w in weights))


def train(layers: Sequence[nn.Linear], found: Digits, steps: int) -> float:
    """Train with Adam; returns the accuracy on the test images."""
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    for _ in range(steps):
        pick = torch.randint(len(found.x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(forward(layers, found.x[pick])[-1], found.y[pick]).backward()
        optimizer.step()
    with torch.no_grad():
        hits = forward(layers, found.x_test)[-1].argmax(1) == found.y_test
    return float(hits.double().mean())


def measure(setup: Setup) -> Measured:
    """Run it."""
    depth, width, samples, steps = (10, 64, 64, 200) if setup.quick else (20, 128, 256, 1500)
    setup.at(0.0, "the slope, and the video's chain")
    s = torch.sigmoid(torch.linspace(-20, 20, 100_001, dtype=torch.float64))
    hand, hand_factor = by_hand()
    tool, tool_factor = by_tool()
    numbers = [
        Measurement("largest slope", float((s * (1 - s)).max()), "", QUARTER, "z in [-20, 20]"),
        Measurement("largest scalar factor", scalar_factors(1_000_000), "", QUARTER,
                    "|sigma'(z) w|, 1,000,000 random units, |w| < 1"),
        Measurement("chain by hand", hand, "dC/db1", None, f"w = {W}, b = {B}, x = {X}"),
        Measurement("chain by tool", tool, "|dC/db1|", abs(hand), "sp.trace"),
        Measurement("chain factor by hand", hand_factor, "", None, "dC/db1 over dC/dy4"),
        Measurement("chain factor by tool", tool_factor, "", abs(hand_factor), "exp of the decay"),
    ]  # fmt: skip
    sizes = (1, 2, 3, 4, 5, 8, 16, 64)
    grown = tuple(equal_weights(n) for n in sizes)
    numbers += [
        Measurement("two units, all weights 0.9", grown[1], "", QUARTER, "sp.trace; 2 x 0.9 / 4"),
        Measurement("five units, all weights 0.9", grown[4], "", QUARTER, "above 1: it grows"),
    ]
    found = digits()
    x, y = found.x_test[:samples], found.y_test[:samples]
    nets: dict[str, tuple[list[nn.Linear], int]] = {
        OWN: (sigmoid_net(found.pixels, depth, width, None), depth),
        WIDE: (sigmoid_net(found.pixels, depth, width, 0.99), depth),
        "trained": (sigmoid_net(found.pixels, 3, width, None), 3),
    }
    setup.at(0.1, "training a sigmoid net with 3 hidden layers")
    accuracy = train(nets["trained"][0], found, steps)
    numbers.append(Measurement("trained: test accuracy", accuracy, "", None, f"{steps} steps"))
    series = [
        Series("A layer with all weights 0.9", "factor on the error", tuple(map(float, sizes)),
               grown, "units", "factor")
    ]  # fmt: skip
    rows: list[tuple[str | float | int, ...]] = []
    tightest = 0.0
    for name, (layers, hidden) in nets.items():
        setup.at(0.9, f"measuring: {name}")
        f = factors(layers, x, y)
        above = float((f.factors >= QUARTER).double().mean())
        mean = float(f.factors.log().mean().exp())
        tightest = max(tightest, float((f.factors / f.limits[:, None]).max()))
        numbers += [
            Measurement(f"{name}: largest |w|", f.largest, "", 1.0, tabled=True),
            Measurement(f"{name}: mean factor", mean, "", QUARTER, "geometric mean", True),
            Measurement(f"{name}: largest factor", float(f.factors.max()), "", QUARTER, "", True),
            Measurement(f"{name}: share of factors >= 0.25", above, "", 0.0, "", True),
        ]
        rows.append((name, hidden, width, f.largest, mean, float(f.factors.max()), above,
                     float(f.limits.max())))  # fmt: skip
        if hidden == depth:
            per_layer = f.factors.log().mean(1).exp().tolist()
            curves = {name: per_layer}
            if name == WIDE:
                curves["0.25, as printed"] = [QUARTER] * len(per_layer)
            series += [
                Series("What each layer of a deep sigmoid net multiplies the error by", curve,
                       tuple(float(i + 2) for i in range(len(factor))), tuple(factor),
                       "layer", "factor (geometric mean over samples)")
                for curve, factor in curves.items()
            ]  # fmt: skip
    numbers.append(
        Measurement("largest factor / (||W|| / 4)", tightest, "", 1.0, "all nets, layers, samples")
    )
    columns = ("net", "hidden layers", "width", "largest |w|", "mean factor", "largest factor",
               "share >= 0.25", "largest ||W|| / 4")  # fmt: skip
    table = Table("Real nets on real digits", columns, tuple(rows))
    settings = {"depth": depth, "width": width, "samples": samples, "training steps": steps}
    return Measured(tuple(numbers), found.name, settings, tuple(series), (table,))


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    slope, scalar = v["largest slope"], v["largest scalar factor"]
    off = abs(abs(v["chain by hand"]) - v["chain by tool"]) / abs(v["chain by hand"])
    off_factor = abs(abs(v["chain factor by hand"]) / v["chain factor by tool"] - 1)
    chain = max(off, off_factor) <= ROUNDING and abs(v["chain factor by hand"]) < QUARTER**4
    two, five = v["two units, all weights 0.9"], v["five units, all weights 0.9"]
    broken = two >= QUARTER or (
        v[f"{WIDE}: largest |w|"] < 1 and v[f"{WIDE}: share of factors >= 0.25"] > 0
    )
    bound = v["largest factor / (||W|| / 4)"]
    form = "A hidden layer multiplies the error by at most ||W||_2 / 4"
    return (
        Claim(
            "the sigmoid's slope is at most 0.25",
            "holds" if slope <= QUARTER else "does not hold as printed",
            f"The largest slope is {slope:.6g}.",
        ),
        Claim(
            "with |w| < 1 a layer of one unit multiplies the error by less than 0.25",
            "holds" if scalar < QUARTER else "does not hold as printed",
            f"Over a million random units with |w| < 1 the largest factor is {scalar:.6f}.",
        ),
        Claim(
            "dC/db1 = s'(z1) w2 s'(z2) w3 s'(z3) w4 s'(z4) dC/dy4",
            "holds" if chain else "does not hold as printed",
            f"By hand the video's chain gives {v['chain by hand']:.6e}, by sp.trace the same size "
            f"to {max(off, off_factor):.0e}; the factor is {abs(v['chain factor by hand']):.2e}, "
            f"below 0.25^4 = {QUARTER**4:.1e}.",
        ),
        Claim(
            "with |w| < 1 every hidden layer multiplies the error by less than 0.25",
            "does not hold as printed" if broken else "holds",
            f"For layers of several units |w| < 1 is not enough: two units with all weights 0.9 "
            f"multiply the error by {two:.2f}, five by {five:.2f}. On real images the deep net "
            f"with weights from U(-0.99, 0.99) has {v[f'{WIDE}: share of factors >= 0.25']:.0%} of "
            f"its factors at or above 0.25 (mean {v[f'{WIDE}: mean factor']:.2f}), that with "
            f"PyTorch's initialisation {v[f'{OWN}: share of factors >= 0.25']:.0%} (mean "
            f"{v[f'{OWN}: mean factor']:.3f}); trained weights, of size up to "
            f"{v['trained: largest |w|']:.2f}, have mean factor {v['trained: mean factor']:.2f}.",
            (
                f"{form} (measured: at most {bound:.2f} of that), which is below 0.25 where "
                "||W||_2 < 1; for n units |w| < 1/n is enough, |w| < 1 only for one."
                if bound <= 1 + ROUNDING
                else f"{form} fails too (by a factor {bound:.2f}): look for a mistake."
            )
            if broken
            else "",
        ),
    )


STUDY = Study(
    name="sigmoid-quarter",
    title="The sigmoid's slope is at most a quarter",
    statement="the sigmoid's slope is at most 0.25, and with |w| < 1 every hidden layer multiplies "
    "the error by less than 0.25; dC/db1 = s'(z1) w2 s'(z2) w3 s'(z3) w4 s'(z4) dC/dy4",
    source="Lecture by Sepp Hochreiter and the course video that goes with it; Hochreiter 1991 "
    "(diploma thesis, TU München); Nielsen 2015, Neural Networks and Deep Learning, chapter 5",
    function=measure,
    judge=judge,
)
