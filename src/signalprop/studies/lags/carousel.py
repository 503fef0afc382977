"""Credit over hundreds of steps in the cells themselves, before any training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from signalprop.capture.time import Horizon
from signalprop.nets.recurrent import LSTM
from signalprop.recurrent.horizon.measure import horizon
from signalprop.studies import tasks
from signalprop.studies.lags import cells

#: the cell of 1997 with all of its gradient, beside the truncated one of the paper
WHOLE = "LSTM of 1997, whole gradient"


@dataclass(frozen=True)
class Carried:
    """One cell.

    Attributes:
        steps: the longest lag.
        change: how far credit ever is from that at lag 1, as a share of it.
        rate: nats per step.
        seen: the curve.
    """

    steps: int
    change: float
    rate: float
    seen: Horizon


class _Last(nn.Module):
    """The last output of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, units)."""
        return self.layer(x)[0][:, -1]


def measure(steps: int, seed: int) -> dict[str, Carried]:
    """Credit at all lags of every cell that reads the adding problem, `steps` long.

    Lag 1 is where counting begins: the error that was put on h is then in c or gone. That of the
    cells with all of their gradient is measured over 1,000 steps at most.

    Args:
        steps: length of the sequences.
        seed: of weights and sequences.

    Returns:
        By the name of the cell.
    """
    found: dict[str, Carried] = {}
    for name, cell in {**cells.CELLS, WHOLE: None}.items():
        length = steps if name == cells.OLD else min(steps, 1_000)
        x = tasks.adding(length).sample(4, torch.Generator().manual_seed(seed)).inputs[:, :length]
        torch.default_generator.manual_seed(seed)
        if cell is None:
            layer: nn.Module = LSTM(2, 37, batch_first=True, cell="1997")
        else:
            layer = cell.make(2, cell.units, length)
        one = horizon(_Last(layer), x, gains=False, batch_dim=0, seed=seed).curves[0]
        ratios = [c / one.credit[1] for c in one.credit[1:]]
        found[name] = Carried(one.lags[-1], max(abs(r - 1) for r in ratios), one.rate, one)
    return found
