"""Initial weights against what each rule promises, and what must stay as it was."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from signalprop.nets.initialise import (
    delta_orthogonal_,
    glorot_,
    he_,
    lecun_,
    lsuv_,
    orthogonal_,
)

ALL = [delta_orthogonal_, glorot_, he_, lecun_, orthogonal_]


def everything(model):
    """Values, modes, hooks and gradients of a model, for bitwise comparison."""
    values = {k: v.detach().clone() for k, v in model.state_dict().items()}
    rest = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), list(m._forward_hooks))
        for m in model.modules()
    ]
    return values, rest, [(p.requires_grad, p.grad) for p in model.parameters()]


def assert_same(a, b):
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    assert a[1:] == b[1:]


# ---- variances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["normal", "uniform"])
@pytest.mark.parametrize(
    ("rule", "variance"),
    [
        (lambda w, s: lecun_(w, shape=s, gain=1.5), 2.25 / (40 * 9)),
        (lambda w, s: glorot_(w, shape=s), 2 / (9 * 40 + 9 * 90)),
        (lambda w, s: he_(w, shape=s, slope=0.5), 2 / (1.25 * 40 * 9)),
    ],
)
def test_variance_is_as_the_paper_says(rule, variance, shape):
    w = rule(torch.empty(90, 40, 3, 3, dtype=torch.float64), shape)
    assert float(w.var()) == pytest.approx(variance, rel=0.03)
    kurtosis = float((w**4).mean() / (w**2).mean() ** 2)
    assert kurtosis == pytest.approx(3.0 if shape == "normal" else 1.8, rel=0.03)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(300, 200),
        nn.Conv1d(64, 96, 5, groups=4, padding=2, padding_mode="circular"),
        nn.Conv2d(24, 40, 3, stride=2),
        nn.Conv3d(10, 32, 3),
        nn.ConvTranspose1d(60, 30, 4, stride=2),
        nn.ConvTranspose2d(48, 24, 4, stride=2, groups=3),
        nn.ConvTranspose3d(24, 16, 2, stride=2),
    ],
)
def test_he_conserves_the_mean_square_behind_a_rectifier(layer):
    sides = () if isinstance(layer, nn.Linear) else (12,) * (layer.weight.dim() - 2)
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    border = 3 if "Transpose" in type(layer).__name__ else None  # less comes in there
    inner = tuple(slice(border, border and -border) for _ in sides)
    squares = []
    for _ in range(40):
        he_(layer)
        y = layer(torch.randn(4, inputs, *sides).relu()).detach()
        squares.append(float(y[(slice(None), slice(None), *inner)].square().mean()))
    assert not layer.bias.any()
    # E relu(z)^2 = 1/2, so that the output has mean square 1 again
    assert sum(squares) / 40 == pytest.approx(1.0, rel=0.05)


def test_glorot_uniform_is_the_papers_normalized_initialisation():
    w = glorot_(torch.empty(500, 300), shape="uniform")
    bound = math.sqrt(6 / 800)
    assert 0.99 * bound < float(w.max()) <= bound


# ---- orthogonal --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(6, 6), (9, 4), (4, 9), (8, 2, 3), (3, 5, 2, 2), (12, 2, 2, 2, 1)]
)
def test_orthogonal_matrices(size):
    w = orthogonal_(torch.empty(size, dtype=torch.float64), gain=1.3).flatten(1)
    s = torch.linalg.svdvals(w)
    assert torch.allclose(s, torch.full_like(s, 1.3), atol=1e-12)


def test_orthogonal_matrices_are_uniform():
    """Haar: E Q = 0 and E (tr Q)^2 = 1; QR without its signs fixed gives a negative diagonal."""
    g = torch.Generator().manual_seed(1)
    Q = torch.stack([orthogonal_(torch.empty(3, 3), generator=g) for _ in range(4000)])
    assert Q.mean(0).abs().max() < 0.05
    trace = Q.diagonal(dim1=1, dim2=2).sum(1)
    assert float(trace.square().mean()) == pytest.approx(1.0, abs=0.1)


def test_a_groups_kernel_is_orthogonal_by_itself():
    layer = orthogonal_(nn.Conv2d(8, 12, 3, groups=4))
    for part in layer.weight.detach().chunk(4):
        assert torch.allclose(part.flatten(1) @ part.flatten(1).T, torch.eye(3), atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_delta_orthogonal_convolution_is_an_isometry(dims, transposed, groups):
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    layer = kind(4, 8, 3, padding=1, groups=groups).double()
    delta_orthogonal_(layer, gain=0.7)
    x = torch.randn(2, 4, *(5,) * dims, dtype=torch.float64)
    J = torch.func.jacrev(lambda v: layer(v.view(1, *x.shape[1:])).flatten())(x[0].flatten())
    s = torch.linalg.svdvals(J)
    assert torch.allclose(s, torch.full_like(s, 0.7), atol=1e-12)
    assert int((layer.weight != 0).sum()) <= 4 * 8 // groups


def test_delta_orthogonal_needs_width_and_a_kernel():
    with pytest.raises(ValueError, match=r"at least as many outputs as inputs, got 4 .* and 3"):
        delta_orthogonal_(torch.empty(3, 4, 3))
    with pytest.raises(ValueError, match="use orthogonal_ for matrices"):
        delta_orthogonal_(torch.empty(4, 4))
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 2, 3))
    before = everything(net)
    with pytest.raises(ValueError, match="layer '1'"):
        delta_orthogonal_(net)
    assert_same(everything(net), before)  # the first layer was done before the second failed


def test_delta_orthogonal_leaves_linear_layers_alone():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    head = net[2].weight.detach().clone()
    delta_orthogonal_(net)
    assert torch.equal(net[2].weight, head)
    assert int((net[0].weight != 0).sum()) == 4


# ---- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALL)
def test_a_generator_decides(rule):
    make = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    state = torch.get_rng_state()
    a, b = (rule(torch.empty(6, 4, 3), generator=make()) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(rule(torch.empty(6, 4, 3)), a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rule", ALL)
def test_every_dtype(rule, dtype):
    w = rule(torch.empty(4, 4, 3, dtype=dtype))
    assert w.dtype == dtype
    assert bool(torch.isfinite(w).all())


def test_frozen_shared_and_biases():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(4, 4), shared, shared, nn.Linear(4, 4))
    net[0].requires_grad_(False)
    net[3].weight = shared.weight
    before = copy.deepcopy(net)
    he_(net, zero_bias=False)
    assert torch.equal(net[0].weight, before[0].weight)
    assert net[3].weight is shared.weight
    assert not torch.equal(shared.weight, before[1].weight)
    assert torch.equal(shared.bias, before[1].bias)
    with pytest.raises(ValueError, match="frozen"):
        he_(net[0])


@pytest.mark.parametrize("rule", [he_, orthogonal_, glorot_])
def test_weight_norm_takes_the_weight_on(rule):
    layer = parametrizations.weight_norm(nn.Linear(6, 5))
    plain = nn.Linear(6, 5)
    rule(layer, generator=torch.Generator().manual_seed(0))
    rule(plain, generator=torch.Generator().manual_seed(0))
    assert parametrize.is_parametrized(layer, "weight")
    assert torch.allclose(layer.weight, plain.weight, atol=1e-6)


def test_spectral_norm_says_that_it_cannot():
    layer = parametrizations.spectral_norm(nn.Linear(6, 5))
    before = everything(layer)
    with pytest.raises(ValueError, match=r"_SpectralNorm.*cannot take on this weight"):
        he_(layer, gain=3.0)
    assert_same(everything(layer), before)


def test_bad_targets():
    with pytest.raises(TypeError, match="tensor or a module, got list"):
        he_([1.0])
    with pytest.raises(TypeError, match="floating"):
        he_(torch.zeros(3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        he_(torch.zeros(3))
    with pytest.raises(ValueError, match="no layer"):
        he_(nn.ReLU())
    with pytest.raises(ValueError, match="no shape yet"):
        he_(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ValueError, match="finite"):
        he_(torch.empty(3, 3), gain=math.nan)
    with pytest.raises(ValueError, match='"normal" or "uniform"'):
        he_(torch.empty(3, 3), shape="cauchy")


# ---- LSUV --------------------------------------------------------------------------------------


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(6 * 64, 20),
        nn.Sigmoid(),
        nn.Linear(20, 5),
    )


def outputs(net, x):
    """Each layer's output, seen by a second, independent way."""
    seen = {}
    handles = [
        m.register_forward_hook(lambda m, a, y, n=n: seen.setdefault(n, y.detach().clone()))
        for n, m in net.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    ]
    net(x)
    for h in handles:
        h.remove()
    return seen


@pytest.mark.parametrize("training", [False, True])
def test_lsuv_gives_every_layer_unit_variance_and_touches_nothing_else(training):
    net, x = cnn().train(training), 3 * torch.randn(64, 1, 4, 4)
    calls = []
    net[3].register_forward_hook(lambda m, a, y: calls.append(1))
    (net(x).sum()).backward()
    grads = [p.grad for p in net.parameters()]
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    state = torch.get_rng_state()
    with torch.random.fork_rng():
        before = {n: float(y.var(correction=0)) for n, y in outputs(copy.deepcopy(net), x).items()}
    done = lsuv_(net, x, tol=0.01)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(done.layers) == ["0", "3", "7", "9"]
    assert done.skipped == {}
    assert all(torch.equal(v, buffers[k]) for k, v in net.named_buffers())
    assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True))
    assert net.training is training
    assert len(net[3]._forward_hooks) == 1
    assert not any(m._forward_hooks for m in (net[0], net[7], net[9]))
    for name, y in outputs(net, x).items():
        layer = done.layers[name]
        assert layer.before == pytest.approx(before[name], rel=1e-4)
        assert layer.after == pytest.approx(float(y.var(correction=0)), rel=1e-4)
        assert layer.converged
        assert abs(layer.after - 1) < 0.01
    W = net[9].weight.detach()
    s = torch.linalg.svdvals(W)
    assert torch.allclose(s, s[0].expand_as(s), rtol=1e-4)  # orthonormal times one number


def test_lsuv_brings_the_signal_through_sixty_layers():
    """Sixty tanh layers of the default initialisation lose the signal; after LSUV they do not."""
    net = nn.Sequential(*(m for _ in range(60) for m in (nn.Linear(32, 32), nn.Tanh())))
    x = torch.randn(128, 32)
    before = float(net(x).detach().var(0).mean())
    lsuv_(net, x)
    after = float(net(x).detach().var(0).mean())
    assert before < 1e-12
    assert after > 0.1


def test_lsuv_starts_from_the_weights_when_asked():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(200, 8)
    old = net[0].weight.detach().clone()
    lsuv_(net, x, orthonormal_start=False, tol=0.01)
    ratio = net[0].weight.detach() / old
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)
    for name in ("0", "2"):
        assert float(outputs(net, x)[name].var(correction=0)) == pytest.approx(1, abs=0.01)


def test_lsuv_reports_a_bias_that_it_cannot_outweigh():
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(-5, 5, 8))
    done = lsuv_(layer, torch.randn(100, 8), orthonormal_start=False, max_iterations=3)
    assert not done.layers[""].converged
    assert done.layers[""].iterations == 3


class Odd(nn.Module):
    """Layers that are shared, frozen, dead, unused, tied to an embedding, called twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.twice.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.dead = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, *, scale):
        x = self.embed(tokens) * scale
        x = self.twice(x) + self.twice(x).tanh() + self.tied(x) + self.frozen(x)
        return self.head(x + self.dead(torch.zeros_like(x)))


def test_lsuv_says_what_it_skips_and_leaves_that_as_it_was():
    net = Odd()
    before = copy.deepcopy(net)
    done = lsuv_(net, {"tokens": torch.arange(11)[None], "scale": 2.0})
    assert list(done.layers) == ["twice"]
    assert "weight is that of 'twice'" in done.skipped["tied"]
    assert "frozen" in done.skipped["frozen"]
    assert "constant" in done.skipped["dead"]
    assert "does not reach" in done.skipped["unused"]
    assert "embed.weight" in done.skipped["head"]
    for name in ("embed", "frozen", "dead", "unused", "head"):
        old, new = before.get_submodule(name), net.get_submodule(name)
        assert all(
            torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)
        )
    assert net.tied.weight is net.twice.weight


def test_lsuv_scales_through_weight_norm_and_refuses_spectral_norm():
    x = torch.randn(200, 8)
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))
    done = lsuv_(net, x)
    assert all(layer.converged for layer in done.layers.values())
    assert list(done.layers) == ["0", "2"]
    net = nn.Sequential(nn.Linear(8, 8), parametrizations.spectral_norm(nn.Linear(8, 8)))
    before = everything(net)
    with pytest.raises(ValueError, match="layer '1' cannot take on"):
        lsuv_(net, 9 * x, orthonormal_start=False)
    assert_same(everything(net), before)
    assert "excluded" in lsuv_(net, x, exclude=["1"]).skipped["1"]


def test_lsuv_is_undone_when_something_raises():
    class Fails(nn.Sequential):
        runs = 0

        def forward(self, x):
            self.runs += 1
            if self.runs > 1:
                raise RuntimeError("once is enough")
            return super().forward(x)

    net = Fails(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    before = everything(net)
    with pytest.raises(ValueError, match="cannot be called with this batch: once is enough"):
        lsuv_(net, torch.randn(9, 4))
    assert_same(everything(net), before)


def test_lsuv_refuses_what_it_cannot_do():
    net = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="cannot be called"):
        lsuv_(net, torch.randn(9, 5))
    with pytest.raises(ValueError, match="inf or nan"):
        lsuv_(net, torch.full((9, 4), math.nan))
    with pytest.raises(ValueError, match="no linear or convolution layer 'x'"):
        lsuv_(net, torch.randn(9, 4), exclude=["x"])
    with pytest.raises(ValueError, match="holds no linear"):
        lsuv_(nn.ReLU(), torch.randn(9, 4))
    with pytest.raises(TypeError, match="module"):
        lsuv_(F.relu, torch.randn(9, 4))
    with pytest.raises(ValueError, match="tol"):
        lsuv_(net, torch.randn(9, 4), tol=0)
