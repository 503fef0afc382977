"""Recurrent nets step by step in float64, by autograd and nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def step(op: str, x: Tensor, state: tuple[Tensor, ...], w, kind: str = "modern", **options):
    """One step of a layer, from the papers' equations; w = w_ih, w_hh, b_ih, b_hh, w_hr."""
    w_ih, w_hh, b_ih, b_hh, w_hr = w
    h = state[0]
    truncated, peeps = options.get("truncated", False), options.get("peeps")
    past = h.detach() if truncated else h
    given, own = F.linear(x, w_ih, b_ih), F.linear(past, w_hh, b_hh)
    if op.startswith("rnn"):
        return (torch.tanh(given + own) if op == "rnn_tanh" else torch.relu(given + own),)
    if op == "gru":
        (a, b, c), (d, e, f) = given.chunk(3, -1), own.chunk(3, -1)
        r, z = torch.sigmoid(a + d), torch.sigmoid(b + e)
        return ((1 - z) * torch.tanh(c + r * f) + z * h,)
    c = state[1]
    seen = c.detach() if truncated else c
    nets = list((given + own).chunk(4 if kind == "modern" else 3, -1))
    p = None if peeps is None else list(peeps.chunk(len(nets) - 1))
    if p is not None:
        nets[0] = nets[0] + p[0] * seen
        if kind == "modern":
            nets[1] = nets[1] + p[1] * seen
    i = torch.sigmoid(nets[0])
    if kind == "modern":
        c = torch.sigmoid(nets[1]) * c + i * torch.tanh(nets[2])
    else:
        c = c + i * (4 * torch.sigmoid(nets[1]) - 2)
    o = nets[-1]
    if p is not None:
        o = o + p[-1] * (c.detach() if truncated else c)
    squashed = torch.tanh(c) if kind == "modern" else 2 * torch.sigmoid(c) - 1
    h = torch.sigmoid(o) * squashed
    return (h if w_hr is None else h @ w_hr.t()), c


def states(op: str, x: Tensor, start: tuple[Tensor, ...], w, **options) -> list[tuple[Tensor, ...]]:
    """The states handed on after every step, (T + 1) of them, each a tensor of its own."""
    found = [tuple(s.detach().clone().requires_grad_() for s in start)]
    for t in range(len(x)):
        found.append(tuple(s.clone() for s in step(op, x[t], found[-1], w, **options)))
    return found


def jacobian(op: str, x: Tensor, state: tuple[Tensor, ...], w, **options) -> Tensor:
    """d state_t / d state_(t-1) of one sample, (n, n), by one backward pass for every row."""
    given = tuple(s.detach().clone().requires_grad_() for s in state)
    made = torch.cat(step(op, x, given, w, **options))
    rows = [
        torch.autograd.grad(one, given, retain_graph=True, allow_unused=True)
        if one.requires_grad
        else tuple(None for _ in given)
        for one in made
    ]
    return torch.stack([torch.cat(_filled(row, given)) for row in rows])


def errors(found: list[tuple[Tensor, ...]], e: Tensor) -> Tensor:
    """d <e, s_T> / d s_t for t = 1 ... T, (T, B, n)."""
    last = torch.cat(found[-1], -1)
    flat = [s for one in found[1:] for s in one]
    made = torch.autograd.grad((last * e).sum(), flat, allow_unused=True, retain_graph=True)
    whole = _filled(made, flat)
    many = len(found[0])
    return torch.stack(
        [torch.cat(whole[t * many : (t + 1) * many], -1) for t in range(len(found) - 1)]
    )


def _filled(gradients, like) -> list[Tensor]:
    both = zip(gradients, like, strict=True)
    return [torch.zeros_like(s) if g is None else g for g, s in both]


def floor_of(alpha: float, gamma: float) -> int:
    """Largest k with gamma^k >= alpha."""
    return math.floor(math.log(alpha) / math.log(gamma))
