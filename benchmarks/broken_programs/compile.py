"""Keras's losses, optimizers and metrics in torch: what `model.compile` stands for.

The losses take what the model puts out, so with Keras's cross-entropies probabilities. Keras
divides them by their sum (categorical), cuts them off at 1e-7 and 1 - 1e-7, and only then takes
the logarithm: where they are cut off the gradient is exactly zero. They are written with torch's
own `nll_loss` and `binary_cross_entropy`, as a port by hand would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-7
Loss = Callable[[Tensor, Tensor], Tensor]


def categorical_crossentropy(output: Tensor, target: Tensor) -> Tensor:
    """-log of the probability of the right class; output (n, classes), target one-hot."""
    p = output / output.sum(-1, keepdim=True)
    return F.nll_loss(p.clamp(EPSILON, 1 - EPSILON).log(), target.argmax(-1))


def sparse_categorical_crossentropy(output: Tensor, target: Tensor) -> Tensor:
    """The same for class numbers (n,) or (n, 1): cut off first, then divided by the sum."""
    logits = output.clamp(EPSILON, 1 - EPSILON).log()
    return F.cross_entropy(logits, target.flatten().long())


def binary_crossentropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean over all outputs; the targets lie within 0 and 1, or torch refuses them."""
    return F.binary_cross_entropy(output.clamp(EPSILON, 1 - EPSILON), target)


def unchecked_binary_crossentropy(output: Tensor, target: Tensor) -> Tensor:
    """The same for any target, as Keras has it: through logits, which neither of the two checks."""
    logits = torch.logit(output.clamp(EPSILON, 1 - EPSILON))
    return F.binary_cross_entropy_with_logits(logits, target)


LOSSES: dict[str, Loss] = {
    "categorical_crossentropy": categorical_crossentropy,
    "sparse_categorical_crossentropy": sparse_categorical_crossentropy,
    "binary_crossentropy": binary_crossentropy,
    "mse": F.mse_loss,
    "mean_squared_error": F.mse_loss,
    "mae": F.l1_loss,
    "mean_absolute_error": F.l1_loss,
}


def loss(name: str, target: Tensor) -> Loss:
    """The loss of that Keras name.

    Args:
        name: e.g. `categorical_crossentropy`.
        target: all targets it will be given.

    Returns:
        A function of output and target.

    Raises:
        ValueError: there is none.
    """
    if name not in LOSSES:
        raise ValueError(f"there is no loss {name}")
    if name == "binary_crossentropy" and bool(((target < 0) | (target > 1)).any()):
        return unchecked_binary_crossentropy
    return LOSSES[name]


# ---- optimizers ------------------------------------------------------------------------------

#: class, and Keras's defaults in torch's words. Keras's Adam adds epsilon before it corrects the
#: bias of the second moment; torch's adds it after, which only the very first updates can tell.
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.01}),
    "adam": (torch.optim.Adam, {"lr": 0.001, "eps": EPSILON}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.001, "alpha": 0.9, "eps": EPSILON}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.01, "eps": EPSILON}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "rho": 0.95, "eps": EPSILON}),
    "adamax": (torch.optim.Adamax, {"lr": 0.002, "eps": EPSILON}),
    "nadam": (torch.optim.NAdam, {"lr": 0.002, "eps": EPSILON}),
}
#: Keras's names of arguments in torch's; rho is alpha of RMSprop only
RENAMED = {"rho": "alpha"}


def optimizer(
    spec: Mapping[str, Any], model: nn.Module, penalties: Mapping[str, float]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    """The optimizer of that Keras name, and its decay of the learning rate after every update.

    Args:
        spec: `name` and arguments in Keras's words: lr, decay, momentum, nesterov, beta_1, rho.
        model: the model.
        penalties: Keras's l2 by name of the kernel. Its gradient 2 l2 w is torch's weight decay,
            which these optimizers add to the gradient, as Keras does through the loss.

    Returns:
        The optimizer and its schedule, None where the rate does not decay.

    Raises:
        ValueError: there is no such optimizer.
    """
    given = {k: v for k, v in spec.items() if k != "name"}
    name = spec["name"].lower()
    if name not in OPTIMIZERS:
        raise ValueError(f"there is no optimizer {spec['name']}")
    make, defaults = OPTIMIZERS[name]
    decay = given.pop("decay", 0.0)
    arguments = dict(defaults)
    betas = given.pop("beta_1", 0.9), given.pop("beta_2", 0.999)
    if betas != (0.9, 0.999):
        arguments["betas"] = betas
    for key, value in given.items():
        arguments[RENAMED.get(key, key) if name == "rmsprop" else key] = value
    groups: dict[float, list[nn.Parameter]] = {}
    for key, parameter in model.named_parameters():
        groups.setdefault(2 * penalties.get(key, 0.0), []).append(parameter)
    held = [{"params": params, "weight_decay": wd} for wd, params in groups.items()]
    made = make(held, **arguments)
    schedule = None
    if decay:
        schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1 / (1 + decay * step))
    return made, schedule


# ---- metrics ---------------------------------------------------------------------------------


def metric(name: str, output: Tensor, target: Tensor, value: float) -> float:
    """Keras's metric; nan where the output is not finite.

    Args:
        name: `accuracy`, `bits`, `r2` or `loss`.
        output: of the model, for all test samples.
        target: what it should be.
        value: the loss on them.

    Returns:
        A share of 1; for `loss` the loss.
    """
    if name == "loss":
        return value
    if not bool(torch.isfinite(output).all()):
        return float("nan")
    if name == "r2":
        variance = (target - target.mean()).square().mean()
        return float(1 - (output - target).square().mean() / variance)
    if name == "accuracy" and output.shape[-1] > 1:
        wanted = target.argmax(-1) if target.shape == output.shape else target.flatten()
        return float((output.argmax(-1) == wanted).double().mean())
    return float((output.round() == target).double().mean())


def constant(name: str, target: Tensor, loss_value: Callable[[float], float]) -> float:
    """What the best constant output reaches by the same metric: the bar of having learned."""
    if name == "r2":
        return 0.0
    if name == "loss":
        return loss_value(float(target.mean()))
    if name == "bits":
        return float(torch.maximum(target.mean(0), 1 - target.mean(0)).mean())
    if target.shape[-1] > 1:
        return float(target.mean(0).max())
    return float(torch.unique(target, return_counts=True)[1].max() / target.numel())
