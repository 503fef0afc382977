"""What the page asks about runs, answered as JSON: how they are, and figures of any stretch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from signalprop.errors import SignalpropError
from signalprop.report import words
from signalprop.report.live.followed import Followed, State
from signalprop.report.live.kept import Kept
from signalprop.report.live.query import Query
from signalprop.report.run import lines, said
from signalprop.report.run import window as windows
from signalprop.report.run.curves import Curves, curves
from signalprop.report.run.heat import Heat, Of, Scale, cut, heat, limits, rows
from signalprop.report.run.result import apart
from signalprop.report.run.timeline import Look, Part, timeline
from signalprop.watching.file.result import Values
from signalprop.watching.statistics import statistic

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: columns of the whole run that colours are fitted to
WHOLE = 300
#: numbers in a picture: more would not be quick
CELLS = 400_000
#: windows and sites that are listed
WINDOWS, SITES = 200, 20_000


class Answers:
    """Answers about some runs.

    Args:
        paths: of the run files; the page knows them by their place in this list only.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.runs = [Followed(path) for path in paths]
        self.names = apart(paths)
        self.kept = Kept()

    def close(self) -> None:
        """Close all files."""
        for run in self.runs:
            run.close()

    def states(self) -> list[State]:
        """How all runs are now."""
        return [run.look() for run in self.runs]

    def news(self, states: Sequence[State]) -> dict[str, Any]:
        """What is sent whenever something happened."""
        return {
            "runs": [
                {
                    "state": s.state,
                    "sentence": s.sentence,
                    "generation": s.generation,
                    "cursor": s.cursor,
                    "written": s.written,
                    "recent": s.recent,
                }
                for s in states
            ]
        }

    # ---------------------------------------------------------------- the runs

    def overview(self, query: Query) -> bytes:
        """All runs at a glance."""
        return self._kept("overview", Query(tuple(range(len(self.runs)))), self._overview)

    def _overview(self, query: Query) -> Any:
        return {"runs": [self._one(k) for k in query.runs]}

    def _one(self, index: int) -> dict[str, Any]:
        run = self.runs[index]
        plain: dict[str, Any] = {"name": self.names[index]}
        try:
            seen = run.overview()
            found = run.windows()[:WINDOWS]
        except SignalpropError as error:
            state = run.state
            return plain | {"state": "damaged" if state.state == "open" else state.state,
                            "sentence": str(error)}  # fmt: skip
        return plain | {
            "state": "open",
            "sentence": (seen.notice or "").replace(str(run.path), run.name),
            "generation": run.state.generation,
            "cursor": seen.cursor,
            "verdict": seen.state,
            "headline": said.headline(seen),
            "facts": said.facts(seen),
            "first": seen.first,
            "last": seen.last,
            "sampled": seen.sampled,
            "sites": [words.clean(site.name)[:300] for site in seen.sites[:SITES]],
            "statistics": [_statistic(name) for name in seen.statistics],
            "shown": said.chosen(seen.statistics),
            "alerts": [
                dataclasses.asdict(a)
                | {"when": said.when(a), "sites": [words.clean(s)[:300] for s in a.sites]}
                for a in seen.alerts
            ],
            "windows": [
                {"step": w.step, "reason": words.clean(w.reason)[:200],
                 "steps": [int(s) for s in (w.steps[[0, -1]] if len(w.steps) else [])],
                 "statistics": [_statistic(name) for name in windows.kinds(w)]}
                for w in found
            ],
        }  # fmt: skip

    # ---------------------------------------------------------------- figures

    def timeline(self, query: Query) -> bytes:
        """Alerts, loss and heat map."""
        return self._kept("timeline", query, self._timeline)

    def _timeline(self, query: Query) -> Any:
        parts: list[Part] = []
        whole: list[Heat] = []
        drawn: list[int] = []
        places: list[list[int]] = []
        chosen: tuple[str, ...] = ()
        why = ""
        for index in query.runs:
            run = self.runs[index]
            try:
                seen = run.overview()
                name = query.statistic or said.chosen(seen.statistics)
                if name is None or name not in seen.statistics:
                    why = why or f"{run.name} has nothing of this statistic."
                    continue
                with run.reading() as file:
                    columns = max(8, min(query.columns, CELLS // max(1, len(seen.sites))))
                    asked: dict[str, Any] = {"of": cast(Of, query.of),
                                             "scale": cast(Scale, query.scale)}  # fmt: skip
                    part = heat(file, name, start=query.start, stop=query.stop, columns=columns,
                                **asked)  # fmt: skip
                    all_ = query.start is None and query.stop is None
                    whole.append(part if all_ else heat(file, name, columns=WHOLE, **asked))
                    course = curves(file, start=query.start, stop=query.stop)
            except SignalpropError as error:
                why = why or str(error)
                continue
            shown = self.names[index]
            keep = rows([whole[-1]])
            places.append(keep.tolist())
            drawn_map = dataclasses.replace(cut(part, keep), name=shown)
            parts.append(Part((drawn_map,), Curves(shown, course.scalars), seen.alerts))
            drawn.append(index)
            if not chosen:
                names = [site.name for site in seen.sites]
                chosen = tuple(names[k] for k in query.sites if k < len(names))
        if not parts:
            raise SignalpropError(why or "Nothing was recorded yet.")
        look = Look(
            across=query.across,
            label=query.label,
            span=_span(query, whole),
            limits=limits(whole),
            chosen=chosen,
            of=query.of,
        )
        figure = timeline(parts, look)
        return _plain(figure) | {"runs": drawn, "sites": places}

    def scalars(self, query: Query) -> bytes:
        """All scalars of the runs."""
        return self._kept("scalars", query, self._scalars)

    def _scalars(self, query: Query) -> Any:
        found = []
        for index in query.runs:
            try:
                with self.runs[index].reading() as file:
                    course = curves(file, start=query.start, stop=query.stop)
            except SignalpropError:
                continue
            found.append(Curves(self.names[index], course.scalars))
        return _plain(lines.scalars(found, _asked(query)))

    def sites(self, query: Query) -> bytes:
        """A statistic of chosen sites, as lines."""
        return self._kept("sites", query, self._sites)

    def _sites(self, query: Query) -> Any:
        found: list[tuple[str, Values]] = []
        wanted: list[str] | None = None
        for index in query.runs:
            try:
                seen = self.runs[index].overview()
                names = [site.name for site in seen.sites]
                if wanted is None:
                    wanted = [names[k] for k in query.sites if k < len(names)]
                name = query.statistic or said.chosen(seen.statistics)
                here = [site for site in wanted if site in set(names)]
                if name not in seen.statistics or name is None or not here:
                    continue
                with self.runs[index].reading() as file:
                    values = file.values(name, here, query.start, query.stop, query.columns)
            except SignalpropError:
                continue
            found.append((self.names[index], values))
        return _plain(lines.sites(found, _asked(query)))

    def window(self, query: Query) -> bytes:
        """A window around a spike."""
        return self._kept("window", query, self._window)

    def _window(self, query: Query) -> Any:
        run = self.runs[query.runs[0]]
        found = run.windows()
        if query.number >= len(found) or not found[query.number].values:
            raise SignalpropError("there is no such window")
        shown = found[query.number]
        names = windows.kinds(shown)
        name = query.statistic if query.statistic in shown.values else names[0]
        sites = [site.name for site in run.overview().sites]
        with run.reading() as file:
            begin, end = (int(s) for s in shown.steps[[0, -1]])
            course = curves(file, start=begin, stop=end + 1)
        look = Look(label=query.label)
        figure = windows.window(shown, name, sites, self.names[query.runs[0]], course, look)
        return _plain(figure) | {"statistic": name}

    # ---------------------------------------------------------------- inside

    def _kept(self, what: str, query: Query, make: Callable[[Query], Any]) -> bytes:
        states = [self.runs[index].look() for index in query.runs]
        key = (what, query, tuple((s.generation, s.cursor, s.sentence) for s in states))
        return self.kept.get(key, lambda: _json(make(query)))


def _json(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, allow_nan=False).encode()


def _plain(figure: go.Figure | None) -> dict[str, Any]:
    if figure is None:
        return {"figure": None}
    return {"figure": json.loads(figure.to_json())}


def _statistic(name: str) -> dict[str, str]:
    known = statistic(name)
    return {"name": name[:200], "label": said.label(name)[:80], "unit": known.unit,
            "meaning": known.meaning}  # fmt: skip


def _span(query: Query, whole: Sequence[Heat]) -> tuple[float, float] | None:
    """What is in view: the stretch that was asked for, or all."""
    if query.start is None and query.stop is None:
        return None
    ends = [float(edge) for map_ in whole if len(map_.edges) for edge in map_.edges[[0, -1]]]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    start = low if query.start is None else float(query.start)
    stop = high if query.stop is None else float(query.stop)
    return start, stop if stop > start and math.isfinite(stop) else start + 1


def _asked(query: Query) -> tuple[float, float] | None:
    if query.start is None or query.stop is None:
        return None
    return float(query.start), float(query.stop)
