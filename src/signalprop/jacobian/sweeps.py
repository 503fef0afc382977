"""Vectors sent through a chain of blocks, and kept independent on their way.

What is divided out of them is kept whole, so a sweep is an exact factorisation, J X_0 = X A or
J^T X_0 = X A with a graded A. Whether X is orthonormal does not matter for that, only that it is
well conditioned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.jacobian.chain import Chain
from signalprop.jacobian.graded import Graded
from signalprop.jacobian.operator import working

#: width up to which vectors are kept in float64 and orthonormal, by QR at every block; beyond it
#: they are kept independent by elimination, every few blocks, which is several times faster
CAREFUL = 256
#: sqrt(n + 64) roundings of a column: what is as near as that to depending on others does depend
#: (largest seen of such columns: 0.3)
_ZERO = 0.5
#: roundings of a block's product in the direction of a pivot, from experiment
_ROUNDINGS = 4.0
#: nats by which a later direction may overtake an earlier one before they are exchanged
_OVERTAKEN = 8.0
#: nats that elimination keeps clear of rounding
_SPARE = 3.5
#: blocks between two eliminations, at most
_STRIDE = 4


@dataclass(frozen=True)
class Sweep:
    """J^T X_0 (down) or J X_0 (up) = X A.

    Attributes:
        X: (batch, n, rows), orthonormal columns, but for zeros where one was lost in this sample.
        graded: A, (batch, rows, columns of X_0); rows lost in all samples are cut off at the end.
        rounding: (batch, rows), squared error of ln |A_ii| from the blocks' arithmetic.
        floor: (batch, 1), ln of the length that what was lost is below; -inf where it is zero.
        along: ln of the columns' lengths, (batch, columns of X_0) at every depth from the start;
            only where it was followed.
    """

    X: Tensor
    graded: Graded
    rounding: Tensor
    floor: Tensor
    along: list[Tensor]


class Sweeper:
    """Sends c vectors through a chain, as often as wanted.

    Args:
        chain: the blocks.
        c: how many vectors at most.
    """

    def __init__(self, chain: Chain, c: int) -> None:
        self.chain, self.device = chain, chain.device
        self.careful = c <= CAREFUL
        wide = self.careful or any(working(b.dtype) == torch.float64 for b in chain.blocks)
        self.dtype = torch.float64 if wide else torch.float32
        self.eps = max(torch.finfo(block.dtype).eps for block in chain.blocks)
        #: vectors sent through one block so far
        self.sent = 0

    def start(self, n: int, c: int, generator: torch.Generator) -> Tensor:
        """Random orthonormal columns (n, c), n >= c."""
        drawn = torch.randn(n, c, generator=generator, device=generator.device, dtype=torch.float64)
        return torch.linalg.qr(drawn)[0].to(device=self.device, dtype=self.dtype)

    def sweep(self, basis: Tensor, *, down: bool, follow: bool = False) -> Sweep:
        """Through all blocks once.

        Args:
            basis: X_0, orthonormal (batch, n, c).
            down: from the output to the input end, J^T; else up, J.
            follow: note the columns' lengths at every depth and never exchange columns; A is then
                only its scales.

        Returns:
            X and A.

        Raises:
            SignalpropError: where an entry is inf or nan.
        """
        blocks = self.chain.blocks
        steps = [b.adjoint for b in reversed(blocks)] if down else [b.apply for b in blocks]
        c = basis.shape[2]
        X, A = basis, Graded.identity(len(basis), c, self.dtype, self.device)
        rounding = torch.zeros_like(A.log_scale)
        floor = torch.full_like(rounding[:, :1], -torch.inf)
        along = [A.log_scale]
        i, take, failed, spread = 0, 1, 0, 1.0
        allowed = -math.log(_ROUNDINGS * self.eps) - _SPARE
        while i < len(steps):
            Y = X
            here: list[Tensor] = []
            for step in steps[i : i + take]:
                Y = step(Y).to(self.dtype)
                self.sent += X.shape[2]
                if follow:
                    here.append(padded(A.log_scale + _lengths(Y).log(), c))
            if take > 1 and not bool(torch.isfinite(Y).all()):
                take, failed = 1, failed + 1  # too large together
                continue
            Y, size, scaled = _measured(Y, A)
            grown = (scaled.log_scale - A.log_scale).nan_to_num(nan=0.0) + size.log()
            if not follow:
                Y, size, scaled, rounding = _exchanged(Y, size, scaled, rounding)
            whole = self.careful or i + take >= len(steps)  # X is to end orthonormal
            X_next, R = _orthonormal(Y) if whole else _eliminated(Y)
            was = torch.isfinite(scaled.log_scale)
            reach = _reach(R, size, was, self.eps)
            zero = _ZERO * self.eps * (Y.shape[1] + 64) ** 0.5
            keep = was & (reach > zero)
            if take > 1 and bool((was & ~keep).any()):
                take, failed = 1, failed + 1  # blocks taken together hide what one alone resolves
                continue
            lost = (scaled.log_scale + (zero * size).log()).masked_fill(keep | ~was, -torch.inf)
            floor = torch.maximum(floor + grown.amax(-1, keepdim=True), lost.amax(-1, keepdim=True))
            share = torch.where(keep, _ROUNDINGS * self.eps / reach, 0)
            # a direction takes on some of its neighbours' errors as later blocks turn it
            rounding = rounding + share.square() + share.mean(-1, keepdim=True).square()
            rows = _rows(keep)
            X, keep, rounding = X_next[:, :, :rows], keep[:, :rows], rounding[:, :rows]
            A = scaled.scaled_by(R[:, :rows], keep) if follow else scaled.under(R[:, :rows], keep)
            if not bool(keep.all()):
                X = X * keep[:, None, :]
            along += here
            i += take
            stretch = grown.abs().masked_fill(grown == -torch.inf, 0).amax()
            spread = max(spread, _spread(reach[:, :rows], keep) / take, float(stretch) / (4 * take))
            if not self.careful and i > 1:  # the first block meets orthonormal vectors
                take = max(1, min(_STRIDE >> failed, int(allowed / spread)))
        return Sweep(X, A, rounding, floor, along)


def padded(values: Tensor, c: int, fill: float = -torch.inf) -> Tensor:
    """(batch, rows) -> (batch, c)."""
    return torch.nn.functional.pad(values, (0, c - values.shape[1]), value=fill)


def _rows(keep: Tensor) -> int:
    """How many columns up to the last that is kept in some sample; at least 1."""
    place = torch.arange(1, keep.shape[1] + 1, device=keep.device)
    return max(1, int((keep.any(0) * place).max()))


def _spread(reach: Tensor, keep: Tensor) -> float:
    """Nats between the lengths of columns and what is left of the one that loses most."""
    return float(-reach.masked_fill(~keep, 1.0).amin(-1).log().median())


def _measured(Y: Tensor, A: Graded) -> tuple[Tensor, Tensor, Graded]:
    """Y and the lengths of its columns; very large and small ones are taken over into A's scale."""
    size = torch.linalg.vector_norm(Y, dim=1)
    if not bool(torch.isfinite(size).all()):
        if not bool(torch.isfinite(Y).all()):
            raise SignalpropError("the Jacobian has entries that are inf or nan")
        size = torch.full_like(size, torch.inf)
    top = size.amax(-1, keepdim=True)
    if bool(((top > 0) & ((top < 1e-6) | (top > 1e6))).any()):
        most = Y.abs().amax((1, 2))[:, None].to(torch.float64)
        most = torch.where(most > 0, most, 1.0)
        Y = (Y.to(torch.float64) / most[..., None]).to(Y.dtype)
        A = Graded(A.log_scale + most.log(), A.T, A.triangular)
        size = torch.linalg.vector_norm(Y, dim=1)
    return Y, size.to(torch.float64), A


def _reach(R: Tensor, size: Tensor, was: Tensor, eps: float) -> Tensor:
    """How far every column of Y = X R is from depending on those before it, as a share.

    1 / ||diag(|y_j|) R^-1 e_i||: the length |R_ii| that is left of column i, over the lengths of
    the columns that cancel in it. A pivot that ought to be zero is rounding times that combination,
    so it can be larger than one that is not zero; the share is at most 0.3 sqrt(n) eps for columns
    that depend, in every experiment. Where all pivots are large it is |R_ii| / |y_i|.

    Args:
        R: (batch, c, c), not looked at below its diagonal.
        size: (batch, c), |y_j|.
        was: (batch, c), columns that are not dropped; the others are zero.
        eps: of the arithmetic of Y.

    Returns:
        (batch, c)
    """
    pivots = R.diagonal(dim1=-2, dim2=-1).abs().to(torch.float64)
    share = (pivots / size.clamp_min(torch.finfo(torch.float64).tiny)).clamp(max=1.0)
    small = was & (share < (R.shape[1] * eps) ** 0.5)
    if not bool(small.any()):
        return share
    first = int(small.any(0).to(torch.uint8).argmax())
    tiny = torch.finfo(R.dtype).tiny ** 0.5
    if bool((pivots < tiny).any()):
        R = R.clone()
        diagonal = R.diagonal(dim1=-2, dim2=-1)
        diagonal.copy_(torch.where(was, torch.where(diagonal.abs() < tiny, tiny, diagonal), 1.0))
    unit = torch.eye(R.shape[2], dtype=R.dtype, device=R.device)[:, first:]
    inverse = torch.linalg.solve_triangular(R, unit.expand(len(R), -1, -1), upper=True)
    weighed = torch.linalg.vector_norm(inverse * size[..., None].to(R.dtype), dim=1)
    share[:, first:] = torch.minimum(share[:, first:], 1 / weighed.to(torch.float64))
    return share


def _exchanged(
    Y: Tensor, size: Tensor, A: Graded, rounding: Tensor
) -> tuple[Tensor, Tensor, Graded, Tensor]:
    """Columns by length, where a later one has overtaken an earlier one by far."""
    lengths = A.log_scale + size.log()
    ahead = lengths - torch.cummin(lengths, dim=-1).values
    if not bool((ahead.nan_to_num(nan=0.0) > _OVERTAKEN).any()):
        return Y, size, A, rounding
    order = lengths.argsort(dim=-1, descending=True, stable=True)
    Y = Y.gather(2, order[:, None].expand_as(Y))
    return Y, size.gather(1, order), A.ordered(order), rounding.gather(1, order)


def _orthonormal(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Y = Q R."""
    Q, R = torch.linalg.qr(Y)
    return Q, R


def _lengths(Y: Tensor) -> Tensor:
    """|R_ii| of Y = Q R, without Q."""
    return torch.geqrf(Y)[0].diagonal(dim1=-2, dim2=-1).abs().to(torch.float64)


def _eliminated(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Y = X R by elimination with row exchanges: X is well conditioned but not orthonormal.

    A quarter of the time of QR.

    Returns:
        X, laid out in memory as the operators want it, (c, batch, n), and R, whose entries below
        the diagonal are not zero.
    """
    LU, pivots, _ = torch.linalg.lu_factor_ex(Y)
    order = _row_order(pivots, Y.shape[1])
    X = LU.mT.triu(1)
    X.diagonal(dim1=-2, dim2=-1).fill_(1)
    X = X.transpose(0, 1).gather(2, order.expand(Y.shape[2], -1, -1))
    return X.permute(1, 2, 0), LU[:, : Y.shape[2]]


def _row_order(pivots: Tensor, n: int) -> Tensor:
    """(batch, n): which row of L U is row i of Y, from LAPACK's list of exchanges."""
    if pivots.is_cuda:
        P, _, _ = torch.lu_unpack(
            pivots.new_empty((*pivots.shape[:1], n, n), dtype=torch.float32),
            pivots,
            unpack_data=False,
        )
        return (P @ torch.arange(n, dtype=P.dtype, device=P.device)[:, None])[..., 0].round().long()
    found = []
    for exchanges in pivots.tolist():
        rows = list(range(n))
        for i, j in enumerate(exchanges):
            rows[i], rows[j - 1] = rows[j - 1], rows[i]
        place = [0] * n
        for i, row in enumerate(rows):
            place[row] = i
        found.append(place)
    return torch.tensor(found)
