"""A small training, with and without listeners."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from signalprop.watching.file.schema import RunSite
from signalprop.watching.sample import Alarm, Sample
from signalprop.watching.watch import watch

ALARM = Alarm(
    4, "SP405", "Loss spike", "issue", ("layer|1",), 3.0, "loss", 1.0, 2, "It leapt.", ("clip",)
)
SITES = (RunSite("first"), RunSite("block.0.relu"), RunSite("block.1.relu"))


@dataclass
class Trained:
    """What training has led to."""

    losses: list[float] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    random: torch.Tensor | None = None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Trained)
        assert self.random is not None
        assert other.random is not None
        return (
            self.losses == other.losses
            and all(map(torch.equal, self.weights, other.weights))
            and torch.equal(self.random, other.random)
        )


def train(to: Path | None = None, listeners=None, *, steps=12, every=4, each=None) -> Trained:
    """Train; watched if there are listeners."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    run = None
    if listeners is not None:
        run = watch(model, optimizer, every=every, to=to, listeners=listeners)
    out = Trained()
    for step in range(steps):
        x = torch.randn(16, 8)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.losses.append(loss.item())
        if run is not None:
            run.log(loss=loss)
        if each is not None:
            each(step, loss.item())
    if run is not None:
        run.close()
        assert run.failed is None
    out.weights = [p.detach().clone() for p in model.parameters()]
    out.random = torch.get_rng_state()
    return out


def sample(step: int, values, **scalars) -> Sample:
    """One statistic over three sites."""
    return Sample(step, SITES, {"update_ratio": np.asarray(values, float)}, scalars)
