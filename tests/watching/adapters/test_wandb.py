"""Weights & Biases, offline: its transaction log is read back."""

import json
import logging
import struct
import time

import pytest
from tests.watching.adapters.runs import ALARM, sample, train

from signalprop.errors import SignalpropError
from signalprop.watching.adapters.wandb import WandB, export

wandb = pytest.importorskip("wandb", reason="wandb is not installed")
BLOCK, HEADER = 32768, 7


@pytest.fixture
def run(tmp_path, monkeypatch):
    for name in ("DIR", "CACHE_DIR", "DATA_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
    with wandb.init(project="test", dir=str(tmp_path), settings=settings) as run:
        yield run


def read(run, tmp_path):
    """Rows of the run, which is ended: W&B's step, and values by name; and metrics it defined."""
    from wandb.proto import wandb_internal_pb2 as messages

    run.finish()
    (path,) = tmp_path.glob(f"wandb/offline*{run.id}/*.wandb")
    end = time.monotonic() + 20
    found = []
    while not found or found[-1].WhichOneof("record_type") != "exit":  # it is still written
        assert time.monotonic() < end
        time.sleep(0.02)
        found = [messages.Record.FromString(data) for data in records(path.read_bytes())]
    rows, metrics = [], {}
    for record in found:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            values = {name: json.loads(value) for name, value in items.items()}
            rows.append({n: v for n, v in values.items() if n not in ("_timestamp", "_runtime")})
        elif kind == "metric":
            metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    return rows, metrics


def records(data):
    """The log's records: LevelDB's format after a header of 7 bytes."""
    at, part = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if kind == 0:
            return
        part += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last piece
            yield part
            part = b""


def ours(rows):
    return [row for row in rows if "signalprop/step" in row]


def test_training_is_the_same_and_counts_by_its_own_step(run, tmp_path):
    watched = train(tmp_path / "run.sp", [WandB(sites=["0"])])
    assert watched == train()
    rows, metrics = read(run, tmp_path)
    found = ours(rows)
    assert [row["signalprop/step"] for row in found] == [0, 4, 8]
    assert [row["signalprop/loss"] for row in found] == pytest.approx(watched.losses[::4])
    assert all(row["signalprop/update_ratio/largest_site"] in ("0", "3") for row in found)
    assert all("signalprop_sites/update_ratio/0" in row for row in found)
    assert not any(name.startswith("signalprop_sites/update_ratio/3") for name in found[0])
    assert metrics["signalprop/update_ratio/largest"] == "signalprop/step"
    assert metrics["signalprop/loss"] == "signalprop/step"
    assert metrics["signalprop_sites/*"] == "signalprop/step"


@pytest.mark.parametrize("explicit", [False, True])
def test_your_own_calls_lose_nothing(run, tmp_path, explicit):
    def mine(step, loss):
        run.log({"mine": loss}, **({"step": step} if explicit else {}))

    watched = train(tmp_path / "run.sp", [WandB(run)], each=mine)
    rows, _ = read(run, tmp_path)
    assert [row["mine"] for row in rows if "mine" in row] == pytest.approx(watched.losses)
    if explicit:
        assert [row["_step"] for row in rows if "mine" in row] == list(range(12))
    assert sorted({row["signalprop/step"] for row in ours(rows)}) == [0, 4, 8]


def test_your_own_coarser_steps_lose_nothing_without_commit(run, tmp_path):
    def mine(step, loss):
        if step % 6 == 5:
            run.log({"epoch_loss": loss}, step=step // 6)

    watched = train(tmp_path / "run.sp", [WandB(run, commit=False)], each=mine)
    rows, _ = read(run, tmp_path)
    found = [(r["_step"], r["epoch_loss"]) for r in rows if "epoch_loss" in r]
    assert found == [(0, pytest.approx(watched.losses[5])), (1, pytest.approx(watched.losses[11]))]
    assert ours(rows)


def test_alerts(run, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(run, "alert", lambda **given: sent.append(given))
    adapter = WandB(run, alert=True)
    adapter.alarm(ALARM)
    adapter.close()
    quiet = WandB(run, prefix="quiet")
    quiet.alarm(ALARM)
    quiet.close()
    rows, _ = read(run, tmp_path)
    (row,) = ours(rows)
    assert row["signalprop/alerts"] == 1
    assert "SP405 Loss spike" in row["signalprop/alert"]
    assert row["signalprop/step"] == 4
    assert [s["title"] for s in sent] == ["SP405 Loss spike"]


def test_a_finished_run_is_exported(run, tmp_path):
    watched = train(tmp_path / "run.sp", [])
    assert export(tmp_path / "run.sp", run) == 3
    rows, _ = read(run, tmp_path)
    found = ours(rows)
    assert [row["signalprop/step"] for row in found] == list(range(12))
    losses = [row["signalprop/loss"] for row in found]
    assert losses == pytest.approx(watched.losses, rel=1e-6)
    assert sum("signalprop/update_ratio/median" in row for row in found) == 3


def test_a_run_that_was_finished_before_disturbs_nothing(run, tmp_path, caplog):
    adapter = WandB(run)

    def finish(step, loss):
        if step == 5:
            run.finish()

    with caplog.at_level(logging.WARNING, "signalprop"):
        watched = train(tmp_path / "run.sp", [adapter], each=finish)
    assert watched == train()
    assert "WandB is told nothing more" in caplog.text
    adapter.close()


def test_no_run_is_one_sentence(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "signalprop"):
        train(tmp_path / "run.sp", [WandB()])
    assert "no W&B run is active; call wandb.init() first" in caplog.text
    with pytest.raises(SignalpropError, match=r"give the run of wandb\.init"):
        WandB("run")


def test_numbers_that_are_not_finite_are_not_told(run, tmp_path):
    adapter = WandB(run)
    adapter.sample(sample(0, [float("nan"), float("inf"), 1.0], loss=float("nan")))
    adapter.close()
    rows, _ = read(run, tmp_path)
    assert all(
        value == value and abs(value) != float("inf")
        for row in rows
        for value in row.values()
        if isinstance(value, float)
    )
    assert rows[0]["signalprop/update_ratio/not_finite"] == 1
