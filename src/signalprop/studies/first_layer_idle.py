"""first-layer-idle: who learns in a deep sigmoid net, and does it depend on the optimizer?

Every net is trained twice from the same weights on the same batches, once whole and once with
layer 1 frozen. Three numbers say whether layer 1 learns: its learning share, that is its part of
the first-order decrease of the loss, summed over all updates; how far its weights have moved; and
the accuracy that is lost when it may not move. A share is quoted times the number of layers, so
that 1 is an equal part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.diagnosis.learning import learning_share
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

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=2e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}
DEPTHS = (2, 4, 8, 16, 30)
#: hidden layers from which on a net counts as deep here
DEEP = 4
#: idle: less than a hundredth of an equal share
IDLE = 0.01
#: standard errors of the difference that freezing has to cost, to count
ERRORS = 3.0
#: epsilon of Adam, AdamW and RMSprop in PyTorch
EPSILON = 1e-8
BATCH = 64
#: every so many updates the learning share is taken
EVERY = 5


def sigmoid_net(pixels: int, depth: int, width: int) -> nn.Sequential:
    """A sigmoid net with PyTorch's own initialisation, in float32 as users have it."""
    sizes = [pixels] + [width] * depth
    layers: list[nn.Module] = []
    for m, n in pairwise(sizes):
        layers += [nn.Linear(m, n, dtype=torch.float32), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(width, 10, dtype=torch.float32))


@dataclass(frozen=True)
class Outcome:
    """What became of one training run.

    Attributes:
        share: learning share of layer 1 over every fifth update, times the number of layers.
        first_update: |update| / |weights| of layer 1 in the first update.
        moved: |W - W at the start| / |W at the start| of layer 1 (weights, no bias).
        moved_top: the same of the output layer.
        gradient: rms of layer 1's first gradient.
        accuracy: on the test images.
    """

    share: float
    first_update: float
    moved: float
    moved_top: float
    gradient: float
    accuracy: float


def train(model: nn.Sequential, optimizer: str, found: Digits, steps: int, seed: int) -> Outcome:
    """Train a copy of the model; parameters that require no gradient stay."""
    model = copy.deepcopy(model)
    measured = model[0].weight.requires_grad
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    step = OPTIMIZERS[optimizer](trained.values())
    order = torch.Generator().manual_seed(seed)
    decreases: dict[str, float] = {}
    first_update = gradient = 0.0
    for k in range(steps):
        pick = torch.randint(len(found.x), (BATCH,), generator=order)
        step.zero_grad()
        F.cross_entropy(model(found.x[pick].float()), found.y[pick]).backward()
        if k % EVERY or not measured:
            step.step()
            continue
        before = {n: p.detach().clone() for n, p in trained.items()}
        step.step()
        gradients = {n: p.grad for n, p in trained.items() if p.grad is not None}
        updates = {n: p.detach() - before[n] for n, p in trained.items()}
        share, decrease = learning_share(gradients, updates)
        for layer, part in share.items():
            if decrease:
                decreases[layer] = decreases.get(layer, 0.0) + part * decrease
        if k == 0:
            first_update = float(updates["0.weight"].norm() / before["0.weight"].norm())
            gradient = float(gradients["0.weight"].double().square().mean().sqrt())
    moved = {
        n: float((p.detach() - start[n]).norm() / start[n].norm())
        for n, p in model.named_parameters()
    }
    whole = math.fsum(decreases.values())
    with torch.no_grad():
        hits = model(found.x_test.float()).argmax(1) == found.y_test
    return Outcome(
        share=len(decreases) * decreases.get("0", 0.0) / whole if whole else math.nan,
        first_update=first_update,
        moved=moved["0.weight"],
        moved_top=moved[f"{len(model) - 1}.weight"],
        gradient=gradient,
        accuracy=float(hits.double().mean()),
    )


def frozen(model: nn.Sequential) -> nn.Sequential:
    """A copy whose layer 1 may not move."""
    still = copy.deepcopy(model)
    for p in still[0].parameters():
        p.requires_grad_(False)
    return still


def outer_product_errors(found: Digits, depth: int, width: int) -> tuple[float, float]:
    """Compare delta^i (a^{i-1})^T, summed over the batch, with the gradient; float64, all layers.

    delta^i is taken at the layer's sum z^i = W^i a^{i-1} + b^i, where the formula is exact; at the
    activation itself it lacks the slope.

    Returns:
        Relative error against autograd's dL/dW^i, and against central differences of the loss
        along a random direction of W^i, in units of the gradient's size.
    """
    model = sigmoid_net(found.pixels, depth, width).double()
    below: list[Tensor] = []
    sums: list[Tensor] = []
    a, y = found.x[:BATCH], found.y[:BATCH]
    for module in model:
        if isinstance(module, nn.Linear):
            below.append(a.detach())
            a = module(a)
            sums.append(a)
        else:
            a = module(a)
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    grads = torch.autograd.grad(F.cross_entropy(a, y), [*weights, *sums])
    products = [
        torch.einsum("no,ni->oi", delta, x)
        for delta, x in zip(grads[len(weights) :], below, strict=True)
    ]
    errors: list[float] = []
    differences: list[float] = []
    for W, product, grad in zip(weights, products, grads, strict=False):
        errors.append(float((product - grad).norm() / grad.norm()))
        # along the gradient and something else: a random direction alone hardly sees it
        v = grad / grad.norm() + F.normalize(torch.randn_like(grad).flatten(), dim=0).view_as(grad)
        h, start = 1e-4, W.detach().clone()
        losses: list[float] = []
        with torch.no_grad():
            for sign in (1, -1):
                W.copy_(start + sign * h * v)
                losses.append(float(F.cross_entropy(model(found.x[:BATCH]), y)))
            W.copy_(start)
        slope = (losses[0] - losses[1]) / (2 * h)
        differences.append(abs(float((product * v).sum()) - slope) / float(grad.norm()))
    return max(errors), max(differences)


def measure(setup: Setup) -> Measured:
    """Run it."""
    depths = (2, 4, 16) if setup.quick else DEPTHS
    width, steps, most = (32, 100, 1) if setup.quick else (64, 400, 2)
    found = digits(3_000 if setup.quick else 12_000)
    exact, differences = outer_product_errors(found, 2, width)
    numbers = [
        Measurement("dL/dW against the outer product", exact, "relative error", 0.0,
                    "delta at the layer's sum; 2 hidden layers, float64"),
        Measurement("the same by differences", differences, "relative error", 0.0,
                    "central differences of the loss"),
        Measurement("test images", len(found.x_test)),
    ]  # fmt: skip
    rows: list[tuple[str | float | int, ...]] = []
    for i, depth in enumerate(depths):
        # the deepest take the most time and stay where they are: once is enough
        repeats = most if depth <= 8 else 1
        models = [sigmoid_net(found.pixels, depth, width) for _ in range(repeats)]
        for j, name in enumerate(OPTIMIZERS):
            done = (i + j / len(OPTIMIZERS)) / len(depths)
            setup.at(done, f"{depth} hidden layers, {name}: whole, and with layer 1 frozen")
            whole = [train(m, name, found, steps, setup.seed + k) for k, m in enumerate(models)]
            still = [
                train(frozen(m), name, found, steps, setup.seed + k).accuracy
                for k, m in enumerate(models)
            ]
            costs = [w.accuracy - s for w, s in zip(whole, still, strict=True)]
            mean = {
                field: sum(getattr(w, field) for w in whole) / repeats
                for field in ("share", "first_update", "moved", "moved_top", "gradient", "accuracy")
            }
            mean["frozen"] = sum(still) / repeats
            decay = f"; weight decay alone makes {0.002 * 0.01 * steps:.1g}"
            top = f"the output layer moved {mean['moved_top']:.2g}"
            listed = (
                ("share of layer 1", mean["share"], "of an equal share", "every fifth update"),
                ("first update", mean["first_update"], "of |W^1|", ""),
                ("layer 1 moved", mean["moved"], "of |W^1|", top + decay * (name == "AdamW")),
                ("gradient of W^1", mean["gradient"], "rms", "the first one"),
                ("accuracy", mean["accuracy"], "", "chance is 0.1"),
                ("accuracy, layer 1 frozen", mean["frozen"], "", "chance is 0.1"),
                ("least cost of freezing", min(costs), "accuracy", f"of {repeats} repeats"),
            )
            at = f"{name}, {depth} layers"
            numbers += [
                Measurement(f"{at}: {what}", value, unit, None, text, tabled=True)
                for what, value, unit, text in listed
            ]
            does = state({m.name: m.value for m in numbers}, at).removeprefix("is ").split()[0]
            rows.append((name, depth, mean["gradient"], mean["share"], mean["moved"],
                         mean["accuracy"], mean["frozen"], does))  # fmt: skip
    pictures = (
        ("Learning share of layer 1 (1: an equal share)", "share x layers", 3, True),
        ("How far layer 1 moved", "|change| / |W^1 at the start|", 4, True),
        ("Accuracy after training", "test accuracy", 5, False),
    )
    series = [
        Series(title, name, tuple(map(float, depths)),
               tuple(float(row[column]) for row in rows if row[0] == name),
               "hidden layers", label, log_y)
        for title, label, column, log_y in pictures
        for name in OPTIMIZERS
    ]  # fmt: skip
    columns = ("optimizer", "layers", "gradient", "share", "moved", "accuracy", "frozen", "layer 1")
    table = Table(f"After {steps} updates", columns, tuple(rows))
    settings = {
        "depths": depths, "width": width, "steps": steps, "batch": BATCH, "repeats": most,
        "SGD": "lr 0.1", "SGD, momentum": "lr 0.05, momentum 0.9", "Adam": "lr 0.002",
        "AdamW": "lr 0.002, weight decay 0.01", "RMSprop": "lr 0.001",
    }  # fmt: skip
    return Measured(tuple(numbers), found.name, settings, tuple(series), (table,))


def state(v: Values, at: str) -> str:
    """What layer 1 does in one kind of run.

    Returns:
        `learns` if freezing it costs accuracy, in every repeat more than three standard errors of
        a difference of two proportions; else `is idle` if its share is next to nothing, and
        `moves without gain` if not.
    """
    whole, still = v[f"{at}: accuracy"], v[f"{at}: accuracy, layer 1 frozen"]
    variance = (whole * (1 - whole) + still * (1 - still)) / v["test images"]
    if v[f"{at}: least cost of freezing"] > ERRORS * math.sqrt(variance):
        return "learns"
    return "is idle" if abs(v[f"{at}: share of layer 1"]) < IDLE else "moves without gain"


def about(v: Values, at: str) -> str:
    """One run in numbers."""
    share = v[f"{at}: share of layer 1"]
    part = f"{share:.1f}" if abs(share) >= 0.1 else f"{share:.0e}"
    moved = v[f"{at}: layer 1 moved"]
    return (
        f"{part} of an equal share, moved by {moved:.1g} of its size, accuracy "
        f"{v[f'{at}: accuracy']:.0%} against {v[f'{at}: accuracy, layer 1 frozen']:.0%} frozen"
    )


def judge_optimizer(v: Values, name: str) -> Claim:
    """Whether layer 1 of a deep net is idle under one optimizer."""
    deep = [d for d in DEPTHS if d >= DEEP and f"{name}, {d} layers: accuracy" in v]
    states = {d: state(v, f"{name}, {d} layers") for d in deep}
    shown = [d for d in deep if d == deep[0] or states[d] != states[deep[deep.index(d) - 1]]]
    because = "; ".join(
        f"at {d} layers it {states[d]} ({about(v, f'{name}, {d} layers')})" for d in shown
    )
    idle = [d for d in deep if states[d] == "is idle"]
    verdict: Verdict = "holds in part" if idle else "does not hold as printed"
    correct = ""
    if len(idle) == len(deep):
        verdict = "holds"
    elif idle:
        correct = f"With {name} layer 1 is idle from {idle[0]} layers on"
        small = v[f"{name}, {idle[0]} layers: gradient of W^1"]
        adaptive = not name.startswith("SGD")
        correct += (
            f", where its gradient (rms {small:.0e}) is far below the optimizer's epsilon, 1e-8; "
            "above it the size of an update does not depend on the size of delta."
            if adaptive and small < EPSILON
            else "."
        )
    else:
        correct = f"With {name} layer 1 is not idle at any depth measured."
    return Claim(
        f"layer 1 of a deep sigmoid net does not learn: {name}",
        verdict,
        f"Layer 1 with {name}: {because}.",
        correct,
    )


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    exact, differences = v["dL/dW against the outer product"], v["the same by differences"]
    return (
        Claim(
            "dL/dW^i = delta^i (a^{i-1})^T",
            "holds" if exact <= 1e-11 and differences <= 1e-4 else "does not hold as printed",
            "The gradient of a weight matrix, delta taken at the layer's sum and added up over the "
            f"batch, differs from the outer product by {exact:.1g} of its size (autograd) and "
            f"{differences:.1g} (differences of the loss).",
        ),
        *(judge_optimizer(v, name) for name in OPTIMIZERS),
    )


STUDY = Study(
    name="first-layer-idle",
    title="Layer 1 of a deep net does not learn",
    statement="dL/dW^i = delta^i (a^{i-1})^T, so where delta vanishes layer 1 does not learn",
    source="Lecture by Sepp Hochreiter; Hochreiter 1991 (diploma thesis, TU München); Adam: "
    "Kingma & Ba 2015, arXiv:1412.6980",
    function=measure,
    judge=judge,
)
