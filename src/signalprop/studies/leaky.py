"""leaky: does a slope on the negative side keep units alive, and does that help?

Three questions that are easily taken for one. Does the error signal pass a unit whose sum is below
zero? Do units that no image turns on still hand something down (are they silent, or only off)? And
do the nets learn more, in the settings where ReLU units die and in an ordinary one? Every net is
compared with the ReLU net that started from the same weights and saw the same batches; a
difference counts from three standard errors on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
    Verdict,
)
from signalprop.studies.plain import HE, Nets, never_on, train

DEPTH, WIDTH = 3, 64
#: a unit is silent where its slope is below this for every image
SILENT = 1e-3
#: standard errors that a difference in accuracy has to have, to count
ERRORS = 3.0


class PReLU(nn.Module):
    """max(z, a z), a learnt, one per layer and copy, from 0.25 (He et al. 2015)."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((copies, 1, 1), 0.25))

    def forward(self, z: Tensor) -> Tensor:
        """Apply it to (copies, n, units)."""
        return torch.where(z > 0, z, self.a.to(z.dtype) * z)


def _leaky(slope: float) -> Callable[[Tensor], Tensor]:
    return lambda z: F.leaky_relu(z, slope)


#: the activations; None stands for a PReLU of its own for every layer
PHIS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "ReLU": torch.relu,
    "leaky 0.01": _leaky(0.01),
    "leaky 0.2": _leaky(0.2),
    "PReLU": None,
    "ELU": F.elu,
}
CURES = tuple(name for name in PHIS if name != "ReLU")


@dataclass(frozen=True)
class Setting:
    """How the nets are trained.

    Attributes:
        name: as shown.
        optimizer: class of the optimizer.
        lr: its learning rate.
        bias: bias of every hidden unit at the start.
    """

    name: str
    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float
    bias: float = 0.0


ORDINARY = Setting("ordinary (SGD, lr 0.1)", torch.optim.SGD, 0.1)
DYING = (
    Setting("Adam, lr 0.1", torch.optim.Adam, 0.1),
    Setting("biases at -3", torch.optim.SGD, 0.1, -3.0),
    Setting("SGD, lr 1", torch.optim.SGD, 1.0),
)
SETTINGS = (ORDINARY, *DYING)


def build(name: str, pixels: int, copies: int, bias: float, seed: int) -> Nets:
    """Nets with He's initialisation: the same weights for every activation."""
    torch.default_generator.manual_seed(seed)
    phi = PHIS[name] or nn.ModuleList([PReLU(copies) for _ in range(DEPTH)])
    sizes = [pixels] + [WIDTH] * DEPTH + [10]
    nets = Nets(sizes, phi, HE, copies, torch.float32)
    with torch.no_grad():
        for b in nets.b[:-1]:
            b += bias
    return nets


def silent(nets: Nets, x: Tensor) -> Tensor:
    """Units whose slope is below 0.001 for every sample, (copies, hidden layers, units)."""
    found: list[Tensor] = []
    for i, z in enumerate(nets.layers(x)[0][:-1]):
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(nets.activation(i)(z).sum(), z)
        found.append(slope.abs().amax(1) < SILENT)
    return torch.stack(found, 1)


def below_zero(name: str, found: Digits) -> float:
    """Slope of 64 units, root mean square, shifted so far that no image brings a sum above zero."""
    nets = build(name, found.pixels, 1, 0.0, 0).double()
    with torch.no_grad():
        z = nets.layers(found.x_test)[0][0]
        z = z - z.amax(1, keepdim=True) - 1e-3
    z.requires_grad_()
    (slope,) = torch.autograd.grad(nets.activation(0)(z).sum(), z)
    return float(slope.square().mean().sqrt())


@dataclass(frozen=True)
class Outcome:
    """What became of the copies of one net, each (copies,).

    Attributes:
        off: share of hidden units that no training image turns on; nan where training diverged.
        silent: share of hidden units with a slope below 0.001 for all images; nan likewise.
        accuracy: on the test images; that of a guess where training diverged.
        diverged: whether a weight is not finite.
    """

    off: Tensor
    silent: Tensor
    accuracy: Tensor
    diverged: Tensor


def run(name: str, setting: Setting, found: Digits, copies: int, steps: int, seed: int) -> Outcome:
    """Train one kind of net in one setting."""
    nets = build(name, found.pixels, copies, setting.bias, seed)
    optimizer = setting.optimizer(nets.parameters(), lr=setting.lr)
    train(nets, optimizer, found.x, found.y, steps, seed)
    finite = torch.stack([W.isfinite().flatten(1).all(1) for W in [*nets.W, *nets.b]]).all(0)
    return Outcome(
        off=never_on(nets, found.x).double().mean((1, 2)).where(finite, torch.nan),
        silent=silent(nets, found.x).double().mean((1, 2)).where(finite, torch.nan),
        accuracy=nets.accuracy(found.x_test, found.y_test).where(finite, 0.1),
        diverged=~finite,
    )


def mean(values: Tensor) -> float:
    """Mean of those that are numbers; nan if none is."""
    return float(values.nanmean())


def measure(setup: Setup) -> Measured:
    """Run it."""
    copies, steps = (10, 150) if setup.quick else (12, 1000)
    settings = SETTINGS[:3] if setup.quick else SETTINGS
    found = digits(3_000)
    numbers = [
        Measurement(f"{name}: factor on delta, all units below zero", below_zero(name, found), "",
                    expected, "slope, root mean square over units and images")
        for name, expected in zip(PHIS, (0.0, 0.01, 0.2, 0.25, None), strict=True)
    ]  # fmt: skip
    numbers.append(Measurement("seeds", copies, "", None, "per activation and setting"))
    rows: list[tuple[str | float | int, ...]] = []
    accuracies: dict[tuple[str, str], Tensor] = {}
    for k, setting in enumerate(settings):
        for j, name in enumerate(PHIS):
            done = (k + j / len(PHIS)) / len(settings)
            setup.at(done, f"{setting.name}: {copies} nets with {name}")
            r = run(name, setting, found, copies, steps, setup.seed)
            accuracies[setting.name, name] = r.accuracy
            gain = r.accuracy - accuracies[setting.name, "ReLU"]
            error = float(gain.std() / math.sqrt(copies))
            at = f"{setting.name}, {name}"
            listed = (
                ("off", mean(r.off), "share of units", "no training image turns them on"),
                ("silent", mean(r.silent), "share of units", "slope below 0.001 for all images"),
                ("diverged", float(r.diverged.double().mean()), "share of nets", ""),
                ("accuracy", float(r.accuracy.mean()), "", "mean over seeds; chance is 0.1"),
                ("accuracy, spread", float(r.accuracy.std()), "", "standard deviation over seeds"),
                ("gain over ReLU", float(gain.mean()), "accuracy", "same weights, same batches"),
                ("gain, standard error", error, "accuracy", "of the mean over seeds"),
            )
            numbers += [
                Measurement(f"{at}: {what}", value, unit, None, note, tabled=True)
                for what, value, unit, note in listed
            ]
            shown = "" if name == "ReLU" else f"{float(gain.mean()):+.3f} ± {error:.3f}"
            rows.append((setting.name, name, mean(r.off), mean(r.silent),
                         float(r.diverged.double().mean()),
                         f"{float(r.accuracy.mean()):.3f} ± {float(r.accuracy.std()):.3f}",
                         shown))  # fmt: skip
    seeds = tuple(float(i + 1) for i in range(copies))
    series = [
        Series(f"Every seed: {setting.name}", name,
               seeds, tuple(accuracies[setting.name, name].sort().values.tolist()),
               "seed, the worst first", "test accuracy")
        for setting in settings
        for name in PHIS
    ]  # fmt: skip
    columns = ("setting", "activation", "off", "silent", "diverged", "accuracy", "over ReLU")
    table = Table(f"After {steps} updates, {copies} seeds (± standard deviation; of the difference "
                  "its standard error)", columns, tuple(rows))  # fmt: skip
    made = {"hidden layers": DEPTH, "width": WIDTH, "seeds": copies, "updates": steps}
    return Measured(tuple(numbers), found.name, made, tuple(series), (table,))


def gained(v: Values, at: str) -> int:
    """1 where a net is better than ReLU by three standard errors, -1 where worse, else 0."""
    gain, error = v[f"{at}: gain over ReLU"], v[f"{at}: gain, standard error"]
    return (gain > ERRORS * error) - (gain < -ERRORS * error)


def judge_help(v: Values, setting: Setting) -> Claim:
    """Whether the cures learn more than ReLU in a setting where its units die."""
    outcome = {name: gained(v, f"{setting.name}, {name}") for name in CURES}
    better = [name for name in CURES if outcome[name] > 0]
    verdict: Verdict = "holds in part" if better else "does not hold as printed"
    if len(better) == len(CURES):
        verdict = "holds"
    each = "; ".join(
        f"{name} {v[f'{at}: gain over ReLU']:+.1%} ± {v[f'{at}: gain, standard error']:.1%}"
        + (f" ({v[f'{at}: diverged']:.0%} of the nets diverged)" if v[f"{at}: diverged"] else "")
        for name in CURES
        for at in (f"{setting.name}, {name}",)
    )
    at = f"{setting.name}, ReLU"
    worse = [name for name in CURES if outcome[name] < 0]
    level = [name for name in CURES if outcome[name] == 0]
    return Claim(
        f"where ReLU units die the net learns more with a negative side: {setting.name}",
        verdict,
        f"With {setting.name}, {v[f'{at}: off']:.0%} of the ReLU units are dead after training and "
        f"accuracy is {v[f'{at}: accuracy']:.0%}; against it, from the same weights: {each}.",
        ""
        if verdict == "holds"
        else f"Better by more than {ERRORS:.0f} standard errors: {', '.join(better) or 'none'}; "
        f"worse: {', '.join(worse) or 'none'}; not told apart: {', '.join(level) or 'none'}.",
    )


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    settings = [s for s in SETTINGS if f"{s.name}, ReLU: off" in v]
    factor = {name: v[f"{name}: factor on delta, all units below zero"] for name in PHIS}
    passes = factor["ReLU"] == 0 and all(factor[name] > 0 for name in CURES)
    # nan, where every net diverged, is no share of silent units
    worst = {
        name: max((v[f"{s.name}, {name}: silent"] for s in settings), key=lambda x: (x == x, x))
        for name in PHIS
    }
    alive = [name for name in CURES if worst[name] <= SILENT]
    loud: Verdict = "holds" if len(alive) == len(CURES) else "holds in part"
    if not alive:
        loud = "does not hold as printed"
    off = {name: v[f"{DYING[0].name}, {name}: off"] for name in PHIS}
    ordinary = {name: gained(v, f"{ORDINARY.name}, {name}") for name in CURES}
    base = v[f"{ORDINARY.name}, ReLU: accuracy"]
    best = max(v[f"{ORDINARY.name}, {name}: gain over ReLU"] for name in CURES)
    least = min(v[f"{ORDINARY.name}, {name}: gain over ReLU"] for name in CURES)
    ahead = [name for name in CURES if ordinary[name] > 0]
    return (
        Claim(
            "information passes on the negative side",
            "holds" if passes else "does not hold as printed",
            "A layer with all sums below zero multiplies delta by "
            + ", ".join(f"{value:.3g} ({name})" for name, value in factor.items())
            + ".",
        ),
        Claim(
            "so units do not fall silent",
            loud,
            "Units with a slope below 0.001 for every image, in the worst setting: "
            + ", ".join(f"{share:.0%} ({name})" for name, share in worst.items())
            + f". Units that no image turns on are another matter: with {DYING[0].name} "
            + ", ".join(f"{share:.0%} ({name})" for name, share in off.items())
            + ".",
            ""
            if loud == "holds"
            else "A slope that does not depend on the sum (leaky ReLU) keeps every unit in touch; "
            "ELU's slope e^z dies out itself, and what PReLU learns may come near 0."
            if worst["PReLU"] > SILENT
            else "A slope that does not depend on the sum (leaky ReLU, PReLU) keeps every unit in "
            "touch; ELU's slope e^z dies out itself.",
        ),
        *(judge_help(v, s) for s in settings if s is not ORDINARY),
        Claim(
            "the net learns more with a negative side in an ordinary setting as well",
            "holds" if len(ahead) == len(CURES) else "holds in part" if ahead else
            "does not hold as printed",
            f"With SGD, lr 0.1, {v[f'{ORDINARY.name}, ReLU: off']:.1%} of the ReLU units are dead "
            f"and accuracy is {base:.1%}; the others differ from it by {least:+.1%} to "
            f"{best:+.1%}, "
            + (f"by more than {ERRORS:.0f} standard errors: {', '.join(ahead)}." if ahead else
               f"none of them better by {ERRORS:.0f} standard errors over "
               f"{v['seeds']:.0f} seeds."),
            "" if len(ahead) == len(CURES) else
            "Where no unit dies there is nothing to cure: accuracy does not tell them apart here."
            if not ahead else f"Only {', '.join(ahead)} here.",
        ),
    )  # fmt: skip


STUDY = Study(
    name="leaky",
    title="Leaky, parametric and exponential units: a way through below zero",
    statement="leaky ReLU, parametric ReLU, ELU let information through on the negative side",
    source="Lecture by Sepp Hochreiter; leaky: Maas, Hannun & Ng 2013; PReLU: He et al. 2015, "
    "arXiv:1502.01852; ELU: Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
    function=measure,
    judge=judge,
)
