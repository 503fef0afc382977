"""What is the same at every call of a module: worked out once, while its model stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import kinds
from signalprop.capture.kinds import Kind
from signalprop.capture.modules import Tree, is_atomic, kind_by_parts, state_labels, torch_name
from signalprop.capture.recorder import PASS_THROUGH
from signalprop.capture.seen import Frame
from signalprop.watching.passes import attention
from signalprop.watching.ranks import parts


@dataclass(slots=True, eq=False)
class Spot:
    """A module at its place.

    Attributes:
        path: of the module.
        atomic: whether it is one site.
        leaf: whether it has no modules of its own.
        quiet: whether nothing that is done inside is to be seen: one of torch's own layers.
        op: operation.
        kind: what it is to the error signal; None where its output must tell.
        hands_on: whether it returns what it is given.
        weighs: whether it has parameters of its own.
        labels: what torch calls its outputs beside the first.
    """

    path: str
    atomic: bool
    leaf: bool
    quiet: bool
    op: str
    kind: Kind | None
    hands_on: bool
    weighs: bool
    labels: dict[str, str]

    @staticmethod
    def of(module: torch.nn.Module, path: str, *, atomic: bool) -> Spot:
        """What a module is."""
        op = kinds.OP_NAMES.get(torch_name(module), kinds.class_of(module).__name__)
        kind = kinds.kind_of_module(module)
        if kind is None and kinds.kind_of_op(op) != "other":
            kind = kinds.kind_of_op(op)
        return Spot(
            path,
            atomic,
            not module._modules,
            atomic and not module._modules and _is_torchs(module) and op not in attention.SEEN,
            op,
            kind,
            isinstance(module, PASS_THROUGH),
            bool(module._parameters),
            state_labels(module),
        )


@dataclass(slots=True, eq=False)
class Call(Frame):
    """A call of a module."""

    spot: Spot
    away: bool = False  # whether the recorder's mode was taken off the stack meanwhile

    def kind(self, x: Tensor) -> Kind:
        """What the module is to the error signal, whose output is given."""
        if self.spot.kind is not None:
            return self.spot.kind
        return "other" if x.grad_fn is None else kind_by_parts(self.module, self.entry, x)

    def hands_on(self, x: Tensor, node: Any) -> bool:
        """Whether its output, made by a node, is what it was given, or a view of it."""
        if self.spot.hands_on:
            return True
        if x is self.given and not x.is_inference() and x._version == self.version:
            return True  # handed on as it came, not changed in place
        return not self.spot.weighs and node is not None and kinds.moves_values_only(node.name())


class Spots(Tree):
    """The modules of a model.

    Args:
        model: as it is now.

    Attributes:
        at: the modules' spots, by their id.
        parameters: by name.
        sharded: whether `fully_shard` was called on one of them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.at = {
            id(m): Spot.of(m, self.paths[id(m)], atomic=is_atomic(m, self.paths[id(m)]))
            for m in self.modules.values()
        }
        self.sharded = any(parts.shards(model))
        self.parameters = parts.parameters_of(model)
        self._built = [(m._modules, m._parameters, *_held(m)) for m in self.modules.values()]

    @property
    def current(self) -> bool:
        """Whether the model still has the same modules and parameters, each at its place."""
        return not self.sharded and all(
            tuple(map(id, modules.values())) == inner and tuple(map(id, parameters.values())) == own
            for modules, parameters, inner, own in self._built
        )

    @property
    def compiled(self) -> bool:
        """Whether some part of the model is compiled by now."""
        return any(
            m._compiled_call_impl is not None or "_orig_mod" in m._modules
            for m in self.modules.values()
        )


def _is_torchs(module: torch.nn.Module) -> bool:
    return kinds.class_of(module).__module__.startswith("torch.nn.modules.")


def _held(module: torch.nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    modules, parameters = module._modules.values(), module._parameters.values()
    return tuple(map(id, modules)), tuple(map(id, parameters))
