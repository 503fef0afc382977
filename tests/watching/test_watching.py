"""`watch`: what it refuses, what happens where it fails, what its alerts do."""

import logging
import os
import random
import stat

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.watching.loops import make, one
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.watching.actions import StopTraining
from signalprop.watching.file.reader import Run
from signalprop.watching.random import RandomStates
from signalprop.watching.watch import watch


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def step(model, optimizer, x=None, factor=1.0):
    x = torch.randn(8, 4) if x is None else x
    loss = model(x).square().mean() * factor
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": 3}, "to=3 must be the path of a file"),
        ({"to": ""}, "to='' must be the path of a file"),
        ({"every": 0}, "every=0 must be a whole number"),
        ({"every": 2.5}, "every=2.5"),
        ({"every": True}, "every=True"),
        ({"mode": "append"}, "none of 'new', 'overwrite', 'resume'"),
        ({"start": -1}, "start=-1"),
        ({"on": "wran"}, "did you mean 'warn'"),
        ({"on": {"SP999": "stop"}}, "SP999"),
        ({"ignore": ["SP101"]}, "no rule over time 'SP101'"),
        ({"scaler": object()}, "no torch.amp.GradScaler"),
    ],
)
def test_bad_arguments_are_refused_with_one_sentence(options, said, tmp_path):
    model, optimizer = small()
    with pytest.raises(SignalpropError, match=said):
        watch(model, optimizer, **({"to": tmp_path / "run.sp"} | options))
    assert not os.listdir(tmp_path)
    assert not optimizer._optimizer_step_post_hooks


def test_bad_models_and_optimizers():
    model, optimizer = small()
    for bad, said in (([], "no model to watch"), ("model", "expected a torch.nn.Module")):
        with pytest.raises(SignalpropError, match=said):
            watch(bad, optimizer, to=None)
    with pytest.raises(SignalpropError, match="given twice"):
        watch([model, model], optimizer, to=None)
    with pytest.raises(SignalpropError, match=r"expected a torch\.optim\.Optimizer, got int"):
        watch(model, 3, to=None)
    other, _ = small()
    with pytest.raises(SignalpropError, match="holds no parameter of the model"):
        watch(other, optimizer, to=None)


# ---- steps -----------------------------------------------------------------------------------


def test_without_an_optimizer_the_loop_says_when_a_step_is_over(tmp_path):
    model, _ = small()
    with watch(model, every=2, to=tmp_path / "run.sp") as run:
        for _ in range(5):
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
                    p.grad = None
            run.log(loss=loss)
            run.step()
    assert run.failed is None
    with Run(tmp_path / "run.sp") as written:
        assert written.steps.tolist() == [0, 2, 4]
        assert (written.values("delta_rms", "0").mean > 0).all()


def test_an_existing_file_is_not_touched(tmp_path, caplog):
    model, optimizer = small()
    path = tmp_path / "run.sp"
    for name in ("run.sp", "run-2.sp", "run-3.sp"):
        with watch(model, optimizer, every=1, to=path) as run:
            step(model, optimizer)
        assert run.path == tmp_path / name
        with Run(run.path) as written:
            assert written.steps.tolist() == [0]
    assert "this run is recorded to" in caplog.text


def test_resume_goes_on_and_start_replaces(tmp_path):
    model, optimizer = small()
    path = tmp_path / "run.sp"
    for options, expected in (
        ({}, [0, 1, 2]),
        ({"mode": "resume"}, [0, 1, 2, 3, 4, 5]),
        ({"mode": "resume", "start": 4}, [0, 1, 2, 3, 4, 5, 6]),
        ({"mode": "overwrite"}, [0, 1, 2]),
    ):
        with watch(model, optimizer, every=1, to=path, **options):
            for _ in range(3):
                step(model, optimizer)
        with Run(path) as written:
            assert written.steps.tolist() == expected


# ---- failures --------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_does_not_stop_a_training(tmp_path, caplog):
    model, optimizer = small()
    places = [tmp_path / "no such folder" / "run.sp", tmp_path]
    if os.getuid():
        closed = tmp_path / "closed"
        closed.mkdir()
        closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
        places.append(closed / "run.sp")
    for place in places:
        caplog.clear()
        with watch(model, optimizer, every=1, to=place, mode="resume") as run:
            for _ in range(3):
                step(model, optimizer)
        assert "training goes on" in run.failed
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_an_error_of_the_watch_ends_the_watch_and_nothing_else(tmp_path, caplog, monkeypatch):
    from signalprop.watching import stepping

    def breaks(*_, **__):
        raise ZeroDivisionError("ours")

    model, optimizer = small()
    monkeypatch.setattr(stepping, "collect", breaks)
    with watch(model, optimizer, every=2, to=tmp_path / "run.sp") as run:
        losses = [step(model, optimizer).item() for _ in range(6)]
    assert len(losses) == 6
    assert "watching stopped at step 0 (ZeroDivisionError: ours)" in run.failed
    assert len([r for r in caplog.records if "watching stopped" in r.message]) == 1
    assert not optimizer._optimizer_step_pre_hooks


def test_numbers_that_are_none_are_said_once(caplog):
    model, optimizer = small()
    with watch(model, optimizer, to=None) as run:
        for _ in range(3):
            step(model, optimizer)
            run.log(loss="low", accuracy=torch.zeros(2))
    assert caplog.text.count("is no number and is not recorded") == 2
    run.log(loss=1.0)  # after the end: nothing
    run.close()


# ---- alerts ----------------------------------------------------------------------------------


def test_stop_ends_the_block_at_the_first_value_that_is_not_finite(tmp_path):
    model, optimizer = small()
    done = 0
    with watch(model, optimizer, every=10, to=tmp_path / "run.sp", on={"SP411": "stop"}) as run:
        for k in range(60):
            step(model, optimizer, factor=float("nan") if k == 23 else 1.0)
            done += 1
    assert done in (23, 24, 25)
    assert run.stopped.code == "SP411"
    assert run.stopped.since == 23
    with Run(tmp_path / "run.sp") as written:
        assert [a.code for a in written.alerts] == ["SP411"]
        assert len(written.windows) == 1
        assert written.replays[0].step == 23
        assert written.replays[0].batch == 23


def test_a_stop_that_is_swallowed_comes_again():
    model, optimizer = small()
    caught = 0
    with watch(model, optimizer, every=10, to=None, on={"SP411": "stop"}):
        for k in range(30):
            try:
                step(model, optimizer, factor=float("nan") if k == 5 else 1.0)
            except StopTraining:
                caught += 1
    assert caught > 10


def test_what_is_recorded_of_a_step_that_went_wrong_runs_it_again(tmp_path):
    """The random states at the beginning of the step give the same batch and the same dropout."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = []
    with watch(model, optimizer, every=50, to=tmp_path / "run.sp") as run:
        for k in range(40):
            x = torch.randn(8, 4) + np.random.rand() + random.random()
            y = model(x)
            batches.append((x, y.detach().clone()))
            loss = y.square().mean() * (float("inf") if k == 33 else 1.0)
            optimizer.zero_grad()
            loss.backward()
            if k != 33:
                optimizer.step()
            else:
                weights = [p.detach().clone() for p in model.parameters()]
                optimizer.step()
            run.log(loss=loss)
    with Run(tmp_path / "run.sp") as written:
        (replay,) = written.replays
    assert (replay.step, replay.batch) == (33, 33)
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(w)
    before = torch.get_rng_state()
    RandomStates.from_bytes(replay.states).restore()
    x = torch.randn(8, 4) + np.random.rand() + random.random()
    assert torch.equal(x, batches[33][0])
    assert torch.equal(model(x), batches[33][1])
    assert not torch.equal(before, torch.get_rng_state())


def test_a_spike_is_told_with_its_site_the_steps_before_and_a_closer_look_after(tmp_path):
    loop = make("zeroed")
    with watch(loop.model, loop.optimizers[0], every=25, to=tmp_path / "run.sp") as run:
        for k in range(260):
            if 200 <= k < 212:
                with torch.no_grad():
                    loop.model.b.weight += 2 * torch.randn_like(loop.model.b.weight)
            run.log(loss=one("zeroed", loop, k))
    told = [alarm for alarm in run.alarms if alarm.code == "SP405"]
    assert len(told) == 1
    assert 198 <= told[0].since <= 206
    with Run(tmp_path / "run.sp") as written:
        window = next(w for w in written.windows if w.reason == "SP405")
        assert window.steps[-1] <= told[0].step
        assert np.all(np.diff(window.steps) == 1)
        assert len(window.steps) >= 100
        steps = written.steps.tolist()
        after = [s for s in steps if told[0].step < s <= told[0].step + 10]
        assert len(after) >= 8  # every step for a while


def test_a_healthy_training_is_silent(tmp_path, caplog):
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 8 - 1
    y = torch.tensor(data.target)
    hidden = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer, every=10, to=tmp_path / "run.sp") as run:
        for _ in range(600):
            rows = torch.randint(len(x), (64,))
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
    assert run.alarms == ()
    assert not caplog.records


def test_the_example_in_the_docstring_runs():
    import doctest

    (example,) = doctest.DocTestFinder(recurse=False).find(watch, "watch")
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not said, "".join(said)


def test_random_states_that_are_none_are_refused():
    good = RandomStates.now().to_bytes()
    assert RandomStates.from_bytes(good).to_bytes() == good
    for bad in ({}, {**good, "numpy": b""}, {**good, "python": b"x" * 50}):
        with pytest.raises(SignalpropError, match="cannot be read"):
            RandomStates.from_bytes(bad)
