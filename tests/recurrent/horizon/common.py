"""Curves of credit as the tests of the horizon ask for them."""

import pytest
import torch
from torch import nn

from signalprop.recurrent.horizon.measure import horizon

D = torch.float64


def draw(*shape):
    return torch.randn(*shape, dtype=D)


def curves(model, x, **options):
    return horizon(model, x, gains=False, **options).curves


def agree(a, b, rel=1e-9):
    assert a.lags == b.lags
    assert a.credit == pytest.approx(b.credit, rel=rel)


class Cells(nn.Module):
    def __init__(self, cell, between=None):
        super().__init__()
        self.cell, self.between = cell, between

    def forward(self, x):
        state = None
        for one in x:
            state = self.cell(one, state)
            if self.between is not None:
                state = self.between(state)
        return state
