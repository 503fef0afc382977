"""Matrices whose rows span hundreds of decades: A = diag(exp(d)) T with a T of moderate size.

What is left of a sweep of orthogonal iteration over a deep product is such a matrix: nothing in it
overflows, and T is well conditioned where d falls, so that every singular value can be had to high
relative accuracy (Stewart 1997, On graded QR decompositions of products of matrices). Transposing
it and taking QR again is exactly one more sweep over the whole product (Mathias & Stewart 1993),
for the price of one small QR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: nats that one float64 SVD may span: its smallest value keeps six digits
SPAN = 23.0
#: nats of a window where the whole spans more; narrower ones are cheaper, but overlap more
WINDOW = 16.0
#: nats beyond a value that its window includes on either side
MARGIN = 4.0
#: QR steps before the windows are cut: beyond MARGIN nats they leave exp(-4 MARGIN) of coupling
TURNS = 2
#: width from which products of triangular matrices are split
_SPLIT = 192


class Decomposition(NamedTuple):
    """Singular values of a graded matrix, in its own order.

    Attributes:
        log_values: (batch, rows) float64, largest first up to rounding, -inf for dropped rows.
        coupling: (batch, rows), relative error from cutting windows.
        left: (batch, rows, rows) left singular vectors, nearly; None unless asked for.
        right: (batch, c, rows), the same on the right.
    """

    log_values: Tensor
    coupling: Tensor
    left: Tensor | None
    right: Tensor | None


@dataclass(frozen=True)
class Graded:
    """A = diag(exp(log_scale)) T; rows with log_scale -inf are zero.

    Attributes:
        log_scale: (batch, rows) float64.
        T: (batch, rows, c), rows <= c; rows of zero scale are zero.
        triangular: whether T is zero below its diagonal.
    """

    log_scale: Tensor
    T: Tensor
    triangular: bool

    @classmethod
    def identity(cls, batch: int, c: int, dtype: torch.dtype, device: torch.device) -> Graded:
        """The unit matrix."""
        log_scale = torch.zeros(batch, c, dtype=torch.float64, device=device)
        return cls(log_scale, torch.eye(c, dtype=dtype, device=device).expand(batch, c, c), True)

    def under(self, R: Tensor, keep: Tensor) -> Graded:
        """R A for an upper triangular R, of which what is below the diagonal is not looked at.

        Args:
            R: (batch, fewer or as many rows, rows), with a diagonal that is not zero where `keep`.
            keep: (batch, rows of R), those that are not dropped.

        Returns:
            The product; the scales of a row are multiplied with |R_ii|.
        """
        log_scale, M = _lifted(R, self.log_scale, keep)
        if self.triangular:
            return Graded(log_scale, _triangular_product(M, self.T.to(M.dtype)), True)
        return Graded(log_scale, M @ self.T.to(M.dtype), False)

    def scaled_by(self, R: Tensor, keep: Tensor) -> Graded:
        """The scales of `under` alone, without what is beside the diagonal."""
        pivots = R.diagonal(dim1=-2, dim2=-1).abs().to(torch.float64)
        log_scale = self.log_scale[:, : R.shape[1]] + pivots.log()
        return Graded(log_scale.masked_fill(~keep, -torch.inf), self.T, self.triangular)

    def ordered(self, order: Tensor) -> Graded:
        """The same with its rows in another order (batch, c)."""
        if bool((order.diff(dim=-1) > 0).all()):
            return self
        T = self.T.gather(1, order[..., None].expand_as(self.T))
        return Graded(self.log_scale.gather(1, order), T, False)

    def turned(self, *, rotate: bool = False) -> tuple[Graded, Tensor | None]:
        """A^T = W A' with an upper triangular A': one QR step; W only if asked for."""
        # T^T diag(exp(d)) = W (S diag(exp(d)))
        W, S = torch.linalg.qr(self.T.mT, mode="reduced" if rotate else "r")
        diagonal = S.diagonal(dim1=-2, dim2=-1)
        keep = torch.isfinite(self.log_scale) & (diagonal != 0)
        log_scale, T = _lifted(S, self.log_scale, keep)
        return Graded(log_scale, T, True), W if rotate else None

    def decompose(self, *, rotate: bool = False) -> Decomposition:
        """Singular values, and roughly the vectors: exact where neighbours are in one window."""
        rows, c = self.T.shape[1:]
        eye = torch.eye(c, dtype=self.T.dtype, device=self.T.device).expand(len(self.T), c, c)
        left, right = (eye[:, :rows, :rows], eye) if rotate else (None, None)
        A = self
        turns = TURNS + 2 * rotate if _range(A.log_scale) > SPAN else 0
        for i in range(turns + 1):
            order = A.log_scale.argsort(dim=-1, descending=True, stable=True)
            A, left = A.ordered(order), _columns(left, order)
            if i < turns:
                A, W = A.turned(rotate=rotate)
                if left is not None and right is not None and W is not None:
                    left, right = right @ W, left  # A^T stands where A stood
        found = _windowed(A, left, right)
        return found if turns % 2 == 0 else found._replace(left=found.right, right=found.left)


def _columns(matrix: Tensor | None, order: Tensor) -> Tensor | None:
    if matrix is None or bool((order.diff(dim=-1) > 0).all()):
        return matrix
    return matrix.gather(2, order[:, None].expand_as(matrix))


def _range(log_scale: Tensor) -> float:
    """Nats between the largest and the smallest row that is not zero, of the worst sample."""
    low = log_scale.masked_fill(log_scale == -torch.inf, torch.inf).amin(-1)
    return float((log_scale.amax(-1) - low).clamp(min=0).max())


def _lifted(R: Tensor, log_scale: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """R diag(exp(d)) as diag(exp(d')) M with an upper triangular M whose diagonal is +-1."""
    rows = R.shape[1]
    pivots = R.diagonal(dim1=-2, dim2=-1).abs().to(torch.float64)
    keep = keep & torch.isfinite(log_scale[:, :rows])
    after = (log_scale[:, :rows] + pivots.log()).masked_fill(~keep, -torch.inf)
    # only differences count: around their middle float32 holds them
    middle = log_scale.nan_to_num(neginf=0.0).mean(-1, keepdim=True)
    below, above = (
        (d - middle).to(R.dtype) for d in (after.masked_fill(~keep, torch.inf), log_scale)
    )
    # in the layout of R, which may come from LAPACK
    across = R.stride(-1) != 1
    M = above[:, :, None] - below[:, None, :] if across else above[:, None, :] - below[:, :, None]
    # what is below rounding would end among the denormal numbers, which cost a hundred times more
    M = torch.threshold_(M.exp_(), torch.finfo(R.dtype).eps ** 2, 0.0)
    M = M.mul_(R.mT).tril_().mT if across else M.mul_(R).triu_()
    return after, M


def _triangular_product(A: Tensor, B: Tensor) -> Tensor:
    """A B of two upper triangular matrices, B perhaps wider, in about 3/8 of the operations."""
    c = A.shape[2]
    if A.shape[1] != c or c < _SPLIT:
        return A @ B
    h = c // 2
    out = torch.empty((len(B), c, B.shape[2]), dtype=B.dtype, device=B.device)
    out[:, h:, :h] = 0
    out[:, :h, :h] = _triangular_product(A[:, :h, :h], B[:, :h, :h])
    out[:, h:, h:c] = _triangular_product(A[:, h:, h:], B[:, h:, h:c])
    out[:, :h, h:c] = A[:, :h, :h] @ B[:, :h, h:c] + A[:, :h, h:] @ B[:, h:, h:c]
    if c < B.shape[2]:
        out[:, :, c:] = A @ B[:, :, c:]
    return out


class _Window(NamedTuple):
    """Rows first:last are decomposed, the values of core_first:core_last are taken."""

    first: int
    last: int
    core_first: int
    core_last: int


def _windows(log_scale: Tensor) -> list[_Window] | None:
    """Overlapping windows of at most WINDOW nats for all samples; None where there are none."""
    d = torch.cummin(log_scale, dim=-1).values.cpu()
    alive = torch.isfinite(d)
    c = d.shape[-1]
    count = lambda mask: mask.sum(-1)  # noqa: E731  # d falls: how many entries is where
    found: list[_Window] = []
    start = 0
    while start < c:
        top = d[:, start : start + 1]
        first = int(torch.where(alive[:, start], count(d > top + MARGIN), start).min())
        last = int(count((d >= d[:, first : first + 1] - WINDOW) | ~alive).min())
        stop = c
        if last < c:
            edge = d[:, last : last + 1] + MARGIN
            stop = int(torch.where(alive[:, last], count(d > edge), last).min())
        if stop <= start:
            return None
        found.append(_Window(first, last, start, stop))
        start = stop
    return found


def _windowed(A: Graded, left: Tensor | None, right: Tensor | None) -> Decomposition:
    """Singular values from windows along the diagonal; vectors turned inside every core."""
    rows, c = A.T.shape[1:]
    windows = [_Window(0, c, 0, c)] if _range(A.log_scale) <= SPAN else _windows(A.log_scale)
    if windows is None:  # the samples are too different: each by itself
        parts = [
            _windowed(
                Graded(A.log_scale[i : i + 1], A.T[i : i + 1], A.triangular),
                None if left is None else left[i : i + 1],
                None if right is None else right[i : i + 1],
            )
            for i in range(len(A.T))
        ]
        return Decomposition(
            torch.cat([p.log_values for p in parts]),
            torch.cat([p.coupling for p in parts]),
            None if left is None else torch.cat([p.left for p in parts if p.left is not None]),
            None if right is None else torch.cat([p.right for p in parts if p.right is not None]),
        )
    log_values = torch.full_like(A.log_scale, -torch.inf)
    coupling = torch.zeros_like(log_values)
    turned: list[tuple[Tensor, Tensor]] = []
    for first, last, start, stop in windows:
        inside, scale = _block(A, first, last)
        stop = min(stop, rows)
        s = torch.linalg.svdvals(inside)[:, start - first : stop - first]
        log_values[:, start:stop] = s.log() + scale
        above = A.T[:, :first, start:stop].square().sum(1)
        below = A.T[:, start:stop, last:].square().sum(2)
        if len(windows) > 1:
            coupling[:, start:stop] = (above + below).to(torch.float64)
        if left is not None and right is not None:
            U, _, Vh = torch.linalg.svd(
                _block(A, start, stop)[0] if len(windows) > 1 else inside, full_matrices=False
            )
            turned.append(
                (
                    left[:, :, start:stop] @ U.to(left.dtype),
                    right[:, :, start : stop if len(windows) > 1 else c] @ Vh.mT.to(right.dtype),
                )
            )
    if turned:
        left, right = (torch.cat(parts, 2) for parts in zip(*turned, strict=True))
    log_values = log_values.masked_fill(~torch.isfinite(A.log_scale), -torch.inf)
    return Decomposition(log_values, coupling, left, right)


def _block(A: Graded, first: int, last: int) -> tuple[Tensor, Tensor]:
    """A diagonal block in float64, over exp(its largest scale), and that scale."""
    d = A.log_scale[:, first:last]
    scale = d.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    block = A.T[:, first:last, first:last].to(torch.float64)
    return block * (d - scale).exp()[:, :, None], scale
