"""Who learns: the optimizer's own next update, taken on copies.

An optimizer is not its gradient: momentum remembers, Adam divides a small gradient by its own
size until its epsilon stops it. So the layers are judged by what the given optimizer, with its
present state, would do next.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from signalprop.capture.statistics import accumulator, count, norm
from signalprop.diagnosis.evidence import OptimizerFacts
from signalprop.diagnosis.finding import Learning
from signalprop.diagnosis.probe import Probe

#: learning rate of the SGD that stands in where no optimizer was given; shares do not depend on it
ASSUMED_RATE = 1e-2


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside a wrapper (accelerate, mixed-precision plug-ins)."""
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, torch.optim.Optimizer) else optimizer


def facts_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> OptimizerFacts:
    """What rules may know of an optimizer."""
    names = {id(p): name for name, p in model.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    groups, fresh = optimizer.param_groups, _fresh(optimizer)
    return OptimizerFacts(
        name=type(optimizer).__name__,
        rate=max((_warm(g) if fresh else _number(g, "lr") for g in groups), default=0.0),
        held=frozenset(names[id(p)] for p in held if id(p) in names),
        foreign=sum(id(p) not in names for p in held),
        momentum=max((_number(g, "momentum") for g in groups), default=0.0),
        fresh=fresh,
    )


def _fresh(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it has never been stepped, so that a schedule may still be at its start."""
    return not optimizer.state and not getattr(optimizer, "_opt_called", False)


def _warm(group: Mapping[str, Any]) -> float:
    """The learning rate that a schedule warms up to; what a group has where there is none."""
    return max(_number(group, key) for key in ("lr", "initial_lr", "max_lr"))


def _number(group: Mapping[str, Any], key: str) -> float:
    value = group.get(key, 0.0)
    return float(value) if isinstance(value, (int, float, Tensor)) else 0.0


def learning_share(
    gradients: Mapping[str, Tensor], updates: Mapping[str, Tensor]
) -> tuple[dict[str, float], float]:
    """Each layer's part of the first-order decrease of the loss, and that decrease.

    share_l = sum over the layer's parameters of -g . update / the same over all layers. The sum is
    1. A negative share is a layer whose update raises the loss to first order (momentum, weight
    decay); where the whole update raises it, the decrease is negative.

    Args:
        gradients: gradient by parameter name.
        updates: change of the parameter by the same names.

    Returns:
        Share by module path (nan where the decrease is zero), and the decrease in units of loss.
    """
    parts: dict[str, list[float]] = {}
    for name, gradient in gradients.items():
        if name in updates:
            parts.setdefault(_layer(name), []).append(_decrease(gradient, updates[name]))
    sums = {layer: math.fsum(values) for layer, values in parts.items()}
    total = math.fsum(sums.values())
    return {k: v / total if total else math.nan for k, v in sums.items()}, total


def _decrease(gradient: Tensor, update: Tensor) -> float:
    g = gradient.to_dense() if gradient.is_sparse else gradient
    if g.is_complex():
        g, update = torch.view_as_real(g), torch.view_as_real(update)
    g, update = g.reshape(-1), update.reshape(-1)
    if g.dtype == update.dtype == torch.float32:
        quick = -float(g.dot(update))
        if 1e-30 < abs(quick) < 1e30:  # products of small gradients underflow
            return quick
    wide = accumulator(g.device)
    return -float(g.to(wide).dot(update.to(wide)))


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]


class Rehearsal:
    """The optimizer's next updates, on copies of the parameters and of its state."""

    def __init__(self, probe: Probe, optimizer: torch.optim.Optimizer | None) -> None:
        self.probe = probe
        self.assumed = optimizer is None
        self.copies = {
            name: torch.nn.Parameter(p.detach().clone(), requires_grad=True)
            for name, p in probe.trained.items()
        }
        if optimizer is None:
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                self.copies.values(), lr=ASSUMED_RATE
            )
        else:
            # the memo makes the copied optimizer, state and all, hold the copied parameters
            memo: dict[int, Any] = {
                id(probe.trained[name]): value for name, value in self.copies.items()
            }
            self.optimizer = copy.deepcopy(optimizer, memo)
            if hasattr(optimizer, "_params"):  # LBFGS keeps its parameters outside its state
                held = [p for group in self.optimizer.param_groups for p in group["params"]]
                self.optimizer.__dict__.update(_params=held, _numel_cache=None)
            if _fresh(optimizer):
                for group in self.optimizer.param_groups:
                    if isinstance(group.get("lr"), float):
                        group["lr"] = _warm(group)

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """One update of the copies with these gradients."""
        self._give(gradients)
        step: Callable[..., Any] = self.optimizer.step
        try:
            step()
        except TypeError:  # LBFGS and sharpness-aware optimizers evaluate the loss themselves
            step(self._evaluate)

    def _give(self, gradients: Mapping[str, Tensor]) -> None:
        for name, value in self.copies.items():
            value.grad = gradients[name].clone() if name in gradients else None

    def _evaluate(self) -> Tensor:
        self.probe.write(self.copies)
        loss, gradients = self.probe.gradients()
        self._give(gradients)
        return torch.tensor(loss)

    def change(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One update; what it changed, by parameter."""
        before = {name: value.detach().clone() for name, value in self.copies.items()}
        self.update(gradients)
        return {name: value.detach() - before[name] for name, value in self.copies.items()}

    def run(
        self, loss: float, gradients: Mapping[str, Tensor], *, updates: int
    ) -> tuple[Learning, dict[str, Tensor]]:
        """Take some updates on copies and measure the first and the last.

        Args:
            loss: the loss at the present weights.
            gradients: the gradients at the present weights.
            updates: how many updates.

        Returns:
            What was measured, and the weights after the updates.
        """
        change = self.change(gradients)
        first_weights = self.probe.originals()
        share, decrease = learning_share(gradients, change)
        ratios = _ratios(first_weights, change)
        unmoved = _unmoved(first_weights, change, gradients)
        after = [loss]
        later_share = share
        for i in range(1, updates):
            self.probe.write(self.copies)
            value, gradients = self.probe.gradients()
            after.append(value)
            if not math.isfinite(value):
                break
            if i < updates - 1:
                self.update(gradients)
            else:
                later_share, _ = learning_share(gradients, self.change(gradients))
        else:
            self.probe.write(self.copies)
            after.append(self.probe.value())
        self.probe.put_back()
        name = type(self.optimizer).__name__
        measured = Learning(
            optimizer=f"{name} (assumed)" if self.assumed else name,
            share=share,
            later_share=later_share,
            update_ratio=ratios,
            decrease=decrease,
            unmoved=unmoved,
            after=tuple(after),
            rate=max((_number(g, "lr") for g in self.optimizer.param_groups), default=0.0),
        )
        return measured, {n: v.detach() for n, v in self.copies.items()}


def _ratios(weights: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> dict[str, float]:
    """|update| / |weights| by layer."""
    moved: dict[str, float] = {}
    size: dict[str, float] = {}
    for name, update in change.items():
        layer = _layer(name)
        moved[layer] = math.hypot(moved.get(layer, 0.0), float(norm(update)))
        size[layer] = math.hypot(size.get(layer, 0.0), float(norm(weights[name])))
    return {layer: moved[layer] / size[layer] if size[layer] else math.inf for layer in moved}


def _unmoved(
    weights: Mapping[str, Tensor], change: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> dict[str, float]:
    """Share of the weights with a gradient that an update leaves bit for bit the same."""
    with_gradient: dict[str, int] = {}
    still: dict[str, int] = {}
    for name, gradient in gradients.items():
        if gradient.is_sparse:
            continue
        layer = _layer(name)
        pulled = gradient != 0
        with_gradient[layer] = with_gradient.get(layer, 0) + count(pulled)
        still[layer] = still.get(layer, 0) + count(pulled & (change[name] == 0))
    return {layer: still[layer] / n for layer, n in with_gradient.items() if n}
