"""How many of the networks of the tests a tool calls ill while they train.

On the healthy ones every alarm is false. A tool that never speaks raises none, so the sick ones are
counted, too; many of these are ill before the first step, which is for `diagnose` to say.
"""

from __future__ import annotations

import copy
import itertools
import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.watch_peers.peers import PEERS, VERDICTS
from benchmarks.watchers import Signalprop, Watcher
from tests.cases import Case, Health, cases
from tests.cases.base import plain_loss
from torch.utils.data import DataLoader

#: of each training
STEPS = 200


class Asked(NamedTuple):
    """A tool, its interval (None: its default), and the steps of a training."""

    watcher: type[Watcher]
    every: int | None = None
    steps: int = STEPS


OURS: dict[str, Asked] = {
    "signalprop, every 50": Asked(Signalprop, 50),
    # the rules compare with what was usual: most speak after 32 samples at the earliest
    "signalprop, every 10, 400 steps": Asked(Signalprop, 10, 400),
}
THEIRS: dict[str, Asked] = {
    # at its default interval torch-audit would see one of these steps
    name: Asked(PEERS[name], 50 if PEERS[name].sampled else None)
    for name in VERDICTS
}


def count(asked: Asked, health: Health) -> dict[str, Any]:
    """Train every network of the tests with its own optimizer and data, and count.

    Args:
        asked: the tool.
        health: `healthy`, where an alarm is false, or `sick`.

    Returns:
        How many networks were watched, how many of them got an alarm (what the tool itself grades
        as an issue, critical, a warning or an error), on how many each code, and which.
    """
    told: dict[str, list[dict[str, Any]]] = {}
    lesser = 0
    failed: dict[str, str] = {}
    watched = 0
    start = time.process_time()
    for case in cases(health):
        try:
            found = train(case, *asked)
        except Exception as error:
            failed[case.name] = f"{type(error).__name__}: {error}"[:200]
            continue
        watched += 1
        serious = [alarm for alarm in found if alarm["serious"]]
        if serious:
            told[case.name] = serious
        lesser += bool(found) and not serious
    critical = sum(any(alarm["critical"] for alarm in found) for found in told.values())
    codes = Counter(code for found in told.values() for code in {a["code"] for a in found})
    figures: dict[str, Any] = {
        "networks": watched,
        "with an alarm": len(told),
        "with one above a warning": critical,
        "with lesser remarks only": lesser,
        "networks per code": dict(codes.most_common()),
        "failed": failed,
        "CPU s": round(time.process_time() - start),
    }
    if health == "healthy":
        figures["which"] = {name: _short(found) for name, found in told.items()}
    return figures


def train(
    case: Case, kind: type[Watcher], every: int | None, steps: int = STEPS
) -> list[dict[str, Any]]:
    """What the tool says about one network after some steps."""
    model, data, loss = case.build()
    assert case.optimizer is not None
    optimizer = case.optimizer(model)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watcher = kind(model, optimizer, every, Path(folder))
        try:
            for step, batch in enumerate(itertools.islice(_batches(data), steps)):
                watcher.before(step)
                optimizer.zero_grad()
                value = plain_loss(model, batch, loss)
                value.backward()
                watcher.backward()
                optimizer.step()
                watcher.ended(value)
        finally:
            watcher.close()
        return watcher.alarms() or []


def _batches(data: Any) -> Iterator[Any]:
    """A loader's over and over; a single batch as it was, even if the model writes to it."""
    while True:
        if isinstance(data, DataLoader):
            yield from data
        else:
            yield copy.deepcopy(data)


def _short(found: list[dict[str, Any]], most: int = 2) -> list[str]:
    """The first alarms as lines."""
    lines = []
    for alarm in found[:most]:
        step = f" at step {alarm['step']}" if "step" in alarm else ""
        lines.append(f"{alarm['code']}{step}: {alarm['text']}"[:240])
    more = len(found) - most
    return [*lines, f"and {more} more"] if more > 0 else lines


logging.getLogger("signalprop").setLevel(logging.ERROR)
