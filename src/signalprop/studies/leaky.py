"""leaky: what passes below zero, over depth too, and does it keep units alive and help?

Four questions that are easily taken for one. Does the error signal pass a unit whose sum is below
zero? Does it pass many layers (which hangs on the initialisation, as with ReLU)? Do units that no
image turns on still hand something down (are they silent, or only off)? And do the nets learn more,
in the settings where ReLU units die and in an ordinary one? Every net is compared with the ReLU net
that started from the same weights and saw the same batches; a difference counts from three standard
errors on.
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
)
from signalprop.studies.plain import (
    DEFAULT,
    ERRORS,
    HE,
    KEPT,
    Found,
    Kind,
    Nets,
    Start,
    beside,
    never_on,
    of_all,
    over_depth,
    train,
)

DEPTH, WIDTH = 3, 64
#: a unit is silent where its slope is below this for every image
SILENT = 1e-3
#: ReLU units die in a setting where so large a share of them is off after training
MANY = 0.1


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


def own(slope: float) -> Start:
    """He et al.'s initialisation for a slope below zero."""
    return Start(f"own, a = {slope:g}", 2 / (1 + slope**2))


#: for the way through many layers; PReLU as it starts
OWN = tuple(
    Kind(name, _leaky(slope), own(slope))
    for name, slope in (("leaky 0.01", 0.01), ("leaky 0.2", 0.2), ("PReLU", 0.25))
)
KINDS = (
    *(Kind(name, phi, DEFAULT) for name, phi in PHIS.items() if phi is not None),
    *OWN,
    Kind("ELU", F.elu, HE),
)


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


def below_zero(name: str, found: Digits, seed: int) -> float:
    """Slope of 64 units, root mean square, shifted so far that no image brings a sum above zero."""
    nets = build(name, found.pixels, 1, 0.0, seed).double()
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


def below(setup: Setup, found: Digits) -> Found:
    """What passes one unit, and what passes many layers."""
    depth, width, samples, copies = (30, 64, 32, 4) if setup.quick else (50, 256, 64, 4)
    numbers = [
        Measurement(f"{name}: slope below zero", below_zero(name, found, setup.seed), "", expected)
        for name, expected in zip(PHIS, (0.0, 0.01, 0.2, 0.25, None), strict=True)
    ]
    series: list[Series] = []
    z = torch.linspace(-6, 2, 41, dtype=torch.float64).view(1, -1, 1).requires_grad_()
    for name, phi in PHIS.items():
        made = PReLU(1) if phi is None else phi
        (slope,) = torch.autograd.grad(made(z).sum(), z)
        series.append(
            Series("Slope: what a unit hands down (PReLU as it starts)", name,
                   tuple(z.detach().flatten().tolist()), tuple(slope.flatten().tolist()),
                   "sum z", "slope")
        )  # fmt: skip
    rows: list[tuple[str | float | int, ...]] = []
    for k, kind in enumerate(KINDS):
        setup.at(0.15 * k / len(KINDS), f"{kind.name}: {depth} layers")
        nets = Nets([found.pixels] + [width] * depth + [10], kind.phi, kind.start, copies)
        d = over_depth(kind, nets, found, samples)
        numbers += [
            Measurement(f"{kind.name}: factor per layer", d.factor, "", d.expected,
                        "geometric mean; expected: mean field", tabled=True),
            Measurement(f"{kind.name}: decay", d.measured[0], "nats", d.theory[0], "",
                        tabled=True),
        ]  # fmt: skip
        rows.append((kind.activation, kind.start.name, kind.start.variance, d.factor, d.expected,
                     d.measured[0]))  # fmt: skip
        if kind in (KINDS[0], KINDS[2], OWN[1]):
            series += beside("The error signal over depth, measured and from theory", kind.name,
                             d.measured, d.theory)  # fmt: skip
    columns = ("activation", "initialisation", "n Var(W)", "factor", "theory", "decay, nats")
    return numbers, series, Table(f"Delta, {depth} hidden layers of {width}", columns, tuple(rows))


def measure(setup: Setup) -> Measured:
    """Run it."""
    copies, steps = (10, 150) if setup.quick else (12, 1000)
    settings = SETTINGS[:3] if setup.quick else SETTINGS
    found = digits(3_000)
    numbers, series, table = below(setup, found)
    numbers.append(Measurement("seeds", copies, "", None, "per activation and setting"))
    tables = [table]
    seeds = tuple(float(i + 1) for i in range(copies))
    for k, setting in enumerate(settings):
        rows: list[tuple[str | float | int, ...]] = []
        base: Tensor | None = None
        for j, name in enumerate(PHIS):
            done = 0.15 + 0.85 * (k + j / len(PHIS)) / len(settings)
            setup.at(done, f"{setting.name}: {copies} nets with {name}")
            r = run(name, setting, found, copies, steps, setup.seed)
            base = r.accuracy if base is None else base
            gain = r.accuracy - base
            error = float(gain.std() / math.sqrt(copies))
            diverged, accuracy = float(r.diverged.double().mean()), float(r.accuracy.mean())
            listed = (
                ("off", mean(r.off), "no training image turns these units on"),
                ("silent", mean(r.silent), "units with slopes below 0.001 for all images"),
                ("diverged", diverged, "share of nets"),
                ("accuracy", accuracy, "mean over seeds; chance is 0.1"),
                ("accuracy, spread", float(r.accuracy.std()), "standard deviation over seeds"),
                ("gain over ReLU", float(gain.mean()), "same weights, same batches"),
                ("gain, standard error", error, "of the mean over seeds"),
            )
            numbers += [
                Measurement(f"{setting.name}, {name}: {what}", value, "", None, note, tabled=True)
                for what, value, note in listed
            ]
            shown = "" if name == "ReLU" else f"{float(gain.mean()):+.3f} ± {error:.3f}"
            rows.append((name, mean(r.off), mean(r.silent), diverged,
                         f"{accuracy:.3f} ± {float(r.accuracy.std()):.3f}", shown))  # fmt: skip
            ordered = tuple(r.accuracy.sort().values.tolist())
            series.append(Series(f"Every seed: {setting.name}", name, seeds, ordered,
                                 "seed, the worst first", "test accuracy"))  # fmt: skip
        columns = ("activation", "off", "silent", "diverged", "accuracy", "over ReLU")
        title = f"After {steps:,} updates, {copies} seeds: {setting.name}"
        tables.append(Table(title, columns, tuple(rows)))
    made = {
        "trained": f"{DEPTH} hidden layers of {WIDTH}", "updates": steps,
        "±": "standard deviation; of the difference its standard error",
        "off, silent": f"the sum is above 0, the slope above {SILENT:g} for no training image",
        "delta kept": f"a layer multiplies it by {1 - KEPT:g} to {1 + KEPT:g}",
        "units die": f"over {MANY:.0%} of ReLU's are off after training",
        "diverged": "counts as a guess in accuracy, and not at all in off and silent",
    }  # fmt: skip
    return Measured(tuple(numbers), found.name, made, tuple(series), tuple(tables))


def gained(v: Values, at: str) -> int:
    """1 where a net is better than ReLU by three standard errors, -1 where worse, else 0."""
    gain, error = v[f"{at}: gain over ReLU"], v[f"{at}: gain, standard error"]
    return (gain > ERRORS * error) - (gain < -ERRORS * error)


def judge_help(v: Values, setting: Setting, text: str, *, death: bool) -> Claim:
    """Whether the cures learn more than ReLU in a setting, where its units are to die or not."""
    outcome = {name: gained(v, f"{setting.name}, {name}") for name in CURES}
    better, worse, level = (
        [name for name in CURES if outcome[name] == sign] for sign in (1, -1, 0)
    )
    at = f"{setting.name}, ReLU"
    off, lost = v[f"{at}: off"], v[f"{at}: diverged"]
    premise = (off > MANY) == death
    each = "; ".join(
        f"{name} {round(100 * v[f'{to}: gain over ReLU'], 1) + 0.0:+.1f} ± "
        f"{100 * v[f'{to}: gain, standard error']:.1f}"
        + (f" ({v[f'{to}: diverged']:.0%} of the nets diverged)" if v[f"{to}: diverged"] else "")
        for name in CURES
        for to in (f"{setting.name}, {name}",)
    )
    verdict = of_all([name in better for name in CURES])
    correct = (
        f"Better by more than {ERRORS:.0f} standard errors: {', '.join(better) or 'none'}; "
        f"worse: {', '.join(worse) or 'none'}; not told apart: {', '.join(level) or 'none'}"
    )
    if not premise:
        verdict = "does not hold as printed"
        correct = f"ReLU units {'do not ' * death}die in this setting, so that it shows nothing"
    return Claim(
        f"{text}: {setting.name}",
        verdict,
        f"{off:.1%} of the ReLU units are dead after training"
        + (f" ({lost:.0%} of the nets diverged)" if lost else "")
        + f", and accuracy is {v[f'{at}: accuracy']:.1%}. The others differ from that, in points "
        f"± standard error over {v['seeds']:.0f} seeds: {each}.",
        "" if verdict == "holds" else f"{correct}.",
    )


def judge_depth(v: Values) -> Claim:
    """Whether delta passes many layers, given the initialisation of that slope."""
    factor = {k.name: v[f"{k.name}: factor per layer"] for k in KINDS}
    kept = [abs(factor[k.name] - 1) <= KEPT for k in OWN]
    usual = (k for k in KINDS if k.start is DEFAULT)
    return Claim(
        "through many layers, too, given the initialisation for that slope: 2 / (1 + a^2)",
        of_all(kept),
        "A layer multiplies delta by "
        + ", ".join(f"{factor[k.name]:.3f} ({k.activation})" for k in OWN)
        + " (theory: 1). The negative side alone does not do it: with PyTorch's default it is "
        + ", ".join(f"{factor[k.name]:.3f} ({k.activation})" for k in usual)
        + f". ELU with He's initialisation: {factor[KINDS[-1].name]:.3f}.",
        "" if all(kept) else
        f"Kept by {sum(kept)} of {len(kept)} to {KEPT:.0%}; theory is of infinite width.",
    )  # fmt: skip


def judge_silence(v: Values, settings: list[Setting]) -> Claim:
    """Whether units with a negative side still hand something down after training."""
    # nan, where every net diverged, is no share of silent units
    worst = {
        name: max((v[f"{s.name}, {name}: silent"] for s in settings), key=lambda x: (x == x, x))
        for name in PHIS
    }
    mute = [name for name in CURES if not worst[name] <= SILENT]
    off = {name: v[f"{DYING[0].name}, {name}: off"] for name in PHIS}
    why = {"PReLU": "; PReLU's learnt slope may come near 0", "ELU": "; ELU's slope e^z dies out"}
    return Claim(
        "after training as well: units do not fall silent",
        of_all([name not in mute for name in CURES]),
        f"Units with a slope below {SILENT:g} for every image, in the worst setting: "
        + ", ".join(f"{share:.0%} ({name})" for name, share in worst.items())
        + f". Units that no image turns on are another matter: with {DYING[0].name} "
        + ", ".join(f"{share:.0%} ({name})" for name, share in off.items()) + ".",
        "" if not mute else "No unit falls silent with: "
        + (", ".join(name for name in CURES if name not in mute) or "none of them")
        + "".join(why.get(name, "") for name in mute) + ".",
    )  # fmt: skip


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    settings = [s for s in SETTINGS if f"{s.name}, ReLU: off" in v]
    slope = {name: v[f"{name}: slope below zero"] for name in PHIS}
    passes = [slope[name] > 0 for name in CURES]
    return (
        Claim(
            "they let information through on the negative side",
            of_all(passes) if slope["ReLU"] == 0 else "does not hold as printed",
            "Units whose sums are all below zero multiply delta by "
            + ", ".join(f"{value:.3g} ({name})" for name, value in slope.items())
            + " (root mean square of the slope).",
            "" if all(passes) and slope["ReLU"] == 0 else "Nothing passes, or ReLU lets it pass "
            "too: look for a mistake.",
        ),
        judge_depth(v),
        judge_silence(v, settings),
        *(
            judge_help(v, s, "as a cure: where ReLU units die, the net learns more", death=True)
            for s in settings if s is not ORDINARY
        ),
        judge_help(v, ORDINARY, "the net learns more where they do not die, too", death=False),
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
