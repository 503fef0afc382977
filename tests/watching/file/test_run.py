"""What is written to a run file is what is read from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.watching.file.recorded import recorded, same_columns, sites_of, values_of

from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter


def test_everything(tmp_path: Path) -> None:
    """Each kind of thing once."""
    path = tmp_path / "run.sp"
    states = {"cpu": bytes(range(256)), "python": b""}
    with RunWriter(path, meta={"lr": 0.1, "names": ["a", 1, None]}) as writer:
        a = writer.add_sites(sites_of(3, "generator"))
        b = writer.add_sites(sites_of(2, "critic"))
        assert writer.add_sites(sites_of(3, "generator")).tolist() == a.tolist()
        writer.put(10, {"rms": [1.0, 2.0, 3.0]}, a)
        writer.put(10, {"rms": [4.0, 5.0], "dead": [0.5, np.nan]}, b)
        writer.put(20, {"rms": np.arange(5.0)})
        writer.scalar(10, {"loss": 2.5, "lr": 0.1})
        writer.scalar(11, {"loss": 2.25})
        writer.alert(20, "SP401", "issue", "critic.s1", {"value": 7})
        writer.alert(21, "SP402", "tip")
        writer.window(20, "loss spike", [17, 18, 19], {"rms": np.arange(15.0).reshape(3, 5)})
        writer.replay(20, "critic.s0", 3, states, {"epoch": 1})
        writer.set_meta("model", {"layers": 3})
    with Run(path) as run:
        assert run.meta == {"lr": 0.1, "names": ["a", 1, None], "model": {"layers": 3}}
        assert run.sites == (*sites_of(3, "generator"), *sites_of(2, "critic"))
        assert run.steps.tolist() == [10, 20]
        assert run.statistics == ("rms", "dead")
        assert run.values("rms").mean.tolist() == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]
        dead = run.values("dead", sites=["critic.s1", "critic.s0", "generator.s0"], stop=20)
        np.testing.assert_array_equal(dead.mean, [[np.nan, 0.5, np.nan]])
        assert dead.count.tolist() == [[0, 1, 0]]
        steps, losses = run.scalars()["loss"]
        assert steps.tolist() == [10, 11]
        assert losses.tolist() == [2.5, 2.25]
        assert [(x.step, x.code, x.severity, x.site, x.detail) for x in run.alerts] == [
            (20, "SP401", "issue", "critic.s1", {"value": 7}),
            (21, "SP402", "tip", None, None),
        ]
        (window,) = run.windows
        assert (window.step, window.reason, window.steps.tolist()) == (
            20,
            "loss spike",
            [17, 18, 19],
        )
        assert window.values["rms"].tolist() == np.arange(15.0).reshape(3, 5).tolist()
        (replay,) = run.replays
        assert (replay.step, replay.site, replay.batch) == (20, "critic.s0", 3)
        assert replay.states == states
        assert replay.detail == {"epoch": 1}
        with pytest.raises(SignalpropError, match="no statistic 'x'; it has rms, dead"):
            run.values("x")
        with pytest.raises(SignalpropError, match="no site 'y'"):
            run.values("rms", sites="y")


def test_copied(tmp_path: Path) -> None:
    """The caller may use its array again."""
    row = np.zeros(2, np.float32)
    with RunWriter(tmp_path / "run.sp", every=60) as writer:
        writer.add_sites(sites_of(2))
        for step in range(3):
            row[:] = step
            writer.put(step, {"rms": row})
    with Run(writer.path) as run:
        assert run.values("rms").mean[:, 0].tolist() == [0, 1, 2]


def test_late_sites_and_statistics(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.sp", every=0.01) as writer:
        first = writer.add_sites(sites_of(2))
        for step in range(40):
            writer.put(step, {"rms": [1.0, 2.0]}, first)
        more = writer.add_sites([RunSite("late")])
        for step in range(40, 100):
            writer.put(step, {"rms": [1.0, 2.0, 3.0]})
            writer.put(step, {"dead": [0.5]}, more)
        assert writer.flush()
        with Run(writer.path) as run:
            values = run.values("rms")
            assert np.isnan(values.mean[:40, 2]).all()
            assert (values.mean[40:, 2] == 3).all()
            few = run.values("rms", columns=6)
            assert few.count[:, 2].sum() == 60
            assert few.count[:, 0].sum() == 100
            assert run.values("dead", columns=6).count.sum() == 60


def test_resumed(tmp_path: Path) -> None:
    """The steps done again replace those that were recorded; levels are as if done in one go."""
    values = values_of(900, 5)
    path = recorded(tmp_path / "run.sp", values_of(803, 5))
    with RunWriter(path, mode="resume", log={"rms"}) as writer:
        writer.add_sites(sites_of(5))
        with Run(path) as run:
            cursor = run.cursor
        writer.alert(500, "X", "tip")
        for step in range(500, 900):
            writer.put(step, {"rms": values[step], "mean": -values[step]})
    with Run(path) as run:
        assert run.since(cursor).restarted
        found = run.values("rms").mean
        values[:500] = found[:500]
        np.testing.assert_array_equal(found, values)
        for columns in (2, 9, 50):
            same_columns(run.values("rms", columns=columns), values, 1, log=True)
        assert len(run.alerts) == 1
    with RunWriter(path, mode="resume"):
        pass  # nothing was recorded, nothing is lost
    with Run(path) as run:
        assert len(run.steps) == 900


def test_followed(tmp_path: Path) -> None:
    """A page that asks again and again has everything in the end, and nothing wrong between."""
    values = values_of(200, 4)
    known: dict[int, np.ndarray] = {}
    losses: list[float] = []
    alerts: list[int] = []
    with RunWriter(tmp_path / "run.sp", every=0.002) as writer:
        first = writer.add_sites(sites_of(2))
        second = writer.add_sites(sites_of(4)[2:])
        assert writer.flush()
        with Run(writer.path) as run:
            cursor = None
            for step, row in enumerate(values):
                writer.put(step, {"rms": row[:2]}, first)
                if step % 7 == 0:
                    assert writer.flush()
                writer.scalar(step, {"loss": step})
                if step % 50 == 0:
                    writer.alert(step, "X", "tip")
                if step % 5 == 0 or step == 199:
                    writer.put(step, {"rms": row[2:]}, second)
                    assert writer.flush()
                    more = True
                    while more:
                        news = run.since(cursor, limit=3)
                        cursor, more = news.cursor, news.more
                        known |= {k: v["rms"] for k, v in news.values.items()}
                        losses += [v for _, _, v in news.scalars]
                        alerts += [x.step for x in news.alerts]
                    assert sorted(known) == list(range(step + 1))
                else:
                    writer.put(step, {"rms": row[2:]}, second)
            assert not run.since(cursor).values
            assert run.since("nonsense").restarted
            assert run.since(":".join(["x"] * 9)).restarted
    np.testing.assert_array_equal(np.stack([known[k] for k in range(200)]), values)
    assert losses == list(range(200))
    assert alerts == [0, 50, 100, 150]
