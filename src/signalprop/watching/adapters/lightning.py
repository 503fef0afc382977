"""A watch for Lightning's Trainer: `Trainer(callbacks=[SignalpropCallback(every=50)])`.

The callback is one of the package that is in use: `lightning`, or `pytorch_lightning` where that is
what the program has imported, or the only one installed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from signalprop.watching.adapters.attaching import Attachment, Losses
from signalprop.watching.adapters.packages import needed
from signalprop.watching.watch import Watch

_LOG = logging.getLogger("signalprop")


def _package() -> Any:
    """Lightning's trainer package, without importing a second one beside it."""
    ours, theirs = "lightning.pytorch", "pytorch_lightning"
    if theirs in sys.modules and ours not in sys.modules:
        return sys.modules[theirs]
    with contextlib.suppress(ImportError):
        return needed(ours, "lightning", "SignalpropCallback")
    return needed(theirs, "lightning", "SignalpropCallback")


Callback: Any = _package().Callback


class SignalpropCallback(Callback):
    """Watches every fit of a Trainer; validation in between is not seen.

    Training is the same bit for bit. The watch attaches when training starts, to the
    LightningModule and its optimizers, and ends with it, also by an exception. A step is an update
    (with gradient accumulation several batches); `loss` is recorded of every step, of several
    batches and processes their mean, and `trainer.callback_metrics` at sampled steps and after
    validation.

    A training that goes on from a checkpoint goes on in its run file, at the right step. The action
    `stop` sets `trainer.should_stop`, so that Lightning ends in its usual way, with its checkpoints
    and its minimum of steps; with several processes all do at the next sampled step.

    Args:
        every: steps from sample to sample.
        to: the run file; None for none.
        mode: as for `watch`; None for `resume` where a fit goes on from a checkpoint, else `new`.
        on: what is done about an alert, as for `watch`.
        **options: others of `watch`: `rules`, `ignore`, `listeners`, `max_bytes`.

    Attributes:
        watch: the watch of the fit that is under way, or of the last one; None before.

    Raises:
        SignalpropError: an option is not what it should be.

    Note:
        In automatic optimisation the LightningModule is one model, and `training_step` its pass.
        In manual optimisation each of its direct submodules with weights is a model, as a
        `training_step` may go through several updates; weights of the LightningModule itself are
        not seen then. Several optimizers: a step ends with the update of the last one.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from signalprop.watching.adapters.lightning import SignalpropCallback
        >>> callback = SignalpropCallback(every=50, to="run.sp")
        >>> trainer = Trainer(callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self,
        every: int = 50,
        to: str | Path | None = "run.sp",
        mode: str | None = None,
        on: Any = "warn",
        **options: Any,
    ) -> None:
        super().__init__()
        self._attached = Attachment({"every": every, "to": to, "mode": mode, "on": on, **options})
        self._key = {"to": None if to is None else str(to), "every": every}
        self._loss = Losses()
        self._saved: int | None = None
        self._undo: list[Callable[[], object]] = []

    @property
    def watch(self) -> Watch | None:
        """The watch of the fit that is under way, or of the last one."""
        return self._attached.watch

    # ---- Lightning's hooks -------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the number of the step."""
        return self._generate_state_key(**self._key)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        watch = self.watch
        return {"step": self._attached.next if watch is None else watch.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """What a checkpoint has kept."""
        self._saved = int(state_dict.get("step", 0))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Training starts: the checkpoint is loaded, the optimizers are there."""
        self._release()
        optimizers = [getattr(o, "optimizer", o) for o in trainer.optimizers]
        start = 0
        if trainer.global_step > 0:
            # of several optimizers Lightning counts every update
            counted = trainer.global_step // max(1, len(optimizers))
            known = self._saved if self._saved is not None else self._attached.next
            start = known or counted
        self._saved = None
        models = self._models(trainer, pl_module)
        for optimizer in optimizers:
            if not pl_module.automatic_optimization or _overridden(pl_module, "optimizer_step"):
                handle = optimizer.register_step_pre_hook(_evaluated_kept)
            else:
                handle = optimizer.register_step_pre_hook(_evaluated)
            self._undo.append(handle.remove)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        try:
            self._attached.begin(self, models, optimizers, start=start, scaler=scaler)
        except BaseException:
            self._release()
            raise

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is over, and perhaps an update."""
        found = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._loss.add(self._attached.mean(found, trainer.strategy.root_device))
        step = self._attached.stepped()
        if step is None:
            return
        # in automatic optimisation each is divided by the number of batches already
        loss = self._loss.take(summed=pl_module.automatic_optimization)
        values: dict[str, Any] = {} if loss is None else {"loss": loss}
        if step % self._attached.every == 0:
            values = {**trainer.callback_metrics, **values}
        self._attached.log(values)
        if self._attached.stops:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """A validation is over: its metrics are known."""
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self._attached.log({name: v for name, v in metrics.items() if name != "loss"})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Training is over."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Training has failed, or was interrupted."""
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The trainer is done."""
        self._release()

    # ---- inside ------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Launchers send callbacks to other processes; what is attached stays here."""
        return {**self.__dict__, "_undo": []}

    def _release(self) -> None:
        self._attached.end()
        undo = self._undo
        self._undo = []
        for call in undo:
            call()
        self._loss = Losses()

    def _models(self, trainer: Any, module: Any) -> Any:
        """What is watched; `training_step` is made a pass of the LightningModule where it is."""
        if not module.automatic_optimization:
            return dict(_parts(module)) or module
        wrapped = trainer.strategy.model is not module  # its strategy calls the module itself
        if wrapped:
            return module
        if _hooked(module):  # such hooks must not see a pass more than without us
            return dict(_parts(module)) or module
        self._undo.append(_enter_by_call(module, lambda: self._attached.sampling))
        return module


def _parts(module: torch.nn.Module, prefix: str = "") -> list[tuple[str, torch.nn.Module]]:
    """Direct submodules with weights that can be called, by name."""
    found: list[tuple[str, torch.nn.Module]] = []
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        if isinstance(child, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            found += _parts(child, f"{prefix}{name}.")
        elif not any(child is other for _, other in found):
            found.append((f"{prefix}{name}", child))
    return found


def _hooked(module: torch.nn.Module) -> bool:
    """Whether somebody looks at calls of this module itself."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _enter_by_call(module: Any, wanted: Callable[[], bool]) -> Callable[[], None]:
    """Have `training_step` go through a call of the module, as Lightning does it for DDP.

    Lightning calls `training_step` as a plain method, so that no hook would see where a pass begins
    and ends.

    Args:
        module: the LightningModule.
        wanted: whether the step is one where that matters.

    Returns:
        Undoes it.
    """
    had = module.__dict__.get("training_step")
    original = module.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        if not wanted():
            return original(*args, **kwargs)
        own = module.__dict__.get("forward")

        def restore() -> None:
            if own is not None:
                module.forward = own
            else:
                module.__dict__.pop("forward", None)

        def forward(*args: Any, **kwargs: Any) -> Any:
            restore()  # the step itself may call the module
            return original(*args, **kwargs)

        module.forward = forward
        try:
            return module(*args, **kwargs)
        finally:
            restore()

    def undo() -> None:
        if module.__dict__.get("training_step") is training_step:
            del module.training_step
            if had is not None:
                module.training_step = had

    module.training_step = training_step
    return undo


def _overridden(module: Any, method: str) -> bool:
    base = next((c for c in type(module).__mro__ if c.__name__ == "LightningModule"), None)
    return getattr(type(module), method, None) is not getattr(base, method, None)


def _evaluated(optimizer: Any, args: Any, kwargs: Any) -> Any:
    """Run the batch before the optimizer steps, not in it.

    Lightning hands its optimizers a function that runs forward and backward pass. All of torch but
    LBFGS begin with calling it, once: so to call it just before is the same, and what is to be
    measured, the gradient that the update gets, is there when it is measured.

    Args:
        optimizer: about to step.
        args: of its step.
        kwargs: likewise.

    Returns:
        What the step gets instead.
    """
    return _early(optimizer, args, kwargs, keep=False)


def _evaluated_kept(optimizer: Any, args: Any, kwargs: Any) -> Any:
    """The same, and where there is a result the optimizer still returns it."""
    return _early(optimizer, args, kwargs, keep=True)


def _early(optimizer: Any, args: Any, kwargs: Any, *, keep: bool) -> Any:
    closure = kwargs.get("closure")
    kind = type(optimizer)
    known = kind.__module__.startswith("torch.optim.") and kind is not torch.optim.LBFGS
    if not known or len(args) != 1 or not callable(closure):
        return None
    with torch.enable_grad():
        result = closure()
    rest = {k: v for k, v in kwargs.items() if k != "closure"}
    if keep and result is not None:
        rest["closure"] = lambda: result
    return args, rest
