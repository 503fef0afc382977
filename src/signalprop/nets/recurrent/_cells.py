"""One direction of one LSTM layer, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: is shown h_t and c_t of every step, in the order of the steps
Watch = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Cell:
    """The equations of a step, and the parameters of one direction of one layer.

    Rows of the weights and biases: i, f, g, o; without a forget gate i, g, o. `weight_c` has the
    peepholes of the gates, in the same order. `truncated`: what the gates and the candidate see of
    the past carries no error back.
    """

    forget: bool
    truncated: bool
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    weight_c: Tensor | None

    def step(self, net: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(h_t, c_t) of the net inputs (B, gates x H) and c_{t-1} (B, H)."""
        nets = net.chunk(4 if self.forget else 3, -1)
        i, o = nets[0], nets[-1]
        peeps = () if self.weight_c is None else self.weight_c.chunk(3 if self.forget else 2)
        seen = c.detach() if self.truncated else c
        if peeps:
            i = i + peeps[0] * seen
        if self.forget:
            f = nets[1] + peeps[1] * seen if peeps else nets[1]
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(nets[2])
        else:
            # 4 sigmoid(x) - 2 and below 2 sigmoid(x) - 1, without the cancellation near 0
            c = c + torch.sigmoid(i) * (2.0 * torch.tanh(0.5 * nets[1]))
        if peeps:
            o = o + peeps[-1] * (c.detach() if self.truncated else c)
        h = torch.sigmoid(o) * torch.tanh(c if self.forget else 0.5 * c)
        return (h if self.weight_hr is None else F.linear(h, self.weight_hr)), c

    def run(
        self,
        x: Tensor,
        there: Tensor | None,
        h: Tensor,
        c: Tensor,
        *,
        reverse: bool,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h_t at all times, and the states behind the last step.

        Args:
            x: (T, B, features).
            there: (T, B), where the sequences have entries; the states wait elsewhere.
            h: (B, H) or (B, projection), before the first step.
            c: (B, H).
            reverse: from the end of the sequences to their beginning.
            watch: see `Watch`; None for nobody.

        Returns:
            (T, B, H) or (T, B, projection), h and c.
        """
        # unbind, not indexing: the backward pass of an index is as large as all steps
        nets = F.linear(x, self.weight_ih, self.bias_ih).unbind(0)
        rows = None if there is None else there.unsqueeze(-1).unbind(0)
        seen: list[Tensor] = []
        for t in range(len(nets) - 1, -1, -1) if reverse else range(len(nets)):
            past = h.detach() if self.truncated else h
            new_h, new_c = self.step(nets[t] + F.linear(past, self.weight_hh, self.bias_hh), c)
            if watch is not None:
                watch(new_h, new_c)
            if rows is not None:
                new_h, new_c = torch.where(rows[t], new_h, h), torch.where(rows[t], new_c, c)
            h, c = new_h, new_c
            seen.append(h)
        return torch.stack(seen[::-1] if reverse else seen), h, c
