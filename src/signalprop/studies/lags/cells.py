"""The cells that are compared, and the net around one: a recurrent layer and a linear one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from signalprop.capture.time import Horizon
from signalprop.nets.recurrent import LSTM, identity_rnn_, orthogonal_recurrent_
from signalprop.recurrent.horizon.measure import horizon
from signalprop.studies.tasks import Sequences, Task

#: inputs from which on symbols are looked up instead of multiplied as vectors
WIDE = 200
#: sequences that the horizon is measured on
SEEN = 8


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent layer.

    Attributes:
        name: as shown.
        units: as many as make about 4,096 recurrent weights.
        rate: learning rate of Adam that suited it, on the adding problem and temporal order.
        make: inputs, units, and the lag of the task (which chrono is told) -> the layer.
    """

    name: str
    units: int
    rate: float
    make: Callable[[int, int, int], nn.RNNBase]


def _orthogonal(inputs: int, units: int, lag: int) -> nn.RNNBase:
    return orthogonal_recurrent_(nn.RNN(inputs, units, batch_first=True), zero_bias=True)


def _identity(inputs: int, units: int, lag: int) -> nn.RNNBase:
    layer = nn.RNN(inputs, units, batch_first=True, nonlinearity="relu")
    return identity_rnn_(layer, input_std=0.1)


TANH, IRNN, ORTHOGONAL, GRU = "tanh RNN", "IRNN", "orthogonal RNN", "GRU"
OLD, PLAIN, BIAS, CHRONO = "LSTM of 1997", "LSTM", "LSTM, forget bias 1", "LSTM, chrono"

#: those without gates first
CELLS: Mapping[str, Cell] = MappingProxyType({
    cell.name: cell for cell in (
        Cell(TANH, 64, 3e-3, lambda i, n, lag: nn.RNN(i, n, batch_first=True)),
        Cell(IRNN, 64, 1e-3, _identity),
        Cell(ORTHOGONAL, 64, 5e-4, _orthogonal),
        Cell(GRU, 37, 5e-3, lambda i, n, lag: nn.GRU(i, n, batch_first=True)),
        Cell(OLD, 37, 1e-2, lambda i, n, lag: LSTM(i, n, batch_first=True, cell="1997",
                                                   truncated=True)),
        Cell(PLAIN, 32, 5e-3, lambda i, n, lag: nn.LSTM(i, n, batch_first=True)),
        Cell(BIAS, 32, 5e-3, lambda i, n, lag: LSTM(i, n, batch_first=True, forget_bias=1.0)),
        Cell(CHRONO, 32, 5e-3, lambda i, n, lag: LSTM(i, n, batch_first=True,
                                                      chrono=max(3, lag))),
    )
})  # fmt: skip
#: the kinds of LSTM
KINDS = (OLD, PLAIN, BIAS, CHRONO)


class Net(nn.Module):
    """A recurrent layer of a task's inputs, and a linear one of its outputs.

    Where symbols are many, W_ih is a table that is looked up, which is the same net: the layer then
    reads W_ih x through weights that are the identity and stay so. Outputs that are values are
    scaled to mean and deviation of the targets.

    Args:
        task: what it is for.
        cell: the kind of layer.
        scale: mean and standard deviation of the targets.
    """

    def __init__(
        self, task: Task, cell: Cell, scale: tuple[float, float] = (0.0, 1.0), *, table: bool
    ) -> None:
        super().__init__()
        self.task, self.scale = task, scale
        self.layer = cell.make(task.n_in, cell.units, task.lag)
        self.table: nn.Embedding | None = None
        if table:
            first = self.layer.weight_ih_l0
            assert isinstance(first, Tensor)
            rows = len(first)
            self.table = nn.Embedding.from_pretrained(first.detach().T.contiguous(), freeze=False)
            hidden = {k: v for k, v in self.layer.state_dict().items() if k != "weight_ih_l0"}
            self.layer = cell.make(rows, cell.units, task.lag)
            self.layer.load_state_dict(hidden | {"weight_ih_l0": torch.eye(rows)})
            entering = self.layer.weight_ih_l0
            assert isinstance(entering, Tensor)
            entering.requires_grad_(False)
        self.head = nn.Linear(cell.units, task.n_out)

    def entering(self, batch: Sequences) -> Tensor:
        """What the layer reads, (B, T, features)."""
        return batch.inputs if self.table is None else self.table(batch.elements.clamp(min=0))

    def outputs(self, batch: Sequences) -> Tensor:
        """Before the output units' nonlinearity; at the end only, where the task wants no more."""
        h = self.layer(self.entering(batch))[0]
        if self.task.target == "last step":
            h = batch.at_end(h)
        mean, deviation = self.scale
        return mean + deviation * self.head(h)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs at the last step of what the layer reads."""
        return self.head(self.layer(x)[0][:, -1])


def made(
    task: Task, cell: Cell, generator: torch.Generator, seed: int, *, table: bool | None = None
) -> Net:
    """A net of that seed; uses torch's own random numbers up."""
    torch.default_generator.manual_seed(seed)
    scale = (0.0, 1.0)
    if task.loss == "mse":
        targets = task.sample(1_000, generator).targets
        scale = float(targets.mean()), float(targets.std())
    if table is None:
        table = task.n_in >= WIDE
    return Net(task, cell, scale, table=table)


def reach(net: Net, generator: torch.Generator, seed: int) -> Horizon:
    """The horizon of the layer, on sequences of the task cut to the shortest of them."""
    batch = net.task.sample(SEEN, generator)
    with torch.no_grad():
        x = net.entering(batch)[:, : int(batch.lengths.min())]
    return horizon(net, x, gains=False, batch_dim=0, seed=seed).curves[0]


def credit(seen: Horizon, lag: int) -> float:
    """Ln of the credit at a lag, over that at lag 1, which no open output gate has a part in."""
    lags = dict(zip(seen.lags, seen.credit, strict=True))
    there = lags.get(min(lag, seen.lags[-1]), 0.0)
    base = lags.get(1, 1.0)
    if lag > seen.lags[-1] and seen.credit[-1] < 1e-290:
        there = 0.0  # the curve has left the range of floats
    return math.log(there / base) if there > 0 and base > 0 else -math.inf
