"""A first symbol to be kept while others pass (Hochreiter & Schmidhuber 1997, section 5.2)."""

from __future__ import annotations

import math
from functools import partial

import torch

from signalprop.studies.tasks.checks import whole
from signalprop.studies.tasks.scores import within
from signalprop.studies.tasks.sequences import PADDING, Sequences, steps_before
from signalprop.studies.tasks.task import Criterion, Published, Task

_STOP = 0.1  # probability that the distractors of task 2c end, after the first q

#: (p, q) of table 3 -> training sequences of LSTM until success, means of 20 trials
_TABLE_3 = {
    (50, 50): 30_000,
    (100, 100): 31_000,
    (200, 200): 33_000,
    (500, 500): 38_000,
    (1_000, 1_000): 49_000,
    (500, 1_000): 49_000,
    (200, 1_000): 75_000,
    (100, 1_000): 135_000,
    (50, 1_000): 203_000,
}


def noise_free(p: int = 100) -> Task:
    """Task 2a: predict the next symbol of one of two sequences that differ at both ends only.

    Hochreiter & Schmidhuber 1997, section 5.2. The symbols a_1, ..., a_{p-1}, a_p = x, a_{p+1} = y
    are vectors of p + 1 components with a single 1. The two sequences, each with probability 1/2,
    are (y, a_1, ..., a_{p-1}, y) and (x, a_1, ..., a_{p-1}, x). The net reads the first p symbols
    and predicts the last p, so that p + 1 outputs have errors at each of p steps. The first symbol
    is read at step 1 and asked for at step p: the lag is p - 1 steps here; the paper says p,
    from the first symbol to its return.

    Args:
        p: the delay; 4, 10 and 100 in the paper.

    Returns:
        The task.

    Raises:
        SignalpropError: p is no whole number of at least 2.
    """
    whole("p", p, 2)
    table = "Hochreiter & Schmidhuber 1997, table 2"
    published = {
        4: (
            Published("RTRL, rate 1", 1_043_000, 0.78, table),
            Published("RTRL, rate 4", 892_000, 0.56, table),
            Published("RTRL, rate 10", 254_000, 0.22, table),
        ),
        10: (Published("RTRL", None, 0.0, table, "not after 5,000,000 sequences"),),
        100: (
            Published("RTRL", None, 0.0, table, "not after 5,000,000 sequences"),
            Published("back-propagation through time", None, 0.0, table, "as RTRL"),
            Published("neural sequence chunker", 32_400, 0.33, table),
            Published("LSTM", 5_040, 1.0, table, "18 trials"),
        ),
    }
    return Task(
        name=f"noise-free-{p}",
        title=f"noise-free sequences with regularities, p = {p:,}",
        source="Hochreiter & Schmidhuber 1997, section 5.2, task 2a",
        n_in=p + 1,
        n_out=p + 1,
        target="every step",
        loss="cross-entropy",
        lag=p - 1,
        nearest=p - 1,
        score=within(0.25),
        criterion=Criterion(
            "in 10,000 successive random sequences the absolute error of every output unit is "
            "always below 0.25",
            sequences=10_000,
        ),
        draw=partial(_two_ends, p=p, shuffled=False),
        published=published.get(p, ()),
    )


def no_regularities(p: int = 100) -> Task:
    """Task 2b: as 2a, but p - 1 random symbols between the two ends.

    Hochreiter & Schmidhuber 1997, section 5.2. The symbols between are drawn evenly, with
    repetition, from a_1, ..., a_{p-1}. There are errors at every step, but only the last symbol
    can be predicted for certain, and only that is judged.

    Args:
        p: the delay; 100 in the paper.

    Returns:
        The task.

    Raises:
        SignalpropError: p is no whole number of at least 2.
    """
    whole("p", p, 2)
    lstm = Published("LSTM", 5_680, 1.0, "Hochreiter & Schmidhuber 1997, section 5.2", "18 trials")
    return Task(
        name=f"no-regularities-{p}",
        title=f"noise-free sequences without regularities, p = {p:,}",
        source="Hochreiter & Schmidhuber 1997, section 5.2, task 2b",
        n_in=p + 1,
        n_out=p + 1,
        target="every step",
        loss="cross-entropy",
        lag=p - 1,
        nearest=p - 1,
        score=within(0.25, end_only=True),
        criterion=Criterion(
            "in 10,000 successive random sequences the absolute error of every output unit is "
            "below 0.25 at the sequence's end",
            sequences=10_000,
        ),
        draw=partial(_two_ends, p=p, shuffled=True),
        published=(lstm,) if p == 100 else (),
    )


def very_long_lags(p: int = 1_000, q: int = 1_000) -> Task:
    """Task 2c: say at the end which symbol came second, after at least q random distractors.

    Hochreiter & Schmidhuber 1997, section 5.2. The symbols a_1, ..., a_p, e, b, x, y, in this
    order, are vectors of p + 4 components with a single 1. A sequence is b, then x or y (each with
    probability 1/2), q + k distractors drawn evenly from a_1, ..., a_p, then the trigger e; the
    answer is the second symbol again. k is geometric: after q distractors each step brings e with
    probability 1/10. One error, after e, at two outputs (x, y): the net reads q + k + 3 symbols.
    The lag is q + 1 steps, as in the paper; the net never sees a shorter sequence. The paper's sum
    for the expected length, 4 + sum over k of 0.1 0.9^k (q + k), is q + 13; it prints q + 14.

    Ambiguous: the paper's formula draws distractors from a_1, ..., a_q, its text and table 3
    ("p: number of random inputs") from a_1, ..., a_p; here p. Where p = q they agree.

    As vectors (`Sequences.inputs`) one sequence of p = q = 1,000 takes 4 MB: draw many, but turn
    them into vectors batch by batch.

    Args:
        p: number of distractor symbols.
        q: smallest number of distractors in a sequence.

    Returns:
        The task.

    Raises:
        SignalpropError: p or q is no whole number of at least 1.
    """
    whole("p", p, 1)
    whole("q", q, 1)
    lstm = _TABLE_3.get((p, q))
    table = "Hochreiter & Schmidhuber 1997, table 3"
    return Task(
        name=f"very-long-lags-{p}-{q}",
        title=f"very long lags among distractors, p = {p:,}, q = {q:,}",
        source="Hochreiter & Schmidhuber 1997, section 5.2, task 2c",
        n_in=p + 4,
        n_out=2,
        target="last step",
        loss="cross-entropy",
        lag=q + 1,
        nearest=q + 1,
        score=within(0.2),
        criterion=Criterion(
            "in 10,000 successive random sequences the error of both output units is always "
            "below 0.2",
            sequences=10_000,
        ),
        draw=partial(_distracted, p=p, q=q),
        published=(Published("LSTM", lstm, None, table, "20 trials"),) if lstm else (),
    )


def _two_ends(n: int, generator: torch.Generator | None, *, p: int, shuffled: bool) -> Sequences:
    ends = torch.randint(p - 1, p + 1, (n, 1), generator=generator)
    between = torch.arange(p - 1).expand(n, p - 1)
    if shuffled:
        between = torch.randint(p - 1, (n, p - 1), generator=generator)
    targets = torch.cat((between, ends), 1)
    return Sequences(
        elements=torch.cat((ends, between), 1),
        n_in=p + 1,
        targets=targets,
        truth=targets,
        lengths=torch.full((n,), p),
        mask=torch.ones(n, p, dtype=torch.bool),
    )


def _distracted(n: int, generator: torch.Generator | None, *, p: int, q: int) -> Sequences:
    classes = torch.randint(2, (n,), generator=generator)
    # 1 - rand lies in (0, 1]: no logarithm of zero
    even = 1 - torch.rand(n, generator=generator, dtype=torch.float64)
    extra = (even.log() / math.log(1 - _STOP)).floor().long()
    lengths = q + extra + 3
    inside = steps_before(lengths)
    symbols = torch.randint(p, inside.shape, generator=generator).masked_fill(~inside, PADDING)
    symbols[:, 0] = p + 1
    symbols[:, 1] = p + 2 + classes
    symbols[torch.arange(n), lengths - 1] = p
    return Sequences(
        elements=symbols,
        n_in=p + 4,
        targets=classes,
        truth=classes,
        lengths=lengths,
        mask=steps_before(lengths, only_last=True),
    )
