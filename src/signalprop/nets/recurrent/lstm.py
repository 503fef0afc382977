r"""The LSTM of 1997, with forget gate, with peepholes, called and loaded as `torch.nn.LSTM` is."""

from __future__ import annotations

import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from signalprop.nets import _checks
from signalprop.nets.recurrent import _form
from signalprop.nets.recurrent._cells import Cell, Watch
from signalprop.nets.recurrent._form import S

Era = Literal["modern", "1997"]
States = tuple[Tensor, Tensor]


def run_direction(
    layer: LSTM,
    place: tuple[int, int],
    x: Tensor,
    there: Tensor | None,
    h: Tensor,
    c: Tensor,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of one layer: a function that a `TorchFunctionMode` sees, as torch's are.

    Args:
        layer: whose.
        place: number of the layer, and 1 if it reads from the end, else 0.
        x: (T, B, features).
        there: (T, B), where the sequences have entries; None where they have them everywhere.
        h: (B, H or projection), before the first step.
        c: (B, H).
        watch: see `Watch`.

    Returns:
        h_t at all times, and h and c behind the last step.
    """
    if has_torch_function((x, h, c)):
        return handle_torch_function(
            run_direction, (x, h, c), layer, place, x, there, h, c, watch=watch
        )
    return layer._cell(*place).run(x, there, h, c, reverse=place[1] == 1, watch=watch)


class LSTM(nn.RNNBase):
    r"""Long short-term memory, with or without forget gate, truncated gradient and peepholes.

    `cell="modern"` (Gers, Schmidhuber & Cummins 2000, "Learning to forget"), with
    net = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh:

        i, f, o = sigmoid(net_i), sigmoid(net_f), sigmoid(net_o), g = tanh(net_g)
        c_t = f c_{t-1} + i g,    h_t = o tanh(c_t)

    `cell="1997"` (Hochreiter & Schmidhuber 1997, "Long short-term memory"), without f, with
    g = 4 sigmoid(net_g) - 2 and the squashing 2 sigmoid(c) - 1:

        c_t = c_{t-1} + i g,    h_t = o (2 sigmoid(c_t) - 1)

    `truncated=True` takes the paper's gradient: an error that arrives at the net input of a gate or
    of the candidate changes its weights and goes to the layer below, but not back in time. What
    goes back in time runs along c alone: dc_t/dc_{t-1} is 1 in the cell of 1997, exactly, and
    diag(f_t) in the modern one. The forward pass is the same.

    `peepholes=True` (Gers, Schraudolph & Schmidhuber 2002, "Learning precise timing with LSTM
    recurrent networks"): p_i c_{t-1} is added to net_i, p_f c_{t-1} to net_f, p_o c_t to net_o,
    elementwise. Truncated, no error goes through them into c, as in that paper.

    Without these three this is `torch.nn.LSTM`: `plain` says so, torch's own kernels run (cuDNN,
    oneDNN), and the same seed gives the same weights. Otherwise it is a loop in Python.

    Parameters are named and laid out as those of `nn.LSTM`, whose `state_dict` can be loaded:
    without a forget gate its rows are left out, with a warning; peepholes it does not have become
    0, with which the layer computes what `nn.LSTM` does. Beside those there is `weight_c_l0` and so
    on, the peepholes of i, f and o in a row.

    Start: modern as `nn.LSTM`, U(-1/sqrt(H), 1/sqrt(H)), peepholes too. 1997: U(-0.1, 0.1), and the
    two remedies of the paper's section 4: input gates nearly shut, biases -3, so that c does not
    drift (nothing is ever forgotten, and with input gates half open the sum of all that came
    drowns the rest: the adding problem is then not learnt at T = 40); output gates -1, -2, -3, -1,
    ... from unit to unit, so that cells come into use one after the other. The paper's experiments
    have each their own biases: they are in `bias_ih_l0`, rows i, g, o; `bias_hh_l0` starts at 0.

    Dropout between layers is drawn as `nn.LSTM` on the CPU draws it, from torch's generator. cuDNN
    has its own: on CUDA the loop drops other units than `nn.LSTM` does.

    Args:
        input_size: as for `nn.LSTM`, like all up to `dtype`.
        hidden_size: cells H of a layer and direction.
        num_layers: layers.
        bias: whether there are biases.
        batch_first: whether sequences are (B, T, features).
        dropout: between layers.
        bidirectional: whether a second net reads from the end.
        proj_size: if above 0, h_t is W_hr times the above (Sak et al. 2014).
        device: of the parameters.
        dtype: of the parameters.
        cell: "modern" or "1997".
        truncated: whether errors go back in time along c alone.
        peepholes: whether the gates see the cells.
        forget_bias: b_f at the start, the sum of both biases of torch; 1 is a common choice.
        chrono: T, the longest lag there is: b_f = ln u with u ~ U(1, T - 1), b_i = -b_f at the
            start (Tallec & Ollivier 2018, "Can recurrent neural networks warp time?").

    Shape:
        (T, B, input_size), (T, input_size) or packed, and (h_0, c_0) or None, to the output
        of h_t from the last layer and (h_n, c_n), as for `nn.LSTM`.

    Raises:
        ValueError: an argument is out of range, or two contradict each other.
        TypeError: as from `nn.LSTM`.
    """

    # until __init__ is through, which builds the layer as nn.LSTM does first
    cell: Era = "modern"
    truncated: bool = False
    peepholes: bool = False
    forget_bias: float | None = None
    chrono: int | None = None
    _built: bool = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        cell: Era = "modern",
        truncated: bool = False,
        peepholes: bool = False,
        forget_bias: float | None = None,
        chrono: int | None = None,
    ) -> None:
        _check_options(cell, bias, forget_bias, chrono)
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self.cell = cell
        self.truncated, self.peepholes = bool(truncated), bool(peepholes)
        self.forget_bias, self.chrono = forget_bias, chrono
        if cell == "1997":
            for name in self._gated():
                p = getattr(self, name)
                setattr(self, name, nn.Parameter(p.new_empty((3 * hidden_size, *p.shape[1:]))))
        if peepholes:
            rows = (3 if cell == "modern" else 2) * hidden_size
            for name in self._peeps():
                like = self.weight_ih_l0
                self.register_parameter(name, nn.Parameter(cast(Tensor, like).new_empty(rows)))
        self._built = True
        self._init_flat_weights()
        self.reset_parameters()

    @property
    def plain(self) -> bool:
        """Whether this is what `nn.LSTM` computes, forward and backward."""
        return self.cell == "modern" and not self.truncated and not self.peepholes

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the docstring of the class says."""
        if not self._built:
            return
        if self.cell == "1997":
            self._as_in_1997()
            return
        super().reset_parameters()
        if self.forget_bias is None and self.chrono is None:
            return
        n = self.hidden_size
        with torch.no_grad():
            for first, second in self._biases():
                if self.chrono is None:
                    first[n : 2 * n] = cast(float, self.forget_bias)
                    second[n : 2 * n] = 0.0
                else:
                    first[n : 2 * n].uniform_(1.0, self.chrono - 1.0).log_()
                    first[:n] = -first[n : 2 * n]
                    second[: 2 * n] = 0.0

    def _as_in_1997(self) -> None:
        n = self.hidden_size
        with torch.no_grad():
            for p in self.parameters():
                p.uniform_(-0.1, 0.1)
            for first, second in self._biases():
                first[:n] = -3.0
                first[2 * n :] = -1.0 - (torch.arange(n, device=first.device) % 3).to(first.dtype)
                second.zero_()

    def flatten_parameters(self) -> None:
        """As in `nn.LSTM` where its kernels are used."""
        if self.plain:
            super().flatten_parameters()

    def extra_repr(self) -> str:
        """The arguments that are not the default."""
        said = super().extra_repr()
        for name in ("cell", "truncated", "peepholes", "forget_bias", "chrono"):
            value = getattr(self, name)
            if value != getattr(LSTM, name):
                said += f", {name}={value!r}"
        return said

    def forward(self, input: S, hx: States | None = None) -> tuple[S, States]:
        """(output, (h_n, c_n)), in the shapes of `nn.LSTM`.

        Args:
            input: (T, B, input_size), (B, T, input_size) with `batch_first`, (T, input_size), or a
                packed sequence.
            hx: (h_0, c_0), (layers x directions, B, H or projection) and (layers x directions, B,
                H), without B beside unbatched input; zeros if None.

        Returns:
            The output in the form of the input, and the states behind the last steps.

        Raises:
            ValueError: the input has another number of dimensions or another dtype.
            RuntimeError: a size does not fit, or there is no step, as from `nn.LSTM`.
        """
        if self.plain:
            run: Any = nn.LSTM.forward
            return run(self, input, hx)
        x, there = _form.opened("LSTM", input, self.batch_first)
        self.check_input(x, None)
        h_0, c_0 = self._begin(x, input, hx)
        directions = 2 if self.bidirectional else 1
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer:
                x = _form.dropped(x, there, self.dropout, self.training)
            read: list[Tensor] = []
            for direction in range(directions):
                at = layer * directions + direction
                out, h, c = run_direction(self, (layer, direction), x, there, h_0[at], c_0[at])
                read.append(out)
                h_n.append(h)
                c_n.append(c)
            x = torch.cat(read, -1) if directions == 2 else read[0]
        behind = _form.state_out(torch.stack(h_n), input), _form.state_out(torch.stack(c_n), input)
        return _form.closed(x, there, input, self.batch_first), behind

    # nn.LSTM.forward asks for these; RNNBase has them for one state
    check_forward_args: Any = nn.LSTM.check_forward_args
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    permute_hidden: Any = nn.LSTM.permute_hidden

    def _begin(self, x: Tensor, input: Tensor | PackedSequence, hx: States | None) -> States:
        """h_0 and c_0, (layers x directions, B, size)."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        h_shape = (count, x.shape[1], self.proj_size or self.hidden_size)
        c_shape = (count, x.shape[1], self.hidden_size)
        if hx is None:
            return x.new_zeros(h_shape), x.new_zeros(c_shape)
        h, c = (_form.state_in("LSTM", s, input) for s in hx)
        self.check_hidden_size(h, h_shape, "Expected hidden[0] size {}, got {}")
        self.check_hidden_size(c, c_shape, "Expected hidden[1] size {}, got {}")
        return h, c

    def _cell(self, layer: int, direction: int) -> Cell:
        end = f"_l{layer}{'_reverse' if direction else ''}"
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_c")
        held: dict[str, Any] = {part: getattr(self, part + end, None) for part in parts}
        return Cell(forget=self.cell == "modern", truncated=self.truncated, **held)

    def _gated(self) -> list[str]:
        """Names of the parameters with a row for every gate."""
        return [name for name in self._flat_weights_names if not name.startswith("weight_hr")]

    def _peeps(self) -> list[str]:
        return [n.replace("_ih", "_c") for n in self._flat_weights_names if "weight_ih" in n]

    def _biases(self) -> list[tuple[Tensor, Tensor]]:
        names = [name for name in self._flat_weights_names if name.startswith("bias_ih")]
        return [(getattr(self, n), getattr(self, n.replace("_ih", "_hh"))) for n in names]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        n = self.hidden_size
        if self.cell == "1997":
            cut = [
                name
                for name in self._gated()
                if isinstance(value := state_dict.get(prefix + name), Tensor)
                and value.shape[:1] == (4 * n,)
            ]
            for name in cut:
                value = state_dict[prefix + name]
                state_dict[prefix + name] = torch.cat([value[:n], value[2 * n :]])
            if cut:
                warnings.warn(
                    f"cell='1997' has no forget gate: its rows ({n} to {2 * n - 1}) of "
                    f"{', '.join(prefix + name for name in cut)} were left out",
                    stacklevel=2,
                )
        peeps = self._peeps() if self.peepholes else []
        given = any(name.startswith(prefix + "weight_c_") for name in state_dict)
        like = state_dict.get(prefix + "weight_ih_l0")
        if isinstance(like, Tensor) and not given:
            for name in peeps:
                state_dict[prefix + name] = like.new_zeros(getattr(self, name).shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_options(cell: str, bias: bool, forget_bias: float | None, chrono: int | None) -> None:
    """One clear sentence where options make no sense, alone or together."""
    if cell not in ("modern", "1997"):
        raise ValueError(f"cell has to be 'modern' or '1997', not {cell!r}")
    if forget_bias is not None and chrono is not None:
        raise ValueError("forget_bias and chrono both set the forget gate's bias; give one of them")
    name = "forget_bias" if forget_bias is not None else "chrono" if chrono is not None else None
    if name is None:
        return
    if cell == "1997":
        raise ValueError(f"cell='1997' has no forget gate: leave out {name}, or use cell='modern'")
    if not bias:
        raise ValueError(f"{name} needs biases: leave it out, or use bias=True")
    if forget_bias is not None:
        _checks.number("forget_bias", forget_bias)
    if chrono is not None:
        _checks.whole("chrono", chrono, 3)
