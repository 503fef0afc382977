"""From per-sample deltas at the nodes of the spine to blocks whose parts add up.

At every node, L = mean over samples of ln |delta|. The decay over an operation is the difference
of L at its two ends, so decays telescope exactly, whatever the operations are. The same samples
are used all the way: those whose delta is nowhere zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from signalprop.capture import graph, kinds
from signalprop.capture.backward import Backward
from signalprop.capture.graph import Node, Span
from signalprop.capture.kinds import Kind
from signalprop.capture.recorder import Recorder
from signalprop.capture.seen import Seen
from signalprop.capture.trace import Block, Step

#: on the way back, delta counts as gone where fewer samples than this share still have one
ALIVE_SHARE = 0.1


@dataclass(frozen=True)
class Chain:
    """The spine as data.

    Attributes:
        spine: names of its sites, from the input up.
        blocks: what lies between them.
        cut: name of the site at which delta became exactly zero on its way back, else None.
        samples: number of samples in the means.
    """

    spine: tuple[str, ...]
    blocks: tuple[Block, ...]
    cut: str | None
    samples: int


def chain_of(recorder: Recorder, found: Backward, names: list[str]) -> Chain:
    """The blocks of a pass, from the input up."""
    site_at: dict[Node, tuple[str, Seen]] = {}
    for name, seen in zip(names, recorder.sites, strict=True):
        if seen.node is not None and not seen.in_loss and seen.node not in site_at:
            site_at[seen.node] = (name, seen)
    if found.start is None or not found.norms:
        return Chain((), (), None, 0)
    spans = _inside_model(found.spans, site_at)
    levels = _Levels(spans, found, recorder.batch)
    step_kinds = _kinds(spans, site_at)
    blocks: list[Block] = []
    spine = [site_at[found.start][0]] if found.start in site_at else []
    steps: list[Step] = []
    inner: list[Node] = []
    for span in reversed(spans):
        nats = levels.across(span)
        stem = span.upper.name()
        inner.extend(span.inner)
        if span.inner or not kinds.moves_values_only(stem):
            steps.append(Step(step_kinds[span.upper], nats, stem))
        if span.upper in site_at:
            if spine:
                blocks.append(
                    _block(spine[-1], site_at[span.upper][0], steps, inner, span, site_at, levels)
                )
            spine.append(site_at[span.upper][0])
            steps, inner = list[Step](), list[Node]()
    cut = levels.cut
    cut_name = None
    if cut is not None:
        cut_name = site_at[cut][0] if cut in site_at else _site_below(cut, spans, site_at)
    return Chain(tuple(spine), tuple(blocks), cut_name, levels.samples)


def _inside_model(spans: list[Span], site_at: dict[Node, tuple[str, Seen]]) -> list[Span]:
    """The spans up to the last site of the model: what follows belongs to the loss."""
    for i, span in enumerate(spans):
        if span.upper in site_at:
            return spans[i:]
    return []


def _site_below(node: Node, spans: list[Span], site_at: dict[Node, tuple[str, Seen]]) -> str | None:
    uppers = [span.upper for span in spans]
    start = uppers.index(node) if node in uppers else len(uppers)
    for upper in reversed(uppers[:start]):
        if upper in site_at:
            return site_at[upper][0]
    return None


def _unfold(norms: dict[Node, np.ndarray], spans: list[Span], found: Backward) -> None:
    """Take the norms from where samples are apart.

    A view passes every sample's norm on. Where it folds samples and positions into one dimension,
    which rows belong to a sample is a guess (attention folds time first), so the norms above the
    view stand for those below it.
    """
    apart: np.ndarray | None = None
    for span in spans:
        if span.upper in norms and span.upper not in found.folded:
            apart = norms[span.upper]
        if span.inner or not kinds.moves_values_only(span.upper.name()):
            apart = None
            continue
        norms.pop(span.upper, None)
        if apart is not None and span.lower in found.folded:
            norms[span.lower] = apart


class _Levels:
    """L = mean over samples of ln |delta| at every node of the spine."""

    def __init__(self, spans: list[Span], found: Backward, batch: int) -> None:
        nodes = [span.upper for span in spans] + ([spans[-1].lower] if spans else [])
        norms = {n: np.asarray(found.norms[n]) for n in nodes if n in found.norms}
        _unfold(norms, spans, found)
        self._found, self._batch = found, batch
        self.cut: Node | None = None
        self._mask = np.ones(batch, dtype=bool)
        broken = False
        for node in nodes:
            if node not in norms:
                continue
            values = norms[node]
            if not np.isfinite(values).all():
                broken = True
            alive = values > 0
            if alive.size == batch:
                alive = alive & self._mask
            if alive.mean() < ALIVE_SHARE or not alive.any():
                self.cut = None if broken else node
                break
            if alive.size == batch:
                self._mask = alive
        self.samples = int(self._mask.sum())
        self._level: dict[Node, float] = {}
        gone = False
        for node in nodes:
            gone = gone or node is self.cut
            if node in norms:
                self._level[node] = -math.inf if gone else self._mean(norms[node])
        # an operation that only moves values passes the norm on
        below = self._level.get(nodes[-1], math.nan) if nodes else math.nan
        for node in reversed(nodes):
            below = self._level.setdefault(node, below)

    def _mean(self, values: np.ndarray) -> float:
        if values.size == self._batch:
            values = values[self._mask]
        with np.errstate(divide="ignore"):
            return float(np.log(values).mean())

    def across(self, span: Span) -> float:
        """ln(|delta| below / |delta| above) a span; 0 once nothing is left to lose."""
        upper, lower = self._level[span.upper], self._level[span.lower]
        if upper == -math.inf:
            return 0.0
        return lower - upper

    def at_site(self, place: int) -> float | None:
        """L at any site with a delta, on the spine or not."""
        delta = self._found.at_site.get(place)
        if delta is None:
            return None
        values = np.asarray(delta.norms)
        used = values[self._mask] if values.size == self._batch else values
        return self._mean(values) if (used > 0).all() and np.isfinite(used).all() else None

    def at(self, node: Node) -> float:
        """L at a node of the spine."""
        return self._level[node]


def _kinds(spans: list[Span], site_at: dict[Node, tuple[str, Seen]]) -> dict[Node, Kind]:
    """What every operation of the spine is.

    A site that stands for several autograd nodes (a norm written out, a fused module) gives its
    kind to all of them, down to the node that its input came from.

    Returns:
        The kind of the upper node of every span.
    """
    result: dict[Node, Kind] = {}
    region: Kind | None = None
    entry: Node = None
    for span in spans:
        if span.upper is entry:
            region = entry = None
        seen = site_at[span.upper][1] if span.upper in site_at else None
        if seen is not None:
            region = seen.kind if seen.entry is not None and seen.kind != "other" else None
            entry = seen.entry
        if span.residual:
            kind: Kind = "skip"
        elif seen is not None and (seen.kind != "other" or not span.inner):
            kind = seen.kind
        elif region is not None:
            kind = region
        else:
            kind = kinds.kind_of_node(span.upper.name())
            if span.inner and kind == "other":
                kind = _kind_of_parallel(span, site_at)
        result[span.upper] = kind
    return result


def _kind_of_parallel(span: Span, site_at: dict[Node, tuple[str, Seen]]) -> Kind:
    inside = {kinds.kind_of_node(node.name()) for node in span.inner}
    inside |= {site_at[node][1].kind for node in span.inner if node in site_at}
    return "attention" if "attention" in inside else "other"


def _block(
    start: str,
    end: str,
    steps: list[Step],
    inner: list[Node],
    last: Span,
    site_at: dict[Node, tuple[str, Seen]],
    levels: _Levels,
) -> Block:
    parts: dict[Kind, float] = {}
    for step in steps:
        parts[step.kind] = parts.get(step.kind, 0.0) + step.nats
    inside = sorted((site_at[n] for n in inner if n in site_at), key=lambda s: s[1].order)
    return Block(
        start=start,
        end=end,
        decay=sum(parts.values()),
        parts=parts,
        residual=last.residual,
        steps=tuple(steps),
        inner=tuple(name for name, _ in inside),
        branch=_branch(last, site_at, levels) if last.residual else {},
    )


def _branch(
    span: Span, site_at: dict[Node, tuple[str, Seen]], levels: _Levels
) -> dict[Kind, float]:
    """What happens to delta between the sites of a residual branch, by kind."""
    inside = {*span.inner, span.lower}
    for top, _ in span.upper.next_functions:
        if top not in inside or top is span.lower:
            continue
        order = [n for n in graph.topological(top) if n in inside]
        on_path = graph.paths_between(order, span.lower)
        chain = [s.upper for s in graph.spine(on_path)]
        if not any(node in site_at for node in chain):
            continue
        return _split_of(chain, levels.at(span.upper), site_at, levels)
    return {}


def _split_of(
    chain: list[Node], above: float, site_at: dict[Node, tuple[str, Seen]], levels: _Levels
) -> dict[Kind, float]:
    parts: dict[Kind, float] = {}
    kind: Kind = "other"
    for node in chain:
        if node not in site_at:
            continue
        seen = site_at[node][1]
        level = levels.at_site(seen.order)
        if level is None:
            break
        if level != above:
            parts[kind] = parts.get(kind, 0.0) + level - above
        above, kind = level, seen.kind
    return parts
