"""Nets of equal blocks, plain and cured: what the studies of their Jacobians look at.

A block of a `Net` takes a state to the next one, and sees a piece of the input; only an LSTM looks
at it. An LSTM reads an image in as many pieces as it has steps, and its state is (h, c). A `Stack`
is made of residual blocks x + F(x) with the branches F that are in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.studies.data import Digits

BATCH = 64
#: convolutions and attention see images of this many pixels a side
SIDE = 8
#: the net whose blocks all have equal singular values; what the names of LSTMs begin with
EQUAL, LSTM = "orthogonal, linear", "LSTM"


def linear(n: int, m: int, variance: float = 1.0) -> nn.Linear:
    """A layer with weights N(0, variance / n), which for n = m is Glorot's (He's if it is 2)."""
    layer = nn.Linear(n, m, dtype=torch.float64)
    nn.init.normal_(layer.weight, 0.0, math.sqrt(variance / n))
    nn.init.zeros_(layer.bias)
    return layer


class Plain(nn.Module):
    """phi(W s + b)."""

    def __init__(self, n: int, phi: Callable[[Tensor], Tensor], variance: float) -> None:
        super().__init__()
        self.W, self.phi = linear(n, n, variance), phi

    def forward(self, s: Tensor, _: Tensor) -> Tensor:
        """Next state."""
        return self.phi(self.W(s))


class Highway(nn.Module):
    """(1 - g(s)) s + g(s) tanh(W s + b), the gate's bias negative."""

    def __init__(self, n: int, bias: float) -> None:
        super().__init__()
        self.W, self.G = linear(n, n), linear(n, n)
        nn.init.constant_(self.G.bias, bias)

    def forward(self, s: Tensor, _: Tensor) -> Tensor:
        """Next state."""
        g = torch.sigmoid(self.G(s))
        return (1 - g) * s + g * torch.tanh(self.W(s))


class Residual(nn.Module):
    """A: relu(s + c W2 relu(W1 s)); B: s + c W2 relu(W1 relu(s)), where `norm` normalises s."""

    def __init__(self, n: int, scale: float, *, post: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.W1, self.W2 = linear(n, n, 2.0), linear(n, n, 2.0)
        self.norm = nn.LayerNorm(n, dtype=torch.float64) if norm else nn.Identity()
        self.scale, self.post = scale, post

    def forward(self, s: Tensor, _: Tensor) -> Tensor:
        """Next state."""
        a = s if self.post else torch.relu(self.norm(s))
        out = s + self.scale * self.W2(torch.relu(self.W1(a)))
        return torch.relu(out) if self.post else out


class Memory(nn.Module):
    """One LSTM step on (h, c) as one vector; forget bias None: no forget gate, as in 1997."""

    def __init__(self, n: int, inputs: int, forget: float | None) -> None:
        super().__init__()
        self.W, self.U = linear(inputs, 2 * n), linear(n // 2, 2 * n)
        self.gated = forget is not None
        nn.init.constant_(self.W.bias[n // 2 : n], forget or 0.0)

    def forward(self, s: Tensor, x: Tensor) -> Tensor:
        """Next state."""
        h, c = s.chunk(2, -1)
        i, f, g, o = (self.W(x) + self.U(h)).chunk(4, -1)
        kept = torch.sigmoid(f) * c if self.gated else c
        c = kept + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)


class Isometry(nn.Module):
    """Q s with an orthogonal Q: every singular value is 1."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.W = linear(n, n)
        nn.init.orthogonal_(self.W.weight)

    def forward(self, s: Tensor, _: Tensor) -> Tensor:
        """Next state."""
        return self.W(s)


#: name -> how a block is made, of width, depth and the number of inputs per step
NETS: dict[str, Callable[[int, int, int], nn.Module]] = {
    EQUAL: lambda n, depth, inputs: Isometry(n),
    "tanh": lambda n, depth, inputs: Plain(n, torch.tanh, 1.0),
    "ReLU": lambda n, depth, inputs: Plain(n, torch.relu, 2.0),
    "SELU": lambda n, depth, inputs: Plain(n, F.selu, 1.0),
    "highway, b = -1": lambda n, depth, inputs: Highway(n, -1.0),
    "highway, b = -2": lambda n, depth, inputs: Highway(n, -2.0),
    "highway, b = -4": lambda n, depth, inputs: Highway(n, -4.0),
    "residual A": lambda n, depth, inputs: Residual(n, 1.0, post=True),
    "residual A / sqrt(L)": lambda n, depth, inputs: Residual(n, depth**-0.5, post=True),
    "residual B": lambda n, depth, inputs: Residual(n, 1.0),
    "residual B / sqrt(L)": lambda n, depth, inputs: Residual(n, depth**-0.5),
    "residual B, LayerNorm": lambda n, depth, inputs: Residual(n, 1.0, norm=True),
    "LSTM 1997": lambda n, depth, inputs: Memory(n, inputs, None),
    "LSTM, b_f = 1": lambda n, depth, inputs: Memory(n, inputs, 1.0),
    "LSTM, b_f = 4": lambda n, depth, inputs: Memory(n, inputs, 4.0),
}


class Net(nn.Module):
    """`depth` blocks of one kind between two linear layers; an LSTM's are one step, repeated."""

    def __init__(self, name: str, pixels: int, width: int, depth: int) -> None:
        super().__init__()
        self.recurrent = name.startswith(LSTM)
        self.first = nn.Identity() if self.recurrent else linear(pixels, width)
        self.depth, self.width, self.inputs = depth, width, pixels // depth
        make = NETS[name]
        count = 1 if self.recurrent else depth
        self.blocks = nn.ModuleList([make(width, depth, self.inputs) for _ in range(count)])
        self.head = linear(width, 10)

    def states(self, x: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
        """Every block with its state and its input, the last state with the head."""
        s = x.new_zeros(len(x), self.width) if self.recurrent else self.first(x)
        found: list[tuple[nn.Module, Tensor, Tensor]] = []
        for t in range(self.depth):
            block = self.blocks[0 if self.recurrent else t]
            piece = x[:, t * self.inputs : (t + 1) * self.inputs]
            found.append((block, s, piece))
            s = block(s, piece)
        return [*found, (self.head, s, x)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        head, s, _ = self.states(x)[-1]
        return head(s)


class Added(nn.Module):
    """x + c branch(x)."""

    def __init__(self, branch: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.branch, self.scale = branch, scale

    def forward(self, x: Tensor) -> Tensor:
        """Next state."""
        return x + self.scale * self.branch(x)


class Attention(nn.Module):
    """Self-attention of two heads over tokens (samples, tokens, d)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.read, self.write = linear(d, 3 * d), linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        """What every token gathers."""
        q, k, v = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in self.read(x).chunk(3, 2))
        return self.write(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def mlp(n: int, *, norm: bool = False) -> nn.Sequential:
    """W2 relu(W1 relu(x)), He's initialisation; with LayerNorm before it if `norm`."""
    first = [nn.LayerNorm(n, dtype=torch.float64)] if norm else []
    return nn.Sequential(*first, nn.ReLU(), linear(n, n, 2.0), nn.ReLU(), linear(n, n, 2.0))


def conv(c: int, *, norm: bool = False) -> nn.Sequential:
    """The same with 3 x 3 convolutions, and BatchNorm before every ReLU if `norm`."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.BatchNorm2d(c, dtype=torch.float64)] if norm else []
        layer = nn.Conv2d(c, c, 3, padding=1, dtype=torch.float64)
        nn.init.kaiming_normal_(layer.weight)
        layers += [nn.ReLU(), layer]
    return nn.Sequential(*layers)


def attention(d: int) -> nn.Sequential:
    """LayerNorm, then attention, as in a pre-norm transformer."""
    return nn.Sequential(nn.LayerNorm(d, dtype=torch.float64), Attention(d))


class Stack(nn.Module):
    """Residual blocks on `channels` features of every pixel, of every row, or of the image."""

    def __init__(self, kind: str, pixels: int, channels: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.kind, self.image = kind, math.isqrt(pixels)
        inputs, places = {"pixel": (1, SIDE**2), "row": (SIDE, SIDE), "image": (pixels, 1)}[kind]
        pointwise = nn.Conv2d(1, channels, 1, dtype=torch.float64)
        self.first = pointwise if kind == "pixel" else linear(inputs, channels)
        self.blocks = nn.Sequential(*blocks)
        self.head = linear(channels * places, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if self.kind == "image":
            return self.head(self.blocks(self.first(x)))
        x = F.adaptive_avg_pool2d(x.unflatten(1, (1, self.image, self.image)), SIDE)
        if self.kind == "row":
            return self.head(self.blocks(self.first(x.squeeze(1))).flatten(1))
        return self.head(self.blocks(self.first(x)).flatten(1))


def scaled(pixels: int, L: int, n: int, scale: float) -> Stack:
    """L fully connected blocks of n units, branches times `scale`."""
    return Stack("image", pixels, n, [Added(mlp(n), scale) for _ in range(L)])


#: name -> the net, of pixels, number of blocks, and features in all
STACKS: dict[str, Callable[[int, int, int], Stack]] = {
    "MLP": lambda p, L, n: Stack("image", p, n, [Added(mlp(n)) for _ in range(L)]),
    "MLP / sqrt(L)": lambda p, L, n: scaled(p, L, n, L**-0.5),
    "MLP, LayerNorm": lambda p, L, n: Stack(
        "image", p, n, [Added(mlp(n, norm=True)) for _ in range(L)]
    ),
    "conv": lambda p, L, n: Stack(
        "pixel", p, n // SIDE**2, [Added(conv(n // SIDE**2)) for _ in range(L)]
    ),
    "conv, BatchNorm": lambda p, L, n: Stack(
        "pixel", p, n // SIDE**2, [Added(conv(n // SIDE**2, norm=True)) for _ in range(L)]
    ),
    "attention, pre-norm": lambda p, L, n: Stack(
        "row", p, n // SIDE, [Added(attention(n // SIDE)) for _ in range(L)]
    ),
}


def train(net: nn.Module, found: Digits, steps: int, seed: int) -> float:
    """Train with Adam; returns the accuracy on the test images."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        pick = torch.randint(len(found.x), (BATCH,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(net(found.x[pick]), found.y[pick]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    net.eval()
    with torch.no_grad():
        hits = net(found.x_test).argmax(1) == found.y_test
    net.train()
    return float(hits.double().mean())
