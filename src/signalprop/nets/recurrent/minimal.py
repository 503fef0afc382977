r"""minGRU and minLSTM: gated layers whose gates do not see the state, so that time is no loop.

Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, "Were RNNs All We Needed?" (arXiv:2410.01201). With
gates of the input alone the state follows a linear recurrence with one number per unit and step,

    h_t = a_t h_{t-1} + (1 - a_t) g_t,    0 < a_t < 1, elementwise,

so dh_T/dh_t is diag(a_{t+1} ... a_T): its singular values are known exactly, without a product of
matrices, and none is above 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from signalprop.nets import _checks
from signalprop.nets.recurrent import _form
from signalprop.nets.recurrent._form import S
from signalprop.nets.recurrent._scan import linear_scan


def run_recurrence(
    layer: _Minimal, place: tuple[int, int], a: Tensor, b: Tensor, there: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t: a function that a `TorchFunctionMode` sees, as torch's are.

    Args:
        layer: whose.
        place: number of the layer, and 1 if it reads from the end, else 0.
        a: (T, B, H).
        b: (T, B, H).
        there: (T, B), where the sequences have entries; None where they have them everywhere.
        h: (B, H), before the first step.

    Returns:
        h_t at all times, and h behind the last step.
    """
    if has_torch_function((a, b, h)):
        return handle_torch_function(run_recurrence, (a, b, h), layer, place, a, b, there, h)
    if there is not None:
        # the state waits where a sequence has no entry
        on = there.unsqueeze(-1)
        a, b = torch.where(on, a, 1.0), torch.where(on, b, 0.0)
    if place[1]:
        states = linear_scan(a.flip(0), b.flip(0), h)
        return states.flip(0), states[-1]
    states = linear_scan(a, b, h)
    return states, states[-1]


class _Minimal(nn.Module):
    """The linear recurrence, whatever makes its gate; called as `nn.GRU` is."""

    #: blocks of rows of a weight
    rows: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        positive: bool = False,
        forget_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.input_size = _checks.whole("input_size", input_size)
        self.hidden_size = _checks.whole("hidden_size", hidden_size)
        self.num_layers = _checks.whole("num_layers", num_layers)
        if not 0.0 <= _checks.number("dropout", dropout) <= 1.0:
            raise ValueError(f"dropout has to lie between 0 and 1, not at {dropout!r}")
        if forget_bias is not None and not bias:
            raise ValueError("forget_bias needs biases: leave it out, or use bias=True")
        _form.warn_of_idle_dropout(dropout, num_layers)
        self.bias, self.batch_first, self.dropout = bool(bias), bool(batch_first), float(dropout)
        self.bidirectional, self.positive = bool(bidirectional), bool(positive)
        self.forget_bias = (
            None if forget_bias is None else _checks.number("forget_bias", forget_bias)
        )
        self._directions = 2 if bidirectional else 1
        size = self.rows * hidden_size
        for layer in range(num_layers):
            fan_in = hidden_size * self._directions if layer else input_size
            for end in self._ends(layer):
                weight = torch.empty(size, fan_in, device=device, dtype=dtype)
                self.register_parameter("weight_ih" + end, nn.Parameter(weight))
                if self.bias:
                    empty = torch.empty(size, device=device, dtype=dtype)
                    self.register_parameter("bias_ih" + end, nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters as `nn.Linear` does, U(-1, 1) / sqrt(fan_in); then `forget_bias`."""
        with torch.no_grad():
            for layer in range(self.num_layers):
                for end in self._ends(layer):
                    weight, bias = self._affine(end)
                    bound = 1.0 / math.sqrt(weight.shape[1])
                    weight.uniform_(-bound, bound)
                    if bias is not None:
                        bias.uniform_(-bound, bound)
                        if self.forget_bias is not None:
                            self._remember(bias, self.forget_bias)

    def extra_repr(self) -> str:
        """The sizes, and the arguments that are not the default."""
        said = f"{self.input_size}, {self.hidden_size}"
        plain: dict[str, Any] = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "positive": False,
            "forget_bias": None,
        }
        for name, value in plain.items():
            if getattr(self, name) != value:
                said += f", {name}={getattr(self, name)!r}"
        return said

    def forward(self, input: S, hx: Tensor | None = None) -> tuple[S, Tensor]:
        """(output, h_n), in the shapes of `nn.GRU`.

        Args:
            input: (T, B, input_size), (B, T, input_size) with `batch_first`, (T, input_size), or a
                packed sequence.
            hx: h_0, (layers x directions, B, H), without B beside unbatched input; zeros if None.

        Returns:
            The output in the form of the input, and h behind the last steps.

        Raises:
            ValueError: the input has another number of dimensions or another dtype.
            RuntimeError: a size does not fit, or there is no step.
            TypeError: `hx` is a pair of states; there is one.
        """
        x, there = _form.opened(type(self).__name__, input, self.batch_first)
        given = None if hx is None else self._state(hx, input)
        out, behind = self._run(x, there, given)
        return _form.closed(out, there, input, self.batch_first), _form.state_out(behind, input)

    def decays(self, input: S, *, layer: int = -1) -> S:
        """The logarithms ln a_t of every step and unit of a layer: its exact spectrum.

        dh_T/dh_t = diag(exp(sum of ln a over t+1 ... T)), for the layer's own recurrence, which its
        input does not depend on. A unit forgets to 1/e in -1 / ln a steps. The decays depend on no
        state of the layer; those of a higher one depend on the states below, which begin at zero
        here and without dropout. The second direction reads backwards: its a_t leads from t + 1
        to t.

        Args:
            input: as for `forward`.
            layer: which one; the last by default.

        Returns:
            ln a in the form of the output, (T, B, directions x H).

        Raises:
            ValueError: there is no such layer, or as from `forward`.
            RuntimeError: as from `forward`.
        """
        if not -self.num_layers <= layer < self.num_layers:
            raise ValueError(
                f"there are {self.num_layers} layers, and layer {layer!r} is none of them"
            )
        x, there = _form.opened(type(self).__name__, input, self.batch_first)
        h_0 = self._checked(x, None)
        layer %= self.num_layers
        for below in range(layer):
            x = self._layer(below, x, there, h_0)[0]
        logs = [F.logsigmoid(-self._gate(x, end)[0]) for end in self._ends(layer)]
        return _form.closed(torch.cat(logs, -1), there, input, self.batch_first)

    def step(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of all layers, for input that comes piece by piece.

        Args:
            x: (B, input_size) or (input_size,).
            h: (layers, B, H) or (layers, H), the states; zeros if None.

        Returns:
            The output (B, H) or (H,), and the new states.

        Raises:
            ValueError: the layer is bidirectional, which needs the whole sequence.
            RuntimeError: a size does not fit.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional layer has no steps: it needs the whole sequence")
        if x.dim() not in (1, 2):
            raise ValueError(f"expected one step, (B, {self.input_size}), got {tuple(x.shape)}")
        single = x.dim() == 1
        if h is not None:
            # (features,) is to a step what (T, features) is to a sequence
            h = _form.state_in(type(self).__name__, h, x.unsqueeze(0))
        out, behind = self._run((x.unsqueeze(0) if single else x).unsqueeze(0), None, h)
        return (out[0, 0], behind.squeeze(1)) if single else (out[0], behind)

    def _state(self, hx: Tensor, input: Tensor | PackedSequence) -> Tensor:
        if not isinstance(hx, Tensor):
            raise TypeError(
                f"{type(self).__name__}: hx has to be one state h_0, not a {type(hx).__name__}; "
                "there is no c_0"
            )
        return _form.state_in(type(self).__name__, hx, input)

    def _checked(self, x: Tensor, h_0: Tensor | None) -> Tensor:
        """h_0, (layers x directions, B, H), if it and the sequences (T, B, features) fit."""
        name = type(self).__name__
        dtype = self._affine("_l0")[0].dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"{name}: input dtype ({x.dtype}) does not match weight dtype ({dtype}); convert "
                "one of them"
            )
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{name}: input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {x.shape[-1]}"
            )
        shape = (self.num_layers * self._directions, x.shape[1], self.hidden_size)
        if h_0 is None:
            return x.new_zeros(shape)
        if h_0.shape != shape:
            raise RuntimeError(f"{name}: Expected hidden size {shape}, got {list(h_0.shape)}")
        return h_0

    def _run(self, x: Tensor, there: Tensor | None, h_0: Tensor | None) -> tuple[Tensor, Tensor]:
        """(T, B, directions x H) of the last layer, and h behind the last steps of all."""
        h_0 = self._checked(x, h_0)
        behind: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer:
                x = _form.dropped(x, there, self.dropout, self.training)
            x, last = self._layer(layer, x, there, h_0)
            behind += last
        return x, torch.stack(behind)

    def _layer(
        self, layer: int, x: Tensor, there: Tensor | None, h_0: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The states of a layer at all times, (T, B, directions x H), and the last ones."""
        read: list[Tensor] = []
        last: list[Tensor] = []
        for direction, end in enumerate(self._ends(layer)):
            gate, candidate = self._gate(x, end)
            a, b = torch.sigmoid(-gate), torch.sigmoid(gate) * candidate
            start = h_0[layer * self._directions + direction].to(a.dtype)
            h, behind = run_recurrence(self, (layer, direction), a, b, there, start)
            last.append(behind.to(x.dtype))
            read.append(h)
        return torch.cat(read, -1).to(x.dtype), last

    def _nets(self, x: Tensor, end: str) -> Tensor:
        """The affine maps of the input, in float32 at least: a sum over time needs it."""
        net = F.linear(x, *self._affine(end))
        return net.float() if net.dtype in (torch.float16, torch.bfloat16) else net

    def _gate(self, x: Tensor, end: str) -> tuple[Tensor, Tensor]:
        """The logit of 1 - a, and g."""
        raise NotImplementedError

    def _remember(self, bias: Tensor, value: float) -> None:
        """Set the part of a bias with which a = sigmoid(value) where the weights add nothing."""
        raise NotImplementedError

    def _candidate(self, net: Tensor) -> Tensor:
        return torch.where(net >= 0, net + 0.5, torch.sigmoid(net)) if self.positive else net

    def _ends(self, layer: int) -> tuple[str, ...]:
        """What the names of a layer's parameters end in, for each direction."""
        return (f"_l{layer}", f"_l{layer}_reverse")[: self._directions]

    def _affine(self, end: str) -> tuple[Tensor, Tensor | None]:
        return getattr(self, "weight_ih" + end), getattr(self, "bias_ih" + end, None)


class MinGRU(_Minimal):
    r"""minGRU, called as `nn.GRU` is: h_t = (1 - z_t) h_{t-1} + z_t g_t, all steps at once.

    z_t = sigmoid(W_z x_t + b_z), g_t = W_h x_t + b_h: Feng et al. 2024, section 3.1.3; with
    `positive` g(W_h x_t + b_h), g(v) = v + 0.5 for v >= 0 and sigmoid(v) below, as their algorithm
    in logarithms has it. The scan here needs no positive states, see `linear_scan`; float16 and
    bfloat16 are summed in float32.

    `weight_ih_l0` and `bias_ih_l0` have the rows z, h; there is no `weight_hh`. Drawn as by
    `nn.Linear`, which the paper takes.

    Args:
        input_size: features.
        hidden_size: units H of a layer and direction.
        num_layers: layers.
        bias: whether there are biases.
        batch_first: whether sequences are (B, T, features).
        dropout: between layers.
        bidirectional: whether a second net reads from the end.
        device: of the parameters.
        dtype: of the parameters.
        positive: whether the candidates are positive.
        forget_bias: -b_z at the start; large remembers: a = sigmoid(forget_bias).

    Shape:
        (T, B, input_size), (T, input_size) or packed, and h_0 or None, to the output and h_n, as
        for `nn.GRU`.

    Raises:
        ValueError: an argument is out of range, or two contradict each other.
    """

    rows = 2

    def _gate(self, x: Tensor, end: str) -> tuple[Tensor, Tensor]:
        z, g = self._nets(x, end).chunk(2, -1)
        return z, self._candidate(g)

    def _remember(self, bias: Tensor, value: float) -> None:
        bias[: self.hidden_size] = -value


class MinLSTM(_Minimal):
    r"""minLSTM: h_t = f' h_{t-1} + i' g_t with f' = f / (f + i), i' = i / (f + i), all at once.

    f_t = sigmoid(W_f x_t + b_f), i_t = sigmoid(W_i x_t + b_i), g_t = W_h x_t + b_h: Feng et al.
    2024, section 3.2. There is one state, so it is called as `nn.GRU` is and not as `nn.LSTM`.
    `positive` and the scan as for `MinGRU`; f' and i' are computed from logarithms, so that two
    closed gates do not divide 0 by 0.

    `weight_ih_l0` and `bias_ih_l0` have the rows f, i, h; there is no `weight_hh`. Drawn as by
    `nn.Linear`, which the paper takes.

    Args:
        input_size: features.
        hidden_size: units H of a layer and direction.
        num_layers: layers.
        bias: whether there are biases.
        batch_first: whether sequences are (B, T, features).
        dropout: between layers.
        bidirectional: whether a second net reads from the end.
        device: of the parameters.
        dtype: of the parameters.
        positive: whether the candidates are positive.
        forget_bias: b_f at the start, with b_i = -b_f; a = sigmoid(forget_bias) then.

    Shape:
        (T, B, input_size), (T, input_size) or packed, and h_0 or None, to the output and h_n, as
        for `nn.GRU`.

    Raises:
        ValueError: an argument is out of range, or two contradict each other.
    """

    rows = 3

    def _gate(self, x: Tensor, end: str) -> tuple[Tensor, Tensor]:
        f, i, g = self._nets(x, end).chunk(3, -1)
        # ln i - ln f
        return F.softplus(-f) - F.softplus(-i), self._candidate(g)

    def _remember(self, bias: Tensor, value: float) -> None:
        # f / (f + i) = sigmoid(value) exactly where i = 1 - f
        bias[: self.hidden_size] = value
        bias[self.hidden_size : 2 * self.hidden_size] = -value
