"""Normalisation where there is none, where it cannot work, and of the inputs."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.structure.flow import Call, Flow, flow, spatial
from signalprop.cures.structure.hooked import Ahead, Behind, attach
from signalprop.cures.surgery import copied, operate
from signalprop.errors import SignalpropError

Norm = Literal["auto", "batch", "layer", "group"]

#: from how many samples on the statistics of a batch are taken
ENOUGH = 8
#: channels that a group has at least, and groups that there are at most (Wu & He 2018: 32)
GROUP, GROUPS = 8, 32

_BATCH = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class LastBatchNorm(nn.BatchNorm1d):
    """BatchNorm of the last dimension over all others, whatever their number."""

    def forward(self, input: Tensor) -> Tensor:
        """The same shape."""
        return super().forward(input.reshape(-1, input.shape[-1])).reshape(input.shape)


@cure(
    "normalise",
    treats=(
        *("SP101", "SP102", "SP103", "SP104", "SP105", "SP106", "SP108", "SP109", "SP110"),
        *("SP111", "SP112", "SP113", "SP116", "SP117", "SP202"),
    ),
    changes="model with data",
)
def normalise(
    model: nn.Module, data: Any, *, inplace: bool = False, kind: Norm = "auto"
) -> nn.Module:
    r"""Normalise what goes into every hidden activation.

    Behind every Linear and convolution that is trained, whose output goes to an activation without
    a normalisation in between and whose input does not come from one: BatchNorm (Ioffe & Szegedy
    2015, section 3.2, before the nonlinearity), LayerNorm (Ba, Kiros & Hinton 2016, eq. 3) or
    GroupNorm (Wu & He 2018, section 3.1). Left alone are the activation that the model returns,
    softmax and frozen layers.

    Not a cure of depth as such: in a deep rectifier network without skips BatchNorm multiplies the
    error signal by about sqrt(pi / (pi - 1)) = 1.21 per layer (Yang et al. 2019), and
    LayerNorm keeps delta while samples become alike.

    Names stay: the normalisation is a submodule `norm` of its layer, applied by a forward hook.

    Args:
        model: any module.
        data: a batch, on which the shapes are seen; it should be as large as in training.
        inplace: change the model itself instead of a copy.
        kind: "auto" takes BatchNorm from 8 samples on, except for sequences and for a layer that
            is called several times in a pass; else LayerNorm, of convolutions GroupNorm. "batch",
            "layer" and "group" are taken everywhere; the groups of a sequence are one.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no such layer.
        SignalpropError: the model cannot be run on the data, or BatchNorm has one sample only.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
        >>> data = (torch.randn(32, 8), torch.randint(2, (32,)))
        >>> type(normalise(net, data)[0].norm).__name__
        'BatchNorm1d'
    """
    if kind not in get_args(Norm):
        raise SignalpropError(f"kind has to be one of {', '.join(get_args(Norm))}, not {kind!r}")
    seen = flow(model, data)
    modules = dict(model.named_modules())
    new: dict[str, nn.Module] = {}
    for path in _bare(modules, seen):
        made = _norm(modules[path], seen.calls[path], kind)
        if made is not None:
            new[path] = made
    if not new:
        raise DoesNotApply(
            "no trained Linear or convolution feeds a hidden activation without a normalisation"
        )
    root = model if inplace else copied(model)
    modules = dict(root.named_modules())
    for path, norm in new.items():
        attach(modules[path], "norm", norm, Behind, root)
    return root


@cure("group-norm", treats=("SP209",))
def group_norm(model: nn.Module, *, inplace: bool = False, groups: int | None = None) -> nn.Module:
    r"""Replace BatchNorm by GroupNorm, which needs no other samples.

    Statistics are of groups of channels of each sample (Wu & He 2018, section 3.1); BatchNorm1d
    gets one group, which for (batch, features) is LayerNorm. Scale and shift are kept, the running
    statistics are not: names in the state of the model stay, but for `running_mean`, `running_var`
    and `num_batches_tracked`. A BatchNorm that is frozen in a model being trained (in evaluation
    mode) is left alone.

    Args:
        model: any module.
        inplace: change the model itself instead of a copy.
        groups: the number of groups; None takes the most, up to 32, that divide the channels and
            have 8 channels or more. Where it does not divide the channels, the largest number
            below it that does is taken.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no BatchNorm.
        SignalpropError: `groups` is no number of groups.
    """
    if groups is not None and (not isinstance(groups, int) or groups < 1):
        raise SignalpropError(f"groups has to be a whole number from 1 up, not {groups!r}")
    found = [
        path
        for path, m in model.named_modules()
        if isinstance(m, _BatchNorm) and _replaceable(m, model)
    ]
    if not found:
        raise DoesNotApply("there is no BatchNorm in use")
    names = set(found)

    def change(path: str, module: nn.Module) -> nn.Module | None:
        if path not in names or not isinstance(module, _BatchNorm):
            return None
        channels = module.num_features
        flat = isinstance(module, nn.BatchNorm1d)
        most = groups if groups is not None else (1 if flat else _groups(channels))
        new = nn.GroupNorm(
            max(g for g in range(1, min(most, channels) + 1) if channels % g == 0),
            channels,
            eps=module.eps,
            affine=module.affine,
        )
        new.weight, new.bias = module.weight, module.bias
        for key, value in module.__dict__.items():  # hooks and their registers
            if "_hooks" in key:
                new.__dict__[key] = value
        return new

    return operate(model, change, inplace=inplace)


@cure("input-batchnorm", treats=("SP206",), changes="model with data")
def input_batchnorm(
    model: nn.Module,
    data: Any,
    *,
    inplace: bool = False,
    kind: Literal["auto", "batch", "layer"] = "auto",
) -> nn.Module:
    r"""Normalise the inputs inside of the network.

    In front of every layer that reads an input of the model as it is: BatchNorm without scale and
    shift, which keeps a plain average over all batches (so that what is subtracted settles), begun
    with the batch that is given. Its epsilon is 1e-5 of the median variance of the features, so
    that any unit of measurement will do. Preferable where they are known beforehand: the mean and
    standard deviation of the training set (LeCun et al. 1998, "Efficient BackProp", section 4.3).

    Names stay: it is a submodule `input_norm` of the layer, applied by a hook.

    Args:
        model: any module.
        data: a batch.
        inplace: change the model itself instead of a copy.
        kind: "batch"; "layer" for LayerNorm over the features of a sample (of a convolution over
            channels and positions); "auto" takes BatchNorm from 8 samples on.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: no layer reads an input as it is, or what is read is normalised.
        SignalpropError: the model cannot be run on the data, or an option is none.
    """
    if kind not in ("auto", "batch", "layer"):
        raise SignalpropError(f"kind has to be one of auto, batch, layer, not {kind!r}")
    seen = flow(model, data)
    if not seen.readers:
        raise DoesNotApply("no layer reads a floating input of the model as it is")
    modules = dict(model.named_modules())
    new: dict[str, nn.Module] = {}
    for path, x in seen.readers.items():
        made = _input_norm(modules[path], x, kind)
        if made is not None:
            new[path] = made
    if not new:
        raise DoesNotApply("the inputs are normalised, or do not vary")
    root = model if inplace else copied(model)
    modules = dict(root.named_modules())
    for path, norm in new.items():
        attach(modules[path], "input_norm", norm, Ahead, root)
    return root


def _bare(modules: dict[str, nn.Module], seen: Flow) -> list[str]:
    """Layers to be normalised, in the order of the modules."""
    return [
        path
        for path, module in modules.items()
        if path in seen.activated
        and path not in seen.normalised
        and path not in seen.outputs
        and not isinstance(module, (nn.RNNBase, nn.MultiheadAttention))
        and any(p.requires_grad for p in module.parameters(recurse=True))
    ]


def _norm(layer: nn.Module, calls: list[Call], kind: Norm) -> nn.Module | None:
    """The normalisation behind a layer; None where one would leave nothing."""
    shape = calls[0].made
    dims = spatial(layer)
    if shape is None or len(shape) < (1 if dims is None else dims + 2):
        return None
    channels = shape[-1] if dims is None else shape[1]
    positions = 1 if dims is None else math.prod(shape[2:])
    plain = dims is not None or len(shape) == 2
    if kind == "auto":
        batch = plain and len(calls) == 1 and shape[0] >= ENOUGH
        kind = "batch" if batch else "layer" if dims is None else "group"
    if kind == "batch" and len(shape) > 1:
        if math.prod(shape) == channels:
            raise SignalpropError(
                'BatchNorm needs two samples or more; give a larger batch, or kind="layer"'
            )
        return (_BATCH[dims or 0] if plain else LastBatchNorm)(channels)
    groups = _groups(channels) if kind == "group" and plain else 1
    if channels // groups * positions == 1:
        return None
    if dims is None and groups == 1:
        return nn.LayerNorm(channels)
    return nn.GroupNorm(groups, channels)


def _input_norm(layer: nn.Module, x: Tensor, kind: str) -> nn.Module | None:
    """The normalisation in front of a layer; None where there is nothing to do."""
    dims = spatial(layer)
    if x.ndim < 2 or (dims is not None and x.ndim != dims + 2):
        return None
    features = x.shape[-1] if dims is None else x.shape[1]
    rows = (x if dims is None else x.movedim(1, -1)).reshape(-1, features).double()
    if not rows.isfinite().all():
        raise SignalpropError("the inputs hold nan or infinite values; clean them first")
    variance, mean = torch.var_mean(rows, 0, unbiased=False)
    vary = variance > 1e-12 * mean.square()
    if not vary.any():
        return None
    deviation = variance[vary].sqrt()
    if (mean[vary].abs() < 0.1).all() and ((deviation > 0.8) & (deviation < 1.25)).all():
        return None
    if kind == "auto":
        kind = "batch" if x.shape[0] >= ENOUGH else "layer"
    if kind == "layer":
        if x[0].numel() == 1 or (dims is None and features == 1):
            return None
        plain = nn.LayerNorm(features, elementwise_affine=False)
        return plain if dims is None else nn.GroupNorm(1, features, affine=False)
    made = LastBatchNorm if dims is None else _BATCH[dims]
    eps = max(1e-5 * float(variance[vary].median()), 1e-30)
    norm = made(features, eps=eps, momentum=None, affine=False)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance * len(rows) / max(len(rows) - 1, 1))
    norm.num_batches_tracked.fill_(1)
    return norm


def _groups(channels: int) -> int:
    """Groups of at least `GROUP` channels, at most `GROUPS` of them, all alike."""
    return max(
        g for g in range(1, GROUPS + 1) if channels % g == 0 and (g == 1 or channels // g >= GROUP)
    )


def _replaceable(norm: _BatchNorm, model: nn.Module) -> bool:
    """Whether a BatchNorm has values to compare in one sample, and is in use."""
    if any(nn.parameter.is_lazy(x) for x in (*norm.parameters(), *norm.buffers())):
        raise SignalpropError(
            "a lazy BatchNorm has no shape yet; run the model on one batch first, then call again"
        )
    frozen = model.training and not norm.training
    return not frozen and not (isinstance(norm, nn.BatchNorm1d) and norm.num_features == 1)
