"""What a notebook shows: verdict, findings and the ladder, without a script.

Colours are the notebook's own, or translucent ones that read on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from signalprop.report import words
from signalprop.report.chart import ACTIVATION, DELTA
from signalprop.report.contents import Contents, failure_sentence, measured
from signalprop.report.ladder import Row, ladder
from signalprop.report.time.fragment import through

#: of everything that a notebook shows
STYLE = """
.sp-report { font: 14px/1.5 system-ui, sans-serif; color: inherit; max-width: 980px; }
.sp-report p { margin: 4px 0; }
.sp-report .sp-box { border-left: 4px solid #80879480; padding: 2px 0 2px 12px; margin: 8px 0; }
.sp-report .sp-issue { border-color: #d94141; }
.sp-report .sp-tip { border-color: #b98000; }
.sp-report .sp-healthy { border-color: #0e9f76; }
.sp-report .sp-soft { opacity: .75; }
.sp-report table { border-collapse: collapse; font-size: 12.5px; margin: 6px 0; background: none; }
.sp-report th, .sp-report td { padding: 2px 10px 2px 0; text-align: left; white-space: nowrap;
  border: 0; border-bottom: 1px solid #80879440; background: none; color: inherit; }
.sp-report .sp-n { text-align: right; font-variant-numeric: tabular-nums; }
.sp-report svg { vertical-align: middle; margin-right: 6px; }
"""
_WIDTH = 120


def fragment(shown: Contents) -> str:
    """A piece of HTML that stands in any page.

    Args:
        shown: the result.

    Returns:
        A `div` with its own style; no script, no request.
    """
    word = {"issue": "ISSUE", "tip": "TIP", "healthy": "OK", "failed": "STOPPED"}.get(shown.state)
    parts = [
        f'<div class="sp-box sp-{_state(shown)}"><p><b>'
        + (f"{word}: " if word else "")
        + f"{_e(shown.verdict)}</b></p></div>"
    ]
    failure = failure_sentence(shown.trace)
    if failure:
        parts.append(f"<p>{_e(failure)}</p>")
    for finding in shown.findings:
        where = words.listed([words.shorten(words.clean(s), 40) for s in finding.sites])
        lines = [f"measured: {measured(finding)}"]
        lines = ([f"where: {where}"] if where else []) + lines
        lines += [f"cures: {', '.join(finding.cures)}"] if finding.cures else []
        parts.append(
            f'<div class="sp-box sp-{finding.severity}"><p><b>{finding.severity.upper()} '
            f"{_e(finding.code)} {_e(finding.title)}</b></p><p>{_e(finding.explanation)}</p>"
            + "".join(f'<p class="sp-soft">{_e(line)}</p>' for line in lines)
            + "</div>"
        )
    if shown.split:
        parts.append(f"<p><b>Error signal:</b> {_e(shown.split)}.</p>")
    parts += [_ladder(shown), through(shown.trace.time, shown.horizons, shown.lag)]
    parts += [f'<p class="sp-soft">{_e(shown.rules)}</p>'] if shown.rules else []
    parts += [f'<p class="sp-soft">Note: {_e(note)}</p>' for note in shown.trace.notes]
    return f'<div class="sp-report"><style>{STYLE}</style>{"".join(parts)}</div>'


def _state(shown: Contents) -> str:
    return "issue" if shown.state == "failed" else shown.state


def _ladder(shown: Contents) -> str:
    steps = ladder(shown.trace)
    if not steps.rows:
        return ""
    rows = steps.rows
    acts = _scale([row.activations for row in rows])
    deltas = _scale([row.deltas for row in rows])
    head = ["block" if steps.spine else "site", "operation", "activation rms", "delta rms"]
    head += ["decay, nats", "mainly"] if steps.spine else []
    lines = []
    for row in rows:
        label = _e(words.shorten(row.label, 44))
        if row.count > 1:
            label += f' <span class="sp-soft">×{row.count}</span>'
        cells = [
            f"<td>{label}</td>",
            f"<td>{_e(words.shorten(row.op, 30))}</td>",
            f"<td>{_bar(row.activations, acts, ACTIVATION)}{words.number(row.activation)}</td>",
            f"<td>{_bar(row.deltas, deltas, DELTA)}{words.number(row.delta)}</td>",
        ]
        if steps.spine:
            cells += [f'<td class="sp-n">{_decay(row)}</td>', f"<td>{_e(row.kind)}</td>"]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if steps.spine:
        total = words.nats(shown.trace.decay)
        lines.append(
            f'<tr><td colspan="4"><b>sum</b></td><td class="sp-n"><b>{total}</b></td></tr>'
        )
    why = "" if steps.spine else f"<p>All sites in execution order; {_e(steps.why)}.</p>"
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (
        f"{why}<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        '<p class="sp-soft">Bars on a log scale; the pale part is the range of a folded row.</p>'
    )


def _decay(row: Row) -> str:
    if row.decay is None:
        return ""
    if row.gone:
        return "gone"
    text = words.nats(row.decay)
    if row.each is not None and math.isfinite(row.decay):
        text += f" ({words.nats(row.each[0])} each)"
    return text


def _scale(pairs: Sequence[tuple[float, float] | None]) -> tuple[float, float]:
    ends = [v for pair in pairs if pair is not None for v in pair if 0 < v < math.inf]
    high = max(ends, default=1.0)
    return min(min(ends, default=1.0), high / 100), high


def _bar(pair: tuple[float, float] | None, scale: tuple[float, float], colour: str) -> str:
    low, high = (_length(v, scale) for v in pair) if pair is not None else (0, 0)
    pale = f'<rect width="{high}" height="10" fill="{colour}" opacity=".35"/>' if high > low else ""
    full = f'<rect width="{low}" height="10" fill="{colour}"/>' if low else ""
    return f'<svg width="{_WIDTH}" height="10" aria-hidden="true">{pale}{full}</svg>'


def _length(value: float, scale: tuple[float, float]) -> int:
    if math.isnan(value) or value <= 0:
        return 0
    if math.isinf(value):
        return _WIDTH
    share = math.log(value / scale[0]) / math.log(scale[1] / scale[0])
    return 2 + round(share * (_WIDTH - 2))


def _e(text: str) -> str:
    return escape(words.clean(text))
