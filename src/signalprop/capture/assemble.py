"""Turns what was seen in a pass, still on the device, into a frozen `Trace`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signalprop.capture import facts, statistics
from signalprop.capture.backward import Backward, SeenDelta
from signalprop.capture.batch import Batch
from signalprop.capture.chain import Chain, chain_of
from signalprop.capture.recorder import Recorder
from signalprop.capture.seen import Seen, SeenLoss
from signalprop.capture.statistics import ActivationStats, DeltaStats, Scalar
from signalprop.capture.trace import Failure, LossCall, Site, Trace, Weight

#: one block with this share of all sites on the way makes the spine uninformative
DENSE_SHARE = 0.4
DENSE_SITES = 12


class _Transfer:
    """Collects scalars, those on a device too, and brings them over in one go."""

    def __init__(self) -> None:
        self._scalars: list[Scalar] = []
        self._values: list[float] = []

    def add(self, scalars: Sequence[Scalar]) -> slice:
        start = len(self._scalars)
        self._scalars.extend(scalars)
        return slice(start, len(self._scalars))

    def fetch(self) -> None:
        by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
        self._values = [math.nan] * len(self._scalars)
        for i, scalar in enumerate(self._scalars):
            if isinstance(scalar, Tensor):
                by_device.setdefault(scalar.device, []).append((i, scalar))
            else:
                self._values[i] = scalar
        for device, places in by_device.items():
            wide = statistics.accumulator(device)
            stacked = torch.stack([scalar.detach().to(wide) for _, scalar in places])
            for (i, _), value in zip(places, stacked.tolist(), strict=True):
                self._values[i] = value

    def __getitem__(self, where: slice) -> list[float]:
        return self._values[where]


def assemble(
    model: torch.nn.Module,
    data: Batch,
    recorder: Recorder,
    found: Backward,
    loss: Tensor | None,
    failure: Failure | None,
) -> Trace:
    """Everything that was seen, as plain data."""
    transfer = _Transfer()
    forward = [transfer.add(seen.scalars) for seen in recorder.sites]
    backward = {i: transfer.add(delta.scalars) for i, delta in found.at_site.items()}
    read = facts.readers(recorder.sites)
    # a leaf is the user's own values, whatever the model has done to its copy
    inputs = {name: data.leaves.get(name, x) for name, x in data.inputs.items()}
    given = {
        name: (transfer.add(facts.scalars(x)), transfer.add(facts.of_features(x, read.get(name))))
        for name, x in inputs.items()
    }
    losses = [
        (transfer.add(call.given), transfer.add(call.target), transfer.add(call.row_sums))
        for call in recorder.losses
    ]
    parameters = found.parameters
    weights = {name: transfer.add([_size(p)]) for name, p in parameters.items()}
    gradients = {
        name: transfer.add([statistics.norm(gradient)])
        for name, gradient in found.gradients.items()
    }
    total = transfer.add([loss.detach()] if loss is not None and not loss.is_complex() else [])
    transfer.fetch()

    names = site_names(recorder.sites)
    chain = chain_of(recorder, found, names)
    sites = {
        name: Site(
            name=name,
            module=seen.module,
            op=seen.op,
            kind=seen.kind,
            shape=seen.shape,
            dtype=seen.dtype,
            order=i,
            aliases=tuple(dict.fromkeys(a for a in seen.aliases if a and a != name)),
            activation=_activation(seen, transfer[forward[i]]),
            delta=_delta(found.at_site[i], transfer[backward[i]]) if i in backward else None,
        )
        for i, (name, seen) in enumerate(zip(names, recorder.sites, strict=True))
    }
    widest = max((len(b.inner) for b in chain.blocks), default=0)
    dense = widest >= DENSE_SITES and widest > DENSE_SHARE * len(sites)
    return Trace(
        model=type(model).__name__,
        sites=sites,
        spine=chain.spine,
        blocks=chain.blocks,
        weights=_weights(parameters, recorder, transfer, weights, gradients),
        inputs={
            name: facts.of_input(
                x,
                transfer[given[name][0]],
                transfer[given[name][1]],
                names[read[name].order] if name in read else None,
            )
            for name, x in inputs.items()
        },
        losses=tuple(
            _loss_call(call, transfer, places, names)
            for call, places in zip(recorder.losses, losses, strict=True)
        ),
        loss=transfer[total][0] if transfer[total] else math.nan,
        batch=data.size,
        training=model.training,
        modes={
            name: module.training
            for name, module in recorder.modules.items()
            if isinstance(
                module,
                (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd),
            )
        },
        dense=dense,
        cut=chain.cut,
        samples=chain.samples,
        failure=failure,
        notes=_notes(chain, dense, recorder, failure),
        rootless=tuple(names[i] for i in sorted(backward) if facts.rootless(recorder.sites[i])),
    )


def site_names(sites: list[Seen]) -> list[str]:
    """Unique names in execution order: the second call of `cell` is `cell#2`."""
    count: Counter[str] = Counter()
    names = []
    for seen in sites:
        count[seen.base] += 1
        k = count[seen.base]
        names.append(seen.base if k == 1 else f"{seen.base}#{k}")
    return names


def _activation(seen: Seen, values: list[float]) -> ActivationStats:
    mean, square, zeros, resultant, live, gram_square, *more = values
    unit = more.pop(0) if seen.unit_stat else None
    share = unit / seen.units if unit is not None and seen.units else None
    return ActivationStats(
        rms=_root(square),
        mean=mean,
        variance=max(square - mean * mean, 0.0) if math.isfinite(square) else math.nan,
        zeros=zeros / seen.numel,
        effective_rank=live * live / gram_square if gram_square else 0.0,
        cosine=statistics.mean_cosine(resultant, live),
        token_cosine=more.pop(0) if seen.tokens else None,
        saturated=share if seen.unit_stat == "saturated" else None,
        dead=share if seen.unit_stat == "dead" else None,
        units=seen.units,
        finite=math.isfinite(square),
    )


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else square


def _delta(delta: SeenDelta, values: list[float]) -> DeltaStats:
    square, zeros, resultant, compared = values
    norms = np.asarray(delta.norms)
    live = norms
    if not (norms.min() > 0 and math.isfinite(norms.max())):
        live = norms[(norms > 0) & np.isfinite(norms)]
    width = delta.numel / norms.size
    geometric = 0.0
    if live.size:
        geometric = math.exp(float(np.log(live).sum()) / live.size) / math.sqrt(width)
    return DeltaStats(
        rms=_root(square),
        geometric_mean=geometric,
        zeros=zeros / delta.numel,
        alive=1.0 if live is norms else float((norms != 0).mean()),
        cosine=statistics.mean_cosine(resultant, compared),
        finite=math.isfinite(square),
    )


# ---- parameters ------------------------------------------------------------------------------


def _size(p: Tensor) -> Scalar:
    value = p.detach()
    measured = value.numel() and (value.is_floating_point() or value.is_complex())
    return statistics.norm(value) if measured else 0.0


def _weights(
    parameters: dict[str, Tensor],
    recorder: Recorder,
    transfer: _Transfer,
    places: dict[str, slice],
    gradients: dict[str, slice],
) -> dict[str, Weight]:
    result = {}
    for name, p in parameters.items():
        (norm,) = transfer[places[name]]
        module = name.rpartition(".")[0]
        result[name] = Weight(
            name=name,
            module=module,
            shape=tuple(p.shape),
            norm=norm,
            rms=norm / math.sqrt(max(p.numel(), 1)),
            gradient=transfer[gradients[name]][0] if name in gradients else None,
            trained=p.requires_grad,
            finite=math.isfinite(norm),
            order=recorder.called.get(module),
        )
    return result


# ---- inputs and losses -----------------------------------------------------------------------


def _loss_call(
    call: SeenLoss,
    transfer: _Transfer,
    places: tuple[slice, slice, slice],
    names: list[str],
) -> LossCall:
    given, target, rows = (transfer[place] for place in places)
    made = facts.of(call.shape, call.dtype, given)
    compared = None
    if call.target_shape is not None:
        compared = facts.of(call.target_shape, call.target_dtype, target)
    return LossCall(
        op=call.op,
        input=made,
        target=compared,
        site=names[call.site.order] if call.site is not None else None,
        site_op=call.site.op if call.site is not None else None,
        row_sums=(rows[0], rows[1]) if rows and made.low >= 0 else None,
        classes=call.shape[1] if len(call.shape) >= 2 else None,
        ignored=call.ignored,
    )


def _notes(
    chain: Chain,
    dense: bool,
    recorder: Recorder,
    failure: Failure | None,
) -> tuple[str, ...]:
    notes = []
    norms: tuple[Any, ...] = (torch.nn.modules.batchnorm._BatchNorm,)
    if any(isinstance(m, norms) and m.training for m in recorder.modules.values()):
        notes.append(
            "BatchNorm in training mode couples the samples of the batch; deltas per sample hold "
            "for this batch as a whole"
        )
    if dense:
        notes.append(
            "most sites lie inside one block (dense skips, or steps in time), so the spine says "
            "little; look at all sites in execution order"
        )
    elif not chain.blocks and failure is None:
        notes.append("no two sites lie on every path from the input to the loss: there is no spine")
    if chain.cut is not None:
        notes.append(f"on its way back delta becomes exactly zero at {chain.cut}")
    return tuple(notes)
