"""The fused LSTM on a CUDA device: what the interpreter cannot show, above all the meetings."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from signalprop.recurrent.cells.lstm import LSTM
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.fused import deal as dealing
from signalprop.recurrent.fused.lstm import FusedLSTM, available

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton"),
]

NAMES = "h h_T c_T dx dW_ih db dW_hh dh_0 dc_0 dL/dh dL/dc gates".split()
# the last two are those that are measured, with fewer steps
SIZES = [(1, 1, 1), (7, 3, 5), (30, 33, 100), (40, 100, 256), (64, 64, 256), (64, 16, 768)]
TYPES = [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]


def given(steps, rows, hidden):
    shapes = (steps, rows, 24), (4 * hidden, 24), (4 * hidden,), (4 * hidden, hidden)
    x, W_ih, b, W_hh, h, c = (
        torch.randn(*s, device="cuda") for s in (*shapes, (rows, hidden), (rows, hidden))
    )
    return [x, W_ih / 5, b, W_hh / hidden**0.5, h, c]


def ended(steps, rows):
    lengths = torch.arange(rows, device="cuda") % (steps + 1)  # the first: before it began
    return (torch.arange(steps, device="cuda")[:, None] < lengths)[..., None]


def everything(function, tensors, mask, dtype):
    own = [x.to(dtype).detach().requires_grad_() for x in tensors]
    deltas = Deltas()
    made = function.apply(*own, None, mask, deltas)
    torch.manual_seed(1)
    seeds = [torch.randn(x.shape, device="cuda").to(dtype) for x in made]
    grads = torch.autograd.grad(made, own, seeds)
    return (*made, *grads, deltas.h, deltas.c, deltas.gates)


def same(found, expected, rtol):
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert (a.double() - b.double()).norm() <= rtol * b.double().norm(), name


@pytest.fixture
def exact():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "ended"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), TYPES, ids=str)
def test_as_the_cells_in_float64(size, masked, dtype, rtol):
    tensors, mask = given(*size), ended(*size[:2]) if masked else None
    assert available(*(tensors[i].to(dtype) for i in (0, 1, 3)))
    # what is rounded on the way in is no error of the layer
    tensors = [x.to(dtype) for x in tensors]
    same(
        everything(FusedLSTM, tensors, mask, dtype),
        everything(LSTM, tensors, mask, torch.float64),
        rtol,
    )


def test_narrow_products_where_they_are_allowed(exact):
    tensors = given(20, 16, 256)
    expected = everything(LSTM, tensors, None, torch.float64)
    same(everything(FusedLSTM, tensors, None, torch.float32), expected, 1e-5)
    torch.backends.cuda.matmul.allow_tf32 = True
    found = everything(FusedLSTM, tensors, None, torch.float32)
    same(found, expected, 1e-2)
    assert (found[0].double() - expected[0]).norm() > 1e-5 * expected[0].norm()


@pytest.mark.usefixtures("exact")
def test_as_cudnn():
    layer = torch.nn.LSTM(24, 256, device="cuda")
    x = torch.randn(100, 16, 24, device="cuda", requires_grad=True)
    wanted = [x, layer.weight_ih_l0, layer.weight_hh_l0]
    with torch.backends.cudnn.flags(allow_tf32=False):
        output, _ = layer(x)
        expected = torch.autograd.grad(output.square().sum(), wanted)
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    zeros, weights = torch.zeros(16, 256, device="cuda"), (layer.weight_ih_l0, bias)
    weights = *weights, layer.weight_hh_l0
    own = FusedLSTM.apply(x, *weights, zeros, zeros, None, None, Deltas())[0]
    assert (own - output).norm() <= 1e-5 * output.norm()
    for a, b in zip(torch.autograd.grad(own.square().sum(), wanted), expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("size", [(512, 64, 256), (512, 16, 768)], ids=str)
def test_nobody_is_ahead(size):
    """A program that goes on too early reads what is not there yet: now and then, so many times."""
    tensors, mask = given(*size), ended(*size[:2])
    first = everything(FusedLSTM, tensors, mask, torch.float16)
    for _ in range(20):
        again = everything(FusedLSTM, tensors, mask, torch.float16)
        # not the gradients of weights: torch may sum them in another order
        for name, a, b in zip(NAMES, first, again, strict=True):
            assert name.startswith(("dW", "db")) or torch.equal(a, b), name


@pytest.mark.parametrize("size", [(33, 16, 256), (17, 64, 768)], ids=str)
def test_step_by_step_is_the_same(size, monkeypatch):
    tensors = given(*size)
    together = everything(FusedLSTM, tensors, None, torch.float16)
    deal = dealing.deal
    monkeypatch.setattr(dealing, "deal", lambda *a, **k: replace(deal(*a, **k), together=False))
    single = everything(FusedLSTM, tensors, None, torch.float16)
    same(single, together, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_weights_that_do_not_fit_are_read_again(dtype, monkeypatch):
    tensors = given(9, 16, 256)
    kept = everything(FusedLSTM, tensors, None, dtype)
    deal = dealing.deal
    monkeypatch.setattr(dealing, "deal", lambda *a, **k: deal(*a, **k | {"room": 0}))
    same(everything(FusedLSTM, tensors, None, dtype), kept, 1e-2)


def test_more_programs_than_the_device_has_room_for():
    tensors = given(3, 2048, 512)
    same(
        everything(FusedLSTM, tensors, None, torch.float16),
        everything(LSTM, [x.half() for x in tensors], None, torch.float64),
        1e-2,
    )


def test_on_a_stream_of_its_own():
    tensors = given(50, 16, 256)
    first = everything(FusedLSTM, tensors, None, torch.float16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        own = everything(FusedLSTM, tensors, None, torch.float16)
    stream.synchronize()
    assert torch.equal(first[0], own[0])
