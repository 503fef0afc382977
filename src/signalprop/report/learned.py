"""Which rows and which sites a layer's learning share belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from signalprop.capture.trace import Trace
from signalprop.diagnosis.finding import Learning
from signalprop.report.ladder import Row


def share_of_rows(
    learning: Learning | None, trace: Trace, rows: Sequence[Row]
) -> list[float | None] | None:
    """The learning share of every row: the sum over the layers whose sites it holds.

    Args:
        learning: shares by module path, or None.
        trace: the pass that the rows are of.
        rows: rows of its ladder.

    Returns:
        One value per row, None where it holds no layer; None where nothing was measured. A layer
        counts once, in the first row that holds it.
    """
    if learning is None or not learning.share:
        return None
    left = dict(learning.share)
    result: list[float | None] = []
    for row in rows:
        modules = {trace.sites[name].module for name in row.sites}
        modules |= {alias for name in row.sites for alias in trace.sites[name].aliases}
        found = [left.pop(module) for module in sorted(modules) if module in left]
        result.append(sum(found) if found else None)
    return result


def places(name: str, trace: Trace) -> list[str]:
    """The sites that a finding's place means: itself, or those of the module or parameter.

    Args:
        name: name of a site, a module, or a parameter.
        trace: the pass.

    Returns:
        Names of sites, in execution order; empty where it was never seen.
    """
    if name in trace.sites:
        return [name]
    module = trace.weights[name].module if name in trace.weights else name
    exact = [site.name for site in trace.sites.values() if site.module == module]
    if exact or not module:
        return exact
    inside = f"{module}."
    return [site.name for site in trace.sites.values() if site.module.startswith(inside)]
