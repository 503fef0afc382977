"""The first cure of vanishing gradients: layers that learn one by one, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from signalprop.capture import batch as batches
from signalprop.capture import observe
from signalprop.capture.sandbox import generators_kept, random_state
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.followed.following import arguments
from signalprop.cures.surgery import copied
from signalprop.errors import SignalpropError
from signalprop.nets import pretraining

#: steps that each layer learns for, at least, where no epochs are asked for
_STEPS = 300


@cure("pretrain", treats=("SP101",), changes="model with data")
def pretrain(
    model: nn.Module,
    data: Any,
    *,
    method: Literal["autoencoder", "rbm"] = "autoencoder",
    epochs: int | None = None,
    batch_size: int = 100,
    inplace: bool = False,
) -> nn.Module:
    """Layers pre-trained one after the other on the inputs, as autoencoders or Boltzmann machines.

    Hinton, Osindero & Teh 2006 (`rbm`, for sigmoid layers); Bengio et al. 2007, Vincent et al. 2010
    (`autoencoder`, denoising). For networks in which linear layers run one after another; the last
    one is left to the training with labels. The more samples the better: give a loader. A seed is
    drawn from torch's global generator.

    Args:
        model: the network, called with one floating tensor.
        data: a batch, as for `diagnose`, or a loader, all batches of which are learned from;
            targets are not used.
        method: how a layer learns.
        epochs: of each layer; where nothing is said, 10, or as many as make 300 steps.
        batch_size: samples a step.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with pre-trained weights.

    Raises:
        DoesNotApply: it is no such network, or its activations do not fit the method.
        SignalpropError: an option is out of range, or the model cannot be run on the batch.
    """
    if method not in ("autoencoder", "rbm"):
        raise SignalpropError(f'method is "autoencoder" or "rbm", not {method!r}')
    if batch_size < 1 or (epochs is not None and epochs < 1):
        raise SignalpropError("epochs and batch_size are whole numbers above zero")
    observe.check(observe.unwrapped(model))
    root = model if inplace else copied(model)
    inner = observe.unwrapped(root)
    samples = torch.cat(list(_inputs(inner, data)))
    if epochs is None:
        steps = max(1, -(-len(samples) // batch_size))
        epochs = max(10, -(-_STEPS // steps))
    try:
        pretraining.pretrain(
            inner,
            samples,
            method,
            epochs=epochs,
            batch_size=batch_size,
            generator=torch.default_generator,
            inplace=True,
        )
    except (TypeError, ValueError) as error:
        raise DoesNotApply(str(error)) from error
    return root


def _inputs(model: nn.Module, data: Any) -> Iterator[Tensor]:
    """The one tensor that the model is called with, of every batch."""
    with random_state():
        first = batches.first_of(data)
    for batch in [data] if first is data else _all(data):
        args, kwargs = arguments(model, batch)
        values = [*args, *kwargs.values()]
        if len(values) != 1 or not isinstance(values[0], Tensor):
            raise DoesNotApply("pre-training is for models that are called with one tensor")
        if not values[0].is_floating_point():
            raise DoesNotApply("pre-training is for floating inputs, not for numbers of tokens")
        yield values[0]


def _all(data: Iterable[Any]) -> list[Any]:
    """All batches of a loader, whose own generator is left where it was."""
    with generators_kept(data), random_state():
        return list(data)
