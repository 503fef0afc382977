"""Networks, batches and loops that processes and a single process run alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.watching.watch import watch

STEPS = 4
#: of the global batch
BATCH = 8
TOKENS = 6


class Listener:
    """Keeps every sample."""

    def __init__(self) -> None:
        self.samples: list[Any] = []

    def sample(self, sample: Any) -> None:
        self.samples.append(sample)

    def scalars(self, step: int, values: Any) -> None:
        pass

    def alarm(self, alarm: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Plain(nn.Module):
    """Sizes that no number of ranks divides, layers with fewer rows than ranks, units that die."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 3)
        )
        with torch.no_grad():
            first, second = self.layers[0], self.layers[2]
            first.bias[0] = -100.0  # dead for all
            first.weight[1:3] = 0.0  # these live by the sign of one feature only
            first.weight[1, 0], first.weight[2, 0] = 1.0, -1.0
            first.bias[1:3] = 0.0
            second.weight[:2] *= 200.0
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


class Block(nn.Module):
    """Attention and a feed-forward layer, in parts that tensor parallelism knows."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.size = width // heads
        self.before = nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.between = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 20), nn.Linear(20, width)
        with torch.no_grad():
            self.up.bias[:3] = -50.0
            self.q.weight *= 3.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (
            f(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(-2))
        return x + self.down(F.relu(self.up(self.between(x))))


class Former(nn.Module):
    """A small transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 16)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def make(kind: type[nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same weights everywhere."""
    torch.manual_seed(0)
    return kind().to(dtype)


def batches(
    kind: type[nn.Module], dtype: torch.dtype = torch.float64, steps: int = STEPS
) -> list[tuple[Tensor, Tensor]]:
    """Global batches; the first half has a feature above zero, the second below."""
    made = torch.Generator().manual_seed(1)
    shape = (BATCH,) if kind is Plain else (4, TOKENS)
    found = []
    for _ in range(steps):
        x = torch.randn(*shape, 6, generator=made, dtype=torch.float64)
        half = x.shape[0] // 2
        x[:half, ..., 0], x[half:, ..., 0] = x[:half, ..., 0].abs(), -x[half:, ..., 0].abs()
        y = torch.randn(*shape, 3, generator=made, dtype=torch.float64)
        found.append((x.to(dtype), y.to(dtype)))
    return found


def parts_of(batch: tuple[Tensor, Tensor], rank: int, world: int) -> tuple[Tensor, Tensor]:
    """A rank's samples."""
    x, y = batch
    size = x.shape[0] // world
    return x[rank * size : (rank + 1) * size], y[rank * size : (rank + 1) * size]


def train(
    model: nn.Module,
    data: list[tuple[Tensor, Tensor]],
    *,
    share: tuple[int, int] = (0, 1),
    watched: bool = True,
    around: Callable[[Any], None] | None = None,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """A training loop.

    Returns:
        Samples as plain dictionaries, and the losses.
    """
    # Adam makes large what is zero but for rounding: the gradient of the keys' biases
    if any(name.endswith("k.bias") for name, _ in model.named_parameters()):
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-1, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    listener = Listener()
    losses = []

    def loop(run: Any) -> None:
        for batch in data:
            x, y = parts_of(batch, *share)
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if run is not None:
                run.log(loss=loss)
                if around is not None:
                    around(run)

    if not watched:
        loop(None)
        return [], losses
    options = {"every": 2, "to": None} | options
    with watch(model, optimizer, listeners=[listener], **options) as run:
        loop(run)
    assert run.failed is None, run.failed
    return [plain(sample) for sample in listener.samples], losses


def plain(sample: Any) -> dict[str, Any]:
    """A sample by the names of its sites."""
    names = [site.name for site in sample.sites]
    return {
        "step": sample.step,
        "norm": float(sample.scalars.get("gradient_norm", np.nan)),
        "values": {
            name: {n: float(v) for n, v in zip(names, values, strict=False) if not np.isnan(v)}
            for name, values in sample.values.items()
        },
    }
