"""A run file told to an adapter, as the training would have told it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from signalprop.watching.adapters.adapter import Adapter
from signalprop.watching.file.reader import Run
from signalprop.watching.file.result import Alert
from signalprop.watching.file.scalars import Curve
from signalprop.watching.sample import Alarm, Sample

#: sampled steps that are read at a time
STRETCH = 512


def export(run: str | Path, adapter: Adapter) -> int:
    """Tell an adapter everything of a run file, and close it.

    Args:
        run: path of the run file.
        adapter: who is told.

    Returns:
        How many sampled steps it was told.

    Raises:
        SignalpropError: the file is no run file, or damaged.
    """
    with Run(run) as file:
        sites, names = file.sites, file.statistics
        every = tuple(site.name for site in sites)
        # old samples may have been thinned: several steps are then told as the first of them
        kept = {int(s) for name in names for s in file.values(name, every[:1]).first}
        steps = np.asarray(sorted(kept), np.int64)
        logged: dict[int, dict[str, float]] = defaultdict(dict)
        begin: int | None = None
        alerts = sorted(file.alerts, key=lambda alert: alert.step)
        for at in range(0, len(steps), STRETCH):
            part = steps[at : at + STRETCH]
            end = int(part[-1]) + 1
            values = {
                name: found
                for name in names
                if (found := file.values(name, every, int(part[0]), end)).first.size
            }
            _add(logged, file.scalars(begin, end))
            begin = end
            rows: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
            for name, found in values.items():
                # a step at which a value was not finite has it as its largest
                whole = np.where(np.isnan(found.mean) & np.isinf(found.high), np.inf, found.mean)
                for k, step in enumerate(found.first.tolist()):
                    if not np.isnan(whole[k]).all():
                        rows[step][name] = whole[k]
            for step in part.tolist():
                _before(adapter, step, logged, alerts)
                adapter.sample(Sample(step, sites, rows[step], logged.pop(step, {})))
        _add(logged, file.scalars(begin))
        _before(adapter, None, logged, alerts)
    adapter.close()
    return len(steps)


def _add(logged: dict[int, dict[str, float]], scalars: Mapping[str, Curve]) -> None:
    for name, (when, values) in scalars.items():
        for step, value in zip(when.tolist(), values.tolist(), strict=True):
            logged[step][name] = value


def _before(
    adapter: Adapter,
    step: int | None,
    logged: dict[int, dict[str, float]],
    alerts: list[Alert],
) -> None:
    """Tell what lies before a step that was not sampled."""
    for other in sorted(s for s in logged if step is None or s < step):
        adapter.scalars(other, logged.pop(other))
    while alerts and (step is None or alerts[0].step < step):
        adapter.alarm(_alarm(alerts.pop(0)))


def _alarm(alert: Alert) -> Alarm:
    detail = alert.detail if isinstance(alert.detail, Mapping) else {}
    number = {
        key: float(v) if isinstance(v := detail.get(key), (int, float)) else float("nan")
        for key in ("value", "threshold")
    }
    since = detail.get("since")
    return Alarm(
        step=alert.step,
        code=alert.code,
        title=str(detail.get("title", "")),
        severity="issue" if alert.severity == "issue" else "tip",
        sites=tuple(map(str, detail.get("sites") or ([alert.site] if alert.site else []))),
        value=number["value"],
        unit=str(detail.get("unit", "")),
        threshold=number["threshold"],
        since=since if isinstance(since, int) else alert.step,
        explanation=str(detail.get("explanation", "")),
        cures=tuple(map(str, detail.get("cures") or ())),
    )
