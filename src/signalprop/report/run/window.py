"""The steps around a spike, every one of them: layer x step, and the sites that moved most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from signalprop.report import words
from signalprop.report.run import said
from signalprop.report.run.curves import Curves
from signalprop.report.run.heat import INFINITE, ZERO, Heat, edges
from signalprop.report.run.overview import Told
from signalprop.report.run.timeline import Look, Part, timeline
from signalprop.watching.file.result import Window
from signalprop.watching.statistics import is_log

if TYPE_CHECKING:
    import plotly.graph_objects as go


def window(
    found: Window,
    statistic: str,
    sites: Sequence[str],
    name: str,
    curves: Curves | None = None,
    look: Look | None = None,
) -> go.Figure:
    """A window as a heat map.

    Args:
        found: the window.
        statistic: one of those it holds.
        sites: names of all sites of the run.
        name: of the run.
        curves: the scalars of these steps, where they are known.
        look: how it is drawn.

    Returns:
        The figure; a dotted line marks the spike.
    """
    part = Part(
        (_heat(found, statistic, sites, name),),
        curves or Curves(name, {}),
        (_spike(found),),
    )
    figure = timeline([part], look)
    layout: Any = figure.layout
    meta = dict(layout.meta)
    meta["id"] = "window"
    meta["caption"] = f"Every step before step {found.step:,}: {words.clean(found.reason)[:200]}"
    figure.update_layout(meta=meta)
    return figure


def kinds(found: Window) -> list[str]:
    """The statistics of a window, the one that is shown first in front."""
    names = list(found.values)
    first = said.chosen(names)
    return [] if first is None else [first, *(name for name in names if name != first)]


def _heat(found: Window, statistic: str, sites: Sequence[str], name: str) -> Heat:
    value = np.asarray(found.values[statistic], np.float32).T
    log = is_log(statistic, value)
    special = np.full(value.shape, np.nan, np.float32)
    if log:
        special[value <= 0] = ZERO
    special[np.isinf(value)] = INFINITE
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.log10(value) if log else value.copy()
    height[np.isfinite(special) | ~np.isfinite(height)] = np.nan
    return Heat(
        name,
        statistic,
        log,
        log,
        "value",
        tuple(sites[: len(value)]),
        edges(found.steps, found.steps),
        found.steps,
        found.steps,
        np.ones(len(found.steps), np.int64),
        height,
        value,
        special,
    )


def _spike(found: Window) -> Told:
    """The spike as a mark."""
    reason = words.clean(found.reason)[:160] or "spike"
    return Told(found.step, found.step, "", reason, "issue", (), "", "", ())
