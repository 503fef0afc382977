"""Tasks with long time lags: the six experiments of 1997, continual Reber, copying, digits.

Sequences are batch first, drawn in the full lengths of the papers, the same for the same state of
a `torch.Generator`:

>>> import torch
>>> from signalprop.studies.tasks import adding
>>> task = adding(500)
>>> batch = task.sample(32, torch.Generator().manual_seed(0))
>>> net = torch.nn.LSTM(task.n_in, 8, batch_first=True)
>>> read = torch.nn.Linear(8, task.n_out)
>>> outputs = read(net(batch.inputs)[0])
>>> loss = task.objective(outputs, batch)
>>> task.criterion.met(task.evaluate(outputs, batch))
False
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from signalprop.errors import SignalpropError
from signalprop.studies.tasks.copying import copying, memoryless
from signalprop.studies.tasks.long_lags import no_regularities, noise_free, very_long_lags
from signalprop.studies.tasks.marked import adding, multiplication
from signalprop.studies.tasks.pixels import sequential_digits
from signalprop.studies.tasks.reber import continual_reber, embedded_reber, reber_sets
from signalprop.studies.tasks.scores import Score
from signalprop.studies.tasks.sequences import Sequences
from signalprop.studies.tasks.task import Criterion, Published, Task
from signalprop.studies.tasks.temporal_order import temporal_order
from signalprop.studies.tasks.two_sequences import two_sequences

__all__ = [
    "TASKS",
    "Criterion",
    "Published",
    "Score",
    "Sequences",
    "Task",
    "adding",
    "continual_reber",
    "copying",
    "embedded_reber",
    "find",
    "memoryless",
    "multiplication",
    "no_regularities",
    "noise_free",
    "reber_sets",
    "sequential_digits",
    "temporal_order",
    "two_sequences",
    "very_long_lags",
]

#: every task in its full published size, by a short name; call the entry to make it
TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {
        "embedded-reber": embedded_reber,
        "continual-reber": partial(continual_reber, 100_000),
        "noise-free": partial(noise_free, 100),
        "no-regularities": partial(no_regularities, 100),
        "very-long-lags": partial(very_long_lags, 1_000, 1_000),
        "two-sequences-3a": partial(two_sequences, 100, 3, "3a"),
        "two-sequences-3b": partial(two_sequences, 100, 3, "3b"),
        "two-sequences-3c": partial(two_sequences, 100, 3, "3c"),
        "adding-100": partial(adding, 100),
        "adding-500": partial(adding, 500),
        "adding-1000": partial(adding, 1_000),
        "multiplication": partial(multiplication, 100),
        "temporal-order-2": partial(temporal_order, 100, 2),
        "temporal-order-3": partial(temporal_order, 100, 3),
        "copying": partial(copying, 500),
        "sequential-digits": partial(sequential_digits, False),
        "permuted-digits": partial(sequential_digits, True),
    }
)


def find(name: str) -> Task:
    """Make a task of `TASKS` by its name.

    Returns:
        The task.

    Raises:
        SignalpropError: there is none of that name; the message lists near matches.
        MissingPackageError: the task's data come with a package that is not installed.
    """
    if name in TASKS:
        return TASKS[name]()
    near = difflib.get_close_matches(name.lower().replace("_", "-"), TASKS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(TASKS)}"
    raise SignalpropError(f"there is no task {name!r}; {hint}")
