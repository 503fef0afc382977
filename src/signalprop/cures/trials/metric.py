"""One number that all candidates are compared by, whatever loss each of them is trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from signalprop.capture.batch import Loss, describe
from signalprop.errors import SignalpropError

#: of the user: (output, target) -> a number, the higher the better
Score = Callable[[Any, Any], float]

_IGNORED = -100


@dataclass(frozen=True)
class Metric:
    """How an output is judged; the higher the better.

    Attributes:
        name: `accuracy`, `R2`, `minus the loss`, or `score` of the user's own.
        kind: `own`, `classes`, `one-hot`, `binary`, `numbers` (class numbers and an output that can
            only tell 0 from 1), `signs`, `values`, `loss`.
        threshold: output above which a binary target is taken for 1.
        score: the user's own.
    """

    name: str
    kind: str
    threshold: float = 0.5
    score: Score | None = None

    def sums(self, output: Any, target: Any) -> Tensor:
        """What is added up over batches, float64: see `value`."""
        if self.kind == "own":
            assert self.score is not None
            size = len(target) if isinstance(target, Tensor) and target.ndim else 1
            return torch.tensor([float(self.score(output, target)) * size, size]).double()
        output = _tensor(output)
        if self.kind == "values":
            y, p = target.double().flatten(), output.double().flatten()
            if y.shape != p.shape:  # as broadcasting would compare them
                raise SignalpropError(f"output {tuple(output.shape)}, target {tuple(target.shape)}")
            return torch.stack([(y - p).square().sum(), y.sum(), y.square().sum(),
                                torch.tensor(float(len(y)), device=y.device).double()])  # fmt: skip
        right, counted = self._right(output, target)
        return torch.stack([(right & counted).sum(), counted.sum()]).double()

    def _right(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "classes":
            target = target.squeeze(-1) if target.ndim == output.ndim else target
            last = output.shape[:-1] == target.shape
            found = output.argmax(-1 if last else 1)
            return found == target, target != _IGNORED
        if self.kind == "one-hot":
            found = output.argmax(-1) == target.argmax(-1)
            return found, torch.ones_like(found)
        found = output.reshape(target.shape) > self.threshold
        if self.kind == "numbers":
            found = found == target
            return found, torch.ones_like(found)
        return found == (target > (0 if self.kind == "signs" else 0.5)), torch.ones_like(found)

    def value(self, sums: Tensor) -> float:
        """The metric from sums over all batches."""
        if self.kind == "values":
            residual, total, squares, count = sums.tolist()
            spread = squares - total**2 / max(count, 1)
            return 1 - residual / spread if spread > 0 else -residual / max(count, 1)
        return float(sums[0] / sums[1].clamp_min(1))

    def error(self, sums: Tensor) -> float:
        """Standard error of an accuracy for how few samples it is of, sqrt(p (1 - p) / n); else 0.

        Half a sample is added to either side, so that none wrong is not certainty.

        Returns:
            The standard error.
        """
        if self.kind in ("own", "values"):
            return 0.0
        right, n = sums.tolist()
        p = (right + 0.5) / (n + 1)
        return math.sqrt(p * (1 - p) / max(n, 1))


def _tensor(output: Any) -> Tensor:
    for candidate in (output, getattr(output, "logits", None)):
        if isinstance(candidate, Tensor):
            return candidate
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise SignalpropError(
        f"the model returned {describe(output)}; say how it is judged with metric=, a function of "
        "(output, target)"
    )


def infer(output: Any, target: Any, loss: Loss, score: Score | None = None) -> Metric:
    """How this output is to be judged against this target.

    Integer targets are classes; rows of zeros with a single one are classes too; floats that are
    only 0 and 1 (or -1 and 1) are binary; other floats are values, judged by R2 = 1 - residual sum
    of squares / that of the mean. Where there is no target the loss itself counts.

    Args:
        output: of the untouched network.
        target: of the same batch; None where the model makes its own loss.
        loss: the user's.
        score: the user's own metric.

    Returns:
        The metric.
    """
    if score is not None:
        return Metric(getattr(score, "__name__", "score"), "own", score=score)
    if not isinstance(target, Tensor):
        return Metric("minus the loss", "loss")
    try:
        tensor = _tensor(output)
    except SignalpropError:
        return Metric("minus the loss", "loss")
    several = tensor.ndim > 1 and tensor.shape[-1] > 1
    same = tensor.squeeze().shape == target.squeeze().shape
    if not target.is_floating_point() and not same and tensor.ndim > 1:
        return Metric("accuracy", "classes")
    if not same:
        return Metric("minus the loss", "loss")
    y = target.double()
    values = set(y.unique()[:3].tolist())
    rows = several and values <= {0.0, 1.0} and bool((y.reshape(tensor.shape).sum(-1) == 1).all())
    if rows:
        return Metric("accuracy", "one-hot")
    if values in ({0.0, 1.0}, {-1.0, 1.0}):
        logits = -1.0 in values or _takes_logits(loss, tensor, target)
        return Metric("accuracy", "signs" if -1.0 in values else "binary", 0.0 if logits else 0.5)
    threshold = _binary_threshold(loss, tensor, target)
    if threshold is not None and bool(((y >= 0) & (y == y.round())).all()):
        return Metric("accuracy", "numbers", threshold)
    return Metric("R2", "values")


def _binary_threshold(loss: Loss, output: Tensor, target: Tensor) -> float | None:
    """Where a binary cross-entropy's output tells 0 from 1; None of another loss."""
    if loss is None:
        return None
    ones = torch.ones_like(target)
    for threshold, far, nats in ((0.5, 0.1, -math.log(0.1)), (0.0, -2.0, math.log1p(math.exp(2)))):
        try:
            values = [float(loss(torch.full_like(output, v), ones)) for v in (threshold, far)]
        except Exception:  # it takes no such numbers
            continue
        if values[0] > 0 and math.isclose(values[1] / values[0], nats / math.log(2), rel_tol=1e-3):
            return threshold
    return None


def _takes_logits(loss: Loss, output: Tensor, target: Tensor) -> bool:
    """Whether -2 is a better answer than 0 where 0 is right."""
    if loss is None:
        return False
    zeros = torch.zeros_like(target)
    try:
        far, near = (float(loss(torch.full_like(output, v), zeros)) for v in (-2.0, 0.0))
    except Exception:  # probabilities only
        return False
    return far < near
