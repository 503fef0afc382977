"""The options that commands share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

DATA = Group("Data, where the target makes none", sort_key=1)
JACOBIAN = Group("Jacobian", sort_key=2)
RUN = Group("Run", sort_key=3)
OUTPUT = Group("Output", sort_key=4)

Debug = Annotated[bool, Parameter(group=OUTPUT)]
Json = Annotated[bool, Parameter(group=OUTPUT)]
Html = Annotated[Path | None, Parameter(group=OUTPUT)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What `diagnose`, `cure`, `trace`, `spectrum` and `horizon` have in common.

    Attributes:
        input: Shape of a random input, batch first: 32x3x32x32, or 8x128:int for whole numbers.
            Repeat it for several.
        classes: Random labels of so many classes, and cross entropy.
        vocab: Whole numbers are below this; otherwise the model's nn.Embedding says.
        batch_dim: Dimension of the samples; 1 for sequence-first models.
        seed: Seed of the model's and the data's random numbers.
        device: Where to run, e.g. cuda; otherwise where the model is.
        json: Print JSON on stdout, and nothing else.
        html: Write the report to this file; opens offline.
        quiet: One line, or one per finding, instead of the whole report.
        debug: On an error, print the traceback too.
    """

    input: Annotated[list[str], Parameter(group=DATA)] = field(default_factory=list)
    classes: Annotated[int | None, Parameter(group=DATA)] = None
    vocab: Annotated[int | None, Parameter(group=DATA)] = None
    batch_dim: Annotated[int, Parameter(group=RUN)] = 0
    seed: Annotated[int, Parameter(group=RUN)] = 0
    device: Annotated[str | None, Parameter(group=RUN)] = None
    json: Annotated[bool, Parameter(group=OUTPUT)] = False
    html: Annotated[Path | None, Parameter(group=OUTPUT)] = None
    quiet: Annotated[bool, Parameter(group=OUTPUT)] = False
    debug: Annotated[bool, Parameter(group=OUTPUT)] = False


DEFAULTS = Options()
