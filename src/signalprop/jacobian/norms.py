"""||J||_F and the sum of s^4 from a few random vectors, with standard errors.

Flat spectra: Hutchinson (1990), mean |J^T g|^2 over random signs g. Decaying ones: what a low-rank
approximation of M = J J^T holds is counted exactly and only the rest is estimated (Hutch++, Meyer,
Musco, Musco & Woodruff 2021), every probe serving for both by being left out of the approximation
that it is tested on (XNysTrace; Epperly, Tropp & Webber 2024, section 2.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from signalprop.jacobian.basis import negligible, orthonormal
from signalprop.jacobian.exact import MATRICES, finite, matrices
from signalprop.jacobian.operator import Operator, working
from signalprop.jacobian.probes import generator_of, signs

#: probes at a time
PILOT = 8
#: sides up to which the matrix itself is cheaper
SMALL = 32


@dataclass(frozen=True)
class Moments:
    """Sums over the singular values of every sample.

    Attributes:
        squares: sum of s^2 = ||J||_F^2, (batch,), float64.
        squares_error: its standard error.
        fourths: sum of s^4 = ||J^T J||_F^2; None where not asked for.
        fourths_error: its standard error.
        columns: n.
        method: "exact", "hutchinson" or "deflated".
        converged: (batch,), whether the asked tolerance was met.
        vectors: how many vectors went through the operator.
    """

    squares: Tensor
    squares_error: Tensor
    fourths: Tensor | None
    fourths_error: Tensor | None
    columns: int
    method: str
    converged: Tensor
    vectors: int

    @property
    def frobenius(self) -> tuple[Tensor, Tensor]:
        """||J||_F and its standard error."""
        value = self.squares.sqrt()
        return value, torch.where(value > 0, self.squares_error / (2 * value), 0.0)

    @property
    def mean_square(self) -> tuple[Tensor, Tensor]:
        """||J||_F^2 / n, by what a random signal's mean square is multiplied, and its error."""
        return self.squares / self.columns, self.squares_error / self.columns


def moments(
    op: Operator,
    *,
    tol: float = 0.01,
    fourth: bool = True,
    vectors: int | None = None,
    budget: int = MATRICES,
    generator: torch.Generator | None = None,
) -> Moments:
    """Sum of s^2, and of s^4 where asked, until ||J||_F is known to `tol`.

    Eight probes at a time, Hutchinson's way is left for the deflated one as soon as it would need
    more than 32 of them. An operator that is smaller than its probes is formed.

    Args:
        op: (m, n) per sample.
        tol: standard error of ||J||_F, relative, that is enough in every sample; the sum of s^4
            comes out of the same probes, with whatever error that gives.
        fourth: whether the sum of s^4 is wanted; Hutchinson needs J as well as J^T for it.
        vectors: how many vectors may go through the operator; min(m, n) unless said, which is where
            the matrix itself is cheaper and, within the budget, is formed; else 512.
        budget: bytes that the matrix may take.
        generator: where random numbers come from; seed 0 without one.

    Returns:
        The sums. Errors: Hutchinson's are standard errors over the probes, the deflated way's come
        from a jackknife, see `_jackknife`. Twice the error covers in 88 to 100% of cases; in less
        for Hutchinson's with few probes on a single outlying direction. Cost: 8 vectors at least;
        48 to 64 for 1% of a 50-layer network at He's or Glorot's initialisation.

    Raises:
        SignalpropError: where the Jacobian is not finite.
    """
    side = min(op.rows, op.columns)
    fits = op.batch * op.rows * op.columns * working(op.dtype).itemsize <= budget
    if fits and side <= SMALL:
        return _formed(op, budget, 0, fourth)
    most = vectors if vectors is not None else (side if fits else 512)
    probes = _Probes(op, generator_of(generator))
    method, step, found = "hutchinson", PILOT, None
    while found is None:
        probes.draw(step)
        squares = probes.hutchinson()
        error = float(_relative(*squares).amax())
        if error > tol:
            # by how many probes more Hutchinson alone would get there
            far = probes.count * (error / tol) ** 2 > 4 * PILOT
            if far or method == "deflated":
                method = "deflated"
                squares = probes.deflated()
                error = float(_relative(*squares).amax())
                step = PILOT if error > 2 * tol else PILOT // 2
        more = step * (2 if method == "deflated" else 1)
        if error <= tol:
            found = squares
        elif probes.vectors + more > most:
            if fits and vectors is None:
                return _formed(op, budget, probes.vectors, fourth)
            found = squares
    converged = _relative(*found) <= tol
    four: tuple[Tensor | None, Tensor | None] = (None, None)
    if fourth:
        sums = probes.deflated_fourth() if probes.based else probes.hutchinson_fourth()
        four = _with_rounding(op, *sums)
    found = _with_rounding(op, *found)
    return Moments(*found, *four, op.columns, method, converged, probes.vectors)


def frobenius(
    op: Operator, *, tol: float = 0.01, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """||J||_F and its standard error, (batch,) each: see `moments`.

    Args:
        op: (m, n) per sample.
        tol: relative standard error that is enough in every sample.
        generator: where random numbers come from.

    Returns:
        The norm, its standard error.

    Raises:
        SignalpropError: where the Jacobian is not finite.
    """
    return moments(op, tol=tol, fourth=False, generator=generator).frobenius


class _Probes:
    """Random signs g, y = J^T g, and the approximation of M = J J^T on the span of all y."""

    def __init__(self, op: Operator, generator: torch.Generator) -> None:
        self.op, self.generator = op, generator
        dtype = working(op.dtype)
        self.count = self.vectors = self.based = 0
        self.Y = torch.zeros((op.batch, op.columns, 0), dtype=dtype, device=op.device)
        self.Q = self.Y
        self.whole = True  # whether no probe was left out of Q
        self.R = torch.zeros((op.batch, 0, 0), dtype=torch.float64, device=op.device)
        self.A = torch.zeros((op.batch, op.rows, 0), dtype=dtype, device=op.device)

    def draw(self, count: int) -> None:
        """More probes: `count` vectors through J^T."""
        Y = self.op.adjoint(signs(self.op, self.op.rows, count, self.generator))
        finite(Y)
        self.Y = torch.cat([self.Y, Y], 2)
        self.count += count
        self.vectors += count

    def hutchinson(self) -> tuple[Tensor, Tensor]:
        """Mean of |J^T g|^2."""
        return _mean(_squares(self.Y))

    def hutchinson_fourth(self) -> tuple[Tensor, Tensor]:
        """Mean of |J J^T g|^2 = |M g|^2."""
        self.vectors += self.count
        return _mean(_squares(self.op.apply(self.Y)))

    def deflated(self) -> tuple[Tensor, Tensor]:
        """||M_i||_* + what M_i misses of g_i^T M g_i, averaged over the probes."""
        value, error = _jackknife(*_squares_left_out(self._alone(), self.R, self._gram()))
        return value, error / math.sqrt(2)  # pairs of probes, which count twice, are all there is

    def deflated_fourth(self) -> tuple[Tensor, Tensor]:
        """||M_i||_F^2 + |M g_i|^2 - |M_i g_i|^2, averaged over the probes."""
        return _jackknife(*_fourths_left_out(self._alone(), self.R, self._gram()))

    def _base(self) -> None:
        """Take the probes that came since into Q, R and A = J Q."""
        if self.based == self.count:
            return
        Y = self.Y[:, :, self.based :]
        floor = negligible(self.op.dtype) * torch.linalg.vector_norm(self.Y, dim=1).amax(-1)
        new = orthonormal(Y, self.Q, floor)
        self.Q = torch.cat([self.Q, new.basis], 2)
        below = self.R.new_zeros((len(Y), Y.shape[2], self.R.shape[2]))
        beside = torch.cat([new.along, new.own], 1).double()
        self.R = torch.cat([torch.cat([self.R, below], 1), beside], 2)
        self.A = torch.cat([self.A, self.op.apply(new.basis)], 2)
        self.whole = self.whole and bool(new.kept.all())
        self.vectors += Y.shape[2]
        self.based = self.count

    def _gram(self) -> Tensor:
        A = self.A.double()
        return A.mT @ A

    def _alone(self) -> Tensor:
        """s_i: the direction within Q that is lost without probe i; zero where none is.

        The rows of R's pseudo-inverse: r_i.s_i is what of y_i is orthogonal to all other y.

        Returns:
            (batch, p, p), unit columns or zero.
        """
        self._base()
        if self.whole:
            inverse = torch.linalg.inv(self.R)
        else:
            inverse = torch.linalg.pinv(self.R, rtol=0.1 * negligible(self.op.dtype))
        needed = torch.einsum("zij,zji->zi", inverse, self.R) > 1 - 1e-6
        length = torch.linalg.vector_norm(inverse, dim=2)
        unit = inverse / length.clamp_min(torch.finfo(torch.float64).tiny)[:, :, None]
        return (unit * needed[:, :, None]).mT


# ---- leaving probes out ------------------------------------------------------------------------
#
# Y = Q R, A = J Q. Without probe j the approximation of M is M_j = A (1 - P) A^T, P = s_j s_j^T;
# without two of them P projects on s_i and s_j, whose cosine is c. s_i.r_j = 0 for i != j. With
# G = A^T A, P r_j = w_j, and everything below follows; index [i, j] leaves i out as well, [j] not.


def _squares_left_out(s: Tensor, R: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """For s^2, tr M_j + g_j^T (M - M_j) g_j = tr G - tr G P + |P r_j|^2: (batch, p), (.., p, p)."""
    rho = (s * R).sum(1).square()
    whole = G.diagonal(dim1=1, dim2=2).sum(1)[:, None]
    k = s.mT @ G @ s
    kd, (c, rest) = k.diagonal(dim1=1, dim2=2), _cosines(s)
    lost = (kd[:, :, None] + kd[:, None, :] - 2 * k * c) / rest
    return whole - kd + rho, whole[:, :, None] - lost + rho[:, None, :] / rest


def _fourths_left_out(s: Tensor, R: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """For s^4, tr (G (1 - P))^2 + 2 r_j.G w_j - w_j.G w_j: (batch, p) and (batch, p, p)."""
    rho = (s * R).sum(1)
    Gs = G @ s
    g, g2, h = s.mT @ Gs, Gs.mT @ Gs, Gs.mT @ R  # h[i, j] = s_i.G r_j
    gd, g2d, hd = (x.diagonal(dim1=1, dim2=2) for x in (g, g2, h))
    whole = G.square().sum((1, 2))[:, None]
    single = whole - 2 * g2d + gd.square() + 2 * rho * hd - rho.square() * gd
    c, rest = _cosines(s)
    gi, gj, g2i, g2j = gd[:, :, None], gd[:, None, :], g2d[:, :, None], g2d[:, None, :]
    # the 2 x 2 matrix C^-1 S^T G S, times `rest`: its trace of the square is tr (P G)^2
    aa, ab, ba, bb = gi - c * g, g - c * gj, g - c * gi, gj - c * g
    held = -2 * (g2i + g2j - 2 * c * g2) / rest + (aa**2 + 2 * ab * ba + bb**2) / rest**2
    rj = rho[:, None, :] / rest
    missed = 2 * rj * (hd[:, None, :] - c * h) - rj.square() * (gj - 2 * c * g + c.square() * gi)
    return single, whole[:, :, None] + held + missed


def _cosines(s: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines c of the directions, and 1 - c^2; the diagonal means nothing."""
    c = s.mT @ s
    return c, (1 - c.square()).clamp_min(1e-12)


def _jackknife(single: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate, and its standard error from leaving out one probe altogether.

    The probes share one approximation, so the spread of `single` alone is too small by up to a
    factor of four (measured). The jackknife's is not; it counts what pairs of probes do together
    twice (Efron & Stein 1981; Epperly & Tropp 2024 for low-rank approximations). Widened for few
    probes as Student's t is.

    Args:
        single: (batch, p), every probe tested on the approximation without it.
        pair: (batch, p, p), probe j tested on the approximation without i and j.

    Returns:
        (batch,) each.
    """
    p = single.shape[1]
    off = 1 - torch.eye(p, dtype=pair.dtype, device=pair.device)
    without = (pair * off).sum(2) / (p - 1)
    variance = (p - 1) / p * (without - without.mean(1, keepdim=True)).square().sum(1)
    return single.mean(1), variance.sqrt() * student(p)


def _squares(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).square()


def _mean(found: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over probes, and its standard error with Student's t against the normal's 1.96."""
    count = found.shape[1]
    error = found.std(1) / math.sqrt(count)
    return found.mean(1), error * student(count)


def student(count: int) -> float:
    """Student's 97.5% quantile over the normal's, 1.96, within 1% from 5 on."""
    count = max(count, 2)
    return 1 + 1.24 / (count - 1) + 1.7 / (count - 1) ** 2


def _with_rounding(op: Operator, sums: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Where all is counted exactly, rounding is left: at most 7 eps in float32, as measured."""
    return sums, (error.square() + (4 * torch.finfo(op.dtype).eps * sums).square()).sqrt()


def _relative(squares: Tensor, error: Tensor) -> Tensor:
    """Standard error of the root, relative; 0 for a zero matrix."""
    return torch.where(squares > 0, error / (2 * squares), 0.0)


def _formed(op: Operator, budget: int, spent: int, fourth: bool) -> Moments:
    J = matrices(op, budget=budget).double()
    finite(J)
    gram = J @ J.mT if op.rows <= op.columns else J.mT @ J
    squares, fourths = J.square().sum((1, 2)), gram.square().sum((1, 2))
    eps = torch.finfo(op.dtype).eps
    return Moments(
        squares,
        2 * eps * squares,
        fourths if fourth else None,
        4 * eps * fourths if fourth else None,
        op.columns,
        "exact",
        torch.ones(op.batch, dtype=torch.bool, device=op.device),
        spent + min(op.rows, op.columns),
    )
