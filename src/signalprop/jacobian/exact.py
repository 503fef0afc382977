"""The matrix of an operator, and all its singular values."""

from __future__ import annotations

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.jacobian.basis import rounding
from signalprop.jacobian.operator import Operator, working
from signalprop.jacobian.values import Values

#: bytes that the matrices of a batch may take
MATRICES = 1 << 30
#: vectors that go into the operator at a time
STEP = 256


def matrices(op: Operator, *, budget: int = MATRICES) -> Tensor:
    """J of every sample, column by column or row by row.

    Args:
        op: (m, n) per sample.
        budget: bytes that the result may take.

    Returns:
        (batch, m, n), float32 or float64. Cost: min(m, n) vectors through the operator: rows by
        J^T u where m <= n, columns by J v otherwise.

    Raises:
        SignalpropError: where the matrices do not fit into the budget.
    """
    dtype, m, n = working(op.dtype), op.rows, op.columns
    needed = op.batch * m * n * dtype.itemsize
    if needed > budget:
        raise SignalpropError(
            f"{op.batch} Jacobians of {m} x {n} take {needed / 2**30:.1f} GiB, "
            f"{budget / 2**30:.1f} GiB are allowed: take fewer samples, ends that are less wide, "
            "or the largest singular values only"
        )
    out = torch.empty((op.batch, m, n), dtype=dtype, device=op.device)
    side = min(m, n)
    for start in range(0, side, STEP):
        stop = min(start + STEP, side)
        unit = torch.zeros((stop - start, side), dtype=dtype, device=op.device)
        unit[torch.arange(stop - start), torch.arange(start, stop)] = 1
        unit = unit.T.expand(op.batch, -1, -1)
        if m <= n:
            out[:, start:stop] = op.adjoint(unit).mT
        else:
            out[:, :, start:stop] = op.apply(unit)
    return out


def singular_values(op: Operator, *, budget: int = MATRICES) -> Values:
    """All singular values, largest first.

    Errors: 4 eps sqrt(max(m, n)) s_1, see `basis.rounding`; values below twice that or
    eps max(m, n) s_1 are noise. A deep product loses its small values this way: `product.py` has
    their logarithms.

    Args:
        op: (m, n) per sample.
        budget: bytes that the matrices may take.

    Returns:
        min(m, n) values per sample. Cost: min(m, n) vectors through the operator and an SVD.

    Raises:
        SignalpropError: where the matrices do not fit into the budget, or are not finite.
    """
    J = matrices(op, budget=budget)
    finite(J)
    s = _values(J)
    errors = (rounding(op) * s[:, :1]).expand_as(s).clone()
    noise = min(max(op.rows, op.columns) * torch.finfo(op.dtype).eps, 0.5) * s[:, :1]
    reliable = (errors < 0.5 * s) & (s > noise)
    converged = torch.ones(op.batch, dtype=torch.bool, device=op.device)
    return Values(s, errors, reliable, "exact", converged, min(op.rows, op.columns))


def _values(J: Tensor) -> Tensor:
    """Singular values in float64.

    Of float32 matrices as roots of eigenvalues of J J^T in float64: a fifth faster than their
    SVD, and off by sqrt(min(m, n) eps64) s_1 at most, 1e-7 s_1, which is below what float32 holds.

    Args:
        J: (batch, m, n).

    Returns:
        (batch, min(m, n)), largest first.
    """
    if J.dtype == torch.float64:
        return torch.linalg.svdvals(J)
    found = []
    for part in J.split(len(J) if J.is_cuda else 1):  # a CPU's cache holds one
        wide = part.double()
        gram = wide @ wide.mT if J.shape[1] <= J.shape[2] else wide.mT @ wide
        found.append(torch.linalg.eigvalsh(gram))
    return torch.cat(found).flip(-1).clamp_min(0).sqrt()


def bottom(op: Operator, k: int, *, budget: int = MATRICES) -> Values:
    """The k smallest singular values, largest of them first, from all of them.

    There is no cheaper way that can be trusted: a Krylov space of J^T J finds the largest values
    first, and the smallest only when it is nearly the whole space; to find them first needs solving
    with J. Values that are not `reliable` are noise: see `product.py` for a deep product's.

    Args:
        op: (m, n) per sample.
        k: how many; at most min(m, n) are there.
        budget: bytes that the matrices may take.

    Returns:
        (batch, min(k, m, n)). Cost as `singular_values`.

    Raises:
        SignalpropError: where the matrices do not fit into the budget, or are not finite.
    """
    if k < 1:
        raise SignalpropError(f"{k} singular values: at least one has to be asked for")
    try:
        found = singular_values(op, budget=budget)
    except SignalpropError as error:
        raise SignalpropError(f"{error}; the smallest need the whole matrix") from error
    k = min(k, found.values.shape[1])
    return Values(
        found.values[:, -k:],
        found.errors[:, -k:],
        found.reliable[:, -k:],
        found.method,
        found.converged,
        found.vectors,
    )


def log_determinant(J: Tensor) -> tuple[Tensor, Tensor]:
    """Sign and log|det| in nats of square matrices (batch, n, n), by LU; 0 and -inf if singular."""
    sign, log = torch.linalg.slogdet(J.double())
    return sign, log


def finite(vectors: Tensor) -> None:
    """Refuse numbers that are not numbers.

    Args:
        vectors: what came out of an operator.

    Raises:
        SignalpropError: where an entry is inf or nan.
    """
    if not torch.isfinite(vectors).all():
        raise SignalpropError("the Jacobian has entries that are inf or nan")
