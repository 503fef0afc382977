"""A small sick network, its data, and cures of which one helps."""

import torch
from torch import nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.surgery import operate
from signalprop.cures.training import Recipe

LOSS = nn.functional.cross_entropy


def net(depth=8, width=16, seed=0):
    """Sigmoid layers through which hardly anything comes back."""
    torch.manual_seed(seed)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def table(samples=1000, seed=0):
    """Three classes that one layer can tell apart."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 16, generator=draw)
    return x, x[:, :3].argmax(1)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


@cure("helps", treats=("SP101",))
def helps(model, *, inplace=False):
    """ReLU with He's weights."""

    def change(name, module):
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
        return nn.ReLU() if isinstance(module, nn.Sigmoid) else None

    return operate(model, change, inplace=inplace)


@cure("harms", treats=("SP101",))
def harms(model, *, inplace=False):
    """All weights zero."""
    model = operate(model, lambda name, module: None, inplace=inplace)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return model


@cure("faster", treats=("SP103",), changes="settings")
def faster(training, data):
    """Three times the rate."""
    recipe = training.optimizer.scaled(3)
    return training.changed(f"optimizer = {recipe.line}", optimizer=recipe)


@cure("diverges", treats=("SP101",), changes="settings")
def diverges(training, data):
    """A rate that nothing bears."""
    return training.changed("lr=inf", optimizer=training.optimizer.scaled(float("inf")))


@cure("never", treats=("SP101",))
def never(model, *, inplace=False):
    """Does not apply."""
    raise DoesNotApply("there is nothing to change")


@cure("raises", treats=("SP101",))
def breaks(model, *, inplace=False):
    """Leaves a network that cannot run."""
    return nn.Sequential(nn.Linear(3, 3))


@cure("slow", treats=("SP210",), changes="training")
def slow(training, data):
    """A rate that all bear, with ReLU."""
    model = helps(training.model, inplace=True)
    recipe = Recipe(adam).explicit(model)
    return training.changed(f"optimizer = {recipe.line}", model=model, optimizer=recipe)
