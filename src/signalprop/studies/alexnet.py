"""alexnet: where its parameters are, and where its computation is.

The net is written down three times from its published sizes: as in the paper, where two GPUs hold
half of the channels each (grouped convolutions); the same channels without the groups, as many
frameworks had it; and the single tower of "One weird trick", which torchvision ships. All are
built on the meta device, so nothing is allocated. Multiplications are counted by formula and,
independently, by torch's own FLOP counter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from signalprop.studies.frame import (
    Claim,
    Measured,
    Measurement,
    Setup,
    Study,
    Table,
    Values,
    Verdict,
)

#: half of the last digit printed: 94% is anything from 93.5% to 94.5%
PERCENT, MILLION = 0.5, 0.5


@dataclass(frozen=True)
class Variant:
    """One published form of the net.

    Attributes:
        name: as shown.
        side: input images are side x side; 227 is what gives the paper's 55 x 55 without padding.
        padding: of the first convolution.
        channels: outputs of the five convolutions.
        groups: groups of the five convolutions.
    """

    name: str
    side: int
    padding: int
    channels: tuple[int, int, int, int, int]
    groups: tuple[int, int, int, int, int]


VARIANTS = (
    Variant("paper, two GPUs", 227, 0, (96, 256, 384, 384, 256), (1, 2, 1, 2, 2)),
    Variant("without groups", 227, 0, (96, 256, 384, 384, 256), (1, 1, 1, 1, 1)),
    Variant("single tower", 224, 2, (64, 192, 384, 256, 256), (1, 1, 1, 1, 1)),
)


def build(v: Variant) -> nn.Sequential:
    """Build AlexNet (Krizhevsky, Sutskever & Hinton 2012, section 3.5; Krizhevsky 2014).

    Local response normalisation is left out of all three: it has no parameters, its cost is no
    matrix multiplication, and the single tower does without it.

    Returns:
        The net, on the meta device.
    """
    c1, c2, c3, c4, c5 = v.channels
    g1, g2, g3, g4, g5 = v.groups
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, c1, 11, stride=4, padding=v.padding, groups=g1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2, groups=g2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1, groups=g3),
            nn.ReLU(),
            nn.Conv2d(c3, c4, 3, padding=1, groups=g4),
            nn.ReLU(),
            nn.Conv2d(c4, c5, 3, padding=1, groups=g5),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(c5 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, 1000),
        )


@dataclass(frozen=True)
class Layer:
    """One layer with weights: its sizes, counted."""

    name: str
    convolution: bool
    shape: tuple[int, ...]
    parameters: int
    macs: int


def layers(model: nn.Sequential, side: int) -> Iterator[Layer]:
    """Count parameters and multiplications of every layer for one image.

    Multiply-accumulates: a convolution does k^2 c_in / groups for each of its c_out h w outputs, a
    linear layer n_in n_out.

    Yields:
        The layers with weights, in order.
    """
    x = torch.empty(1, 3, side, side, device="meta")
    count = {True: 0, False: 0}
    for module in model:
        x = module(x)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        convolution = isinstance(module, nn.Conv2d)
        count[convolution] += 1
        macs = x[0].numel() * module.weight[0].numel()
        name = f"{'conv' if convolution else 'fc'}{count[convolution]}"
        parameters = sum(p.numel() for p in module.parameters())
        yield Layer(name, convolution, tuple(x.shape[1:]), parameters, macs)


def counted_by_torch(model: nn.Sequential, side: int) -> int:
    """Multiply-accumulates by torch's FLOP counter, which counts two operations for each."""
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


def measure(setup: Setup) -> Measured:
    """Run it; quick and full are the same."""
    numbers: list[Measurement] = []
    rows: list[tuple[str | float | int, ...]] = []
    tables: list[Table] = []
    for done, v in enumerate(VARIANTS):
        setup.at(done / len(VARIANTS), f"counting: {v.name}")
        model = build(v)
        found = list(layers(model, v.side))
        total = sum(p.numel() for p in model.parameters())
        macs = sum(layer.macs for layer in found)
        dense = sum(layer.parameters for layer in found if not layer.convolution)
        work = sum(layer.macs for layer in found if layer.convolution)
        checked = counted_by_torch(model, v.side)
        numbers += [
            Measurement(f"{v.name}: layers with weights", len(found), "", 8),
            Measurement(f"{v.name}: convolutions", sum(x.convolution for x in found), "", 5),
            Measurement(f"{v.name}: parameters", total, "", 16e6, tabled=True),
            Measurement(f"{v.name}: share of parameters fully connected", 100 * dense / total,
                        "%", 94.0, tabled=True),
            Measurement(f"{v.name}: share of computation in convolutions", 100 * work / macs,
                        "%", 95.0, "multiply-accumulates, forward pass, one image", tabled=True),
            Measurement(f"{v.name}: multiply-accumulates", macs, "", None, "by formula", True),
            Measurement(f"{v.name}: multiply-accumulates, torch", checked, "", macs,
                        "FlopCounterMode / 2"),
        ]  # fmt: skip
        rows.append((v.name, total, 100 * dense / total, macs, 100 * work / macs))
        tables.append(
            Table(
                f"{v.name}: layer by layer",
                ("layer", "output", "parameters", "% of all", "MACs", "% of all"),
                tuple(
                    (x.name, " x ".join(map(str, x.shape)), x.parameters,
                     100 * x.parameters / total, x.macs, 100 * x.macs / macs)
                    for x in found
                ),
            )
        )  # fmt: skip
    columns = ("form", "parameters", "% fully connected", "MACs", "% in convolutions")
    tables.insert(0, Table("The three forms", columns, tuple(rows)))
    settings = {"image sides": tuple(v.side for v in VARIANTS), "classes": 1000}
    return Measured(tuple(numbers), "", settings, (), tuple(tables))


def share_claim(v: Values, text: str, what: str, printed: float) -> Claim:
    """Judge a printed percentage: all forms, some or none round to it."""
    shares = {form.name: v[f"{form.name}: {what}"] for form in VARIANTS}
    fits = [name for name, share in shares.items() if abs(share - printed) <= PERCENT]
    verdict: Verdict = (
        "holds"
        if len(fits) == len(shares)
        else "holds in part"
        if fits
        else "does not hold as printed"
    )
    listed = ", ".join(f"{share:.1f}% ({name})" for name, share in shares.items())
    fit = f"; {printed:.0f}% is right for: {', '.join(fits)}" if fits else ""
    paper = VARIANTS[0].name
    correct = "" if verdict == "holds" else f"In the paper's own form it is {shares[paper]:.1f}%."
    return Claim(text, verdict, f"{what.capitalize()}: {listed}{fit}.", correct)


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    names = [form.name for form in VARIANTS]
    eight = all(v[f"{n}: layers with weights"] == 8 and v[f"{n}: convolutions"] == 5 for n in names)
    totals = [v[f"{n}: parameters"] / 1e6 for n in names]
    right = any(abs(total - 16) <= MILLION for total in totals)
    off = max(
        math.fabs(v[f"{n}: multiply-accumulates"] - v[f"{n}: multiply-accumulates, torch"])
        for n in names
    )
    listed = ", ".join(f"{total:.1f} million ({n})" for n, total in zip(names, totals, strict=True))
    checked = "torch's FLOP counter agrees" if off == 0 else f"torch's counter differs by {off:.0f}"
    return (
        Claim(
            "8 layers, 5 convolutions and 3 fully connected",
            "holds" if eight else "does not hold as printed",
            "Each form has 8 layers with weights, 5 of them convolutions."
            if eight
            else "Not every form has 5 convolutions and 3 fully connected layers.",
        ),
        share_claim(
            v, "the 3 fully connected layers hold 94% of the parameters",
            "share of parameters fully connected", 94.0,
        ),
        share_claim(
            v, "the 5 convolutions do 95% of the computation",
            "share of computation in convolutions", 95.0,
        ),
        Claim(
            "16 million parameters",
            "holds" if right else "does not hold as printed",
            f"Parameters: {listed}; {checked} on the computation.",
            "" if right else f"It has {totals[0]:.0f} million parameters, not 16 million.",
        ),
    )  # fmt: skip


STUDY = Study(
    name="alexnet",
    title="AlexNet: parameters in the top, computation below",
    statement="8 layers; the 3 fully connected layers hold 94% of the parameters, the 5 "
    "convolutions do 95% of the computation; 16 million parameters",
    source="Lecture by Sepp Hochreiter and the course video that goes with it; Krizhevsky, "
    "Sutskever & Hinton 2012, NIPS 25; Krizhevsky 2014, arXiv:1404.5997 (single tower)",
    function=measure,
    judge=judge,
)
