"""What flows through a network on one batch: shapes, and which layer feeds which activation.

Cures that add something (skips, normalisation) have to know where it fits. One pass is run and
nothing of it is left behind. Tensors are followed by identity: from a layer or an input through
operations that only move or pool values to the next activation, normalisation or layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from signalprop.capture import batch as batches
from signalprop.capture import kinds, observe
from signalprop.capture.batch import Batch
from signalprop.capture.sandbox import random_state, untouched
from signalprop.errors import BatchError, ModelError, SignalpropError

#: what hands values on without mixing features
_MOVES = frozenset(
    "view reshape flatten unflatten transpose permute movedim t unsqueeze squeeze contiguous clone "
    "to float half bfloat16 double type __getitem__ select narrow dropout dropout1d dropout2d "
    "dropout3d alpha_dropout feature_dropout max_pool1d max_pool2d max_pool3d avg_pool1d "
    "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d".split()
)
#: slopes that are no hidden activation: they compare units with each other, or split them
_NO_ACTIVATION = frozenset({"softmax", "log_softmax", "glu", "exp", "sin"})

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        given: shape of its first argument; None where that is no floating tensor.
        made: shape of its output, or of the first of several; None where that is no tensor.
        overwrites: whether it changed its argument in place.
        final: whether the model returns this very tensor.
        steps: of a packed sequence, how many; else 0.
    """

    given: tuple[int, ...] | None
    made: tuple[int, ...] | None
    overwrites: bool
    final: bool
    steps: int = 0


@dataclass(frozen=True)
class Flow:
    """What was seen.

    Attributes:
        calls: of every module that was called, by its (first) path, in order.
        activated: layers -> activations that take their output.
        normalised: layers whose input comes from a normalisation.
        outputs: layers whose activation is what the model returns.
        readers: layers that read nothing but inputs of the model as they are -> a copy of what.
        loss: stands for the user's, for `trace`.
    """

    calls: dict[str, list[Call]]
    activated: dict[str, list[str]]
    normalised: frozenset[str]
    outputs: frozenset[str]
    readers: dict[str, Tensor]
    loss: Callable[..., Tensor]

    def fits(self, path: str) -> bool:
        """Whether a module hands on what it was given, changed but of the same shape."""
        calls = self.calls.get(path, [])
        return bool(calls) and all(
            c.given is not None and c.given == c.made and not c.overwrites for c in calls
        )


def flow(model: nn.Module, data: Any) -> Flow:
    """See one pass of a model.

    Args:
        model: any module; it is afterwards bit for bit what it was.
        data: a batch, as for `diagnose`; whether its last part is a target is found by trying.

    Returns:
        What was seen. Cost: one forward pass with autograd's graph.

    Raises:
        SignalpropError: the batch is of no known form.
        ModelError: the model cannot be run on the batch.
    """
    observe.check(model)
    with random_state():  # a loader draws a seed
        data = batches.first_of(data)
    failure: Exception | None = None
    for loss in _readings(data, model):
        try:
            return _seen(model, data, loss)
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


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one layer of weights that acts on floating values."""
    if isinstance(module, (nn.Linear, nn.RNNBase, nn.MultiheadAttention, *_CONVOLUTIONS)):
        return True
    if isinstance(module, _TRANSPOSED):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.Bilinear)):
        return False
    # a Linear of somebody else's: named so, and with a matrix of its own
    weight = module._parameters.get("weight")
    named = kinds.kind_of_module(module) == "weights"
    return named and weight is not None and weight.ndim >= 2 and not module._modules


def spatial(module: nn.Module) -> int | None:
    """Dimensions of a convolution behind its channels; None for every other layer."""
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        return len(module.kernel_size)
    return None


def _readings(data: Any, model: nn.Module) -> Iterator[Callable[..., Tensor]]:
    """Losses for the ways in which a batch can be meant, the likelier first."""
    energy = batches.stand_in(torch.zeros(1), model)

    def with_target(output: Any, target: Any) -> Tensor:
        return energy(output)

    several = isinstance(data, (tuple, list)) and not hasattr(data, "_fields") and len(data) > 1
    yield from (with_target, energy) if several else (energy, with_target)


def _seen(model: nn.Module, data: Any, loss: Callable[..., Tensor]) -> Flow:
    with untouched(model) as sandbox, observe.eager():
        batch = batches.read(data, model, loss)
        watch = _Watch(batch, sandbox.before_write)
        try:
            for path, module in model.named_modules():
                watch.attach(path, module)
            with watch:
                output = model(*batch.args, **batch.kwargs)
            return watch.result(output, loss)
        finally:
            watch.detach()


@dataclass
class _Open:
    """A call while it runs."""

    given: Tensor | None
    version: int
    steps: int


@dataclass
class _Raw:
    """A call that has ended; which outputs are the model's is not known yet."""

    given: tuple[int, ...] | None
    made: tuple[int, ...] | None
    overwrites: bool
    output: Any
    steps: int


@dataclass
class _Labels:
    """Where tensors come from, by identity."""

    held: dict[int, tuple[Any, tuple[str, str]]] = field(default_factory=dict)

    def put(self, x: Tensor, label: tuple[str, str] | None) -> None:
        if label is None:
            self.held.pop(id(x), None)
        else:
            self.held[id(x)] = (weakref.ref(x), label)

    def of(self, x: Any) -> tuple[str, str] | None:
        ref, label = self.held.get(id(x), (None, None))
        return label if ref is not None and ref() is x else None


class _Watch(TorchFunctionMode):
    """Follows tensors through one pass."""

    def __init__(self, batch: Batch, before_write: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.before_write = before_write
        self.labels = _Labels()
        self.calls: dict[str, list[_Raw]] = {}
        self.open: dict[str, list[_Open]] = {}
        self.activated: dict[str, list[str]] = {}
        self.normalised: set[str] = set()
        self.readers: dict[str, list[Tensor]] = {}
        self.handles: list[Any] = []
        for name, x in batch.inputs.items():
            if x.is_floating_point():
                self.labels.put(x, ("input", name))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and label what it makes."""
        called = getattr(func, "__name__", "")
        first = _first(args, kwargs or {})
        before = self.labels.of(first)
        in_place = (called.endswith("_") and not called.endswith("__")) or called[:3] == "__i"
        if in_place and isinstance(first, Tensor):
            self.before_write(first)
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and called not in ("__get__", "__set__"):
            self.labels.put(out, self._label(called, before))
        return out

    def _label(self, called: str, before: tuple[str, str] | None) -> tuple[str, str] | None:
        op = kinds.OP_NAMES.get(called, called)
        if op in _MOVES:
            return before
        kind = kinds.kind_of_op(op)
        if kind == "normalisation":
            return ("normalisation", "")
        if kind == "slope" and op not in _NO_ACTIVATION and before is not None:
            source, path = before
            if source == "layer":
                self.activated.setdefault(path, []).append(op)
            return ("activation", path) if source in ("layer", "activation") else None
        return None

    def attach(self, path: str, module: nn.Module) -> None:
        """Watch a module's calls."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = _first(args, kwargs)
            floating = isinstance(x, Tensor) and x.is_floating_point()
            steps = len(x.batch_sizes) if isinstance(x, PackedSequence) else 0
            self.open.setdefault(path, []).append(
                _Open(x if floating else None, x._version if floating else 0, steps)
            )
            label = self.labels.of(x)
            if is_layer(module) and label is not None and floating:
                if label[0] == "normalisation":
                    self.normalised.add(path)
                elif label[0] == "input":
                    self.readers.setdefault(path, []).append(x.detach().clone())

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            opened = self.open[path].pop()
            first = output[0] if isinstance(output, tuple) and output else output
            made = first if isinstance(first, Tensor) else None
            given = opened.given
            self.calls.setdefault(path, []).append(
                _Raw(
                    None if given is None else tuple(given.shape),
                    None if made is None else tuple(made.shape),
                    given is not None and given._version != opened.version,
                    None if made is None else weakref.ref(made),
                    opened.steps,
                )
            )
            if made is None:
                return
            label = self.labels.of(made)
            behind = label is not None and label[0] == "normalisation"  # by a hook of its own
            if is_layer(module) and not behind:
                self.labels.put(made, ("layer", path))
            elif kinds.kind_of_module(module) == "normalisation":
                self.labels.put(made, ("normalisation", ""))

        self.handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self.handles.append(module.register_forward_hook(leave, with_kwargs=True))

    def detach(self) -> None:
        """Watch no more."""
        for handle in self.handles:
            handle.remove()

    def result(self, output: Any, loss: Callable[..., Tensor]) -> Flow:
        """What was seen, now that the output is known."""
        returned = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        ends = {id(x) for x in returned}
        labels = [self.labels.of(x) for x in returned]
        return Flow(
            calls={
                path: [
                    Call(
                        raw.given,
                        raw.made,
                        raw.overwrites,
                        raw.output is not None and id(raw.output()) in ends,
                        raw.steps,
                    )
                    for raw in calls
                ]
                for path, calls in self.calls.items()
            },
            activated=self.activated,
            normalised=frozenset(self.normalised),
            outputs=frozenset(x[1] for x in labels if x is not None and x[0] == "activation"),
            readers={
                path: torch.cat(read) if len({x.shape[1:] for x in read}) == 1 else read[0]
                for path, read in self.readers.items()
                if len(read) == len(self.calls[path])
            },
            loss=loss,
        )


def _first(args: Any, kwargs: Any) -> Any:
    """The first argument, however it was given."""
    return args[0] if args else next(iter(kwargs.values()), None)
