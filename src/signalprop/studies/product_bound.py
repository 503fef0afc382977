"""product-bound: norms below one at every layer, so the error signal vanishes.

The net is a^i = phi(W^i a^{i-1} + b^i), so J^i = diag(phi'(z^i)) W^i per sample, and its largest
singular value is computed exactly (SVD, float64). Between the bound and what is measured lie
three steps, each of which can only lose:

    (T-1) ln k   >=   sum ln ||J^i||   >=   ln ||J^T ... J^2||   >=   ln(|delta^1| / |delta^T|)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

#: rounding of a float64 product over 50 layers, in nats
ROUNDING = 1e-9


@dataclass(frozen=True)
class Net:
    """A kind of net.

    Attributes:
        name: as shown.
        sigmoid: sigmoid, else tanh.
        norm: what every weight matrix is scaled to in spectral norm; None leaves PyTorch's own
            initialisation, U(-1/sqrt(n), 1/sqrt(n)).
    """

    name: str
    sigmoid: bool
    norm: float | None


NETS = (
    Net("sigmoid", sigmoid=True, norm=None),
    Net("tanh, ||W|| = 0.95", sigmoid=False, norm=0.95),
    Net("tanh", sigmoid=False, norm=None),
)


@dataclass(frozen=True)
class Sides:
    """Both sides of the bound for one net, per sample, in nats.

    Attributes:
        k: largest layer norm of each sample.
        bound: (T-1) ln k.
        norms: sum of ln ||J^i||, i = 2..T.
        product: ln ||J^T ... J^2||.
        measured: ln(|delta^1| / |delta^T|) of one backward pass.
    """

    k: Tensor
    bound: Tensor
    norms: Tensor
    product: Tensor
    measured: Tensor


def sides(kind: Net, depth: int, width: int, found: Digits, samples: int) -> Sides:
    """Build the net with `depth` hidden layers, run it on real images, measure both sides."""
    sizes = [found.pixels] + [width] * depth
    layers = [nn.Linear(m, n, dtype=torch.float64) for m, n in pairwise(sizes)]
    top = nn.Linear(width, 10, dtype=torch.float64)
    if kind.norm is not None:
        with torch.no_grad():
            for layer in layers:
                layer.weight *= kind.norm / torch.linalg.matrix_norm(layer.weight, 2)
    phi = torch.sigmoid if kind.sigmoid else torch.tanh
    a = [phi(layers[0](found.x_test[:samples]))]
    for layer in layers[1:]:
        a.append(phi(layer(a[-1])))
    loss = F.cross_entropy(top(a[-1]), found.y_test[:samples], reduction="sum")
    first, last = torch.autograd.grad(loss, [a[0], a[-1]])

    norms = []
    product = torch.eye(width, dtype=torch.float64).expand(samples, -1, -1)
    scale = torch.zeros(samples, dtype=torch.float64)  # ln of what was taken out of the product
    with torch.no_grad():
        for layer, value in zip(layers[1:], a[1:], strict=True):
            slope = value * (1 - value) if kind.sigmoid else 1 - value**2
            J = slope[:, :, None] * layer.weight
            norms.append(torch.linalg.matrix_norm(J, 2))
            product = J @ product
            size = torch.linalg.matrix_norm(product)
            product, scale = product / size[:, None, None], scale + size.log()
        per_layer = torch.stack(norms)
        k = per_layer.amax(0)
        return Sides(
            k=k,
            bound=(depth - 1) * k.log(),
            norms=per_layer.log().sum(0),
            product=torch.linalg.matrix_norm(product, 2).log() + scale,
            measured=(first.norm(dim=1) / last.norm(dim=1)).log(),
        )


def violation(s: Sides) -> float:
    """By how many nats the order of the four numbers is broken anywhere; below 0 if nowhere."""
    order = [s.bound, s.norms, s.product, s.measured]
    return float(max((lower - upper).max() for upper, lower in pairwise(order)))


def measure(setup: Setup) -> Measured:
    """Run it."""
    depths = (10, 20, 50) if setup.quick else (10, 20, 30, 40, 50)
    widths = (16, 64) if setup.quick else (16, 64, 256)
    samples = 8 if setup.quick else 16
    found = digits(10_000)
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    worst, worst_below_one, cases, below_one = -math.inf, -math.inf, 0, 0
    ends: dict[tuple[str, int], Sides] = {}
    runs = [(kind, width, depth) for kind in NETS for width in widths for depth in depths]
    for done, (kind, width, depth) in enumerate(runs):
        setup.at(done / len(runs), f"{kind.name}, width {width}, {depth} layers")
        s = sides(kind, depth, width, found, samples)
        worst = max(worst, violation(s))
        usable = s.k < 1
        cases, below_one = cases + samples, below_one + int(usable.sum())
        if usable.any():
            gap = (s.measured - s.bound)[usable].max()
            worst_below_one = max(worst_below_one, float(gap))
        if depth == depths[-1]:
            ends[kind.name, width] = s
        rows.append((
            kind.name, width, depth, float(s.k.max()), float(s.bound.mean()),
            float(s.norms.mean()), float(s.product.mean()), float(s.measured.mean()),
        ))  # fmt: skip
    T, wide = depths[-1], widths[-1] if setup.quick else 64
    for kind in NETS:
        mine = [row for row in rows if row[0] == kind.name and row[1] == wide]
        for column, name in ((4, "bound (T-1) ln k"), (7, "measured")):
            series.append(
                Series(f"{kind.name}, width {wide}: bound and measured", name,
                       tuple(float(row[2]) for row in mine),
                       tuple(float(row[column]) for row in mine),
                       "hidden layers T", "ln(|delta^1| / |delta^T|), nats")
            )  # fmt: skip
    numbers = [
        Measurement("cases", cases, "nets x samples", None, f"k < 1 in {below_one} of them"),
        Measurement("cases with k < 1", below_one, "nets x samples"),
        Measurement("worst violation", worst, "nats", 0.0, "of the whole order; below 0: none"),
        Measurement("worst violation, k < 1", worst_below_one, "nats", 0.0, "of the bound itself"),
    ]
    for width in widths:
        s = ends["sigmoid", width]
        layers = T - 1
        steps = (
            ("one k for all layers", s.bound - s.norms),
            ("norms multiplied", s.norms - s.product),
            ("delta not worst direction", s.product - s.measured),
        )
        numbers += [
            Measurement(f"looseness, sigmoid, width {width}: {name}", float(gap.mean()) / layers,
                        "nats per layer")
            for name, gap in steps
        ]  # fmt: skip
        numbers.append(
            Measurement(f"looseness, sigmoid, width {width}",
                        float((s.bound - s.measured).mean()) / layers, "nats per layer",
                        math.log(2), "wide limit: ||W|| = 2 sigma sqrt(n), typically sigma sqrt(n)")
        )  # fmt: skip
    s = ends["sigmoid", 64]
    silent = ends["tanh", 64]
    shallow = next(float(row[7]) for row in rows if row[:3] == ("sigmoid", 64, depths[0]))
    tight = ends["tanh, ||W|| = 0.95", 64]
    numbers += [
        Measurement("sigmoid: k", float(s.k.max()), "", None, f"{T} layers, width 64"),
        Measurement("sigmoid: bound", float(s.bound.mean()), "nats"),
        Measurement("sigmoid: measured", float(s.measured.mean()), "nats"),
        Measurement(
            "sigmoid: measured, fewest layers", shallow, "nats", None, f"{depths[0]} layers"
        ),
        Measurement("tanh, ||W|| = 0.95: measured", float(tight.measured.mean()), "nats"),
        Measurement("tanh: k", float(silent.k.max()), "", None, "above 1: no bound"),
        Measurement("tanh: bound", float(silent.bound.mean()), "nats"),
        Measurement("tanh: measured", float(silent.measured.mean()), "nats"),
    ]
    columns = ("net", "width", "T", "k", "(T-1) ln k", "sum ln ||J^i||", "ln ||J^T...J^2||",
               "measured")  # fmt: skip
    table = Table("Both sides, in nats (mean over samples; k is the largest)", columns, tuple(rows))
    settings = {"depths": depths, "widths": widths, "samples": samples}
    return Measured(tuple(numbers), found.name, settings, tuple(series), (table,))


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    kept = v["cases with k < 1"] > 0 and v["worst violation, k < 1"] <= ROUNDING
    order = v["worst violation"] <= ROUNDING
    start, end, limit = (
        v[f"sigmoid: {what}"] for what in ("measured, fewest layers", "measured", "bound")
    )
    vanished = end < start < 0 and end <= limit + ROUNDING and limit < 0
    loose = v["looseness, sigmoid, width 64"]
    gone = v["tanh: k"] >= 1 and v["tanh: measured"] < 0
    closest = -v["worst violation, k < 1"]
    return (
        Claim(
            "||delta^1|| <= k^{T-1} ||delta^T|| where every ||J^i|| <= k < 1",
            "holds" if kept and order else "does not hold as printed",
            f"In {v['cases with k < 1']:.0f} cases with k < 1 the bound was "
            + (f"never violated; the closest came within {closest:.1f} nats."
               if kept and order else
               f"violated by up to {max(v['worst violation, k < 1'], v['worst violation']):.2g} "
               "nats."),
            "" if kept and order else "Not found: the inequality follows from submultiplicativity, "
            "so look for a mistake in the measurement.",
        ),
        Claim(
            "which tends to 0 with depth",
            "holds" if vanished else "does not hold as printed",
            f"In the deepest sigmoid net (k = {v['sigmoid: k']:.2f}) the bound is "
            f"{limit:.0f} nats and delta is measured at {end:.0f} ({start:.0f} in the shallowest): "
            f"the bound is loose by {loose:.2f} nats a layer at width 64, where a wide net has "
            f"ln 2 = 0.69. "
            + (f"The condition is sufficient, not necessary: the tanh net has k = "
               f"{v['tanh: k']:.2f}, so the bound is silent, and delta still falls by "
               f"{-v['tanh: measured']:.0f} nats." if gone else
               f"The tanh net has k = {v['tanh: k']:.2f} and changes delta by "
               f"{v['tanh: measured']:.0f} nats."),
        ),
    )  # fmt: skip


STUDY = Study(
    name="product-bound",
    title="Norms below one: the error signal vanishes with depth",
    statement="if ||J^i|| <= k < 1 for every layer, then ||delta^1|| <= k^{T-1} ||delta^T||, "
    "which tends to 0 with depth",
    source="Lecture by Sepp Hochreiter; Hochreiter 1991 (diploma thesis, TU München); Bengio, "
    "Simard & Frasconi 1994. Norm of a wide random matrix: Geman 1980",
    function=measure,
    judge=judge,
)
