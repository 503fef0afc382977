"""One forward and backward pass, seen: sites, graph, spine, statistics."""
