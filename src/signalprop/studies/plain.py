"""Plain nets, several copies side by side: what the studies of activations have in common.

a^i = phi(a^{i-1} W^i + b^i), with a linear layer on top. All copies of a net are one stack of
matrices, so that many seeds cost little more than one; no copy sees anything of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 64


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
