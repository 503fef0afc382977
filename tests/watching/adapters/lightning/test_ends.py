"""How fits end, fail, and go on."""

import pytest
import torch
from tests.watching.adapters.lightning.fits import Adversaries, Net, fit, lightning, quiet

from signalprop.watching.adapters.lightning import SignalpropCallback
from signalprop.watching.file.reader import Run

pytestmark = quiet


STOPS = [
    "stop",
    ["warn", "stop"],
    {"SP411": "stop"},
]


@pytest.mark.parametrize("on", STOPS, ids=str)
def test_stop_ends_training_in_lightnings_own_way(tmp_path, on):
    ended = []

    class Other(lightning.Callback):
        def on_train_end(self, trainer, pl_module):
            ended.append(trainer.global_step)

    callback = SignalpropCallback(every=2, to=tmp_path / "run.sp", on=on)
    module = Net(nan_at=9)
    trainer = fit(module, [callback, Other()])
    assert trainer.should_stop
    assert trainer.state.finished
    assert ended
    assert 10 <= ended[0] < 16
    assert any(alarm.code == "SP411" for alarm in callback.watch.alarms)


def test_a_function_that_raises_stop_training_is_understood(tmp_path):
    from signalprop.watching.actions import StopTraining

    seen = []

    def mine(alarm):
        seen.append(alarm)
        raise StopTraining(alarm)

    trainer = fit(Net(nan_at=9), [SignalpropCallback(every=2, to=None, on={"SP411": mine})])
    assert trainer.should_stop
    assert seen


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=repr)
def test_an_exception_closes_the_file(tmp_path, error):
    callback = SignalpropCallback(every=2, to=tmp_path / "run.sp")
    with pytest.raises((RuntimeError, SystemExit)):
        fit(Net(raises=error), [callback])
    assert not callback._attached.open
    with Run(tmp_path / "run.sp") as run:
        assert run.steps.tolist() == [0, 2, 4]
        assert len(run.scalars()["loss"][0]) == 5


def test_a_fit_that_goes_on_from_a_checkpoint_goes_on_in_its_file(tmp_path):
    def callback():
        return SignalpropCallback(every=4, to=tmp_path / "run.sp")

    torch.manual_seed(0)
    trainer = fit(Net(), [callback()], max_steps=10, max_epochs=-1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    fit(Net(), [callback()], max_steps=21, max_epochs=-1, ckpt_path=tmp_path / "x.ckpt")
    assert not (tmp_path / "run-2.sp").exists()
    with Run(tmp_path / "run.sp") as run:
        assert run.steps.tolist() == [0, 4, 8, 12, 16, 20]
        assert run.scalars()["loss"][0].tolist() == list(range(21))
    fit(Net(), [callback()], max_steps=3, max_epochs=-1)  # from the beginning: another run
    assert (tmp_path / "run-2.sp").exists()


def test_the_number_of_the_step_is_exact_with_several_optimizers(tmp_path):
    callback = SignalpropCallback(every=4, to=tmp_path / "run.sp")
    trainer = fit(Adversaries(), [callback], valid=False, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = SignalpropCallback(every=4, to=tmp_path / "run.sp")
    fit(Adversaries(), [again], valid=False, max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    with Run(tmp_path / "run.sp") as run:
        assert run.steps.tolist() == [0, 4, 8, 12]


def test_one_callback_for_several_fits(tmp_path):
    callback = SignalpropCallback(every=4, to=tmp_path / "run.sp")
    fit(Net(), [callback], max_epochs=1)
    fit(Net(), [callback], max_epochs=1)
    assert (tmp_path / "run-2.sp").exists()
