"""The other tools, each called as its README says, at its default settings.

Each is imported where it is first used: this module loads without any of them. Their verdicts are
counted as they grade them themselves: what they call critical, a warning, an error.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
from typing import Any

from benchmarks.watchers import Watcher
from torch import Tensor


class Wandb(Watcher):
    """`run.watch(model)` of wandb: histograms of all gradients; offline.

    Its own server is another process, whose time is not counted here.
    """

    package, default = "wandb", 1000

    def start(self) -> None:
        os.environ["WANDB_SILENT"] = "true"
        import wandb

        self.run = wandb.init(mode="offline", dir=self.folder, project="watch")
        self.run.watch(self.model, log_freq=self.every or 1000)

    def ended(self, loss: Tensor) -> None:
        self.run.log({"loss": loss.item()})

    def close(self) -> None:
        self.run.unwatch(self.model)
        self.run.finish()


class Lightning(Watcher):
    """`grad_norm(module, norm_type=2)`, as its documentation has it called at every step."""

    package, default, sampled = "lightning", 1, False

    def start(self) -> None:
        from lightning.pytorch.utilities import grad_norm

        self.grad_norm = grad_norm

    def backward(self) -> None:
        self.norms = {k: float(v) for k, v in self.grad_norm(self.model, norm_type=2).items()}


class TorchLens(Watcher):
    """`trackers.watch` to a JSONL file: gradients."""

    package, default = "torchlens", 50

    def start(self) -> None:
        from torchlens import trackers

        self.step = 0
        self.session = trackers.watch(
            self.model,
            to=trackers.JSONLSink(self.folder / "run.jsonl"),
            optimizer=self.optimizer,
            step=lambda: self.step,
            every=self.every or trackers.DEFAULT_EVERY,
        )

    def before(self, step: int) -> None:
        self.step = step

    def close(self) -> None:
        self.session.close()


class TorchLensChecks(Watcher):
    """`checks.ChecksSession` with every check that has a default; findings are collected."""

    package = "torchlens"
    default, sampled = 1, False

    def start(self) -> None:
        from torchlens import checks

        self.session = checks.ChecksSession(self.model, self.optimizer)
        self.session.register_change_check(action="collect")
        self.session.register_nonfinite_gradient_check(action="collect")
        self.session.register_nonfinite_param_check(action="collect")
        self.session.register_magnitude_check()
        self.session.attach()

    def close(self) -> None:
        self.session.detach()
        self.report = self.session.report()

    def alarms(self) -> list[dict[str, Any]]:
        return [
            {
                "code": f.check,
                "serious": f.severity in ("critical", "warning"),
                "critical": f.severity == "critical",
                "text": f.message,
            }
            for f in self.report.findings
        ]


class Torchmortem(Watcher):
    """`with Autopsy(model, optimizer)`, `autopsy.step(loss)`, and its report."""

    package, default, sampled = "torchmortem", 1, False

    def start(self) -> None:
        from torchmortem import Autopsy

        self.autopsy = Autopsy(self.model, optimizer=self.optimizer)
        self.autopsy.attach()

    def ended(self, loss: Tensor) -> None:
        self.autopsy.step(loss=loss.item())

    def close(self) -> None:
        self.autopsy.detach()

    def alarms(self) -> list[dict[str, Any]]:
        report = self.autopsy.get_report()
        return [
            {
                "code": f.detector,
                "serious": f.severity.name != "INFO",
                "critical": f.severity.name == "CRITICAL",
                "text": f.title,
            }
            for f in report.findings
        ]


class NeuralObservatory(Watcher):
    """`obs.watch()`, `obs.step(step)` before each forward pass, and its report."""

    package, default, sampled = "neural-observatory", 1, False

    def start(self) -> None:
        from neural_observatory import Observatory

        self.obs = Observatory(self.model)
        self.obs.watch()

    def before(self, step: int) -> None:
        self.obs.step(step=step, epoch=0)

    def close(self) -> None:
        self.obs.stop()
        self.report = self.obs.report()

    def alarms(self) -> list[dict[str, Any]]:
        return [
            {
                "code": r.analyzer_name,
                "serious": r.status.value in ("warning", "critical"),
                "critical": r.status.value == "critical",
                "text": f"{r.layer_name}: {'; '.join(r.warnings)}",
            }
            for r in self.report.results
            if r.status.value != "healthy"
        ]


class TorchAudit(Watcher):
    """`autopatch(model, optimizer)`."""

    package, default = "torch-audit", 1000

    def start(self) -> None:
        from torch_audit import autopatch

        every = self.every or 1000
        self.auditor = autopatch(self.model, optimizer=self.optimizer, every_n_steps=every)

    def close(self) -> None:
        self.result = self.auditor.finish()
        self.auditor.unpatch()

    def alarms(self) -> list[dict[str, Any]]:
        # hints before the training (alignment for tensor cores, decay of biases) are about other
        # things than its health
        return [
            {
                "code": f.rule_id,
                "serious": f.severity.value != "INFO" and f.phase.value not in ("static", "init"),
                "critical": f.severity.value in ("ERROR", "FATAL"),
                "text": f.message,
            }
            for f in self.result.findings
        ]


PEERS: dict[str, type[Watcher]] = {
    "wandb.watch": Wandb,
    "Lightning grad_norm": Lightning,
    "torchmortem": Torchmortem,
    "neural-observatory": NeuralObservatory,
    "torch-audit": TorchAudit,
    "TorchLens watch": TorchLens,
    "TorchLens checks": TorchLensChecks,
}
#: those that say what is wrong
VERDICTS = ("torchmortem", "neural-observatory", "torch-audit", "TorchLens checks")


def version(name: str) -> str:
    """Of the installed package; empty where there is none."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(getattr(PEERS[name], "package", name))
    return ""


def quiet() -> None:
    """Keep the tools' own lines out of the tables."""
    for name in ("wandb", "torchmortem", "neural_observatory", "torch_audit", "torchlens"):
        logging.getLogger(name).setLevel(logging.ERROR)
