"""Jacobians, singular values and what follows from them, by loops in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def by_jacrev(function, x: Tensor, batch_dim: int = 0) -> np.ndarray:
    """Every sample's part of the whole batch's Jacobian, (batch, m, n), from torch.func."""
    return _diagonal(torch.func.jacrev(function)(x), x, batch_dim)


def by_loop(function, x: Tensor, batch_dim: int = 0) -> np.ndarray:
    """The same, one element of the output after another, for what torch.func cannot do."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    rows = [
        torch.autograd.grad(element, x, retain_graph=True, allow_unused=True)[0]
        for element in y.reshape(-1)
    ]
    rows = [torch.zeros_like(x) if row is None else row for row in rows]
    return _diagonal(torch.stack(rows).reshape(*y.shape, *x.shape), x, batch_dim)


def _diagonal(whole: Tensor, x: Tensor, batch_dim: int) -> np.ndarray:
    outer = whole.ndim - x.ndim
    found = []
    for i in range(x.shape[batch_dim]):
        part = whole.select(outer + batch_dim, i).select(batch_dim, i)
        n = x.numel() // x.shape[batch_dim]
        found.append(part.reshape(-1, n).detach().double().numpy())
    return np.stack(found)


def singular_values(J: np.ndarray) -> np.ndarray:
    """From numpy, one matrix at a time."""
    return np.stack([np.linalg.svd(one, compute_uv=False) for one in J])


def distortion(J: np.ndarray) -> float:
    """||J^T J / (||J||_F^2 / n) - I||_F / sqrt(n), from the matrices."""
    n = J.shape[1]
    mean = np.sum(J**2) / n
    return float(np.linalg.norm(J.T @ J / mean - np.eye(n)) / np.sqrt(n))


def cosine_between(J: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
    """Cosine of the angle between two directions after J."""
    a, b = J @ u, J @ v
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def left_out(J: np.ndarray, G: np.ndarray) -> tuple[float, float, float, float]:
    """Deflated estimates of sum s^2 and sum s^4 and their jackknife errors, as they are defined.

    G: (m, p) probes. Every probe is tested on an approximation that is made without it.
    """
    M, p = J @ J.T, G.shape[1]

    def approximation(kept: list[int]) -> np.ndarray:
        Q = np.linalg.qr(J.T @ G[:, kept])[0]
        return J @ Q @ Q.T @ J.T

    def estimates(probes: list[int]) -> np.ndarray:
        found = []
        for j in probes:
            A = approximation([i for i in probes if i != j])
            g = G[:, j]
            second = np.trace(A) + g @ (M - A) @ g
            fourth = np.sum(A**2) + np.sum((M @ g) ** 2) - np.sum((A @ g) ** 2)
            found.append([second, fourth])
        return np.mean(found, axis=0)

    without = np.stack([estimates([i for i in range(p) if i != j]) for j in range(p)])
    error = np.sqrt((p - 1) / p * np.sum((without - without.mean(0)) ** 2, axis=0))
    value = estimates(list(range(p)))
    return value[0], error[0], value[1], error[1]
