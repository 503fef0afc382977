"""Credit over positions where a model attends: of the output at the last one to every earlier one.

Attention has no state that is handed on, so nothing is multiplied step by step. A random error is
put on the last position of the deepest place that still has the axis of positions, and taken back
by autograd to the first one that has it, the embedding or the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from signalprop.capture.statistics import accumulator
from signalprop.capture.time import Horizon
from signalprop.recurrent.horizon.curve import Sizes, aligned, horizon_of
from signalprop.recurrent.jacobians.steps import Place

#: names under which models take which positions count (1 or True), and which do not
REAL, PADDED = ("attention_mask",), ("src_key_padding_mask", "key_padding_mask")

#: operations by which weights become attention
PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "einsum", "baddbmm"})


@dataclass
class Spot:
    """A tensor with an axis of positions.

    Attributes:
        site: path of the module that returned it, or the name of an input.
        tensor: it.
        order: when it was made.
    """

    site: str
    tensor: Tensor
    order: int


class Attending(TorchFunctionMode):
    """Sees whether a model attends, and what its modules return.

    Args:
        model: the model.
        inputs: what it is given, by name.

    Attributes:
        attended: when attention was computed, in the order of `spots`; and over how many positions.
        spots: floating tensors of two or more dimensions.
        masks: masks of positions that modules were given, True where one counts, (B, T).
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.attended: list[tuple[int, int]] = []
        self.spots: list[Spot] = []
        self.masks: list[Tensor] = []
        self._model = model
        self._handles: list[Any] = []
        self._weights: Tensor | None = None  # rows that add up to 1, which may become attention
        for name, x in inputs.items():
            self._see(name, x)

    def _see(self, site: str, x: Any) -> None:
        if isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 and x.requires_grad:
            self.spots.append(Spot(site, x, len(self.spots)))

    def __enter__(self) -> Attending:
        """Start to look."""
        for path, module in self._model.named_modules():
            add = self._handles.append
            add(module.register_forward_pre_hook(self._given(path), with_kwargs=True))
            add(module.register_forward_hook(self._returned(path), with_kwargs=True))
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        """Stop, and take every hook off."""
        try:
            super().__exit__(exc_type, exc_val, exc_tb)
        finally:
            for handle in self._handles:
                handle.remove()

    def _given(self, path: str) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, kwargs: Any) -> None:
            for x in tree_leaves((args, kwargs)):  # what no module has returned
                if isinstance(x, Tensor) and not any(s.tensor is x for s in self.spots):
                    self._see(f"{path}.input" if path else "input", x)

        return see

    def _returned(self, path: str) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for name, sign in [*((n, True) for n in REAL), *((n, False) for n in PADDED)]:
                mask = kwargs.get(name)
                if isinstance(mask, Tensor) and mask.ndim == 2 and not mask.is_floating_point():
                    self.masks.append(mask.bool() if sign else ~mask.bool())
            if isinstance(module, nn.MultiheadAttention):
                keys = args[1] if len(args) > 1 else kwargs["key"]
                batched = keys.ndim == 3
                self._attends(keys.shape[1 if batched and module.batch_first else 0])
            for x in tree_leaves(output):
                self._see(path, x)

        return see

    def _attends(self, positions: int) -> None:
        if positions > 1:
            self.attended.append((len(self.spots), positions))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function; note attention."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            key = args[1] if len(args) > 1 else kwargs["key"]
            self._attends(key.shape[-2])
        made = func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "softmax" and first is not None and first.ndim >= 3:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (-1, first.ndim - 1) and first.shape[-1] == first.shape[-2]:
                self._weights = made
        elif self._weights is not None and name in PRODUCTS:
            if any(x is self._weights for x in tree_leaves(args)):
                self._attends(self._weights.shape[-1])
        elif self._weights is not None and first is self._weights and isinstance(made, Tensor):
            self._weights = made if made.ndim >= 3 else None  # dropped out, or cast
        return made


@dataclass
class Span:
    """From where to where credit is taken back.

    Attributes:
        lower: the first place that has the positions.
        upper: the last.
        axis: which dimension of both the positions are, -2 or -3.
        length: positions.
    """

    lower: Spot
    upper: Spot
    axis: int
    length: int


def span_of(seen: Attending, batch: int, batch_dim: int) -> Span | None:
    """The first and the last place with the positions that are attended to; None without any.

    Args:
        seen: a pass.
        batch: samples.
        batch_dim: their dimension, where there are three.

    Returns:
        Where credit is taken back.
    """
    for when, length in reversed(seen.attended):
        begun = next(w for w, n in seen.attended if n == length)
        fitting = [s for s in seen.spots if (a := _axis(s.tensor, length, batch, batch_dim)) < 0]
        before = [s for s in fitting if s.order < begun]
        after = [s for s in fitting if s.order >= when]
        if not before or not after:
            continue
        upper = after[-1]
        axis = _axis(upper.tensor, length, batch, batch_dim)
        for lower in before:
            a = _axis(lower.tensor, length, batch, batch_dim)
            if a == axis and lower.tensor.ndim == upper.tensor.ndim and _reaches(upper, lower):
                return Span(lower, upper, axis, length)
    return None


def _axis(x: Tensor, length: int, batch: int, batch_dim: int) -> int:
    """Which dimension the positions are, from the end; 0 where there is none."""
    if x.ndim == 2:
        return -2 if x.shape[0] == length and batch == length else 0
    if x.ndim != 3:
        return 0
    first, second = (x.shape[0], x.shape[1])
    ways = {-2: (first, second), -3: (second, first)}
    likely = (-3, -2) if batch_dim == 1 else (-2, -3)
    for axis in likely:
        if ways[axis] == (batch, length):
            return axis
    return 0


def _reaches(upper: Spot, lower: Spot) -> bool:
    some = upper.tensor.flatten()[-1:]
    return torch.autograd.grad(
        some, lower.tensor, torch.ones_like(some), retain_graph=True, allow_unused=True
    )[0] is not None  # fmt: skip


def attention_curve(
    span: Span, masks: list[Tensor], errors: int, generator: torch.Generator
) -> tuple[Horizon, str | None]:
    """Credit of the last position to every earlier one.

    Args:
        span: from where to where.
        masks: of positions that count; the first that fits is taken.
        errors: how many random errors.
        generator: of the errors.

    Returns:
        The horizon, and what has to be said.
    """
    upper, lower = span.upper.tensor, span.lower.tensor
    if upper.ndim == 2:
        upper_b, rows = upper[None], 1
    else:
        upper_b = upper.movedim(span.axis, 1)
        rows = len(upper_b)
    device = upper.device
    real = next(
        (m.to(device) for m in masks if tuple(m.shape) == (rows, span.length)),
        torch.ones(rows, span.length, dtype=torch.bool, device=device),
    )
    real = torch.where(real.any(1, keepdim=True), real, True)
    at = torch.arange(span.length, device=device)
    last = torch.where(real, at, 0).amax(1)
    first = torch.where(real, at, span.length).amin(1)
    top = upper_b[torch.arange(rows, device=device), last].flatten(1)
    sizes = []
    for _ in range(errors):
        e = torch.randn(top.shape, generator=generator).to(device, top.dtype)
        found = torch.autograd.grad(top, lower, e, retain_graph=True)[0]
        one = found[None] if found.ndim == 2 else found.movedim(span.axis, 1)
        wide = one.to(accumulator(device))
        sizes.append(torch.linalg.vector_norm(wide.flatten(2), dim=2))
    # (T, errors, B), every sequence from its first position on
    stacked = torch.stack(sizes).permute(2, 0, 1)
    shifted = (first + at[:, None]).clamp_max(span.length - 1)
    stacked = stacked.gather(0, shifted[:, None].expand_as(stacked))
    by_lag = aligned(Sizes.of(stacked), last - first + 1)
    some = ~by_lag.part.isnan().flatten(1).all(1)
    place = Place(span.lower.site, "attention")
    horizon, note = horizon_of(place, Sizes(by_lag.part[some], by_lag.power[some]), upper.dtype)
    if not horizon.credit or not math.isfinite(sum(horizon.credit)):
        return horizon, f"{span.lower.site}: the last position owes nothing to itself"
    return horizon, note
