"""Cures of the optimizer: its learning rate, and how large its steps may become."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch
from signalprop.capture.observe import eager, unwrapped
from signalprop.capture.sandbox import random_state
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.inputs import Given, batches_of
from signalprop.cures.modes import prepared
from signalprop.cures.surgery import copied
from signalprop.cures.training import Group, Recipe, Training
from signalprop.errors import LossError, ModelError, SignalpropError

#: optimizers that divide a gradient by its own size
ADAPTIVE = frozenset(
    {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta", "SparseAdam",
     "Adafactor", "Muon"}
)  # fmt: skip
#: a running mean of the losses that is so many times the first one has diverged
GROWN = 4.0


# ---- a learning-rate range test --------------------------------------------------------------


@dataclass(frozen=True)
class RangeTest:
    """Losses of updates whose learning rate rises from one to the next.

    Attributes:
        rates: the learning rate of every update.
        losses: the loss before it.
        smoothed: their running mean, bias-corrected.
        diverged: the rate at which the loss left; None where it never did.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: float | None

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest per factor of the rate."""
        s = self.smoothed
        slopes = [(s[i + 1] - s[i - 1], self.rates[i]) for i in range(1, len(s) - 1)]
        fall, rate = min(slopes, default=(0.0, 0.0))
        return rate if fall < 0 else None


def range_test(
    training: Training,
    data: Any,
    *,
    low: float,
    high: float,
    updates: int = 80,
    memory: float = 0.8,
) -> RangeTest:
    """Train a copy with a learning rate that rises exponentially (Smith 2017, section 3.3).

    Args:
        training: the network and how it is trained; not touched.
        data: a batch, or a loader whose batches are taken in turn.
        low: first learning rate, of the largest of the groups.
        high: last one.
        updates: how many.
        memory: of the running mean of the losses, per update.

    Returns:
        What was seen, up to where the loss diverged: it is not finite, or its running mean has
        risen above the first by more than three times the loss's size there.
    """
    many = list(batches_of(data, updates))
    rates = [low * (high / low) ** (i / max(updates - 1, 1)) for i in range(updates)]
    losses: list[float] = []
    smoothed: list[float] = []
    run = Run(training, many)
    mean, diverged = 0.0, None
    for i, rate in enumerate(rates):
        value = run.update(rate)
        if not math.isfinite(value):
            diverged = rate
            break
        losses.append(value)
        mean = memory * mean + (1 - memory) * value
        smoothed.append(mean / (1 - memory ** (i + 1)))
        if smoothed[-1] > smoothed[0] + (GROWN - 1) * max(abs(smoothed[0]), 1e-12):
            diverged = rate
            break
    return RangeTest(tuple(rates[: len(losses)]), tuple(losses), tuple(smoothed), diverged)


class Run:
    """A copy in training, with the same random numbers every time."""

    def __init__(self, training: Training, many: list[Any]) -> None:
        self.training = replace(training, model=copied(training.model))
        self.model = self.training.model
        self.recipe = training.optimizer.explicit(self.model)
        self.optimizer = self.recipe.build(self.model)
        self.share = [_lr(group) for group in self.optimizer.param_groups]
        self.many = cycle([prepared(training, one) for one in many])
        self.made = 0

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        with _dressed():
            value = self._loss(batch)
        if value.grad_fn is None:
            raise LossError("the loss does not depend on a trained parameter; reconnect the model")
        return value

    def _loss(self, batch: Batch) -> Tensor:
        return batches.loss_of(self.model(*batch.args, **batch.kwargs), batch, self.training.loss)

    def update(self, rate: float | None = None) -> float:
        """One update.

        Args:
            rate: the largest learning rate of the groups, which keep their ratios; None leaves it.

        Returns:
            The loss before it; no update is made where it is not finite.
        """
        most = max(self.share)
        for group, share in zip(self.optimizer.param_groups, self.share, strict=True):
            if rate is not None:
                group["lr"] = rate * (share / most if most else 1.0)
        batch = next(self.many)
        self.made += 1
        value = math.nan

        def closure() -> Tensor:
            nonlocal value
            self.optimizer.zero_grad()
            found = self.loss(batch)
            found.backward()
            if math.isnan(value):
                value = float(found.detach())
            return found

        with random_state(), eager():
            torch.manual_seed(self.made)
            found = closure()
            if not math.isfinite(value):
                return value
            if self.training.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
            step: Callable[..., Any] = self.optimizer.step
            try:
                step()
            except TypeError:  # LBFGS and its like evaluate the loss themselves
                step(closure)
            del found
        return value

    def norm(self) -> float:
        """Norm of the whole gradient of the next batch; makes no update."""
        batch = next(self.many)
        self.made += 1
        with random_state(), eager():
            torch.manual_seed(self.made)
            self.optimizer.zero_grad()
            self.loss(batch).backward()
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(found)) if found else 0.0


@contextmanager
def _dressed() -> Iterator[None]:
    """What the user's code raises as one sentence."""
    try:
        yield
    except SignalpropError:
        raise
    except Exception as error:
        told = (str(error).strip().splitlines() or [""])[0].rstrip(". ")
        raise ModelError(
            f"the model or its loss raised {type(error).__name__}: {told}; repair that before the "
            "optimizer"
        ) from error


def _lr(group: dict[str, Any]) -> float:
    if "lr" not in group:
        raise DoesNotApply("the optimizer has no learning rate")
    return float(group["lr"])


def race(training: Training, data: Any, rate: float, updates: int) -> float:
    """The loss after some updates at one learning rate: median over the last quarter of them.

    Args:
        training: the network and how it is trained; not touched.
        data: a batch, or a loader.
        rate: the learning rate.
        updates: how many.

    Returns:
        The loss; inf where it was not finite on the way.
    """
    run = Run(training, list(batches_of(data, updates)))
    losses = []
    for _ in range(updates):
        value = run.update(rate)
        if not math.isfinite(value):
            return math.inf
        losses.append(value)
    return median(losses[-max(1, updates // 4) :])


def _chosen(
    training: Training, data: Any, seen: RangeTest, bounds: tuple[float, float], updates: int
) -> float:
    """The smallest rate within bounds that brings nine tenths of what the best one brings.

    Returns:
        The rate.

    Raises:
        DoesNotApply: it does not lower the loss by a tenth more than the present one.
    """
    found = [seen.steepest, seen.diverged / 10 if seen.diverged else None]
    found += [seen.diverged / 30 if seen.diverged else None]
    if seen.smoothed:
        found.append(seen.rates[seen.smoothed.index(min(seen.smoothed))] / 10)
    inside = sorted({min(max(r, bounds[0]), bounds[1]) for r in found if r})
    # the same batches at a rate of 0: their losses differ as well
    present = training.optimizer.explicit(training.model).rate
    start, own = (race(training, data, r, updates) for r in (0.0, present))
    told = [(race(training, data, r, updates), r) for r in inside]
    best = min(told, default=(math.inf, 0.0))[0]
    if not math.isfinite(best) or start - best <= 1.1 * max(start - own, 0.0):
        raise DoesNotApply(
            f"no other learning rate within {bounds[0]:.1g} and {bounds[1]:.1g} does better over "
            f"{updates} updates than the present one, which comes to a loss of {own:.3g}"
        )
    return min(r for v, r in told if v <= best + (start - best) / 10)


def _at(recipe: Recipe, rate: float) -> Recipe:
    if recipe.rate > 0:
        return recipe.scaled(rate / recipe.rate)
    return replace(
        recipe,
        groups=tuple(replace(g, options={**g.options, "lr": rate}) for g in recipe.groups),
    )


def _rate_of(training: Training) -> tuple[Recipe, float]:
    recipe = training.optimizer.explicit(training.model)
    if not any("lr" in g.options for g in recipe.groups):
        raise DoesNotApply("the optimizer has no learning rate")
    return recipe, recipe.rate


def _two_digits(rate: float) -> float:
    return float(f"{rate:.1e}")


@cure("lower-learning-rate", treats=("SP102", "SP110", "SP210"), changes="training")
def lower_learning_rate(
    training: Training, data: Any, *, updates: int = 80, trial: int = 24, decades: float = 6.0
) -> Training:
    """Lower the learning rate to what a range test finds (Smith 2017).

    A copy is trained with a rate that rises exponentially up to the present one. The rates of
    steepest descent and a tenth and a thirtieth of where the loss diverges, or of where it is
    lowest, are tried for a few updates from the start, on the same batches and with the same
    random numbers, and the smallest that brings nine tenths of the best one's fall is taken.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.
        updates: of the range test.
        trial: updates of every rate that is tried.
        decades: how far below the present rate the test begins.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no lower rate does better than the present one.
    """
    recipe, rate = _rate_of(training)
    if rate <= 0:
        raise DoesNotApply("the learning rate is 0 already")
    seen = range_test(training, data, low=rate / 10**decades, high=rate, updates=updates)
    if not seen.losses:
        raise DoesNotApply("the loss is not finite before the first update, at any learning rate")
    new = _chosen(training, data, seen, (rate / 10**decades, rate / 2), trial)
    return _changed(training, _at(recipe, _two_digits(new)))


@cure("raise-learning-rate", treats=("SP103", "SP211"), changes="training")
def raise_learning_rate(
    training: Training, data: Any, *, updates: int = 80, trial: int = 24, most: float = 10.0
) -> Training:
    """Raise the learning rate to what a range test finds (Smith 2017).

    As for `lower_learning_rate`, from the present rate upwards.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.
        updates: of the range test.
        trial: updates of every rate that is tried.
        most: the largest rate of the test.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no higher rate does better than the present one.
    """
    recipe, rate = _rate_of(training)
    low = rate if rate > 0 else 1e-8
    if low >= most:
        raise DoesNotApply(f"the learning rate is {rate:g} already")
    seen = range_test(training, data, low=low, high=max(most, 1e3 * low), updates=updates)
    if not seen.losses:
        raise DoesNotApply("the loss is not finite before the first update, at any learning rate")
    new = _chosen(training, data, seen, (2 * low, max(most, 1e3 * low)), trial)
    return _changed(training, _at(recipe, _two_digits(new)))


def _changed(training: Training, recipe: Recipe) -> Training:
    return training.changed(f"optimizer = {recipe.line}", optimizer=recipe)


# ---- steps -----------------------------------------------------------------------------------


@cure("warm-up", treats=("SP210",), changes="training")
def warm_up(training: Training, data: Any, *, updates: int = 100) -> Training:
    """Let the learning rate rise linearly over the first updates.

    lr_t = lr t / updates (Goyal et al. 2017, section 2.2). For Adam 2 / (1 - beta2) updates, 2000
    by default, make the estimate of the second moment sound (Ma & Yarats 2021, section 5).

    Args:
        training: the network and how it is trained.
        data: not looked at.
        updates: how many.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: it is warmed up as long already.
    """
    if updates < 2 or training.warmup >= updates:
        raise DoesNotApply(f"it is warmed up over {max(training.warmup, updates)} updates already")
    return training.changed(
        f"warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / {updates}, "
        f"total_iters={updates})",
        "warmup.step()  # after every optimizer.step()",
        warmup=updates,
    )


@cure("clip-gradient", treats=("SP102", "SP210"), changes="training")
def clip_gradient(
    training: Training, data: Any, *, measured: int = 16, share: float = 0.03
) -> Training:
    """Bound the norm of the whole gradient (Pascanu, Mikolov & Bengio 2013, algorithm 1).

    The bound is the median norm over some batches; for SGD no more than what changes the weights
    by the share `share` of their norm in one update, as the median says nothing good of a gradient
    that explodes in every batch.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.
        measured: batches of a loader whose gradient is measured.
        share: largest |update| / |weights| of SGD.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no gradient is finite, all are zero, or the bound is as low already.
    """
    many = list(batches_of(data, measured))
    run = Run(training, many)
    norms = [n for n in (run.norm() for _ in many) if math.isfinite(n) and n > 0]
    if not norms:
        raise DoesNotApply("no gradient is finite and above zero, so there is nothing to clip")
    bound = median(norms)
    recipe = training.optimizer.explicit(training.model)
    rate = recipe.rate
    if getattr(recipe.kind, "__name__", "") in ("SGD", "ASGD") and rate > 0:
        momentum = max(float(g.options.get("momentum", 0.0)) for g in recipe.groups)
        weights = [p.detach() for p in training.model.parameters() if p.requires_grad]
        size = float(nn.utils.get_total_norm(weights))
        if size > 0:
            bound = min(bound, share * size * (1 - min(momentum, 0.99)) / rate)
    bound = _two_digits(bound)
    if training.clip is not None and training.clip <= bound:
        raise DoesNotApply(f"the gradient is clipped to {training.clip:g} already")
    line = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {bound:g})"
    return training.changed(f"{line}  # before optimizer.step()", clip=bound)


@cure("larger-batch", treats=("SP209",), changes="training")
def larger_batch(training: Training, data: Any, *, samples: int = 32) -> Training:
    """Put several batches together into one.

    Args:
        training: the network and how it is trained.
        data: a batch.
        samples: the batch has as many at least.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: it has as many already.
    """
    size = prepared(training, data).size
    merge = math.ceil(samples / size)
    if merge <= training.merge:
        raise DoesNotApply(f"the batch has {size * training.merge} samples already")
    line = f"loader = torch.utils.data.DataLoader(dataset, batch_size={merge * size}, "
    return training.changed(f"{line}shuffle=True, drop_last=True)", merge=merge)


# ---- the optimizer ---------------------------------------------------------------------------


@cure("rebuild-optimizer", treats=("SP212",), changes="training")
def rebuild_optimizer(training: Training, data: Any) -> Training:
    """Make the optimizer anew, so that it holds every parameter that is trained.

    Args:
        training: the network and how it is trained.
        data: not looked at.

    Returns:
        The changed training; parameters that were missing join the largest group.

    Raises:
        DoesNotApply: the optimizer holds them all, or nothing is trained.
    """
    recipe = training.optimizer.explicit(training.model)
    model = unwrapped(training.model)
    named = training.model.named_parameters()
    trained = [name for name, p in named if p.requires_grad]
    if not trained:
        raise DoesNotApply(f"{type(model).__name__} has no parameter that is trained")
    held = {name for group in recipe.groups for name in group.names}
    missing = tuple(name for name in trained if name not in held)
    if not missing:
        raise DoesNotApply("the optimizer holds every parameter that is trained")
    every = dict(training.model.named_parameters())
    groups = [replace(g, names=tuple(n for n in g.names if n in every)) for g in recipe.groups]
    most = max(range(len(groups)), key=lambda i: len(groups[i].names))
    groups[most] = replace(groups[most], names=(*groups[most].names, *missing))
    return _changed(training, replace(recipe, groups=tuple(groups)))


@cure("adam", treats=("SP101", "SP103"), changes="training")
def adam(training: Training, data: Any, *, lr: float = 1e-3) -> Training:
    """Train with Adam, which divides every gradient by its own size (Kingma & Ba 2015).

    Groups keep their weight decay and the ratios of their learning rates.

    Args:
        training: the network and how it is trained.
        data: not looked at.
        lr: the largest learning rate.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the optimizer does so already.
    """
    recipe = training.optimizer.explicit(training.model)
    name = getattr(recipe.kind, "__name__", "")
    if name in ADAPTIVE:
        raise DoesNotApply(f"{name} divides every gradient by its own size already")
    most = recipe.rate

    def of(group: Group) -> Group:
        share = float(group.options.get("lr", most)) / most if most > 0 else 1.0
        decay = float(group.options.get("weight_decay", 0.0))
        return replace(
            group, options={"lr": lr * share} | ({"weight_decay": decay} if decay else {})
        )

    made = Recipe(torch.optim.Adam, tuple(of(group) for group in recipe.groups))
    return _changed(training, made)


# ---- precision -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wide:
    """Floating inputs and targets of less than 32 bits in float32."""

    def __call__(self, given: Given) -> Given:
        """Change a batch."""
        args, kwargs, y = given
        return (
            tuple(self._wide(x) for x in args),
            {k: self._wide(x) for k, x in kwargs.items()},
            self._wide(y),
        )

    def _wide(self, x: Any) -> Any:
        narrow = isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize < 4
        return x.float() if narrow else x


@dataclass
class Autocast:
    """Two forward hooks, between which a model computes in another dtype."""

    dtype: torch.dtype
    entered: list[AbstractContextManager[Any]] = field(default_factory=list)

    def start(self, module: nn.Module, args: Any) -> None:
        """Before the forward pass."""
        device = next(module.parameters()).device.type
        context = torch.autocast(device, dtype=self.dtype)
        context.__enter__()
        self.entered.append(context)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it, also where it raised."""
        if self.entered:
            self.entered.pop().__exit__(None, None, None)


def _narrow(model: nn.Module) -> list[torch.dtype]:
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    return [t.dtype for t in tensors if t.is_floating_point() and t.dtype.itemsize < 4]


@cure("float32", treats=("SP202",), changes="training")
def float32(training: Training, data: Any) -> Training:
    """Keep the weights and compute in float32, whose largest number is 3e38.

    Args:
        training: the network and how it is trained.
        data: not looked at.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no weight is of a narrower dtype.
    """
    if not _narrow(training.model):
        raise DoesNotApply(
            "the weights are in float32 already; take torch.autocast off, or lower the scale"
        )
    return training.changed(
        "model = model.float()",
        "inputs = inputs.float()",
        model=copied(training.model).float(),
        prepare=(*training.prepare, Wide()),
    )


@cure("float32-weights", treats=("SP211",), changes="training")
def float32_weights(training: Training, data: Any) -> Training:
    """Keep the weights in float32, which small updates move, and compute as before (autocast).

    Micikevicius et al. 2018, section 3.1. Weights in float16 are computed in float32 as well, as
    gradients in float16 would need their loss scaled.

    Args:
        training: the network and how it is trained.
        data: not looked at.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no weight is of a narrower dtype.
    """
    narrow = _narrow(training.model)
    if not narrow:
        raise DoesNotApply("the weights are in float32 already")
    model = copied(training.model).float()
    prepare = (*training.prepare, Wide())
    lines = ["model = model.float()", "inputs = inputs.float()"]
    if torch.bfloat16 in narrow:
        cast = Autocast(torch.bfloat16)
        inner = unwrapped(model)
        inner.register_forward_pre_hook(cast.start)
        inner.register_forward_hook(cast.end, always_call=True)
        lines.append("with torch.autocast(device_type, dtype=torch.bfloat16): output = model(...)")
    return training.changed(*lines, model=model, prepare=prepare)
