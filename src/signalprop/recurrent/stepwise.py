"""`deltas="all"`: every dL/dh_t and dL/dc_t, by cells that write them down on the way back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from signalprop.recurrent.call import Weights, going
from signalprop.recurrent.cells.gru import GRU
from signalprop.recurrent.cells.lstm import LSTM
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.cells.rnn import RNN


class Stepwise:
    """Runs layers step by step.

    Args:
        op: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.

    Attributes:
        seen: what is written down, by layer and direction.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.seen: dict[tuple[int, int], Deltas] = {}

    def __call__(
        self,
        place: tuple[int, int],
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        sizes: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer in one direction."""
        deltas = self.seen[place] = Deltas()
        mask = None
        if sizes is not None and int(sizes[-1]) < x.shape[1]:
            mask = going(sizes, x.shape[1], x.device)[..., None]
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            narrow = torch.get_autocast_dtype(kind)
            with torch.autocast(kind, enabled=False):
                x = x.to(narrow)
                states = tuple(s.to(narrow) for s in states)
                return self._run(x, states, _cast(weights, narrow), mask, deltas)
        return self._run(x, states, weights, mask, deltas)

    def _run(
        self,
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        mask: Tensor | None,
        deltas: Deltas,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        w_ih, w_hh, b_ih, b_hh, w_hr = weights
        if self.op == "gru":
            pre = F.linear(x, w_ih, b_ih)
            output, *finals = GRU.apply(pre, w_hh, b_hh, states[0], mask, deltas)
            return output, tuple(finals)
        bias = None if b_ih is None or b_hh is None else b_ih + b_hh
        pre = F.linear(x, w_ih, bias)
        if self.op == "lstm":
            output, *finals = LSTM.apply(pre, w_hh, *states, w_hr, mask, deltas)
        else:
            relu = self.op == "rnn_relu"
            output, *finals = RNN.apply(pre, w_hh, states[0], mask, relu, deltas)
        return output, tuple(finals)


def _cast(weights: Weights, dtype: torch.dtype) -> Weights:
    a, b, c, d, e = (None if w is None else w.to(dtype) for w in weights)
    assert a is not None
    assert b is not None
    return a, b, c, d, e
