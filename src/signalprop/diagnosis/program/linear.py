"""The rule about networks that no activation keeps from being a single linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from signalprop.capture.trace import Block, Site, Trace
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import quoted
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.diagnosis.samples import output_activation

#: layers that are linear in their input alone
_LAYERS = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split()
)
#: autograd nodes of linear operations, without `Backward0`; shapes and dtypes are no steps
_NODES = ("Addmm", "Mm", "Linear", "Convolution", "AvgPool", "AdaptiveAvgPool", "NativeDropout")


def linear_chain(trace: Trace) -> tuple[Site, ...]:
    """The layers of a network that as a whole is linear, but for an activation at its output.

    Args:
        trace: the pass.

    Returns:
        Its layers, input first; none where anything in it is not linear, there is a single layer,
        or a hidden one is narrower than both ends: that is a factorisation, a matrix of low rank.
    """
    end = output_activation(trace)
    blocks = [b for b in trace.blocks if end is None or b.end != end[0].name]
    ends = [trace.sites[b.end] for b in blocks]
    layers = [s for s in ends if s.op in _LAYERS]
    inside = [s for s in trace.sites.values() if s.module != "loss"]
    alone = len(inside) == len(trace.spine) and not any(b.inner for b in blocks)
    if len(layers) < 2 or not alone or not all(map(_linear, blocks, ends)):
        return ()
    widths = [prod(s.shape[1:]) for s in (trace.sites[blocks[0].start], *layers)]
    return () if min(widths[1:-1]) < min(widths[0], widths[-1]) else tuple(layers)


def _linear(block: Block, end: Site) -> bool:
    """Whether a block only multiplies by weights, averages, or drops."""
    dropout = end.op.startswith("dropout")  # a product with a random mask
    return all(s.node.startswith(_NODES) or (dropout and s.node == "MulBackward0")
               for s in block.steps)  # fmt: skip


@rule(
    "SP215",
    "No activation between the layers",
    severity="tip",
    needs=("deltas",),
    cures=("add-activations",),
)
def all_linear(evidence: Evidence, *, row: int = 2) -> Iterator[Finding]:
    """The whole network computes what a single linear layer computes.

    How it is detected:
        From its input to its output, an activation at the end aside, there are only linear layers,
        convolutions, dropout and average pooling, and at least `row` layers. A hidden layer that is
        narrower than input and output makes a matrix of low rank, on purpose, and is passed over.

    Why it matters:
        W2 (W1 x + b1) + b2 is one matrix and one bias: the layers below the last add parameters and
        curvature, but nothing that the network could compute in addition. In PyTorch an activation
        is a module or a call of its own; `nn.Linear` has none.

    How to cure it:
        Put ReLU, GELU or the like between the layers, with weights to fit. It is a tip only, as a
        deep linear network is what some want to study.

    Yields:
        One finding that names the layers.

    Raises:
        NotApplicable: the network has fewer than two layers with weights.
    """
    trace = evidence.trace
    if sum(s.kind == "weights" for s in trace.sites.values()) < 2:
        raise NotApplicable("there are fewer than two layers with weights")
    layers = linear_chain(trace)
    if len(layers) < max(row, 2):
        return
    names = ", ".join(quoted(s.name) for s in layers[:4]) + (" ..." if len(layers) > 4 else "")
    yield finding(
        all_linear,
        sites=tuple(s.name for s in layers),
        value=len(layers),
        unit="linear layers in a row",
        threshold=row,
        explanation=(
            f"{names}: {len(layers)} linear layers follow each other without an activation in "
            "between; together they compute what one of them can."
        ),
    )


LINEAR_RULES: tuple[Rule, ...] = (all_linear,)
