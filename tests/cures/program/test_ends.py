"""Every cure of the end of a program on every network."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES, by_name
from tests.cures.program.programs import batch, codes, loss_of, net, training
from torch import Tensor, nn

from signalprop.cures.cure import Cure, DoesNotApply
from signalprop.cures.program import head, losses, outputs
from signalprop.cures.program.seen import look
from signalprop.errors import SignalpropError

CURES = [v for home in (head, losses, outputs) for v in vars(home).values() if isinstance(v, Cure)]


@pytest.mark.filterwarnings("ignore")
def test_on_all_networks(monkeypatch):
    """Applied, it runs with a finite loss; else a sentence; the model is never touched."""
    seen = {}

    def once(what, data):
        if case.name not in seen:
            try:
                seen[case.name] = look(what, data)
            except SignalpropError as error:
                seen[case.name] = error
        if isinstance(seen[case.name], Exception):
            raise seen[case.name]
        return seen[case.name]

    for home in (head, losses, outputs):
        monkeypatch.setattr(home, "look", once)
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
        ("softmax-one-unit", losses.use_bce_with_logits),
        ("sigmoid-regression", head.remove_output_activation),
        ("mse-on-class-labels", losses.use_cross_entropy),
        ("labels-from-one", outputs.add_outputs),
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
