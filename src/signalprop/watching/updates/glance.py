"""A glance at every gradient at every step: a few of its elements, so that a spike is not missed.

Statistics are taken every 50th step; the step at which a gradient leaps or turns into nan is most
often another. 256 elements of each weight, in runs spread evenly over it, tell its size within some
per cent and cost a microsecond or two.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from signalprop.compiled.sums import Table, functions, is_flat
from signalprop.watching.updates.parameter import local

#: elements that are looked at, of each weight: runs as long as a line of the processor's cache
RUNS, RUN = 16, 16
ELEMENTS = RUNS * RUN


class Glance:
    """Looks at the gradients of some parameters.

    Args:
        parameters: of one device, by index of the site; of every site the largest is enough.
    """

    def __init__(self, parameters: Mapping[int, Tensor]) -> None:
        self._places = list(parameters)
        self.parameters = list(parameters.values())
        self._sizes: list[int] = []
        self._scale = torch.empty(0)
        # at every step a call for each parameter counts, so what can be is worked out before
        self._plan = [(_stride(p), p.numel()) for p in self.parameters]
        self._table: Table | None = None
        self._slots: list[Tensor | None] = []
        self._numels: list[int] = []
        if functions() is not None and all(is_flat(p) for p in self.parameters):
            slots = [parameters.get(place) for place in range(max(self._places, default=-1) + 1)]
            self._slots, self._numels = slots, [0 if p is None else p.numel() for p in slots]
            self._table = Table(self._numels, 1, 1)

    def rms(self) -> NDArray[np.float64] | tuple[Tensor, list[int]] | None:
        """Root mean square of each gradient, from at most `ELEMENTS` of its elements.

        Returns:
            (sites,), inf where it is not finite and nan where there is no gradient; on an
            accelerator, and where gradients are not plain ones, a tensor on their device and which
            sites its elements are, with no wait for it and from the second step on no copy to it.
            None where no parameter has a gradient.
        """
        if self._table is not None:
            gradients = [None if p is None else p.grad for p in self._slots]
            addresses = [
                0 if gradient is None else _address(gradient, size)
                for gradient, size in zip(gradients, self._numels, strict=True)
            ]
            if -1 not in addresses:
                if not any(addresses):
                    return None
                self._table.addresses[:] = addresses
                return self._table.glance(RUNS, RUN)[:, 0].copy()
        full: list[Tensor] = []
        few: list[Tensor] = []
        places: list[int] = []  # of the full ones, then of the few
        later: list[int] = []
        for place, parameter, plan in zip(self._places, self.parameters, self._plan, strict=True):
            gradient, (stride, size) = parameter.grad, plan
            if gradient is None:
                continue
            whole = type(gradient) is Tensor and gradient.is_contiguous()
            if stride is not None and whole and gradient.numel() == size:
                full.append(gradient.as_strided((RUNS, RUN), (stride, 1)))
                places.append(place)
            elif gradient.layout is torch.strided and (part := _few(gradient)) is not None:
                few.append(part)
                later.append(place)
        if not full and not few:
            return None
        wide = torch.float64 if _any_double(full, few) else torch.float32
        norms: list[Tensor] = []
        if full:  # one copy and one reduction of all of them: an operation for each costs most
            rows = torch.cat(full).view(len(full), ELEMENTS)
            norms.append(torch.linalg.vector_norm(rows, dim=1, dtype=wide))
        if few:
            norms.append(torch.stack(torch._foreach_norm(few, 2, dtype=wide)))
        found = torch.cat(norms) if len(norms) > 1 else norms[0]
        sizes = [ELEMENTS] * len(full) + [len(part) for part in few]
        if self._sizes != sizes:
            self._sizes = sizes
            self._scale = torch.tensor(sizes, dtype=torch.float32).rsqrt().to(found.device)
        found *= self._scale
        return found, places + later


def _address(gradient: Tensor, size: int) -> int:
    """Where a gradient lies; -1 where that is not in one piece, as its weight did, or as large."""
    plain = type(gradient) is Tensor and gradient.dtype is torch.float32
    fits = plain and gradient.is_contiguous() and gradient.numel() == size
    return gradient.data_ptr() if fits else -1


def _stride(parameter: Tensor) -> int | None:
    """Elements from run to run; None where a gradient is small, or no plain tensor of numbers."""
    size = parameter.numel()
    plain = parameter.layout is torch.strided and not parameter.is_complex()
    if size <= ELEMENTS or not plain or hasattr(parameter, "to_local"):
        return None
    return (size - RUN) // (RUNS - 1)


def _few(gradient: Tensor) -> Tensor | None:
    """Some elements of a gradient that is small, complex, sharded or not in one piece."""
    gradient = local(gradient)
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    size = gradient.numel()
    return gradient.reshape(-1)[:: -(-size // ELEMENTS)] if size else None


def _any_double(full: list[Tensor], few: list[Tensor]) -> bool:
    return any(part.dtype is torch.float64 for part in (*full, *few))
