"""Convolutions whose backward pass can be differentiated at the price of a convolution.

J v is the derivative of u -> J^T u. Torch's own formula for that of a convolution also computes
what would come of the weights, whether it is asked for or not: four times the price, as measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NAMES = frozenset(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))


class CheapConvolutions(TorchFunctionMode):
    """Inside, convolutions are recorded so that J v costs what J^T u does."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function; a convolution by way of `_Convolution`."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _NAMES and len(args) > 1 and not set(kwargs) & {"input", "weight"}:
            shape = _Shape.of(name, args, kwargs)
            if shape is not None:
                return _Convolution.apply(func, shape, args[0], args[1], args[2:], kwargs)
        return func(*args, **kwargs)


class _Shape:
    """Stride, padding and so on of a convolution, as the general one takes them."""

    def __init__(self, transposed: bool, given: dict[str, Any], n: int) -> None:
        def each(name: str, default: int) -> list[int]:
            value = given.get(name, default)
            return [value] * n if isinstance(value, int) else list(value) * (n // len(value))

        self.stride, self.padding = each("stride", 1), each("padding", 0)
        self.dilation, self.transposed = each("dilation", 1), transposed
        self.output_padding, self.groups = each("output_padding", 0), given.get("groups", 1)

    @classmethod
    def of(cls, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Shape | None:
        """The shape of a call; None where torch's own way has to do."""
        n = int(name[-2])
        transposed = "transpose" in name
        words = ["bias", "stride", "padding"]
        words += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
        given = dict(zip(words, args[2:], strict=False)) | kwargs
        x, weight = args[:2]
        known = isinstance(x, Tensor) and isinstance(weight, Tensor) and x.ndim == n + 2
        if not known or isinstance(given.get("padding"), str) or x.is_complex():
            return None
        return cls(transposed, given, n)

    def rest(self) -> tuple[Any, ...]:
        """Arguments after input, weight and bias."""
        return (self.stride, self.padding, self.dilation, self.transposed, self.output_padding,
                self.groups)  # fmt: skip

    def back(self, delta: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> Any:
        """Gradients of input, weight and bias."""
        bias = [weight.shape[1] * self.groups if self.transposed else weight.shape[0]]
        return torch.ops.aten.convolution_backward(delta, x, weight, bias, *self.rest(), mask)


class _Convolution(torch.autograd.Function):
    """The user's convolution."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:  # pyrefly: ignore[bad-override]
        func, shape, x, weight, rest, named = args
        ctx.shape = shape
        ctx.save_for_backward(x, weight)
        return func(x, weight, *rest, **named)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (delta,) = grad_outputs
        x, weight = ctx.saved_tensors
        back = _Adjoint.apply if torch.is_grad_enabled() else _adjoint
        found = back(ctx.shape, delta, x, weight) if ctx.needs_input_grad[2] else None
        return None, None, found, None, None, None


def _adjoint(shape: _Shape, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    x_like, weight = x.to(delta.dtype), weight.to(delta.dtype)  # under autocast
    return shape.back(delta, x_like, weight, [True, False, False])[0].to(x.dtype)


class _Adjoint(torch.autograd.Function):
    """J^T u of a convolution; its own derivative by u is the convolution."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:  # pyrefly: ignore[bad-override]
        shape, delta, x, weight = args
        ctx.shape, ctx.dtype = shape, delta.dtype
        ctx.save_for_backward(weight)
        return _adjoint(shape, delta, x, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (v,) = grad_outputs
        (weight,) = ctx.saved_tensors
        weight = weight.to(ctx.dtype)
        found = torch.convolution(v.to(ctx.dtype), weight, None, *ctx.shape.rest())
        return None, found, None, None
