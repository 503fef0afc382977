"""Every cure of the optimizer on networks that are healthy, sick and odd."""

from __future__ import annotations

import pickle

import pytest
import torch
from tests.cases import by_name

from signalprop.cures.cure import Cure
from signalprop.cures.program import optimizer, precision, rate, updates
from signalprop.cures.training import Recipe, Training
from signalprop.errors import SignalpropError

CURES = [
    v
    for home in (rate, updates, optimizer, precision)
    for v in vars(home).values()
    if isinstance(v, Cure)
]
#: enough to run, too few to choose well
QUICK = {"lower-learning-rate": 1, "raise-learning-rate": 1}
NAMES = (
    "softmax-cross-entropy", "nan-data", "labels-from-one", "own-softmax-overflows",
    "optimizer-misses-new-head", "batchnorm-batch-of-one", "bf16", "dict-output", "all-frozen",
    "raises-in-forward", "wrong-shape", "returns-a-string", "detached-output", "meta-device",
    "loss-per-sample", "empty-batch", "own-loss-missing", "produces-nan", "left-in-eval",
)  # fmt: skip


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
