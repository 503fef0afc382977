"""Loss scaling: what is taken out of the numbers, and updates that are left out for overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.watching.transfer import Number


class Scaling:
    """A GradScaler that is watched; nothing where there is none.

    Its method `step` is wrapped on this one object while the watch is open.

    Args:
        scaler: a `torch.amp.GradScaler`, or None.
        skipped: called when an update of these optimizers was left out.
        optimizers: those that are watched.

    Attributes:
        count: updates left out so far, also within an optimizer's own kernel.
        left_out: those whose optimizer was not called at all.

    Raises:
        SignalpropError: it is no GradScaler.
    """

    def __init__(
        self,
        scaler: Any,
        optimizers: list[torch.optim.Optimizer],
        skipped: Callable[[], None],
    ) -> None:
        self.count = self.left_out = 0
        self._inside: Tensor | None = None
        self._scaler: torch.amp.GradScaler | None = scaler
        self._skipped = skipped
        self._updated: set[int] = set()
        self._handles: list[Any] = []
        if scaler is None:
            return
        if not isinstance(scaler, torch.amp.GradScaler):
            raise SignalpropError(
                f"scaler={type(scaler).__name__} is no torch.amp.GradScaler; leave it out"
            )
        if not scaler.is_enabled():
            self._scaler = None
            return
        watched = {id(o) for o in optimizers}
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._updates))
        real = scaler.step

        def step(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            self._updated.discard(id(optimizer))
            found = real(optimizer, *args, **kwargs)
            if id(optimizer) in watched and id(optimizer) not in self._updated:
                self.count += 1
                self.left_out += 1
                self._skipped()
            return found

        self._step = step
        scaler.step = step  # type: ignore[method-assign]

    def _updates(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._updated.add(id(optimizer))
        found = getattr(optimizer, "found_inf", None)  # a fused optimizer looks at it itself
        if isinstance(found, Tensor):
            if found.device.type == "cpu":
                self.count += int(found.item() > 0)
            else:
                inside = (found > 0).to(torch.float32)
                self._inside = inside if self._inside is None else self._inside + inside

    def skipped(self) -> Number:
        """Updates left out so far; on an accelerator where a fused optimizer works there."""
        return float(self.count) if self._inside is None else self._inside + float(self.count)

    @property
    def on(self) -> bool:
        """Whether the loss is scaled."""
        return self._scaler is not None

    def scale(self) -> Number:
        """What the loss is multiplied by; on the scaler's device."""
        if self._scaler is None:
            return 1.0
        scale = self._scaler._get_scale_async()
        return 1.0 if scale is None else scale.clone()

    def close(self) -> None:
        """Take the wrapper and the hooks off."""
        for handle in self._handles:
            handle.remove()
        if self._scaler is not None and self._scaler.__dict__.get("step") is self._step:
            del self._scaler.step
