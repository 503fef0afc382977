"""The spine from a dominator tree that networkx builds over the whole autograd graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networkx as nx

Node = Any


class FakeNode:
    """An autograd node of a made-up graph."""

    def __init__(self, label: int | str, op: str = "AddmmBackward0") -> None:
        self.label, self._op = label, op
        self.next_functions: tuple[tuple[Any, int], ...] = ()

    def name(self) -> str:
        return self._op

    def __repr__(self) -> str:
        return f"<{self.label} {self._op}>"


def reached(root: Node) -> Iterator[Node]:
    """All nodes that the root leads to."""
    seen, stack = {root}, [root]
    while stack:
        node = stack.pop()
        yield node
        for nxt, _ in node.next_functions:
            if nxt is not None and nxt not in seen:
                seen.add(nxt)
                stack.append(nxt)


def graph_of(root: Node) -> nx.DiGraph:
    """The graph from the loss down."""
    graph = nx.DiGraph()
    for node in reached(root):
        graph.add_node(node)
        graph.add_edges_from((node, nxt) for nxt, _ in node.next_functions if nxt is not None)
    return graph


def dominators(root: Node, source: Node) -> list[Node]:
    """The nodes on every path from the root to the source, from the root down."""
    above = nx.immediate_dominators(graph_of(root), root)
    chain = [source]
    while chain[-1] is not root:
        chain.append(above[chain[-1]])
    return chain[::-1]


def between(root: Node, source: Node) -> set[Node]:
    """The nodes on some path from the root to the source."""
    graph = graph_of(root)
    return (nx.ancestors(graph, source) | {source}) & (nx.descendants(graph, root) | {root})


def inside(root: Node, upper: Node, lower: Node) -> set[Node]:
    """The nodes strictly between two nodes, on some path."""
    graph = graph_of(root)
    return nx.descendants(graph, upper) & nx.ancestors(graph, lower)
