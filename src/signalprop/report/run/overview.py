"""What is known of a run at a glance: one form that every view is made from.

A run file may come from anywhere: what it says is checked here before anything shows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from signalprop.report import words
from signalprop.watching.file.reader import Run
from signalprop.watching.file.result import Alert
from signalprop.watching.file.schema import RunSite

#: characters of an explanation that are shown
LONGEST = 2000
#: alerts that are shown; a run with more has something to say that no list can
MOST = 500
#: sites of an alert
SITES = 256


@dataclass(frozen=True)
class Told:
    """An alert as it is shown.

    Attributes:
        step: at which it was told.
        since: the step at which it set in.
        code: of its rule.
        title: of its rule.
        severity: `issue` or `tip`.
        sites: where, from the worst on; empty where it is about the whole network.
        measured: the number beside the threshold it was compared with; may be empty.
        explanation: one or two sentences.
        cures: names of the cures that treat it.
    """

    step: int
    since: int
    code: str
    title: str
    severity: str
    sites: tuple[str, ...]
    measured: str
    explanation: str
    cures: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """A run at a glance.

    Attributes:
        name: of the file.
        meta: facts that were recorded with it.
        sites: all sites, in the order of their values.
        statistics: names of all statistics.
        first: the first sampled step; None where there is none yet.
        last: the last one.
        sampled: how many steps were sampled.
        seconds: from the first sample that is kept to the last.
        alerts: all alerts, in the order in which they were raised.
        windows: how many windows around spikes there are.
        replays: how many steps can be run again.
        notice: what is not as usual; None mostly.
        cursor: the end of the run when it was looked at.
    """

    name: str
    meta: Mapping[str, Any]
    sites: tuple[RunSite, ...]
    statistics: tuple[str, ...]
    first: int | None
    last: int | None
    sampled: int
    seconds: float | None
    alerts: tuple[Told, ...]
    windows: int
    replays: int
    notice: str | None
    cursor: str

    @property
    def state(self) -> str:
        """`issue`, `tip`, `healthy`, or `seen` where there is nothing to judge yet."""
        if any(alert.severity == "issue" for alert in self.alerts):
            return "issue"
        if self.alerts:
            return "tip"
        return "healthy" if self.last is not None else "seen"


def overview(run: Run) -> Overview:
    """Look at a run.

    Args:
        run: open.

    Returns:
        What it is at this moment.

    Raises:
        SignalpropError: the file is damaged.
    """
    cursor = run.cursor
    statistics, sites = run.statistics, run.sites
    first = last = None
    sampled = 0
    if statistics and sites:
        # the coarse levels know it without reading every step
        found = run.values(statistics[0], sites[0].name, columns=64)
        if len(found.first):
            first, last = int(found.first[0]), int(found.last[-1])
            sampled = int(found.samples.sum())
    return Overview(
        name=run.path.name,
        meta=run.meta,
        sites=sites,
        statistics=statistics,
        first=first,
        last=last,
        sampled=sampled,
        seconds=_seconds(run),
        alerts=tuple(told(alert) for alert in run.alerts[:MOST]),
        windows=run.since(cursor, limit=1).windows,
        replays=len(run.replays),
        notice=run.notice,
        cursor=cursor,
    )


def told(alert: Alert) -> Told:
    """An alert as it is shown; whatever its detail holds."""
    detail: Mapping[str, Any] = alert.detail if isinstance(alert.detail, dict) else {}
    named = detail.get("sites")
    sites = tuple(str(s) for s in named[:SITES]) if isinstance(named, list) else ()
    if not sites and alert.site:
        sites = (alert.site,)
    cures = detail.get("cures")
    since = detail.get("since")
    return Told(
        step=alert.step,
        since=since if isinstance(since, int) and since <= alert.step else alert.step,
        code=_line(alert.code, 20),
        title=_line(detail.get("title") or alert.code, 160),
        severity="tip" if alert.severity == "tip" else "issue",
        sites=sites,
        measured=_measured(detail),
        explanation=_line(detail.get("explanation") or "", LONGEST),
        cures=tuple(_line(c, 80) for c in cures[:20]) if isinstance(cures, list) else (),
    )


def _measured(detail: Mapping[str, Any]) -> str:
    value, unit = _real(detail.get("value")), detail.get("unit")
    if value is None:
        return ""
    unit = _line(unit, 60) if isinstance(unit, str) else ""
    text = words.quantity(value, unit)
    threshold = _real(detail.get("threshold"))
    if threshold is None or not math.isfinite(threshold):
        return text
    return f"{text} (threshold {words.quantity(threshold, unit)})"


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _line(text: Any, most: int) -> str:
    text = words.clean(" ".join(str(text)[: 4 * most].split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def _seconds(run: Run) -> float | None:
    """How long it took; None where the file's times make no sense."""
    seconds = run.seconds
    return seconds if seconds is not None and math.isfinite(seconds) and seconds >= 0 else None
