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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.jacobian.chain import Chain
from signalprop.jacobian.graded import Decomposition, Graded
from signalprop.jacobian.operator import Operator, working
from signalprop.jacobian.probes import generator_of

#: vectors beyond the r that are asked for
OVERSAMPLE = 8
#: width up to which vectors are kept in float64 and orthonormal, by QR at every block; beyond it
#: they are kept independent by elimination, every few blocks, which is several times faster
CAREFUL = 256
#: sqrt(n) roundings of a column: what is as near as that to depending on others depends on them
#: (largest seen of such columns: 0.3)
_ZERO = 0.5
#: roundings of a block's product in the direction of a pivot, from experiment
_ROUNDINGS = 4.0
#: nats by which a later direction may overtake an earlier one before they are exchanged
_OVERTAKEN = 3.0
#: blocks between two eliminations, at most
_STRIDE = 4


@dataclass(frozen=True)
class LogSpectrum:
    """Natural logs of the singular values of a product of blocks, per sample.

    Attributes:
        log_values: (batch, r) float64, largest first; -inf where zero or below resolution.
        errors: (batch, r), how far each may be off, in nats: rounding on the way, what the sweeps
            left unfinished, and the disagreement of the last two sweeps; inf where -inf.
        floor: (batch, r), ln of what a value of -inf is below; -inf for all others.
        profile: (batch, L + 1, r), ln of how long each right singular direction, freed from those
            before it, is at the input (0) and after every block (in the end `log_values`): the
            running sum of ln |R_ii|. None where it was not asked for.
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
    """ln s_i of J = J_L ... J_1 for every sample, however many decades they span.

    Errors: rounding of a block's own arithmetic cannot be undone: a block that shrinks a direction
    to eps of its norm loses it. For r below the narrowest width the values converge from below, by
    (s_(r+8) / s_i)^2 a sweep: quickly where the spectrum falls, hardly where it is flat; `errors`
    says so. Zeros cannot be told from values below the rounding of a single block.

    Cost: r vectors through every block and sweep. The whole spectrum takes one sweep, or two where
    neither end is the narrowest place, and one more for the profile; r < the narrowest width takes
    two to `max_sweeps`. Beyond CAREFUL columns the profile adds a QR per block.

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
        >>> import torch
        >>> from signalprop.jacobian.operator import Dense
        >>> shrink = Dense(torch.diag(torch.tensor([1.0, 0.1]))[None])
        >>> log_spectrum([shrink] * 50).log_values / torch.log(torch.tensor(10.0))
        tensor([[  0., -50.]], dtype=torch.float64)
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
    way = _Way(chain, c)
    down = widths[-1] == c or widths[0] != c
    basis = _start(widths[-1] if down else widths[0], c, way, generator)
    # vectors that span the whole of one end, or of the narrowest place, have seen all of J
    exact_after = 1 if len(basis) == c else 2 if c == narrow else None
    basis = basis.expand(chain.batch, -1, -1)
    before: Tensor | None = None
    done = 0
    while True:
        found = way.sweep(basis, down=down)
        done += 1
        values, coupling, _, _ = parts = found.graded.decompose(rotate=False)
        values = _padded(values, c)
        unfinished = torch.full_like(values, torch.inf)
        if exact_after is not None:
            if done >= exact_after:
                unfinished = torch.zeros_like(values)
        elif before is not None:
            unfinished = _unfinished(values, before)
        finished = bool((unfinished[:, :r] <= tol * math.log(10) / 2).all())
        if finished or done == max_sweeps:
            break
        before, basis, down = values, found.orthonormal(), not down
    inside = _padded(found.rounding + coupling.square(), c, 0.0)
    errors = (inside + unfinished.square()).sqrt()
    along: Tensor | None = None
    if profile:
        parts = found.graded.decompose(rotate=True)
        along, apart = _profile(way, parts, found, basis, down)
        errors = (errors.square() + apart.square()).sqrt()
        done += 1
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
        vectors=math.ceil(way.through / len(chain.blocks)),
    )


def _start(n: int, c: int, way: _Way, generator: torch.Generator | None) -> Tensor:
    """Random orthonormal columns (n, c)."""
    generator = generator_of(generator)
    drawn = torch.randn(n, c, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].to(device=way.device, dtype=way.dtype)


def _unfinished(values: Tensor, before: Tensor) -> Tensor:
    """What a geometric series leaves after its last step, with the rate that theory promises."""
    change = (values - before).abs().nan_to_num(nan=0.0)
    last = values.masked_fill(values == -torch.inf, torch.inf).amin(-1, keepdim=True)
    rate = (2 * (last - values)).exp().nan_to_num(nan=0.0, posinf=0.0).clamp(max=0.9)
    return change / (1 - rate)


def _profile(
    way: _Way, parts: Decomposition, found: _Sweep, basis: Tensor, down: bool
) -> tuple[Tensor, Tensor]:
    """One more sweep, up, from the right singular vectors: profile and what it ends apart from."""
    assert parts.left is not None and parts.right is not None
    V = found.X @ parts.left if down else basis @ parts.right
    c = basis.shape[2]
    if V.shape[2] < c:  # and any directions for those that are lost
        more = _start(V.shape[1], c - V.shape[2], way, None).expand(len(V), -1, -1)
        V = torch.cat([V, more], 2)
    V = torch.linalg.qr(V)[0]
    along = torch.stack(way.sweep(V, down=False, follow=True).along, 1)
    values, end = _padded(parts.log_values, c), along[:, -1]
    both = torch.isfinite(values) & torch.isfinite(end)
    apart = torch.where(both, values - end, 0)
    share = torch.linspace(0, 1, along.shape[1], dtype=along.dtype, device=along.device)
    along = along + share[None, :, None] * apart[:, None]
    along[:, -1] = values
    return along, apart.masked_fill(torch.isfinite(values) & ~both, torch.inf)


@dataclass(frozen=True)
class _Sweep:
    """J^T basis (down) or J basis (up) = X A.

    Attributes:
        X: (batch, n, c), orthonormal where columns are not dropped.
        graded: A.
        rounding: (batch, c), squared error of ln |R_ii| from the blocks' arithmetic.
        floor: (batch, 1), ln of the length that dropped columns are below.
        along: (batch, c) at every depth, running ln |R_ii|; only where followed.
    """

    X: Tensor
    graded: Graded
    rounding: Tensor
    floor: Tensor
    along: list[Tensor]

    def orthonormal(self) -> Tensor:
        """X with any complement in place of columns that are zero."""
        return torch.linalg.qr(self.X)[0]


class _Way:
    """The blocks, and how vectors are kept independent on their way."""

    def __init__(self, chain: Chain, c: int) -> None:
        self.chain, self.c, self.device = chain, c, chain.device
        kept = [working(block.dtype) for block in chain.blocks]
        self.careful = c <= CAREFUL
        wide = self.careful or torch.float64 in kept
        self.dtype = torch.float64 if wide else torch.float32
        self.eps = max(torch.finfo(block.dtype).eps for block in chain.blocks)
        self.through = 0

    def sweep(self, basis: Tensor, *, down: bool, follow: bool = False) -> _Sweep:
        """Through all blocks; `follow` keeps the order of the columns and notes their lengths."""
        blocks = self.chain.blocks
        steps = [b.adjoint for b in reversed(blocks)] if down else [b.apply for b in blocks]
        X, A = basis, Graded.identity(len(basis), basis.shape[2], self.dtype, self.device)
        rounding = torch.zeros_like(A.log_scale)
        floor = torch.full_like(rounding[:, :1], -torch.inf)
        along = [A.log_scale]
        i, take, most = 0, 1, 1 if self.careful else _STRIDE
        while i < len(steps):
            Y, here = X, list[Tensor]()
            for step in steps[i : i + take]:
                Y = step(Y).to(self.dtype)
                if follow and not self.careful:
                    here.append(A.log_scale + _lengths(Y).log())
            self.through += X.shape[2] * len(steps[i : i + take])
            size = torch.linalg.vector_norm(Y, dim=1).to(torch.float64)
            if not torch.isfinite(size).all():
                raise SignalpropError("the Jacobian has entries that are inf or nan")
            if not follow:
                Y, A, rounding, size = _exchanged(Y, A, rounding, size)
            new, R = _orthonormal(Y) if self.careful else _eliminated(Y)
            top = size.square().mean(-1, keepdim=True).sqrt()
            was = torch.isfinite(A.log_scale)
            length, reach = _reach(R, was, top, self.eps)
            zero = _ZERO * self.eps * Y.shape[1] ** 0.5 * top
            keep = was & (reach > zero)
            if take > 1 and bool((was & ~keep).any()):
                take = most = take - 1  # blocks taken together hide what fewer resolve
                continue
            lost = (A.log_scale + zero.log()).masked_fill(keep | ~was, -torch.inf)
            floor = torch.maximum(floor + size.amax(-1, keepdim=True).log(), lost.amax(-1, keepdim=True))
            share = torch.where(keep, (_ROUNDINGS * self.eps * top / reach).square(), 0)
            # a direction takes on some of its neighbours' errors as later blocks turn it
            rounding = rounding + share + share.mean(-1, keepdim=True)
            rows = max(1, int((keep.any(0) * torch.arange(1, keep.shape[1] + 1, device=keep.device)).max()))
            if follow:
                A = Graded((A.log_scale + length.log()).masked_fill(~keep, -torch.inf), A.T, True)
                along += here or [A.log_scale]
                A = Graded(A.log_scale[:, :rows], A.T, True)
            else:
                A = A.under(R[:, :rows], keep[:, :rows])
            X, rounding, keep = new[:, :, :rows], rounding[:, :rows], keep[:, :rows]
            X = X if bool(keep.all()) else X * keep[:, None, :]
            i += take
            take = self._next(top, reach[:, :rows], keep, take, most)
        if not follow and not self.careful:
            X, R = torch.linalg.qr(X)
            A = A.under(R, torch.isfinite(A.log_scale))
        return _Sweep(X, A, rounding, floor, [_padded(a, basis.shape[2]) for a in along])

    def _next(self, top: Tensor, reach: Tensor, keep: Tensor, take: int, most: int) -> int:
        """How many blocks can be taken together, by what the last ones did to the vectors."""
        if most == 1:
            return 1
        spread = (top / reach.masked_fill(~keep, torch.inf).amin(-1, keepdim=True)).log() / take
        allowed = -math.log(_ROUNDINGS * self.eps) - 3
        return max(1, min(most, int(allowed / max(float(spread.median()), 1e-3))))


def _padded(values: Tensor, c: int, fill: float = -torch.inf) -> Tensor:
    """(batch, rows) -> (batch, c)."""
    return torch.nn.functional.pad(values, (0, c - values.shape[1]), value=fill)


def _reach(R: Tensor, was: Tensor, top: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """|R_ii|, and how far column i is from depending on those before it: 1 / ||R^-1 e_i||.

    A pivot that should be zero is rounding times the size of the combination of columns that ought
    to give zero, so it may be as large as one that should not. The distance is not: it stays below
    sqrt(n) eps top for a dependent column, in every experiment. Where no pivot is small the two are
    nearly the same.
    """
    pivots = R.diagonal(dim1=-2, dim2=-1).abs().to(torch.float64)
    small = was & (pivots < (R.shape[1] * eps) ** 0.5 * top)
    if not bool(small.any()):
        return pivots, pivots
    first = int(small.any(0).to(torch.uint8).argmax())
    scale = torch.where(top > 0, top, 1.0)
    safe = R / scale[..., None].to(R.dtype)
    diagonal = safe.diagonal(dim1=-2, dim2=-1)
    tiny = torch.finfo(R.dtype).eps ** 2
    diagonal.copy_(torch.where(was, torch.where(diagonal.abs() < tiny, tiny, diagonal), 1.0))
    unit = torch.eye(R.shape[2], dtype=R.dtype, device=R.device)[:, first:]
    inverse = torch.linalg.solve_triangular(safe, unit.expand(len(R), -1, -1), upper=True)
    reach = pivots.clone()
    reach[:, first:] = scale / torch.linalg.vector_norm(inverse.to(torch.float64), dim=1)
    return pivots, torch.minimum(reach, pivots)


def _exchanged(
    Y: Tensor, A: Graded, *others: Tensor
) -> tuple[Tensor, Graded, Tensor, Tensor]:
    """Columns by length, where a later one has overtaken an earlier one by far."""
    rounding, size = others
    lengths = A.log_scale + size.log()
    ahead = lengths - torch.cummin(lengths, dim=-1).values
    if not bool((ahead.nan_to_num(nan=0.0) > _OVERTAKEN).any()):
        return Y, A, rounding, size
    order = lengths.argsort(dim=-1, descending=True, stable=True)
    Y = Y.gather(2, order[:, None].expand_as(Y))
    return Y, A.ordered(order), rounding.gather(1, order), size.gather(1, order)


def _orthonormal(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Y = Q R."""
    Q, R = torch.linalg.qr(Y)
    return Q, R


def _lengths(Y: Tensor) -> Tensor:
    """|R_ii| of Y = Q R, without Q."""
    return torch.geqrf(Y)[0].diagonal(dim1=-2, dim2=-1).abs().to(torch.float64)


def _eliminated(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Y = X R by elimination with row exchanges: X is well conditioned but not orthonormal.

    A quarter of the time of QR. The entries of R below its diagonal are not zero. X is laid out as
    the operators want it, (c, batch, n) in memory.
    """
    LU, pivots, _ = torch.linalg.lu_factor_ex(Y)
    P, _, _ = torch.lu_unpack(LU, pivots, unpack_data=False)
    rows = torch.arange(Y.shape[1], dtype=Y.dtype, device=Y.device)
    order = (P @ rows[:, None])[..., 0].round().long()
    X = LU.mT.triu(1)
    X.diagonal(dim1=-2, dim2=-1).fill_(1)
    X = X.transpose(0, 1).gather(2, order.expand(Y.shape[2], -1, -1))
    return X.permute(1, 2, 0), LU[:, : Y.shape[2]]
