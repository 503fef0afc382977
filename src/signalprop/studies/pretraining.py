"""pretraining: what layer-wise pre-training brings a deep sigmoid net, and what a start alone does.

Every layer learns without labels to model what comes into it, as a restricted Boltzmann machine or
as a denoising autoencoder; then the whole net is trained with labels. Beside it stand the nets that
tell where the gain is from: plain ones, plain ones that train longer, random weights four times
Glorot's, ReLU with He's initialisation, and the pre-trained weights shuffled within their layers,
which keep their sizes and lose all that was learnt.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import nn

from signalprop.nets.pretraining import Method, pretrain
from signalprop.studies.data import Digits, digits
from signalprop.studies.frame import (
    Claim,
    Measured,
    Measurement,
    Series,
    Setup,
    Study,
    Table,
    Values,
    Verdict,
)
from signalprop.studies.plain import ERRORS, of_all
from signalprop.studies.trained import (
    BATCH,
    Agenda,
    Trained,
    ahead,
    beats,
    chance,
    decay,
    seconds,
    seeded,
    spread,
    tuned,
)

#: a net counts as trained from this share of the way from chance to the best net, and as stuck
#: below the second; between the two it has learnt something
TRAINED, STUCK = 0.9, 0.5
#: images per update of pre-training
STEP = 100

DEFAULT, GLOROT, LONGER = "default", "Glorot", "Glorot, longer"
FOUR, HE = "4 x Glorot", "ReLU, He"
RBM, RBM_SHUFFLED = "RBM", "RBM, shuffled"
CODER, CODER_SHUFFLED = "autoencoder", "autoencoder, shuffled"
PLAIN, PRETRAINED = (DEFAULT, GLOROT, LONGER), (RBM, CODER)
KINDS = (*PLAIN, FOUR, RBM, RBM_SHUFFLED, CODER, CODER_SHUFFLED, HE)
METHODS: dict[str, Method] = {RBM: "rbm", CODER: "autoencoder"}


@dataclass(frozen=True)
class Sizes:
    """How large a run is.

    Attributes:
        depths: numbers of hidden layers; the last one is the deepest.
        width: units of a hidden layer.
        images: at most, for training.
        epochs: of pre-training, per layer.
        steps: updates with labels.
        labels: images with a label, where there are few.
        seeds: nets of each kind.
        rates: learning rates that are tried.
    """

    depths: tuple[int, ...]
    width: int
    images: int
    epochs: int
    steps: int
    labels: int
    seeds: int
    rates: tuple[float, ...]


QUICK = Sizes((2, 8), 50, 2_000, 20, 150, 100, 2, (1e-2, 3e-3))
FULL = Sizes((2, 4, 8), 100, 6_000, 10, 600, 300, 4, (1e-2, 3e-3, 1e-3))


def pixels(limit: int) -> Digits:
    """Digits whose pixels lie in [0, 1], which an RBM takes for probabilities."""
    found = digits(limit)
    low, high = found.x.min(), found.x.max()
    x, x_test = ((x - low) / (high - low) for x in (found.x, found.x_test))
    return dataclasses.replace(found, x=x, x_test=x_test.clamp(0, 1))


def network(inputs: int, depth: int, width: int, kind: str) -> nn.Sequential:
    """A net of `depth` hidden layers with random weights, ten classes."""
    modules: list[nn.Module] = []
    for n in [inputs] + [width] * (depth - 1):
        layer = nn.Linear(n, width)
        if kind == HE:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif kind != DEFAULT:
            nn.init.xavier_uniform_(layer.weight, 4.0 if kind == FOUR else 1.0)
        if kind != DEFAULT:
            nn.init.zeros_(layer.bias)
        modules += [layer, nn.ReLU() if kind == HE else nn.Sigmoid()]
    return nn.Sequential(*modules, nn.Linear(width, 10))


def learnt(method: Method, found: Digits, sizes: Sizes, seed: int) -> nn.Sequential:
    """A deepest net, pre-trained on the training images without their labels."""
    net = network(found.pixels, sizes.depths[-1], sizes.width, GLOROT)
    x = found.x.float()
    return pretrain(net, x, method, epochs=sizes.epochs, batch_size=STEP, seed=seed).model


def shallower(net: nn.Sequential, depth: int) -> nn.Sequential:
    """The first `depth` layers, as a shallower net would have learnt them, with a new head."""
    modules = list(net)
    head = modules[-1]
    assert isinstance(head, nn.Linear)
    return nn.Sequential(*copy.deepcopy(modules[: 2 * depth]), nn.Linear(head.in_features, 10))


@torch.no_grad()
def shuffled(net: nn.Sequential) -> nn.Sequential:
    """The same numbers at other places, within every hidden layer; the net is changed."""
    for layer in list(net)[:-1]:
        for p in layer.parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel())].view_as(p))
    return net


class Starts:
    """The nets as training finds them; every pre-training is done once and cut to other depths.

    Args:
        found: the images.
        sizes: of the run.
        seed: of the first net.
    """

    def __init__(self, found: Digits, sizes: Sizes, seed: int) -> None:
        self.found, self.sizes, self.seed = found, sizes, seed
        self.nets: dict[tuple[str, int], nn.Sequential] = {}

    def learn(self, kind: str) -> None:
        """Pre-train all nets of a kind."""
        for number in range(self.seed, self.seed + self.sizes.seeds):
            torch.default_generator.manual_seed(number)
            self.nets[kind, number] = learnt(METHODS[kind], self.found, self.sizes, number)

    def make(self, kind: str, depth: int) -> nn.Sequential:
        """A net; which of the pre-trained ones is said by the global seed, as set by `seeded`."""
        source = kind.removesuffix(", shuffled")
        if source not in METHODS:
            return network(self.found.pixels, depth, self.sizes.width, kind)
        net = shallower(self.nets[source, torch.initial_seed()], depth)
        return shuffled(net) if kind != source else net


def updates(kind: str, sizes: Sizes, images: int) -> int:
    """Updates with labels: `longer` has as many more as pre-training gave every layer."""
    return sizes.steps + (kind == LONGER) * sizes.epochs * math.ceil(images / STEP)


def few(found: Digits, labels: int) -> Digits:
    """The same digits, only the first `labels` of the training images."""
    return dataclasses.replace(found, x=found.x[:labels], y=found.y[:labels])


def measure(setup: Setup) -> Measured:
    """Run it."""
    sizes = QUICK if setup.quick else FULL
    found = pixels(sizes.images)
    scarce = few(found, sizes.labels)
    starts = Starts(found, sizes, setup.seed)
    nets = sizes.seeds + len(sizes.rates) - 1
    tasks = [*((depth, found) for depth in sizes.depths), (sizes.depths[-1], scarce)]
    deep = sizes.depths[-1]
    each = {
        d: seconds(lambda d=d: network(found.pixels, d, sizes.width, GLOROT), found)
        for d in sizes.depths
    }
    # a layer of an RBM or an autoencoder takes about as long as two layers of the net
    layers = 2 * sizes.seeds * sizes.epochs * math.ceil(len(found.x) / STEP)
    learning = 2 * layers * each[deep] / len(METHODS)
    cost = {(k, d): each[d] * updates(k, sizes, len(found.x)) for k in KINDS for d in each}
    agenda = Agenda(
        setup, len(METHODS) * learning + nets * sum(cost[k, d] for k in KINDS for d, _ in tasks)
    )
    agenda.start(f"{nets * len(KINDS) * len(tasks)} nets to train")
    for kind in METHODS:
        agenda.next(f"pre-training {deep} layers: {kind}", learning)
        starts.learn(kind)

    numbers: list[Measurement] = [
        Measurement("chance", chance(found), "", None, "always the most frequent digit"),
        Measurement("deepest", deep, "hidden layers"),
        Measurement("seeds", sizes.seeds),
        Measurement("labels", len(found.x)), Measurement("few labels", len(scarce.x)),
    ]  # fmt: skip
    reached: dict[tuple[str, str], Trained] = {}
    for depth, images in tasks:
        task = named(depth, few=images is scarce)
        for kind in KINDS:

            def told(task: str = task, kind: str = kind, depth: int = depth) -> None:
                agenda.next(f"{kind}, {task}", cost[kind, depth])

            found_out = tuned(
                lambda k=kind, d=depth: starts.make(k, d), images, rates=sizes.rates,
                steps=updates(kind, sizes, len(found.x)), seeds=sizes.seeds, seed=setup.seed,
                told=told,
            )  # fmt: skip
            reached[kind, task] = found_out
            numbers += found_out.told(f"{kind}, {task}")
    best = max(t.accuracy for t in reached.values())
    numbers.append(Measurement("best", best, "", None, "accuracy of the best of all nets"))
    lost = {kind: decays(starts, kind, setup.seed, sizes) for kind in KINDS if kind != LONGER}
    for kind, nats in lost.items():
        mean, note = math.fsum(nats) / len(nats), f"ln |delta^1| / |delta^{deep}| at the start"
        numbers.append(Measurement(f"{kind}: decay", mean, "nats", None, note, tabled=True))
    series = tuple(
        Series("Accuracy after training, over depth", kind, tuple(map(float, sizes.depths)),
               tuple(reached[kind, named(d)].accuracy for d in sizes.depths),
               "hidden layers", "test accuracy")
        for kind in (GLOROT, FOUR, RBM, CODER, RBM_SHUFFLED, HE)
    )  # fmt: skip
    settings = {
        "hidden layers": sizes.depths, "width": sizes.width, "seeds": sizes.seeds,
        "pre-training": f"{sizes.epochs} epochs a layer, batches of {STEP}, all training images",
        "training": f"{sizes.steps} updates of {BATCH} images, Adam, gradients clipped; "
        f"{LONGER}: {updates(LONGER, sizes, len(found.x))}",
        "learning rates": sizes.rates,
        "rate": "of every net the one with the lowest training loss, by its first seed",
        "trained": f"{TRAINED:.0%} of the way from chance to the best net; stuck: {STUCK:.0%}",
    }  # fmt: skip
    return Measured(tuple(numbers), found.name, settings, series,
                    tables(reached, lost, sizes, len(found.x)))  # fmt: skip


def named(depth: int, *, few: bool = False) -> str:
    """A task."""
    return f"{depth} layers, few labels" if few else f"{depth} layers"


def decays(starts: Starts, kind: str, seed: int, sizes: Sizes) -> list[float]:
    """Of delta over the hidden layers of the deepest nets as training finds them, every seed."""
    deep = sizes.depths[-1]
    return [
        decay(seeded(lambda: starts.make(kind, deep), seed + k), starts.found, "1",
              str(2 * deep - 1))
        for k in range(sizes.seeds)
    ]  # fmt: skip


def tables(
    reached: dict[tuple[str, str], Trained],
    lost: dict[str, list[float]],
    sizes: Sizes,
    images: int,
) -> tuple[Table, ...]:
    """Accuracies over depth, and the error signal at the start."""
    deep = sizes.depths[-1]
    scarce = named(deep, few=True)
    rows = tuple(
        (kind, *(str(reached[kind, named(d)]) for d in sizes.depths), str(reached[kind, scarce]))
        for kind in KINDS
    )
    columns = ("net", *(f"{d} layers" for d in sizes.depths), f"{deep}, {sizes.labels} labels")
    title = (f"Test accuracy, {images:,} labels unless said, {sizes.seeds} seeds (± standard "
             "deviation)")  # fmt: skip
    signal = tuple(
        (kind, math.fsum(nats) / len(nats), spread(nats), math.exp(math.fsum(nats) / len(nats)))
        for kind, nats in lost.items()
    )
    heads = ("net", "decay, nats", "spread", "arrives")
    about = f"The error signal over {deep} hidden layers before training with labels"
    return Table(title, columns, rows), Table(about, heads, signal)


def way(v: Values, kind: str, task: str) -> float:
    """How far a net gets from chance (0) to the best net (1)."""
    return (v[f"{kind}, {task}: accuracy"] - v["chance"]) / (v["best"] - v["chance"])


def points(v: Values, one: str, other: str, task: str) -> str:
    """By how many points it is ahead."""
    gain, error = ahead(v, f"{one}, {task}", f"{other}, {task}")
    return f"{100 * gain:+.1f} ± {100 * error:.1f} ({one} less {other})"


def over(v: Values, one: str, other: str, task: str) -> bool:
    """Whether it is ahead for more than chance."""
    return beats(v, f"{one}, {task}", f"{other}, {task}")


def told(v: Values, kinds: tuple[str, ...], task: str) -> str:
    """Their accuracies."""
    return ", ".join(f"{v[f'{kind}, {task}: accuracy']:.3f} ({kind})" for kind in kinds)


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    deep = named(int(v["deepest"]))
    scarce = named(int(v["deepest"]), few=True)
    stuck = [way(v, kind, deep) < STUCK for kind in PLAIN]
    trains = [way(v, kind, deep) >= TRAINED for kind in PRETRAINED]
    less = [v[f"{kind}: decay"] > v[f"{GLOROT}: decay"] + 1 for kind in PRETRAINED]
    return (
        Claim(
            "deep sigmoid nets are not trained by back-propagation alone",
            of_all(stuck),
            f"{deep}, test accuracy: {told(v, PLAIN, deep)}; chance {v['chance']:.3f}, the best "
            f"net {v['best']:.3f}.",
            "" if all(stuck) else "Learns something: "
            + "; ".join(k for k, s in zip(PLAIN, stuck, strict=True) if not s) + ".",
        ),
        Claim(
            "layer-wise pre-training makes them trainable",
            of_all(trains) if any(stuck) else "does not hold as printed",
            f"{deep}, test accuracy: {told(v, PRETRAINED, deep)}.",
            "" if all(trains) and any(stuck) else "There was nothing to cure here."
            if not any(stuck) else f"Not to {TRAINED:.0%} of the way to the best net: "
            + "; ".join(k for k, t in zip(PRETRAINED, trains, strict=True) if not t) + ".",
        ),
        Claim(
            "because more of the error signal arrives at the input end",
            of_all(less),
            "ln |delta^1| / |delta^T| before training with labels: "
            + ", ".join(f"{v[f'{kind}: decay']:.1f} nats ({kind})" for kind in KINDS
                        if kind != LONGER)
            + ". "
            + ("Random weights can do that, too." if v[f"{FOUR}: decay"] > v[f"{GLOROT}: decay"] + 1
               else "Larger random weights do not do that."),
            "" if all(less) else "Not by more than a factor e: "
            + "; ".join(k for k, s in zip(PRETRAINED, less, strict=True) if not s) + ".",
        ),
        judge_start(v, deep),
        judge_labels(v, scarce),
    )  # fmt: skip


def judge_start(v: Values, deep: str) -> Claim:
    """Whether it takes what was learnt, or a good start is enough."""
    won = {other: [over(v, one, other, deep) for one in PRETRAINED] for other in (FOUR, HE)}
    whole = [over(v, RBM, RBM_SHUFFLED, deep), over(v, CODER, CODER_SHUFFLED, deep)]
    enough = [kind for kind in (FOUR, HE) if way(v, kind, deep) >= TRAINED]
    verdict: Verdict = "does not hold as printed"
    if all(won[FOUR] + won[HE]) and not enough:
        verdict = "holds"
    elif any(won[FOUR] + won[HE] + whole):
        verdict = "holds in part"
    gains = "; ".join(points(v, one, other, deep) for one in PRETRAINED for other in (FOUR, HE))
    parts = "; ".join(points(v, one, f"{one}, shuffled", deep) for one in PRETRAINED)
    return Claim(
        "and it takes pre-training: a good start alone does not do",
        verdict,
        f"{deep}, accuracy: {told(v, (FOUR, HE), deep)}. In points ± standard error: {gains}. The "
        f"same numbers shuffled within their layers: {parts}.",
        "" if verdict == "holds" else
        (f"Random weights train as deep a net: {' and '.join(enough)}. " if enough else "")
        + "What was learnt is worth more than its sizes alone: "
        + ("both ways." if all(whole) else "one way of two." if any(whole) else "neither way."),
    )  # fmt: skip


def judge_labels(v: Values, scarce: str) -> Claim:
    """Whether what was learnt without labels makes up for labels that are few."""
    pairs = [(one, other) for one in PRETRAINED for other in (FOUR, HE)]
    found = [over(v, one, other, scarce) for one, other in pairs]
    return Claim(
        "where labels are few, what was learnt without them brings more than a good start",
        of_all(found),
        f"{v['few labels']:.0f} labels instead of {v['labels']:,.0f}: "
        f"{told(v, (GLOROT, *PRETRAINED, FOUR, HE), scarce)}. In points ± standard error: "
        + "; ".join(points(v, one, other, scarce) for one, other in pairs) + ".",
        "" if all(found) else f"Not ahead by {ERRORS:.0f} standard errors: "
        + "; ".join(f"{a} of {b}" for (a, b), yes in zip(pairs, found, strict=True) if not yes)
        + ".",
    )  # fmt: skip


STUDY = Study(
    name="pretraining",
    title="Layer-wise pre-training, the first cure",
    statement="unsupervised layer-wise pre-training (stacking) makes deep nets trainable",
    source="Lecture by Sepp Hochreiter; Schmidhuber 1992; Hinton, Osindero & Teh 2006; Bengio et "
    "al. 2007; Vincent et al. 2010; why it helps: Erhan et al. 2010; 4 x Glorot: Glorot & Bengio "
    "2010",
    function=measure,
    judge=judge,
)
