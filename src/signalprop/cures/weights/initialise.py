"""Cures that draw new weights: the first thing to look at where a signal is lost with depth.

All of them take linear and convolution layers, transposed ones too, each for the activation that
follows it. It is found by following the layer's output through one pass; without a batch, by the
order of the modules. Biases become 0. Left alone are embeddings, recurrent and attention weights,
frozen ones, ones tied to something else, and heads or ends of branches that were set to zero.

What was learned is lost: they are for the start of a training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from signalprop.capture import observe
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.followed.following import Following, Layer
from signalprop.cures.followed.watching import follow
from signalprop.cures.surgery import copied
from signalprop.cures.weights.gains import SMOOTH, critical, gain, slope_of
from signalprop.cures.weights.redraw import drawn, normal, redraw
from signalprop.cures.weights.restart import restarted
from signalprop.errors import SignalpropError
from signalprop.nets._weights import CONVOLUTIONS, TRANSPOSED, Fill, orthonormal, undone_on_error


@cure(
    "he-init",
    treats=("SP101", "SP102", "SP103", "SP104", "SP105", "SP110", "SP114", "SP202"),
    changes="model with data",
)
def he_init(
    model: nn.Module, data: Any = None, *, mode: Literal["in", "out"] = "in", inplace: bool = False
) -> nn.Module:
    """Variance 2 / ((1 + a^2) fan) in front of rectifiers, a their negative slope, and biases 0.

    He et al. 2015, eq. 10 and 15. A layer without an activation behind it, as the head, gets
    1 / fan: the factor 2 stands for the half that the rectifier takes, and there is none; the paper
    leaves that free ("the factor does not matter if it just exists on one layer"). ELU, GELU, SiLU
    and their like count as ReLU. Layers in front of other activations (tanh) are left alone.

    Args:
        model: the network.
        data: a batch, as for `diagnose`; where there is none and the order of the modules does not
            say what follows a layer, it is taken to be ReLU.
        mode: whether the fan is what comes `in` (keeps the signal) or goes `out` (keeps delta).
        inplace: change the model itself instead of a copy.

    Returns:
        The network with new weights.

    Raises:
        DoesNotApply: no rectifier follows any of its layers, or none of them can be changed.
        SignalpropError: an option is unknown, or the model cannot be run on the batch.
    """
    if mode not in ("in", "out"):
        raise SignalpropError(f'mode is "in" or "out", not {mode!r}')

    def rule(layer: Layer) -> Fill | None:
        squared = _he(layer)
        if squared is None:
            return None

        def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
            return drawn(size, math.sqrt(squared / (fan_in if mode == "in" else fan_out)), like)

        return fill

    def do(root: nn.Module, seen: Following) -> None:
        why = "no rectifier follows any layer; He's variance is for rectifiers, see critical_init"
        layers = seen.layers.values()
        if all(not layer.sure or not layer.uses or _he(layer) is None for layer in layers) and (
            data is not None or all(layer.sure for layer in layers)
        ):
            raise DoesNotApply(why if layers else "the model holds no linear or convolution layer")
        redraw(root, seen, rule, nothing=why)

    return _changed(model, data, do, inplace=inplace)


def _he(layer: Layer) -> float | None:
    """Fan Var(W); None of a layer in front of another activation."""
    if not layer.uses:
        return 1.0 if layer.sure else 2.0
    slope = slope_of(layer.uses[0])
    if slope is None:
        return 2.0 if layer.uses[0].op in SMOOTH else None
    return 2.0 / (1.0 + slope * slope)


@cure("glorot-init", treats=(), changes="model with data")
def glorot_init(
    model: nn.Module, data: Any = None, *, gain: float = 1.0, inplace: bool = False
) -> nn.Module:
    """Variance 2 g^2 / (fan_in + fan_out), and biases 0, in every layer.

    Glorot & Bengio 2010, eq. 12, for activations of slope 1 at 0, such as tanh.

    Args:
        model: the network.
        data: a batch, as for `diagnose`, by which attention's weights are known.
        gain: g.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with new weights.
    """
    _check_gain(gain)

    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        return drawn(size, gain * math.sqrt(2.0 / (fan_in + fan_out)), like)

    return _changed(
        model, data, lambda root, seen: redraw(root, seen, lambda layer: fill), inplace=inplace
    )


@cure("lecun-init", treats=(), changes="model with data")
def lecun_init(
    model: nn.Module, data: Any = None, *, gain: float = 1.0, inplace: bool = False
) -> nn.Module:
    """Variance g^2 / fan_in, and biases 0, in every layer.

    LeCun et al. 1998, eq. 16; Klambauer et al. 2017 for SELU.

    Args:
        model: the network.
        data: a batch, as for `diagnose`, by which attention's weights are known.
        gain: g.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with new weights.
    """
    _check_gain(gain)
    return _changed(
        model,
        data,
        lambda root, seen: redraw(root, seen, lambda layer: normal(gain)),
        inplace=inplace,
    )


@cure("orthogonal-init", treats=("SP107", "SP112", "SP113", "SP115"), changes="model with data")
def orthogonal_init(
    model: nn.Module, data: Any = None, *, gain: float | None = None, inplace: bool = False
) -> nn.Module:
    """Orthogonal weights, times the gain that the following activation asks for, and biases 0.

    Saxe et al. 2014; the gain is that of `weights.gains.gain`: sqrt(2) for ReLU, 1 for
    tanh and where no activation follows.

    Args:
        model: the network.
        data: a batch, as for `diagnose`.
        gain: one for all layers instead.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with new weights.
    """
    _check_gain(gain)
    return _changed(
        model,
        data,
        lambda root, seen: redraw(
            root, seen, lambda layer: _turned(_gain(layer) if gain is None else gain)
        ),
        inplace=inplace,
    )


@cure("delta-orthogonal-init", treats=(), changes="model with data")
def delta_orthogonal_init(
    model: nn.Module, data: Any = None, *, gain: float | None = None, inplace: bool = False
) -> nn.Module:
    """Convolutions that turn the channels of every position by themselves, and biases 0.

    Xiao et al. 2018, algorithm 1: an orthogonal matrix at the kernel's centre, zeros around it,
    times the gain of `orthogonal_init`. One with fewer outputs than inputs, where that is no
    isometry, gets an orthogonal kernel matrix. Linear layers are left alone.

    Args:
        model: the network.
        data: a batch, as for `diagnose`.
        gain: one for all layers instead.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with new weights.
    """
    _check_gain(gain)

    def rule(layer: Layer) -> Fill | None:
        if not isinstance(layer.module, (*CONVOLUTIONS, *TRANSPOSED)):
            return None
        return _centred(_gain(layer) if gain is None else gain)

    why = "the model holds no convolution"
    return _changed(
        model, data, lambda root, seen: redraw(root, seen, rule, nothing=why), inplace=inplace
    )


@cure("critical-init", treats=("SP106", "SP107", "SP114", "SP115"), changes="model with data")
def critical_init(
    model: nn.Module, data: Any = None, *, bias_variance: float = 0.05, inplace: bool = False
) -> nn.Module:
    """Weights and biases on the edge of chaos of each layer's own activation.

    Poole et al. 2016; Schoenholz et al. 2017: W ~ N(0, sigma_w^2 / fan_in), b ~ N(0, sigma_b^2)
    with chi_1 = sigma_w^2 E[phi'^2] = 1, so that delta neither vanishes nor explodes. For ReLU
    (2, 0), for tanh at 0.05 (1.761, 0.05). Layers without an activation behind them get (1, 0);
    those whose activation has no edge (softplus) are left alone.

    Args:
        model: the network.
        data: a batch, as for `diagnose`; without one all activations have to be modules.
        bias_variance: sigma_b^2; a rectifier's edge is at 0 whatever is said here.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with new weights and biases.

    Raises:
        DoesNotApply: no activation has an edge, or no layer can be changed.
        SignalpropError: the bias variance is negative, or what follows a layer is not known.
    """
    if not (math.isfinite(bias_variance) and bias_variance >= 0):
        raise SignalpropError(f"bias_variance is zero or above, not {bias_variance!r}")
    known: dict[int, tuple[float, float] | None] = {}

    def point(layer: Layer) -> tuple[float, float] | None:
        use = layer.uses[0] if layer.uses else None
        if id(use) not in known:
            try:
                found = critical(use, bias_variance)
                known[id(use)] = (found.weight_variance, found.bias_variance)
            except SignalpropError:
                known[id(use)] = None
        return known[id(use)]

    def rule(layer: Layer) -> Fill | None:
        at = point(layer)
        return None if at is None else normal(math.sqrt(at[0]))

    def bias(layer: Layer) -> float:
        return math.sqrt((point(layer) or (0.0, 0.0))[1])

    def do(root: nn.Module, seen: Following) -> None:
        unsure = [p for p, layer in seen.layers.items() if not layer.sure and not layer.uses]
        if data is None and unsure:
            raise SignalpropError(
                f"the order of the modules does not say what follows layer {unsure[0]!r}; give a "
                "batch as well: critical_init(model, batch)"
            )
        if seen.layers and not any(layer.uses and point(layer) for layer in seen.layers.values()):
            raise DoesNotApply("no activation with an edge of chaos follows any layer")
        redraw(root, seen, rule, bias=bias)

    return _changed(model, data, do, inplace=inplace)


@cure("reinitialise", treats=("SP116", "SP213"))
def reinitialise(
    model: nn.Module, *, sites: Collection[str] = (), inplace: bool = False
) -> nn.Module:
    """Every module's own initialisation once more.

    `reset_parameters` of each module that has one, the inner ones first, so that a network's own
    scheme has the last word; and `_init_weights(module)`, as networks of `transformers` call it.
    BatchNorm's statistics start anew. Frozen modules are left alone; a tied weight is drawn once.

    Args:
        model: the network.
        sites: paths of modules to restrict it to, with what is inside them; all without.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with new weights.

    Raises:
        DoesNotApply: no module there has an initialisation of its own.
        SignalpropError: there is no such module.
    """
    observe.check(observe.unwrapped(model))
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    known = dict(observe.unwrapped(model).named_modules())
    unknown = [site for site in sites if site not in known]
    if unknown:
        raise SignalpropError(
            f"the model has no module {unknown[0]!r}; sites are paths as in model.named_modules()"
        )
    root = model if inplace else copied(model)
    inner = observe.unwrapped(root)
    with undone_on_error(inner):
        if not restarted([inner.get_submodule(site) for site in sites or ("",)]):
            raise DoesNotApply(
                "no module there that is to be trained has an initialisation of its own "
                "(reset_parameters)"
            )
    return root


# ---- how all of them do it -----------------------------------------------------------------------


def _changed(
    model: nn.Module,
    data: Any,
    do: Callable[[nn.Module, Following], object],
    *,
    inplace: bool,
) -> nn.Module:
    """Do something to a copy, or to the model itself, knowing what follows its layers."""
    observe.check(observe.unwrapped(model))
    root = model if inplace else copied(model)
    inner = observe.unwrapped(root)
    do(inner, follow(inner, data))
    return root


def _gain(layer: Layer) -> float:
    try:
        return gain(layer.uses[0] if layer.uses else None)
    except SignalpropError:  # no function that could be integrated
        return 1.0


def _turned(gain: float) -> Fill:
    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        return gain * orthonormal(size[0], math.prod(size[1:]), like, None).reshape(size)

    return fill


def _centred(gain: float) -> Fill:
    turned = _turned(gain)

    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        if size[0] < size[1]:
            return turned(size, fan_in, fan_out, like)
        values = torch.zeros(size, dtype=like.dtype, device=like.device)
        centre = (slice(None), slice(None), *(k // 2 for k in size[2:]))
        values[centre] = gain * orthonormal(size[0], size[1], like, None)
        return values

    return fill


def _check_gain(gain: float | None) -> None:
    if gain is not None and not (math.isfinite(gain) and gain > 0):
        raise SignalpropError(f"the gain is above zero, not {gain!r}")
