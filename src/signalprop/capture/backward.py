"""The backward pass: delta read at the autograd nodes, gradients of the parameters.

Gradients are taken with `torch.autograd.grad`, which leaves `.grad` and the hooks of
accumulation (optimizers inside backward, DistributedDataParallel) alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signalprop.capture import graph, kinds, statistics
from signalprop.capture.batch import Batch
from signalprop.capture.graph import Node, Span
from signalprop.capture.recorder import Recorder
from signalprop.capture.seen import Seen
from signalprop.capture.statistics import Norms, Scalar
from signalprop.errors import LossError, ModelError

#: at most this many inputs and embeddings are tried as the start of the spine
SOURCES = 16


@dataclass
class SeenDelta:
    """A delta at one node; its numbers are still on the device until the pass is over."""

    norms: Norms
    scalars: list[Scalar]
    numel: int


class Backward:
    """Runs the backward pass of a recorded forward pass and keeps what was read.

    Attributes:
        parameters: the model's parameters, keyed by name.
        gradients: gradient of every parameter that got one, keyed by name.
        at_site: delta of every site, keyed by the position of the site in the recorder.
        norms: per-sample L2 norm of delta at every node of the spine that does something.
        spans: the spine from the loss down.
        start: the node at the input end; None where there is no spine.
        on_path: how many nodes lie on some path from the input to the loss.
        reentrant: whether a part of the model is checkpointed re-entrantly.
    """

    def __init__(self, parameters: dict[str, Tensor], batch: Batch) -> None:
        self.parameters = parameters
        self._leaves = batch.leaves
        # taken now: an in-place operation of the model gives the tensor another node
        self._inputs = [batch.inputs[name].grad_fn for name in batch.leaves]
        self.gradients: dict[str, Tensor] = {}
        self.at_site: dict[int, SeenDelta] = {}
        self.norms: dict[Node, Norms] = {}
        self.folded: set[Node] = set()
        self.spans: list[Span] = []
        self.start: Node | None = None
        self.on_path = 0
        self.reentrant = False

    def run(self, loss: Tensor, recorder: Recorder) -> None:
        """Find the spine, read deltas, take gradients."""
        if loss.grad_fn is None:
            raise LossError(
                "the loss does not depend on anything that can learn: no parameter and no input "
                "leads to it; check for .detach(), .item(), argmax or torch.no_grad() in forward()"
            )
        if loss.is_complex():
            raise LossError("the loss is complex; take its absolute value or its real part")
        order = graph.topological(loss.grad_fn)
        self._find_spine(order, recorder)
        handles = self._listen(order, recorder)
        try:
            self._differentiate(loss, order)
        finally:
            for handle in handles:
                handle.remove()
        self._fetch()

    def _fetch(self) -> None:
        """Bring the norms over, in one go."""
        deltas = list(self.at_site.values())
        here = statistics.fetched([delta.norms for delta in deltas] + list(self.norms.values()))
        for delta, norms in zip(deltas, here, strict=False):
            delta.norms = norms
        self.norms = dict(zip(self.norms, here[len(deltas) :], strict=True))

    # ---- the spine ---------------------------------------------------------------------------

    def _find_spine(self, order: list[Node], recorder: Recorder) -> None:
        known = set(order)
        inside = [s for s in recorder.sites if not s.in_loss and s.node in known]
        embeddings = [s.node for s in inside if s.op.lower() in ("embedding", "embedding_bag")]
        sources = [*self._inputs, *embeddings[:SOURCES], *(s.node for s in inside[:1])]
        counted = {s.node for s in inside}
        self.start, self.spans, self.on_path = graph.longest(
            order, dict.fromkeys(sources[:SOURCES]), lambda node: node in counted
        )

    # ---- reading delta -----------------------------------------------------------------------

    def _listen(self, order: list[Node], recorder: Recorder) -> list[Any]:
        known = set(order)
        at_node: dict[Node, list[tuple[int, Seen]]] = {}
        for i, seen in enumerate(recorder.sites):
            if seen.node in known:
                at_node.setdefault(seen.node, []).append((i, seen))
        on_spine = set()
        if self.start is not None:
            on_spine = {self.start} | {
                span.upper
                for span in self.spans
                if span.inner
                or not kinds.moves_values_only(span.upper.name())
                or span.upper in at_node
            }
        batch, dim = recorder.batch, recorder.batch_dim
        return [
            node.register_prehook(
                self._reader(node, at_node.get(node, []), node in on_spine, batch, dim)
            )
            for node in {*at_node, *on_spine}
        ]

    def _reader(
        self, node: Node, sites: list[tuple[int, Seen]], on_spine: bool, batch: int, dim: int
    ) -> Callable[[tuple[Tensor | None, ...]], None]:
        def read(gradients: tuple[Tensor | None, ...]) -> None:
            with torch.no_grad():
                norms: dict[int, Norms] = {}
                for i, seen in sites:
                    delta = gradients[seen.output_nr]
                    if delta is None or delta.numel() == 0:
                        continue
                    flat = statistics.by_sample(delta.detach(), batch, dim)
                    row_norms, scalars = statistics.delta_scalars(flat)
                    norms[seen.output_nr] = row_norms
                    self.at_site[i] = SeenDelta(row_norms, scalars, flat.numel())
                if on_spine:
                    self.norms[node] = _joint_norms(gradients, norms, batch, dim)
                    if any(statistics.is_folded(g, batch, dim) for g in gradients if g is not None):
                        self.folded.add(node)

        return read

    # ---- gradients ---------------------------------------------------------------------------

    def _differentiate(self, loss: Tensor, order: list[Node]) -> None:
        trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        wanted = [*trained.values(), *self._leaves.values()]
        if not wanted:
            raise ModelError(
                "the model has no parameter that requires a gradient and no floating input, so "
                "there is no error signal to follow"
            )
        self.reentrant = any(node.name() == "CheckpointFunctionBackward" for node in order)
        if self.reentrant:
            self._differentiate_reentrant(loss, trained)
            return
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        for name, gradient in zip(trained, found, strict=False):
            if gradient is not None:
                self.gradients[name] = gradient

    def _differentiate_reentrant(self, loss: Tensor, trained: dict[str, Tensor]) -> None:
        """Re-entrant checkpointing refuses `autograd.grad`, so `.grad` is lent and given back."""
        for name, p in trained.items():
            if p._post_accumulate_grad_hooks:
                raise ModelError(
                    f"the parameter {name!r} has a hook that runs when its gradient is ready, and "
                    "the model uses re-entrant checkpointing, which would call it; pass "
                    "use_reentrant=False to torch.utils.checkpoint"
                )
        kept = {name: p.grad for name, p in trained.items()}
        try:
            for p in trained.values():
                p.grad = None
            torch.autograd.backward(loss)
            self.gradients = {n: p.grad for n, p in trained.items() if p.grad is not None}
        finally:
            for name, p in trained.items():
                p.grad = kept[name]
            for leaf in self._leaves.values():
                leaf.grad = None


def _joint_norms(
    gradients: tuple[Tensor | None, ...], known: dict[int, Norms], batch: int, dim: int
) -> Norms:
    """Per-sample norm over all outputs of a node."""
    norms: list[Norms] = []
    for nr, gradient in enumerate(gradients):
        if gradient is None or gradient.numel() == 0:
            continue
        if nr not in known:
            flat = statistics.by_sample(gradient.detach(), batch, dim)
            known[nr] = statistics.row_norms(flat)
        norms.append(known[nr])
    if not norms:
        return np.zeros(1)
    if len(norms) == 1:
        return norms[0]
    several = [torch.as_tensor(n) for n in norms]
    rows = max(len(n) for n in several)
    whole = [n if len(n) == rows else n.square().sum().sqrt().expand(rows) for n in several]
    return torch.linalg.vector_norm(torch.stack(whole), dim=0)
