"""What is written to a run file is what is read from it, at every resolution."""

from __future__ import annotations

import random
import sqlite3
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signalprop.errors import MissingPackageError, SignalpropError
from signalprop.watching.file.levels import Bins, exact
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter


def _sites(count: int, model: str = "") -> list[RunSite]:
    return [
        RunSite(f"{model}{'.' if model else ''}s{k}", "relu", "slope", model) for k in range(count)
    ]


def _values(steps: int, sites: int) -> np.ndarray:
    """Numbers over many decades, with everything that may turn up among them."""
    made = 10.0 ** np.random.uniform(-30, 30, (steps, sites))
    made[np.random.rand(steps, sites) < 0.05] = 0.0
    made[np.random.rand(steps, sites) < 0.05] = np.nan
    made[np.random.rand(steps, sites) < 0.02] = np.inf
    made[:, 0] = np.nan
    made[:, 1] = 0.0
    return made.astype(np.float32)


def _recorded(path: Path, values: np.ndarray, every: int = 1, **options: Any) -> Path:
    with RunWriter(path, log={"rms"}, every=0.01, **options) as writer:
        writer.add_sites(_sites(values.shape[1]))
        for k, row in enumerate(values):
            writer.put(k * every, {"rms": row, "mean": -row})
    assert writer.failed is None
    assert writer.dropped == 0
    return path


def _twin(values: np.ndarray, *, log: bool) -> tuple[np.ndarray, ...]:
    """One column, value by value."""
    mean, low, high, count = (np.full(values.shape[1], np.nan) for _ in range(4))
    for k, column in enumerate(values.T.astype(np.float64)):
        seen = column[~np.isnan(column)]
        fit = seen[np.isfinite(seen) & ((seen > 0) | (not log))]
        count[k] = len(fit)
        if len(seen):
            low[k], high[k] = seen.min(), seen.max()
        if len(fit):
            mean[k] = np.exp(np.log(fit).mean()) if log else fit.mean()
        elif len(seen) and seen.min() == seen.max():
            mean[k] = seen[0]
    return mean, low, high, count


def _same_columns(found: Any, values: np.ndarray, every: int, *, log: bool) -> None:
    for j, (a, b) in enumerate(zip(found.first // every, found.last // every, strict=True)):
        mean, low, high, count = _twin(values[a : b + 1], log=log)
        assert found.samples[j] == b - a + 1
        np.testing.assert_allclose(found.mean[j], mean, rtol=1e-4)
        np.testing.assert_array_equal(found.low[j], low.astype(np.float32))
        np.testing.assert_array_equal(found.high[j], high.astype(np.float32))
        np.testing.assert_array_equal(found.count[j], count)


def test_everything(tmp_path: Path) -> None:
    """Each kind of thing once."""
    path = tmp_path / "run.sp"
    states = {"cpu": bytes(range(256)), "python": b""}
    with RunWriter(path, meta={"lr": 0.1, "names": ["a", 1, None]}) as writer:
        a = writer.add_sites(_sites(3, "generator"))
        b = writer.add_sites(_sites(2, "critic"))
        assert writer.add_sites(_sites(3, "generator")).tolist() == a.tolist()
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
        assert run.sites == (*_sites(3, "generator"), *_sites(2, "critic"))
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


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 64, 700, 1500])
def test_levels(tmp_path: Path, steps: int) -> None:
    values = _values(steps, 6)
    with Run(_recorded(tmp_path / "run.sp", values, 5)) as run:
        np.testing.assert_array_equal(run.values("rms").mean, values)
        np.testing.assert_array_equal(run.values("mean").mean, -values)
        for columns in (1, 3, 10, 40, 200, 5000):
            found = run.values("rms", columns=columns)
            assert min(steps, columns) // 5 <= len(found.first) <= columns
            assert found.first[0] == 0
            assert found.last[-1] == 5 * (steps - 1)
            assert found.samples.sum() == steps
            _same_columns(found, values, 5, log=True)
            _same_columns(run.values("mean", columns=columns), -values, 5, log=False)
        part = run.values("rms", sites=["s4", "s2"], start=33, stop=2000, columns=7)
        _same_columns(part, values[:, [4, 2]], 5, log=True)


def test_float32_keeps_what_matters() -> None:
    found = exact([1e-60, -1e-60, 1e60, -1e60, 0.0, np.inf, np.nan, 0.1])
    assert found[0] > 0 > found[1]
    assert np.isfinite(found[2:4]).all()
    assert found[4] == 0
    assert np.isinf(found[5])
    assert np.isnan(found[6])
    assert found[7] == np.float32(0.1)


def test_copied(tmp_path: Path) -> None:
    """The caller may use its array again."""
    row = np.zeros(2, np.float32)
    with RunWriter(tmp_path / "run.sp", every=60) as writer:
        writer.add_sites(_sites(2))
        for step in range(3):
            row[:] = step
            writer.put(step, {"rms": row})
    with Run(writer.path) as run:
        assert run.values("rms").mean[:, 0].tolist() == [0, 1, 2]


def test_late_sites_and_statistics(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.sp", every=0.01) as writer:
        first = writer.add_sites(_sites(2))
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
    values = _values(900, 5)
    path = _recorded(tmp_path / "run.sp", _values(803, 5))
    with RunWriter(path, mode="resume", log={"rms"}) as writer:
        writer.add_sites(_sites(5))
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
            _same_columns(run.values("rms", columns=columns), values, 1, log=True)
        assert len(run.alerts) == 1
    with RunWriter(path, mode="resume"):
        pass  # nothing was recorded, nothing is lost
    with Run(path) as run:
        assert len(run.steps) == 900


def test_thinned(tmp_path: Path) -> None:
    values = _values(4000, 50)
    limit = 600_000
    path = _recorded(tmp_path / "run.sp", values, max_bytes=limit)
    assert path.stat().st_size < 1.2 * limit
    with Run(path) as run:
        assert 32 < len(run.steps) < 3000
        whole = run.values("rms")
        assert whole.samples.sum() == 4000  # no step is missing, the old ones are coarser
        assert (np.diff(whole.samples) <= 0).all()
        assert (whole.first[1:] == whole.last[:-1] + 1).all()
        _same_columns(whole, values, 1, log=True)
        few = run.values("rms", columns=30)
        assert len(few.first) <= 30
        _same_columns(few, values, 1, log=True)
    again = _values(4600, 50)
    with RunWriter(path, mode="resume", log={"rms"}, max_bytes=limit) as writer:
        for step in range(3900, 4600):
            writer.put(step, {"rms": again[step], "mean": -again[step]})
    with Run(path) as run:
        whole = run.values("rms")
        assert whole.samples.sum() > 4580  # a coarse bin that was cut loses its thinned samples
        again[:3900] = values[:3900]
        recent = run.values("rms", start=3900)
        _same_columns(recent, again, 1, log=True)


def test_followed(tmp_path: Path) -> None:
    """A page that asks again and again has everything in the end, and nothing wrong between."""
    values = _values(200, 4)
    known: dict[int, np.ndarray] = {}
    losses: list[float] = []
    alerts: list[int] = []
    with RunWriter(tmp_path / "run.sp", every=0.002) as writer:
        first = writer.add_sites(_sites(2))
        second = writer.add_sites(_sites(4)[2:])
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


def test_scalars_joined(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.sp") as writer:
        for step in range(5000):
            writer.scalar(step, {"loss": float(step), "acc": 1.0})
    with Run(writer.path) as run:
        steps, values = run.scalars(columns=100)["loss"]
        assert 50 <= len(steps) <= 101
        assert (np.diff(steps) > 0).all()
        np.testing.assert_allclose(values, steps, atol=60)


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.abs(_values(20, 3))
    with Run(_recorded(tmp_path / "run.sp", values)) as run:
        table = run.frame()
        assert list(table.columns) == ["step", "site", "op", "kind", "model", "rms", "mean"]
        assert len(table) == 60
        one = table[(table.site == "s2") & (table.step == 7)]
        assert float(one.rms.iloc[0]) == values[7, 2] or np.isnan(values[7, 2])
        assert len(run.frame(["rms"], columns=4)) <= 12
        with pytest.raises(SignalpropError, match="neither"):
            run.frame(package="numpy")
        for name in ("polars", "pyarrow"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingPackageError, match="pip install polars"):
            run.frame(package="polars")
        with pytest.raises(MissingPackageError, match="pip install pyarrow"):
            run.to_parquet(tmp_path / "x.parquet")


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    values = _values(100, 3)
    with Run(_recorded(tmp_path / "run.sp", values)) as run:
        table = parquet.read_table(run.to_parquet(tmp_path / "x.parquet"))
        found = np.asarray(table["rms"]).reshape(100, 3)
        np.testing.assert_array_equal(found, values)
        assert table["site"].to_pylist()[:3] == ["s0", "s1", "s2"]


def test_polars(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    with Run(_recorded(tmp_path / "run.sp", _values(20, 3))) as run:
        table = run.frame(package="polars")
        assert table.shape == (60, 7)
        assert table["site"].to_list()[:3] == ["s0", "s1", "s2"]


def _look(path: Path) -> None:
    """Everything a reader may ask; only one kind of error may come of it."""
    asks: list[Any] = [
        lambda run: run.meta,
        lambda run: run.sites,
        lambda run: [run.values(name) for name in run.statistics],
        lambda run: [run.values(name, columns=3) for name in run.statistics],
        lambda run: run.steps,
        lambda run: (run.alerts, run.windows, run.replays, run.scalars(), run.scalars(3)),
        lambda run: run.since(None),
    ]
    try:
        run = Run(path)
    except SignalpropError:
        return
    with run:
        for ask in asks:
            with suppress(SignalpropError):
                ask(run)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "run.sp"
    with RunWriter(path, meta={"a": 1}) as writer:
        writer.add_sites(_sites(20))
        for step in range(100):
            writer.put(step, {"rms": np.full(20, 1.0)})
            writer.scalar(step, {"loss": 1.0})
        writer.alert(1, "X", "tip")
        writer.window(1, "x", [1], {"rms": np.zeros((1, 20))})
        writer.replay(1, "s1", 1, {"cpu": b"1"})
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.floats(0, 1), noise=st.integers(0, 200), seed=st.integers(0, 1000))
def test_damaged(sample: Path, tmp_path: Path, cut: float, noise: int, seed: int) -> None:
    """Truncated, and with random bytes in it."""
    chosen = random.Random(seed)
    whole = sample.read_bytes()
    data = bytearray(whole[: int(len(whole) * cut)] if seed % 2 else whole)
    for _ in range(noise if data else 0):
        data[chosen.randrange(100 if seed % 3 == 0 else 0, max(len(data), 101)) % len(data)] = (
            chosen.randrange(256)
        )
    path = tmp_path / "run.sp"
    path.write_bytes(data)
    for end in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    _look(path)
    writer = RunWriter(path, mode="resume")
    writer.put(1000, {"rms": np.ones(20)})
    writer.close()  # failed or not, nothing was raised


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_noise(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "noise.sp"
    path.write_bytes(data)
    with pytest.raises(SignalpropError, match=r"no run file|empty"):
        Run(path)


HOSTILE = {
    "a view that never ends": "DROP TABLE sites; CREATE VIEW sites AS WITH RECURSIVE t(id) AS "
    "(SELECT 0 UNION ALL SELECT id + 1 FROM t) SELECT id, 'a' AS name, '' op, '' kind, '' model FROM t",  # noqa: E501
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM sites; END",
    "another table": "CREATE TABLE more(a)",
    "no table": "DROP TABLE sites",
    "long blobs": "UPDATE samples SET value = zeroblob(10000000) WHERE id < 4",
    "odd blobs": "UPDATE samples SET value = zeroblob(79)",
    "text for a blob": "UPDATE samples SET value = 'a'",
    "odd levels": "UPDATE levels SET mean = zeroblob(4), count = zeroblob(7)",
    "high levels": "UPDATE bins SET level = level + 1000000000",
    "texts for steps": "UPDATE steps SET time = 'now'; UPDATE bins SET first = 'a' || first",
    "large counts": "UPDATE bins SET samples = 9223372036854775807",
    "a gap in the sites": "UPDATE sites SET id = 1000000000 WHERE id = 19",
    "many sites": "WITH RECURSIVE t(k) AS (SELECT 20 UNION ALL SELECT k + 1 FROM t WHERE k < 20000) "  # noqa: E501
    "INSERT INTO sites SELECT k, 's' || k, '', '', '' FROM t",
    "many steps": "WITH RECURSIVE t(k) AS (SELECT 100 UNION ALL SELECT k + 1 FROM t WHERE k < 20000) "  # noqa: E501
    "INSERT INTO steps SELECT k, k, 0 FROM t",
    "deep JSON": "UPDATE meta SET value = replace(hex(zeroblob(400000)), '00', '[')",
    "long JSON": "UPDATE alerts SET detail = '\"' || hex(zeroblob(2000000)) || '\"'",
    "a huge number": "UPDATE meta SET value = hex(zeroblob(10000))",
    "odd windows": "UPDATE windows SET steps = zeroblob(9); UPDATE window_values SET value = 'a'",
    "no generation": "DELETE FROM meta",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(sample: Path, tmp_path: Path, what: str) -> None:
    """No crash, no endless loop, and no memory beyond some multiple of the file."""
    path = tmp_path / "run.sp"
    path.write_bytes(sample.read_bytes())
    connection = sqlite3.connect(path)
    connection.executescript(HOSTILE[what])
    connection.close()
    tracemalloc.start()
    _look(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6
    writer = RunWriter(path, mode="resume", every=0.01)
    for step in range(1000, 1020):
        writer.put(step, {"rms": np.ones(len(writer._index))})
    writer.close()


def test_means_of_nothing() -> None:
    values = np.array([[0.0, np.nan, np.inf, 0.0], [0.0, np.nan, np.inf, np.inf]], np.float32)
    found = Bins.of(values, log=True).reduce([0], log=True)
    np.testing.assert_array_equal(found.mean, [[0.0, np.nan, np.inf, np.nan]])
    assert found.count.tolist() == [[0, 0, 0, 0]]
