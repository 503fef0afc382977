"""Healthy networks under torch's own machinery: wrappers, precision, recomputation, compilation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.cases.base import Built, adam, adamw, classes, collect, features, healthy, sgd
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 32


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )


def task(model: nn.Module) -> Built:
    x = features(32, WIDTH)
    return model, (x, classes(x, 5)), F.cross_entropy


@healthy("data-parallel", sgd(0.05))
def data_parallel() -> Built:
    model = nn.DataParallel(net()).cpu()
    model.device_ids = []  # stay on the CPU where there is a GPU
    return task(model)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)
            )
            for _ in range(3)
        )
        self.reentrant = reentrant

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


@healthy("checkpoint", adamw(2e-3), note="each block's forward pass runs twice")
def checkpointed() -> Built:
    return task(Checkpointed(reentrant=False))


@healthy("checkpoint-reentrant", adamw(2e-3), note="refuses torch.autograd.grad by itself")
def checkpointed_reentrant() -> Built:
    return task(Checkpointed(reentrant=True))


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


@healthy("autocast-bf16", adam(2e-3))
def autocast() -> Built:
    return task(Autocast())


@healthy("bf16", sgd(0.05))
def bf16() -> Built:
    model, (x, y), loss = task(net().to(torch.bfloat16))
    return model, (x.bfloat16(), y), loss


@healthy("float64", sgd(0.05))
def float64() -> Built:
    model, (x, y), loss = task(net().double())
    return model, (x.double(), y), loss


@healthy("compiled", sgd(0.05), note="a whole OptimizedModule")
def compiled() -> Built:
    return task(torch.compile(net(), backend="eager"))


@healthy("compiled-aot", adam(3e-3), note="autograd's graph is one node")
def compiled_aot() -> Built:
    return task(torch.compile(net(), backend="aot_eager"))


@healthy("compiled-in-place", sgd(0.05), note="model.compile() keeps the class")
def compiled_in_place() -> Built:
    model = net()
    model.compile(backend="eager")
    return task(model)


class CompiledPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.compile(
            nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 64)), backend="eager"
        )
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


@healthy("compiled-part", sgd(0.05))
def compiled_part() -> Built:
    return task(CompiledPart())


CASES = collect(globals())
