"""Cures of the optimizer: the range test on a problem that can be solved, and what is measured."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import signalprop as sp
from signalprop.cures import rate
from signalprop.cures.cure import Cure, DoesNotApply
from signalprop.cures.modes import again, look, prepared
from signalprop.cures.training import Group, Recipe, Training
from signalprop.errors import SignalpropError

CURES = [v for v in vars(rate).values() if isinstance(v, Cure)]
#: enough to run, too few to choose well
QUICK = {"lower-learning-rate": 1, "raise-learning-rate": 1}
NAMES = (
    "softmax-cross-entropy", "nan-data", "labels-from-one", "own-softmax-overflows",
    "optimizer-misses-new-head", "batchnorm-batch-of-one", "bf16", "dict-output", "all-frozen",
    "raises-in-forward", "wrong-shape", "returns-a-string", "detached-output", "meta-device",
    "loss-per-sample", "empty-batch", "own-loss-missing", "produces-nan", "left-in-eval",
)  # fmt: skip


def training(kind=torch.optim.SGD, lr=0.1, model=None, loss=F.mse_loss, **options):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)) if model is None else model
    return Training(model, loss, Recipe.of(kind(model.parameters(), lr=lr, **options), model))


def data(n=32):
    x = torch.randn(n, 6)
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)


def quadratic(lr):
    """Squared error of one linear layer: it diverges above 2 / the largest eigenvalue."""
    x = torch.randn(64, 6) * torch.tensor([3.0, 1, 1, 1, 1, 1])
    model = nn.Linear(6, 1, bias=False)
    bound = 2 / float(torch.linalg.eigvalsh(2 * x.T @ x / 64)[-1])
    return training(lr=lr, model=model), (x, x.sum(1, keepdim=True)), bound


@pytest.mark.filterwarnings("ignore")
def test_on_networks_that_are_healthy_sick_and_odd():
    applied = set()
    for name in NAMES:
        case = by_name(name)
        model, batch, loss = case.build()
        made = (case.optimizer or (lambda m: torch.optim.Adam(m.parameters())))(model)
        before = Training(model, loss, Recipe.of(made, model))
        meta = any(p.is_meta for p in model.parameters())
        state = None if meta else pickle.dumps(model.state_dict())
        random = torch.get_rng_state()
        for cure in CURES:
            if cure.name in QUICK:
                cure = cure.with_options(updates=6, trial=2)
            try:
                after = cure.treat(before, batch)
            except SignalpropError as why:
                told = str(why)
                if len(told) < 15 or "\n" in told:
                    raise
                continue
            applied.add((name, cure.name))
            assert after.lines
            pickle.dumps((after.model, after.prepare))
            after.optimizer.build(after.model)
        assert meta or pickle.dumps(model.state_dict()) == state
        assert torch.equal(random, torch.get_rng_state())
    assert {c.name for c in CURES} == {cure for _, cure in applied} | {"lower-learning-rate"}


# ---- the learning rate -----------------------------------------------------------------------


def test_the_range_test_finds_the_stability_bound():
    before, batch, bound = quadratic(1.0)
    seen = rate.range_test(before, batch, low=bound / 1e4, high=bound * 1e3, updates=80)
    assert seen.diverged is not None
    # the running mean needs a few updates to notice, each of them a factor 1.22
    assert bound < seen.diverged < 10 * bound
    assert seen.steepest is not None
    assert bound / 1e3 < seen.steepest < bound
    ratio = seen.rates[1] / seen.rates[0]
    assert ratio == pytest.approx(1e7 ** (1 / 79))
    again_ = rate.range_test(before, batch, low=bound / 1e4, high=bound * 1e3, updates=80)
    assert again_ == seen


@pytest.mark.parametrize("times", [3.0, 1e3])
def test_a_rate_above_the_bound_is_lowered(times):
    before, batch, bound = quadratic(0.0)
    before = training(lr=times * bound, model=before.model)
    after = rate.lower_learning_rate.treat(before, batch)
    assert bound / 300 < after.optimizer.rate < bound
    assert after.lines == (f"optimizer = {after.optimizer.line}",)
    assert rate.race(after, batch, after.optimizer.rate, 60) < 1.0
    assert rate.race(before, batch, before.optimizer.rate, 60) == math.inf or times < 10


def test_a_rate_below_is_raised():
    before, batch, bound = quadratic(1e-9)
    after = rate.raise_learning_rate.treat(before, batch)
    assert bound / 300 < after.optimizer.rate < bound
    again_ = rate.raise_learning_rate.treat(before, batch)
    assert again_.optimizer.rate == after.optimizer.rate
    nothing = training(lr=0.0, model=before.model)
    assert rate.raise_learning_rate.treat(nothing, batch).optimizer.rate > bound / 300


def test_a_good_rate_stays():
    before, batch, bound = quadratic(0.0)
    good = training(lr=bound / 2, model=before.model)
    for cure in (rate.lower_learning_rate, rate.raise_learning_rate):
        with pytest.raises(DoesNotApply, match="does better"):
            cure.treat(good, batch)


def test_groups_keep_their_ratios_and_a_loader_is_walked_through():
    x, y = data(128)
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    model = training().model
    groups = [
        {"params": model[0].parameters(), "lr": 1e-7},
        {"params": model[2].parameters(), "lr": 1e-6},
    ]
    before = Training(model, F.mse_loss, Recipe.of(torch.optim.SGD(groups, lr=1.0), model))
    after = rate.raise_learning_rate.treat(before, loader)
    low, high = (g.options["lr"] for g in after.optimizer.groups)
    assert high / low == pytest.approx(10)
    assert high > 1e-3


@pytest.mark.parametrize("name", ["learning-rate-too-large", "learning-rate-too-small"])
def test_the_finding_is_gone(name):
    case = by_name(name)
    model, batch, loss = case.build()
    before = Training(model, loss, Recipe.of(case.optimizer(model), model))
    large = "large" in name
    cure = rate.lower_learning_rate if large else rate.raise_learning_rate
    after = cure.treat(before, batch)
    made = after.optimizer.build(after.model)
    found = sp.diagnose(after.model, batch, loss, optimizer=made).findings
    assert not case.expect & {f.code for f in found}
    assert case.expect & set(cure.treats)


def test_dropout_draws_the_same_in_every_run():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    before, batch = training(model=model), data()
    assert rate.race(before, batch, 0.1, 5) == rate.race(before, batch, 0.1, 5)
    lbfgs = Training(model, F.mse_loss, Recipe.of(torch.optim.LBFGS(model.parameters()), model))
    assert math.isfinite(rate.race(lbfgs, batch, 0.1, 2))


# ---- steps -----------------------------------------------------------------------------------


def test_warm_up():
    after = rate.warm_up.treat(training(), data())
    assert after.warmup == 100
    with pytest.raises(DoesNotApply, match="already"):
        rate.warm_up.treat(after, data())
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    namespace = {"torch": torch, "optimizer": optimizer}
    exec(after.lines[0], namespace)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        namespace["warmup"].step()
    assert rates[0] == pytest.approx(0.005)
    assert rates[-1] == pytest.approx(0.5)
    assert rates[50] == pytest.approx(0.5 * (0.01 + 0.99 * 0.5), rel=1e-6)


def test_the_clip_is_the_median_norm():
    x, y = data(160)
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    before = training(torch.optim.Adam, 1e-3)
    after = rate.clip_gradient.treat(before, loader)
    norms = []
    for xs, ys in loader:
        before.model.zero_grad()
        F.mse_loss(before.model(xs), ys).backward()
        squares = sum(float(p.grad.square().sum()) for p in before.model.parameters())
        norms.append(math.sqrt(squares))
    assert after.clip == pytest.approx(sorted(norms)[2], rel=0.05)
    with pytest.raises(DoesNotApply, match="already"):
        rate.clip_gradient.treat(after, loader)


def test_the_clip_of_sgd_bounds_the_update():
    model = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(6, 6), nn.Identity())])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    before = training(lr=0.1, model=model)
    after = rate.clip_gradient.treat(before, (torch.randn(16, 6), torch.randn(16, 6)))
    size = math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert after.clip == pytest.approx(0.03 * size / 0.1, rel=0.05)


def test_batches_are_put_together():
    x, y = data(3)
    after = rate.larger_batch.treat(training(), (x, y))
    assert after.merge == 11
    assert "batch_size=33" in after.lines[0]
    with pytest.raises(DoesNotApply, match="33 samples already"):
        rate.larger_batch.treat(after, (x, y))


# ---- the optimizer ---------------------------------------------------------------------------


def test_what_the_optimizer_misses_joins_the_largest_group():
    before = training(momentum=0.9)
    model = before.model
    part = Recipe.of(torch.optim.SGD(model[0].parameters(), lr=0.2, momentum=0.9), model)
    after = rate.rebuild_optimizer.treat(Training(model, F.mse_loss, part), data())
    made = after.optimizer.build(after.model)
    held = {id(p) for group in made.param_groups for p in group["params"]}
    assert held == {id(p) for p in after.model.parameters()}
    assert after.lines == ("optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)",)
    none = Recipe(torch.optim.SGD, (Group((), {"lr": 0.2}),))
    after = rate.rebuild_optimizer.treat(Training(model, F.mse_loss, none), data())
    assert len(after.optimizer.groups[0].names) == 4
    with pytest.raises(DoesNotApply, match="holds every"):
        rate.rebuild_optimizer.treat(before, data())


def test_adam_in_place_of_sgd():
    model = training().model
    groups = [
        {"params": model[0].parameters(), "lr": 0.01, "weight_decay": 0.1},
        {"params": model[2].parameters()},
    ]
    recipe = Recipe.of(torch.optim.SGD(groups, lr=0.1, momentum=0.9), model)
    after = rate.adam.treat(Training(model, F.mse_loss, recipe), data())
    made = after.optimizer.build(after.model)
    assert type(made) is torch.optim.Adam
    assert [g["lr"] for g in made.param_groups] == pytest.approx([1e-4, 1e-3])
    assert [g["weight_decay"] for g in made.param_groups] == [0.1, 0]
    with pytest.raises(DoesNotApply, match="already"):
        rate.adam.treat(training(torch.optim.RMSprop), data())


# ---- precision -------------------------------------------------------------------------------


def test_weights_in_float32_and_bfloat16_in_between():
    model = training().model.bfloat16()
    x, y = (t.bfloat16() for t in data())
    before = training(lr=1e-5, model=model)
    after = pickle.loads(pickle.dumps(rate.float32_weights.treat(before, (x, y))))
    assert {p.dtype for p in after.model.parameters()} == {torch.float32}
    b = prepared(after, (x, y))
    out = after.model(*b.args)
    assert out.dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(out.float(), model(x).float(), atol=0.02, rtol=0.02)
    with pytest.raises(RuntimeError):
        after.model(torch.randn(3, 5))
    assert not torch.is_autocast_enabled("cpu")
    assert look(after, (x, y)).trace.failure is None
    plain = rate.float32.treat(before, (x, y))
    assert plain.model(*prepared(plain, (x, y)).args).dtype == torch.float32
    assert list(plain.model.state_dict()) == list(model.state_dict())
    for cure in (rate.float32, rate.float32_weights):
        with pytest.raises(DoesNotApply, match="float32 already"):
            cure.treat(plain, (x, y))


def test_updates_that_were_rounded_away_are_kept():
    case = by_name("learning-rate-below-bf16")
    model, batch, loss = case.build()
    before = Training(model, loss, Recipe.of(case.optimizer(model), model))
    after = rate.float32_weights.treat(before, batch)
    made = after.optimizer.build(after.model)
    found = sp.diagnose(after.model, again(prepared(after, batch)), loss, optimizer=made).findings
    assert "SP211" not in {f.code for f in found}
