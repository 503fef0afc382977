"""Cures of weights in half precision."""

from __future__ import annotations

import pickle

import pytest
import torch
from tests.cases import by_name
from tests.cures.program.programs import data, tuned

import signalprop as sp
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.precision import float32, float32_weights
from signalprop.cures.program.seen import again, look, prepared
from signalprop.cures.training import Recipe, Training


def test_weights_in_float32_and_bfloat16_in_between():
    model = tuned().model.bfloat16()
    x, y = (t.bfloat16() for t in data())
    before = tuned(lr=1e-5, model=model)
    after = pickle.loads(pickle.dumps(float32_weights.treat(before, (x, y))))
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
    plain = float32.treat(before, (x, y))
    assert plain.model(*prepared(plain, (x, y)).args).dtype == torch.float32
    assert list(plain.model.state_dict()) == list(model.state_dict())
    for cure in (float32, float32_weights):
        with pytest.raises(DoesNotApply, match="float32 already"):
            cure.treat(plain, (x, y))


def test_updates_that_were_rounded_away_are_kept():
    case = by_name("learning-rate-below-bf16")
    model, batch, loss = case.build()
    before = Training(model, loss, Recipe.of(case.optimizer(model), model))
    after = float32_weights.treat(before, batch)
    made = after.optimizer.build(after.model)
    found = sp.diagnose(after.model, again(prepared(after, batch)), loss, optimizer=made).findings
    # what is left to say is that 1e-5 is slow; no update is lost any more
    assert "share of weights" not in {f.unit for f in found if f.code == "SP211"}
