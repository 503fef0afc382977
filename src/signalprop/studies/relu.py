"""relu: a slope of 1 or 0, what that does to delta over depth, and units that die.

Every unit passes the error whole or not at all, about half of them each way, so that a layer keeps
sqrt(n_in Var(W) / 2) of it: it is the initialisation that decides, and 2 / n_in keeps it (He et al.
2015). Theory (mean field, infinite width) stands next to what is measured on digits. Then nets are
trained with a learning rate that is too large, and the units that no image turns on are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
from signalprop.studies.plain import (
    DEFAULT,
    GLOROT,
    HE,
    ORTHOGONAL,
    Nets,
    Start,
    deltas,
    never_on,
    train,
)
from signalprop.theory import blocks

#: delta counts as kept where a layer multiplies it by 0.9 to 1.1: narrow nets scatter this much
KEPT = 0.1
#: units are said to die where so much larger a share of them is dead after training than before,
#: and to stay dead where fewer than half of these come back
MANY, BACK = 0.1, 0.5


@dataclass(frozen=True)
class Kind:
    """An activation with an initialisation.

    Attributes:
        activation: name of the activation.
        phi: the activation.
        start: how weights and biases are drawn.
    """

    activation: str
    phi: Callable[[Tensor], Tensor]
    start: Start

    @property
    def name(self) -> str:
        """As shown."""
        return f"{self.activation}, {self.start.name}"


RELU = tuple(Kind("ReLU", torch.relu, start) for start in (DEFAULT, GLOROT, HE, ORTHOGONAL))
OTHERS = tuple(
    Kind(name, phi, start)
    for name, phi in (("sigmoid", torch.sigmoid), ("tanh", torch.tanh))
    for start in (DEFAULT, GLOROT)
)
KINDS = RELU + OTHERS
#: too large learning rates, and what is used afterwards to bring units back
RATES: dict[str, tuple[Callable[..., torch.optim.Optimizer], float, float]] = {
    "SGD, lr 1": (torch.optim.SGD, 1.0, 0.05),
    "Adam, lr 0.1": (torch.optim.Adam, 0.1, 1e-3),
}


@dataclass(frozen=True)
class Depth:
    """What a deep net does to delta, mean over images and copies.

    Attributes:
        measured: ln(|delta^i| / |delta^T|), i = 1..T.
        theory: the same from mean-field theory.
        alike: mean cosine of the top activations of two images.
        never_on: share of units that no image turns on (sum above zero), in layers 1 and T.
    """

    measured: list[float]
    theory: list[float]
    alike: float
    never_on: tuple[float, float]

    @property
    def factor(self) -> float:
        """What a layer multiplies delta by on its way back, geometric mean."""
        return math.exp(self.measured[0] / (len(self.measured) - 1))

    @property
    def expected(self) -> float:
        """The same from theory."""
        return math.exp(self.theory[0] / (len(self.theory) - 1))


def over_depth(kind: Kind, nets: Nets, found: Digits, samples: int) -> Depth:
    """Measure nets of one kind on real images, and ask theory."""
    x, y = found.x_test[:samples], found.y_test[:samples]
    sizes = deltas(nets, x, y).log().mean((1, 2))
    with torch.no_grad():
        _, a = nets.layers(x)
        unit = F.normalize(a[-1], dim=-1).mean(1)
        off = never_on(nets, found.x).double().mean((0, 2)).tolist()
    # mean cosine over pairs of different images, from the length of the mean direction
    alike = float((samples * unit.square().sum(-1) - 1).mean() / (samples - 1))
    width = nets.W[1].shape[1]
    expected = blocks.plain(
        kind.activation.lower(),
        kind.start.variance,
        kind.start.bias_variance(width),
        blocks=len(a) - 1,
        start=float(a[0].detach().square().mean()),
    )
    theory = [round(float(expected.rates[i:].sum()), 12) for i in range(len(a))]
    return Depth((sizes - sizes[-1]).tolist(), theory, alike, (off[0], off[-1]))


def slopes(nets: Nets, x: Tensor) -> tuple[float, float]:
    """ReLU's derivative, as autograd has it, at every hidden unit for every image.

    Returns:
        Largest distance of a slope from the nearer of 0 and 1, and the share of slopes that are 1.
    """
    z = torch.cat([z.detach().flatten() for z in nets.layers(x)[0][:-1]]).requires_grad_()
    (slope,) = torch.autograd.grad(torch.relu(z).sum(), z)
    return float(torch.minimum(slope.abs(), (slope - 1).abs()).max()), float(slope.mean())


def death(rate: str, found: Digits, copies: int, steps: int, seed: int) -> dict[str, list[float]]:
    """Train with a too large learning rate, then with a small one.

    Returns:
        Share of units that no training image turns on, per hidden layer, `before`, `after` and
        `later`; and test accuracies `accuracy after`, `accuracy later`, and the share of the dead
        units that came `back`, in all layers and in `back, layer 1`, one number each.
    """
    optimizer, large, small = RATES[rate]
    nets = Nets([found.pixels, 64, 64, 64, 10], torch.relu, HE, copies, torch.float32)
    off = [never_on(nets, found.x)]
    told: dict[str, list[float]] = {}
    for when, lr in (("after", large), ("later", small)):
        train(nets, optimizer(nets.parameters(), lr=lr), found.x, found.y, steps, seed)
        off.append(never_on(nets, found.x))
        told[f"accuracy {when}"] = [float(nets.accuracy(found.x_test, found.y_test).mean())]
    for when, dead in zip(("before", "after", "later"), off, strict=True):
        told[when] = dead.double().mean((0, 2)).tolist()
    for name, dead, later in (
        ("back", off[1], off[2]),
        ("back, layer 1", off[1][:, 0], off[2][:, 0]),
    ):
        told[name] = [float((dead & ~later).sum() / dead.sum()) if dead.any() else 0.0]
    return told


def by_trace(nets: Nets, found: Digits, samples: int) -> float:
    """ln(|delta^1| / |delta^T|) of the first copy, as sp.trace reports it."""
    batch = found.x_test[:samples], found.y_test[:samples]
    seen = trace(nets.sequential(), batch, F.cross_entropy)
    hidden = [f"{2 * i + 1}" for i in range(len(nets.W) - 1)]
    between = seen.spine.index(hidden[0]), seen.spine.index(hidden[-1])
    return sum(block.decay for block in seen.blocks[slice(*between)])


def measure(setup: Setup) -> Measured:
    """Run it."""
    depth, width, samples, copies = (30, 64, 32, 4) if setup.quick else (50, 256, 64, 4)
    trained, steps, repeats = (20, 100, 1) if setup.quick else (30, 500, 3)
    found = digits(3_000)
    numbers: list[Measurement] = []
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    xs = tuple(float(i + 1) for i in range(depth))
    for k, kind in enumerate(KINDS):
        setup.at(0.7 * k / len(KINDS), f"{kind.name}: {depth} layers, and training {trained}")
        nets = Nets([found.pixels] + [width] * depth + [10], kind.phi, kind.start, copies)
        d = over_depth(kind, nets, found, samples)
        small = Nets([found.pixels] + [64] * trained + [10], kind.phi, kind.start, repeats,
                     torch.float32)  # fmt: skip
        train(small, torch.optim.Adam(small.parameters(), lr=1e-3), found.x, found.y, steps,
              setup.seed)  # fmt: skip
        accuracy = float(small.accuracy(found.x_test, found.y_test).mean())
        listed = (
            ("factor per layer", d.factor, "", d.expected, "geometric mean; expected: mean field"),
            ("decay", d.measured[0], "nats", d.theory[0], f"ln |delta^1| / |delta^{depth}|"),
            ("accuracy", accuracy, "", None, f"{trained} layers, {steps} updates"),
            ("cosine of two images", d.alike, "", None, "at the top hidden layer"),
        )
        numbers += [
            Measurement(f"{kind.name}: {what}", value, unit, expected, note, tabled=True)
            for what, value, unit, expected, note in listed
        ]
        rows.append((kind.name, kind.start.variance, d.factor, d.expected, d.measured[0],
                     d.theory[0], d.alike, accuracy))  # fmt: skip
        if kind in RELU:
            last = f"{kind.name}: never on at the start, layer {depth}"
            numbers.append(Measurement(last, d.never_on[1], "share of units", None,
                                       f"{d.never_on[0]:.2g} in layer 1"))  # fmt: skip
        if kind in RELU[:3]:
            title = "ReLU: the error signal from the top layer down, measured and from theory"
            for what, y in (("measured", d.measured), ("theory", d.theory)):
                series.append(Series(title, f"{kind.start.name}, {what}", xs, tuple(y),
                                     "layer i", "ln |delta^i| / |delta^T|, nats"))  # fmt: skip
        if kind in (RELU[0], RELU[2], RELU[3], OTHERS[0], OTHERS[2], OTHERS[3]):
            series.append(Series("ReLU against sigmoid and tanh, measured", kind.name, xs,
                                 tuple(d.measured), "layer i",
                                 "ln |delta^i| / |delta^T|, nats"))  # fmt: skip
        if kind is RELU[2]:
            off, share = slopes(nets, found.x_test[:samples])
            sizes = deltas(nets, found.x_test[:samples], found.y_test[:samples])[:, 0]
            numbers += [
                Measurement("slope: distance from 0 or 1", off, "", 0.0, "He, every unit, image"),
                Measurement("slope: share of ones", share, "", 0.5, "the same"),
                Measurement("decay by hand", float((sizes[0] / sizes[-1]).log().mean()), "nats",
                            None, "He, first copy"),
                Measurement("decay by trace", by_trace(nets, found, samples), "nats", None,
                            "sp.trace on the same net"),
            ]  # fmt: skip
    gap = max(abs(math.log(float(row[2]) / float(row[3]))) for row in rows)
    note = f"theory is of infinite width, these have {width}"
    numbers.append(
        Measurement("largest gap between measured and theory", gap, "nats per layer", 0.0, note)
    )
    deaths: list[tuple[str | float | int, ...]] = []
    for k, rate in enumerate(RATES):
        setup.at(0.7 + 0.15 * k, f"units that die: {rate}")
        told = death(rate, found, 4 if setup.quick else 10, 200 if setup.quick else 1000,
                     setup.seed)  # fmt: skip
        for when in ("before", "after", "later"):
            numbers.append(Measurement(f"{rate}: dead {when}", sum(told[when]) / 3,
                                       "share of units", tabled=True))  # fmt: skip
            series.append(Series(f"Units that no image turns on: {rate}", when, (1.0, 2.0, 3.0),
                                 tuple(told[when]), "hidden layer", "share of units"))  # fmt: skip
        for name in ("accuracy after", "accuracy later", "back", "back, layer 1"):
            numbers.append(Measurement(f"{rate}: {name}", told[name][0], tabled=True))
        deaths.append((rate, RATES[rate][2], *(sum(told[w]) / 3 for w in
                       ("before", "after", "later")), told["back"][0],
                       told["accuracy after"][0], told["accuracy later"][0]))  # fmt: skip
    tables = (
        Table(f"{depth} hidden layers of {width}: delta, and what training makes of {trained}",
              ("net", "n Var(W)", "factor", "theory", "decay, nats", "theory ", "cosine",
               "accuracy"), tuple(rows)),
        Table("Dead units: a too large learning rate, then a small one",
              ("at first", "then lr", "dead before", "after", "later", "came back",
               "accuracy", "accuracy later"), tuple(deaths)),
    )  # fmt: skip
    settings = {
        "depth": depth, "width": width, "samples": samples, "copies": copies,
        "trained": f"{trained} layers of 64, {repeats} copies, {steps} updates of Adam, lr 0.001",
        "dying": "3 layers of 64, He",
    }  # fmt: skip
    return Measured(tuple(numbers), found.name, settings, tuple(series), tables)


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    factor = {k.start: v[f"{k.name}: factor per layer"] for k in RELU}
    accuracy = {k.start: v[f"{k.name}: accuracy"] for k in RELU}
    off, share = v["slope: distance from 0 or 1"], v["slope: share of ones"]
    agreed = abs(v["decay by trace"] - v["decay by hand"]) <= 1e-9
    proper = agreed and all(abs(factor[s] - 1) <= KEPT for s in (HE, ORTHOGONAL))
    usual = all(abs(factor[s] - 1) <= KEPT for s in (DEFAULT, GLOROT))
    sigmoid, tanh = (v[f"{OTHERS[i].name}: factor per layer"] for i in (0, 2))
    died = max(RATES, key=lambda rate: v[f"{rate}: dead after"])
    many = v[f"{died}: dead after"] > v[f"{died}: dead before"] + MANY
    lost = all(v[f"{rate}: back"] < BACK for rate in RATES)
    first = max(v[f"{rate}: back, layer 1"] for rate in RATES)
    return (
        Claim(
            "ReLU's derivative is 1 or 0",
            "holds" if off == 0 else "does not hold as printed",
            f"At every unit and image the slope is within {off:.0g} of 0 or 1, and it is 1 for "
            f"{share:.0%} of them (at 0 itself, where there is none, PyTorch takes 0).",
        ),
        Claim(
            "which avoids the vanishing gradient, given a proper initialisation: He, orthogonal",
            "holds" if proper else "does not hold as printed",
            f"A layer multiplies delta by {factor[HE]:.3f} with He's initialisation and by "
            f"{factor[ORTHOGONAL]:.3f} with orthogonal weights times sqrt 2 (theory: 1; a sigmoid "
            f"layer by {sigmoid:.3f}, a tanh layer by {tanh:.3f}, both as PyTorch draws them), and "
            f"deep nets reach {accuracy[HE]:.0%} and {accuracy[ORTHOGONAL]:.0%} in training.",
            "" if proper else "Not found: look at the width and the number of images.",
        ),
        Claim(
            "the usual initialisations are proper: PyTorch's default, Glorot",
            "holds" if usual else "does not hold as printed",
            f"With PyTorch's default a ReLU layer multiplies delta by {factor[DEFAULT]:.3f} (it "
            f"loses a factor {1 / factor[DEFAULT]:.2f}), with Glorot's by {factor[GLOROT]:.3f}; "
            f"the same training gives {accuracy[DEFAULT]:.0%} and {accuracy[GLOROT]:.0%}. Theory "
            f"says 1 / sqrt 6 and 1 / sqrt 2; over all nets it is off by at most "
            f"{v['largest gap between measured and theory']:.2f} nats a layer.",
            ""
            if usual
            else "A ReLU layer keeps sqrt(n_in Var(W) / 2) of delta, as half of the "
            "slopes are 0: only n_in Var(W) = 2 keeps all of it.",
        ),
        Claim(
            "units can die",
            "holds" if many and lost else "holds in part" if many else "does not hold as printed",
            " ".join(
                f"After training with {rate} no image turns on {v[f'{rate}: dead after']:.0%} of "
                f"the units ({v[f'{rate}: dead before']:.0%} before; accuracy "
                f"{v[f'{rate}: accuracy after']:.0%}); as many updates with a small learning rate "
                f"bring {v[f'{rate}: back']:.1%} of them back (accuracy "
                f"{v[f'{rate}: accuracy later']:.0%})."
                for rate in RATES
            )
            + f" Of those in layer 1, whose inputs stay what they are, {first:.0%} do.",
            "" if many and lost else "Most of them come back." if many else "They did not here.",
        ),
    )


STUDY = Study(
    name="relu",
    title="Rectified units: a slope of 1 or 0",
    statement="ReLU's derivative is 1 or 0, which avoids the vanishing gradient, given a proper "
    "initialisation; but units can die (no signal on the negative side)",
    source="Lecture by Sepp Hochreiter; Nair & Hinton 2010; Glorot, Bordes & Bengio 2011; "
    "Glorot & Bengio 2010; He et al. 2015, arXiv:1502.01852; theory: Poole et al. 2016, "
    "arXiv:1606.05340, Schoenholz et al. 2017, arXiv:1611.01232",
    function=measure,
    judge=judge,
)
