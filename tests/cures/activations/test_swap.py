"""Other activations: where they belong, by module or by function, and with weights to fit."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES
from tests.cures.everywhere import still_runs
from torch import nn
from torch.utils.checkpoint import checkpoint

from signalprop.cures.activations.functional import swaps
from signalprop.cures.activations.swap import (
    leaky_activation,
    self_normalize,
    shaped_activation,
    swap_activation,
)
from signalprop.cures.cure import DoesNotApply
from signalprop.diagnosis.engine import DEFAULT_RULES
from signalprop.errors import SignalpropError
from signalprop.nets.shaping import TailoredReLU, tailored_slope

ALL = (swap_activation, leaky_activation, shaped_activation, self_normalize)
NAMED = {"ids": lambda x: x.name}
X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def types(model):
    return [type(m).__name__ for m in model]


@pytest.mark.parametrize("cure", ALL, **NAMED)
def test_it_treats_what_the_rules_say(cure):
    named = {f.rule.code for f in DEFAULT_RULES if cure.name in f.rule.cures}
    assert set(cure.treats) == named


@pytest.mark.parametrize("cure", [*ALL, swap_activation.with_options(to="prelu")], ids=str)
def test_every_case_runs_after_it_or_is_refused_in_a_sentence(cure):
    done, said = 0, []
    for case in CASES[::3]:
        model, batch, loss = case.build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                new = cure(model, batch)
            except SignalpropError as error:
                said.append(str(error))
                continue
            if case.health != "odd":
                still_runs(case, new, batch, loss)
        done += 1
    assert done > 2
    assert all(len(sentence) > 15 for sentence in said)


def test_hidden_modules_are_replaced_and_the_output_is_not():
    model = nn.Sequential(
        nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.ReLU(inplace=True),
        nn.Linear(16, 3), nn.Sigmoid(),
    )  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    new = swap_activation(model, X, to="leaky", initialise=False)
    assert types(new)[1::2] == ["LeakyReLU", "LeakyReLU", "Sigmoid"]
    assert [getattr(m, "inplace", None) for m in new[1::2]] == [False, True, None]
    assert same(before, model.state_dict())
    assert same(before, new.state_dict())
    assert types(model)[1::2] == ["Sigmoid", "ReLU", "Sigmoid"]
    for which in ("sigmoid", nn.Sigmoid, ["sigmoid", nn.Tanh]):
        new = swap_activation(model, X, to="relu", which=which)
        assert types(new)[1::2] == ["ReLU", "ReLU", "Sigmoid"]
    assert swap_activation(model, X, inplace=True) is model


@pytest.mark.parametrize(
    ("to", "squared"),
    [("relu", 2.0), ("leaky", 2 / 1.0001), ("selu", 1.0), ("tanh", 1.0), ("gelu", 2.35)],
)
def test_weights_in_front_are_drawn_for_the_new_one(to, squared):
    model = nn.Sequential(nn.Linear(400, 400), nn.Sigmoid(), nn.Linear(400, 5))
    new = swap_activation(model, torch.randn(4, 400), to=to)
    assert float(new[0].weight.detach().var()) * 400 == pytest.approx(squared, rel=0.03)
    assert not new[0].bias.any()
    assert torch.equal(new[2].weight, model[2].weight)


class Calls(nn.Module):
    """Functions of all kinds of calls, a gate, and a part of its own."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = (nn.Linear(16, 16) for _ in range(5))
        self.part = part

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.relu_(self.b(x))
        y = x = self.part(x)
        x = F.relu(self.c(x), inplace=True)
        x = x * torch.sigmoid(self.d(y))
        return self.head(x.relu()).relu()


def reference(model, phi, x):
    x = phi(model.b(phi(model.a(x))))
    y = model.part(x)
    x = phi(model.c(y)) * torch.sigmoid(model.d(y))
    return model.head(phi(x)).relu()


def test_functions_are_replaced_while_the_forward_runs():
    torch.manual_seed(0)
    model = Calls(nn.Linear(16, 16))
    new = swap_activation(model, X, to="silu", initialise=False)
    assert same(model.state_dict(), new.state_dict())
    assert type(new) is Calls
    assert torch.allclose(new(X), reference(model, F.silu, X), atol=1e-6)
    assert torch.allclose(model(X), reference(model, F.relu, X), atol=1e-6)
    assert swaps(model) == {}
    assert "relu" in swaps(new)[""]
    assert "SiLU" in swaps(new)[""]
    # the gradient too, through what is overwritten in place
    for net, value in ((new, new(X)), (model, reference(model, F.silu, X))):
        net.zero_grad()
        value.square().sum().backward()
    for p, q in zip(new.parameters(), model.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-5)


class Part(nn.Module):
    def forward(self, x):
        return F.relu(x) if x.sum() > 1e9 else torch.relu(x) + 1


def test_only_calls_of_that_very_forward_are_replaced():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.inner, self.b = nn.Linear(16, 16), Part(), nn.Linear(16, 16)

        def forward(self, x):
            return self.b(torch.tanh(self.inner(self.a(x))))

    model = Outer()
    new = swap_activation(model, X, to="elu", which="tanh", initialise=False)
    wanted = model.b(F.elu(torch.relu(model.a(X)) + 1))
    assert torch.allclose(new(X), wanted, atol=1e-6)


def test_the_swap_survives_pickling_copies_and_errors():
    model = Calls(nn.Linear(16, 16))
    new = swap_activation(model, X, to="selu")
    file = io.BytesIO()
    torch.save(new, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(X), new(X))
    assert torch.equal(copy.deepcopy(new)(X), new(X))
    with pytest.raises(RuntimeError):
        new(torch.randn(3, 5))
    assert (F.relu(X) >= 0).all()  # nothing is left on
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.equal(loaded(X), new(X))


def test_learned_slopes_of_functions_are_weights():
    new = swap_activation(Calls(nn.Linear(16, 16)), X, to="prelu")
    assert [k for k in new.state_dict() if "swapped" in k] == ["swapped_relu.weight"]
    new(X).sum().backward()
    assert new.swapped_relu.weight.grad is not None


class Checkpointed(nn.Module):
    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))
        self.inside = inside
        self.block = Block()

    def part(self, x):
        return F.relu(self.a(x))

    def forward(self, x):
        run = self.part if self.inside else self.block
        return self.c(checkpoint(run, self.b(x), use_reentrant=False))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return self.fc(F.relu(self.fc(x)))


def test_what_is_recomputed_is_replaced_again_or_refused():
    model = Checkpointed(inside=False)
    new = swap_activation(model, X, to="gelu", initialise=False)
    plain = model.c(model.block.fc(F.gelu(model.block.fc(model.b(X)))))
    assert torch.allclose(new(X), plain, atol=1e-6)
    new(X).square().sum().backward()
    plain.square().sum().backward()
    assert torch.allclose(new.b.weight.grad, model.b.weight.grad, atol=1e-5)
    with pytest.raises(DoesNotApply, match="checkpoint"):
        swap_activation(Checkpointed(inside=True), X)


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()], ids=str)
def test_an_encoder_layer_swaps_on_its_fast_path_too(activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, activation=activation, batch_first=True)
    model, x = nn.Sequential(layer, nn.Linear(16, 4)), torch.randn(2, 5, 16)
    new = swap_activation(model, x, to="tanh", initialise=False)
    training = new(x).detach()
    with torch.no_grad():
        assert torch.allclose(new.eval()(x), training, atol=1e-5)
        assert not torch.allclose(model.eval()(x), training, atol=1e-3)


def test_gates_attention_and_recurrent_layers_stay():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h, self.t, self.head = (nn.Linear(16, 16) for _ in range(3))
            self.gate, self.act = nn.Sigmoid(), nn.ReLU()
            self.rnn = nn.RNN(16, 16)

        def forward(self, x):
            t = self.gate(self.t(x))
            return self.head(self.rnn(t * self.act(self.h(x)) + (1 - t) * x)[0])

    new = swap_activation(Gated(), X)
    assert type(new.gate) is nn.Sigmoid
    assert type(new.act) is nn.LeakyReLU
    with pytest.raises(DoesNotApply, match="there are relu, sigmoid"):
        swap_activation(Gated(), X, which="tanh")
    with pytest.raises(DoesNotApply, match="no elementwise"):
        swap_activation(nn.Sequential(nn.Linear(16, 4)), X)
    with pytest.raises(DoesNotApply, match="already"):
        swap_activation(nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 4)), X, to="relu")


def test_bad_options_are_said():
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 4))
    for options in ({"to": "spline"}, {"to": "selu", "slope": 0.1}):
        with pytest.raises(SignalpropError):
            swap_activation(model, X, **options)
    with pytest.raises(SignalpropError, match="slope"):
        leaky_activation(model, X, slope=0)
    with pytest.raises(SignalpropError, match="eta"):
        shaped_activation(model, X, eta=1.0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SignalpropError, match="raised on the batch"):
        swap_activation(model, torch.randn(3, 5), inplace=True)
    assert same(before, model.state_dict())
    assert type(model[1]) is nn.ReLU


def test_leaky():
    model = nn.Sequential(
        nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4), nn.Tanh(), nn.Linear(4, 4)
    )
    new = leaky_activation(model, torch.randn(3, 400), slope=0.3)
    assert new[1].negative_slope == 0.3
    assert type(new[3]) is nn.Tanh
    assert float(new[0].weight.detach().var()) * 400 == pytest.approx(2 / 1.09, rel=0.03)
    learned = leaky_activation(model.double(), torch.randn(3, 400).double(), learn=True)[1]
    assert learned.weight.item() == pytest.approx(0.1)
    assert learned.weight.dtype == torch.float64


def test_self_normalising_keeps_mean_and_variance():
    layers = []
    for _ in range(20):
        layers += [nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.1)]
    model = nn.Sequential(nn.BatchNorm1d(256), *layers, nn.Linear(256, 3))
    torch.manual_seed(0)
    x = torch.randn(128, 256)
    new = self_normalize(model, x)
    assert types(new)[:5] == ["BatchNorm1d", "Linear", "Identity", "SELU", "AlphaDropout"]
    assert new[4].p == 0.1
    h = new.eval()[:-1](x).detach()
    assert abs(float(h.mean())) < 0.1
    assert 0.7 < float(h.var()) < 1.4
    conv = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(64, 2)
    )
    assert type(self_normalize(conv, torch.randn(3, 2, 6, 6))[2]) is nn.FeatureAlphaDropout


def test_functional_dropout_becomes_alpha_dropout():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 5000), nn.Linear(5000, 2)

        def forward(self, x):
            self.kept = F.dropout(F.relu(self.a(x)), 0.5, self.training)
            return self.b(self.kept)

    new = self_normalize(Net(), X)
    new(X)
    # alpha dropout sets to a negative value and keeps mean and variance; dropout sets to zero
    assert float((new.kept == 0).float().mean()) == 0
    assert new.kept.detach().var() == pytest.approx(1, abs=0.4)


def test_shaped_for_its_depth():
    layers = [p for _ in range(20) for p in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 3))
    new = shaped_activation(model, torch.randn(4, 64))
    assert {type(m) for m in new[1:-1:2]} == {TailoredReLU}
    assert {m.negative_slope for m in new[1:-1:2]} == {tailored_slope(20)}
    with pytest.raises(DoesNotApply, match="out of reach"):
        shaped_activation(nn.Sequential(*layers[:2], nn.Linear(64, 3)), torch.randn(4, 64))

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            x = self.a(x)
            return self.b(x + F.relu(x))

    for cure in (shaped_activation, self_normalize):
        with pytest.raises(DoesNotApply, match="branches are added"):
            cure(Skip(), X)


def test_it_runs_compiled():
    new = swap_activation(Calls(nn.Linear(16, 16)), X, to="silu")
    wanted = new(X).detach()
    compiled = torch.compile(copy.deepcopy(new), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(compiled(X), wanted, atol=1e-6)
