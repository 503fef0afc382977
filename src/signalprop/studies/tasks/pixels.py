"""Handwritten digits, read pixel by pixel (Le, Jaitly & Hinton 2015)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from signalprop.studies import data
from signalprop.studies.tasks.checks import whole
from signalprop.studies.tasks.scores import right_class
from signalprop.studies.tasks.sequences import Sequences, steps_before
from signalprop.studies.tasks.task import Criterion, Task


def sequential_digits(permuted: bool = False, *, seed: int = 0, limit: int = 60_000) -> Task:
    """Name a digit after having read its pixels one by one.

    Le, Jaitly & Hinton 2015, "A simple way to initialize recurrent networks of rectified linear
    units". One input, ten classes, one error after the last pixel. MNIST, 784 pixels row by row,
    where `SIGNALPROP_DATA` names a folder that has it; else scikit-learn's digits of 64 pixels.
    Permuted: one fixed random order of the pixels for all images. Grey values are scaled to mean 0
    and variance 1 over all training pixels. `sample` draws training images and `sample_test` test
    images, evenly and with repetition.

    Which pixels are needed nobody knows; the lags count to the first (`lag`) and the last
    (`nearest`) pixel that is not the same in all training images. So `lag` bounds what a net can
    use here, not what it must: fewer steps cost accuracy, not everything.

    Args:
        permuted: whether the pixels come in a random order.
        seed: of that order; the paper's is not published.
        limit: at most so many training images, and a third of that for the test.

    Returns:
        The task.

    Raises:
        MissingPackageError: neither MNIST nor scikit-learn is there.
        SignalpropError: a file of MNIST is damaged, or limit no whole number of at least 3.
    """
    digits = data.digits(whole("limit", limit, 3))
    order = torch.arange(digits.pixels)
    if permuted:
        order = torch.randperm(digits.pixels, generator=torch.Generator().manual_seed(seed))
    x = digits.x.float()[:, order]
    varying = (x != x[0]).any(0).nonzero().flatten()
    last = digits.pixels - 1
    kind = "permuted" if permuted else "sequential"
    return Task(
        name=f"{kind}-digits",
        title=f"{kind} digits, {digits.pixels} pixels",
        source="Le, Jaitly & Hinton 2015, pixel-by-pixel MNIST",
        n_in=1,
        n_out=10,
        target="last step",
        loss="cross-entropy",
        lag=last - int(varying[0]) if len(varying) else 0,
        nearest=last - int(varying[-1]) if len(varying) else 0,
        score=right_class,
        criterion=Criterion("accuracy on the test images; none is named as enough", None),
        draw=partial(_images, x=x, y=digits.y),
        draw_test=partial(_images, x=digits.x_test.float()[:, order], y=digits.y_test),
        data=digits.name,
    )


def _images(n: int, generator: torch.Generator | None, *, x: Tensor, y: Tensor) -> Sequences:
    chosen = torch.randint(len(x), (n,), generator=generator)
    lengths = torch.full((n,), x.shape[1])
    return Sequences(
        elements=x[chosen].unsqueeze(-1),
        n_in=1,
        targets=y[chosen],
        truth=y[chosen],
        lengths=lengths,
        mask=steps_before(lengths, only_last=True),
    )
