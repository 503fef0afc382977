"""The three networks whose cost is measured, and a deep one for scaling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, Tensor], Callable[..., Tensor], torch.optim.Optimizer]


def mlp(depth: int = 20, width: int = 256, batch: int = 128) -> Built:
    """A ReLU network with He initialisation."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    return _with_batch(model, torch.randn(batch, width))


class Block(nn.Module):
    """A post-activation residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the input."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet20(batch: int = 32) -> Built:
    """The CIFAR network of He et al. 2015 with 20 layers."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [
        Block(before if i == 0 else after, after, stride if i == 0 else 1)
        for before, after, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        for i in range(3)
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return _with_batch(nn.Sequential(*stem, *blocks, *head), torch.randn(batch, 3, 32, 32))


class Classifier(nn.Module):
    """Six pre-norm encoder layers and a head on the mean token."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, average, classify."""
        return self.head(self.encoder(x).mean(1))


def transformer(batch: int = 16, tokens: int = 64, width: int = 128) -> Built:
    """A 6-layer transformer encoder."""
    return _with_batch(Classifier(width, 6), torch.randn(batch, tokens, width))


def _with_batch(model: nn.Module, x: Tensor) -> Built:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return model, (x, torch.randint(10, (len(x),))), F.cross_entropy, optimizer


NETWORKS = {"mlp-20x256": mlp, "resnet-20": resnet20, "transformer-6": transformer}
