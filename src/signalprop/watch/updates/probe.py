"""A glance at every gradient at every step: a few of its elements, so that a spike is not missed.

Statistics are taken every 50th step; the step at which a gradient leaps or turns into nan is most
often another. 256 elements of each weight, in runs spread evenly over it, tell its size within some
per cent and cost two microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from signalprop.watch.updates.update import local

#: elements that are looked at, of each weight: runs as long as a line of the processor's cache
RUNS, RUN = 16, 16
ELEMENTS = RUNS * RUN


class Glance:
    """Looks at the gradients of some parameters.

    Args:
        parameters: of one device; of every site the largest is enough.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self._layout: tuple[tuple[int, int], ...] = ()
        self._scale = torch.empty(0)
        self._places: Tensor | None = None

    def rms(self) -> Tensor | None:
        """Root mean square of each gradient, from at most `ELEMENTS` of its elements.

        Returns:
            (parameters,) float32 or float64 on their device, nan for one without a gradient; None
            where there is none at all. No wait for the device, and from the second step on no copy
            to it.
        """
        parts: list[Tensor] = []
        layout: list[tuple[int, int]] = []
        for place, parameter in enumerate(self.parameters):
            gradient = parameter.grad
            if gradient is None or gradient.layout is not torch.strided:
                continue
            gradient = local(gradient)
            if gradient.is_complex():
                gradient = torch.view_as_real(gradient)
            size = gradient.numel()
            if size > ELEMENTS and gradient.is_contiguous():
                part = gradient.as_strided((RUNS, RUN), ((size - RUN) // (RUNS - 1), 1))
                size = ELEMENTS
            elif size:
                part = gradient.reshape(-1)[:: -(-size // ELEMENTS)]
                size = part.shape[0]
            else:
                continue
            parts.append(part)
            layout.append((place, size))
        if not parts:
            return None
        wide = torch.float64 if any(p.dtype is torch.float64 for p in parts) else torch.float32
        found = torch.stack(torch._foreach_norm(parts, 2, dtype=wide))
        if self._layout != tuple(layout):
            self._lay_out(layout, found.device)
        found *= self._scale
        if self._places is None:
            return found
        whole = torch.full((len(self.parameters),), torch.nan, dtype=wide, device=found.device)
        return whole.index_copy_(0, self._places, found)

    def _lay_out(self, layout: list[tuple[int, int]], device: torch.device) -> None:
        self._layout = tuple(layout)
        sizes = torch.tensor([size for _, size in layout], dtype=torch.float32)
        self._scale = sizes.rsqrt().to(device)
        places = [place for place, _ in layout]
        everywhere = len(places) == len(self.parameters)
        self._places = None if everywhere else torch.tensor(places, device=device)
