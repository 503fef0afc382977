"""Steps that change a batch on its way to the model; and cures of the inputs.

A step is applied to every batch (args, kwargs, target) before the model sees it. Steps are classes
of this module, so that they can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch
from signalprop.capture.observe import observe, unwrapped
from signalprop.capture.sandbox import random_state
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.modes import again, prepared
from signalprop.cures.training import Training

#: (args, kwargs, target)
Given = tuple[Any, Any, Any]

# ---- the steps -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shaped:
    """The target reshaped to (n, *rest); or, with `expand`, repeated to it."""

    rest: tuple[int, ...]
    expand: bool = False

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        args, kwargs, y = given
        if self.expand:
            y = y.reshape(len(y), *(1,) * len(self.rest)) if y.ndim == 1 else y
            return args, kwargs, y.expand(len(y), *self.rest)
        return args, kwargs, y.reshape(-1, *self.rest)


@dataclass(frozen=True)
class Cast:
    """The target in another dtype."""

    dtype: torch.dtype

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        return given[0], given[1], given[2].to(self.dtype)


@dataclass(frozen=True)
class ClassNumbers:
    """Class numbers made of one-hot targets; `dim` counts the classes."""

    dim: int

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        return given[0], given[1], given[2].argmax(self.dim)


@dataclass(frozen=True)
class Shifted:
    """Class numbers minus a number, those the loss leaves out apart."""

    by: int
    ignored: int | None = None

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        args, kwargs, y = given
        new = y - self.by
        return args, kwargs, new if self.ignored is None else torch.where(y == self.ignored, y, new)


@dataclass(frozen=True, eq=False)
class Scaled:
    """(target - shift) / scale, per column."""

    shift: Tensor
    scale: Tensor

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        args, kwargs, y = given
        y = y if y.is_floating_point() else y.to(self.shift.dtype)
        return args, kwargs, ((y - self.shift.to(y)) / self.scale.to(y)).to(y.dtype)


@dataclass(frozen=True, eq=False)
class Unscaled:
    """What `Scaled` did, undone on the output."""

    shift: Tensor
    scale: Tensor

    def __call__(self, output: Any) -> Any:
        """Change an output."""
        return output * self.scale.to(output) + self.shift.to(output)


@dataclass(frozen=True)
class Replaced:
    """One class number in place of another."""

    old: int
    new: int

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        return given[0], given[1], given[2].masked_fill(given[2] == self.old, self.new)


@dataclass(frozen=True)
class FirstClass:
    """Columns of -inf before the scores: the largest one's index is then the user's own label."""

    by: int

    def __call__(self, output: Any) -> Any:
        """Change an output."""
        n, rest = output.shape[0], output.shape[2:]
        return torch.cat([output.new_full((n, self.by, *rest), -torch.inf), output], 1)


class Transposed(nn.Module):
    """A loss whose output has its classes last, as a layer on the last dimension makes them."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss with the classes second."""
        return self.loss(output.movedim(-1, 1), target)


@dataclass(frozen=True, eq=False)
class Normalised:
    """(input - mean) / std of some inputs, by position or keyword; both broadcast against it."""

    moments: Mapping[int | str, tuple[Tensor, Tensor]]

    def __call__(self, given: Given) -> Given:
        """Change the inputs of a batch."""
        args, kwargs, y = given

        def changed(key: int | str, x: Any) -> Any:
            if key not in self.moments:
                return x
            mean, std = self.moments[key]
            wide = torch.promote_types(x.dtype, torch.float32)
            there = {"device": x.device, "dtype": wide}
            return ((x.to(wide) - mean.to(**there)) / std.to(**there)).to(x.dtype)

        args = tuple(changed(i, x) for i, x in enumerate(args))
        return args, {k: changed(k, x) for k, x in kwargs.items()}, y


@dataclass(frozen=True, eq=False)
class Cleaned:
    """Samples that are not finite left out, or their gaps filled in with a feature's mean.

    Attributes:
        fill: what stands in for a value that is not finite, by position or keyword of the input.
        drop: leave samples out; where none would be left, and in any case without it, fill in.
        dim: dimension of the samples in the inputs.
    """

    fill: Mapping[int | str, Tensor]
    drop: bool
    dim: int = 0

    def __call__(self, given: Given) -> Given:
        """Change a batch."""
        args, kwargs, y = given
        inputs = dict(enumerate(args)) | kwargs
        keep = _finite_targets(y)
        for key in self.fill if self.drop else ():
            good = _good(inputs[key], self.dim)
            keep = good if keep is None else keep.to(good.device) & good
        if keep is not None and not bool(keep.all()) and bool(keep.any()):
            rows = keep.nonzero().squeeze(1)
            args, kwargs = (tree_map(self._cut(rows, len(keep)), x) for x in (args, kwargs))
            y = tree_map(_Cut(rows, len(keep), 0), y)
        return (
            tuple(self._filled(i, x) for i, x in enumerate(args)),
            {k: self._filled(k, x) for k, x in kwargs.items()},
            y,
        )

    def _cut(self, rows: Tensor, n: int) -> _Cut:
        return _Cut(rows, n, self.dim)

    def _filled(self, key: int | str, x: Any) -> Any:
        if key not in self.fill:
            return x
        return torch.where(x.isfinite(), x, self.fill[key].to(x))


@dataclass(frozen=True, eq=False)
class _Cut:
    """Some samples of every tensor that has as many."""

    rows: Tensor
    n: int
    dim: int

    def __call__(self, x: Any) -> Any:
        for dim in (self.dim, 0):
            if isinstance(x, Tensor) and x.ndim > dim and x.shape[dim] == self.n:
                return x.index_select(dim, self.rows.to(x.device))
        return x


def _good(x: Tensor, dim: int) -> Tensor:
    """Which samples are finite everywhere."""
    return x.movedim(dim, 0).reshape(x.shape[dim], -1).isfinite().all(1)


def _finite_targets(y: Any) -> Tensor | None:
    floating = isinstance(y, Tensor) and y.is_floating_point() and y.ndim > 0
    return _good(y, 0) if floating else None


# ---- the data --------------------------------------------------------------------------------


def batches_of(data: Any, most: int) -> Iterator[Any]:
    """The first few batches of a loader, or the one batch that was given.

    Args:
        data: a batch, or an iterable of batches; a loader's own generator is left as it was.
        most: how many.

    Yields:
        Batches as the user gives them.
    """
    if isinstance(data, (Tensor, tuple, list, Mapping)) or not isinstance(data, Iterable):
        yield data
        return
    holders = (data, getattr(data, "sampler", None))
    generators = {getattr(holder, "generator", None) for holder in holders}
    before = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    with random_state():
        try:
            found = list(islice(data, most))
        finally:
            for generator, state in before:
                generator.set_state(state)
    yield from found


def _each(batch: Batch) -> Iterator[tuple[int | str, str, Tensor]]:
    """Key, name in the trace, and tensor of every floating input."""
    given: dict[int | str, Any] = dict(enumerate(batch.args)) | batch.kwargs
    for key, x in given.items():
        name = f"input:{key}" if isinstance(key, str) else f"input{key + 1}" if key else "input"
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            yield key, name, x


class _Moments:
    """Mean and standard deviation per feature of finite values, in float64, batch after batch."""

    def __init__(self, x: Tensor, dim: int) -> None:
        self.dim = dim % x.ndim
        nothing = torch.zeros(x.shape[self.dim], dtype=torch.float64)
        self.n, self.mean, self.square = nothing, nothing, nothing

    def add(self, x: Tensor) -> None:
        """One more batch (Chan, Golub & LeVeque 1983, equation 2.1)."""
        value = x.detach().to("cpu", torch.float64).movedim(self.dim, 0).flatten(1)
        good = value.isfinite()
        value = torch.where(good, value, 0.0)
        n = good.sum(1).to(torch.float64)
        mean = value.sum(1) / n.clamp(min=1)
        square = (torch.where(good, value - mean[:, None], 0.0) ** 2).sum(1)
        total = self.n + n
        apart = mean - self.mean
        weight = n / total.clamp(min=1)
        self.square = self.square + square + apart**2 * self.n * weight
        self.mean = self.mean + apart * weight
        self.n = total

    def result(self, ndim: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (population), which broadcast against the input."""
        std = (self.square / self.n.clamp(min=1)).sqrt()
        shape = [1] * ndim
        shape[self.dim] = -1
        return self.mean.reshape(shape), std.reshape(shape)


# ---- the cures -------------------------------------------------------------------------------


@cure("normalise-inputs", treats=("SP111", "SP206"), changes="training")
def normalise_inputs(
    training: Training, data: Any, *, most: int = 64, harmless: float = 10.0
) -> Training:
    """Bring every feature of the inputs to mean 0 and standard deviation 1.

    Per channel where a convolution reads the input or it has four dimensions, else per entry of
    the last dimension (LeCun, Bottou, Orr & Müller 1998, section 4.3). Only inputs that a layer
    with weights reads as they are. A feature that is constant is left alone, unless it is larger
    than `harmless`: then its mean is taken off.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader of the training data.
        most: batches of a loader to take mean and standard deviation of.
        harmless: largest constant that is left alone.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no such input, or they are normalised already.
    """
    model = unwrapped(training.model)
    first = prepared(training, data)
    trace = observe(model, again(first), training.loss).trace
    found: dict[int | str, _Moments] = {}
    for key, name, x in _each(first):
        facts = trace.inputs.get(name)
        if facts is not None and facts.reader is not None and x.ndim >= 2:
            conv = "conv" in trace.sites[facts.reader].op.lower()
            found[key] = _Moments(x, 1 if conv or x.ndim >= 4 else -1)
    if not found:
        raise DoesNotApply("no floating input goes straight into a layer with weights")
    for one in batches_of(data, most):
        for key, _, x in _each(prepared(training, one)):
            if key in found:
                found[key].add(x)
    moments: dict[int | str, tuple[Tensor, Tensor]] = {}
    lines: list[str] = []
    for key, name, x in _each(first):
        if key not in found:
            continue
        mean, std = found[key].result(x.ndim)
        # a constant keeps a deviation of rounding errors
        varies = std > 1e-6 * (mean.square() + std.square()).sqrt()
        fine = (mean.abs() <= 0.5) & (std >= 0.5) & (std <= 2)
        if bool((fine | (~varies & (mean.abs() <= harmless))).all()):
            continue
        mean = torch.where(varies | (mean.abs() > harmless), mean, 0.0)
        moments[key] = mean.to(torch.float32), torch.where(varies, std, 1.0).to(torch.float32)
        told = "inputs" if key == 0 else name.replace("input:", "")
        over = tuple(d for d in range(x.ndim) if d != found[key].dim)
        lines.append(
            f"{told} = ({told} - mean) / std  # of the training data: "
            f"std, mean = torch.std_mean(x, {over}, keepdim=True)"
        )
    if not moments:
        raise DoesNotApply("the inputs have mean 0 and standard deviation 1 already")
    return training.changed(*lines, prepare=(*training.prepare, Normalised(moments)))


@cure("clean-data", treats=("SP202",), changes="training")
def clean_data(training: Training, data: Any, *, most: float = 0.1) -> Training:
    """Leave out samples with a value that is not finite, or fill the gaps in.

    Samples are left out where they are at most the share `most` of the batch; else their gaps are
    filled in with the mean of the feature. A sample whose target is not finite is left out in any
    case. An input of -inf alone is a mask and is not touched.

    Args:
        training: the network and how it is trained.
        data: a batch.
        most: largest share of the samples that is left out.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the data is finite, or every target is to be left out.
    """
    batch = prepared(training, data)
    dim = batches.sample_dim(again(batch), unwrapped(training.model), training.loss)
    fill: dict[int | str, Tensor] = {}
    bad = torch.zeros(0, dtype=torch.bool)
    for key, _, x in _each(batch):
        gaps = ~x.isfinite()
        if x.ndim == 0 or not bool(gaps.any()) or bool((x[gaps] == -torch.inf).all()):
            continue
        moments = _Moments(x, 1 if x.ndim >= 4 else -1) if x.ndim > 1 else _Moments(x[:, None], 1)
        moments.add(x if x.ndim > 1 else x[:, None])
        mean = moments.result(max(x.ndim, 2))[0].to(torch.float32)
        fill[key] = mean if x.ndim > 1 else mean.reshape(())
        rows = ~_good(x, min(dim, x.ndim - 1)).cpu()
        bad = rows if len(bad) != len(rows) else bad | rows
    good_targets = _finite_targets(batch.target)
    lost = good_targets is not None and not bool(good_targets.all())
    if not fill and not lost:
        _all_ignored(batch.target)
        raise DoesNotApply("every input and target of the batch is finite")
    if lost and good_targets is not None and not bool(good_targets.any()):
        raise DoesNotApply("no target of the batch is finite; there is nothing to learn from")
    share = float(bad.to(torch.float32).mean()) if len(bad) else 0.0
    drop = share <= most
    lines = []
    if lost or (drop and fill):
        part = [f"torch.isfinite({k}).flatten(1).all(1)" for k in _names(fill)] if drop else []
        part += ["torch.isfinite(target).reshape(len(target), -1).all(1)"] if lost else []
        lines += [f"keep = {' & '.join(part)}", "inputs, target = inputs[keep], target[keep]"]
    if fill and not drop:
        lines += [
            f"{k} = torch.where(torch.isfinite({k}), {k}, mean)  # of each feature's finite values"
            for k in _names(fill)
        ]
    return training.changed(*lines, prepare=(*training.prepare, Cleaned(fill, drop, dim)))


def _names(keys: Iterable[int | str]) -> list[str]:
    return [k if isinstance(k, str) else f"input{k + 1}" if k else "inputs" for k in keys]


def _all_ignored(target: Any) -> None:
    """The other way to a loss of nan."""
    if isinstance(target, Tensor) and target.numel() and bool((target == -100).all()):
        raise DoesNotApply(
            "every target of this batch is the ignored value -100, so that the loss divides zero "
            "by zero; leave such batches out"
        )
