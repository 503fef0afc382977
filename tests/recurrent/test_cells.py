"""Cells by themselves: gradients, and gradients of gradients."""

import pytest
import torch

from signalprop.recurrent.cells.gru import GRU
from signalprop.recurrent.cells.lstm import LSTM
from signalprop.recurrent.cells.products import Product, sigmoids
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.cells.rnn import RNN
from signalprop.recurrent.compiled.loops import LIBRARY

MASK = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)[..., None]


def some(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


CELLS = {
    "lstm": (
        lambda m, *a: LSTM.apply(*a, None, m, Deltas()),
        lambda: (some(4, 3, 2), some(16, 2), some(16), some(16, 4), some(3, 4), some(3, 4)),
    ),
    "projected": (
        lambda m, *a: LSTM.apply(*a[:2], None, *a[2:], m, Deltas()),
        lambda: (
            some(4, 3, 2), some(16, 2), some(16, 2), some(3, 2), some(3, 4), some(2, 4),
        ),
    ),
    "gru": (
        lambda m, *a: GRU.apply(*a, m, Deltas()),
        lambda: (some(4, 3, 2), some(12, 2), some(12), some(12, 4), some(12), some(3, 4)),
    ),
    "gru without a bias": (
        lambda m, a, b, c, d: GRU.apply(a, b, None, c, None, d, m, Deltas()),
        lambda: (some(4, 3, 2), some(12, 2), some(12, 4), some(3, 4)),
    ),
    "tanh": (
        lambda m, *a: RNN.apply(*a, m, False, Deltas()),
        lambda: (some(4, 3, 2), some(4, 2), some(4), some(4, 4), some(3, 4)),
    ),
    "relu": (
        lambda m, *a: RNN.apply(*a, m, True, Deltas()),
        lambda: (some(4, 3, 2), some(4, 2), some(4), some(4, 4), some(3, 4)),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, params=["pure", "compiled"])
def _way(request, monkeypatch):
    monkeypatch.setenv("SIGNALPROP_COMPILED", "0" if request.param == "pure" else "1")
    if request.param == "compiled" and LIBRARY.get() is None:
        pytest.skip(LIBRARY.status())


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "ended"])
@pytest.mark.parametrize("name", CELLS)
def test_gradients_and_theirs(name, mask):
    function, inputs = CELLS[name]
    given = inputs()
    assert torch.autograd.gradcheck(lambda *a: function(mask, *a), given)
    assert torch.autograd.gradgradcheck(lambda *a: function(mask, *a), given)


@pytest.mark.parametrize("name", CELLS)
def test_backward_twice(name):
    function, inputs = CELLS[name]
    given = inputs()
    output = function(None, *given)[0].square().sum()
    first = torch.autograd.grad(output, given, retain_graph=True)
    second = torch.autograd.grad(output, given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("rows", [4, 32])
def test_products(rows):
    W, x = torch.randn(24, 16), torch.randn(rows, 16)
    product, y = Product(W, rows), torch.randn(rows, 24)
    assert torch.allclose(product(x), x @ W.t(), atol=1e-5)
    assert torch.allclose(product.added(x, y.clone()), y + x @ W.t(), atol=1e-5)
    assert torch.allclose(Product(W.t(), rows)(y), y @ W, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_part_gets_tanh_and_the_rest_sigmoid(dtype):
    x = torch.randn(5, 12).to(dtype)
    x[0] *= 1e-2  # small ones keep the digits of their type
    exact = x.double().sigmoid()
    exact[:, 6:9] = x[:, 6:9].double().tanh()
    sigmoids(x, x[:, 6:9], x.new_full((), -1))
    few = dtype == torch.bfloat16
    digits = torch.finfo(dtype).eps
    assert torch.allclose(x.double(), exact, rtol=2 * digits, atol=0 if few else 2 * digits)


def test_a_sum_goes_where_it_is_told():
    W, x, y = torch.randn(4, 3), torch.randn(2, 3), torch.randn(1, 4).expand(2, 4)
    before, into = y.clone(), torch.empty(2, 4)
    assert Product(W, 2).added(x, y, into) is into
    assert torch.allclose(into, y + x @ W.t(), atol=1e-6)
    assert torch.equal(y, before)
