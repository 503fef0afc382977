"""Sharpness and gradient noise of one batch, from gradients alone.

The Hessian is never formed. Its product with a direction is the difference of two gradients,
H v = (g(w + e v) - g(w)) / e, so any network that has a gradient has it, fused kernels included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from signalprop.capture.statistics import norm
from signalprop.diagnosis.probe import Probe

#: length of the finite difference, relative to the length of the weights
RELATIVE_STEP = 1e-3


class _Flat:
    """Gradients and weights of some parameters as one long vector each."""

    def __init__(self, probe: Probe, names: Iterable[str]) -> None:
        self.probe = probe
        self.names = list(names)
        self.weights = self.joined(probe.trained)

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One vector of all tensors; a missing one counts as zero."""
        parts = []
        for name in self.names:
            p = self.probe.trained[name]
            part = tensors[name].detach() if name in tensors else torch.zeros_like(p)
            part = part.to_dense() if part.is_sparse else part
            part = torch.view_as_real(part) if part.is_complex() else part
            parts.append(part.reshape(-1))
        wide = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
        wide = wide if wide.itemsize >= 4 else torch.float32
        return torch.cat([part.to(wide) for part in parts])

    def gradients_at(self, weights: Tensor) -> Tensor:
        """The gradient with other weights in place."""
        values: dict[str, Tensor] = {}
        start = 0
        for name in self.names:
            p = self.probe.trained[name]
            shape = torch.view_as_real(p).shape if p.is_complex() else p.shape
            part = weights[start : start + shape.numel()].reshape(shape)
            values[name] = torch.view_as_complex(part) if p.is_complex() else part
            start += shape.numel()
        self.probe.write(values)
        return self.joined(self.probe.gradients()[1])


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
    flat = _Flat(probe, gradients)
    gradient = flat.joined(gradients)
    length = float(norm(gradient))
    if not length or not math.isfinite(length):
        return None
    step = RELATIVE_STEP * (float(norm(flat.weights)) or 1.0)
    direction, previous = gradient / length, torch.zeros_like(gradient)
    diagonal: list[float] = []
    off: list[float] = []
    for _ in range(iterations):
        product = (flat.gradients_at(flat.weights + step * direction) - gradient) / step
        along = float(product.dot(direction))
        if not math.isfinite(along):
            break
        diagonal.append(along)
        product -= along * direction
        if off:
            product -= off[-1] * previous
        length = float(norm(product))
        if length <= 1e-6 * max(map(abs, diagonal)) or not math.isfinite(length):
            break
        off.append(length)
        previous, direction = direction, product / length
    probe.put_back()
    if not diagonal:
        return None
    k = len(diagonal)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, beta in enumerate(off[: k - 1]):
        tridiagonal[i, i + 1] = tridiagonal[i + 1, i] = beta
    return float(torch.linalg.eigvalsh(tridiagonal)[-1])


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
            squares[name] = squares.get(name, 0.0) + float(norm(g)) ** 2
    signal: dict[str, float] = {}
    spread: dict[str, float] = {}
    for name, summed in total.items():
        layer = name.rpartition(".")[0]
        mean_square = float(norm(summed)) ** 2 / parts**2
        variance = max(squares[name] - parts * mean_square, 0.0) / (parts - 1)
        signal[layer] = signal.get(layer, 0.0) + mean_square
        spread[layer] = spread.get(layer, 0.0) + variance / parts
    return {layer: signal[layer] / spread[layer] if spread[layer] else math.inf for layer in signal}
