"""What a notebook shows of spectra: the whole in words, its numbers, the blocks as bars."""

from __future__ import annotations

import math
from html import escape

from signalprop.jacobian.spectra import Spectra
from signalprop.report import words
from signalprop.report.chart import DELTA
from signalprop.report.fragment import STYLE
from signalprop.report.spectra import said
from signalprop.report.spectra.rows import Row, centre, rows

_WIDTH = 220


def fragment(spectra: Spectra) -> str:
    """A piece of HTML that stands in any page.

    Args:
        spectra: what was measured.

    Returns:
        A `div` with its own style; no script, no request.
    """
    parts = [f'<div class="sp-box"><p><b>{_e(said.headline(spectra))}</b></p></div>']
    facts = "".join(
        f'<tr><td>{_e(f.name)}</td><td class="sp-n"><b>{_e(f.value)}</b></td>'
        f'<td>{_e(f.spread)}</td><td class="sp-soft">{_e(f.meaning)}</td></tr>'
        for f in said.facts(spectra)
    )
    parts.append(f"<table><tbody>{facts}</tbody></table>")
    if spectra.deep is not None and spectra.deep.log_values.shape[1]:
        parts.append(f"<p>{_e(said.deep_sentence(spectra.deep))}</p>")
    if spectra.blocks:
        parts.append(_ladder(spectra))
    sentences = [said.certificate_sentence(spectra), *said.skipped_sentences(spectra)]
    parts += [f"<p>{_e(sentence)}</p>" for sentence in sentences if sentence]
    parts += [f'<p class="sp-soft">Note: {_e(note)}</p>' for note in spectra.notes]
    return f'<div class="sp-report"><style>{STYLE}</style>{"".join(parts)}</div>'


def _ladder(spectra: Spectra) -> str:
    found = rows(spectra.blocks)
    seen = [v for row in found for v in row.quantiles if v > 0] + [1.0]
    low, high = min(seen), max(seen)
    if high < 100 * low:
        low, high = math.sqrt(low * high) / 10, math.sqrt(low * high) * 10
    residual = any(row.branch for row in found)
    heads = ["block", f"{words.number(low)} to {words.number(high)}, line at 1"]
    heads += ["largest", "mean square", "condition"] + (["s_1(X)"] if residual else [])
    lines = []
    for row in found:
        label = _e(words.shorten(row.label, 44))
        if len(row.blocks) > 1:
            label += f' <span class="sp-soft">×{len(row.blocks)}</span>'
        numbers = [centre(row.largest), centre(row.mean_square), centre(row.condition)]
        numbers += [centre(row.branch)] if residual else []
        cells = "".join(
            f'<td class="sp-n">{"" if v is None else words.number(v)}</td>' for v in numbers
        )
        lines.append(f"<tr><td>{label}</td><td>{_bar(row, low, high)}</td>{cells}</tr>")
    head = "".join(f'<th scope="col">{_e(name)}</th>' for name in heads)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        '<p class="sp-soft">Bars: singular values on a log scale, 5 to 95% and 25 to 75%.</p>'
    )


def _bar(row: Row, low: float, high: float) -> str:
    def at(value: float) -> float:
        if value <= low:
            return 0.0
        return round(math.log(value / low) / math.log(high / low) * (_WIDTH - 2), 1)

    a, b, m, c, d = (at(q) for q in row.quantiles)
    one = at(1.0)
    return (
        f'<svg width="{_WIDTH}" height="12" aria-hidden="true">'
        f'<rect x="{one}" width="1.5" height="12" fill="#808794"/>'
        f'<rect x="{a}" y="4" width="{max(d - a, 1):.1f}" height="4" fill="{DELTA}" opacity=".5"/>'
        f'<rect x="{b}" y="3" width="{max(c - b, 1):.1f}" height="6" fill="{DELTA}"/>'
        f'<rect x="{m}" y="1" width="2" height="10" fill="currentColor"/></svg>'
    )


def _e(text: str) -> str:
    return escape(words.clean(text))
