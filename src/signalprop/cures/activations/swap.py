"""Cures that put other activations into a network, with weights to fit.

Modules are replaced; functions called in somebody's forward (`F.relu(x)`, `x.tanh()`) are replaced
while that forward runs, see `activations.functional`, and `swaps(model)` tells which, to be
written into the source. Only hidden activations are touched: not the output's, not gates, and not
those inside attention and recurrent modules.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection
from typing import Any, Literal, get_args

from torch import nn

from signalprop.capture import observe
from signalprop.cures.activations.functional import FunctionalSwap
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.followed.following import Following, Layer, Use
from signalprop.cures.followed.watching import follow
from signalprop.cures.surgery import copied, fitted, operate
from signalprop.cures.weights.gains import gain, slope_of
from signalprop.cures.weights.redraw import eligible, normal, redraw
from signalprop.errors import SignalpropError
from signalprop.nets._weights import Fill
from signalprop.nets.shaping import TailoredReLU

To = Literal["leaky", "prelu", "elu", "selu", "gelu", "silu", "tanh", "relu", "shaped"]
#: names of operations and classes of modules
Which = Collection[str | type[nn.Module]] | str | type[nn.Module] | None

_OPS = {"leaky": "leaky_relu"}
_NAMES = {
    "leaky": "LeakyReLU", "prelu": "PReLU", "elu": "ELU", "selu": "SELU", "gelu": "GELU",
    "silu": "SiLU", "tanh": "Tanh", "relu": "ReLU", "shaped": "TailoredReLU",
}  # fmt: skip


@cure(
    "swap-activation",
    treats=("SP101", "SP102", "SP105", "SP111", "SP202"),
    changes="model with data",
)
def swap_activation(
    model: nn.Module,
    data: Any,
    *,
    to: To = "leaky",
    which: Which = None,
    slope: float | None = None,
    initialise: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """Other hidden activations, and new weights in front of them that fit.

    A sigmoid's weights do not suit a rectifier (they want He's variance), so the layers in front of
    what is replaced are initialised anew: N(0, g^2 / fan_in), biases 0, g as in
    `weights.gains.gain`. What those layers had learned is lost; `initialise=False` keeps
    it.

    Args:
        model: the network.
        data: a batch, as for `diagnose`; one pass shows what is hidden.
        to: what to put in: `shaped` is a leaky ReLU tailored for the depth (Zhang et al. 2022).
        which: what to replace, names such as "sigmoid" or classes such as `nn.Sigmoid`; every
            hidden elementwise activation where nothing is said.
        slope: negative slope of `leaky` (0.01) or `prelu` (0.25, where it starts).
        initialise: whether to draw the weights in front anew.
        inplace: change the model itself instead of a copy.

    Returns:
        The network. Names and state_dict keys are kept, but for PReLU's own weights.

    Raises:
        DoesNotApply: there is no such hidden activation, or it is already there.
        SignalpropError: an option is unknown, or the model cannot be run on the batch.
    """
    if to not in get_args(To):
        raise SignalpropError(f"to is one of {', '.join(get_args(To))}, not {to!r}")
    if slope is not None and (to not in ("leaky", "prelu") or not math.isfinite(slope)):
        raise SignalpropError(f"slope is a number, and of 'leaky' or 'prelu' only, not {slope!r}")

    def chosen(seen: Following) -> list[Use]:
        return [use for use in _wanted(seen, which) if not _already(use, to, slope)]

    return _swapped(model, data, chosen, to, slope, initialise=initialise, inplace=inplace)


@cure("leaky-activation", treats=("SP110", "SP112"), changes="model with data")
def leaky_activation(
    model: nn.Module,
    data: Any,
    *,
    slope: float = 0.1,
    learn: bool = False,
    initialise: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """ReLUs that let something through below zero: none can die.

    Maas et al. 2013; with `learn` the slope is a weight (PReLU, He et al. 2015). The layers in
    front get He's variance for the slope, 2 / ((1 + a^2) fan_in), and biases 0.

    Args:
        model: the network.
        data: a batch, as for `diagnose`; one pass shows what is hidden.
        slope: a.
        learn: whether the slope is learned; one for each former ReLU.
        initialise: whether to draw the weights in front anew; what they had learned is lost.
        inplace: change the model itself instead of a copy.

    Returns:
        The network.

    Raises:
        DoesNotApply: there is no hidden ReLU.
        SignalpropError: the slope is out of range, or the model cannot be run on the batch.
    """
    if not (math.isfinite(slope) and 0 < slope <= 1):
        raise SignalpropError(f"slope is above 0 and at most 1, not {slope!r}")

    def chosen(seen: Following) -> list[Use]:
        return [use for use in _wanted(seen, None) if slope_of(use) == 0 or use.op == "relu6"]

    to: To = "prelu" if learn else "leaky"
    return _swapped(model, data, chosen, to, slope, initialise=initialise, inplace=inplace)


@cure("shaped-activation", treats=(), changes="model with data")
def shaped_activation(
    model: nn.Module, data: Any, *, eta: float = 0.9, inplace: bool = False
) -> nn.Module:
    """Leaky ReLUs tailored for the depth of a plain network, which then needs no skips.

    Zhang, Botev & Martens 2022: the slope with which all hidden activations in a row take two
    inputs at a right angle to the cosine eta. The depth is counted on the batch's pass. Layers in
    front get N(0, 1 / fan_in), biases 0. Normalisations stay; they are not needed any more.

    Args:
        model: the network, without skips.
        data: a batch, as for `diagnose`.
        eta: between 0 and 1.
        inplace: change the model itself instead of a copy.

    Returns:
        The network.

    Raises:
        DoesNotApply: branches are added in it, or it is too shallow to need that.
        SignalpropError: eta is out of range, or the model cannot be run on the batch.
    """
    if not 0 < eta < 1:
        raise SignalpropError(f"eta is between 0 and 1, not {eta!r}")

    def chosen(seen: Following) -> list[Use]:
        _plain(seen)
        return _wanted(seen, None)

    return _swapped(model, data, chosen, "shaped", eta, initialise=True, inplace=inplace)


@cure(
    "self-normalize",
    treats=("SP101", "SP104", "SP105", "SP106", "SP107", "SP112", "SP114", "SP202"),
    changes="model with data",
)
def self_normalize(model: nn.Module, data: Any, *, inplace: bool = False) -> nn.Module:
    """SELU, LeCun's weights, alpha dropout, and no normalisation between.

    Klambauer et al. 2017: mean 0 and variance 1 are then a fixed point of every layer, if the
    inputs have them: standardise those. Every layer, the head too, gets N(0, 1 / fan_in) and biases
    0. Dropout behind a hidden activation becomes alpha dropout, functions too; normalisations
    behind a layer become `Identity`, and their state_dict keys go; one of the inputs stays.

    Args:
        model: the network, fully connected or convolutional, without skips.
        data: a batch, as for `diagnose`.
        inplace: change the model itself instead of a copy.

    Returns:
        The network.

    Raises:
        DoesNotApply: branches are added in it, or it has no hidden activation.
    """
    observe.check(observe.unwrapped(model))
    root = model if inplace else copied(model)
    inner = observe.unwrapped(root)
    seen = follow(inner, data)
    _plain(seen)
    uses = _wanted(seen, None)
    _check_functional(inner, uses)
    norms, dropouts = set(seen.norms), set(seen.dropouts)

    def rule(layer: Layer) -> Fill:
        return normal(1.0)

    # first what can fail
    redraw(inner, seen, rule)
    _replace(inner, uses, _maker("selu", None, uses), "selu", alpha=set(seen.functional_dropouts))

    def change(path: str, module: nn.Module) -> nn.Module | None:
        if path in norms:
            return nn.Identity()
        if path in dropouts and isinstance(module, (nn.Dropout, nn.Dropout1d)):
            return nn.AlphaDropout(module.p)
        if path in dropouts and isinstance(module, (nn.Dropout2d, nn.Dropout3d)):
            return nn.FeatureAlphaDropout(module.p)
        return None

    operate(inner, change, inplace=True)
    return root


# ---- what to replace -----------------------------------------------------------------------------


def _plain(seen: Following) -> None:
    """Raise where the theory of plain networks does not hold."""
    if seen.sums:
        where = f" (in {seen.sums[0]!r})" if seen.sums[0] else ""
        raise DoesNotApply(f"it is for plain networks, and branches are added in this one{where}")
    if any(layer.attention for layer in seen.layers.values()):
        raise DoesNotApply("it is for plain networks, and this one has attention")


def _wanted(seen: Following, which: Which) -> list[Use]:
    """Calls to replace: of a module, only if all of its calls are."""
    kinds = (which,) if isinstance(which, (str, type)) else tuple(which or ())
    fits = [use for use in seen.uses if not kinds or any(_is(use, kind) for kind in kinds)]
    found = [use for use in fits if use.hidden and not use.gate]
    kept = {id(use.module) for use in seen.uses if use.module is not None and use not in found}
    found = [use for use in found if id(use.module) not in kept]
    if found:
        return found
    if not seen.uses:
        raise DoesNotApply("no elementwise activation was seen in the pass")
    if not fits:
        ops = ", ".join(sorted({use.op for use in seen.uses}))
        raise DoesNotApply(f"there is none of the activations to replace; there are {ops}")
    raise DoesNotApply("its activations are gates, or make the output: none is hidden by itself")


def _is(use: Use, kind: str | type[nn.Module]) -> bool:
    if isinstance(kind, str):
        return use.op == _OPS.get(kind, kind).lower().replace("-", "_")
    return use.module is not None and type(use.module) is kind


def _already(use: Use, to: To, slope: float | None) -> bool:
    if to == "shaped" or use.op != _OPS.get(to, to):
        return False
    return slope is None or slope_of(use) == slope


# ---- and how -------------------------------------------------------------------------------------


def _swapped(
    model: nn.Module,
    data: Any,
    chosen: Callable[[Following], list[Use]],
    to: To,
    option: float | None,
    *,
    initialise: bool,
    inplace: bool,
) -> nn.Module:
    observe.check(observe.unwrapped(model))
    root = model if inplace else copied(model)
    inner = observe.unwrapped(root)
    seen = follow(inner, data)
    uses = chosen(seen)
    if not uses:
        raise DoesNotApply(f"its hidden activations are {_NAMES[to]} already, or none fits")
    make = _maker(to, option, uses)
    _check_functional(inner, uses)
    if initialise:
        factor = 1.0 if to == "shaped" else gain(Use("", _OPS.get(to, to), make(), make(), {}))
        ours = set(uses)

        def rule(layer: Layer) -> Fill | None:
            return normal(factor) if layer.uses and layer.uses[0] in ours else None

        if any(rule(layer) is not None for layer in eligible(inner, seen)[0].values()):
            with contextlib.suppress(DoesNotApply):  # a norm of the weights sets their scale
                redraw(inner, seen, rule)
    _replace(inner, uses, make, to)
    return root


def _maker(to: To, option: float | None, uses: list[Use]) -> Callable[[], nn.Module]:
    """Makes a new activation."""
    match to:
        case "leaky":
            slope = 0.01 if option is None else option
            return lambda: nn.LeakyReLU(slope)
        case "prelu":
            start = 0.25 if option is None else option
            return lambda: nn.PReLU(init=start)
        case "shaped":
            depth = max(use.depth for use in uses)
            try:
                shaped = TailoredReLU(depth, 0.9 if option is None else option)
            except ValueError as error:
                raise DoesNotApply(str(error)) from error
            return lambda: TailoredReLU(depth, shaped.eta)
        case _:
            return getattr(nn, _NAMES[to])


def _check_functional(model: nn.Module, uses: list[Use]) -> None:
    for use in uses:
        if use.module is None and use.recomputed:
            raise DoesNotApply(
                f"{use.op} in {use.owner or 'the model'!r} is run again by an activation "
                "checkpoint, where it cannot be replaced; make it a module (nn.ReLU() and the like)"
            )


def _replace(
    model: nn.Module,
    uses: list[Use],
    make: Callable[[], nn.Module],
    to: To,
    *,
    alpha: Collection[str] = (),
) -> None:
    """Put new activations in, in place."""
    gone = {use.owner for use in uses if use.module is not None}

    def change(path: str, module: nn.Module) -> nn.Module | None:
        if path not in gone:
            return None
        new = make()
        if getattr(module, "inplace", False) and hasattr(new, "inplace"):
            new.inplace = True  # pyrefly: ignore
        return new

    operate(model, change, inplace=True)
    for path, module in model.named_modules():
        # its fast path calls the activation by a kernel of its own
        if (
            isinstance(module, nn.TransformerEncoderLayer)
            and f"{path}.activation".lstrip(".") in gone
        ):
            module.activation_relu_or_gelu = 0
    functional = [use for use in uses if use.module is None]
    for owner in dict.fromkeys([*(use.owner for use in functional), *alpha]):
        module = model.get_submodule(owner)
        new: dict[str, nn.Module | str] = {}
        calls: dict[str, frozenset[int] | None] = {}
        for op in dict.fromkeys(use.op for use in functional if use.owner == owner):
            activation = fitted(make(), module, model)
            if to == "prelu":
                module.add_module(f"swapped_{op}", activation)
            new[op] = f"swapped_{op}" if to == "prelu" else activation
            calls[op] = frozenset(u.index for u in functional if (u.owner, u.op) == (owner, op))
        FunctionalSwap(new, calls, alpha=owner in alpha).put_on(module)
