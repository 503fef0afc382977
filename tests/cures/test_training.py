"""Recipes: what is made of one is the user's own optimizer, for the same model or a changed one."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import signalprop as sp
from signalprop.cures.program.optimizer import rebuild_optimizer
from signalprop.cures.training import Group, Recipe, Training, applied
from signalprop.errors import SignalpropError


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def held(optimizer, model):
    """Names of the parameters of every group."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names.get(id(p), "?") for p in g["params"]] for g in optimizer.param_groups]


def same_options(a, b):
    for x, y in zip(a.param_groups, b.param_groups, strict=True):
        assert x.keys() == y.keys()
        assert {k: v for k, v in x.items() if k != "params"} == {
            k: v for k, v in y.items() if k != "params"
        }


def own(model):
    """Every optimizer of torch, with an option that is not its default."""
    p = list(model.parameters())
    matrices = [q for q in p if q.ndim == 2]
    optim = torch.optim
    made = [
        optim.SGD(p, lr=0.123, momentum=0.9, nesterov=True, weight_decay=1e-4),
        optim.Adam(p, lr=3e-4, betas=(0.8, 0.99), amsgrad=True),
        optim.AdamW(p, lr=3e-4, weight_decay=0.3),
        optim.NAdam(p, momentum_decay=3e-3),
        optim.RAdam(p, decoupled_weight_decay=True),
        optim.Adamax(p, eps=1e-7),
        optim.Adagrad(p, lr_decay=0.1),
        optim.Adadelta(p, rho=0.8),
        optim.RMSprop(p, alpha=0.9, centered=True),
        optim.Rprop(p, etas=(0.4, 1.3)),
        optim.ASGD(p, lambd=1e-3),
        optim.LBFGS(p, max_iter=7, line_search_fn="strong_wolfe"),
        optim.Adam(p, lr=torch.tensor(0.01), capturable=False),
    ]
    for name in ("Adafactor", "Muon"):  # newer versions of torch have them
        if hasattr(optim, name):
            made.append(getattr(optim, name)(matrices, weight_decay=0.05))
    return made


NAMES = [type(o).__name__ for o in own(net())]


@pytest.mark.parametrize("i", range(len(NAMES)), ids=NAMES)
def test_every_optimizer_of_torch(i):
    model = net()
    before = own(model)[i]
    recipe = Recipe.of(before, model)
    made = recipe.build(model)
    assert type(made) is type(before)
    same_options(made, before)
    assert held(made, model) == held(before, model)
    assert recipe.rate == pytest.approx(float(before.param_groups[0]["lr"]))
    assert pickle.loads(pickle.dumps(recipe)).line == recipe.line
    # the line makes it, too
    matrices = nn.ParameterList([p for p in model.parameters() if p.ndim == 2])
    given = matrices if NAMES[i] in ("Adafactor", "Muon") else model
    told = eval(recipe.line, {"torch": torch, "model": given})
    assert type(told) is type(before)
    for key, value in before.param_groups[0].items():
        if key != "params":
            assert told.param_groups[0][key] == value, key


def test_groups_keep_their_parameters_and_options():
    model = net()
    groups = [
        {"params": model[0].parameters(), "lr": 0.01, "weight_decay": 0.1, "name": "first"},
        {"params": [model[2].weight]},
        {"params": [model[2].bias], "lr": 0.5},
    ]
    recipe = Recipe.of(torch.optim.SGD(groups, lr=0.1, momentum=0.9), model)
    assert [g.names for g in recipe.groups] == [
        ("0.weight", "0.bias"), ("2.weight",), ("2.bias",),
    ]  # fmt: skip
    made = recipe.build(model)
    assert [g["lr"] for g in made.param_groups] == [0.01, 0.1, 0.5]
    assert [g["weight_decay"] for g in made.param_groups] == [0.1, 0, 0]
    assert recipe.rate == 0.5
    slower = recipe.scaled(0.1).build(model)
    assert [g["lr"] for g in slower.param_groups] == pytest.approx([0.001, 0.01, 0.05])
    assert "(model.parameters(), lr=0.01, weight_decay=0.1, momentum=0.9)" in recipe.line
    assert recipe.line.endswith("# the largest of 3 groups")
    assert type(eval(recipe.line, {"torch": torch, "model": model})) is torch.optim.SGD


def test_a_schedule_has_not_moved_it():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 16)
    assert Recipe.of(optimizer, model).rate == 0.1


def test_a_changed_model():
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 1.0}, {"params": [model[2].weight]}]
    recipe = Recipe.of(torch.optim.SGD(groups, lr=0.1), model)
    after = net()
    after[0] = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))  # other names
    after[2].bias.requires_grad_(False)
    made = recipe.build(after)
    # what is left of a group stays in it; the rest joins the largest; what the optimizer
    # left out stays out
    assert held(made, after) == [
        ["2.weight", "0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"],
    ]
    assert made.param_groups[0]["lr"] == 0.1
    wider = net()
    wider.append(nn.Linear(2, 2))
    assert held(recipe.build(wider), wider) == [
        ["0.weight", "0.bias", "3.weight", "3.bias"],
        ["2.weight"],
    ]


def test_what_the_optimizer_leaves_out_stays_out():
    model = net()
    recipe = Recipe.of(torch.optim.SGD(model[0].parameters(), lr=0.1), model)
    assert recipe.left_out == ("2.weight", "2.bias")
    assert held(recipe.build(model), model) == [["0.weight", "0.bias"]]
    assert held(recipe.scaled(2).build(model), model) == [["0.weight", "0.bias"]]
    whole = recipe.whole()
    assert whole.left_out == ()
    assert sorted(held(whole.build(model), model)[0]) == sorted(dict(model.named_parameters()))


def test_an_optimizer_of_another_model():
    model, other = net(), net()
    recipe = Recipe.of(torch.optim.Adam(other.parameters(), lr=0.02), model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = recipe.build(model)
    assert held(made, model) == [["?"]]  # it trains nothing, as the user's does
    F.mse_loss(model(torch.randn(8, 6)), torch.zeros(8, 2)).backward()
    made.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    found = sp.diagnose(model, (torch.randn(8, 6), torch.randn(8, 2)), F.mse_loss, made).findings
    assert "SP212" in {f.code for f in found}

    after = rebuild_optimizer.treat(Training(model, F.mse_loss, recipe), None)
    cured = after.optimizer.build(after.model)
    assert type(cured) is torch.optim.Adam
    assert held(cured, after.model) == [list(dict(model.named_parameters()))]
    assert after.lines == ("optimizer = torch.optim.Adam(model.parameters(), lr=0.02)",)


# ---- functions, and optimizers that torch does not know ---------------------------------------


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.2)


def test_a_function_of_parameters():
    model = net()
    model[0].requires_grad_(False)
    recipe = Recipe.of(sgd, model)
    assert recipe.kind is torch.optim.SGD
    assert recipe.groups == (Group(("2.weight", "2.bias"), recipe.groups[0].options),)
    assert recipe.line == "torch.optim.SGD(model.parameters(), lr=0.2)"
    bare = Recipe(sgd)
    assert held(bare.build(model), model) == [["2.weight", "2.bias"]]
    assert bare.explicit(model) == recipe
    assert recipe.explicit(model) is recipe


class Signs(torch.optim.Optimizer):
    """An optimizer of the user's own, an option of which is not in its groups."""

    def __init__(self, params, lr, scale):
        super().__init__(params, {"lr": lr})
        self.scale = scale

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(group["lr"] * self.scale * p.grad.sign())


class Slow(torch.optim.SGD):
    """A subclass with options of its own."""

    def __init__(self, params, lr, brake, **more):
        super().__init__(params, lr=lr, **more)
        for group in self.param_groups:
            group.setdefault("brake", brake)


def signs(parameters):
    return Signs(parameters, lr=0.1, scale=2.0)


def test_an_optimizer_that_cannot_be_made_again():
    model = net()
    with pytest.raises(SignalpropError, match=r"Signs cannot be made again .* give a function"):
        Recipe.of(Signs(model.parameters(), 0.1, 2.0), model)
    recipe = Recipe.of(signs, model)
    made = recipe.scaled(0.5).build(model)
    assert type(made) is Signs
    assert made.scale == 2.0
    assert made.param_groups[0]["lr"] == 0.05
    assert recipe.line == "signs(model.parameters())"
    assert Recipe.of(lambda p: signs(p), model).line == "make_optimizer(model.parameters())"


def test_a_subclass_with_options_of_its_own():
    model = net()
    parameters = inspect.signature(Slow).parameters
    assert parameters["brake"].default is inspect.Parameter.empty
    with pytest.raises(SignalpropError, match="cannot be made again"):
        Recipe.of(Slow(model.parameters(), 0.1, 3), model)  # required, and not in the groups alone


class Eager(torch.optim.SGD):
    """Hands everything on to its parent."""

    def __init__(self, params, lr=0.3, **more):
        super().__init__(params, lr=lr, **more)


def test_options_of_the_parent_class():
    model = net()
    recipe = Recipe.of(Eager(model.parameters(), momentum=0.8), model)
    assert recipe.line == "Eager(model.parameters(), lr=0.3, momentum=0.8)"
    assert recipe.build(model).param_groups[0]["momentum"] == 0.8
    # what the class itself does not take is not told, though its groups have it
    adamw = Recipe.of(torch.optim.AdamW(model.parameters()), model)
    assert adamw.line == "torch.optim.AdamW(model.parameters(), lr=0.001)"


def test_what_is_no_optimizer():
    model = net()
    with pytest.raises(SignalpropError, match="it made a list"):
        Recipe.of(list, model)
    frozen = net().requires_grad_(False)
    for optimizer in (sgd, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)):
        with pytest.raises(SignalpropError, match="unfreeze"):
            Recipe.of(optimizer, frozen)


# ---- training --------------------------------------------------------------------------------


def test_lines_add_up_and_the_original_stays():
    model = net()
    first = Training(model, F.mse_loss, Recipe.of(sgd, model))
    second = first.changed("a", clip=1.0).changed("b", "c", warmup=5)
    assert second.lines == ("a", "b", "c")
    assert (second.clip, second.warmup, first.clip, first.lines) == (1.0, 5, None, ())
    assert second.model is model
    third = second.rebuilt(second.optimizer.scaled(0.5))
    assert third.lines[-1] == "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)"


def test_steps_one_after_the_other():
    assert applied((lambda x: x + 1, lambda x: 2 * x), 3) == 8
    assert applied((), 3) == 3
