"""A recorded run is told as training has told it, however little is read at a time."""

import numpy as np
import pytest
from tests.watching.adapters.runs import SITES

from signalprop.watching.adapters import exporting
from signalprop.watching.adapters.adapter import Adapter
from signalprop.watching.file.writer import RunWriter


class Heard(Adapter):
    """Writes down what it is told."""

    def __init__(self):
        super().__init__(scalars="all")
        self.told, self.alarms, self.closed = [], [], False

    def put(self, told):
        self.told.append(told)

    def say(self, alarm):
        self.alarms.append((alarm.step, len(self.told)))

    def close(self):
        self.closed = True


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.sp"
    with RunWriter(path) as writer:
        writer.add_sites(SITES)
        for step in range(45):
            if 4 <= step < 40 and step % 4 == 0:
                writer.put(step, {"update_ratio": np.full(3, step / 100)})
            writer.scalar(step, {"loss": float(step)})
        for step in (2, 21, 44):
            writer.alert(step, "SP405", "issue", "first")
    return path


@pytest.mark.parametrize("stretch", [1, 2, 3, 512])
def test_a_run_is_told_in_order(path, monkeypatch, stretch):
    monkeypatch.setattr(exporting, "STRETCH", stretch)
    heard = Heard()
    assert exporting.export(path, heard) == 9
    assert heard.closed
    assert [told.step for told in heard.told] == list(range(45))
    assert [told.numbers["signalprop/loss"] for told in heard.told] == list(range(45))
    ratios = {t.step: t.numbers.get("signalprop/update_ratio/median") for t in heard.told}
    assert {s for s, v in ratios.items() if v is not None} == set(range(4, 40, 4))
    assert ratios[8] == pytest.approx(0.08)
    # between samples an alert comes after the numbers of the steps before the next sample
    assert [step for step, _ in heard.alarms] == [2, 21, 44]


def test_a_run_without_samples(tmp_path):
    with RunWriter(tmp_path / "run.sp") as writer:
        for step in range(5):
            writer.scalar(step, {"loss": float(step)})
    heard = Heard()
    assert exporting.export(tmp_path / "run.sp", heard) == 0
    assert [told.step for told in heard.told] == list(range(5))
