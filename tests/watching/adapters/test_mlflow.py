"""MLflow with a local store."""

import logging
import time

import pytest
from tests.watching.adapters.runs import ALARM, sample, train

from signalprop.errors import SignalpropError
from signalprop.watching.adapters.mlflow import (
    LONGEST_NAME,
    MOST_ALERTS,
    MOST_METRICS,
    MLflow,
    export,
)

mlflow = pytest.importorskip("mlflow", reason="mlflow (or mlflow-skinny) is not installed")


@pytest.fixture
def run(tmp_path, monkeypatch):
    # the store that needs no further package; MLflow asks for a database since 3.7
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"file:{tmp_path}/store")
    mlflow.set_experiment("test")
    with mlflow.start_run() as run:
        yield run
    mlflow.set_tracking_uri(before)


def history(run, name):
    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    return [(m.step, m.value) for m in sorted(found, key=lambda m: m.step)]


def data(run):
    return mlflow.get_run(run.info.run_id).data


def test_training_is_the_same_and_told(run, tmp_path):
    watched = train(tmp_path / "run.sp", [MLflow(sites=["3"])])
    assert watched == train()
    assert [s for s, _ in history(run, "signalprop/update_ratio/largest")] == [0, 4, 8]
    assert history(run, "signalprop/loss") == [
        (k, pytest.approx(watched.losses[k])) for k in (0, 4, 8)
    ]
    assert len(history(run, "signalprop_sites/update_ratio/3")) == 3
    assert data(run).tags["signalprop/update_ratio/largest/site"] in ("0", "3")


def test_a_finished_run_is_exported(run, tmp_path):
    watched = train(tmp_path / "run.sp", [])
    assert export(tmp_path / "run.sp", run, client=mlflow.MlflowClient()) == 3
    assert [v for _, v in history(run, "signalprop/loss")] == pytest.approx(watched.losses)
    assert len(history(run, "signalprop/weight_norm/median")) == 3


def test_alerts_are_tags_and_a_count(run):
    adapter = MLflow(run.info.run_id)
    for _ in range(MOST_ALERTS + 5):
        adapter.alarm(ALARM)
    adapter.close()
    tags = data(run).tags
    assert "SP405 Loss spike" in tags["signalprop/alert/1"]
    assert f"signalprop/alert/{MOST_ALERTS + 1}" not in tags
    assert data(run).metrics["signalprop/alerts"] == MOST_ALERTS + 5


def test_names_that_mlflow_refuses_and_numbers_that_break_its_charts(run):
    adapter = MLflow(run, prefix="a[b]:é")
    adapter.sample(sample(0, [float("inf"), float("nan"), 2.0], **{"x" * 300: 1.0, "y": 1e400}))
    adapter.close()
    found = data(run).metrics
    assert found["a_b___/update_ratio/median"] == 2.0
    assert found["a_b___/update_ratio/not_finite"] == 1.0
    assert max(map(len, found)) == LONGEST_NAME
    assert "a_b___/y" not in found


def test_more_than_a_request_takes(run):
    adapter = MLflow(run)
    many = {f"m{i}": float(i) for i in range(MOST_METRICS + 10)}
    adapter.sample(sample(0, [1, 2, 3], **many))
    adapter.close()
    assert len(data(run).metrics) == MOST_METRICS + 10 + 3


class Slow:
    """A server that takes its time, or fails."""

    def __init__(self, seconds=0.0, error=None):
        self.seconds, self.error, self.calls = seconds, error, 0

    def log_batch(self, run_id, metrics, tags):
        self.calls += 1
        time.sleep(self.seconds)
        if self.error:
            raise self.error


def test_a_slow_server_delays_no_step(run):
    client = Slow(0.3)
    adapter = MLflow(run, client=client, every=0.0)
    began = time.perf_counter()
    for step in range(3):
        adapter.sample(sample(step, [1, 2, 3]))
    assert time.perf_counter() - began < 0.25
    adapter.close()
    assert client.calls == 4  # and the tags


def test_a_server_that_fails_disturbs_nothing(run, tmp_path, caplog):
    client = Slow(error=ConnectionError("refused"))
    with caplog.at_level(logging.WARNING, "signalprop"):
        watched = train(
            tmp_path / "run.sp",
            [MLflow(run, client=client, every=0.0)],
            each=lambda *_: time.sleep(0.01),
        )
    assert watched == train()
    assert "MLflow is told nothing more: refused" in caplog.text
    assert client.calls == 1


def test_wrong_arguments_are_one_sentence(tmp_path, caplog):
    with pytest.raises(SignalpropError, match="give a run or its id"):
        MLflow(3)
    with pytest.raises(SignalpropError, match="no MlflowClient"):
        MLflow(client="x")
    with caplog.at_level(logging.WARNING, "signalprop"):
        train(tmp_path / "run.sp", [MLflow()])
    assert "no MLflow run is active; call mlflow.start_run() first" in caplog.text
