"""Forward hooks that belong to a network: what some cures put around modules.

A hook leaves names, classes and attributes of a network as they are. Its parameters lie in the
module that it is on, so that they are trained, moved and saved with it.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from signalprop.cures.surgery import fitted


class Hook:
    """A hook that stays with its module when that is copied, saved or sent to another process.

    torch numbers hooks by a counter of the process. The handle goes along and moves the counter on
    in a new process, where the next hook would else take the number, and so the place, of this one.
    """

    def __init__(self) -> None:
        self.handle: Any = None

    def put(self, module: nn.Module) -> Self:
        """Attach to a module, ahead of the hooks it has."""
        self.handle = module.register_forward_hook(self, prepend=True, with_kwargs=True)
        return self

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Change the output; of several the first."""
        x = args[0] if args else next(iter(kwargs.values()))
        if not isinstance(output, tuple):
            return self.changed(module, x, output)
        rest = (self.changed(module, x, output[0]), *output[1:])
        make = getattr(type(output), "_make", None)
        return rest if make is None else make(rest)

    def changed(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What stands in place of y = module(x)."""
        raise NotImplementedError


class Behind(Hook):
    """Hands the output through a submodule of the module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def changed(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The submodule's output."""
        return getattr(module, self.name)(y)


class Ahead(Hook):
    """Hands the input through a submodule of the module, wherever it is among the arguments."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def put(self, module: nn.Module) -> Self:
        """Attach to a module, behind the hooks it has."""
        self.handle = module.register_forward_pre_hook(self.enter, with_kwargs=True)
        return self

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The arguments with what was put in place of the first."""
        x = args[0] if args else next(iter(kwargs.values()))
        y = getattr(module, self.name)(x)
        return (
            tuple(y if a is x else a for a in args),
            {k: y if a is x else a for k, a in kwargs.items()},
        )


def attach(
    layer: nn.Module, name: str, module: nn.Module, hook: type[Ahead | Behind], root: nn.Module
) -> None:
    """Make a module a submodule of a layer, with the hook that applies it.

    Args:
        layer: what it is put ahead of or behind.
        name: its name, where it is free.
        module: the module; it gets the layer's device, dtype and mode.
        hook: `Ahead` or `Behind`.
        root: the model.
    """
    name = free_name(layer, name)
    layer.add_module(name, fitted(module, layer, root))
    hook(name).put(layer)


def free_name(module: nn.Module, wanted: str) -> str:
    """A name that a module has no attribute of."""
    name, count = wanted, 1
    while hasattr(module, name):
        count += 1
        name = f"{wanted}_{count}"
    return name
