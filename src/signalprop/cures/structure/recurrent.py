"""Initial values of recurrent layers: what they remember at the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.structure.flow import flow
from signalprop.cures.surgery import copied
from signalprop.errors import SignalpropError
from signalprop.nets.recurrent.starts import identity_rnn_, orthogonal_recurrent_

_LSTMS = (nn.LSTM, nn.LSTMCell)
_GRUS = (nn.GRU, nn.GRUCell)
_PLAIN = (nn.RNN, nn.RNNCell)


@cure("forget-bias", treats=("SP301", "SP303", "SP304"))
def forget_bias(model: nn.Module, *, inplace: bool = False, value: float = 1.0) -> nn.Module:
    r"""Set the bias of every LSTM forget gate, so that it begins by remembering.

    A cell keeps about sigmoid(value) of itself per step: it forgets to 1/e in
    -1 / ln sigmoid(value) steps, 3.2 for 1, 20.6 for 3; as torch draws it, 1.4 (Gers, Schmidhuber &
    Cummins 2000; Jozefowicz, Zaremba & Sutskever 2015). torch adds two biases: one is
    set, the other is zero.

    Args:
        model: any module.
        inplace: change the model itself instead of a copy.
        value: of the bias.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no LSTM with biases, or they have this value.
        SignalpropError: the value is not finite.
    """
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SignalpropError(f"value has to be a finite number, for example 1.0, not {value!r}")
    held = list(_biases(model, _LSTMS))
    if not held:
        raise DoesNotApply("there is no LSTM with biases")
    if all(((a + b)[n : 2 * n] == value).all() for _, a, b, n in held):
        raise DoesNotApply(f"every forget gate has the bias {value:g} already")

    def change(root: nn.Module) -> None:
        for _, first, second, n in _biases(root, _LSTMS):
            first[n : 2 * n] = value
            second[n : 2 * n] = 0.0

    return _changed(model, change, inplace)


@cure("chrono", treats=("SP301", "SP303", "SP304"), changes="model with data")
def chrono(
    model: nn.Module, data: Any, *, inplace: bool = False, longest: int | None = None
) -> nn.Module:
    r"""Spread what gated units remember over all times up to the length of the sequences.

    LSTM: b_f = ln u, u ~ U(1, T - 1), b_i = -b_f (Tallec & Ollivier 2018, the chrono
    initialisation), so that a unit forgets to 1/e in about u steps. GRU: the gate that keeps the
    state gets ln u, the same for a cell with tied gates. Random numbers are torch's own. torch adds
    two biases: one is set, the other is zero.

    Args:
        model: any module.
        data: a batch, of which the sequences' length T is taken: of a layer its longest sequence,
            of a cell how often it is called in a pass.
        inplace: change the model itself instead of a copy.
        longest: T, where the data's is not meant: the lag of the task, where it is known.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is neither LSTM nor GRU with biases, or none has three steps to go.
        SignalpropError: the model cannot be run on the data, or `longest` is below 3.
    """
    if longest is not None and (not isinstance(longest, int) or longest < 3):
        raise SignalpropError(f"longest has to be a whole number from 3 up, not {longest!r}")
    if not any(True for _ in _biases(model, _LSTMS + _GRUS)):
        raise DoesNotApply("there is neither an LSTM nor a GRU with biases")
    steps = {} if longest is not None else _steps(model, data)
    lengths = {
        path: longest if longest is not None else steps.get(path, 0)
        for path, _, _, _ in _biases(model, _LSTMS + _GRUS)
    }
    if max(lengths.values()) < 3:
        raise DoesNotApply("no LSTM or GRU sees three steps or more; name the length: longest=100")

    def change(root: nn.Module) -> None:
        for path, first, second, n in _biases(root, _LSTMS + _GRUS):
            if lengths[path] < 3:
                continue
            span = torch.empty(n, dtype=torch.float64).uniform_(1.0, lengths[path] - 1.0).log()
            gates = first.shape[0] // n
            # LSTM: i, f, g, o; GRU: r, z, n with z the gate that keeps
            for gate, value in ((1, span), (0, -span))[: 2 if gates == 4 else 1]:
                first[gate * n : (gate + 1) * n] = value.to(first)
                second[gate * n : (gate + 1) * n] = 0.0

    return _changed(model, change, inplace)


@cure("identity-recurrent", treats=("SP301", "SP302", "SP303", "SP308"))
def identity_recurrent(
    model: nn.Module, *, inplace: bool = False, input_std: float | None = None
) -> nn.Module:
    r"""Start plain recurrent layers with a recurrence that keeps every length.

    ReLU: W_hh = I and biases 0 (Le, Jaitly & Hinton 2015): a state that is not negative
    stays as it is, and so does the error signal. tanh: W_hh a random orthogonal matrix (Saxe,
    McClelland & Ganguli 2014; Henaff, Szlam & LeCun 2016), drawn with torch's own random numbers,
    and biases 0: no direction is stretched, and what shrinks is the slope of tanh alone.

    Args:
        model: any module.
        inplace: change the model itself instead of a copy.
        input_std: standard deviation of the input weights of ReLU layers, 0.001 in the paper; None
            leaves them.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no `nn.RNN` or `nn.RNNCell`.
        SignalpropError: `input_std` is no standard deviation.
    """
    if input_std is not None and not 0 < input_std < math.inf:
        raise SignalpropError(f"input_std has to be above 0, for example 0.001, not {input_std!r}")
    if not any(isinstance(m, _PLAIN) for m in model.modules()):
        raise DoesNotApply("there is neither an nn.RNN nor an nn.RNNCell")

    def change(root: nn.Module) -> None:
        if any(isinstance(m, _PLAIN) and m.nonlinearity == "relu" for m in root.modules()):
            identity_rnn_(root, input_std=input_std)
        for module in root.modules():
            if isinstance(module, _PLAIN) and module.nonlinearity == "tanh":
                orthogonal_recurrent_(module, zero_bias=True)

    return _changed(model, change, inplace)


@cure(
    "orthogonal-recurrent",
    treats=("SP301", "SP302", "SP303", "SP305", "SP307", "SP308"),
)
def orthogonal_recurrent(
    model: nn.Module, *, inplace: bool = False, gain: float = 1.0
) -> nn.Module:
    r"""Start every recurrence with an orthogonal matrix, that of each gate by itself.

    All singular values of W_hh are `gain` (Saxe, McClelland & Ganguli 2014; Henaff, Szlam & LeCun
    2016): with 1 no direction is stretched, and what shrinks is the slopes alone. Input weights and
    biases stay. Random numbers are torch's own.

    Args:
        model: any module.
        inplace: change the model itself instead of a copy.
        gain: of the matrices.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no recurrent layer or cell of torch.
        SignalpropError: the gain is not a number above 0.
    """
    if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0 < gain < math.inf:
        raise SignalpropError(f"gain has to be a number above 0, for example 1.0, not {gain!r}")
    if not any(isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in model.modules()):
        raise DoesNotApply("there is no recurrent layer or cell of torch")
    return _changed(model, lambda root: orthogonal_recurrent_(root, gain), inplace)


def _changed(model: nn.Module, change: Callable[[nn.Module], object], inplace: bool) -> nn.Module:
    root = model if inplace else copied(model)
    with torch.no_grad():
        change(root)
    return root


def _biases(
    model: nn.Module, kinds: tuple[type[nn.Module], ...]
) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """(path, b_ih, b_hh, units) of every layer and direction of the gated modules, once."""
    done: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, kinds):
            continue
        n = module.hidden_size
        assert isinstance(n, int)
        for name, first in module._parameters.items():
            second = module._parameters.get(name.replace("bias_ih", "bias_hh"))
            if not name.startswith("bias_ih") or first is None or second is None:
                continue
            if id(first) not in done:
                done.add(id(first))
                yield path, first, second, n


def _steps(model: nn.Module, data: Any) -> dict[str, int]:
    """How many steps every recurrent module sees on the data."""
    seen = flow(model, data)
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        calls = seen.calls.get(path, [])
        if not calls:
            continue
        if isinstance(module, nn.RNNCellBase):
            found[path] = len(calls)
        elif isinstance(module, nn.RNNBase):
            found[path] = max(_length(module, c.given, c.steps) for c in calls)
    return found


def _length(layer: nn.RNNBase, given: tuple[int, ...] | None, packed: int) -> int:
    """Steps of a sequence: (steps, features), (steps, batch, features) or the batch first."""
    if given is None or packed:
        return packed
    return given[1 if layer.batch_first and len(given) == 3 else 0]
