"""Models that call torch's transforms of functions, inside which nothing has values to look at."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import signalprop as sp


class Within(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 8), nn.Linear(8, 2), how

    def forward(self, x):
        if self.how == "vmap":
            return self.b(torch.vmap(lambda row: F.relu(self.a(row)))(x))
        h = torch.tanh(self.a(x))
        return self.b(h) + torch.func.jacrev(lambda z: self.b(torch.tanh(z)))(h[0]).sum()


@pytest.mark.parametrize("how", ["vmap", "jacrev"])
def test_what_is_outside_is_seen(how):
    torch.manual_seed(0)
    model, x = Within(how), torch.randn(6, 4)
    trace = sp.trace(model, x, lambda y: y.square().mean())
    assert trace.sites["b"].delta.rms > 0
    assert ("a" in trace.sites) == (how == "jacrev")
    assert sp.diagnose(model, x, lambda y: y.square().mean()).verdict
