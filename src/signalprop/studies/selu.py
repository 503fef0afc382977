"""selu: what self-normalising nets conserve, and what they do not.

The moment map takes mean and variance of a layer's inputs to those of its outputs; for weights of
sum 0 and sum of squares 1 it pulls everything to (0, 1). That is about activations. The error
signal is governed by another number at the same point, chi_1 = E[selu'(z)^2] = 1.0716, and the
single singular values by a third thing, the spread of a random matrix. So activations, delta,
singular values and training are measured one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from signalprop.jacobian.spectrum import spectrum
from signalprop.studies.data import Digits, breast_cancer, digits
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
    HE,
    LECUN,
    Found,
    Kind,
    Nets,
    Start,
    beside,
    contest,
    deltas,
    judge_contest,
    of_all,
)
from signalprop.theory import MeanField, blocks, selu_contraction, selu_iterates, selu_jacobian
from signalprop.theory.selu import Region, selu_map

GAIN = Start("gain 3/4", 0.5625)
ORTHOGONAL_1 = Start("orthogonal", 1.0, "orthogonal")
#: probability of either dropout
DROP = 0.1
#: conserved, from 8 layers on: the mean, root mean square over layers, within this many times the
#: 1/sqrt(n) by which that of n units scatters; the variance between these at every depth
MEAN, LOW, HIGH = 2.0, 0.75, 1.35
#: a singular value is near one up to this factor; they stay there where so large a share of them is
#: near one over 32 layers, and delta changes by less than that factor over 100
NEAR, SHARE = 2.0, 0.9


@dataclass(frozen=True)
class Way:
    """A way to send digits through a deep SELU net.

    Attributes:
        start: how weights are drawn.
        dropout: `alpha`, `plain` or none.
        scale: what the inputs, of variance 1, are multiplied with.
    """

    start: Start
    dropout: str = ""
    scale: float = 1.0

    @property
    def name(self) -> str:
        """As shown."""
        dropout = {"alpha": ", AlphaDropout", "plain": ", plain Dropout"}.get(self.dropout, "")
        return f"{self.start.name}{dropout}" + (f", inputs x {self.scale:g}") * (self.scale != 1)

    def expected(self, width: int) -> float:
        """Variance that theory lets the activations settle at; infinity where they do not."""
        # plain Dropout divides what is left by 1 - p, as if the weights were larger
        variance = self.start.variance / (1 - DROP if self.dropout == "plain" else 1.0)
        bias = self.start.bias_variance(width)
        theory = MeanField("selu", variance, bias)
        if math.isinf(theory.q_star):
            return math.inf
        square = (theory.q_star - bias) / self.start.variance  # after the dropout
        return square - float(theory.moments.mean(theory.q_star)) ** 2


RIGHT = (Way(LECUN), Way(LECUN, scale=2.0), Way(LECUN, scale=0.5), Way(LECUN, "alpha"))
WRONG = (Way(DEFAULT), Way(HE), Way(GAIN), Way(LECUN, "plain"))


@torch.no_grad()
def through(way: Way, x: Tensor, depth: int, width: int) -> tuple[list[float], list[float]]:
    """Mean and variance over units and samples after every layer; weights as they are needed."""
    a = x.float() * way.scale
    means: list[float] = []
    variances: list[float] = []
    for _ in range(depth):
        W, b = way.start.draw(1, a.shape[1], width)
        a = F.selu(torch.addmm(b[0].float(), a, W[0].float()))
        if way.dropout == "alpha":
            a = F.alpha_dropout(a, DROP, training=True)
        elif way.dropout == "plain":
            a = F.dropout(a, DROP, training=True)
        wide = a.double()  # squares of what He's weights make of it are beyond float32
        means.append(float(wide.mean()))
        variances.append(float(wide.var()))
    return means, variances


def in_theorem(width: int) -> float:
    """Share of units with random weights whose sum and sum of squares theorem 1 allows."""
    W, _ = LECUN.draw(1, width, 4096)
    region = Region()
    omega, tau = W[0].sum(0), W[0].square().sum(0)
    inside = (omega >= region.omega[0]) & (omega <= region.omega[1])
    inside &= (tau >= region.tau[0]) & (tau <= region.tau[1])
    return float(inside.double().mean())


def moment_map() -> tuple[list[Measurement], list[Series]]:
    """The map at its fixed point and over the region of theorem 1."""
    mean, variance = (float(v) for v in selu_map(0.0, 1.0))
    norm = float(np.linalg.norm(selu_jacobian(0.0, 1.0), 2))
    found = selu_contraction()
    numbers = [
        Measurement("fixed point: mean", mean, "", 0.0, "the map at (0, 1)"),
        Measurement("fixed point: variance", variance, "", 1.0, "the map at (0, 1)"),
        Measurement("norm of the map's Jacobian at (0, 1)", norm, "", 0.7877, "below 1: it pulls"),
        Measurement("largest norm over Omega", found.largest_norm, "", None,
                    f"{found.points} points of theorem 1's region"),
        Measurement("Omega is mapped into itself", float(found.inside), "", 1.0,
                    f"variances to {found.nu[0]:.3f}..{found.nu[1]:.3f}"),
        Measurement("chi_1 at the fixed point", MeanField("selu", 1.0).chi_1, "", 1.0,
                    "E[selu'(z)^2], the factor on |delta|^2; 1 keeps it"),
        Measurement("units that theorem 1 speaks of", in_theorem(256), "share of units", None,
                    "sum of weights within 0.1 of 0, squares 0.95 to 1.1; LeCun, width 256"),
    ]  # fmt: skip
    starts = ((0.1, 0.1), (-0.1, 0.5), (0.1, 1.5), (-0.5, 3.0))
    paths = {start: selu_iterates(*start, 30) for start in starts}
    series = [
        Series("The moment map: variance over layers", f"from mean {mu}, variance {nu}",
               tuple(map(float, range(31))), tuple(path[:, 1].tolist()), "layers", "variance")
        for (mu, nu), path in paths.items()
    ]  # fmt: skip
    return numbers, series


def singular_values(start: Start, depth: int, found: Digits) -> Tensor:
    """Logarithms of the singular values from activation 1 to activation T, (4 images, 64)."""
    net = Nets([found.pixels] + [64] * depth + [10], F.selu, start).sequential()
    seen = spectrum(net, found.x_test[:4], of=f"{2 * depth - 1}", wrt="1")
    assert seen.deep is not None
    return torch.from_numpy(seen.deep.log_values)


#: the nets that are trained, and the tasks with their numbers of hidden layers
TRAINED = {
    "SELU, LeCun's": Kind("SELU", F.selu, LECUN),
    "ReLU, default": Kind("ReLU", torch.relu, DEFAULT),
    "ReLU, He's": Kind("ReLU", torch.relu, HE),
    "SELU, default": Kind("SELU", F.selu, DEFAULT),
}
TASKS = {"digits, 8 layers": 8, "digits, 32 layers": 32, "breast cancer, 8 layers": 8}


def activations(setup: Setup, x: Tensor, depths: tuple[int, ...], width: int) -> Found:
    """Mean and variance over depth, right and wrong ways."""
    numbers: list[Measurement] = []
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    last = depths[-1]
    for k, way in enumerate((*RIGHT, *WRONG)):
        setup.at(0.05 + 0.04 * k, f"{way.name}: {last} layers")
        means, variances = through(way, x, last, width)
        settled = way.expected(width)
        listed = (
            ("mean", means[-1], 0.0 if way in RIGHT else None),
            ("variance", variances[-1], settled),
            ("rms of the mean", math.hypot(*means[7:]) / math.sqrt(last - 7), None),
            ("lowest variance", min(variances[7:]), None),
            ("highest variance", max(variances[7:]), None),
        )
        numbers += [
            Measurement(f"{way.name}: {what}", value, "", expected, "from 8 layers on", tabled=True)
            for what, value, expected in listed
        ]
        rows.append((way.name, *(variances[d - 1] for d in depths), settled, means[-1]))
        xs = [d for d in range(1, last + 1) if d <= 8 or d % (last // 25) == 0]
        if way in WRONG:  # He's weights would leave nothing to see of the others
            xs = [d for d in xs if variances[d - 1] <= 1_000]
        ways = "Right start" if way in RIGHT else "Wrong start or dropout (to 1,000)"
        series.append(
            Series(f"{ways}: variance of the activations", way.name, tuple(map(float, xs)),
                   tuple(variances[d - 1] for d in xs), "layer", "variance", way in WRONG)
        )  # fmt: skip
    columns = ("net", *(f"layer {d}" for d in depths), "theory", "mean at the end")
    title = f"Activations, width {width}: variance over depth"
    return numbers, series, Table(title, columns, tuple(rows))


def gradients(setup: Setup, found: Digits, width: int) -> Found:
    """Delta over 100 layers."""
    x, y = found.x_test[:16], found.y_test[:16]
    numbers: list[Measurement] = []
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    for start in (LECUN, DEFAULT, GAIN, ORTHOGONAL_1):
        setup.at(0.4, f"{start.name}: delta over 100 layers")
        nets = Nets([found.pixels] + [width] * 100 + [10], F.selu, start, 4)
        logs = deltas(nets, x, y).log().mean((1, 2))
        with torch.no_grad():
            first = float(nets.layers(x)[1][0].square().mean())
        bias = start.bias_variance(width)
        theory = blocks.plain("selu", start.variance, bias, blocks=99, start=first)
        decay = float(logs[0] - logs[-1])
        told = math.exp(decay / 99), math.exp(theory.rate), math.exp(decay), theory.ratio
        at = f"delta, {start.name}"
        numbers += [
            Measurement(f"{at}: factor per layer", told[0], "", told[1],
                        "geometric mean over 100 layers", tabled=True),
            Measurement(f"{at}: over 100 layers", told[2], "", told[3], "", tabled=True),
        ]  # fmt: skip
        rows.append((start.name, *told))
        if start is not ORTHOGONAL_1:
            expected = [float(theory.rates[i:].sum()) for i in range(100)]
            series += beside("SELU: the error signal over depth, measured and from theory",
                             start.name, (logs - logs[-1]).tolist(), expected)  # fmt: skip
    columns = ("net", "factor per layer", "theory", "over 100 layers", "theory over 100")
    return numbers, series, Table(f"Delta, 100 layers of {width}", columns, tuple(rows))


def spreads(setup: Setup, found: Digits) -> Found:
    """Singular values over 2, 8 and 32 layers."""
    numbers: list[Measurement] = []
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    title = "Singular values from activation 1 to activation T"
    root = math.sqrt(MeanField("selu", 1.0).chi_1)
    for start in (LECUN, ORTHOGONAL_1):
        for depth in (2, 8, 32):
            setup.at(0.5, f"{start.name}: singular values over {depth} layers")
            log = singular_values(start, depth, found)
            near = float((log.abs() < math.log(NEAR)).double().mean())
            per_layer = float((2 * log).exp().mean()) ** (1 / (2 * (depth - 1)))
            low, middle, high = (float(v) for v in log[:, [-1, 32, 0]].mean(0).exp())
            at = f"singular values, {start.name}, {depth} layers"
            numbers += [
                Measurement(f"{at}: {what}", value, tabled=True)
                for what, value in (("near one", near), ("largest", high), ("median", middle),
                                    ("smallest", low))
            ]  # fmt: skip
            numbers.append(Measurement(f"{at}: rms per layer", per_layer, "", root, tabled=True))
            rows.append((start.name, depth, high, middle, low, near, per_layer))
            if start is LECUN or depth == 32:
                ranks = range(0, 64, 3)
                series.append(
                    Series(title, f"{start.name}, T = {depth}", tuple(k + 1.0 for k in ranks),
                           tuple(log[:, ranks].mean(0).tolist()), "rank, of 64", "ln s, nats")
                )  # fmt: skip
    columns = ("weights", "T", "largest", "median", "smallest", f"share in 1/{NEAR:g}..{NEAR:g}",
               "rms per layer")  # fmt: skip
    return numbers, series, Table(f"{title}, width 64", columns, tuple(rows))


def measure(setup: Setup) -> Measured:
    """Run it."""
    depths = (8, 32, 100) if setup.quick else (8, 32, 100, 300, 1000)
    width, samples = (128, 64) if setup.quick else (256, 128)
    copies, steps, nets = (4, 60, 3) if setup.quick else (6, 400, 4)
    setup.at(0.0, "the moment map")
    numbers, series = moment_map()
    numbers += [
        Measurement("deepest", depths[-1], "layers"),
        Measurement("scatter", width**-0.5, "", None, "of the mean of as many units as are wide"),
    ]
    found, tumours = digits(3_000), breast_cancer()
    x = found.x[:samples]
    images = found.x, found.y, found.x_test, found.y_test
    tasks = {t: (images if "digits" in t else tumours, depth) for t, depth in TASKS.items()}
    parts = (
        activations(setup, (x - x.mean()) / x.std(), depths, width),
        gradients(setup, found, width),
        spreads(setup, found),
        contest(setup, tasks, dict(list(TRAINED.items())[:nets]), copies, steps),
    )
    numbers += [m for part in parts for m in part[0]]
    series += [s for part in parts for s in part[1]]
    data = (f"{found.name} and scikit-learn's breast cancer ({len(tumours[0])} training, "
            f"{len(tumours[2])} test samples of {tumours[0].shape[1]} features)")  # fmt: skip
    settings = {
        "depths": depths, "width": width, "samples": samples, "dropout": DROP,
        "trained": "64 units, Adam, lr 0.001",
        "conserved": f"from 8 layers on the variance from {LOW} to {HIGH}, the mean (root mean "
        f"square over layers) within {MEAN:g}/sqrt(width)",
        "singular values near one": f"{SHARE:.0%} of them from 1/{NEAR:g} to {NEAR:g} over 32 "
        f"layers, and delta within that factor over 100",
    }  # fmt: skip
    return Measured(tuple(numbers), data, settings, tuple(series), tuple(p[2] for p in parts))


def conserved(v: Values, way: Way) -> bool:
    """Whether mean and variance stay at 0 and 1 from 8 layers on."""
    low, high = v[f"{way.name}: lowest variance"], v[f"{way.name}: highest variance"]
    return low >= LOW and high <= HIGH and v[f"{way.name}: rms of the mean"] <= MEAN * v["scatter"]


def judge_activations(v: Values) -> tuple[Claim, Claim, Claim]:
    """The map, and what real nets conserve."""
    norm, largest = v["norm of the map's Jacobian at (0, 1)"], v["largest norm over Omega"]
    fixed = max(abs(v["fixed point: mean"]), abs(v["fixed point: variance"] - 1)) <= 1e-9
    inside = v["Omega is mapped into itself"] == 1
    pulls = fixed and norm < 1 and largest < 1 and inside
    right, wrong = [conserved(v, w) for w in RIGHT], [conserved(v, w) for w in WRONG]
    lowest = min(v[f"{w.name}: lowest variance"] for w in RIGHT)
    highest = max(v[f"{w.name}: highest variance"] for w in RIGHT)
    mean = max(v[f"{w.name}: rms of the mean"] for w in RIGHT)
    return (
        Claim(
            "(mean, variance) = (0, 1) is a stable fixed point of the moment map",
            "holds" if pulls else "does not hold as printed",
            f"The map {'leaves (0, 1) where it is' if fixed else 'moves (0, 1)'}; its Jacobian has "
            f"norm {norm:.4f} there and at most {largest:.3f} on a grid over the region of theorem "
            f"1, which it {'maps' if inside else 'does not map'} into itself. (The theorem speaks "
            "of single units whose weights have nearly sum 0 and sum of squares 1: "
            f"{v['units that theorem 1 speaks of']:.0%} of those with LeCun's weights.)",
            "" if pulls else "Not for the map computed here: look for a mistake.",
        ),
        Claim(
            "scaled ELUs conserve mean 0 and variance 1: LeCun normal weights, AlphaDropout",
            of_all(right),
            f"From 8 layers to {v['deepest']:.0f} the variance stays between {lowest:.2f} and "
            f"{highest:.2f}, with AlphaDropout and without, and from inputs twice and half as "
            f"large; the mean is {mean:.2f} off 0 (root mean square over layers; at this width it "
            f"scatters by {v['scatter']:.2f}).",
            "" if all(right) else "Not in: "
            + "; ".join(w.name for w, kept in zip(RIGHT, right, strict=True) if not kept) + ".",
        ),
        Claim(
            "with any weights and dropout (the statement names none): those PyTorch has at hand",
            of_all(wrong),
            f"Variance after {v['deepest']:.0f} layers: "
            + ", ".join(f"{v[f'{w.name}: variance']:.2g} ({w.name})" for w in WRONG) + ".",
            "" if all(wrong) else "It takes n_in Var(W) = 1 and AlphaDropout; "
            "torch.nn.init.calculate_gain('selu') = 3/4 is not that gain.",
        ),
    )  # fmt: skip


def judge_singular(v: Values) -> Claim:
    """Where the claim stops: delta and singular values."""
    factor, over = (v[f"delta, LeCun normal: {k}"] for k in ("factor per layer", "over 100 layers"))
    one, deep = (f"singular values, LeCun normal, {T} layers" for T in (2, 32))
    turned = "singular values, orthogonal, 32 layers"
    near, chi = v[f"{deep}: near one"], v["chi_1 at the fixed point"]
    stay = near >= SHARE and 1 / NEAR < over < NEAR
    kept = all(conserved(v, way) for way in RIGHT)
    return Claim(
        "so singular values stay near one",
        "holds" if stay else "does not hold as printed",
        f"At the fixed point chi_1 = {chi:.4f}, so that theory has delta grow by "
        f"{math.sqrt(chi):.4f} per layer, {chi**49.5:.0f} times over 100 layers; measured: "
        f"{factor:.4f} and {over:.0f} (geometric mean; finite width takes some off). Single "
        f"singular values spread: of one layer's {v[f'{one}: near one']:.0%} are between "
        f"1/{NEAR:g} and {NEAR:g}, of 32 layers' {near:.0%}, from {v[f'{deep}: smallest']:.0e} to "
        f"{v[f'{deep}: largest']:.0f} with a median of {v[f'{deep}: median']:.0e}; with orthogonal "
        f"weights {v[f'{turned}: near one']:.0%} (median {v[f'{turned}: median']:.2f}).",
        "" if stay else ("The claim stops at the activations, which stay. " if kept else "")
        + "Of the singular values only the root mean square per layer is near one, "
        f"{v[f'{deep}: rms per layer']:.3f} over 32 layers (theory: sqrt(chi_1)): delta "
        + (f"does not vanish, it grows by {factor - 1:.1%} per layer" if factor > 1 else
           f"shrinks by {1 - factor:.1%} per layer")
        + ", and most directions are lost" * (v[f"{deep}: median"] < 1 / NEAR) + ".",
    )  # fmt: skip


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    learns = "as a cure: deep SELU nets learn more than deep ReLU nets"
    against = ("ReLU, default", "ReLU, He's")
    return (*judge_activations(v), judge_singular(v), judge_contest(v, learns, TASKS, against))


STUDY = Study(
    name="selu",
    title="Self-normalizing nets: what is conserved",
    statement="self-normalizing nets: scaled ELUs conserve mean 0 and variance 1 (a stable fixed "
    "point), so singular values stay near one",
    source="Lecture by Sepp Hochreiter; Klambauer, Unterthiner, Mayr & Hochreiter 2017, "
    "arXiv:1706.02515; chi_1: Poole et al. 2016, arXiv:1606.05340",
    function=measure,
    judge=judge,
)
