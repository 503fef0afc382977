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

_NOTHING = "no parameter of the model is trained, so there is nothing to optimize; unfreeze some"


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
        left_out: trained parameters that the optimizer does not hold.
    """

    kind: Callable[..., torch.optim.Optimizer]
    groups: tuple[Group, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer],
        model: nn.Module,
    ) -> Recipe:
        """The recipe of an optimizer; its state is not part of it.

        Args:
            optimizer: an optimizer, which may be that of another model; or a function from
                parameters to one.
            model: the model.

        Returns:
            The recipe. Where the optimizer holds none of the model's parameters, all of them are
            left out: what `build` makes then trains nothing, as the user's own does.

        Raises:
            SignalpropError: its class cannot be made again from its options, or nothing is trained.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            return cls(optimizer).explicit(model)
        found = cls._read(optimizer, model)
        try:
            # of another model's nothing but the first group would be tried
            (found if any(g.names for g in found.groups) else found.whole()).build(model)
        except SignalpropError:
            raise
        except Exception as error:
            raise SignalpropError(
                f"{type(optimizer).__name__} cannot be made again from its options "
                f"({_first_line(error)}); give a function instead: optimizer=lambda parameters: ..."
            ) from error
        return found

    @classmethod
    def _read(cls, optimizer: torch.optim.Optimizer, model: nn.Module) -> Recipe:
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
        held_by_any = {name for group in groups for name in group.names}
        trained = (name for name, p in model.named_parameters() if p.requires_grad)
        left_out = tuple(name for name in trained if name not in held_by_any)
        return cls(type(optimizer), tuple(groups), left_out)

    def whole(self) -> Recipe:
        """With the parameters that are left out in its largest group."""
        most = max(range(len(self.groups)), key=lambda i: len(self.groups[i].names))
        groups = list(self.groups)
        groups[most] = replace(groups[most], names=(*groups[most].names, *self.left_out))
        return replace(self, groups=tuple(groups), left_out=())

    def explicit(self, model: nn.Module) -> Recipe:
        """With its groups written out, as a function of parameters makes them for a model.

        Args:
            model: the model.

        Returns:
            The recipe; of the function itself where the class of what it makes has options that its
            groups do not show.

        Raises:
            SignalpropError: nothing is trained, or the function makes no optimizer.
        """
        if self.groups:
            return self
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise SignalpropError(_NOTHING)
        made = self.kind(trained)
        if not isinstance(made, torch.optim.Optimizer):
            raise SignalpropError(
                f"optimizer is to be an optimizer or a function from parameters to one; it made a "
                f"{type(made).__name__}"
            )
        found = Recipe._read(made, model)
        try:
            found.build(model)
        except SignalpropError:
            raise
        except Exception:
            return replace(found, kind=self.kind)
        return found

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model.

        A parameter that no group names and that is not left out (a cure has added it) goes to the
        largest group, unless it is frozen.

        Args:
            model: the model the recipe is of, or one made of it.

        Returns:
            A new optimizer.

        Raises:
            SignalpropError: nothing is trained.
        """
        if not self.groups:
            return self.explicit(model).build(model)
        parameters = dict(model.named_parameters())
        held = [[n for n in group.names if n in parameters] for group in self.groups]
        known = {name for group in self.groups for name in group.names} | set(self.left_out)
        new = [n for n, p in parameters.items() if n not in known and p.requires_grad]
        max(held, key=len).extend(new)
        groups: list[dict[str, Any]] = [
            {"params": [parameters[n] for n in names], **group.options}
            for names, group in zip(held, self.groups, strict=True)
        ]
        if not any(held):
            if not any(name in parameters for name in self.left_out):
                raise SignalpropError(_NOTHING)
            # torch makes none without a parameter: this one is nobody's
            groups[0]["params"] = [nn.Parameter(torch.zeros(1))]
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
        name = getattr(self.kind, "__name__", "")
        module = getattr(self.kind, "__module__", "")
        name = f"torch.optim.{name}" if module.startswith("torch.optim") else name
        name = name if name.replace(".", "").isidentifier() else "make_optimizer"
        most = max(self.groups, key=lambda g: len(g.names))
        default = _accepted(self.kind)
        told = [
            f"{k}={_shown(v)}"
            for k, v in most.options.items()
            if k in default and (k == "lr" or not _equal(default[k], v))
        ]
        line = f"{name}({', '.join(['model.parameters()', *told])})"
        if any(group.options != most.options for group in self.groups):
            line += f"  # the largest of {len(self.groups)} groups"
        return line


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

    def rebuilt(self, optimizer: Recipe) -> Training:
        """With another optimizer, and the line that makes it."""
        return self.changed(f"optimizer = {optimizer.line}", optimizer=optimizer)


def applied(steps: Iterable[Callable[[Any], Any]], value: Any) -> Any:
    """One function after the other."""
    for step in steps:
        value = step(value)
    return value


def _options(kind: Callable[..., Any]) -> dict[str, Any]:
    """Keyword arguments of an optimizer's class and of its parents, with their defaults."""
    found: dict[str, Any] = {}
    for one in reversed(getattr(kind, "__mro__", (kind,))):
        if one is not object and one is not torch.optim.Optimizer:
            found.update(_signature(one)[0])
    return found


def _accepted(kind: Callable[..., Any]) -> dict[str, Any]:
    """What can be passed to the class itself, with the defaults."""
    found: dict[str, Any] = {}
    for one in getattr(kind, "__mro__", (kind,)):
        own, more = _signature(one)
        found = own | found
        if not more:
            break
    return found


def _signature(kind: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Keyword arguments with their defaults, and whether it takes others, too."""
    try:
        parameters = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        return {}, True
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = {k: p.default for k, p in parameters.items() if p.kind not in variable}
    more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in found.items() if k not in ("self", "params")}, more


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, (Tensor, int, float)) and bool(torch.as_tensor(a == b).all())
    return bool(a == b)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
