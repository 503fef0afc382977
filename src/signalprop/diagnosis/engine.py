"""`diagnose`: measure once, run every rule, list each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from signalprop.capture.batch import Loss
from signalprop.diagnosis.finding import Diagnosis

DEFAULT_RULES: tuple[Any, ...] = ()


def diagnose(
    model: torch.nn.Module,
    batch: Any,
    loss: Loss = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    batch_dim: int = 0,
    rules: Iterable[Any] = (),
    ignore: Iterable[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Stub for the moment: being written by the lead."""
    raise NotImplementedError
