"""Training ordinary networks, several seeds each, with a forecast of how long it takes.

What the studies of the cured architectures have in common. Every net is given the learning rate
that suits it best, among a few, so that none is beaten by a rate chosen for another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.capture.observe import trace
from signalprop.studies.data import Digits
from signalprop.studies.frame import Measurement, Setup, Values
from signalprop.studies.plain import ERRORS

#: images per update, and the norm that gradients are clipped to
BATCH, CLIP = 128, 5.0
#: images in the pass whose delta is measured
SEEN = 64
#: updates that are timed for the forecast
TIMED = 5

#: makes a net; its weights come from torch's global random numbers
Make = Callable[[], nn.Module]


def seeded(make: Make, seed: int) -> nn.Module:
    """The net of that seed, float32."""
    torch.default_generator.manual_seed(seed)
    return make().float()


def fit(net: nn.Module, found: Digits, rate: float, steps: int, seed: int) -> float:
    """Train a net in place with Adam, gradients clipped; it stops where the loss is no number.

    Args:
        net: the net, float32.
        found: the images; those for training are drawn with replacement.
        rate: learning rate.
        steps: updates.
        seed: of the batches.

    Returns:
        Mean loss of the last tenth of the updates; infinite where it was no number.
    """
    order = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    x, y = found.x.float(), found.y
    late: list[float] = []
    for step in range(steps):
        pick = torch.randint(len(x), (BATCH,), generator=order)
        loss = F.cross_entropy(net(x[pick]), y[pick])
        if not math.isfinite(value := loss.item()):
            return math.inf
        if step >= steps - max(1, steps // 10):
            late.append(value)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        adam.step()
    return math.fsum(late) / len(late)


def accuracy(net: nn.Module, found: Digits) -> float:
    """Share of the test images that are named right, the net in evaluation mode and back."""
    mode = net.training
    net.eval()
    with torch.no_grad():
        right = net(found.x_test.float()).argmax(-1) == found.y_test
    net.train(mode)
    return float(right.double().mean())


def chance(found: Digits) -> float:
    """What always naming one class gets at best."""
    return float(found.y_test.bincount().max() / len(found.y_test))


def decay(net: nn.Module, found: Digits, first: str, last: str) -> float:
    """ln(|delta| at `first` / |delta| at `last`) as `signalprop.trace` has it, in float64.

    Args:
        net: the net; it is made float64.
        found: images; the first of the test set are sent through.
        first: a spine site, nearer to the input.
        last: a spine site, nearer to the loss.

    Returns:
        Nats, mean over images; -inf where delta is lost to the last bit.
    """
    batch: tuple[Tensor, Tensor] = found.x_test[:SEEN].double(), found.y_test[:SEEN]
    seen = trace(net.double(), batch, F.cross_entropy)
    between = slice(seen.spine.index(first), seen.spine.index(last))
    return math.fsum(block.decay for block in seen.blocks[between])


@dataclass(frozen=True)
class Trained:
    """Nets of one kind after training.

    Attributes:
        rate: the learning rate that suited it best.
        accuracies: on the test images, one per seed.
        losses: at the end of training, one per seed.
    """

    rate: float
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.accuracies) / len(self.accuracies)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return spread(self.accuracies)

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.losses) / len(self.losses)

    def __str__(self) -> str:
        """Accuracy with its spread."""
        return f"{self.accuracy:.3f} ± {self.spread:.3f}"

    def told(self, name: str) -> list[Measurement]:
        """Accuracy, its spread and the training loss, named `NAME: accuracy` and so on."""
        note = f"learning rate {self.rate:g}"
        told = (("accuracy", self.accuracy), ("spread", self.spread), ("loss", self.loss))
        return [Measurement(f"{name}: {what}", v, "", None, note, tabled=True) for what, v in told]


def ahead(v: Values, one: str, other: str) -> tuple[float, float]:
    """Accuracy of one kind of nets less that of another, and the standard error of that."""
    gain = v[f"{one}: accuracy"] - v[f"{other}: accuracy"]
    spreads = (v[f"{name}: spread"] for name in (one, other))
    return gain, math.hypot(*spreads) / math.sqrt(v["seeds"])


def beats(v: Values, one: str, other: str) -> bool:
    """Whether it is ahead by more than differences between seeds explain."""
    gain, error = ahead(v, one, other)
    return gain > ERRORS * error


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample, 0 of one value."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))


def tuned(
    make: Make,
    found: Digits,
    *,
    rates: Sequence[float],
    steps: int,
    seeds: int,
    seed: int,
    told: Callable[[], None] = lambda: None,
) -> Trained:
    """Train nets of one kind at the learning rate that suits it best.

    Every rate is tried with the first seed; the rate whose loss on the training images ends lowest
    is taken for the others. Test images have no say in it.

    Args:
        make: makes a net.
        found: the images.
        rates: learning rates.
        steps: updates.
        seeds: how many nets in the end.
        seed: of the first; the others count on from it.
        told: called before every net that is trained, `seeds + len(rates) - 1` times.

    Returns:
        What they reached.
    """

    def run(number: int, rate: float) -> tuple[float, float]:
        told()
        net = seeded(make, number)
        return fit(net, found, rate, steps, number), accuracy(net, found)

    first = {rate: run(seed, rate) for rate in rates}
    best = min(first, key=lambda rate: first[rate][0])
    reached = [first[best], *(run(seed + k, best) for k in range(1, seeds))]
    return Trained(best, tuple(a for _, a in reached), tuple(loss for loss, _ in reached))


def seconds(make: Make, found: Digits) -> float:
    """How long one update of such a net takes, the median of a few; uses no random number up."""
    took: list[float] = []
    with torch.random.fork_rng(devices=[]):
        net = seeded(make, 0)
        for _ in range(TIMED):
            start = time.perf_counter()
            fit(net, found, 1e-9, 1, 0)
            took.append(time.perf_counter() - start)
    return sorted(took)[TIMED // 2]


def spoken(seconds: float) -> str:
    """A time as people say it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@dataclass
class Agenda:
    """What a study still has to do, in seconds as forecast, and how it says so.

    Attributes:
        setup: of the study.
        total: forecast of the whole run.
        done: forecast of what is done.
        due: forecast of what is being done.
    """

    setup: Setup
    total: float
    done: float = 0.0
    due: float = field(default=0.0, init=False)

    def start(self, what: str) -> None:
        """Say how long it will take, before it starts."""
        self.setup.at(0.0, f"{what}, about {spoken(self.total)} in all")

    def next(self, doing: str, cost: float) -> None:
        """Say what comes next, which takes `cost` seconds by the forecast."""
        self.done += self.due
        self.due = cost
        left = max(0.0, self.total - self.done)
        share = min(0.99, self.done / self.total) if self.total else 0.0
        self.setup.at(share, f"{doing} (about {spoken(left)} left)")
