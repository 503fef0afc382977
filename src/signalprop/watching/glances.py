"""A glance at the gradients of every step: which are looked at, and where it is handed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from signalprop.watching.models import Sites
from signalprop.watching.table import or_inf
from signalprop.watching.transfer import Row
from signalprop.watching.updates.glance import Glance
from signalprop.watching.updates.optimizers import parameters_of
from signalprop.watching.updates.parameter import Sums

Floats = NDArray[np.float64]
Glanced = Callable[[int, Floats], None]


class Glances:
    """Looks at one parameter of every site, with every optimizer's update.

    Args:
        sites: of the run.
        told: called with a step and the gradients' root mean squares, (sites,).
        later: brings a tensor over from an accelerator, and calls on.
    """

    def __init__(
        self,
        sites: Sites,
        told: Glanced,
        later: Callable[[int, Tensor, Callable[[Row], None]], None],
    ) -> None:
        self._sites, self._told, self._later = sites, told, later
        self._glances: dict[int, Glance] = {}
        self._chosen: list[tuple[int, int, int]] = []
        self._now: Floats | None = None

    def choose(self, sums: Sequence[Sums], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Look at the largest matrix of every site from now on; at vectors where there is none.

        Args:
            sums: of the parameters that were updated.
            optimizers: that hold them.
        """
        chosen = [(one.site, id(one.parameter), one.parameter.numel()) for one in sums]
        if chosen == self._chosen:
            return
        self._chosen = chosen
        largest: dict[int, Tensor] = {}
        matrices = [one for one in sums if one.parameter.ndim > 1]
        for one in matrices or sums:
            known = largest.get(one.site)
            if known is None or one.parameter.numel() > known.numel():
                largest[one.site] = one.parameter
        self._glances = {}
        for optimizer in optimizers:
            mine = {id(p) for p in parameters_of(optimizer)}
            here = {s: p for s, p in largest.items() if id(p) in mine}
            if here and len({p.device for p in here.values()}) == 1:
                self._glances[id(optimizer)] = Glance(here)

    def look(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """At the gradients that an optimizer is about to use, or has used.

        Args:
            optimizer: which.
            step: that is under way.
        """
        glance = self._glances.get(id(optimizer))
        seen = None if glance is None else glance.rms()
        if seen is None:
            return
        size = len(self._sites.all)
        if isinstance(seen, np.ndarray):
            now = seen
        else:
            found, places = seen
            if found.device.type != "cpu":
                self._later(step, found, lambda row: self._told(step, _placed(row, places, size)))
                return
            now = _placed(found.numpy(), places, size)
        self._now = now if self._now is None else _either(self._now, now)

    def end(self, step: int) -> None:
        """The step is over: hand on what was seen of it on a CPU."""
        now, self._now = self._now, None
        if now is not None:
            self._told(step, now)


def _either(earlier: Floats, later: Floats) -> Floats:
    """What is known in either of two rows over sites; one may be longer, the later counts."""
    out = np.full(max(len(earlier), len(later)), np.nan)
    out[: len(earlier)] = earlier
    known = ~np.isnan(later)
    out[: len(later)][known] = later[known]
    return out


def _placed(row: Row, places: Sequence[int], size: int) -> Floats:
    out = np.full(size, np.nan)
    out[places] = or_inf(row)
    return out
