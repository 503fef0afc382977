"""Step Jacobians J_t = d state_t / d state_(t-1) of recurrent layers, at the states of a pass.

The state is what one step hands to the next: h, and (h, c) of an LSTM. Gates are made again from
what the layer was given and what it returned, for many steps at once; then J_t is a diagonal, and
one matrix product between diagonals, which nothing here ever writes out unless asked:

    RNN   J = diag(phi') W_hh
    GRU   J = diag(z) + diag(a_r) W_r + diag(a_z) W_z + diag(a_n) W_n
    LSTM  dc_t = diag(f) dc_(t-1) + sum over i, f, g of diag(a) W dh_(t-1)
          dh_t = W_hr (diag(q) dc_t + diag(a_o) W_o dh_(t-1))

(Hochreiter 1991; Pascanu, Mikolov & Bengio 2013.) Gates are in the layer's dtype,
float32 at least, and all that follows from them in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from signalprop.recurrent.call import Weights

#: steps whose local derivatives are held at a time
SPAN = 64
#: net inputs that an LSTM keeps for the way back, instead of making them twice
ROOM = 1 << 26


@dataclass(frozen=True)
class Place:
    """Which layer in which direction; as in `capture.time.TimeAxis`."""

    site: str
    op: str
    layer: int = 0
    reverse: bool = False


@dataclass
class Run:
    """One layer in one direction as it ran, in the order in which it ran.

    Attributes:
        place: where.
        x: what it was given, (T, B, I).
        start: its first states, (B, P), and (B, H) of an LSTM.
        outputs: h of every step, (T, B, P).
        weights: see `call.Weights`.
        lengths: of the sequences, (B,); None where all have T steps.
        forget: of an LSTM, whether it has forget gates; without them it is that of 1997.
        truncated: of an LSTM, whether errors go back along c alone.
        peeps: of an LSTM, its peepholes.
    """

    place: Place
    x: Tensor
    start: tuple[Tensor, ...]
    outputs: Tensor
    weights: Weights
    lengths: Tensor | None = None
    forget: bool = True
    truncated: bool = False
    peeps: Tensor | None = None


class Steps(ABC):
    """The step Jacobians of one layer in one direction; n is the size of a sample's state.

    Args:
        place: where.
        lengths: steps of every sequence, (B,).
        size: n.
    """

    def __init__(self, place: Place, lengths: Tensor, size: int) -> None:
        self.place, self.lengths, self.size = place, lengths, size
        self.length, self._shortest = int(lengths.max()), int(lengths.min())

    @property
    def rows(self) -> int:
        """Samples."""
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.lengths.device

    @property
    def radius(self) -> float | None:
        """Spectral radius of W_hh, of a plain RNN; None of others, which have no such number."""
        return None

    def back(self, t: int, u: Tensor) -> Tensor:
        """J_t^T u, (..., B, n); u itself of a sequence that has ended before step t (from 1)."""
        made = self.backward(self.local(t), u)
        return made if t <= self._shortest else torch.where(self._going(t), made, u)

    def forth(self, t: int, v: Tensor) -> Tensor:
        """J_t v, (..., B, n); v itself of a sequence that has ended before step t (from 1)."""
        made = self.forward(self.local(t), v)
        return made if t <= self._shortest else torch.where(self._going(t), made, v)

    def matrix(self, t: int, rows: Tensor | None = None) -> Tensor:
        """J_t of some samples, all unless they are given as indices, written out, (B, n, n)."""
        local, going = self.local(t), (t <= self.lengths)[:, None, None]
        if rows is not None:
            local, going = tuple(x[rows] for x in local), going[rows]
        unit = torch.eye(self.size, dtype=torch.float64, device=self.device)
        made = self.backward(local, unit[:, None].expand(-1, len(going), -1)).transpose(0, 1)
        return torch.where(going, made, unit)

    def _going(self, t: int) -> Tensor:
        return (t <= self.lengths)[:, None]

    @abstractmethod
    def local(self, t: int) -> tuple[Tensor, ...]:
        """What makes up J_t, (B, ...) each."""

    @abstractmethod
    def backward(self, local: tuple[Tensor, ...], u: Tensor) -> Tensor:
        """J^T u of what `local` gave, of one step or of several one after the other."""

    @abstractmethod
    def forward(self, local: tuple[Tensor, ...], v: Tensor) -> Tensor:
        """J v, in the same way."""


class Diagonal(Steps):
    """J_t = diag(a_t).

    Args:
        place: where.
        a: (T, B, n).
        lengths: steps of every sequence, (B,).
    """

    def __init__(self, place: Place, a: Tensor, lengths: Tensor) -> None:
        super().__init__(place, lengths, a.shape[-1])
        self.a = a

    def local(self, t: int) -> tuple[Tensor, ...]:
        """The diagonal."""
        return (self.a[t - 1],)

    def backward(self, local: tuple[Tensor, ...], u: Tensor) -> Tensor:
        """J^T u."""
        return u * local[0]

    def forward(self, local: tuple[Tensor, ...], v: Tensor) -> Tensor:
        """J v."""
        return v * local[0]


def home_of_doubles(device: torch.device) -> torch.device:
    """Where float64 is computed for a device: MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device


class _Made(Steps):
    """Local derivatives from a `Run`, some steps at a time."""

    def __init__(self, run: Run, samples: Tensor) -> None:
        home = run.outputs.device
        device = home_of_doubles(home)
        chosen = samples.to(home)

        def some(x: Tensor, dim: int) -> Tensor:
            return x.detach().index_select(dim, chosen).to(device)

        def wide(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(device, torch.float64)

        def own(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(device, self.dtype)

        # gates are made as the layer makes them; what follows from them is in float64
        self.dtype = torch.promote_types(run.weights[0].dtype, torch.float32)
        self.x, self.outputs = some(run.x, 1), some(run.outputs, 1)
        self.start = [some(s, 0).double() for s in run.start]
        self._weights = [own(w) for w in run.weights[:4]]
        w_hh, self.w_hr = wide(run.weights[1]), wide(run.weights[4])
        assert w_hh is not None
        self.w_hh = w_hh
        if run.lengths is None:
            lengths = torch.full((len(samples),), len(run.x), device=device)
        else:
            lengths = run.lengths.to(device)[samples.to(device)]
        self._span: tuple[int, tuple[Tensor, ...]] | None = None
        size = self.start[0].shape[-1] + (self.start[1].shape[-1] if len(self.start) > 1 else 0)
        super().__init__(run.place, lengths, size)

    def _before(self, begin: int, end: int) -> Tensor:
        """H that steps begin + 1 to end were given."""
        if begin:
            return self.outputs[begin - 1 : end - 1].double()
        return torch.cat([self.start[0][None], self.outputs[: end - 1].double()])

    def _nets(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """What input and state give to the gates, (steps, B, gates x H) each."""
        w_ih, w_hh, b_ih, b_hh = self._weights
        assert w_ih is not None
        assert w_hh is not None
        given = F.linear(self.x[begin:end].to(self.dtype), w_ih, b_ih)
        own = F.linear(self._before(begin, end).to(self.dtype), w_hh, b_hh)
        return given.double(), own.double()

    def local(self, t: int) -> tuple[Tensor, ...]:
        """The local derivatives of step t."""
        begin = (t - 1) // SPAN * SPAN
        if self._span is None or self._span[0] != begin:
            self._span = begin, self._locals(begin, min(begin + SPAN, len(self.x)))
        return tuple(x[t - 1 - begin] for x in self._span[1])

    @abstractmethod
    def _locals(self, begin: int, end: int) -> tuple[Tensor, ...]: ...


class Plain(_Made):
    """RNN and GRU: J_t = diag(d_t) + sum over gates of diag(a_t) W."""

    @property
    def radius(self) -> float | None:
        """The largest |eigenvalue| of W_hh, of an RNN."""
        if not self.place.op.startswith("rnn"):
            return None
        return float(torch.linalg.eigvals(self.w_hh).abs().max())

    def _locals(self, begin: int, end: int) -> tuple[Tensor, ...]:
        """Slopes (steps, B, gates, H), and d of a GRU."""
        if self.place.op != "gru":
            after = self.outputs[begin:end].double()
            slope = (after > 0).double() if self.place.op == "rnn_relu" else 1 - after.square()
            return (slope.unsqueeze(-2),)
        given, own = (part.chunk(3, -1) for part in self._nets(begin, end))
        r, z = (given[0] + own[0]).sigmoid(), (given[1] + own[1]).sigmoid()
        n = (given[2] + r * own[2]).tanh()
        into = (1 - z) * (1 - n.square())
        a_r = into * own[2] * r * (1 - r)
        a_z = (self._before(begin, end) - n) * z * (1 - z)
        return torch.stack([a_r, a_z, into * r], -2), z

    def backward(self, local: tuple[Tensor, ...], u: Tensor) -> Tensor:
        """J^T u."""
        a, *d = local
        made = (u.unsqueeze(-2) * a).flatten(-2) @ self.w_hh
        return made + u * d[0] if d else made

    def forward(self, local: tuple[Tensor, ...], v: Tensor) -> Tensor:
        """J v."""
        a, *d = local
        made = ((v @ self.w_hh.t()).unflatten(-1, a.shape[-2:]) * a).sum(-2)
        return made + v * d[0] if d else made


class Memory(_Made):
    """LSTM, with or without forget gates, peepholes, projection and truncated errors."""

    def __init__(self, run: Run, samples: Tensor) -> None:
        super().__init__(run, samples)
        self.forget, self.truncated = run.forget, run.truncated
        self.gates = 4 if run.forget else 3
        peeps = None if run.peeps is None else run.peeps.detach().to(self.device, torch.float64)
        self.peeps = None if peeps is None else peeps.chunk(self.gates - 1)
        cells = [self.start[1]]
        numbers = self.x.shape[0] * self.x.shape[1] * self.gates * self.start[1].shape[-1]
        self._kept: dict[int, Tensor] | None = {} if numbers <= ROOM else None
        for begin in range(0, len(self.x), SPAN):
            given, own = self._nets(begin, min(begin + SPAN, len(self.x)))
            nets = given + own
            if self._kept is not None:
                self._kept[begin] = nets.to(self.dtype)
            for k, net in enumerate(nets):
                i, f, g, _ = self._opened(net, cells[-1], None)
                new = (cells[-1] if f is None else f * cells[-1]) + i * g
                ended = begin + k + 1 > self._shortest
                cells.append(
                    torch.where(self._going(begin + k + 1), new, cells[-1]) if ended else new
                )
        self.cells = torch.stack(cells)

    def _opened(
        self, net: Tensor, before: Tensor, after: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """i, f, g and o of net inputs; without c_t o lacks its peephole."""
        parts = list(net.chunk(self.gates, -1))
        if self.peeps is not None:
            parts[0] = parts[0] + self.peeps[0] * before
            if self.forget:
                parts[1] = parts[1] + self.peeps[1] * before
            if after is not None:
                parts[-1] = parts[-1] + self.peeps[-1] * after
        f = parts[1].sigmoid() if self.forget else None
        g = parts[-2].tanh() if self.forget else 2 * (0.5 * parts[-2]).tanh()
        return parts[0].sigmoid(), f, g, parts[-1].sigmoid()

    def _locals(self, begin: int, end: int) -> tuple[Tensor, ...]:
        """Slopes of c (steps, B, gates - 1, H) and of h, dh/dc, and dc_t/dc_(t-1)."""
        before, after = self.cells[begin:end], self.cells[begin + 1 : end + 1]
        if self._kept is not None:
            nets = self._kept[begin].double()
        else:
            given, own = self._nets(begin, end)
            nets = given + own
        i, f, g, o = self._opened(nets, before, after)
        squashed = after.tanh() if self.forget else (0.5 * after).tanh()
        slope = (1 - squashed.square()) * (1 if self.forget else 0.5)
        a_i, a_g = i * (1 - i) * g, i * (1 - g.square() * (1 if self.forget else 0.25))
        a_o = o * (1 - o) * squashed
        a_f = None if f is None else f * (1 - f) * before
        q, k = o * slope, torch.ones_like(before) if f is None else f
        if self.peeps is not None and not self.truncated:
            q = q + self.peeps[-1] * a_o
            k = k + self.peeps[0] * a_i
            if a_f is not None:
                k = k + self.peeps[1] * a_f
        slopes = [a for a in (a_i, a_f, a_g) if a is not None]
        return torch.stack(slopes, -2), a_o, q, k

    def backward(self, local: tuple[Tensor, ...], u: Tensor) -> Tensor:
        """J^T u."""
        a, a_o, q, k = local
        h, c = u.split([self.size - q.shape[-1], q.shape[-1]], -1)
        inner = h if self.w_hr is None else h @ self.w_hr
        c = c + inner * q
        if self.truncated:
            return torch.cat([torch.zeros_like(h), c * k], -1)
        nets = torch.cat([(c.unsqueeze(-2) * a).flatten(-2), inner * a_o], -1)
        return torch.cat([nets @ self.w_hh, c * k], -1)

    def forward(self, local: tuple[Tensor, ...], v: Tensor) -> Tensor:
        """J v."""
        a, a_o, q, k = local
        h, c = v.split([self.size - q.shape[-1], q.shape[-1]], -1)
        made, inner = c * k, torch.zeros_like(c)
        if not self.truncated:
            nets = (h @ self.w_hh.t()).unflatten(-1, (self.gates, -1))
            made = made + (nets[..., :-1, :] * a).sum(-2)
            inner = nets[..., -1, :] * a_o
        inner = inner + made * q
        return torch.cat([inner if self.w_hr is None else inner @ self.w_hr.t(), made], -1)


def steps_of(run: Run, samples: Tensor) -> Steps:
    """The step Jacobians of some samples of a run.

    Args:
        run: a layer in one direction as it ran.
        samples: which, as indices.

    Returns:
        They, at the states of that run.
    """
    return Memory(run, samples) if len(run.start) > 1 else Plain(run, samples)
