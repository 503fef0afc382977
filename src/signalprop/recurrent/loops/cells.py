"""Loops over cells: a module that is called again and again, each time with what it made before."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from signalprop.capture.time import TimeAxis
from signalprop.capture.trace import Site, Trace

#: calls from which on a module is taken to be a loop's
FEWEST = 3


def loops(model: nn.Module, trace: Trace) -> Iterator[TimeAxis]:
    """The time axes of hand-written loops over torch's cells.

    Args:
        model: the model.
        trace: a pass of it.

    Yields:
        One for every cell that was called in a row.
    """
    for path, module in model.named_modules():
        if not isinstance(module, nn.RNNCellBase):
            continue
        h = _calls(trace, path, path)
        c = _calls(trace, path, f"{path}.c")
        if len(h) < FEWEST or not all(s.delta for s in h):
            continue
        values = tuple(s.delta.rms for s in h if s.delta)
        cells = tuple(s.delta.rms for s in c if s.delta)
        steps = tuple(range(1, len(h) + 1))
        whole = cells if len(cells) == len(values) else ()
        yield TimeAxis(path, op_of(module), 0, False, len(h), steps, values, whole, ())


def op_of(cell: nn.RNNCellBase) -> str:
    """`lstm`, `gru`, `rnn_tanh` or `rnn_relu`."""
    if isinstance(cell, nn.RNNCell):
        return f"rnn_{cell.nonlinearity}"
    return type(cell).__name__.lower().removesuffix("cell")


def _calls(trace: Trace, path: str, base: str) -> list[Site]:
    """The sites of a module's calls, in the order in which they were made."""
    named = re.compile(re.escape(base) + r"(#\d+)?")
    found = [s for s in trace.sites.values() if s.module == path and named.fullmatch(s.name)]
    return sorted(found, key=lambda s: s.order)
