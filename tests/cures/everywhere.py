"""A cure on every network of tests/cases, and what every cure has to keep."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import torch
from tests.cases import CASES, Case, call, first_batch, plain_loss
from tests.references import state
from torch import Tensor, nn

from signalprop.cures.cure import Cure
from signalprop.errors import SignalpropError


def treated(cure: Cure, model: nn.Module, data: Any, **options: Any) -> nn.Module:
    return cure(model, data, **options) if "data" in cure.changes else cure(model, **options)


def on_all_cases(cure: Cure) -> set[str]:
    """Run a cure on every case; it applies or says why not. Returns where it has applied."""
    applied = set()
    for case in CASES:
        model, batch, loss = case.build()
        before, random = state.of_model(model), torch.get_rng_state()
        try:
            after = treated(cure, model, batch)
        except SignalpropError as error:
            text = str(error)
            assert "\n" not in text, case.name
            assert len(text) > 10, case.name
            assert torch.equal(torch.get_rng_state(), random), case.name
        else:
            applied.add(case.name)
            still_runs(case, after, batch, loss)
            _keeps(case, model, after)
        assert state.of_model(model) == before, case.name
    return applied


def still_runs(case: Case, model: nn.Module, batch: Any, loss: Any) -> None:
    """Whether a treated network of a case has a finite loss, as far as the case itself has."""
    if case.error is not None:  # no loss can be had of it
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = plain_loss(model, batch, loss)
        except IndexError:
            assert "labels" in case.name  # the labels are wrong, whatever the network
            return
        value.backward()
    assert value.isfinite().all() or case.name in ("nan-data", "own-softmax-overflows"), case.name


def _keeps(case: Case, old: nn.Module, new: nn.Module) -> None:
    """Dtypes, devices, modes and names of what both have, and no tensor in common."""
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    assert not {p.data_ptr() for p in before.values()} & {p.data_ptr() for p in after.values()}
    for name in before.keys() & after.keys():
        assert before[name].dtype == after[name].dtype, (case.name, name)
        assert before[name].requires_grad == after[name].requires_grad, (case.name, name)
    assert {p.dtype for p in before.values()} == {p.dtype for p in after.values()}, case.name
    for name, module in new.named_modules():
        parent = dict(old.named_modules()).get(name)
        if parent is not None:
            assert parent.training == module.training, (case.name, name)


def same_elsewhere(model: nn.Module, x: Tensor) -> None:
    """A copy, a pickled copy and a loaded state compute the same."""
    model.eval()
    expected = model(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    through = io.BytesIO()
    torch.save(model, through)
    through.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(through, weights_only=False),
    ):
        made = other(x)
        assert torch.equal(made[0] if isinstance(made, tuple) else made, expected)
        shared = {p.data_ptr() for p in model.parameters()}
        assert not shared & {p.data_ptr() for p in other.parameters()}


__all__ = ["call", "first_batch", "on_all_cases", "same_elsewhere", "still_runs", "treated"]
