"""Cures of the targets: every step against what is written out by hand."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES, by_name
from torch import nn

import signalprop as sp
from signalprop.capture import batch as batches
from signalprop.cures.cure import Cure, DoesNotApply
from signalprop.cures.program import seen as seeing
from signalprop.cures.program import targets
from signalprop.cures.program.seen import again, prepared
from signalprop.cures.training import Recipe, Training, applied
from signalprop.errors import LossError, SignalpropError

CURES = [v for v in vars(targets).values() if isinstance(v, Cure)]
X = torch.arange(96.0).reshape(16, 6).sin()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def training(loss, outputs=1, *last):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs), *last)
    return Training(model, loss, Recipe(adam))


def target_of(cure, before, y, x=X):
    """The target after a cure, and the changed training."""
    after = cure.treat(before, (x, y))
    again_ = pickle.loads(pickle.dumps(after.prepare))
    return applied(again_, ((x,), {}, y))[2], after


def loss_of(after, data):
    b = prepared(after, data)
    return batches.loss_of(after.model(*b.args, **b.kwargs), b, after.loss)


@pytest.mark.filterwarnings("ignore")
def test_on_all_networks(monkeypatch):
    seen = {}

    def once(what, data):
        if case.name not in seen:
            try:
                seen[case.name] = seeing.look(what, data)
            except SignalpropError as error:
                seen[case.name] = error
        if isinstance(seen[case.name], Exception):
            raise seen[case.name]
        return seen[case.name]

    monkeypatch.setattr(targets, "look", once)
    count, told = 0, []
    for case in CASES:
        model, data, loss = case.build()
        if not any(p.requires_grad for p in model.parameters()):
            continue
        state = pickle.dumps(model.state_dict())
        before = Training(model, loss, Recipe(adam))
        for cure in CURES:
            try:
                after = cure.treat(before, data)
            except SignalpropError as why:
                told.append(str(why))
                continue
            count += 1
            assert after.lines
            assert torch.isfinite(loss_of(after, data)), (case.name, cure.name)
        assert pickle.dumps(model.state_dict()) == state, case.name
    assert count >= 5
    assert all(len(one) > 15 and "\n" not in one for one in told)


@pytest.mark.parametrize(
    ("case", "cure"),
    [
        ("broadcast-silent", targets.match_target_shape),
        ("broadcast-mse", targets.match_target_shape),
        ("sigmoid-regression", targets.scale_targets),
        ("labels-from-one", targets.shift_labels),
        ("labels-plus-minus-one", targets.use_zero_one_labels),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_the_finding_is_gone(case, cure):
    case = by_name(case)
    model, data, loss = case.build()
    after = cure.treat(Training(model, loss, Recipe(adam)), data)
    found = sp.diagnose(after.model, again(prepared(after, data)), after.loss).findings
    assert not case.expect & {f.code for f in found}
    assert set(cure.treats) & case.expect


# ---- shape and dtype -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_shapes():
    y = torch.randn(16)
    new, after = target_of(targets.match_target_shape, training(F.mse_loss), y)
    assert torch.equal(new, y[:, None])
    assert after.lines == ("target = target.reshape(-1, 1)",)
    # batches of another size
    assert applied(after.prepare, ((), {}, y[:5]))[2].shape == (5, 1)

    labels = torch.arange(16)[:, None] % 4
    new, after = target_of(targets.match_target_shape, training(F.cross_entropy, 4), labels)
    assert torch.equal(new, labels[:, 0])

    one = torch.randn(16, 1)
    new, _ = target_of(targets.match_target_shape, training(F.mse_loss, 3), one)
    assert torch.equal(new, one.repeat(1, 3))


def test_classes_on_the_last_dimension():
    x, y = torch.randn(5, 7, 6), torch.randint(4, (5, 7))
    before = training(nn.CrossEntropyLoss(), 4)
    after = targets.match_target_shape.treat(before, (x, y))
    slow = F.cross_entropy(before.model(x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss_of(after, (x, y)), slow)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("loss", "outputs", "y", "told"),
    [
        (F.mse_loss, 1, torch.randn(16, 1), "same shape"),
        (F.mse_loss, 1, torch.randn(16, 5), "as many outputs"),
        (F.mse_loss, 1, torch.randn(9, 1), "different numbers of samples"),
        (F.cross_entropy, 4, torch.arange(16) % 4, "fit"),
        (F.mse_loss, 4, (torch.arange(16.0) % 4)[:, None], "cross_entropy"),
    ],
)
def test_shapes_that_are_refused(loss, outputs, y, told):
    with pytest.raises(DoesNotApply, match=told):
        targets.match_target_shape.treat(training(loss, outputs), (X, y))


def test_dtypes():
    whole = (torch.arange(16) % 4).float()
    new, _ = target_of(targets.cast_targets, training(F.cross_entropy, 4), whole)
    assert new.dtype == torch.int64
    one_hot = F.one_hot(whole.long(), 4)
    before = training(F.cross_entropy, 4)
    new, after = target_of(targets.cast_targets, before, one_hot)
    assert new.dtype == torch.float32
    slow = F.cross_entropy(before.model(X), whole.long())
    torch.testing.assert_close(loss_of(after, (X, one_hot)), slow)
    ints = (torch.arange(16) % 2)[:, None]
    loss = F.binary_cross_entropy_with_logits
    assert target_of(targets.cast_targets, training(loss), ints)[0].dtype == torch.float32
    for loss, outputs, y in [
        (F.cross_entropy, 4, whole + 0.5),
        (F.cross_entropy, 4, whole.long()),
        (F.mse_loss, 1, torch.randn(16, 1)),
    ]:
        with pytest.raises(DoesNotApply):
            targets.cast_targets.treat(training(loss, outputs), (X, y))


# ---- labels ----------------------------------------------------------------------------------


def test_labels_are_shifted():
    y = torch.arange(16) % 4 + 1
    new, after = target_of(targets.shift_labels, training(F.cross_entropy, 4), y)
    assert torch.equal(new, y - 1)
    # a metric sees the user's own labels
    scores = F.one_hot(y - 1, 4).float()
    assert torch.equal(applied(after.readout, scores).argmax(1), y)

    y = torch.arange(16) % 4 - 1
    new, after = target_of(targets.shift_labels, training(F.cross_entropy, 4), y)
    assert torch.equal(new, y + 1)
    assert after.lines == ("target = target + 1",)

    y = torch.arange(16) % 4 + 1
    y[3] = -100
    new, _ = target_of(targets.shift_labels, training(F.cross_entropy, 4), y)
    assert new[3] == -100
    assert torch.equal(new[:3], y[:3] - 1)


@pytest.mark.parametrize(
    ("y", "told"),
    [
        (torch.arange(16) % 4, "fit 4 outputs"),
        (torch.arange(16) % 6, "more outputs"),
        (torch.full((16,), -100), "ignored value"),
    ],
)
def test_labels_that_are_not_shifted(y, told):
    with pytest.raises(DoesNotApply, match=told):
        targets.shift_labels.treat(training(F.cross_entropy, 4), (X, y))


@pytest.mark.parametrize("pair", [(-1, 1), (1, 2), (0, 255)])
def test_two_labels_become_zero_and_one(pair):
    low, high = pair
    ones = (torch.arange(16) % 2)[:, None].float()
    y = low + (high - low) * ones
    loss = F.binary_cross_entropy_with_logits
    new, after = target_of(targets.use_zero_one_labels, training(loss), y)
    assert torch.equal(new, ones)
    namespace = {"target": y}
    exec(after.lines[0], namespace)
    assert torch.equal(namespace["target"], ones)
    with pytest.raises(DoesNotApply, match="already"):
        targets.use_zero_one_labels.treat(training(loss), (X, ones))
    three = (torch.arange(16) % 3)[:, None].float()
    with pytest.raises(DoesNotApply, match="different labels"):
        targets.use_zero_one_labels.treat(training(loss), (X, three))


def test_signs():
    y = (torch.arange(16) % 2)[:, None].float()
    new, _ = target_of(targets.use_sign_labels, training(F.soft_margin_loss), y)
    assert torch.equal(new, 2 * y - 1)
    for loss, other in ((F.soft_margin_loss, 2 * y - 1), (F.mse_loss, y)):
        with pytest.raises(DoesNotApply):
            targets.use_sign_labels.treat(training(loss), (X, other))


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_a_label_is_left_out(loss):
    y = torch.arange(16) % 4
    marked = y.clone()
    marked[::5] = 255
    before = training(loss, 4)
    after = targets.set_ignore_index.treat(before, (X, marked))
    kept = marked != 255
    slow = loss(before.model(X[kept]), y[kept])
    torch.testing.assert_close(loss_of(after, (X, marked)), slow)
    with pytest.raises(DoesNotApply, match="0 different"):
        targets.set_ignore_index.treat(before, (X, y))
    with pytest.raises(DoesNotApply, match="start at 1"):
        targets.set_ignore_index.treat(before, (X, y + 1))
    with pytest.raises(LossError, match="every label"):
        targets.set_ignore_index.treat(before, (X, torch.full_like(y, 255)))


# ---- scale -----------------------------------------------------------------------------------


def test_targets_are_standardised_per_column():
    y = torch.randn(16, 2) * torch.tensor([100.0, 0.01]) + torch.tensor([5.0, 1.0])
    new, after = target_of(targets.scale_targets, training(F.mse_loss, 2), y)
    torch.testing.assert_close(new.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(new.std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(applied(after.readout, new), y)
    with pytest.raises(DoesNotApply, match="already"):
        targets.scale_targets.treat(training(F.mse_loss, 2), (X, new))


@pytest.mark.parametrize(
    ("last", "low", "high"),
    [(nn.Sigmoid(), 0.1, 0.9), (nn.Tanh(), -0.8, 0.8), (nn.ReLU(), 0.0, 1e9)],
)
def test_targets_come_into_the_range_of_the_activation(last, low, high):
    y = 40 * torch.randn(16, 1) - 7
    new, after = target_of(targets.scale_targets, training(F.mse_loss, 1, last), y)
    assert float(new.min()) >= low - 1e-4
    assert float(new.max()) <= high + 1e-4
    torch.testing.assert_close(applied(after.readout, new), y)


def test_a_constant_column_and_what_is_refused():
    y = torch.cat([torch.full((16, 1), 3.0), torch.randn(16, 1) * 50], 1)
    new, after = target_of(targets.scale_targets, training(F.mse_loss, 2), y)
    assert bool(new.isfinite().all())
    torch.testing.assert_close(applied(after.readout, new), y)
    with pytest.raises(DoesNotApply, match="no regression"):
        targets.scale_targets.treat(training(F.cross_entropy, 4), (X, torch.arange(16) % 4))
    y[0, 0] = torch.nan
    with pytest.raises(DoesNotApply, match="not finite"):
        targets.scale_targets.treat(training(F.mse_loss, 2), (X, y))
