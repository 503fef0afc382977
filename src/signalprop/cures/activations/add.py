"""The cure of a network that has no activations."""

from __future__ import annotations

from typing import Any

from torch import nn

from signalprop.capture import observe
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.followed.watching import follow
from signalprop.cures.structure.flow import flow
from signalprop.cures.structure.hooked import Behind, attach
from signalprop.cures.surgery import copied
from signalprop.cures.weights.redraw import normal, redraw
from signalprop.diagnosis.program.linear import linear_chain


@cure("add-activations", treats=("SP215",), changes="model with data")
def add_activations(model: nn.Module, data: Any, *, inplace: bool = False) -> nn.Module:
    """ReLU between the layers of a network that is linear as a whole, and He's weights.

    Names stay: the activation is a submodule `activation` of its layer, applied by a forward hook.

    Args:
        model: the network.
        data: a batch, as for `diagnose`; one pass shows its layers.
        inplace: change the model itself instead of a copy.

    Returns:
        The network.

    Raises:
        DoesNotApply: it is not linear, has a single layer, or is a factorisation of a matrix.
        SignalpropError: the model cannot be run on the batch.
    """
    root = model if inplace else copied(model)
    inner = observe.unwrapped(root)
    layers = linear_chain(observe.trace(inner, data, flow(inner, data).loss))
    if not layers:
        raise DoesNotApply("there is more in it than two or more linear layers in a row")
    modules = dict(inner.named_modules())
    paths = [site.module for site in layers[:-1]]
    if any(any(True for _ in modules[path].children()) for path in paths):
        raise DoesNotApply("its layers are functions in forward(); put activations between them")
    # an activation takes half of the squares, and none follows the last layer
    redraw(inner, follow(inner, data), lambda layer: normal(2**0.5 if layer.path in paths else 1.0))
    for path in dict.fromkeys(paths):
        attach(modules[path], "activation", nn.ReLU(), Behind, inner)
    return root
