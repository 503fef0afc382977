"""What watching a training costs, against the same loop without.

    python -m benchmarks.bench_watch [--nets NAME ...] [--rounds N] [--peers] [--alarms] [--json F]

Asked, as CPU time over the plain loop's: at most 1.02 at the default interval of 50 steps, 1.05 at
every 10th step, 1.35 at every step; steps that are not sampled below 2 microseconds per module.

Steps with and without a watcher alternate in one process, on one thread: what else a machine does,
and where its clock goes, is the same for both. A ratio is that of the sums over a block of steps, a
figure the median and the quartiles of the blocks. Every block has a network, an optimizer and a run
file of its own, and two steps before the clock starts. The learning rate is so small that the
network stays as it is: on one batch over and over gradients otherwise fade into denormal numbers,
which slow down the plain step. What a watcher does in threads of its own counts, what it does in
another process does not.

`--peers` adds other tools (their environment: `benchmarks.watch_peers.setup`), `--alarms` counts
the networks of the tests that are called ill by any of them, the healthy and the sick.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from benchmarks.bench_recurrent import processor
from benchmarks.networks import NETWORKS
from benchmarks.timing import RESULTS, machine
from benchmarks.watch_peers import peers
from benchmarks.watchers import Hooks, Norms, Pure, Signalprop, Watcher

#: too small to change anything, too large to be lost in rounding
LEARNING_RATE = 1e-7
#: CPU seconds that a block has at least, and its steps
BLOCK, FEWEST = 0.5, 10
#: steps from one sample to the next in a run that is never sampled again
NEVER = 10**9
WARM = 2


class Way(NamedTuple):
    """A watcher at one of its intervals."""

    watcher: type[Watcher]
    every: int | None = None


PLAIN = Way(Watcher)
OURS: dict[str, Way] = {
    "not watched (how sure the figures are)": PLAIN,
    "signalprop, every step": Way(Signalprop, 1),
    "signalprop, every 10": Way(Signalprop, 10),
    "signalprop, every 50": Way(Signalprop, 50),
    "signalprop, not sampled": Way(Signalprop, NEVER),
    "signalprop without compiled sums, every step": Way(Pure, 1),
    "hooks: 4 statistics, gradient norms": Way(Hooks),
    "gradient norms alone": Way(Norms),
}


def others() -> dict[str, Way]:
    """The other tools at every step, and at their default interval where that is another.

    A block is too short for one sample in 1000 steps: that ratio is of the steps between samples.
    """
    found = {}
    for name, watcher in peers.PEERS.items():
        if watcher.default != 1:
            found[f"{name}, every {watcher.default} (default)"] = Way(watcher)
        found[f"{name}, every step"] = Way(watcher, 1)
    return found


class Training:
    """A network of its own on its batch, and who watches it."""

    def __init__(self, network: str, way: Way, folder: Path) -> None:
        torch.manual_seed(0)
        self.model, (self.x, self.y), self.loss, self.optimizer = NETWORKS[network]()
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        self.watcher = way.watcher(self.model, self.optimizer, way.every, folder)
        self.done = 0

    def steps(self, count: int) -> None:
        """Train for some steps."""
        watcher = self.watcher
        for _ in range(count):
            watcher.before(self.done)
            self.optimizer.zero_grad()
            loss = self.loss(self.model(self.x), self.y)
            loss.backward()
            watcher.backward()
            self.optimizer.step()
            watcher.ended(loss)
            self.done += 1


class Block(NamedTuple):
    """CPU seconds of a block of steps."""

    steps: int
    plain: float
    watched: float
    behind: float  # threads beside the one that trains, until the last step
    flush: float
    close: float

    @property
    def ratio(self) -> float:
        """Of the steps, and what went on behind them."""
        return (self.watched + self.behind) / self.plain

    @property
    def flushed(self) -> float:
        """The same with what was still to be written after the last step."""
        return (self.watched + self.behind + self.flush) / self.plain


def block(network: str, way: Way, steps: int, plain: Training) -> Block:
    """Train watched and plain in turn, step by step."""
    clock = time.thread_time
    with tempfile.TemporaryDirectory() as folder:
        training = Training(network, way, Path(folder))
        taken = {training: 0.0, plain: 0.0}
        try:
            for one in taken:
                one.steps(WARM)
            gc.collect()
            start, own = time.process_time(), clock()
            for pair in range(steps):
                for one in list(taken)[:: 1 if pair % 2 else -1]:
                    before = clock()
                    one.steps(1)
                    taken[one] += clock() - before
            behind = time.process_time() - start - (clock() - own)
            start = time.process_time()
            training.watcher.flush()
            flush = time.process_time() - start
        finally:
            start = time.process_time()
            training.watcher.close()
        close = time.process_time() - start
    return Block(steps, taken[plain], taken[training], max(0.0, behind), flush, close)


def cost(network: str, ways: Mapping[str, Way], rounds: int) -> dict[str, Any]:
    """Every way's time over the plain loop's; for one that does not run, why."""
    plain = Training(network, PLAIN, Path())
    five = block(network, PLAIN, 5, plain).plain
    fewest = max(FEWEST, math.ceil(BLOCK * 5 / five))
    taken: dict[str, list[Block]] = {name: [] for name in ways}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            every = way.every or way.watcher.default or 1
            # whole periods, but of an interval that is longer than any block
            steps = every * math.ceil(fewest / every) if every <= 100 else fewest
            try:
                if name not in failed:
                    taken[name].append(block(network, way, steps, plain))
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"[:300]
    step = statistics.median(one.plain / one.steps for blocks in taken.values() for one in blocks)
    found: dict[str, Any] = {"plain step, ms": round(1e3 * step, 2)}
    for name, blocks in taken.items():
        found[name] = {"failed": failed[name]} if name in failed else figures_of(blocks)
    return found


def figures_of(blocks: list[Block]) -> dict[str, Any]:
    """Medians and quartiles of the blocks of one way."""
    ratios = [one.ratio for one in blocks]
    return {
        "median": round(statistics.median(ratios), 3),
        "quartiles": quartiles(ratios),
        "with flush": round(statistics.median(one.flushed for one in blocks), 3),
        "in other threads": round(statistics.median(one.behind / one.plain for one in blocks), 3),
        "closing, ms": round(1e3 * statistics.median(one.close for one in blocks), 1),
    }


def quartiles(values: list[float]) -> list[float]:
    """The lower and the upper one."""
    if len(values) < 2:
        return [round(values[0], 3)] * 2
    low, _, high = statistics.quantiles(values, n=4)
    return [round(low, 3), round(high, 3)]


def unsampled(network: str, steps: int = 40) -> dict[str, float]:
    """Microseconds that a step costs which is not sampled, in a real loop.

    Hooks before and after those of the watch take the time between, on this thread's clock; what
    two such hooks cost with nothing between them is taken off.
    """
    clock = time.thread_time_ns
    taken: dict[type[Watcher], float] = {}
    for watcher in (Watcher, Signalprop):
        with tempfile.TemporaryDirectory() as folder:
            at: list[int] = []

            def note(*_: Any, at: list[int] = at) -> None:
                at.append(clock())

            training = _between(network, Way(watcher, NEVER), Path(folder), note)
            training.steps(WARM)
            costs = []
            for _ in range(steps):
                at.clear()
                training.steps(1)
                before, after_before, after, after_after = at[:4]
                costs.append(after_before - before + after_after - after)
                loss = torch.zeros(())
                start = clock()
                training.watcher.ended(loss)
                costs[-1] += clock() - start
            training.watcher.close()
            taken[watcher] = statistics.median(costs)
    modules = sum(1 for _ in training.model.modules())
    step = (taken[Signalprop] - taken[Watcher]) / 1e3
    return {
        "us per step": round(step, 1),
        "modules": modules,
        "us per module": round(step / modules, 3),
    }


def _between(network: str, way: Way, folder: Path, note: Any) -> Training:
    """A training whose watch is registered between two hooks of ours, at either end of a step."""

    class Between(way.watcher):
        def start(self) -> None:
            self.optimizer.register_step_pre_hook(note)
            self.optimizer.register_step_post_hook(note)
            super().start()
            self.optimizer.register_step_pre_hook(note)
            self.optimizer.register_step_post_hook(note)

    return Training(network, Way(Between, way.every), folder)


# ---- as one of `make bench` ------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_watch(network: str) -> None:
    torch.set_num_threads(1)
    figures = {f"cost, {network}": cost(network, OURS, 3)}
    figures[f"steps not sampled, {network}"] = unsampled(network)
    write(RESULTS / "watch-cpu.json", figures)


# ---- as a command ----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, help="blocks of each way: 3; 2 with --peers")
    parser.add_argument("--peers", action="store_true", help="other tools, too")
    parser.add_argument("--alarms", action="store_true", help="false alarms, too")
    parser.add_argument("--no-cost", action="store_true", help="false alarms only")
    parser.add_argument("--json", type=Path, default=RESULTS / "watch-cpu.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    peers.quiet()
    ways = OURS | others() if given.peers else OURS
    rounds = given.rounds or (2 if given.peers else 3)
    figures: dict[str, Any] = {}
    if given.peers:
        figures["versions"] = {name: peers.version(name) for name in peers.PEERS}
    for network in () if given.no_cost else given.nets:
        load = round(os.getloadavg()[0], 1)
        # all that was in one run stays together
        what = f"cost beside other tools, {network}" if given.peers else f"cost, {network}"
        figures[what] = {"load": load, **cost(network, ways, rounds)}
        show(what, figures)
        figures[f"steps not sampled, {network}"] = unsampled(network)
        show(f"steps not sampled, {network}", figures)
        write(given.json, figures)
    if given.alarms:
        # it builds the networks of the tests, which the costs do without
        from benchmarks.watch_alarms import OURS as OUR_ALARMS
        from benchmarks.watch_alarms import THEIRS, count

        for name, asked in (OUR_ALARMS | THEIRS if given.peers else OUR_ALARMS).items():
            for health in ("healthy", "sick"):
                what = f"alarms on {health} networks, {name}"
                figures[what] = count(asked, health)
                show(what, figures)
                write(given.json, figures)


def show(name: str, figures: Mapping[str, Any]) -> None:
    print(name, *(f"  {k}: {v}" for k, v in figures[name].items()), sep="\n", flush=True)


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """Keep what there is; figures that this run has not measured again stay."""
    about = {**machine(), "model": processor()}
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before.get("figures", {}) if before.get("machine") == about else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"machine": about, "figures": kept | dict(figures)}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
