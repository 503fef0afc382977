"""Which activation follows each layer, and what becomes of it.

Tensors are followed by identity from the output of a linear or convolution layer, through what
moves, normalises, pools or adds values, to the first elementwise activation: a module, or a
function called in somebody's forward. An activation is hidden where its values reach another layer,
and a gate where they are multiplied with another branch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from signalprop.capture import batch as batches
from signalprop.capture import kinds, observe
from signalprop.capture.batch import Batch
from signalprop.capture.modules import torch_name
from signalprop.capture.sandbox import Sandbox, random_state, untouched
from signalprop.errors import BatchError, ModelError, SignalpropError
from signalprop.nets._weights import LAYERS
from signalprop.theory.activations import NAMED, Activation

T = TypeVar("T")

#: elementwise functions by the name of the operation
ELEMENTWISE = frozenset({*NAMED, "leaky_relu", "prelu", "rrelu", "threshold"}) - {
    "linear",
    "identity",
    "sin",
}
#: modules that are looked at from outside only
ATOMS = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, torch.jit.ScriptModule)


@dataclass(eq=False)
class Use:
    """One call of an activation.

    Attributes:
        owner: path of the activation module; of a function, of the module in whose forward it is
            called.
        op: e.g. `relu`.
        module: the activation module; None of a function.
        function: what is called, on one tensor.
        settings: of a function, its arguments behind the first, by position or name.
        index: how many calls of this op came before in this call of the owner.
        depth: activations on the longest way from the input to here, this one included.
        hidden: whether its values reach another layer.
        gate: whether they are multiplied with another branch.
        recomputed: whether it is called in a part that is checkpointed by itself.
    """

    owner: str
    op: str
    module: nn.Module | None
    function: Callable[[Tensor], Tensor]
    settings: dict[int | str, Any]
    index: int = 0
    depth: int = 1
    hidden: bool = False
    gate: bool = False
    recomputed: bool = False


@dataclass(eq=False)
class Layer:
    """A linear or convolution layer.

    Attributes:
        path: its name.
        module: the layer.
        uses: activations that take its output; empty where another layer, or nothing, comes first.
        attention: whether its output is a query, key or value.
        normalised: whether a normalisation lies between it and what follows.
        sure: whether that is known; without a batch it may not be.
    """

    path: str
    module: nn.Module
    uses: list[Use] = field(default_factory=list)
    attention: bool = False
    normalised: bool = False
    sure: bool = True


@dataclass
class Following:
    """What was seen of a network.

    Attributes:
        layers: by path, in order of execution; those that no pass reaches last.
        uses: every call of an activation, in order.
        norms: paths of normalisations behind a layer.
        dropouts: paths of dropouts behind a hidden activation, and nothing else.
        functional_dropouts: paths of modules in whose forward a dropout function follows one.
        sums: paths of modules in which branches are added.
    """

    layers: dict[str, Layer]
    uses: list[Use] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    dropouts: list[str] = field(default_factory=list)
    functional_dropouts: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolution layers by path, but those inside attention and recurrent modules."""
    inside = {id(m) for atom in model.modules() if isinstance(atom, ATOMS) for m in atom.modules()}
    return {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, LAYERS) and id(m) not in inside
    }


def attempted(model: nn.Module, data: Any, run: Callable[[Batch], T]) -> T:
    """Run something with a batch, in each way in which the batch can be meant until one runs.

    Args:
        model: the model; what `run` does to it is undone, but for gradients and parameters that it
            sets by itself.
        data: a batch, as for `diagnose`.
        run: does the pass.

    Returns:
        What `run` returns.

    Raises:
        BatchError: the batch is empty.
        ModelError: the model raised.
        failure: anything else that is wrong with the batch.
    """
    with random_state():
        data = batches.first_of(data)
    failure: Exception | None = None
    for loss in _readings(data, model):
        try:
            with (
                untouched(model) as sandbox,
                observe.eager(),
                warnings.catch_warnings(),
                _Writes(sandbox),
            ):
                warnings.simplefilter("ignore")  # the user's own pass tells them
                batch = batches.read(data, model, loss, gradients=False)
                if batch.size == 0:
                    raise BatchError("the batch has no samples; give at least one")
                return run(batch)
        except SignalpropError as error:
            failure = failure or error
        except Exception as error:
            failure = error if failure is None or isinstance(failure, BatchError) else failure
    assert failure is not None
    if isinstance(failure, SignalpropError):
        raise failure
    said = str(failure).strip().splitlines() or [""]
    raise ModelError(
        f"the model raised on the batch: {type(failure).__name__}: {said[0].rstrip('. ')}; check "
        "that the batch is what model.forward takes"
    ) from failure


def arguments(model: nn.Module, data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a batch calls a model with, in the first way of meaning it that runs.

    Args:
        model: the model.
        data: a batch, as for `diagnose`.

    Returns:
        Positional and keyword arguments, copies on the model's device. Cost: one forward pass.
    """

    def run(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def copied(x: Any) -> Any:
            return x.clone() if isinstance(x, Tensor) else x

        given = tree_map(copied, (batch.args, batch.kwargs))
        model(*batch.args, **batch.kwargs)
        return given

    return attempted(model, data, run)


class _Writes(TorchFunctionMode):
    """Has parameters that a forward is about to write to copied before."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self.sandbox = sandbox

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        written = [kwargs.get("out")]
        plain = name.endswith("_") and name[-2:-1] != "_" and name != "requires_grad_"
        if plain or name.startswith(("_foreach", "__i", "__setitem__")):
            written += args[:1]
        if kwargs.get("max_norm") is not None:
            written += args[1:2]  # an embedding that shortens its own rows
        for x in tree_leaves(written):
            if isinstance(x, Tensor):
                self.sandbox.before_write(x)
        return func(*args, **kwargs)


def _readings(data: Any, model: nn.Module) -> Iterator[Callable[..., Tensor]]:
    """Losses for the ways in which a batch can be meant, the likelier first."""
    energy = batches.stand_in(torch.zeros(1), model)

    def with_target(output: Any, target: Any) -> Tensor:
        return energy(output)

    several = isinstance(data, (tuple, list)) and not hasattr(data, "_fields") and len(data) > 1
    yield from (with_target, energy) if several else (energy, with_target)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one elementwise activation."""
    if module._modules or isinstance(module, (*LAYERS, nn.Identity, *ATOMS)):
        return False
    of_torch = type(module).__module__.startswith("torch.nn")
    if of_torch:
        return torch_name(module) in ELEMENTWISE
    if module._parameters or module._buffers or kinds.kind_of_module(module) not in (None, "slope"):
        return False
    if module._forward_hooks or module._forward_pre_hooks:  # not to be set off by trying it
        return kinds.kind_of_module(module) == "slope"
    # somebody's own: by what it does
    try:
        found = Activation.of(module)
        bent = found.kinks != () or bool(
            (abs(found.curvature(np.array([-1.0, 0.1, 1.0]))) > 0).any()
        )
    except Exception:
        return False
    return bent


# ---- without a batch -----------------------------------------------------------------------------


def by_order(model: nn.Module) -> Following:
    """By the order of the modules: sure in a `Sequential`, else where all activations are alike."""
    atoms = [atom for atom in model.modules() if isinstance(atom, ATOMS)]
    inside = {id(m) for atom in atoms for m in atom.modules() if m is not atom}
    leaves = [
        (path, m)
        for path, m in model.named_modules()
        if id(m) not in inside and (isinstance(m, ATOMS) or not m._modules or isinstance(m, LAYERS))
    ]
    modules = dict(model.named_modules())
    layers = {path: Layer(path, m) for path, m in layers_of(model).items()}
    uses = {id(m): Use(path, torch_name(m), m, m, {}, hidden=True)
            for path, m in leaves if is_activation(m)}  # fmt: skip
    alike = {repr(use.module): use for use in uses.values()}
    last = next(reversed(layers), None)
    for i, (path, _) in enumerate(leaves):
        if path not in layers:
            continue
        layer = layers[path]
        for after, m in leaves[i + 1 :]:
            if not _in_sequence(modules, path, after):
                layer.sure = path == last
                break
            if id(m) in uses:
                layer.uses = [uses[id(m)]]
                break
            if isinstance(m, (*LAYERS, *ATOMS, nn.Embedding)):
                break
        if not layer.sure and len(alike) == 1:
            layer.uses, layer.sure = list(alike.values()), True
    return Following(layers, list(uses.values()))


def _in_sequence(modules: dict[str, nn.Module], before: str, after: str) -> bool:
    """Whether two modules follow one another in a `Sequential`, or in nested ones."""
    a, b = before.split("."), after.split(".")
    common = 0
    while common < min(len(a), len(b)) - 1 and a[common] == b[common]:
        common += 1
    above = [".".join(a[:k]) for k in range(common, len(a))]
    above += [".".join(b[:k]) for k in range(common, len(b))]
    return all(type(modules[path]) is nn.Sequential for path in above)
