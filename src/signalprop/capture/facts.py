"""Facts about the tensors a model or a loss is given: range, moments, and how features compare."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import kinds, statistics
from signalprop.capture.seen import Seen, SeenLoss
from signalprop.capture.statistics import Scalar
from signalprop.capture.trace import FeatureFacts, TensorFacts

_RECURRENT = frozenset({"rnn", "lstm", "gru"} | kinds.RECURRENT_OPS)


def scalars(x: Tensor, *, whole: bool = True) -> list[Scalar]:
    """[low, high, mean, std] of any tensor, and whether every value is a whole number."""
    if x.numel() == 0 or x.layout is not torch.strided:
        return []
    value = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    if value.dtype is torch.bool:
        value = value.to(torch.uint8)
    low, high = value.aminmax()
    found: list[Scalar] = [low, high, *statistics.moments(value)]
    if whole:
        some = value.reshape(-1)[: statistics.CHUNK]
        floating = value.is_floating_point()
        found.append((some == some.round()).all() if floating else 1.0)
    return found


def of(shape: tuple[int, ...], dtype: str, values: list[float]) -> TensorFacts:
    """The facts of a tensor from its `scalars`."""
    low, high, mean, std, *whole = values or [math.nan] * 4
    return TensorFacts(
        shape=shape,
        dtype=dtype,
        low=low,
        high=high,
        mean=mean,
        std=std,
        finite=math.isfinite(mean),
        whole=bool(whole and whole[0]),
    )


def dtype_name(x: Tensor) -> str:
    """`float32`."""
    return str(x.dtype).removeprefix("torch.")


def of_loss(
    op: str, given: Tensor, target: Tensor | None, site: Seen | None, ignored: int | None
) -> SeenLoss:
    """What is kept of a loss call, taken at once: a kept tensor would outlive its use."""
    given = given.detach()
    rows: list[Scalar] = []
    if given.ndim >= 2 and given.is_floating_point() and given.numel():
        sums = given.sum(1, dtype=torch.float32 if given.dtype.itemsize < 4 else None)
        rows = [sums.min(), sums.max()]
    return SeenLoss(
        op=op,
        shape=tuple(given.shape),
        dtype=dtype_name(given),
        given=scalars(given, whole=False),
        row_sums=rows,
        target_shape=tuple(target.shape) if target is not None else None,
        target_dtype=dtype_name(target) if target is not None else "",
        target=scalars(_kept(target.detach(), ignored)) if target is not None else [],
        site=site,
        ignored=ignored,
    )


def _kept(target: Tensor, ignored: int | None) -> Tensor:
    """The target without the values that the loss leaves out."""
    if ignored is None or target.is_floating_point():
        return target
    kept = target[target != ignored]
    return kept if kept.numel() else target


def of_input(
    x: Tensor, values: list[float], features: list[float], reader: str | None
) -> TensorFacts:
    """The facts of an input, with those of its features and the name of the site that reads it."""
    found = of(tuple(x.shape), dtype_name(x), values)
    if reader is None:
        return found
    several: FeatureFacts | None = None
    if features:
        varying, rms, largest, place, offset, observations = features
        several = FeatureFacts(
            round(varying), rms, largest, round(place), offset, round(observations)
        )
    return TensorFacts(
        found.shape,
        found.dtype,
        found.low,
        found.high,
        found.mean,
        found.std,
        found.finite,
        found.whole,
        reader,
        several,
    )


def of_features(x: Tensor, reader: Seen | None) -> list[Tensor]:
    """[varying, median rms, largest rms, its index, median |mean| / std, observations]."""
    if reader is None or x.ndim < 2 or x.is_complex() or x.numel() == 0:
        return []
    value = x.detach()
    value = value if value.dtype in (torch.float32, torch.float64) else value.float()
    dim = 1 if "conv" in reader.op.lower() else x.ndim - 1
    others = [d for d in range(x.ndim) if d != dim]
    variance, mean = torch.var_mean(value, others, correction=0)
    wide = statistics.accumulator(x.device)
    variance, mean = variance.to(wide), mean.to(wide)
    rms = (variance + mean.square()).sqrt()
    # a constant keeps a variance of rounding errors
    varies = variance.sqrt() > 1e-6 * rms
    nothing = torch.full_like(rms, math.nan)
    largest, place = rms.max(0)
    return [
        varies.sum(),
        torch.where(varies, rms, nothing).nanmedian(),
        largest,
        place,
        torch.where(varies, mean.abs() / variance.sqrt(), nothing).nanmedian(),
        torch.full_like(largest, x.numel() / max(x.shape[dim], 1)),
    ]


def readers(sites: Iterable[Seen]) -> dict[str, Seen]:
    """For every input the first site with weights that reads it as it is, views apart."""
    sites = list(sites)
    inputs = {seen.node: seen.base for seen in sites if seen.op == "input" and seen.node}
    found: dict[str, Seen] = {}
    for seen in sites:
        if _has_weights(seen) and not seen.in_loss:
            name = inputs.get(_origin(seen.entry, inputs))
            if name is not None:
                found.setdefault(name, seen)
    return found


def rootless(seen: Seen) -> bool:
    """Whether a site with weights read a floating tensor that no gradient can leave."""
    return _has_weights(seen) and seen.entry is None and not seen.in_loss


def _has_weights(seen: Seen) -> bool:
    if seen.op.lower().removesuffix("cell") in _RECURRENT or seen.kind == "attention":
        return True
    # the first argument of addmm is the bias, and an embedding reads whole numbers
    other = seen.op.startswith(("add", "baddbmm")) or "embedding" in seen.op.lower()
    return seen.kind == "weights" and not other


def _origin(node: Any, stop: Any) -> Any:
    while node is not None and node not in stop:
        nexts = [edge[0] for edge in node.next_functions if edge[0] is not None]
        packs = "PackPadded" in node.name()
        if len(nexts) != 1 or not (packs or kinds.moves_values_only(node.name())):
            return None
        node = nexts[0]
    return node
