"""`trace`, with the time axis of what recurs in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from signalprop.capture import observe as capture
from signalprop.capture.batch import Loss
from signalprop.capture.observe import Pass, raise_failure, unwrapped
from signalprop.capture.trace import Trace
from signalprop.nets.recurrent.minimal import MinGRU, MinLSTM
from signalprop.recurrent.loops.cells import loops
from signalprop.recurrent.loops.own import Called
from signalprop.recurrent.record import How, record


def observe(
    model: nn.Module,
    batch: Any,
    loss: Loss = None,
    *,
    batch_dim: int | None = None,
    deltas: How = "borders",
) -> Pass:
    """`capture.observe`, its trace with the time axis.

    Args:
        model: as for `trace`.
        batch: as for `trace`.
        loss: as for `trace`.
        batch_dim: as for `trace`.
        deltas: as for `trace`.

    Returns:
        The pass.
    """
    inner = unwrapped(model)
    watching: list[record | Called] = []

    @contextmanager
    def around() -> Iterator[None]:
        watching[:] = _watching(inner, deltas)
        with ExitStack() as stack:
            for context in watching:
                stack.enter_context(context)
            yield

    seen = capture.observe(model, batch, loss, batch_dim=batch_dim, around=around)
    axes = [axis for context in watching for axis in context.axes()]
    time = (*axes, *loops(inner, seen.trace))
    return replace(seen, trace=replace(seen.trace, time=time))


def _watching(model: nn.Module, deltas: How) -> Iterator[record | Called]:
    """What has to be open during the forward pass: of most models nothing."""
    modules = list(model.modules())
    if any(isinstance(m, (nn.RNNBase, MinGRU, MinLSTM)) for m in modules):
        yield record(model, deltas, whole=True)
    if any(Called.sees(m) for m in modules[1:]):
        yield Called(model)


def trace(
    model: nn.Module,
    batch: Any,
    loss: Loss = None,
    *,
    batch_dim: int | None = None,
    deltas: How = "borders",
) -> Trace:
    """See one forward and backward pass: activations, deltas, spine, and where delta is lost.

    The model is afterwards bit for bit what it was: parameters, gradients, buffers (BatchNorm
    statistics included), modes, hooks and random state, also after an error.

    Args:
        model: any module; `torch.compile`d and DataParallel models are looked into.
        batch: a tensor, `(inputs, target)`, `(input1, input2, target)`, a dict of keyword
            arguments, or a DataLoader, of which the first batch is taken.
        loss: `loss(output, target)`, `loss(output)` or a loss module; None where the model returns
            a loss of its own (`.loss`, `["loss"]`, or a scalar).
        batch_dim: dimension of the samples; None takes the first, or the second where only that one
            fits the target (sequence-first models).
        deltas: over time: `borders` runs recurrent layers with torch's own kernels in chunks of
            steps and reads dL/dh_t and dL/dc_t where they meet; `all` reads every step.

    Returns:
        The trace. `decay` is in nats (natural logarithm of a ratio of L2 norms per sample, mean
        over samples), rms values in the units of the tensor.

    Raises:
        BatchError: the batch is empty or of an unknown form.
        LossError: there is no scalar loss that depends on the model.
        ModelError: the model raised, or has nothing to see.

    Note:
        Cost: one forward and backward pass, and the statistics: from half a plain training step
        (wide layers) to a whole one (many small ones). Every floating input gets a gradient as
        well, so delta is known at the input and through frozen layers. delta = dL/da (Hochreiter
        1991; Bengio, Simard & Frasconi 1994). With a mean reduction delta carries a factor
        1/batch, which cancels in `decay`.

    Examples:
        >>> import torch, signalprop as sp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> seen = sp.trace(net, (torch.randn(16, 4), torch.randint(2, (16,))),
        ...                 torch.nn.functional.cross_entropy)
        >>> seen.spine
        ('input', '0', '1', '2')
    """
    seen = observe(model, batch, loss, batch_dim=batch_dim, deltas=deltas)
    raise_failure(seen)
    return seen.trace
