"""What a notebook shows of a phase diagram: the whole in words, the point, the map as text."""

from __future__ import annotations

from html import escape

from signalprop.report.fragment import STYLE
from signalprop.report.theory import console, said
from signalprop.report.theory.result import PhaseView


def fragment(shown: PhaseView) -> str:
    """A piece of HTML that stands in any page.

    Args:
        shown: the diagram.

    Returns:
        A `div` with its own style; no script, no request.
    """
    parts = [f'<div class="sp-box"><p><b>{escape(said.headline(shown))}</b></p></div>']
    if shown.point is not None:
        rows = "".join(
            f'<tr><td>{escape(a)}</td><td class="sp-n"><b>{escape(b)}</b></td>'
            f'<td class="sp-soft">{escape(c)}</td></tr>'
            for a, b, c in said.facts(shown.point, shown.depth)
        )
        parts.append(f"<p>{escape(said.point_sentence(shown.point, shown.depth))}</p>")
        parts.append(f"<table><tbody>{rows}</tbody></table>")
    lines = "\n".join(line.plain for line in console.drawn(shown))
    parts.append(f'<pre style="line-height:1.1">{escape(lines)}</pre>')
    return f'<div class="sp-report"><style>{STYLE}</style>{"".join(parts)}</div>'
