"""The loss sample by sample: which samples still have something to learn, and which cannot."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.observe import eager
from signalprop.capture.sandbox import untouched
from signalprop.capture.trace import Site, Trace

#: samples whose loss is taken, spread over the batch
SAMPLES = 64
#: a sample is above its floor where its loss exceeds the smallest by this share of the loss that
#: the targets of other samples give
ABOVE = 0.05
#: an activation is at the end of its range within this
AT_END = 1e-6
#: where more samples than this get no error signal, it is asked why
SOME = 0.1

#: activations that end at a number on one side, and on both: there they are flat
_ONE_SIDED = {"relu": 0.0, "exp": 0.0, "softplus": 0.0}
_TWO_SIDED = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "relu6": (0.0, 6.0),
    "tanh": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "erf": (-1.0, 1.0),
}


@dataclass(frozen=True)
class SampleFacts:
    """What the losses of single samples tell.

    Attributes:
        learned: the loss over what it is when every sample is given the target of another, near 1
            before anything is learned; None without a target.
        above: share of samples whose loss is clearly above the smallest one.
        lost: share of samples above it that get no error signal, as the output's activation is at
            an end of its range for them; 0 where the output has no such activation.
        loss: mean loss of the lost ones; nan where there are none.
    """

    learned: float | None
    above: float
    lost: float
    loss: float


def output_activation(trace: Trace) -> tuple[Site, Site] | None:
    """The activation that the output has been through, and the site before it.

    Args:
        trace: the pass.

    Returns:
        The two last sites of the spine, where the last one is an activation with an end to its
        range, or a softmax; else None.
    """
    if len(trace.spine) < 2:
        return None
    before, last = (trace.sites[name] for name in trace.spine[-2:])
    later = any(s.order > last.order and s.kind != "input" for s in trace.sites.values())
    known = last.op in _ONE_SIDED or last.op in _TWO_SIDED or last.op == "log_softmax"
    return (last, before) if known and not later else None


def silent_share(trace: Trace) -> float:
    """Share of samples whose delta is exactly zero before the output's activation."""
    found = output_activation(trace)
    if found is None or found[1].delta is None or found[0].op == "log_softmax":
        return 0.0
    return 1.0 - found[1].delta.alive


def no_gradient(trace: Trace) -> bool:
    """Whether every gradient of a trained parameter is there, and exactly zero."""
    gradients = [w.gradient for w in trace.weights.values() if w.trained]
    return bool(gradients) and all(g == 0 for g in gradients)


def nothing_moves(trace: Trace, facts: SampleFacts, apart: float) -> bool:
    """Whether all gradients are zero though there is a loss to lower, and no unit is the cause."""
    dead = any((s.activation.dead or 0.0) == 1 for s in trace.sites.values())
    flat = dead or output_activation(trace) is not None
    return no_gradient(trace) and not flat and facts.above > apart


def suspicious(trace: Trace) -> bool:
    """Whether rules will ask for the losses of single samples."""
    flat = any(
        max(s.activation.dead or 0.0, s.activation.saturated or 0.0) > 0.5
        for s in trace.sites.values()
    )
    return flat or silent_share(trace) > SOME or no_gradient(trace)


def measure(
    model: torch.nn.Module, given: Any, loss: Loss, trace: Trace, batch_dim: int
) -> SampleFacts | None:
    """Take the loss of every sample on its own.

    Cost: a forward pass, and the loss of up to 64 samples.

    Args:
        model: the model.
        given: the batch, no loader.
        loss: the loss.
        trace: of this model and batch.
        batch_dim: dimension of the samples.

    Returns:
        The facts; None where the output or the loss cannot be taken apart.
    """
    with untouched(model), eager(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a loss warned of the same once
        data = batches.read(given, model, loss, batch_dim=batch_dim, gradients=False)
        output = model(*data.args, **data.kwargs)
        learned = learned_share(output, data, loss)
        whole = isinstance(output, Tensor) and output.ndim > batch_dim
        if not whole or output.shape[batch_dim] != data.size:
            return None if learned is None else SampleFacts(learned, 0.0, 0.0, math.nan)
        every = torch.arange(0, data.size, max(1, data.size // SAMPLES))[:SAMPLES]
        losses = torch.tensor([_of_one(output, data, loss, i, batch_dim) for i in every.tolist()])
        typical = float(batches.loss_of(output, data, loss))
        if learned:
            typical = max(typical, typical / learned)
        known = torch.isfinite(losses)  # a sample of ignored targets alone has no loss
        if not bool(known.any()):
            return SampleFacts(learned, 0.0, 0.0, math.nan)
        above = known & (losses - losses[known].min() > ABOVE * abs(typical))
        lost = above & _at_end(output.movedim(batch_dim, 0)[every].flatten(1), trace)
        # not more than have no delta: an activation may be at its end in other elements
        share = min(float(lost.float().mean()), silent_share(trace))
        mean = float(losses[lost].mean()) if bool(lost.any()) else math.nan
        return SampleFacts(learned, float(above.float().mean()), share, mean)


def learned_share(output: Any, data: Batch, loss: Loss) -> float | None:
    """The loss over what it is when every sample is given the target of another."""
    target = data.target
    if not isinstance(target, Tensor) or target.ndim == 0 or target.shape[0] != data.size:
        return None
    other = replace(data, target=target.roll(data.size // 2, dims=0))
    value, elsewhere = (float(batches.loss_of(output, d, loss)) for d in (data, other))
    return value / elsewhere if elsewhere > 0 else None


def _of_one(output: Tensor, data: Batch, loss: Loss, i: int, batch_dim: int) -> float:
    row = torch.tensor([i])
    part = batches.some_rows(data, row, batch_dim)
    value = batches.loss_of(output.index_select(batch_dim, row.to(output.device)), part, loss)
    return float(value)


def _at_end(rows: Tensor, trace: Trace) -> Tensor:
    """For which samples the output's activation is at an end of its range."""
    found = output_activation(trace)
    op = found[0].op if found is not None else ""
    if op in _ONE_SIDED:
        return (rows == _ONE_SIDED[op]).any(1)
    if op not in _TWO_SIDED:
        return torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    low, high = _TWO_SIDED[op]
    return ((rows <= low + AT_END) | (rows >= high - AT_END)).any(1)
