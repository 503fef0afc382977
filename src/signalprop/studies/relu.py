"""relu: a slope of 1 or 0, what that does to delta over depth, and units that die.

Every unit passes the error whole or not at all, about half of them each way, so that a layer keeps
sqrt(n_in Var(W) / 2) of it: it is the initialisation that decides, and 2 / n_in keeps it (He et al.
2015). Theory (mean field, infinite width) stands next to what is measured on digits. Then nets are
trained with a learning rate that is too large, and the units that no image turns on are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
    KEPT,
    ORTHOGONAL,
    Found,
    Kind,
    Nets,
    beside,
    deltas,
    never_on,
    of_all,
    over_depth,
    train,
)

#: units are said to die where so much larger a share of them is dead after training than before,
#: and to stay dead where fewer than half of these come back
MANY, BACK = 0.1, 0.5
#: hidden layers of the nets whose units die
LAYERS = 3
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
    nets = Nets([found.pixels] + [64] * LAYERS + [10], torch.relu, HE, copies, torch.float32)
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


def deep_nets(setup: Setup, found: Digits, depth: int, width: int, samples: int) -> Found:
    """Delta over depth for every kind of net, and what training makes of a smaller one."""
    copies = 4
    hidden, steps, repeats = (20, 100, 1) if setup.quick else (30, 500, 3)
    numbers: list[Measurement] = []
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    xs = tuple(float(i + 1) for i in range(depth))
    for k, kind in enumerate(KINDS):
        setup.at(0.7 * k / len(KINDS), f"{kind.name}: {depth} layers, and training {hidden}")
        nets = Nets([found.pixels] + [width] * depth + [10], kind.phi, kind.start, copies)
        d = over_depth(kind, nets, found, samples)
        small = Nets([found.pixels] + [64] * hidden + [10], kind.phi, kind.start, repeats,
                     torch.float32)  # fmt: skip
        train(small, torch.optim.Adam(small.parameters(), lr=1e-3), found.x, found.y, steps,
              setup.seed)  # fmt: skip
        accuracy = float(small.accuracy(found.x_test, found.y_test).mean())
        listed = [
            ("factor per layer", d.factor, "", d.expected, "geometric mean; expected: mean field"),
            ("decay", d.measured[0], "nats", d.theory[0], f"ln |delta^1| / |delta^{depth}|"),
            ("cosine of two images", d.alike, "", None, "at the top hidden layer"),
            ("accuracy", accuracy, "", None, f"test images; {hidden} layers, {steps} updates"),
        ]
        off: float | str = ""
        if kind in RELU:
            off = float(never_on(nets, found.x)[:, -1].double().mean())
            listed.append(("never on", off, "share of units", None, f"layer {depth}, untrained"))
        numbers += [
            Measurement(f"{kind.name}: {what}", value, unit, expected, note, tabled=True)
            for what, value, unit, expected, note in listed
        ]
        rows.append((kind.name, kind.start.variance, d.factor, d.expected, d.measured[0], d.alike,
                     off, accuracy))  # fmt: skip
        if kind in RELU[:3]:
            series += beside("ReLU: the error signal over depth, measured and from theory",
                             kind.start.name, d.measured, d.theory)  # fmt: skip
        if kind in (RELU[0], RELU[2], *OTHERS):
            series.append(Series("ReLU against sigmoid and tanh, measured", kind.name, xs,
                                 tuple(d.measured), "layer i",
                                 "ln |delta^i| / |delta^T|, nats"))  # fmt: skip
        if kind is RELU[2]:
            numbers += by_hand(nets, found, samples)
    gap = max(abs(math.log(float(row[2]) / float(row[3]))) for row in rows)
    note = f"theory is of infinite width, these have {width}"
    numbers += [
        Measurement("largest gap to theory", gap, "nats per layer", 0.0, note),
        Measurement("trained: hidden layers", hidden), Measurement("trained: updates", steps),
    ]  # fmt: skip
    title = (
        f"{depth} hidden layers of {width} at the start, and accuracy of {hidden} after training"
    )
    columns = ("net", "n Var(W)", "factor", "theory", "decay, nats", "cosine", "never on",
               "accuracy")  # fmt: skip
    return numbers, series, Table(title, columns, tuple(rows))


def by_hand(nets: Nets, found: Digits, samples: int) -> list[Measurement]:
    """Slopes, and delta of the first copy, by hand and by sp.trace."""
    off, share = slopes(nets, found.x_test[:samples])
    sizes = deltas(nets, found.x_test[:samples], found.y_test[:samples])[:, 0]
    by_hand = float((sizes[0] / sizes[-1]).log().mean())
    return [
        Measurement("slope: distance from 0 or 1", off, "", 0.0, "He, every unit, image"),
        Measurement("slope: share of ones", share, "", 0.5, "the same"),
        Measurement("decay by hand", by_hand, "nats", None, "He, first copy"),
        Measurement("decay by trace", by_trace(nets, found, samples), "nats", by_hand,
                    "sp.trace on the same net"),
    ]  # fmt: skip


def dying(setup: Setup, found: Digits) -> Found:
    """Units that die of too large learning rates."""
    copies, steps = (4, 200) if setup.quick else (10, 1000)
    numbers: list[Measurement] = []
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    for k, rate in enumerate(RATES):
        setup.at(0.7 + 0.15 * k, f"units that die: {rate}")
        told = death(rate, found, copies, steps, setup.seed)
        share = {when: sum(told[when]) / LAYERS for when in ("before", "after", "later")}
        for when, curve in (
            ("before", "before training"),
            ("after", f"after {steps:,} updates"),
            ("later", f"after {steps:,} more, lr {RATES[rate][2]:g}"),
        ):
            numbers.append(Measurement(f"{rate}: dead {when}", share[when], "share of units",
                                       tabled=True))  # fmt: skip
            series.append(Series(f"Units that no image turns on: {rate}", curve,
                                 tuple(float(i + 1) for i in range(LAYERS)),
                                 tuple(told[when]), "hidden layer", "share of units"))  # fmt: skip
        for name in ("accuracy after", "accuracy later", "back", "back, layer 1"):
            numbers.append(Measurement(f"{rate}: {name}", told[name][0], tabled=True))
        rows.append((rate, RATES[rate][2], *share.values(), told["back"][0],
                     told["accuracy after"][0], told["accuracy later"][0]))  # fmt: skip
    title = (
        f"Dead units: {steps:,} updates at a too large learning rate, then as many at a small one"
    )
    columns = ("at first", "then lr", "dead before", "after", "later", "came back", "accuracy",
               "accuracy later")  # fmt: skip
    return numbers, series, Table(title, columns, tuple(rows))


def measure(setup: Setup) -> Measured:
    """Run it."""
    depth, width, samples = (30, 64, 32) if setup.quick else (50, 256, 64)
    found = digits(3_000)
    parts = deep_nets(setup, found, depth, width, samples), dying(setup, found)
    settings = {
        "depth": depth, "width": width, "samples": samples,
        "trained": "layers of 64, Adam, lr 0.001", "dying": f"{LAYERS} layers of 64, He",
        "delta kept": f"a layer multiplies it by {1 - KEPT:g} to {1 + KEPT:g}",
        "units die": f"{MANY:.0%} more of them dead than before training, and fewer than "
        f"{BACK:.0%} of these back after as many updates at a small rate",
    }  # fmt: skip
    numbers = tuple(m for part in parts for m in part[0])
    series = tuple(s for part in parts for s in part[1])
    return Measured(numbers, found.name, settings, series, tuple(part[2] for part in parts))


def judge_delta(v: Values) -> tuple[Claim, Claim]:
    """Whether delta is kept with a proper initialisation, and lost with another one."""
    factor = {k.name: v[f"{k.name}: factor per layer"] for k in KINDS}
    accuracy = {k.name: v[f"{k.name}: accuracy"] for k in KINDS}
    default, glorot, he, orthogonal = (k.name for k in RELU)
    sigmoid, sigmoid_glorot, tanh, tanh_glorot = (k.name for k in OTHERS)
    kept = {name: abs(factor[name] - 1) <= KEPT for name in factor}
    agreed = abs(v["decay by trace"] - v["decay by hand"]) <= 1e-9
    proper = agreed and kept[he] and kept[orthogonal]
    lost = [name for name in (default, glorot) if factor[name] < 1 - KEPT]
    return (
        Claim(
            "which avoids the vanishing gradient, given a proper initialisation: He, orthogonal",
            "holds" if proper else "does not hold as printed",
            f"A layer multiplies delta by {factor[he]:.3f} with He's initialisation and by "
            f"{factor[orthogonal]:.3f} with orthogonal weights times sqrt 2 (theory: 1), and nets "
            f"of {v['trained: hidden layers']:.0f} layers reach {accuracy[he]:.0%} and "
            f"{accuracy[orthogonal]:.0%} of the test images after {v['trained: updates']:.0f} "
            f"updates. Others for comparison, with Glorot's: a sigmoid layer "
            f"{factor[sigmoid_glorot]:.3f}, {accuracy[sigmoid_glorot]:.0%}; a tanh layer "
            f"{factor[tanh_glorot]:.3f}, {accuracy[tanh_glorot]:.0%}.",
            "" if proper else "delta is not kept here"
            + ("." if agreed else ", and sp.trace disagrees with it: look for a mistake."),
        ),
        Claim(
            "the proviso is needed: PyTorch's default and Glorot's initialisation let it vanish",
            of_all([name in lost for name in (default, glorot)]),
            f"With PyTorch's default a ReLU layer multiplies delta by {factor[default]:.3f}, with "
            f"Glorot's by {factor[glorot]:.3f} (theory, sqrt(n_in Var(W) / 2) as half of the "
            f"slopes are 0: {math.sqrt(DEFAULT.variance / 2):.3f} and "
            f"{math.sqrt(GLOROT.variance / 2):.3f}), and the same training gives "
            f"{accuracy[default]:.0%} and {accuracy[glorot]:.0%}. PyTorch's default leaves a tanh "
            f"layer {factor[tanh]:.3f}, a sigmoid layer {factor[sigmoid]:.3f}. Over all nets "
            f"theory is off by at most {v['largest gap to theory']:.3f} nats a layer.",
            "" if len(lost) == 2 else f"It vanishes with: {', '.join(lost) or 'neither'}.",
        ),
    )  # fmt: skip


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    off, share = v["slope: distance from 0 or 1"], v["slope: share of ones"]
    exact = "exactly 0 or 1" if off == 0 else f"up to {off:.2g} away from 0 and 1"
    died = max(RATES, key=lambda rate: v[f"{rate}: dead after"])
    many = v[f"{died}: dead after"] > v[f"{died}: dead before"] + MANY
    lost = all(v[f"{rate}: back"] < BACK for rate in RATES)
    first = max(v[f"{rate}: back, layer 1"] for rate in RATES)
    return (
        Claim(
            "ReLU's derivative is 1 or 0",
            "holds" if off == 0 else "does not hold as printed",
            f"At every unit and image the slope is {exact}, and it is 1 for {share:.0%} of them "
            "(at 0 itself, where there is none, PyTorch takes 0).",
            "" if off == 0 else "Not of the ReLU that was run here: look for a mistake.",
        ),
        *judge_delta(v),
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
            + f" Of those in layer 1, whose inputs stay what they are, {first:.0%} do. In the deep "
            f"nets with He's initialisation {v[f'{RELU[2].name}: never on']:.0%} of the top layer "
            "is never on before any training (mean cosine of two images there: "
            f"{v[f'{RELU[2].name}: cosine of two images']:.2f}).",
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
