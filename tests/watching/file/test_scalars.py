"""Numbers of the steps, such as the loss: any stretch of them, joined or not; and their times."""

from __future__ import annotations

import random
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.watching.file.recorded import recorded, sites_of, values_of

from signalprop.errors import SignalpropError
from signalprop.watching.file import scalars, stretch
from signalprop.watching.file.reader import Run
from signalprop.watching.file.writer import RunWriter

Logged = list[tuple[int, str, float]]


def _write(path: Path, logged: Logged, mode: str = "new") -> Path:
    with RunWriter(path, mode=mode, every=0.01) as writer:
        for step, name, value in logged:
            writer.scalar(step, {name: value})
    assert writer.dropped == 0
    return path


def _late(steps: range) -> Logged:
    """A loss at every step, a rate at every fifth, and an accuracy that comes later than both."""
    made: Logged = []
    for step in steps:
        if step % 5 == 0:
            made.append((step, "rate", 1.0 / (1 + step)))
        made.append((step, "loss", float(np.sin(step))))
        if step >= 40:
            made.append((step - 40, "accuracy", step / 1000))
    return made


def _twin(logged: Logged, start: float, stop: float) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in logged:
        if start <= step < stop:
            found.setdefault(name, []).append((step, value))
    return {name: sorted(pairs, key=lambda pair: pair[0]) for name, pairs in found.items()}


def _same(found: dict[str, scalars.Curve], logged: Logged, start: float, stop: float) -> None:
    wanted = _twin(logged, start, stop)
    assert set(found) == set(wanted)
    for name, pairs in wanted.items():
        assert found[name][0].tolist() == [step for step, _ in pairs]
        np.testing.assert_array_equal(found[name][1], [value for _, value in pairs])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that a run of some hundred steps has many."""
    monkeypatch.setattr(stretch, "ROWS", 16)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["late", "shuffled", "few"])
def test_any_stretch(tmp_path: Path, kind: str) -> None:
    """Also of a file whose rows are in no order at all."""
    logged = _late(range(3 if kind == "few" else 600))
    if kind == "shuffled":
        random.Random(0).shuffle(logged)
    inf = float("inf")
    with Run(_write(tmp_path / "run.sp", logged)) as run:
        for start, stop in ((0, 1), (100, 131), (590, 700), (599, 600), (700, 900), (5, 5), (9, 3)):
            _same(run.scalars(start, stop), logged, start, stop)
        _same(run.scalars(300), logged, 300, inf)
        _same(run.scalars(stop=17), logged, -inf, 17)
        _same(run.scalars(), logged, -inf, inf)


@pytest.mark.usefixtures("small")
def test_a_stretch_of_a_run_that_grows_and_goes_back(tmp_path: Path) -> None:
    logged = _late(range(300))
    path = _write(tmp_path / "run.sp", logged)
    with Run(path) as run:
        _same(run.scalars(250, 400), logged, 250, 400)
        again = [one for one in _late(range(150, 500)) if one[0] >= 150]
        _write(path, again, "resume")  # what the file had from there on is replaced
        logged = [one for one in logged if one[0] < 150] + again
        for start, stop in ((140, 180), (200, 220), (250, 400), (0, 20), (490, 600)):
            _same(run.scalars(start, stop), logged, start, stop)


def test_only_the_rows_around_a_stretch_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.sp"
    with RunWriter(path) as writer:
        writer.scalar(0, {"loss": 0.0})
    connection = sqlite3.connect(path)
    with connection:
        rows = ((k // 2, ("loss", "rate")[k % 2], float(k)) for k in range(2, 200_000))
        connection.executemany("INSERT INTO scalars VALUES(NULL, ?, ?, ?)", rows)
    connection.close()
    with Run(path) as run:
        asked: list[str] = []
        run.scalars(50_000, 50_100)
        run._connection.set_trace_callback(asked.append)
        steps, _ = run.scalars(70_000, 70_050)["loss"]
    assert steps.tolist() == list(range(70_000, 70_050))
    wide = [a for a in asked if "FROM scalars" in a and "min(step), max(step)" in a]
    assert len(wide) <= 1  # nothing is looked at again but the block that is not full
    [reads] = [a for a in asked if a.startswith("SELECT name")]
    first, last = map(int, re.findall(r"id[<>]=(\d+)", reads))
    assert last - first < 2 * stretch.ROWS


@pytest.mark.parametrize("plain", [1 << 16, 1])
@pytest.mark.parametrize("columns", [1, 7, 100, 5000])
def test_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, plain: int) -> None:
    """At most so many of each, at least a quarter as many, and their mean is that of all."""
    monkeypatch.setattr(scalars, "PLAIN", plain)
    monkeypatch.setattr(stretch, "ROWS", 16)
    logged = _late(range(2000))
    with Run(_write(tmp_path / "run.sp", logged)) as run:
        for start, stop in ((None, None), (500, 1500), (1990, None)):
            begin, end = start or 0, stop or 2000
            found = run.scalars(start, stop, columns)
            wanted = _twin(logged, begin, end)
            assert set(found) == set(wanted)
            for name, pairs in wanted.items():
                steps, values = found[name]
                assert min(len(pairs), columns) // 4 <= len(steps) <= min(len(pairs), columns)
                assert (np.diff(steps) > 0).all()
                assert set(steps.tolist()) <= {step for step, _ in pairs}
                assert steps[0] == pairs[0][0]
                low, high = min(v for _, v in pairs), max(v for _, v in pairs)
                assert values.min() >= low - 1e-12
                assert values.max() <= high + 1e-12
            if columns == 1:
                mean = np.mean([v for _, v in wanted["loss"]])
                assert found["loss"][1][0] == pytest.approx(mean, abs=1e-9)


def test_joined_while_it_grows_and_goes_back(tmp_path: Path, monkeypatch: Any) -> None:
    """What was joined before is known; the answer is that of one who asks for the first time."""
    monkeypatch.setattr(scalars, "PLAIN", 1)
    path = _write(tmp_path / "run.sp", _late(range(700)))

    def both(run: Run) -> int:
        asked: list[str] = []
        run._connection.set_trace_callback(asked.append)
        found = run.scalars(columns=50)
        with Run(path) as fresh:
            wanted = fresh.scalars(columns=50)
        assert list(found) == list(wanted)
        for name, (steps, values) in wanted.items():
            np.testing.assert_array_equal(found[name][0], steps)
            np.testing.assert_array_equal(found[name][1], values)
        return sum("GROUP BY" in one for one in asked)

    with Run(path) as run:
        assert both(run) > 20
        with RunWriter(path, mode="resume") as writer:
            for step in range(700, 720):
                writer.scalar(step, {"loss": 3.0})
                assert writer.flush()
                assert both(run) < 4 or step == 700  # going on renews what is known
        _write(path, _late(range(300, 500)), "resume")
        assert both(run) > 10


def test_scalars_joined(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.sp") as writer:
        for step in range(5000):
            writer.scalar(step, {"loss": float(step), "acc": 1.0})
    with Run(writer.path) as run:
        steps, values = run.scalars(columns=100)["loss"]
        assert 50 <= len(steps) <= 100
        assert (np.diff(steps) > 0).all()
        np.testing.assert_allclose(values, steps, atol=60)


def test_what_is_no_number_does_not_count_in_a_mean(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    logged = [(k, "a", v) for k, v in enumerate([1.0, nan, 3.0, nan, nan, nan, 1.0, inf])]
    with Run(_write(tmp_path / "run.sp", logged)) as run:
        steps, values = run.scalars(columns=4)["a"]
    assert steps.tolist() == [0, 2, 4, 6]
    np.testing.assert_array_equal(values, [1.0, 3.0, nan, inf])


def test_ends_of_a_stretch(tmp_path: Path) -> None:
    """The same for scalars and values: whole numbers of any kind, and one sentence for others."""
    path = recorded(tmp_path / "run.sp", values_of(20, 3))
    with RunWriter(path, mode="resume") as writer:
        for step in range(20, 40):
            writer.put(step, {"rms": np.ones(3)})
            writer.scalar(step, {"loss": 1.0})
    with Run(path) as run:
        for start in (30, np.int64(30), 30.0, 29.5, np.float32(30)):
            assert run.scalars(start)["loss"][0].tolist() == list(range(30, 40))
            assert run.values("rms", start=start).first.tolist() == list(range(30, 40))
        for start, stop, count in (
            (-(10**400), 10**400, 20),
            (-np.inf, np.inf, 20),
            (1e300, None, 0),
        ):
            assert len(run.scalars(start, stop).get("loss", [[]])[0]) == count
        for bad in ("3", True, float("nan"), [1]):
            for ask in (run.scalars, lambda start: run.values("rms", start=start)):
                with pytest.raises(
                    SignalpropError, match=r"^start=.* must be the number of a step"
                ):
                    ask(bad)
        with pytest.raises(SignalpropError, match="stop='x'"):
            run.scalars(0, "x")  # type: ignore[arg-type]
        for columns in (0, -1):
            with pytest.raises(SignalpropError, match="columns must be at least 1"):
                run.scalars(columns=columns)


def test_times(tmp_path: Path) -> None:
    begun = time.time()
    with RunWriter(tmp_path / "run.sp", every=0.01) as writer:
        assert writer.flush()
        with Run(writer.path) as run:
            assert run.seconds is None
            assert [len(part) for part in run.times] == [0, 0]
        writer.add_sites(sites_of(2))
        for step in (0, 10, 20):
            writer.put(step, {"rms": [1.0, 2.0]})
            time.sleep(0.02)
    ended = time.time()
    with Run(writer.path) as run:
        steps, times = run.times
        assert steps.tolist() == run.steps.tolist() == [0, 10, 20]
        assert begun <= times[0] < times[1] < times[2] <= ended
        assert run.seconds == pytest.approx(times[2] - times[0], abs=1e-6)
        assert run.seconds >= 0.04


def test_times_that_are_none_are_damage(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run.sp", values_of(3, 3))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE steps SET time = 'now'")
    connection.close()
    with Run(path) as run:
        for ask in ("times", "seconds"):
            with pytest.raises(SignalpropError, match="is damaged"):
                getattr(run, ask)
