"""In which order X and Y came, long ago (Hochreiter & Schmidhuber 1997, section 5.6)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from signalprop.errors import SignalpropError
from signalprop.studies.tasks.checks import whole
from signalprop.studies.tasks.scores import within
from signalprop.studies.tasks.sequences import PADDING, Sequences, random_lengths, steps_before
from signalprop.studies.tasks.task import Criterion, Published, Task

#: the eight symbols; a symbol's place is its number
SYMBOLS = "EBabcdXY"

#: first place that each relevant symbol can have, counted from 1, for T = 100
_FROM = {2: (10, 50), 3: (10, 33, 66)}
_CLASSES = {2: "QRSU", 3: "QRSUVABC"}


def temporal_order(length: int = 100, relevant: Literal[2, 3] = 2) -> Task:
    """Classify a sequence by the order of two or three symbols far apart (tasks 6a and 6b).

    Hochreiter & Schmidhuber 1997, section 5.6. Eight symbols E, B, a, b, c, d, X, Y, as vectors
    with a single 1. A sequence starts with E, ends with the trigger B, and is otherwise drawn
    evenly from a, b, c, d, but for the relevant places, each of which holds X or Y with probability
    1/2. The length is drawn evenly from 100 to 110; the places, counted from 1, from 10 to 20 and
    from 50 to 60 (6a), or 10 to 20, 33 to 43 and 66 to 76 (6b). Classes: XX, XY, YX, YY (the
    paper's Q, R, S, U), or XXX, XXY, XYX, XYY, YXX, YXY, YYX, YYY. One error, at B. Right: the
    absolute error of every output unit is below 0.3.

    Lags: 80 steps to the first relevant symbol (`lag`), 40 (6a) or 24 (6b) to the last (`nearest`,
    as in table 10).

    Choice: for another T all these numbers are multiplied by T/100 and rounded down.

    Args:
        length: T, the smallest length; 100 in the paper.
        relevant: number of relevant symbols: 2 for task 6a, 3 for task 6b.

    Returns:
        The task.

    Raises:
        SignalpropError: the length is no whole number of at least 20, or relevant neither 2 nor 3.
    """
    whole("length", length, 20)
    if relevant not in _FROM:
        raise SignalpropError(f"relevant has to be 2 or 3, not {relevant!r}")
    starts = tuple(start * length // 100 for start in _FROM[relevant])
    wide = length // 10
    table = "Hochreiter & Schmidhuber 1997, table 9"
    published = {
        2: Published("LSTM, 2 blocks of 2 cells", 31_390, None, table, "then 1 of 2,560 wrong"),
        3: Published("LSTM, 3 blocks of 2 cells", 571_100, None, table, "then 2 of 2,560 wrong"),
    }
    return Task(
        name=f"temporal-order-{relevant}-{length}",
        title=f"temporal order of {relevant} symbols, T = {length:,}",
        source=f"Hochreiter & Schmidhuber 1997, section 5.6, task 6{'ab'[relevant - 2]}",
        n_in=len(SYMBOLS),
        n_out=len(_CLASSES[relevant]),
        target="last step",
        loss="cross-entropy",
        lag=length - starts[0] - wide,
        nearest=length - starts[-1] - wide,
        score=within(0.3),
        criterion=Criterion(
            "the 2,000 most recent training sequences were right (absolute error of every output "
            "below 0.3), and the average error is below 0.1",
            sequences=2_000,
            error=0.1,
        ),
        draw=partial(_draw, length=length, starts=starts, wide=wide),
        published=(published[relevant],) if length == 100 else (),
    )


def _draw(
    n: int, generator: torch.Generator | None, *, length: int, starts: tuple[int, ...], wide: int
) -> Sequences:
    lengths = random_lengths(n, length, generator)
    inside = steps_before(lengths)
    rows = torch.arange(n)
    symbols = torch.randint(
        SYMBOLS.index("a"), SYMBOLS.index("d") + 1, inside.shape, generator=generator
    ).masked_fill(~inside, PADDING)
    classes = torch.zeros(n, dtype=torch.long)
    for start in starts:
        place = torch.randint(start, start + wide + 1, (n,), generator=generator) - 1
        which = torch.randint(2, (n,), generator=generator)
        symbols[rows, place] = SYMBOLS.index("X") + which
        classes = 2 * classes + which
    symbols[:, 0] = SYMBOLS.index("E")
    symbols[rows, lengths - 1] = SYMBOLS.index("B")
    return Sequences(
        elements=symbols,
        n_in=len(SYMBOLS),
        targets=classes,
        truth=classes,
        lengths=lengths,
        mask=steps_before(lengths, only_last=True),
    )
