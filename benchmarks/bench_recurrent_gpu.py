"""Recurrent layers on an accelerator: deltas at borders and at every step, against cuDNN.

Asked, of a training step (forward and backward, gradients of the input and every weight):
`deltas="borders"` at most 1.1 times cuDNN, the fused layer with every delta at most 1.5 times, at
(T=512, B=64, H=256) and (T=1024, B=16, H=768), with at most 1.2 times its memory. All are measured
in turn in one run, by the device's own clock.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks.timing import keep
from torch import Tensor, nn

from signalprop.recurrent import record
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.fused.lstm import FusedLSTM, available

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: nothing is measured"
)

FIGURES: dict[str, Any] = {}
SIZES = [(512, 64, 256), (1024, 16, 768)]
DTYPES = ["float16", "bfloat16", "float32", "tf32"]
ROUNDS = 15


@pytest.fixture(scope="module", autouse=True)
def _kept() -> Any:
    yield
    if FIGURES:
        keep("recurrent_gpu", FIGURES)


def _timed(call: Callable[[], Any]) -> float:
    """Milliseconds between two events on the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _peak(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_training_step(size: tuple[int, int, int], dtype: str, benchmark: Any) -> None:
    steps, rows, hidden = size
    narrow = dtype != "float32"
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = narrow
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=narrow):
            kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
            layer = nn.LSTM(hidden, hidden, device="cuda", dtype=kind)
            x = torch.randn(steps, rows, hidden, device="cuda", dtype=kind, requires_grad=True)
            figures = _measured(layer, x, torch.randn_like(x))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    FIGURES[f"T={steps} B={rows} H={hidden} {dtype}"] = figures
    benchmark.extra_info |= figures
    benchmark.pedantic(lambda: None, rounds=1)


def _measured(layer: nn.LSTM, x: Tensor, gradient: Tensor) -> dict[str, Any]:
    wanted = [x, *layer.parameters()]

    def back(output: Tensor) -> None:
        torch.autograd.grad(output, wanted, gradient)

    def recorded(deltas: Any) -> Callable[[], None]:
        def step() -> None:
            with record(layer, deltas=deltas) as seen:
                back(layer(x)[0])
            del seen

        return step

    ways: dict[str, Callable[[], None]] = {
        "cudnn": lambda: back(layer(x)[0]),
        "borders": recorded("borders"),
        "all": recorded("all"),
    }
    if available(x, layer.weight_ih_l0, layer.weight_hh_l0):
        ways["fused"] = lambda: back(_fused(layer, x))
    else:
        print("the fused layer is not available here: no Triton, or an old device")
    for call in ways.values():
        for _ in range(3):
            call()
    rounds = [{name: _timed(call) for name, call in ways.items()} for _ in range(ROUNDS)]
    found: dict[str, Any] = {"rounds": ROUNDS}
    plain = _peak(ways["cudnn"])
    for name, call in ways.items():
        found[f"{name}, ms"] = round(statistics.median(r[name] for r in rounds), 3)
        if name != "cudnn":
            ratios = [r[name] / r["cudnn"] for r in rounds]
            found[f"{name} / cudnn"] = round(statistics.median(ratios), 3)
            found[f"{name} / cudnn, memory"] = round(_peak(call) / plain, 3)
    return found


def _fused(layer: nn.LSTM, x: Tensor) -> Tensor:
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    start = x.new_zeros(x.shape[1], layer.hidden_size)
    weights = layer.weight_ih_l0, bias, layer.weight_hh_l0
    return FusedLSTM.apply(x, *weights, start, start, None, None, Deltas())[0]
