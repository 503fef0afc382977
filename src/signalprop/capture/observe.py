"""`trace`: one forward and backward pass of a model, seen, and nothing of it left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import backward
from signalprop.capture import batch as batches
from signalprop.capture.assemble import assemble
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.recorder import Recorder
from signalprop.capture.sandbox import random_state, untouched
from signalprop.capture.trace import Failure, Trace
from signalprop.errors import LossError, ModelError, SignalpropError

#: makes a context for a forward pass
Around = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Pass:
    """A trace, and the tensors of the pass that later measurements need.

    Attributes:
        trace: what was seen.
        gradients: the gradient of every parameter that got one, keyed by name.
        error: the exception that stopped the pass, else None.
    """

    trace: Trace
    gradients: dict[str, Tensor]
    error: Exception | None


def trace(
    model: torch.nn.Module,
    batch: Any,
    loss: Loss = None,
    *,
    batch_dim: int | None = None,
) -> Trace:
    """`signalprop.trace` without the time axis.

    Args:
        model: as there.
        batch: as there.
        loss: as there.
        batch_dim: as there.

    Returns:
        The trace.
    """
    seen = observe(model, batch, loss, batch_dim=batch_dim)
    raise_failure(seen)
    return seen.trace


def observe(
    model: torch.nn.Module,
    batch: Any,
    loss: Loss = None,
    *,
    batch_dim: int | None = None,
    around: Around = nullcontext,
) -> Pass:
    """Like `trace`, but keeps gradients, and returns what was seen when the pass stops early.

    Args:
        model: as for `trace`.
        batch: as for `trace`.
        loss: as for `trace`.
        batch_dim: as for `trace`.
        around: makes a context that is open during the forward pass.

    Returns:
        The pass.
    """
    model = unwrapped(model)
    check(model)
    with random_state():
        data = batches.first_of(batch)
    if batch_dim is None:
        batch_dim = batches.sample_dim(data, model, loss)
    seen, again = _attempt(model, data, loss, batch_dim, around, gradients=True)
    if again:
        seen, _ = _attempt(model, data, loss, batch_dim, around, gradients=False)
    return seen


def _attempt(
    model: torch.nn.Module,
    batch: Any,
    loss: Loss,
    batch_dim: int,
    around: Around,
    *,
    gradients: bool,
) -> tuple[Pass, bool]:
    """One pass, and whether it has to be made again without gradients for the inputs.

    Some models set `requires_grad` on their input themselves, which only a leaf allows. And a
    block that is checkpointed re-entrantly gets gradients only if its input has one: with inputs
    that do not, as in training, that must be seen.

    Returns:
        The pass, and whether to go again.
    """
    with untouched(model) as sandbox, eager():
        data = batches.read(batch, model, loss, batch_dim=batch_dim, gradients=gradients)
        recorder = Recorder(
            model,
            batch=data.size,
            batch_dim=batch_dim,
            parameters=sandbox.parameters.values(),
            before_write=sandbox.before_write,
        )
        seen, found = _run(model, data, loss, sandbox.parameters, recorder, around)
    refused = isinstance(seen.error, RuntimeError) and "flags of leaf" in str(seen.error)
    return seen, bool(data.leaves) and (refused or found.reentrant)


def _run(
    model: torch.nn.Module,
    data: Batch,
    loss: Loss,
    parameters: dict[str, Tensor],
    recorder: Recorder,
    around: Around,
) -> tuple[Pass, backward.Backward]:
    found = backward.Backward(parameters, data)
    failure: Failure | None = None
    error: Exception | None = None
    value: Tensor | None = None
    phase = "forward"
    try:
        for name, tensor in data.inputs.items():
            recorder.see_input(name, tensor)
        with around(), recorder:
            output = model(*data.args, **data.kwargs)
            phase = "loss"
            recorder.loss_phase()
            value = batches.loss_of(output, data, loss)
            del output
    except Exception as raised:
        error = raised
    if value is not None and error is None:
        phase = "backward"
        try:
            found.run(value, recorder)
        except Exception as raised:
            error = raised
    if error is not None:
        where = recorder.unwound[0] if recorder.unwound and phase == "forward" else ""
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        message = lines[0].rstrip(". ") if lines else type(error).__name__
        failure = Failure(phase, where, type(error).__name__, message)
    seen = assemble(model, data, recorder, found, value, failure)
    return Pass(seen, found.gradients, error), found


def raise_failure(seen: Pass) -> None:
    """Raise the error that stopped a pass, dressed; do nothing if none did."""
    if seen.error is not None:
        raise _dressed(seen) from seen.error


def _dressed(seen: Pass) -> SignalpropError:
    """The error of a pass as one sentence, with the place and what to do next."""
    error, failure = seen.error, seen.trace.failure
    assert error is not None
    assert failure is not None
    if isinstance(error, SignalpropError):
        return error
    if _out_of_memory(error):
        return ModelError(
            f"out of memory in the {failure.phase} pass with a batch of {seen.trace.batch}; give a "
            "smaller batch, the verdict needs no more than 32 samples"
        )
    where = f" in module {failure.site!r}" if failure.site else ""
    shapes = ", ".join(
        f"{name} {facts.dtype}{list(facts.shape)}" for name, facts in seen.trace.inputs.items()
    )
    given = f" (given {shapes})" if shapes else ""
    text = f"{failure.error}: {failure.message}"
    match failure.phase:
        case "forward":
            return ModelError(
                f"the model raised{where}{given}: {text}; check that the batch is what "
                "model.forward takes"
            )
        case "loss":
            return LossError(
                f"the loss raised: {text}; check that it fits the model's output{given}"
            )
        case _ if "modified by an inplace operation" in failure.message:
            which = failure.message.partition("operation: ")[2].partition(";")[0]
            return ModelError(
                "a tensor that the backward pass needs was changed in place after it was used "
                f"({which}); replace that operation by one that makes a new tensor"
            )
        case _:
            return ModelError(f"the backward pass raised: {text}")


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The user's module inside `torch.compile`, DataParallel or DistributedDataParallel."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, parallel):
            inner = model.module
        if not isinstance(inner, torch.nn.Module):
            return model
        model = inner


def check(model: torch.nn.Module) -> None:
    """Raise where a model cannot be observed at all."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"expected a torch.nn.Module, got {batches.describe(model)}; give the model itself"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("a scripted model hides its operations; give the module it was made from")
    for name, p in model.named_parameters():
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise ModelError(
                f"the parameter {name!r} of a lazy module has no shape yet; run the model on one "
                "batch first, then call again"
            )
        if p.device.type == "meta":
            raise ModelError(
                f"the parameter {name!r} is on the meta device and has no values; materialise the "
                "model first"
            )


@contextmanager
def eager() -> Iterator[None]:
    """Gradients on, compiled code off: compiled modules run their Python, which can be seen.

    Autocast's cache of cast weights is off too: it would keep casts of weights that are only tried
    out, and hand the user's next pass casts that belong to this one.
    """
    stance = torch.compiler.set_stance("force_eager")
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            stance,
            warnings.catch_warnings(),
        ):
            # a compiled part fires the hooks twice; the recorder knows
            warnings.filterwarnings("ignore", r"Using `torch.compile\(module\)` when there are")
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
