"""The spine against a dominator tree, over random graphs."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import spine_twin
from tests.references.spine_twin import FakeNode

from signalprop.capture import graph

OPS = ["AddmmBackward0", "AddBackward0", "ViewBackward0", "TBackward0", "ReluBackward0"]


@st.composite
def graphs(draw, most=14):
    """A random acyclic graph, its nodes from the loss down; edges may be double or missing."""
    n = draw(st.integers(2, most))
    nodes = [FakeNode(i, draw(st.sampled_from(OPS))) for i in range(n)]
    for i, node in enumerate(nodes[:-1]):
        lower = st.integers(i + 1, n - 1)
        targets = draw(st.lists(st.one_of(lower, st.none()), min_size=1, max_size=3))
        node.next_functions = tuple((None if t is None else nodes[t], 0) for t in targets)
    order = draw(st.permutations(range(n)))
    for i in order[:2]:  # accumulators: leaves that the model's parameters hang on
        if i < n - 1:
            leaf = FakeNode(f"leaf {i}", "torch::autograd::AccumulateGrad")
            nodes[i].next_functions = (*nodes[i].next_functions, (leaf, 0))
    return nodes


def source_of(nodes, number):
    reached = [n for n in nodes if n in set(spine_twin.reached(nodes[0]))]
    return reached[number % len(reached)]


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_topological_order_puts_every_node_before_those_it_leads_to(nodes):
    order = graph.topological(nodes[0])
    assert set(order) == set(spine_twin.reached(nodes[0]))
    assert len(order) == len(set(order))
    place = {node: i for i, node in enumerate(order)}
    for node in order:
        assert all(place[nxt] > place[node] for nxt, _ in node.next_functions if nxt is not None)


@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(0, 100))
def test_the_spine_is_the_chain_of_dominators(nodes, number):
    source = source_of(nodes, number)
    order = graph.topological(nodes[0])
    on_path = graph.paths_between(order, source)
    assert set(on_path) == spine_twin.between(nodes[0], source)
    spans = graph.spine(on_path)
    chain = [*(span.upper for span in spans), source]
    assert chain == spine_twin.dominators(nodes[0], source)
    for span in spans:
        assert set(span.inner) == spine_twin.inside(nodes[0], span.upper, span.lower)


@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(0, 100))
def test_a_residual_span_adds_what_enters_it_to_something_made_of_it(nodes, number):
    source = source_of(nodes, number)
    on_path = graph.paths_between(graph.topological(nodes[0]), source)
    for span in graph.spine(on_path):
        straight = [
            _views_end(nxt, span.lower) is span.lower
            for nxt, _ in span.upper.next_functions
            if nxt in on_path
        ]
        expected = (
            bool(span.inner)
            and span.upper.name() == "AddBackward0"
            and any(straight)
            and not all(straight)
        )
        assert span.residual == expected


def _views_end(node, stop):
    while node is not stop and node.name() in ("ViewBackward0", "TBackward0"):
        below = [nxt for nxt, _ in node.next_functions if nxt is not None]
        if len(below) != 1:
            return node
        node = below[0]
    return node


@settings(max_examples=100, deadline=None)
@given(graphs(), st.lists(st.integers(0, 100), min_size=1, max_size=4))
def test_the_longest_spine_wins(nodes, numbers):
    order = graph.topological(nodes[0])
    sources = list(dict.fromkeys(source_of(nodes, number) for number in numbers))
    counts = lambda node: node.name() != "ViewBackward0"  # noqa: E731
    start, spans, on_path = graph.longest(order, sources, counts)
    lengths = {s: sum(map(counts, spine_twin.dominators(nodes[0], s))) for s in sources}
    assert lengths[start] == max(lengths.values())
    assert on_path == len(spine_twin.between(nodes[0], start))
    assert [span.upper for span in spans] == spine_twin.dominators(nodes[0], start)[:-1]


def test_a_source_that_the_loss_does_not_reach_is_no_start():
    root, other = FakeNode("loss"), FakeNode("other")
    assert graph.longest([root], [other], lambda node: True) == (None, [], 0)


def test_a_graph_as_deep_as_ten_thousand_layers_needs_no_recursion():
    nodes = [FakeNode(i) for i in range(30_000)]
    for upper, lower in pairwise(nodes):
        upper.next_functions = ((lower, 0),)
    order = graph.topological(nodes[0])
    assert order == nodes
    assert len(graph.spine(graph.paths_between(order, nodes[-1]))) == len(nodes) - 1
