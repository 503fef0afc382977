"""Which views a result has: the one place, besides `contents`, where its type is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from signalprop.jacobian.spectra import Spectra
from signalprop.report import console, contents
from signalprop.report.lines import View

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Shown:
    """The views of a result, each made when it is asked for.

    Attributes:
        view: what rich prints.
        heading: what was looked at, in a few words.
        blocks: figures and pieces of HTML, in reading order.
        fragment: what a notebook shows.
    """

    view: Callable[[], View]
    heading: Callable[[], str]
    blocks: Callable[[], list[go.Figure | str]]
    fragment: Callable[[], str]


def shown(result: Any) -> Shown:
    """The views of a result.

    Args:
        result: a `Diagnosis`, a `Trace`, `Spectra`, `Horizons`, a `PhaseDiagram` or `Trials`.

    Returns:
        Its views.

    Raises:
        SignalpropError: for anything else.
    """
    if isinstance(result, Spectra):
        return _spectra(result)
    # theory is not loaded for those who never asked for it
    if type(result).__module__.partition(".theory.")[1]:
        found = _theory(result)
        if found is not None:
            return found
    # cures need torch, which views of plain data do without
    if type(result).__module__ == "signalprop.cures.trials.result":
        return _trials(result)
    if type(result).__module__ == "signalprop.recurrent.horizon.result":
        return _horizons(result)
    from signalprop.report import fragment, sections

    made = contents.contents(result)
    return Shown(
        lambda: console.view(made),
        lambda: made.heading,
        lambda: sections.blocks(made),
        lambda: fragment.fragment(made),
    )


def _spectra(result: Spectra) -> Shown:
    from signalprop.report.spectra import console, fragment, sections

    return Shown(
        lambda: console.view(result),
        lambda: sections.heading(result),
        lambda: sections.blocks(result),
        lambda: fragment.fragment(result),
    )


def _trials(result: Any) -> Shown:
    from signalprop.report.trials import console, fragment, said, sections

    return Shown(
        lambda: console.view(result),
        lambda: said.heading(result),
        lambda: sections.blocks(result),
        lambda: fragment.fragment(result),
    )


def _horizons(result: Any) -> Shown:
    from signalprop.report.time.horizon import console, fragment, said, sections

    return Shown(
        lambda: console.view(result),
        lambda: said.heading(result),
        lambda: sections.blocks(result),
        lambda: fragment.fragment(result),
    )


def _theory(result: Any) -> Shown | None:
    from signalprop.report.theory import console, fragment, page
    from signalprop.report.theory.result import PhaseView
    from signalprop.theory.phase import PhaseDiagram

    view = PhaseView(result) if isinstance(result, PhaseDiagram) else result
    if not isinstance(view, PhaseView):
        return None
    return Shown(
        lambda: console.phase(view),
        lambda: page.heading(view),
        lambda: page.blocks(view),
        lambda: fragment.fragment(view),
    )
