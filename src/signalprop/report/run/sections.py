"""Recorded runs as blocks of a page: verdicts, alerts, the whole run, curves, windows, a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from signalprop.report import words
from signalprop.report.run import colours, lines, said, window
from signalprop.report.run.curves import curves
from signalprop.report.run.heat import Heat, cut, heat, rows
from signalprop.report.run.overview import Overview, Told
from signalprop.report.run.result import Recorded
from signalprop.report.run.timeline import Look, Part, timeline
from signalprop.report.tables import cell, e, number, table

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: cells and columns of a heat map: a page has one for every statistic, and is sent around
CELLS, COLUMNS = 40_000, 300
#: alerts in full, windows, and lines of sites
ALERTS, WINDOWS, LINES = 40, 4, 6
_WORDS = {"issue": "issues found", "tip": "tips", "healthy": "no alerts", "seen": "recorded"}


def blocks(shown: Recorded) -> list[go.Figure | str]:
    """The report of runs, in reading order.

    Args:
        shown: the runs.

    Returns:
        Blocks for `html.page`.
    """
    made: list[go.Figure | str] = [
        _verdict(seen, name if len(shown.names) > 1 else "", k)
        for k, (seen, name) in enumerate(zip(shown.seen, shown.names, strict=True))
    ]
    told = [(a, k) for k, seen in enumerate(shown.seen) for a in seen.alerts]
    if told:
        told.sort(key=lambda pair: (pair[0].severity == "tip", pair[0].since))
        made.append("<h2>Alerts</h2>")
        names = shown.names if len(shown.names) > 1 else ("",)
        made += [_alert(alert, names[k]) for alert, k in told[:ALERTS]]
        if len(told) > ALERTS:
            made.append(f"<p class='soft'>and {len(told) - ALERTS} more.</p>")
    made += _whole(shown)
    made += _sites(shown, [alert for alert, _ in told])
    made += _windows(shown)
    course = lines.scalars(shown.scalars)
    if course is not None:
        made += ["<h2>Curves</h2>", course]
    for k, seen in enumerate(shown.seen):
        made.append(_facts(seen, shown.names[k] if len(shown.names) > 1 else "Facts"))
        made.append(_table(shown, k))
    return made


def _verdict(seen: Overview, name: str, place: int) -> str:
    colour = colours.RUNS[place % len(colours.RUNS)]
    mark = (
        f'<p><svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" rx="3" '
        f'fill="{colour}"/></svg> {e(name)}</p>'
        if name
        else ""
    )
    notice = f'<p class="soft">{e(words.clean(seen.notice))}</p>' if seen.notice else ""
    word = _WORDS[seen.state]
    return (
        f'<section class="verdict {seen.state}" aria-label="Verdict"><span class="word '
        f'{seen.state}">{word}</span>{mark}<p>{e(said.headline(seen))}</p></section>{notice}'
    )


def _alert(alert: Told, run: str) -> str:
    pairs = [("run", e(run)), ("when", e(said.when(alert)))]
    if alert.sites:
        some = [f"<code>{e(words.clean(s)[:200])}</code>" for s in alert.sites[:8]]
        more = len(alert.sites) - len(some)
        pairs.append(("where", ", ".join(some) + (f" and {more} more" if more else "")))
    pairs.append(("measured", e(alert.measured)))
    pairs.append(("cures", ", ".join(f"<code>{e(c)}</code>" for c in alert.cures)))
    details = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs if value)
    return (
        f'<article class="card finding {alert.severity}"><header><span class="word '
        f'{alert.severity}">{alert.severity}</span><h3><span class="code">{e(alert.code)}</span> '
        f"{e(alert.title)}</h3></header><p>{e(alert.explanation)}</p><dl>{details}</dl></article>"
    )


def _whole(shown: Recorded) -> list[go.Figure | str]:
    """Every statistic that all runs have; of runs that share none, one figure each."""
    known = [seen.statistics for seen in shown.seen]
    common = [name for name in known[0] if all(name in names for names in known)]
    places = [k for k, seen in enumerate(shown.seen) if seen.last is not None]
    if not places:
        return []
    groups = [(places, common)] if common else [([k], list(known[k])) for k in places]
    made: list[go.Figure | str] = ["<h2>The whole run</h2>" + _HOW]
    for runs, names in groups:
        if not names:
            continue
        first = said.chosen(names)
        order = [n for n in names if n == first] + [n for n in names if n != first]
        parts = []
        for k in runs:
            wide = max(8, min(COLUMNS, CELLS // max(1, len(shown.seen[k].sites))))
            maps = [heat(shown.runs[k], name, columns=wide) for name in order]
            maps = [replace(map_, name=shown.names[k]) for map_ in _alike(maps)]
            keep = rows(maps)
            parts.append(Part([cut(m, keep) for m in maps], shown.scalars[k], shown.seen[k].alerts))
        made.append(timeline(parts, Look(across=min(2, len(parts)), label=22)))
    return made


_HOW = (
    "<p class='soft'>Alerts, the loss, and layer by step below them. Drag to zoom, double-click to "
    "go back; hover for the numbers.</p>"
)


def _alike(maps: Sequence[Heat]) -> list[Heat]:
    """Those that have the steps of the first, as a menu needs; mostly all."""
    return [m for m in maps if len(m.first) == len(maps[0].first)]


def _sites(shown: Recorded, told: Sequence[Told]) -> list[go.Figure | str]:
    """The sites that alerts are about, as lines."""
    names = list(dict.fromkeys(site for alert in told for site in alert.sites[:3]))
    name = said.chosen(shown.seen[0].statistics)
    found = []
    for k, seen in enumerate(shown.seen):
        known = {site.name for site in seen.sites}
        here = [site for site in names if site in known][:LINES]
        if here and name is not None and name in seen.statistics:
            found.append((shown.names[k], shown.runs[k].values(name, here, columns=600)))
    figure = lines.sites(found) if found else None
    return [] if figure is None else ["<h2>Sites of the alerts</h2>", figure]


def _windows(shown: Recorded) -> list[go.Figure | str]:
    made: list[go.Figure | str] = []
    for k, run in enumerate(shown.runs):
        sites = [site.name for site in shown.seen[k].sites]
        for found in run.windows[:WINDOWS]:
            kinds = window.kinds(found)
            if kinds and len(found.steps):
                begin, end = int(found.steps[0]), int(found.steps[-1])
                near = curves(run, start=begin, stop=end + 1)
                name = shown.names[k]
                made.append(window.window(found, kinds[0], sites, name, near, Look(label=22)))
    return ["<h2>Around spikes, every step</h2>", *made] if made else []


def _facts(seen: Overview, title: str) -> str:
    pairs = "".join(f"<div><dt>{e(k)}</dt><dd>{e(v)}</dd></div>" for k, v in said.facts(seen))
    return f'<h2>{e(title)}</h2><dl class="facts">{pairs}</dl>'


def _table(shown: Recorded, k: int) -> str:
    """What the last steps show, site by site."""
    seen, run = shown.seen[k], shown.runs[k]
    found = [run.values(name, columns=64) for name in seen.statistics]
    found = [values for values in found if len(values.first)]
    if not found:
        return ""
    heads = [("site", ""), ("op", ""), *((e(said.label(v.statistic)), "n") for v in found)]
    lines_ = []
    for i, site in enumerate(seen.sites):
        last = [float(values.mean[-1, i]) for values in found]
        cells = [cell(site.name, code=True), cell(site.op)]
        cells += [number(None if v != v else v) for v in last]
        lines_.append((f"r{k}s{i}", "", cells))
    return table("At the end", f"end{k}", heads, lines_)
