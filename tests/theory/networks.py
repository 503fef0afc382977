"""Random networks that the theory is held against, made of plain matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from signalprop.theory import Activation


def pair(width: int, q: float, c: float, generator: torch.Generator, pairs: int = 1) -> Tensor:
    """(2, pairs, width) in float64 with exactly this mean square and correlation."""
    x = torch.randn(2, pairs, width, generator=generator, dtype=torch.float64)
    a = x[0] / x[0].norm(dim=-1, keepdim=True)
    b = x[1] - (x[1] * a).sum(-1, keepdim=True) * a
    b = b / b.norm(dim=-1, keepdim=True)
    return math.sqrt(q * width) * torch.stack([a, c * a + math.sqrt(1 - c * c) * b])


def propagate(
    phi: str, w: float, b: float, depth: int, h: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, c of every layer's pre-activation and ln |delta_l| / |delta_L|, each (depth + 1,).

    The weights of a layer are made anew from its own seed on the way back, so that two hundred
    layers need no memory.
    """
    activation, width = Activation.of(phi), h.shape[-1]

    def layer(k: int) -> tuple[Tensor, Tensor]:
        own = torch.Generator().manual_seed(seed * 1009 + k)
        W = torch.randn(width, width, generator=own).to(h.dtype)
        bias = torch.randn(width, generator=own).to(h.dtype)
        return math.sqrt(w / width) * W, math.sqrt(b) * bias

    q, c, slopes = [], [], []
    for k in range(depth + 1):
        if k:
            W, bias = layer(k)
            h = torch.from_numpy(activation.value(h.double().numpy())).to(h.dtype) @ W.T + bias
        wide = h.double()
        q.append(wide.square().mean())
        c.append(F.cosine_similarity(wide[0], wide[1], dim=-1).mean())
        slopes.append(torch.from_numpy(activation.slope(wide.numpy())).to(h.dtype))
    own = torch.Generator().manual_seed(seed)
    delta = torch.randn(h.shape, generator=own).to(h.dtype)
    level, scale = [torch.zeros(())], 0.0
    for k in range(depth, 0, -1):
        before = delta.norm(dim=-1, keepdim=True)
        delta = slopes[k - 1] * ((delta / before) @ layer(k)[0])
        scale = scale + delta.double().norm(dim=-1).square().mean().log() / 2
        level.append(scale)
    return torch.stack(q), torch.stack(c), torch.stack(level[::-1])


# ---- the networks of the table -----------------------------------------------------------------

Block = Callable[[Tensor, int, torch.Generator], Tensor]


def _normal(n: int, g: torch.Generator, variance: float, m: int | None = None) -> Tensor:
    return torch.randn(m or n, n, generator=g, dtype=torch.float64) * math.sqrt(variance / n)


def _uniform(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """nn.Linear's default."""
    bound = 1 / math.sqrt(n)
    W = (2 * torch.rand(n, n, generator=g, dtype=torch.float64) - 1) * bound
    return W, (2 * torch.rand(n, generator=g, dtype=torch.float64) - 1) * bound


def _orthogonal(n: int, g: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    return q * r.diagonal().sign()


def _highway(bias: float) -> Block:
    def block(x: Tensor, depth: int, g: torch.Generator) -> Tensor:
        (W, b), (V, c) = _uniform(x.shape[1], g), _uniform(x.shape[1], g)
        # the gate's bias is the constant; c is drawn and left out, as in the usual code
        t = torch.sigmoid(x @ V.T + bias + 0 * c)
        return t * torch.tanh(x @ W.T + b) + (1 - t) * x

    return block


def _default(phi: Callable[[Tensor], Tensor]) -> Block:
    def block(x: Tensor, depth: int, g: torch.Generator) -> Tensor:
        W, b = _uniform(x.shape[1], g)
        return phi(x @ W.T + b)

    return block


def _plain(phi: Callable[[Tensor], Tensor], variance: float) -> Block:
    return lambda x, depth, g: phi(x @ _normal(x.shape[1], g, variance).T)


def _looks_linear(x: Tensor, depth: int, g: torch.Generator) -> Tensor:
    # mirrored weights [Q, -Q] on the two halves of CReLU
    Q = _orthogonal(x.shape[1], g)
    return torch.cat([F.relu(x), F.relu(-x)], 1) @ torch.cat([Q, -Q], 1).T


def _batch_norm(x: Tensor, depth: int, g: torch.Generator) -> Tensor:
    return F.relu(F.batch_norm(x @ _normal(x.shape[1], g, 1.0).T, None, None, training=True))


def _fixup(x: Tensor, depth: int, g: torch.Generator) -> Tensor:
    n = x.shape[1]
    hidden = F.relu(x @ _normal(n, g, 2.0 / depth).T)
    return x + hidden @ torch.zeros(n, n, dtype=torch.float64)


BLOCKS: dict[str, Block] = {
    "tanh-default": _default(torch.tanh),
    "relu-default": _default(F.relu),
    "tanh-gain": _plain(torch.tanh, (5 / 3) ** 2),
    "tanh-xavier": _plain(torch.tanh, 1.0),
    "tanh-orthogonal": lambda x, depth, g: torch.tanh(x @ _orthogonal(x.shape[1], g)),
    "tanh-orthogonal-1.05": lambda x, depth, g: torch.tanh(1.05 * x @ _orthogonal(x.shape[1], g)),
    "relu-he": _plain(F.relu, 2.0),
    "selu-lecun": _plain(F.selu, 1.0),
    "looks-linear": _looks_linear,
    "highway-1": _highway(-1.0),
    "highway-2": _highway(-2.0),
    "highway-4": _highway(-4.0),
    "relu-residual": lambda x, depth, g: F.relu(x + x @ _normal(x.shape[1], g, 2.0).T),
    "residual": lambda x, depth, g: x + F.relu(x) @ _normal(x.shape[1], g, 2.0).T,
    "residual-scaled": lambda x, depth, g: x + F.relu(x) @ _normal(x.shape[1], g, 2.0 / depth).T,
    "rezero": lambda x, depth, g: x + 0.0 * torch.tanh(x @ _normal(x.shape[1], g, 1.0).T),
    "fixup": _fixup,
    "layer-norm": lambda x, depth, g: F.relu(
        F.layer_norm(x @ _normal(x.shape[1], g, 1.0).T, x.shape[1:])
    ),
    "batch-norm": _batch_norm,
}


def log_ratio(key: str, depth: int, seed: int, *, width: int = 50, batch: int = 128) -> float:
    """ln(|dL/dh_1| / |dL/dh_L|) of a network of the table at initialisation, in float64."""
    g = torch.Generator().manual_seed(7919 * seed + depth)
    x = torch.randn(batch, 64, generator=g, dtype=torch.float64)
    y = torch.randint(10, (batch,), generator=g)
    first = torch.tanh(x @ _normal(64, g, 1.0, width).T).requires_grad_()
    h = first
    for _ in range(depth - 1):
        h = BLOCKS[key](h, depth, g)
    logits = h @ _normal(width, g, 1.0, 10).T
    low, high = torch.autograd.grad(F.cross_entropy(logits, y), [first, h])
    return math.log(float(low.norm()) / float(high.norm()))
