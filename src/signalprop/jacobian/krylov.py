"""The largest singular values by block Krylov (Musco & Musco 2015), batched over samples.

The space is built as a block Golub-Kahan bidiagonalisation with full re-orthogonalisation (Golub,
Luk & Overton 1981): every pass through the operator then widens it, and the residuals come free.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.jacobian.basis import Block, negligible, orthonormal, rounding
from signalprop.jacobian.exact import MATRICES, finite, singular_values
from signalprop.jacobian.operator import Operator, working
from signalprop.jacobian.probes import gaussian, generator_of
from signalprop.jacobian.values import Values

#: sides up to which all singular values are cheaper than a search for the largest
SMALL = 64
#: sides up to which all singular values are worth their price where the search fails
EXACT_SIDE = 1024


class _Space:
    """J restricted to growing orthonormal bases: U^T J V = B, J^T U = V B^T + (residual).

    Where J and J^T hand the space on into itself it is refilled with random directions: there may
    be more that it does not touch. It is exhausted where J loses such a direction: then, with
    probability one, it loses all others, too.
    """

    def __init__(self, op: Operator, b: int, generator: torch.Generator) -> None:
        self.op, self.b, self.generator = op, b, generator
        self.drop = negligible(op.dtype)
        self.fresh = torch.zeros((op.batch, b), dtype=torch.bool, device=op.device)
        W = op.adjoint(gaussian(op, op.rows, b, generator))
        finite(W)
        first = torch.linalg.vector_norm(W, dim=1).amax(-1)
        found = orthonormal(W, None, self.drop * first)
        self.V = self.new = found.basis
        self.exhausted = ~found.kept.all(1)  # b random directions span less than b
        self.U = W.new_zeros((op.batch, op.rows, 0))
        self.B = W.new_zeros((op.batch, 0, 0))
        self.vectors = b

    def grow(self) -> Tensor:
        """One step: J V, then J^T U. Residuals J^T U - V B^T on the last block, (batch, b, b)."""
        W = self.op.apply(self.new)
        finite(W)
        floor = self.drop * self._largest(W)
        lost = torch.linalg.vector_norm(W, dim=1) <= floor[:, None]
        self.exhausted |= (lost & self.fresh).any(1)
        found = orthonormal(W, self.U, floor)
        self.U = torch.cat([self.U, found.basis], 2)
        below = self.B.new_zeros((len(W), self.b, self.B.shape[2]))
        left = torch.cat([self.B, below], 1)
        self.B = torch.cat([left, torch.cat([found.along, found.own], 1)], 2)
        Z = self.op.adjoint(found.basis)
        after = orthonormal(Z, self.V, self.drop * self._largest(Z))
        self.new = self._refilled(after)
        self.V = torch.cat([self.V, self.new], 2)
        self.vectors += 2 * self.b
        return after.rest

    def restart(self) -> None:
        """Go on from random directions: the last ones have told what was asked of them."""
        drawn = gaussian(self.op, self.op.columns, self.b, self.generator)
        size = torch.linalg.vector_norm(drawn, dim=1).amin(-1)
        found = orthonormal(drawn, self.V[:, :, : -self.b], 1e-3 * size)
        self.fresh, self.new = found.kept, found.basis
        self.exhausted |= ~found.kept.all(1)
        self.V = torch.cat([self.V[:, :, : -self.b], found.basis], 2)

    def _refilled(self, after: Block) -> Tensor:
        """The new directions, with random ones for those that are missing."""
        missing = ~after.kept & ~self.exhausted[:, None]
        self.fresh = torch.zeros_like(missing)
        if not bool(missing.any()):
            return after.basis
        drawn = gaussian(self.op, self.op.columns, self.b, self.generator)
        size = torch.linalg.vector_norm(drawn, dim=1).amin(-1)
        beside = orthonormal(drawn, torch.cat([self.V, after.basis], 2), 1e-3 * size)
        self.fresh = missing & beside.kept
        self.exhausted |= (missing & ~beside.kept).any(1)  # the space is all there is
        return torch.where(self.fresh[:, None], beside.basis, after.basis)

    def _largest(self, W: Tensor) -> Tensor:
        """The longest of J's images of unit vectors so far."""
        longest = torch.linalg.vector_norm(W, dim=1).amax(-1)
        if self.B.numel():
            longest = longest.maximum(torch.linalg.vector_norm(self.B, dim=1).amax(-1))
        return longest

    def ritz(self, rest: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest approximations and their error estimates, float64."""
        P, s, _ = torch.linalg.svd(self.B.double())
        s, R = s[:, : k + 1], rest.double() @ P[:, -self.b :, : k + 1]
        errors = _errors(s, R, k)
        s = s[:, :k]
        zero = s <= self.drop * s[:, :1]
        errors = torch.where(zero, self.drop * s[:, :1], errors)
        return torch.where(zero, 0.0, s), errors


def _errors(s: Tensor, R: Tensor, k: int) -> Tensor:
    """Errors of Ritz values from their residuals.

    First order: a singular value lies within |r_i|. Second order: for the first j together,
    s_i^2 is off by at most ||R_j||^2 / (s_i^2 - t^2), R_j being J^T J's residuals and t the
    largest value outside (Mathias 1998, theorem 1); t is estimated by s_{j+1} + |r_{j+1}|. The
    smaller counts.

    Args:
        s: (batch, k + 1 or fewer), largest first.
        R: residuals J^T u_i - s_i v_i, in orthonormal coordinates, (batch, b, as s).
        k: how many are wanted.

    Returns:
        (batch, k)
    """
    r = torch.linalg.vector_norm(R, dim=1)
    best = r[:, :k].clone()
    squares = (s * r).square().cumsum(1)
    count = s.shape[1]
    for j in range(1, count):
        outside = (s[:, j] + r[:, j]).square()
        gap = s[:, : min(j, k)].square() - outside[:, None]
        shift = squares[:, j - 1 : j] / gap / (2 * s[:, : min(j, k)])
        best[:, : min(j, k)] = torch.where(
            gap > 0, shift.minimum(best[:, : min(j, k)]), best[:, : min(j, k)]
        )
    return best


def top(
    op: Operator,
    k: int,
    *,
    tol: float = 1e-4,
    block: int | None = None,
    vectors: int | None = None,
    generator: torch.Generator | None = None,
) -> Values:
    """The k largest singular values of every sample, without the matrix.

    Where the spectrum decays a few steps are enough. Where it is flat nothing that is matrix-free
    pays: this is seen after two or three steps, from how slowly the error falls, and given up with
    `converged` False; `spectrum_top` then takes the exact way. A rank below k shows as a breakdown:
    directions shorter than 1e-5 of the longest (float32; 2e-14 in float64) are left out, and values
    beyond the rank are 0.

    Args:
        op: (m, n) per sample.
        k: how many; at most min(m, n) are there.
        tol: relative error that is enough.
        block: vectors per pass; k + 1 unless said. Values that come more often than that are found
            only as often. With fewer than k, as many vectors reach further where values lie close
            to each other; then all of `vectors` are used, from new starts, to find values that
            come more often.
        vectors: how many vectors may go through the operator, all of which are used where that is
            needed; unless said half of min(m, n), at most 64 blocks, and no more than pays.
        generator: where random numbers come from; seed 0 without one.

    Returns:
        (batch, min(k, m, n)). Errors: see `_errors`, and `basis.rounding`.
        Cost: (1 + 2 steps) blocks of vectors; 3 to 4 steps are usual for 1e-4.

    Raises:
        SignalpropError: where k < 1, or the Jacobian is not finite.
    """
    if k < 1:
        raise SignalpropError(f"{k} singular values: at least one has to be asked for")
    side = min(op.rows, op.columns)
    k = min(k, side)
    b = min(block or max(k + 1, 4), side)
    most = min(side // 2, 64 * b) if vectors is None else vectors
    space = _Space(op, b, generator_of(generator))
    before = math.inf
    while True:
        rest = space.grow()
        s, errors = space.ritz(rest, k)
        whole = torch.tensor(space.V.shape[2] - b >= side, device=s.device)
        done = (errors <= tol * s) & (s > 0) | (s == 0) & space.exhausted[:, None] | whole
        floor = rounding(op) * s[:, :1]
        done |= (errors <= 0.5 * floor) & (s > 0)  # as good as it gets
        if s.shape[1] < k and not bool(whole):
            continue
        converged = done.all(1)
        open_ = ~done & (s > 0)
        worst = float((errors / (tol * s)).masked_fill(~open_, 1.0).amax())
        if space.vectors + 2 * b > most:
            break
        if bool(converged.all()):
            # of a value that comes more often than b times no more than b are seen from one start
            if b >= k or bool((whole | space.exhausted).all()):
                break
            space.restart()
            continue
        if vectors is None and _hopeless(worst, before, space.vectors, b, most):
            break
        before = worst
    # a zero that is not known to be one may hide what the search has not touched
    least = s.masked_fill(s == 0, torch.inf).amin(1, keepdim=True)
    unsure = (s == 0) & ~space.exhausted[:, None] & ~converged[:, None]
    errors = torch.where(unsure, least, torch.where(s == 0, errors, errors + floor))
    reliable = errors < 0.5 * s
    return Values(s, errors, reliable, "krylov", converged, space.vectors)


def _hopeless(worst: float, before: float, used: int, b: int, most: int) -> bool:
    # the fall speeds up as the space grows, so it is counted one and a half times
    if math.isinf(before) or worst <= 1:
        return False
    fall = 1.5 * math.log(before / worst)
    return fall <= 0 or math.log(worst) / fall > (most - used) / (2 * b)


def spectrum_top(
    op: Operator,
    k: int,
    *,
    tol: float = 1e-4,
    block: int | None = None,
    vectors: int | None = None,
    budget: int = MATRICES,
    generator: torch.Generator | None = None,
) -> Values:
    """The k largest singular values, by whichever way is cheaper.

    Small operators (min(m, n) up to 64, or 8 k) go the exact way at once; flat spectra when they
    are recognised, up to min(m, n) = 1024 where the matrices fit into the budget. Beyond that the
    search goes on as far as 64 blocks, and `converged` says how it ended.

    Args:
        op: (m, n) per sample.
        k: how many.
        tol: relative error that is enough.
        block: as for `top`.
        vectors: as for `top`; where it is given flat spectra do not go the exact way.
        budget: bytes that the matrices may take.
        generator: where random numbers come from.

    Returns:
        (batch, min(k, m, n)), its `method` and `converged`.

    Raises:
        SignalpropError: where k < 1, or the Jacobian is not finite.
    """
    if k < 1:
        raise SignalpropError(f"{k} singular values: at least one has to be asked for")
    side = min(op.rows, op.columns)
    fits = op.batch * op.rows * op.columns * working(op.dtype).itemsize <= budget
    if fits and side <= max(SMALL, 8 * k):
        return _first(singular_values(op, budget=budget), k, 0)
    found = top(op, k, tol=tol, block=block, vectors=vectors, generator=generator)
    if bool(found.converged.all()) or vectors or not fits or side > EXACT_SIDE:
        return found
    return _first(singular_values(op, budget=budget), k, found.vectors)


def _first(found: Values, k: int, spent: int) -> Values:
    return Values(
        found.values[:, :k],
        found.errors[:, :k],
        found.reliable[:, :k],
        found.method,
        found.converged,
        found.vectors + spent,
    )
