"""Graded matrices by themselves."""

import torch

from signalprop.jacobian import graded
from signalprop.jacobian.graded import Graded


def test_windows_cover_every_value_once():
    d = torch.linspace(0, -200, 77, dtype=torch.float64).expand(2, -1).clone()
    d[1] *= 0.7
    d[1, 60:] = -torch.inf
    found = graded._windows(d)
    assert [w.core_first for w in found] == [0, *(w.core_last for w in found[:-1])]
    assert found[-1].core_last == 77
    assert all(w.first <= w.core_first < w.core_last <= w.last for w in found)


def test_samples_that_share_no_windows():
    """One sample falls at once, the other at the end."""
    draw = torch.Generator().manual_seed(0)
    T = torch.randn(2, 12, 12, generator=draw, dtype=torch.float64)
    d = torch.zeros(2, 12, dtype=torch.float64)
    d[0, 1:] = -60 * torch.arange(1, 12)
    d[1, -1] = -90
    both = Graded(d, T, triangular=False).decompose(rotate=True)
    for i in range(2):
        one = Graded(d[i : i + 1], T[i : i + 1], triangular=False).decompose(rotate=True)
        assert torch.allclose(both.log_values[i], one.log_values[0], atol=1e-9)
    total = torch.linalg.slogdet(T)[1] + d.sum(-1)
    assert torch.allclose(both.log_values.sum(-1), total)
