"""Networks with a weight that starts at zero on purpose, and layers of one unit."""

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.diagnosis.support import evidence_of, features, judge, labels, rehearsal
from torch import nn

from signalprop.diagnosis.depth import backward as back
from signalprop.diagnosis.depth import forward as forth
from signalprop.diagnosis.engine import diagnose
from signalprop.diagnosis.program.symmetry import symmetric
from signalprop.diagnosis.rule import NotApplicable
from signalprop.nets.residual import ResidualNet

OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("branch", ["skipinit", "fixup"])
def test_branches_that_start_at_zero_are_silent(branch, kind, optimizer):
    torch.manual_seed(0)
    model = ResidualNet(16, 32, 10, 5, kind=kind, branch=branch)
    batch = (features(64), labels(64))
    found = diagnose(model, batch, F.cross_entropy, OPTIMIZERS[optimizer](model))
    assert found.findings == ()
    told = [e.reason for e in found.expected.values() if e.expected is None]
    assert told == []  # theory knows what to expect of every block
    stream = [found.expected[b.end] for b in found.trace.blocks if b.residual]
    assert len(stream) == 10
    assert all(e.expected == 0.0 == e.measured for e in stream)


def test_a_layer_that_wakes_up_is_not_idle():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))
    evidence = evidence_of(model, (features(), labels()), F.cross_entropy)
    for later, fires in ((0.0, True), (1e-12, False)):
        still = rehearsal(
            model,
            share={"0": 0.0, "2": 1.0},
            later_share={"0": later, "2": 1.0},
            update_ratio={"0": 0.0, "2": 1e-3},
        )
        object.__setattr__(evidence, "learning", still)
        assert bool(judge(back.idle_layer, evidence)) == fires


def test_units_kept_apart_by_a_stream_behind_a_learnt_number():
    torch.manual_seed(0)
    model = ResidualNet(16, 32, 2, 5, branch="fixup")
    evidence = evidence_of(model, (features(), labels()), F.cross_entropy)
    assert judge(symmetric, evidence) == []
    case = by_name("zero-init")
    model, batch, loss = case.build()
    assert judge(symmetric, evidence_of(model, batch, loss))


def test_a_last_hidden_layer_of_one_unit_has_no_cosine():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1), nn.Sigmoid())
    model.append(nn.Linear(1, 5))
    evidence = evidence_of(
        model, (features(), labels()), F.cross_entropy, learning=rehearsal(model)
    )
    with pytest.raises(NotApplicable, match="one wide"):
        forth.relative_distance(evidence.trace)
    model[2], model[4] = nn.Linear(8, 2), nn.Linear(2, 5)
    again = evidence_of(model, (features(), labels()), F.cross_entropy)
    assert forth.relative_distance(again.trace) > 0
