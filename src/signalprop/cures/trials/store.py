"""What trials keep on disk, so that they can be interrupted and go on: candidates and legs."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from signalprop.cures.training import Training
from signalprop.cures.trials.data import Data
from signalprop.cures.trials.leg import Outcome, Runner
from signalprop.cures.trials.metric import Score
from signalprop.errors import SignalpropError


class Store:
    """A folder of trials.

    Args:
        folder: made where it does not exist.

    Raises:
        SignalpropError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SignalpropError(f"{folder} cannot be made: {error.strerror}") from error

    def claim(self, facts: Mapping[str, Any]) -> None:
        """See that the folder is empty, or holds trials of the very same.

        Args:
            facts: what trials depend on.

        Raises:
            SignalpropError: it holds others.
        """
        path = self.folder / "trials.json"
        now = json.loads(json.dumps(facts))
        if not path.exists():
            _write(path, json.dumps(now, indent=1).encode())
            return
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            before = dict[str, Any]()
        if before != now:
            other = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
            raise SignalpropError(
                f"{self.folder} holds trials with another {', '.join(other)}; choose an empty "
                "folder, or delete it"
            )

    def remember(self, name: str, value: int) -> int:
        """A number that was measured once, and stands when trials go on."""
        path = self.folder / f"{name}.txt"
        if not path.exists():
            _write(path, str(value).encode())
        return int(path.read_text())

    def put(self, name: str, value: Any) -> None:
        """Keep a value."""
        import cloudpickle

        try:
            data = cloudpickle.dumps(value)
        except Exception as error:
            raise SignalpropError(
                f"the {name.split('-')[0]} cannot be sent to another process ({error}); use "
                "engine='serial'"
            ) from error
        _write(self.folder / f"{name}.pkl", data)

    def has(self, name: str) -> bool:
        """Whether a value is kept."""
        return (self.folder / f"{name}.pkl").exists()


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = path.with_suffix(f".part{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)


@functools.lru_cache(maxsize=1)
def _shared(path: str) -> tuple[Data, Score | None, int]:
    """The data of a folder; read once in every process."""
    return _read(Path(path) / "data.pkl")


def _read(path: Path) -> Any:
    import cloudpickle

    return cloudpickle.loads(path.read_bytes())


def run_leg(folder: str, key: str, seed: int, total: int, until: int) -> Outcome:
    """Train a candidate up to an update, from where its last leg ended.

    Args:
        folder: of the store.
        key: of the candidate.
        seed: of the order of the batches.
        total: updates of the whole training.
        until: the update to stop at.

    Returns:
        The outcome; kept, and read again if the same leg is asked for twice.
    """
    home = Path(folder)
    here = home / f"leg-{key}-{seed}-{until}.pkl"
    if here.exists():
        return _read(here)[0]
    data, score, batch_dim = _shared(folder)
    training: Training = _read(home / f"candidate-{key}-{seed}.pkl")
    runner = Runner(training, data, seed=seed, total=total, score=score, batch_dim=batch_dim)
    legs = sorted((int(p.stem.rpartition("-")[2]), p) for p in home.glob(f"leg-{key}-{seed}-*.pkl"))
    before = [path for step, path in legs if step < until]
    if before:
        last, state = _read(before[-1])
        if last.failed:  # it stays where it failed
            return last
        runner.resume(state)
    outcome = runner.run(until)
    import cloudpickle

    _write(here, cloudpickle.dumps((outcome, None if outcome.failed else runner.state())))
    for path in before:  # the outcome stays, the weights are not needed any more
        _write(path, cloudpickle.dumps((_read(path)[0], None)))
    return outcome


def fingerprint(models: Iterable[nn.Module], data: Data) -> str:
    """A hash of weights and batches."""
    from torch.utils._pytree import tree_leaves

    made = hashlib.sha256()
    values = [v for model in models for v in model.state_dict().values()]
    values += [x for batch in (*data.train, *data.held_out) for x in tree_leaves(batch)]
    for value in values:
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            made.update(flat.view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]
