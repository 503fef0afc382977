"""What a trial costs, as a ratio to the same trainings run plainly on the same cores.

Run with `make bench`, or `pytest benchmarks/bench_trials.py`. Asked: 8 cures x 3 seeds on a small
MLP at most 1.3 times the same 24 trainings, start of the workers included. Plainly: a loop of six
lines for each training, in as many fresh processes as there are cores. The trial also trains the
untouched network, diagnoses before and after, and judges three times on the way; what it saves it
saves by stopping losers. Wall time, as it is about processes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.timing import keep
from torch import Tensor, nn

import signalprop as sp
from signalprop.cures.catalogue import CATALOGUE
from signalprop.cures.trials.engine import cores

STEPS, BATCH, SEEDS = 1000, 64, 3
NAMES = ("he-init", "glorot-init", "lecun-init", "orthogonal-init", "critical-init",
         "leaky-activation", "normalise", "residual")  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 64, generator=draw)
    return x, x[:, :10].argmax(1)


def build() -> nn.Sequential:
    layers = [m for _ in range(6) for m in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def plain(name: str, seed: int) -> float:
    """One training as a user writes it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    x, y = data()
    model = build()
    cure = CATALOGUE[name]
    model = cure(model, (x[:BATCH], y[:BATCH])) if "data" in cure.changes else cure(model)
    optimizer = adam(model.parameters())
    batches = list(torch.randperm(len(x)).split(BATCH))
    for step in range(STEPS):
        rows = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
    return loss.item()


def all_plain(workers: int) -> None:
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(plain, *zip(*[(n, s) for n in NAMES for s in range(SEEDS)], strict=True)))


def tried(workers: int) -> Any:
    from loky import get_reusable_executor

    found = sp.cure(
        build, data(), nn.functional.cross_entropy, adam, budget=STEPS, seeds=SEEDS,
        batch_size=BATCH, cures=[CATALOGUE[n] for n in NAMES], engine="loky", workers=workers,
    )  # fmt: skip
    get_reusable_executor().shutdown()  # the next call starts its workers anew
    return found


def test_trial(benchmark: Any) -> None:
    """8 cures x 3 seeds; at most 1.3 times the 24 trainings run plainly."""
    workers = cores()

    def timed(call: Callable[[int], Any]) -> float:
        begun = time.perf_counter()
        call(workers)
        return time.perf_counter() - begun

    pairs = [(timed(all_plain), timed(tried)) for _ in range(3)]
    whole = sum(t.step for t in tried(workers).trials) / (len(NAMES) * STEPS)
    figures = {
        "trial / 24 plain trainings": {
            "median": round(statistics.median(b / a for a, b in pairs), 3),
            "plain_s": round(statistics.median(a for a, _ in pairs), 2),
            "workers": workers,
            "updates made, of those without stopping": round(whole, 3),
        }
    }
    keep("trials", figures)
    benchmark.extra_info |= figures["trial / 24 plain trainings"]
    benchmark.pedantic(lambda: None, rounds=1)
