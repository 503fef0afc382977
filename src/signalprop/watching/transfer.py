"""Numbers from an accelerator to the host, without a wait: a copy is begun, and taken up later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from signalprop.capture.statistics import accumulator

#: a float, or a tensor whose elements follow each other in the row
Number = Tensor | float
Row = NDArray[np.float64]


@dataclass(eq=False)
class _Waiting:
    """Copies under way."""

    row: Row
    then: Callable[[Row], None]
    parts: list[tuple[list[slice], Tensor]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def ready(self) -> bool:
        return all(event.query() for event in self.events)

    def done(self) -> None:
        for places, copy in self.parts:
            values, at = copy.numpy(), 0
            for place in places:
                size = place.stop - place.start
                self.row[place] = values[at : at + size]
                at += size
        self.then(self.row)


class Transfer:
    """Brings numbers over in the order in which they were given."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()

    def start(self, numbers: Sequence[Number], then: Callable[[Row], None]) -> None:
        """Bring numbers over, and call on.

        Args:
            numbers: floats and tensors, on any device.
            then: called with all of them in one row: at once where nothing lies on an accelerator
                and nothing is under way, else from a later `poll` or `finish`.
        """
        by_device: dict[torch.device, tuple[list[slice], list[Tensor]]] = {}
        plain = {*map(type, numbers)} <= {float, int}  # as on a CPU: seen at a glance
        row: list[Any] = list(numbers) if plain else []
        for number in () if plain else numbers:
            if isinstance(number, Tensor):
                places, tensors = by_device.setdefault(number.device, ([], []))
                places.append(slice(len(row), len(row) + number.numel()))
                tensors.append(number.detach().reshape(-1).to(accumulator(number.device)))
                row += [0.0] * number.numel()
            else:
                row.append(number)
        made = _Waiting(np.asarray(row, np.float64), then)
        with torch.no_grad():
            for places, tensors in by_device.values():
                made.parts.append((places, self._copy(torch.cat(tensors), made)))
        self._waiting.append(made)
        self.poll()

    def poll(self) -> None:
        """Take up what has arrived."""
        while self._waiting and self._waiting[0].ready():
            self._waiting.popleft().done()

    def finish(self) -> None:
        """Wait for all that is under way."""
        while self._waiting:
            for event in self._waiting[0].events:
                event.synchronize()
            self._waiting.popleft().done()

    @staticmethod
    def _copy(stacked: Tensor, waiting: _Waiting) -> Tensor:
        if stacked.device.type != "cuda":
            return stacked.cpu()
        here = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
        here.copy_(stacked, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(stacked.device))
        waiting.events.append(event)
        return here
