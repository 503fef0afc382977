"""Say again what was said long ago (Arjovsky, Shah & Bengio 2016)."""

from __future__ import annotations

import math
from functools import partial

import torch

from signalprop.studies.tasks.checks import whole
from signalprop.studies.tasks.scores import right_class
from signalprop.studies.tasks.sequences import Sequences
from signalprop.studies.tasks.task import Criterion, Task


def copying(length: int = 100, symbols: int = 10, alphabet: int = 8) -> Task:
    """Repeat symbols after a long blank (the copying memory problem).

    Arjovsky, Shah & Bengio 2016, "Unitary evolution recurrent neural networks", after Hochreiter &
    Schmidhuber 1997. The net reads S symbols drawn evenly from an alphabet of K, then T - 1 blanks,
    the delimiter, and S blanks: T + 2S steps of K + 2 inputs (symbols, blank, delimiter). It has to
    answer blank for T + S steps and then the S symbols in their order: K + 1 outputs (symbols,
    blank), an error at every step. The paper has S = 10, K = 8 and T = 100, 200, 300, 500.

    Every symbol returns T + S steps later, which is the lag. Without memory the best mean
    cross-entropy is S ln K / (T + 2S): blanks, then a guess (`memoryless`).

    The paper plots the cross-entropy and names no criterion; here a sequence is solved when the
    most active output is right at every step, and the task when all are.

    Args:
        length: T.
        symbols: S, how many are to be kept.
        alphabet: K, how many different ones there are.

    Returns:
        The task.

    Raises:
        SignalpropError: T or S is no whole number of at least 1, or K of at least 2.
    """
    whole("length", length, 1)
    whole("symbols", symbols, 1)
    whole("alphabet", alphabet, 2)
    return Task(
        name=f"copying-{length}",
        title=f"copying {symbols} symbols over {length:,} steps",
        source="Arjovsky, Shah & Bengio 2016, copying memory problem",
        n_in=alphabet + 2,
        n_out=alphabet + 1,
        target="every step",
        loss="cross-entropy",
        lag=length + symbols,
        nearest=length + symbols,
        score=right_class,
        criterion=Criterion("every answer of every sequence is right", sequences=None),
        draw=partial(_draw, length=length, symbols=symbols, alphabet=alphabet),
    )


def memoryless(length: int = 100, symbols: int = 10, alphabet: int = 8) -> float:
    """The best mean cross-entropy per step that a net without memory can have, in nats."""
    return symbols * math.log(alphabet) / (length + 2 * symbols)


def _draw(
    n: int, generator: torch.Generator | None, *, length: int, symbols: int, alphabet: int
) -> Sequences:
    steps = length + 2 * symbols
    kept = torch.randint(alphabet, (n, symbols), generator=generator)
    elements = torch.full((n, steps), alphabet)
    elements[:, :symbols] = kept
    elements[:, length + symbols - 1] = alphabet + 1
    targets = torch.full((n, steps), alphabet)
    targets[:, -symbols:] = kept
    return Sequences(
        elements=elements,
        n_in=alphabet + 2,
        targets=targets,
        truth=targets,
        lengths=torch.full((n,), steps),
        mask=torch.ones(n, steps, dtype=torch.bool),
    )
