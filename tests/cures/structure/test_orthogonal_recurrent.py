"""`orthogonal-recurrent`: every gate's recurrent matrix orthogonal, all else as it was."""

from __future__ import annotations

import pytest
import torch
from tests.cures.everywhere import on_all_cases
from torch import nn

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.structure.recurrent import identity_recurrent, orthogonal_recurrent
from signalprop.errors import SignalpropError


@pytest.mark.parametrize("gain", [1.0, 0.9])
@pytest.mark.parametrize(
    "layer",
    [
        nn.RNN(3, 6),
        nn.GRU(3, 6, num_layers=2, bidirectional=True),
        nn.LSTM(3, 6, batch_first=True),
        nn.LSTMCell(3, 6),
        nn.RNN(3, 6).double(),
        nn.GRUCell(3, 6).bfloat16(),
    ],
    ids=str,
)
def test_every_gate_for_itself(layer, gain):
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    cured = orthogonal_recurrent(layer, gain=gain)
    close = 0.02 if next(layer.parameters()).dtype == torch.bfloat16 else 1e-5
    for name, p in cured.named_parameters():
        if "weight_hh" in name:
            for block in p.detach().double().split(6):
                spread = torch.linalg.svdvals(block)
                torch.testing.assert_close(
                    spread, torch.full_like(spread, gain), atol=close, rtol=0
                )
            assert not torch.equal(p, before[name])
        else:
            assert torch.equal(p, before[name])
        assert torch.equal(layer.get_parameter(name), before[name])


def test_as_the_plain_start_of_tanh_layers():
    layer = nn.RNN(3, 6)
    torch.manual_seed(0)
    one = identity_recurrent(layer)
    torch.manual_seed(0)
    other = orthogonal_recurrent(layer)
    assert torch.equal(one.weight_hh_l0, other.weight_hh_l0)
    assert not one.bias_hh_l0.any()
    assert torch.equal(other.bias_hh_l0, layer.bias_hh_l0)


def test_what_it_refuses():
    with pytest.raises(DoesNotApply, match="no recurrent layer"):
        orthogonal_recurrent(nn.Linear(3, 3))
    for wrong in (0.0, -1.0, float("inf"), "1", True):
        with pytest.raises(SignalpropError, match="gain has to be"):
            orthogonal_recurrent(nn.RNN(3, 3), gain=wrong)


def test_on_all_cases():
    on_all_cases(orthogonal_recurrent)
