"""`horizon`: how many steps back in time the credit of the last step reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.observe import check, eager, unwrapped
from signalprop.capture.sandbox import random_state, untouched
from signalprop.capture.time import Horizon
from signalprop.errors import ModelError, SignalpropError
from signalprop.recurrent.horizon.attention import Attending, attention_curve, span_of
from signalprop.recurrent.horizon.cells import Calls, Cut, Loop, Tape
from signalprop.recurrent.horizon.curve import aligned, curve_of, horizon_of
from signalprop.recurrent.horizon.result import Exponents, Gains, Horizons
from signalprop.recurrent.horizon.seen import Seen
from signalprop.recurrent.jacobians.exponents import exponents_of
from signalprop.recurrent.jacobians.gains import gains_of
from signalprop.recurrent.jacobians.steps import Place, Steps, steps_of

#: steps whose Jacobians are measured unless told otherwise, spread over the sequence
CHOSEN = 16
#: up to this size of the state the Jacobians of a module of the user's are written out
WIDE = 64


def horizon(
    model: nn.Module,
    batch: Any,
    loss: Loss = None,
    *,
    errors: int = 4,
    samples: int | None = 8,
    gains: bool = True,
    spectra: bool = False,
    exponents: int = 0,
    steps: Sequence[int] | None = None,
    batch_dim: int | None = None,
    seed: int = 0,
) -> Horizons:
    """Measure how far back in time the credit of the last step reaches, layer by layer.

    A random error e is put on the last state s_T alone, and goes back through the layer's own
    recurrence, e J_T J_(T-1) ...: credit at lag k is ||d<e, s_T>/ds_(T-k)|| / ||e||, which is
    ||ds_T/ds_(T-k)||_F / sqrt(n) where e is Gaussian (n the size of the state). The state is h, of
    an LSTM h and c as they are handed to the next step; nothing arrives on the way, so the curve
    says what the layer does to an error and not where a loss puts one. Of stacked layers each is
    measured by itself, at the states that it has in the network; packed sequences are counted back
    from their own ends, the reverse direction the way it runs. Rates are nats per step (Hochreiter
    1991; Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013).

    `nn.RNN`, `nn.GRU` and `nn.LSTM` with all options, in one call or one for every step; the layers
    of `signalprop.nets`; loops over torch's cells; modules of any kind that are called again and
    again with what they returned. Where a model attends, the curve is the credit that the output at
    the last position (that is not padded) owes the embedding at each earlier one.

    Args:
        model: any module; afterwards bit for bit what it was, also after an error.
        batch: as for `trace`; a target is not needed.
        loss: as for `trace`; not needed, it only says whether the batch holds a target.
        errors: how many random errors for each sample.
        samples: of how many samples of the batch, spread over it; None takes all.
        gains: whether to measure the step Jacobians: their largest singular value and their
            Frobenius norm.
        spectra: whether to keep all singular values of these; n^3 operations for every step and
            sample.
        exponents: how many of the largest Lyapunov exponents to measure; a QR of (n, exponents) for
            every step.
        steps: whose Jacobians, from 2 to the number of steps; None takes 16, spread.
        batch_dim: dimension of the samples, as for `trace`.
        seed: of the errors; torch's random numbers stay where they are.

    Returns:
        The curves, gains and exponents.

    Raises:
        SignalpropError: nothing in the model recurs or attends, sequences have one step only, the
            model raised, a Jacobian is not finite, or an argument is out of range.

    Note:
        Cost: one forward pass with its graph (three where the model loops over a module that is not
        torch's), and a sweep in float64 over the samples: with the defaults about one to four
        training steps on a CPU, without `gains` one to two.
        The model runs in the mode it is in: with dropout, for one draw of it.
        Where it misleads: it is about the states of this batch, and of one layer; what skips
        connections hand past a layer is not in it. A curve that a note says is cut short has left
        the range of floats there.

    Examples:
        >>> import torch, signalprop as sp
        >>> from signalprop.recurrent.horizon.measure import horizon
        >>> net = torch.nn.LSTM(3, 8)
        >>> seen = horizon(net, torch.randn(50, 4, 3), batch_dim=1)
        >>> seen.curves[0].op, seen.curves[0].lags[-1], seen.curves[0].steps < 10
        ('lstm', 49, True)
    """
    asked = _Asked(errors, samples, gains, spectra, exponents, steps, seed)
    asked.check()
    model = unwrapped(model)
    check(model)
    with random_state():
        given = batches.first_of(batch)
        if batch_dim is None:
            batch_dim = batches.sample_dim(given, model, loss)
    loss = loss or batches.stand_in(given, model)

    def read(gradients: bool = True) -> Batch:
        return batches.read(given, model, loss, batch_dim=batch_dim, gradients=gradients)

    with untouched(model) as sandbox, eager():
        for parameter in sandbox.parameters.values():
            sandbox.before_write(parameter)  # nobody watches who writes where
            if parameter.is_floating_point():
                parameter.requires_grad_(True)  # so that errors go through frozen parts, too
        found = _Found(model, asked, read)
        found.measure(batch_dim)
    return Horizons(
        type(model).__name__,
        found.size,
        tuple(found.curves),
        tuple(found.gains),
        tuple(found.exponents),
        tuple(found.notes),
    )


@dataclass(frozen=True)
class _Asked:
    """What is wanted."""

    errors: int
    samples: int | None
    gains: bool
    spectra: bool
    exponents: int
    steps: Sequence[int] | None
    seed: int

    def check(self) -> None:
        """Raise where an argument is out of range."""
        for name, value, least in (
            ("errors", self.errors, 1),
            ("samples", self.samples, 1),
            ("exponents", self.exponents, 0),
        ):
            if value is not None and value < least:
                raise SignalpropError(f"{name}={value}; give a whole number from {least} up")
        if self.steps is not None and (not self.steps or min(self.steps) < 2):
            raise SignalpropError("steps count from 2: t=2 leads from the first to the second")


@dataclass
class _Found:
    """The measurement as it goes on."""

    model: nn.Module
    asked: _Asked
    read: Callable[..., Batch]
    size: int = 0
    curves: list[Horizon] = field(default_factory=list)
    gains: list[Gains] = field(default_factory=list)
    exponents: list[Exponents] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)

    def measure(self, batch_dim: int) -> None:
        """All there is."""
        seen, calls, attending, data = self._pass()
        for chain in seen.chains:
            for run in chain.runs():
                self._layer(run.place, len(run.x), run.outputs, lambda s, r=run: steps_of(r, s))
        for run in seen.runs:
            self._layer(run.place, len(run.x), run.outputs, lambda s, r=run: steps_of(r, s))
        for line in seen.linear:
            self._layer(line.place, len(line.a), line.a, line.steps)
        self.notes += [
            f"{site} is given its own state detached (truncated backpropagation): credit ends there"
            for site in sorted(seen.cut)
        ]
        again: list[Loop] = []
        for loop in calls.found():
            run = loop.run() if loop.is_cell else None
            if loop.detached:
                self.notes.append(
                    f"{loop.path} is given its own state detached (truncated backpropagation): "
                    "credit ends there"
                )
            if run is not None:
                self._layer(run.place, len(run.x), run.outputs, lambda s, r=run: steps_of(r, s))
            else:
                again.append(loop)
        if again:
            self._loops(again)
        span = span_of(attending, data.size, batch_dim)
        if span is not None:
            curve, note = attention_curve(
                span, attending.masks, self.asked.errors, self._generator()
            )
            self._add(curve, note)
            self.size = max(self.size, data.size)
        if not self.curves:
            self._nothing()

    def _pass(self) -> tuple[Seen, Calls, Attending, Batch]:
        """One forward pass; again without gradients for the inputs where the model sets its own."""
        for gradients in (True, False):
            data = self.read(gradients=gradients)
            seen, calls = Seen(self.model), Calls(self.model)
            attending = Attending(self.model, data.inputs)
            try:
                with random_state(), calls, attending, seen:
                    self.model(*data.args, **data.kwargs)
                break
            except Exception as error:
                if gradients and "flags of leaf" in str(error):
                    continue
                raise _dressed(error) from error
        return seen, calls, attending, data

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.asked.seed)

    def _layer(
        self, place: Place, length: int, like: torch.Tensor, make: Callable[[torch.Tensor], Steps]
    ) -> None:
        if length < 2:
            self.short.append(place.site)
            return
        rows = like.shape[1]
        count = min(self.asked.samples or rows, rows)
        if not count:
            raise SignalpropError(f"{place.site or 'the model'} was given no samples")
        chosen = torch.linspace(0, rows - 1, count).round().long()
        steps = make(chosen)
        if steps.length < 2:
            self.short.append(place.site)
            return
        self.size = max(self.size, count)
        self._add(*curve_of(steps, self.asked.errors, like.dtype, self._generator()))
        self._steps(steps)

    def _add(self, curve: Horizon, note: str | None) -> None:
        self.curves.append(curve)
        if note is not None:
            self.notes.append(note)

    def _steps(self, steps: Steps) -> None:
        if self.asked.gains or self.asked.spectra:
            chosen = self._chosen(steps.length)
            generator = self._generator()
            if isinstance(steps, Tape) and steps.size > WIDE and not self.asked.spectra:
                self.notes.append(
                    f"{steps.place.site}: the step Jacobians of {steps.size} x {steps.size} are "
                    "only written out for spectra=True"
                )
            else:
                spectra = self.asked.spectra
                self.gains.append(gains_of(steps, chosen, spectra=spectra, generator=generator))
        if self.asked.exponents:
            self.exponents.append(exponents_of(steps, self.asked.exponents, self._generator()))

    def _chosen(self, length: int) -> tuple[int, ...]:
        if self.asked.steps is None:
            spread = torch.linspace(2, length, min(CHOSEN, length - 1))
            return tuple(int(t) for t in spread.round())
        if max(self.asked.steps) > length:
            raise SignalpropError(
                f"steps={max(self.asked.steps)}, but the longest sequence has {length} steps"
            )
        return tuple(sorted(set(self.asked.steps)))

    def _loops(self, loops: list[Loop]) -> None:
        """Loops over modules that are not torch's, or whose state the code around them changes."""
        made = self._again(loops, keep=False)
        skipping = []
        for loop in loops:
            tape = Tape(Place(loop.path, loop.op), _part(loop, made.made[loop.path]))
            dtype = tape.made[-1][1][0].dtype
            curve, note = curve_of(tape, self.asked.errors, dtype, self._generator())
            if tape.skips:
                skipping.append(loop)
                continue
            self.size = max(self.size, tape.rows)
            self._add(curve, note)
            self._steps(tape)
        if skipping:
            made = self._again(skipping, keep=True)
        for loop in skipping:
            tape = Tape(Place(loop.path, loop.op), _part(loop, made.made[loop.path]))
            sizes = tape.whole(self.asked.errors, self._generator())
            dtype = tape.made[-1][1][0].dtype
            self.size = max(self.size, tape.rows)
            self._add(*horizon_of(tape.place, aligned(sizes, tape.lengths), dtype))
            self.notes.append(
                f"{loop.path}: the code around it keeps a state of its own, so credit was taken "
                f"back in {str(dtype).removeprefix('torch.')} over all paths, and the step "
                "Jacobians are not known"
            )

    def _again(self, loops: list[Loop], *, keep: bool) -> Cut:
        data = self.read(gradients=True)
        try:
            with random_state(), Cut(loops, keep=keep) as made:
                self.model(*data.args, **data.kwargs)
        except Exception as error:
            raise _dressed(error) from error
        return made

    def _nothing(self) -> None:
        if self.short:
            raise SignalpropError(
                f"{self.short[0] or 'the model'} was given sequences of one step, which have no "
                "horizon; give longer ones, or hand the state from call to call"
            )
        raise SignalpropError(
            f"nothing in {type(self.model).__name__} recurs over time or attends over positions "
            "(nn.RNN, nn.GRU, nn.LSTM, a loop over cells, attention), so there is no horizon; "
            "signalprop.trace shows how the signal fares over depth"
        )


def _part(loop: Loop, made: list[Any]) -> list[Any]:
    """The calls of the longest sequence; all of a cell's, whose state is not its own."""
    if loop.is_cell:
        return made
    begin, end = loop.longest
    return made[begin:end]


def _dressed(error: Exception) -> SignalpropError:
    if isinstance(error, SignalpropError):
        return error
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else 'no message'}".rstrip(". ")
    return ModelError(f"the model raised {text}; check that the batch is what model.forward takes")
