"""A fit with the callback: the same training, and the numbers of a plain loop."""

import logging

import numpy as np
import pytest
import torch
from tests.watching.adapters.lightning.fits import (
    Adversaries,
    Net,
    fit,
    mixed,
    outcome,
    quiet,
    same,
)
from torch import nn

from signalprop.watching.adapters.lightning import SignalpropCallback
from signalprop.watching.file.reader import Run
from signalprop.watching.watch import watch

pytestmark = quiet


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Net, dict),
        (Net, lambda: {"gradient_clip_val": 0.1}),
        (Net, lambda: {"accumulate_grad_batches": 3, "val_check_interval": 2}),
        (Net, lambda: {"precision": "bf16-mixed"}),
        (Net, mixed),
        (lambda: Net(kind=torch.optim.LBFGS), dict),
        (Adversaries, lambda: {"valid": False}),
    ],
    ids=["plain", "clipped", "accumulated", "bfloat16", "scaled", "lbfgs", "adversaries"],
)
def test_training_is_the_same_bit_for_bit(tmp_path, make, options):
    callback = SignalpropCallback(every=4, to=tmp_path / "run.sp")
    assert same(outcome(make, [callback], **options()), outcome(make, **options()))
    assert callback.watch.failed is None
    with Run(tmp_path / "run.sp") as run:
        assert len(run.steps) >= 2
        assert {"activation_rms", "delta_rms", "update_ratio"} <= set(run.statistics)


@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}], ids=str
)
def test_the_numbers_are_those_of_a_plain_loop(tmp_path, options):
    callback = SignalpropCallback(every=4, to=tmp_path / "a.sp")
    torch.manual_seed(0)
    module = Net(dropout=0.0)
    batches: list = []
    module.on_train_batch_start = lambda batch, index: batches.append(batch)
    fit(module, [callback], **options)

    torch.manual_seed(0)
    net = Net(dropout=0.0).net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    several = options.get("accumulate_grad_batches", 1)
    losses = []
    with watch(net, optimizer, every=4, to=tmp_path / "b.sp") as run:
        for i, (x, y) in enumerate(batches):
            loss = (net(x) - y).square().mean()
            losses.append(loss.detach())
            (loss / several).backward()
            if (i + 1) % several == 0:
                if "gradient_clip_val" in options:
                    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
                run.log(loss=sum(losses[-several:]) / several)
    with Run(tmp_path / "a.sp") as a, Run(tmp_path / "b.sp") as b:
        assert set(a.statistics) == set(b.statistics)
        for name in b.statistics:
            ours = a.values(name, [f"net.{site.name}" for site in b.sites])
            np.testing.assert_array_equal(ours.first, b.values(name).first)
            np.testing.assert_allclose(ours.mean, b.values(name).mean, rtol=1e-5, err_msg=name)
        ours, theirs = a.scalars(), b.scalars()
        clipped = ["clipped"] if "gradient_clip_val" in options else []
        for name in ("loss", "gradient_norm", "learning_rate", *clipped):
            np.testing.assert_array_equal(ours[name][0], theirs[name][0])
            np.testing.assert_allclose(ours[name][1], theirs[name][1], rtol=1e-5)
        # logged with self.log: at sampled steps, and after each validation
        assert {0, 4} <= set(ours["train_mse"][0].tolist())
        per_epoch = 8 // several
        assert [s for s in ours["val_mse"][0] if s % 4] == [
            s for s in (per_epoch - 1, 2 * per_epoch - 1, 3 * per_epoch - 1) if s % 4
        ]


def test_the_modules_are_left_as_they_were(tmp_path):
    module = Net()
    before = dict(module.__dict__)
    fit(module, [SignalpropCallback(every=2, to=None)])
    added = set(module.__dict__) - set(before)
    assert not added & {"training_step", "forward"}
    fit(bare := Net())
    assert set(bare.__dict__) == set(module.__dict__)


def test_somebody_elses_hook_sees_no_call_more(tmp_path):
    calls = []
    module = Net()
    module.register_forward_hook(lambda *_: calls.append(1))
    fit(module, [SignalpropCallback(every=2, to=tmp_path / "run.sp")])
    assert not calls
    with Run(tmp_path / "run.sp") as run:
        assert "net.1" in [site.name for site in run.sites]


def test_several_optimizers_by_hand(tmp_path):
    fit(Adversaries(), [SignalpropCallback(every=4, to=tmp_path / "run.sp")], valid=False)
    with Run(tmp_path / "run.sp") as run:
        assert run.steps.tolist() == [0, 4, 8, 12, 16, 20]
        names = {site.name for site in run.sites}
        assert {"generator.1", "critics.0.1"} <= names
        for name in ("activation_rms", "delta_rms", "update_ratio"):
            assert np.isfinite(run.values(name, ["generator.0", "critics.0.0"]).mean).all()
        assert {"learning_rate", "learning_rate/2"} <= set(run.scalars())


def test_skipped_updates_of_a_scaler_are_told(tmp_path):
    fit(Net(nan_at=3), [SignalpropCallback(every=2, to=tmp_path / "run.sp")], **mixed())
    with Run(tmp_path / "run.sp") as run:
        assert run.scalars()["skipped"][1][-1] == 1
        assert run.scalars()["loss_scale"][1][0] == 2.0**10


def test_loggers_are_listeners_too(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from signalprop.watching.adapters.tensorboard import TensorBoard

    callback = SignalpropCallback(every=4, to=None, listeners=[TensorBoard(tmp_path)])
    fit(Net(), [callback])
    assert list(tmp_path.glob("events*"))


def test_a_file_that_cannot_be_written_disturbs_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "signalprop"):
        callback = SignalpropCallback(every=4, to=tmp_path / "none" / "run.sp")
        assert same(outcome(Net, [callback]), outcome(Net))
    assert "see that its folder exists" in caplog.text
