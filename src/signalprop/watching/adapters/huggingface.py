"""A watch for the Trainer of Hugging Face: `Trainer(..., callbacks=[SignalpropCallback()])`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from signalprop.capture.observe import unwrapped
from signalprop.watching.adapters.attaching import Attachment, Losses
from signalprop.watching.adapters.packages import needed
from signalprop.watching.watch import Watch

TrainerCallback: Any = needed("transformers", "huggingface", "SignalpropCallback").TrainerCallback

#: numbers that the Trainer logs and the watch has at every sampled step anyhow
_KNOWN = ("learning_rate",)


class SignalpropCallback(TrainerCallback):
    """Watches every training of a Trainer; evaluation in between is not seen.

    Training is the same bit for bit. A step is an update (with gradient accumulation several
    batches). The `loss` of every step is read from the model's own output, where it has one, as the
    Trainer tells no more than its mean over `logging_steps`; all else that it logs (`eval_loss`,
    `grad_norm`, ...) is recorded when it does. Of several processes it is that of the global batch.

    A training with `resume_from_checkpoint` goes on in its run file, at the right step. The action
    `stop` sets `control.should_training_stop`, so that the Trainer ends in its usual way; with
    several processes all do at the next sampled step. Give the callback to all of them.

    The Trainer tells nobody when training fails. The run file has all by then, and whatever is
    under way is written when the next training starts, the callback is thrown away, or the
    interpreter ends; to have it at once, say `with callback: trainer.train()`, or call `close`.

    Args:
        every: steps from sample to sample.
        to: the run file; None for none.
        mode: as for `watch`; None for `resume` where training goes on from a checkpoint, else
            `new`.
        on: what is done about an alert, as for `watch`.
        loss: whether the loss is read from the model's output.
        **options: others of `watch`: `rules`, `ignore`, `listeners`, `max_bytes`.

    Attributes:
        watch: the watch of the training that is under way, or of the last one; None before.

    Raises:
        SignalpropError: an option is not what it should be.

    Examples:
        >>> from signalprop.watching.adapters.huggingface import SignalpropCallback
        >>> callback = SignalpropCallback(every=50, to="run.sp")
        >>> trainer = Trainer(model, args, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self,
        every: int = 50,
        to: str | Path | None = "run.sp",
        mode: str | None = None,
        on: Any = "warn",
        *,
        loss: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self._attached = Attachment({"every": every, "to": to, "mode": mode, "on": on, **options})
        self._reads_loss = loss
        self._loss: _Output | None = None

    @property
    def watch(self) -> Watch | None:
        """The watch of the training that is under way, or of the last one."""
        return self._attached.watch

    def close(self) -> None:
        """End the watch, where the Trainer did not come to its end."""
        self._attached.end()
        self._loss = None

    def __enter__(self) -> SignalpropCallback:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- the Trainer's events ----------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Training starts: the checkpoint is loaded, model and optimizer are there."""
        self.close()
        model, optimizer = given["model"], given["optimizer"]
        scaler = getattr(optimizer, "scaler", None)
        undo = None
        # a hook would be compiled into the model
        if self._reads_loss and not getattr(args, "torch_compile", False):
            self._loss = _Output()
            handle = unwrapped(model).register_forward_hook(self._loss.read, with_kwargs=True)
            undo = handle.remove
        start = state.global_step
        self._attached.begin(self, model, [optimizer], start=start, scaler=scaler, undo=undo)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        """An update was made."""
        step = self._attached.stepped()
        if self._loss is not None:
            own = self._loss.take(_parts(args, given.get("model")))
            loss = self._attached.mean(own, args.device)
            if step is not None and loss is not None:
                self._attached.log({"loss": loss})
        if self._attached.stops:
            control.should_training_stop = True
        return control

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """The Trainer logs numbers."""
        known = (*_KNOWN, "loss") if self._loss is not None else _KNOWN
        self._attached.log({k: v for k, v in (logs or {}).items() if k not in known})

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Training is over."""
        self.close()


def _parts(args: Any, model: Any) -> int:
    """Into how many parts the Trainer takes the sum over a step's tokens apart."""
    if not getattr(args, "average_tokens_across_devices", False):
        return 1
    return max(1, args.world_size // (getattr(model, "tp_size", None) or 1))


class _Output:
    """Reads the loss out of what a model returns; a hook, which must not hold the callback."""

    def __init__(self) -> None:
        self._losses = Losses()
        self._summed = False

    def read(self, model: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """The model has returned; changes nothing."""
        if not model.training or not torch.is_grad_enabled():
            return
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if loss is not None:
            # then each batch's is its part of the step's, otherwise its own mean
            self._summed = kwargs.get("num_items_in_batch") is not None
            self._losses.add(loss)

    def take(self, parts: int) -> Any:
        """The loss of the step.

        Args:
            parts: of a sum over the tokens of all processes, each of which has its own terms.

        Returns:
            The mean over this process's tokens, as if the others had as many; None without.
        """
        loss = self._losses.take(summed=self._summed)
        return loss if loss is None or not self._summed else loss * parts
