"""The cases themselves: every one is what it says before any tool looks at it."""

import warnings

import pytest
import torch
from tests.cases import CASES, by_name, cases, plain_loss
from torch import nn

CODES = {f"SP{n}" for n in (*range(101, 112), *range(201, 214))}
RAISES = {"labels-from-one"}
NOT_FINITE = {"nan-data", "own-softmax-overflows"}


def named(group):
    return pytest.mark.parametrize("case", group, ids=lambda case: case.name)


def test_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)
    assert by_name("resnet-20").health == "healthy"


def test_battery_is_large_enough():
    assert len(cases("healthy")) >= 25


def test_every_code_has_a_sick_case():
    found = set().union(*(case.expect for case in cases("sick")))
    assert found == CODES


def test_fields_fit_the_health():
    for case in CASES:
        assert bool(case.expect) == (case.health == "sick") or case.health == "odd"
        assert case.error is None or case.health == "odd"
        assert case.health == "odd" or case.optimizer is not None, case.name


@named(cases("healthy"))
def test_healthy_runs_forward_and_backward(case):
    model, batch, loss = case.build()
    optimizer = case.optimizer(model)
    value = plain_loss(model, batch, loss)
    assert torch.isfinite(value)
    value.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert gradients
    missing = [name for name, gradient in gradients.items() if gradient is None]
    assert not missing
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@named(cases("healthy"))
def test_build_is_repeatable_and_leaves_the_random_state(case):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = case.build(), case.build()
    assert torch.equal(torch.get_rng_state(), before)
    values = []
    for model, batch, loss in (first, second):
        torch.manual_seed(2)
        values.append(plain_loss(model, batch, loss))
    assert torch.equal(*values)
    assert first[0] is not second[0]
    weights = first[0].state_dict(), second[0].state_dict()
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@named(cases("sick"))
def test_sick_runs_as_it_should(case):
    model, batch, loss = case.build()
    assert isinstance(case.optimizer(model), torch.optim.Optimizer)
    if case.name in RAISES:
        with pytest.raises(IndexError, match="out of bounds"):
            plain_loss(model, batch, loss)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a target size", UserWarning)
        value = plain_loss(model, batch, loss)
    value.backward()
    assert torch.isfinite(value) == (case.name not in NOT_FINITE)


def test_nan_gradient_has_a_finite_loss():
    model, batch, loss = by_name("nan-gradient").build()
    plain_loss(model, batch, loss).backward()
    assert model.net.weight.grad.isnan().any()


@named([case for case in cases("odd") if case.error is None])
def test_odd_but_possible_runs(case):
    model, batch, loss = case.build()
    plain_loss(model, batch, loss).backward()


@named([case for case in cases("odd") if case.error is not None])
def test_odd_cannot_be_trained_by_the_plain_way(case):
    model, batch, loss = case.build()
    assert isinstance(model, nn.Module)
    if case.name == "empty-batch":
        assert plain_loss(model, batch, loss).isnan()
        return
    if case.name == "lazy-parameters":
        with pytest.raises(ValueError, match="uninitialized"):
            sum(p.numel() for p in model.parameters())
        return
    with pytest.raises(Exception):  # noqa: B017, PT011 - each fails in its own way
        plain_loss(model, batch, loss).backward()
