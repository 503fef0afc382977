"""A pass of a user's network, kept alive so that Jacobians can be taken between its sites."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from signalprop.capture import batch as batches
from signalprop.capture.assemble import site_names
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.graph import Node, topological
from signalprop.capture.observe import check, eager, observe, raise_failure, unwrapped
from signalprop.capture.recorder import Recorder
from signalprop.capture.sandbox import Sandbox, random_state, untouched
from signalprop.capture.seen import Kept
from signalprop.capture.trace import Trace
from signalprop.errors import ModelError, SignalpropError
from signalprop.jacobian.convolution import CheapConvolutions
from signalprop.jacobian.operator import End, Jacobian

#: a cotangent of one sample that reaches another above this share means that they are coupled
_COUPLED = 1e-6


#: views that leave the elements of a tensor in their order
_IN_ORDER = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Clone")


@dataclass(frozen=True)
class Between:
    """What lies between any two sites of a pass that is still alive.

    Attributes:
        trace: the pass as `trace` sees it, on the whole batch.
        batch: number of samples that Jacobians are taken of.
        notes: what the reader has to know, as sentences.
    """

    trace: Trace
    batch: int
    notes: tuple[str, ...]
    _kept: Mapping[str, Kept | None]
    _batch_dim: int

    def jacobian(self, of: str, wrt: str) -> Jacobian:
        """J = d of / d wrt, per sample.

        Args:
            of: name of the site nearer to the output.
            wrt: name of the site nearer to the input.

        Returns:
            The operator, (batch, elements of `of`, elements of `wrt`).

        Raises:
            SignalpropError: a site does not exist, no gradient runs between the two, or the samples
                look at each other.
        """
        upper, lower = self._end(of), self._end(wrt)
        self._connected(upper, lower)
        found = Jacobian(upper, lower)
        if self.batch > 1:
            _apart(found)
        return found

    def adds_as_it_is(self, of: str, wrt: str) -> bool:
        """Whether `of` adds `wrt` to something with its elements in their order, so J = I + X."""
        upper, lower = self._kept.get(of), self._kept.get(wrt)
        if upper is None or lower is None:
            return False
        for node, _ in upper.edge.node.next_functions:
            while node is not None and node is not lower.edge.node:
                if not node.name().startswith(_IN_ORDER):
                    break
                node = node.next_functions[0][0]
            if node is lower.edge.node:
                return True
        return False

    def _end(self, name: str) -> End:
        if name not in self._kept:
            raise SignalpropError(_unknown(name, self._kept))
        kept = self._kept[name]
        if kept is None:
            raise SignalpropError(
                f"no gradient runs through {name}: it holds whole numbers, or was made under "
                "no_grad() or after detach(); name a site above it"
            )
        if kept.dtype.is_complex:
            raise SignalpropError(f"{name} is complex; Jacobians are taken of real tensors only")
        dim = next(
            (d for d in (self._batch_dim, 0, 1) if kept.shape[d : d + 1] == (self.batch,)), None
        )
        if dim is None:
            raise SignalpropError(
                f"{name} has the shape {kept.shape}, in which the {self.batch} samples cannot be "
                "told apart; name a site before or after"
            )
        return End(name, kept.edge, kept.shape, dim, kept.dtype, kept.device)

    def _connected(self, upper: End, lower: End) -> None:
        if upper.name == lower.name:
            raise SignalpropError(f"of and wrt are both {upper.name}; name two sites")
        if lower.edge.node in _below(upper.edge.node):
            return
        if upper.edge.node in _below(lower.edge.node):
            raise SignalpropError(f"{upper.name} comes before {lower.name}; exchange of= and wrt=")
        raise SignalpropError(
            f"no gradient runs from {upper.name} back to {lower.name}: they lie on parallel paths, "
            "or something between them cannot be differentiated (detach, argmax, indices)"
        )


@contextmanager
def between(
    model: nn.Module,
    batch: Any,
    loss: Loss = None,
    *,
    samples: int | None = 8,
    batch_norm: str = "frozen",
    batch_dim: int | None = None,
    trace: Trace | None = None,
) -> Iterator[Between]:
    """Run a model once and keep the pass alive for Jacobians; everything is put back on leaving.

    Args:
        model: any module.
        batch: as for `trace`; the target is not needed.
        loss: as for `trace`; without one the sum of squares of the output stands in, which
            decides nothing but which sites lie on the spine.
        samples: how many samples of the batch, spread over it; None takes all.
        batch_norm: `frozen` holds the statistics of BatchNorm at those of this batch, `eval` at the
            running ones. Either way samples do not look at each other.
        batch_dim: dimension of the samples, as for `trace`.
        trace: of the same model, batch and loss, where there is one.

    Yields:
        The pass.

    Raises:
        SignalpropError: see `trace`; or `batch_norm` is neither word.
    """
    if batch_norm not in ("frozen", "eval"):
        raise SignalpropError(f"batch_norm={batch_norm!r}; it is either 'frozen' or 'eval'")
    model = unwrapped(model)
    check(model)
    with random_state():
        given = batches.first_of(batch)
        if batch_dim is None:
            batch_dim = batches.sample_dim(given, model, loss)
    loss = loss or batches.stand_in(given, model)
    if trace is None:
        trace, loss = _seen(model, given, loss, batch_dim)
    with untouched(model) as sandbox, eager(), ExitStack() as kernels:
        # of the fused kernels some cannot be differentiated twice
        kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            kernels.enter_context(torch.backends.mkldnn.flags(enabled=False))
            kernels.enter_context(torch.backends.cudnn.flags(enabled=False))
        data = batches.read(given, model, loss, batch_dim=batch_dim, gradients=False)
        notes = _hold_batch_norm(model, data, batch_norm)
        live = _alive(model, sandbox, data, samples, batch_dim)
        names = site_names(live.sites)
        assert live.kept is not None
        yield Between(
            trace=trace,
            batch=live.batch,
            notes=notes,
            _kept=dict(zip(names, live.kept, strict=True)),
            _batch_dim=batch_dim,
        )


def _seen(model: nn.Module, given: Any, loss: Loss, batch_dim: int) -> tuple[Trace, Loss]:
    """The pass as `trace` sees it; with another loss where the given one fails."""
    seen = observe(model, given, loss, batch_dim=batch_dim)
    if seen.trace.failure is not None and seen.trace.failure.phase == "loss":
        # a loss that fails says nothing about the Jacobian
        loss = batches.stand_in(given, model)
        seen = observe(model, given, loss, batch_dim=batch_dim)
    raise_failure(seen)
    return seen.trace, loss


def _alive(
    model: nn.Module, sandbox: Sandbox, data: Batch, samples: int | None, batch_dim: int
) -> Recorder:
    """A recorded forward pass on some of the samples."""
    count = min(samples or data.size, data.size)
    every = torch.arange(0, data.size, max(1, data.size // max(count, 1)))[:count]
    part = batches.some_rows(data, every, batch_dim, gradients=True)
    recorder = Recorder(
        model,
        batch=part.size,
        batch_dim=batch_dim,
        parameters=sandbox.parameters.values(),
        before_write=sandbox.before_write,
        keep=True,
    )
    for name, tensor in part.inputs.items():
        recorder.see_input(name, tensor)
    try:
        with CheapConvolutions(), recorder:
            model(*part.args, **part.kwargs)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"the model ran on the batch of {data.size}, but not on {part.size} of its samples: "
            f"{lines[0] if lines else type(error).__name__}; pass samples=None"
        ) from error
    return recorder


# ---- samples must not look at each other -------------------------------------------------------


def _hold_batch_norm(model: nn.Module, data: Batch, how: str) -> tuple[str, ...]:
    """Put BatchNorm into evaluation, with the statistics of this batch where they are wanted."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    training = [
        m
        for m in model.modules()
        if isinstance(m, kinds[0]) and m.training and m.running_mean is not None
    ]
    if not training:
        return ()
    if how == "frozen":
        for module in training:
            module.momentum = 1.0  # the running statistics become those of this batch
        with torch.no_grad():
            model(*data.args, **data.kwargs)
    for module in training:
        module.eval()
    held = "this batch" if how == "frozen" else "the training so far"
    return (f"BatchNorm is held at the statistics of {held}, so that samples stay apart",)


def _apart(J: Jacobian) -> None:
    """Raise where the output of one sample depends on the input of another."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(J.batch, J.rows, 1, generator=generator).to(J.device, J.dtype)
    probe[1:] = 0
    reached = J.adjoint(probe).flatten(1).norm(dim=1)
    others = float(reached[1:].max())
    if others > _COUPLED * float(reached[0]):
        raise SignalpropError(
            f"between {J.wrt.name} and {J.of.name} the samples of the batch look at each other "
            "(BatchNorm without running statistics, attention over the batch, a mean over it), so "
            "there is no Jacobian per sample; give a batch of one, or samples=1"
        )


# ---- sites and paths ---------------------------------------------------------------------------


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near += [k for k in known if k.startswith(f"{name}.") and k not in near][: 3 - len(near)]
    if near:
        return f"there is no site {name!r}; did you mean {' or '.join(map(repr, near))}?"
    some = ", ".join(list(known)[:6])
    return f"there is no site {name!r}; the {len(known)} sites begin with {some}"


def _below(node: Node) -> set[Node]:
    return set(topological(node))
