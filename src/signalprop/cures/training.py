"""A network and how it is trained: what a cure changes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture.batch import Loss
from signalprop.errors import SignalpropError

#: from (args, kwargs, target) of a batch to the same
Prepare = Callable[[Any], Any]


@dataclass(frozen=True)
class Group:
    """Some parameters and the optimizer's options for them.

    Attributes:
        names: of the parameters in the model.
        options: learning rate and so on.
    """

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How to make an optimizer for a model, the same or a changed one.

    Attributes:
        kind: the optimizer's class, or a function of the parameters.
        groups: its parameter groups; of a function none.
    """

    kind: Callable[..., torch.optim.Optimizer]
    groups: tuple[Group, ...] = ()

    @classmethod
    def of(
        cls,
        optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer],
        model: nn.Module,
    ) -> Recipe:
        """The recipe of an optimizer; its state is not part of it.

        Args:
            optimizer: of this model; or a function from parameters to an optimizer.
            model: the model.

        Returns:
            The recipe.

        Raises:
            SignalpropError: it holds none of the model's parameters, or its class cannot be made
                again from its options.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            return cls(optimizer).explicit(model)
        names = {id(p): name for name, p in model.named_parameters()}
        known = _options(type(optimizer))
        groups = []
        for group in optimizer.param_groups:
            held = tuple(names[id(p)] for p in group["params"] if id(p) in names)
            options = {k: v for k, v in group.items() if k in known and k != "params"}
            # a schedule has already moved it
            if isinstance(group.get("initial_lr"), (int, float)):
                options["lr"] = group["initial_lr"]
            groups.append(Group(held, options))
        if not any(group.names for group in groups):
            raise SignalpropError(
                "the optimizer holds none of the model's parameters; make it from "
                "model.parameters()"
            )
        found = cls(type(optimizer), tuple(groups))
        try:
            found.build(model)
        except Exception as error:
            raise SignalpropError(
                f"{type(optimizer).__name__} cannot be made again from its options ({error}); give "
                "a function instead: optimizer=lambda parameters: ..."
            ) from error
        return found

    def explicit(self, model: nn.Module) -> Recipe:
        """With its groups written out, as a function of parameters makes them for a model."""
        if self.groups:
            return self
        made = self.kind([p for p in model.parameters() if p.requires_grad])
        return Recipe.of(made, model)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model.

        A parameter that no group names (a cure has added it) goes to the largest group, unless it
        is frozen.

        Args:
            model: the model the recipe is of, or one made of it.

        Returns:
            A new optimizer.
        """
        parameters = dict(model.named_parameters())
        held = [[n for n in group.names if n in parameters] for group in self.groups]
        known = {name for group in self.groups for name in group.names}
        new = [n for n, p in parameters.items() if n not in known and p.requires_grad]
        max(held, key=len).extend(new)
        groups = [
            {"params": [parameters[n] for n in names], **group.options}
            for names, group in zip(held, self.groups, strict=True)
        ]
        return self.kind([group for group in groups if group["params"]])

    @property
    def rate(self) -> float:
        """The largest learning rate of its groups."""
        return max(float(group.options.get("lr", 0.0)) for group in self.groups)

    def scaled(self, factor: float) -> Recipe:
        """With every learning rate times a factor."""
        return replace(
            self,
            groups=tuple(
                replace(g, options={**g.options, "lr": float(g.options["lr"]) * factor})
                for g in self.groups
            ),
        )

    @property
    def line(self) -> str:
        """The line that makes it, e.g. `torch.optim.SGD(model.parameters(), lr=0.1)`."""
        name = getattr(self.kind, "__name__", "optimizer")
        module = getattr(self.kind, "__module__", "")
        name = f"torch.optim.{name}" if module.startswith("torch.optim") else name
        most = max(self.groups, key=lambda g: len(g.names))
        default = _options(self.kind)
        told = [
            f"{k}={_shown(v)}"
            for k, v in most.options.items()
            if k == "lr" or (k in default and default[k] is not inspect.Parameter.empty
                             and not _equal(default[k], v))
        ]  # fmt: skip
        return f"{name}({', '.join(['model.parameters()', *told])})"


@dataclass(frozen=True)
class Training:
    """A network and how it is trained.

    Attributes:
        model: the network.
        loss: as for `diagnose`.
        optimizer: how the optimizer is made.
        prepare: what is done to every batch (args, kwargs, target) before the model sees it.
        readout: what is done to the output before a metric of the user's sees it, the first first:
            where a cure has taken a softmax away, it is applied here.
        clip: largest norm of the whole gradient; None for no clipping.
        warmup: updates over which the learning rate rises from near 0.
        merge: how many batches make one.
        lines: what was changed, as lines to paste.
    """

    model: nn.Module
    loss: Loss
    optimizer: Recipe
    prepare: tuple[Prepare, ...] = ()
    readout: tuple[Callable[[Any], Any], ...] = ()
    clip: float | None = None
    warmup: int = 0
    merge: int = 1
    lines: tuple[str, ...] = ()

    def changed(self, *lines: str, **what: Any) -> Training:
        """With some attributes changed, and the lines that say so.

        Args:
            lines: to paste.
            what: attributes.

        Returns:
            The changed training.
        """
        return replace(self, lines=(*self.lines, *lines), **what)


def applied(steps: Iterable[Callable[[Any], Any]], value: Any) -> Any:
    """One function after the other."""
    for step in steps:
        value = step(value)
    return value


def _options(kind: Callable[..., Any]) -> dict[str, Any]:
    """Keyword arguments of an optimizer's class, with their defaults."""
    found: dict[str, Any] = {}
    for one in reversed(getattr(kind, "__mro__", (kind,))):
        if one is object or one is torch.optim.Optimizer:
            continue
        try:
            parameters = inspect.signature(one).parameters
        except (TypeError, ValueError):
            continue
        found.update({k: p.default for k, p in parameters.items() if k not in ("self", "params")})
    return found


def _equal(a: Any, b: Any) -> bool:
    return bool((a == b).all()) if isinstance(a, Tensor) else a == b


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
