"""highway: gates that carry a layer's input past the layer, and how deep nets of them can be.

Plain and highway nets of the same number of parameters are trained at growing depth, every one with
the learning rate that suits it best. Then the rule for the bias of the gates: the carry gates alone
pass (1 - sigmoid(b))^L of the error signal. Beside it stand what nets really pass at the start, and
theory that counts all paths: the transforms add to what is carried, and gates that are spread
about b, as random gate weights spread them, take some away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from signalprop.nets.highway import HighwayNet, gate_bias_for
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
from signalprop.studies.plain import DEFAULT, ERRORS, GLOROT, HE, Start, of_all
from signalprop.studies.trained import (
    BATCH,
    Agenda,
    Trained,
    ahead,
    beats,
    chance,
    decay,
    seconds,
    seeded,
    spread,
    tuned,
)
from signalprop.theory import blocks

#: units of a highway layer, and of a plain one with as many parameters (Srivastava et al. 2015)
WIDTH, PLAIN_WIDTH = 50, 71
#: a depth counts as trained where no more accuracy than this is lost against the shallowest net
LOST = 0.05
#: nats over all layers by which the rule may be off, as a share of what it says, to hold
OFF = 0.05

#: name -> gate bias; None is that which carries half of the signal past all layers
GATES: dict[str, float | None] = {"highway, b = -2": -2.0, "highway, b by depth": None}
PLAIN: dict[str, tuple[type[nn.Module], Start]] = {
    "tanh, PyTorch's default": (nn.Tanh, DEFAULT),
    "tanh, Glorot": (nn.Tanh, GLOROT),
    "ReLU, He": (nn.ReLU, HE),
}
KINDS = (*GATES, *PLAIN)
#: gate biases at which the rule is tested
BIASES = (-1.0, -2.0, -4.0, None)
#: depth -> accuracy of highway and of plain nets in a public reproduction
ELSEWHERE = {10: (0.913, 0.292), 20: (0.910, 0.098), 50: (0.905, 0.124)}
REPRODUCTION = "github.com/npow/schmidhuber-problems"


@dataclass(frozen=True)
class Sizes:
    """How large a run is.

    Attributes:
        depths: numbers of highway layers.
        images: at most, for training.
        steps: updates.
        seeds: nets of each kind.
        rates: learning rates that are tried.
    """

    depths: tuple[int, ...]
    images: int
    steps: int
    seeds: int
    rates: tuple[float, ...]


QUICK = Sizes((10, 40), 2_000, 60, 2, (5e-3, 1e-3))
FULL = Sizes((10, 20, 50, 100), 6_000, 564, 3, (5e-3, 1e-3))


def bias_at(bias: float | None, depth: int) -> float:
    """The gate bias, where it is left to the depth the one that `HighwayNet` takes."""
    return min(gate_bias_for(depth), -1.0) if bias is None else bias


def gated(inputs: int, depth: int, bias: float | None) -> HighwayNet:
    """A highway net of tanh units."""
    return HighwayNet(inputs, WIDTH, depth, 10, activation=torch.tanh, gate_bias=bias)


def plain(inputs: int, depth: int, phi: type[nn.Module], start: Start) -> nn.Sequential:
    """A plain net: the first layer, `depth` layers, and the head."""
    modules: list[nn.Module] = []
    for n in [inputs] + [PLAIN_WIDTH] * depth:
        layer = nn.Linear(n, PLAIN_WIDTH)
        if start is not DEFAULT:  # which is what a Linear draws
            W, b = start.draw(1, n, PLAIN_WIDTH)
            with torch.no_grad():
                layer.weight.copy_(W[0].T)
                layer.bias.copy_(b[0, 0])
        modules += [layer, phi()]
    return nn.Sequential(*modules, nn.Linear(PLAIN_WIDTH, 10))


def make(kind: str, inputs: int, depth: int) -> nn.Module:
    """A net of that kind."""
    if kind in GATES:
        return gated(inputs, depth, GATES[kind])
    return plain(inputs, depth, *PLAIN[kind])


def lost(net: nn.Module, found: Digits, depth: int) -> float:
    """Nats that the `depth` layers of a net change delta by on its way to their input."""
    if isinstance(net, HighwayNet):
        return decay(net, found, "tanh", f"layers.{depth - 1}.add")
    return decay(net, found, "1", f"{2 * depth + 1}")


def mean(values: list[float]) -> float:
    """Their mean."""
    return math.fsum(values) / len(values)


def rule(
    setup: Setup, found: Digits, sizes: Sizes
) -> tuple[list[Measurement], list[Series], Table]:
    """The rule for the gates' bias: what is carried, what is measured, what theory says."""
    numbers: list[Measurement] = []
    rows: list[tuple[str | float | int, ...]] = []
    for depth in sizes.depths:
        for bias in BIASES:
            b = bias_at(bias, depth)
            nets = [
                seeded(lambda L=depth, b=bias: gated(found.pixels, L, b), setup.seed + k)
                for k in range(sizes.seeds)
            ]
            measured = [lost(net, found, depth) for net in nets]
            carried = blocks.highway(b, blocks=depth).nats
            # weights of variance 2 / n in both maps, and the first layer's outputs
            theory = blocks.highway(
                b, blocks=depth, weight_variance=2.0, gate_weight_variance=2.0,
                start=entering(nets[0], found),
            ).nats  # fmt: skip
            told = "by depth" if bias is None else f"{bias:g}"
            at = f"b = {told}, {depth} layers"
            for what, value, expected in (
                ("rule", carried, None), ("measured", mean(measured), carried),
                ("theory", theory, None),
            ):  # fmt: skip
                numbers.append(Measurement(f"{at}: {what}", value, "nats", expected, "", True))
            rows.append((at, b, math.exp(carried), math.exp(mean(measured)), math.exp(theory),
                         mean(measured), spread(measured)))  # fmt: skip
    columns = ("gates", "b", "(1 - sigmoid(b))^L", "measured", "theory", "nats", "spread")
    title = "Share of the error signal that the layers pass at the start, by rule and measured"
    deep = sizes.depths[-1]
    series = [
        Series(f"The error signal that {deep} highway layers pass at the start", name,
               tuple(sorted(bias_at(b, deep) for b in BIASES)),
               tuple(value for _, value in sorted((float(row[1]), float(row[i])) for row in rows
                                                  if str(row[0]).endswith(f", {deep} layers"))),
               "gate bias b", "share of delta", True)
        for i, name in ((2, "rule, (1 - sigmoid(b))^L"), (3, "measured"), (4, "theory, all paths"))
    ]  # fmt: skip
    return numbers, series, Table(title, columns, tuple(rows))


@torch.no_grad()
def entering(net: nn.Module, found: Digits) -> float:
    """Mean square of what enters the first highway layer."""
    assert isinstance(net, HighwayNet)
    x = found.x_test[:64].to(net.first.weight.dtype)
    return float(net.activation(net.first(x)).square().mean())


def measure(setup: Setup) -> Measured:
    """Run it."""
    sizes = QUICK if setup.quick else FULL
    found = digits(sizes.images)
    nets = sizes.seeds + len(sizes.rates) - 1
    tasks = [(kind, depth) for depth in sizes.depths for kind in KINDS]
    cost = {
        task: sizes.steps * seconds(lambda t=task: make(t[0], found.pixels, t[1]), found)
        for task in tasks
    }
    agenda = Agenda(setup, nets * sum(cost.values()) * 1.05)
    agenda.start(f"{nets * len(tasks)} nets to train")
    agenda.next("the rule for the gates' bias", agenda.total * 0.05)
    numbers, series, table = rule(setup, found, sizes)
    numbers += [
        Measurement("chance", chance(found), "", None, "always the most frequent digit"),
        Measurement("seeds", sizes.seeds),
        Measurement("depths", len(sizes.depths), tabled=True),
    ]
    numbers += [Measurement(f"depth {i}", d, "layers", tabled=True)
                for i, d in enumerate(sizes.depths)]  # fmt: skip
    reached: dict[tuple[str, int], Trained] = {}
    signal: dict[tuple[str, int], float] = {}
    for kind, depth in tasks:

        def told(kind: str = kind, depth: int = depth) -> None:
            agenda.next(f"{kind}, {depth} layers", cost[kind, depth])

        def one(kind: str = kind, depth: int = depth) -> nn.Module:
            return make(kind, found.pixels, depth)

        reached[kind, depth] = tuned(one, found, rates=sizes.rates, steps=sizes.steps,
                                     seeds=sizes.seeds, seed=setup.seed, told=told)  # fmt: skip
        numbers += reached[kind, depth].told(f"{kind}, {depth} layers")
        signal[kind, depth] = mean(
            [lost(seeded(one, setup.seed + k), found, depth) for k in range(sizes.seeds)]
        )
        numbers.append(Measurement(f"{kind}, {depth} layers: decay", signal[kind, depth], "nats",
                                   None, "of delta at the start", tabled=True))  # fmt: skip
    xs = tuple(map(float, sizes.depths))
    for figure, label, log in (
        ("Accuracy after training, over depth", "test accuracy", False),
        ("Loss at the end of training, over depth", "cross-entropy", True),
    ):
        for kind in KINDS:
            each = [reached[kind, d] for d in sizes.depths]
            ys = tuple(t.loss if log else t.accuracy for t in each)
            series.append(Series(figure, kind, xs, ys, "layers", label, log))
    settings = {
        "layers": sizes.depths, "seeds": sizes.seeds,
        "width": f"highway {WIDTH}, plain {PLAIN_WIDTH}: as many parameters",
        "training": f"{sizes.steps} updates of {BATCH} images, Adam, gradients clipped",
        "learning rates": sizes.rates,
        "rate": "of every net the one with the lowest training loss, by its first seed",
        "trained": f"at most {LOST:g} of accuracy lost against the shallowest net of its kind",
    }  # fmt: skip
    shown = tables(reached, signal, sizes, mnist=found.name.startswith("MNIST"))
    return Measured(tuple(numbers), found.name, settings, tuple(series), (*shown, table))


def tables(
    reached: dict[tuple[str, int], Trained],
    signal: dict[tuple[str, int], float],
    sizes: Sizes,
    *,
    mnist: bool,
) -> tuple[Table, ...]:
    """Accuracy and the error signal over depth, and what others have measured."""
    columns = ("net", *(f"{d} layers" for d in sizes.depths))
    accuracies = tuple((k, *(str(reached[k, d]) for d in sizes.depths)) for k in KINDS)
    signals = tuple((k, *(signal[k, d] for d in sizes.depths)) for k in KINDS)
    here, bare = next(iter(GATES)), next(iter(PLAIN))
    beside = tuple(
        (d, ELSEWHERE[d][0], reached[here, d].accuracy, ELSEWHERE[d][1], reached[bare, d].accuracy)
        for d in sizes.depths
        if d in ELSEWHERE
    )
    shown = [
        Table(f"Test accuracy, {sizes.seeds} seeds (± standard deviation)", columns, accuracies),
        Table("Nats that the layers change delta by at the start", columns, signals),
    ]
    if mnist:
        heads = ("layers", "highway, theirs", "here", "plain, theirs", "here, PyTorch's default")
        shown.append(Table(f"Accuracy beside a public reproduction on MNIST ({REPRODUCTION}, tanh, "
                           "b = -2)", heads, beside))  # fmt: skip
    return tuple(shown)


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    depths = [int(v[f"depth {i}"]) for i in range(int(v["depths"]))]
    first, deep = depths[0], depths[-1]

    def falls(kind: str) -> float:
        return v[f"{kind}, {first} layers: accuracy"] - v[f"{kind}, {deep} layers: accuracy"]

    def over(kinds: tuple[str, ...]) -> str:
        return "; ".join(
            f"{kind}: " + ", ".join(f"{v[f'{kind}, {d} layers: accuracy']:.3f}" for d in depths)
            for kind in kinds
        )

    trained = [falls(kind) <= LOST for kind in GATES]
    failed = [falls(kind) > LOST for kind in PLAIN]
    at = f"at {', '.join(map(str, depths))} layers"
    return (
        Claim(
            f"highway nets train at any depth, to {deep} layers",
            of_all(trained),
            f"Test accuracy {at}: {over(tuple(GATES))}.",
            "" if all(trained) else f"More than {LOST:g} is lost with: "
            + "; ".join(k for k, kept in zip(GATES, trained, strict=True) if not kept)
            + ". The gates' bias has to fall with the depth.",
        ),
        Claim(
            "plain nets do not",
            of_all(failed),
            f"Test accuracy {at}: {over(tuple(PLAIN))}; chance {v['chance']:.3f}.",
            "" if all(failed) else f"At most {LOST:g} is lost with: "
            + "; ".join(k for k, bad in zip(PLAIN, failed, strict=True) if not bad) + ".",
        ),
        judge_ahead(v, depths),
        judge_rule(v, depths),
    )  # fmt: skip


def judge_ahead(v: Values, depths: list[int]) -> Claim:
    """Whether the best highway net is ahead of the best plain net, depth by depth."""
    told: list[str] = []
    won: list[bool] = []
    for depth in depths:
        one, other = (
            max((f"{kind}, {depth} layers" for kind in kinds), key=lambda k: v[f"{k}: accuracy"])
            for kinds in (GATES, PLAIN)
        )
        gain, error = ahead(v, one, other)
        won.append(beats(v, one, other))
        told.append(f"{100 * gain:+.1f} ± {100 * error:.1f} at {depth} layers")
    early = [d for d, yes in zip(depths, won, strict=True) if not yes]
    return Claim(
        "at every depth a highway net does better than plain nets of as many parameters",
        of_all(won),
        "The best of the highway nets less the best of the plain ones, points of accuracy ± "
        f"standard error: {'; '.join(told)}.",
        ""
        if all(won)
        else f"Not by {ERRORS:.0f} standard errors at {', '.join(map(str, early))} "
        "layers, where a good start and learning rate do.",
    )


def judge_rule(v: Values, depths: list[int]) -> Claim:
    """Whether the rule for the gates says what is passed."""
    names = [f"b = {'by depth' if b is None else f'{b:g}'}, {d} layers"
             for d in depths for b in BIASES]  # fmt: skip
    off = {n: v[f"{n}: measured"] - v[f"{n}: rule"] for n in names}
    close = [abs(off[n]) <= OFF * abs(v[f"{n}: rule"]) for n in names]
    gap = max(abs(v[f"{n}: measured"] - v[f"{n}: theory"]) / abs(v[f"{n}: theory"]) for n in names)
    ends = [f"b = {told}, {depths[-1]} layers" for told in ("-1", "-2", "-4", "by depth")]
    more, less = (sum(sign * off[n] > 0 for n in names) for sign in (1, -1))
    shares = "; ".join(
        f"{math.exp(v[f'{n}: rule']):.2g} by the rule, {math.exp(v[f'{n}: measured']):.2g} "
        f"measured ({n})"
        for n in ends
    )
    return Claim(
        "L layers pass (1 - sigmoid(b))^L of the error signal at the start",
        of_all(close),
        f"Share of delta: {shares}. More than by the rule passes in {more} of {len(names)} cases, "
        f"less in {less}.",
        ""
        if all(close)
        else "That is what is carried past all transforms by gates that are all "
        "alike. The transforms add to it, and spread gates take from it; with all paths counted "
        f"theory is off by at most {gap:.0%} of the nats.",
    )


STUDY = Study(
    name="highway",
    title="Highway nets: layers that can be passed",
    statement="a^i = (1 - g(a^{i-1})) a^{i-1} + g(a^{i-1}) f(a^{i-1}): highway nets can be trained "
    "at depths at which plain nets cannot",
    source="Lecture by Sepp Hochreiter; Srivastava, Greff & Schmidhuber 2015, arXiv:1505.00387 and "
    "arXiv:1507.06228",
    function=measure,
    judge=judge,
)
