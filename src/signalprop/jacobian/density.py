"""The density of singular values by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017).

From Golub-Kahan bidiagonalisations of J, which keep small values better than Lanczos on J^T J does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from signalprop.jacobian.basis import negligible
from signalprop.jacobian.exact import finite
from signalprop.jacobian.norms import student
from signalprop.jacobian.operator import Operator, working
from signalprop.jacobian.probes import gaussian, generator_of

#: ln s of what counts as zero
_LEAST = -700.0
#: share of the distance of two nodes by which a line between them may be off, from experiment
LINE = 0.1


@dataclass(frozen=True)
class Density:
    """The distribution of the singular values of J on the input side, as weighted points.

    What a random unit input vector sees: n values per sample, those beyond min(m, n) are zero. One
    Gauss quadrature per probe, exact for polynomials in s^2 up to degree 2 steps - 1.

    Attributes:
        nodes: s, (batch, probes, steps), float64.
        weights: share of the n values near the node; 1 in sum over steps, (batch, probes, steps).
        vectors: how many vectors went through the operator.
    """

    nodes: Tensor
    weights: Tensor
    vectors: int

    @property
    def zero(self) -> tuple[Tensor, Tensor]:
        """Share of the n values that is zero, and its standard error over the probes, (batch,)."""
        found = (self.weights * (self.nodes == 0)).sum(2)
        return _mean(found)

    def cumulative(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the n values that is at most s.

        A node stands for what lies around it, so half its weight counts at the node and the
        distribution runs straight between nodes, in log s (the Gauss rule's own distribution stays
        within a weight of the truth: Chebyshev, Markov & Stieltjes).

        Args:
            at: increasing s > 0, (g,).

        Returns:
            The mean over probes and its standard error, (batch, g) each.
        """
        found = self._each(at.to(self.nodes))
        return _mean(found)

    def density(self, at: Tensor, *, width: float = 0.15) -> Tensor:
        """Share of the n values per unit of ln s, smoothed by a Gaussian; zeros do not show.

        Args:
            at: s > 0, (g,).
            width: standard deviation of the Gaussian, in nats.

        Returns:
            (batch, g)
        """
        at = at.to(self.nodes).log()
        there = self.nodes > 0
        log = self.nodes.clamp_min(torch.finfo(torch.float64).tiny).log()
        z = (at[:, None, None, None] - log) / width
        share = torch.exp(-z.square() / 2) * self.weights * there
        return (share.sum(3).mean(2) / (width * math.sqrt(2 * math.pi))).mT

    def quantiles(self, at: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """The s below which a share of the n values lies, from every probe by itself.

        Args:
            at: shares between 0 and 1.

        Returns:
            The mean over probes and its error, (batch, len(at)) each: the standard error, and what
            a straight line between two nodes may hide: a share of their distance, or all of it
            below the second, where values may lie anywhere down to zero.
        """
        log, shares = self._sorted()
        wanted = log.new_tensor(at).expand(*log.shape[:2], -1).contiguous()
        right = torch.searchsorted(shares, wanted)
        left, right = (right - 1).clamp_min(0), right.clamp(max=log.shape[2] - 1)
        low, high = log.gather(2, left), log.gather(2, right)
        part = _part(wanted, shares.gather(2, left), shares.gather(2, right))
        between = low * (1 - part) + high * part
        # below the first node of all, and up to the share of the zeros, there is no line
        found = torch.where(low > _LEAST, between, torch.where(part > 0, high, low)).exp()
        found = torch.where(found > 1e-300, found, 0)
        hidden = _hidden(log, right, found).mean(1)
        value, error = _mean(found)
        return value, (error.square() + hidden.square()).sqrt()

    def _each(self, at: Tensor) -> Tensor:
        """Every probe's distribution, (batch, probes, g)."""
        log, shares = self._sorted()
        wanted = at.log().expand(*log.shape[:2], -1).contiguous()
        right = torch.searchsorted(log, wanted, right=True)
        left, inner = (right - 1).clamp_min(0), right.clamp(max=log.shape[2] - 1)
        low = log.gather(2, left)
        part = torch.where(low > _LEAST, _part(wanted, low, log.gather(2, inner)), 0)
        found = shares.gather(2, left) * (1 - part) + shares.gather(2, inner) * part
        return torch.where(right == 0, 0, torch.where(right == log.shape[2], 1, found))

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Increasing ln s and the share up to the middle of each node; zeros count whole."""
        s, order = self.nodes.sort(2)
        weights = self.weights.gather(2, order)
        shares = weights.cumsum(2) - torch.where(s > 0, weights / 2, 0)
        return s.log().clamp_min(_LEAST).contiguous(), shares.contiguous()


def _mean(found: Tensor) -> tuple[Tensor, Tensor]:
    """Over probes, and its standard error, widened for few of them as Student's t is."""
    count = found.shape[1]
    return found.mean(1), found.std(1) / math.sqrt(count) * student(count)


def _hidden(log: Tensor, right: Tensor, found: Tensor) -> Tensor:
    """By how much a quantile below node `right` (and above the one before) may be off for that."""
    s = torch.where(log > _LEAST, log.exp(), 0.0)
    last = s.shape[2] - 1
    first = (s == 0).sum(2, keepdim=True).clamp(max=last)  # the smallest that is not zero
    upper = right.clamp(max=last).maximum((first + 1).clamp(max=last))
    apart = s.gather(2, upper) - s.gather(2, (upper - 1).maximum(first))
    lowest = right <= first + 1
    share = torch.where(lowest, 1.0, LINE)
    return torch.where(found > 0, (share * apart).minimum(found), 0.0)


def _part(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ((x - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)


def density(
    op: Operator,
    *,
    steps: int = 30,
    probes: int = 10,
    generator: torch.Generator | None = None,
) -> Density:
    """The density of the singular values, without the matrix.

    For maps too wide for `exact.singular_values`: it takes 2 steps probes vectors where that takes
    min(m, n). Values below about s_1 / steps are not told apart: they share the smallest node; and
    below 1e-5 s_1 in float32 they are zero.

    Args:
        op: (m, n) per sample.
        steps: nodes per probe; fewer where the space is exhausted (rank-deficient J: the rest has
            no weight).
        probes: random starts; the error falls with the root of n probes.
        generator: where random numbers come from; seed 0 without one.

    Returns:
        Nodes and weights. Cost: 2 steps probes vectors, of which all are kept.

    Raises:
        SignalpropError: where the Jacobian is not finite.
    """
    steps = min(steps, op.columns, op.rows + 1)
    drop, dtype = negligible(op.dtype), working(op.dtype)
    v = gaussian(op, op.columns, probes, generator_of(generator))
    v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    V = torch.zeros((steps, op.batch, op.columns, probes), dtype=dtype, device=op.device)
    U = torch.zeros((steps, op.batch, op.rows, probes), dtype=dtype, device=op.device)
    B = torch.zeros((op.batch, probes, steps, steps), dtype=torch.float64, device=op.device)
    longest = torch.zeros((op.batch, 1, probes), dtype=dtype, device=op.device)
    for j in range(steps):
        V[j] = v
        W = op.apply(v)
        finite(W)
        u, alpha, longest = _next(W, U[:j], longest, drop)
        U[j], B[:, :, j, j] = u, alpha[:, 0].double()
        if j + 1 < steps:
            v, beta, longest = _next(op.adjoint(u), V[: j + 1], longest, drop)
            B[:, :, j, j + 1] = beta[:, 0].double()
    _, s, Vh = torch.linalg.svd(B)
    weights = Vh[..., 0].square()
    s = torch.where(s > drop * s[..., :1], s, 0.0)
    s = torch.where(weights < 1e-14, s[..., :1], s)  # not there: where it does not disturb
    return Density(s, weights, 2 * steps * probes)


def _next(W: Tensor, old: Tensor, longest: Tensor, drop: float) -> tuple[Tensor, Tensor, Tensor]:
    """W without its parts along earlier vectors: unit vectors, their lengths, the longest so far.

    A vector that is only rounding is zero; so are all that follow it.

    Args:
        W: (batch, n, probes).
        old: (steps so far, batch, n, probes).
        longest: (batch, 1, probes).
        drop: share of the longest that is rounding.

    Returns:
        (batch, n, probes), then (batch, 1, probes) twice.
    """
    for _ in range(2):
        W = W - (old * (old * W).sum(2, keepdim=True)).sum(0)
    length = torch.linalg.vector_norm(W, dim=1, keepdim=True)
    longest = longest.maximum(length)
    length = torch.where(length > drop * longest, length, 0.0)
    unit = torch.where(length > 0, W / torch.where(length > 0, length, 1.0), 0.0)
    return unit, length, longest
