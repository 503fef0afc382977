"""The Jacobian as an operator against torch.func, for every kind of operation in between."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import jacobian_twin as twin
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.jacobian.operator import Dense, End, Jacobian

# torch.func loads the compiler, which warns at itself
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (2, 9)).transpose(1, 2).chunk(3, -1)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Softmax(nn.Module):
    def forward(self, x):
        return torch.softmax(x @ x.mT, -1) @ x


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x):
        return x + self.branch(x)


class EncoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return self.layer(x)


def mlp(*between):
    return nn.Sequential(nn.Linear(6, 7), *between, nn.Linear(7, 4))


FLAT, IMAGE, TOKENS = (3, 6), (2, 4, 5, 5), (2, 4, 6)
NETWORKS = {
    "linear": (lambda: mlp(), FLAT),
    "relu": (lambda: mlp(nn.ReLU()), FLAT),
    "relu-in-place": (lambda: mlp(nn.ReLU(inplace=True)), FLAT),
    "tanh": (lambda: mlp(nn.Tanh(), nn.Linear(7, 7), nn.Tanh()), FLAT),
    "wider-than-it-came": (lambda: nn.Sequential(nn.Linear(6, 30), nn.SiLU()), FLAT),
    "conv": (lambda: nn.Sequential(nn.Conv2d(4, 3, 3, 2), nn.SELU()), IMAGE),
    "max-pool": (lambda: nn.Sequential(nn.Conv2d(4, 3, 2), nn.MaxPool2d(2)), IMAGE),
    "group-norm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)), IMAGE),
    "layer-norm": (lambda: mlp(nn.LayerNorm(7), nn.GELU()), FLAT),
    "softmax-attention": (Softmax, TOKENS),
    "fused-attention": (Attention, TOKENS),
    "encoder-layer": (EncoderLayer, TOKENS),
    "residual": (Residual, FLAT),
    "batch-norm-eval": (lambda: mlp(nn.BatchNorm1d(7)).eval(), FLAT),
    "flatten-middle": (
        lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(18, 5)),
        IMAGE,
    ),
}


def operator_of(function, x, batch_dim=0, **options):
    x = x.detach().clone().requires_grad_()
    y = function(x * 1)
    return Jacobian(End.at("out", y, batch_dim), End.at("in", x, batch_dim), **options)


def dense_both_ways(op):
    """J by J^T u and by J v."""
    eye = lambda n: torch.eye(n, dtype=torch.float64).expand(op.batch, n, n)  # noqa: E731
    return op.adjoint(eye(op.rows)).mT.double().numpy(), op.apply(eye(op.columns)).double().numpy()


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_jacobian(name, chunk):
    build, shape = NETWORKS[name]
    model = build().double()
    x = torch.randn(shape, dtype=torch.float64)
    expected = twin.by_jacrev(model, x)
    op = operator_of(model, x)
    op._at_once = chunk
    for found in dense_both_ways(op):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["rnn", "tokens"])
def test_samples_in_dimension_one(kind):
    if kind == "rnn":
        cell = nn.RNN(3, 5).double()
        function = lambda x: cell(x)[0]  # noqa: E731
        x = torch.randn(4, 2, 3, dtype=torch.float64)
    else:
        model = Residual().double()
        function, x = model, torch.randn(4, 3, 6, dtype=torch.float64)
    expected = twin.by_loop(function, x, batch_dim=1)
    for found in dense_both_ways(operator_of(function, x, batch_dim=1)):
        np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision(dtype, close):
    model = mlp(nn.Tanh()).double()
    x = torch.randn(FLAT).to(dtype)
    expected = twin.by_jacrev(model, x.double())
    op = operator_of(model.to(dtype), x)
    assert op.adjoint(torch.ones(3, 4, 2)).dtype == torch.float32
    for found in dense_both_ways(op):
        np.testing.assert_allclose(found, expected, atol=close)


def test_ends_of_different_dtypes():
    model = nn.Linear(6, 4)
    function = lambda x: model(x.float()).to(torch.bfloat16)  # noqa: E731
    op = operator_of(function, torch.randn(3, 6).double())
    assert op.dtype == torch.bfloat16
    for found in dense_both_ways(op):
        np.testing.assert_allclose(found, model.weight.detach().expand(3, 4, 6).numpy(), atol=4e-3)


def test_between_two_inner_tensors_and_in_place_damage_later():
    first, second = nn.Linear(5, 6).double(), nn.Linear(6, 4).double()
    a = first(torch.randn(2, 5).double())
    b = second(torch.sin(a))
    of, wrt = End.at("b", b), End.at("a", a)
    b.mul_(7)  # after it was seen
    expected = twin.by_jacrev(lambda t: second(torch.sin(t)), a.detach())
    for found in dense_both_ways(Jacobian(of, wrt)):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("batch_dim", [0, 1, 2])
@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=3, max_size=4), r=st.integers(0, 3))
def test_tensors_and_vectors_are_inverses(batch_dim, sizes, r):
    end = End.at("x", torch.randn(sizes, requires_grad=True), batch_dim)
    tensors = torch.randn(r, *sizes)
    vectors = end.vectors(tensors)
    assert vectors.shape == (end.batch, end.size, r)
    assert torch.equal(end.tensors(vectors), tensors)
    assert torch.equal(end.vectors(end.tensors(vectors)), vectors)
    for i in range(end.batch):
        for j in range(r):
            expected = tensors[j].select(batch_dim, i).reshape(-1)
            assert torch.equal(vectors[i, :, j], expected)


def test_dense_is_itself():
    J = torch.randn(2, 3, 4)
    assert torch.equal(Dense(J).apply(torch.eye(4).expand(2, 4, 4)), J)
    assert torch.equal(Dense(J).adjoint(torch.eye(3).expand(2, 3, 3)), J.mT)
    assert Dense(J.bfloat16()).apply(torch.ones(2, 4, 1)).dtype == torch.float32


# ---- no path, one by one, impossible ---------------------------------------------------------


def test_a_path_that_does_not_exist_is_zero():
    x = torch.randn(2, 3, requires_grad=True)
    a, b = x * 2, x * 3
    for found in dense_both_ways(Jacobian(End.at("a", a), End.at("b", b))):
        assert found.shape == (2, 3, 3)
        assert not found.any()


def test_a_dead_network_is_zero():
    op = operator_of(lambda x: torch.relu(x - 100), torch.randn(2, 3))
    for found in dense_both_ways(op):
        assert not found.any()


class Numpy(torch.autograd.Function):
    """A backward that a batch of vectors cannot go through, but that can be differentiated."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, g):
        Numpy.calls += 1
        if not torch.is_grad_enabled():
            g.sum().item()  # not under vmap
        return 2 * ctx.saved_tensors[0] * g


def test_one_by_one_where_a_batch_is_refused():
    model = mlp(nn.Tanh()).double()
    function = lambda x: model(Numpy.apply(x))  # noqa: E731
    x = torch.randn(FLAT, dtype=torch.float64)
    expected = twin.by_loop(function, x)
    op = operator_of(function, x)
    for found in dense_both_ways(op):
        np.testing.assert_allclose(found, expected, atol=1e-11)
    before = Numpy.calls
    op.adjoint(torch.ones(3, 4, 5))
    assert Numpy.calls == before + 5  # it does not try the batch again


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * g


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, g):
        return 3 * g.detach()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside-a-skip"])
@pytest.mark.parametrize("kind", [Once, Hidden])
def test_a_backward_that_cannot_be_differentiated(kind, beside):
    function = lambda x: kind.apply(x) + (x if beside else 0)  # noqa: E731
    op = operator_of(function, torch.randn(2, 3))
    expected = (3 + beside) * torch.eye(3).expand(2, 3, 3)
    assert torch.equal(op.adjoint(torch.eye(3).expand(2, 3, 3)), expected)
    for _ in range(2):
        with pytest.raises(SignalpropError, match="Jacobian from in to out cannot be taken"):
            op.apply(torch.eye(3).expand(2, 3, 3))


def test_fused_attention_says_what_is_missing():
    x = torch.randn(2, 1, 8, 4)
    op = operator_of(lambda t: F.scaled_dot_product_attention(t, t, t), x)
    with pytest.raises(SignalpropError, match=r"from in to out cannot be taken: .*attention"):
        op.apply(torch.randn(2, 32, 2))
    op.adjoint(torch.randn(2, 32, 2))


def test_a_freed_graph():
    x = torch.randn(2, 3, requires_grad=True)
    y = x.exp()
    op = Jacobian(End.at("y", y), End.at("x", x))
    y.sum().backward()
    with pytest.raises(SignalpropError, match="from x to y cannot be taken"):
        op.adjoint(torch.ones(2, 3, 2))


def test_ends_that_do_not_belong_together():
    x = torch.randn(2, 3, requires_grad=True)
    end = End.at("x", x)
    with pytest.raises(SignalpropError, match="2 samples on cpu, y 3"):
        Jacobian(End.at("y", x.T * 1), end)
    with pytest.raises(SignalpropError, match="complex64"):
        Jacobian(End.at("z", torch.fft.fft(x)), end)
    with pytest.raises(SignalpropError, match="not connected"):
        End.at("w", torch.ones(2, 3))


# ---- nothing else is touched -----------------------------------------------------------------


def test_gradients_random_state_and_graph_are_left_alone():
    model = mlp(nn.Tanh())
    x = torch.randn(FLAT, requires_grad=True)
    y = model(x)
    state = torch.random.get_rng_state()
    op = Jacobian(End.at("y", y), End.at("x", x))
    dense_both_ways(op)
    assert torch.equal(state, torch.random.get_rng_state())
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    y.sum().backward()  # the graph is still there


def test_chunks_follow_the_widest_tensor_in_between():
    narrow = operator_of(nn.Linear(6, 4), torch.randn(FLAT), budget=1 << 13)
    model = nn.Sequential(nn.Linear(6, 600), nn.ReLU(), nn.Linear(600, 4))
    wide = operator_of(model, torch.randn(FLAT), budget=1 << 13)
    assert narrow._at_once > 10
    assert wide._at_once == 1


def test_memory_is_bounded_by_the_budget():
    width, depth, budget = 64, 8, 1 << 20
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.Tanh())]
    op = operator_of(nn.Sequential(*layers), torch.randn(16, width), budget=budget)
    vectors = torch.randn(16, width, 512)

    def extra(call):
        with torch.profiler.profile(profile_memory=True) as profile:
            call()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return peak

    own = vectors.numel() * 4
    for call in (lambda: op.adjoint(vectors), lambda: op.apply(vectors)):
        call()
        assert extra(call) < budget + 4 * own
    assert math.isclose(op._at_once, budget / (8 * 16 * width * 4))
