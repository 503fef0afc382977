"""Closed forms, and the table of cures: expected against measured over many orders of magnitude."""

import math

import numpy as np
import pytest
from tests.theory.networks import BLOCKS, log_ratio

from signalprop.errors import SignalpropError
from signalprop.theory import blocks, residual_rectified, table

ROWS = {row.key: row for row in table.rows(50)}


def test_printed_figures():
    """The column "theory" of the published table, 1.21 of field/cures.md, depth 30, 50 and 100."""
    asymptotic = {
        "tanh-gain": (16, 1.1e2, 1.2e4),
        "relu-he": (1, 1, 1),
        "selu-lecun": (2.7, 5.4, 31),
        "highway-1": (1.1e-4, 2.2e-7, 3.4e-14),
        "highway-2": (0.025, 0.002, 3.5e-6),
        "highway-4": (0.59, 0.41, 0.17),
    }
    for key, printed in asymptotic.items():
        for depth, value in zip(table.DEPTHS, printed, strict=True):
            assert ROWS[key].asymptotic(depth).ratio == pytest.approx(value, rel=0.05)
    exact = {
        "relu-default": (5.2e-12, 8.6e-20, 3e-39),
        "residual": (2.3e4, 2.4e7, 8e14),
        "batch-norm": (259, 1.2e4, 1.7e8),
        "rezero": (1, 1, 1),
        "looks-linear": (1, 1, 1),
        "layer-norm": (1, 1, 1),
    }
    for key, printed in exact.items():
        for depth, value in zip(table.DEPTHS, printed, strict=True):
            assert ROWS[key].ratio(depth) == pytest.approx(value, rel=0.03)
    # 1.2e-7 in the table is 3^-14.5, without the biases that make it a little less at width 50
    assert blocks.plain("tanh", 1 / 3, blocks=29).ratio == pytest.approx(1.2e-7, rel=0.02)
    assert ROWS["residual-scaled"].ratio(3000) == pytest.approx(math.sqrt(math.e), rel=1e-3)


def test_rows_are_those_that_are_measured():
    assert set(ROWS) == set(BLOCKS)
    assert all(ROWS[key].expected(30).formula and ROWS[key].expected(30).source for key in ROWS)


@pytest.mark.parametrize("key", sorted(BLOCKS))
def test_thirty_layers_of_width_fifty(key):
    """Within a factor of 3 (5 for ReLU with biases), geometric mean of six networks."""
    found = float(np.mean([log_ratio(key, 30, seed) for seed in range(6)]))
    factor = 5.0 if key == "relu-default" else 3.0
    assert abs(found - ROWS[key].expected(30).nats) < math.log(factor)


def test_nineteen_orders_of_magnitude():
    """At 50 and 100 layers: each within what a network of width 50 scatters by."""
    span, misses = [], []
    for depth in (50, 100):
        for key, row in ROWS.items():
            found = float(np.mean([log_ratio(key, depth, seed) for seed in range(2)]))
            # the mean of the logarithm lies 5 L / 4 n below, its scatter is half sqrt(5 L / n)
            width = 5 * depth / 4 / 50
            allowed = width + 2.5 * math.sqrt(5 * depth / 50) / 2 / math.sqrt(2)
            misses.append((abs(found - row.expected(depth).nats) / allowed, key, depth))
            span.append(found / math.log(10))
    assert max(misses)[0] < 1.0, max(misses)
    assert max(span) - min(span) > 19 * 2
    # where the block is nearly the identity there is next to no scatter
    for key in ("highway-2", "highway-4", "tanh-orthogonal", "looks-linear", "rezero", "fixup"):
        found = log_ratio(key, 100, 0)
        assert found == pytest.approx(ROWS[key].expected(100).nats, abs=0.15)


def test_common_part_of_the_rectified_residual_grows_faster():
    wide = residual_rectified(2.0, blocks=60)
    narrow = residual_rectified(2.0, blocks=60, width=50)
    assert math.exp(wide.rates[30]) == pytest.approx(1.43, abs=0.01)
    assert narrow.nats > wide.nats
    deep = residual_rectified(2.0, blocks=400, width=50)
    assert math.exp(deep.rates[100]) == pytest.approx(1.55, abs=0.01)
    assert deep.nats == pytest.approx(400 * math.log(1.55), rel=0.02)


def test_highway_without_weights_is_its_carry():
    found = blocks.highway(-2.0, blocks=7)
    assert found.ratio == pytest.approx((1 - 1 / (1 + math.exp(2))) ** 7, rel=1e-12)
    assert found.rates.shape == (7,)


def test_batch_norm_of_relu():
    assert math.exp(blocks.batch_norm("relu", blocks=1).rate) == pytest.approx(
        math.sqrt(math.pi / (math.pi - 1)), rel=1e-10
    )


def test_clear_errors():
    with pytest.raises(SignalpropError, match="zero blocks or more"):
        blocks.rezero(blocks=-1)
    with pytest.raises(SignalpropError, match="weight_variance"):
        residual_rectified(0.0, blocks=3)
