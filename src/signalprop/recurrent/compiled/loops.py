"""Spans of steps in the compiled loops; the same calls as `Steps` of each cell.

What a loop is given has the form that its cell has made: only the weights' shapes are looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from signalprop.compiled.build import Library

BITS = {torch.float32: 32, torch.float64: 64}
#: threads or a flag, sizes and strides, tensors
_FUNCTIONS = {
    "lstm_forward": "i llll ppppppp -> i",
    "lstm_backward": "i llll p ll pppppppppp -> i",
    "gru_forward": "i lll pppppp -> i",
    "gru_backward": "i lll p ll ppppppppp -> i",
    "rnn_forward": "i lll i ppp -> i",
    "rnn_backward": "i lll i p ll pppppp -> i",
}
LIBRARY = Library(
    Path(__file__).parent,
    ("cells.cpp", "lstm.h", "gru.h", "rnn.h", "share.h", "products.h", "vectors.h"),
    {f"{name}_{bits}": form for name, form in _FUNCTIONS.items() for bits in BITS.values()},
)


def fits(weight: Tensor, *others: Tensor | None, build_now: bool = True) -> bool:
    """Whether the compiled loops can take these, and are there.

    Args:
        weight: W_hh, (gates x H, P).
        others: every other tensor in use.
        build_now: build them where that has not been done.

    Returns:
        True where they can.
    """
    for x in (weight, *others):
        if x is not None and not (
            type(x) in (Tensor, Parameter)
            and x.dtype == weight.dtype
            and x.device.type == "cpu"
            and x.layout == torch.strided
        ):
            return False
    if weight.dtype not in BITS:
        return False
    return LIBRARY.get() is not None if build_now else LIBRARY.ready()


class _Loop:
    def __init__(self, name: str, w_hh: Tensor) -> None:
        self.w_hh = w_hh.detach().contiguous()
        loaded, bits = LIBRARY.get(), BITS[w_hh.dtype]
        self._forward: Any = getattr(loaded, f"{name}_forward_{bits}")
        self._backward: Any = getattr(loaded, f"{name}_backward_{bits}")


class CompiledLSTM(_Loop):
    """A span of an LSTM's steps.

    Args:
        w_hh: (4 H, P).
        w_hr: (P, H), or None.
        bias: (4 H,), or None; added on the way forward, so that gates are given without it.
    """

    def __init__(self, w_hh: Tensor, w_hr: Tensor | None, bias: Tensor | None) -> None:
        super().__init__("lstm", w_hh)
        self.bias = None if bias is None else bias.detach().contiguous()
        self.w_hr = None if w_hr is None else w_hr.detach().contiguous()

    def forward(self, gates: Tensor, mask: Tensor | None, cells: Tensor, outputs: Tensor) -> None:
        """See `cells.lstm.Steps`."""
        sizes = *gates.shape[:2], cells.shape[-1], outputs.shape[-1]
        tensors = gates, self.bias, self.w_hh, self.w_hr, mask, cells, outputs
        _call(self._forward, *sizes, *map(_at, tensors))

    def backward(
        self,
        given: Tensor,
        mask: Tensor | None,
        gates: Tensor,
        cells: Tensor,
        error: Tensor,
        found_h: Tensor,
        found_c: Tensor,
        dh: Tensor,
        dc: Tensor,
    ) -> None:
        """See `cells.lstm.Steps`."""
        sizes = *gates.shape[:2], cells.shape[-1], given.shape[-1]
        given = _rows(given)
        tensors = self.w_hh, self.w_hr, mask, gates, cells, error, found_h, found_c, dh, dc
        _call(self._backward, *sizes, *_strided(given), *map(_at, tensors))


class CompiledGRU(_Loop):
    """A span of a GRU's steps.

    Args:
        w_hh: (3 H, H).
        b_hh: (3 H,), or None.
    """

    def __init__(self, w_hh: Tensor, b_hh: Tensor | None) -> None:
        super().__init__("gru", w_hh)
        self.b_hh = None if b_hh is None else b_hh.detach().contiguous()

    def forward(self, gates: Tensor, mask: Tensor | None, inner: Tensor, outputs: Tensor) -> None:
        """See `cells.gru.Steps`."""
        tensors = gates, self.w_hh, self.b_hh, mask, inner, outputs
        _call(self._forward, *inner.shape, *map(_at, tensors))

    def backward(
        self,
        given: Tensor,
        mask: Tensor | None,
        gates: Tensor,
        inner: Tensor,
        outputs: Tensor,
        error: Tensor,
        own: Tensor,
        found: Tensor,
        dh: Tensor,
    ) -> None:
        """See `cells.gru.Steps`."""
        given = _rows(given)
        tensors = self.w_hh, mask, gates, inner, outputs, error, own, found, dh
        _call(self._backward, *inner.shape, *_strided(given), *map(_at, tensors))


class CompiledRNN(_Loop):
    """A span of a plain net's steps.

    Args:
        w_hh: (H, H).
        relu: instead of tanh.
    """

    def __init__(self, w_hh: Tensor, relu: bool) -> None:
        super().__init__("rnn", w_hh)
        self.relu = relu

    def forward(self, mask: Tensor | None, outputs: Tensor) -> None:
        """See `cells.rnn.Steps`."""
        steps, rows, hidden = outputs.shape
        sizes = steps - 1, rows, hidden
        _call(self._forward, *sizes, int(self.relu), *map(_at, (self.w_hh, mask, outputs)))

    def backward(
        self,
        given: Tensor,
        mask: Tensor | None,
        outputs: Tensor,
        error: Tensor,
        found: Tensor,
        dh: Tensor,
    ) -> None:
        """See `cells.rnn.Steps`."""
        given = _rows(given)
        tensors = self.w_hh, mask, outputs, error, found, dh
        sizes = *given.shape, int(self.relu)
        _call(self._backward, *sizes, *_strided(given), *map(_at, tensors))


def _call(function: Any, *args: Any) -> None:
    if not function(torch.get_num_threads(), *args):
        raise MemoryError("there is no memory to pack the recurrent weights")


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _rows(given: Tensor) -> Tensor:
    """Steps and rows may lie anywhere, a row is dense."""
    return given if given.stride(-1) == 1 else given.contiguous()


def _strided(given: Tensor) -> tuple[int, int, int]:
    return given.data_ptr(), given.stride(0), given.stride(1)
