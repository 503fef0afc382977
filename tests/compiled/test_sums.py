"""Sums in one pass through memory, against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from signalprop.compiled import sums
from signalprop.compiled.sums import Table

SIZES = (1, 7, 8, 16, 31, 256, 257, 1000, (1 << 16) + 5, 3 * (1 << 16), (1 << 20) + 3)


@pytest.fixture(autouse=True)
def _built():
    if sums.functions() is None:
        pytest.skip(f"no compiled sums here: {sums.LIBRARY.status()}")


def some(size, seed=0, scale=1.0):
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def close(found, x):
    return found == pytest.approx(float(x), rel=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.usefixtures("threads")
def test_square_sum(size, scale):
    """Also where the squares lie beyond float32."""
    x = some(size, scale=scale)
    assert close(sums.square_sum(x), x.double().square().sum())


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((128, 256), 1),
        ((4, 33), 1),
        ((4, 3, 5, 7), 1),
        ((2, 5, 40), 2),
        ((2, 40, 65), 1),
        ((9,), 0),
    ],
)
@pytest.mark.usefixtures("threads")
def test_count_units(shape, dim):
    x = some(shape)
    square, counts = sums.count_units(x, dim, -1.0, 0.5)
    others = [d for d in range(x.ndim) if d != dim]
    outside = (x > 0.5) | (x < -1)
    assert close(square, x.double().square().sum())
    assert counts.tolist() == (outside.sum(others) if others else outside).tolist()


def test_bounds_are_strict_and_nothing_is_below_minus_infinity():
    x = torch.tensor([[0.0, 1.0, -1.0, -math.inf, math.inf, 0.5]])
    assert sums.count_units(x, 1, -1.0, 0.5)[1].tolist() == [0, 1, 0, 1, 1, 0]
    assert sums.count_units(x, 1, -math.inf, 0.0)[1].tolist() == [0, 1, 0, 0, 1, 1]


def test_what_is_no_number_is_left_to_others():
    x = some((4, 8))
    x[1, 3] = math.nan
    assert sums.count_units(x, 1, -1.0, 1.0) is None
    assert math.isnan(sums.square_sum(x))


def test_what_it_cannot_take():
    x = some((4, 6))
    for other in (x.double(), x.bfloat16(), x.t(), x[:, ::2], x.to_sparse(), x.to("meta")):
        assert sums.square_sum(other) is None
        assert sums.count_units(other, 1, 0.0, 1.0) is None
    assert not sums.is_flat(torch.complex(x, x).conj().imag)
    assert sums.square_sum(nn.Parameter(x)) == sums.square_sum(x)


@pytest.mark.usefixtures("threads")
def test_updates():
    w, g, e = ([some(size, seed) for size in SIZES] for seed in (1, 2, 3))
    copies = [torch.empty_like(x) for x in w]
    known = [k % 3 != 0 for k in range(len(SIZES))]
    rows = Table(SIZES, 4, 4)
    rows.addresses[:] = [
        address
        for x, y, z, copy, is_known in zip(w, g, e, copies, known, strict=True)
        for address in (x.data_ptr(), y.data_ptr(), z.data_ptr() * is_known, copy.data_ptr())
    ]
    found = rows.before_update().tolist()
    for x, y, z, copy, is_known, row in zip(w, g, e, copies, known, found, strict=True):
        assert torch.equal(x, copy)
        x, y, z = x.double(), y.double(), z.double() * is_known
        for value, right in zip(row, (x @ x, y @ y, z @ z, y @ z), strict=True):
            assert value == pytest.approx(right.item(), rel=1e-12, abs=1e-9)
    new = [x + 1e-3 * some(len(x), 4) for x in w]
    rows = Table(SIZES, 3, 2)
    rows.addresses[:] = [x.data_ptr() for trio in zip(copies, new, g, strict=True) for x in trio]
    for x, now, y, row in zip(w, new, g, rows.after_update().tolist(), strict=True):
        change = x.double() - now.double()
        right = [(change @ change).item(), (change @ y.double()).item()]
        assert row == pytest.approx(right, rel=1e-9, abs=1e-12)


def test_glance():
    """All of a small tensor; of a large one a sample; what is missing or not finite is told."""
    tensors = [some(200), some(255) * 3, some(50_000), some(300), some(40)]
    tensors[3][:] = math.nan
    table = Table([len(x) for x in tensors], 1, 1)
    table.addresses[:] = [x.data_ptr() for x in tensors[:4]] + [0]
    few, many, sample, nothing, missing = table.glance(16, 16)[:, 0]
    for found, x in ((few, tensors[0]), (many, tensors[1])):
        assert close(found, x.double().square().mean().sqrt())
    assert sample == pytest.approx(1, abs=0.2)
    assert nothing == math.inf
    assert math.isnan(missing)


def test_a_glance_goes_from_end_to_end():
    """Runs are spread over the whole tensor and stay within it."""
    x = torch.zeros(10_000)
    table = Table([len(x)], 1, 1)
    table.addresses[:] = [x.data_ptr()]
    places = []
    for i in range(0, len(x), 16):
        x.zero_()
        x[i : i + 16] = 1
        if table.glance(16, 16)[0, 0] > 0:
            places.append(i)
    assert min(places) == 0
    assert max(places) > 9_000
    assert len(places) >= 16
