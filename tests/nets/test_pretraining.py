"""Layer-wise pre-training of ordinary networks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from signalprop.nets.autoencoder import DenoisingAutoencoder
from signalprop.nets.pretraining import pretrain
from signalprop.nets.rbm import RBM


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16.0).float(), torch.tensor(y)


def deep(depth=7, width=64, activation=nn.Sigmoid, inputs=64):
    modules = []
    for _ in range(depth):
        modules += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*modules, nn.Linear(inputs, 10))


def small(activation=nn.Sigmoid, depth=2):
    return deep(depth, 6, activation, inputs=8)


def tuned(net, x, y, steps, seed, lr=0.1):
    """Loss over all digits after some steps of ordinary training."""
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(F.cross_entropy(net(x), y))


def values(net):
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


# ---- what it is for ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", ["rbm", "autoencoder"])
def test_a_deep_sigmoid_net_learns_after_it_and_not_without(digits, method, seed):
    x, y = digits
    torch.manual_seed(seed)
    net = deep()
    done = pretrain(net, x, method, epochs=10, seed=seed)
    plain = tuned(net, x, y, 120, seed)
    cured = tuned(done.model, x, y, 120, seed)
    assert plain > 2.25  # ln 10 = 2.30 is chance
    assert cured < 1.0
    assert list(done.losses) == [str(i) for i in range(0, 14, 2)]
    assert all(losses[-1] < losses[0] for losses in done.losses.values())


def test_it_is_what_was_learnt_and_not_its_size(digits):
    """The same weights, shuffled within each layer, train no better than none."""
    x, y = digits
    cured = pretrain(deep(), x, "rbm").model
    shuffled = copy.deepcopy(cured)
    with torch.no_grad():
        for layer in list(shuffled)[:-1:2]:
            order = torch.randperm(layer.weight.numel())
            layer.weight.copy_(layer.weight.flatten()[order].view_as(layer.weight))
    assert tuned(shuffled, x, y, 150, 0) > 2 * tuned(cured, x, y, 150, 0)


# ---- what it does ------------------------------------------------------------------------------


def test_layers_are_what_the_machines_alone_learn():
    """The same by hand: an RBM on the data, its probabilities into the next one."""
    x, net = torch.rand(80, 8), small()
    got = pretrain(net, x, "rbm", epochs=3, seed=5)
    for i in range(2):
        rbm = RBM(x.shape[1], 6, seed=5 + i).match_(x)
        losses = rbm.fit(x, epochs=3, mean_field=True)
        layer = got.model[2 * i]
        assert torch.equal(layer.weight, rbm.weight)
        assert torch.equal(layer.bias, rbm.hidden_bias)
        assert got.losses[str(2 * i)] == tuple(losses)
        x = torch.sigmoid(layer(x)).detach()
    assert torch.equal(got.model[4].weight, net[4].weight)
    assert got.skipped == {"4": "the last layer, left to fine-tuning"}


def test_real_inputs_are_scaled_and_the_weights_scaled_back():
    x = 40 * torch.randn(200, 8) + 3
    spread = float(x.var(0, correction=0).mean().sqrt())
    layer = pretrain(small(nn.Tanh), x, epochs=3, layers=["0"]).model[0]
    alone = DenoisingAutoencoder(8, 6, activation=torch.tanh, inputs="real")
    alone.fit(x / spread, epochs=3)
    assert torch.allclose(layer.weight * spread, alone.weight, atol=1e-6)
    assert torch.allclose(torch.tanh(layer(x)), alone(x / spread), atol=1e-5)


class Functional(nn.Module):
    """No Sequential, functional activations, dropout and normalisation between, an unused layer."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)
        self.second = nn.Linear(6, 6, bias=False)
        self.first = nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(6)
        self.third = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)
        self.slope = nn.PReLU()
        self.unused = nn.Linear(6, 6)

    def forward(self, x):
        h = torch.sigmoid(self.drop(self.first(x)))
        h = F.relu(self.norm(self.second(h)), inplace=True)
        h = self.slope(self.third(h).flatten(1))
        return self.last(h)


def test_layers_are_found_in_order_of_execution_and_the_rest_is_kept():
    net = Functional()
    net.drop.eval()
    net(torch.rand(20, 8))
    before, modes = values(net), {n: m.training for n, m in net.named_modules()}
    done = pretrain(net, torch.rand(60, 8), epochs=2)
    assert list(done.losses) == ["first", "second", "third"]
    assert done.skipped == {
        "last": "the last layer, left to fine-tuning",
        "unused": "the pass does not reach it",
    }
    assert_equal(values(net), before)
    assert {n: m.training for n, m in done.model.named_modules()} == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in done.model.modules())
    after = values(done.model)
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed == {"first.weight", "first.bias", "second.weight", "third.weight", "third.bias"}


@pytest.mark.parametrize(
    "activation",
    """Sigmoid Tanh ReLU LeakyReLU PReLU ELU SELU GELU SiLU Softplus Softsign Hardtanh Mish
    LogSigmoid RReLU ReLU6 Hardsigmoid Hardswish Softshrink Threshold Identity""".split(),
)
def test_every_activation_is_the_models_own(activation):
    from signalprop.nets._following import following

    kind = getattr(nn, activation)
    net = small(lambda: kind(0.1, -1.0) if activation == "Threshold" else kind(), depth=1).eval()
    x = torch.randn(5, 8)
    seen = following(net, {net[0]: "0", net[2]: "2"}, x)
    z = 3 * torch.randn(7, 6)
    assert seen["0"].known
    assert torch.equal(seen["0"].apply(z.clone()), net[1](z))
    pretrain(net, x, epochs=1)


def test_methods_spelt_on_the_tensor():
    class Spelt(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            z = self.a(x)
            self.seen = z.mean()  # a statistic is no activation
            return self.c(self.b(z.sigmoid()).sigmoid_())

    done = pretrain(Spelt(), torch.rand(30, 8), "rbm", epochs=1)
    assert list(done.losses) == ["a", "b"]


# ---- what it leaves alone ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rbm", "autoencoder"])
def test_the_original_is_untouched_bit_for_bit_and_a_seed_decides(method):
    net, x = small(), torch.rand(50, 8)
    net(x).sum().backward()
    before, grads, state = values(net), [p.grad for p in net.parameters()], torch.get_rng_state()
    a, b = (pretrain(net, x, method, epochs=2, seed=3) for _ in range(2))
    other = pretrain(net, x, method, epochs=2, seed=4)
    g = torch.Generator().manual_seed(0)
    c = pretrain(net, x, method, epochs=2, generator=g)
    d = pretrain(net, x, method, epochs=2, generator=g.manual_seed(0))
    assert_equal(values(net), before)
    assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(values(a.model), values(b.model))
    assert_equal(values(c.model), values(d.model))
    assert a.losses == b.losses != other.losses
    assert a.model is not net


def test_in_place_changes_the_model_given():
    net, x = small(), torch.rand(50, 8)
    parameters = list(net.parameters())
    elsewhere = pretrain(net, x, epochs=2)
    done = pretrain(net, x, epochs=2, inplace=True)
    assert done.model is net
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert_equal(values(net), values(elsewhere.model))


def test_in_place_changes_nothing_where_it_fails():
    net, x = small(), torch.rand(50, 8)
    before = values(net)

    def stop(name, epoch, loss):
        if name == "2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(net, x, epochs=2, inplace=True, progress=stop)
    assert_equal(values(net), before)


def test_frozen_tied_repeated_and_convolutions_are_skipped_and_reported():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, padding=1)
            self.frozen, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.again, self.held, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.frozen.requires_grad_(False)
            self.held.bias.requires_grad_(False)

        def forward(self, x):
            x = torch.sigmoid(self.frozen(self.conv(x[:, None])[:, 0]))
            x = torch.sigmoid(self.b(torch.sigmoid(self.a(x))))
            x = torch.sigmoid(self.again(torch.sigmoid(self.again(x))))
            return self.head(torch.sigmoid(self.held(x)))

    net = Odd()
    done = pretrain(net, torch.rand(40, 8), "rbm", epochs=2)
    assert list(done.losses) == ["a", "held"]
    assert "frozen" in done.skipped["frozen"]
    assert "'a.weight'" in done.skipped["b"]
    assert "2 times" in done.skipped["again"]
    assert "convolution" in done.skipped["conv"]
    assert done.model.b.weight is done.model.a.weight
    assert torch.equal(done.model.held.bias, net.held.bias)
    for name in ("frozen", "again", "conv", "head"):
        assert_equal(values(done.model.get_submodule(name)), values(net.get_submodule(name)))


def test_layers_by_name_weight_norm_dtypes_and_loaders():
    x = torch.rand(50, 8)
    done = pretrain(small(depth=3), x, "rbm", epochs=1, layers=["2"])
    assert list(done.losses) == ["2"]
    assert done.skipped["0"] == "not chosen"
    head = pretrain(small(), x, epochs=1, layers=["0", "4"])  # the head as a linear autoencoder
    assert list(head.losses) == ["0", "4"]
    normed = small()
    parametrizations.weight_norm(normed[0])
    assert torch.allclose(
        pretrain(normed, x, epochs=1).model[0].weight,
        pretrain(small(), x, epochs=1).model[0].weight,
        atol=1e-6,
    )
    assert pretrain(small().double(), x, epochs=1).model[0].weight.dtype == torch.float64
    assert pretrain(small().bfloat16(), x, "rbm", epochs=1).model[0].weight.dtype == torch.bfloat16
    loader = DataLoader(TensorDataset(x, torch.zeros(50)), batch_size=16)
    net = small()
    assert_equal(
        values(pretrain(net, loader, epochs=1).model), values(pretrain(net, x, epochs=1).model)
    )


def test_token_wise_layers_see_every_position_as_a_sample():
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(10, 4, 8)
    a = pretrain(net, x, epochs=2).model
    b = pretrain(net, x.flatten(0, 1), epochs=2).model
    assert torch.equal(a[0].weight, b[0].weight)


def test_progress_is_told():
    told = []
    done = pretrain(
        small(), torch.rand(30, 8), epochs=2, progress=lambda n, e, x: told.append((n, e, x))
    )
    assert told == [(n, e, x) for n, all_ in done.losses.items() for e, x in enumerate(all_)]


# ---- what it refuses ---------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        z = self.a(x)
        return self.b(z * torch.sigmoid(z))


def test_bad_input_is_one_sentence():
    x, net = torch.rand(30, 8), small()
    with pytest.raises(ValueError, match='followed by relu, but method "rbm" needs a sigmoid'):
        pretrain(small(nn.ReLU), x, "rbm")
    with pytest.raises(ValueError, match=r"layer 'a' \(mul and sigmoid\) is no activation"):
        pretrain(Gated(), x)
    with pytest.raises(ValueError, match="no linear layer '9' in the model"):
        pretrain(net, x, layers=["9"])
    with pytest.raises(ValueError, match=r"linear layer '1' in the model \(it is Sigmoid\)"):
        pretrain(net, x, layers=["1"])
    with pytest.raises(ValueError, match="no layer to pre-train"):
        pretrain(nn.Linear(8, 2), x)
    with pytest.raises(ValueError, match="holds no linear layer"):
        pretrain(nn.ReLU(), x)
    with pytest.raises(ValueError, match="cannot be called with these samples"):
        pretrain(net, torch.rand(30, 9))
    with pytest.raises(ValueError, match="inf or nan"):
        pretrain(net, torch.full((3, 8), math.inf))
    with pytest.raises(ValueError, match=r"layer '0': binary units need values in \[0, 1\]"):
        pretrain(net, 3 * x, inputs="binary")
    with pytest.raises(ValueError, match="the same for all samples"):
        pretrain(net, torch.full((30, 8), 7.0))
    with pytest.raises(ValueError, match="layer '0': learning diverged"):
        pretrain(net, torch.randn(300, 8) * 9, "rbm", lr=1e9, epochs=30)
    with pytest.raises(ValueError, match='"rbm" or "autoencoder"'):
        pretrain(net, x, "pca")
    with pytest.raises(ValueError, match="corruption is one of"):
        pretrain(net, x, corruption="blur")
    with pytest.raises(ValueError, match="no shape yet"):
        pretrain(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), x)
    with pytest.raises(TypeError, match="int64"):
        pretrain(net, torch.ones(3, 8, dtype=torch.long))
    with pytest.raises(TypeError, match="module"):
        pretrain(torch.relu, x)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        pretrain(net, x)
    with pytest.raises(TypeError, match="batches"):
        pretrain(net, [1, 2])
