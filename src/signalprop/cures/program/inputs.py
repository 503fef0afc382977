"""Cures of the inputs: their scale, and values that are not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import batch as batches
from signalprop.capture.observe import observe, unwrapped
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.given import batches_of
from signalprop.cures.program.moments import Moments, floating
from signalprop.cures.program.seen import again, prepared
from signalprop.cures.program.steps import Cleaned, Normalised, finite_samples, finite_targets
from signalprop.cures.training import Training


@cure("normalise-inputs", treats=("SP111", "SP206", "SP305", "SP307"), changes="settings")
def normalise_inputs(
    training: Training, data: Any, *, most: int = 64, harmless: float = 10.0
) -> Training:
    """Bring every feature of the inputs to mean 0 and standard deviation 1.

    Per channel where a convolution reads the input or it has four dimensions, else per entry of
    the last dimension (LeCun, Bottou, Orr & Müller 1998, section 4.3). Only inputs that a layer
    with weights reads as they are. A feature that is constant is left alone, unless it is larger
    than `harmless`: then its mean is taken off.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader of the training data.
        most: batches of a loader to take mean and standard deviation of.
        harmless: largest constant that is left alone.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no such input, or they are normalised already.
    """
    model = unwrapped(training.model)
    first = prepared(training, data)
    trace = observe(model, again(first), training.loss).trace
    found: dict[int | str, Moments] = {}
    for key, name, x in floating(first):
        facts = trace.inputs.get(name)
        if facts is not None and facts.reader is not None and x.ndim >= 2:
            conv = "conv" in trace.sites[facts.reader].op.lower()
            found[key] = Moments(x, 1 if conv or x.ndim >= 4 else -1)
    if not found:
        raise DoesNotApply("no floating input goes straight into a layer with weights")
    for one in batches_of(data, most):
        for key, _, x in floating(prepared(training, one)):
            if key in found:
                found[key].add(x)
    moments: dict[int | str, tuple[Tensor, Tensor]] = {}
    lines: list[str] = []
    for key, name, x in floating(first):
        if key not in found:
            continue
        mean, std = found[key].result(x.ndim)
        # a constant keeps a deviation of rounding errors
        varies = std > 1e-6 * (mean.square() + std.square()).sqrt()
        fine = (mean.abs() <= 0.5) & (std >= 0.5) & (std <= 2)
        if bool((fine | (~varies & (mean.abs() <= harmless))).all()):
            continue
        mean = torch.where(varies | (mean.abs() > harmless), mean, 0.0)
        moments[key] = mean.to(torch.float32), torch.where(varies, std, 1.0).to(torch.float32)
        told = "inputs" if key == 0 else name.replace("input:", "")
        over = tuple(d for d in range(x.ndim) if d != found[key].dim)
        lines.append(
            f"{told} = ({told} - mean) / std  # of the training data: "
            f"std, mean = torch.std_mean(x, {over}, keepdim=True)"
        )
    if not moments:
        raise DoesNotApply("the inputs have mean 0 and standard deviation 1 already")
    return training.changed(*lines, prepare=(*training.prepare, Normalised(moments)))


@cure("clean-data", treats=("SP202",), changes="settings")
def clean_data(training: Training, data: Any, *, most: float = 0.1) -> Training:
    """Leave out samples with a value that is not finite, or fill the gaps in.

    Samples are left out where they are at most the share `most` of up to 64 batches; else their
    gaps are filled in with the mean of the feature. A sample whose target is not finite is left out
    in any case. An input of -inf alone is a mask and is not touched.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.
        most: largest share of the samples that is left out.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the data is finite, or every target is to be left out.
    """
    first = prepared(training, data)
    dim = batches.sample_dim(again(first), unwrapped(training.model), training.loss)
    found: dict[int | str, Moments] = {}
    gaps: dict[int | str, int] = {}
    count, bad, targets, good_targets = 0, 0, 0, 0
    for one in batches_of(data, 64):
        batch = prepared(training, one)
        finite = torch.ones(batch.size, dtype=torch.bool)
        for key, _, x in floating(batch):
            if x.ndim == 0:
                continue
            wide = x if x.ndim > 1 else x[:, None]
            found.setdefault(key, Moments(wide, 1 if x.ndim >= 4 else -1)).add(wide)
            odd = x[~x.isfinite()]
            if odd.numel() and bool((odd != -torch.inf).any()):
                gaps[key] = x.ndim
                rows = finite_samples(x, min(dim, x.ndim - 1)).cpu()
                finite = finite & rows if len(rows) == len(finite) else rows
        count, bad = count + len(finite), bad + int((~finite).sum())
        good = finite_targets(batch.target)
        if good is not None:
            targets, good_targets = targets + len(good), good_targets + int(good.sum())
    lost = good_targets < targets
    if not gaps and not lost:
        _all_ignored(first.target)
        raise DoesNotApply("every input and target of the data is finite")
    if lost and good_targets == 0:
        raise DoesNotApply("no target of the data is finite; there is nothing to learn from")
    fill = {key: _mean(found[key], ndim) for key, ndim in gaps.items()}
    share = bad / max(count, 1)
    drop = share <= most
    lines = []
    if lost or (drop and fill):
        part = [f"torch.isfinite({k}).flatten(1).all(1)" for k in _names(fill)] if drop else []
        part += ["torch.isfinite(target).reshape(len(target), -1).all(1)"] if lost else []
        lines += [f"keep = {' & '.join(part)}", "inputs, target = inputs[keep], target[keep]"]
    if fill and not drop:
        lines += [
            f"{k} = torch.where(torch.isfinite({k}), {k}, mean)  # of each feature's finite values"
            for k in _names(fill)
        ]
    return training.changed(*lines, prepare=(*training.prepare, Cleaned(fill, drop, dim)))


def _mean(moments: Moments, ndim: int) -> Tensor:
    mean = moments.result(max(ndim, 2))[0].to(torch.float32)
    return mean if ndim > 1 else mean.reshape(())


def _names(keys: Iterable[int | str]) -> list[str]:
    return [k if isinstance(k, str) else f"input{k + 1}" if k else "inputs" for k in keys]


def _all_ignored(target: Any) -> None:
    """The other way to a loss of nan."""
    if isinstance(target, Tensor) and target.numel() and bool((target == -100).all()):
        raise DoesNotApply(
            "every target of this batch is the ignored value -100, so that the loss divides zero "
            "by zero; leave such batches out"
        )
