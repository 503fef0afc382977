"""What a network applies to the output of each linear layer, seen while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: elementwise functions, by the name torch calls them
ACTIVATIONS = frozenset(
    """sigmoid tanh relu relu6 leaky_relu rrelu prelu elu celu selu gelu silu mish softplus softsign
    hardtanh hardsigmoid hardswish hardshrink softshrink tanhshrink threshold logsigmoid
    log_sigmoid erf sin clamp identity""".split()
)
#: what an encoder does without: the identity in evaluation, or nothing that units learn
PASSED = frozenset(
    """dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout
    native_dropout batch_norm layer_norm group_norm instance_norm rms_norm flatten unflatten reshape
    view view_as reshape_as contiguous clone to type type_as float double half bfloat16 squeeze
    unsqueeze transpose permute detach""".split()
)
#: the next layer
MATRICES = frozenset("linear addmm matmul mm bmm".split())


@dataclass(frozen=True)
class Following:
    """What follows a linear layer.

    Attributes:
        calls: how often the layer ran.
        weight: as the layer used it.
        name: of the activation, or of the operations that are none.
        known: whether it is an activation, or the next layer or nothing follows (`identity`).
        apply: the activation.
    """

    calls: int
    weight: Tensor
    name: str
    known: bool
    apply: Callable[[Tensor], Tensor]


def following(model: nn.Module, names: dict[nn.Module, str], x: Tensor) -> dict[str, Following]:
    """Run a model once, without gradients, and see what is applied to its linear layers' outputs.

    Args:
        model: in evaluation mode.
        names: its linear layers.
        x: a few samples.

    Returns:
        By path, in order of execution.
    """
    watch = _Watch()
    calls: dict[str, int] = {}
    weights: dict[str, Tensor] = {}

    def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
        name = names[layer]
        calls[name] = calls.get(name, 0) + 1
        if calls[name] == 1:
            weights[name] = getattr(layer, "weight").detach()  # noqa: B009
            watch.follow(output, name)

    handles = [layer.register_forward_hook(hook) for layer in names]
    try:
        with torch.no_grad(), watch:
            out = model(x)
    finally:
        for handle in handles:
            handle.remove()
    watch.end(out)
    return {name: watch.found(name, calls[name], weights[name]) for name in calls}


class _Watch(TorchFunctionMode):
    """Notes what is applied to each of some tensors, or to views of them."""

    def __init__(self) -> None:
        super().__init__()
        #: tensor -> the layer whose output it is; the tensors are kept, so that ids stay unique
        self._of: dict[int, tuple[Tensor, str]] = {}
        self._next: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {}

    def follow(self, output: Tensor, name: str) -> None:
        """From here on."""
        self._of[id(output)] = (output, name)

    def end(self, out: Any) -> None:
        """What the model puts out is not to be changed further."""
        for given in out if isinstance(out, (tuple, list)) else [out]:
            if id(given) in self._of:
                self._next.setdefault(self._of[id(given)][1], {})["identity"] = _identity

    def found(self, name: str, calls: int, weight: Tensor) -> Following:
        """What was noted of a layer."""
        ways = self._next.get(name, {"an operation that cannot be seen": _identity})
        what = " and ".join(sorted(ways))
        return Following(calls, weight, what, what in ACTIVATIONS, next(iter(ways.values())))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = next((a for a in (*args, *kwargs.values()) if id(a) in self._of), None)
        before = given.numel() if isinstance(given, Tensor) else 0
        result = func(*args, **kwargs)
        if not isinstance(given, Tensor):
            return result
        name = self._of[id(given)][1]
        what = getattr(func, "__name__", "").strip("_")
        if what in PASSED and isinstance(result, Tensor):
            self.follow(result, name)
        elif what in MATRICES:
            self._next.setdefault(name, {})["identity"] = _identity
        elif isinstance(result, Tensor) and result.numel() == before:  # else a statistic
            apply = _applied(func, args, kwargs, given)
            self._next.setdefault(name, {}).setdefault(what, apply)
            if result is given:  # in place: what comes now is applied to the activation
                del self._of[id(given)]
        return result


def _identity(z: Tensor) -> Tensor:
    return z


def _applied(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], given: Tensor
) -> Callable[[Tensor], Tensor]:
    """The same call on another tensor, never in place."""
    settings = {k: False if k == "inplace" else v for k, v in kwargs.items()}

    def apply(z: Tensor) -> Tensor:
        z = z.clone() if getattr(func, "__name__", "").endswith("_") else z
        now = [z if a is given else _frozen(a) for a in args]
        return func(*now, **{k: z if v is given else _frozen(v) for k, v in settings.items()})

    return apply


def _frozen(value: Any) -> Any:
    """A parameter of the activation (PReLU's slope) without its gradient."""
    return value.detach() if isinstance(value, Tensor) else value
