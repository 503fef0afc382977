"""The page of a horizon: how far credit reaches, figures, and a table of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from signalprop.report import words
from signalprop.report.tables import cell, e, number, table
from signalprop.report.time.horizon import figures, said
from signalprop.report.time.horizon.curves import Curve, centre, curves
from signalprop.report.time.horizon.spectra import spectra
from signalprop.report.time.said import nats

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from signalprop.recurrent.horizon.result import Horizons


def blocks(found: Horizons) -> list[go.Figure | str]:
    """The page in reading order.

    Args:
        found: what was measured.

    Returns:
        Blocks for `html.page`.
    """
    mine = curves(found)
    result: list[go.Figure | str] = [_verdict(found)]
    if not mine:
        return result
    result += ["<h2>Credit over the lag</h2>", f"<p class='soft'>{_how(mine)}</p>"]
    result.append(figures.credit(mine))
    gains = figures.gains(mine)
    if gains is not None:
        result += [
            "<h2>Step by step</h2>",
            "<p class='soft'>J_t is the derivative of the state after step t by the state before "
            "it. Above 1 an error grows on its way back, below it shrinks; the gain of a random "
            "error is ||J_t||_F / sqrt(n).</p>",
            gains,
        ]
    whole = spectra(mine)
    if whole is not None:
        result += ["<h2>All singular values of J_t</h2>", whole]
    rates = figures.exponents(mine)
    if rates is not None:
        result += [
            "<h2>Lyapunov exponents</h2>",
            "<p class='soft'>The rates at which the directions of the state grow over many steps. "
            "Where all are below 0 every error is lost in time; above 0 it explodes.</p>",
            rates,
        ]
    result.append(_table(mine))
    return result


def _verdict(found: Horizons) -> str:
    facts = "".join(f"<div><dt>{e(k)}</dt><dd>{e(v)}</dd></div>" for k, v in said.about(found))
    listed = "".join(f"<li>{e(words.clean(note))}</li>" for note in found.notes)
    return (
        '<section class="verdict seen" aria-label="Verdict"><span class="word seen">measured</span>'
        f'<p>{e(said.headline(found))}</p></section><dl class="facts">{facts}</dl>'
        + (f'<ul class="soft notes">{listed}</ul>' if listed else "")
    )


def _how(mine: list[Curve]) -> str:
    attending = [curve for curve in mine if curve.horizon.op == "attention"]
    text = "A random error on the last step alone goes back from there; credit is its size over "
    text += "that at the last step. "
    if attending:
        text = text if len(attending) < len(mine) else ""
        text += "Of attention: what the output at the last position owes the input at each earlier "
        text += "one. "
    return e(f"{text}Diamonds: the last lag with 1/e; crosses: the last above the rounding.")


def _table(mine: list[Curve]) -> str:
    gains = any(curve.gains for curve in mine)
    radius = any(curve.gains and curve.gains.radius is not None for curve in mine)
    rates = any(curve.exponents for curve in mine)
    heads = [
        ("layer", ""), ("cell", ""), ("direction", ""), ("longest lag", "n"), ("to 1/e", "n"),
        ("to rounding", "n"), ("left at the longest", "n"), ("nats per step", "n"),
        *([("s_1(J), median", "n"), ("random gain, median", "n")] if gains else []),
        *([("radius of W_hh", "n")] if radius else []),
        *([("largest exponent", "n"), ("error", "n")] if rates else []),
    ]  # fmt: skip
    rows = [
        (f"h{i}", "", _cells(curve, gains, radius, rates=rates)) for i, curve in enumerate(mine)
    ]
    return table("Layers and directions", "horizons", heads, rows)


def _cells(curve: Curve, gains: bool, radius: bool, *, rates: bool) -> list[str]:
    mine, measured, grow = curve.horizon, curve.gains, curve.exponents
    rate = mine.rate
    cells = [
        cell(curve.place.label, code=True),
        cell(mine.op),
        cell("" if mine.op == "attention" else "reverse" if mine.reverse else "forward"),
        number(float(curve.longest), f"{curve.longest:,}"),
        _steps(mine.steps, curve.longest),
        _steps(mine.silent, curve.longest),
        number(curve.left()),
        number(rate, nats(rate)),
    ]
    if gains:
        for values in (measured.largest, measured.rms) if measured else ((), ()):
            middle = centre(values)
            cells.append(number(middle, "" if middle is None else None))
    if radius:
        value = measured.radius if measured else None
        cells.append(number(value, "" if value is None else None))
    if rates:
        value = grow.values[0] if grow else None
        error = grow.errors[0] if grow else None
        cells.append(number(value, "" if value is None else said.exponent(value)))
        cells.append(number(error, "" if error is None else None))
    return cells


def _steps(value: int | None, longest: int) -> str:
    # what is longer than the sequence sorts last
    return number(float(longest + 1 if value is None else value), e(said.until([value], longest)))
