"""LSTM over all steps in one kernel on an accelerator, every dL/dh_t and dL/dc_t written down.

The same function as `recurrent.cells.lstm.LSTM`, whose formulas these are. The kernels are
Triton's; cells are carried in float32 whatever the dtype. Of float32, recurrent products are made
from three narrow ones (tf32x3, float32's accuracy to about 1e-6), or of one where torch's own
products are allowed tf32.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from signalprop.recurrent.cells.again import again, as_forward
from signalprop.recurrent.cells.bulk import linear
from signalprop.recurrent.cells.lstm import unrolled
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.fused import deal

#: Triton's first version with what the kernels need
TRITON = (3, 3)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: parts of the way back whose error signals are held at a time, and steps that are worth one
PARTS, STEPS = 4, 32


def available(x: Tensor, w_ih: Tensor, w_hh: Tensor, w_hr: Tensor | None = None) -> bool:
    """Whether the fused layer can be taken for these.

    Args:
        x: input, (T, B, I).
        w_ih: its weights, (4 H, I).
        w_hh: recurrent weights, (4 H, P).
        w_hr: projection; there is no kernel for one.

    Returns:
        False without Triton, on a device that it does not know, for float64 and mixed dtypes, and
        for a layer with a projection.
    """
    if w_hr is not None or x.dtype not in DTYPES or not (x.dtype == w_ih.dtype == w_hh.dtype):
        return False
    if not len(x) or not x.shape[1] or not (x.device == w_ih.device == w_hh.device):
        return False
    if x.device.type == "cuda":
        return torch.version.cuda is not None and _capable(x.device) and _triton()
    # the interpreter multiplies the bits of bfloat16
    interpreted = x.device.type == "cpu" and _interpreted() and x.dtype != torch.bfloat16
    return interpreted and _triton()


@functools.cache
def _triton() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        import triton
    except (ImportError, OSError):
        return False
    return tuple(int(n) for n in triton.__version__.split(".")[:2]) >= TRITON


@functools.cache
def _capable(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


class FusedLSTM(torch.autograd.Function):
    """(x, w_ih, bias, w_hh, h0, c0, w_hr, mask, deltas) -> (h of every step, h_T, c_T).

    x (T, B, I); w_ih (4 H, I) in torch's order i, f, g, o; bias (4 H,) or None; w_hh (4 H, H); h0
    and c0 (B, H); w_hr None; mask (T, B, 1), False where a sequence has ended, or None. Ask
    `available` first.
    """

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        x: Tensor,
        w_ih: Tensor,
        bias: Tensor | None,
        w_hh: Tensor,
        h0: Tensor,
        c0: Tensor,
        w_hr: Tensor | None,
        mask: Tensor | None,
        deltas: Deltas,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All steps; gates and states are kept."""
        steps, rows, _ = x.shape
        gates = x.new_empty(steps, rows, len(w_ih))
        cells, outputs = (x.new_empty(steps + 1, *h0.shape) for _ in range(2))
        cells[0], outputs[0] = c0, h0
        linear(x, w_ih, bias, gates)
        carried = _carried(c0)
        # what a step is given lies where its gates will: it is read before they are written
        _launch("forward", (gates, w_hh.contiguous(), outputs, cells, gates, carried), mask, steps)
        ctx.save_for_backward(x, w_ih, bias, w_hh, h0, c0, mask, gates, cells, outputs)
        ctx.deltas = deltas
        deltas.forward(gates, mask)
        return outputs[1:], outputs[-1].clone(), carried.to(c0.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """All steps back; with `create_graph` through a twin that can be derived again."""
        *given, mask, gates, cells, outputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*again(unrolled, (*given, None), mask, gradients), None, None)
        with as_forward(gates):
            return _backward(ctx, given, mask, gates, cells, outputs, gradients)


def _backward(
    ctx: Any,
    given: list[Any],
    mask: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    outputs: Tensor,
    gradients: tuple[Tensor, ...],
) -> tuple[Any, ...]:
    x, w_ih, _, w_hh, h0, c0 = given
    needs, w_hh = ctx.needs_input_grad, w_hh.contiguous()
    arriving, kept, carried = gradients[0].contiguous(), *map(_carried, gradients[1:])
    steps = len(gates)
    found_h, found_c = (torch.empty_like(outputs[1:]) for _ in range(2))
    d_x = x.new_empty(x.shape) if needs[0] else None
    # sums of float32: every part is rounded once
    d_ih, d_bias, d_hh = (
        w.new_zeros(w.shape, dtype=torch.float32) if wanted else None
        for w, wanted in ((w_ih, needs[1]), (w_ih[:, 0], needs[2]), (w_hh, needs[3]))
    )
    size = -(-steps // min(PARTS, -(-steps // STEPS)))
    errors = gates.new_empty(size + 1, *gates.shape[1:])
    errors[0] = 0
    for b in range(steps, 0, -size):
        a = max(b - size, 0)
        errors[b - a] = errors[0]  # of step b, the first of the part before
        tensors = arriving[a:b], w_hh, cells[a : b + 1], gates[a:b], found_h[a:b], found_c[a:b]
        going = None if mask is None else mask[a:b]
        _launch("backward", (*tensors, errors, kept, carried), going, b - a)
        flat = errors[: b - a].flatten(0, 1)
        if d_x is not None:
            torch.mm(flat, w_ih, out=d_x[a:b].flatten(0, 1))
        if d_ih is not None:
            d_ih += flat.t() @ x[a:b].reshape(len(flat), -1)
        if d_bias is not None:
            d_bias += flat.sum(0, dtype=torch.float32)
        if d_hh is not None:
            d_hh += flat.t() @ outputs[a:b].flatten(0, 1)
    ctx.deltas.backward(found_h, found_c)
    d_h = (errors[0] @ w_hh).add_(kept) if needs[4] else None
    sums = [d if d is None else d.to(x.dtype) for d in (d_ih, d_bias, d_hh)]
    return d_x, *sums, _as(h0, d_h), _as(c0, carried), None, None, None


def _carried(state: Tensor) -> Tensor:
    return state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _as(like: Tensor, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.to(like.dtype)


def _launch(which: str, tensors: tuple[Tensor, ...], mask: Tensor | None, steps: int) -> None:
    """Run a kernel over all steps: in one launch, or step by step where that cannot be."""
    from triton.runtime.errors import OutOfResources

    from signalprop.recurrent.fused import kernels

    kernel, back = getattr(kernels, which), which == "backward"
    first, (rows, hidden) = tensors[0], tensors[-1].shape
    precision = _precision(first.dtype)
    how = deal.of_device(
        rows, hidden, first.dtype, first.device, back=back, twice=precision == "tf32x3"
    )
    counters = torch.zeros(how.grid[1], dtype=torch.int32, device=first.device)
    ended = counters if mask is None else mask.contiguous().view(torch.uint8)
    fixed = {
        "H": hidden, "MASKED": mask is not None, "PRECISION": precision,
        "num_warps": how.warps, "num_stages": 1, "enable_fp_fusion": True,
    }  # fmt: skip
    if how.together and how.grid[0] > 1:
        fixed["launch_cooperative_grid"] = True  # fails, rather than hangs, if one cannot start
    spans = [(0, steps)] if how.together else [(t, t + 1) for t in range(steps)]

    def run(how: deal.Deal) -> None:
        for begin, end in reversed(spans) if back else spans:
            kernel[how.grid](*tensors, ended, counters, rows, begin, end, **fixed, **how.options())

    with _on(first.device):
        try:
            run(how)
        except OutOfResources:  # said before anything has run
            run(deal.read_again(how, hidden, back=back))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _precision(dtype: torch.dtype) -> str:
    """How products of float32 are made; other dtypes do not look at it."""
    if dtype != torch.float32:
        return "ieee"
    try:
        narrow = torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # asked in torch's newer way, which does not go with this one
        narrow = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if narrow else "tf32x3"
