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
from signalprop.jacobian.graded import Decomposition
from signalprop.jacobian.operator import Operator
from signalprop.jacobian.probes import generator_of
from signalprop.jacobian.sweeps import Sweep, Sweeper, padded

#: vectors beyond the r that are asked for
OVERSAMPLE = 8


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
    # vectors that span the whole of one end, or of the narrowest place, have seen all of J
    exact_after = 1 if len(basis) == c else 2 if c == narrow else None
    basis = basis.expand(chain.batch, -1, -1)
    before: Tensor | None = None
    done = 0
    while True:
        found = way.sweep(basis, down=down)
        done += 1
        exact = exact_after is not None and done >= exact_after
        parts = found.graded.decompose(rotate=profile and exact)
        values = padded(parts.log_values, c)
        unfinished = torch.full_like(values, torch.inf)
        if exact:
            unfinished = torch.zeros_like(values)
        elif exact_after is None and before is not None:
            unfinished = _unfinished(values, before)
        finished = bool((unfinished[:, :r] <= tol * math.log(10) / 2).all())
        if finished or done == max_sweeps:
            break
        before, basis, down = values, torch.linalg.qr(found.X)[0], not down
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


def _unfinished(values: Tensor, before: Tensor) -> Tensor:
    """What a geometric series leaves after its last step, with the rate that theory promises."""
    change = (values - before).abs().nan_to_num(nan=0.0)
    last = values.masked_fill(values == -torch.inf, torch.inf).amin(-1, keepdim=True)
    rate = (2 * (last - values)).exp().nan_to_num(nan=0.0, posinf=0.0).clamp(max=0.9)
    return change / (1 - rate)


def _profile(
    way: Sweeper, parts: Decomposition, found: Sweep, basis: Tensor, down: bool, c: int
) -> tuple[Tensor, Tensor]:
    """One more sweep, up, from the right singular vectors: profile and what it ends apart from."""
    assert parts.left is not None
    assert parts.right is not None
    V = found.X @ parts.left if down else basis @ parts.right
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
