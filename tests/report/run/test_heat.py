"""The numbers of heat maps and curves: heights, special cells, limits, spikes that stay."""

import numpy as np
import pytest
from tests.report.run import samples

from signalprop.report.run.curves import curves, ordered, thinned
from signalprop.report.run.heat import INFINITE, ZERO, beginning, cut, edges, heat, limits, rows
from signalprop.report.run.timeline import caption
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with Run(samples.write(tmp_path_factory.mktemp("runs") / "run.sp")) as run:
        yield run


def test_heights_of_a_log_statistic_are_powers_of_ten(run):
    found = heat(run, "gradient_norm", columns=400)
    values = run.values("gradient_norm").mean.T
    np.testing.assert_allclose(found.height, np.log10(values), rtol=1e-6)
    assert found.height.shape == (38, 201)
    assert found.log


def test_heights_of_a_share_are_shares(run):
    found = heat(run, "dead", columns=400)
    np.testing.assert_array_equal(found.height, run.values("dead").mean.T)
    assert limits([found])[0] == 0.0


def test_change_is_against_the_first_value_that_counts(run):
    found = heat(run, "gradient_norm", columns=400, scale="change")
    values = run.values("gradient_norm").mean.T.astype(np.float64)
    base = beginning(run, "gradient_norm")
    expected = np.log10(values / base[:, None])
    np.testing.assert_allclose(found.height, expected, atol=1e-5)
    low, high = limits([found])
    assert low == -high
    layer = found.height[7]  # block1.attention.query, which vanished
    assert layer[-1] < -5


def test_special_cells(run):
    found = heat(run, "activation_rms", columns=400)
    assert (found.special[-3:, -11:] == INFINITE).all()
    assert np.isnan(found.height[-3:, -11:]).all()
    assert np.isnan(found.special[:-3]).all()
    found = heat(run, "delta_rms", columns=400)
    assert (found.special[:4, -11:] == ZERO).all()


def test_a_single_wild_step_shows_in_the_highest_of_joined_ones(tmp_path):
    with RunWriter(tmp_path / "run.sp", log=["gradient_norm"]) as writer:
        writer.add_sites([RunSite("a"), RunSite("b")])
        for step in range(2000):
            writer.put(step, {"gradient_norm": [1.0, np.inf if step == 777 else 1.0]})
    with Run(tmp_path / "run.sp") as run:
        found = heat(run, "gradient_norm", columns=100)
    assert (found.special == INFINITE).sum() == 1
    column = int(np.argmax(found.special[1] == INFINITE))
    assert found.first[column] <= 777 <= found.last[column]


def test_sites_that_were_not_measured_are_left_out(tmp_path):
    with RunWriter(tmp_path / "run.sp") as writer:
        writer.add_sites([RunSite(name) for name in "abc"])
        for step in range(10):
            writer.put(step, {"attention_entropy": [np.nan, 1.0, np.nan]})
    with Run(tmp_path / "run.sp") as run:
        found = heat(run, "attention_entropy")
    keep = rows([found])
    assert keep.tolist() == [1]
    assert cut(found, keep).sites == ("b",)


def test_a_statistic_of_a_users_own_is_log_where_it_spans_decades(tmp_path):
    with RunWriter(tmp_path / "run.sp") as writer:
        writer.add_sites([RunSite("a"), RunSite("b")])
        writer.put(0, {"wide": [1e-6, 1.0], "narrow": [0.5, 1.0]})
    with Run(tmp_path / "run.sp") as run:
        assert heat(run, "wide").log
        assert not heat(run, "narrow").log


def test_a_part_of_a_run_has_the_scale_of_the_whole(tmp_path):
    with RunWriter(tmp_path / "run.sp") as writer:
        writer.add_sites([RunSite("a")])
        for step in range(100):
            writer.put(step, {"mine": [10.0 ** (-step / 10)]})
    with Run(tmp_path / "run.sp") as run:
        part = heat(run, "mine", start=50, stop=55)
        assert part.log
        np.testing.assert_allclose(part.height[0], -np.arange(50, 55) / 10, atol=1e-6)


def test_a_users_own_statistic_is_joined_as_it_was_recorded(tmp_path):
    values = 10.0 ** np.random.uniform(-3, 3, 3000)
    with RunWriter(tmp_path / "run.sp", log=["logged"]) as writer:
        writer.add_sites([RunSite("a")])
        for step, value in enumerate(values):
            writer.put(step, {"logged": [value], "plain": [value]})
    with Run(tmp_path / "run.sp") as run:
        for name, mean, told in (
            ("logged", lambda v: np.exp(np.log(v).mean()), "(geometric mean)"),
            ("plain", np.mean, "(mean)"),
        ):
            found = heat(run, name, columns=60)
            assert found.log  # both are drawn on one
            assert told in caption(found)
            for k, (first, last) in enumerate(zip(found.first, found.last, strict=True)):
                wanted = mean(values[first : last + 1])
                np.testing.assert_allclose(found.value[0, k], wanted, rtol=1e-4)


@pytest.mark.parametrize("values", [[0.0, 0.0], [np.nan, np.nan], [1.0, 1.0], [np.inf, 1.0]])
def test_limits_of_odd_maps_are_a_stretch(tmp_path, values):
    with RunWriter(tmp_path / "run.sp", log=["gradient_norm"]) as writer:
        writer.add_sites([RunSite("a"), RunSite("b")])
        names = ("gradient_norm", "dead", "attention_logit", "learning_share", "update_ratio")
        writer.put(0, dict.fromkeys(names, values))
    with Run(tmp_path / "run.sp") as run:
        for name in names:
            low, high = limits([heat(run, name)])
            assert low < high


def test_limits_hold_for_all_runs(run, tmp_path):
    with RunWriter(tmp_path / "run.sp", log=["gradient_norm"]) as writer:
        writer.add_sites([RunSite("a")])
        for step in range(300):
            writer.put(step, {"gradient_norm": [1e-12]})
    with Run(tmp_path / "run.sp") as other:
        pair = [heat(run, "gradient_norm"), heat(other, "gradient_norm")]
    assert limits(pair)[0] == pytest.approx(-12)
    assert limits(pair) == limits(pair[::-1])


def test_edges_lie_half_way():
    found = edges(np.array([0, 10, 30]), np.array([5, 20, 30]))
    assert found.tolist() == [-2.5, 7.5, 25.0, 35.0]
    assert edges(np.array([7]), np.array([7])).tolist() == [6.5, 7.5]
    assert len(edges(np.array([]), np.array([]))) == 0


# ---- curves --------------------------------------------------------------------------------------


def test_curves(run):
    found = curves(run, start=1000, stop=2000)
    assert list(found.scalars) == ["loss", "learning_rate", "accuracy"]
    assert found.loss == "loss"
    at, values = found.scalars["loss"]
    assert (at[0], at[-1]) == (1000, 1950)
    np.testing.assert_allclose(values[0], samples.loss(1000, sick=True))


def test_thinning_keeps_spikes_and_ends():
    values = np.zeros(100_000)
    values[54_321], values[777] = 9.0, -3.0
    values[90_000] = np.nan
    at, kept = thinned(np.arange(100_000), values, 500)
    assert len(at) <= 502
    assert 54_321 in at
    assert 777 in at
    assert np.isnan(kept).sum() == 1
    assert at[-1] == 99_999
    assert (np.diff(at) > 0).all()


def test_order():
    names = ["skipped", "mine", "learning_rate", "loss_scale", "loss"]
    assert ordered(names) == ["loss", "learning_rate", "mine", "loss_scale", "skipped"]
