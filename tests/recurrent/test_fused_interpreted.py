"""The fused LSTM in Triton's interpreter; `test_fused.py` runs this file where Triton is at hand.

The interpreter runs the programs of a grid one after the other, so a grid whose programs wait for
each other is run here by one process per program, over shared memory.
"""

import multiprocessing
import os
import time
from dataclasses import replace

import pytest
import torch

from signalprop.recurrent.cells.lstm import LSTM
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.fused import deal as dealing
from signalprop.recurrent.fused.lstm import FusedLSTM, available

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1; test_fused.py runs it so", allow_module_level=True)

ROOM = 1 << 20
NAMES = "h h_T c_T dx dW_ih db dW_hh dh_0 dc_0 dL/dh dL/dc gates".split()
# one slice, not full; one, full; two slices and two blocks of rows; three slices
SIZES = [(5, 3, 5), (3, 2, 16), (2, 17, 20), (2, 2, 40)]


def given(steps, rows, hidden):
    x, W_ih, b = torch.randn(steps, rows, 3), torch.randn(4 * hidden, 3), torch.randn(4 * hidden)
    W_hh = torch.randn(4 * hidden, hidden) / hidden**0.5
    return [x, W_ih, b, W_hh, torch.randn(rows, hidden), torch.randn(rows, hidden)]


def ended(steps, rows):
    lengths = torch.arange(rows) % (steps + 1)  # the first has ended before it began
    return (torch.arange(steps)[:, None] < lengths)[..., None]


def gradients(tensors, dtype):
    *_, h, c = tensors
    steps = len(tensors[0])
    torch.manual_seed(1)
    return [torch.randn(*s).to(dtype) for s in ((steps, *h.shape), h.shape, c.shape)]


def everything(function, tensors, mask, dtype):
    """Results, gradients and what was written down."""
    own = [x.to(dtype).detach().requires_grad_() for x in tensors]
    deltas = Deltas()
    made = function.apply(*own, None, mask, deltas)
    grads = torch.autograd.grad(made, own, gradients(tensors, dtype))
    assert deltas.mask is mask
    found = (*made, *grads, deltas.h, deltas.c, deltas.gates)
    assert all(x.dtype == dtype for x in found)
    return found


def same(found, expected, rtol):
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.shape == b.shape, name
        assert (a.double() - b).norm() <= rtol * b.norm(), name


CASES = [(size, masked, torch.float32, 1e-6) for size in SIZES for masked in (False, True)]
CASES += [(size, True, torch.float16, 2e-3) for size in SIZES[1:3]]


@pytest.mark.parametrize(("size", "masked", "dtype", "rtol"), CASES, ids=str)
def test_as_the_cells_in_float64(size, masked, dtype, rtol):
    tensors, mask = given(*size), ended(*size[:2]) if masked else None
    assert available(*(tensors[i].to(dtype) for i in (0, 1, 3)))
    same(
        everything(FusedLSTM, tensors, mask, dtype),
        everything(LSTM, tensors, mask, torch.float64),
        rtol,
    )


def test_weights_that_do_not_fit_are_read_again(monkeypatch):
    kept = everything(FusedLSTM, tensors := given(2, 2, 24), None, torch.float32)
    deal = dealing.deal

    def tight(*args, **kwargs):
        found = deal(*args, **kwargs | {"room": 0})
        assert not found.keep
        return found

    monkeypatch.setattr(dealing, "deal", tight)
    read = everything(FusedLSTM, tensors, None, torch.float32)
    same(read, [x.double() for x in kept], 1e-6)


def test_a_device_with_less_room_than_it_said(monkeypatch):
    from triton.runtime.errors import OutOfResources

    from signalprop.recurrent.fused import kernels

    class Small:
        """A kernel that is told of too little room as long as it holds its weights."""

        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*args, KEEP, **kwargs):
                if KEEP:
                    raise OutOfResources(2, 1, "shared memory")
                return self.kernel[grid](*args, KEEP=KEEP, **kwargs)

            return launch

    expected = everything(FusedLSTM, tensors := given(2, 2, 24), None, torch.float32)
    for which in ("forward", "backward"):
        monkeypatch.setattr(kernels, which, Small(getattr(kernels, which)))
    found = everything(FusedLSTM, tensors, None, torch.float32)
    same(found, [x.double() for x in expected], 1e-6)


def test_step_by_step_is_the_same_to_the_bit(monkeypatch):
    tensors, mask = given(4, 3, 16), ended(4, 3)
    together = everything(FusedLSTM, tensors, mask, torch.float16)
    deal = dealing.deal
    monkeypatch.setattr(dealing, "deal", lambda *a, **k: replace(deal(*a, **k), together=False))
    single = everything(FusedLSTM, tensors, mask, torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(together, single, strict=True))


def test_more_rows_in_a_program(monkeypatch):
    monkeypatch.setattr(dealing, "ROWS", (64,))
    tensors = given(2, 65, 16)
    same(
        everything(FusedLSTM, tensors, None, torch.float32),
        everything(LSTM, tensors, None, torch.float64),
        1e-6,
    )


def test_anything_but_contiguous():
    x, W_ih, _, W_hh, h, c = given(3, 4, 6)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1), W_ih.t().contiguous().t()]
    turned += [W_hh.t().contiguous().t(), h[:1].expand(4, -1), c.t().contiguous().t()]

    def gradients(function, dtype):
        own = [t.detach().to(dtype).requires_grad_() for t in turned]
        made = function.apply(*own[:2], None, *own[2:], None, None, Deltas())[0]
        # the gradient of a sum is one number, expanded
        return torch.autograd.grad(made.sum(), own)

    for a, b in zip(
        gradients(FusedLSTM, torch.float32), gradients(LSTM, torch.float64), strict=True
    ):
        assert torch.allclose(a.double(), b, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_way_back_in_parts(dtype, monkeypatch):
    tensors, mask = given(7, 3, 5), ended(7, 3)
    whole = everything(FusedLSTM, tensors, mask, dtype)
    monkeypatch.setattr("signalprop.recurrent.fused.lstm.STEPS", 2)  # 2, 2, 2 and 1
    parts = everything(FusedLSTM, tensors, mask, dtype)
    same(parts, [x.double() for x in whole], 1e-6 if dtype == torch.float32 else 1e-3)


def test_backward_twice_and_of_a_part():
    tensors = [x.requires_grad_() for x in given(3, 2, 5)]
    tensors[0].requires_grad_(False)
    tensors[3].requires_grad_(False)
    loss = FusedLSTM.apply(*tensors, None, None, Deltas())[0].square().sum()
    wanted = [x for x in tensors if x.requires_grad]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_of_gradients():
    tensors, mask = given(3, 2, 5), ended(3, 2)

    def twice(function, dtype):
        own = [x.to(dtype).detach().requires_grad_() for x in tensors]
        made = function.apply(*own, None, mask, Deltas())[0]
        first = torch.autograd.grad(made.square().sum(), own, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), own)

    for a, b in zip(twice(FusedLSTM, torch.float32), twice(LSTM, torch.float64), strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


def test_what_it_is_not_for():
    x, W, _, V, *_ = given(2, 2, 4)
    assert available(x, W, V)
    assert not available(x, W, V, torch.randn(2, 4))
    assert not available(x.double(), W.double(), V.double())
    assert not available(x, W, V.half())
    assert not available(x[:0], W, V)
    assert not available(x[:, :0], W, V)
    assert not available(*(t.bfloat16() for t in (x, W, V)))  # of the interpreter
    assert not available(*(t.to("meta") for t in (x, W, V)))


def _program(number, grid, kernel, tensors, rows, steps, options):
    """Run one program of a grid, as if the interpreter ran them all at once."""
    from triton.runtime import interpreter

    from signalprop.recurrent.fused import kernels

    builder = interpreter.interpreter_builder
    place, size, store = builder.set_grid_idx, builder.set_grid_dim, builder.create_masked_store
    if number == grid[0] * grid[1] - 1:  # whoever does not wait for the last is ahead of it

        def late(*args):
            time.sleep(0.003)
            return store(*args)

        builder.create_masked_store = late
    builder.set_grid_idx = lambda *_: place(number % grid[0], number // grid[0], 0)
    builder.set_grid_dim = lambda *_: size(*grid, 1)
    interpreter.GridExecutor._restore_args_dev = lambda *_: None  # they lie where they are
    getattr(kernels, kernel)[(1, 1)](*tensors, rows, 0, steps, **options)


def _at_once(kernel, tensors, mask, steps):
    """In the place of `_launch`: a process per program."""
    rows, hidden = tensors[-1].shape
    how = dealing.deal(
        rows, hidden, 4, back=kernel == "backward", processors=132, room=ROOM, twice=False
    )
    assert how.together
    counters = torch.zeros(how.grid[1], dtype=torch.int32)
    shared = [*tensors, counters if mask is None else mask.view(torch.uint8), counters]
    shared = [x.share_memory_() for x in shared]
    options = how.options() | {"H": hidden, "MASKED": mask is not None, "PRECISION": "ieee"}
    run = multiprocessing.get_context("fork").Process
    args = how.grid, kernel, shared, rows, steps, options
    programs = [run(target=_program, args=(n, *args)) for n in range(how.grid[0] * how.grid[1])]
    for program in programs:
        program.start()
    for program in programs:
        program.join(120)
    stuck = [program for program in programs if program.is_alive()]
    for program in stuck:
        program.kill()
    assert not stuck, "programs wait for each other for ever"
    assert not any(program.exitcode for program in programs)
    assert counters.tolist() == [how.grid[0] * (steps - 1)] * how.grid[1]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_programs_that_wait_for_each_other(monkeypatch):
    size = (5, 17, 20)  # two slices of the units, two blocks of rows
    tensors, mask = given(*size), ended(5, 17)
    monkeypatch.setattr("signalprop.recurrent.fused.lstm._launch", _at_once)
    same(
        everything(FusedLSTM, tensors, mask, torch.float32),
        everything(LSTM, tensors, mask, torch.float64),
        1e-6,
    )
