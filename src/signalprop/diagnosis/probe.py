"""Losses and gradients of a model at weights that are tried out and put back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.sandbox import Sandbox, overwrite


class Probe:
    """Evaluates one model on one batch, with the same random numbers every time.

    Args:
        model: the model; only inside a sandbox, which puts its parameters back.
        sandbox: told about every write to a parameter.
        data: the batch as the user gave it, no loader.
        loss: the loss as the user gave it.
        batch_dim: dimension of the samples.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        sandbox: Sandbox,
        data: Any,
        loss: Loss,
        *,
        batch_dim: int = 0,
    ) -> None:
        self.model, self.loss, self.batch_dim = model, loss, batch_dim
        self.parameters = dict(model.named_parameters())
        self.trained = {n: p for n, p in self.parameters.items() if p.requires_grad}
        self._sandbox = sandbox
        for p in self.parameters.values():  # nobody watches what the model writes to in a probe
            sandbox.before_write(p)
        self._data = data
        self._random = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def value(self) -> float:
        """The loss at the present weights."""
        with torch.no_grad(), warnings.catch_warnings():
            # re-entrant checkpointing warns of what is meant here
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad", UserWarning)
            return float(self._loss(self._read()))

    def gradients(self, rows: slice | None = None) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradients at the present weights, of all samples or of some.

        Args:
            rows: the samples to use; all when None.

        Returns:
            The loss, and the gradients by parameter name.
        """
        data = self._read()
        if rows is not None:
            which = torch.arange(data.size)[rows]
            data = batches.some_rows(data, which, self.batch_dim)
        value = self._loss(data)
        names = list(self.trained)
        reentrant = _reentrant(value)
        if reentrant:
            found = self._backward(value)
        else:
            found = torch.autograd.grad(value, list(self.trained.values()), allow_unused=True)
        return float(value.detach()), {
            n: g.detach() for n, g in zip(names, found, strict=True) if g is not None
        }

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Put other weights into the model; the sandbox puts the user's back in the end."""
        with torch.no_grad():
            for name, value in values.items():
                p = self.parameters[name]
                self._sandbox.before_write(p)
                overwrite(p, value)

    def originals(self) -> dict[str, Tensor]:
        """The user's weights."""
        return {n: v for n, v in self._sandbox.originals().items() if n in self.trained}

    def put_back(self) -> None:
        """Give the model the user's weights again."""
        self.write(self.originals())

    @property
    def size(self) -> int:
        """Number of samples in the batch."""
        return self._read().size

    def _read(self) -> Batch:
        return batches.read(
            self._data, self.model, self.loss, batch_dim=self.batch_dim, gradients=False
        )

    def _loss(self, data: Batch) -> Tensor:
        torch.set_rng_state(self._random)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        return batches.loss_of(self.model(*data.args, **data.kwargs), data, self.loss)

    def _backward(self, value: Tensor) -> list[Tensor | None]:
        """Re-entrant checkpointing needs `.grad`; the sandbox gives the user's back."""
        for p in self.trained.values():
            p.grad = None
        torch.autograd.backward(value)
        found = [p.grad for p in self.trained.values()]
        for p in self.trained.values():
            p.grad = None
        return found


def _reentrant(value: Tensor) -> bool:
    seen, stack = set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        stack.extend(nxt for nxt, _ in node.next_functions)
    return False
