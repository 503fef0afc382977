"""What one observed pass is kept as: sites, spine, blocks, parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from signalprop._views import Viewable
from signalprop.capture.kinds import Kind
from signalprop.capture.statistics import ActivationStats, DeltaStats
from signalprop.capture.time import TimeAxis


@dataclass(frozen=True)
class Site:
    """A place where a tensor was seen.

    Attributes:
        name: module path, or module path and operation, with `#k` for the k-th call.
        module: path of the module it belongs to; `""` is the model itself.
        op: operation, e.g. `linear`, `relu`, `add`, or the class name of a module.
        kind: what the operation is to the error signal.
        shape: shape of the tensor.
        dtype: dtype of the tensor, e.g. `float32`.
        order: position in execution order.
        aliases: paths of modules that returned this same tensor.
        activation: forward statistics.
        delta: backward statistics; None where the loss does not depend on the tensor.
    """

    name: str
    module: str
    op: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    order: int
    aliases: tuple[str, ...]
    activation: ActivationStats
    delta: DeltaStats | None


@dataclass(frozen=True)
class Step:
    """One operation of the spine, and what it does to the error signal.

    Attributes:
        kind: what the operation is.
        nats: ln(|delta| after / |delta| before it) on the way back, mean over samples.
        node: the autograd node, e.g. `AddmmBackward0`.
    """

    kind: Kind
    nats: float
    node: str


@dataclass(frozen=True)
class Block:
    """What lies between two neighbouring spine sites.

    Attributes:
        start: the site at the input end.
        end: the site at the output end.
        decay: ln(|delta at start| / |delta at end|), L2 norm per sample, mean over samples, in
            nats; negative where the error signal is lost; -inf where it becomes exactly zero.
        parts: decay split by kind of operation; the values add up to `decay`.
        residual: whether the block adds its own input to a branch, J = I + X.
        steps: the operations of the spine inside the block, from the input end up.
        inner: sites inside the block that are not on the spine, in execution order.
        branch: for a residual block, the split inside its branch where it is one chain: what
            happens to the delta between the branch's inner sites. Shown, never summed.
    """

    start: str
    end: str
    decay: float
    parts: Mapping[Kind, float]
    residual: bool
    steps: tuple[Step, ...]
    inner: tuple[str, ...]
    branch: Mapping[Kind, float]


@dataclass(frozen=True)
class Weight:
    """A parameter, and the gradient the pass gave it.

    Attributes:
        name: name in `named_parameters()`.
        module: path of the module that owns it.
        shape: its shape.
        norm: L2 norm of the values.
        rms: root mean square of the values.
        gradient: L2 norm of the gradient; None where the loss does not depend on it, or it is
            frozen.
        trained: whether it requires a gradient.
        finite: whether its values are finite.
        order: order of the first site of its module; None where the module was never called.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    norm: float
    rms: float
    gradient: float | None
    trained: bool
    finite: bool
    order: int | None


@dataclass(frozen=True)
class FeatureFacts:
    """How the features of an input compare, over the batch and all positions.

    Attributes:
        varying: number of features that vary.
        rms: median root mean square of the features that vary.
        largest: the largest root mean square of a feature.
        place: index of that feature.
        offset: median of |mean| / standard deviation of the features that vary.
        observations: how many values of each feature were seen.
    """

    varying: int
    rms: float
    largest: float
    place: int
    offset: float
    observations: int


@dataclass(frozen=True)
class TensorFacts:
    """Facts about a tensor handed in, or to a loss: shape, dtype, range, moments.

    Attributes:
        shape: its shape.
        dtype: its dtype, e.g. `float32`.
        low: smallest value; nan where there is a nan.
        high: largest value; nan where there is a nan.
        mean: mean.
        std: standard deviation (population).
        finite: whether every value is finite.
        whole: whether every value is a whole number.
        reader: for an input, the first site with weights that reads it unchanged; else None.
        features: for an input that has such a reader, how its features compare; else None.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    mean: float
    std: float
    finite: bool
    whole: bool = False
    reader: str | None = None
    features: FeatureFacts | None = None

    @property
    def integral(self) -> bool:
        """Whether the dtype holds whole numbers or truth values."""
        return not self.dtype.startswith(("float", "bfloat", "complex"))


@dataclass(frozen=True)
class LossCall:
    """One loss function seen while the loss was computed.

    Attributes:
        op: its name in torch.nn.functional, or `sub` / `mul` for arithmetic that broadcasts.
        input: facts of what the network gave it.
        target: facts of what it was compared with; None where there is none.
        site: the site that made the input; None where it is unknown.
        site_op: that site's operation.
        row_sums: smallest and largest sum over the class dimension, where every element of the
            input is non-negative; None otherwise.
        classes: size of the class dimension.
        ignored: the target value that is left out (`ignore_index`).
    """

    op: str
    input: TensorFacts
    target: TensorFacts | None
    site: str | None
    site_op: str | None
    row_sums: tuple[float, float] | None
    classes: int | None
    ignored: int | None


@dataclass(frozen=True)
class Failure:
    """Where a pass stopped.

    Attributes:
        phase: `forward`, `loss` or `backward`.
        site: the module that raised; `""` where it is not known.
        error: class of the exception.
        message: its first line.
    """

    phase: str
    site: str
    error: str
    message: str


@dataclass(frozen=True, repr=False)
class Trace(Viewable):
    """One forward and backward pass of a model, seen.

    Attributes:
        model: class name of the model.
        sites: every site, in execution order, keyed by name.
        spine: names of the sites that every path from the input to the loss runs through, from the
            input up.
        blocks: what lies between neighbouring spine sites, from the input up.
        weights: parameters, keyed by name, in the model's order.
        inputs: facts of every tensor of the batch that the model was given.
        losses: loss functions seen.
        loss: value of the loss; nan where it could not be computed.
        batch: number of samples.
        training: whether the model was in training mode.
        modes: for every BatchNorm and Dropout module its own `training` flag.
        dense: whether one block holds most of the sites (U-Net, DenseNet), so that the spine says
            little and every site should be looked at in execution order.
        cut: name of the spine site at which, on the way back, delta became exactly zero; else None.
        samples: number of samples whose delta is not zero at any spine site above the cut.
        failure: where the pass stopped, else None.
        notes: what a reader has to know, one sentence each.
        rootless: sites with weights that the loss depends on, whose input was a tensor without a
            graph: detached, made under no_grad, or a constant.
        time: the time axis of every recurrent layer and direction.
    """

    model: str
    sites: Mapping[str, Site]
    spine: tuple[str, ...]
    blocks: tuple[Block, ...]
    weights: Mapping[str, Weight]
    inputs: Mapping[str, TensorFacts]
    losses: tuple[LossCall, ...]
    loss: float
    batch: int
    training: bool
    modes: Mapping[str, bool]
    dense: bool
    cut: str | None
    samples: int
    failure: Failure | None
    notes: tuple[str, ...]
    rootless: tuple[str, ...] = ()
    time: tuple[TimeAxis, ...] = ()

    @property
    def decay(self) -> float:
        """ln(|delta| at the input end / |delta| at the output end) of the spine, in nats."""
        return sum(block.decay for block in self.blocks)

    @property
    def split(self) -> dict[Kind, float]:
        """The decay added up by kind of operation; the values add up to `decay`."""
        total: dict[Kind, float] = {}
        for block in self.blocks:
            for kind, nats in block.parts.items():
                total[kind] = total.get(kind, 0.0) + nats
        return total

    def spine_sites(self) -> Iterator[Site]:
        """The sites of the spine, from the input up."""
        return (self.sites[name] for name in self.spine)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that json can write; values that are not finite become strings."""
        return plain(self)

    def frame(self) -> Any:
        """One row per site, as a pandas DataFrame."""
        import pandas as pd

        on_spine = set(self.spine)
        decay = {block.end: block.decay for block in self.blocks}
        rows = []
        for site in self.sites.values():
            row: dict[str, Any] = {
                "site": site.name,
                "op": site.op,
                "kind": site.kind,
                "shape": site.shape,
                "spine": site.name in on_spine,
                "decay": decay.get(site.name, math.nan),
            }
            row |= {f"activation_{k}": v for k, v in dataclasses.asdict(site.activation).items()}
            if site.delta is not None:
                row |= {f"delta_{k}": v for k, v in dataclasses.asdict(site.delta).items()}
            rows.append(row)
        return pd.DataFrame(rows).set_index("site")

    def time_frame(self) -> Any:
        """One row per recurrent layer, direction and step that was seen, as a pandas DataFrame."""
        import pandas as pd

        names = ["site", "layer", "reverse", "step", "op", "delta_h", "delta_c"]
        rows = [
            (axis.site, axis.layer, axis.reverse, t, axis.op, h, c)
            for axis in self.time
            for t, h, c in zip(axis.steps, axis.h, axis.c or [math.nan] * len(axis.h), strict=True)
        ]
        return pd.DataFrame(rows, columns=names).set_index(names[:4])


def plain(value: Any) -> Any:
    """Any result as dicts, lists, strings and finite numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
