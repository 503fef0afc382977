"""When a sequence counts as solved: every output close, the legal ones most active, or right.

All take activations (after the output units' own nonlinearity), the truth and the mask, and are
judged on every step that the mask names. An output that is not a number is never right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.studies.tasks.sequences import at_end, same_shape


@dataclass(frozen=True)
class Score:
    """How well a net does on a batch.

    Attributes:
        solved: share of the sequences solved.
        error: mean over the judged steps: the absolute error per output unit, or, where only the
            order of the outputs counts, the share of wrong steps.
        sequences: how many were judged.
    """

    solved: float
    error: float
    sequences: int


#: activations, truth, mask -> score
Scoring = Callable[[Tensor, Tensor, Tensor], Score]


def within(tolerance: float, *, end_only: bool = False) -> Scoring:
    """Solved: the absolute error of every output unit is below a tolerance, at every judged step.

    Args:
        tolerance: the bound.
        end_only: judge the last step of the mask only.

    Returns:
        The scoring function. Truth: classes (B,) or (B, T), which stand for a 1 at that unit and
        0 at the others; or values (B, n_out).
    """
    return partial(_within, tolerance=tolerance, end_only=end_only)


def _within(
    activations: Tensor, truth: Tensor, mask: Tensor, *, tolerance: float, end_only: bool
) -> Score:
    same_shape(activations, truth, mask)
    if truth.is_floating_point() or truth.dim() == 1:
        activations = at_end(activations, mask)
    elif end_only:
        truth = at_end(truth.unsqueeze(-1), mask).squeeze(-1)
        activations = at_end(activations, mask)
    else:
        _every_step(activations, truth, mask)
    error = (activations - _values(truth, activations)).abs()
    close = (error < tolerance).all(-1)
    if error.dim() == 2:
        return _score(close, error.mean())
    return _score((close | ~mask).all(-1), error[mask].mean())


def legal_most_active(activations: Tensor, truth: Tensor, mask: Tensor) -> Score:
    """Solved: at every judged step each legal answer's output is above every other output.

    Args:
        activations: (B, T, n_out).
        truth: the legal answers, (B, T, n_out) bool.
        mask: (B, T) bool.

    Returns:
        The score; its error is the share of steps with a wrong order.
    """
    _every_step(activations, truth, mask)
    least_legal = activations.masked_fill(~truth, torch.inf).amin(-1)
    most_illegal = activations.masked_fill(truth, -torch.inf).amax(-1)
    return _steps(least_legal > most_illegal, mask)


def right_class(activations: Tensor, truth: Tensor, mask: Tensor) -> Score:
    """Solved: at every judged step the most active output is the class.

    Args:
        activations: (B, T, n_out), or (B, n_out) for a class per sequence.
        truth: classes (B, T) or (B,).
        mask: (B, T) bool.

    Returns:
        The score; its error is the share of judged steps with a wrong class.
    """
    same_shape(activations, truth, mask)
    if truth.dim() == 1:
        activations, truth = at_end(activations, mask).unsqueeze(1), truth.unsqueeze(1)
        mask = torch.ones_like(truth, dtype=torch.bool)
    else:
        _every_step(activations, truth, mask)
    right = (activations.argmax(-1) == truth) & activations.isfinite().all(-1)
    return _steps(right, mask)


def _every_step(activations: Tensor, truth: Tensor, mask: Tensor) -> None:
    same_shape(activations, truth, mask)
    if activations.dim() == 2:
        raise SignalpropError(
            "this task is judged at every step: give the outputs as (sequences, steps, units)"
        )


def _values(truth: Tensor, like: Tensor) -> Tensor:
    if truth.is_floating_point():
        return truth
    return torch.nn.functional.one_hot(truth, like.shape[-1]).to(like.dtype)


def _steps(right: Tensor, mask: Tensor) -> Score:
    return _score((right | ~mask).all(-1), 1 - right[mask].float().mean())


def _score(solved: Tensor, error: Tensor) -> Score:
    return Score(float(solved.float().mean()), float(error), len(solved))
