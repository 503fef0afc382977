"""How large weights have to be for the activation that follows them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from signalprop.cures.followed.following import Use
from signalprop.errors import SignalpropError
from signalprop.theory.activations import Activation
from signalprop.theory.edge import CriticalPoint, critical_points
from signalprop.theory.maps import Moments

#: rectifiers that are bent instead of broken at zero: He's variance is in use for them
SMOOTH = frozenset("elu celu gelu silu swish mish softplus hardswish relu6".split())


def slope_of(use: Use) -> float | None:
    """The negative slope of a rectifier: of PReLU, the root of the mean square over channels.

    Args:
        use: an activation.

    Returns:
        The slope, 0 for ReLU; None for what is no broken line with its kink at 0.
    """
    module, settings = use.module, use.settings
    match use.op:
        case "relu":
            return 0.0
        case "leaky_relu":
            return float(_argument(module, settings, 1, "negative_slope", 0.01))
        case "prelu":
            weight = (
                module.weight
                if isinstance(module, nn.PReLU)
                else settings.get(1, settings.get("weight"))
            )
            if not isinstance(weight, Tensor):
                return None
            return float(weight.detach().double().square().mean().sqrt())
        case "rrelu":
            lower = float(_argument(module, settings, 1, "lower", 1 / 8))
            upper = float(_argument(module, settings, 2, "upper", 1 / 3))
            # the mean square of a uniform slope
            return math.sqrt((lower * lower + lower * upper + upper * upper) / 3)
        case "threshold":
            at = float(_argument(module, settings, 1, "threshold", 0.0))
            return 0.0 if at == 0.0 else None
    return None


def activation_of(use: Use) -> Activation:
    """The function of an activation in float64, with its kinks.

    Args:
        use: an activation.

    Returns:
        The function.
    """
    slope = slope_of(use)
    if slope is not None:
        return Activation.of(nn.LeakyReLU(slope))
    return Activation.of(use.module if use.module is not None else use.function)


def gain(use: Use | None) -> float:
    """G for weights of variance g^2 / fan_in and biases 0 in front of an activation.

    - none: 1, which keeps the variance (LeCun)
    - a rectifier of negative slope a: sqrt(2 / (1 + a^2)) (He et al. 2015, eq. 15)
    - a bounded odd one (tanh): 1 / phi'(0), the edge of chaos (Poole et al. 2016)
    - one with a stable fixed point on the edge (sigmoid): the edge; for sigmoid 10.15
    - others (SELU, GELU, SiLU, ELU): 1 / sqrt(E[phi(z)^2]), which keeps a mean square of 1; for
      SELU 1, for GELU 1.53

    Args:
        use: the activation, or None.

    Returns:
        The gain.
    """
    if use is None:
        return 1.0
    slope = slope_of(use)
    if slope is not None:
        return math.sqrt(2.0 / (1.0 + slope * slope))
    phi = activation_of(use)
    at = np.array([0.0, 0.3, 1.0, 3.0])
    odd = np.allclose(phi.value(at), -phi.value(-at), atol=1e-12)
    if odd and phi.slope(at)[0] > 0 and abs(phi.value(at)[3]) < 3 * phi.slope(at)[0]:
        return 1.0 / float(phi.slope(at)[0])
    settled = [p for p in critical_points(phi, 0.0) if p.stable and p.q_star > 0]
    if settled and use.op not in SMOOTH:
        return math.sqrt(settled[0].weight_variance)
    return 1.0 / math.sqrt(float(Moments(phi).square(1.0)))


def critical(use: Use | None, bias_variance: float) -> CriticalPoint:
    """Weight and bias variance on the edge of chaos, chi_1 = 1, for an activation.

    Args:
        use: the activation, or None for a linear layer.
        bias_variance: sigma_b^2 that is asked for. Rectifiers have an edge at 0 only, which is
            then taken.

    Returns:
        The point: the stable one of smallest weight variance; where none is stable (GELU, SiLU),
        the one of smallest weight variance.

    Raises:
        SignalpropError: there is no edge.
    """
    if use is None:
        return CriticalPoint(1.0, 0.0, math.nan, True)
    phi = activation_of(use)
    points = critical_points(phi, bias_variance) or critical_points(phi, 0.0)
    if not points:
        raise SignalpropError(f"{use.op} has no edge of chaos at bias variance {bias_variance:g}")
    return next((p for p in points if p.stable), points[0])


def _argument(
    module: nn.Module | None, settings: dict[int | str, object], at: int, name: str, default: float
) -> float:
    value = (
        getattr(module, name)
        if module is not None
        else settings.get(at, settings.get(name, default))
    )
    if isinstance(value, (int, float)):
        return float(value)
    return float(value.detach()) if isinstance(value, torch.Tensor) else default
