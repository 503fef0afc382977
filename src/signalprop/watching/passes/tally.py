"""Sums over what was seen of one site in one step: passes and ranks are joined by adding them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signalprop.capture import kinds, quick, statistics
from signalprop.capture.kinds import Kind
from signalprop.capture.statistics import Scalar
from signalprop.compiled import sums as compiled
from signalprop.watching.passes.attention import Attention
from signalprop.watching.sums import square_sum

Vector = np.ndarray | Tensor

#: observations of every unit that are looked at first, where there are more elements than a few
FIRST, SMALL = 32, 1 << 16


@dataclass(eq=False, slots=True)
class Tally:
    """One site. Numbers of an accelerator's tensors stay on it.

    Attributes:
        base: name without the number of the call.
        module: path of its module.
        op: operation.
        kind: what the operation is to the error signal.
        count: elements of a.
        square: sum of squares of a.
        alive: (units,), in how many passes a rectifier's unit was above zero at all.
        saturated: (units,), sum over passes of the share of observations that were saturated.
        passes: how many passes were added.
        delta_count: elements of delta.
        delta_square: sum of squares of delta.
        attention: of attention weights.
    """

    base: str
    module: str
    op: str
    kind: Kind
    count: float = 0
    square: Scalar = 0.0
    alive: Vector | None = None
    saturated: Vector | None = None
    passes: float = 1
    delta_count: float = 0
    delta_square: Scalar = 0.0
    attention: Attention | None = None

    def see(self, x: Tensor, unit_dim: int | None) -> None:
        """Take the sums over an activation.

        Args:
            x: of any shape.
            unit_dim: dimension of the units, where it is to be asked which of them are alive, or
                saturated.
        """
        self.count = x.numel()
        if unit_dim is None:
            self.square = square_sum(x)
            return
        rectifier = self.op in kinds.RECTIFIERS
        ends = (-math.inf, 0.0) if rectifier else statistics.ends(self.op)
        found = None if ends is None else compiled.count_units(x, unit_dim, *ends)
        if found is not None:
            self.square, counts = found
            if rectifier:
                self.alive = np.minimum(counts, 1)
            else:
                self.saturated = counts * (len(counts) / self.count)
            return
        x = x.detach()
        self.square = square_sum(x)
        if rectifier:
            self.alive = alive_units(x, unit_dim)
        else:
            self.saturated = saturated_units(x, self.op, unit_dim)

    def add_delta(self, delta: Tensor) -> None:
        """Add an error signal.

        Args:
            delta: of any shape.
        """
        self.delta_square = self.delta_square + square_sum(delta)
        self.delta_count += delta.numel()

    def add(self, other: Tally) -> None:
        """Add what another pass saw of the same site."""
        self.count += other.count
        self.square = self.square + other.square
        self.delta_count += other.delta_count
        self.delta_square = self.delta_square + other.delta_square
        self.passes += other.passes
        self.alive = _sum(self.alive, other.alive)
        self.saturated = _sum(self.saturated, other.saturated)
        if self.attention is None:
            self.attention = other.attention
        elif other.attention is not None:
            self.attention = self.attention.plus(other.attention)


def _sum(a: Vector | None, b: Vector | None) -> Vector | None:
    if a is None or b is None:
        return b if a is None else a
    if a.shape != b.shape:  # a layer whose width depends on the data: the units are not the same
        return a
    found: Any = a + b  # both of one device
    return found


def alive_units(x: Tensor, unit_dim: int) -> Vector:
    """(units,), 1 where a unit is above zero for some observation, else 0.

    Args:
        x: output of a rectifier.
        unit_dim: dimension of the units.

    Returns:
        In numpy for float32 on a CPU, else on the tensor's device.
    """
    values = quick.array_of(x)
    if values is not None:
        return _alive(values, unit_dim).astype(np.float32)
    others = [d for d in range(x.ndim) if d != unit_dim]
    return (x.amax(others) > 0).to(torch.float32)


def _alive(values: np.ndarray, unit_dim: int) -> np.ndarray:
    # most units show in the first few observations; of large tensors the rest is read for others;
    # in the middle of a pass what counts is the number of calls, of ufuncs rather than methods
    if unit_dim == values.ndim - 1:
        rows = values.reshape(-1, values.shape[-1])
        few = len(rows) if rows.size <= SMALL else FIRST
        found = np.maximum.reduce(rows[:few], 0) > 0
        rest = np.flatnonzero(~found) if few < len(rows) else ()
        if len(rest) > len(found) // 4:
            return found | (np.maximum.reduce(rows[few:], 0) > 0)
        if len(rest):
            found[rest] = np.maximum.reduce(rows[few:, rest], 0) > 0
        return found
    values = values.reshape(-1, values.shape[unit_dim], math.prod(values.shape[unit_dim + 1 :]))
    found = np.maximum.reduce(values[0], 1) > 0
    for sample in values[1:]:
        rest = np.flatnonzero(~found)
        if not len(rest):
            break
        found[rest] = np.maximum.reduce(sample[rest], 1) > 0
    return found


def saturated_units(x: Tensor, op: str, unit_dim: int) -> Vector:
    """(units,), share of a unit's observations that are saturated.

    Args:
        x: output of a bounded activation.
        op: which.
        unit_dim: dimension of the units.

    Returns:
        In numpy on a CPU, else on the tensor's device.
    """
    share = statistics.saturated_share(x, op, unit_dim)
    return share.numpy() if share.device.type == "cpu" else share
