"""Training loops of every kind that must not notice that they are watched."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from signalprop.watching.watch import watch

BATCH, STEPS, EVERY = 32, 7, 2


class Net(nn.Module):
    """A little of all: a residual branch, a normalisation, functional activations, dropout."""

    def __init__(self, checkpointed=None, dropout=0.1):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.norm, self.drop = nn.LayerNorm(32), nn.Dropout(dropout)
        self.checkpointed = checkpointed

    def branch(self, x):
        return F.relu(self.b(self.norm(x)))

    def forward(self, x):
        x = torch.tanh(self.a(x))
        if self.checkpointed is None:
            x = x + self.branch(x)
        else:
            x = x + checkpoint(self.branch, x, use_reentrant=self.checkpointed)
        return self.c(self.drop(x))


@dataclass
class Loop:
    """Everything that one kind of loop needs."""

    model: nn.Module
    call: nn.Module
    optimizers: list
    x: torch.Tensor
    y: torch.Tensor
    scaler: object = None
    ema: nn.Module | None = None


def make(kind):
    torch.manual_seed(0)
    model = Net(
        {"reentrant": True, "checkpoint": False}.get(kind),
        dropout=0.1 if kind in WITH_DROPOUT else 0.0,
    )
    x, y = torch.randn(BATCH, 16), torch.randint(4, (BATCH,))
    call = model
    if kind == "compiled-wrap":
        call = torch.compile(model)
    elif kind == "compiled-in-place":
        model.compile()
    elif kind == "compiled-part":
        model.b = torch.compile(model.b)
    optimizers = [torch.optim.AdamW(model.parameters(), 1e-2)]
    if kind == "two-optimizers":
        rest = [*model.b.parameters(), *model.c.parameters(), *model.norm.parameters()]
        optimizers = [
            torch.optim.SGD(model.a.parameters(), 0.1, momentum=0.9),
            torch.optim.AdamW(rest, 1e-2),
        ]
    elif kind == "closure":
        optimizers = [torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)]
    elif kind == "fused":
        optimizers = [torch.optim.Adam(model.parameters(), 1e-2, fused=True)]
    scaler = None
    if kind == "scaler":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    ema = torch.optim.swa_utils.AveragedModel(model) if kind == "ema" else None
    return Loop(model, call, optimizers, x, y, scaler, ema)


def one(kind, loop, step):
    """One iteration of the loop; its loss."""
    optimizer = loop.optimizers[0]
    if kind == "closure":

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(loop.call(loop.x), loop.y)
            loss.backward()
            return loss

        return optimizer.step(closure).item()
    if kind == "accumulated":
        loss = 0.0
        for part in range(4):
            rows = slice(8 * part, 8 * part + 8)
            some = F.cross_entropy(loop.call(loop.x[rows]), loop.y[rows]) / 4
            some.backward()
            loss += some.item()
    elif kind in ("autocast", "scaler"):
        with torch.autocast("cpu", dtype=torch.bfloat16 if kind == "autocast" else torch.float16):
            loss = F.cross_entropy(loop.call(loop.x), loop.y)
        if loop.scaler is None:
            loss.backward()
        else:
            loop.scaler.scale(loss * (1e30 if step == 3 else 1)).backward()  # one overflow
        loss = loss.item()
    else:
        loss = F.cross_entropy(loop.call(loop.x), loop.y)
        loss.backward()
        loss = loss.item()
    if kind == "clipped":
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
    if loop.scaler is not None:
        loop.scaler.step(optimizer)
        loop.scaler.update()
    else:
        for each in loop.optimizers:
            each.step()
    for each in loop.optimizers:
        each.zero_grad(set_to_none=kind != "zeroed")
    if loop.ema is not None:
        loop.ema.update_parameters(loop.model)
        copy.deepcopy(loop.model)
    if kind == "evaluated":
        loop.model.eval()
        with torch.no_grad():
            loop.model(loop.x)
        loop.model(loop.x)  # with a graph that nothing comes back through
        loop.model.train()
    if kind == "moved" and step == 2:
        loop.model.double().float()
    return loss


WITH_DROPOUT = ("plain", "accumulated", "clipped", "evaluated", "ema", "closure")
KINDS = (
    "plain", "accumulated", "autocast", "scaler", "checkpoint", "reentrant", "clipped", "zeroed",
    "evaluated", "two-optimizers", "closure", "fused", "ema", "moved",
)  # fmt: skip
COMPILED = ("compiled-wrap", "compiled-after", "compiled-in-place", "compiled-part", "compiled-fn")


def train(kind, watched, to=None, steps=STEPS, every=EVERY, **options):
    """Train; losses, weights and random state, and the watch."""
    loop = make(kind)
    target = loop.call if kind == "compiled-wrap" else loop.model
    context = contextlib.nullcontext()
    if watched:
        optimizers = loop.optimizers if len(loop.optimizers) > 1 else loop.optimizers[0]
        context = watch(target, optimizers, every=every, to=to, scaler=loop.scaler, **options)
    losses = []
    with context as run:
        if kind == "compiled-after":
            loop.call = torch.compile(loop.model)
        elif kind == "compiled-fn":
            model = loop.model
            loop.call = torch.compile(lambda x: model(x))
        for step in range(steps):
            losses.append(one(kind, loop, step))
            if run is not None:
                run.log(loss=losses[-1])
    weights = [p.detach().clone() for p in loop.model.parameters()]
    return losses, weights, torch.get_rng_state(), run
