"""What watches a training, made alike: nothing, signalprop, and the least that hooks can cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.compiled import sums
from signalprop.watching.watch import watch


class Watcher:
    """A tool at work on one training; this one does nothing.

    A loop calls `before` before the forward pass, `backward` after the backward pass and `ended`
    after the update. A tool that hooks all of this itself leaves them as they are.

    Args:
        model: the network in training.
        optimizer: its optimizer.
        every: steps from sample to sample; None for the tool's default.
        folder: for the files it writes.
    """

    #: the tool's default interval, for the tables
    default: int | None = 1
    #: whether the interval can be chosen
    sampled = True

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int | None, folder: Path
    ) -> None:
        self.model, self.optimizer, self.every, self.folder = model, optimizer, every, folder
        self.start()

    def start(self) -> None:
        """Attach to the training."""

    def before(self, step: int) -> None:
        """A step begins."""

    def backward(self) -> None:
        """The gradients are there."""

    def ended(self, loss: Tensor) -> None:
        """The update is made."""

    def flush(self) -> None:
        """Wait for what is under way."""

    def close(self) -> None:
        """Detach, and write the rest."""

    def alarms(self) -> list[dict[str, Any]] | None:
        """After `close`: what it says is wrong; None for a tool that gives no verdict.

        `serious` is what the tool itself grades as an issue, critical, an error or a warning;
        `critical` the same without warnings.
        """
        return None


class Signalprop(Watcher):
    """`signalprop.watch` to a run file of its own, with the default rules."""

    default = 50

    def start(self) -> None:
        every = 50 if self.every is None else self.every
        to = self.folder / "run.sp"
        self.run = watch(self.model, self.optimizer, every=every, to=to, on=None)

    def ended(self, loss: Tensor) -> None:
        self.run.log(loss=loss)

    def flush(self) -> None:
        self.run.flush()

    def close(self) -> None:
        self.run.close()
        if self.run.failed is not None:
            raise RuntimeError(self.run.failed)

    def alarms(self) -> list[dict[str, Any]]:
        return [
            {
                "code": alarm.code,
                "serious": alarm.severity == "issue",
                "critical": alarm.severity == "issue",
                "step": alarm.step,
                "sites": list(alarm.sites[:3]),
                "text": alarm.explanation,
            }
            for alarm in self.run.alarms
        ]


class Pure(Signalprop):
    """The same where no compiler is at hand, with the sums of numpy and torch."""

    def start(self) -> None:
        os.environ["SIGNALPROP_COMPILED"] = "0"
        sums.functions.cache_clear()
        super().start()

    def close(self) -> None:
        super().close()
        del os.environ["SIGNALPROP_COMPILED"]
        sums.functions.cache_clear()


class Norms(Watcher):
    """The norm of every gradient by one call for all, and nothing else."""

    def backward(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.norms = torch.stack(torch._foreach_norm(gradients)).tolist()


class Hooks(Norms):
    """Four statistics of the output of every module without children, and all gradient norms.

    Nothing is kept or written: about the least that a recorder in Python can cost.
    """

    def start(self) -> None:
        leaves = [m for m in self.model.modules() if not list(m.children())]
        self.handles = [m.register_forward_hook(self._see) for m in leaves]
        self.rows: list[Tensor] = []

    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        x = output.detach()
        zero = (x == 0).sum() / x.numel()
        self.rows.append(torch.stack([x.mean(), x.std(), x.abs().amax(), zero]))

    def ended(self, loss: Tensor) -> None:
        self.activations = torch.stack(self.rows).tolist()
        self.rows.clear()

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
