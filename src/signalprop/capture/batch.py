"""Turns what a user calls a batch into arguments of the model and a target for the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from signalprop.capture.sandbox import generators_kept
from signalprop.errors import BatchError, LossError

TARGET_KEYS = ("labels", "label", "targets", "target", "y")

Loss = Callable[..., Tensor] | torch.nn.Module | None


@dataclass(frozen=True)
class Batch:
    """Arguments for the model and the target for the loss.

    Attributes:
        args: positional arguments of `model.forward`.
        kwargs: keyword arguments of `model.forward`.
        target: what the loss compares the output with.
        has_target: whether there is one.
        size: number of samples.
        leaves: the floating inputs of which a gradient is taken, keyed by a name.
        inputs: every tensor the model is given, keyed by the same names.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    has_target: bool
    size: int
    leaves: dict[str, Tensor]
    inputs: dict[str, Tensor]


def read(
    data: Any, model: torch.nn.Module, loss: Loss, *, batch_dim: int = 0, gradients: bool = True
) -> Batch:
    """Take a batch apart.

    Args:
        data: tensor, tuple, dict, or a DataLoader, of which the first batch is taken.
        model: the model, whose signature and device are looked at.
        loss: the loss, or None where the model returns its own.
        batch_dim: dimension of the samples.
        gradients: whether floating inputs are to require a gradient.

    Returns:
        Copies of everything, on the model's device.

    Raises:
        BatchError: the batch is of an unknown form, or empty.
    """
    data = first_of(data)
    args, kwargs, target, has_target = _split(data, model, loss)
    device = _device(model)
    if device is not None:
        args, kwargs, target = (_to(part, device) for part in (args, kwargs, target))
    fresh = _Fresh(gradients)
    fresh_args = tuple(fresh(a, "input" if i == 0 else f"input{i + 1}") for i, a in enumerate(args))
    fresh_kwargs = {k: fresh(v, f"input:{k}") for k, v in kwargs.items()}
    size = _size((fresh_args, fresh_kwargs), batch_dim)
    return Batch(
        fresh_args, fresh_kwargs, _copy(target), has_target, size, fresh.leaves, fresh.inputs
    )


def some_rows(data: Batch, rows: Tensor, batch_dim: int, *, gradients: bool = False) -> Batch:
    """Some samples of a batch: of every tensor whose dimension of the samples fits.

    Args:
        data: the batch.
        rows: which samples, as indices.
        batch_dim: dimension of the samples.
        gradients: whether floating inputs are to require a gradient.

    Returns:
        A batch of its own.
    """

    def cut(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        for dim in (batch_dim, 0):
            if x.ndim > dim and x.shape[dim] == data.size:
                return x.detach().index_select(dim, rows.to(x.device))
        return x

    args, kwargs, target = (tree_map(cut, x) for x in (data.args, data.kwargs, data.target))
    if not gradients:
        return Batch(args, kwargs, target, data.has_target, len(rows), {}, {})
    fresh = _Fresh(gradients)
    args = tuple(fresh(a, "input" if i == 0 else f"input{i + 1}") for i, a in enumerate(args))
    kwargs = {k: fresh(v, f"input:{k}") for k, v in kwargs.items()}
    return Batch(args, kwargs, target, data.has_target, len(rows), fresh.leaves, fresh.inputs)


def stand_in(data: Any, model: torch.nn.Module) -> Callable[..., Tensor]:
    """A loss for a call that needs none: the model's own, else half the sum of squares it returns.

    Args:
        data: the batch; the last of a tuple that is longer than what the model takes is a target.
        model: the model.

    Returns:
        A loss of (output, target) or of (output).
    """

    def energy(output: Any) -> Tensor:
        own = _own_loss(output)
        if own is not None:
            return own
        floating = [
            x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()
        ]
        if not floating:
            raise LossError(
                f"the model returned {describe(output)}; there is no floating tensor in it"
            )
        return 0.5 * torch.stack([x.square().sum() for x in floating]).sum()

    several = isinstance(data, (tuple, list)) and not hasattr(data, "_fields")
    if several and len(data) > 1 and not _accepts(model, len(data)):
        return lambda output, target: energy(output)
    return energy


def first_of(data: Any) -> Any:
    """The first batch of a DataLoader or of another iterable of batches; else the data itself."""
    if isinstance(data, (Tensor, tuple, list, Mapping)) or not isinstance(data, Iterable):
        return data
    if _is_batch_object(data):
        return data
    try:
        with generators_kept(data):
            return next(iter(data))
    except StopIteration:
        raise BatchError("the data loader is empty; give one with at least one batch") from None


def _is_batch_object(data: Any) -> bool:
    """A batch that is itself iterable, e.g. of a graph library: it has tensors as attributes."""
    return any(isinstance(v, Tensor) for v in getattr(data, "__dict__", {}).values())


def takes_target(loss: Loss) -> bool:
    """Whether a loss can be called with (output, target) rather than with the output alone."""
    positional = _positional(loss)
    if positional is None:
        return loss is not None
    return len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in positional)


def _needs_target(loss: Loss) -> bool:
    """Whether a loss cannot be called with the output alone."""
    positional = _positional(loss) or []
    return sum(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in positional) >= 2


def _positional(loss: Loss) -> list[inspect.Parameter] | None:
    """Positional parameters of a loss; None where they cannot be known (torch's builtins)."""
    function = loss.forward if isinstance(loss, torch.nn.Module) else loss
    if function is None:
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]


def _split(
    data: Any, model: torch.nn.Module, loss: Loss
) -> tuple[tuple[Any, ...], dict[str, Any], Any, bool]:
    compares = takes_target(loss)
    if isinstance(data, Mapping):
        return _split_mapping(dict(data), model, compares)
    if isinstance(data, (tuple, list)) and not hasattr(data, "_fields"):
        items = tuple(data)
        if not items:
            raise BatchError("the batch is empty; give (inputs, target)")
        if compares or (loss is None and len(items) == 2 and not _accepts(model, 2)):
            *inputs, target = items
            if not inputs:
                raise BatchError("the batch holds one tensor only; give (inputs, target)")
            if len(inputs) == 1 and isinstance(inputs[0], Mapping):
                return (), dict(inputs[0]), target, True
            if len(inputs) == 1 and isinstance(inputs[0], tuple) and not _is_named(inputs[0]):
                accepts = _accepts(model, len(inputs[0]))
                return (tuple(inputs[0]) if accepts else (inputs[0],)), {}, target, True
            return tuple(inputs), {}, target, True
        return items, {}, None, False
    return (data,), {}, None, False


def _is_named(value: Any) -> bool:
    return hasattr(value, "_fields")


def _split_mapping(
    data: dict[str, Any], model: torch.nn.Module, compares: bool
) -> tuple[tuple[Any, ...], dict[str, Any], Any, bool]:
    if not compares:
        return (), data, None, False
    key = next((k for k in TARGET_KEYS if k in data), None)
    if key is None:
        raise BatchError(
            f"the batch is a dict with keys {sorted(map(str, data))} and the loss needs a target; "
            f"name it one of {', '.join(TARGET_KEYS)}, or give (inputs, target)"
        )
    target = data.pop(key)
    return (), data, target, True


def _accepts(model: torch.nn.Module, count: int) -> bool:
    """Whether `model.forward` takes this many positional arguments."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return True
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return type(model).forward is not torch.nn.Sequential.forward
    names = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(names) >= count


def _device(model: torch.nn.Module) -> torch.device | None:
    devices = {p.device for p in model.parameters()}
    return devices.pop() if len(devices) == 1 else None


def _to(value: Any, device: torch.device) -> Any:
    def move(x: Any) -> Any:
        return x.to(device) if isinstance(x, Tensor) and x.device.type == "cpu" else x

    return value if device.type in ("cpu", "meta") else tree_map(move, value)


class _Fresh:
    """Copies of all tensors, so that the user's are safe from in-place operations.

    A floating tensor becomes a copy of a leaf that requires a gradient: delta is then known at the
    input too, and through frozen layers.
    """

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients
        self.leaves: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}

    def __call__(self, value: Any, name: str) -> Any:
        count = 0

        def copy(x: Any) -> Any:
            nonlocal count
            if not isinstance(x, Tensor):
                return x
            count += 1
            label = name if count == 1 else f"{name}.{count}"
            x = x.detach()
            if self.gradients and (x.is_floating_point() or x.is_complex()):
                leaf = (x.clone() if x.is_inference() else x).requires_grad_()
                self.leaves[label] = leaf
                fresh = leaf.clone()
            else:
                fresh = x.clone()
            self.inputs[label] = fresh
            return fresh

        return tree_map(copy, value)


def _copy(value: Any) -> Any:
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value)


def sample_dim(data: Any, model: torch.nn.Module, loss: Loss) -> int:
    """Which dimension counts the samples: the second where only that one fits the target.

    A recurrent layer takes (steps, samples, features) unless it is told otherwise.

    Returns:
        0 or 1.
    """
    args, kwargs, target, _ = _split(data, model, loss)
    first = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), None)
    if first is None or first.ndim < 2 or not isinstance(target, Tensor) or target.ndim == 0:
        return 0
    count = target.shape[0]
    return int(first.shape[0] != count and first.shape[1] == count)


def _size(inputs: Any, batch_dim: int) -> int:
    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    for x in tensors:
        if x.ndim > batch_dim:
            if x.shape[batch_dim] == 0:
                raise BatchError(
                    f"the batch has no samples (an input of shape {tuple(x.shape)}); "
                    "give at least one"
                )
            return x.shape[batch_dim]
    return 1


def loss_of(output: Any, batch: Batch, loss: Loss) -> Tensor:
    """The scalar loss of a model's output.

    Returns:
        The loss, of shape ().

    Raises:
        LossError: there is none, or it is not a scalar that gradients can be taken of.
    """
    if loss is None:
        value = _own_loss(output)
        if value is None:
            raise LossError(
                f"the model returned {describe(output)} and no loss was given; pass loss=, for "
                "example loss=torch.nn.functional.cross_entropy"
            )
    elif batch.has_target and takes_target(loss):
        value = loss(_logits(output), batch.target)
    elif _needs_target(loss):
        raise LossError("the loss compares two tensors, but the batch holds no target; give (x, y)")
    else:
        value = loss(output)
    if not isinstance(value, Tensor):
        raise LossError(
            f"the loss returned {describe(value)}; it must return a tensor of one number"
        )
    if value.numel() != 1:
        raise LossError(
            f"the loss has shape {tuple(value.shape)}; reduce it to one number, for example with "
            ".mean()"
        )
    return value.reshape(())


def _logits(output: Any) -> Any:
    """A `transformers` output stands for its logits when a loss function is given."""
    logits = getattr(output, "logits", None) if isinstance(output, Mapping) else None
    return logits if isinstance(logits, Tensor) else output


def _own_loss(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.numel() == 1 else None
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if own is None and isinstance(output, (tuple, list)) and output:
        own = output[0]
    return own if isinstance(own, Tensor) and own.numel() == 1 else None


def describe(value: Any) -> str:
    """A value in a few words, e.g. `a tuple of 2 (Tensor[4, 3], Tensor[4])`."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(map(str, value))}"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(
            f"Tensor{list(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in value
        )
        return f"a {type(value).__name__} of {len(value)} ({inside})"
    return f"a {type(value).__name__}"
