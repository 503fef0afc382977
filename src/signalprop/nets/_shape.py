"""The numbers that shape a smooth activation: a 2 x 2 system, by quadrature and Newton's method."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Phi = Callable[[Tensor], Tensor]

#: nodes of the trapezoid rule over +-10 standard deviations, which converges exponentially for
#: analytic phi; the fine ones are for the rest
_WIDEST, _COARSE, _FINE = 10.0, 801, 20001
#: where solutions are looked for: ln alpha and beta, and from how many valleys of that grid
_LOGS = torch.linspace(math.log(1e-3), math.log(5.0), 38, dtype=torch.float64, device="cpu")
_BETAS = torch.linspace(-5.0, 5.0, 101, dtype=torch.float64, device="cpu")
_VALLEYS = 8
#: Newton's method: steps, halvings of a step, and the residual, as a share of the excess, it is
#: done at (rounding leaves about 1e-16 / excess)
_STEPS, _HALVINGS, _CLOSE = 30, 10, 1e-9


class Shape(NamedTuple):
    """gamma (phi(alpha u + beta) + delta)."""

    alpha: float
    beta: float
    gamma: float
    delta: float


def shape_of(phi: Phi, zeta: float, depth: int) -> Shape:
    """Alpha, beta, gamma and delta that fulfil the four conditions of DKS.

    delta and gamma follow from alpha and beta by E[f] = 0 and E[f^2] = 1. What is left is
    E[f f' z] = 1 and E[f'^2] = zeta^(1/depth), in terms of which both residuals are measured:
    they shrink with zeta^(1/depth) - 1 as the network gets deeper and f nearly linear.

    Args:
        phi: the activation.
        zeta: slope of the composed C at 1.
        depth: number of layers.

    Returns:
        The four numbers.

    Raises:
        ValueError: there is no such shape, or phi is not an elementwise differentiable function.
    """
    excess = math.expm1(math.log(zeta) / depth)
    name = getattr(phi, "__name__", None) or repr(phi)
    try:
        # whatever device or gradient mode the network is built under
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            found = _solved(phi, excess)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} cannot be shaped: it has to be an elementwise, twice differentiable function "
            f"that takes float64 ({error})"
        ) from error
    if found is None:
        raise ValueError(
            f"no scale and shift of {name} fulfil the conditions for zeta={zeta:g} over {depth} "
            "layers; take another activation, softplus or tanh for example"
        )
    return found


def _solved(phi: Phi, excess: float) -> Shape | None:
    """The solution that amplifies least; of two mirrored ones that with beta > 0."""
    found = [
        solved for start in _starts(phi, excess) if (solved := _newton(phi, start, _COARSE, excess))
    ]
    if not found:
        return None
    least = min(shape.gamma for shape in found)
    best = max((s for s in found if s.gamma < least * (1.0 + 1e-4)), key=lambda s: s.beta)
    return _newton(phi, (math.log(best.alpha), best.beta), _FINE, excess)


def _starts(phi: Phi, excess: float) -> list[tuple[float, float]]:
    """(ln alpha, beta) of the grid's deepest valleys."""
    z = torch.linspace(-_WIDEST, _WIDEST, 601, dtype=torch.float64)
    rows = [
        # one alpha at a time: (betas, nodes)
        torch.stack(_residuals(phi, torch.full_like(_BETAS, alpha), _BETAS, z, excess)[:2])
        for alpha in _LOGS.exp().tolist()
    ]
    sizes = torch.stack(rows).detach().norm(dim=1).nan_to_num(math.inf)
    around = -torch.nn.functional.max_pool2d(-sizes[None, None], 3, 1, 1)[0, 0]
    valleys = torch.argwhere((sizes == around) & sizes.isfinite()).tolist()
    valleys.sort(key=lambda at: float(sizes[at[0], at[1]]))
    return [(float(_LOGS[i]), float(_BETAS[j])) for i, j in valleys[:_VALLEYS]]


def _newton(phi: Phi, start: tuple[float, float], nodes: int, excess: float) -> Shape | None:
    """The solution next to `start`, by damped steps; None where they lead to none."""
    z = torch.linspace(-_WIDEST, _WIDEST, nodes, dtype=torch.float64)
    point = torch.tensor(start, dtype=torch.float64)
    value, slope, shape = _at(phi, point, z, excess)
    for _ in range(_STEPS):
        size = float(value.norm())
        if size < _CLOSE:
            return shape
        if not math.isfinite(size) or not abs(float(torch.linalg.det(slope))) > 1e-14:
            return None
        step = torch.linalg.solve(slope, value)
        # never further than one unit: beyond that the local picture says nothing
        step = step / max(1.0, float(step.norm()))
        for _ in range(_HALVINGS):
            tried = _at(phi, point - step, z, excess)
            if float(tried[0].norm()) < size:
                break
            step = 0.5 * step
        else:
            return None
        point, (value, slope, shape) = point - step, tried
    return None


def _at(phi: Phi, point: Tensor, z: Tensor, excess: float) -> tuple[Tensor, Tensor, Shape]:
    """Residuals at (ln alpha, beta), their Jacobian, and the shape that belongs to them."""
    point = point.detach().requires_grad_()
    first, second, gamma, delta = _residuals(phi, point[:1].exp(), point[1:], z, excess)
    both = torch.cat([first, second])
    slope = torch.stack([torch.autograd.grad(r, point, retain_graph=True)[0] for r in both])
    alpha, beta = point.detach().tolist()
    return both.detach(), slope, Shape(math.exp(alpha), beta, gamma.item(), delta.item())


def _residuals(
    phi: Phi, alpha: Tensor, beta: Tensor, z: Tensor, excess: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is missing to E[f f' z] = 1 and E[f'^2] = 1 + excess, as shares of the excess.

    Args:
        phi: the activation.
        alpha: scales, (points,).
        beta: shifts, (points,).
        z: the nodes.
        excess: of C'(1) above 1.

    Returns:
        Both residuals, gamma and delta, (points,) each.

    Raises:
        TypeError: phi is not elementwise.
    """
    weights = torch.exp(-0.5 * z * z)
    weights = weights / weights.sum()
    u = alpha[:, None] * z + beta[:, None]
    u = u if u.requires_grad else u.requires_grad_()
    values = phi(u)
    if not isinstance(values, Tensor) or values.shape != u.shape:
        raise TypeError("it does not give a tensor of the shape it gets")
    (slopes,) = torch.autograd.grad(values.sum(), u, create_graph=True)
    delta = -(values @ weights)
    centred = values + delta[:, None]
    gamma = (centred.square() @ weights).rsqrt()
    slopes = slopes * alpha[:, None]
    q = gamma.square() * ((centred * slopes * z) @ weights)
    chi = gamma.square() * (slopes.square() @ weights)
    return (q - 1.0) / excess, (chi - 1.0 - excess) / excess, gamma, delta
