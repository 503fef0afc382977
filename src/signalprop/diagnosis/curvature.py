"""Sharpness and gradient noise of one batch, from gradients alone.

The Hessian is never formed. Its product with a direction is the difference of two gradients,
H v = (g(w + e v) - g(w)) / e, so any network that has a gradient has it, fused kernels included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from signalprop.capture.statistics import accumulator
from signalprop.diagnosis.probe import Probe

#: length of the finite difference, relative to the length of the weights
RELATIVE_STEP = 1e-3


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    total = 0.0
    for name, x in a.items():
        if name in b:
            wide = accumulator(x.device)
            y = b[name]
            if x.is_complex():
                x, y = torch.view_as_real(x), torch.view_as_real(y)
            total += float((x.to(wide) * y.to(wide)).sum())
    return total


def _scaled(a: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: x * factor for name, x in a.items()}


def _sum(a: Mapping[str, Tensor], b: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: x + factor * b[name] if name in b else x for name, x in a.items()}


def sharpness(
    probe: Probe, gradients: Mapping[str, Tensor], *, iterations: int = 4
) -> float | None:
    """Largest eigenvalue of the loss's Hessian on the batch, from below.

    Lanczos iterations (Golub & Van Loan, Matrix Computations, 10.1) from the gradient: for the same
    number of products they come nearer than power iteration, and a large negative eigenvalue does
    not mislead them. The largest Ritz value never exceeds the largest eigenvalue but for the error
    of the finite difference (about 1e-3 relative in float32).

    Args:
        probe: the model on its batch.
        gradients: the gradients at the present weights.
        iterations: Hessian products; each costs one forward and backward pass.

    Returns:
        The estimate, in units of loss per squared weight; None where the gradient is zero.
    """
    norm = math.sqrt(_dot(gradients, gradients))
    if not norm or not math.isfinite(norm):
        return None
    weights = {name: probe.trained[name].detach().clone() for name in gradients}
    size = math.sqrt(_dot(weights, weights)) or 1.0
    step = RELATIVE_STEP * size
    previous: dict[str, Tensor] = {}
    direction = _scaled(gradients, 1 / norm)
    diagonal: list[float] = []
    off: list[float] = []
    for _ in range(iterations):
        probe.write(_sum(weights, direction, step))
        _, moved = probe.gradients()
        product = _scaled(_sum(moved, gradients, -1.0), 1 / step)
        product = {n: product.get(n, torch.zeros_like(w)) for n, w in weights.items()}
        diagonal.append(_dot(product, direction))
        if not math.isfinite(diagonal[-1]):
            diagonal.pop()
            break
        product = _sum(product, direction, -diagonal[-1])
        if previous:
            product = _sum(product, previous, -off[-1])
        length = math.sqrt(_dot(product, product))
        if length <= 1e-6 * max(map(abs, diagonal)) or not math.isfinite(length):
            break
        off.append(length)
        previous, direction = direction, _scaled(product, 1 / length)
    probe.write(weights)
    if not diagonal:
        return None
    k = len(diagonal)
    tri = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, beta in enumerate(off[: k - 1]):
        tri[i, i + 1] = tri[i + 1, i] = beta
    return float(torch.linalg.eigvalsh(tri)[-1])


def gradient_noise(probe: Probe, *, parts: int = 4) -> dict[str, float] | None:
    """Signal-to-noise of every layer's gradient over micro-batches.

    |mean g|^2 divided by the variance of that mean, (1/m) sum_i |g_i - mean g|^2 / (m - 1), over m
    equal parts of the batch (McCandlish et al. 2018, appendix A, per layer). Around 1 and below the
    gradient of the batch says nothing about the gradient of the next one.

    Args:
        probe: the model on its batch.
        parts: number of micro-batches m; together they cost one forward and backward pass.

    Returns:
        The ratio by module path; None where the batch is too small to be split.
    """
    size = probe.size
    rows = size // parts
    if rows < 2:
        return None
    total: dict[str, Tensor] = {}
    squares: dict[str, float] = {}
    for i in range(parts):
        _, gradients = probe.gradients(slice(i * rows, (i + 1) * rows))
        for name, gradient in gradients.items():
            g = gradient.to_dense() if gradient.is_sparse else gradient
            total[name] = total[name] + g if name in total else g.clone()
            squares[name] = squares.get(name, 0.0) + _dot({name: g}, {name: g})
    signal: dict[str, float] = {}
    spread: dict[str, float] = {}
    for name, summed in total.items():
        layer = name.rpartition(".")[0]
        mean_square = _dot({name: summed}, {name: summed}) / parts**2
        variance = max(squares[name] - parts * mean_square, 0.0) / (parts - 1)
        signal[layer] = signal.get(layer, 0.0) + mean_square
        spread[layer] = spread.get(layer, 0.0) + variance / parts
    return {layer: signal[layer] / spread[layer] if spread[layer] else math.inf for layer in signal}
