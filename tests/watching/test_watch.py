"""What a loop, or a trainer's callback, may ask of its watch."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

from signalprop.watching.actions import StopTraining
from signalprop.watching.file.reader import Run
from signalprop.watching.watch import Watch, watch


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def step(model, optimizer, factor=1.0):
    loss = model(torch.randn(8, 4)).square().mean() * factor
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_steps_and_which_of_them_are_sampled():
    model, optimizer = small()
    seen = []
    with watch(model, optimizer, every=3, to=None) as run:
        for _ in range(7):
            seen.append((run.steps, run.sampling))
            step(model, optimizer)
        assert run.steps == 7
    assert seen == [(k, k % 3 == 0) for k in range(7)]
    assert run.steps == 7
    assert not run.sampling  # it is over
    assert run.ranks == 1


def test_steps_before_the_first_one_count():
    model, optimizer = small()
    with watch(model, optimizer, every=4, to=None, start=6) as run:
        assert (run.steps, run.sampling) == (6, False)
        step(model, optimizer)
        step(model, optimizer)
        assert (run.steps, run.sampling) == (8, True)


@pytest.mark.parametrize("start", [0, 6])
@pytest.mark.parametrize("before", [True, False])
def test_numbers_are_of_their_step_in_loops_of_either_kind(tmp_path, start, before):
    model, optimizer = small()
    with watch(model, optimizer, every=2, to=tmp_path / "run.sp", start=start) as run:
        for k in range(5):
            if before:
                run.log(k=k)
            step(model, optimizer)
            if not before:
                run.log(k=k)
    with Run(tmp_path / "run.sp") as found:
        steps, values = found.scalars()["k"]
        assert (steps - start).tolist() == values.tolist() == list(range(5))


def test_a_resumed_run_counts_on(tmp_path):
    model, optimizer = small()
    for first in (0, 5):
        with watch(model, optimizer, every=1, to=tmp_path / "run.sp", mode="resume") as run:
            assert run.steps == first
            for _ in range(5):
                step(model, optimizer)
    with Run(tmp_path / "run.sp") as found:
        assert found.steps.tolist() == list(range(10))


def test_a_watch_that_has_failed_samples_nothing(monkeypatch):
    model, optimizer = small()
    with watch(model, optimizer, every=1, to=None) as run:
        step(model, optimizer)
        monkeypatch.setattr(run._stepper, "_finish", lambda sampling: 1 / 0)
        step(model, optimizer)
        assert run.failed is not None
        assert not run.sampling
        assert not hooks._global_forward_hooks
        assert not hooks._global_forward_pre_hooks


@pytest.mark.parametrize("raises", [True, False])
def test_stop_raises_or_is_left_to_the_loop(raises):
    model, optimizer = small()
    made = 0
    with watch(model, optimizer, every=2, to=None, on="stop", raises=raises) as run:
        assert run.stopped is None
        for k in range(10):
            step(model, optimizer, factor=float("nan") if k == 3 else 1.0)
            made += 1
            if run.stopped is not None:
                break
    assert run.stopped.code == "SP411"
    # the update at which it is told returns, where nothing is raised
    assert made == run.steps - raises
    assert run.steps < 8


def test_a_function_that_stops_is_left_to_the_loop_as_well():
    model, optimizer = small()

    def mine(alarm):
        raise StopTraining(alarm)

    with watch(model, optimizer, every=1, to=None, on={"SP411": mine}, raises=False) as run:
        for k in range(6):
            step(model, optimizer, factor=float("nan") if k == 2 else 1.0)
    assert run.steps == 6  # this loop does not look
    assert run.stopped is run.alarms[0]


def test_adapters_use_what_is_public():
    """No attribute of a watch that begins with _ is read elsewhere in the room of adapters."""
    from signalprop.watching.adapters import attaching

    own = {name for name in vars(Watch) if not name.startswith("__")}
    private = {name for name in own if name.startswith("_")} | {"_stepper", "_recording"}
    text = inspect.getsource(attaching)
    assert {"steps", "sampling", "stopped", "ranks"} <= own
    assert not [name for name in private if f"watch.{name}" in text or f"made.{name}" in text]
