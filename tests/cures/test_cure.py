"""What a cure is: how it is called, what it says of itself, and that it works on copies."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from signalprop.cures.cure import Cure, DoesNotApply, cure
from signalprop.cures.training import Recipe, Training
from signalprop.errors import SignalpropError


@cure("halve", treats=("SP101",))
def halve(model: nn.Module, *, inplace: bool = False, by: float = 2.0) -> nn.Module:
    """Divide the first weight. This is the first line."""
    if float(model[0].weight.detach().abs().max()) == 0:
        raise DoesNotApply("the first weight is zero")
    assert inplace
    with torch.no_grad():
        model[0].weight.div_(by)
    return model


@cure("shift", treats=(), changes="model with data")
def shift(model: nn.Module, data, *, inplace: bool = False) -> nn.Module:
    """Set the first bias to the mean of the inputs."""
    with torch.no_grad():
        model[0].bias.fill_(data[0].mean())
    return model


@cure("clip", treats=("SP102",), changes="settings")
def clip(training: Training, data, *, to: float = 1.0) -> Training:
    """Clip."""
    return training.changed(f"clip {to}", clip=to)


@cure("spoil", treats=(), changes="training")
def spoil(training: Training, data) -> Training:
    """Change the model that it is given, and fail."""
    training.model[0].weight.data.zero_()
    raise DoesNotApply("it failed")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def program():
    return Training(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), F.mse_loss, Recipe(sgd))


DATA = torch.ones(4, 3), torch.ones(4, 3)


def test_what_it_says_of_itself():
    assert halve.name == "halve"
    assert halve.title == "Divide the first weight. This is the first line"
    assert str(halve) == halve.line == f"model = signalprop.cures.{halve.function.__name__}(model)"
    assert shift.line == "model = signalprop.cures.shift(model, data)"
    assert clip.line == "signalprop.cures.clip"
    assert (halve.changes, shift.changes, clip.changes) == ("model", "model with data", "settings")


def test_options():
    more = halve.with_options(by=4.0)
    assert more.line == "model = signalprop.cures.halve(model, by=4.0)"
    assert more.with_options(by=8.0).options == (("by", 8.0),)
    assert halve.options == ()
    before = program()
    after = more.treat(before, DATA)
    torch.testing.assert_close(after.model[0].weight * 4, before.model[0].weight)
    kinds = halve.with_options(to=nn.SELU, like="relu", own=Cure)
    assert kinds.line.endswith("(model, to=torch.nn.SELU, like='relu', own=Cure)")


def test_called_it_is_the_function():
    model = program().model
    weight = model[0].weight.detach().clone()
    assert halve(model, inplace=True) is model
    torch.testing.assert_close(model[0].weight * 2, weight)
    assert halve.with_options(by=4.0)(model, inplace=True, by=1.0) is model
    torch.testing.assert_close(model[0].weight * 2, weight)


@pytest.mark.parametrize("one", [halve, shift, clip, spoil], ids=str)
def test_treatment_is_on_a_copy(one):
    before = program()
    state = {k: v.clone() for k, v in before.model.state_dict().items()}
    try:
        after = one.treat(before, DATA)
    except DoesNotApply:
        after = None
    assert all(torch.equal(v, state[k]) for k, v in before.model.state_dict().items())
    assert before.lines == ()
    if after is not None:
        assert after.model is not before.model
        assert len(after.lines) == 1
        assert after.lines[0] == (one.line if one is not clip else "clip 1.0")
        assert after.loss is before.loss
        assert after.optimizer is before.optimizer


def test_data_go_where_they_are_asked_for():
    after = shift.treat(program(), DATA)
    assert torch.equal(after.model[0].bias, torch.ones(3))


def test_does_not_apply_is_an_error_of_this_package():
    zero = program()
    nn.init.zeros_(zero.model[0].weight)
    with pytest.raises(SignalpropError, match="is zero"):
        halve.treat(zero, DATA)


def test_cures_are_values():
    assert halve == halve.with_options()
    assert halve != halve.with_options(by=3.0)
    assert len({halve, halve.with_options(), clip}) == 2
    assert pickle.loads(pickle.dumps(clip.treat(program(), DATA).lines)) == ("clip 1.0",)
