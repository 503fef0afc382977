"""What rules ask of a trace's spine: levels, drops, and what lies in between."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from signalprop.capture.kinds import KIND_LABELS, Kind
from signalprop.capture.trace import Block, Site, Trace
from signalprop.diagnosis.evidence import Evidence


@dataclass(frozen=True)
class Change:
    """The largest change of delta between two sites of the spine, on the way back.

    Attributes:
        upper: the site nearer to the output.
        lower: the site nearer to the input.
        nats: ln(|delta at lower| / |delta at upper|).
        blocks: the blocks in between, from the input up.
        layers: how many of them have weights: what is called depth.
    """

    upper: str
    lower: str
    nats: float
    blocks: tuple[Block, ...]
    layers: int

    def split(self) -> str:
        """`activation slope -27.1, weights -11.1`; the numbers add up to `nats`."""
        parts: dict[Kind, float] = {}
        for block in self.blocks:
            for kind, nats in block.parts.items():
                parts[kind] = parts.get(kind, 0.0) + nats
        shown = sorted(parts.items(), key=lambda item: -abs(item[1]))
        return ", ".join(f"{KIND_LABELS[k]} {v:+.1f}" for k, v in shown if abs(v) >= 0.05)


_LAYERS = ("weights", "skip", "attention")


def has_weights(trace: Trace, block: Block) -> bool:
    """Whether a block is a layer: it multiplies by weights, or holds branches that do."""
    return any(kind in block.parts for kind in _LAYERS) or any(
        trace.sites[name].kind in _LAYERS for name in block.inner
    )


def levels(trace: Trace) -> dict[str, float]:
    """ln(|delta at the site| / |delta at the output end|) for every site of the spine."""
    level = 0.0
    result = {trace.spine[-1]: 0.0} if trace.spine else {}
    for block in reversed(trace.blocks):
        level = level + block.decay
        result[block.start] = level
    return result


def largest_drop(trace: Trace) -> Change | None:
    """Where delta loses most on its way back, from any site to any site below it."""
    return _largest(trace, -1.0)


def largest_rise(trace: Trace) -> Change | None:
    """Where delta gains most on its way back."""
    return _largest(trace, 1.0)


def _largest(trace: Trace, sign: float) -> Change | None:
    at = levels(trace)
    names = [name for name in reversed(trace.spine) if not math.isnan(at.get(name, math.nan))]
    best: tuple[float, int, int] | None = None
    base = 0
    for i in range(len(names)):
        change = sign * (at[names[i]] - at[names[base]]) if i else 0.0
        if change < 0 or math.isnan(change):
            base = i
        elif best is None or change > best[0]:
            best = (change, base, i)
    if best is None or not best[0]:
        return None
    upper, lower = names[best[1]], names[best[2]]
    start, end = trace.spine.index(lower), trace.spine.index(upper)
    blocks = trace.blocks[start:end]
    layers = sum(has_weights(trace, block) for block in blocks)
    return Change(upper, lower, sign * best[0], blocks, layers)


def hidden(trace: Trace) -> list[Site]:
    """The sites of the spine between the input and the head, from the input up.

    The head is the last operation with weights and what follows it; a zero head is sound.

    Returns:
        The sites; none where there is no operation with weights.
    """
    last = next(
        (i for i in range(len(trace.blocks) - 1, -1, -1) if has_weights(trace, trace.blocks[i])),
        None,
    )
    if last is None:
        return []
    names = [trace.blocks[0].start] + [block.end for block in trace.blocks[:last]]
    return [trace.sites[name] for name in names]


def width(trace: Trace, name: str) -> int:
    """Elements per sample of a site."""
    return math.prod(trace.sites[name].shape) // max(trace.batch, 1)


def single_numbers(trace: Trace, path: str) -> bool:
    """Whether all parameters of a module are single numbers: a learnt multiplier, a shift."""
    own = [w.shape for w in trace.weights.values() if w.module == path]
    return bool(own) and all(math.prod(shape) == 1 for shape in own)


def weak_layers(evidence: Evidence, idle: float) -> list[str]:
    """Layers that have less than `idle` of a fair part of the learning, now and after rehearsal."""
    learning = evidence.learning
    if learning is None:
        return []
    fair = 1 / max(len(learning.share), 1)
    weak = []
    for layer, share in learning.share.items():
        most = max(abs(share), abs(learning.later_share.get(layer, 0.0)))
        if most < idle * fair:
            weak.append(layer)
    return weak


def orders(trace: Trace) -> dict[str, int]:
    """Place of every layer's first call in execution order, keyed by module path."""
    places: dict[str, int] = {}
    for weight in trace.weights.values():
        if weight.order is not None:
            places[weight.module] = min(weight.order, places.get(weight.module, weight.order))
    return places


def name_of(layer: str) -> str:
    """A layer's module path for a sentence; the model itself has an empty one."""
    return layer or "(the model's own parameters)"


def some(names: Iterable[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    listed = list(names)
    text = ", ".join(name_of(n) for n in listed[:most])
    return text + (f" and {len(listed) - most} more" if len(listed) > most else "")
