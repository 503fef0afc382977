"""Watch a training go wrong twice: a block dies at step 500, and at step 1100 the inputs leap.

python examples/watched.py           # some ten seconds; writes run.sp
signalprop view run.sp               # or: signalprop report run.sp --html run.html
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import signalprop as sp


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the input."""
        return x + self.down(F.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """Eight residual blocks."""

    def __init__(self, width: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def train(to: str, steps: int = 1500) -> tuple[sp.Alarm, ...]:
    """Train on handwritten digits.

    Args:
        to: the run file.
        steps: updates.

    Returns:
        What was told.
    """
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with sp.watch(model, optimizer, every=10, to=to, mode="overwrite") as run:
        for step in range(steps):
            rows = torch.randint(len(x), (64,))
            leap = 30 if 1100 <= step < 1112 else 1
            loss = F.cross_entropy(model(leap * x[rows]), y[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
            if step == 500:
                nn.init.constant_(model.get_parameter("blocks.3.up.bias"), -10)
    return run.alarms


if __name__ == "__main__":
    train(sys.argv[1] if len(sys.argv) > 1 else "run.sp")
