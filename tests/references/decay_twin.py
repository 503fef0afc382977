"""Decays from raw deltas: every gradient of the pass is kept, nothing is reduced on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tests.references import spine_twin
from tests.references import statistics_twin as twin

from signalprop.capture import batch as batches
from signalprop.capture.observe import eager, unwrapped
from signalprop.capture.recorder import Recorder, Seen


@dataclass
class RawPass:
    """A pass with the raw gradient of every node.

    Sites are taken from the package's recorder, so that both speak of the same nodes; graph,
    gradients, norms and decays are the twin's own.
    """

    root: Any
    sites: dict[str, Seen]
    gradients: dict[Any, list[np.ndarray | None]]
    batch: int

    def dominators(self, start: str) -> list[Any]:
        """The nodes of the spine from the loss down to a site."""
        return spine_twin.dominators(self.root, self.sites[start].node)

    def spine(self, start: str) -> list[str]:
        """Names of the model's sites on every path, from the input up."""
        at = {}
        for name, seen in self.sites.items():
            if not seen.in_loss:
                at.setdefault(seen.node, name)
        return [at[node] for node in reversed(self.dominators(start)) if node in at]

    def norms(self, node: Any) -> np.ndarray:
        """|delta| of every sample, over all outputs of a node."""
        whole = [
            twin.norms(twin.rows(g, self.batch)) for g in self.gradients[node] if g is not None
        ]
        return np.sqrt(sum(n**2 for n in whole))

    def levels(self, names: list[str]) -> tuple[list[float], int]:
        """Mean of ln |delta| at sites, over the samples whose delta is nowhere zero."""
        alive = np.ones(self.batch, dtype=bool)
        nodes = [self.sites[name].node for name in names]
        for node in nodes:
            n = self.norms(node)
            if n.size == self.batch:
                alive &= n > 0
        found = []
        for node in nodes:
            n = self.norms(node)
            n = n[alive] if n.size == self.batch else n
            found.append(math.fsum(map(math.log, n)) / len(n) if len(n) and n.all() else -math.inf)
        return found, int(alive.sum())


def run(model: torch.nn.Module, batch: Any, loss: Any, batch_dim: int = 0) -> RawPass:
    """One pass of the twin's own copy of a model."""
    model = unwrapped(model)
    with eager():
        data = batches.read(batch, model, loss, batch_dim=batch_dim)
        recorder = Recorder(
            model,
            batch=data.size,
            batch_dim=batch_dim,
            parameters=model.parameters(),
            before_write=lambda tensor: None,
        )
        for name, tensor in data.inputs.items():
            recorder.see_input(name, tensor)
        with recorder:
            output = model(*data.args, **data.kwargs)
            recorder.loss_phase()
            value = batches.loss_of(output, data, loss)
        gradients: dict[Any, list[np.ndarray | None]] = {}

        def keep(node: Any) -> Any:
            def hook(found: Any) -> None:
                gradients[node] = [None if g is None else twin.wide(g) for g in found]

            return hook

        for node in spine_twin.reached(value.grad_fn):
            node.register_prehook(keep(node))
        torch.autograd.backward(value)
    return RawPass(value.grad_fn, _named(recorder), gradients, data.size)


def _named(recorder: Recorder) -> dict[str, Seen]:
    """Sites by name: the second of a name has `#2`."""
    named: dict[str, Seen] = {}
    for seen in recorder.sites:
        k = 1
        while (name := seen.base if k == 1 else f"{seen.base}#{k}") in named:
            k += 1
        named[name] = seen
    return named
