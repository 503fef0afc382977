"""The rule about units that start alike and can never become different."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from signalprop.capture.trace import Site, Weight
from signalprop.diagnosis.depth import spine
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import some
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule

_LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.RNNBase,
    torch.nn.RNNCellBase,
)


@rule("SP213", "Units that start alike and stay alike", cures=("reinitialise",))
def symmetric(evidence: Evidence, *, alike: float = 0.99) -> Iterator[Finding]:
    """All units of a hidden layer have the same weights, on the way in and on the way out.

    How it is detected:
        At least a share `alike` of the rows of a trained weight matrix are equal, and in the next
        layer that reads its units all columns are equal, too. Both are needed: a zero head, LoRA's
        B = 0 or the zero last layer of a residual branch are read by, or read from, units that
        differ, and a constant layer before a random one is told apart by the first update. The
        last layer is never meant, as its units have different targets, nor is a layer whose output
        is added to a skip connection, which keeps its units apart. Embeddings, biases, norms and
        depthwise convolutions have no units in this sense.

    Why it matters:
        Such units put out the same and get the same error signal, so every update leaves them
        equal: the layer has the width of one unit, however wide it is. Where all weights are zero
        nothing but the last bias ever moves.

    How to cure it:
        Draw the weights at random (He for ReLU, LeCun for SELU, Xavier for tanh); only biases may
        start constant.

    Yields:
        One finding that names all such layers.

    Raises:
        NotApplicable: there is no hidden layer with weights.
    """
    layers = _in_order(evidence)
    if len(layers) < 2:
        raise NotApplicable("there is no hidden layer with weights of its own")
    parameters = dict(evidence.model.named_parameters())
    found: list[str] = []
    width = 0
    for i, weight in enumerate(layers):
        units = _units(evidence, weight)
        if not weight.trained or units < 2 or not _rows_alike(evidence, weight, alike):
            continue
        if _added(evidence, weight):
            continue
        reader = next(
            (w for w in layers[i + 1 :] if w.module != weight.module and _reads(w, units)), None
        )
        if reader is not None and _columns_alike(parameters[reader.name], units):
            found.append(weight.name)
            width += units
    if not found:
        return
    zero = all(evidence.trace.weights[n].norm == 0 for n in found)
    yield finding(
        symmetric,
        sites=found,
        value=min(evidence.weights[n].identical_rows for n in found),
        unit="share of equal units",
        threshold=alike,
        explanation=(
            f"all {width} units of {some(found)} start with the same weights, "
            f"{'all zero, ' if zero else ''}and the next layer reads them with the same weights: "
            "every update leaves them equal, and each layer counts as a single unit."
        ),
    )


def _in_order(evidence: Evidence) -> list[Weight]:
    """Weight matrices of layers that have units, in execution order."""
    layers = []
    for weight in evidence.trace.weights.values():
        if weight.order is None or len(weight.shape) < 2 or weight.name not in evidence.weights:
            continue
        try:
            module = evidence.model.get_submodule(weight.module)
        except AttributeError:
            continue
        plain = isinstance(module, _LAYERS) and getattr(module, "groups", 1) == 1
        if plain or type(module).__name__ == "Conv1D":
            layers.append(weight)
    return sorted(layers, key=lambda w: w.order or 0)


def _units(evidence: Evidence, weight: Weight) -> int:
    module = evidence.model.get_submodule(weight.module)
    hidden = getattr(module, "hidden_size", None)
    return hidden if isinstance(hidden, int) else weight.shape[0]


def _rows_alike(evidence: Evidence, weight: Weight, alike: float) -> bool:
    """Whether all units read alike, recurrent weights included."""
    facts = [
        evidence.weights[w.name].identical_rows
        for w in evidence.trace.weights.values()
        if w.module == weight.module and len(w.shape) >= 2 and w.name in evidence.weights
    ]
    return min(facts, default=0.0) >= alike


def _reads(weight: Weight, units: int) -> bool:
    """Whether a later layer has one column, or one block of columns, for every unit."""
    return weight.shape[1] % units == 0


def _columns_alike(value: Tensor, units: int) -> bool:
    with torch.no_grad():
        columns = value.detach().reshape(value.shape[0], units, -1)
        return bool((columns == columns[:, :1]).all())


def _added(evidence: Evidence, weight: Weight) -> bool:
    """Whether a layer's output goes into an addition before it goes into another layer."""
    trace = evidence.trace
    sites = [s for s in trace.sites.values() if s.module == weight.module]
    if not sites:
        return False
    first: Site = sites[0]
    for site in trace.sites.values():
        if site.order <= first.order:
            continue
        if site.op == "add":
            return True
        if spine.single_numbers(trace, site.module):  # alpha x or x + b with one learnt number
            continue
        if site.kind in ("weights", "attention") or prod(site.shape) != prod(first.shape):
            return False
    return False


SYMMETRY_RULES: tuple[Rule, ...] = (symmetric,)
