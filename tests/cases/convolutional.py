"""Convolutional networks, and the mixer that took their place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.cases.base import Built, adam, adamw, classes, collect, healthy, images, sgd
from torch import nn


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """Residual block A: activation after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x if self.shortcut is None else self.shortcut(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class PreActivationBlock(nn.Module):
    """Residual block B: a clean path from addition to addition."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3(outputs, outputs)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        identity = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(F.relu(self.bn2(out))) + identity


class ResNet(nn.Module):
    def __init__(self, block, widths: tuple[int, ...], blocks: int, pre: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3(3, widths[0])
        self.bn1 = nn.Identity() if pre else nn.BatchNorm2d(widths[0])
        self.first = nn.Identity() if pre else nn.ReLU(inplace=True)
        stages, inputs = [], widths[0]
        for number, width in enumerate(widths):
            stage = []
            for index in range(blocks):
                stage.append(block(inputs, width, 2 if number > 0 and index == 0 else 1))
                inputs = width
            stages.append(nn.Sequential(*stage))
        self.layers = nn.ModuleList(stages)
        self.last = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if pre else nn.Identity()
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x):
        x = self.first(self.bn1(self.conv1(x)))
        for layer in self.layers:
            x = layer(x)
        return self.fc(self.last(x).mean((2, 3)))


def task(model: nn.Module, n: int = 16, size: int = 16) -> Built:
    x = images(n, 3, size)
    return model, (x, classes(F.adaptive_avg_pool2d(x, 4), 10)), F.cross_entropy


@healthy("resnet-a", sgd(0.05))
def resnet_a() -> Built:
    return task(ResNet(BasicBlock, (16, 32), 2))


@healthy("resnet-b", sgd(0.05))
def resnet_b() -> Built:
    return task(ResNet(PreActivationBlock, (16, 32), 2, pre=True))


@healthy("resnet-20", sgd(0.05), note="the CIFAR network at its real size")
def resnet_20() -> Built:
    return task(ResNet(BasicBlock, (16, 32, 64), 3), n=8, size=32)


@healthy("convnet", adam(2e-3))
def convnet() -> Built:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return task(model)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), conv3(inputs, growth)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


@healthy("densenet", sgd(0.05), note="everything is passed on: the spine is short")
def densenet() -> Built:
    layers: list[nn.Module] = [conv3(3, 16)]
    width = 16
    for stage in range(2):
        for _ in range(4):
            layers.append(DenseLayer(width, 8))
            width += 8
        if stage == 0:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1)]
            layers.append(nn.AvgPool2d(2))
            width //= 2
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return task(nn.Sequential(*layers, nn.Linear(width, 10)))


def twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        conv3(inputs, outputs),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        conv3(outputs, outputs),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = twice(3, 8), twice(8, 16), twice(16, 32)
        self.up2, self.up1 = twice(32 + 16, 16), twice(16 + 8, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = self.up2(torch.cat([x, second], 1))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.head(self.up1(torch.cat([x, first], 1)))


@healthy("unet", adam(3e-3), note="one label per pixel")
def unet() -> Built:
    x = images(8, 3, 16)
    y = (F.avg_pool2d(x, 3, 1, 1).mean(1) * 2).add(2).long().clamp(0, 3)
    return UNet(), (x, y), nn.CrossEntropyLoss()


class MixerBlock(nn.Module):
    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(patches, 32), nn.GELU(), nn.Linear(32, patches))
        self.within = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x):
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


@healthy("mlp-mixer", adamw(2e-3))
def mixer() -> Built:
    return task(Mixer())


CASES = collect(globals())
