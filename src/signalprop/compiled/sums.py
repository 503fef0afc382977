"""Sums over float32 tensors in one pass through memory, added in float64.

A training's sampled step asks the same few sums of every tensor. In torch each is a pass of its own
through memory, and a call; here all that is asked of a tensor, or of every parameter, is one.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from signalprop.compiled.build import Library

LIBRARY = Library(
    Path(__file__).parent,
    ("sums.cpp",),
    {
        "square_sum": "i l p -> d",
        "count_units": "i lll p dd p -> d",
        "before_update": "i l ppp",
        "after_update": "i l ppp",
        "glance": "l pp ll p",
    },
)
#: classes that are what they seem; others may lie on several ranks, or nowhere
PLAIN = (Tensor, torch.nn.Parameter)

Floats = NDArray[np.float64]


@cache
def functions() -> Any:
    """The compiled functions; None where there are none. Built at the first call, and kept."""
    return LIBRARY.get()


def is_flat(x: Tensor) -> bool:
    """Whether it is a plain float32 tensor on a CPU that lies in one piece."""
    return (
        type(x) in PLAIN
        and x.dtype is torch.float32
        and x.is_cpu
        and x.layout is torch.strided
        and x.is_contiguous()
        and not x.is_neg()
    )


def square_sum(x: Tensor) -> float | None:
    """Sum of squares.

    Args:
        x: of any shape.

    Returns:
        None where the compiled functions are missing or cannot take it.
    """
    compiled = functions()
    if compiled is None or not is_flat(x):
        return None
    return compiled.square_sum(torch.get_num_threads(), x.numel(), x.data_ptr())


def count_units(
    x: Tensor, unit_dim: int, low: float, high: float
) -> tuple[float, NDArray[np.int32]] | None:
    """Sum of squares, and how many observations of every unit lie outside of an interval.

    Args:
        x: of any shape.
        unit_dim: dimension of the units.
        low: lower end.
        high: upper end.

    Returns:
        The sum, and (units,); None where the compiled functions are missing or cannot take it, and
        where some value is not a number.
    """
    compiled = functions()
    if compiled is None or not is_flat(x):
        return None
    shape = x.shape
    counts = np.empty(shape[unit_dim], np.int32)
    sizes = math.prod(shape[:unit_dim]), shape[unit_dim], math.prod(shape[unit_dim + 1 :])
    threads, found = torch.get_num_threads(), counts.ctypes.data
    square = compiled.count_units(threads, *sizes, x.data_ptr(), low, high, found)
    return None if math.isnan(square) else (square, counts)


class Table:
    """Room for the addresses of some tensors of many parameters, and for their sums.

    Args:
        sizes: elements of each parameter.
        columns: addresses of each.
        sums: of each.
    """

    def __init__(self, sizes: Sequence[int], columns: int, sums: int) -> None:
        self.size = len(sizes)
        self._sizes = (ctypes.c_long * len(sizes))(*sizes)
        self.addresses = (ctypes.c_size_t * (columns * len(sizes)))()
        self.sums: Floats = np.zeros((len(sizes), sums))
        self._to = self.sums.ctypes.data

    def before_update(self) -> Floats:
        """Of the addresses of w, g, e (0 where it is missing) and room for a copy of w.

        Returns:
            (parameters, 4): sums of w^2, g^2, e^2 and g e.
        """
        threads = torch.get_num_threads()
        functions().before_update(threads, self.size, self._sizes, self.addresses, self._to)
        return self.sums

    def after_update(self) -> Floats:
        """Of the addresses of the copy of w, w and g.

        Returns:
            (parameters, 2): sums of d^2 and g d, with d = copy - w.
        """
        threads = torch.get_num_threads()
        functions().after_update(threads, self.size, self._sizes, self.addresses, self._to)
        return self.sums

    def glance(self, runs: int, run: int) -> Floats:
        """Of the addresses of tensors; 0 where one is missing.

        Args:
            runs: of elements that are looked at, spread evenly over each tensor.
            run: elements of each run.

        Returns:
            (tensors, 1): root mean square of these, or of all where they are fewer; inf where it is
            not finite, nan where the tensor is missing.
        """
        functions().glance(self.size, self._sizes, self.addresses, runs, run, self._to)
        return self.sums
