"""Follows tensors through one pass, from each layer to the activation behind it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from signalprop.capture import kinds, observe
from signalprop.capture.batch import Batch
from signalprop.capture.modules import torch_name
from signalprop.cures.activations.functional import caller, op_of
from signalprop.cures.followed.following import (
    ATOMS,
    ELEMENTWISE,
    Following,
    Layer,
    Use,
    attempted,
    by_order,
    is_activation,
    layers_of,
)

#: what lets others through or not
_GATES = frozenset({"sigmoid", "hardsigmoid"})
_MOVES = frozenset(
    """view view_as reshape reshape_as flatten unflatten transpose permute movedim t unsqueeze
    squeeze contiguous clone to float half bfloat16 double type type_as __getitem__ __get__ select
    narrow chunk split unbind expand expand_as repeat detach neg div mul sub __rsub__ true_divide
    __truediv__ requires_grad_""".split()
)
_DROPOUTS = frozenset("dropout dropout1d dropout2d dropout3d alpha_dropout".split())
_SUMS = frozenset("add sub __rsub__".split())
_JOINS = frozenset("cat stack concat interpolate pad index_add roll".split())
_ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
_PRODUCTS = frozenset("matmul bmm mm einsum baddbmm addmm addbmm tensordot".split())


@dataclass(frozen=True)
class _Label:
    """Where a tensor comes from.

    Attributes:
        layers: whose output it is, before any activation.
        direct: activations whose values it holds, moved or scaled at most.
        uses: activations on the way here that no layer has taken in yet.
        depth: activations on the longest way here.
        normed: whether a normalisation has been passed since the layers.
        live: whether it has passed weights.
    """

    layers: frozenset[str] = frozenset()
    direct: frozenset[Use] = frozenset()
    uses: frozenset[Use] = frozenset()
    depth: int = 0
    normed: bool = False
    live: bool = True


def follow(model: nn.Module, data: Any = None) -> Following:
    """Which activations follow the layers of a model.

    Args:
        model: any module; it is afterwards bit for bit what it was.
        data: a batch, as for `diagnose`; without one the order of the modules is gone by, and
            functions called in a forward are not seen. Whether its last part is a target is found
            by trying.

    Returns:
        What was seen. Cost: one forward pass with autograd's graph.
    """
    observe.check(model)
    if data is None:
        return by_order(model)

    def run(batch: Batch) -> Following:
        watch = Watch(model)
        try:
            watch.begin((batch.args, batch.kwargs))
            with watch:
                model(*batch.args, **batch.kwargs)
        finally:
            watch.detach()
        return watch.result()

    return attempted(model, data, run)


class Watch(TorchFunctionMode):
    """Sees one pass of a model, as a context manager around it.

    Args:
        model: the model; call `detach` when done.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._labels: dict[int, tuple[Any, _Label]] = {}
        self._layers = {path: Layer(path, m) for path, m in layers_of(model).items()}
        self._ran: list[str] = []
        self._found = Following({})
        self._paths: dict[int, str] = {}
        self._counts: dict[tuple[str, str], int] = {}
        #: how many modules deep inside one that is looked at from outside
        self._closed = 0
        self._kept: dict[str, bool] = {}
        self._handles: list[Any] = []
        for path, module in model.named_modules():
            self._paths[id(module)] = path
            self._attach(path, module)

    def begin(self, inputs: Any) -> None:
        """Tell what the model is given."""
        self._put(inputs, _Label(live=False))

    def detach(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()

    def result(self) -> Following:
        """What was seen."""
        found = self._found
        order = [*dict.fromkeys(self._ran), *(p for p in self._layers if p not in self._ran)]
        for path in order:
            layer = self._layers[path]
            layer.sure = path in self._ran
            found.layers[path] = layer
        found.dropouts = [path for path, only in self._kept.items() if only]
        return found

    # ---- labels ----------------------------------------------------------------------------------

    def _label(self, x: Any) -> _Label | None:
        ref, label = self._labels.get(id(x), (None, None))
        return label if ref is not None and ref() is x else None

    def _put(self, value: Any, label: _Label | None) -> None:
        for x in tree_leaves(value):
            if isinstance(x, Tensor):
                if label is None:
                    self._labels.pop(id(x), None)
                else:
                    self._labels[id(x)] = (weakref.ref(x), label)

    def _of(self, values: Any) -> list[_Label]:
        found = [self._label(x) for x in tree_leaves(values) if isinstance(x, Tensor)]
        return [label for label in found if label is not None]

    # ---- modules ---------------------------------------------------------------------------------

    def _attach(self, path: str, module: nn.Module) -> None:
        activation = is_activation(module)
        closed = isinstance(module, ATOMS) or activation
        norm = kinds.kind_of_module(module) == "normalisation" and not module._modules
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._closed == 0:
                for key in [key for key in self._counts if key[0] == path]:
                    del self._counts[key]
                self._given(path, self._of((args, kwargs)), norm=norm, dropout=dropout)
            self._closed += closed

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._closed -= closed
            if self._closed == 0:
                self._made(path, module, activation, (args, kwargs), output)

        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(module.register_forward_hook(leave, with_kwargs=True))

    def _given(self, path: str, labels: list[_Label], *, norm: bool, dropout: bool) -> None:
        if norm and any(label.layers or label.direct for label in labels):
            self._found.norms += [path] if path not in self._found.norms else []
        if dropout:
            behind = bool(labels) and all(label.direct for label in labels)
            self._kept[path] = self._kept.get(path, True) and behind

    def _made(
        self, path: str, module: nn.Module, activation: bool, given: Any, output: Any
    ) -> None:
        labels = self._of(given)
        if path in self._layers:
            self._taken(labels)
            self._ran.append(path)
            depth = max((label.depth for label in labels), default=0)
            self._put(output, _Label(layers=frozenset({path}), depth=depth))
        elif isinstance(module, ATOMS):
            self._taken(labels)
            depth = max((label.depth for label in labels), default=0)
            self._put(output, _Label(depth=depth + 1))
        elif activation:
            use = Use(path, torch_name(module), module, module, {})
            self._activated(use, labels, output)
        elif labels and not self._of(output):
            self._put(output, self._blurred(labels))  # by something that no mode sees

    # ---- functions -------------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._closed:
            return func(*args, **kwargs)
        op = op_of(func)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        labels = self._of(given)
        out = func(*args, **kwargs)
        if not labels:
            return out
        if op in ELEMENTWISE:
            module, inside = caller()
            owner = self._paths.get(id(module), "")
            index = self._counts.get((owner, op), 0)
            self._counts[owner, op] = index + 1
            settings = dict(enumerate(args[1:], 1)) | kwargs
            use = Use(owner, op, None, _Applied(func, args, kwargs), settings, index)
            use.recomputed = inside
            self._activated(use, labels, out)
        else:
            self._put(out, self._after(op, args, labels))
        return out

    def _after(self, op: str, args: tuple[Any, ...], labels: list[_Label]) -> _Label:
        """The label of what an operation makes that is no activation."""
        kind = kinds.kind_of_op(op)
        branches = len({id(label) for label in labels if label.live}) > 1
        if op in _ATTENTION or (op in _PRODUCTS and branches):
            self._taken(labels)
            for path in {path for label in labels for path in label.layers}:
                self._layers[path].attention = True
            return _Label(depth=max(label.depth for label in labels))
        if kind == "weights" or op in kinds.RECURRENT_OPS:
            self._taken(labels)
            depth = max(label.depth for label in labels)
            return _Label(depth=depth, live=not op.startswith("embedding"))
        if op in ("mul", "__mul__") and branches:
            self._gated(labels)
            return self._blurred(labels)
        if op in _SUMS and branches:
            self._found.sums.append(self._paths.get(id(caller()[0]), ""))
            return self._united(labels)
        if op in _DROPOUTS:
            if any(label.direct for label in labels):
                self._found.functional_dropouts.append(self._paths.get(id(caller()[0]), ""))
            return _newest(labels)
        if op in _MOVES or op in _SUMS:
            return _newest(labels)
        if kind in ("normalisation", "pooling") or op in _JOINS:
            return self._united(labels, normed=kind == "normalisation")
        return self._blurred(labels)

    # ---- what is noted ---------------------------------------------------------------------------

    def _activated(self, use: Use, labels: list[_Label], out: Any) -> None:
        use.depth = 1 + max((label.depth for label in labels), default=0)
        self._found.uses.append(use)
        for label in labels:
            for path in sorted(label.layers):
                layer = self._layers[path]
                if not any(_same(use, known) for known in layer.uses):
                    layer.uses.append(use)
                    layer.normalised = layer.normalised or label.normed
        pending = frozenset({use}).union(*(self._open(label) for label in labels))
        self._put(out, _Label(direct=frozenset({use}), uses=pending, depth=use.depth))

    def _taken(self, labels: Iterable[_Label]) -> None:
        """Another layer takes the values in."""
        for label in labels:
            for use in label.uses:
                use.hidden = True

    def _gated(self, labels: list[_Label]) -> None:
        """Branches are multiplied: which activations are gates."""
        direct = [label.direct for label in labels]
        opens = any(use.op in _GATES for uses in direct for use in uses)
        for use in {use for uses in direct for use in uses}:
            use.gate = use.gate or not opens or use.op in kinds.SATURATING

    def _open(self, label: _Label) -> frozenset[Use]:
        return frozenset(use for use in label.uses if not use.hidden)

    def _united(self, labels: list[_Label], *, normed: bool = False) -> _Label:
        return _Label(
            layers=frozenset(
                path
                for label in labels
                for path in label.layers
                if not self._layers[path].uses or len(labels) == 1
            ),
            uses=frozenset[Use]().union(*(self._open(label) for label in labels)),
            depth=max(label.depth for label in labels),
            live=any(label.live for label in labels),
            normed=normed or any(label.normed for label in labels),
        )

    def _blurred(self, labels: list[_Label]) -> _Label:
        united = self._united(labels)
        return _Label(uses=united.uses, depth=united.depth, live=united.live)


class _Applied:
    """The same call on another tensor, never in place."""

    def __init__(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        self.func, self.args = func, args[1:]
        self.kwargs = {k: v for k, v in kwargs.items() if k not in ("inplace", "input", "out")}
        self.__name__ = op_of(func)

    def __call__(self, x: Tensor) -> Tensor:
        args = [a.detach().to(x) if isinstance(a, Tensor) else a for a in self.args]
        return self.func(x.clone(), *args, **self.kwargs)


def _newest(labels: list[_Label]) -> _Label:
    """Of values and what comes straight from the inputs, such as a mask, the values."""
    return next((label for label in labels if label.live), labels[0])


def _same(a: Use, b: Use) -> bool:
    return (a.owner, a.op, a.index, a.module is None) == (b.owner, b.op, b.index, b.module is None)
