"""A call of torch's recurrent functions, taken apart into layers and directions.

`nn.RNN`, `nn.GRU` and `nn.LSTM` all end in one of four functions of torch, which hide the steps.
Here such a call is run layer by layer and direction by direction, each by a `Run` that can see
them: with the same weights, dropout drawn from the same random numbers, and results of the same
form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: weights of one layer in one direction: w_ih, w_hh, b_ih, b_hh, w_hr; None where there is none
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
#: (layer and direction, input (T, B, I), states, weights, lengths) -> (output (T, B, P), states)
Run = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]

OPS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        op: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        given: input (T, B, I), or the rows (N, I) of a packed one.
        sizes: sequences that are still going at every step, of a packed input; else None.
        states: h_0 (layers x directions, B, P), and c_0 of an LSTM.
        weights: by layer and direction.
        dropout: between layers; 0 where it is not trained.
        directions: 1 or 2.
        batch_first: whether input and output are (B, T, ...).
    """

    op: str
    given: Tensor
    sizes: Tensor | None
    states: tuple[Tensor, ...]
    weights: tuple[tuple[Weights, ...], ...]
    dropout: float
    directions: int
    batch_first: bool

    @classmethod
    def of(cls, op: str, args: Sequence[Any]) -> Call:
        """Take a call apart, by position, as torch's modules make it."""
        packed = isinstance(args[3], (list, tuple))  # data, batch_sizes, hx, params, ...
        if packed:
            given, sizes, states, flat, biases, layers, dropout, train, both = args[:9]
            first = False
        else:
            given, states, flat, biases, layers, dropout, train, both, first = args[:9]
            sizes = None
        states = tuple(states) if op == "lstm" else (states,)
        directions = 2 if both else 1
        each = len(flat) // (layers * directions)
        sets = [tuple(flat[i : i + each]) for i in range(0, len(flat), each)]
        weights = [_weights(one, biases) for one in sets]
        return cls(
            op,
            given.transpose(0, 1) if first else given,
            sizes,
            states,
            tuple(tuple(weights[i : i + directions]) for i in range(0, len(weights), directions)),
            dropout if train else 0.0,
            directions,
            first,
        )

    @property
    def steps(self) -> int:
        """Steps of the longest sequence."""
        return len(self.given) if self.sizes is None else len(self.sizes)

    def run(self, run: Run) -> tuple[Tensor, ...]:
        """Run it, each layer and direction by `run`.

        Args:
            run: see `Run`.

        Returns:
            What torch's function returns: the output, h_n, and c_n of an LSTM.
        """
        x, finals = self.given, list[tuple[Tensor, ...]]()
        mask = None
        if self.sizes is not None:
            mask = going(self.sizes, int(self.sizes[0]), self.given.device)
        for layer, both in enumerate(self.weights):
            if layer and self.dropout:
                x = torch.dropout(x, self.dropout, train=True)
            whole = x if mask is None else padded(x, mask)
            made = []
            for direction, weights in enumerate(both):
                place = layer * self.directions + direction
                states = tuple(s[place] for s in self.states)
                given = turned(whole, self.sizes) if direction else whole
                output, states = run((layer, direction), given, states, weights, self.sizes)
                made.append(turned(output, self.sizes) if direction else output)
                finals.append(states)
            whole = torch.cat(made, -1) if len(made) > 1 else made[0]
            x = whole if mask is None else whole[mask]
        output = x.transpose(0, 1) if self.batch_first else x
        return (output, *(torch.stack(parts) for parts in zip(*finals, strict=True)))

    def tensors(self) -> list[Tensor]:
        """Everything that may need a gradient, each once."""
        flat = [w for both in self.weights for one in both for w in one if w is not None]
        return list({id(x): x for x in (self.given, *self.states, *flat)}.values())

    def replaced(self, new: Mapping[int, Tensor]) -> Call:
        """The same call with other tensors, by the id of those that they stand for."""

        def one(weights: Weights) -> Weights:
            a, b, c, d, e = (None if w is None else new[id(w)] for w in weights)
            assert a is not None
            assert b is not None
            return a, b, c, d, e

        return replace(
            self,
            given=new[id(self.given)],
            states=tuple(new[id(s)] for s in self.states),
            weights=tuple(tuple(map(one, both)) for both in self.weights),
        )


def _weights(given: Sequence[Tensor], biases: bool) -> Weights:
    w_ih, w_hh, *rest = given
    b_ih, b_hh = rest[:2] if biases else (None, None)
    rest = rest[2:] if biases else rest
    return w_ih, w_hh, b_ih, b_hh, rest[0] if rest else None


def going(sizes: Tensor, batch: int, device: torch.device) -> Tensor:
    """(T, B), True where a sequence has not ended, from how many are left at every step."""
    return torch.arange(batch, device=device) < sizes.to(device)[:, None]


def padded(rows: Tensor, mask: Tensor) -> Tensor:
    """(N, F) -> (T, B, F), zeros where a sequence has ended."""
    return rows.new_zeros(*mask.shape, rows.shape[-1]).index_put((mask,), rows)


def by_torch(
    function: Callable[..., Any],
    op: str,
    x: Tensor,
    states: tuple[Tensor, ...],
    flat: list[Tensor],
    biases: bool,
    sizes: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction, or some of its steps, by torch's own function.

    Args:
        function: torch's.
        op: its name.
        x: (T, B, I).
        states: (B, P) each.
        flat: the weights, as torch's modules list them.
        biases: whether biases are among them.
        sizes: sequences that are still going at every step; None where all are.

    Returns:
        The output (T, B, P), and the states behind the last step.
    """
    alive = x.shape[1] if sizes is None else int(sizes[0])
    handed = tuple(s[None, :alive] for s in states)
    hx = handed if op == "lstm" else handed[0]
    train = torch.is_grad_enabled()  # cuDNN goes back only where it was told so
    if sizes is None:
        output, *ends = function(x, hx, flat, biases, 1, 0.0, train, False, False)
        return output, tuple(s[0] for s in ends)
    mask = going(sizes, x.shape[1], x.device)
    rows, *ends = function(x[mask], sizes, hx, flat, biases, 1, 0.0, train, False)
    both = zip(ends, states, strict=True)
    return padded(rows, mask), tuple(torch.cat([e[0], s[alive:]]) for e, s in both)


def turned(x: Tensor, sizes: Tensor | None) -> Tensor:
    """Every sequence back to front; what lies beyond its end stays there."""
    if sizes is None:
        return x.flip(0)
    step = torch.arange(len(x), device=x.device)[:, None]
    lengths = going(sizes, x.shape[1], x.device).sum(0)
    back = torch.where(step < lengths, lengths - 1 - step, step)
    return x.gather(0, back[..., None].expand_as(x))
