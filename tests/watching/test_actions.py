"""What is done about an alarm."""

import logging
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.watching.actions import MOST_CHECKPOINTS, Actions, Checkpoints, StopTraining, line
from signalprop.watching.sample import Alarm

ALARM = Alarm(
    1234, "SP405", "Loss spike", "issue", ("block.1",), 3.0, "loss", 1.0, 1200, "It leapt.", ()
)
TIP = replace(ALARM, code="SP408", severity="tip", title="Updates")


def test_warns_in_one_line_and_never_twice_the_same(caplog):
    actions = Actions("warn")
    with caplog.at_level(logging.WARNING, "signalprop"):
        actions.take([ALARM])
        actions.take([replace(ALARM, step=5000)])
        actions.take([TIP])
    assert len(caplog.records) == 2
    assert "\n" not in caplog.messages[0]
    for part in ("1234", "SP405", "block.1", "It leapt.", "1200"):
        assert part in caplog.messages[0]


def test_a_percent_sign_in_a_name_is_no_format(caplog):
    Actions("warn").take([replace(ALARM, sites=("a%d",), explanation="100% %s.\nand more")])
    assert "100% %s. and more" in caplog.messages[0]


def test_the_most_specific_choice_counts(caplog):
    seen = []
    actions = Actions({"any": "warn", "SP405": seen.append, "tip": ()})
    actions.take([ALARM, TIP, replace(ALARM, code="SP401", severity="issue")])
    assert seen == [ALARM]
    assert len(caplog.records) == 1
    assert "SP401" in caplog.messages[0]


def test_several_actions_come_in_order_and_stopping_last():
    seen = []
    actions = Actions({"issue": ("stop", lambda alarm: seen.append(alarm.step))})
    actions.take([TIP])
    with pytest.raises(StopTraining) as stop:
        actions.take([ALARM, replace(ALARM, step=1235)])
    assert seen == [1234, 1235]
    assert stop.value.alarm is ALARM
    assert str(stop.value) == line(ALARM)
    with pytest.raises(StopTraining):  # also for a loop that swallowed it
        actions.take([])


def test_stop_is_an_exception_that_cleaning_up_sees():
    assert issubclass(StopTraining, Exception)


def test_nothing_is_done_when_nothing_is_asked_for(caplog):
    for on in (None, (), {}, {"any": None}):
        Actions(on).take([ALARM])
    assert not caplog.records


def test_a_failing_function_never_raises_and_is_said_once(caplog):
    def breaks(alarm):
        raise RuntimeError("no network")

    seen = []
    actions = Actions((breaks, seen.append))
    actions.take([ALARM])
    actions.take([TIP])
    assert seen == [ALARM, TIP]
    assert len(caplog.records) == 1
    assert "no network" in caplog.messages[0]


def test_a_function_may_stop_the_training_itself():
    def decides(alarm):
        raise StopTraining(alarm)

    with pytest.raises(StopTraining):
        Actions(decides).take([ALARM])


def test_keyboard_interrupt_in_a_function_goes_through():
    def interrupted(alarm):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Actions(interrupted).take([ALARM])


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("warm", "did you mean 'warn'"),
        ({"SP499": "warn"}, "'SP499'"),
        ({"Issue": "warn"}, "did you mean 'issue'"),
        ({"any": ("warn", "stopp")}, "did you mean 'stop'"),
        (3, "function of the alarm"),
        ({"any": 3}, "function of the alarm"),
        (("warn", 3), "function of the alarm"),
    ],
)
def test_bad_names_say_the_fix(on, said):
    with pytest.raises(SignalpropError, match=said):
        Actions(on)


def test_codes_of_own_rules():
    seen = []
    Actions({"MINE1": seen.append}, codes=["MINE1"]).take([replace(ALARM, code="MINE1")])
    assert len(seen) == 1


def test_a_checkpoint_without_anything_to_save(caplog):
    Actions("checkpoint").take([ALARM])
    assert "nothing to save" in caplog.messages[0]


# ---- checkpoints -----------------------------------------------------------------------------


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 3) + np.random.rand() + random.random()).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    model, optimizer = trained()
    save = Checkpoints(tmp_path / "run.sp", {"": model}, [optimizer])
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    path = save(ALARM)
    assert path == tmp_path / "run.step-00001234.pt"
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()
    losses = [step(model, optimizer) for _ in range(3)]
    state = torch.load(path, weights_only=True)
    again, other = trained()
    again.load_state_dict(state["models"][""])
    other.load_state_dict(state["optimizers"][0])
    torch.set_rng_state(state["random"]["torch"]["cpu"])
    name, words, *rest = state["random"]["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    random.setstate(state["random"]["python"])
    assert [step(again, other) for _ in range(3)] == losses
    assert state["step"] == 1234
    assert state["alarm"] == "SP405"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing temporary is left


def test_the_models_own_names_are_saved(tmp_path):
    model, _ = trained()
    wrapped = torch.compile(model)
    state = torch.load(Checkpoints(tmp_path / "run.sp", {"m": wrapped})(ALARM), weights_only=True)
    assert list(state["models"]["m"]) == list(model.state_dict())


def test_a_checkpoint_that_cannot_be_written_is_said_once(tmp_path, caplog):
    model, optimizer = trained()
    save = Checkpoints(tmp_path / "missing" / "run.sp", {"": model}, [optimizer])
    actions = Actions("checkpoint", checkpoint=save)
    actions.take([ALARM])
    actions.take([ALARM])
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.messages[0]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_pickled_leaves_no_file(tmp_path, caplog):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return lambda: None

        def set_extra_state(self, state):
            pass

    assert Checkpoints(tmp_path / "run.sp", {"": Odd(2, 2)})(ALARM) is None
    assert not list(tmp_path.iterdir())
    assert len(caplog.records) == 1


def test_few_checkpoints_and_one_a_step(tmp_path, caplog):
    model, _ = trained()
    save = Checkpoints(tmp_path / "run.sp", {"": model})
    first = save(ALARM)
    stamp = first.stat().st_mtime_ns
    assert save(ALARM) == first
    assert first.stat().st_mtime_ns == stamp
    for k in range(2 * MOST_CHECKPOINTS):
        save(replace(ALARM, step=k))
    assert len(list(tmp_path.iterdir())) == MOST_CHECKPOINTS
    assert len(caplog.records) == 1
