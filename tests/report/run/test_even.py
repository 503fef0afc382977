"""Columns of equal width: nothing is lost when narrow ones are joined, and cells cover them all."""

import numpy as np
import pytest
from tests.report.run import samples

from signalprop.report.run.even import grid, joined
from signalprop.report.run.heat import edges
from signalprop.watching.file.reader import Run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return samples.write(tmp_path_factory.mktemp("runs") / "run.sp", steps=range(0, 33_000, 10),
                         blocks=1)  # fmt: skip


@pytest.mark.parametrize("columns", [20, 33, 100, 250, 1000])
def test_joined(path, columns):
    with Run(path) as run:
        found = run.values("gradient_norm", columns=columns)
        every = run.values("gradient_norm")
    made = joined(found)
    assert made.samples.sum() == found.samples.sum() == 3300
    assert made.first[0] == 0
    assert made.last[-1] == 32_990
    assert (made.first[1:] > made.last[:-1]).all()
    assert made.samples.min() >= 0.7 * np.median(made.samples)
    for k, (first, last) in enumerate(zip(made.first, made.last, strict=True)):
        inside = every.mean[(every.first >= first) & (every.first <= last)].astype(np.float64)
        np.testing.assert_allclose(made.mean[k], np.exp(np.log(inside).mean(axis=0)), rtol=1e-4)
        np.testing.assert_array_equal(made.high[k], inside.max(axis=0).astype(np.float32))
    cells = grid(edges(made.first, made.last))
    assert cells is not None
    start, width, column = cells
    assert (np.diff(column) >= 0).all()
    assert set(column) == set(range(len(made.first)))
    # a cell lies where its column lies, give or take one cell
    middles = start + width * np.arange(len(column))
    true = (made.first + made.last)[column] / 2
    assert np.abs(middles - true).max() < 1.1 * width


def test_uneven_columns_keep_their_edges():
    assert grid(np.array([0.0, 1.0, 2.0, 1000.0, 1001.0])) is None
    assert grid(np.array([0.0, 1.0])) is None
    start, width, column = grid(np.array([0.0, 2.0, 4.0, 6.0]))
    assert (start, width, column.tolist()) == (1.0, 2.0, [0, 1, 2])
