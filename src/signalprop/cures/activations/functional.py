"""Activations that are functions in somebody's forward, replaced while that forward runs.

`F.relu(x)`, `torch.sigmoid(x)` or `x.tanh_()` is no module that could be taken out. So the module
in whose forward it stands gets a hook before, which puts a `TorchFunctionMode` on, and one behind,
which takes it off, also after an error. Only calls of that very forward are replaced, not those of
modules inside it. Names, types and state_dict stay; the hooks are copied and pickled with it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from signalprop.capture import kinds

#: code of the method through which every module is called
_CALL = nn.Module._call_impl.__code__
_CHECKPOINT = "torch/utils/checkpoint.py"


def op_of(func: Callable[..., Any]) -> str:
    """The name of an operation without what marks it as in place: `relu` of `torch.relu_`."""
    name = getattr(func, "__name__", "")
    known = kinds.OP_NAMES.get(name)
    if known is not None:
        return known
    return name if name.startswith("__") else name.strip("_")


def caller() -> tuple[nn.Module | None, bool]:
    """The module in whose forward this is running.

    Returns:
        The innermost module that is being called, and whether there is an activation checkpoint
        between it and here: that part is run again outside of the module's call.
    """
    frame, inside = sys._getframe(1), False
    while frame is not None:
        if frame.f_code is _CALL:
            return frame.f_locals["self"], inside
        inside = inside or frame.f_code.co_filename.replace("\\", "/").endswith(_CHECKPOINT)
        frame = frame.f_back
    return None, inside


class FunctionalSwap:
    """Replaces activation functions in the forward of one module.

    Args:
        new: op -> what stands in its place, or the name of a child of the module.
        calls: op -> which of its calls in one forward, counted from 0; None for all.
        alpha: whether dropout functions become alpha dropout.
    """

    def __init__(
        self,
        new: dict[str, nn.Module | str],
        calls: dict[str, frozenset[int] | None],
        *,
        alpha: bool = False,
    ) -> None:
        self.new, self.calls, self.alpha = new, calls, alpha
        self._on: dict[int, list[_Replace]] = {}

    def put_on(self, module: nn.Module) -> None:
        """Hook it to a module.

        Args:
            module: in whose forward the functions are called.
        """
        module.register_forward_pre_hook(self.enter)
        module.register_forward_hook(self.leave, always_call=True)
        # the encoder layer's fast path calls its activation by a kernel of its own
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before the forward."""
        mode = _Replace(self, module)
        self._on.setdefault(threading.get_ident(), []).append(mode)
        mode.__enter__()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the forward, also where it raised."""
        on = self._on.get(threading.get_ident())
        if on and on[-1].module is module:
            on.pop().__exit__(None, None, None)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is running."""
        return self.__dict__ | {"_on": {}}

    def __repr__(self) -> str:
        """What it replaces, to be written into the forward."""
        told = [f"{op}(x) -> {new}(x)" for op, new in self.new.items()]
        return "; ".join([*told, *(["dropout -> alpha_dropout"] if self.alpha else [])])


def swaps(model: nn.Module) -> dict[str, str]:
    """What is replaced in which module's forward, in words.

    Args:
        model: any module.

    Returns:
        E.g. `{"block1": "relu(x) -> SELU()(x)"}`.
    """
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            swap = getattr(hook, "__self__", None)
            if isinstance(swap, FunctionalSwap):
                found[path] = repr(swap)
    return found


class _Replace(TorchFunctionMode):
    """The mode of one call of one module."""

    def __init__(self, swap: FunctionalSwap, module: nn.Module) -> None:
        super().__init__()
        self.swap, self.module = swap, module
        self.seen: dict[str, int] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        op = op_of(func)
        if op == "dropout" and self.swap.alpha and caller()[0] is self.module:
            return F.alpha_dropout(*args, **kwargs)
        if op not in self.swap.new or caller()[0] is not self.module:
            return func(*args, **kwargs)
        index = self.seen.get(op, 0)
        self.seen[op] = index + 1
        chosen = self.swap.calls[op]
        if chosen is not None and index not in chosen:
            return func(*args, **kwargs)
        new = self.swap.new[op]
        activation = getattr(self.module, new) if isinstance(new, str) else new
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if not writes(func, kwargs):
            return activation(x)
        # others may hold the same tensor: they are to see the new values
        value = activation(x.clone())
        return x.copy_(value)


def writes(func: Callable[..., Any], settings: dict[Any, Any]) -> bool:
    """Whether a call of an activation function changes its argument in place.

    Args:
        func: the function.
        settings: its arguments by name.

    Returns:
        True or False.
    """
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or bool(settings.get("inplace"))
