"""Deltas over time of the recurrent layers of `signalprop.nets`, which run as they always do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from signalprop.capture.statistics import accumulator
from signalprop.capture.time import TimeAxis
from signalprop.nets.recurrent._cells import Watch
from signalprop.recurrent.call import turned


@dataclass
class Direction:
    """One direction of one layer, shown its states while it runs.

    Attributes:
        site: path of the module, with the number of its call.
        op: `lstm`, `mingru` or `minlstm`.
        place: the layer, and 1 for the reverse direction.
        length: steps of the longest sequence.
        there: (T, B), where the sequences have entries; None where they have them everywhere.
        h: mean squares of dL/dh_t over the units, (B,) by the step as it ran, from 0.
        c: of dL/dc_t.
        whole: mean squares of dL/dh_t of all steps, (T, B), where they come at once.
        others: who is shown the states as well.
    """

    site: str
    op: str
    place: tuple[int, int]
    length: int
    there: Tensor | None
    h: dict[int, Tensor] = field(default_factory=dict)
    c: dict[int, Tensor] = field(default_factory=dict)
    whole: Tensor | None = None
    others: Watch | None = None
    _ran: int = 0

    def watch(self, h: Tensor, c: Tensor) -> None:
        """The states of the next step."""
        for kept, state in ((self.h, h), (self.c, c)):
            if state.requires_grad:
                state.register_hook(_into(kept, self._ran))
        self._ran += 1
        if self.others is not None:
            self.others(h, c)

    def watch_all(self, drive: Tensor) -> None:
        """What comes in at all steps, (T, B, H): with h_t = a h_(t-1) + b_t, dL/db_t is dL/dh_t."""

        def keep(gradient: Tensor) -> None:
            self.whole = _squares(gradient)

        if drive.requires_grad:
            drive.register_hook(keep)

    def axis(self) -> TimeAxis | None:
        """What was seen; None where no gradient has arrived."""
        h, c = (self.whole if self.whole is not None else self._all(self.h)), self._all(self.c)
        if h is None:
            return None
        steps = tuple(range(1, self.length + 1))
        sizes = () if c is None else self._rms(c)
        layer, way = self.place
        return TimeAxis(
            self.site, self.op, layer, bool(way), self.length, steps, self._rms(h), sizes, ()
        )

    def _all(self, kept: dict[int, Tensor]) -> Tensor | None:
        """(T, B), in time; what no error has reached is 0."""
        if not kept:
            return None
        none = torch.zeros_like(next(iter(kept.values())))
        found = torch.stack([kept.get(t, none) for t in range(self.length)])
        return found.flip(0) if self.place[1] else found

    def _rms(self, found: Tensor) -> tuple[float, ...]:
        """Over the sequences that are still going, in the order of the steps."""
        sizes = None if self.there is None else self.there.sum(1)
        if self.place[1]:
            found = turned(found[..., None], sizes)[..., 0]
        if self.there is None:
            return tuple(found.mean(1).sqrt().tolist())
        going = torch.where(self.there, found, 0).sum(1) / self.there.sum(1)
        return tuple(going.sqrt().tolist())


def _into(kept: dict[int, Tensor], step: int) -> Callable[[Tensor], None]:
    def keep(gradient: Tensor) -> None:
        kept[step] = _squares(gradient)

    return keep


def _squares(x: Tensor) -> Tensor:
    """Mean of the squares over the last dimension, in a precision whose range holds them."""
    return x.detach().to(accumulator(x.device)).square().mean(-1)
