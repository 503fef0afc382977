"""Two marked numbers, to be added or multiplied (Hochreiter & Schmidhuber 1997, 5.4 and 5.5)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from signalprop.studies.tasks.checks import whole
from signalprop.studies.tasks.scores import within
from signalprop.studies.tasks.sequences import Sequences, random_lengths, steps_before
from signalprop.studies.tasks.task import Criterion, Published, Task

_EARLY = 10  # the first mark lies among so many pairs
_TOLERANCE = 0.04

#: T -> training sequences, note of table 7 (means of 10 trials)
_TABLE_7 = {
    100: (74_000, "then 1 of 2,560 wrong"),
    500: (209_000, "then 0 of 2,560 wrong"),
    1_000: (853_000, "then 1 of 2,560 wrong; from 370,000 to 2,020,000"),
}


def adding(length: int = 100) -> Task:
    """Add two numbers that were marked long ago (Hochreiter & Schmidhuber 1997, section 5.4).

    Each element is a pair: a number drawn evenly from [-1, 1], and a marker. One of the first ten
    pairs is drawn and marked (its number is X_1), then one of the first T/2 - 1 pairs that are
    still unmarked (X_2), so that both lie in the first half. Marked pairs have the marker 1, the
    first and the last pair of the sequence -1, all others 0. The length is drawn evenly from T to
    T + T/10. Target at the last pair: 0.5 + (X_1 + X_2) / 4, in [0, 1]; right: an absolute error
    below 0.04. Answering 0.5 always has a mean squared error of 0.039 (1/24 = 0.042 where the first
    pair is not marked).

    Where the first pair of all gets marked, its marker stays -1 and its number is set to 0, so
    that nothing of it is needed. The paper says so of X_1; here the same is done where it is X_2.

    Lags: the last marked pair is at least T/2 steps from the end (`nearest`, the paper's minimal
    lag), the first one T - 10 (`lag`), sequences with a mark on the first pair left aside.

    Args:
        length: T, the smallest number of pairs; 100, 500 and 1,000 in the paper.

    Returns:
        The task.

    Raises:
        SignalpropError: the length is no whole number of at least 22.
    """
    known = _TABLE_7.get(length)
    return _task(
        "adding",
        length,
        "5.4, experiment 4",
        Criterion(
            "the 2,000 most recent training sequences were right (absolute error below 0.04), and "
            "the average error is below 0.01",
            sequences=2_000,
            error=0.01,
        ),
        (_published(known[0], "table 7", known[1]),) if known else (),
    )


def multiplication(length: int = 100) -> Task:
    """Multiply two numbers that were marked long ago (Hochreiter & Schmidhuber 1997, section 5.5).

    As `adding`, but the numbers are drawn evenly from [0, 1], the target is X_1 X_2, and the number
    of a marked first pair is set to 1. Answering 1/4 always has a mean squared error of 0.060
    (7/144 = 0.049 where the first pair is not marked).

    The paper stops twice: as soon as fewer than 140, then fewer than 13, of the 2,000 most recent
    training sequences have an absolute error above 0.04; the criterion here is the second.

    The paper's "MSE" of 0.0139 at 14 of 2,560 wrong cannot be a mean squared error: 2,546 errors
    up to 0.04 and 14 up to 1 give 0.0071 at most. `Score.error` is the mean absolute error.

    Args:
        length: T, the smallest number of pairs; 100 in the paper.

    Returns:
        The task.

    Raises:
        SignalpropError: the length is no whole number of at least 22.
    """
    return _task(
        "multiplication",
        length,
        "5.5, experiment 5",
        Criterion(
            "fewer than 13 of the 2,000 most recent training sequences have an absolute error "
            "above 0.04",
            sequences=2_000,
            wrong=12,
        ),
        (
            _published(482_000, "table 8", "to fewer than 140; then 139 of 2,560 wrong"),
            _published(1_273_000, "table 8", "to fewer than 13; then 14 of 2,560 wrong"),
        )
        if length == 100
        else (),
    )


def _published(sequences: int, table: str, note: str) -> Published:
    source = f"Hochreiter & Schmidhuber 1997, {table}, means of 10 trials"
    return Published("LSTM, 2 blocks of 2 cells", sequences, None, source, note)


def _task(
    name: str, length: int, section: str, criterion: Criterion, published: tuple[Published, ...]
) -> Task:
    # so that the marks of the first ten pairs lie in the first half
    whole("length", length, 2 * _EARLY + 2)
    product = name == "multiplication"
    return Task(
        name=f"{name}-{length}",
        title=f"{name} problem, T = {length:,}",
        source=f"Hochreiter & Schmidhuber 1997, section {section}",
        n_in=2,
        n_out=1,
        target="last step",
        loss="mse",
        lag=length - _EARLY,
        nearest=length - length // 2,
        score=within(_TOLERANCE),
        criterion=criterion,
        draw=partial(_draw, length=length, product=product),
        published=published,
    )


def _draw(n: int, generator: torch.Generator | None, *, length: int, product: bool) -> Sequences:
    lengths = random_lengths(n, length, generator)
    inside = steps_before(lengths)
    rows = torch.arange(n)
    first = torch.randint(_EARLY, (n,), generator=generator)
    second = torch.randint(length // 2 - 1, (n,), generator=generator)
    second += second >= first  # the unmarked pairs, counted past the marked one
    pairs = torch.zeros(*inside.shape, 2)
    numbers, markers = pairs[..., 0], pairs[..., 1]
    numbers.uniform_(0 if product else -1, 1, generator=generator)
    numbers *= inside
    idle = 1.0 if product else 0.0
    for place in (first, second):
        markers[rows, place] = 1
        numbers[rows, place] = torch.where(place == 0, idle, numbers[rows, place])
    markers[:, 0] = -1
    markers[rows, lengths - 1] = -1
    truth = _target(numbers[rows, first], numbers[rows, second], product)
    return Sequences(
        elements=pairs,
        n_in=2,
        targets=truth,
        truth=truth,
        lengths=lengths,
        mask=steps_before(lengths, only_last=True),
    )


def _target(x_1: Tensor, x_2: Tensor, product: bool) -> Tensor:
    return (x_1 * x_2 if product else 0.5 + (x_1 + x_2) / 4).unsqueeze(1)
