"""Small fits of Lightning's own Trainer, with and without the callback."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

#: Lightning about itself, the machine, and the loader's workers
quiet = [
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
