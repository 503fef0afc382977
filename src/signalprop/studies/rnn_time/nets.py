"""The nets of `rnn-time`: what is measured of one kind at one gain, and what theory says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from signalprop.nets.recurrent import LSTM, identity_rnn_
from signalprop.recurrent.horizon.measure import horizon
from signalprop.recurrent.horizon.result import Horizons
from signalprop.studies.data import digits
from signalprop.studies.trained import spread
from signalprop.theory.meanfield import MeanField

LINEAR, TANH, RELU = "linear", "tanh", "relu"
GAUSS, ORTHOGONAL = "Gaussian", "orthogonal"
#: standard deviation of the input weights of the swept nets
INPUT = 0.1
#: gains of W: its spectral radius, as n grows
GAINS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, math.sqrt(2), 1.6, 2.0)
#: factors of the leaky integrator
LEAKS = (0.5, 0.8, 0.9, 0.95, 0.99)
#: credit below which float32 cannot tell a change from rounding
FLOAT32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Sizes:
    """How large a run is.

    Attributes:
        units: n.
        steps: T.
        gains: of W.
        seeds: nets of each kind.
        samples: streams of digits.
    """

    units: int
    steps: int
    gains: tuple[float, ...]
    seeds: int
    samples: int


QUICK = Sizes(128, 120, (0.5, 0.9, 1.0, 1.25, 2.0), 2, 4)
FULL = Sizes(256, 400, GAINS, 4, 8)


class Plain(nn.Module):
    """h_t = W h_{t-1} + w x_t, with no nonlinearity; called as `nn.RNN` with batch_first."""

    def __init__(self, W: Tensor, w: Tensor) -> None:
        super().__init__()
        self.step = _Step(W, w)

    def forward(self, x: Tensor) -> Tensor:
        """The last state, (B, n)."""
        h = x.new_zeros(len(x), len(self.step.W))
        for now in x.unbind(1):
            h = self.step(now, h)
        return h


class _Step(nn.Module):
    def __init__(self, W: Tensor, w: Tensor) -> None:
        super().__init__()
        self.W, self.w = nn.Parameter(W), nn.Parameter(w)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h @ self.W.T + x @ self.w.T


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The last output, (B, n)."""
        return self.layer(x)[0][:, -1]


def matrix(kind: str, gain: float, n: int) -> Tensor:
    """W, (n, n) float64: Gaussian of variance gain^2 / n, or gain times an orthogonal matrix."""
    W = torch.empty(n, n, dtype=torch.float64)
    if kind == GAUSS:
        return W.normal_(0.0, gain / math.sqrt(n))
    return nn.init.orthogonal_(W, gain)


def net(phi: str, W: Tensor) -> nn.Module:
    """The swept net, float64, no biases."""
    n = len(W)
    w = torch.randn(n, 1, dtype=torch.float64) * INPUT
    if phi == LINEAR:
        return Plain(W, w)
    layer = nn.RNN(1, n, nonlinearity=phi, bias=False, batch_first=True, dtype=torch.float64)
    layer.load_state_dict({"weight_ih_l0": w, "weight_hh_l0": W})
    return Last(layer)


def stream(samples: int, steps: int) -> tuple[Tensor, str]:
    """Digits read pixel by pixel, one after the other: (samples, steps, 1) float64."""
    found = digits(samples * (1 + steps // 64) * 4)
    flat = found.x.flatten()
    return flat[: samples * steps].view(samples, steps, 1), found.name


def slope(logs: list[float]) -> float:
    """Of ln credit at the lags 0, 1, ... over the later half of them, nats per step."""
    late = torch.tensor(logs[len(logs) // 2 :], dtype=torch.float64)
    k = torch.arange(len(late), dtype=torch.float64)
    k -= k.mean()
    return float((k * (late - late.mean())).sum() / k.square().sum())


def expected(phi: str, gain: float, W: Tensor, drive: float) -> float:
    """The slope that theory says: of the matrix itself where linear, else of infinite width."""
    if phi == LINEAR:
        return math.log(float(torch.linalg.eigvals(W).abs().max()))
    if phi == RELU:
        return 0.5 * math.log(gain**2 / 2)
    return MeanField("tanh", gain**2, drive).gradient_rate


@dataclass(frozen=True)
class Swept:
    """One kind of net at one gain, means over seeds.

    Attributes:
        measured: slope of ln credit, nats per step.
        deviation: of it, over seeds.
        predicted: the same by theory.
        exponent: largest Lyapunov exponent.
        norm: largest singular value of a step's Jacobian, median over steps.
        reach: steps until credit has fallen to 1/e; the longest lag where it has not.
        state: rms of the last state.
        curve: credit over the lag, of the first seed.
    """

    measured: float
    deviation: float
    predicted: float
    exponent: float
    norm: float
    reach: float
    state: float
    curve: tuple[float, ...]


def sweep(phi: str, kind: str, gain: float, sizes: Sizes, x: Tensor, seed: int) -> Swept:
    """Measure nets of one kind."""
    drive = INPUT**2 * float(x.square().mean())
    found: list[list[float]] = []
    curve: tuple[float, ...] = ()
    for k in range(sizes.seeds):
        torch.default_generator.manual_seed(seed + k)
        W = matrix(kind, gain, sizes.units)
        model = net(phi, W)
        seen = horizon(model, x, gains=phi != LINEAR, exponents=1, batch_dim=0, seed=seed)
        one = seen.curves[0]
        norm = float(torch.linalg.matrix_norm(W, 2))  # of J_t where there is no phi'
        if seen.gains:
            norm = sorted(seen.gains[0].largest)[len(seen.gains[0].largest) // 2]
        with torch.no_grad():
            state = float(model(x).square().mean().sqrt())
        found.append([
            slope([math.log(c) for c in one.credit if c > 0]), expected(phi, gain, W, drive),
            seen.exponents[0].values[0], norm,
            one.lags[-1] if one.steps is None else one.steps, state,
        ])  # fmt: skip
        curve = curve or one.credit
    measured, predicted, exponent, norm, reach, state = (
        math.fsum(values) / len(found) for values in zip(*found, strict=True)
    )
    off = spread([one[0] for one in found])
    return Swept(measured, off, predicted, exponent, norm, reach, state, curve)


def deep(kind: str, gain: float, sizes: Sizes, x: Tensor, seed: int) -> float:
    """Slope of ln credit in a deep tanh net: the same, but every layer draws a W of its own."""
    torch.default_generator.manual_seed(seed)
    n, T = sizes.units, sizes.steps
    w = torch.randn(n, 1, dtype=torch.float64) * INPUT
    h = x.new_zeros(len(x), n)
    kept: list[tuple[Tensor, Tensor]] = []
    for t in range(T):
        W = matrix(kind, gain, n)
        h = torch.tanh(h @ W.T + x[:, t] @ w.T)
        kept.append((W, 1 - h * h))
    e = torch.randn(4, len(x), n, dtype=torch.float64)
    logs = [0.0]
    for W, local in reversed(kept[1:]):
        before = e.norm()
        e = (e * local) @ W
        logs.append(logs[-1] + float((e.norm() / before).log()))
        e /= e.norm()
    return slope(logs)


#: torch's layers as they start, by (inputs, units, T)
STARTS: dict[str, Callable[[int, int], nn.Module]] = {
    "nn.RNN, tanh": lambda n, T: nn.RNN(1, n, batch_first=True),
    "nn.RNN, ReLU": lambda n, T: nn.RNN(1, n, batch_first=True, nonlinearity="relu"),
    "nn.GRU": lambda n, T: nn.GRU(1, n, batch_first=True),
    "nn.LSTM": lambda n, T: nn.LSTM(1, n, batch_first=True),
    "LSTM, forget bias 1": lambda n, T: LSTM(1, n, batch_first=True, forget_bias=1.0),
    "LSTM, forget bias 5": lambda n, T: LSTM(1, n, batch_first=True, forget_bias=5.0),
    "LSTM, chrono": lambda n, T: LSTM(1, n, batch_first=True, chrono=T),
    "LSTM of 1997": lambda n, T: LSTM(1, n, batch_first=True, cell="1997", truncated=True),
    "IRNN": lambda n, T: identity_rnn_(nn.RNN(1, n, batch_first=True, nonlinearity="relu")),
}


def starts(sizes: Sizes, x: Tensor, seed: int) -> dict[str, Horizons]:
    """Horizons of torch's layers as they start."""
    found: dict[str, Horizons] = {}
    for name, make in STARTS.items():
        torch.default_generator.manual_seed(seed)
        layer = make(sizes.units, sizes.steps)
        found[name] = horizon(Last(layer), x.float(), gains=False, batch_dim=0, seed=seed)
    return found


def leaks(steps: int) -> list[tuple[float, int, int]]:
    """(gamma, steps measured until 1/e, floor(ln alpha / ln gamma)) of leaky integrators."""
    rows: list[tuple[float, int, int]] = []
    for gamma in LEAKS:
        one = Plain(gamma * torch.eye(4, dtype=torch.float64), torch.ones(4, 1).double())
        x = torch.ones(2, max(steps, 120), 1, dtype=torch.float64)
        reach = horizon(one, x, gains=False, batch_dim=0).curves[0].steps
        rows.append((gamma, -1 if reach is None else reach, math.floor(-1 / math.log(gamma))))
    return rows
