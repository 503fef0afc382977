"""The autograd graph from the loss back to the first activations, and its spine.

The spine is the chain of dominators: the nodes that every path from the loss to the source
runs through (Lengauer & Tarjan 1979 for the notion). With one root and one sink, and only the
nodes that lie on some path between them, it needs no dominator tree: walk the nodes in
topological order and keep how far an edge has reached; a node that no edge jumps over is on
every path. One pass, linear in the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from signalprop.capture.kinds import moves_values_only

Node = Any  # torch.autograd.graph.Node; the wrapper is the same object while it is referenced


def topological(root: Node) -> list[Node]:
    """All nodes that the root leads to, every node before those it leads to."""
    done: list[Node] = []
    seen = {root}
    stack: list[tuple[Node, Iterable[Any]]] = [(root, iter(root.next_functions))]
    while stack:
        node, edges = stack[-1]
        for nxt, _ in edges:
            if nxt is not None and nxt not in seen:
                seen.add(nxt)
                stack.append((nxt, iter(nxt.next_functions)))
                break
        else:
            done.append(node)
            stack.pop()
    done.reverse()
    return done


@dataclass(frozen=True)
class Span:
    """Two neighbouring spine nodes and what lies between them.

    Attributes:
        upper: the node nearer to the loss.
        lower: the node nearer to the source.
        inner: nodes between them, on some path.
        residual: whether `upper` adds `lower`'s output, unchanged, to a branch.
    """

    upper: Node
    lower: Node
    inner: tuple[Node, ...]
    residual: bool


def paths_between(order: list[Node], source: Node) -> list[Node]:
    """The nodes of `order` that lie on some path from its first node to the source."""
    leads = {source}
    for node in reversed(order):
        if node not in leads and any(nxt in leads for nxt, _ in node.next_functions):
            leads.add(node)
    return [node for node in order if node in leads]


def spine(on_path: list[Node]) -> list[Span]:
    """The dominator chain of nodes in topological order, as spans from the loss down."""
    place = {node: i for i, node in enumerate(on_path)}
    spans: list[Span] = []
    reach, last = 0, -1
    for i, node in enumerate(on_path):
        if reach <= i:
            if last >= 0:
                upper, inner = on_path[last], tuple(on_path[last + 1 : i])
                spans.append(Span(upper, node, inner, _adds_input(upper, node, inner, place)))
            last = i
        for nxt, _ in node.next_functions:
            reach = max(reach, place.get(nxt, 0))
    return spans


def _adds_input(upper: Node, lower: Node, inner: tuple[Node, ...], place: dict[Node, int]) -> bool:
    """Whether `upper` is a sum of `lower` itself and of something computed from it."""
    if not inner or not upper.name().startswith("AddBackward"):
        return False
    edges = [nxt for nxt, _ in upper.next_functions if nxt in place]
    identity = [_through_views(nxt, lower) is lower for nxt in edges]
    return any(identity) and not all(identity)


def _through_views(node: Node, stop: Node) -> Node:
    while node is not stop and moves_values_only(node.name()):
        nexts = [nxt for nxt, _ in node.next_functions if nxt is not None]
        if len(nexts) != 1:
            break
        node = nexts[0]
    return node


def longest(
    order: list[Node], sources: Iterable[Node], weight: Callable[[Node], bool]
) -> tuple[Node | None, list[Span], int]:
    """The source whose spine holds the most nodes that `weight` counts.

    Returns:
        The source (None where the loss reaches none of them), its spans from the loss down, and
        how many nodes lie on its paths.
    """
    best: tuple[Node | None, list[Span], int] = (None, [], 0)
    most = -1
    known = set(order)
    for source in sources:
        if source not in known:
            continue
        on_path = paths_between(order, source)
        spans = spine(on_path)
        count = sum(weight(span.upper) for span in spans) + weight(source)
        if count > most:
            most, best = count, (source, spans, len(on_path))
    return best
