"""The Jacobian between two tensors of one pass, per sample, as a linear operator.

It is never formed unless asked. `adjoint` is a backward pass; `apply` is the double-backward trick
(g(u) = J^T u is linear in u, so its own vector-Jacobian product is J v), which needs no forward-mode
formulas and no second forward pass. Many vectors go through in one batched pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from signalprop.errors import SignalpropError

#: memory that the vectors of one batched pass may take, in bytes
BUDGET = 1 << 27


class Operator(Protocol):
    """A batch of matrices J of shape (m, n), one per sample, known by what they do to vectors."""

    batch: int
    rows: int
    columns: int
    dtype: torch.dtype
    device: torch.device

    def apply(self, vectors: Tensor) -> Tensor:
        """J v: (batch, columns, r) -> (batch, rows, r)."""
        ...

    def adjoint(self, vectors: Tensor) -> Tensor:
        """J^T u: (batch, rows, r) -> (batch, columns, r)."""
        ...


class Dense:
    """An operator from its matrices (batch, m, n)."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices
        self.batch, self.rows, self.columns = matrices.shape
        self.dtype, self.device = matrices.dtype, matrices.device

    def apply(self, vectors: Tensor) -> Tensor:
        """J v."""
        return self.matrices @ vectors

    def adjoint(self, vectors: Tensor) -> Tensor:
        """J^T u."""
        return self.matrices.mT @ vectors


@dataclass(frozen=True)
class End:
    """One end of a Jacobian: a tensor of a pass that is still alive.

    The edge is that of the moment the tensor was seen, so what changes it in place later does not
    matter.

    Attributes:
        name: the site.
        edge: where it hangs in autograd's graph.
        shape: its shape.
        batch_dim: its dimension of the samples.
        dtype: its dtype.
        device: its device.
    """

    name: str
    edge: Any
    shape: tuple[int, ...]
    batch_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.shape[self.batch_dim]

    @property
    def size(self) -> int:
        """Number of elements of one sample."""
        return torch.Size(self.shape).numel() // self.batch

    def tensors(self, vectors: Tensor) -> Tensor:
        """(batch, size, r) -> (r, *shape)."""
        rest = [n for i, n in enumerate(self.shape) if i != self.batch_dim]
        return vectors.permute(2, 0, 1).reshape(-1, self.batch, *rest).movedim(1, self.batch_dim + 1)

    def vectors(self, tensors: Tensor) -> Tensor:
        """(r, *shape) -> (batch, size, r)."""
        rows = tensors.movedim(self.batch_dim + 1, 1).reshape(len(tensors), self.batch, -1)
        return rows.permute(1, 2, 0)


class Jacobian:
    """J = d of / d wrt of every sample, from autograd's graph.

    Right where samples do not look at each other: a network whose samples are coupled (BatchNorm on
    its batch's own statistics) has no Jacobian per sample.

    Args:
        of: the end nearer to the output, m elements per sample.
        wrt: the end nearer to the input, n elements per sample.
        budget: bytes that the vectors of one batched pass may take.
    """

    def __init__(self, of: End, wrt: End, *, budget: int = BUDGET) -> None:
        self.of, self.wrt = of, wrt
        self.batch, self.rows, self.columns = of.batch, of.size, wrt.size
        self.dtype, self.device = wrt.dtype, wrt.device
        largest = of.batch * max(of.size, wrt.size) * max(of.dtype.itemsize, wrt.dtype.itemsize)
        self._at_once = max(1, budget // max(largest, 1))
        self._dual: tuple[Tensor, Tensor] | None = None

    def adjoint(self, vectors: Tensor) -> Tensor:
        """J^T u: (batch, rows, r) -> (batch, columns, r), r backward passes between the two ends."""

        def back(cotangents: Tensor) -> Tensor | None:
            return _batched([self.of.edge], self.wrt.edge, cotangents, self)

        given = self.of.tensors(vectors.to(self.of.dtype))
        return self.wrt.vectors(self._in_chunks(given, back, self.wrt))

    def apply(self, vectors: Tensor) -> Tensor:
        """J v: (batch, columns, r) -> (batch, rows, r), r backward passes through the backward."""
        if self._dual is None:
            self._dual = self._make_dual()
        given, dual = self._dual

        def forth(tangents: Tensor) -> Tensor | None:
            return _batched([dual], given, tangents, self)

        return self.of.vectors(
            self._in_chunks(self.wrt.tensors(vectors.to(self.wrt.dtype)), forth, self.of)
        )

    def _make_dual(self) -> tuple[Tensor, Tensor]:
        """u and g(u) = J^T u, ready to be differentiated by u."""
        given = torch.zeros(
            self.of.shape, dtype=self.of.dtype, device=self.of.device, requires_grad=True
        )
        with torch.enable_grad():
            (dual,) = torch.autograd.grad(
                [self.of.edge], [self.wrt.edge], [given], create_graph=True, allow_unused=True
            )
        if dual is None or not dual.requires_grad:
            dual = torch.zeros(self.wrt.shape, dtype=self.wrt.dtype, device=self.wrt.device)
            dual = dual + 0 * given.sum()  # nothing gets through: J is zero
        return given, dual

    def _in_chunks(
        self, given: Tensor, through: Callable[[Tensor], Tensor | None], end: End
    ) -> Tensor:
        found = []
        for part in given.split(self._at_once):
            out = through(part)
            if out is None:
                out = torch.zeros(
                    (len(part), *end.shape), dtype=end.dtype, device=end.device
                )
            found.append(out.detach())
        return torch.cat(found) if len(found) > 1 else found[0]


def _batched(outputs: list[Any], wanted: Any, vectors: Tensor, J: Jacobian) -> Tensor | None:
    """Gradients for many cotangents at once; one by one where an operation cannot be batched."""
    try:
        return torch.autograd.grad(
            outputs,
            [wanted],
            [vectors],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=len(vectors) > 1,
        )[0] if len(vectors) > 1 else _single(outputs, wanted, vectors)
    except RuntimeError as error:
        return _one_by_one(outputs, wanted, vectors, J, error)


def _single(outputs: list[Any], wanted: Any, vectors: Tensor) -> Tensor | None:
    found = torch.autograd.grad(
        outputs, [wanted], [vectors[0]], retain_graph=True, allow_unused=True
    )[0]
    return None if found is None else found[None]


def _one_by_one(
    outputs: list[Any], wanted: Any, vectors: Tensor, J: Jacobian, error: RuntimeError
) -> Tensor | None:
    try:
        found = [_single(outputs, wanted, v[None]) for v in vectors]
    except RuntimeError as again:
        raise SignalpropError(
            f"the Jacobian from {J.wrt.name} to {J.of.name} cannot be taken: {_first(again)}"
        ) from error
    some = [f for f in found if f is not None]
    return torch.cat(some) if len(some) == len(found) else None


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
