"""The cure of a last layer that has too few outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture.observe import unwrapped
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.ends import CLASSED, end_of, instead, without
from signalprop.cures.program.seen import Look, look
from signalprop.cures.program.steps import Cast, Shaped
from signalprop.cures.surgery import copied
from signalprop.cures.training import Training
from signalprop.diagnosis.program.target import UNIT_TARGETS

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@cure("add-outputs", treats=("SP207",), changes="training")
def add_outputs(training: Training, data: Any) -> Training:
    """Widen the last layer to hold every label of the batch; its old rows stay.

    The new rows are drawn with the spread of the old ones, as torch draws those of a new layer
    (U(-1/sqrt(fan in), 1/sqrt(fan in))) where those have none; new biases are 0.
    A single output that is trained by binary cross-entropy on numbers of more than two classes gets
    one for every class, without its sigmoid, and cross_entropy.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: every label fits, they start at 1, or the last layer cannot be widened.
    """
    seen = look(training, data)
    scores, y = seen.scores, seen.target
    op = seen.call.op if seen.call is not None else seen.kind
    if op in UNIT_TARGETS:
        return _one_for_every_class(training, seen)
    ignored = seen.call.ignored if seen.call is not None else None
    kept = y if ignored is None else y[y != ignored]
    if op not in CLASSED or y.is_floating_point() or kept.numel() == 0 or scores.ndim < 2:
        raise DoesNotApply("the loss is given no class numbers")
    classes, beyond = scores.shape[1], kept[kept >= scores.shape[1]].unique()
    if beyond.numel() == 0:
        raise DoesNotApply(f"every label fits the {classes} outputs")
    if int(kept.min()) < 0:
        raise DoesNotApply("there are labels below 0, which no output stands for")
    if beyond.numel() == 1 and int(beyond) > classes:
        raise DoesNotApply(
            f"{int(beyond)} is the only label above {classes - 1}; it looks like a mark for what "
            "is to be left out, see set_ignore_index"
        )
    weight = getattr(training.loss, "weight", None)
    if isinstance(weight, Tensor):
        raise DoesNotApply("the loss has a weight for every class; give it more of them, too")
    line, model = _widened(training, copied(training.model), seen, classes, int(beyond.max()) + 1)
    return training.changed(line, model=model)


def _one_for_every_class(training: Training, seen: Look) -> Training:
    """Instead of one output and class numbers of more than two classes."""
    y, end = seen.target, end_of(training, seen)
    labels = y.unique()
    whole = bool(((labels >= 0) & (labels == labels.round())).all())
    if not whole or int(labels.max()) < 2 or not y.numel() == seen.scores.numel() == len(y):
        raise DoesNotApply("the labels are no numbers of more than two classes, one for a sample")
    if end.op and end.path is None:
        raise DoesNotApply(end.why)
    lines, model = ["target = target.flatten().long()"], copied(training.model)
    if end.path is not None:
        told, model, _ = without(training, end.path)
        lines.append(told)
    told, model = _widened(training, model, seen, 1, int(labels.max()) + 1)
    line, loss = instead(nn.CrossEntropyLoss, None)
    return training.changed(
        *lines,
        told,
        line,
        model=model,
        loss=loss,
        prepare=(*training.prepare, Shaped(()), Cast(torch.int64)),
        readout=(nn.Softmax(1), *training.readout),
    )


def _widened(
    training: Training, model: nn.Module, seen: Look, classes: int, count: int
) -> tuple[str, nn.Module]:
    """The line to paste, and the model, its last layer widened in place."""
    path = _last_linear(training, seen, classes)
    layer = unwrapped(model).get_submodule(path)
    _widen(layer, count)
    name = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    return f"# in the model: {path or type(layer).__name__} with {name}={count}", model


def _last_linear(training: Training, seen: Look, classes: int) -> str:
    """Path of the layer whose outputs are the classes."""
    model = unwrapped(training.model)
    sites = sorted(seen.trace.sites.values(), key=lambda s: -s.order)
    for site in sites:
        if site.kind == "weights" or site.op in ("input", "add"):
            break
    else:
        raise DoesNotApply("no layer with weights makes the output")
    layer = model.get_submodule(site.module)
    count = getattr(layer, "out_features", getattr(layer, "out_channels", None))
    if type(layer) not in LINEAR or count != classes or getattr(layer, "groups", 1) != 1:
        raise DoesNotApply(f"the layer before the loss, {site.name!r}, cannot be widened")
    weight = layer._parameters.get("weight")
    uses = sum(p is weight for _, p in model.named_parameters(remove_duplicate=False))
    if weight is None or uses != 1:
        raise DoesNotApply(f"the weights of {site.name!r} are shared; widen the other one as well")
    return site.module


def _widen(layer: nn.Module, count: int) -> None:
    for name, old in list(layer._parameters.items()):
        if old is None:
            continue
        rows = torch.zeros(count - len(old), *old.shape[1:])
        if old.ndim > 1:
            values = old.detach().float()
            spread = 0.0 if old.numel() < 2 else float(values.std())
            most = math.sqrt(3) * spread or values[0].numel() ** -0.5  # of U(-most, most)
            rows.uniform_(-most, most)
        new = torch.cat([old.detach(), rows.to(old)])
        layer._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
    name = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    setattr(layer, name, count)
