"""The whole log-spectrum of a deep product of Jacobians, and the depth profile of its directions.

Formed as one matrix, a product of 50 layers loses every singular value more than 15 decades below
the largest (7 in float32). Here vectors go through the blocks in sweeps, up and down, and are made
independent again as they go: orthogonal iteration on J^T J in factored form (Benettin et al. 1980,
Meccanica 15, for Lyapunov exponents; Golub & Van Loan, Matrix Computations, 7.3 and 8.2). What a
sweep divides out is kept as a graded matrix (`graded.py`), not only its diagonal. So a sweep whose
vectors span the space has seen all of J, and further sweeps need no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.jacobian.chain import Chain
from signalprop.jacobian.graded import Decomposition, Graded
from signalprop.jacobian.operator import Operator
from signalprop.jacobian.probes import generator_of
from signalprop.jacobian.sweeps import CAREFUL, Sweep, Sweeper, padded

#: vectors beyond the r that are asked for
OVERSAMPLE = 8
#: times that many at most go together where values come slowly
LARGEST = 4
#: nats above a value from which directions have nothing to do with it
CLEAR = 6.0
#: share that a change may be of the one before where changes say how much is to come
QUICK = 0.7


@dataclass(frozen=True)
class LogSpectrum:
    """Natural logs of the singular values of a product of blocks, per sample.

    Attributes:
        log_values: (batch, r) float64, largest first; -inf where zero or below resolution.
        errors: (batch, r), how far each may be off, in nats: rounding on the way, what the sweeps
            left unfinished, and the disagreement of the last two sweeps; inf where -inf.
        floor: (batch, r), ln of what a value of -inf is below, about; -inf where it is exactly zero
            and for all other values.
        profile: (batch, L + 1, r), ln of how long each right singular direction, freed from those
            before it, is at the input (0) and after every block (in the end `log_values`): the
            running sum of ln |R_ii|. What that sweep ends apart from `log_values` is part of
            `errors`, and is spread evenly over the blocks. None where it was not asked for.
        tol: nats that were asked for.
        sweeps: passes through all blocks, up or down.
        vectors: vectors sent through the whole chain, all sweeps together: the cost in backward
            passes.
    """

    log_values: Tensor
    errors: Tensor
    floor: Tensor
    profile: Tensor | None
    tol: float
    sweeps: int
    vectors: int

    @property
    def converged(self) -> Tensor:
        """(batch, r), whether each value is as exact as was asked; a resolved zero is."""
        return (self.errors <= self.tol) | (self.log_values == -torch.inf)


def log_spectrum(
    blocks: Sequence[Operator],
    r: int | None = None,
    *,
    tol: float = 0.05,
    max_sweeps: int = 8,
    profile: bool = True,
    generator: torch.Generator | None = None,
) -> LogSpectrum:
    """Natural logs ln s_i of J = J_L ... J_1 for every sample, however many decades they span.

    Errors: rounding of a block's own arithmetic cannot be undone: a block that shrinks a direction
    to eps of its norm loses it. For r below the narrowest width the values converge from below, by
    (s_(r+8) / s_i)^2 a sweep where the spectrum falls, as a Krylov space where it is flat. What
    they may lack is estimated from the residuals of the sweep before, and in the end from the last
    changes as well: twice `errors` covered 93 to 100% of values for every kind of network and
    spectrum that was tried, least where one cluster holds more values than vectors are sent. Zeros
    cannot be told from values below the rounding of a single block.

    Cost: r vectors through every block and sweep. The whole spectrum takes one sweep, or two where
    neither end is the narrowest place, and one more for the profile; r < the narrowest width takes
    two to `max_sweeps` with r + 8 vectors, from the third on with up to four times as many where
    the spectrum is flat. Beyond CAREFUL columns the profile adds a QR per block.

    Misleads: directions of nearly equal singular value are any rotation of each other, and so are
    their profiles.

    Args:
        blocks: Jacobians from the input end up; widths may differ.
        r: how many of the largest; all there can be (the narrowest width) where None.
        tol: decades that each value may be off before another sweep is made.
        max_sweeps: at most this many, without the one for the profile.
        profile: whether to measure it.
        generator: of the random start; the same start each time where None.

    Returns:
        The logs, with errors and profile.

    Raises:
        SignalpropError: where blocks do not fit together, r is more than the narrowest width, or
            numbers are not finite.

    Example:
        >>> import math
        >>> import torch
        >>> from signalprop.jacobian.operator import Dense
        >>> block = Dense(torch.diag(torch.tensor([2.0, 0.1], dtype=torch.float64))[None])
        >>> (log_spectrum([block] * 50).log_values / math.log(10)).round(decimals=3)
        tensor([[ 15.0510, -50.0000]], dtype=torch.float64)
    """
    chain = Chain(blocks)
    widths = chain.widths
    narrow = min(widths)
    r = narrow if r is None else r
    if not 1 <= r <= narrow:
        raise SignalpropError(f"{r} singular values asked; the narrowest block has {narrow}")
    if max_sweeps < 1:
        raise SignalpropError("at least one sweep is needed")
    c = r if r == narrow else min(narrow, r + OVERSAMPLE)
    way = Sweeper(chain, c)
    down = widths[-1] == c or widths[0] != c
    basis = way.start(widths[-1] if down else widths[0], c, generator_of(generator))
    basis = basis.expand(chain.batch, -1, -1)
    search = _Search(basis, r, narrow)
    enough = tol * math.log(10) / 2
    while True:
        found = way.sweep(basis, down=down)
        exact = search.exact(basis)
        parts = found.graded.decompose(rotate=profile if exact else c < narrow)
        values = padded(parts.log_values, c)
        unfinished = search.unfinished(found.graded, values)
        if exact:
            unfinished = torch.zeros_like(values)
        finished = bool((unfinished[:, :r] <= enough).all())
        if finished or search.done == max_sweeps:
            break
        basis, down = search.next(found.X, parts.left, unfinished, enough), not down
    done = search.done
    along: Tensor | None = None
    apart = torch.zeros_like(values)
    if profile:
        if parts.left is None:
            parts = found.graded.decompose(rotate=True)
            values = padded(parts.log_values, c)
        along, apart = _profile(way, parts, found, basis, down, c)
        done += 1
    inside = padded(found.rounding + parts.coupling.square(), c, 0.0)
    errors = (inside + unfinished.square() + apart.square()).sqrt()
    order = values.argsort(dim=-1, descending=True, stable=True)[:, :r]
    values, errors = values.gather(1, order), errors.gather(1, order)
    lost = values == -torch.inf
    if along is not None:
        along = along.gather(2, order[:, None].expand(-1, along.shape[1], -1))
    return LogSpectrum(
        log_values=values,
        errors=errors.masked_fill(lost, torch.inf),
        floor=torch.where(lost, found.floor, -torch.inf),
        profile=along,
        tol=tol * math.log(10),
        sweeps=done,
        vectors=math.ceil(way.sent / len(chain.blocks)),
    )


class _Search:
    """What to send through the blocks next, and how much the values may still lack.

    Every sweep is exact for whatever orthonormal columns it is given, so they may be chosen freely.
    Where values are close together and would come slowly, the start is sent along again with every
    second sweep: all columns then span a block Krylov space (Musco & Musco 2015), restarted from
    its largest directions when it is too large.

    Args:
        start: of the first sweep, (batch, n, c), orthonormal.
        r: values that are wanted, of c.
        narrow: the narrowest width.
    """

    def __init__(self, start: Tensor, r: int, narrow: int) -> None:
        self.start, self.r, self.narrow = start, r, narrow
        self.c = start.shape[2]
        self.most = min(narrow, LARGEST * self.c, max(self.c, CAREFUL))
        self.done = self.seen = self.left = 0
        self.before: Tensor | None = None
        self.changes: list[Tensor] = []

    def exact(self, basis: Tensor) -> bool:
        """Whether the sweep that was just made, from this basis, has seen all of J."""
        self.done += 1
        # a whole end, or, the second time, as many columns as the narrowest place has elements, or
        # as those have left of it
        whole = basis.shape[2] >= (self.left if self.seen else self.narrow)
        self.seen = self.seen + 1 if whole else 0
        return basis.shape[1] == basis.shape[2] or self.seen > 1

    def unfinished(self, A: Graded, values: Tensor) -> Tensor:
        """(batch, c), nats by which `values`, from the sweep's A, may still grow; inf at first."""
        before, self.before = self.before, values
        if before is None or self.c == self.narrow:
            return torch.full_like(values, torch.inf)
        most = (_lacking(before, _residuals(A, before)) * _rate(values)).log1p() / 2
        change = (values - before).nan_to_num(nan=0.0).abs().clamp_min(1e-300)
        self.changes = [*self.changes[-2:], change]
        return _tempered(most, self.changes) if len(self.changes) == 3 else most

    def next(self, X: Tensor, left: Tensor | None, unfinished: Tensor, enough: float) -> Tensor:
        """Orthonormal columns for a sweep the other way.

        Args:
            X: where the last sweep ended, (batch, n, rows).
            left: turns them into singular vectors.
            unfinished: see there.
            enough: nats that are enough.

        Returns:
            (batch, n, c or more), singular vectors first, the largest before all.
        """
        self.left = X.shape[2]
        if left is None:
            return torch.linalg.qr(X)[0]
        V = X @ left
        assert self.before is not None
        soon = bool((unfinished * _rate(self.before))[:, : self.r].le(enough).all())
        if soon:
            V = V[:, :, : self.c]
        elif self.done % 2 == 0:  # back at the end where it started
            if V.shape[2] < self.most:
                V = torch.cat([V, self.start[:, :, : self.most - V.shape[2]]], 2)
            else:
                V = self.start = V[:, :, : self.c]
        return torch.linalg.qr(V)[0]


def _tempered(most: Tensor, changes: list[Tensor]) -> Tensor:
    """A bound, wide in Krylov spaces, a quarter of the way to what a geometric series leaves."""
    # changes that fall slowly say nothing; quick ones not all, where many values are one cluster
    ratio = (changes[2] / changes[1]).maximum(changes[1] / changes[0])
    rest = changes[2].maximum(changes[1] * ratio) * ratio / (1 - ratio)
    return torch.where(ratio < QUICK, most.minimum(most**0.75 * rest**0.25), most)


def _rate(values: Tensor) -> Tensor:
    """By what a sweep multiplies what squares lack, at most: (s_c / s_i)^2."""
    last = values.masked_fill(values == -torch.inf, torch.inf).amin(-1, keepdim=True)
    return (2 * (last - values)).exp().nan_to_num(nan=0.0, posinf=0.0)


def _residuals(A: Graded, values: Tensor) -> Tensor:
    """|J v_i - s_i u_i| / s_i of the sweep before, whose v_i this one began with."""
    # |J v_i|^2 = s_i^2 + |J v_i - s_i u_i|^2, and |J v_i| is the length of A's column i
    c = values.shape[1]
    apart = A.log_scale[:, :, None] - values[:, None, :]
    # all that is seen along far larger directions is their rounding
    share = torch.where(apart < CLEAR, apart, -torch.inf).exp()
    T = padded(A.T.flatten(0, 1).double(), c, 0.0).view(*A.T.shape[:2], c)
    return ((share * T).square().sum(1) - 1).clamp_min(0).sqrt()


def _lacking(values: Tensor, residuals: Tensor) -> Tensor:
    """What s_i^2 lack, as a share of them.

    First order: a singular value lies within |r_i|. Second order: |r_i|^2 / (s_i^2 - t^2), t being
    the largest value outside and r_i the largest residual of those between (as Mathias 1998,
    theorem 1); t is estimated by s_j + |r_j|, j > i. The smallest counts.

    Args:
        values: ln s_i, (batch, c).
        residuals: |r_i| / s_i, (batch, c).

    Returns:
        (batch, c)
    """
    squares = residuals.square()
    best = 2 * residuals + squares
    for j in range(1, values.shape[1]):
        outside = values[:, j] + residuals[:, j].log1p()
        gap = -(2 * (outside[:, None] - values[:, :j])).expm1()
        between = squares[:, :j].flip(1).cummax(1).values.flip(1)
        best[:, :j] = torch.where(gap > 0, (between / gap).minimum(best[:, :j]), best[:, :j])
    return best.masked_fill(values == -torch.inf, 0.0)


def _profile(
    way: Sweeper, parts: Decomposition, found: Sweep, basis: Tensor, down: bool, c: int
) -> tuple[Tensor, Tensor]:
    """One more sweep, up, from the right singular vectors: profile and what it ends apart from."""
    assert parts.left is not None
    assert parts.right is not None
    V = (found.X @ parts.left if down else basis @ parts.right)[:, :, :c]
    if V.shape[2] < c:  # and any directions for those that are lost
        more = way.start(V.shape[1], c - V.shape[2], generator_of(None)).expand(len(V), -1, -1)
        V = torch.cat([V, more], 2)
    V = torch.linalg.qr(V)[0]
    along = torch.stack(way.sweep(V, down=False, follow=True).along, 1)
    values, end = padded(parts.log_values, c), along[:, -1]
    both = torch.isfinite(values) & torch.isfinite(end)
    apart = torch.where(both, values - end, 0)
    share = torch.linspace(0, 1, along.shape[1], dtype=along.dtype, device=along.device)
    along = along + share[None, :, None] * apart[:, None]
    along[:, -1] = values
    return along, apart.masked_fill(torch.isfinite(values) & ~both, torch.inf)
