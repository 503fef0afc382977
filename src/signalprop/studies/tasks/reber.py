"""Embedded Reber strings, one by one (1997) and as an endless stream (2000).

Reber's grammar, with B at its start and E at its end; at a fork each way has probability 1/2:

    1: T -> 2 or P -> 3      3: T -> 3 or V -> 5      5: P -> 4 or V -> 6
    2: S -> 2 or X -> 4      4: X -> 3 or S -> 6      6: E

The embedded string is B, then T or P, then a whole Reber string, then the same T or P, then E.
Only the last letter but one needs more than the last few letters: it repeats the second.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from signalprop.studies.tasks.checks import on_cpu, whole
from signalprop.studies.tasks.scores import legal_most_active
from signalprop.studies.tasks.sequences import PADDING, Sequences, steps_before
from signalprop.studies.tasks.task import Criterion, Published, Task

#: the seven letters; a letter's place is its symbol
LETTERS = "BTPSXVE"

_REBER = {
    0: (("B", 1), ("B", 1)),
    1: (("T", 2), ("P", 3)),
    2: (("S", 2), ("X", 4)),
    3: (("T", 3), ("V", 5)),
    4: (("X", 3), ("S", 6)),
    5: (("P", 4), ("V", 6)),
    6: (("E", 7), ("E", 7)),
}
_SHORTEST = 9


def _tables() -> tuple[Tensor, Tensor, Tensor]:
    """Next state and letter by (state, coin), and legal letters by state, of the automaton."""
    # States: 0 and 1 before the outer B and the outer T or P; then seven of the inner grammar, the
    # outer letter and E, for T and again for P; the last state has ended and stays.
    end = 2 + 2 * 9
    arcs: dict[int, tuple[tuple[str, int], tuple[str, int]]] = {
        0: (("B", 1), ("B", 1)),
        1: (("T", 2), ("P", 11)),
    }
    for outer, base in (("T", 2), ("P", 11)):
        for state, ((letter, to), (other, other_to)) in _REBER.items():
            arcs[base + state] = ((letter, base + to), (other, base + other_to))
        arcs[base + 7] = ((outer, base + 8), (outer, base + 8))
        arcs[base + 8] = (("E", end), ("E", end))
    after = torch.full((end + 1, 2), end)
    letter = torch.full((end + 1, 2), PADDING)
    legal = torch.zeros(end + 1, len(LETTERS), dtype=torch.bool)
    for state, ways in arcs.items():
        for coin, (symbol, to) in enumerate(ways):
            after[state, coin], letter[state, coin] = to, LETTERS.index(symbol)
            legal[state, LETTERS.index(symbol)] = True
    legal[end, LETTERS.index("B")] = True  # the next string of a stream
    return after, letter, legal


_AFTER, _LETTER, _LEGAL = _tables()


def _strings(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Embedded strings as symbols (n, L), padded, and the state after each letter."""
    state = torch.zeros(n, dtype=torch.long)
    symbols: list[Tensor] = []
    states: list[Tensor] = []
    while bool((state < len(_AFTER) - 1).any()):
        coin = torch.randint(2, (n,), generator=generator)
        symbols.append(_LETTER[state, coin])
        state = _AFTER[state, coin]
        states.append(state)
    return torch.stack(symbols, 1), torch.stack(states, 1)


def _separate(n: int, generator: torch.Generator | None) -> Sequences:
    return _batch(*_strings(n, generator))


def _batch(symbols: Tensor, states: Tensor) -> Sequences:
    lengths = (symbols != PADDING).sum(1) - 1  # nothing follows the last letter
    longest = int(lengths.max()) + 1
    symbols, states, mask = symbols[:, :longest], states[:, :longest], steps_before(lengths)
    return Sequences(
        elements=symbols[:, :-1].masked_fill(~mask, PADDING),
        n_in=len(LETTERS),
        targets=symbols[:, 1:].clamp(min=0) * mask,
        truth=_LEGAL[states[:, :-1]] & mask.unsqueeze(-1),
        lengths=lengths,
        mask=mask,
    )


def _stream(n: int, generator: torch.Generator | None, *, length: int) -> Sequences:
    strings = length // _SHORTEST + 2  # enough even if every one of them is short
    symbols, states = _strings(n * strings, generator)
    there = (symbols != PADDING).view(n, -1)
    # the first `length + 1` letters of each stream, in order
    wanted = there & (there.cumsum(1) <= length + 1)
    letters = symbols.view(n, -1)[wanted].view(n, length + 1)
    legal = _LEGAL[states.view(n, -1)[wanted].view(n, length + 1)[:, :-1]]
    return Sequences(
        elements=letters[:, :-1].contiguous(),
        n_in=len(LETTERS),
        targets=letters[:, 1:].contiguous(),
        truth=legal,
        lengths=torch.full((n,), length),
        mask=torch.ones(n, length, dtype=torch.bool),
    )


def embedded_reber() -> Task:
    """Predict the next letter of embedded Reber strings (Hochreiter & Schmidhuber 1997, 5.1).

    7 inputs and 7 outputs, one per letter; strings of at least 9 letters, 12 on average. The net
    reads all letters but the last and predicts all but the first. It is trained on the letter that
    came, and judged by the letters that could: at each step the outputs of the legal letters have
    to be the most active ones. The long dependency: the inner E, read at the earliest as 7th
    letter, has to be answered with the 2nd letter; hence the lag of 5 steps (table 10 of the paper
    says 9, the number of letters of the shortest string; Gers et al. 2000 say 7).

    The paper trains on a fixed random set of 256 strings and tests on 256 that are not among them:
    `reber_sets`. `sample` draws every string anew.

    Returns:
        The task.
    """
    table = "Hochreiter & Schmidhuber 1997, table 1"
    return Task(
        name="embedded-reber",
        title="embedded Reber grammar",
        source="Hochreiter & Schmidhuber 1997, section 5.1, experiment 1",
        n_in=len(LETTERS),
        n_out=len(LETTERS),
        target="every step",
        loss="cross-entropy",
        lag=_SHORTEST - 4,
        nearest=_SHORTEST - 4,
        score=legal_most_active,
        criterion=Criterion(
            "on 256 training and 256 test strings the legal next letters are always the most "
            "active outputs",
            sequences=512,
        ),
        draw=_separate,
        published=(
            Published("RTRL, 3 hidden units", 173_000, None, table, "'some fraction' of the runs"),
            Published("RTRL, 12 hidden units", 25_000, None, table, "'some fraction' of the runs"),
            Published("Elman net", None, 0.0, table, "not after 200,000 sequences"),
            Published("recurrent cascade correlation", 182_000, 0.5, table),
            Published("LSTM, 4 blocks of 1 cell, rate 0.1", 39_740, 1.0, table),
            Published("LSTM, 3 blocks of 2 cells, rate 0.1", 21_730, 1.0, table),
            Published("LSTM, 3 blocks of 2 cells, rate 0.2", 14_060, 0.97, table),
            Published("LSTM, 4 blocks of 1 cell, rate 0.5", 9_500, 0.97, table),
            Published("LSTM, 3 blocks of 2 cells, rate 0.5", 8_440, 1.0, table),
        ),
    )


def reber_sets(
    train: int = 256, test: int = 256, generator: torch.Generator | None = None
) -> tuple[Sequences, Sequences]:
    """The sets of Hochreiter & Schmidhuber 1997 (after Fahlman 1991): no test string is trained on.

    Strings may come more than once within a set.

    Args:
        train: number of training strings.
        test: number of test strings.
        generator: on the CPU; None: torch's own.

    Returns:
        Training and test strings.

    Raises:
        SignalpropError: a number is no whole number above zero, or the generator not on the CPU.
    """
    whole("train", train, 1)
    whole("test", test, 1)
    pool = 8 * test
    while True:
        symbols, states = _strings(train + pool, on_cpu(generator))
        kind = symbols.unique(dim=0, return_inverse=True)[1]
        new = train + (~torch.isin(kind[train:], kind[:train])).nonzero().flatten()
        if len(new) >= test:
            return _batch(symbols[:train], states[:train]), _batch(
                symbols[new[:test]], states[new[:test]]
            )
        pool *= 2  # most short strings are among the training strings


def continual_reber(length: int = 1_000) -> Task:
    """Predict the next letter of an endless stream of embedded Reber strings (Gers et al. 2000).

    Gers, Schmidhuber & Cummins 2000, "Learning to forget". Strings follow one another without a
    mark or a reset: after E the next letter is B. Each sequence is the beginning of a stream, cut
    after `length` letters; it starts with a string. The paper trains on a stream until the first
    wrong prediction and tests on 10 streams of 100,000 letters.

    Choice: a prediction is right when the legal letters are the most active outputs, as in 1997;
    the paper asks for an error below 0.49 at each output unit.

    Args:
        length: letters that the net reads per stream.

    Returns:
        The task.

    Raises:
        SignalpropError: the length is no whole number of at least 9.
    """
    whole("length", length, _SHORTEST)
    table = "Gers, Schmidhuber & Cummins 2000, table 2"
    return Task(
        name=f"continual-reber-{length}",
        title=f"continual embedded Reber grammar, {length:,} letters",
        source="Gers, Schmidhuber & Cummins 2000, continual embedded Reber grammar",
        n_in=len(LETTERS),
        n_out=len(LETTERS),
        target="every step",
        loss="cross-entropy",
        lag=_SHORTEST - 4,
        nearest=_SHORTEST - 4,
        score=legal_most_active,
        criterion=Criterion("all predictions right on 10 streams of 100,000 letters", sequences=10),
        draw=partial(_stream, length=length),
        published=(
            Published("LSTM of 1997, state reset from outside", None, 0.74, table),
            Published("LSTM of 1997", None, 0.0, table),
            Published("LSTM with forget gates", None, 0.18, table),
            Published("LSTM with forget gates, decaying rate", None, 0.62, table),
        ),
    )
