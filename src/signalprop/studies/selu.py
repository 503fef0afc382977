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
    Verdict,
)
from signalprop.studies.plain import DEFAULT, HE, LECUN, Nets, Start, deltas, train
from signalprop.theory import MeanField, blocks, selu_contraction, selu_iterates, selu_jacobian
from signalprop.theory.selu import Region, selu_map

GAIN = Start("gain 3/4", 0.5625)
ORTHOGONAL_1 = Start("orthogonal", 1.0, "orthogonal")
#: probability of either dropout
DROP = 0.1
#: conserved: variance between these at every depth from 8 layers on
LOW, HIGH = 0.75, 1.35
#: a singular value is near one between these
NEAR = (0.5, 2.0)
#: standard errors that a difference in accuracy has to have, to count
ERRORS = 3.0


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
        Measurement("chi_1 at the fixed point", MeanField("selu", 1.0).chi_1, "", 1.0716,
                    "E[selu'(z)^2]: what a layer multiplies delta^2 by"),
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


TRAINED = {
    "SELU, LeCun": (F.selu, LECUN),
    "ReLU, PyTorch's default": (torch.relu, DEFAULT),
    "ReLU, He": (torch.relu, HE),
    "SELU, PyTorch's default": (F.selu, DEFAULT),
}
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def accuracies(name: str, depth: int, split: Split, copies: int, steps: int, seed: int) -> Tensor:
    """Train nets of 64 units with Adam; test accuracies, (copies,)."""
    x, y, x_test, y_test = split
    phi, start = TRAINED[name]
    sizes = [x.shape[1]] + [64] * depth + [int(y.max()) + 1]
    nets = Nets(sizes, phi, start, copies, torch.float32)
    train(nets, torch.optim.Adam(nets.parameters(), lr=1e-3), x, y, steps, seed)
    return nets.accuracy(x_test, y_test)


def measure(setup: Setup) -> Measured:
    """Run it."""
    depths = (8, 32, 100) if setup.quick else (8, 32, 100, 300, 1000)
    width, samples, copies, steps = (128, 64, 2, 60) if setup.quick else (256, 128, 5, 400)
    found = digits(3_000)
    setup.at(0.0, "the moment map")
    numbers, series = moment_map()
    x = found.x[:samples]
    x = (x - x.mean()) / x.std()
    rows: list[tuple[str | float | int, ...]] = []
    for k, way in enumerate((*RIGHT, *WRONG)):
        setup.at(0.05 + 0.04 * k, f"{way.name}: {depths[-1]} layers")
        means, variances = through(way, x, depths[-1], width)
        settled = way.expected(width)
        late = variances[7:]
        listed = (
            ("mean", means[-1], 0.0 if way in RIGHT else None),
            ("variance", variances[-1], settled),
            ("lowest variance", min(late), None),
            ("highest variance", max(late), None),
        )
        numbers += [
            Measurement(f"{way.name}: {what}", value, "", expected, "from 8 layers on", tabled=True)
            for what, value, expected in listed
        ]
        rows.append((way.name, *(variances[d - 1] for d in depths), settled, means[-1]))
        if way.scale == 1.0:
            xs = [d for d in range(1, depths[-1] + 1) if d < 100 or d % 10 == 0]
            ys = tuple(variances[d - 1] for d in xs)
            series.append(
                Series("Variance of the activations of real nets", way.name,
                       tuple(map(float, xs)), ys, "layer", "variance", log_y=True)
            )  # fmt: skip
    activations = Table(f"Activations, width {width}: variance over depth",
                        ("net", *(f"layer {d}" for d in depths), "theory", "mean at the end"),
                        tuple(rows))  # fmt: skip

    rows = []
    for start in (LECUN, DEFAULT, GAIN, ORTHOGONAL_1):
        setup.at(0.4, f"{start.name}: delta over 100 layers")
        nets = Nets([found.pixels] + [width] * 100 + [10], F.selu, start, 4)
        logs = deltas(nets, found.x_test[:16], found.y_test[:16]).log().mean((1, 2))
        with torch.no_grad():
            first = float(nets.layers(x)[1][0].square().mean())
        bias = start.bias_variance(width)
        theory = blocks.plain("selu", start.variance, bias, blocks=99, start=first)
        decay = float(logs[0] - logs[-1])
        at = f"delta, {start.name}"
        numbers += [
            Measurement(f"{at}: factor per layer", math.exp(decay / 99), "",
                        math.exp(theory.rate), "geometric mean over 100 layers", tabled=True),
            Measurement(f"{at}: over 100 layers", math.exp(decay), "", theory.ratio, "",
                        tabled=True),
        ]  # fmt: skip
        rows.append((start.name, math.exp(decay / 99), math.exp(theory.rate), math.exp(decay),
                     theory.ratio))  # fmt: skip
        if start in (LECUN, DEFAULT, GAIN):
            expected = [float(theory.rates[i:].sum()) for i in range(100)]
            for what, y in (("measured", (logs - logs[-1]).tolist()), ("theory", expected)):
                series.append(
                    Series("The error signal of SELU nets, from the top layer down",
                           f"{start.name}, {what}", tuple(float(i + 1) for i in range(100)),
                           tuple(y), "layer i", "ln |delta^i| / |delta^T|, nats")
                )  # fmt: skip
    gradients = Table(f"Delta over 100 layers of {width}",
                      ("net", "factor", "theory", "over 100", "theory "), tuple(rows))  # fmt: skip

    rows = []
    for start in (LECUN, ORTHOGONAL_1):
        for depth in (2, 8, 32):
            setup.at(0.5, f"{start.name}: singular values over {depth} layers")
            log = singular_values(start, depth, found)
            near = float(((log > math.log(NEAR[0])) & (log < math.log(NEAR[1]))).double().mean())
            mean_square = float((2 * log).exp().mean())
            per_layer = mean_square ** (1 / (2 * (depth - 1)))
            low, middle, high = (float(v) for v in log[:, [-1, 32, 0]].mean(0).exp())
            at = f"singular values, {start.name}, {depth} layers"
            numbers += [
                Measurement(f"{at}: {what}", value, "", expected, "", tabled=True)
                for what, value, expected in (
                    ("near one", near, None), ("largest", high, None), ("median", middle, None),
                    ("smallest", low, None), ("rms per layer", per_layer, math.sqrt(1.0716)),
                )
            ]  # fmt: skip
            rows.append((start.name, depth, high, middle, low, near, per_layer))
    values = Table("Singular values from activation 1 to activation T, width 64",
                   ("weights", "T", "largest", "median", "smallest", "share in 1/2..2",
                    "rms per layer"), tuple(rows))  # fmt: skip

    rows = []
    image: Split = found.x, found.y, found.x_test, found.y_test
    tumours = breast_cancer()
    tasks = {"digits, 8 layers": (8, image), "digits, 32 layers": (32, image),
             "breast cancer, 8 layers": (8, tumours)}  # fmt: skip
    nets_trained = list(TRAINED)[: 3 if setup.quick else 4]
    for k, (task, (depth, split)) in enumerate(tasks.items()):
        reached: dict[str, Tensor] = {}
        for name in nets_trained:
            setup.at(0.6 + 0.13 * k, f"training: {task}, {name}")
            reached[name] = accuracies(name, depth, split, copies, steps, setup.seed)
        for name, accuracy in reached.items():
            gain = reached["SELU, LeCun"] - accuracy
            error = float(gain.std() / math.sqrt(copies))
            spread = float(accuracy.std())
            numbers += [
                Measurement(f"{task}, {name}: {what}", value, "", None, "", tabled=True)
                for what, value in (
                    ("accuracy", float(accuracy.mean())), ("spread", spread),
                    ("SELU ahead by", float(gain.mean())), ("standard error", error),
                )
            ]  # fmt: skip
            ahead = "" if name == "SELU, LeCun" else f"{float(gain.mean()):+.3f} ± {error:.3f}"
            rows.append((task, name, f"{float(accuracy.mean()):.3f} ± {spread:.3f}", ahead))
    trained = Table(
        f"Training: {steps} updates of Adam, {copies} seeds (± standard deviation; of the "
        "difference its standard error)",
        ("task", "net", "test accuracy", "SELU, LeCun, ahead by"),
        tuple(rows),
    )
    data = (f"{found.name} and scikit-learn's breast cancer ({len(tumours[0])} training, "
            f"{len(tumours[2])} test samples of {tumours[0].shape[1]} features)")  # fmt: skip
    settings = {
        "depths": depths, "width": width, "samples": samples, "dropout": DROP, "seeds": copies,
        "updates": steps, "trained": "64 units, Adam, lr 0.001",
    }  # fmt: skip
    tables = (activations, gradients, values, trained)
    return Measured(tuple(numbers), data, settings, tuple(series), tables)


def conserved(v: Values, way: Way) -> bool:
    """Whether mean and variance stay at 0 and 1 from 8 layers on."""
    low, high = v[f"{way.name}: lowest variance"], v[f"{way.name}: highest variance"]
    return low >= LOW and high <= HIGH and abs(v[f"{way.name}: mean"]) <= 0.1


def judge_training(v: Values) -> Claim:
    """Whether deep SELU nets learn better than ReLU nets."""
    tasks = ("digits, 8 layers", "digits, 32 layers", "breast cancer, 8 layers")
    better: list[str] = []
    told: list[str] = []
    for task in tasks:
        parts: list[str] = []
        for name in ("ReLU, PyTorch's default", "ReLU, He"):
            gain, error = v[f"{task}, {name}: SELU ahead by"], v[f"{task}, {name}: standard error"]
            parts.append(f"{gain:+.1%} ± {error:.1%} against {name}")
            if gain > ERRORS * error:
                better.append(f"{task} against {name}")
        told.append(f"{task}: {v[f'{task}, SELU, LeCun: accuracy']:.1%}, {', '.join(parts)}")
    every = len(better) == 2 * len(tasks)
    verdict: Verdict = "holds" if every else "holds in part" if better else (
        "does not hold as printed")  # fmt: skip
    return Claim(
        "deep self-normalizing nets learn where others do not",
        verdict,
        f"Accuracy of SELU: {'; '.join(told)}.",
        ""
        if every
        else f"SELU is ahead by {ERRORS:.0f} standard errors: "
        f"{', '.join(better) or 'nowhere'}; elsewhere not.",
    )


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    norm, largest = v["norm of the map's Jacobian at (0, 1)"], v["largest norm over Omega"]
    fixed = max(abs(v["fixed point: mean"]), abs(v["fixed point: variance"] - 1)) <= 1e-9
    pulls = fixed and norm < 1 and largest < 1 and v["Omega is mapped into itself"] == 1
    right, wrong = [conserved(v, w) for w in RIGHT], [conserved(v, w) for w in WRONG]
    lowest = min(v[f"{w.name}: lowest variance"] for w in RIGHT)
    highest = max(v[f"{w.name}: highest variance"] for w in RIGHT)
    at = "delta, LeCun normal"
    factor, over = v[f"{at}: factor per layer"], v[f"{at}: over 100 layers"]
    deep = "singular values, LeCun normal, 32 layers"
    near, chi = v[f"{deep}: near one"], v["chi_1 at the fixed point"]
    turned = "singular values, orthogonal, 32 layers"
    stay = near >= 0.9 and over < 2
    return (
        Claim(
            "(mean, variance) = (0, 1) is a stable fixed point of the moment map",
            "holds" if pulls else "does not hold as printed",
            f"The map leaves (0, 1) where it is, its Jacobian has norm {norm:.4f} there and at "
            f"most {largest:.3f} over the region of theorem 1, which it maps into itself. "
            "(The theorem speaks of single units whose weights have nearly sum 0 and sum of "
            f"squares 1: {v['units that theorem 1 speaks of']:.0%} of those with LeCun's weights.)",
        ),
        Claim(
            "real nets conserve mean 0 and variance 1: LeCun normal weights, AlphaDropout",
            "holds" if all(right) else "holds in part" if any(right) else
            "does not hold as printed",
            f"From 8 layers down to the deepest the variance stays between {lowest:.2f} and "
            f"{highest:.2f}, also with AlphaDropout and from inputs twice and half as large.",
            "" if all(right) else "Not in all of these nets: see the table.",
        ),
        Claim(
            "also with the initialisations that PyTorch has at hand, and with plain Dropout",
            "holds" if all(wrong) else "holds in part" if any(wrong) else
            "does not hold as printed",
            "Variance at the end: "
            + ", ".join(f"{v[f'{w.name}: variance']:.2g} ({w.name})" for w in WRONG) + ".",
            "" if all(wrong) else "It takes n_in Var(W) = 1 and AlphaDropout; "
            "torch.nn.init.calculate_gain('selu') = 3/4 is not that gain.",
        ),
        Claim(
            "so singular values stay near one",
            "holds" if stay else "does not hold as printed",
            f"At the fixed point chi_1 = {chi:.4f}, so that theory has delta grow by "
            f"{math.sqrt(chi):.4f} per layer and {chi**49.5:.0f} times over 100 layers while the "
            f"activations are conserved; measured: {factor:.4f} and {over:.0f} (the mean "
            f"of logarithms, at finite width). Single singular values spread: over 32 layers "
            f"from {v[f'{deep}: smallest']:.0e} to {v[f'{deep}: largest']:.0f} with a median of "
            f"{v[f'{deep}: median']:.0e}, {near:.0%} of them between 1/2 and 2; with orthogonal "
            f"weights {v[f'{turned}: near one']:.0%} (median {v[f'{turned}: median']:.2f}).",
            "" if stay else "The claim stops at the activations. Of the singular values only the "
            "mean square per layer is near one, chi_1 = 1.0716: delta does not vanish, and grows "
            "by sqrt(chi_1) = 1.035 per layer.",
        ),
        judge_training(v),
    )  # fmt: skip


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
