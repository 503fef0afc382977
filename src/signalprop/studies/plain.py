"""Plain nets, several copies side by side: what the studies of activations have in common.

a^i = phi(a^{i-1} W^i + b^i), with a linear layer on top. All copies of a net are one stack of
matrices, so that many seeds cost little more than one; no copy sees anything of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.studies.data import Digits
from signalprop.studies.frame import Claim, Measurement, Series, Setup, Table, Values, Verdict
from signalprop.theory import blocks

BATCH = 64
#: delta is kept where a layer multiplies it by 0.95 to 1.05 (narrow nets scatter by half of that)
KEPT = 0.05
#: standard errors that a difference in accuracy has to have, to count
ERRORS = 3.0

#: training inputs and classes, test inputs and classes
Split = tuple[Tensor, Tensor, Tensor, Tensor]
#: what a part of a study hands back
Found = tuple[list[Measurement], list[Series], Table]


@dataclass(frozen=True)
class Start:
    """An initialisation.

    Attributes:
        name: as shown.
        variance: n_in Var(W) of a square layer.
        kind: `normal`; `uniform`, what nn.Linear draws for weights and biases; `orthogonal`.
        glorot: whether the variance is over the mean of n_in and n_out instead of n_in.
    """

    name: str
    variance: float
    kind: str = "normal"
    glorot: bool = False

    def draw(self, copies: int, n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
        """Weights (copies, n_in, n_out) and biases (copies, 1, n_out), float64."""
        W = torch.empty(copies, n_in, n_out, dtype=torch.float64)
        b = torch.zeros(copies, 1, n_out, dtype=torch.float64)
        fan = (n_in + n_out) / 2 if self.glorot else n_in
        if self.kind == "orthogonal":
            for one in W:
                nn.init.orthogonal_(one, math.sqrt(self.variance))
        elif self.kind == "uniform":
            bound = math.sqrt(3 * self.variance / fan)
            W.uniform_(-bound, bound)
            b.uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in))
        else:
            W.normal_(0.0, math.sqrt(self.variance / fan))
        return W, b

    def bias_variance(self, n_in: int) -> float:
        """Var(b)."""
        return 1 / (3 * n_in) if self.kind == "uniform" else 0.0


DEFAULT = Start("PyTorch's default", 1 / 3, "uniform")
GLOROT = Start("Glorot", 1.0, glorot=True)
LECUN = Start("LeCun normal", 1.0)
HE = Start("He", 2.0)
ORTHOGONAL = Start("orthogonal x sqrt 2", 2.0, "orthogonal")


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


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(x)


class Nets(nn.Module):
    """Copies of a plain net that differ in their random weights only.

    Args:
        sizes: units from the input to the output.
        phi: the activation, or a module for every hidden layer where these have parameters.
        start: how weights and biases are drawn.
        copies: how many nets.
        dtype: of weights and activations.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        phi: Callable[[Tensor], Tensor] | nn.ModuleList,
        start: Start,
        copies: int = 1,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.phi = phi
        self.copies = copies
        drawn = [start.draw(copies, m, n) for m, n in pairwise(sizes)]
        self.W = nn.ParameterList([nn.Parameter(W.to(dtype)) for W, _ in drawn])
        self.b = nn.ParameterList([nn.Parameter(b.to(dtype)) for _, b in drawn])

    def activation(self, i: int) -> Callable[[Tensor], Tensor]:
        """The activation of hidden layer i, counted from 0."""
        return self.phi[i] if isinstance(self.phi, nn.ModuleList) else self.phi

    def layers(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Run the nets.

        Args:
            x: (n, inputs), the same for all copies, or (copies, n, inputs).

        Returns:
            Sums of every layer, the logits last, and activations of the hidden layers; each
            (copies, n, units).
        """
        value = x.to(self.W[0].dtype).expand(self.copies, *x.shape[-2:])
        sums: list[Tensor] = []
        activations: list[Tensor] = []
        for i, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            sums.append(torch.baddbmm(b, value, W))
            if i + 1 < len(self.W):
                value = self.activation(i)(sums[-1])
                activations.append(value)
        return sums, activations

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (copies, n, classes)."""
        return self.layers(x)[0][-1]

    def sequential(self, copy: int = 0) -> nn.Sequential:
        """One copy, with its weights as they are, as ordinary modules."""
        hidden = len(self.W) - 1
        modules: list[nn.Module] = []
        for i, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            linear = nn.Linear(W.shape[1], W.shape[2], dtype=W.dtype)
            with torch.no_grad():
                linear.weight.copy_(W[copy].T)
                linear.bias.copy_(b[copy, 0])
            modules.append(linear)
            if i < hidden:
                modules.append(_Function(self.activation(i)))
        return nn.Sequential(*modules)

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """Share of right answers of every copy, (copies,)."""
        return (self(x).argmax(-1) == y).double().mean(-1)


def deltas(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    """||delta^i|| = ||dL/da^i|| of the hidden layers, (layers, copies, n), L the cross-entropy."""
    sums, activations = nets.layers(x)
    target = y.expand(nets.copies, -1).flatten()
    loss = F.cross_entropy(sums[-1].flatten(0, 1), target, reduction="sum")
    found = torch.autograd.grad(loss, activations)
    return torch.stack([delta.norm(dim=-1) for delta in found])


@dataclass(frozen=True)
class Depth:
    """What a deep net does to delta, geometric mean over images and copies.

    Attributes:
        measured: ln(|delta^i| / |delta^T|), i = 1..T.
        theory: the same from mean-field theory, that is at infinite width.
        alike: mean cosine of the top activations of two images.
    """

    measured: list[float]
    theory: list[float]
    alike: float

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
    # mean cosine over pairs of different images, from the length of the mean direction
    alike = float((samples * unit.square().sum(-1) - 1).mean() / (samples - 1))
    expected = blocks.plain(
        kind.phi,
        kind.start.variance,
        kind.start.bias_variance(nets.W[1].shape[1]),
        blocks=len(a) - 1,
        start=float(a[0].square().mean()),
    )
    theory = [round(float(expected.rates[i:].sum()), 12) for i in range(len(a))]
    return Depth((sizes - sizes[-1]).tolist(), theory, alike)


def beside(
    figure: str, name: str, measured: Sequence[float], theory: Sequence[float]
) -> list[Series]:
    """Delta over depth as curves: measured, and from theory at fewer layers, so that both show."""
    last = len(measured) - 1
    found: list[Series] = []
    for what, values, points in (("measured", measured, 30), ("theory", theory, 8)):
        at = sorted({0, *range(last, -1, -max(1, last // points))})
        found.append(
            Series(figure, f"{name}, {what}", tuple(i + 1.0 for i in at),
                   tuple(values[i] for i in at), "layer i", "ln |delta^i| / |delta^T|, nats")
        )  # fmt: skip
    return found


def train(
    nets: Nets, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int, seed: int
) -> None:
    """Train every copy with cross-entropy on batches of its own.

    The losses are added up over the copies, so that each gets the gradients it would get alone.

    Args:
        nets: the nets.
        optimizer: of their parameters.
        x: training inputs, (n, inputs).
        y: their classes.
        steps: updates.
        seed: of the batches.
    """
    order = torch.Generator().manual_seed(seed)
    x = x.to(nets.W[0].dtype)
    for _ in range(steps):
        pick = torch.randint(len(x), (nets.copies, BATCH), generator=order)
        optimizer.zero_grad()
        logits = nets(x[pick])
        loss = F.cross_entropy(logits.flatten(0, 1), y[pick].flatten()) * nets.copies
        loss.backward()
        optimizer.step()


@torch.no_grad()
def never_on(nets: Nets, x: Tensor) -> Tensor:
    """Units whose sum is above zero for no sample, (copies, hidden layers, units)."""
    return torch.stack([(z.amax(1) <= 0) for z in nets.layers(x)[0][:-1]], 1)


def contest(
    setup: Setup,
    tasks: Mapping[str, tuple[Split, int]],
    kinds: Mapping[str, Kind],
    copies: int,
    steps: int,
) -> Found:
    """Train kinds of nets of 64 units with Adam on the same batches, and compare with the first.

    Args:
        setup: of the study; its seed is that of the batches.
        tasks: name -> the data, and how many hidden layers.
        kinds: name -> activation and initialisation.
        copies: how many nets of each kind.
        steps: updates.

    Returns:
        Accuracy, spread, how far the first kind is ahead, and the standard error of that; no curve;
        the table.
    """
    numbers: list[Measurement] = []
    rows: list[tuple[str | float | int, ...]] = []
    best = next(iter(kinds))
    for k, (task, (split, depth)) in enumerate(tasks.items()):
        setup.at(0.6 + 0.4 * k / len(tasks), f"training: {task}")
        x, y, x_test, y_test = split
        reached: dict[str, Tensor] = {}
        for name, kind in kinds.items():
            sizes = [x.shape[1]] + [64] * depth + [int(y.max()) + 1]
            nets = Nets(sizes, kind.phi, kind.start, copies, torch.float32)
            adam = torch.optim.Adam(nets.parameters(), lr=1e-3)
            train(nets, adam, x, y, steps, setup.seed)
            reached[name] = nets.accuracy(x_test, y_test)
        for name, accuracy in reached.items():
            gain = reached[best] - accuracy
            told = {
                "accuracy": float(accuracy.mean()), "spread": float(accuracy.std()),
                "behind by": float(gain.mean()),
                "standard error": float(gain.std() / math.sqrt(copies)),
            }  # fmt: skip
            numbers += [
                Measurement(f"{task}, {name}: {what}", value, "", None, "", tabled=True)
                for what, value in told.items()
            ]
            ahead = f"{told['behind by']:+.3f} ± {told['standard error']:.3f}"
            rows.append((task, name, f"{told['accuracy']:.3f} ± {told['spread']:.3f}",
                         "" if name == best else ahead))  # fmt: skip
    title = (f"After {steps} updates, {copies} seeds (± standard deviation; of the difference its "
             "standard error)")  # fmt: skip
    columns = ("task", "net", "test accuracy", f"{best} ahead by")
    return numbers, [], Table(title, columns, tuple(rows))


def of_all(found: Sequence[bool]) -> Verdict:
    """The verdict on a claim about several nets: by how many of them keep it."""
    return "holds" if all(found) else "holds in part" if any(found) else "does not hold as printed"


def judge_contest(v: Values, text: str, tasks: Iterable[str], against: Sequence[str]) -> Claim:
    """Whether the first kind of nets of a `contest` is ahead of others in every task."""
    ahead: list[str] = []
    behind: list[str] = []
    told: list[str] = []
    for task in tasks:
        parts: list[str] = []
        for name in against:
            gain, error = (v[f"{task}, {name}: {what}"] for what in ("behind by", "standard error"))
            parts.append(f"{100 * gain:+.1f} ± {100 * error:.1f} ({name})")
            if abs(gain) > ERRORS * error:
                (ahead if gain > 0 else behind).append(f"{name} ({task})")
        told.append(f"{task}: {', '.join(parts)}")
    count = len(told) * len(against)
    level = count - len(ahead) - len(behind)
    return Claim(
        text,
        "holds" if len(ahead) == count else "holds in part" if ahead else
        "does not hold as printed",
        f"Ahead in accuracy, points ± standard error: {'; '.join(told)}.",
        "" if len(ahead) == count else
        f"Ahead by {ERRORS:.0f} standard errors of: {'; '.join(ahead) or 'none'}. "
        f"Behind: {'; '.join(behind) or 'none'}. Not told apart: {level} of {count}.",
    )  # fmt: skip
