"""Lightning's own Trainer, with and without the callback."""

import logging
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run
from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME
from signalprop.watching.watch import watch

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from signalprop.watching.adapters.lightning import SignalpropCallback  # noqa: E402

pytestmark = [
    # Lightning about itself, the machine, and the loader's workers
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`"),
    pytest.mark.filterwarnings(r"ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
]


class Net(lightning.LightningModule):
    """A regression; its loss becomes nan at a step that is given."""

    def __init__(self, nan_at=None, dropout=0.2, raises=None, kind=torch.optim.AdamW):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.losses: list[float] = []
        self.nan_at, self.raises, self.kind = nan_at, raises, kind

    def training_step(self, batch, index):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        if len(self.losses) == self.nan_at:
            loss = loss * float("nan")
        if self.raises is not None and len(self.losses) == 5:
            raise self.raises
        self.losses.append(loss.item())
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_mse", (self.net(x) - y).square().mean())

    def configure_optimizers(self):
        return self.kind(self.parameters(), lr=1e-2)


class Adversaries(lightning.LightningModule):
    """Two networks and two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.critics = nn.ModuleList([nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))])
        self.losses: list[float] = []

    def training_step(self, batch, index):
        of_critic, of_generator = self.optimizers()
        x, _ = batch
        fake = self.generator(torch.randn(len(x), 4))
        critic = self.critics[0]
        loss = critic(fake.detach()).mean() - critic(x).mean()
        of_critic.zero_grad()
        self.manual_backward(loss)
        of_critic.step()
        loss = -critic(fake).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        self.losses.append(loss.item())

    def configure_optimizers(self):
        return [
            torch.optim.RMSprop(self.critics.parameters(), lr=1e-3),
            torch.optim.Adam(self.generator.parameters(), lr=1e-3),
        ]


def data(shuffle=False):
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=draws)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=shuffle)


def fit(module, callbacks=(), *, valid=True, ckpt_path=None, **options):
    """Fit; returns the trainer."""
    options = {
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        **options,
    }
    trainer = lightning.Trainer(callbacks=list(callbacks), **options)
    # weights_only: a checkpoint with the callback's state in it is still plain data
    trainer.fit(
        module,
        data(shuffle=True),
        data() if valid else None,
        ckpt_path=ckpt_path,
        **({"weights_only": True} if ckpt_path else {}),
    )
    return trainer


def outcome(make, callbacks=(), **options):
    torch.manual_seed(0)
    module = make()
    fit(module, callbacks, **options)
    return module.losses, list(module.parameters()), torch.get_rng_state()


def same(a, b):
    return (
        np.array_equal(a[0], b[0], equal_nan=True)
        and all(map(torch.equal, a[1], b[1]))
        and torch.equal(a[2], b[2])
    )


def mixed(enabled=True):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    return {"plugins": [plugin]}


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


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"every": 0}, "every=0"),
        ({"start": 3}, "start=: the trainer gives it"),
        ({"sites": True}, "sites=: watch has no such option"),
        ({"on": "halt"}, "on= has the action 'halt'"),
        ({"on": ["warn", {}]}, "on= has the action"),
    ],
)
def test_wrong_options_are_said_before_training(options, part):
    with pytest.raises(SignalpropError, match=part):
        SignalpropCallback(**options)


def test_rules_and_ignored_codes_are_passed_on(tmp_path):
    callback = SignalpropCallback(
        every=2, to=None, rules=DEFAULT_RULES_OVER_TIME, ignore=["SP411"], on={"SP405": "stop"}
    )
    fit(Net(nan_at=9), [callback])
    assert not any(alarm.code == "SP411" for alarm in callback.watch.alarms)


def test_a_file_that_cannot_be_written_disturbs_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "signalprop"):
        callback = SignalpropCallback(every=4, to=tmp_path / "none" / "run.sp")
        assert same(outcome(Net, [callback]), outcome(Net))
    assert "see that its folder exists" in caplog.text


def test_the_package_that_is_in_use_is_taken():
    code = """
        import sys, pytorch_lightning
        from signalprop.watching.adapters.lightning import SignalpropCallback
        print(issubclass(SignalpropCallback, pytorch_lightning.Callback))
        print("lightning.pytorch" in sys.modules)
    """
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.slow
def test_two_processes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
            import torch
            torch.set_num_threads(1)
            from signalprop.watching.adapters.lightning import SignalpropCallback
            from tests.watching.adapters.test_lightning import Net, fit

            if __name__ == "__main__":
                for watched in (False, True):
                    callback = SignalpropCallback(every=4, to="run.sp", on="stop")
                    torch.manual_seed(0)
                    module = Net(nan_at=9)
                    callbacks = [callback] if watched else []
                    trainer = fit(module, callbacks, max_epochs=6, strategy="ddp", devices=2)
                    name = f"{watched}{trainer.global_rank}.pt"
                    torch.save((module.losses, trainer.global_step), name)
        """)
    )
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        env=env,
        check=True,
        timeout=180,
        capture_output=True,
    )
    for rank in (0, 1):
        losses, steps = torch.load(tmp_path / f"True{rank}.pt")
        plain, all_steps = torch.load(tmp_path / f"False{rank}.pt")
        assert all_steps == 24
        assert 10 <= steps <= 14  # both stopped, together
        np.testing.assert_array_equal(losses, plain[: len(losses)])
    assert sorted(p.name for p in tmp_path.glob("*.sp")) == ["run.sp"]
    with Run(tmp_path / "run.sp") as run:
        assert run.steps.tolist()[:3] == [0, 4, 8]
