"""Signal first, noise after, on one input (Hochreiter & Schmidhuber 1997, section 5.3)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from signalprop.errors import SignalpropError
from signalprop.studies.tasks.checks import whole
from signalprop.studies.tasks.scores import within
from signalprop.studies.tasks.sequences import Sequences, random_lengths, steps_before
from signalprop.studies.tasks.task import Criterion, Published, Task

Variant = Literal["3a", "3b", "3c"]

_INPUT_VARIANCE = 0.2
_TARGET_VARIANCE = 0.1

#: tolerance, then the criterion
_CRITERIA: dict[Variant, tuple[float, Criterion]] = {
    "3a": (
        0.2,
        Criterion(
            "none of 256 random test sequences has an absolute error above 0.2 (ST1), and the "
            "mean absolute error is below 0.01 (ST2)",
            sequences=256,
            error=0.01,
        ),
    ),
    "3b": (
        0.2,
        Criterion(
            "fewer than 6 of 256 random test sequences have an absolute error above 0.2 (ST1), "
            "and the mean absolute error is below 0.04 (ST2)",
            sequences=256,
            wrong=5,
            error=0.04,
        ),
    ),
    "3c": (
        0.1,
        Criterion(
            "none of 256 random test sequences differs from the noise-free target by more than "
            "0.1, and the mean absolute difference is below 0.015",
            sequences=256,
            error=0.015,
        ),
    ),
}

#: variant, T, N -> sequences until the (last) criterion, and what else the table says
_TABLES: dict[tuple[Variant, int, int], tuple[int, str]] = {
    ("3a", 100, 3): (39_850, "table 4; ST1 after 27,380; then 0.000195 of 2,560 misclassified"),
    ("3a", 100, 1): (64_330, "table 4; ST1 after 58,370; then 0.000117 of 2,560 misclassified"),
    ("3a", 1_000, 3): (452_460, "table 4; ST1 after 446,850; then 0.000078 of 2,560"),
    ("3b", 100, 3): (43_250, "table 5; ST1 after 41,740; then 0.00828 of 2,560 misclassified"),
    ("3b", 100, 1): (78_430, "table 5; ST1 after 74,950; then 0.01500 of 2,560 misclassified"),
    ("3b", 1_000, 1): (485_080, "table 5; ST1 after 481,060; then 0.01207 of 2,560"),
    ("3c", 100, 3): (269_650, "table 6; then 0.00558 of 2,560 misclassified, mean error 0.014"),
    ("3c", 100, 1): (565_640, "table 6; then 0.00441 of 2,560 misclassified, mean error 0.012"),
}


def two_sequences(length: int = 100, informative: int = 3, variant: Variant = "3a") -> Task:
    """Say at the end whether the first elements of a noisy sequence were +1 or -1.

    Hochreiter & Schmidhuber 1997, section 5.3, after Bengio, Simard & Frasconi 1994. One input,
    one output. The first N elements are 1 for class 1 and -1 for class 2 (each with probability
    1/2); all others are Gaussian noise of mean 0 and variance 0.2. The sequence's length is drawn
    evenly from T to T + T/10. One error, at the last element.

    | variant | first N elements | target of class 1 | of class 2 | right: error below |
    |---------|------------------|-------------------|------------|--------------------|
    | 3a      | 1 or -1          | 1                 | 0          | 0.2                |
    | 3b      | plus noise, variance 0.2 | 1         | 0          | 0.2                |
    | 3c      | 1 or -1          | 0.2               | 0.8        | 0.1, to the noise-free target |

    In 3c the target is that value plus Gaussian noise of variance 0.1 (`Sequences.targets`); it is
    judged by the noise-free value (`Sequences.truth`), the conditional expectation.

    The lag is T - N steps, to the last of the N elements, any of which gives the class away
    (in 3b only more or less). 3a and 3b are easy: random weights solve them faster, says the paper.

    Args:
        length: T, the smallest number of elements; 100 and 1,000 in the paper.
        informative: N; 1 and 3 in the paper.
        variant: of the table above.

    Returns:
        The task.

    Raises:
        SignalpropError: the variant is unknown, or N is not below T.
    """
    whole("informative", informative, 1)
    whole("length", length, informative + 1)
    if variant not in _CRITERIA:
        raise SignalpropError(f"variant has to be '3a', '3b' or '3c', not {variant!r}")
    tolerance, criterion = _CRITERIA[variant]
    found = _TABLES.get((variant, length, informative))
    return Task(
        name=f"two-sequences-{variant}-{length}-{informative}",
        title=f"two-sequence problem {variant}, T = {length:,}, N = {informative}",
        source=f"Hochreiter & Schmidhuber 1997, section 5.3, task {variant}",
        n_in=1,
        n_out=1,
        target="last step",
        loss="mse" if variant == "3c" else "bce",
        lag=length - informative,
        nearest=length - informative,
        score=within(tolerance),
        criterion=criterion,
        draw=partial(_draw, length=length, informative=informative, variant=variant),
        published=()
        if found is None
        else (
            Published(
                "LSTM, 3 blocks of 1 cell",
                found[0],
                None,
                "Hochreiter & Schmidhuber 1997, tables 4 to 6, means of 10 trials",
                found[1],
            ),
        ),
    )


def _draw(
    n: int, generator: torch.Generator | None, *, length: int, informative: int, variant: Variant
) -> Sequences:
    first = torch.randint(2, (n, 1), generator=generator).float()  # 1: class 1
    lengths = random_lengths(n, length, generator)
    inside = steps_before(lengths)
    values = torch.randn(inside.shape, generator=generator) * _INPUT_VARIANCE**0.5
    if variant == "3b":
        values[:, :informative] += 2 * first - 1
    else:
        values[:, :informative] = 2 * first - 1
    truth = targets = first
    if variant == "3c":
        truth = 0.8 - 0.6 * first
        targets = truth + torch.randn(n, 1, generator=generator) * _TARGET_VARIANCE**0.5
    return Sequences(
        elements=(values * inside).unsqueeze(-1),
        n_in=1,
        targets=targets,
        truth=truth,
        lengths=lengths,
        mask=steps_before(lengths, only_last=True),
    )
