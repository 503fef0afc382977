"""residual: blocks that add what they compute to what they were given, and what has to be added.

(A) has its ReLU behind the sum, (B) before the branch, so that in B nothing stands on the skip
path: J = I + F'. With either the error signal does not vanish over depth. Whether it stays is
decided by the size of the branches: sums of equals double the mean square of delta at every block,
2^L in all, which normalisation turns into about L, a factor 1/sqrt(L) into less than e, and a
branch that starts at zero (SkipInit, ReZero, Fixup) into one. Then nets of each kind are trained,
every one with the learning rate that suits it best, beside plain nets of as many weight layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from signalprop.nets._branch import Kind, Multiplier, Norm
from signalprop.nets.residual import ResidualNet
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

WIDTH = 50
#: nats over all blocks from which delta counts as vanished, and as kept within
VANISHED, KEPT = -2.0, 1.0
#: a depth counts as trained where no more accuracy than this is lost against the shallowest net
LOST = 0.05
PLAIN, PLAIN_NORM = "plain", "plain, BatchNorm"
#: what is done to the branches
OPTIONS = ("", "BatchNorm", "1/sqrt(L)", "ReZero = SkipInit", "Fixup")
FORMS: tuple[Kind, ...] = ("A", "B")
RESIDUAL: dict[str, tuple[Kind, str]] = {
    f"{form}, {option}" if option else form: (form, option) for option in OPTIONS for form in FORMS
}
KINDS = (PLAIN, PLAIN_NORM, *RESIDUAL)
#: those that are trained
TRAINED = (PLAIN, *RESIDUAL)


@dataclass(frozen=True)
class Sizes:
    """How large a run is.

    Attributes:
        blocks: numbers of blocks, of two weight layers each, whose delta is measured.
        depths: numbers of blocks of the nets that are trained.
        images: at most, for training.
        steps: updates.
        seeds: nets of each kind.
        rates: learning rates that are tried.
    """

    blocks: tuple[int, ...]
    depths: tuple[int, ...]
    images: int
    steps: int
    seeds: int
    rates: tuple[float, ...]


QUICK = Sizes((4, 16, 48), (4, 24), 2_000, 40, 2, (3e-3, 1e-3))
FULL = Sizes((4, 16, 64, 128, 256), (10, 50, 125), 6_000, 200, 3, (3e-3, 5e-4))


def make(kind: str, inputs: int, blocks: int) -> nn.Module:
    """A net of `blocks` blocks of that kind; plain ones have as many weight layers."""
    if kind in RESIDUAL:
        form, option = RESIDUAL[kind]
        multiplier: dict[str, Multiplier] = {
            "1/sqrt(L)": blocks**-0.5, "ReZero = SkipInit": "rezero", "Fixup": "fixup",
        }  # fmt: skip
        norm: Norm = "batch" if option == "BatchNorm" else None
        return ResidualNet(inputs, WIDTH, blocks, 10, kind=form, branch=multiplier.get(option),
                           norm=norm)  # fmt: skip
    modules: list[nn.Module] = []
    for n in [inputs] + [WIDTH] * (2 * blocks):
        layer = nn.Linear(n, WIDTH)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        between = [nn.BatchNorm1d(WIDTH)] if kind == PLAIN_NORM else []
        modules += [layer, *between, nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(WIDTH, 10))


def lost(net: nn.Module, found: Digits, blocks: int) -> float:
    """Nats that the blocks of a net change delta by on its way to their input."""
    if isinstance(net, ResidualNet):
        if net.plan.fixup:
            # its head starts at zero and sends nothing back: any other delta will do
            nn.init.kaiming_normal_(net.head.weight)
        if net.plan.kind == "A":
            return decay(net, found, "enter.relu", f"blocks.{blocks - 1}.relu")
        return decay(net, found, "first", f"blocks.{blocks - 1}.add")
    assert isinstance(net, nn.Sequential)
    each = 3 if isinstance(net[1], nn.BatchNorm1d) else 2
    return decay(net, found, f"{each - 1}", f"{each * (2 * blocks + 1) - 1}")


def expected(kind: str, blocks: int) -> float | None:
    """What theory has for it, of infinite width; None where it has no closed form."""
    form, option = RESIDUAL.get(kind, (None, ""))
    # in A the ReLU keeps back what belongs to units that are off
    if kind == PLAIN or (form == "B" and option in ("ReZero = SkipInit", "Fixup")):
        return 0.0
    if form == "B" and option in ("", "1/sqrt(L)"):
        return 0.5 * blocks * math.log1p(1 / blocks if option else 1.0)
    return None


def drawn(kind: str) -> tuple[Kind, ...]:
    """In which figures a net is drawn: one for A and one for B, plain nets in both."""
    if kind in RESIDUAL:
        return (RESIDUAL[kind][0],)
    return FORMS if kind == PLAIN else ()


def mean(values: list[float]) -> float:
    """Their mean."""
    return math.fsum(values) / len(values)


def at_start(
    found: Digits, sizes: Sizes, seed: int, agenda: Agenda, cost: float
) -> tuple[list[Measurement], list[Series], Table]:
    """Delta over growing depth, before training."""
    numbers: list[Measurement] = []
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    deep = sizes.blocks[-1]
    for kind in KINDS:
        agenda.next(f"{kind}: delta over {deep} blocks", cost / len(KINDS))
        means: list[float] = []
        scatter = 0.0
        for blocks in sizes.blocks:
            nats = [
                lost(seeded(lambda k=kind, n=blocks: make(k, found.pixels, n), seed + i), found,
                     blocks)
                for i in range(sizes.seeds)
            ]  # fmt: skip
            means.append(mean(nats))
            scatter = spread(nats)
            numbers.append(Measurement(f"{kind}, {blocks} blocks: decay", means[-1], "nats",
                                       expected(kind, blocks), "at the start", True))  # fmt: skip
        theory = expected(kind, deep)
        rows.append((kind, *means, scatter, "" if theory is None else theory))
        series += [
            Series(f"{form}: the error signal at the input end, over depth", kind,
                   tuple(map(float, sizes.blocks)), tuple(means), "blocks L",
                   "ln |delta^1| / |delta^L|, nats")
            for form in drawn(kind)
        ]  # fmt: skip
    columns = ("net", *(f"{n} blocks" for n in sizes.blocks), "spread", f"theory, {deep}")
    title = "ln |delta at the first block| / |delta at the last| at the start, nats"
    return numbers, series, Table(title, columns, tuple(rows))


def measure(setup: Setup) -> Measured:
    """Run it."""
    sizes = QUICK if setup.quick else FULL
    found = digits(sizes.images)
    nets = sizes.seeds + len(sizes.rates) - 1
    # one forecast for A and B alike
    update = {
        (norm, d): seconds(lambda k=kind, n=d: make(k, found.pixels, n), found)
        for norm, kind in ((False, "B"), (True, "B, BatchNorm"))
        for d in sizes.depths
    }
    tasks = [(kind, d) for d in sizes.depths for kind in TRAINED]
    cost = {(k, d): sizes.steps * update["BatchNorm" in k, d] for k, d in tasks}
    # a pass that is traced takes about as long as five updates
    looks = 5 * len(KINDS) * sizes.seeds * update[False, sizes.depths[-1]]
    looks *= sum(sizes.blocks) / sizes.depths[-1]
    agenda = Agenda(setup, nets * sum(cost.values()) + looks)
    agenda.start(f"{nets * len(tasks)} nets to train")
    numbers, series, start = at_start(found, sizes, setup.seed, agenda, looks)
    numbers += [
        Measurement("chance", chance(found), "", None, "always the most frequent digit"),
        Measurement("seeds", sizes.seeds),
        Measurement("deepest at the start", sizes.blocks[-1], "blocks"),
        Measurement("deepest trained", sizes.depths[-1], "blocks"),
        Measurement("shallowest trained", sizes.depths[0], "blocks"),
    ]
    numbers += [Measurement(f"depth {i}", n, "blocks", tabled=True)
                for i, n in enumerate(sizes.blocks)]  # fmt: skip
    reached: dict[tuple[str, int], Trained] = {}
    for kind, depth in tasks:

        def told(kind: str = kind, depth: int = depth) -> None:
            agenda.next(f"{kind}, {depth} blocks", cost[kind, depth])

        def one(kind: str = kind, depth: int = depth) -> nn.Module:
            return make(kind, found.pixels, depth)

        reached[kind, depth] = tuned(one, found, rates=sizes.rates, steps=sizes.steps,
                                     seeds=sizes.seeds, seed=setup.seed, told=told)  # fmt: skip
        numbers += reached[kind, depth].told(f"{kind}, {depth} blocks")
    series += [
        Series(f"{form}: accuracy after training, over depth", kind,
               tuple(map(float, sizes.depths)),
               tuple(reached[kind, d].accuracy for d in sizes.depths), "blocks L", "test accuracy")
        for kind in TRAINED
        for form in drawn(kind)
    ]  # fmt: skip
    rows = tuple((k, *(str(reached[k, d]) for d in sizes.depths)) for k in TRAINED)
    title = f"Test accuracy after {sizes.steps} updates, {sizes.seeds} seeds (± std. deviation)"
    after = Table(title, ("net", *(f"{d} blocks" for d in sizes.depths)), rows)
    settings = {
        "blocks": sizes.blocks, "trained": sizes.depths, "width": WIDTH, "seeds": sizes.seeds,
        "block": "two weight layers; plain nets have as many",
        "training": f"{sizes.steps} updates of {BATCH} images, Adam, gradients clipped",
        "learning rates": sizes.rates,
        "rate": "of every net the one with the lowest training loss, by its first seed",
        "vanished": f"below {VANISHED:g} nats", "kept": f"within {KEPT:g} nat of 0",
        "depth is trained": f"at most {LOST:g} of accuracy lost against the shallowest net",
    }  # fmt: skip
    return Measured(tuple(numbers), found.name, settings, tuple(series), (start, after))


def judge_signal(v: Values, form: str, text: str) -> Claim:
    """Whether delta reaches the input end at every depth."""
    names = [name for name, (kind, _) in RESIDUAL.items() if kind == form]
    depths = blocks_of(v)
    least = {k: min(v[f"{k}, {n} blocks: decay"] for n in depths) for k in names}
    kept = [least[k] > VANISHED for k in names]
    return Claim(
        text,
        of_all(kept),
        f"Of {depths[0]} to {depths[-1]} blocks the lowest ln |delta^1| / |delta^L|: "
        + "; ".join(f"{least[k]:.2f} ({k})" for k in names)
        + f". A plain net of as many layers: {v[f'{PLAIN}, {depths[-1]} blocks: decay']:.2f} with "
        "He's initialisation.",
        "" if all(kept) else "It vanishes in: "
        + "; ".join(k for k, yes in zip(names, kept, strict=True) if not yes) + ".",
    )  # fmt: skip


def blocks_of(v: Values) -> list[int]:
    """Numbers of blocks whose delta was measured."""
    return [int(value) for name, value in v.items() if name.startswith("depth ")]


def judge_size(v: Values) -> Claim:
    """Whether delta stays what it is."""
    deep = blocks_of(v)[-1]
    nats = {k: v[f"{k}, {deep} blocks: decay"] for k in RESIDUAL}
    kept = [abs(nats[k]) <= KEPT for k in RESIDUAL]
    theory = 0.5 * deep * math.log(2)
    return Claim(
        "and keeps its size: the additions alone do it",
        "holds" if abs(nats["A"]) <= KEPT and abs(nats["B"]) <= KEPT else
        "holds in part" if any(kept) else "does not hold as printed",
        f"Over {deep} blocks at the start: "
        + "; ".join(f"{nats[k]:+.2f} nats ({k})" for k in RESIDUAL)
        + f". Theory for B is {theory:.1f}: a branch as large as its input doubles the mean square "
        f"at every block. {PLAIN_NORM}: {v[f'{PLAIN_NORM}, {deep} blocks: decay']:+.1f}.",
        "" if abs(nats["A"]) <= KEPT and abs(nats["B"]) <= KEPT else
        f"Within {KEPT:g} nat: "
        + ("; ".join(k for k, yes in zip(RESIDUAL, kept, strict=True) if yes) or "none") + ".",
    )  # fmt: skip


def judge_training(v: Values) -> Claim:
    """Whether deep nets train, and plain ones do not."""
    deep, first = (int(v[f"{which} trained"]) for which in ("deepest", "shallowest"))
    best = max(v[f"{k}, {first} blocks: accuracy"] for k in TRAINED)
    held = {k: v[f"{k}, {deep} blocks: accuracy"] >= best - LOST for k in TRAINED}
    found = [held[k] for k in RESIDUAL]
    return Claim(
        f"residual nets of {deep} blocks ({2 * deep} layers) can be trained, plain nets cannot",
        "does not hold as printed" if held[PLAIN] or not any(found) else of_all(found),
        f"Test accuracy of {deep} blocks: "
        + "; ".join(f"{v[f'{k}, {deep} blocks: accuracy']:.3f} ({k})" for k in TRAINED)
        + f"; the best of {first} blocks {best:.3f}, chance {v['chance']:.3f}.",
        "" if all(found) and not held[PLAIN] else
        f"More than {LOST:g} behind the best of {first} blocks: "
        + ("; ".join(k for k in TRAINED if not held[k]) or "none") + ".",
    )  # fmt: skip


def judge_forms(v: Values) -> Claim:
    """Whether B does better than A."""
    deep = int(v["deepest trained"])
    won: list[bool] = []
    behind: list[bool] = []
    told: list[str] = []
    for option in OPTIONS:
        a, b = (f"{f}, {option}" if option else f for f in "AB")
        a, b = f"{a}, {deep} blocks", f"{b}, {deep} blocks"
        gain, error = ahead(v, b, a)
        won.append(beats(v, b, a))
        behind.append(beats(v, a, b))
        told.append(f"{100 * gain:+.1f} ± {100 * error:.1f} ({option or 'nothing else'})")
    return Claim(
        "(B), with nothing on the skip path, is the better of the two in deep nets",
        of_all(won),
        f"Accuracy of B less that of A, {deep} blocks, points ± standard error: {', '.join(told)}.",
        ""
        if all(won)
        else f"Ahead by {ERRORS:.0f} standard errors in {sum(won)} of {len(won)} "
        f"cases, behind in {sum(behind)}.",
    )


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    reach = "the error signal reaches the input end at any depth"
    return (
        judge_signal(v, "A", f"(A) a^i = g(a^{{i-1}} + F(a^{{i-1}})): {reach}"),
        judge_signal(v, "B", f"(B) a^i = a^{{i-1}} + F(a^{{i-1}}): {reach}"),
        judge_size(v),
        judge_training(v),
        judge_forms(v),
    )


STUDY = Study(
    name="residual",
    title="Residual nets: A, B and the size of the branches",
    statement="residual nets, (A) a^i = g(a^{i-1} + F(a^{i-1})) and (B) a^i = a^{i-1} + "
    "F(a^{i-1}): no vanishing, so that deep nets can be trained",
    source="Lecture by Sepp Hochreiter; He et al. 2016, arXiv:1512.03385 (A) and arXiv:1603.05027 "
    "(B); SkipInit: De & Smith 2020, arXiv:2002.10444; ReZero: Bachlechner et al. 2020, "
    "arXiv:2003.04887; Fixup: Zhang et al. 2019, arXiv:1901.09321",
    function=measure,
    judge=judge,
)
