"""Every statistic from its definition, in float64 and plain loops over samples.

Nothing here is shared with the package: tensors come from ordinary hooks that a user would write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # slope by output, largest slope 1
    "sigmoid": lambda y: 4 * y * (1 - y),
    "tanh": lambda y: 1 - y**2,
}


def wide(x: Tensor) -> np.ndarray:
    """Any tensor in float64, a complex one as pairs of real numbers."""
    x = x.detach()
    return (torch.view_as_real(x) if x.is_complex() else x).to(torch.float64).numpy()


def rows(x: np.ndarray, batch: int) -> np.ndarray:
    """One row per sample; one row in all where the first dimension is no batch."""
    if x.ndim and x.shape[0] == batch:
        return x.reshape(batch, -1)
    if x.ndim > 1 and x.shape[1] == batch:
        return np.moveaxis(x, 1, 0).reshape(batch, -1)
    if x.ndim > 1 and batch > 1 and x.shape[0] > batch and x.shape[0] % batch == 0:
        return x.reshape(batch, -1)  # tokens folded into the first dimension
    return x.reshape(1, -1)


def norms(x: np.ndarray) -> np.ndarray:
    """L2 norm of every row, scaled so that no square leaves the range of float64."""
    largest = np.abs(x).max(1)
    scale = np.where(largest > 0, largest, 1.0)
    return scale * np.sqrt(((x / scale[:, None]) ** 2).sum(1))


def directions(x: np.ndarray) -> np.ndarray:
    """The rows that are not zero, at unit length."""
    length = norms(x)
    return x[length > 0] / length[length > 0, None]


def compared(x: np.ndarray, samples: int = 12) -> np.ndarray:
    """The rows that are compared with each other."""
    apart = max(1, len(x) // samples)
    return np.stack([x[i] for i in range(len(x)) if i % apart == 0][:samples])


def mean_cosine(x: np.ndarray) -> float:
    """Mean cosine of all pairs of rows, pair by pair."""
    unit = directions(x)
    n = len(unit)
    if n < 2:
        return math.nan
    return float(np.mean([unit[i] @ unit[j] for i in range(n) for j in range(n) if i != j]))


def effective_rank(x: np.ndarray) -> float:
    """(sum s^2)^2 / sum s^4 of the singular values of the rows at unit length."""
    unit = directions(x)
    if not len(unit):
        return 0.0
    s = np.linalg.svd(unit, compute_uv=False)
    return float((s**2).sum() ** 2 / (s**4).sum())


def rms(x: np.ndarray) -> float:
    """Root mean square of all elements."""
    return float(np.sqrt((norms(x) ** 2).sum() / x.size))


def activation(tensor: Tensor, batch: int) -> dict[str, Any]:
    """The fields of ActivationStats that every tensor has."""
    x = rows(wide(tensor), batch)
    return {
        "rms": rms(x),
        "mean": float(x.mean()),
        "variance": float(np.mean((x - x.mean()) ** 2)),
        "zeros": float(np.mean(x == 0)),
        "effective_rank": effective_rank(compared(x)),
        "cosine": mean_cosine(compared(x)),
        "finite": bool(np.isfinite(x).all()),
    }


def token_cosine(tensor: Tensor) -> float:
    """Mean over samples of the mean cosine of two tokens; (batch, tokens, features)."""
    return float(np.mean([mean_cosine(sample) for sample in wide(tensor)]))


def by_unit(tensor: Tensor) -> list[np.ndarray]:
    """All observations of every unit: channels of images, else the last dimension."""
    x = wide(tensor)
    dim = 1 if x.ndim == 4 else x.ndim - 1
    return list(np.moveaxis(x, dim, 0).reshape(x.shape[dim], -1))


def dead(tensor: Tensor) -> float:
    """Share of units that are zero for every observation."""
    return float(np.mean([(unit == 0).all() for unit in by_unit(tensor)]))


def saturated(tensor: Tensor, op: str) -> float:
    """Share of units whose slope is below 5% of the largest in over 3/4 of the observations."""
    slope = SLOPES[op]
    return float(np.mean([np.mean(slope(unit) < 0.05) > 0.75 for unit in by_unit(tensor)]))


def delta(tensor: Tensor, batch: int) -> dict[str, Any]:
    """The fields of DeltaStats."""
    x = rows(wide(tensor), batch)
    length = norms(x)
    live = length[length > 0]
    per_sample = [math.log(v / math.sqrt(x.shape[1])) for v in live]
    return {
        "rms": rms(x),
        "geometric_mean": math.exp(math.fsum(per_sample) / len(live)) if len(live) else 0.0,
        "zeros": float(np.mean(x == 0)),
        "alive": float(np.mean(length > 0)),
        "cosine": mean_cosine(compared(x)),
        "finite": bool(np.isfinite(x).all()),
    }


class Kept:
    """Outputs of all modules and their gradients, by plain hooks; the model is the twin's own.

    The gradient is read by a hook on the tensor where it was made: `retain_grad` would follow a
    tensor that an in-place operation changes later. Where nothing changes in place both agree.
    """

    def __init__(self, model: nn.Module) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.retained: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        for path, module in model.named_modules():
            module.register_forward_hook(lambda _, __, out, path=path: self._keep(path, out))

    def _keep(self, path: str, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        self.calls[path] = self.calls.get(path, 0) + 1
        if not isinstance(output, Tensor) or self.calls[path] > 1:
            return
        self.outputs[path] = output.detach().clone()
        if output.requires_grad:
            output.retain_grad()
            self.retained[path] = output
            output.register_hook(lambda g: self.gradients.__setitem__(path, g.detach().clone()))

    def once(self) -> Iterator[str]:
        """Modules that were called exactly once and gave a tensor."""
        return (path for path in self.outputs if self.calls[path] == 1)
