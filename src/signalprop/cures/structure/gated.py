"""Gated layers in place of plain recurrent ones: `lstm` and `gru`.

Each takes over the plain layer's weights as those of its candidate, so that the first step is about
as long as before, and is called as the plain layer is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.surgery import operate
from signalprop.errors import SignalpropError


class LSTMAsRNN(nn.LSTM):
    """LSTM that is called as `nn.RNN` is: it takes and returns one hidden state.

    A caller that hands back the h_n of the last call begins with c_0 = h_0, since the cell state is
    not among what a plain layer returns. A caller that hands in (h_0, c_0) gets (h_n, c_n).
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """(output, h_n), or (output, (h_n, c_n)) where a pair was given."""
        if hx is None or isinstance(hx, tuple):
            output, (h, c) = super().forward(input, hx)
        else:
            output, (h, c) = super().forward(input, (hx, hx))
        return output, ((h, c) if isinstance(hx, tuple) else h)


@cure("lstm", treats=("SP301", "SP302", "SP303", "SP308"))
def lstm(model: nn.Module, *, inplace: bool = False, forget_bias: float = 1.0) -> nn.Module:
    r"""Replace `nn.RNN` by an LSTM: c_t = f c_{t-1} + i g, h_t = o tanh(c_t).

    Along the cell the error signal of one step is multiplied by f alone (Hochreiter & Schmidhuber
    1997, section 4; forget gate: Gers, Schmidhuber & Cummins 2000). The candidate g has the
    weights of the plain layer, also where that had ReLU for tanh; the gates are drawn as `nn.LSTM`
    draws them, with torch's own random numbers, and the forget gate begins at sigmoid(forget_bias):
    1 keeps 73 % (Gers et al. 2000; Jozefowicz, Zaremba & Sutskever 2015).

    Layers, directions, dropout, batch_first, packed sequences and names stay; four times the
    parameters. Biases are added where there were none. Called as before, see `LSTMAsRNN`: the
    cell state is begun with h_0 where a caller hands in a state.

    Args:
        model: any module.
        inplace: change the model itself instead of a copy.
        forget_bias: of the forget gates at the start.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no `nn.RNN`.
        SignalpropError: the bias is not finite.
    """
    _finite("forget_bias", forget_bias)
    if not any(type(m) is nn.RNN for m in model.modules()):
        cells = any(type(m) is nn.RNNCell for m in model.modules())
        raise DoesNotApply(
            "an nn.RNNCell has no place for a cell state; the cure gru treats it"
            if cells
            else "there is no nn.RNN"
        )
    shared: dict[tuple[int, str], nn.Parameter] = {}

    def change(path: str, module: nn.Module) -> nn.Module | None:
        if type(module) is not nn.RNN:
            return None
        new = LSTMAsRNN(**_options(module))
        # gates are in the order i, f, g, o
        _carry(module, new, gate=2, biased=1, value=forget_bias, shared=shared)
        return new

    return operate(model, change, inplace=inplace)


@cure("gru", treats=("SP301", "SP302", "SP303", "SP308"))
def gru(model: nn.Module, *, inplace: bool = False, keep_bias: float = 1.0) -> nn.Module:
    r"""Replace `nn.RNN` by `nn.GRU`, `nn.RNNCell` by `nn.GRUCell`: h_t = z h_{t-1} + (1 - z) n.

    Past the candidate n the error signal of one step is multiplied by z alone (Cho et al. 2014,
    eq. 7, whose z this is). The candidate has the weights of the plain layer, also where that had
    ReLU for tanh; the gates are drawn as `nn.GRU` draws them, with torch's own random numbers, and
    z begins at sigmoid(keep_bias).

    Layers, directions, dropout, batch_first, packed sequences, names, and what is handed in and
    out stay; three times the parameters. Biases are added where there were none.

    Args:
        model: any module.
        inplace: change the model itself instead of a copy.
        keep_bias: of the gates z at the start.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is neither `nn.RNN` nor `nn.RNNCell`.
        SignalpropError: the bias is not finite.
    """
    _finite("keep_bias", keep_bias)
    if not any(type(m) in (nn.RNN, nn.RNNCell) for m in model.modules()):
        raise DoesNotApply("there is neither an nn.RNN nor an nn.RNNCell")
    shared: dict[tuple[int, str], nn.Parameter] = {}

    def change(path: str, module: nn.Module) -> nn.Module | None:
        if type(module) is nn.RNN:
            new: nn.Module = nn.GRU(**_options(module))
        elif type(module) is nn.RNNCell:
            new = nn.GRUCell(module.input_size, module.hidden_size)
        else:
            return None
        # gates are in the order r, z, n
        _carry(module, new, gate=2, biased=1, value=keep_bias, shared=shared)
        return new

    return operate(model, change, inplace=inplace)


def _options(rnn: nn.RNN) -> dict[str, Any]:
    """Arguments of a layer like this one, with biases."""
    return {
        "input_size": rnn.input_size,
        "hidden_size": rnn.hidden_size,
        "num_layers": rnn.num_layers,
        "batch_first": rnn.batch_first,
        "dropout": rnn.dropout,
        "bidirectional": rnn.bidirectional,
        "bias": True,
    }


def _carry(
    old: nn.Module,
    new: nn.Module,
    *,
    gate: int,
    biased: int,
    value: float,
    shared: dict[tuple[int, str], nn.Parameter],
) -> None:
    """Put the old weights into one gate, a bias into another, and keep ties, hooks and device."""
    like = next(old.parameters())
    new.to(device=like.device, dtype=like.dtype)
    size = getattr(old, "hidden_size", 0)
    assert isinstance(size, int)
    for name, made in list(new._parameters.items()):
        assert made is not None
        kept = old._parameters.get(name)
        if kept is not None and (id(kept), type(new).__name__) in shared:
            setattr(new, name, shared[id(kept), type(new).__name__])
            continue
        with torch.no_grad():
            rows = made[gate * size : (gate + 1) * size]
            if name.startswith("bias"):
                # of the two biases of a gate one is enough
                made[biased * size : (biased + 1) * size] = value if "ih" in name else 0.0
                rows.zero_()
            if kept is not None:
                rows.copy_(kept)
        made.requires_grad_((like if kept is None else kept).requires_grad)
        if kept is not None:
            shared[id(kept), type(new).__name__] = made
    for key, register in old.__dict__.items():
        if "_hooks" in key:
            new.__dict__[key] = register


def _finite(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not -1e4 < value < 1e4:
        raise SignalpropError(f"{name} has to be a finite number, for example 1.0, not {value!r}")
