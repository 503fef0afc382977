"""Cures of the end of a network: what is taken off, what the loss becomes, and what stays."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES, by_name
from torch import Tensor, nn

import signalprop as sp
from signalprop.capture import batch as batches
from signalprop.cures import head, modes
from signalprop.cures.cure import Cure, DoesNotApply
from signalprop.cures.modes import again, meaning, prepared
from signalprop.cures.training import Recipe, Training, applied
from signalprop.errors import SignalpropError

CURES = [v for v in vars(head).values() if isinstance(v, Cure)]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def training(model, loss):
    return Training(model, loss, Recipe(adam))


def net(outputs, *last):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs), *last)


def batch(outputs, n=24):
    x = torch.randn(n, 6)
    return x, torch.arange(n) % outputs


def loss_of(after, data):
    b = prepared(after, data)
    return batches.loss_of(after.model(*b.args, **b.kwargs), b, after.loss)


def codes(after, data):
    found = sp.diagnose(after.model, again(prepared(after, data)), after.loss)
    return {f.code for f in found.findings}


# ---- every cure on every network -------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_on_all_networks(monkeypatch):
    """Applied, it runs with a finite loss; else a sentence; the model is never touched."""
    seen = {}

    def once(what, data):
        if case.name not in seen:
            try:
                seen[case.name] = modes.look(what, data)
            except SignalpropError as error:
                seen[case.name] = error
        if isinstance(seen[case.name], Exception):
            raise seen[case.name]
        return seen[case.name]

    monkeypatch.setattr(head, "look", once)
    count, told = 0, []
    for case in CASES:
        model, data, loss = case.build()
        if not any(p.requires_grad for p in model.parameters()):
            continue
        state = pickle.dumps(model.state_dict())
        before = training(model, loss)
        for cure in CURES:
            try:
                after = cure.treat(before, data)
            except SignalpropError as why:
                told.append(str(why))
                continue
            count += 1
            assert after.lines
            pickle.dumps((after.prepare, after.readout))
            value = loss_of(after, data)
            value.backward()
            assert torch.isfinite(value), (case.name, cure.name)
        assert pickle.dumps(model.state_dict()) == state, case.name
    assert count >= 20
    assert all(len(one) > 15 and "\n" not in one for one in told)


@pytest.mark.parametrize(
    ("case", "cure"),
    [
        ("softmax-cross-entropy", head.remove_softmax),
        ("functional-softmax-cross-entropy", head.remove_softmax),
        ("sigmoid-bce-logits", head.remove_sigmoid),
        ("relu-head", head.remove_output_activation),
        ("softmax-one-unit", head.use_bce_with_logits),
        ("sigmoid-regression", head.remove_output_activation),
        ("mse-on-class-labels", head.use_cross_entropy),
        ("labels-from-one", head.add_outputs),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_the_finding_is_gone(case, cure):
    case = by_name(case)
    model, data, loss = case.build()
    before = training(model, loss)
    try:
        assert case.expect <= codes(before, data)
    except SignalpropError:
        assert case.name == "labels-from-one"
    after = cure.treat(before, data)
    assert not case.expect & codes(after, data)
    assert set(cure.treats) & case.expect


# ---- what a loss is --------------------------------------------------------------------------


def keras_categorical(output, target):
    p = output / output.sum(-1, keepdim=True)
    return F.nll_loss(p.clamp(1e-7, 1 - 1e-7).log(), target.argmax(-1))


def keras_binary(output, target):
    return F.binary_cross_entropy(output.clamp(1e-7, 1 - 1e-7), target)


def by_hand(output, target):
    return 3 * (output - target).square().sum()


ONE_HOT = F.one_hot(torch.arange(12) % 4, 4).float()


@pytest.mark.parametrize(
    ("loss", "target", "found"),
    [
        (keras_categorical, ONE_HOT, "probability_nll"),
        (keras_binary, ONE_HOT, "binary_cross_entropy"),
        (by_hand, torch.randn(12, 4), "mse_loss"),
        (by_hand, ONE_HOT, "mse_loss"),
        (nn.L1Loss(reduction="sum"), torch.randn(12, 4), "l1_loss"),
        (F.cross_entropy, torch.arange(12) % 4, "cross_entropy"),
        (nn.CrossEntropyLoss(), ONE_HOT, "cross_entropy"),
        (F.nll_loss, torch.arange(12) % 4, "nll_loss"),
        (nn.BCEWithLogitsLoss(), ONE_HOT, "binary_cross_entropy_with_logits"),
        (nn.BCELoss(), ONE_HOT, "binary_cross_entropy"),
        (nn.HuberLoss(delta=1.0), torch.randn(12, 4), "huber_loss"),
        (lambda output, target: output.exp().mean(), ONE_HOT, None),
        (None, ONE_HOT, None),
    ],
)
def test_a_loss_is_known_by_what_it_does(loss, target, found):
    state = torch.get_rng_state()
    assert meaning(loss, torch.zeros(12, 4), target) == found
    assert torch.equal(state, torch.get_rng_state())


# ---- softmax and sigmoid ---------------------------------------------------------------------


def test_the_softmax_moves_to_the_readout():
    model, data = net(4, nn.Softmax(dim=1)), batch(4)
    after = head.remove_softmax.treat(training(model, nn.CrossEntropyLoss()), data)
    assert isinstance(after.model[3], nn.Identity)
    torch.testing.assert_close(applied(after.readout, after.model(data[0])), model(data[0]))
    assert list(after.model.state_dict()) == list(model.state_dict())
    assert after.lines == ("model.set_submodule('3', torch.nn.Identity())",)
    namespace = {"model": copy.deepcopy(model), "torch": torch}
    exec(after.lines[0], namespace)
    assert torch.equal(namespace["model"](data[0]), after.model(data[0]))


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.net, self.function = net(4), function

    def forward(self, x):
        return self.function(self.net(x))


def softmax(x):
    return x.softmax(1)


def test_a_softmax_in_forward_is_undone_by_the_loss():
    model, data = Functional(softmax).double(), batch(4)
    data = data[0].double(), data[1]
    loss = nn.CrossEntropyLoss(weight=torch.rand(4).double(), label_smoothing=0.1)
    after = head.remove_softmax.treat(training(model, loss), data)
    slow = loss(model.net(data[0]), data[1])
    torch.testing.assert_close(loss_of(after, data), slow)
    pickle.loads(pickle.dumps(after.loss))
    namespace = {"loss": loss, "torch": torch}
    exec(after.lines[0], namespace)
    torch.testing.assert_close(namespace["loss"](model(data[0]), data[1]), slow)


def test_a_softmax_that_is_used_twice_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.soft = nn.Linear(6, 6), nn.Linear(6, 4), nn.Softmax(dim=1)

        def forward(self, x):
            return self.soft(self.last(self.soft(self.first(x))))

    after = head.remove_softmax.treat(training(Shared(), F.cross_entropy), batch(4))
    assert isinstance(after.model.soft, nn.Softmax)
    assert isinstance(after.loss, head.OfLog)


def soft_in_loss(output, target):
    return F.cross_entropy(output.softmax(1), target)


def test_a_softmax_in_the_loss():
    after = head.remove_softmax.treat(training(net(4), soft_in_loss), batch(4))
    assert isinstance(after.loss, nn.CrossEntropyLoss)


def test_where_the_softmax_belongs_it_stays():
    x, y = batch(4)
    model = net(4, nn.Softmax(dim=1))
    with pytest.raises(DoesNotApply, match="belongs there"):
        head.remove_softmax.treat(training(model, keras_categorical), (x, F.one_hot(y, 4)))
    with pytest.raises(DoesNotApply, match="no softmax"):
        head.remove_softmax.treat(training(net(4), F.cross_entropy), (x, y))


def test_log_softmax_for_nll():
    x, y = batch(4)
    for model in (net(4, nn.Softmax(dim=1)), net(4), Functional(softmax)):
        after = head.use_log_softmax.treat(training(model, F.nll_loss), (x, y))
        scores = model.net(x) if isinstance(model, Functional) else model[:3](x)
        torch.testing.assert_close(loss_of(after, (x, y)), F.cross_entropy(scores, y))
        assert "SP203" not in codes(after, (x, y))
        assert set(model.state_dict()) == set(after.model.state_dict())
        pickle.dumps(after)


def test_a_sigmoid_in_forward_gets_the_loss_of_probabilities():
    x, y = batch(2)
    y = F.one_hot(y, 4).float()
    model = Functional(torch.sigmoid)
    after = head.remove_sigmoid.treat(training(model, nn.BCEWithLogitsLoss()), (x, y))
    slow = F.binary_cross_entropy_with_logits(model.net(x), y)
    torch.testing.assert_close(loss_of(after, (x, y)), slow)
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.ones(4))
    with pytest.raises(DoesNotApply, match="forward"):
        head.remove_sigmoid.treat(training(model, weighted), (x, y))


# ---- another loss ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["numbers", "column", "floats", "one-hot"])
@pytest.mark.parametrize("last", [nn.Softmax(dim=-1), nn.Sigmoid(), None])
def test_cross_entropy_for_squared_error(form, last):
    x, y = batch(4)
    target = {
        "numbers": y,
        "column": y.unsqueeze(1),
        "floats": y.float().unsqueeze(1),
        "one-hot": F.one_hot(y, 4).float(),
    }[form]
    model = net(4, *([last] if last else []))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = head.use_cross_entropy.treat(training(model, F.mse_loss), (x, target))
    slow = F.cross_entropy(model[:3](x), y)
    torch.testing.assert_close(loss_of(after, (x, target)), slow)
    if last is not None:
        scores = applied(after.readout, after.model(x))
        torch.testing.assert_close(scores.sum(1), torch.ones(len(x)))


@pytest.mark.parametrize("loss", [keras_categorical, keras_binary, F.l1_loss])
def test_losses_of_the_user_s_own(loss):
    x, y = batch(4)
    target = F.one_hot(y, 4).float()
    model = net(4, nn.Softmax(dim=-1))
    after = head.use_cross_entropy.treat(training(model, loss), (x, target))
    torch.testing.assert_close(loss_of(after, (x, target)), F.cross_entropy(model[:3](x), y))


def test_classes_on_the_last_dimension():
    x, y = torch.randn(5, 7, 6), torch.arange(35).reshape(5, 7) % 4
    model = net(4, nn.Softmax(dim=-1))
    target = F.one_hot(y, 4).float()
    after = head.use_cross_entropy.treat(training(model, F.mse_loss), (x, target))
    slow = F.cross_entropy(model[:3](x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss_of(after, (x, target)), slow)


@pytest.mark.parametrize("cure", [head.use_cross_entropy, head.use_bce_with_logits])
@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.Sigmoid(), None])
@pytest.mark.parametrize("loss", [F.mse_loss, keras_binary, F.l1_loss])
def test_one_output_for_two_classes(cure, last, loss):
    x, y = batch(2)
    model = net(1, *([last] if last else []))
    data = x, y.unsqueeze(1).float()
    after = cure.treat(training(model, loss), data)
    slow = F.binary_cross_entropy_with_logits(model[:3](x), data[1])
    torch.testing.assert_close(loss_of(after, data), slow)
    assert applied(after.readout, after.model(x)).min() > 0


def test_bce_refuses_what_it_does_not_fit():
    x, y = batch(4)
    cases = [
        (net(1), F.mse_loss, torch.randn(24, 1), "0 and 1"),
        (net(1), F.mse_loss, torch.rand(24, 1), "not 0 and 1"),
        (net(4, nn.Softmax(dim=1)), F.mse_loss, F.one_hot(y, 4).float(), "use_cross_entropy"),
        (net(1), F.binary_cross_entropy_with_logits, torch.ones(24, 1), "already"),
        (Functional(torch.tanh), keras_binary, torch.ones(24, 4), "forward"),
    ]
    for model, loss, target, told in cases:
        with pytest.raises(DoesNotApply, match=told):
            head.use_bce_with_logits.treat(training(model, loss), (x, target))


def test_several_labels_at_once():
    x = torch.randn(24, 6)
    y = (torch.rand(24, 4) > 0.3).float()
    model = net(4)
    after = head.use_bce_with_logits.treat(training(model, F.cross_entropy), (x, y))
    slow = F.binary_cross_entropy_with_logits(model(x), y)
    torch.testing.assert_close(loss_of(after, (x, y)), slow)


def test_weights_of_the_loss_stay():
    x, y = batch(4)
    weight = torch.rand(4)
    model = net(4, nn.Softmax(dim=1))
    loss = nn.NLLLoss(weight=weight, ignore_index=2)
    after = head.remove_softmax.treat(training(model, loss), (x, y))
    slow = F.cross_entropy(model[:3](x), y, weight=weight, ignore_index=2)
    torch.testing.assert_close(loss_of(after, (x, y)), slow)
    assert after.lines[1] == "loss = torch.nn.CrossEntropyLoss(weight=loss.weight, ignore_index=2)"


def test_squared_error_for_numbers():
    x, y = torch.randn(24, 6), torch.randn(24)
    model = net(1)
    after = head.use_mse.treat(training(model, F.cross_entropy), (x, y))
    torch.testing.assert_close(loss_of(after, (x, y)), F.mse_loss(model(x)[:, 0], y))
    with pytest.raises(DoesNotApply, match="as many outputs"):
        head.use_mse.treat(training(net(4), F.cross_entropy), (x, y))


# ---- activations -----------------------------------------------------------------------------


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()])
def test_a_regression_ends_linear(last):
    x = torch.randn(24, 6)
    data = x, 5 * x[:, :1]
    model = net(1, last)
    after = head.remove_output_activation.treat(training(model, F.mse_loss), data)
    assert torch.equal(after.model(x), model[:3](x))
    assert after.readout == ()
    fine = x, last(x[:, :1])
    with pytest.raises(DoesNotApply, match="within the range"):
        head.remove_output_activation.treat(training(model, F.mse_loss), fine)


def test_a_sigmoid_for_bce():
    x = torch.randn(24, 6)
    data = x, (x[:, :1] > 0).float()
    for model in (net(1), Functional(lambda z: z[:, :1])):
        before = training(model, nn.BCEWithLogitsLoss())
        after = head.add_sigmoid.function(Training(model, keras_binary, before.optimizer), data)
        torch.testing.assert_close(after.model(x), torch.sigmoid(model(x)))
        assert set(after.model.state_dict()) == set(model.state_dict())
    with pytest.raises(DoesNotApply, match="already"):
        head.add_sigmoid.treat(training(net(1, nn.Sigmoid()), nn.BCELoss()), data)


# ---- more outputs ----------------------------------------------------------------------------


def test_old_outputs_stay():
    x, y = batch(7)
    model = net(4)
    torch.manual_seed(5)
    after = head.add_outputs.treat(training(model, F.cross_entropy), (x, y))
    out = after.model(x)
    assert out.shape == (24, 7)
    torch.testing.assert_close(out[:, :4], model(x))
    new = after.model[2]
    assert new.out_features == 7
    assert float(new.weight[4:].detach().abs().max()) <= 1 / 4
    assert float(new.weight[4:].detach().std()) == pytest.approx(0.25 / 3**0.5, rel=0.3)
    torch.manual_seed(5)
    again_ = head.add_outputs.treat(training(model, F.cross_entropy), (x, y))
    assert torch.equal(again_.model[2].weight, new.weight)


def test_outputs_of_a_convolution():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    data = torch.randn(2, 3, 5, 5), torch.randint(4, (2, 5, 5))
    after = head.add_outputs.treat(training(model, F.cross_entropy), data)
    assert after.model(data[0]).shape == (2, 4, 5, 5)
    assert after.model[2].out_channels == 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(4, 6), nn.Linear(6, 4, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x))


def test_outputs_that_are_refused():
    x, y = batch(4)
    cases = [
        (net(4), F.cross_entropy, (x, y), "fits"),
        (net(4), F.cross_entropy, (x, torch.where(y == 1, 255, y)), "set_ignore_index"),
        (net(4), nn.CrossEntropyLoss(weight=torch.ones(4)), (x, y + 3), "weight"),
        (net(4), F.cross_entropy, (x, y * 3 - 2), "below 0"),
        (Tied(), F.cross_entropy, (y, y + 3), "shared"),
        (net(4), F.mse_loss, (x, torch.randn(24, 4)), "no class numbers"),
    ]
    for model, loss, data, told in cases:
        with pytest.raises(DoesNotApply, match=told):
            head.add_outputs.treat(training(model, loss), data)


def test_what_the_user_has_is_never_touched():
    model, data = net(4, nn.Softmax(dim=1)), batch(4)
    loss = nn.CrossEntropyLoss()
    before = copy.deepcopy(model)
    for cure in CURES:
        with contextlib.suppress(SignalpropError):
            cure(training(model, loss), data)
    assert str(before) == str(model)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_outputs_that_are_no_tensor():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(4, nn.Softmax(dim=1))

        def forward(self, x) -> tuple[Tensor, Tensor]:
            out = self.net(x)
            return out, out

    def first(output, target):
        return F.cross_entropy(output[0], target)

    for cure in CURES:
        with pytest.raises(DoesNotApply):
            cure(training(Pair(), first), batch(4))
