"""What one operation of a traced network is expected to do to delta, from its own moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from signalprop.capture.trace import Site, Trace
from signalprop.errors import SignalpropError
from signalprop.theory.activations import NAMED, Activation
from signalprop.theory.quadrature import offset_expectation

Modules = Mapping[str, nn.Module]


class NoClosedFormError(Exception):
    """No closed form is known of an operation; the message says why."""


@dataclass(frozen=True)
class Gain:
    """The expected ln(|delta| below / |delta| above) of an operation.

    Attributes:
        nats: the expectation, from mean squares.
        formula: its closed form, with the numbers.
    """

    nats: float
    formula: str


def gain_of(site: Site, before: Site, trace: Trace, modules: Modules) -> Gain:
    """The expected effect of the operation at a site on delta.

    Args:
        site: where the operation's output was seen.
        before: where its input was seen.
        trace: the pass.
        modules: the model's modules by path.

    Returns:
        The gain.

    Raises:
        NoClosedFormError: none is known for it.
    """
    module = modules.get(site.module)
    if site.op == "mul" or (site.kind == "weights" and scalars(trace, site.module)):
        found = _by_scalar(site, before, trace)
        if found is not None:
            return found
    if site.kind == "weights":
        return _weights(site, before, trace, module)
    if site.kind == "slope":
        return _slope(site, before, module)
    if site.kind == "normalisation":
        return _normalisation(site, before, trace, module)
    if site.kind == "pooling":
        return _pooling(site, before, module)
    if isinstance(module, nn.Identity):
        return Gain(0.0, "identity")
    if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        p = module.p if trace.modes.get(site.module, trace.training) else 0.0
        return Gain(-0.5 * math.log1p(-p) if p < 1 else -math.inf, f"0.5 ln(1 / (1 - {p:g}))")
    raise NoClosedFormError(f"no closed form is known for {site.op}")


def _log(square: float) -> float:
    """Half the logarithm of a mean square."""
    return 0.5 * math.log(square) if square > 0 else -math.inf


# ---- learnt scalars ----------------------------------------------------------------------------

#: how closely a measured ratio has to meet the value of a parameter
_MEETS = 1e-3


def scalars(trace: Trace, path: str) -> list[float]:
    """Sizes |alpha| of a module's own parameters that are one number, as SkipInit and ReZero have.

    Args:
        trace: the pass.
        path: the module's path.

    Returns:
        Their absolute values.
    """
    weights = trace.weights.values()
    return [w.norm for w in weights if w.module == path and math.prod(w.shape) == 1]


def _by_scalar(site: Site, before: Site, trace: Trace) -> Gain | None:
    """Alpha x or x + b with one learnt number; which of them, the moments tell."""
    known = scalars(trace, site.module)
    if not known or site.shape != before.shape:
        return None
    seen, given = site.activation, before.activation
    if given.rms > 0:
        ratio = seen.rms / given.rms
        alpha = next((a for a in known if meets(ratio, a)), None)
        if alpha is not None:
            nats = math.log(alpha) if alpha > 0 else -math.inf
            return Gain(nats, f"ln |alpha| = ln {alpha:.3g}")
    moved = abs(seen.mean - given.mean)
    spread = max(seen.variance, given.variance)
    if site.op != "mul" and abs(seen.variance - given.variance) <= _MEETS * spread:
        close = _MEETS * max(math.sqrt(spread), abs(given.mean))
        if any(abs(moved - b) <= close + _MEETS * b for b in known):
            return Gain(0.0, "a learnt number added")
    return None


def meets(ratio: float, alpha: float) -> bool:
    """Whether a measured ratio is the absolute value of a parameter."""
    return abs(ratio - alpha) <= _MEETS * max(ratio, alpha)


# ---- weights -----------------------------------------------------------------------------------


def _weights(site: Site, before: Site, trace: Trace, module: nn.Module | None) -> Gain:
    if "embedding" in site.op or site.op == "bilinear":
        raise NoClosedFormError(f"no closed form is known for {site.op}")
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution(site, before, trace, module)
    outputs = site.shape[-1]
    # a parametrised weight (weight_norm, orthogonal) belongs to a module below
    prefix = f"{site.module}." if site.module else ""
    found = [
        w
        for w in trace.weights.values()
        if w.module == site.module and len(w.shape) == 2 and outputs in w.shape
    ]
    if isinstance(module, nn.Linear) and not found:
        square = float(module.weight.detach().double().square().sum())
    elif len(found) == 1:
        square = found[0].norm ** 2
    else:
        raise NoClosedFormError(
            f"which weights {prefix}{site.op} multiplies with was not seen"
            if not found
            else f"{len(found)} matrices of {site.module or 'the model'} fit its output"
        )
    gain = square / outputs
    return Gain(_log(gain), f"0.5 ln(|W|^2 / n_out) = 0.5 ln {gain:.3g}")


def _convolution(site: Site, before: Site, trace: Trace, module: nn.modules.conv._ConvNd) -> Gain:
    square = float(module.weight.detach().double().square().sum())
    channels = module.out_channels
    places, inputs = site.shape[2:], before.shape[2:]
    if len(places) != len(module.kernel_size) or len(inputs) != len(places):
        raise NoClosedFormError("the convolution's input was not seen with its own shape")
    if module.transposed:
        gain = square * math.prod(inputs) / (channels * math.prod(places))
        return Gain(_log(gain), f"0.5 ln(|W|^2 inputs / (c_out outputs)) = 0.5 ln {gain:.3g}")
    share = 1.0
    if module.padding_mode == "zeros":
        for d, (size, count) in enumerate(zip(inputs, places, strict=True)):
            share *= _share_of_taps(module, d, size, count)
    gain = square / channels * share
    return Gain(_log(gain), f"0.5 ln(|W|^2 / c_out x {share:.3g} of the taps) = 0.5 ln {gain:.3g}")


def _share_of_taps(module: nn.modules.conv._ConvNd, d: int, size: int, count: int) -> float:
    """Which share of a kernel's taps meets the input and not the padding, along a dimension."""
    kernel, step, apart = module.kernel_size[d], module.stride[d], module.dilation[d]
    if isinstance(module.padding, str):
        pad = (apart * (kernel - 1)) // 2 if module.padding == "same" else 0
    else:
        pad = int(module.padding[d])
    places = np.arange(count)[:, None] * step + np.arange(kernel) * apart - pad
    return float(((places >= 0) & (places < size)).mean())


# ---- activations -------------------------------------------------------------------------------


def activation_at(site: Site, module: nn.Module | None) -> Activation:
    """The activation function of a site.

    Args:
        site: where its output was seen.
        module: the module the site belongs to.

    Returns:
        The activation, as a module with its own parameters or as the function with its defaults.

    Raises:
        NoClosedFormError: it is not an elementwise function that is known.
    """
    own = module is not None and not module._modules and site.name.partition("#")[0] == site.module
    try:
        if own and module is not None:
            return _of_module(module)
        if site.op in NAMED:
            return Activation.of(site.op)
    except SignalpropError as error:
        raise NoClosedFormError(str(error)) from error
    raise NoClosedFormError(f"{site.op} is not an elementwise function that is known")


_SEEN: dict[str, Activation] = {}


def _of_module(module: nn.Module) -> Activation:
    if list(module.parameters()) or not type(module).__module__.startswith("torch.nn"):
        return Activation.of(module)
    key = f"{type(module).__qualname__} {module!r}"
    if key not in _SEEN:
        _SEEN[key] = Activation.of(module)
    return _SEEN[key]


def _slope(site: Site, before: Site, module: nn.Module | None) -> Gain:
    phi = activation_at(site, module)
    with np.errstate(over="ignore", invalid="ignore"):  # exp leaves the range of float64
        square = _mean(before, phi, lambda u: phi.slope(u) ** 2)
    if math.isnan(square):
        raise NoClosedFormError(f"the slope of {site.op} has no mean square here")
    return Gain(_log(square), f"0.5 ln E phi'^2 = 0.5 ln {square:.3g}")


def _mean(site: Site, phi: Activation, f: Callable[[np.ndarray], np.ndarray]) -> float:
    """E[f(u)] over a normal pre-activation with a site's measured mean and variance."""
    seen = site.activation
    if not (math.isfinite(seen.mean) and math.isfinite(seen.variance)):
        raise NoClosedFormError(f"{site.name} is not finite")
    return offset_expectation(phi, f, seen.mean, max(seen.variance, 0.0))


# ---- normalisation and pooling -----------------------------------------------------------------


def _normalisation(site: Site, before: Site, trace: Trace, module: nn.Module | None) -> Gain:
    seen, epsilon = before.activation, float(getattr(module, "eps", None) or 0.0)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _batch_norm(site, before, trace, module)
    elements = _normalised(site, module)
    if "rms" in site.op or "rms" in type(module).__name__.lower():
        scale, lost = seen.rms**2, 1
    elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)) or site.op in (
        "layer_norm",
        "group_norm",
    ):
        scale, lost = seen.variance, 2
    else:
        raise NoClosedFormError(f"no closed form is known for {site.op}")
    if elements <= lost:
        raise NoClosedFormError(f"it normalises over {elements} elements, which leaves nothing")
    nats = -_log(scale + epsilon) + _affine(site, trace) + _log(1.0 - lost / elements)
    return Gain(nats, f"-ln {math.sqrt(scale):.3g}, {lost} of {elements} directions removed")


def _normalised(site: Site, module: nn.Module | None) -> int:
    if isinstance(module, nn.GroupNorm):
        return math.prod(site.shape[1:]) // module.num_groups
    shape = getattr(module, "normalized_shape", None)
    return math.prod(shape) if isinstance(shape, Sequence) and shape else site.shape[-1]


def _affine(site: Site, trace: Trace) -> float:
    """0.5 ln(mean gamma^2) of the norm's own weights; 0 without."""
    for w in trace.weights.values():
        if w.module == site.module and w.name.endswith("weight") and len(w.shape) <= 3:
            return math.log(w.rms) if w.rms > 0 else -math.inf
    return 0.0


def _batch_norm(
    site: Site, before: Site, trace: Trace, module: nn.modules.batchnorm._BatchNorm
) -> Gain:
    seen = before.activation
    running = module.running_var
    if not trace.modes.get(site.module, trace.training) and running is not None:
        variance = running.detach().double() + module.eps
        square = float((1.0 / variance).mean())
        return Gain(_log(square) + _affine(site, trace), "0.5 ln E[1 / running_var]")
    count = trace.batch * math.prod(site.shape[2:])
    if not math.isfinite(seen.cosine) or count <= 2:
        raise NoClosedFormError("a batch of one sample has no spread over samples")
    # what two samples have in common is a channel's mean, which the norm subtracts
    scale = seen.rms**2 * (1.0 - max(seen.cosine, 0.0)) + module.eps
    nats = -_log(scale) + _affine(site, trace) + _log(1.0 - 2.0 / count)
    return Gain(nats, f"-ln(rms sqrt(1 - cosine)) = -ln {math.sqrt(scale):.3g}")


def _pooling(site: Site, before: Site, module: nn.Module | None) -> Gain:
    op = site.op.lower()
    if "max" in op:
        return Gain(0.0, "a maximum passes delta to one element")
    kernel = getattr(module, "kernel_size", None)
    if kernel is not None and "avg" in op:
        spatial = len(site.shape) - 2
        area = kernel**spatial if isinstance(kernel, int) else math.prod(kernel)
    elif "avg" in op or op == "mean":
        area = math.prod(before.shape) / math.prod(site.shape)
    else:
        raise NoClosedFormError(f"no closed form is known for {site.op}")
    return Gain(-0.5 * math.log(area), f"-0.5 ln {area:g}, elements averaged")


# ---- gated sums --------------------------------------------------------------------------------


def gated(start: Site, inner: Sequence[Site], end: Site, trace: Trace, modules: Modules) -> Gain:
    """A highway block, T h + (1 - T) x, recognised by its sites.

    Args:
        start: the block's input.
        inner: its inner sites in execution order.
        end: the sum.
        trace: the pass.
        modules: the model's modules by path.

    Returns:
        0.5 ln of E[carry^2] + E[T^2] E[phi'^2] n Var(W) + E[T'^2] E[(h - x)^2] n Var(W_T).

    Raises:
        NoClosedFormError: the block is not of this form.
    """
    gates = [s for s in inner if s.op == "sigmoid"]
    linear = [s for s in inner if s.kind == "weights"]
    hidden = [s for s in inner if s.kind == "slope" and s not in gates]
    products = [s for s in inner if s.op == "mul"]
    known = len(gates) + len(linear) + len(hidden) + len(products)
    others = [s for s in inner if s.op not in ("sub", "sigmoid", "mul")]
    if (len(gates), len(linear), len(hidden), len(products)) != (1, 2, 1, 2) or (
        len(others) != len(linear) + len(hidden)
    ):
        raise NoClosedFormError(f"a gated sum of {known} parts that is not a highway block")
    gate, (h,) = gates[0], hidden
    sigmoid = Activation.of("sigmoid")
    into = min(linear, key=lambda s: abs(_mean(s, sigmoid, sigmoid.value) - gate.activation.mean))
    source = next(s for s in linear if s is not into)
    t, t2 = gate.activation.mean, gate.activation.rms**2
    x2, h2, slope = start.activation.rms**2, h.activation.rms**2, 1.0
    opened, carried = t2, 1.0 - 2.0 * t + t2
    # T may open the transform or the carry: which, the size of the sum tells
    out = end.activation.rms**2
    if abs(carried * x2 + opened * h2 - out) > abs(opened * x2 + carried * h2 - out):
        opened, carried = carried, opened
    phi = activation_at(h, modules.get(h.module))
    slope = _mean(source, phi, lambda u: phi.slope(u) ** 2)
    steep = _mean(into, sigmoid, lambda u: sigmoid.slope(u) ** 2)
    through = math.exp(2.0 * gain_of(source, start, trace, modules).nats)
    control = math.exp(2.0 * gain_of(into, start, trace, modules).nats)
    gain = carried + opened * slope * through + steep * (h2 + x2) * control
    return Gain(
        _log(gain),
        f"0.5 ln(carry {carried:.3g} + transform {opened * slope * through:.3g} + gate "
        f"{steep * (h2 + x2) * control:.3g})",
    )
