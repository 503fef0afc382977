"""The Jacobian between two tensors of one pass, per sample, as a linear operator.

It is never formed unless asked. `adjoint` is a backward pass; `apply` is the double-backward trick:
g(u) = J^T u is linear in u, so its own vector-Jacobian product is J v. That needs no forward-mode
formulas and no second forward pass. Many vectors go through in one batched pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from signalprop.capture.graph import paths_between, topological
from signalprop.errors import SignalpropError

#: bytes that one batched pass may take beyond the network's own
BUDGET = 1 << 27
#: tensors of a batched pass that are alive at the same time, counted generously
ALIVE = 8
#: bytes of the largest tensor of a batched pass beyond which a CPU waits for its memory
CACHE = 3 << 20
#: vectors in one pass beyond which nothing gets faster
ENOUGH = 256


class Operator(Protocol):
    """A batch of matrices J of shape (m, n), one per sample, known by what they do to vectors.

    Vectors come in any floating dtype and leave in `working(dtype)`, float32 or float64.
    """

    @property
    def batch(self) -> int:
        """Number of samples."""
        ...

    @property
    def rows(self) -> int:
        """Elements per sample at the output end, m."""
        ...

    @property
    def columns(self) -> int:
        """Elements per sample at the input end, n."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        ...

    @property
    def device(self) -> torch.device:
        """Where."""
        ...

    def apply(self, vectors: Tensor) -> Tensor:
        """J v: (batch, columns, r) -> (batch, rows, r)."""
        ...

    def adjoint(self, vectors: Tensor) -> Tensor:
        """J^T u: (batch, rows, r) -> (batch, columns, r)."""
        ...


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype that vectors are kept in: at least float32."""
    return dtype if dtype.itemsize >= 4 else torch.float32


class Dense:
    """An operator from its matrices (batch, m, n)."""

    def __init__(self, matrices: Tensor) -> None:
        self.dtype, self.device = matrices.dtype, matrices.device
        self.matrices = matrices.to(working(matrices.dtype))
        self.batch, self.rows, self.columns = matrices.shape

    def apply(self, vectors: Tensor) -> Tensor:
        """J v."""
        return self.matrices @ vectors.to(self.matrices.dtype)

    def adjoint(self, vectors: Tensor) -> Tensor:
        """J^T u."""
        return self.matrices.mT @ vectors.to(self.matrices.dtype)


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

    @classmethod
    def at(cls, name: str, tensor: Tensor, batch_dim: int = 0) -> End:
        """The end at a tensor as it is now.

        Args:
            name: the site.
            tensor: part of a graph, or a leaf that requires grad.
            batch_dim: its dimension of the samples.

        Returns:
            The end.

        Raises:
            SignalpropError: where no gradient reaches the tensor.
        """
        if not tensor.requires_grad:
            raise SignalpropError(f"{name} is not connected to anything that requires grad")
        edge = torch.autograd.graph.get_gradient_edge(tensor)
        shape = tuple(tensor.shape)
        return cls(name, edge, shape, batch_dim % max(len(shape), 1), tensor.dtype, tensor.device)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.shape[self.batch_dim]

    @property
    def size(self) -> int:
        """Number of elements of one sample."""
        return torch.Size(self.shape).numel() // max(self.batch, 1)

    def tensors(self, vectors: Tensor) -> Tensor:
        """(batch, size, r) -> (r, *shape)."""
        rest = [n for i, n in enumerate(self.shape) if i != self.batch_dim]
        rows = vectors.permute(2, 0, 1).reshape(vectors.shape[2], self.batch, *rest)
        return rows.movedim(1, self.batch_dim + 1)

    def vectors(self, tensors: Tensor) -> Tensor:
        """(r, *shape) -> (batch, size, r)."""
        rows = tensors.movedim(self.batch_dim + 1, 1).reshape(len(tensors), self.batch, self.size)
        return rows.permute(1, 2, 0)


class Jacobian:
    """J = d of / d wrt of every sample, from autograd's graph.

    Right where samples do not look at each other: a network whose samples are coupled (BatchNorm on
    its batch's own statistics) has no Jacobian per sample.

    `apply` differentiates the backward pass, so every operation in between needs a backward that
    can itself be differentiated. Fused attention has none: run the forward pass inside
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`. A backward that silently hides its path
    (numpy, `detach`) is found by comparing u.(J v) with (J^T u).v for a random u.

    Cost: one backward pass between the two ends per vector, in batches; `apply` adds a single
    one the first time.

    Args:
        of: the end nearer to the output, m elements per sample.
        wrt: the end nearer to the input, n elements per sample.
        budget: bytes that one batched pass may take beyond the network's own.

    Raises:
        SignalpropError: where the two ends do not have the same samples, or are complex.
    """

    def __init__(self, of: End, wrt: End, *, budget: int = BUDGET) -> None:
        if of.batch != wrt.batch or of.device != wrt.device:
            raise SignalpropError(
                f"{wrt.name} has {wrt.batch} samples on {wrt.device}, {of.name} {of.batch} on "
                f"{of.device}: a Jacobian per sample needs the same samples at both ends"
            )
        for end in (of, wrt):
            if not end.dtype.is_floating_point:
                raise SignalpropError(f"{end.name} is {end.dtype}: a Jacobian needs real numbers")
        self.of, self.wrt = of, wrt
        self.batch, self.rows, self.columns = of.batch, of.size, wrt.size
        self.dtype = min((of.dtype, wrt.dtype), key=lambda dtype: dtype.itemsize)
        self.device = wrt.device
        most = _widest(of, wrt) * max(of.dtype.itemsize, wrt.dtype.itemsize)
        room = budget // ALIVE if self.device.type != "cpu" else min(budget // ALIVE, CACHE)
        self._at_once = min(ENOUGH, max(1, room // max(most, 1)))
        self._batches = True
        self._dual: tuple[Tensor, Tensor] | None = None

    def adjoint(self, vectors: Tensor) -> Tensor:
        """J^T u: (batch, rows, r) -> (batch, columns, r), r backward passes between the ends."""

        def back(cotangents: Tensor, batched: bool) -> Tensor | None:
            return _gradient(self.of.edge, self.wrt.edge, cotangents, batched)

        return self._through(back, self.of, self.wrt, vectors)

    def apply(self, vectors: Tensor) -> Tensor:
        """J v: (batch, columns, r) -> (batch, rows, r), r backward passes through the backward."""
        if self._dual is None:
            self._dual = self._make_dual()
        found = self._through(self._forth(*self._dual), self.wrt, self.of, vectors)
        self._check(vectors.detach(), found)
        return found

    @staticmethod
    def _forth(given: Tensor, dual: Tensor) -> Callable[[Tensor, bool], Tensor | None]:
        return lambda tangents, batched: _gradient(dual, given, tangents, batched)

    def _make_dual(self) -> tuple[Tensor, Tensor]:
        """Random u, for the check, and g(u) = J^T u, ready to be differentiated by u."""
        signs = _signs(self.of)
        given = signs.requires_grad_()
        try:
            with torch.enable_grad():
                (dual,) = torch.autograd.grad(
                    [self.of.edge], [self.wrt.edge], [given], create_graph=True, allow_unused=True
                )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise self._impossible(error) from error
        if dual is None:  # no path: J is zero
            dual = torch.zeros(self.wrt.shape, dtype=self.wrt.dtype, device=self.device)
        if not dual.requires_grad:
            if dual.count_nonzero():
                raise self._impossible(None)
            dual = dual + 0 * given.sum().to(dual.dtype)
        return given, dual

    def _check(self, v: Tensor, Jv: Tensor) -> None:
        """Raise unless u.(J v) = (J^T u).v for the one random u whose J^T u is known."""
        assert self._dual is not None
        kept = torch.promote_types(v.dtype, Jv.dtype)
        u, JTu = (
            end.vectors(tensor.detach()[None].to(kept))
            for end, tensor in zip((self.of, self.wrt), self._dual, strict=True)
        )
        off = (u.mT @ Jv.to(kept) - JTu.mT @ v.to(kept)).abs()
        # half the digits, of the lengths, not of their cosine; that of signs is sqrt(rows)
        scale = self.rows**0.5 * torch.linalg.vector_norm(Jv, dim=1, keepdim=True).to(kept)
        scale += torch.linalg.vector_norm(JTu, dim=1, keepdim=True) * torch.linalg.vector_norm(
            v, dim=1, keepdim=True
        ).to(kept)
        if (off > torch.finfo(self.dtype).eps ** 0.5 * scale).any():
            raise self._impossible(None)

    def _through(
        self,
        pass_of: Callable[[Tensor, bool], Tensor | None],
        start: End,
        end: End,
        vectors: Tensor,
    ) -> Tensor:
        """Vectors through one kind of pass, in chunks."""
        if vectors.shape[:2] != (start.batch, start.size):
            raise ValueError(f"vectors of {start.name} are {tuple(vectors.shape)}")
        kept = working(end.dtype)
        found = [vectors.new_zeros((0, *end.shape), dtype=kept)] if not vectors.shape[2] else []
        for part in vectors.split(self._at_once, dim=2):
            if part.shape[2]:
                out = self._chunk(pass_of, start.tensors(part.detach().to(start.dtype)))
                if out is None:
                    out = torch.zeros((part.shape[2], *end.shape), dtype=kept, device=end.device)
                found.append(out.detach().to(kept))
        return end.vectors(torch.cat(found) if len(found) > 1 else found[0])

    def _chunk(
        self, pass_of: Callable[[Tensor, bool], Tensor | None], given: Tensor
    ) -> Tensor | None:
        """One batched pass; one by one from the first operation on that cannot be batched."""
        if self._batches and len(given) > 1:
            try:
                return pass_of(given, True)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever an operation says to a batch: one by one decides
                self._batches = False
        try:
            found = [pass_of(v, False) for v in given]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise self._impossible(error) from error
        some = [f for f in found if f is not None]
        return torch.stack(some) if len(some) == len(found) else None

    def _impossible(self, error: Exception | None) -> SignalpropError:
        said = str(error).strip().splitlines() if error is not None else []
        why = said[0].rstrip(".") if said else "its backward pass hides its path from autograd"
        return SignalpropError(
            f"the Jacobian from {self.wrt.name} to {self.of.name} cannot be taken: {why}"
        )


def _gradient(output: Any, wanted: Any, given: Tensor, batched: bool) -> Tensor | None:
    reached = True

    def one(vector: Tensor) -> Tensor:
        nonlocal reached
        (found,) = torch.autograd.grad(
            [output], [wanted], [vector], retain_graph=True, allow_unused=True
        )
        reached = found is not None
        return vector if found is None else found

    with warnings.catch_warnings():
        # batching rules that torch lacks: slower, not wrong
        warnings.filterwarnings("ignore", message="There is a performance drop")
        # knows more operations than `is_grads_batched`
        found = torch.func.vmap(one)(given) if batched else one(given)
    return found if reached else None


def _signs(end: End) -> Tensor:
    generator = torch.Generator().manual_seed(len(end.shape))
    signs = torch.randint(0, 2, end.shape, generator=generator) * 2 - 1
    return signs.to(device=end.device, dtype=end.dtype)


def _widest(of: End, wrt: End) -> int:
    """Elements of the largest tensor that a backward pass between the ends sees."""
    sizes = [torch.Size(end.shape).numel() for end in (of, wrt)]
    order = topological(of.edge.node)
    if wrt.edge.node in set(order):
        for node in paths_between(order, wrt.edge.node):
            for seen in getattr(node, "_input_metadata", ()):
                shape = getattr(seen, "shape", ())
                if all(isinstance(n, int) for n in shape):
                    sizes.append(torch.Size(shape).numel())
    return max(sizes)
