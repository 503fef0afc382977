"""Layer-sequential unit-variance initialisation.

Mishkin & Matas 2016, "All you need is a good init", algorithm 1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.nets._seeded import buffers_kept, random_state
from signalprop.nets._weights import (
    check_weight,
    filled,
    named_layers,
    orthonormal,
    set_weight,
    undone_on_error,
    weight_parameters,
    zero_bias_,
)

#: a layer's output is constant where its variance is below this share of its mean square
_CONSTANT = 1e-12

#: (path, layer, positional and keyword arguments, output) -> the output to go on with
Visit = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor]


@dataclass(frozen=True)
class LayerVariance:
    """What was done to one layer.

    Attributes:
        before: variance of its output as the model came in, over all entries of the batch.
        after: variance of its output in the model as it is now.
        iterations: how often its weight was divided.
        converged: whether `after` is within the tolerance.
    """

    before: float
    after: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class UnitVariance:
    """What `lsuv_` did.

    Attributes:
        layers: by path, in order of execution; "" is the model itself.
        skipped: layers left as they were, and why.
    """

    layers: dict[str, LayerVariance]
    skipped: dict[str, str]


def lsuv_(
    model: nn.Module,
    batch: Any,
    *,
    tol: float = 0.1,
    max_iterations: int = 10,
    orthonormal_start: bool = True,
    exclude: Collection[str] = (),
    generator: torch.Generator | None = None,
) -> UnitVariance:
    """Orthonormal weights, then each divided by the spread of its layer's output on a batch.

    Layer after layer, in order of execution: W <- W / std(y) until |Var(y) - 1| < tol, where y is
    the layer's output, before its activation, and Var is over all its entries. Linear layers and
    convolutions, transposed ones too; a layer that is called several times is measured at its
    first call, a weight that several layers share is scaled for the first of them.

    The passes (three, the second with every layer computed two or three times) run in the mode the
    model is in. Buffers such as BatchNorm's running statistics, gradients, hooks, and the global
    random state are afterwards as before.

    Args:
        model: any module; its weights are changed in place.
        batch: what it is called with: a tensor, a tuple of positional or a mapping of keyword
            arguments. Some hundred samples, scaled as in training.
        tol: how near to 1 is near enough.
        max_iterations: of a layer; more than one are needed only where a bias or rounding has a
            part in the output.
        orthonormal_start: whether to begin with orthonormal weights and biases of 0, as the paper
            does; else the weights as they are, are scaled.
        exclude: paths of layers to leave alone.
        generator: for the orthonormal matrices; a copy of torch's global one without it.

    Returns:
        Variance before and after by path, and what was skipped: layers that the pass does not
        reach, frozen ones, weights shared with something else, constant outputs.

    Raises:
        TypeError: `model` is no module.
        ValueError: the model cannot be called with the batch, has no such layer, a parametrised
            weight that cannot be scaled, or an output with inf or nan; it is as it was then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a module, got {type(model).__name__}")
    if not tol > 0 or max_iterations < 1:
        raise ValueError(f"tol > 0 and max_iterations >= 1, got {tol} and {max_iterations}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    layers = named_layers(model)
    unknown = sorted(set(exclude) - set(layers))
    if not layers or unknown:
        raise ValueError(
            f"no linear or convolution layer {unknown[0]!r} in the model"
            if unknown
            else "the model holds no linear or convolution layer"
        )
    with undone_on_error(model), random_state(), torch.no_grad():
        before = _variances(model, layers, batch)
        skipped = _not_done(model, layers, list(before), exclude)
        todo = {name: layers[name] for name in before if name not in skipped}
        kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
        with random_state():  # so that all passes see the same dropout
            for name, layer in todo.items():
                check_weight(layer, name)
                kept[name] = [(p, p.detach().clone()) for p in layer.parameters()]
                if orthonormal_start:
                    set_weight(layer, name, filled(layer, name, _orthogonal(generator)))
                    zero_bias_(layer)
        scaling = _Scaling(todo, kept, tol, max_iterations)
        _run(model, layers, batch, scaling)
        skipped |= scaling.constant
        after = _variances(model, layers, batch)
    done = {
        name: LayerVariance(
            before[name], after[name], scaling.iterations[name], abs(after[name] - 1) < tol
        )
        for name in todo
        if name not in skipped
    }
    return UnitVariance(done, {name: skipped[name] for name in layers if name in skipped})


class _Scaling:
    """Scales each layer when the pass comes to it, and goes on with what it then puts out."""

    def __init__(
        self,
        todo: dict[str, nn.Module],
        kept: dict[str, list[tuple[Tensor, Tensor]]],
        tol: float,
        limit: int,
    ) -> None:
        self.todo, self.kept, self.tol, self.limit = todo, kept, tol, limit
        self.iterations = dict.fromkeys(todo, 0)
        self.constant: dict[str, str] = {}

    def __call__(
        self,
        name: str,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor:
        if name not in self.todo:
            return output
        variance = _variance(name, output)
        while abs(variance - 1) >= self.tol and self.iterations[name] < self.limit:
            if variance == 0:
                self.constant[name] = "its output is constant on this batch"
                for tensor, value in self.kept[name]:
                    tensor.copy_(value)
                return layer.forward(*args, **kwargs)
            with buffers_kept(layer):
                weight = getattr(layer, "weight").detach()  # noqa: B009
            set_weight(layer, name, weight / math.sqrt(variance))
            self.iterations[name] += 1
            output = layer.forward(*args, **kwargs)
            variance = _variance(name, output)
        return output


def _orthogonal(generator: torch.Generator | None) -> Callable[..., Tensor]:
    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        return orthonormal(size[0], math.prod(size[1:]), like, generator).reshape(size)

    return fill


def _not_done(
    model: nn.Module, layers: dict[str, nn.Module], reached: list[str], exclude: Collection[str]
) -> dict[str, str]:
    """Layers to leave alone, and why."""
    held: dict[int, list[str]] = {}
    for path, p in model.named_parameters(remove_duplicate=False):
        held.setdefault(id(p), []).append(path)
    skipped: dict[str, str] = {}
    first: dict[int, str] = {}
    for name in [*reached, *(n for n in layers if n not in reached)]:
        parameters = weight_parameters(layers[name])
        if name in exclude:
            skipped[name] = "excluded"
        elif name not in reached:
            skipped[name] = "the pass does not reach it"
        elif parameters and not all(p.requires_grad for p in parameters):
            skipped[name] = "its weight is frozen"
        elif parameters and id(parameters[0]) in first:
            skipped[name] = f"its weight is that of {first[id(parameters[0])]!r}"
        elif parameters and (other := _elsewhere(held[id(parameters[0])], model, layers)):
            skipped[name] = f"its weight is also {other!r}, which is no such layer"
        else:
            first |= {id(p): name for p in parameters}
    return skipped


def _elsewhere(paths: list[str], model: nn.Module, layers: dict[str, nn.Module]) -> str:
    """One of the paths of a parameter that no linear or convolution layer owns, or ""."""
    own = {id(m) for layer in layers.values() for m in layer.modules()}
    for path in paths:
        if id(model.get_submodule(path.rpartition(".")[0])) not in own:
            return path
    return ""


def _variance(name: str, output: Any) -> float:
    """Over all entries, about their mean; 0 where that is rounding."""
    if not isinstance(output, Tensor):
        raise ValueError(f"layer {name!r} puts out a {type(output).__name__}, not a tensor")
    x = output.detach()
    x = x if x.dtype == torch.float64 else x.float()
    square, variance = float(x.square().mean()), float(x.var(correction=0))
    if not math.isfinite(square):
        raise ValueError(
            f"the output of layer {name!r} holds inf or nan (or the batch is empty); "
            "scale the inputs"
        )
    return variance if variance > _CONSTANT * square else 0.0


def _variances(model: nn.Module, layers: dict[str, nn.Module], batch: Any) -> dict[str, float]:
    """By path, in order of execution."""
    seen: dict[str, float] = {}

    def note(
        name: str,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor:
        seen[name] = _variance(name, output)
        return output

    _run(model, layers, batch, note)
    return seen


def _run(model: nn.Module, layers: dict[str, nn.Module], batch: Any, visit: Visit) -> None:
    """One pass, with a visit to each layer when it is called first."""
    visited: set[str] = set()
    raised: list[ValueError] = []

    def hooked(name: str) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if name in visited:
                return None
            visited.add(name)
            try:
                return visit(name, layer, args, kwargs, output)
            except ValueError as error:
                raised.append(error)
                raise

        return hook

    handles: list[Any] = []
    try:
        for name, layer in layers.items():
            hook = hooked(name)
            handles.append(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))
        with buffers_kept(model), random_state(), _eager():
            call(model, batch)
    except Exception as error:
        if raised:
            raise raised[0] from None
        raise ValueError(f"the model cannot be called with this batch: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model with a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


@contextmanager
def _eager() -> Iterator[None]:
    """Without compiled code, which would not call the hooks."""
    loaded = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if loaded else nullcontext():
        yield
