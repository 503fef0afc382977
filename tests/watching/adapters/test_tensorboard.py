"""TensorBoard: what was written is read back with its own reader."""

import logging
import math

import numpy as np
import pytest
from tests.watching.adapters.runs import ALARM, sample, train

from signalprop.errors import SignalpropError
from signalprop.watching.adapters.tensorboard import TensorBoard, export
from signalprop.watching.file.reader import Run

# protobuf's and numpy's own warnings, while tensorboard is imported
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:(tensorboard|google)")]
accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
)


def read(folder):
    """Every scalar by name: steps and values; and every text."""
    events = accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    scalars, texts = {}, {}
    for tag in events.Tags()["tensors"]:
        found = [(e.step, e.tensor_proto) for e in events.Tensors(tag)]
        if found[0][1].string_val:
            texts[tag.removesuffix("/text_summary")] = [
                (step, proto.string_val[0].decode()) for step, proto in found
            ]
        else:
            # add_scalar writes float32
            values = [
                np.frombuffer(p.tensor_content, "<f4") if p.tensor_content else p.float_val
                for _, p in found
            ]
            scalars[tag] = [(s, float(v[0])) for (s, _), v in zip(found, values, strict=True)]
    return scalars, texts


def test_training_is_the_same_and_told_as_it_is_recorded(tmp_path):
    plain = train()
    watched = train(tmp_path / "run.sp", [TensorBoard(tmp_path / "logs")])
    assert watched == plain
    scalars, texts = read(tmp_path / "logs")
    with Run(tmp_path / "run.sp") as run:
        for name in run.statistics:
            found = run.values(name)
            for which, of in (("smallest", np.nanmin), ("largest", np.nanmax)):
                steps = [k for k in range(3) if np.isfinite(found.mean[k]).any()]
                np.testing.assert_allclose(
                    scalars[f"signalprop/{name}/{which}"],
                    [(4 * k, of(found.mean[k][np.isfinite(found.mean[k])])) for k in steps],
                    rtol=1e-6,
                )
        loss = scalars["signalprop/loss"]
        np.testing.assert_allclose(loss, [(k, watched.losses[k]) for k in (0, 4, 8)], rtol=1e-6)
    assert not any(name.startswith("signalprop_sites") for name in scalars)
    assert "| signalprop/update_ratio/largest | `" in texts["signalprop/where"][0][1]


def test_a_finished_run_is_exported_as_it_was_told(tmp_path):
    train(tmp_path / "run.sp", [TensorBoard(tmp_path / "a", sites=["0", "3"], scalars="all")])
    assert export(tmp_path / "run.sp", tmp_path / "b", sites=["0", "3"]) == 3
    told, exported = read(tmp_path / "a"), read(tmp_path / "b")
    assert set(told[0]) == set(exported[0])
    assert any(name.startswith("signalprop_sites/") for name in told[0])
    for name, found in told[0].items():
        np.testing.assert_allclose(found, exported[0][name], rtol=1e-5, err_msg=name)


def test_alerts_are_texts(tmp_path):
    adapter = TensorBoard(tmp_path)
    adapter.alarm(ALARM)
    adapter.close()
    ((step, text),) = read(tmp_path)[1]["signalprop/alerts"]
    assert step == 4
    assert "SP405 Loss spike (layer|1): It leapt." in text


def test_a_writer_that_was_given_stays_open(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        adapter = TensorBoard(writer)
        adapter.sample(sample(0, [1, math.inf, 3]))
        adapter.close()
        writer.add_scalar("mine", 1.0, 0)
    scalars, _ = read(tmp_path)
    assert scalars["signalprop/update_ratio/not_finite"] == [(0, 1.0)]
    assert all(math.isfinite(v) for found in scalars.values() for _, v in found)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["mine"]


def test_nothing_is_written_before_there_is_something(tmp_path):
    TensorBoard(tmp_path / "logs").close()
    assert not (tmp_path / "logs").exists()
    with pytest.raises(SignalpropError, match="give a folder or a SummaryWriter"):
        TensorBoard(3)


def test_one_that_fails_disturbs_nothing(tmp_path, caplog):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "signalprop"):
        watched = train(tmp_path / "run.sp", [TensorBoard(tmp_path / "logs")])
    assert watched == train()
    assert "TensorBoard is told nothing more" in caplog.text
    with Run(tmp_path / "run.sp") as run:
        assert len(run.steps) == 3
