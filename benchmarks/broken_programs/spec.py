"""What one program consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spec:
    """One program as Keras would read it.

    Attributes:
        layers: layer by layer, `type` and its arguments, repetitions unfolded.
        loss: Keras's name of the loss.
        optimizer: `name` and its arguments; Keras's defaults where one is absent.
        batch_size: samples per update; None is all of them.
        epochs: passes over the data, as published.
        run: what is run instead of the published `batch_size` and `epochs`, where they are cut.
        data: name and arguments of the data set, see `data.py`.
    """

    layers: tuple[Mapping[str, Any], ...]
    loss: str
    optimizer: Mapping[str, Any]
    batch_size: int | None
    epochs: int
    data: Mapping[str, Any]
    run: Mapping[str, int] = field(default_factory=dict)
