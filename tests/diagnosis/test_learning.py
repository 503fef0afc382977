"""The learning share against an optimizer that really steps a copy of everything."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from signalprop.diagnosis.engine import diagnose


def network():
    return nn.Sequential(
        nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)
    )


def data(dtype=torch.float32):
    return torch.randn(40, 6, dtype=dtype), torch.randint(4, (40,))


def groups(model):
    """Every layer with a learning rate of its own, the first one ten thousand times the last."""
    layers = [m for m in model if list(m.parameters())]
    return [{"params": m.parameters(), "lr": 10.0 ** -(1 + i)} for i, m in enumerate(layers)]


OPTIMIZERS = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.1),
    "sgd-nesterov": lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "sgd-decay-maximise-dampening": lambda m: optim.SGD(
        m.parameters(), lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.1
    ),
    "sgd-rate-per-layer": lambda m: optim.SGD(groups(m), momentum=0.9),
    "adam": lambda m: optim.Adam(m.parameters(), lr=1e-2),
    "adam-fused": lambda m: optim.Adam(m.parameters(), lr=1e-2, fused=True),
    "adam-tensor-rate": lambda m: optim.Adam(m.parameters(), lr=torch.tensor(1e-2)),
    "adam-amsgrad": lambda m: optim.Adam(m.parameters(), lr=1e-2, amsgrad=True),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.3),
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda m: optim.Adagrad(m.parameters(), lr=1e-2),
    "nadam": lambda m: optim.NAdam(m.parameters(), lr=1e-2),
    "radam": lambda m: optim.RAdam(m.parameters(), lr=1e-2),
    "adadelta": lambda m: optim.Adadelta(m.parameters()),
    "adamax": lambda m: optim.Adamax(m.parameters()),
    "asgd": lambda m: optim.ASGD(m.parameters(), lr=1e-2),
    "rprop": lambda m: optim.Rprop(m.parameters(), lr=1e-3),
    "lbfgs": lambda m: optim.LBFGS(m.parameters(), lr=0.1, max_iter=1),
}


def trained(make, dtype=torch.float32, steps=5):
    """A model after some real steps, its optimizer with warm state, and the batch."""
    model, batch = network().to(dtype), data(dtype)
    optimizer = make(model)

    def closure():
        optimizer.zero_grad()
        value = F.cross_entropy(model(batch[0]), batch[1])
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
    return model, optimizer, batch


def twin(model, optimizer, batch):
    """Shares and update ratios by really stepping a deep copy, in float64."""
    memo = {}
    model_copy = copy.deepcopy(model, memo)
    stepped = copy.deepcopy(optimizer, memo)
    for key, value in vars(optimizer).items():  # what deepcopy leaves out, as LBFGS's parameters
        # a schedule's wrapper around step() would step the user's optimizer
        if key != "step" and key not in vars(stepped):
            setattr(stepped, key, copy.deepcopy(value, memo))
    before = {n: p.detach().double().clone() for n, p in model_copy.named_parameters()}
    gradients = {}

    def closure():
        model_copy.zero_grad()
        value = F.cross_entropy(model_copy(batch[0]), batch[1])
        value.backward()
        gradients.update({n: p.grad.double().clone() for n, p in model_copy.named_parameters()})
        return value

    closure()
    stepped.step(closure if isinstance(optimizer, optim.LBFGS) else None)
    decrease, moved, size = {}, {}, {}
    for name, p in model_copy.named_parameters():
        layer = name.rpartition(".")[0]
        update = p.detach().double() - before[name]
        decrease[layer] = decrease.get(layer, 0.0) - float((gradients[name] * update).sum())
        moved[layer] = moved.get(layer, 0.0) + float(update.square().sum())
        size[layer] = size.get(layer, 0.0) + float(before[name].square().sum())
    total = math.fsum(decrease.values())
    shares = {layer: value / total for layer, value in decrease.items()}
    ratios = {layer: math.sqrt(moved[layer] / size[layer]) for layer in moved}
    return shares, ratios, total


def frozen_look(optimizer):
    """Everything of an optimizer that a careless step would change."""
    return copy.deepcopy(optimizer.state_dict())


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_share_and_ratio_agree_with_a_real_step(name, dtype):
    model, optimizer, batch = trained(OPTIMIZERS[name], dtype)
    shares, ratios, total = twin(model, optimizer, batch)
    learning = diagnose(model, batch, F.cross_entropy, optimizer).learning
    assert learning is not None
    assert learning.optimizer == type(optimizer).__name__
    assert math.fsum(learning.share.values()) == pytest.approx(1, abs=1e-9)
    # a float32 update is the difference of two rounded weights
    tolerance = 1e-5 if dtype is torch.float64 else 1e-3
    assert learning.share == pytest.approx(shares, rel=tolerance, abs=tolerance / 10)
    assert learning.update_ratio == pytest.approx(ratios, rel=tolerance)
    assert learning.decrease == pytest.approx(total, rel=tolerance)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_users_optimizer_is_not_touched(name):
    model, optimizer, batch = trained(OPTIMIZERS[name])
    before = frozen_look(optimizer)
    attributes = dict(vars(optimizer))
    weights = copy.deepcopy(model.state_dict())
    gradients = [p.grad for p in model.parameters()]
    kept = [g.clone() for g in gradients]
    diagnose(model, batch, F.cross_entropy, optimizer)
    assert same(before, frozen_look(optimizer))
    assert list(vars(optimizer)) == list(attributes)
    assert all(vars(optimizer)[key] is value for key, value in attributes.items())
    assert same(dict(weights), dict(model.state_dict()))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert same([p.grad for p in model.parameters()], kept)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_strong_wolfe_sees_the_real_loss():
    """With one frozen loss the line search would run to its end and shrink the step to nothing."""
    model, optimizer, batch = trained(
        lambda m: optim.LBFGS(m.parameters(), max_iter=1, line_search_fn="strong_wolfe"),
        torch.float64,
    )
    _, ratios, _ = twin(model, optimizer, batch)
    learning = diagnose(model, batch, F.cross_entropy, optimizer).learning
    assert learning is not None
    assert learning.update_ratio == pytest.approx(ratios, rel=1e-4)


def test_losses_after_are_those_of_real_steps():
    model, optimizer, (x, y) = trained(OPTIMIZERS["adam"], torch.float64)
    expected = []
    learning = diagnose(model, (x, y), F.cross_entropy, optimizer).learning
    for _ in range(5):
        optimizer.zero_grad()
        value = F.cross_entropy(model(x), y)
        expected.append(value.item())
        value.backward()
        optimizer.step()
    assert learning.after == pytest.approx(tuple(expected), rel=1e-9)


def test_without_an_optimizer_plain_sgd_is_assumed():
    model, batch = network().double(), data(torch.float64)
    learning = diagnose(model, batch, F.cross_entropy).learning
    shares, ratios, _ = twin(model, optim.SGD(model.parameters(), lr=0.01), batch)
    assert learning.optimizer == "SGD (assumed)"
    assert learning.share == pytest.approx(shares, rel=1e-5)
    assert learning.update_ratio == pytest.approx(ratios, rel=1e-5)


def test_frozen_layers_have_no_share():
    model, batch = network(), data()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    learning = diagnose(model, batch, F.cross_entropy, optimizer).learning
    assert set(learning.share) == {"2", "3", "5"}
    assert math.fsum(learning.share.values()) == pytest.approx(1)


def test_layers_the_optimizer_does_not_hold_stay():
    model, batch = network(), data()
    optimizer = optim.SGD(model[5].parameters(), lr=0.1)
    learning = diagnose(model, batch, F.cross_entropy, optimizer).learning
    assert learning.share["5"] == pytest.approx(1)
    assert learning.share["0"] == learning.share["2"] == 0
    assert learning.update_ratio["0"] == 0
    assert learning.unmoved["0"] == 1


SCHEDULES = {
    "warm-up": lambda o: optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 100)),
    "linear": lambda o: optim.lr_scheduler.LinearLR(o, start_factor=0.01, total_iters=100),
    "one-cycle": lambda o: optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=100),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_is_judged_by_the_rate_it_warms_up_to(schedule):
    model, batch = network().double(), data(torch.float64)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    SCHEDULES[schedule](optimizer)
    before = [dict(group) for group in optimizer.param_groups]
    learning = diagnose(model, batch, F.cross_entropy, optimizer).learning
    assert learning.rate == pytest.approx(0.1)
    shares, ratios, _ = twin(model, optim.SGD(model.parameters(), lr=0.1), batch)
    assert learning.share == pytest.approx(shares, rel=1e-5)
    assert learning.update_ratio == pytest.approx(ratios, rel=1e-5)
    assert [dict(group) for group in optimizer.param_groups] == before


def test_a_decayed_rate_is_judged_as_it_is():
    """After training has begun a rate below the initial one is a decay, not a warm-up."""
    model, batch = network().double(), data(torch.float64)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    schedule.step()
    learning = diagnose(model, batch, F.cross_entropy, optimizer).learning
    assert learning.rate == pytest.approx(0.01)
    _, ratios, _ = twin(model, optimizer, batch)
    assert learning.update_ratio == pytest.approx(ratios, rel=1e-5)


class Refuses(optim.SGD):
    """An optimizer that steps halfway and then gives up."""

    def step(self, closure=None):
        self.param_groups[0]["params"][0].data.add_(1.0)
        raise RuntimeError("no step today")


def test_an_optimizer_that_raises_skips_what_needs_it():
    model, batch = network(), data()
    weights = copy.deepcopy(model.state_dict())
    optimizer = Refuses(model.parameters(), lr=0.1)
    found = diagnose(model, batch, F.cross_entropy, optimizer)
    outcome = {r.code: r for r in found.results}
    assert found.learning is None
    for code in ("SP101", "SP103"):
        assert outcome[code].outcome == "skipped"
        assert "RuntimeError: no step today" in outcome[code].reason
    assert outcome["SP102"].outcome == "passed"
    assert same(dict(weights), dict(model.state_dict()))
    assert optimizer.state_dict()["state"] == {}


def test_an_optimizer_inside_a_wrapper_is_found():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    model, batch = network(), data()
    inner = optim.Adam(model.parameters())
    plain = diagnose(model, batch, F.cross_entropy, inner).learning
    wrapped = diagnose(model, batch, F.cross_entropy, Wrapper(Wrapper(inner))).learning
    assert wrapped.optimizer == "Adam"
    assert wrapped == plain


def test_unmoved_counts_what_rounding_swallows():
    model, (x, y) = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4)).bfloat16(), data()
    x = x.bfloat16()
    learning = diagnose(
        model, (x, y), F.cross_entropy, optim.SGD(model.parameters(), lr=2e-3)
    ).learning
    F.cross_entropy(model(x), y).backward()
    for layer in ("0", "2"):
        pulled = still = 0
        for p in model.get_submodule(layer).parameters():
            stepped = p.detach() - 2e-3 * p.grad
            pulled += int((p.grad != 0).sum())
            still += int(((p.grad != 0) & (stepped == p.detach())).sum())
        assert 0.1 < still / pulled < 1
        assert learning.unmoved[layer] == pytest.approx(still / pulled, abs=0.03)


def test_float32_weights_all_move():
    model, optimizer, batch = trained(OPTIMIZERS["adam"])
    learning = diagnose(model, batch, F.cross_entropy, optimizer).learning
    assert set(learning.unmoved.values()) == {0.0}


def test_tied_and_sparse_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 5, sparse=True)
            self.head = nn.Linear(5, 7)

        def forward(self, x):
            return self.head(self.embedding(x))

    model, words = Tied(), torch.randint(7, (20,))
    learning = diagnose(
        model, (words, words), F.cross_entropy, optim.SGD(model.parameters(), lr=0.1)
    ).learning
    gradient = torch.autograd.grad(F.cross_entropy(model(words), words), list(model.parameters()))
    squares = [float((g.to_dense() if g.is_sparse else g).square().sum()) for g in gradient]
    share = {"embedding": squares[0] / sum(squares), "head": sum(squares[1:]) / sum(squares)}
    assert learning.share == pytest.approx(share, rel=1e-4)
