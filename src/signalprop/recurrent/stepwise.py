"""`deltas="all"`: every dL/dh_t and dL/dc_t, by cells that write them down on the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.recurrent.call import Weights, going
from signalprop.recurrent.cells.gru import GRU
from signalprop.recurrent.cells.lstm import LSTM
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.cells.rnn import RNN
from signalprop.recurrent.fused.lstm import FusedLSTM, available


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
        mask = ended(x, sizes)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            narrow = torch.get_autocast_dtype(kind)
            with torch.autocast(kind, enabled=False):
                x = x.to(narrow)
                states = tuple(s.to(narrow) for s in states)
                return run(self.op, x, states, cast(weights, narrow), mask, deltas)
        return run(self.op, x, states, weights, mask, deltas)


def run(
    op: str,
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: Weights,
    mask: Tensor | None,
    deltas: Deltas,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction.

    Args:
        op: as for `Stepwise`.
        x: (T, B, I).
        states: h_0, and c_0 of an LSTM.
        weights: of the layer.
        mask: (T, B, 1), False where a sequence has ended, or None.
        deltas: gets what is seen.

    Returns:
        The output (T, B, P), and the last states.

    Raises:
        SignalpropError: shapes do not fit each other.
    """
    _fitting(op, x, states, weights)
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    if op == "gru":
        output, *finals = GRU.apply(x, w_ih, b_ih, w_hh, b_hh, states[0], mask, deltas)
        return output, tuple(finals)
    bias = None if b_ih is None or b_hh is None else b_ih + b_hh
    if op == "lstm":
        layer = FusedLSTM if available(x, w_ih, w_hh, w_hr) else LSTM
        output, *finals = layer.apply(x, w_ih, bias, w_hh, *states, w_hr, mask, deltas)
    else:
        output, *finals = RNN.apply(x, w_ih, bias, w_hh, states[0], mask, op == "rnn_relu", deltas)
    return output, tuple(finals)


def _fitting(op: str, x: Tensor, states: tuple[Tensor, ...], weights: Weights) -> None:
    """What torch's modules have looked at before; nobody has where a function is called itself."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    gates = {"lstm": 4, "gru": 3}.get(op, 1)
    (rows, width), (_, made) = x.shape[1:], w_hh.shape
    hidden = made if w_hr is None else w_hr.shape[1]
    expected = [(w_ih, (gates * hidden, width)), (w_hh, (gates * hidden, made))]
    expected += [(b, (gates * hidden,)) for b in (b_ih, b_hh) if b is not None]
    expected += [(w_hr, (made, hidden))] if w_hr is not None else []
    expected += zip(states, ((rows, made), (rows, hidden)), strict=False)
    for tensor, shape in expected:
        if tuple(tensor.shape) != shape:
            raise SignalpropError(
                f"input, states and weights of {op} do not fit each other: a tensor of shape "
                f"{tuple(tensor.shape)} stands where {shape} should; give them as torch.nn does"
            )


def ended(x: Tensor, sizes: Tensor | None) -> Tensor | None:
    """Where sequences have ended.

    Args:
        x: (T, B, I).
        sizes: sequences that are still going at every step, or None.

    Returns:
        (T, B, 1), False where one has ended; None where all are whole.
    """
    if sizes is None or int(sizes[-1]) == x.shape[1]:
        return None
    return going(sizes, x.shape[1], x.device)[..., None]


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    """The weights in another dtype."""
    a, b, c, d, e = (None if w is None else w.to(dtype) for w in weights)
    assert a is not None
    assert b is not None
    return a, b, c, d, e
