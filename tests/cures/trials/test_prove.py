"""`cure`: proof on the user's data, the same for every engine, resumed, and honest."""

import copy
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from tests.cures.trials.support import (
    LOSS,
    adam,
    breaks,
    diverges,
    faster,
    harms,
    helps,
    net,
    never,
    slow,
    table,
)  # fmt: skip
from torch import nn

from signalprop.cures.trials import prove, store
from signalprop.cures.trials.prescribe import GENERAL
from signalprop.cures.trials.prove import cure
from signalprop.errors import SignalpropError

FEW = {"budget": 120, "batch_size": 64, "engine": "serial"}


def run(cures=(helps, harms), model=None, **options):
    model = model or net()
    return cure(model, table(), LOSS, adam, cures=cures, **(FEW | options))


def numbers(found):
    return [(t.name, t.metric, t.losses, t.verdict) for t in (*found.trials, found.untouched)]


def test_what_helps_is_first_and_told_with_its_line():
    found = run((harms, helps, diverges, breaks, never))
    best = found.best
    assert best.name == "helps"
    assert best.verdict == "helps"
    assert best.lines == ("model = signalprop.cures.helps(model)",)
    assert best.mean > found.untouched.mean + 0.1
    verdicts = {t.name: t.verdict for t in found.trials}
    assert verdicts["harms"] in ("no difference", "worse")
    assert verdicts["diverges"] == verdicts["raises"] == "failed"
    assert "diverged" in next(t.failed for t in found.trials if t.name == "diverges")
    assert found.rejected == {"never": "there is nothing to change"}
    assert not found.before.healthy
    assert found.after.healthy
    assert isinstance(found.cured.model[1], nn.ReLU)
    assert found.complete
    assert found.metric == "accuracy"


def test_nothing_helps():
    found = run((harms,))
    assert found.best is None
    assert found.cured is None
    assert found.after is None


def test_the_network_is_not_touched():
    model = net()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    optimizer = adam(model.parameters())
    cure(model, table(), LOSS, optimizer, cures=(helps,), **FEW)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state


def test_deterministic_for_a_seed():
    one, other, third = run(), run(), run(seeds=(5, 6, 7))
    assert numbers(one) == numbers(other)
    assert numbers(one) != numbers(third)


def test_a_builder_gives_every_seed_weights_of_its_own():
    def build():
        return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

    found = run((faster,), build, budget=10)
    assert len(set(found.untouched.losses)) == 3
    assert not any("ready-made" in note for note in found.notes)
    given = run((faster,), budget=10)
    assert any("ready-made" in note for note in given.notes)


def test_local_processes_give_the_same():
    assert numbers(run(engine="loky", workers=2)) == numbers(run())


def test_ray_gives_the_same():
    pytest.importorskip("ray", reason="ray is not installed")
    assert numbers(run(engine="ray", workers=2, budget=20)) == numbers(run(budget=20))


def test_resumed_without_running_again(tmp_path, monkeypatch):
    first = run(resume=tmp_path / "kept")
    monkeypatch.setattr(store, "Runner", None)  # any new leg would fail
    again = run(resume=tmp_path / "kept")
    assert numbers(first) == numbers(again)
    with pytest.raises(SignalpropError, match="trials with another seeds; choose an empty folder"):
        run(resume=tmp_path / "kept", seeds=2)


def test_interrupted_and_gone_on_with(tmp_path):
    class Stop:
        left = 5

        def __call__(self, done, total, what):
            Stop.left -= 1
            if Stop.left == 0:
                raise KeyboardInterrupt

    found = run(resume=tmp_path / "kept", progress=Stop())
    assert not found.complete
    assert [t.name for t in found.trials] == []
    assert found.untouched.step == 30
    whole = run(resume=tmp_path / "kept")
    assert whole.complete
    assert numbers(whole) == numbers(run())


def test_interrupted_in_processes():
    """A real SIGINT, to the parent and its workers at once, as a terminal sends it."""
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.cures.trials.support import *\n"
        "from signalprop.cures.trials.prove import cure\n"
        "def tell(done, total, what): print(done, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    found = cure(net(), table(), LOSS, adam, cures=(helps, harms), budget=4000,\n"
        "                 batch_size=64, engine='loky', workers=2, progress=tell)\n"
        "    print('complete', found.complete, flush=True)\n"
    )
    import signal

    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if line.strip() == "4":  # the untouched network has its first leg
            os.killpg(process.pid, signal.SIGINT)
            break
    begun = time.time()
    out, err = process.communicate(timeout=60)
    assert "complete False" in out
    assert "Traceback" not in err
    assert time.time() - begun < 30


def test_a_second_round_treats_what_is_left(monkeypatch):
    """The first cure makes it train; the second, named by what is then found, comes on top."""
    rounds = []

    def prescribe(findings, catalogue, most):
        rounds.append([f.code for f in findings])
        return [(helps,)] if len(rounds) == 1 else [(faster,)]

    monkeypatch.setattr(prove, "prescribe", prescribe)
    found = run(None, budget=60)
    assert {t.name for t in found.trials} >= {"helps"}
    assert len(rounds) == 2
    assert any(set(t.cures) == {"helps", "faster"} for t in found.trials)


def test_a_time_is_kept_roughly():
    begun = time.time()
    found = run((helps,), budget="3s", seeds=1)
    assert found.steps >= 60
    assert time.time() - begun < 30


def test_a_metric_of_the_user():
    def right(output, target):
        return float((output.argmax(1) == target).double().mean())

    found = run((helps,), metric=right, budget=40)
    assert found.metric == "right"
    same = run((helps,), budget=40)
    assert found.trials[0].metric == pytest.approx(same.trials[0].metric)


def test_plain_data():
    found = run((helps, diverges), budget=40)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["trials"][0]["name"] == "helps"
    frame = found.frame()
    assert list(frame.index)[-1] == "untouched"
    assert frame.loc["helps", "gain"] == found.trials[0].gain


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": "soon"}, "give a time"),
        ({"budget": 0}, "at least 1"),
        ({"seeds": 0}, "at least 1"),
        ({"workers": 0}, "at least 1"),
        ({"engine": "threads"}, "choose auto, serial, loky or ray"),
    ],
)
def test_bad_requests(options, said):
    with pytest.raises(SignalpropError, match=said):
        run((helps,), **options)


def test_what_cannot_be_used():
    with pytest.raises(SignalpropError, match="a module or a function that builds one"):
        cure(lambda: 3, table(), LOSS, adam, cures=(helps,), **FEW)
    model = net()
    model.kept = model[0].weight * 2  # not a leaf
    with pytest.raises(SignalpropError, match="cannot be copied"):
        cure(model, table(), LOSS, adam, cures=(helps,), **FEW)


def test_an_untouched_network_that_fails_is_beaten():
    def wild(parameters):
        return torch.optim.SGD(parameters, lr=float("inf"))

    found = cure(net(), table(), LOSS, wild, cures=(slow, harms), **FEW)
    assert "diverged" in found.untouched.failed
    assert found.best.name == "slow"


def test_a_healthy_network_is_left_alone():
    def healthy():
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    found = cure(healthy, table(), LOSS, adam, budget="1h", seeds=1, batch_size=64)
    assert found.before.healthy
    assert found.trials == ()
    assert found.steps == 60


def test_what_does_not_learn_for_no_reason_that_shows_gets_other_learning_rates():
    """Batches of one noisy sample and a large rate: each update undoes the last."""

    def build():
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    x, y = table()
    noisy = torch.where(torch.rand(len(y)) < 0.4, torch.randint(3, y.shape), y)
    found = cure(
        build, (x, noisy), LOSS, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        budget=400, batch_size=1, engine="serial",
    )  # fmt: skip
    assert not found.before.findings
    assert "take the loss from" in found.notes[0]
    assert {t.name for t in found.trials} | {*found.rejected} == {*GENERAL}
    assert found.trials
